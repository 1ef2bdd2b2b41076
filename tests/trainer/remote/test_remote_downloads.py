"""Downloads from stores that fail: cut connections, busy servers, changed objects, processes killed in the middle."""

import fcntl
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faulty_server import PIECE, SECRET, Store, bucket, content, files_of
from hone_api.reasons import (
    DATASET_INVALID,
    DATASET_NOT_FOUND,
    INVALID_SPEC,
    SOURCE_CHANGED,
    STORE_UNAUTHORIZED,
    STORE_UNREACHABLE,
    HoneError,
)
from hone_trainer.progress.activity import read_activity
from hone_trainer.remote import download as downloads
from hone_trainer.remote import fetch as fetching
from hone_trainer.remote.connections import CONNECTIONS
from hone_trainer.remote.fetch import Snapshot, fetch
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import RemoteObject, refuse_unusable_names
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("quick")


def below(store: Store, prefix: str = "faq/") -> dict[str, bytes]:
    return {name.removeprefix(prefix): data for name, data in store.files.items()}


def test_a_prefix_becomes_a_folder_and_is_downloaded_once(store: Store) -> None:
    first = fetch(bucket(store), None)
    assert files_of(first) == below(store)
    asked = len(store.asked)
    assert fetch(bucket(store, "faq"), None).folder.is_dir()
    assert fetch(bucket(store), None) == first
    assert len([name for method, name, _ in store.asked[asked:] if method == "GET" and "a.jsonl" in name]) <= 11


def test_a_key_is_one_file(store: Store) -> None:
    assert files_of(fetch(bucket(store, "faq/a.jsonl"), None)) == {"a.jsonl": content(1)}


def test_a_changed_object_gives_another_revision(store: Store) -> None:
    first = fetch(bucket(store), None)
    store.files["faq/deep/b.jsonl"] = content(3, 100)
    second = fetch(bucket(store), first.revision)
    assert second.revision != first.revision
    assert files_of(second) == below(store)


