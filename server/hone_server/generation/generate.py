"""Turn a checked request into answers: tokenization, sampling settings, and the pieces of each answer.

In: a request of protocol/requests.py, and the model that it names. Out: pieces of text with log probabilities, which
http/formatting.py writes. One request becomes one `Job` for each answer; its tokens come from
engine/continuous_batching.py.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from hone_server.artifacts.sources import Served
from hone_server.engine.continuous_batching import Lane, Tokens
from hone_server.engine.penalties import Penalties
from hone_server.engine.prompt_logprobs import PromptLogprobs
from hone_server.engine.sampler import Sampling
from hone_server.generation.detokenizer import Decode, StopSet, TextStream
from hone_server.generation.logprobs import LogprobStream, Told, place_tokens, search_tokens, split_told, tell_prompt
from hone_server.generation.prompts import encode, render_chat
from hone_server.protocol.bounds import check_prompt_logprobs
from hone_server.protocol.errors import ApiError, context_exceeded
from hone_server.protocol.requests import ChatRequest, CompletionRequest, GenerationRequest
from hone_server.structured.guidance import Guidance, Guide
from hone_server.structured.tool_formats import ToolFormat
from hone_server.workers import run_in_thread

# Up to this many tokens are turned into text on the event loop. An answer that is not streamed comes with all of its
# tokens at once, which takes longer, and runs in a thread.
FEW_TOKENS = 16
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions; a chat may fill the context


@dataclass(frozen=True, eq=False)
class Model:
    """A served model, ready to answer.

    defaults: the sampling settings of its generation_config.json. default_tokens: its max_new_tokens, for requests
    without a length.
    `decode` leaves special tokens out, and `decode_all` keeps them; `token_text` is for a single token, and keeps them
    too. longest_token: in characters. tool_form: how it writes tool calls; None: unknown.
    """

    served: Served
    tokenizer: Any
    decode: Decode
    decode_all: Decode
    token_text: Decode
    lane: Lane
    defaults: Sampling
    longest_token: int
    guidance: Guidance
    tool_form: ToolFormat | None
    default_tokens: int | None = None


@dataclass(frozen=True)
class Job:
    """One answer to generate: the tokens of its prompt, and its settings. `echo` is sent before the answer.

    guide: leads the answer through its grammar. shows_all: its text includes special tokens.
    Without `max_tokens` there is no answer but the echo. tells_end: the log probabilities include the token that ends
    the answer, as in completions. trigger: the token at which tool calls begin, after free text.
    prompt_offsets: where the prompt's tokens begin in `echo`; None: as decoded.
    """

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stops: StopSet
    ignore_eos: bool
    echo: str = ""
    guide: Guide | None = None
    shows_all: bool = False
    trigger: int | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_offsets: list[int] | None = None
    tells_end: bool = False


@dataclass(frozen=True)
class Piece:
    """The next text of answer number `index`; `tokens` generated so far; the last piece has a finish reason.

    logprobs: those of the text; None if they were not requested. times: as in the engine's Tokens.
    calls_at: where in the answer's text, in characters, the job's `trigger` is; None: it has not come.
    """

    index: int
    text: str
    tokens: int
    finish_reason: str | None
    logprobs: list[Told] | None = None
    times: list[float] = field(default_factory=list)
    calls_at: int | None = None

    def split(self, most: int) -> list["Piece"]:
        """Return equivalent pieces of at most this many log probabilities each; the last one has the finish reason."""
        if len(self.logprobs or []) <= most:
            return [self]
        parts = split_told(self.logprobs or [], self.text, most)
        pieces = [replace(self, text=text, logprobs=told, finish_reason=None, times=[]) for told, text in parts]
        return [*pieces[:-1], replace(pieces[-1], finish_reason=self.finish_reason, times=self.times)]


def chat_jobs(model: Model, request: ChatRequest, tools: list[dict[str, Any]] | None = None) -> list[Job]:
    """Return one job for each of the `n` choices; `tools` are for the chat template. Raises ApiError."""
    if not model.tokenizer.chat_template:
        message = f"model {model.served.name!r} has no chat template; use /v1/completions"
        raise ApiError(400, message, param="messages")
    messages = [message.for_template() for message in request.messages]
    text = render_chat(model.tokenizer, messages, tools=tools, add_generation_prompt=True)
    prompt = encode(
        model.tokenizer, text, model.lane.max_model_len, model.longest_token, "messages", add_special_tokens=False
    )
    _check_tokens(model, prompt, "messages")
    wanted = request.max_completion_tokens or request.max_tokens
    param = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    room = model.lane.max_model_len - len(prompt)
    length = wanted or _default_tokens(model, prompt, room)
    max_tokens = _checked_length(model, prompt, length, "messages" if wanted is None else param)
    return _choices(model, request, prompt, max_tokens, first=0)


def completion_jobs(model: Model, request: CompletionRequest) -> list[Job]:
    """Return `n` jobs for each prompt, in order. Raises ApiError."""
    jobs: list[Job] = []
    sizes = model.lane.max_model_len, model.longest_token
    for prompt in request.prompts():
        ids = prompt if isinstance(prompt, list) else encode(model.tokenizer, prompt, *sizes, "prompt")
        _check_tokens(model, ids, "prompt")
        wanted = request.max_tokens
        if wanted is None:
            wanted = _default_tokens(model, ids, COMPLETION_MAX_TOKENS)
        max_tokens = _checked_length(model, ids, wanted, "max_tokens" if request.max_tokens else "prompt")
        echo = (prompt if isinstance(prompt, str) else model.decode(ids)) if request.echo else ""
        choices = [
            _told_as_completion(job, echoes=bool(request.echo))
            for job in _choices(model, request, ids, max_tokens, len(jobs), echo)
        ]
        if isinstance(prompt, str) and choices[0].prompt_logprobs is not None:
            offsets = _find_tokens(model, prompt, ids)
            choices = [replace(job, prompt_offsets=offsets) for job in choices]
        jobs += choices
    if not jobs:
        raise ApiError(400, "there is no prompt", param="prompt")
    if request.echo and request.logprobs is not None:
        check_prompt_logprobs(sum(len(job.prompt) for job in jobs), request.logprobs)
    return jobs


def _find_tokens(model: Model, text: str, ids: list[int]) -> list[int]:
    """Return where each of the text's tokens begins in it."""
    texts = [model.token_text([token]) for token in ids]
    if not getattr(model.tokenizer, "is_fast", False):
        return search_tokens(text, texts)
    return place_tokens(text, model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"], texts)


def _told_as_completion(job: Job, *, echoes: bool) -> Job:
    """Return the job with the log probabilities that completions have in addition to those of chats, if requested.

    echoes: whether those of the prompt are included. A prompt of special tokens alone has no text, but has them.
    """
    top = job.sampling.logprobs
    if top is None:
        return job
    return replace(job, tells_end=True, prompt_logprobs=PromptLogprobs(job.prompt, top) if echoes else None)


class _Answer:
    """Makes the text of one answer from its tokens."""

    def __init__(self, model: Model, job: Job, index: int, *, stream: bool) -> None:
        self._text = TextStream(model.decode_all if job.shows_all else model.decode, job.stops)
        self._logprobs = None if job.sampling.logprobs is None else LogprobStream(model.token_text)
        self._eos = frozenset[int]() if job.ignore_eos else model.lane.eos_token_ids
        self._index = index
        self._stream = stream
        self._tokens = 0
        self._pending = job.echo
        self._model = model
        self._job = job
        self._calls_at: int | None = None
        self._told_prompt: list[Told] | None = [] if job.prompt_logprobs is None else None

    def is_long(self, chunk: Tokens) -> bool:
        """Return whether a `push` of these tokens takes long."""
        return len(chunk.ids) > FEW_TOKENS or self._told_prompt is None

    def push(self, chunk: Tokens) -> Piece | None:
        """Take the next tokens; return the piece that they make, if there is one to send."""
        if self._told_prompt is None and (prompt := self._job.prompt_logprobs) is not None:
            self._told_prompt = tell_prompt(
                prompt.prompt,
                prompt.tokens,
                self._model.decode,
                self._model.token_text,
                self._job.prompt_offsets,
            )
        if not self._job.max_tokens:
            return Piece(self._index, self._pending, 0, "length", self._told_prompt, chunk.times)
        finish = None
        for place, token in enumerate(chunk.ids):
            self._tokens += 1
            if token in self._eos:
                finish = "stop"
                self._pending += self._text.flush()
                if self._logprobs is not None and self._job.tells_end:
                    self._logprobs.push(chunk.logprobs[place], len(self._job.echo) + self._text.decoded)
                break
            self._pending += self._text.push(token)
            if token == self._job.trigger and self._calls_at is None:
                self._calls_at = self._text.decoded - len(self._model.token_text([token]))
            if self._logprobs is not None:
                self._logprobs.push(chunk.logprobs[place], len(self._job.echo) + self._text.begins)
            if self._text.stopped:
                finish = "stop"
                break
        ended = finish is not None or chunk.last
        if ended:
            self._pending += self._text.flush()
            finish = "stop" if self._text.stopped else finish or "length"
        if not (ended or (self._stream and self._pending)):
            return None
        everything = ended and not self._text.stopped
        told = None
        if self._logprobs is not None:
            shown = len(self._job.echo) + self._text.told
            told = [*(self._told_prompt or []), *self._logprobs.tell(shown, everything=everything)]
            self._told_prompt = []
        text, self._pending = self._pending, ""
        return Piece(self._index, text, self._tokens, finish, told, chunk.times, self._calls_at)


async def stream_job(model: Model, job: Job, index: int, *, stream: bool) -> AsyncIterator[Piece]:
    """Yield the pieces of one answer (only the last one unless `stream`). Raises EngineError."""
    answer = _Answer(model, job, index, stream=stream)
    if not job.max_tokens and job.prompt_logprobs is None:
        yield Piece(index, job.echo, 0, "length")
        return
    generated = model.lane.generate(
        job.prompt,
        job.sampling,
        job.max_tokens or 1,
        stream=stream or bool(job.stops),
        ignore_eos=job.ignore_eos,
        guide=job.guide,
        prompt_logprobs=job.prompt_logprobs,
    )
    async with aclosing(generated) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            piece = await run_in_thread(answer.push, chunk) if answer.is_long(chunk) else answer.push(chunk)
            if piece is not None:
                yield piece
                if piece.finish_reason is not None:
                    return


async def stream_jobs(model: Model, jobs: list[Job], *, stream: bool) -> AsyncIterator[Piece]:
    """Yield the pieces of all answers as they come. Raises EngineError; leaving early ends all of them."""
    if len(jobs) == 1:
        async with aclosing(stream_job(model, jobs[0], 0, stream=stream)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece
        return
    queue: asyncio.Queue[Piece | BaseException] = asyncio.Queue()

    async def run(index: int, job: Job) -> None:
        try:
            async for piece in stream_job(model, job, index, stream=stream):
                queue.put_nowait(piece)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(run(index, job)) for index, job in enumerate(jobs)]
    try:
        unfinished = len(jobs)
        while unfinished:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            unfinished -= item.finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _choices(
    model: Model, request: GenerationRequest, prompt: list[int], max_tokens: int, first: int, echo: str = ""
) -> list[Job]:
    sampling = _sampling(model, request)
    seed = secrets.randbits(63) if request.seed is None else request.seed
    seeds = [(seed + first + choice) % 2**64 for choice in range(request.n or 1)]
    stops, ignore_eos = StopSet(request.stops), bool(request.ignore_eos)
    return [Job(prompt, replace(sampling, seed=own), max_tokens, stops, ignore_eos, echo) for own in seeds]


def _sampling(model: Model, request: GenerationRequest) -> Sampling:
    """Return the request's sampling settings, with the model's own settings where it has none. Raises ApiError."""
    bias = tuple((request.logit_bias or {}).items())
    unknown = [token for token, _ in bias if token >= model.lane.vocab_size]
    if unknown:
        message = f"token {unknown[0]} is not in the vocabulary of {model.lane.vocab_size} tokens"
        raise ApiError(400, message, param="logit_bias")
    penalties = Penalties(
        presence=request.presence_penalty or 0.0,
        frequency=request.frequency_penalty or 0.0,
        repetition=request.repetition_penalty or model.defaults.penalties.repetition,
        bias=bias,
    )
    asked = {
        name: getattr(request, name) for name in ("temperature", "top_p", "top_k") if getattr(request, name) is not None
    }
    return replace(model.defaults, penalties=penalties, logprobs=request.wanted_logprobs(), **asked)


def _check_tokens(model: Model, prompt: list[int], param: str) -> None:
    """Raise ApiError 400 for a prompt without tokens, or with tokens that the model has no embedding for."""
    if not prompt:
        raise ApiError(400, "the prompt is empty", param=param)
    size, largest = model.lane.vocab_size, max(prompt)
    if largest >= size:
        written = model.tokenizer.convert_ids_to_tokens(largest) if largest < len(model.tokenizer) else None
        named = f"token {largest} ({written})" if written else f"token {largest}"
        raise ApiError(400, f"{named} is not in the vocabulary of {size} tokens", param=param)


def _default_tokens(model: Model, prompt: list[int], otherwise: int) -> int:
    """Return how long an answer may be if the request names no length: the model's own length, as far as it fits."""
    if model.default_tokens is not None:
        otherwise = min(model.default_tokens, model.lane.max_model_len - len(prompt))
    return max(otherwise, 1)


def _checked_length(model: Model, prompt: list[int], max_tokens: int, param: str) -> int:
    if len(prompt) + max_tokens > model.lane.max_model_len:
        raise context_exceeded(model.lane.max_model_len, len(prompt), max_tokens, param)
    return max_tokens
