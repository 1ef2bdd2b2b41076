"""Jobs on this machine: a program in place of the trainer runs, is stopped, killed and found by another client."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hone import Client, ClientError, FineTuneJob, JobFailedError

ROWS = [{"text": "one"}]
TRAINER = """#!{python}
import pathlib, signal, sys, time
from hone_api.artifacts.trainer_reports import TerminationMessage
result = pathlib.Path(sys.argv[sys.argv.index("--termination-log") + 1])
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1]) / "logs"
(output.parent / "checkpoints").mkdir(parents=True, exist_ok=True)
def end(outcome, reason, code):
    result.write_bytes(TerminationMessage(outcome=outcome, reason=reason, message="A sentence.").to_bytes())
    sys.exit(code)
signal.signal(signal.SIGTERM, lambda *_: end("Interrupted", "Interrupted", 75))
print("starting", flush=True)
while not (output / "go").exists():
    time.sleep(0.02)
what = (output / "go").read_text()
if what == "silent":
    sys.exit(3)
end(what, "OutOfMemory" if what == "Failed" else "Complete", 0)
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    program = tmp_path / "trainer"
    program.write_text(TRAINER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    made = Client(local=True, folder=tmp_path / "jobs")
    yield made
    for job in made.jobs():
        job.delete()


@pytest.fixture
def job(client: Client) -> FineTuneJob:
    started = client.train(name="faq", model="a/b", dataset=ROWS)
    assert next(iter(started.logs(follow=True))) == "starting"
    return started


def order(tmp_path: Path, what: str) -> None:
    output = tmp_path / "jobs/faq/logs"
    output.mkdir(parents=True, exist_ok=True)
    whole = tmp_path / "go"
    whole.write_text(what)
    whole.rename(output / "go")  # the program must never read a part


def test_a_job_runs_until_its_result(job: FineTuneJob, tmp_path: Path) -> None:
    stages = []
    for moment in job.progress():
        stages.append(moment.stage)
        order(tmp_path, "Succeeded")
    assert stages == ["Pending", "Succeeded"]
    job.wait()
    assert list(job.logs()) == ["starting"]


def test_a_failure_and_a_silent_end_have_a_reason(client: Client, job: FineTuneJob, tmp_path: Path) -> None:
    order(tmp_path, "Failed")
    with pytest.raises(JobFailedError, match=r"OutOfMemory: A sentence\.") as caught:
        job.wait()
    assert caught.value.failure == "OutOfMemory"
    order(tmp_path, "silent")
    client.train(name="faq", model="a/b", dataset=ROWS)
    with pytest.raises(JobFailedError, match=r"The trainer ended with exit code 3 and wrote no result.*trainer\.log"):
        job.wait()


def test_a_killed_trainer_is_noticed(job: FineTuneJob, tmp_path: Path) -> None:
    (state,) = (tmp_path / "jobs/.hone").rglob("start.json")
    os.kill(json.loads(state.read_text())["pid"], signal.SIGKILL)
    with pytest.raises(JobFailedError, match="exit code -9"):
        job.wait()


def test_another_client_finds_stops_and_resumes_a_job(job: FineTuneJob, tmp_path: Path) -> None:
    (other,) = Client(local=True, folder=tmp_path / "jobs").jobs()
    assert other.stage == "Pending"
    other.suspend()
    assert job.stage == "Suspended"
    with pytest.raises(ClientError, match=r"job\.resume\(\)"):
        job.wait()
    with pytest.raises(ClientError, match="has no report yet"):
        job.report()
    other.resume()
    assert job.stage == "Pending"
    order(tmp_path, "Succeeded")
    job.wait()
    with pytest.raises(ClientError, match="has ended"):
        job.suspend()


def test_a_running_job_takes_no_other_spec(client: Client, job: FineTuneJob) -> None:
    client.train(name="faq", model="a/b", dataset=ROWS)
    with pytest.raises(ClientError, match="runs already, with another spec"):
        client.train(name="faq", model="a/c", dataset=ROWS)


def test_what_was_saved_stays_unless_it_is_deleted_too(client: Client, job: FineTuneJob, tmp_path: Path) -> None:
    order(tmp_path, "Succeeded")
    job.delete()
    assert (tmp_path / "jobs/faq/logs/go").exists()
    assert client.jobs() == []
    client.train(name="faq", model="a/b", dataset=ROWS).delete(with_claim=True)
    assert not (tmp_path / "jobs/faq").exists()


def test_files_of_others_in_the_output_folder_are_not_deleted(client: Client, tmp_path: Path) -> None:
    output = tmp_path / "jobs/faq"
    (output / "model").mkdir(parents=True)
    (output / "model/mine.txt").write_text("before the first start")
    client.train(name="faq", model="a/b", dataset=ROWS)
    (output / "later.txt").write_text("after it")
    order(tmp_path, "Succeeded")
    client.job("faq").wait()
    client.train(name="faq", model="a/b", dataset=ROWS).delete(with_claim=True)
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert found == {"model/mine.txt", "later.txt"}


def test_threads_that_start_the_same_job_start_it_once(client: Client) -> None:
    def start(_: int) -> str:
        return client.train(name="faq", model="a/b", dataset=ROWS).name

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(start, range(8))) == {"faq"}
