"""The log never has a text of a request, in any failure and from any logger."""

import asyncio
import copy
import io
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hone_server.http import routes
from hone_server.http.formatting import ChatFormatter, CompletionFormatter
from hone_server.logs import RedactingFormatter, describe_exception, log_loop_exception
from hone_server.protocol.messages import CalledFunction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inprocess import Service, served_in_thread

CANARY = "CANARY-DE12 3456"
BODY = {
    "model": "m",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "user", "name": "ann", "content": "q"},
    ],
    "stop": ["a"],
    "max_tokens": 3,
    "logit_bias": {"5": 1},
    "user": "ann",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "none",
    "response_format": {"type": "text"},
}
WAYS: list[Callable[[Any], Any]] = [
    lambda _: CANARY,
    lambda value: [value, CANARY],
    lambda _: {CANARY: CANARY},
    lambda value: {**value, CANARY: CANARY} if isinstance(value, dict) else f"{value}{CANARY}",
]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged during the test, as a server writes it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(RedactingFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield written
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from places(one, (*place, key))


def changed(place: tuple[Any, ...], way: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the body with a canary in this place."""
    body = copy.deepcopy(BODY)
    inner: Any = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = way(inner[place[-1]])
    return body


@pytest.fixture(scope="module")
def server(tokenizer_maker: Any) -> Iterator[str]:
    tokenizer = tokenizer_maker()
    name = "{% if m.name and m.name != 'ann' %}{{ raise_exception(m.name) }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + name + "{% endfor %}"
    service = Service(tokenizer)
    with served_in_thread(service) as (host, port, _):
        yield f"http://{host}:{port}"


def quote(*arguments: Any, **_: Any) -> Any:
    """Fail like code that meets an unexpected value, with all of it in the message."""
    text = repr([getattr(one, "model_extra", None) or one for one in arguments]) + CANARY
    try:
        CalledFunction.model_validate({"arguments": text})
    except ValueError as error:
        raise KeyError(text) from error


@pytest.mark.parametrize("fails", ["nothing", "before", "in a stream"])
def test_no_text_of_a_request_is_in_the_log(
    server: str, log: io.StringIO, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    if fails == "before":
        monkeypatch.setattr(routes, "plan_chat_tasks", quote)
    if fails == "in a stream":
        for wire in (ChatFormatter, CompletionFormatter):
            monkeypatch.setattr(wire, "format_deltas", quote)
    with httpx.Client(base_url=server, timeout=60) as client:
        for number, place in enumerate(places(BODY)):
            body = changed(place, WAYS[number % len(WAYS)]) | ({"stream": True} if fails == "in a stream" else {})
            client.post("/v1/chat/completions", json=body)
            client.post("/v1/completions", json={**body, "prompt": CANARY})
    assert CANARY not in log.getvalue()
    assert fails == "nothing" or "KeyError" in log.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    text=st.text(min_size=8, alphabet=st.characters(categories=["L", "N"])).map(lambda text: f"#{text}#"),
    depth=st.integers(0, 3),
    kind=st.sampled_from([KeyError, ValueError, OSError, RuntimeError]),
    logger=st.sampled_from(["hone_server", "asyncio", "another"]),
    is_group=st.booleans(),
)
def test_exceptions_are_logged_by_type_and_place(
    log: io.StringIO, text: str, depth: int, kind: type[Exception], logger: str, is_group: bool
) -> None:
    def fail(levels: int) -> None:
        try:
            if levels:
                fail(levels - 1)
            quote(text)
        except Exception as error:
            raise (ExceptionGroup(text, [error, kind(text)]) if is_group else kind(text)) from error

    log.seek(0)
    log.truncate()
    try:
        fail(depth)
    except Exception as error:
        logging.getLogger(logger).error("it failed: %s", error, exc_info=error)
        logging.getLogger(logger).exception("it failed again")
        asyncio.run(report(error))
        described = describe_exception(error)
    assert text not in log.getvalue()
    assert text not in described
    for words in ("it failed: ", "it failed again", "test_log_privacy.py", " in fail", "event loop: "):
        assert words in log.getvalue()


async def report(error: Exception) -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    future.exception()
    log_loop_exception(asyncio.get_running_loop(), {"message": "nobody asked", "exception": error, "future": future})


def test_a_failure_of_a_thread_is_logged_without_its_text(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    from hone_server import logs

    monkeypatch.setattr(threading, "excepthook", logs._log_thread_exception)
    thread = threading.Thread(target=quote, args=(CANARY,))
    thread.start()
    thread.join()
    assert "KeyError" in log.getvalue()
    assert CANARY not in log.getvalue()
