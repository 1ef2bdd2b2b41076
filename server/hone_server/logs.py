"""Write the log of a server: exceptions with their types and places in the code, but never with their messages.

Messages of exceptions quote the faulty value: pydantic its input, KeyError a key, a template's error a message of the
chat. The log must not contain anything of a request's body, and the author of a `log.exception` can't know what the
message quotes. So the formatter leaves all of them out. Information that is no client's, such as why a model was not
loaded, is logged in a message of its own.
"""

import asyncio
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

# Of a chain of causes, or of a group.
MAX_EXCEPTIONS = 8

_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class RedactingFormatter(logging.Formatter):
    """Writes exceptions without their messages, even where the line itself repeats one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        # The logging module keeps another formatter's text of the exception in the record.
        earlier_text, record.exc_text = record.exc_text, None
        try:
            return super().format(record)
        finally:
            record.exc_text = earlier_text

    def formatMessage(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        for one in [] if error is None else list_causes(error):
            if text := str(one):
                record.message = record.message.replace(text, "...")
        return super().formatMessage(record)

    def formatException(self, ei: _Info) -> str:
        return "" if ei[1] is None else describe_exception(ei[1])


def list_causes(error: BaseException) -> list[BaseException]:
    """Return the exception, followed by those that led to it."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo and len(found) < MAX_EXCEPTIONS:
        one = todo.pop(0)
        if one is None or any(one is other for other in found):
            continue
        found.append(one)
        todo.append(one.__cause__ or (None if one.__suppress_context__ else one.__context__))
        todo += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return found


def describe_exception(error: BaseException) -> str:
    """Return the types of the exception and of those that led to it, each with the places in the code."""
    parts = []
    for one in list_causes(error):
        frames = traceback.extract_tb(one.__traceback__)
        places = "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
        parts.append(f"{type(one).__module__}.{type(one).__qualname__}{places}")
    return "\nafter ".join(parts)


def configure_logging(level: int = logging.WARNING) -> None:
    """Log to stderr, including exceptions of threads."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter())
    logging.basicConfig(handlers=[handler], level=level)
    threading.excepthook = _log_thread_exception


def _log_thread_exception(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is None or isinstance(failure.exc_value, SystemExit):
        return
    name = failure.thread.name if failure.thread else "unknown"
    logging.getLogger("hone_server").error("thread %s failed", name, exc_info=failure.exc_value)


def log_loop_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception of the event loop; asyncio's own handler prints the task with the exception in it."""
    logging.getLogger("hone_server").error("event loop: %s", context["message"], exc_info=context.get("exception"))
