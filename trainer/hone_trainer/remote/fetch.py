"""Bring a source with a `uri` into the cache, and return its folder.

Input is a `Location`; output a `Snapshot`, a folder that is complete and named after the content of all its objects.
What was downloaded once is not downloaded again until an object changes. `models.base_model` and `data.dataset` call
this in the preparing stage; a training pod, which has no credentials, finds what the preparing pod has left.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from hone_api.byte_sizes import format_bytes
from hone_api.io.durable_files import flush_to_disk, write_atomically
from hone_api.io.terminal import hide_url_credentials, make_printable, print_line
from hone_api.layout import OFFLINE_VARIABLE, REGISTRY_SCHEME, make_remote_folder
from hone_api.reasons import SOURCE_CHANGED, STORE_UNAUTHORIZED, STORE_UNREACHABLE, HoneError
from huggingface_hub import constants

from hone_trainer.progress.activity import clear_activity, report_activity
from hone_trainer.remote.download import Downloader
from hone_trainer.remote.https import HttpsStore
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, RemoteObject, Store, compute_revision, refuse_unusable_names
from hone_trainer.remote.oci_store import UNPACKED, OciStore, unpack_archives
from hone_trainer.remote.s3 import S3Store
from hone_trainer.runtime.errors import translate_disk_full

# How often a process that waits for another one's download looks again, and prints that it still waits.
LOOK_SECONDS, REMIND_SECONDS = 1.0, 60.0
# What one process writes about itself into a lock's file, for those that wait.
_LONGEST_HOLDER = 200
# How often a download starts again because an object has changed meanwhile.
CHANGED_ATTEMPTS = 3

Choose = Callable[[list[RemoteObject]], list[RemoteObject]]


@dataclass(frozen=True)
class Snapshot:
    """The folder of a source's files, and the name of their content."""

    folder: Path
    revision: str


def fetch(location: Location, pinned: str | None, choose: Choose = list) -> Snapshot:
    """Return the files of a source, downloaded if the cache lacks them. `choose` returns those that are needed.

    `pinned` is the revision that an earlier start of this run found: it is used where the store can't be reached, or
    refuses access because credentials have expired since.
    Raises HoneError DatasetNotFound, ModelNotFound, StoreUnauthorized, StoreUnreachable, SourceChanged, InvalidSpec,
    DiskFull, and DatasetInvalid or ModelInvalid for names that can't be files.
    """
    cache = Path(constants.HF_HOME)
    kept = Snapshot(cache / make_remote_folder(pinned), pinned) if pinned else None
    if kept and not kept.folder.is_dir():
        kept = None
    if os.environ.get(OFFLINE_VARIABLE):
        if kept:
            return kept
        found = f"{location.where}, and {cache} does not have what the preparing pod downloaded"
        raise HoneError(STORE_UNREACHABLE, found, remedy="Delete the FineTuneJob and apply it again.")
    try:
        return _fetch(location, open_store(location), cache, choose)
    except HoneError as error:
        if error.reason in (STORE_UNREACHABLE, STORE_UNAUTHORIZED) and kept:
            print_line(f"warning: {error.message}; using what was downloaded before")
            return kept
        raise


def fetch_again(location: Location, choose: Choose) -> Snapshot:
    """Return the files of a source as `fetch` does, with the revision of the last start with this cache as pinned.

    A URI with a digest always names the same content: once it is in the cache, no store is asked. Raises as `fetch`.
    """
    cache = Path(constants.HF_HOME)
    note = cache / make_remote_folder(f".{_source(location)}-{choose.__name__}.latest")
    try:
        noted = note.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        noted = None
    if noted and "@sha256:" in location.uri and (cache / make_remote_folder(noted)).is_dir():
        return Snapshot(cache / make_remote_folder(noted), noted)
    snapshot = fetch(location, noted, choose)
    if snapshot.revision != noted:
        write_atomically(note, snapshot.revision)
    return snapshot


