"""A run on W&B: offline, on a stand-in for the server, and on servers that are dead, silent or late."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracking_servers import find_free_port, run_until_sent
from wandb_server import WandbServer

Job = Callable[..., dict[str, Any]]
KEY = "0123456789abcdef0123456789abcdef01234567"


def make_tracking(url: str) -> dict[str, Any]:
    return {"wandb": {"project": "faq", "baseUrl": url, "secret": {"name": "wandb"}}}


def make_secret(folder: Path) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "WANDB_API_KEY").write_text(f"{KEY}\n")
    return "--secret", f"wandb={folder}"


def list_steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["train/global_step"] for row in rows if "train/loss" in row]


def test_a_run_has_rows_tags_settings_and_a_link(job: Job, process: Callable[..., Any], tmp_path: Path) -> None:
    with WandbServer() as server:
        arguments = (job(tracking=make_tracking(server.url)), tmp_path / "out", *make_secret(tmp_path / "s"))
        result = run_until_sent(lambda: process(*arguments).result())
    assert result.code == 0, result.log
    [run] = server.runs.values()
    assert list_steps(run.history) == [1, 2, 3, 4]
    assert [row["train/loss"] for row in run.history] == [line["loss"] for line in result.metrics]
    assert result.message["tracking"] == [
        {"name": "wandb", "url": f"{server.url}/team/faq/runs/{run.name}", "unsent": 0}
    ]
    assert run.display_name == "tiny"
    assert "hone.job:tiny" in run.tags
    assert run.config["hone.dataset"]["value"] == result.manifest["datasetFingerprint"]
    assert run.config["per_device_train_batch_size"]["value"] == 2
    assert run.exit_codes[-1] == 0
    assert KEY not in result.log
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_a_killed_run_continues_without_doubled_rows(job: Job, process: Callable[..., Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    journal = output / "logs/tracking/journal.jsonl"
    with WandbServer() as server:
        document = job(training={"maxSteps": 300}, checkpoint={"saveSteps": 20}, tracking=make_tracking(server.url))
        for number, least in ((signal.SIGKILL, 40), (signal.SIGTERM, 120)):
            started = process(document, output, *make_secret(tmp_path / "s"))
            started.wait_for(lambda least=least: journal.exists() and journal.read_text().count("\n") > least)
            started.signal(number)
            started.result()
        run_until_sent(lambda: process(document, output, *make_secret(tmp_path / "s")).result())
    [run] = server.runs.values()
    assert list_steps(run.history) == list(range(1, 301))


def test_a_server_that_comes_back_gets_what_it_missed(job: Job, process: Callable[..., Any], tmp_path: Path) -> None:
    port, output = find_free_port(), tmp_path / "out"
    document = job(tracking=make_tracking(f"http://127.0.0.1:{port}"))
    secret = make_secret(tmp_path / "s")
    missed = process(document, output, *secret).result()
    assert missed.code == 0, missed.log
    [report] = missed.message["tracking"]
    assert report["unsent"] == 4
    assert "4 logged lines were not sent" in missed.log
    assert "4 logged lines were not sent" in (output / "report/report.html").read_text()
    with WandbServer(port) as server:
        run_until_sent(lambda: process(document, output, *secret).result())
    assert list_steps(next(iter(server.runs.values())).history) == [1, 2, 3, 4]


def test_without_a_key_a_run_is_written_for_wandb_sync(job: Job, process: Callable[..., Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    document = job(training={"maxSteps": 100}, checkpoint={"saveSteps": 10}, tracking={"wandb": {"project": "faq"}})
    started = process(document, output)
    started.wait_for(lambda: [*output.glob("logs/wandb/offline-run-*")] and [*output.glob("checkpoints/step-*")])
    started.signal(signal.SIGKILL)
    started.result()
    result = run_until_sent(lambda: process(document, output).result())
    assert result.message["tracking"] == [{"name": "wandb", "unsent": 0}]
    [folder] = output.glob("logs/wandb/offline-run-*")
    with WandbServer() as server:
        environ = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        command = [sys.executable, "-m", "wandb", "sync", str(folder)]
        done = subprocess.run(
            command, env={**os.environ, **environ}, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        end = time.monotonic() + 30
        while not server.runs and time.monotonic() < end:
            time.sleep(0.1)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = server.runs.values()
    assert list_steps(run.history) == list(range(1, 101))


def test_a_secret_without_the_key_is_refused(job: Job, process: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/api-key").write_text(KEY)
    document = job(tracking=make_tracking("http://127.0.0.1:9"))
    result = process(document, tmp_path / "out", "--secret", f"wandb={tmp_path / 's'}").result()
    assert result.message["reason"] == "InvalidSpec"
    assert "which has none of WANDB_API_KEY" in result.message["message"]
    assert KEY not in json.dumps(result.message)
