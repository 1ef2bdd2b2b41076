"""The HTTP routes: OpenAI's, /health and /metrics.

In: a body that protocol/bodies.py has validated. The route checks the request, structured_answers.py adds its grammar
and tools, generation/generate.py yields pieces of text, and formatting.py formats them. Out: one JSON body, or a stream
of server-sent events. All errors have OpenAI's format.
"""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from hone_server.engine.continuous_batching import MAX_BATCH_REQUESTS, EngineError, GuidanceError
from hone_server.generation.generate import FEW_TOKENS, Job, Model, Piece, stream_jobs
from hone_server.http.encoding import encode_json, encode_with_pauses
from hone_server.http.formatting import CompletionWire, Wire, usage
from hone_server.http.metrics import Metrics
from hone_server.http.pages import add_pages
from hone_server.http.structured_answers import choose_wire, guide_jobs, plan_chat, plan_completion
from hone_server.model_registry import READY, Service
from hone_server.protocol.bodies import BodyRoute
from hone_server.protocol.errors import ApiError, FailureAnswers, internal_error, invalid, too_busy, too_many
from hone_server.protocol.requests import ChatRequest, CompletionRequest, GenerationRequest
from hone_server.protocol.responses import CHAT, COMPLETION, ERRORS, HEALTH, ModelCard, ModelList
from hone_server.workers import run_in_thread

log = logging.getLogger("hone_server")

Result = TypeVar("Result")

CLIENT_CLOSED_REQUEST = 499
# Tokens with log probabilities in one event of a stream. A prompt has thousands, and their JSON would take too long in
# one piece.
EVENT_LOGPROBS = 32


@dataclass
class Totals:
    """What one request has used so far.

    tokens: generated tokens by answer. started: when the request had been received, by time.perf_counter.
    """

    prompt_tokens: int
    started: float
    tokens: Counter[int] = field(default_factory=Counter)

    def usage(self) -> dict[str, int]:
        return usage(self.prompt_tokens, sum(self.tokens.values()))


