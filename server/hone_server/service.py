"""The models that this process serves: loading, readiness, and the way from a name to a model."""

import asyncio
import logging
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from hone_api.reasons import ENGINE_FAILED, OUT_OF_MEMORY, HoneError

from .engine import Engine
from .errors import ApiError
from .generation import Model
from .loading import load_models
from .memory import CACHE_SHARE, CacheTooSmall, available_memory, bytes_per_token, plan_cache
from .penalties import Penalties
from .sampling import Sampling
from .sources import Served, Sources
from .text import Decode

log = logging.getLogger("hone_server")

LOADING, READY, FAILED = "loading", "ready", "failed"


class Service:
    """Starts empty; `load` fills it and makes it ready after every model has answered once."""

    def __init__(self, sources: Sources, max_model_len: int | None) -> None:
        self.created = int(time.time())
        self._sources = sources
        self._max_model_len = max_model_len
        self._models: dict[str, Model] = {}
        self._ready = False
        self.failure: HoneError | None = None

    @property
    def served(self) -> list[Served]:
        return self._sources.models

    def state(self) -> str:
        """`ready` when requests are answered; `failed` when an engine's loop has died."""
        if self.failure is not None:
            return FAILED
        if not self._ready:
            return LOADING
        return READY if all(model.engine.running for model in self._models.values()) else FAILED

    def model(self, name: str) -> Model:
        """The model of this name. Raises ApiError: 404 for an unknown one, 503 before all are ready."""
        if name not in {served.name for served in self.served}:
            known = ", ".join(served.name for served in self.served)
            message = f"model {name!r} does not exist; the models here are: {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        state = self.state()
        if state != READY:
            raise ApiError(503, f"the server is {state}", code=state)
        return self._models[name]

    def load_figures(self) -> dict[str, tuple[int, int, float]]:
        """For the metrics: running and waiting requests and cache use, by model."""
        return {
            name: (*model.engine.counts(), model.engine.cache_usage()) for name, model in list(self._models.items())
        }

    async def load(self) -> None:
        """Loads, starts and tries every model. Raises HoneError, also kept in `failure`."""
        try:
            started = time.monotonic()
            models = await _in_daemon_thread(self._load)
            self._models = {model.served.name: model for model in models}
            for model in models:
                model.engine.start()
                await _try_out(model)
            self._ready = True
            log.info("ready after %.1f s: %s", time.monotonic() - started, ", ".join(self._models))
        except HoneError as error:
            self.failure = error
            raise
        except Exception as error:
            log.exception("loading failed")
            self.failure = HoneError(ENGINE_FAILED, f"loading failed: {error}")
            raise self.failure from error

    def stop(self) -> None:
        for model in self._models.values():
            model.engine.stop()

    def _load(self) -> list[Model]:
        loaded = load_models(self._sources)
        budget = int(available_memory() * CACHE_SHARE / len(loaded))
        models = []
        for one in loaded:
            config = one.model.config.get_text_config()
            token_bytes = bytes_per_token(config, one.model.dtype.itemsize)
            try:
                plan = plan_cache(config.max_position_embeddings, self._max_model_len, token_bytes, budget)
            except CacheTooSmall as error:
                message = (
                    f"the key-value cache of {one.served.name!r} may take {budget // 2**20} MiB, "
                    f"which is room for {error.fits} tokens"
                )
                remedy = "Lower --max-model-len (spec.maxModelLen), serve fewer adapters, or give more memory."
                raise HoneError(OUT_OF_MEMORY, message, remedy=remedy) from None
            log.info("%s: context %d tokens, cache %d pages", one.served.name, plan.max_model_len, plan.num_blocks)
            eos = _eos_token_ids(one.model.generation_config, one.tokenizer)
            engine = Engine(one.model, eos, plan)
            defaults = _defaults(one.model.generation_config)
            models.append(
                Model(one.served, one.tokenizer, _decoder(one.tokenizer), _token_text(one.tokenizer), engine, defaults)
            )
        return models


async def _in_daemon_thread(function: Any) -> Any:
    """Like asyncio.to_thread, but a shutdown does not wait for it: loading can take minutes."""
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
    prompt = [min(model.engine.eos_token_ids, default=0)]
    async with aclosing(model.engine.generate(prompt, replace(model.defaults, temperature=0), 1, stream=False)) as out:  # type: ignore[type-var]
        async for _ in out:
            pass


def _eos_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    ids = generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(one for one in [*listed, tokenizer.eos_token_id] if one is not None)


def _decoder(tokenizer: Any) -> Decode:
    """The tokenizer's own decoding, without transformers' layer around it where that can be: it runs at every token."""
    return partial(getattr(tokenizer, "backend_tokenizer", tokenizer).decode, skip_special_tokens=True)


def _token_text(tokenizer: Any) -> Decode:
    """Decodes tokens as they stand within a text: after a letter, because some decoders drop the space of the first."""
    decode = partial(getattr(tokenizer, "backend_tokenizer", tokenizer).decode, skip_special_tokens=False)
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = len(decode(letter))
    return lambda tokens: decode([*letter, *tokens])[start:]


def _defaults(config: Any) -> Sampling:
    """The model's own sampling settings, or OpenAI's where it has none."""
    return Sampling(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        seed=0,
        penalties=Penalties(repetition=config.repetition_penalty or 1.0),
    )
