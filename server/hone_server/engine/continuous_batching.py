"""Run transformers' continuous batching for one model and the adapters on it.

In: a prompt in tokens, its sampling settings and its adapter, from generation/generate.py. Out: the tokens of the
answer, as they are generated. The loop of a model runs in a thread of its own; requests come from one event loop. The
engine replaces some functions of transformers' batch processor, each in a module of its own: sampler.py (each request
has its own settings and seed), prefix_cache.py (adapters don't share cached prefixes), step_errors.py (an error fails
one step only) and the attention modules.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from hone_api.attention import choose_default_kernel
from transformers import ContinuousBatchingConfig, GenerationConfig

from hone_server.engine import eager_attention, ragged_attention
from hone_server.engine.finite_values import NOT_FINITE_MESSAGE, FiniteValueFilter
from hone_server.engine.prefix_cache import isolate_prefix_cache, make_request_id
from hone_server.engine.prompt_logprobs import PromptLogprobs, PromptRecorder
from hone_server.engine.sampler import BatchSampler, SamplingParams, TokenLogprobs
from hone_server.engine.step_errors import refuse_unknown_tokens, survive_step_errors
from hone_server.hardware import PAGE_TOKENS, KVCacheConfig
from hone_server.structured.guidance import Guide
from hone_server.transformers_internals import GenerationOutput
from hone_server.weights.batched_lora import BASE_NUMBER, LoraAdapter, LoraBatch

MAX_BATCH_TOKENS = 512  # tokens a step, prefill and decode together; the attention mask grows with it
MAX_BATCH_REQUESTS = 64


class EngineError(Exception):
    """The engine could not finish a request."""


class GuidanceError(EngineError):
    """The answer could not follow its grammar to the end."""


@dataclass(frozen=True)
class TokenBatch:
    """New tokens of a request.

    is_last: the answer ends with these. token_times: the moment of each token so far, by time.perf_counter. logprobs:
    those of each token in `token_ids`, if they were requested.
    """

    token_ids: list[int]
    is_last: bool
    token_times: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Engine:
    """Generates for one model. Created in any thread and used from one event loop; call `start` before, `stop` after.

    Every engine has its own thread and its own key-value cache, whose size `cache_config` gives. With the model's
    `lora_batch`, requests may name adapters.
    """

    def __init__(self, model: Any, cache_config: KVCacheConfig, lora_batch: LoraBatch | None = None) -> None:
        self.max_model_len = cache_config.max_model_len
        self.vocab_size: int = model.config.get_text_config().vocab_size
        self.lora_batch = lora_batch
        kernel = choose_default_kernel(model)
        if kernel == "eager":
            eager_attention.register_kernel()
        model.set_attn_implementation(kernel)
        self._manager = model.init_continuous_batching(
            # Greedy here, because BatchSampler's scores already hold the random choice.
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),  # type: ignore[no-untyped-call]
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=cache_config.page_count,
                max_batch_tokens=MAX_BATCH_TOKENS,
                max_requests_per_batch=MAX_BATCH_REQUESTS,
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,
            ),
        )
        can_be_ragged = model.device.type == "cpu" and kernel == "sdpa"
        self._is_ragged = can_be_ragged and ragged_attention.supports_model(model.config.get_text_config())
        if self._is_ragged:
            model.set_attn_implementation(ragged_attention.KERNEL_NAME)
        self._sampler = BatchSampler(lora_batch)
        self._manager.logit_processor = self._sampler
        self._prompt_recorder = PromptRecorder()
        self._finite_filter = FiniteValueFilter()
        self._sampler.step_hooks = (self._prompt_recorder.begin_step, self._finite_filter.begin_step)
        self._sampler.score_hook = self._finite_filter.check_scores

    @property
    def is_running(self) -> bool:
        return bool(self._manager.is_running())

    def list_active_requests(self) -> list[str]:
        """Return the ids of the requests in the batch."""
        processor = self._manager.batch_processor
        return [] if processor is None else list(processor.scheduler.active_requests)

    def measure_cache_usage(self) -> float:
        """Return the share of the key-value cache that requests use, 0 to 1.

        Blocks that are only kept as a possible prefix of later prompts count as free: they are evicted when room is
        needed.
        """
        processor = self._manager.batch_processor
        if processor is None:
            return 0.0
        cache = processor.cache
        cached_bytes = sum(
            len(one.ledger.cached_blocks) * one.bytes_per_block for one in cache.cache_allocators.values()
        )
        free = float(cache.compute_free_capacity()) + float(cached_bytes / (cache.num_sectors * cache.bytes_per_sector))
        return max(0.0, 1.0 - free)

    def start(self) -> None:
        self._manager.warmup()  # without graphs it only makes the batch processor
        if self.lora_batch is not None:
            isolate_prefix_cache(self._manager.batch_processor, self.vocab_size)
        self._prompt_recorder.watch_processor(self._manager.batch_processor)
        self._finite_filter.watch_processor(self._manager.batch_processor, shares_keys=not self._is_ragged)
        refuse_unknown_tokens(self._manager.batch_processor, self.vocab_size)
        survive_step_errors(self._manager)
        self._manager.start()

    def stop(self) -> None:
        """Stop the loop; requests that still run fail."""
        self._manager.stop(block=True, hard_stop=True)

    async def generate(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        max_tokens: int,
        *,
        stream: bool,
        eos_token_ids: frozenset[int],
        adapter: LoraAdapter | None = None,
        guide: Guide | None = None,
        prompt_logprobs: PromptLogprobs | None = None,
    ) -> AsyncIterator[TokenBatch]:
        """Yield tokens as they come (all at once unless `stream`). Leaving early takes the request out of the batch.

        `prompt_logprobs`, of this prompt, are filled before the first token comes.

        Raises EngineError when the loop has died or the request failed, and GuidanceError.
        """
        outputs: asyncio.Queue[GenerationOutput] = asyncio.Queue()
        router = self._manager.output_router
        self._manager.register_result_handler(request_id, outputs.put_nowait)
        finished, returned = False, 0
        logprobs: list[TokenLogprobs] = []
        self._register_extras(request_id, None if params.top_logprobs is None else logprobs, guide, prompt_logprobs)
        try:
            accepted = self._manager.add_request(
                prompt,
                request_id=request_id,
                max_new_tokens=max_tokens,
                streaming=stream,
                record_timestamps=True,
                eos_token_id=list(eos_token_ids),
                sampling=params,
                adapter=adapter,
            )
            if accepted is None:
                raise EngineError("the engine has stopped")
            while not finished:
                output = await outputs.get()
                finished = output.is_finished()
                self._raise_for_failure(request_id, output, guide)
                before, returned = returned, len(output.generated_tokens)
                yield TokenBatch(
                    output.generated_tokens[before:], finished, output.timestamps or [], logprobs[before:returned]
                )
        finally:
            self._forget_extras(request_id)
            if not finished:
                self._manager.cancel_request(request_id)
                # A cancelled request gets no last result, with which its handler would be removed.
                router.result_handlers.pop(request_id, None)

    def _register_extras(
        self,
        request_id: str,
        logprobs: list[TokenLogprobs] | None,
        guide: Guide | None,
        prompt_logprobs: PromptLogprobs | None,
    ) -> None:
        """Register what a request needs in addition to its tokens; the sampler fills `logprobs`."""
        if logprobs is not None:
            self._sampler.logprobs[request_id] = logprobs
        if guide is not None:
            self._sampler.guides[request_id] = guide
        if prompt_logprobs is not None:
            self._prompt_recorder.requested[request_id] = prompt_logprobs

    def _forget_extras(self, request_id: str) -> None:
        self._sampler.logprobs.pop(request_id, None)
        self._sampler.guides.pop(request_id, None)
        self._prompt_recorder.requested.pop(request_id, None)
        self._finite_filter.forget_request(request_id)

    def _raise_for_failure(self, request_id: str, output: GenerationOutput, guide: Guide | None) -> None:
        """Raise EngineError for a request that failed, and GuidanceError for one whose guide did."""
        if request_id in self._finite_filter.failed_ids:
            raise EngineError(NOT_FINITE_MESSAGE)
        if output.error is not None:
            raise EngineError(output.error)
        if output.is_finished() and guide is not None and guide.error is not None:
            raise GuidanceError(f"the answer can't follow its schema further, which is too complex: {guide.error}")


class ModelHandle:
    """One served model's use of an engine: its own requests, and its adapter, if it is one."""

    def __init__(self, engine: Engine, eos_token_ids: frozenset[int], adapter: LoraAdapter | None = None) -> None:
        self.engine = engine
        self.eos_token_ids = eos_token_ids
        self._adapter = adapter
        self._unfinished: set[str] = set()

    @property
    def max_model_len(self) -> int:
        return self.engine.max_model_len

    @property
    def vocab_size(self) -> int:
        return self.engine.vocab_size

    def count_requests(self) -> tuple[int, int]:
        """Return how many of this model's requests are in the batch, and how many wait for a place in it."""
        running = len(self._unfinished.intersection(self.engine.list_active_requests()))
        return running, len(self._unfinished) - running

    async def generate(
        self,
        prompt: list[int],
        params: SamplingParams,
        max_tokens: int,
        *,
        stream: bool,
        ignore_eos: bool = False,
        guide: Guide | None = None,
        prompt_logprobs: PromptLogprobs | None = None,
    ) -> AsyncIterator[TokenBatch]:
        """Yield tokens as Engine.generate does, and count the request as this model's until it ends."""
        request_id = make_request_id(BASE_NUMBER if self._adapter is None else self._adapter.number)
        self._unfinished.add(request_id)
        generated = self.engine.generate(
            request_id,
            prompt,
            params,
            max_tokens,
            stream=stream,
            eos_token_ids=frozenset() if ignore_eos else self.eos_token_ids,
            adapter=self._adapter,
            guide=guide,
            prompt_logprobs=prompt_logprobs,
        )
        try:
            async with aclosing(generated) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    yield batch
        finally:
            self._unfinished.discard(request_id)
