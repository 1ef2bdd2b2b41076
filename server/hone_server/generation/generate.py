"""Turn a checked request into answers: tokenization, sampling settings, and the chunks of each answer.

In: a request of protocol/requests.py, and the model that it names. Out: chunks of text with log probabilities, which
http/formatting.py writes. One request becomes one `GenerationTask` for each answer; its tokens come from
engine/continuous_batching.py.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.continuous_batching import ModelHandle, TokenBatch
from hone_server.engine.penalties import Penalties
from hone_server.engine.prompt_logprobs import PromptLogprobs
from hone_server.engine.sampler import SamplingParams
from hone_server.generation.detokenizer import Decode, StopStringSet, TextStream
from hone_server.generation.logprobs import (
    DecodedLogprobs,
    LogprobStream,
    decode_prompt_logprobs,
    estimate_token_offsets,
    find_token_offsets,
    split_logprobs,
)
from hone_server.generation.prompts import check_template_variables, encode_prompt, render_chat
from hone_server.protocol.bounds import check_prompt_logprobs
from hone_server.protocol.errors import ApiError, make_context_error
from hone_server.protocol.requests import ChatRequest, CompletionRequest, GenerationRequest
from hone_server.structured.guidance import GrammarCompiler, Guide
from hone_server.structured.tool_formats import ToolCallFormat
from hone_server.workers import run_in_thread

# Up to this many tokens are turned into text on the event loop. An answer that is not streamed comes with all of its
# tokens at once, which takes longer, and runs in a thread.
MAX_INLINE_TOKENS = 16
RANDOM_SEED = -1  # asks for a different answer each time, as in vLLM and llama.cpp
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions; a chat may fill the context


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A served model, ready to answer.

    default_params: the sampling settings of its generation_config.json. default_max_tokens: its max_new_tokens, for
    requests without a length. `decode` leaves special tokens out, and `decode_with_special` keeps them; `decode_token`
    is for a single token, and keeps them too. tool_call_format: how it writes tool calls; None: unknown.
    """

    entry: ModelEntry
    tokenizer: Any
    decode: Decode
    decode_with_special: Decode
    decode_token: Decode
    handle: ModelHandle
    default_params: SamplingParams
    max_token_characters: int
    grammar_compiler: GrammarCompiler
    tool_call_format: ToolCallFormat | None
    default_max_tokens: int | None = None


@dataclass(frozen=True)
class GenerationTask:
    """One answer to generate: the tokens of its prompt, and its settings. `echo` is sent before the answer.

    guide: leads the answer through its grammar. keeps_special_tokens: its text includes special tokens.
    Without `max_tokens` there is no answer but the echo. reports_eos: the log probabilities include the token that ends
    the answer, as in completions. tool_call_trigger: the token at which tool calls begin, after free text.
    prompt_offsets: where the prompt's tokens begin in `echo`; None: as decoded.
    """

    prompt: list[int]
    params: SamplingParams
    max_tokens: int
    stops: StopStringSet
    ignore_eos: bool
    echo: str = ""
    guide: Guide | None = None
    keeps_special_tokens: bool = False
    tool_call_trigger: int | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_offsets: list[int] | None = None
    reports_eos: bool = False


@dataclass(frozen=True)
class OutputChunk:
    """The next text of answer number `index`; `token_count` generated so far; the last chunk has a finish reason.

    logprobs: those of the text; None if they were not requested. token_times: as in the engine's TokenBatch.
    tool_calls_offset: where in the answer's text, in characters, the task's `tool_call_trigger` is; None: it has not
    come.
    """

    index: int
    text: str
    token_count: int
    finish_reason: str | None
    logprobs: list[DecodedLogprobs] | None = None
    token_times: list[float] = field(default_factory=list)
    tool_calls_offset: int | None = None

    def split_logprobs(self, max_entries: int) -> list["OutputChunk"]:
        """Return equivalent chunks of at most this many log probabilities each; the last one has the finish reason."""
        if len(self.logprobs or []) <= max_entries:
            return [self]
        parts = split_logprobs(self.logprobs or [], self.text, max_entries)
        chunks = [
            replace(self, text=text, logprobs=entries, finish_reason=None, token_times=[]) for entries, text in parts
        ]
        return [*chunks[:-1], replace(chunks[-1], finish_reason=self.finish_reason, token_times=self.token_times)]


