"""Answers to the writes of a push, generated over statuses and operations: the same rule for all destinations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hone_api.reasons import (
    DESTINATION_MISSING,
    DESTINATION_OCCUPIED,
    DESTINATION_REFUSED,
    HUB_UNAUTHORIZED,
    HUB_UNREACHABLE,
    INVALID_SPEC,
    STORE_UNAUTHORIZED,
    STORE_UNREACHABLE,
    HoneError,
    Reason,
)
from hone_trainer.push import hub as hub_pushes
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.hub import HubPush
from hone_trainer.push.oci import push_to_registry
from hone_trainer.push.s3 import S3Push
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote import transfers
from hone_trainer.remote.connections import LONGEST_WAIT_SECONDS
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import TransientError
from hone_trainer.remote.oci_registry import Registry
from hub_writes import TOKEN, Repository, WritableHub
from push_servers import BucketStandIn, RegistryStandIn
from pushed_artifacts import MEBIBYTE, write_artifact
from s3server.gateway import SECRET

PART = 5 * MEBIBYTE
FIELD = "spec.output.push[0]"
HIDDEN = "hunter2hunter2"
LOGIN = {"username": "writer", "password": HIDDEN}
ECHO = f"refused by a rule of https://u:{HIDDEN}@host/x?sig={HIDDEN} for {HIDDEN}"
HARBOR = "adding 1 GiB of storage resource, which will exceed the configured upper limit of 9 GiB"


class Case(NamedTuple):
    """An answer, and what it means: "unauthorized", "passing", or a part of the remedy of DestinationRefused."""

    status: int
    sentence: str
    meaning: str


CASES = [
    Case(400, "unsupported type", "Change what the message names"),
    Case(400, "the object is immutable", "have the rule lifted"),
    Case(402, "payment required", "quota"),
    Case(403, "you may not write", "unauthorized"),
    Case(403, ECHO, "unauthorized"),
    Case(403, HARBOR, "quota"),
    Case(403, "Private repository storage limit reached, please upgrade your plan", "quota"),
    Case(403, "the system is in read only mode", "read-only"),
    Case(403, "object protected by a retention policy", "have the rule lifted"),
    Case(405, "method not allowed", "read-only"),
    Case(413, "too large", "client_max_body_size"),
    Case(422, ECHO, "Change what the message names"),
    Case(429, "rate limit exceeded for your plan", "passing"),
    Case(500, "internal error", "passing"),
    Case(500, "write: no space left on device", "quota"),
    Case(501, "a header implies something", "Change what the message names"),
    Case(502, "bad gateway", "passing"),
    Case(503, "busy", "passing"),
    Case(507, "insufficient", "quota"),
]
OF_REGISTRY = [("POST", "uploads"), ("PUT", "uploads"), ("PUT", "manifests")]
OF_BUCKET = [("PUT", "object"), ("PUT", "part"), ("POST", "upload"), ("DELETE", "object")]
OF_HUB = ["/api/repos/create", "/preupload/", "/info/lfs/objects/batch", "/commit/"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "LONGEST_WAIT_SECONDS", 0.001)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    """Return a model with a file that is uploaded in parts."""
    root = tmp_path_factory.mktemp("large") / "artifact"
    return load_artifact(write_artifact(root, "model", shards=(PART + 1, 1000)))


def fail(push: Callable[[], object]) -> HoneError:
    with pytest.raises(HoneError) as caught:
        push()
    assert HIDDEN not in caught.value.format_message()
    return caught.value


def check(case: Case, failure: HoneError, tries: int, unauthorized: Reason, unreachable: Reason) -> None:
    """Check the failure that a case means, after so many tries of one request."""
    expected = {"unauthorized": unauthorized, "passing": unreachable}.get(case.meaning, DESTINATION_REFUSED)
    assert failure.reason is expected, failure.format_message()
    assert (case.sentence if case.sentence is not ECHO else "refused by a rule of") in failure.message
    assert f"status {case.status}" in failure.message or case.meaning == "unauthorized"
    assert tries >= 6 if case.meaning == "passing" else tries <= 2
    if expected is DESTINATION_REFUSED:
        assert case.meaning in failure.remedy
    assert "claim" not in failure.remedy, "a remedy of downloads"
    assert "spec.model" not in failure.remedy


def at_registry(server: RegistryStandIn, **more: Any) -> Location:
    fields: dict[str, Any] = {"endpoint": server.url, "secret": LOGIN, "spec_field": FIELD} | more
    return Location("push", f"oci://{server.host}/team/faq:v1", **fields)


def at_bucket(server: BucketStandIn) -> Location:
    secret = SECRET | {"AWS_SECRET_ACCESS_KEY": HIDDEN}
    return Location("push", "s3://data/faq/", endpoint=server.url, secret=secret, spec_field=FIELD)


def push_to_bucket(artifact: LocalArtifact, server: BucketStandIn) -> None:
    location = at_bucket(server)
    S3Push(location, S3Destination(location), lambda note: None, part_bytes=PART, first_wait_seconds=0.001).push(
        artifact
    )


def push_to_hub(artifact: LocalArtifact, note: Callable[[str], None] = lambda note: None, token: str = TOKEN) -> str:
    where, field = f"{FIELD}.hub.repo is me/faq", f"{FIELD}.hub.tokenSecret"
    return HubPush("me/faq", True, token, where, field, note, first_wait_seconds=0.001).push(artifact)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operation", OF_REGISTRY, ids=" ".join)
def test_an_answer_of_a_registry_has_its_meaning(
    artifact: LocalArtifact, operation: tuple[str, str], case: Case
) -> None:
    server, asked = RegistryStandIn(), []

    def intercept(request: Any) -> bool | None:
        if request.operation != operation:
            return None
        asked.append(request)
        return request.refuse(case.status, "DENIED", case.sentence)

    server.intercept = intercept
    failure = fail(lambda: push_to_registry(at_registry(server), artifact, lambda note: None))
    # Files are sent at the same time: their number is that of the first tries.
    tries = len(asked) if operation[1] == "manifests" or case.meaning == "passing" else 1
    check(case, failure, tries, STORE_UNAUTHORIZED, STORE_UNREACHABLE)
    assert len(asked) <= len(artifact.files) + 1 or case.meaning == "passing"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operation", OF_BUCKET, ids=" ".join)
def test_an_answer_of_a_bucket_has_its_meaning(
    large: LocalArtifact, tmp_path: Path, operation: tuple[str, str], case: Case
) -> None:
    server, asked = BucketStandIn(), []

    def intercept(request: Any) -> bool | None:
        if request.operation != operation:
            return None
        asked.append(request)
        return request.refuse(case.status, "TheCode", case.sentence)

    artifact = large
    if operation[0] == "DELETE":
        push_to_bucket(large, server)
        artifact = load_artifact(write_artifact(tmp_path / "second", "model", seed=1))
    server.intercept = intercept
    failure = fail(lambda: push_to_bucket(artifact, server))
    check(case, failure, len(asked) if case.meaning == "passing" else 1, STORE_UNAUTHORIZED, STORE_UNREACHABLE)
    # A refused condition costs a second request.
    assert len(asked) <= 2 * (len(large.files) + 1) or case.meaning == "passing"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("path", OF_HUB)
def test_an_answer_of_the_hub_has_its_meaning(hub: WritableHub, artifact: LocalArtifact, path: str, case: Case) -> None:
    sentence = case.sentence.replace(f" for {HIDDEN}", "")  # which is no credential of this push
    hub.spoil = lambda method, asked: (case.status, sentence) if path in asked else None
    failure = fail(lambda: push_to_hub(artifact))
    # The library itself tries some requests again.
    tries = hub.count("POST", path) if case.status < 500 or case.meaning == "passing" else 1
    check(case, failure, tries, HUB_UNAUTHORIZED, HUB_UNREACHABLE)


@pytest.mark.parametrize(
    ("operation", "status", "code", "reason", "remedy"),
    [
        (("POST", "uploads"), 404, "NAME_UNKNOWN", DESTINATION_MISSING, "Create the repository team/faq"),
        (("POST", "uploads"), 404, "", DESTINATION_MISSING, "Create the repository team/faq"),
        (("PUT", "manifests"), 404, "NAME_UNKNOWN", DESTINATION_MISSING, "Create the repository team/faq"),
        (("PUT", "manifests"), 404, "MANIFEST_BLOB_UNKNOWN", STORE_UNREACHABLE, ""),
        (("PUT", "manifests"), 400, "MANIFEST_INVALID", DESTINATION_REFUSED, "takes artifacts of other types"),
        (("PUT", "manifests"), 412, "PRECONDITION", DESTINATION_REFUSED, f"a new place in {FIELD}.oci"),
        (("PUT", "manifests"), 409, "CONFLICT", DESTINATION_REFUSED, f"a new place in {FIELD}.oci"),
        (("PUT", "uploads"), 404, "BLOB_UPLOAD_UNKNOWN", STORE_UNREACHABLE, ""),
        (("PUT", "uploads"), 400, "DIGEST_INVALID", STORE_UNREACHABLE, ""),
        (("PUT", "uploads"), 416, "", STORE_UNREACHABLE, ""),
        (("HEAD", "blobs"), 403, "DENIED", STORE_UNAUTHORIZED, "push to team/faq"),
        (("GET", "manifests"), 403, "DENIED", STORE_UNAUTHORIZED, f"{FIELD}.secret"),
        (("GET", "manifests"), 410, "", DESTINATION_MISSING, ""),
    ],
)
def test_codes_of_registries_have_their_own_meaning(
    artifact: LocalArtifact, operation: tuple[str, str], status: int, code: str, reason: Reason, remedy: str
) -> None:
    server = RegistryStandIn()

    def intercept(request: Any) -> bool | None:
        is_look = operation[0] == "HEAD" and request.operation == ("GET", operation[1])
        if request.operation != operation and not is_look:
            return None
        return request.refuse(status, code, "the sentence of the server")

    server.intercept = intercept
    failure = fail(lambda: push_to_registry(at_registry(server), artifact, lambda note: None))
    assert failure.reason is reason
    assert "the sentence of the server" in failure.message
    assert remedy in failure.remedy


@pytest.mark.parametrize("status", [405, 501, 403])
def test_a_registry_without_head_is_pushed_to(artifact: LocalArtifact, status: int) -> None:
    server = RegistryStandIn()
    server.intercept = lambda request: request.send(status) if request.command == "HEAD" else None
    digest = push_to_registry(at_registry(server), artifact, lambda note: None)
    assert push_to_registry(at_registry(server), artifact, lambda note: None) == digest
    assert server.count("PUT", "/manifests/") == 1


def test_a_page_in_place_of_a_registry_is_named(artifact: LocalArtifact) -> None:
    server = RegistryStandIn()
    server.intercept = lambda request: request.send(200, b"<html>Welcome</html>", Content_Type="text/html")
    failure = fail(lambda: push_to_registry(at_registry(server), artifact, lambda note: None))
    assert failure.reason is INVALID_SPEC
    assert f"{server.url} is no registry" in failure.message
    assert f"{FIELD}.oci" in failure.remedy


def test_a_page_in_place_of_the_hub_is_named(hub: WritableHub, artifact: LocalArtifact) -> None:
    hub.repositories["me/faq"] = Repository(is_private=True)
    hub.repositories["me/faq"].commit({})
    hub.spoil = lambda method, path: "page"
    failure = fail(lambda: push_to_hub(artifact))
    assert failure.reason is HUB_UNREACHABLE
    assert f"{hub.url} answers, and not as the hub does" in failure.message
    assert "HF_ENDPOINT" in failure.remedy


def test_a_public_repository_is_noted(hub: WritableHub, artifact: LocalArtifact) -> None:
    hub.repositories["me/faq"] = Repository(is_private=False)
    hub.repositories["me/faq"].commit({})
    notes: list[str] = []
    push_to_hub(artifact, notes.append)
    assert "warning: me/faq exists and is public: everybody can read what is pushed to it" in notes


@pytest.mark.parametrize("token", [f"{HIDDEN}\nmore", f"{HIDDEN}\u200b", f"{HIDDEN} more"])
def test_a_token_that_cant_be_sent_is_not_printed(hub: WritableHub, artifact: LocalArtifact, token: str) -> None:
    failure = fail(lambda: push_to_hub(artifact, token=token))
    assert failure.reason is HUB_UNAUTHORIZED
    assert not hub.asked


@pytest.mark.parametrize(
    ("given", "waited"), [("7", 7.0), ("999999", LONGEST_WAIT_SECONDS), ("-1", 0.0), ("soon", 0.0)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_a_store_asks_for_is_kept_up_to_a_bound(status: int, given: str, waited: float) -> None:
    registry, bucket = RegistryStandIn(), BucketStandIn()
    registry.intercept = lambda request: request.send(status, Retry_After=given)
    body = b"<Error><Code>SlowDown</Code><Message>slowly</Message></Error>"
    bucket.intercept = lambda request: request.send(status, body, Content_Type="application/xml", Retry_After=given)
    for write in (
        lambda: Registry(at_registry(registry), can_push=True).write_blob("sha256:1", 1, lambda: [b"x"]),
        lambda: S3Destination(at_bucket(bucket)).put("a", b"x", None),
    ):
        with pytest.raises(TransientError) as caught:
            write()
        assert caught.value.wait_seconds == waited


@pytest.mark.parametrize(("given", "waited"), [("7", 7.0), ("999999", hub_pushes.LONGEST_LIMIT_SECONDS)])
def test_a_wait_that_the_hub_asks_for_is_kept_up_to_a_bound(
    hub: WritableHub, artifact: LocalArtifact, monkeypatch: pytest.MonkeyPatch, given: str, waited: float
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(hub_pushes.time, "sleep", slept.append)
    hub.retry_after = given
    hub.spoil = lambda method, path: 429 if "/commit/" in path else None
    assert fail(lambda: push_to_hub(artifact)).reason is HUB_UNREACHABLE
    assert set(slept) == {waited}


def test_an_error_in_an_answer_with_status_200_is_none(large: LocalArtifact) -> None:
    """S3 begins its answer to the end of an upload before the object is made."""
    server, failed = BucketStandIn(), []

    def intercept(request: Any) -> bool | None:
        if request.operation == ("POST", "upload") and "uploadId" in request.query and len(failed) < 2:
            failed.append(request)
            return request.refuse(200, "InternalError", "try again")
        return None

    server.intercept = intercept
    push_to_bucket(large, server)
    assert len(failed) == 2
    assert not server.uploads


def test_a_protected_place_is_no_occupied_one(artifact: LocalArtifact) -> None:
    server = BucketStandIn()
    server.intercept = lambda request: (
        request.refuse(400, "ObjectLocked", "under retention") if request.operation == ("PUT", "object") else None
    )
    failure = fail(lambda: push_to_bucket(artifact, server))
    assert failure.reason is DESTINATION_REFUSED
    assert failure.reason is not DESTINATION_OCCUPIED
