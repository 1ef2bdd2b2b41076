"""One served model: its continuous-batching loop, and the requests that run in it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.requests import GenerationOutput

from .memory import PAGE_TOKENS, KvPlan
from .sampling import BatchSampler, Sampling, TokenLogprob

MAX_BATCH_TOKENS = 512  # tokens a step, prefill and decode together; the attention mask grows with it
MAX_BATCH_REQUESTS = 64


class EngineError(Exception):
    """The engine could not finish a request."""


@dataclass(frozen=True)
class Tokens:
    """New tokens of a request; `last` when no more will come; `logprobs` of each token if they were asked for.

    `times` has the moment of each token so far, by time.perf_counter.
    """

    ids: list[int]
    last: bool
    times: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Engine:
    """Generates for one model. Made in any thread, used from one event loop; `start` before, `stop` after.

    Every engine has a thread and a key-value cache of its own, which `plan` sizes.
    """

    def __init__(self, model: Any, eos_token_ids: frozenset[int], plan: KvPlan) -> None:
        self.eos_token_ids = eos_token_ids
        self.max_model_len = plan.max_model_len
        self.vocab_size = model.config.get_text_config().vocab_size
        self._manager = model.init_continuous_batching(
            # Greedy here, because BatchSampler's scores already hold the random choice.
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),  # type: ignore[no-untyped-call]
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=plan.num_blocks,
                max_batch_tokens=MAX_BATCH_TOKENS,
                max_requests_per_batch=MAX_BATCH_REQUESTS,
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,
            ),
        )
        self._unfinished = 0
        self._sampler = BatchSampler()
        self._manager.logit_processor = self._sampler

    @property
    def running(self) -> bool:
        return bool(self._manager.is_running())

    def counts(self) -> tuple[int, int]:
        """Requests in the batch, and requests that wait for a place in it."""
        processor = self._manager.batch_processor
        active = 0 if processor is None else len(processor.scheduler.active_requests)
        return active, max(0, self._unfinished - active)

    def cache_usage(self) -> float:
        """The part of the key-value cache in use, 0 to 1."""
        processor = self._manager.batch_processor
        return 0.0 if processor is None else 1.0 - float(processor.cache.compute_free_capacity())

    def start(self) -> None:
        self._manager.start()

    def stop(self) -> None:
        """Ends the loop; requests that still run fail."""
        self._manager.stop(block=True, hard_stop=True)

    async def generate(
        self, prompt: list[int], sampling: Sampling, max_tokens: int, *, stream: bool, ignore_eos: bool = False
    ) -> AsyncIterator[Tokens]:
        """Yields tokens as they come (all at once unless `stream`). Leaving early takes the request out of the batch.

        Raises EngineError when the loop has died or the request failed.
        """
        request_id = uuid.uuid4().hex
        outputs: asyncio.Queue[GenerationOutput] = asyncio.Queue()
        router = self._manager.output_router
        self._manager.register_result_handler(request_id, outputs.put_nowait)
        finished, told = False, 0
        self._unfinished += 1
        logprobs: list[TokenLogprob] = []
        if sampling.logprobs is not None:
            self._sampler.logprobs[request_id] = logprobs
        try:
            accepted = self._manager.add_request(
                prompt,
                request_id=request_id,
                max_new_tokens=max_tokens,
                streaming=stream,
                record_timestamps=True,
                eos_token_id=[] if ignore_eos else list(self.eos_token_ids),
                sampling=sampling,
            )
            if accepted is None:
                raise EngineError("the engine has stopped")
            while not finished:
                output = await outputs.get()
                finished = output.is_finished()
                if output.error is not None:
                    raise EngineError(output.error)
                before, told = told, len(output.generated_tokens)
                yield Tokens(output.generated_tokens[before:], finished, output.timestamps or [], logprobs[before:told])
        finally:
            self._unfinished -= 1
            self._sampler.logprobs.pop(request_id, None)
            if not finished:
                self._manager.cancel_request(request_id)
                # A cancelled request gets no last result, which is what takes its handler away.
                router.result_handlers.pop(request_id, None)
