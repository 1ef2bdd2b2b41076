"""A real S3 server on this machine: versitygw, an S3 gateway in Go that keeps objects as files of a folder.

Input is a folder; output is a server at `url` on a free port of 127.0.0.1, which accepts one pair of keys. `go.mod` in
this folder pins the program, which is built once into the user's cache. Metadata are in a folder next to the
objects, so that no extended attributes are needed. The tests of hone_trainer.remote, `benchmarks/downloads.py` and a
test of the cluster, in a pod, use it.
"""

import hashlib
import io
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import urllib3
from minio import Minio
from run_isolation import build_lock, find_free_port

MODULE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hone/s3server"
SECRET = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "opensesame"}
BUCKET = "data"
START_SECONDS = 60.0


def find_missing_program() -> str | None:
    """Return why this machine can't build and run the server; None where it can."""
    for program in ("go", "openssl"):
        if not shutil.which(program):
            return f"the S3 server is built with Go and uses openssl, and there is no {program} on the PATH"
    return None


def build() -> Path:
    """Return the server's program, which is built if the cache lacks it. Raises subprocess.CalledProcessError."""
    inputs = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    program = CACHE / hashlib.sha256(inputs).hexdigest()[:12]
    with build_lock(program):
        if not program.exists():
            part = program.with_suffix(".part")
            environment = dict(os.environ, CGO_ENABLED="0", GOWORK="off", GOFLAGS="-mod=readonly")
            command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(part), "tool"]
            subprocess.run(command, cwd=MODULE, env=environment, check=True)
            part.rename(program)  # so that a build that was cut short is never used
    return program


class Authority:
    """A certificate authority, and the certificate that it has given to a server with `names`."""

    def __init__(self, folder: Path, names: str = "IP:127.0.0.1") -> None:
        folder.mkdir(parents=True)
        self.certificates = folder / "ca.crt"
        self.server_certificate, self.server_key = folder / "server.crt", folder / "server.key"
        new_key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        ca_key = folder / "ca.key"
        _run(*new_key, "-subj", "/CN=test authority", "-keyout", ca_key, "-out", self.certificates)
        signed = ["-CA", self.certificates, "-CAkey", ca_key, "-addext", f"subjectAltName={names}"]
        no_authority = ["-addext", "basicConstraints=critical,CA:FALSE"]
        written = ["-subj", "/CN=127.0.0.1", "-keyout", self.server_key, "-out", self.server_certificate]
        _run(*new_key, *written, *signed, *no_authority)


class Gateway:
    """A server on `folder`, over HTTPS with an authority. The bucket `data` exists."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.objects, self._metadata = folder / "objects", folder / "metadata"
        accounts = folder / "accounts"
        for path in (self.objects, self._metadata, accounts):
            path.mkdir(parents=True)
        self._log, self._requests = folder / "log", folder / "requests"
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None
        host = f"127.0.0.1:{find_free_port()}"
        self.url = f"http{'s' if authority else ''}://{host}"
        self._command = [build(), "--port", host, "--quiet", "--keep-alive", "--access-log", self._requests]
        if authority:
            self._command += ["--cert", authority.server_certificate, "--key", authority.server_key]
        self._command += ["--iam-dir", accounts, "posix", "--sidecar", self._metadata, self.objects]
        self.start()
        http = urllib3.PoolManager(ca_certs=str(authority.certificates)) if authority else None
        keys = SECRET["AWS_ACCESS_KEY_ID"], SECRET["AWS_SECRET_ACCESS_KEY"]
        self.client = Minio(host, *keys, secure=bool(authority), region="us-east-1", http_client=http)
        self.client.make_bucket(BUCKET)

    def __enter__(self) -> "Gateway":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server, also again after `kill`. Raises OSError when it does not listen."""
        keys = {"ROOT_ACCESS_KEY": SECRET["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": SECRET["AWS_SECRET_ACCESS_KEY"]}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env={**os.environ, **keys}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        host, port = self.url.partition("://")[2].split(":")
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise OSError(f"the S3 server does not listen: {self._log.read_text()}") from None
                time.sleep(0.02)

    def kill(self) -> None:
        """End the server in the middle of what it does."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def put(self, key: str, data: bytes, bucket: str = BUCKET) -> None:
        """Write an object."""
        self.client.put_object(bucket, key, io.BytesIO(data), len(data))

    def count_requests(self, key: str, operation: str = "GetObject") -> int:
        """Return how often an object was requested so far."""
        return sum(f" s3_{operation} {key} " in line for line in self._requests.read_text().splitlines())

    def files(self, prefix: str) -> dict[str, bytes]:
        """Return the files below a folder of the bucket, as they are on the disk."""
        root = self.objects / BUCKET / prefix
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _run(*command: object) -> None:
    subprocess.run([str(each) for each in command], check=True, capture_output=True)