def test_a_download_of_another_process_is_waited_for_by_name(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetching, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(fetching, "REMIND_SECONDS", 0.1)
    folder = fetch(bucket(store), None).folder
    shutil.rmtree(folder)
    with folder.with_name(f".{folder.name}.lock").open("a+") as lock:
        lock.seek(0)
        assert lock.read().startswith(f"process {os.getpid()} on {socket.gethostname()}, since 20")
        lock.truncate(0)
        lock.write("process 7 on faq-prepare-x2j9k, since 2026-03-01T10:00:00Z")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        capsys.readouterr()
        activities: list[str | None] = []

        def release() -> None:
            activities.append(read_activity())
            fcntl.flock(lock, fcntl.LOCK_UN)

        threading.Timer(0.5, release).start()
        assert files_of(fetch(bucket(store), None)) == below(store)
    assert "waiting for process 7 on faq-prepare-x2j9k" in str(activities)
    assert read_activity() is None
    printed = capsys.readouterr().err
    assert printed.count("waiting for process 7 on faq-prepare-x2j9k, since 2026-03-01T10:00:00Z") >= 2
    assert "which downloads s3://" in printed


@pytest.mark.parametrize("fault", ["cut", "short", 500, 503, 429])
def test_failures_in_between_cost_nothing_but_time(store: Store, fault: str | int) -> None:
    store.spoil = lambda number, name: fault if number % 3 == 0 else None
    assert files_of(fetch(bucket(store), None)) == below(store)


def test_a_store_that_keeps_failing_is_reported_and_what_there_is_stays(store: Store) -> None:
    store.spoil = lambda number, name: 503 if number > 6 else None
    with pytest.raises(HoneError) as caught:
        fetch(bucket(store), None)
    assert caught.value.reason is STORE_UNREACHABLE
    store.spoil = lambda number, name: None
    before = len(store.asked)
    assert files_of(fetch(bucket(store), None)) == below(store)
    again = [part for method, name, part in store.asked[before:] if method == "GET" and name.endswith("a.jsonl")]
    assert len(again) < 11


def test_an_object_that_changes_during_the_download_is_downloaded_again(store: Store) -> None:
    def change(number: int, name: str) -> None:
        if number == 5:
            store.files["faq/a.jsonl"] = content(9)

    store.spoil = change
    assert files_of(fetch(bucket(store), None))["a.jsonl"] == content(9)


def test_an_object_that_always_changes_is_an_error(store: Store) -> None:
    def change(number: int, name: str) -> None:
        store.files["faq/a.jsonl"] = content(number)

    store.spoil = change
    with pytest.raises(HoneError) as caught:
        fetch(bucket(store), None)
    assert caught.value.reason is SOURCE_CHANGED


def test_content_that_differs_from_the_stores_digest_is_downloaded_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = []
    write = downloads._write

    def damage(descriptor: int, block: bytes, at: int) -> None:
        write(descriptor, block if damaged else bytes(len(block)), at)
        damaged.append(at)

    monkeypatch.setattr(downloads, "_write", damage)
    assert files_of(fetch(bucket(store), None)) == below(store)


def test_an_etag_of_an_encrypted_object_is_no_digest(store: Store) -> None:
    store.encryption = "aws:kms"
    assert files_of(fetch(bucket(store), None)) == below(store)


@pytest.mark.parametrize(("status", "reason"), [(403, STORE_UNAUTHORIZED), (401, STORE_UNAUTHORIZED)])
def test_refused_access_names_the_code(store: Store, status: int, reason: object) -> None:
    store.spoil = lambda number, name: status
    with pytest.raises(HoneError, match="AccessDenied") as caught:
        fetch(bucket(store), None)
    assert caught.value.reason is reason
    assert "opensesame" not in str(caught.value)


def test_what_is_not_there_is_reported(store: Store) -> None:
    for uri in ("s3://data/none/", "s3://other-bucket/faq/"):
        with pytest.raises(HoneError) as caught:
            fetch(Location("dataset", uri, endpoint=store.url, secret=SECRET), None)
        assert caught.value.reason is DATASET_NOT_FOUND
        assert uri in caught.value.message


def test_a_secret_without_its_keys_is_reported(store: Store) -> None:
    with pytest.raises(HoneError, match="AWS_SECRET_ACCESS_KEY") as caught:
        fetch(Location("dataset", "s3://data/faq/", endpoint=store.url, secret={"AWS_ACCESS_KEY_ID": "x"}), None)
    assert caught.value.reason is INVALID_SPEC


def test_a_pod_without_credentials_uses_what_was_downloaded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch(bucket(store), None)
    monkeypatch.setenv("HONE_OFFLINE", "1")
    before = len(store.asked)
    assert fetch(bucket(store), first.revision) == first
    assert len(store.asked) == before
    with pytest.raises(HoneError):
        fetch(bucket(store), None)


def test_a_store_out_of_reach_leaves_what_was_downloaded(store: Store) -> None:
    first = fetch(bucket(store), None)
    gone = bucket(store)
    store.shutdown()
    store.server_close()
    assert fetch(gone, first.revision) == first


@pytest.mark.parametrize("has_validators", [True, False])
@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_over_http_is_downloaded_from_any_server(store: Store, has_ranges: bool, has_validators: bool) -> None:
    store.has_ranges, store.has_validators = has_ranges, has_validators
    store.spoil = lambda number, name: "cut" if number == 3 else None
    found = fetch(Location("dataset", f"{store.url}/faq/a.jsonl"), None)
    assert files_of(found) == {"a.jsonl": content(1)}


@pytest.mark.parametrize(
    ("secret", "sent"), [({"token": "abc\n"}, "Bearer abc"), ({"username": "a", "password": "b"}, "Basic YTpi")]
)
def test_credentials_for_http_are_sent(store: Store, secret: dict[str, str], sent: str) -> None:
    fetch(Location("dataset", f"{store.url}/faq/deep/b.jsonl", secret=secret), None)
    assert {headers.get("Authorization") for headers in store.headers_seen} == {sent}


@pytest.mark.parametrize("names", [["../x"], ["/etc/passwd"], ["a//b"], ["a/./b"], ["A", "a"], ["a", "a/b"], ["a\\b"]])
def test_names_that_are_no_files_below_the_folder_are_refused(store: Store, names: list[str]) -> None:
    store.files = {f"faq/{name}": b"x" for name in names}
    with pytest.raises(HoneError) as caught:
        fetch(bucket(store), None)
    assert caught.value.reason is DATASET_INVALID


@given(st.lists(st.text(max_size=12), max_size=6))
def test_accepted_names_are_distinct_files_below_the_folder(names: list[str]) -> None:
    location = Location("dataset", "s3://data/")
    try:
        refuse_unusable_names(location, [RemoteObject(name, name, 0, "") for name in names])
    except HoneError:
        return
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert os.path.normpath(f"/root/{name}") == f"/root/{name}"


CHILD = """
import sys
from hone_trainer.remote import fetch as fetching
from hone_trainer.remote import download
from hone_trainer.remote.locations import Location
from pathlib import Path
fetching.constants.HF_HOME = sys.argv[2]
make = download.Downloader
fetching.Downloader = lambda *a: make(*a, piece_bytes=4096)
secret = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
print(fetching.fetch(Location("dataset", "s3://data/faq/", endpoint=sys.argv[1], secret=secret), None).folder)
"""


def test_a_download_killed_at_random_moments_ends_with_the_same_bytes(store: Store, tmp_path: Path) -> None:
    store.files["faq/a.jsonl"] = content(4, 600 * PIECE)
    store.is_slow = True
    chance = random.Random(5)
    command = [sys.executable, "-c", CHILD, store.url, str(tmp_path / "cache")]
    for _ in range(4):
        asked = len(store.asked)
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(store.asked) < asked + chance.randrange(2, 120) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = Snapshot(Path(done.stdout.strip()), "")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files_of(found).items()}
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in below(store).items()}
    pieces = [part for method, name, part in store.asked if method == "GET" and name.endswith("a.jsonl")]
    assert len(pieces) < 600 + 4 * 2 * CONNECTIONS
