"""The models that this process serves: loading, readiness, and finding a model by its name.

In: `ModelSources` of artifacts/sources.py. `ModelRegistry` loads the base and its adapters with weights/loader.py,
gives them engines, and lets every model answer once before it reports ready. Adapters can be loaded and unloaded
afterwards. http/routes.py asks it for the model of each request.
"""

import asyncio
import gc
import logging
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hone_api.layout import EMBEDDED_CACHE_SHARE
from hone_api.reasons import ENGINE_FAILED, OUT_OF_MEMORY, HoneError

from hone_server.artifacts.sources import ModelEntry, ModelSources, find_adapter_entry
from hone_server.engine.continuous_batching import (
    MAX_BATCH_REQUESTS,
    MAX_BATCH_TOKENS,
    Engine,
    EngineError,
    ModelHandle,
)
from hone_server.generation.generate import ServedModel
from hone_server.generation.served_model import (
    AS_TRAINED,
    ChatOptions,
    make_served_model,
    read_default_max_tokens,
    read_default_params,
    read_eos_token_ids,
    warn_unused_settings,
)
from hone_server.hardware import (
    GPU_CACHE_SHARE,
    CacheTooSmallError,
    compute_attention_bytes_per_token,
    compute_kv_bytes_per_token,
    measure_free_bytes,
    plan_kv_cache,
)
from hone_server.protocol.errors import ApiError
from hone_server.weights.architectures import find_steady_context_tokens
from hone_server.weights.batched_lora import LoraAdapter
from hone_server.weights.loader import LoadedBase, load_adapter, load_adapter_tokenizer, load_base
from hone_server.weights.onednn_packing import prepack_weights

log = logging.getLogger("hone_server")

LOADING, READY, FAILED = "loading", "ready", "failed"


