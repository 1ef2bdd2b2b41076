"""A full volume is named, the last good checkpoint is kept, and training resumes once there is room."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hone_trainer.storage import checkpoints

Job = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system takes root")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a file system of 16 MiB."""
    folder = tmp_path_factory.mktemp("volume")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "hone-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def on_volume(make_forks: Callable[..., Any], volume: Path) -> Any:
    """Return forks whose cache is on the small volume, too."""
    return make_forks({"HF_HOME": str(volume / "hf")})


@pytest.fixture(scope="module")
def document(job: Job) -> dict[str, Any]:
    return job(method="full", training={"maxSteps": 8}, checkpoint={"saveSteps": 2, "saveTotalLimit": 2})


@pytest.fixture(scope="module")
def whole(forks: Any, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return forks.run(document, tmp_path_factory.mktemp("whole") / "out")


@pytest.mark.parametrize(
    ("phase", "at", "leave", "kept"),
    [
        ("reading", 1, 0, None),
        ("stepping", 4, 0, 2),
        ("saving", 2, 0, 2),
        ("saving", 2, 100_000, 2),
        ("saving", 2, 400_000, 2),
        ("flushing", 3, 0, 4),
        ("keeping", 1, 0, 8),
        ("keeping", 1, 100_000, 8),
        ("describing", 1, 0, 8),
    ],
)
def test_a_full_volume_is_named_and_nothing_is_lost(
    on_volume: Any,
    volume: Path,
    document: dict[str, Any],
    whole: Any,
    phase: str,
    at: int,
    leave: int,
    kept: int | None,
) -> None:
    for left in volume.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    output = volume / "out"
    full = {"phase": phase, "at": at, "root": str(volume), "leave": leave}
    failed = on_volume.run(document, output, fill=full)
    assert (failed.code, failed.message["reason"]) == (74, "DiskFull"), failed.log
    assert str(volume) in failed.message["message"]
    assert "are free on its volume" in failed.message["message"]
    assert "Traceback" not in failed.log
    newest, _ = checkpoints.find_newest_checkpoint(output / "checkpoints")
    assert (newest and newest.totals.step) == kept
    assert not list((output / "checkpoints").glob("checkpoint-*"))

    (volume / "ballast").unlink()
    done = on_volume.run(document, output)
    assert done.code == 0, done.log
    assert done.manifest["digest"] == whole.manifest["digest"]
    assert done.metrics == whole.metrics
    shutil.rmtree(output)
