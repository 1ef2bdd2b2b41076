"""Download objects into a folder: in parallel, continued where an earlier start stopped, and verified.

Input is a store and what it lists; output are the files. Memory does not depend on their size: each thread holds a
block. `fetch` decides what is downloaded and gives the folder its name.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hone_api.byte_sizes import format_bytes
from hone_api.reasons import DISK_FULL, STORE_UNREACHABLE, HoneError

from hone_trainer.progress.meter import Meter
from hone_trainer.remote.objects import RemoteObject, Store, TransientError
from hone_trainer.remote.partial import PIECE_BYTES, Difference, PartialFile
from hone_trainer.remote.transfers import StoppedError, Transfers

FILES, JOURNALS = "files", "pieces"
# How often an object is downloaded whose content differs from the store's own digest.
DAMAGED_ATTEMPTS = 3


@dataclass
class Downloader(Transfers):
    """Downloads the objects of one source."""

    store: Store
    note: Callable[[str], None]
    piece_bytes: int = PIECE_BYTES

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
            self.run([partial(self._fetch, file, piece) for file in files for piece in file.missing])
            damaged: dict[str, Difference] = {}
            self.run([partial(self._verify, file, damaged) for file in files])
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
                    if self.is_stopped:
                        raise StoppedError
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
