"""Downloads from a real S3 server that are killed, whose server restarts, and whose memory is limited."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hone_trainer.remote.connections import CONNECTIONS
from long_matrix import is_long, make_random
from s3server.gateway import SECRET, Gateway

PIECE, SIZE = 2**16, 24 * 2**20
PIECES = SIZE // PIECE
KILLS = {False: 6, True: 40}
RESTARTS = 3
MEBIBYTE = 2**20
WAIT_SECONDS = 120

CHILD = """
import json, sys
from functools import partial
from pathlib import Path
from hone_trainer.remote import download, fetch
from hone_trainer.remote.locations import Location
endpoint, uri, secret, cache, piece_bytes = sys.argv[1:]
fetch.constants.HF_HOME = cache
fetch.Downloader = partial(download.Downloader, piece_bytes=int(piece_bytes))
print(fetch.fetch(Location("dataset", uri, endpoint=endpoint, secret=json.loads(secret)), None).folder)
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024)
"""


@dataclass
class Download:
    """A process that downloads into `cache`."""

    process: subprocess.Popen[str]
    cache: Path

    def count_pieces(self) -> int:
        """Return how many pieces are complete so far."""
        try:
            return sum(path.read_bytes().count(b"\n") for path in self.cache.rglob("pieces/*"))
        except FileNotFoundError:  # it has just ended
            return 0

    def wait_for_pieces(self, count: int) -> bool:
        """Return whether so many pieces are complete, and the process still runs."""
        end = time.monotonic() + WAIT_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < end
            if self.count_pieces() >= count:
                return True
            time.sleep(0.001)
        return False

    def finish(self) -> tuple[Path, int]:
        """Return the folder of the files, and the peak of the memory in bytes."""
        printed, errors = self.process.communicate(timeout=WAIT_SECONDS)
        assert self.process.returncode == 0, errors
        folder, peak = printed.split()
        return Path(folder), int(peak)


def start(gateway: Gateway, uri: str, cache: Path, piece_bytes: int = PIECE) -> Download:
    arguments = [gateway.url, uri, json.dumps(SECRET), str(cache), str(piece_bytes)]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return Download(process, cache)


def digests_of(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def objects(gateway: Gateway) -> str:
    """Write one large and some small objects, and return their URI."""
    chance = random.Random(7)
    gateway.put("faq/large.bin", chance.randbytes(SIZE))
    for number in range(20):
        gateway.put(f"faq/small/{number}.bin", chance.randbytes(number * 1000))
    return "s3://data/faq/"


def check_complete(gateway: Gateway, cache: Path, folder: Path) -> None:
    """Check that the files are those of the server, and that nothing else is left in the cache."""
    assert digests_of(folder) == digests_of(gateway.objects / "data/faq")
    left = [path for path in folder.parent.iterdir() if path != folder and not path.name.endswith(".lock")]
    assert left == []
    outside = [path for path in cache.rglob("*") if path.is_file() and not path.is_relative_to(folder.parent)]
    assert outside == []


def test_a_download_killed_at_random_moments_is_continued(gateway: Gateway, objects: str, tmp_path: Path) -> None:
    chance = make_random("killed downloads")
    kept, killed = 0, 0
    asked_before = gateway.count_requests("faq/large.bin")
    for _ in range(KILLS[is_long()]):
        download = start(gateway, objects, tmp_path)
        if download.wait_for_pieces(kept + chance.randrange(1, PIECES // KILLS[is_long()])):
            time.sleep(chance.random() / 100)
            download.process.send_signal(signal.SIGKILL)
            killed += 1
        download.process.communicate()
        assert download.count_pieces() >= kept, "what was complete is kept"
        kept = download.count_pieces()
    assert killed >= KILLS[is_long()] // 2
    folder, _ = start(gateway, objects, tmp_path).finish()
    check_complete(gateway, tmp_path, folder)
    asked = gateway.count_requests("faq/large.bin") - asked_before
    # Each piece once, and those again that were under way at a kill.
    assert PIECES <= asked <= PIECES + killed * CONNECTIONS


def test_a_server_that_restarts_costs_nothing_but_time(gateway: Gateway, objects: str, tmp_path: Path) -> None:
    chance = make_random("restarts")
    download = start(gateway, objects, tmp_path)
    restarted = 0
    for number in range(1, RESTARTS + 1):
        if download.wait_for_pieces(number * PIECES // (RESTARTS + 2)):
            gateway.kill()
            time.sleep(chance.random())
            gateway.start()
            restarted += 1
    folder, _ = download.finish()
    check_complete(gateway, tmp_path, folder)
    assert restarted


@pytest.fixture
def sizes(gateway: Gateway) -> Iterator[dict[int, str]]:
    """Yield the URIs of two objects by size. They are uploaded in parts, so that their ETag is no digest.

    The server serves what its file holds, so that the file is made longer instead of uploading a gigabyte of zeros.
    """
    found = {}
    for size in (64 * MEBIBYTE, 1024 * MEBIBYTE):
        key = f"sizes/{size}.bin"
        gateway.client.put_object("data", key, io.BytesIO(bytes(6 * MEBIBYTE)), 6 * MEBIBYTE, part_size=5 * MEBIBYTE)
        os.truncate(gateway.objects / "data" / key, size)
        found[size] = f"s3://data/{key}"
    yield found
    for size in found:
        gateway.client.remove_object("data", f"sizes/{size}.bin")


def test_memory_does_not_depend_on_the_size(gateway: Gateway, sizes: dict[int, str], tmp_path: Path) -> None:
    peaks = {}
    for size, uri in sizes.items():
        folder, peaks[size] = start(gateway, uri, tmp_path, piece_bytes=4 * MEBIBYTE).finish()
        [file] = folder.iterdir()
        assert file.stat().st_size == size
        shutil.rmtree(tmp_path)
    small, large = peaks.values()
    assert large - small < 24 * MEBIBYTE, peaks