def make_chat_tasks(
    model: ServedModel, request: ChatRequest, tools: list[dict[str, Any]] | None = None
) -> list[GenerationTask]:
    """Return one task for each of the `n` choices; `tools` are for the chat template. Raises ApiError."""
    if not model.tokenizer.chat_template:
        message = f"model {model.entry.name!r} has no chat template; use /v1/completions"
        raise ApiError(400, message, param="messages")
    messages = [message.format_for_template() for message in request.messages]
    variables = request.chat_template_kwargs or {}
    check_template_variables(variables)
    text = render_chat(model.tokenizer, messages, tools=tools, add_generation_prompt=True, **variables)
    prompt = encode_prompt(
        model.tokenizer,
        text,
        model.handle.max_model_len,
        model.max_token_characters,
        "messages",
        add_special_tokens=False,
    )
    _check_token_ids(model, prompt, "messages")
    requested_tokens = request.max_completion_tokens or request.max_tokens
    param = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    room = model.handle.max_model_len - len(prompt)
    length = requested_tokens or _get_default_tokens(model, prompt, room)
    max_tokens = _check_length(model, prompt, length, "messages" if requested_tokens is None else param)
    return _make_tasks(model, request, prompt, max_tokens, first=0)


def make_completion_tasks(model: ServedModel, request: CompletionRequest) -> list[GenerationTask]:
    """Return `n` tasks for each prompt, in order. Raises ApiError."""
    tasks: list[GenerationTask] = []
    sizes = model.handle.max_model_len, model.max_token_characters
    for prompt in request.list_prompts():
        ids = prompt if isinstance(prompt, list) else encode_prompt(model.tokenizer, prompt, *sizes, "prompt")
        _check_token_ids(model, ids, "prompt")
        requested_tokens = request.max_tokens
        if requested_tokens is None:
            requested_tokens = _get_default_tokens(model, ids, COMPLETION_MAX_TOKENS)
        max_tokens = _check_length(model, ids, requested_tokens, "max_tokens" if request.max_tokens else "prompt")
        echo = (prompt if isinstance(prompt, str) else model.decode(ids)) if request.echo else ""
        choices = [
            _add_completion_logprobs(task, echoes=bool(request.echo))
            for task in _make_tasks(model, request, ids, max_tokens, len(tasks), echo)
        ]
        if isinstance(prompt, str) and choices[0].prompt_logprobs is not None:
            offsets = _locate_tokens(model, prompt, ids)
            choices = [replace(task, prompt_offsets=offsets) for task in choices]
        tasks += choices
    if not tasks:
        raise ApiError(400, "there is no prompt", param="prompt")
    if request.echo and request.logprobs is not None:
        check_prompt_logprobs(sum(len(task.prompt) for task in tasks), request.logprobs)
    return tasks


