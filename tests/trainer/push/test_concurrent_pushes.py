"""Pushes to one place at the same time, at each of their requests: at most one of two is `Pushed`, with all its files.

And writes whose answer was lost, keys that encrypt objects, and addresses that a registry names.
"""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hone_api.reasons import DESTINATION_OCCUPIED, DESTINATION_REFUSED, HoneError
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.oci import push_to_registry
from hone_trainer.push.s3 import S3Push
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote.connections import is_same_origin, resolve_address
from hone_trainer.remote.locations import Location
from push_servers import BucketStandIn, RegistryStandIn, Request
from pushed_artifacts import MEBIBYTE, list_content, write_artifact
from s3server.gateway import SECRET, Authority, Gateway

PART = 5 * MEBIBYTE
FIELD = "spec.output.push[0]"


def push_to_bucket(artifact: LocalArtifact, url: str, folder: str = "faq") -> None:
    location = Location("push", f"s3://data/{folder}", endpoint=url, secret=SECRET, spec_field=FIELD)
    store = S3Destination(location)
    S3Push(location, store, lambda note: None, part_bytes=PART, first_wait_seconds=0.001, connections=1).push(artifact)


def succeeds(push: Callable[[], object]) -> bool:
    """Return whether a push succeeds; else it must report that the place is occupied."""
    try:
        push()
    except HoneError as error:
        if error.reason is not DESTINATION_OCCUPIED:
            raise
        return False
    return True


def at_registry(server: RegistryStandIn, host: str | None = None, **more: Any) -> Location:
    return Location("push", f"oci://{host or server.host}/team/faq:v1", spec_field=FIELD, **more)


def push_to(location: Location, artifact: LocalArtifact) -> str:
    return push_to_registry(location, artifact, lambda note: None)


def call_at(number: int, act: Callable[[], None]) -> Callable[[Request], None]:
    """Return an `intercept` that acts before the request of this number, counted from 0, and before no other."""
    lock, seen = threading.Lock(), [0]

    def intercept(request: Request) -> None:
        with lock:
            is_due = seen[0] == number
            seen[0] += 1
        if is_due:
            act()

    return intercept


@pytest.fixture
def others(tmp_path: Path) -> LocalArtifact:
    """Return the artifact of another job."""
    return load_artifact(write_artifact(tmp_path / "others", job="other", seed=5))


@pytest.mark.parametrize("conditions", ["kept", "ignored", "refused"])
def test_of_two_pushes_to_a_folder_one_at_most_succeeds(
    artifact: LocalArtifact, others: LocalArtifact, conditions: str
) -> None:
    alone = BucketStandIn(conditions=conditions)
    push_to_bucket(artifact, alone.url)
    outcomes = set()
    for number in range(len(alone.requests)):
        server = BucketStandIn(conditions=conditions)
        inner: list[bool] = []

        def push_others(server: BucketStandIn = server, inner: list[bool] = inner) -> None:
            inner.append(succeeds(lambda: push_to_bucket(others, server.url)))

        server.intercept = call_at(number, push_others)
        outer = succeeds(partial(push_to_bucket, artifact, server.url))
        outcomes.add((outer, *inner))
        assert not (outer and inner[0]), f"request {number} of {alone.requests[number]}"
        if conditions == "kept" and (outer or inner[0]):
            winner = artifact if outer else others
            held = {key.removeprefix("faq/"): data for key, (data, _) in server.objects.items()}
            assert held == list_content(winner.root), f"request {number}"
    assert {(True, False), (False, True)} <= outcomes