def make_app(service: Service, max_waiting: int) -> FastAPI:
    app = FastAPI(title="Hone", version="1", docs_url=None, redoc_url=None)
    most_answers = MAX_BATCH_REQUESTS + max_waiting
    app.router.route_class = type("Route", (BodyRoute,), {"most_prompts": most_answers})
    metrics = Metrics(service.load_figures, lambda: [served.name for served in service.served if served.parent])
    answer_errors(app)
    add_pages(app)

    def checked(body: GenerationRequest) -> Model:
        """Return the model that the request names. Raises ApiError."""
        body.refuse_unsupported()
        model = service.model(body.model)
        if body.answers > most_answers:
            raise too_many("n" if (body.n or 1) > 1 else "prompt", body.answers, most_answers)
        refuse_busy(model, body)
        return model

    def refuse_busy(model: Model, body: GenerationRequest) -> None:
        """Raise ApiError 429 when too many answers wait."""
        _, waiting = model.lane.counts()
        if waiting and waiting + body.answers > max_waiting:
            metrics.refused.labels(body.model).inc()
            raise too_busy(body.model, waiting)

    @app.get("/health", responses=HEALTH)
    async def health() -> Response:
        state = service.state()
        return JSONResponse({"status": state}, 200 if state == READY else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", response_model=ModelList, responses=ERRORS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service, served.name) for served in service.served]}

    @app.get("/v1/models/{name:path}", response_model=ModelCard, responses=ERRORS)
    async def one_model(name: str) -> dict[str, Any]:
        return _card(service, name)

    @app.post("/v1/chat/completions", responses=CHAT)
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = checked(body)
        structure, jobs = await run_in_thread(plan_chat, model, body, is_large=request.state.is_large)
        guided = await _unless_client_leaves(request, guide_jobs(model, jobs, structure))
        if guided is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        refuse_busy(model, body)  # others have come meanwhile
        return await _answer(request, body, model, guided, choose_wire(structure), metrics)

    @app.post("/v1/completions", responses=COMPLETION)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        model = checked(body)
        structure, jobs = await run_in_thread(plan_completion, model, body, is_large=request.state.is_large)
        guided = await _unless_client_leaves(request, guide_jobs(model, jobs, structure))
        if guided is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        refuse_busy(model, body)  # others have come meanwhile
        return await _answer(request, body, model, guided, CompletionWire(), metrics)

    @app.api_route("/v1/responses{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def responses(rest: str) -> Response:
        message = "the embedded engine has no Responses API; use POST /v1/chat/completions, or engine vllm"
        raise ApiError(404, message, code="not_found")

    return app


async def _answer(
    request: Request, body: GenerationRequest, model: Model, jobs: list[Job], wire: Wire, metrics: Metrics
) -> Response:
    prompts = len(jobs) // (body.n or 1)
    totals = Totals(sum(len(job.prompt) for job in jobs[:: len(jobs) // prompts]), request.state.received)
    head = {"id": f"{wire.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.served.name}
    pieces = _counted(model, jobs, totals, metrics, stream=bool(body.stream))
    if body.stream:
        events = _events(pieces, wire, head, totals, body)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    finished = await _unless_client_leaves(request, _last_pieces(pieces))
    if finished is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    answer = {**head, "object": wire.whole, "choices": [], "usage": totals.usage()}
    return Response(await run_in_thread(_whole, answer, finished, wire), media_type="application/json")


def _whole(answer: dict[str, Any], finished: list[Piece], wire: Wire) -> bytes:
    """Return the answer's body with all choices."""
    choices = [encode_with_pauses(wire.choice(piece)) for piece in sorted(finished, key=lambda piece: piece.index)]
    return encode_json(answer).replace('"choices":[]', f'"choices":[{",".join(choices)}]', 1).encode()


async def _counted(
    model: Model, jobs: list[Job], totals: Totals, metrics: Metrics, *, stream: bool
) -> AsyncIterator[Piece]:
    """Yield the pieces, counting them for the usage and the metrics."""
    name, unfinished, why = model.served.name, len(jobs), "abort"
    try:
        async with aclosing(stream_jobs(model, jobs, stream=stream)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if not totals.tokens:
                    metrics.prompt_tokens.labels(name).inc(totals.prompt_tokens)
                told = totals.tokens[piece.index]
                if piece.tokens - told > FEW_TOKENS:
                    await run_in_thread(metrics.generated, name, piece, told, totals.started)
                else:
                    metrics.generated(name, piece, told, totals.started)
                totals.tokens[piece.index] = piece.tokens
                unfinished -= piece.finish_reason is not None
                yield piece
    except EngineError:
        why = "error"
        raise
    finally:
        metrics.success.labels(name, why).inc(unfinished)


async def _events(
    pieces: AsyncIterator[Piece], wire: Wire, head: dict[str, Any], totals: Totals, body: GenerationRequest
) -> AsyncIterator[str]:
    """Yield the server-sent events of a stream, ending with [DONE]. An error after the start is an event, too."""
    head = {**head, "object": wire.part}
    include_usage, continuous = body.include_usage, body.continuous_usage
    extra: dict[str, Any] = {"usage": None} if include_usage else {}
    told: set[int] = set()
    try:
        async with aclosing(pieces) as counted:  # type: ignore[type-var]
            async for piece in counted:
                if continuous:
                    extra = {"usage": totals.usage()}
                for place, part in enumerate(piece.split(EVENT_LOGPROBS)):
                    if place:
                        await asyncio.sleep(0)  # sending alone does not let other tasks run
                    for delta in wire.deltas(part, first=piece.index not in told):
                        yield _event({**head, "choices": [delta], **extra})
                    told.add(piece.index)
        if include_usage:
            yield _event({**head, "choices": [], "usage": totals.usage()})
    except EngineError as error:
        yield _event(engine_failure(error).body())
    except Exception as error:  # otherwise the connection would break without a reason for the client
        log.exception("a stream failed")
        yield _event(internal_error(error).body())
    yield "data: [DONE]\n\n"


async def _last_pieces(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces if piece.finish_reason]


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Return the result of the work, or None when the client has left, which cancels the work."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    running, left = asyncio.create_task(work), asyncio.create_task(leaving())
    try:
        await asyncio.wait([running, left], return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    finally:
        for task in (running, left):
            task.cancel()
        await asyncio.gather(running, left, return_exceptions=True)


def _event(data: dict[str, Any]) -> str:
    return f"data: {encode_json(data)}\n\n"


def _card(service: Service, name: str) -> dict[str, Any]:
    served = next((one for one in service.served if one.name == name), None)
    if served is None:
        raise ApiError(404, f"model {name!r} does not exist", param="model", code="model_not_found")
    return {
        "id": served.name,
        "object": "model",
        "created": service.created,
        "owned_by": "hone",
        "root": served.root,
        "parent": served.parent,
        "max_model_len": service.max_model_len(name),
        "kind": served.kind,
        "digest": served.digest,
    }


def engine_failure(error: EngineError) -> ApiError:
    """Return the error that a client gets, streamed or not."""
    is_request = isinstance(error, GuidanceError)
    return ApiError(400, str(error)) if is_request else ApiError(500, str(error), code="engine_error")


def answer_errors(app: FastAPI) -> None:
    """Make the application answer every error in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> Response:
        refused = invalid(error.errors()[0])
        return JSONResponse(refused.body(), refused.status)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        refused = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(refused.body(), refused.status, headers=error.headers)

    @app.exception_handler(EngineError)
    async def engine_error(_: Request, error: EngineError) -> Response:
        refused = engine_failure(error)
        return JSONResponse(refused.body(), refused.status)

    app.add_middleware(FailureAnswers)