def _locate_tokens(model: ServedModel, text: str, ids: list[int]) -> list[int]:
    """Return where each of the text's tokens begins in it."""
    texts = [model.decode_token([token]) for token in ids]
    if not getattr(model.tokenizer, "is_fast", False):
        return estimate_token_offsets(text, texts)
    return find_token_offsets(text, model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"], texts)


def _add_completion_logprobs(task: GenerationTask, *, echoes: bool) -> GenerationTask:
    """Return the task with the log probabilities that completions have in addition to those of chats, if requested.

    echoes: whether those of the prompt are included. A prompt of special tokens alone has no text, but has them.
    """
    top = task.params.top_logprobs
    if top is None:
        return task
    return replace(task, reports_eos=True, prompt_logprobs=PromptLogprobs(task.prompt, top) if echoes else None)


class _OutputProcessor:
    """Makes the text of one answer from its tokens."""

    def __init__(self, model: ServedModel, task: GenerationTask, index: int, *, stream: bool) -> None:
        self._text = TextStream(model.decode_with_special if task.keeps_special_tokens else model.decode, task.stops)
        self._logprobs = None if task.params.top_logprobs is None else LogprobStream(model.decode_token)
        self._eos = frozenset[int]() if task.ignore_eos else model.handle.eos_token_ids
        self._index = index
        self._stream = stream
        self._tokens = 0
        self._pending = task.echo
        self._model = model
        self._job = task
        self._tool_calls_offset: int | None = None
        self._prompt_logprobs: list[DecodedLogprobs] | None = [] if task.prompt_logprobs is None else None

    def takes_long(self, batch: TokenBatch) -> bool:
        """Return whether a `push` of these tokens takes long."""
        return len(batch.token_ids) > MAX_INLINE_TOKENS or self._prompt_logprobs is None

    def push(self, batch: TokenBatch) -> OutputChunk | None:
        """Take the next tokens; return the chunk that they make, if there is one to send."""
        if self._prompt_logprobs is None and (prompt := self._job.prompt_logprobs) is not None:
            self._prompt_logprobs = decode_prompt_logprobs(
                prompt.prompt,
                prompt.entries,
                self._model.decode,
                self._model.decode_token,
                self._job.prompt_offsets,
            )
        if not self._job.max_tokens:
            return OutputChunk(self._index, self._pending, 0, "length", self._prompt_logprobs, batch.token_times)
        finish = None
        for place, token in enumerate(batch.token_ids):
            self._tokens += 1
            if token in self._eos:
                finish = "stop"
                self._pending += self._text.flush()
                if self._logprobs is not None and self._job.reports_eos:
                    self._logprobs.push(batch.logprobs[place], len(self._job.echo) + self._text.decoded)
                break
            self._pending += self._text.push(token)
            if token == self._job.tool_call_trigger and self._tool_calls_offset is None:
                self._tool_calls_offset = self._text.decoded - len(self._model.decode_token([token]))
            if self._logprobs is not None:
                self._logprobs.push(batch.logprobs[place], len(self._job.echo) + self._text.token_start)
            if self._text.is_stopped:
                finish = "stop"
                break
        ended = finish is not None or batch.is_last
        if ended:
            self._pending += self._text.flush()
            finish = "stop" if self._text.is_stopped else finish or "length"
        if not (ended or (self._stream and self._pending)):
            return None
        everything = ended and not self._text.is_stopped
        logprobs = None
        if self._logprobs is not None:
            shown = len(self._job.echo) + self._text.returned
            logprobs = [*(self._prompt_logprobs or []), *self._logprobs.release(shown, everything=everything)]
            self._prompt_logprobs = []
        text, self._pending = self._pending, ""
        return OutputChunk(
            self._index, text, self._tokens, finish, logprobs, batch.token_times, self._tool_calls_offset
        )


async def stream_task(
    model: ServedModel, task: GenerationTask, index: int, *, stream: bool
) -> AsyncIterator[OutputChunk]:
    """Yield the chunks of one answer (only the last one unless `stream`). Raises EngineError."""
    answer = _OutputProcessor(model, task, index, stream=stream)
    if not task.max_tokens and task.prompt_logprobs is None:
        yield OutputChunk(index, task.echo, 0, "length")
        return
    generated = model.handle.generate(
        task.prompt,
        task.params,
        task.max_tokens or 1,
        stream=stream or bool(task.stops),
        ignore_eos=task.ignore_eos,
        guide=task.guide,
        prompt_logprobs=task.prompt_logprobs,
    )
    async with aclosing(generated) as batches:  # type: ignore[type-var]
        async for batch in batches:
            chunk = await run_in_thread(answer.push, batch) if answer.takes_long(batch) else answer.push(batch)
            if chunk is not None:
                yield chunk
                if chunk.finish_reason is not None:
                    return


async def stream_tasks(model: ServedModel, tasks: list[GenerationTask], *, stream: bool) -> AsyncIterator[OutputChunk]:
    """Yield the chunks of all answers as they come. Raises EngineError; leaving early ends all of them."""
    if len(tasks) == 1:
        async with aclosing(stream_task(model, tasks[0], 0, stream=stream)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk
        return
    queue: asyncio.Queue[OutputChunk | BaseException] = asyncio.Queue()

    async def run(index: int, task: GenerationTask) -> None:
        try:
            async for chunk in stream_task(model, task, index, stream=stream):
                queue.put_nowait(chunk)
        except Exception as error:
            queue.put_nowait(error)

    runners = [asyncio.create_task(run(index, task)) for index, task in enumerate(tasks)]
    try:
        unfinished = len(tasks)
        while unfinished:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            unfinished -= item.finish_reason is not None
            yield item
    finally:
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)


def _make_tasks(
    model: ServedModel, request: GenerationRequest, prompt: list[int], max_tokens: int, first: int, echo: str = ""
) -> list[GenerationTask]:
    sampling = _make_sampling_params(model, request)
    seed = secrets.randbits(63) if request.seed is None or request.seed == RANDOM_SEED else request.seed
    seeds = [(seed + first + choice) % 2**64 for choice in range(request.n or 1)]
    stops, ignore_eos = StopStringSet(request.stop_strings), bool(request.ignore_eos)
    return [GenerationTask(prompt, replace(sampling, seed=own), max_tokens, stops, ignore_eos, echo) for own in seeds]


def _make_sampling_params(model: ServedModel, request: GenerationRequest) -> SamplingParams:
    """Return the request's sampling settings, with the model's own settings where it has none. Raises ApiError."""
    bias = tuple((request.logit_bias or {}).items())
    unknown = [token for token, _ in bias if token >= model.handle.vocab_size]
    if unknown:
        message = f"token {unknown[0]} is not in the vocabulary of {model.handle.vocab_size} tokens"
        raise ApiError(400, message, param="logit_bias")
    penalties = Penalties(
        presence=request.presence_penalty or 0.0,
        frequency=request.frequency_penalty or 0.0,
        repetition=request.repetition_penalty or model.default_params.penalties.repetition,
        bias=bias,
    )
    requested = {
        name: getattr(request, name) for name in ("temperature", "top_p", "top_k") if getattr(request, name) is not None
    }
    return replace(model.default_params, penalties=penalties, top_logprobs=request.count_top_logprobs(), **requested)


def _check_token_ids(model: ServedModel, prompt: list[int], param: str) -> None:
    """Raise ApiError 400 for a prompt without tokens, or with tokens that the model has no embedding for."""
    if not prompt:
        raise ApiError(400, "the prompt is empty", param=param)
    size, largest = model.handle.vocab_size, max(prompt)
    if largest >= size:
        written = model.tokenizer.convert_ids_to_tokens(largest) if largest < len(model.tokenizer) else None
        named = f"token {largest} ({written})" if written else f"token {largest}"
        raise ApiError(400, f"{named} is not in the vocabulary of {size} tokens", param=param)


def _get_default_tokens(model: ServedModel, prompt: list[int], otherwise: int) -> int:
    """Return how long an answer may be if the request names no length: the model's own length, as far as it fits."""
    if model.default_max_tokens is not None:
        otherwise = min(model.default_max_tokens, model.handle.max_model_len - len(prompt))
    return max(otherwise, 1)


def _check_length(model: ServedModel, prompt: list[int], max_tokens: int, param: str) -> int:
    if len(prompt) + max_tokens > model.handle.max_model_len:
        raise make_context_error(model.handle.max_model_len, len(prompt), max_tokens, param)
    return max_tokens
