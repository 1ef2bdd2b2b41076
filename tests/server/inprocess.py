"""The embedded engine's routes in the test's process, over a model that only repeats, so that tests can look inside."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.continuous_batching import TokenBatch
from hone_server.engine.sampler import SamplingParams
from hone_server.generation.generate import ServedModel
from hone_server.generation.served_model import make_served_model
from hone_server.http.connections import BoundedConnection, WatchingServer
from hone_server.http.middleware import AccessMiddleware
from hone_server.http.routes import make_app
from hone_server.protocol.errors import ApiError, InternalErrorMiddleware

CONTEXT = 64


class Lane:
    """Answers with the prompt's last token, repeated."""

    max_model_len = CONTEXT
    eos_token_ids = frozenset[int]()
    fails_after: int | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def count_requests(self) -> tuple[int, int]:
        return 0, 0

    async def generate(
        self, prompt: list[int], params: SamplingParams, max_tokens: int, *, stream: bool, **_: Any
    ) -> Any:
        if not stream:
            yield TokenBatch([prompt[-1]] * max_tokens, is_last=True)
            return
        for number in range(max_tokens):
            await asyncio.sleep(0)
            if number == self.fails_after:
                raise KeyError("x")
            yield TokenBatch([prompt[-1]], is_last=number == max_tokens - 1)


class Service:
    """Serves one model, `m`. Another name raises the exception in `failures` of that name, or is not found."""

    created_at = 0

    def __init__(self, tokenizer: Any) -> None:
        served = ModelEntry("m", "model", "m")
        self.only: ServedModel = make_served_model(
            served, tokenizer, Lane(len(tokenizer)), SamplingParams(1.0, 1.0, 0, 0)
        )  # type: ignore[arg-type]
        self.entries = [served]
        self.failures: dict[str, Exception] = {}

    def get_state(self) -> str:
        return "ready"

    def measure_load(self) -> dict[str, tuple[int, int, float]]:
        return {}

    def get_max_model_len(self, name: str) -> int:
        return CONTEXT

    def get_model(self, name: str) -> ServedModel:
        if name != "m":
            raise self.failures.get(name) or ApiError(404, "no such model", param="model")
        return self.only


class InThread(WatchingServer):
    """Runs uvicorn in a thread of this process."""

    def install_signal_handlers(self) -> None:
        pass


@contextlib.contextmanager
def served_in_thread(registry: Service, most_connections: int = 100) -> Iterator[tuple[str, int, int]]:
    """Yield address, port, and the identifier of the event loop's thread."""
    app = InternalErrorMiddleware(AccessMiddleware(make_app(registry, max_waiting=256), None))  # type: ignore[arg-type]
    config = uvicorn.Config(
        app, http=BoundedConnection.with_limit(most_connections), ws="none", log_level="critical", timeout_keep_alive=60
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = InThread(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    assert thread.ident is not None
    try:
        yield (*listener.getsockname()[:2], thread.ident)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
