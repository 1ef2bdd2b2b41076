"""An S3 server in the cluster: versitygw, in a pod of the test's namespace."""

import json
from collections.abc import Mapping

from kube import Cluster, Images, pod
from s3server.gateway import BUCKET, SECRET, build, find_missing_program
from server_pod import PROGRAM, run_server

STORE = "http://store:7070"
SERVE = f"""
mkdir -p /data/objects /data/metadata /data/accounts
exec {PROGRAM} --port :7070 --quiet --iam-dir /data/accounts posix --sidecar /data/metadata /data/objects
"""
KEYS = [SECRET["AWS_ACCESS_KEY_ID"], SECRET["AWS_SECRET_ACCESS_KEY"]]
_FILL = """
import io, json, pathlib, sys
from minio import Minio

store = Minio("store:7070", sys.argv[1], sys.argv[2], secure=False, region="us-east-1")
store.make_bucket(sys.argv[3])
for key, text in json.loads(sys.argv[4]).items():
    store.put_object(sys.argv[3], key, io.BytesIO(text.encode()), len(text.encode()))
for path in pathlib.Path("/models").rglob("*"):
    if path.is_file():
        store.fput_object(sys.argv[3], path.relative_to("/models").as_posix(), str(path))
"""


def run_store(hone: Cluster, images: Images, namespace: str) -> None:
    """Start a server without buckets at STORE, which accepts the keys of SECRET."""
    assert not (reason := find_missing_program()), reason
    roots = dict(zip(("ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"), KEYS, strict=True))
    run_server(hone, images, namespace, "store", 7070, build(), SERVE, roots)


def make_bucket(
    hone: Cluster, images: Images, namespace: str, texts: Mapping[str, str], *, models: str | None = None
) -> None:
    """Create BUCKET with texts by their keys, and with the files of the claim `models`."""
    command = ["python3", "-c", _FILL, *KEYS, BUCKET, json.dumps(texts)]
    hone.run_pod(pod("bucket", images.runtime, *command, claims={models: "/models"} if models else None), namespace)
