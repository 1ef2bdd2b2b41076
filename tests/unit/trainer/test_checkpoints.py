"""Checkpoints are complete or not used, after any crash and any damage to the disk."""

import itertools
from pathlib import Path

import pytest
from hone_trainer.runtime import checksums
from hone_trainer.storage import checkpoints
from hone_trainer.storage.checkpoints import (
    MARKER,
    RunTotals,
    commit_checkpoint,
    find_newest_checkpoint,
    remove_checkpoints,
)
from hone_trainer.training.metrics_log import MetricsLog


def make_account(step: int) -> RunTotals:
    return RunTotals(step, 100, 10 * step, 0.1 * step, 2.0 * step, 5.5, 0.25, step, {"entropy": [0.1, 0.2]})


def make(root: Path, step: int, limit: int = 10) -> Path:
    written = root / f"checkpoint-{step}"
    (written / "shards").mkdir(parents=True)
    (written / "optimizer.pt").write_bytes(bytes(range(256)) * step)
    (written / "shards/model.safetensors").write_bytes(b"weights" * step)
    (written / "empty").touch()
    remove_checkpoints(commit_checkpoint(written, make_account(step), limit))
    return root / f"step-{step:08d}"


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_sealed_checkpoint_gives_its_account_back(tmp_path: Path) -> None:
    make(tmp_path, 3)
    folder = make(tmp_path, 12)
    found, warnings = find_newest_checkpoint(tmp_path)
    assert found == checkpoints.Checkpoint(folder, make_account(12))
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *itertools.product(
            ("optimizer.pt", "shards/model.safetensors", MARKER), ("removed", "cut short", "longer", "spoiled")
        ),
        *itertools.product(("empty",), ("removed", "longer")),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_the_previous_one_used(tmp_path: Path, name: str, how: str) -> None:
    good = make(tmp_path, 3)
    spoiled = make(tmp_path, 12) / name
    data = spoiled.read_bytes()
    if how == "removed":
        spoiled.unlink()
    elif how == "longer":
        spoiled.write_bytes(data + b"\0")
    elif how == "cut short":
        spoiled.write_bytes(data[:-1])
    else:
        middle = len(data) // 2
        spoiled.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    found, warnings = find_newest_checkpoint(tmp_path)
    assert found
    assert found.folder == good
    assert len(warnings) == 1
    assert str(tmp_path / "step-00000012") in warnings[0]
    assert names(tmp_path) == ["step-00000003"]


def test_every_part_of_a_large_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "PART_BYTES", 100)
    folder = make(tmp_path, 2)
    data = (folder / "optimizer.pt").read_bytes()
    for at in range(0, len(data), 50):
        (folder / "optimizer.pt").write_bytes(data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :])
        assert isinstance(checkpoints._read_checkpoint(folder), str)
    (folder / "optimizer.pt").write_bytes(data)
    assert isinstance(checkpoints._read_checkpoint(folder), checkpoints.Checkpoint)


def test_without_a_good_checkpoint_training_restarts_with_a_warning(tmp_path: Path) -> None:
    assert find_newest_checkpoint(tmp_path) == (None, [])
    (make(tmp_path, 4) / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-8").mkdir()
    found, warnings = find_newest_checkpoint(tmp_path)
    assert found is None
    assert warnings == [
        f"removing {tmp_path / 'checkpoint-8'}: its writing was cut short",
        f"removing {tmp_path / 'step-00000004'}: optimizer.pt is missing",
        "no good checkpoint is left: training starts from the beginning",
    ]


def test_files_and_links_named_like_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = make(tmp_path, 3)
    (tmp_path / "checkpoint-x").write_text("a note")
    (tmp_path / "step-note").write_text("another")
    (tmp_path / "checkpoint-link").symlink_to(folder)
    found, warnings = find_newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.folder, warnings) == (folder, [])
    assert names(tmp_path) == ["checkpoint-link", "checkpoint-x", "step-00000003", "step-note"]


def test_the_limit_keeps_the_newest_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step, limit=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    make(tmp_path, 5, limit=1)
    assert names(tmp_path) == ["step-00000005"]


def test_checkpoints_that_were_left_out_do_not_count_towards_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 3)
    make(tmp_path, 12)

    def unreadable(folder: Path, expected: object) -> None:
        if folder.name == "step-00000012":
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints, "find_difference", unreadable)
    found, warnings = find_newest_checkpoint(tmp_path)
    assert found
    assert found.totals.step == 3
    assert warnings == [f"leaving out {tmp_path / 'step-00000012'}, which can't be read: Input/output error"]
    assert names(tmp_path) == ["step-00000003", "step-00000012"]
    make(tmp_path, 6, limit=1)
    assert names(tmp_path) == ["step-00000006"]


def test_the_metrics_log_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "logs/metrics.jsonl"
    log = MetricsLog(path, resumed_step=0)
    for step in (2, 4, 6):
        log.add(step, {"loss": 1.0 / step})
    log.flush()
    path.write_text(path.read_text() + '{"step": 8, "lo')
    log = MetricsLog(path, resumed_step=4)
    assert log.last == {"step": 4, "loss": 0.25}
    log.add(4, {"eval_loss": float("nan")})  # an evaluation that the last start did not finish
    log.add(6, {"loss": 0.5})
    log.flush()
    log.add(6, {"eval_loss": 0.75})
    log.close()
    assert path.read_text().splitlines() == [
        '{"step": 2, "loss": 0.5}',
        '{"step": 4, "loss": 0.25, "eval_loss": null}',
        '{"step": 6, "loss": 0.5, "eval_loss": 0.75}',
    ]
