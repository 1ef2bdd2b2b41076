"""Pushes to a real S3 server: complete, repeated without a byte, replaced, refused, and verified."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from hone_api.layout import MANIFEST
from hone_api.reasons import (
    ARTIFACT_CORRUPT,
    DESTINATION_MISSING,
    DESTINATION_OCCUPIED,
    INVALID_SPEC,
    STORE_UNAUTHORIZED,
    HoneError,
    Reason,
)
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.plan import HeldFile
from hone_trainer.push.s3 import S3Push
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote.fetch import open_store
from hone_trainer.remote.locations import Location
from pushed_artifacts import MEBIBYTE, list_content, write_artifact
from s3server.gateway import SECRET, Authority, Gateway

PART = 5 * MEBIBYTE
SHARDS = (12 * MEBIBYTE + 1, 3 * MEBIBYTE, PART)
_numbers = itertools.count()


@pytest.fixture
def folder() -> str:
    """Return the name of a folder of the bucket that no other test uses."""
    return f"pushes/{next(_numbers)}"


def at(gateway: Gateway, folder: str, **changed: Any) -> Location:
    fields = {"endpoint": gateway.url, "secret": SECRET, "spec_field": "spec.output.push[0]"} | changed
    return Location("push", f"s3://data/{folder}", **fields)


def push(artifact: LocalArtifact, location: Location) -> list[str]:
    notes: list[str] = []
    pushing = S3Push(location, S3Destination(location), notes.append, part_bytes=PART, first_wait_seconds=0.01)
    pushing.push(artifact)
    return notes


def refused(artifact: LocalArtifact, location: Location) -> tuple[Reason, str]:
    with pytest.raises(HoneError) as caught:
        push(artifact, location)
    assert SECRET["AWS_SECRET_ACCESS_KEY"] not in caught.value.format_message()
    return caught.value.reason, caught.value.format_message()


def count_writes(gateway: Gateway) -> int:
    operations = ("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "DeleteObject")
    lines = (gateway.objects.parent / "requests").read_text().splitlines()
    return sum(any(f" s3_{operation} " in line for operation in operations) for line in lines)


def test_a_pushed_artifact_has_all_files_and_its_manifest(gateway: Gateway, folder: str, tmp_path: Path) -> None:
    root = write_artifact(tmp_path / "model", "model", shards=SHARDS)
    push(load_artifact(root), at(gateway, folder))
    assert gateway.files(folder) == list_content(root)


def test_a_second_push_writes_nothing(gateway: Gateway, folder: str, tmp_path: Path) -> None:
    found = load_artifact(write_artifact(tmp_path / "model", "model", shards=SHARDS))
    push(found, at(gateway, f"{folder}/"))
    before = count_writes(gateway)
    assert before
    assert push(found, at(gateway, folder)) == [f"s3://data/{folder} is complete"]
    assert count_writes(gateway) == before


def test_only_what_is_missing_or_differs_is_sent(gateway: Gateway, folder: str, tmp_path: Path) -> None:
    root = write_artifact(tmp_path / "model", "model", shards=SHARDS)
    found = load_artifact(root)
    push(found, at(gateway, folder))
    gateway.client.remove_object("data", f"{folder}/model/config.json")
    gateway.put(f"{folder}/model/README.md", b"x" * len((root / "model/README.md").read_bytes()))
    before = count_writes(gateway)
    push(found, at(gateway, folder))
    assert gateway.files(folder) == list_content(root)
    assert count_writes(gateway) == before + 2


def test_an_object_that_another_program_uploaded_in_other_parts_is_compared_by_its_content(
    gateway: Gateway, folder: str, tmp_path: Path
) -> None:
    root = write_artifact(tmp_path / "model", "model", shards=SHARDS)
    name = "model/model-00001-of-00003.safetensors"
    gateway.client.fput_object("data", f"{folder}/{name}", str(root / name), part_size=6 * MEBIBYTE)
    push(load_artifact(root), at(gateway, folder))
    assert gateway.files(folder) == list_content(root)
    assert gateway.count_requests(f"{folder}/{name}", "CreateMultipartUpload") == 1


def test_another_artifact_of_the_job_replaces_the_first_with_all_its_files(
    gateway: Gateway, folder: str, tmp_path: Path
) -> None:
    push(load_artifact(write_artifact(tmp_path / "first", "both", shards=SHARDS)), at(gateway, folder))
    gateway.put(f"{folder}/notes.txt", b"of the user")
    second = write_artifact(tmp_path / "second", "merged", seed=1, shards=(1000,))
    push(load_artifact(second), at(gateway, folder))
    assert gateway.files(folder) == list_content(second) | {"notes.txt": b"of the user"}


def test_the_artifact_of_another_job_is_not_replaced(gateway: Gateway, folder: str, tmp_path: Path) -> None:
    first = write_artifact(tmp_path / "first", job="other")
    push(load_artifact(first), at(gateway, folder))
    reason, sentence = refused(load_artifact(write_artifact(tmp_path / "second", seed=1)), at(gateway, folder))
    assert reason is DESTINATION_OCCUPIED
    assert "of job other, and this one is of job faq" in sentence
    assert "spec.output.push[0].uri" in sentence
    assert gateway.files(folder) == list_content(first)


@pytest.mark.parametrize("name", [MANIFEST, "adapter/adapter_model.bin", "adapter/adapter_config.json"])
def test_files_that_are_not_of_an_artifact_are_not_replaced(
    gateway: Gateway, artifact: LocalArtifact, folder: str, name: str
) -> None:
    gateway.put(f"{folder}/{name}", b"{}")
    reason, sentence = refused(artifact, at(gateway, folder))
    assert reason is DESTINATION_OCCUPIED
    assert name in sentence
    assert gateway.files(folder) == {name: b"{}"}


def test_what_is_not_the_manifests_is_not_pushed(artifact: LocalArtifact) -> None:
    (artifact.root / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(HoneError) as caught:
        load_artifact(artifact.root)
    assert caught.value.reason is ARTIFACT_CORRUPT
    with pytest.raises(HoneError, match="should hold the artifact sha256:1"):
        load_artifact(artifact.root, "sha256:1")


@pytest.mark.parametrize(
    "secret",
    [{**SECRET, "AWS_SECRET_ACCESS_KEY": "opensesam"}, {**SECRET, "AWS_ACCESS_KEY_ID": "nobody"}],
    ids=["wrong secret key", "unknown access key"],
)
def test_wrong_credentials_are_unauthorized(
    gateway: Gateway, artifact: LocalArtifact, folder: str, secret: dict[str, str]
) -> None:
    assert refused(artifact, at(gateway, folder, secret=secret))[0] is STORE_UNAUTHORIZED


def test_credentials_that_may_only_read_are_unauthorized(
    gateway: Gateway, artifact: LocalArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    gateway.client.make_bucket("readable")
    gateway.client.set_bucket_policy(
        "readable",
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", '
        '"s3:ListBucket"], "Resource": ["arn:aws:s3:::readable", "arn:aws:s3:::readable/*"]}]}',
    )
    location = Location("push", "s3://readable/faq", endpoint=gateway.url)
    reason, sentence = refused(artifact, location)
    assert reason is STORE_UNAUTHORIZED
    assert sentence.startswith("The destination is s3://readable/faq, and the server refused access without")


def test_a_bucket_that_does_not_exist_is_missing(gateway: Gateway, artifact: LocalArtifact) -> None:
    location = Location("push", "s3://nowhere/faq", endpoint=gateway.url, secret=SECRET)
    assert refused(artifact, location)[0] is DESTINATION_MISSING


def test_a_secret_without_keys_names_the_destination(gateway: Gateway, artifact: LocalArtifact) -> None:
    with pytest.raises(HoneError) as caught:
        S3Destination(at(gateway, "faq", secret={}))
    assert caught.value.reason is INVALID_SPEC
    assert caught.value.message.startswith("spec.output.push[0].uri is s3://data/faq, and its Secret has no")


def test_a_push_over_https_verifies_the_server(
    secure_gateway: Gateway, authority: Authority, artifact: LocalArtifact, folder: str
) -> None:
    push(artifact, at(secure_gateway, folder, ca_file=authority.certificates))
    assert secure_gateway.files(folder) == list_content(artifact.root)
    _, sentence = refused(artifact, at(secure_gateway, folder))
    assert "spec.output.push[0].caBundle" in sentence


def test_a_pushed_model_is_read_by_its_uri(gateway: Gateway, folder: str, tmp_path: Path) -> None:
    root = write_artifact(tmp_path / "model", "model", shards=SHARDS)
    push(load_artifact(root), at(gateway, folder))
    listed = open_store(Location("model", f"s3://data/{folder}/model", endpoint=gateway.url, secret=SECRET))
    assert {found.name for found in listed.list_objects()} == {path.name for path in (root / "model").iterdir()}


def test_content_that_arrived_damaged_is_sent_again(
    gateway: Gateway, artifact: LocalArtifact, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, spoiled = S3Destination.put, []

    def put(self: S3Destination, name: str, content: bytes, held: HeldFile | None) -> str:
        if not spoiled and content:
            spoiled.append(name)
            content = bytes(len(content))
        return write(self, name, content, held)

    monkeypatch.setattr(S3Destination, "put", put)
    push(artifact, at(gateway, folder))
    assert spoiled
    assert gateway.files(folder) == list_content(artifact.root)


def test_an_artifact_that_is_trained_again_meanwhile_gets_no_manifest(
    gateway: Gateway, artifact: LocalArtifact, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = S3Destination.put

    def put(self: S3Destination, name: str, content: bytes, held: HeldFile | None) -> str:
        (artifact.root / MANIFEST).unlink(missing_ok=True)
        return write(self, name, content, held)

    monkeypatch.setattr(S3Destination, "put", put)
    reason, _ = refused(artifact, at(gateway, folder))
    assert reason is ARTIFACT_CORRUPT
    assert MANIFEST not in gateway.files(folder)


def test_a_folder_at_the_root_of_a_bucket_is_possible(gateway: Gateway, artifact: LocalArtifact) -> None:
    gateway.client.make_bucket("whole")
    push(artifact, Location("push", "s3://whole", endpoint=gateway.url, secret=SECRET))
    assert list_content(gateway.objects / "whole") == list_content(artifact.root)
    shutil.rmtree(gateway.objects / "whole")