class ModelRegistry:
    """All served models. Starts empty; `load_models` makes it ready after every model has answered once.

    With `hot_swaps_adapters`, adapters can also be loaded and unloaded afterwards.
    """

    def __init__(
        self,
        sources: ModelSources,
        max_model_len: int | None,
        *,
        hot_swaps_adapters: bool = False,
        chat_options: ChatOptions = AS_TRAINED,
    ) -> None:
        self.created_at = int(time.time())
        self._sources = sources
        self._max_model_len = max_model_len
        self._chat_options = chat_options
        # A single adapter answers faster merged; an unmerged one leaves room for others.
        self._with_adapters = hot_swaps_adapters or len(sources.entries) > 2
        self._base: LoadedBase | None = None
        self._entries = {entry.name: entry for entry in sources.entries}
        self._models: dict[str, ServedModel] = {}
        self._adapter_lock = asyncio.Lock()
        self._ready = False
        self.failure: HoneError | None = None

    @property
    def entries(self) -> list[ModelEntry]:
        return list(self._entries.values())

    def get_state(self) -> str:
        """Return `loading`, `ready` when requests are answered, or `failed` when loading or an engine has failed."""
        if self.failure is not None:
            return FAILED
        if not self._ready:
            return LOADING
        return READY if all(model.handle.engine.is_running for model in self._models.values()) else FAILED

    def get_model(self, name: str) -> ServedModel:
        """Return the model of this name. Raises ApiError: 404 for an unknown one, 503 before all are ready."""
        if name not in self._entries:
            message = f"model {name!r} does not exist; the models here are: {', '.join(self._entries)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        self.require_ready()
        return self._models[name]

    def get_max_model_len(self, name: str) -> int | None:
        """Return the longest prompt plus answer of a served model, in tokens; None until it is loaded."""
        return self._models[name].handle.max_model_len if name in self._models else None

    def require_ready(self) -> None:
        """Raise ApiError 503 unless requests are answered."""
        state = self.get_state()
        if state != READY:
            raise ApiError(503, f"the server is {state}", code=state)

    def measure_load(self) -> dict[str, tuple[int, int, float]]:
        """Return for the metrics, by model: running requests, waiting requests, and cache use (0 to 1)."""
        return {
            name: (*model.handle.count_requests(), model.handle.engine.measure_cache_usage())
            for name, model in list(self._models.items())
        }

    async def load_models(self) -> None:
        """Load, start and try every model. Raises HoneError, which is also kept in `failure`."""
        try:
            started = time.monotonic()
            models = await run_in_daemon_thread(self._load_all)
            for model in models:
                self._models[model.entry.name] = await _start_model(model)
            self._ready = True
            log.info("ready after %.1f s: %s", time.monotonic() - started, ", ".join(self._models))
        except HoneError as error:
            self.failure = error
            raise
        except Exception as error:
            log.error("loading failed\n%s", "".join(traceback.format_exception(error)))
            self.failure = HoneError(ENGINE_FAILED, f"loading failed: {error}")
            raise self.failure from error

    async def load_adapter(self, name: str, path: str, *, replaces: bool) -> None:
        """Serve the adapter in this folder from now on. Raises ApiError when the name is taken, and HoneError."""
        self.require_ready()
        async with self._adapter_lock:
            self._check_name(name, replaces=replaces)
            base = self._sources.entries[0].name
            entry = await run_in_daemon_thread(lambda: find_adapter_entry(name, Path(path), base, self._sources))
            started = time.monotonic()
            model = await _start_model(await run_in_daemon_thread(lambda: self._read_adapter(entry)))
            self._entries[name], self._models[name] = entry, model
            log.info("adapter %s from %s is served after %.2f s", name, path, time.monotonic() - started)

    async def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter; its running answers finish. Raises ApiError 404 for a name that is no adapter's."""
        self.require_ready()
        async with self._adapter_lock:
            if name not in self._entries or self._entries[name].folder is None:
                raise ApiError(404, f"the LoRA adapter {name!r} cannot be found", param="lora_name")
            del self._entries[name], self._models[name]
            log.info("adapter %s is no longer served", name)

    def stop(self) -> None:
        for engine in {model.handle.engine for model in self._models.values()}:
            engine.stop()

    def _check_name(self, name: str, *, replaces: bool) -> None:
        entry = self._entries.get(name)
        if entry and entry.folder is None:
            raise ApiError(400, f"{name!r} is the name of the base model; give the adapter another", param="lora_name")
        if entry and not replaces:
            message = f"the LoRA adapter {name!r} is already loaded; to replace it set load_inplace to true"
            raise ApiError(400, message, param="lora_name")

    def _load_all(self) -> list[ServedModel]:
        self._base = load_base(self._sources, with_adapters=self._with_adapters)
        # Exclude permanent objects from later garbage collections, which block all threads.
        gc.collect()
        gc.freeze()
        root, *adapters = self._sources.entries
        warn_unused_settings(root.name, self._base.model.generation_config)
        loaded = [(entry, load_adapter(self._base, entry)) for entry in adapters]
        merged = [one for _, one in loaded if not isinstance(one, LoraAdapter)]
        if self._base.model.device.type == "cpu":
            prepack_weights([self._base.model, *merged])
        shares = 1 + len(merged)
        self._models[root.name] = self._make_engine_model(root, self._base.model, self._base.tokenizer, shares)
        return [self._models[root.name], *(self._make_adapter_model(*one, shares) for one in loaded)]

    def _make_adapter_model(self, entry: ModelEntry, loaded: LoraAdapter | Any, shares: int) -> ServedModel:
        assert self._base is not None
        assert entry.folder is not None
        root = self._models[self._sources.entries[0].name]
        tokenizer = load_adapter_tokenizer(self._base, entry.folder)
        if not isinstance(loaded, LoraAdapter):
            return self._make_engine_model(entry, loaded, tokenizer, shares)
        engine, config = root.handle.engine, self._base.model.generation_config
        handle = ModelHandle(engine, read_eos_token_ids(config, tokenizer, engine.vocab_size), loaded)
        model = make_served_model(
            entry, tokenizer, handle, read_default_params(config), self._chat_options, read_default_max_tokens(config)
        )
        assert self._base.lora_batch is not None
        call_when_unused(model, partial(self._base.lora_batch.free_adapter, loaded))
        return model

    def _read_adapter(self, entry: ModelEntry) -> ServedModel:
        assert self._base is not None
        return self._make_adapter_model(entry, load_adapter(self._base, entry), shares=1)

    def _make_engine_model(self, entry: ModelEntry, weights: Any, tokenizer: Any, shares: int) -> ServedModel:
        """Return a model with an engine of its own, which gets one of `shares` equal shares of the memory for caches.

        Raises HoneError OutOfMemory.
        """
        config = weights.config.get_text_config()
        token_bytes, requests = compute_kv_bytes_per_token(config, weights.dtype.itemsize), None
        share = EMBEDDED_CACHE_SHARE
        if weights.device.type != "cpu":
            token_bytes += compute_attention_bytes_per_token(config, weights.dtype.itemsize, MAX_BATCH_TOKENS)
            share, requests = GPU_CACHE_SHARE, MAX_BATCH_REQUESTS
        budget = int(measure_free_bytes(weights.device) * share / shares)
        max_tokens = config.max_position_embeddings
        if (steady_tokens := find_steady_context_tokens(weights)) is not None and steady_tokens < max_tokens:
            text = "%s: the context is limited to %d tokens of %d: beyond, a long request would change others' answers"
            log.warning(text, entry.name, steady_tokens, max_tokens)
            max_tokens = steady_tokens
        try:
            plan = plan_kv_cache(max_tokens, self._max_model_len, token_bytes, budget, max_requests=requests)
        except CacheTooSmallError as error:
            message = (
                f"the key-value cache of {entry.name!r} may take {budget // 2**20} MiB, "
                f"which is room for {error.max_tokens} tokens"
            )
            remedy = "Lower --max-model-len (spec.maxModelLen), serve fewer adapters, or give more memory."
            raise HoneError(OUT_OF_MEMORY, message, remedy=remedy) from None
        log.info("%s: context %d tokens, cache %d pages", entry.name, plan.max_model_len, plan.page_count)
        assert self._base is not None
        engine = Engine(weights, plan, self._base.lora_batch if weights is self._base.model else None)
        handle = ModelHandle(engine, read_eos_token_ids(weights.generation_config, tokenizer, engine.vocab_size))
        generation_config = weights.generation_config
        model = make_served_model(
            entry,
            tokenizer,
            handle,
            read_default_params(generation_config),
            self._chat_options,
            read_default_max_tokens(generation_config),
        )
        call_when_unused(model, lambda: threading.Thread(target=engine.stop, name="stop", daemon=True).start())
        return model


