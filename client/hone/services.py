"""An InferenceService as the caller of the client has it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from hone_api.io.terminal import make_printable

from hone.objects import views
from hone.objects.names import SERVICE
from hone.objects.views import Object, require_available

if TYPE_CHECKING:
    from hone.backends.backend import Backend
    from hone.engine import Engine, Message, Model

READY_SECONDS = 1800.0
POLL_SECONDS = 0.5
# Reasons of a service on this machine that waiting does not change.
HOPELESS = ("EngineEnded",)


class InferenceService:
    """An InferenceService in a cluster or on this machine. Every call raises HoneError when it fails.

    Requests go through a port-forward, which `close` ends, and so does the end of a `with` block.
    """

    def __init__(self, backend: "Backend", name: str) -> None:
        self.name = name
        self._backend = backend
        self._open = ExitStack()
        self._url: str | None = None
        self._connected: Engine | None = None

    def read(self) -> Object:
        """Return the object as Kubernetes has it: metadata, spec and status."""
        return self._backend.read(SERVICE, self.name)

    def wait(self, timeout_seconds: float = READY_SECONDS) -> "InferenceService":
        """Wait until the service answers, and return it. Raises ClientError with the reason when it does not."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            body = self.read()
            if views.is_true(body, "Available"):
                return self
            reason = (views.find_condition(body, "Available") or {}).get("reason")
            if reason in HOPELESS or views.is_true(body, "Stalled") or time.monotonic() > deadline:
                require_available(body)
            time.sleep(POLL_SECONDS)

    @property
    def url(self) -> str:
        """Return a base URL on this machine for OpenAI clients, once the service answers."""
        if self._url is None:
            self.wait()
            self._url = self._open.enter_context(self._backend.open_engine(self.name))
        return self._url

    def models(self) -> "list[Model]":
        """Return the models: the base, and its adapters."""
        return self._engine().models()

    def chat(self, message: "str | Sequence[Message]", model: str | None = None) -> str:
        """Return the answer to a message, or to a conversation of messages with role and content.

        `model`: one of `models()`; left out: the first adapter, else the first model.
        """
        return "".join(self.stream(message, model))

    def stream(self, message: "str | Sequence[Message]", model: str | None = None) -> Iterator[str]:
        """Yield the answer in pieces as they come."""
        from hone.engine import choose_model

        engine = self._engine()
        messages = [{"role": "user", "content": message}] if isinstance(message, str) else list(message)
        yield from engine.answer(choose_model(engine.models(), model), messages)

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the newest engine's log."""
        for line in self._backend.read_log(SERVICE, self.name, follow=follow):
            yield make_printable(line)

    def close(self) -> None:
        """End the connection to the service. The service stays."""
        self._open.close()
        self._url = self._connected = None

    def delete(self) -> None:
        """Delete the service. What it served stays."""
        self.close()
        self._backend.delete(SERVICE, self.name, with_claim=False)

    def __enter__(self) -> "InferenceService":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"InferenceService {self.name} in {self._backend.place}: {views.describe_phase(self.read())}"

    def _engine(self) -> "Engine":
        from hone.engine import Engine

        if self._connected is None:
            self._connected = Engine(self.url, remedy="Look at service.logs().")
        return self._connected
