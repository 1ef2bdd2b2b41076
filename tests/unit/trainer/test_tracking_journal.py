"""The journal of tracked lines: each line once and in order, whatever was cut, repeated or read meanwhile."""

import errno
import io
import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.finetunejobs.tracking import TrackingOptions
from hone_trainer.tracking.journal import Journal, JournalReader, count_entries
from hone_trainer.tracking.process import describe
from hone_trainer.tracking.record import RunRecord, SentState, keep_record, read_state, write_state
from hone_trainer.tracking.trackers import Trackers
from hypothesis import given, settings
from hypothesis import strategies as st


def make_record(run: str, digest: str) -> RunRecord:
    return RunRecord(run, "faq", {"hone.digest": digest}, {}, {}, None, 1)


@settings(max_examples=40, deadline=None)
@given(
    starts=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(0, 30)), max_size=5),
)
def test_a_journal_holds_each_step_once_whatever_was_repeated_or_cut(starts: list[tuple[int, int, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        for resumed, steps, cut in starts:
            reached = count_entries(path)
            journal = Journal(path)
            for step in range(min(resumed, reached), min(resumed, reached) + steps):
                journal.add(step, step / 10, {"loss": float(step)})
                journal.add(step, step / 10, {"loss": float(step)})
            path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
        journal = Journal(path)
        for step in range(60):
            journal.add(step, step / 10, {"loss": float(step)})
        entries = JournalReader(path).read_after(0)
        assert [entry.step for entry in entries] == list(range(60))
        assert journal.count == 60


def test_training_and_evaluation_at_one_step_are_two_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for values in ({"loss": 1.0}, {"eval_loss": 2.0}, {"loss": 1.0}, {"loss": float("nan")}, {}):
        journal.add(5, 0.5, values)
    assert [entry.values for entry in JournalReader(tmp_path / "journal.jsonl").read_after(0)] == [
        {"loss": 1.0},
        {"eval_loss": 2.0},
    ]


def test_a_reader_sees_only_complete_lines_of_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal, reader = Journal(path), JournalReader(path)
    journal.add(1, 0.1, {"loss": 1.0})
    line = path.read_bytes()
    assert [entry.step for entry in reader.read_after(0)] == [1]
    with path.open("ab") as file:
        file.write(line[:10])
        file.flush()
        assert reader.read_after(1) == []
        file.write(line[10:])
    assert [entry.step for entry in reader.read_after(1)] == [1]


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_the_journal_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    monkeypatch.setattr(journal, "_file", FullDisk())
    journal.add(1, 0.1, {"loss": 1.0})
    journal.add(2, 0.2, {"loss": 1.0})
    assert journal.error == "the journal can't be written: No space left on device"
    assert journal.count == 0


def test_the_run_continues_while_its_tags_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "tracking"
    first = keep_record(folder, make_record("a", "one"))
    write_state(folder, "mlflow", SentState("a", "run", "http://x", 3))
    assert keep_record(folder, make_record("b", "one")) == first
    assert read_state(folder, "mlflow", first).sent == 3
    other = keep_record(folder, make_record("c", "two"))
    assert other.id == "c"
    assert read_state(folder, "mlflow", other) == SentState("c")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", json.dumps({"run": 5}).encode(), b"\xff"])
def test_a_damaged_state_counts_as_nothing_sent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.json").write_bytes(content)
    assert read_state(tmp_path, "mlflow", make_record("a", "one")) == SentState("a")


def test_an_error_is_one_line_with_its_cause_and_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2secret")
    failure = ValueError("no login with\nhunter2secret" + "x" * 1000)
    failure.__cause__ = ConnectionRefusedError(111, "Connection refused")
    found = describe(failure)
    assert found.startswith("ValueError: no login with ***x")
    assert found.endswith("; ConnectionRefusedError: [Errno 111] Connection refused")
    assert "\n" not in found
    assert len(found) < 450


@pytest.mark.parametrize("refused", ["start", "end"])
def test_a_process_that_the_system_refuses_is_reported_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    options = TrackingOptions.model_validate({"trackio": {"project": "faq"}})
    spec = FineTuneJobSpec.model_construct(tracking=options)
    with Trackers(tmp_path, spec, {}) as trackers:
        if refused == "start":
            monkeypatch.setattr(subprocess, "Popen", refuse)
        trackers.start(make_record("one", "a"))
        for process in trackers._processes:  # as the kernel does where memory lacks
            process.wait_until(0)
        monkeypatch.setattr(subprocess, "Popen", refuse)
        trackers.end("finished")
    [report] = trackers.make_reports() or []
    assert report.message == "The trackers can't be started: Cannot allocate memory."


def test_a_journal_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert count_entries(tmp_path) == 0
