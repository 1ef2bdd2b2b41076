"""Pushes to a real S3 server that are killed at random moments: nothing is lost or doubled. And their memory."""

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hone_api.layout import MANIFEST
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.s3 import S3Push
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote.connections import CONNECTIONS
from hone_trainer.remote.locations import Location
from killed import Child, wait_for_late_requests
from long_matrix import is_long, make_random
from pushed_artifacts import MEBIBYTE, list_content, write_artifact
from s3server.gateway import SECRET, Gateway

PART = 5 * MEBIBYTE
KILLS = {False: 20, True: 200}
FOLDER = "killed"


def at(gateway: Gateway, folder: str) -> Location:
    return Location("push", f"s3://data/{folder}", endpoint=gateway.url, secret=SECRET)


def push(artifact: LocalArtifact, location: Location) -> None:
    S3Push(location, S3Destination(location), lambda note: None, part_bytes=PART).push(artifact)


@pytest.fixture
def artifacts(tmp_path: Path) -> list[LocalArtifact]:
    """Return two artifacts of a job, of which some files differ."""
    roots = [
        write_artifact(tmp_path / str(seed), "model", seed=seed, shards=(16 * MEBIBYTE, *[3 * MEBIBYTE] * (2 + seed)))
        for seed in (0, 1)
    ]
    return [load_artifact(root) for root in roots]


def check_objects(gateway: Gateway, artifacts: list[LocalArtifact]) -> None:
    """Check that each object is a complete file, and that a manifest is there only with all of its files."""
    contents = [list_content(artifact.root) for artifact in artifacts]
    for name, data in gateway.files(FOLDER).items():
        assert data in [content[name] for content in contents if name in content], name


def test_a_push_killed_at_random_moments_is_continued(gateway: Gateway, artifacts: list[LocalArtifact]) -> None:
    chance = make_random("killed pushes")
    began = time.monotonic()
    Child(partial(push, artifacts[0], at(gateway, "measured"))).wait()
    seconds = time.monotonic() - began
    killed = completed = 0
    location = at(gateway, FOLDER)
    while killed < KILLS[is_long()]:
        now = artifacts[completed % 2]
        is_killed = Child(partial(push, now, location)).kill_after(chance.uniform(0, seconds / 2))
        killed += is_killed
        check_objects(gateway, artifacts)
        if MANIFEST in gateway.files(FOLDER) and not is_killed:
            assert gateway.files(FOLDER) == list_content(now.root)
            completed += 1
    wait_for_late_requests(gateway.port)
    now = artifacts[completed % 2]
    Child(partial(push, now, location)).wait()
    assert gateway.files(FOLDER) == list_content(now.root)
    assert S3Destination(location).list_uploads() == {}
    name = "killed/model/model-00001-of-00003.safetensors"
    parts = sum(gateway.count_requests(name, "UploadPart") for name in (name, name.replace("00003", "00004")))
    # Each part of each artifact once, and those again that were under way at a kill.
    assert parts <= 4 * (completed + 1) + killed * min(CONNECTIONS, 4)


def test_parts_that_an_interrupted_push_has_sent_are_not_sent_again(gateway: Gateway, tmp_path: Path) -> None:
    artifact = load_artifact(write_artifact(tmp_path / "one", "model", shards=(23 * MEBIBYTE,)))
    location, name = at(gateway, "interrupted"), "model/model.safetensors"
    store = S3Destination(location)
    content = (artifact.root / name).read_bytes()
    for upload, numbers in ((store.begin_upload(name), ()), (store.begin_upload(name), (2, 4))):
        for number in numbers:
            part = content[(number - 1) * PART : number * PART]
            store.put_part(name, upload, number, part)
    push(artifact, location)
    assert gateway.files("interrupted") == list_content(artifact.root)
    assert gateway.count_requests(f"interrupted/{name}", "UploadPart") == 5
    assert store.list_uploads() == {}
    shutil.rmtree(gateway.objects / "data/interrupted")


def test_uploads_that_were_left_of_complete_files_are_dropped(gateway: Gateway, tmp_path: Path) -> None:
    artifact = load_artifact(write_artifact(tmp_path / "one", "model", shards=(12 * MEBIBYTE,)))
    location = at(gateway, "left")
    push(artifact, location)
    store = S3Destination(location)
    for name in ("model/model.safetensors", "model/model.safetensors", "model/of-another.bin"):
        store.begin_upload(name)
    push(artifact, location)
    assert list(store.list_uploads()) == ["model/of-another.bin"]


MEASURE = """
import sys
from pathlib import Path
from hone_trainer.push.main import main
assert main(sys.argv[1:]) == 0
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024)
"""


def test_memory_does_not_depend_on_the_size(gateway: Gateway, tmp_path: Path) -> None:
    environment = {**os.environ, **SECRET, "AWS_ENDPOINT_URL_S3": gateway.url}
    peaks = {}
    for size in (128 * MEBIBYTE, 512 * MEBIBYTE):
        root = write_artifact(tmp_path / str(size), "model", sparse_bytes=size)
        command = [sys.executable, "-c", MEASURE, str(root), f"s3://data/sizes/{size}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks[size] = int(done.stdout)
        assert (gateway.objects / f"data/sizes/{size}/model/model.safetensors").stat().st_size == size
        shutil.rmtree(gateway.objects / "data/sizes")
        shutil.rmtree(root)
    small, large = peaks.values()
    assert large - small < 64 * MEBIBYTE, peaks
