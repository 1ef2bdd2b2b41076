"""Downloads of models and datasets from a real S3 server: what the stand-in of the other tests can't prove."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone_api.reasons import (
    DATASET_INVALID,
    DATASET_NOT_FOUND,
    MODEL_NOT_FOUND,
    SOURCE_CHANGED,
    STORE_UNAUTHORIZED,
    STORE_UNREACHABLE,
    HoneError,
    Reason,
)
from hone_trainer.remote import download as downloads
from hone_trainer.remote import fetch as fetching
from hone_trainer.remote.fetch import Snapshot, fetch
from hone_trainer.remote.locations import Kind, Location
from hone_trainer.remote.objects import RemoteObject
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long_matrix import is_long
from s3server.gateway import SECRET, Authority, Gateway

pytestmark = pytest.mark.usefixtures("cache")

# S3 lists at most 1,000 keys in an answer.
MORE_THAN_A_PAGE = 1_100
ODD_NAMES = [
    "two words",
    " space",
    "space ",
    "a+b",
    "100%",
    "%20",
    "%zz",
    "a#b",
    "what?x=1&y",
    "a=b",
    "a;b:c,d",
    "q'\"<>|`{}[]^~",
    "!$&()*@",
    ".hidden",
    "...",
    "Grüße",
    "日本語",
    "😀",
    "x" * 200,
]
EXAMPLES = {False: 30, True: 500}
_numbers = itertools.count()


def files_of(snapshot: Snapshot) -> dict[str, bytes]:
    paths = [path for path in snapshot.folder.rglob("*") if path.is_file()]
    return {path.relative_to(snapshot.folder).as_posix(): path.read_bytes() for path in paths}


def at(gateway: Gateway, uri: str, kind: Kind = "dataset", **changed: Any) -> Location:
    return Location(kind, uri, endpoint=gateway.url, secret=SECRET, **changed)


def reason_of(location: Location) -> tuple[Reason, str]:
    with pytest.raises(HoneError) as caught:
        fetch(location, None)
    assert SECRET["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    return caught.value.reason, caught.value.message


def test_a_key_is_a_file_and_a_prefix_is_a_folder(gateway: Gateway) -> None:
    written = {"a.jsonl": b"one", "deep/er/b.jsonl": b"two", "empty.jsonl": b"", "deep/empty": b""}
    for name, data in written.items():
        gateway.put(f"faq/{name}", data)
    gateway.put("faq-2/a.jsonl", b"of another folder")
    assert files_of(fetch(at(gateway, "s3://data/faq/"), None)) == written == gateway.files("faq")
    assert files_of(fetch(at(gateway, "s3://data/faq"), None)) == written
    assert files_of(fetch(at(gateway, "s3://data/faq/a.jsonl"), None)) == {"a.jsonl": b"one"}
    assert files_of(fetch(at(gateway, "s3://data/faq/empty.jsonl"), None)) == {"empty.jsonl": b""}


def test_folders_as_consoles_make_them_are_no_files(gateway: Gateway) -> None:
    for key in ("folders/", "folders/inner/"):
        gateway.put(key, b"")
    gateway.put("folders/inner/a.jsonl", b"one")
    assert files_of(fetch(at(gateway, "s3://data/folders/"), None)) == {"inner/a.jsonl": b"one"}


def test_odd_names_arrive_as_they_are(gateway: Gateway) -> None:
    for name in ODD_NAMES:
        gateway.put(f"odd/{name}/{name}", name.encode())
    found = files_of(fetch(at(gateway, "s3://data/odd/"), None))
    assert found == {f"{name}/{name}": name.encode() for name in ODD_NAMES} == gateway.files("odd")


@pytest.mark.parametrize("name", ["a+b", "100%", "%20", "Grüße", "a;b:c,d"])
def test_an_odd_key_in_a_uri_is_taken_literally(gateway: Gateway, name: str) -> None:
    gateway.put(f"odd-uris/{name}/file", name.encode())
    assert files_of(fetch(at(gateway, f"s3://data/odd-uris/{name}/file"), None)) == {"file": name.encode()}
    assert files_of(fetch(at(gateway, f"s3://data/odd-uris/{name}"), None)) == {"file": name.encode()}


def test_listings_of_several_pages_are_read_to_the_end(gateway: Gateway) -> None:
    written = {f"{number:04}": str(number).encode() for number in range(MORE_THAN_A_PAGE)}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: gateway.put(f"pages/{name}", written[name]), written))
    assert files_of(fetch(at(gateway, "s3://data/pages/"), None)) == written


def test_a_small_object_and_its_digest_need_one_request(gateway: Gateway) -> None:
    gateway.put("one/a.jsonl", b"one")
    fetch(at(gateway, "s3://data/one/"), None)
    assert gateway.count_requests("one/a.jsonl") == 1
    assert gateway.count_requests("one/a.jsonl", "HeadObject") == 0


def is_distinct(names: list[tuple[str, ...]]) -> bool:
    """Return whether keys are distinct files, also where case is ignored, and none is the folder of another."""
    folded = [tuple(part.casefold() for part in name) for name in names]
    parents = {name[:depth] for name in folded for depth in range(1, len(name))}
    return len(set(folded)) == len(folded) and parents.isdisjoint(folded)


characters = st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\") | st.sampled_from(" +%?#&=~'\"<>")
parts = st.text(characters, min_size=1, max_size=12).filter(lambda part: part not in (".", "..") and part.isprintable())
trees = st.dictionaries(
    st.lists(parts, min_size=1, max_size=3).map(tuple), st.binary(max_size=40), min_size=1, max_size=5
).filter(lambda tree: is_distinct(list(tree)))


@given(tree=trees)
@settings(max_examples=EXAMPLES[is_long()], deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tree_of_keys_becomes_the_same_tree_of_files(gateway: Gateway, tree: dict[tuple[str, ...], bytes]) -> None:
    prefix = f"tree-{next(_numbers)}"
    for key, data in tree.items():
        gateway.put(f"{prefix}/{'/'.join(key)}", data)
    found = files_of(fetch(at(gateway, f"s3://data/{prefix}/"), None))
    assert found == {"/".join(key): data for key, data in tree.items()} == gateway.files(prefix)


@pytest.mark.parametrize("names", [["line\nbreak"], ["back\\slash"], ["A", "a"], ["İ", "i̇"]])
def test_keys_that_can_not_be_files_are_refused(gateway: Gateway, names: list[str]) -> None:
    prefix = f"refused-{next(_numbers)}"
    for name in names:
        gateway.put(f"{prefix}/{name}", b"x")
    reason, message = reason_of(at(gateway, f"s3://data/{prefix}/"))
    assert reason is DATASET_INVALID
    assert repr(names[0]) in message


def test_what_is_not_there_is_not_found(gateway: Gateway) -> None:
    for uri in ("s3://data/none/", "s3://data/none", "s3://no-such-bucket/faq/", "s3://no-such-bucket/a.jsonl"):
        assert reason_of(at(gateway, uri))[0] is DATASET_NOT_FOUND
        assert reason_of(at(gateway, uri, "model"))[0] is MODEL_NOT_FOUND


@pytest.mark.parametrize(
    "secret",
    [{**SECRET, "AWS_SECRET_ACCESS_KEY": "opensesam"}, {**SECRET, "AWS_ACCESS_KEY_ID": "nobody"}, None],
    ids=["wrong secret key", "unknown access key", "no credentials"],
)
def test_wrong_credentials_are_unauthorized(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: dict[str, str] | None
) -> None:
    gateway.put("private/a.jsonl", b"one")
    monkeypatch.setenv("HOME", str(tmp_path))
    location = Location("dataset", "s3://data/private/", endpoint=gateway.url, secret=secret)
    assert reason_of(location)[0] is STORE_UNAUTHORIZED


def test_a_public_bucket_is_read_without_credentials(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway.client.make_bucket("public")
    gateway.client.set_bucket_policy(
        "public",
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*",'
        ' "Resource": ["arn:aws:s3:::public", "arn:aws:s3:::public/*"]}]}',
    )
    gateway.put("a.jsonl", b"one", bucket="public")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files_of(fetch(Location("dataset", "s3://public/", endpoint=gateway.url), None)) == {"a.jsonl": b"one"}


def test_a_server_is_verified_with_the_bundle(
    secure_gateway: Gateway, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure_gateway.put("faq/a.jsonl", b"one")
    uri = "s3://data/faq/"
    trusted = at(secure_gateway, uri, ca_file=authority.certificates)
    assert files_of(fetch(trusted, None)) == {"a.jsonl": b"one"}
    for bundle in (None, Authority(tmp_path / "other").certificates):
        reason, message = reason_of(at(secure_gateway, uri, ca_file=bundle))
        assert reason is STORE_UNREACHABLE
        assert "CERTIFICATE_VERIFY_FAILED" in message


def test_a_changed_object_gives_another_revision(gateway: Gateway) -> None:
    gateway.put("changing/a.jsonl", b"one")
    gateway.put("changing/b.jsonl", b"two")
    first = fetch(at(gateway, "s3://data/changing/"), None)
    assert fetch(at(gateway, "s3://data/changing/"), first.revision) == first
    gateway.put("changing/a.jsonl", b"ONE")
    second = fetch(at(gateway, "s3://data/changing/"), first.revision)
    assert second.revision != first.revision
    assert files_of(second) == {"a.jsonl": b"ONE", "b.jsonl": b"two"}
    gateway.client.remove_object("data", "changing/b.jsonl")
    assert files_of(fetch(at(gateway, "s3://data/changing/"), second.revision)) == {"a.jsonl": b"ONE"}


def test_an_object_that_changes_during_the_download_is_downloaded_again(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bytes(10 * 2**20), b"\1" * 10 * 2**20
    gateway.put("moving/a.bin", old)
    write, once, changed = downloads._write, threading.Lock(), threading.Event()

    def change_and_write(descriptor: int, block: bytes, at: int) -> None:
        if once.acquire(blocking=False):
            gateway.put("moving/a.bin", new)
            changed.set()
        assert changed.wait(60), "the other threads could end before the object changes"
        write(descriptor, block, at)

    monkeypatch.setattr(downloads, "_write", change_and_write)
    monkeypatch.setattr(fetching, "Downloader", partial(downloads.Downloader, piece_bytes=2**18))
    found = files_of(fetch(at(gateway, "s3://data/moving/"), None))
    assert list(found) == ["a.bin"]
    assert found["a.bin"] == new, "bytes of the old content"


def test_an_object_that_always_changes_or_goes_is_an_error(gateway: Gateway) -> None:
    def change(objects: list[RemoteObject]) -> list[RemoteObject]:
        gateway.put("restless/a.jsonl", str(next(_numbers)).encode())
        return objects

    def remove(objects: list[RemoteObject]) -> list[RemoteObject]:
        gateway.client.remove_object("data", "restless/b.jsonl")
        return objects

    gateway.put("restless/a.jsonl", b"x")
    with pytest.raises(HoneError) as caught:
        fetch(at(gateway, "s3://data/restless/"), None, change)
    assert caught.value.reason is SOURCE_CHANGED
    gateway.put("restless/b.jsonl", b"y")
    assert set(files_of(fetch(at(gateway, "s3://data/restless/"), None, remove))) == {"a.jsonl"}


def test_a_model_and_a_dataset_are_trained_over_https(
    secure_gateway: Gateway,
    authority: Authority,
    claim: Path,
    train: Callable[..., Any],
    job: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    for path in (claim / "tiny").iterdir():
        secure_gateway.put(f"models/tiny/{path.name}", path.read_bytes())
    secure_gateway.put("datasets/text.jsonl", (claim / "text.jsonl").read_bytes())
    source = {"endpoint": secure_gateway.url, "secret": {"name": "reader"}, "caBundle": {"configMap": {"name": "ca"}}}
    document = job(
        model={"uri": "s3://data/models/tiny/", **source}, dataset={"uri": "s3://data/datasets/text.jsonl", **source}
    )
    secret = {"kind": "Secret", "metadata": {"name": "reader"}, "stringData": SECRET}
    bundle = {
        "kind": "ConfigMap",
        "metadata": {"name": "ca"},
        "data": {"ca.crt": authority.certificates.read_text()},
    }
    done = train(document, secret, bundle, output=tmp_path / "out")
    assert done.code == 0, done.log
    assert done.manifest["baseModel"]["uri"] == "s3://data/models/tiny/"
    local = train(job(), output=tmp_path / "local")
    assert yaml.safe_dump(done.metrics) == yaml.safe_dump(local.metrics), "the same steps as from the files"