def call_when_unused(model: ServedModel, callback: Callable[[], None]) -> None:
    """Call `callback` when no request and no name uses the model any longer."""
    weakref.finalize(model, callback).atexit = False


async def _start_model(model: ServedModel) -> ServedModel:
    """Return the model after it has answered once. Raises HoneError EngineFailed."""
    if not model.handle.engine.is_running:
        await run_in_daemon_thread(model.handle.engine.start)
    try:
        await _generate_one_token(model)
    except EngineError as error:
        entry = model.entry
        what = f"model {entry.name!r}" if entry.folder is None else f"adapter {entry.name!r} in {entry.folder}"
        raise HoneError(ENGINE_FAILED, f"{what} does not answer: {error}") from error
    return model


async def run_in_daemon_thread(function: Any) -> Any:
    """Run the function like asyncio.to_thread, but don't let a shutdown wait for it: loading can take minutes."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def set_outcome(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)

    def run() -> None:
        try:
            result, error = function(), None
        except BaseException as raised:
            result, error = None, raised
        loop.call_soon_threadsafe(set_outcome, result, error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future


async def _generate_one_token(model: ServedModel) -> None:
    prompt = [min(model.handle.eos_token_ids, default=0)]
    async with aclosing(
        model.handle.generate(prompt, replace(model.default_params, temperature=0), 1, stream=False)
    ) as out:  # type: ignore[type-var]
        async for _ in out:
            pass
