"""Download objects into a folder: in parallel, continued where an earlier start stopped, and verified.

Input is a store and what it lists; output are the files. Memory does not depend on their size: each thread holds a
block. `fetch` decides what is downloaded and gives the folder its name.
"""

import os
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from hone_api.byte_sizes import format_bytes
from hone_api.reasons import DISK_FULL, STORE_UNREACHABLE, HoneError

from hone_trainer.remote.connections import CONNECTIONS
from hone_trainer.remote.locations import Location
from hone_trainer.remote.meter import Meter
from hone_trainer.remote.objects import RemoteObject, Store, TransientError
from hone_trainer.remote.partial import PIECE_BYTES, Difference, PartialFile

Result = TypeVar("Result")
FILES, JOURNALS = "files", "pieces"
# Attempts without a byte of progress, about half a minute in all.
ATTEMPTS = 6
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 20.0
# How often an object is downloaded whose content differs from the store's own digest.
DAMAGED_ATTEMPTS = 3


class _StoppedError(Exception):
    """The download ends because of a failure of another thread."""


@dataclass
class Downloader:
    """Downloads the objects of one source."""

    location: Location
    store: Store
    note: Callable[[str], None]
    piece_bytes: int = PIECE_BYTES
    connections: int = CONNECTIONS
    first_wait_seconds: float = FIRST_WAIT_SECONDS
    _stopped: threading.Event = field(default_factory=threading.Event)

    def download(self, objects: list[RemoteObject], folder: Path) -> Path:
        """Download into `folder`, and return the folder of the files below it. Raises HoneError, ChangedError."""
        (folder / JOURNALS).mkdir(parents=True, exist_ok=True)
        (folder / FILES).mkdir(exist_ok=True)
        files = [PartialFile(each, folder / FILES, folder / JOURNALS, self.piece_bytes) for each in objects]
        total, kept = sum(file.wanted.size for file in files), sum(file.kept_bytes for file in files)
        self._require_room(folder, total - kept)
        self._meter = Meter(total, kept, self.note)
        earlier: dict[str, Difference] = {}
        for _ in range(DAMAGED_ATTEMPTS):
            self._run([partial(self._fetch, file, piece) for file in files for piece in file.missing])
            damaged: dict[str, Difference] = {}
            self._run([partial(self._verify, file, damaged) for file in files])
            for name in [name for name, difference in damaged.items() if difference == earlier.get(name)]:
                if damaged[name].is_of_etag:  # two downloads gave the same bytes: the ETag is no MD5
                    self.note(f"warning: {name} {damaged.pop(name).text}: the ETag is not taken for its MD5")
            if not damaged:
                return folder / FILES
            for file in files:
                if file.wanted.name in damaged:
                    file.forget()
                    self._meter.add(-file.wanted.size)
            earlier = damaged
        name, difference = next(iter(damaged.items()))
        raise HoneError(STORE_UNREACHABLE, f"{self.location.where}, and {name} {difference.text}, each time")

    def retry(self, attempt: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """Return what `attempt` returns; repeat it after a TransientError, as long as it makes progress now and then.

        Raises HoneError StoreUnreachable.
        """
        failed, reached = 0, progress()
        while True:
            try:
                return attempt()
            except TransientError as error:
                failed = 1 if progress() > reached else failed + 1
                reached = progress()
                if failed >= ATTEMPTS:
                    found = f"{self.location.where}, and the store failed {ATTEMPTS} times: {error}"
                    raise HoneError(STORE_UNREACHABLE, found) from error
                longest = min(self.first_wait_seconds * 2**failed, LONGEST_WAIT_SECONDS)
                if self._stopped.wait(max(error.wait_seconds, random.uniform(longest / 2, longest))):
                    raise _StoppedError from None

    def _run(self, tasks: list[Callable[[], None]]) -> None:
        """Run tasks in threads; the first failure ends them all and is raised."""
        pool = ThreadPoolExecutor(self.connections)
        try:
            futures: list[Future[None]] = [pool.submit(task) for task in tasks]
            wait(futures, return_when=FIRST_EXCEPTION)
            failures = [error for future in futures if future.done() and (error := future.exception())]
            if failures:
                raise failures[0]
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
            self._stopped.clear()

    def _fetch(self, file: PartialFile, piece: tuple[int, int]) -> None:
        start, end = piece
        at = start
        descriptor = file.open()

        def attempt() -> None:
            nonlocal at
            if not file.wanted.validator:  # what was read before may be of another content
                self._meter.add(start - at)
                at = start
            with self.store.read(file.wanted, at, end) as blocks:
                for block in blocks:
                    if self._stopped.is_set():
                        raise _StoppedError
                    _write(descriptor, block, at)
                    at += len(block)
                    self._meter.add(len(block))
            if at < end:
                raise TransientError(f"the connection ended after {at - start} of {end - start} bytes")

        try:
            self.retry(attempt, lambda: at)
            file.complete(descriptor, piece)
        finally:
            os.close(descriptor)

    def _require_room(self, folder: Path, needed: int) -> None:
        """Raise HoneError DiskFull when the volume of the folder can't hold this many bytes."""
        usage = shutil.disk_usage(folder)
        if usage.total and needed > usage.free:  # some network file systems report nothing
            room = f"needs {format_bytes(needed)}, and {format_bytes(usage.free)} are free in {folder.parent}"
            raise HoneError(DISK_FULL, f"{self.location.where}, whose download {room}")

    def _verify(self, file: PartialFile, damaged: dict[str, Difference]) -> None:
        known = self.retry(lambda: self.store.read_checksums(file.wanted))
        if difference := file.find_difference(known):
            damaged[file.wanted.name] = difference


def _write(descriptor: int, block: bytes, at: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
