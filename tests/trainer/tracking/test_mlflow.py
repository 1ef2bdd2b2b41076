"""A run on a real MLflow server: the curves, the tags, and one run for all starts."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tracking_servers import MLflowServer, run_until_sent

Job = Callable[..., dict[str, Any]]
PASSWORD = "a-password-that-nobody-else-has"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    found = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    found.start()
    yield found
    found.stop()


def make_tracking(server: MLflowServer, experiment: str, **more: Any) -> dict[str, Any]:
    return {"mlflow": {"uri": server.url, "experiment": experiment, **more}}


def find_run(server: MLflowServer, experiment: str) -> Run:
    """Return the only run of an experiment."""
    client = MlflowClient(server.url)
    found = client.get_experiment_by_name(experiment)
    assert found
    [run] = client.search_runs([found.experiment_id])
    return run


def read_steps(server: MLflowServer, run: Run, metric: str) -> list[int]:
    return [each.step for each in MlflowClient(server.url).get_metric_history(run.info.run_id, metric)]


def test_a_run_has_curves_tags_parameters_and_a_link(
    job: Job, train: Callable[..., Any], server: MLflowServer, tmp_path: Path
) -> None:
    result = run_until_sent(lambda: train(job(tracking=make_tracking(server, "curves")), output=tmp_path / "out"))
    run = find_run(server, "curves")
    assert read_steps(server, run, "loss") == [1, 2, 3, 4]
    [report] = result.message["tracking"]
    assert report == {
        "name": "mlflow",
        "url": f"{server.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}",
        "unsent": 0,
    }
    assert "mlflow" in (result.output / "report/report.html").read_text()
    tags = run.data.tags
    assert tags["hone.job"] == "tiny"
    assert tags["hone.digest"].startswith("sha256:")
    assert tags["hone.base"] == "tiny"
    assert tags["hone.dataset"] == result.manifest["datasetFingerprint"]
    assert run.data.params["per_device_train_batch_size"] == "2"
    assert run.info.status == "FINISHED"


def test_the_values_are_those_of_the_metrics_log(
    job: Job, train: Callable[..., Any], server: MLflowServer, tmp_path: Path
) -> None:
    result = run_until_sent(lambda: train(job(tracking=make_tracking(server, "values")), output=tmp_path / "out"))
    history = MlflowClient(server.url).get_metric_history(find_run(server, "values").info.run_id, "loss")
    assert [each.value for each in history] == [line["loss"] for line in result.metrics if "loss" in line]


def test_a_run_that_is_killed_and_resumed_is_one_run_without_doubled_steps(
    job: Job, process: Callable[..., Any], tmp_path: Path, server: MLflowServer
) -> None:
    document = job(
        training={"maxSteps": 300},
        checkpoint={"saveSteps": 20},
        tracking=make_tracking(server, "resumed"),
    )
    output = tmp_path / "out"
    journal = output / "logs/tracking/journal.jsonl"
    for number, least in ((signal.SIGKILL, 30), (signal.SIGTERM, 70), (signal.SIGKILL, 130)):
        started = process(document, output)
        started.wait_for(lambda least=least: journal.exists() and journal.read_text().count("\n") > least)
        started.signal(number)
        started.result()
    run_until_sent(lambda: process(document, output).result())
    run = find_run(server, "resumed")
    assert read_steps(server, run, "loss") == list(range(1, 301))
    assert run.info.status == "FINISHED"


def test_a_server_that_comes_back_gets_what_it_missed(
    job: Job, process: Callable[..., Any], tmp_path: Path, server: MLflowServer
) -> None:
    document = job(training={"maxSteps": 200}, tracking=make_tracking(server, "late"))
    server.stop()
    try:
        started = process(document, tmp_path / "out")
        journal = tmp_path / "out/logs/tracking/journal.jsonl"
        started.wait_for(lambda: journal.exists() and journal.read_text().count("\n") > 50)
    finally:
        server.start()
    started.result()
    run_until_sent(lambda: process(document, tmp_path / "out").result())
    history = MlflowClient(server.url).get_metric_history(find_run(server, "late").info.run_id, "loss")
    assert [each.step for each in history] == list(range(1, 201))
    assert history[0].timestamp < history[-1].timestamp, "the times are those of training"


def test_credentials_are_in_no_file_and_no_output(
    job: Job, process: Callable[..., Any], tmp_path: Path, server: MLflowServer
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "MLFLOW_TRACKING_USERNAME").write_text("user")
    (secret / "MLFLOW_TRACKING_PASSWORD").write_text(PASSWORD)
    document = job(tracking=make_tracking(server, "secret", secret={"name": "login"}))
    result = process(document, tmp_path / "out", "--secret", f"login={secret}", "--verbose").result()
    assert result.code == 0, result.log
    assert PASSWORD not in result.log
    assert PASSWORD not in str(result.message)
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file


def test_the_training_process_has_no_credentials_in_its_environment(
    job: Job, process: Callable[..., Any], tmp_path: Path, server: MLflowServer
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "MLFLOW_TRACKING_TOKEN").write_text(PASSWORD)
    document = job(training={"maxSteps": 400}, tracking=make_tracking(server, "environment", secret={"name": "login"}))
    started = process(document, tmp_path / "out", "--secret", f"login={secret}")
    journal = tmp_path / "out/logs/tracking/journal.jsonl"
    started.wait_for(lambda: journal.exists() and journal.read_text().count("\n") > 3)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    assert PASSWORD.encode() not in Path(f"/proc/{started.pid}/environ").read_bytes()
    assert any(PASSWORD.encode() in Path(f"/proc/{child}/environ").read_bytes() for child in children)
    assert all(os.sched_getscheduler(int(child)) == os.SCHED_IDLE for child in _wait_idle(children))
    # Priorities count within a session; signals of the terminal reach a process group.
    assert {os.getsid(int(child)) for child in children} == {os.getsid(started.pid)}
    assert os.getpgid(started.pid) not in {os.getpgid(int(child)) for child in children}


def _wait_idle(children: list[str]) -> list[str]:
    """Return the processes, once they have set their priority."""
    end = time.monotonic() + 30
    while time.monotonic() < end and any(os.sched_getscheduler(int(child)) != os.SCHED_IDLE for child in children):
        time.sleep(0.05)
    return children


def test_a_missing_secret_is_refused(job: Job, train: Callable[..., Any], server: MLflowServer) -> None:
    result = train(job(tracking=make_tracking(server, "missing", secret={"name": "absent"})))
    assert result.message["reason"] == "InvalidSpec"
    assert "spec.tracking.mlflow.secret.name is absent, and that Secret is not given" in result.message["message"]
