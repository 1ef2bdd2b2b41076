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

# A download that completes a number of pieces at most, until its input ends: it can't be faster than the test.
CHILD = """
import itertools, json, sys
from functools import partial
from pathlib import Path
from hone_trainer.remote import download, fetch
from hone_trainer.remote.locations import Location
from hone_trainer.remote.partial import PartialFile
endpoint, uri, secret, cache, piece_bytes, most = sys.argv[1:]
begun, complete = itertools.count(), PartialFile.complete
def complete_or_wait(*arguments):
    if next(begun) >= int(most):
        sys.stdin.read()
    complete(*arguments)
PartialFile.complete = complete_or_wait
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
        return sum(path.read_bytes().count(b"\n") for path in self.cache.rglob("pieces/*"))

    def wait_for_pieces(self, count: int) -> None:
        """Wait until so many pieces are complete."""
        end = time.monotonic() + WAIT_SECONDS
        while self.count_pieces() < count:
            assert time.monotonic() < end
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.001)

    def finish(self) -> tuple[Path, int]:
        """Return the folder of the files, and the peak of the memory in bytes."""
        printed, errors = self.process.communicate(timeout=WAIT_SECONDS)
        assert self.process.returncode == 0, errors
        folder, peak = printed.split()
        return Path(folder), int(peak)


def start(
    gateway: Gateway, uri: str, cache: Path, piece_bytes: int = PIECE, most_pieces: int = sys.maxsize
) -> Download:
    """Start a download, which waits before the next piece once `most_pieces` are complete, until `finish` is called."""
    arguments = [gateway.url, uri, json.dumps(SECRET), str(cache), str(piece_bytes), str(most_pieces)]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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
    kills = KILLS[is_long()]
    kept, most = 0, PIECES // kills - 1
    asked_before = gateway.count_requests("faq/large.bin")
    for _ in range(kills):
        download = start(gateway, objects, tmp_path, most_pieces=most)
        download.wait_for_pieces(kept + chance.randint(1, most))
        time.sleep(chance.random() / 100)
        download.process.send_signal(signal.SIGKILL)
        download.process.communicate()
        assert download.process.returncode == -signal.SIGKILL
        assert download.count_pieces() >= kept, "what was complete is kept"
        kept = download.count_pieces()
    folder, _ = start(gateway, objects, tmp_path).finish()
    check_complete(gateway, tmp_path, folder)
    asked = gateway.count_requests("faq/large.bin") - asked_before
    # Each piece once, and those again that were under way at a kill.
    assert PIECES <= asked <= PIECES + kills * CONNECTIONS


def test_a_server_that_restarts_costs_nothing_but_time(gateway: Gateway, objects: str, tmp_path: Path) -> None:
    chance = make_random("restarts")
    moments = [number * PIECES // (RESTARTS + 2) for number in range(1, RESTARTS + 1)]
    download = start(gateway, objects, tmp_path, most_pieces=moments[-1])
    for count in moments:
        download.wait_for_pieces(count)
        gateway.kill()
        time.sleep(chance.random())
        gateway.start()
    folder, _ = download.finish()
    check_complete(gateway, tmp_path, folder)


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
