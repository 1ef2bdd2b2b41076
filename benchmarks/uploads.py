"""MB a second of pushes to a bucket: Hone's against boto3's upload of the same files, to one S3 server on this machine.

Hone's push is the one of the pushing pod: it compares the artifact with its manifest before, and the bucket with the
artifact after the upload, which boto3 does not do; the first is also measured alone. boto3 uploads several files at the
same time, each in parallel parts. Both alternate, and the order changes every round. Goal: at least 0.9 of boto3. Next
to the rate, the seconds of CPU of client and server together are measured: where both share all cores, these limit the
rate, and other programs of the machine change them less. The server (tests/s3server) is built, and boto3 is installed,
into the user's cache, once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from common import print_comparison
from downloads import TESTS, install_peers
from hone_trainer.push.artifact import load_artifact
from hone_trainer.push.s3 import S3Push
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote.locations import Location

sys.path.append(str(TESTS / "trainer"))

from pushed_artifacts import write_artifact
from s3server.gateway import BUCKET, SECRET, Gateway

BOTO3 = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import boto3
from botocore.config import Config
url, bucket, prefix, root = sys.argv[1:]
config = Config(s3={"addressing_style": "path"}, max_pool_connections=50)
client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config)
began, used = time.perf_counter(), time.process_time()
files = [path for path in Path(root).rglob("*") if path.is_file()]
with ThreadPoolExecutor(10) as pool:
    list(pool.map(lambda path: client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(root)}"), files))
print(time.perf_counter() - began, time.process_time() - used)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="the size of the artifact, in four files")
    parser.add_argument("--folder", help="on the disk to measure (default: the temporary folder's)")
    options = parser.parse_args()
    programs = install_peers()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, Gateway(Path(name) / "s3") as gateway:
        size = int(options.gigabytes * 1e9)
        root = write_artifact(Path(name) / "artifact", "model", shards=(size // 4,) * 4)
        [server] = psutil.Process().children()
        uploads = {"hone": partial(time_hone, gateway, root), "boto3": partial(time_boto3, programs, gateway, root)}
        rates: dict[str, list[float]] = {each: [] for each in (*uploads, "verifying")}
        used: dict[str, list[float]] = {each: [] for each in uploads}
        for number in range(options.rounds):
            for who in list(uploads) if number % 2 == 0 else reversed(uploads):
                os.sync()
                before = read_cpu_seconds(server)
                seconds, cpu_seconds = uploads[who]()
                rates[who].append(size / 1e6 / seconds)
                used[who].append(cpu_seconds + read_cpu_seconds(server) - before)
                # The objects, and what the server notes on them.
                for folder in list((Path(name) / "s3").rglob("pushed")):
                    shutil.rmtree(folder)
            began = time.perf_counter()
            load_artifact(root)
            rates["verifying"].append(size / 1e6 / (time.perf_counter() - began))
        title = f"an artifact of {options.gigabytes:g} GB"
        print_comparison(title, "MB/s", rates["hone"], rates["boto3"], "boto3")
        print_comparison(f"{title}, CPU of client and server", "s", used["hone"], used["boto3"], "boto3")
        print(f"Comparing the artifact with its manifest alone: {max(rates['verifying']):.0f} MB/s")


def read_cpu_seconds(process: psutil.Process) -> float:
    """Return the seconds of CPU that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def time_hone(gateway: Gateway, root: Path) -> tuple[float, float]:
    """Return the seconds of a push, and those of this process's CPU."""
    location = Location("push", f"s3://{BUCKET}/pushed", endpoint=gateway.url, secret=SECRET)
    began, used = time.perf_counter(), time.process_time()
    S3Push(location, S3Destination(location), lambda note: None).push(load_artifact(root))
    return time.perf_counter() - began, time.process_time() - used


def time_boto3(programs: Path, gateway: Gateway, root: Path) -> tuple[float, float]:
    """Return the seconds of an upload, and those of its process's CPU."""
    command = [programs / "python", "-c", BOTO3, gateway.url, BUCKET, "pushed", root]
    output = subprocess.run(command, env={**os.environ, **SECRET}, check=True, stdout=subprocess.PIPE).stdout
    seconds, cpu_seconds = map(float, output.split())
    return seconds, cpu_seconds


if __name__ == "__main__":
    main()
