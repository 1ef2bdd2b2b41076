"""Write log lines as text or JSON. Within a pass, each line names the object; as JSON also the pass."""

import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from hone_operator.objects.resources import Key

FORMATS = ("text", "json")

_reconcile: ContextVar[tuple[Key, str] | None] = ContextVar("pass", default=None)


def set_up_logging(level: str, format_: str) -> None:
    """Set up logging to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("kopf", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(max(logging.getLogger().level, logging.WARNING))


@contextmanager
def reconcile_context(key: Key) -> Iterator[None]:
    """Within the context, add this object and the number of the pass to all log lines."""
    token = _reconcile.set((key, str(uuid.uuid4())))
    try:
        yield
    finally:
        _reconcile.reset(token)


class TextFormatter(logging.Formatter):
    """A formatter for lines that people read."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(about)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        about = _reconcile.get()
        reason = getattr(record, "reason", None)
        record.about = (f"{about[0]}: " if about else "") + (f"{reason}: " if reason else "")
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """A formatter that writes one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if about := _reconcile.get():
            key, pass_id = about
            line["object"] = {"kind": key.resource.kind, "namespace": key.namespace, "name": key.name}
            line["reconcileID"] = pass_id
        if reason := getattr(record, "reason", None):
            line["reason"] = reason
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
