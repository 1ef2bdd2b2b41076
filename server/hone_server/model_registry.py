"""The models that this process serves: loading, readiness, and finding a model by its name.

In: `Sources` of artifacts/sources.py. `Service` loads the base and its adapters with weights/loader.py, gives them
engines, and lets every model answer once before it reports ready. Adapters can be loaded and unloaded afterwards.
http/routes.py asks it for the model of each request.
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

from hone_server.artifacts.sources import Served, Sources, find_adapter
from hone_server.engine.continuous_batching import MAX_BATCH_REQUESTS, MAX_BATCH_TOKENS, Engine, EngineError, Lane
from hone_server.generation.generate import Model
from hone_server.generation.served_model import (
    AS_TRAINED,
    ChatOptions,
    default_tokens_of,
    defaults_of,
    eos_token_ids,
    make_model,
    warn_unused_settings,
)
from hone_server.hardware import (
    GPU_CACHE_SHARE,
    CacheTooSmall,
    bytes_per_token,
    free_memory,
    plan_cache,
    read_bytes_per_token,
)
from hone_server.protocol.errors import ApiError
from hone_server.weights.architectures import find_steady_context
from hone_server.weights.batched_lora import Adapter
from hone_server.weights.loader import Base, load_adapter, load_base, own_tokenizer
from hone_server.weights.onednn_packing import pack

log = logging.getLogger("hone_server")

LOADING, READY, FAILED = "loading", "ready", "failed"


class Service:
    """All served models. Starts empty; `load` makes it ready after every model has answered once.

    With `hot`, adapters can also be loaded and unloaded afterwards.
    """

    def __init__(
        self, sources: Sources, max_model_len: int | None, *, hot: bool = False, chat: ChatOptions = AS_TRAINED
    ) -> None:
        self.created = int(time.time())
        self._sources = sources
        self._max_model_len = max_model_len
        self._chat = chat
        # A single adapter answers faster merged; an unmerged one leaves room for others.
        self._adaptable = hot or len(sources.models) > 2
        self._base: Base | None = None
        self._served = {served.name: served for served in sources.models}
        self._models: dict[str, Model] = {}
        self._changing = asyncio.Lock()
        self._ready = False
        self.failure: HoneError | None = None

    @property
    def served(self) -> list[Served]:
        return list(self._served.values())

    def state(self) -> str:
        """Return `loading`, `ready` when requests are answered, or `failed` when loading or an engine has failed."""
        if self.failure is not None:
            return FAILED
        if not self._ready:
            return LOADING
        return READY if all(model.lane.engine.running for model in self._models.values()) else FAILED

    def model(self, name: str) -> Model:
        """Return the model of this name. Raises ApiError: 404 for an unknown one, 503 before all are ready."""
        if name not in self._served:
            message = f"model {name!r} does not exist; the models here are: {', '.join(self._served)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        self.require_ready()
        return self._models[name]

    def max_model_len(self, name: str) -> int | None:
        """Return the longest prompt plus answer of a served model, in tokens; None until it is loaded."""
        return self._models[name].lane.max_model_len if name in self._models else None

    def require_ready(self) -> None:
        """Raise ApiError 503 unless requests are answered."""
        state = self.state()
        if state != READY:
            raise ApiError(503, f"the server is {state}", code=state)

    def load_figures(self) -> dict[str, tuple[int, int, float]]:
        """Return for the metrics, by model: running requests, waiting requests, and cache use (0 to 1)."""
        return {
            name: (*model.lane.counts(), model.lane.engine.cache_usage()) for name, model in list(self._models.items())
        }

    async def load(self) -> None:
        """Load, start and try every model. Raises HoneError, which is also kept in `failure`."""
        try:
            started = time.monotonic()
            models = await _in_daemon_thread(self._load)
            for model in models:
                self._models[model.served.name] = await _started(model)
            self._ready = True
            log.info("ready after %.1f s: %s", time.monotonic() - started, ", ".join(self._models))
        except HoneError as error:
            self.failure = error
            raise
        except Exception as error:
            log.error("loading failed\n%s", "".join(traceback.format_exception(error)))
            self.failure = HoneError(ENGINE_FAILED, f"loading failed: {error}")
            raise self.failure from error

    async def load_adapter(self, name: str, path: str, *, replace_it: bool) -> None:
        """Serve the adapter in this folder from now on. Raises ApiError when the name is taken, and HoneError."""
        self.require_ready()
        async with self._changing:
            self._check_name(name, replace_it=replace_it)
            base = self._sources.models[0].name
            served = await _in_daemon_thread(lambda: find_adapter(name, Path(path), base, self._sources))
            started = time.monotonic()
            model = await _started(await _in_daemon_thread(lambda: self._read_adapter(served)))
            self._served[name], self._models[name] = served, model
            log.info("adapter %s from %s is served after %.2f s", name, path, time.monotonic() - started)

    async def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter; its running answers finish. Raises ApiError 404 for a name that is no adapter's."""
        self.require_ready()
        async with self._changing:
            if name not in self._served or self._served[name].folder is None:
                raise ApiError(404, f"the LoRA adapter {name!r} cannot be found", param="lora_name")
            del self._served[name], self._models[name]
            log.info("adapter %s is no longer served", name)

    def stop(self) -> None:
        for engine in {model.lane.engine for model in self._models.values()}:
            engine.stop()

    def _check_name(self, name: str, *, replace_it: bool) -> None:
        served = self._served.get(name)
        if served and served.folder is None:
            raise ApiError(400, f"{name!r} is the name of the base model; give the adapter another", param="lora_name")
        if served and not replace_it:
            message = f"the LoRA adapter {name!r} is already loaded; to replace it set load_inplace to true"
            raise ApiError(400, message, param="lora_name")

    def _load(self) -> list[Model]:
        self._base = load_base(self._sources, adaptable=self._adaptable)
        # Exclude permanent objects from later garbage collections, which block all threads.
        gc.collect()
        gc.freeze()
        root, *adapters = self._sources.models
        warn_unused_settings(root.name, self._base.model.generation_config)
        loaded = [(served, load_adapter(self._base, served)) for served in adapters]
        merged = [one for _, one in loaded if not isinstance(one, Adapter)]
        if self._base.model.device.type == "cpu":
            pack([self._base.model, *merged])
        shares = 1 + len(merged)
        self._models[root.name] = self._with_engine(root, self._base.model, self._base.tokenizer, shares)
        return [self._models[root.name], *(self._adapted(*one, shares) for one in loaded)]

    def _adapted(self, served: Served, loaded: Adapter | Any, shares: int) -> Model:
        assert self._base is not None
        assert served.folder is not None
        root = self._models[self._sources.models[0].name]
        tokenizer = own_tokenizer(self._base, served.folder)
        if not isinstance(loaded, Adapter):
            return self._with_engine(served, loaded, tokenizer, shares)
        engine, config = root.lane.engine, self._base.model.generation_config
        lane = Lane(engine, eos_token_ids(config, tokenizer, engine.vocab_size), loaded)
        model = make_model(served, tokenizer, lane, defaults_of(config), self._chat, default_tokens_of(config))
        assert self._base.table is not None
        _when_unused(model, partial(self._base.table.forget, loaded))
        return model

    def _read_adapter(self, served: Served) -> Model:
        assert self._base is not None
        return self._adapted(served, load_adapter(self._base, served), shares=1)

    def _with_engine(self, served: Served, weights: Any, tokenizer: Any, shares: int) -> Model:
        """Return a model with an engine of its own, which gets one of `shares` equal shares of the memory for caches.

        Raises HoneError OutOfMemory.
        """
        config = weights.config.get_text_config()
        token_bytes, requests = bytes_per_token(config, weights.dtype.itemsize), None
        share = EMBEDDED_CACHE_SHARE
        if weights.device.type != "cpu":
            token_bytes += read_bytes_per_token(config, weights.dtype.itemsize, MAX_BATCH_TOKENS)
            share, requests = GPU_CACHE_SHARE, MAX_BATCH_REQUESTS
        budget = int(free_memory(weights.device) * share / shares)
        longest = config.max_position_embeddings
        if (steady := find_steady_context(weights)) is not None and steady < longest:
            words = "%s: the context is limited to %d tokens of %d: beyond, a long request would change others' answers"
            log.warning(words, served.name, steady, longest)
            longest = steady
        try:
            plan = plan_cache(longest, self._max_model_len, token_bytes, budget, requests=requests)
        except CacheTooSmall as error:
            message = (
                f"the key-value cache of {served.name!r} may take {budget // 2**20} MiB, "
                f"which is room for {error.fits} tokens"
            )
            remedy = "Lower --max-model-len (spec.maxModelLen), serve fewer adapters, or give more memory."
            raise HoneError(OUT_OF_MEMORY, message, remedy=remedy) from None
        log.info("%s: context %d tokens, cache %d pages", served.name, plan.max_model_len, plan.num_blocks)
        assert self._base is not None
        engine = Engine(weights, plan, self._base.table if weights is self._base.model else None)
        lane = Lane(engine, eos_token_ids(weights.generation_config, tokenizer, engine.vocab_size))
        own = weights.generation_config
        model = make_model(served, tokenizer, lane, defaults_of(own), self._chat, default_tokens_of(own))
        _when_unused(model, lambda: threading.Thread(target=engine.stop, name="stop", daemon=True).start())
        return model


def _when_unused(model: Model, end: Callable[[], None]) -> None:
    """Call `end` when no request and no name uses the model any longer."""
    weakref.finalize(model, end).atexit = False


async def _started(model: Model) -> Model:
    """Return the model after it has answered once. Raises HoneError EngineFailed."""
    if not model.lane.engine.running:
        await _in_daemon_thread(model.lane.engine.start)
    try:
        await _try_out(model)
    except EngineError as error:
        served = model.served
        what = f"model {served.name!r}" if served.folder is None else f"adapter {served.name!r} in {served.folder}"
        raise HoneError(ENGINE_FAILED, f"{what} does not answer: {error}") from error
    return model


async def _in_daemon_thread(function: Any) -> Any:
    """Run the function like asyncio.to_thread, but don't let a shutdown wait for it: loading can take minutes."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)

    def run() -> None:
        try:
            result, error = function(), None
        except BaseException as raised:
            result, error = None, raised
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future


async def _try_out(model: Model) -> None:
    prompt = [min(model.lane.eos_token_ids, default=0)]
    async with aclosing(model.lane.generate(prompt, replace(model.defaults, temperature=0), 1, stream=False)) as out:  # type: ignore[type-var]
        async for _ in out:
            pass