@pytest.mark.parametrize("is_large", [False, True])
def test_of_two_pushes_to_a_folder_of_a_real_server_one_at_most_succeeds(
    gateway: Gateway, tmp_path: Path, is_large: bool
) -> None:
    """Two threads at once: also their large files, whose uploads are completed under a condition."""
    shards = (PART + 1,) if is_large else (1000,)
    roots = {job: write_artifact(tmp_path / job, job=job, seed=len(job), shards=shards) for job in ("one", "three")}
    for attempt in range(5):
        folder, done = f"raced/{is_large}/{attempt}", dict.fromkeys(roots, False)

        def push(job: str, folder: str = folder, done: dict[str, bool] = done) -> None:
            done[job] = succeeds(lambda: push_to_bucket(load_artifact(roots[job]), gateway.url, folder))

        threads = [threading.Thread(target=push, args=(job,)) for job in roots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(done.values()) <= 1
        for job, is_done in done.items():
            assert not is_done or gateway.files(folder) == list_content(roots[job])


def test_a_tag_that_is_taken_meanwhile_is_left_alone(artifact: LocalArtifact, others: LocalArtifact) -> None:
    """At each request but the write itself: registries know no condition for it."""
    alone = RegistryStandIn()
    push_to(at_registry(alone), artifact)
    outcomes = set()
    for number, (method, path) in enumerate(alone.requests):
        server = RegistryStandIn()
        inner: list[bool] = []

        def take(server: RegistryStandIn = server, inner: list[bool] = inner) -> None:
            inner.append(succeeds(lambda: push_to(at_registry(server), others)))

        server.intercept = call_at(number, take)
        is_pushed = succeeds(partial(push_to, at_registry(server), artifact))
        is_write = method == "PUT" and "/manifests/" in path
        assert (is_pushed and inner[0]) == is_write, f"request {number}: {method} {path}"
        is_theirs = b'"dev.hone.job":"other"' in server.manifests["v1"].replace(b" ", b"")
        assert is_theirs is not is_pushed
        outcomes.add((is_pushed, *inner))
    assert outcomes == {(True, True), (True, False), (False, True)}


def test_a_blob_whose_answer_was_lost_is_not_sent_again(artifact: LocalArtifact) -> None:
    server = RegistryStandIn()

    def lose(request: Request) -> bool | None:
        if request.command != "PUT":
            return None
        server.intercept, kept = lambda request: None, server.intercept
        request.wfile, answer = open("/dev/null", "wb"), request.wfile  # noqa: SIM115
        request.answer()
        request.wfile = answer
        server.intercept = kept
        return request.hang_up()

    server.intercept = lose
    location = at_registry(server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hone_trainer.remote.transfers.LONGEST_WAIT_SECONDS", 0.001)
        push_to(location, artifact)
    assert server.count("PUT", "/uploads/") == len(server.blobs)
    assert server.count("PUT", "/manifests/") == 1


@pytest.mark.parametrize("has_key", [False, True])
def test_a_key_that_encrypts_objects_changes_nothing(tmp_path: Path, has_key: bool) -> None:
    """The ETags of parts are no MD5 then, and an upload is only completed with those that the server gave."""
    artifact = load_artifact(write_artifact(tmp_path / "large", "model", shards=(2 * PART + 1, 1000)))
    server = BucketStandIn(has_key=has_key)
    push_to_bucket(artifact, server.url)
    assert {key.removeprefix("faq/"): data for key, (data, _) in server.objects.items()} == list_content(artifact.root)
    assert not server.uploads
    assert server.count("PUT", "partNumber") == 3
    assert server.count("GET", "model-00001") == 0, "what this push has sent is not read back"
    before = server.count("PUT", "")
    push_to_bucket(artifact, server.url)
    assert server.count("PUT", "") == before


def test_an_upload_at_an_address_without_tls_is_refused(authority: Authority, artifact: LocalArtifact) -> None:
    server = RegistryStandIn((authority.server_certificate, authority.server_key))
    plain = RegistryStandIn()
    server.locate = lambda request: f"{plain.url}{request.name}1?sig=secret"
    location = at_registry(server, ca_file=authority.certificates, endpoint=server.url)
    with pytest.raises(HoneError) as caught:
        push_to(location, artifact)
    assert caught.value.reason is DESTINATION_REFUSED
    assert "X-Forwarded-Proto" in caught.value.remedy
    assert "secret" not in caught.value.format_message()
    assert not plain.requests


def test_an_upload_on_the_same_host_in_another_spelling_has_the_login(artifact: LocalArtifact) -> None:
    server = RegistryStandIn()
    port = server.server_address[1]
    server.locate = lambda request: f"HTTP://LocalHost:{port}{request.name}1"
    server.intercept = lambda request: (
        None if "Authorization" in request.headers else request.send(401, WWW_Authenticate='Basic realm="x"')
    )
    push_to(at_registry(server, f"localhost:{port}", secret={"username": "u", "password": "pass"}), artifact)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("https://host/a", "https://host/b", True),
        ("https://host/a", "https://host:443/b", True),
        ("HTTPS://HOST/a", "https://host/b", True),
        ("http://host/a", "http://host.:80/b", True),
        ("https://host/a", "http://host/b", False),
        ("https://host/a", "https://host:444/b", False),
        ("https://host/a", "https://host.other/b", False),
        ("https://host/a", "https://user@host/b", True),
        ("https://host/a", "https://host@other/b", False),
        ("https://host/a", "https://host:99999/b", False),
        ("https://host/a", "https://[host/b", False),
    ],
)
def test_origins_are_compared_in_all_spellings(one: str, other: str, is_same: bool) -> None:
    assert is_same_origin(one, other) is is_same


@pytest.mark.parametrize(
    ("url", "address", "target"),
    [
        ("https://host/a/", "b", "https://host/a/b"),
        ("https://host/a/", "/b?c=d", "https://host/b?c=d"),
        ("https://host/a/", "//other/b", "https://other/b"),
        ("https://host/a/", "https://other/b", "https://other/b"),
        ("http://host/a/", "http://other/b", "http://other/b"),
        ("http://host/a/", "https://other/b", "https://other/b"),
        ("https://host/a/", "http://host/b", None),
        ("https://host/a/", "HTTP://host/b", None),
        ("https://host/a/", "ftp://host/b", None),
        ("http://host/a/", "file:///etc/passwd", None),
        ("https://host/a/", "https://[host/b", None),
        ("https://host/a/", "https://host:99999/b", None),
    ],
)
def test_an_address_that_a_server_names_never_leaves_tls(url: str, address: str, target: str | None) -> None:
    assert resolve_address(url, address) == target
