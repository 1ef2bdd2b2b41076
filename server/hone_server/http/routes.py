"""The HTTP routes: OpenAI's, /health and /metrics.

In: a body that protocol/bodies.py has validated. The route checks the request, structured_answers.py adds its grammar
and tools, generation/generate.py yields chunks of text, and formatting.py formats them. Out: one JSON body, or a stream
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
from hone_server.generation.generate import MAX_INLINE_TOKENS, GenerationTask, OutputChunk, ServedModel, stream_tasks
from hone_server.http.encoding import encode_json, encode_with_pauses
from hone_server.http.formatting import AnswerFormatter, CompletionFormatter, make_usage
from hone_server.http.metrics import Metrics
from hone_server.http.pages import add_pages
from hone_server.http.structured_answers import add_guides, choose_formatter, plan_chat_tasks, plan_completion_tasks
from hone_server.model_registry import READY, ModelRegistry
from hone_server.protocol.bodies import BodyRoute
from hone_server.protocol.errors import (
    ApiError,
    InternalErrorMiddleware,
    make_busy_error,
    make_internal_error,
    make_too_many_error,
    make_validation_error,
)
from hone_server.protocol.requests import ChatRequest, CompletionRequest, GenerationRequest
from hone_server.protocol.responses import CHAT, COMPLETION, ERRORS, HEALTH, ModelCard, ModelList
from hone_server.structured.grammars import AnswerStructure
from hone_server.workers import run_in_thread

log = logging.getLogger("hone_server")

Result = TypeVar("Result")

CLIENT_CLOSED_REQUEST = 499
# The longer path comes first: the other one is its end.
API_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models")
# Tokens with log probabilities in one event of a stream. A prompt has thousands, and their JSON would take too long in
# one piece.
MAX_EVENT_LOGPROBS = 32


@dataclass
class RequestUsage:
    """What one request has used so far.

    token_counts: generated tokens by answer. started: when the request had been received, by time.perf_counter.
    """

    prompt_tokens: int
    started: float
    token_counts: Counter[int] = field(default_factory=Counter)

    def make_usage(self) -> dict[str, int]:
        return make_usage(self.prompt_tokens, sum(self.token_counts.values()))


@dataclass(frozen=True)
class RequestAdmission:
    """Admits requests for answers. max_waiting: answers of one model that may wait for a place in its batch."""

    registry: ModelRegistry
    metrics: Metrics
    max_waiting: int

    @property
    def max_answers(self) -> int:
        return MAX_BATCH_REQUESTS + self.max_waiting

    def get_checked_model(self, body: GenerationRequest) -> ServedModel:
        """Return the model that the request names. Raises ApiError."""
        body.refuse_unsupported()
        model = self.registry.get_model(body.model)
        if body.answer_count > self.max_answers:
            raise make_too_many_error("n" if (body.n or 1) > 1 else "prompt", body.answer_count, self.max_answers)
        self.refuse_busy(model, body)
        return model

    def refuse_busy(self, model: ServedModel, body: GenerationRequest) -> None:
        """Raise ApiError 429 when too many answers wait."""
        _, waiting = model.handle.count_requests()
        if waiting and waiting + body.answer_count > self.max_waiting:
            self.metrics.refused_requests.labels(body.model).inc()
            raise make_busy_error(body.model, waiting)


def make_app(registry: ModelRegistry, max_waiting: int) -> FastAPI:
    app = FastAPI(title="Hone", version="1", docs_url=None, redoc_url=None)
    metrics = Metrics(registry.measure_load, lambda: [served.name for served in registry.entries if served.parent])
    admission = RequestAdmission(registry, metrics, max_waiting)
    app.router.route_class = type("Route", (BodyRoute,), {"max_prompts": admission.max_answers})
    add_error_handlers(app)
    add_pages(app)
    _add_state_routes(app, registry, metrics)
    _add_generation_routes(app, admission)
    return app


def _add_state_routes(app: FastAPI, registry: ModelRegistry, metrics: Metrics) -> None:
    """Add the routes that show the engine's state and its models."""

    @app.get("/health", responses=HEALTH)
    async def health() -> Response:
        state = registry.get_state()
        return JSONResponse({"status": state}, 200 if state == READY else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
    async def prometheus() -> Response:
        return Response(metrics.render_text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", response_model=ModelList, responses=ERRORS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_make_model_card(registry, served.name) for served in registry.entries]}

    @app.get("/v1/models/{name:path}", response_model=ModelCard, responses=ERRORS)
    async def one_model(name: str) -> dict[str, Any]:
        return _make_model_card(registry, name)


def _add_generation_routes(app: FastAPI, admission: RequestAdmission) -> None:
    """Add the routes that answer with generated text."""

    @app.post("/v1/chat/completions", responses=CHAT)
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = admission.get_checked_model(body)
        structure, tasks = await run_in_thread(plan_chat_tasks, model, body, is_large=request.state.is_large)
        return await _send_guided_answer(request, body, model, tasks, structure, choose_formatter(structure), admission)

    @app.post("/v1/completions", responses=COMPLETION)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        model = admission.get_checked_model(body)
        structure, tasks = await run_in_thread(plan_completion_tasks, model, body, is_large=request.state.is_large)
        return await _send_guided_answer(request, body, model, tasks, structure, CompletionFormatter(), admission)

    @app.api_route("/v1/embeddings", methods=["POST"], include_in_schema=False)
    async def embeddings() -> Response:
        message = "the embedded engine has no embeddings; serve an embedding model with engine vllm"
        raise ApiError(404, message, code="not_found")

    @app.api_route("/v1/responses{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def responses(rest: str) -> Response:
        message = "the embedded engine has no Responses API; use POST /v1/chat/completions, or engine vllm"
        raise ApiError(404, message, code="not_found")


async def _send_guided_answer(
    request: Request,
    body: GenerationRequest,
    model: ServedModel,
    tasks: list[GenerationTask],
    structure: AnswerStructure,
    formatter: AnswerFormatter,
    admission: RequestAdmission,
) -> Response:
    """Compile the grammar of the answers, if they have one, and answer."""
    client = _get_client_address(request)
    guided = await _run_unless_client_leaves(request, add_guides(model, tasks, structure, client))
    if guided is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    admission.refuse_busy(model, body)  # others have come meanwhile
    return await _send_answer(request, body, model, guided, formatter, admission.metrics)


def _get_client_address(request: Request) -> str:
    """Return the address of the connection; all clients behind one proxy have the same."""
    return request.client.host if request.client else ""


async def _send_answer(
    request: Request,
    body: GenerationRequest,
    model: ServedModel,
    tasks: list[GenerationTask],
    formatter: AnswerFormatter,
    metrics: Metrics,
) -> Response:
    prompts = len(tasks) // (body.n or 1)
    usage = RequestUsage(sum(len(task.prompt) for task in tasks[:: len(tasks) // prompts]), request.state.received)
    head = {"id": f"{formatter.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.entry.name}
    chunks = _count_chunks(model, tasks, usage, metrics, stream=bool(body.stream))
    if body.stream:
        events = _make_events(chunks, formatter, head, usage, body)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    finished = await _run_unless_client_leaves(request, _collect_last_chunks(chunks))
    if finished is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    answer = {**head, "object": formatter.object_type, "choices": [], "usage": usage.make_usage()}
    return Response(await run_in_thread(_encode_answer, answer, finished, formatter), media_type="application/json")


def _encode_answer(answer: dict[str, Any], finished: list[OutputChunk], formatter: AnswerFormatter) -> bytes:
    """Return the answer's body with all choices."""
    choices = [
        encode_with_pauses(formatter.format_choice(chunk)) for chunk in sorted(finished, key=lambda chunk: chunk.index)
    ]
    return encode_json(answer).replace('"choices":[]', f'"choices":[{",".join(choices)}]', 1).encode()


async def _count_chunks(
    model: ServedModel, tasks: list[GenerationTask], usage: RequestUsage, metrics: Metrics, *, stream: bool
) -> AsyncIterator[OutputChunk]:
    """Yield the chunks, counting them for the usage and the metrics."""
    name, unfinished, finish_reason = model.entry.name, len(tasks), "abort"
    try:
        async with aclosing(stream_tasks(model, tasks, stream=stream)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if not usage.token_counts:
                    metrics.prompt_tokens.labels(name).inc(usage.prompt_tokens)
                counted_tokens = usage.token_counts[chunk.index]
                if chunk.token_count - counted_tokens > MAX_INLINE_TOKENS:
                    await run_in_thread(metrics.count_chunk, name, chunk, counted_tokens, usage.started)
                else:
                    metrics.count_chunk(name, chunk, counted_tokens, usage.started)
                usage.token_counts[chunk.index] = chunk.token_count
                unfinished -= chunk.finish_reason is not None
                yield chunk
    except EngineError:
        finish_reason = "error"
        raise
    finally:
        metrics.finished_answers.labels(name, finish_reason).inc(unfinished)


async def _make_events(
    chunks: AsyncIterator[OutputChunk],
    formatter: AnswerFormatter,
    head: dict[str, Any],
    usage: RequestUsage,
    body: GenerationRequest,
) -> AsyncIterator[str]:
    """Yield the server-sent events of a stream, ending with [DONE]. An error after the start is an event, too."""
    head = {**head, "object": formatter.chunk_object_type}
    include_usage, continuous = body.include_usage, body.include_continuous_usage
    extra: dict[str, Any] = {"usage": None} if include_usage else {}
    begun: set[int] = set()
    try:
        async with aclosing(chunks) as counted:  # type: ignore[type-var]
            async for chunk in counted:
                if continuous:
                    extra = {"usage": usage.make_usage()}
                for place, part in enumerate(chunk.split_logprobs(MAX_EVENT_LOGPROBS)):
                    if place:
                        await asyncio.sleep(0)  # sending alone does not let other tasks run
                    for delta in formatter.format_deltas(part, first=chunk.index not in begun):
                        yield _format_event({**head, "choices": [delta], **extra})
                    begun.add(chunk.index)
        if include_usage:
            yield _format_event({**head, "choices": [], "usage": usage.make_usage()})
    except EngineError as error:
        yield _format_event(make_engine_error(error).make_body())
    except Exception as error:  # otherwise the connection would break without a reason for the client
        log.exception("a stream failed")
        yield _format_event(make_internal_error(error).make_body())
    yield "data: [DONE]\n\n"


async def _collect_last_chunks(chunks: AsyncIterator[OutputChunk]) -> list[OutputChunk]:
    return [chunk async for chunk in chunks if chunk.finish_reason]


async def _run_unless_client_leaves(request: Request, coroutine: Coroutine[Any, Any, Result]) -> Result | None:
    """Return the result of the work, or None when the client has left, which cancels the work."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    running, left = asyncio.create_task(coroutine), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait([running, left], return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    finally:
        for task in (running, left):
            task.cancel()
        await asyncio.gather(running, left, return_exceptions=True)


def _format_event(data: dict[str, Any]) -> str:
    return f"data: {encode_json(data)}\n\n"


def _make_model_card(registry: ModelRegistry, name: str) -> dict[str, Any]:
    entry = next((one for one in registry.entries if one.name == name), None)
    if entry is None:
        raise ApiError(404, f"model {name!r} does not exist", param="model", code="model_not_found")
    return {
        "id": entry.name,
        "object": "model",
        "created": registry.created_at,
        "owned_by": "hone",
        "root": entry.root,
        "parent": entry.parent,
        "max_model_len": registry.get_max_model_len(name),
        "kind": entry.kind,
        "digest": entry.digest,
    }


def make_engine_error(error: EngineError) -> ApiError:
    """Return the error that a client gets, streamed or not."""
    is_request = isinstance(error, GuidanceError)
    return ApiError(400, str(error)) if is_request else ApiError(500, str(error), code="engine_error")


def find_meant_path(path: str) -> str | None:
    """Return the route that a client with another base URL means, without /v1 or with it twice; None: none of them."""
    return next((known for known in API_PATHS if path.rstrip("/").endswith(known.removeprefix("/v1"))), None)


def add_error_handlers(app: FastAPI) -> None:
    """Make the application answer every error in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def handle_api_error(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.make_body(), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(_: Request, error: RequestValidationError) -> Response:
        refused = make_validation_error(error.errors()[0])
        return JSONResponse(refused.make_body(), refused.status)

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 404 and (meant := find_meant_path(request.url.path)):
            message += f"; use {meant}, with http://HOST:PORT/v1 as the base URL"
        refused = ApiError(error.status_code, message)
        return JSONResponse(refused.make_body(), refused.status, headers=error.headers)

    @app.exception_handler(EngineError)
    async def handle_engine_error(_: Request, error: EngineError) -> Response:
        refused = make_engine_error(error)
        return JSONResponse(refused.make_body(), refused.status)

    app.add_middleware(InternalErrorMiddleware)
