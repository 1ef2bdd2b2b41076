"""Parts get a checksum where the server knows them, and a server that does not is pushed to without."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hone_trainer.push import s3_store
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.s3 import S3Push
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote.locations import Location
from push_servers import BucketRequest, BucketStandIn
from pushed_artifacts import MEBIBYTE, list_content, write_artifact
from s3server.gateway import SECRET, Gateway

PART = 5 * MEBIBYTE
NAME = "model/model.safetensors"
HEADER = "x-amz-checksum-algorithm"


@pytest.fixture
def artifact(tmp_path: Path) -> LocalArtifact:
    """Return an artifact with one file of three parts."""
    return load_artifact(write_artifact(tmp_path / "model", "model", shards=(12 * MEBIBYTE,)))


def push(artifact: LocalArtifact, url: str, folder: str) -> None:
    location = Location("push", f"s3://data/{folder}", endpoint=url, secret=SECRET)
    pushing = S3Push(location, S3Destination(location), print, part_bytes=PART, first_wait_seconds=0.01)
    pushing.push(artifact)


def find_checksum(gateway: Gateway, key: str) -> str:
    """Return the checksum that the server holds of an object."""
    found = gateway.client.stat_object("data", key, extra_headers={"x-amz-checksum-mode": "ENABLED"})
    return str((found.metadata or {}).get("x-amz-checksum-crc32", ""))


def test_a_pushed_object_has_the_checksum_of_its_parts(gateway: Gateway, artifact: LocalArtifact) -> None:
    push(artifact, gateway.url, "checksums/all")
    assert gateway.files("checksums/all") == list_content(artifact.root)
    assert find_checksum(gateway, f"checksums/all/{NAME}").endswith("-3")


@pytest.mark.parametrize("has_checksums", [True, False])
def test_an_interrupted_upload_is_continued_as_it_was_begun(
    gateway: Gateway, artifact: LocalArtifact, monkeypatch: pytest.MonkeyPatch, has_checksums: bool
) -> None:
    folder = f"checksums/continued-{has_checksums}"
    store = S3Destination(Location("push", f"s3://data/{folder}", endpoint=gateway.url, secret=SECRET))
    monkeypatch.setattr(store, "_has_checksums", has_checksums)
    upload = store.begin_upload(NAME)
    assert upload.has_checksums == has_checksums
    store.put_part(NAME, upload, 2, (artifact.root / NAME).read_bytes()[PART : 2 * PART])
    push(artifact, gateway.url, folder)
    assert gateway.files(folder) == list_content(artifact.root)
    assert gateway.count_requests(f"{folder}/{NAME}", "UploadPart") == 3
    assert bool(find_checksum(gateway, f"{folder}/{NAME}")) == has_checksums


def test_a_part_whose_checksum_differs_is_sent_again(
    gateway: Gateway, artifact: LocalArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage: Iterator[int] = iter([1])
    monkeypatch.setattr(s3_store, "zlib", SimpleNamespace(crc32=lambda data: zlib.crc32(data) ^ next(damage, 0)))
    push(artifact, gateway.url, "checksums/damaged")
    assert gateway.files("checksums/damaged") == list_content(artifact.root)
    assert gateway.count_requests(f"checksums/damaged/{NAME}", "UploadPart") == 4


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidRequest"), (None, "")])
def test_a_server_that_knows_no_checksums_gets_none(artifact: LocalArtifact, status: int | None, code: str) -> None:
    sent: list[str | None] = []

    def intercept(request: BucketRequest) -> bool | None:
        if request.operation == ("PUT", "part"):
            sent.append(request.headers.get("x-amz-checksum-crc32"))
        return request.refuse(status, code, "An unsupported header.") if status and HEADER in request.headers else None

    server = BucketStandIn()
    server.intercept = intercept
    push(artifact, server.url, "none")
    assert {name: data for name, (data, _) in server.objects.items()} == {
        f"none/{name}": data for name, data in list_content(artifact.root).items()
    }
    assert sent == [None] * 3
