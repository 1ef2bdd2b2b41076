"""A run in a local database of Trackio, and the refusal where Trackio is not installed."""

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracking_servers import install_trackio, run_until_sent

Job = Callable[..., dict[str, Any]]
TRACKING = {"trackio": {"project": "faq"}}


def read_rows(output: Path) -> list[tuple[str, int, bytes]]:
    with sqlite3.connect(output / "logs/trackio/faq.db") as database:
        return database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()


def test_a_killed_run_continues_without_doubled_rows(job: Job, process: Callable[..., Any], tmp_path: Path) -> None:
    path = os.pathsep.join([str(install_trackio()), os.environ.get("PYTHONPATH", "")])
    output = tmp_path / "out"
    journal = output / "logs/tracking/journal.jsonl"
    document = job(training={"maxSteps": 200}, checkpoint={"saveSteps": 20}, tracking=TRACKING)
    started = process(document, output, PYTHONPATH=path)
    started.wait_for(lambda: journal.exists() and journal.read_text().count("\n") > 50)
    started.signal(signal.SIGKILL)
    started.result()
    result = run_until_sent(lambda: process(document, output, PYTHONPATH=path).result())
    assert result.message["tracking"] == [{"name": "trackio", "unsent": 0}]
    rows = read_rows(output)
    assert len({name for name, _, _ in rows}) == 1
    assert [step for _, step, _ in rows] == list(range(200))
    assert [json.loads(metrics)["train/global_step"] for _, _, metrics in rows] == list(range(1, 201))


def test_a_package_that_is_not_installed_is_refused_before_training(job: Job, train: Callable[..., Any]) -> None:
    for command in ("prepare", "run"):
        result = train(job(tracking=TRACKING), command=command)
        assert result.message["reason"] == "InvalidSpec"
        assert (
            "spec.tracking.trackio is set, and the Python package trackio is not installed" in result.message["message"]
        )
