"""An S3 server in the cluster: versitygw, in a pod of the test's namespace."""

from kube import Cluster, Images
from s3server.gateway import SECRET, build, find_missing_program
from server_pod import PROGRAM, run_server

STORE = "http://store:7070"
SERVE = f"""
mkdir -p /data/objects /data/metadata /data/accounts
exec {PROGRAM} --port :7070 --quiet --iam-dir /data/accounts posix --sidecar /data/metadata /data/objects
"""


def run_store(hone: Cluster, images: Images, namespace: str) -> None:
    """Start a server without buckets at STORE, which accepts the keys of SECRET."""
    assert not (reason := find_missing_program()), reason
    keys = [SECRET["AWS_ACCESS_KEY_ID"], SECRET["AWS_SECRET_ACCESS_KEY"]]
    roots = dict(zip(("ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"), keys, strict=True))
    run_server(hone, images, namespace, "store", 7070, build(), SERVE, roots)
