"""A real S3 server on this machine: versitygw, an S3 gateway in Go that keeps objects as files of a folder.

Input is a folder; output is a server at `url` on a free port of 127.0.0.1, which accepts one pair of keys. `go.mod` in
this folder pins the program, which is built once into the user's cache. Metadata are in a folder next to the
objects, so that no extended attributes are needed. The tests of hone_trainer.remote, `benchmarks/downloads.py` and a
test of the cluster, in a pod, use it.
"""

import contextlib
import io
import subprocess
from pathlib import Path

import go_server
import urllib3
from go_server import GoServer, build_tool
from minio import Minio
from run_isolation import find_free_port

MODULE = Path(__file__).parent
SECRET = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "opensesame"}
BUCKET = "data"


def find_missing_program() -> str | None:
    """Return why this machine can't build and run the server; None where it can."""
    return go_server.find_missing_program("the S3 server")


def build() -> Path:
    """Return the server's program, built if the cache lacks it. Raises subprocess.CalledProcessError."""
    return build_tool(MODULE)


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


class Gateway(GoServer):
    """A server on `folder`, over HTTPS with an authority. The bucket `data` exists."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.objects, metadata, accounts = folder / "objects", folder / "metadata", folder / "accounts"
        for path in (self.objects, metadata, accounts):
            path.mkdir(parents=True)
        self._requests = folder / "requests"
        host = f"127.0.0.1:{find_free_port()}"
        self.url = f"http{'s' if authority else ''}://{host}"
        command = [build(), "--port", host, "--quiet", "--keep-alive", "--access-log", self._requests]
        if authority:
            command += ["--cert", authority.server_certificate, "--key", authority.server_key]
        command += ["--iam-dir", accounts, "posix", "--sidecar", metadata, self.objects]
        keys = SECRET["AWS_ACCESS_KEY_ID"], SECRET["AWS_SECRET_ACCESS_KEY"]
        roots = dict(zip(("ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"), keys, strict=True))
        super().__init__(host, command, roots, folder / "log")
        http = urllib3.PoolManager(ca_certs=str(authority.certificates)) if authority else None
        self.client = Minio(host, *keys, secure=bool(authority), region="us-east-1", http_client=http)
        self.client.make_bucket(BUCKET)

    def put(self, key: str, data: bytes, bucket: str = BUCKET) -> None:
        """Write an object."""
        self.client.put_object(bucket, key, io.BytesIO(data), len(data))

    def count_requests(self, key: str, operation: str = "GetObject") -> int:
        """Return how often an object was requested so far."""
        return sum(f" s3_{operation} {key} " in line for line in self._requests.read_text().splitlines())

    def files(self, prefix: str) -> dict[str, bytes]:
        """Return the files below a folder of the bucket, as they are on the disk.

        A file that is replaced meanwhile, by a request of a client that was killed, may be left out.
        """
        root = self.objects / BUCKET / prefix
        found: dict[str, bytes] = {}
        for path in root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[path.relative_to(root).as_posix()] = path.read_bytes()
        return found


def _run(*command: object) -> None:
    subprocess.run([str(each) for each in command], check=True, capture_output=True)
