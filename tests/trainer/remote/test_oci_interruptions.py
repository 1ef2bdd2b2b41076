"""Pulls from and pushes to a real registry that are killed at random moments, whose registry restarts, and their
memory.
"""

import hashlib
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote import download, fetch
from hone_trainer.remote.locations import Location
from killed import Child
from long_matrix import make_random
from ociserver.registry import RegistryServer

MEBIBYTE = 2**20
KILLS = 20
RESTARTS = 3
PIECE_BYTES = 2**16
LARGE_BYTES = 32 * MEBIBYTE

CHILD = """
import json, sys
from functools import partial
from pathlib import Path
from hone_trainer.remote import download, fetch
from hone_trainer.remote.locations import Location
from hone_trainer.push.oci_push import ArtifactPusher
what, uri, folder, piece_bytes = sys.argv[1:]
print("begun", flush=True)
if what == "pull":
    fetch.constants.HF_HOME = folder
    fetch.Downloader = partial(download.Downloader, piece_bytes=int(piece_bytes))
    print(fetch.fetch(Location("model", uri), None).folder)
else:
    files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    print(ArtifactPusher(Location("model", uri), lambda text: None, connections=4).push(files))
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024)
"""


def start(what: str, uri: str, folder: Path, piece_bytes: int = PIECE_BYTES) -> subprocess.Popen[str]:
    """Return a process that has imported all it needs, and transfers now."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, what, uri, str(folder), str(piece_bytes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    return process


def finish(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Return what the transfer printed, and the peak of its memory in bytes."""
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    result, peak = printed.split()
    return result, int(peak)


def kill_at_random(
    what: str, transfer: Callable[[], object], seconds: float, begin_again: Callable[[], object]
) -> None:
    """Start transfers and kill them while they run. `begin_again` follows one that was faster."""
    chance, killed = make_random(f"killed {what}"), 0
    while killed < KILLS:
        if Child(transfer).kill_after(chance.uniform(0, seconds)):
            killed += 1
        else:
            begin_again()


def measure(transfer: Callable[[], object]) -> float:
    """Return the seconds that a transfer takes."""
    begin = time.monotonic()
    Child(transfer).wait()
    return time.monotonic() - begin


def digests_of(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one large and some small files."""
    folder, chance = tmp_path_factory.mktemp("source"), random.Random(7)
    (folder / "deep").mkdir()
    (folder / "model.safetensors").write_bytes(chance.randbytes(LARGE_BYTES))
    (folder / "config.json").write_text("{}")
    for number in range(20):
        (folder / f"deep/{number}.json").write_bytes(chance.randbytes(number * 1000))
    return folder


def push(uri: str, folder: Path) -> str:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return ArtifactPusher(Location("model", uri), lambda text: None, connections=4).push(files)


def pull(uri: str, cache: Path) -> None:
    """Pull in a process of its own, which has another cache than this one."""
    fetch.constants.HF_HOME = str(cache)
    fetch.Downloader = partial(download.Downloader, piece_bytes=PIECE_BYTES)  # type: ignore[assignment, misc]
    fetch.fetch(Location("model", uri), None)


def pull_all(registry: RegistryServer, name: str, cache: Path) -> Mapping[str, str]:
    """Return the digests of all files of an artifact, as they arrive in an empty cache."""
    return digests_of(Path(finish(start("pull", f"oci://{registry.host}/{name}", cache))[0]))


def test_a_pull_killed_at_random_moments_is_continued(registry: RegistryServer, source: Path, tmp_path: Path) -> None:
    uri = f"oci://{registry.host}/killed/pull:v1"
    push(uri, source)
    cache = tmp_path / "cache"
    seconds = measure(partial(pull, uri, tmp_path / "first"))
    kill_at_random("pull", partial(pull, uri, cache), seconds / 8, partial(shutil.rmtree, cache))
    folder = Path(finish(start("pull", uri, cache))[0])
    assert digests_of(folder) == digests_of(source)
    left = [path for path in folder.parent.iterdir() if path != folder and not path.name.endswith(".lock")]
    assert left == []


def test_a_push_killed_at_random_moments_is_continued(registry: RegistryServer, source: Path, tmp_path: Path) -> None:
    expected = push(f"oci://{registry.host}/killed/first:v1", source)
    seconds = measure(partial(push, f"oci://{registry.host}/killed/second:v1", source))
    numbers = itertools.count()
    names = [f"killed/push{next(numbers)}:v1"]
    kill_at_random(
        "push",
        lambda: push(f"oci://{registry.host}/{names[-1]}", source),
        seconds / 2,
        lambda: names.append(f"killed/push{next(numbers)}:v1"),
    )
    assert push(f"oci://{registry.host}/{names[-1]}", source) == expected
    assert pull_all(registry, names[-1], tmp_path / "cache") == digests_of(source)


def test_a_registry_that_restarts_costs_nothing_but_time(
    registry: RegistryServer, source: Path, tmp_path: Path
) -> None:
    chance = make_random("registry restarts")
    uri = f"oci://{registry.host}/killed/restarts:v1"
    for what, folder in (("push", source), ("pull", tmp_path)):
        process = start(what, uri, folder)
        for _ in range(RESTARTS):
            time.sleep(chance.random() / 10)
            registry.kill()
            registry.start()
        result = finish(process)[0]
    assert digests_of(Path(result)) == digests_of(source)


def test_memory_does_not_depend_on_the_size(registry: RegistryServer, tmp_path: Path) -> None:
    peaks: dict[str, list[int]] = {"push": [], "pull": []}
    for size in (16 * MEBIBYTE, 192 * MEBIBYTE):
        folder, uri = tmp_path / str(size), f"oci://{registry.host}/sizes/{size}:v1"
        folder.mkdir()
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(size)
        peaks["push"].append(finish(start("push", uri, folder))[1])
        peaks["pull"].append(finish(start("pull", uri, tmp_path / f"cache-{size}", 4 * MEBIBYTE))[1])
    for small, large in peaks.values():
        assert large - small < 24 * MEBIBYTE, json.dumps(peaks)
