"""Log lines: JSON with the object, the pass and the reason."""

import json
import logging

from hone_operator.objects.resources import FINETUNEJOBS, Key
from hone_operator.observability.logs import JsonFormatter, TextFormatter, reconcile_context

KEY = Key(FINETUNEJOBS, "team", "faq")


def record(message: str = "it is so", **extra: str) -> logging.LogRecord:
    return logging.getLogger("hone_operator.test").makeRecord(
        "hone_operator.test", logging.WARNING, __file__, 1, message, (), None, extra=extra
    )


def test_a_line_of_a_pass_names_object_pass_and_reason() -> None:
    with reconcile_context(KEY):
        first = json.loads(JsonFormatter().format(record(reason="Unschedulable")))
        second = json.loads(JsonFormatter().format(record()))
    assert first["object"] == {"kind": "FineTuneJob", "namespace": "team", "name": "faq"}
    assert first["reason"] == "Unschedulable"
    assert (first["level"], first["message"]) == ("warning", "it is so")
    assert first["reconcileID"] == second["reconcileID"]
    with reconcile_context(KEY):
        assert json.loads(JsonFormatter().format(record()))["reconcileID"] != first["reconcileID"]


def test_a_line_outside_of_a_pass_names_none() -> None:
    line = json.loads(JsonFormatter().format(record("two\nlines")))
    assert line.keys() == {"time", "level", "logger", "message"}
    assert "\n" not in JsonFormatter().format(record("two\nlines"))


def test_text_names_the_object_too() -> None:
    with reconcile_context(KEY):
        assert TextFormatter().format(record(reason="Queued")).endswith("FineTuneJob team/faq: Queued: it is so")