def open_store(location: Location) -> Store:
    """Return the store of a location. Raises HoneError InvalidSpec for a Secret that lacks a key."""
    if location.uri.startswith("s3://"):
        return S3Store(location)
    if location.uri.startswith(REGISTRY_SCHEME):
        return OciStore(location)
    return HttpsStore(location, as_folder=location.kind == "model")


def _fetch(location: Location, store: Store, cache: Path, choose: Choose) -> Snapshot:
    downloader = Downloader(location, store, report_activity)
    changed = None
    for _ in range(CHANGED_ATTEMPTS):
        try:
            objects = _choose(downloader.retry(store.list_objects), choose)
            if not objects:
                raise HoneError(location.missing, f"{location.where}, and nothing is there")
            refuse_unusable_names(location, objects)
            return _bring(downloader, objects, cache)
        except ChangedError as error:
            changed = error
            print_line(f"{location.uri} has changed ({error}): starting again")
    raise HoneError(SOURCE_CHANGED, f"{location.where}, and {changed}") from changed


def _choose(listed: list[RemoteObject], choose: Choose) -> list[RemoteObject]:
    """Return the objects that are needed, and the archives of which only the content can show it."""
    return choose([found for found in listed if found.is_named]) + [found for found in listed if not found.is_named]


def _bring(downloader: Downloader, objects: list[RemoteObject], cache: Path) -> Snapshot:
    """Download objects into the folder named after their content. Raises as `fetch` does, and ChangedError."""
    location = downloader.location
    revision = compute_revision(location, objects)
    folder = cache / make_remote_folder(revision)
    partial = folder.with_name(f".{_source(location)}-{revision}.part")
    with translate_disk_full(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with clear_activity(), _locked(folder.with_name(f".{revision}.lock"), location.uri):
            _remove_others(partial)
            if not folder.is_dir():
                size = format_bytes(sum(found.size for found in objects))
                report_activity(f"downloading {hide_url_credentials(location.uri)}: {len(objects)} files, {size}")
                try:
                    files = downloader.download(objects, partial)
                except ChangedError:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
                unpack_archives(location, objects, files, partial / UNPACKED).rename(folder)
                flush_to_disk(folder.parent)
                shutil.rmtree(partial, ignore_errors=True)
    return Snapshot(folder, revision)


@contextmanager
def _locked(path: Path, uri: str) -> Iterator[None]:
    """Let one process at a time download: jobs may share a cache. Print for whom this one waits."""
    with path.open("a+") as lock:
        try:
            _wait_for_lock(lock, uri)
        except OSError:  # a file system without locks
            print_line(f"warning: {path} can't be locked: start no second download of the same source")
        else:
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
            lock.flush()
        yield


def _wait_for_lock(lock: TextIO, uri: str) -> None:
    """Take the lock. Raises OSError where the file system has none."""
    began, reminded = time.monotonic(), -REMIND_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            waited = time.monotonic() - began
        if waited >= reminded + REMIND_SECONDS:
            reminded = waited
            lock.seek(0)
            holder = make_printable(lock.read(_LONGEST_HOLDER)) or "another process"
            shown = hide_url_credentials(uri)
            report_activity(f"waiting for {holder}, which downloads {shown} into the same cache ({waited:.0f} s)")
        time.sleep(LOOK_SECONDS)


def _source(location: Location) -> str:
    return hashlib.sha256(f"{location.uri} {location.endpoint}".encode()).hexdigest()[:12]


def _remove_others(partial: Path) -> None:
    """Remove what is left of downloads of earlier content of the same source, unless a process is at work there."""
    source = partial.name.partition("-")[0]
    for other in partial.parent.glob(f"{source}-*.part"):
        revision = other.stem.partition("-")[2]
        if other == partial:
            continue
        with other.with_name(f".{revision}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(other, ignore_errors=True)
