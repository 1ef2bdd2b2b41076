"""An S3 server in the cluster: versitygw, in a pod of the test's namespace."""

from typing import Any

from kube import Cluster, Images, condition, pod
from s3server.gateway import SECRET, build, find_missing_program

Object = dict[str, Any]
STORE = "http://store:7070"
# Waits until the program is complete, since it is copied into the running pod.
SERVE = """
until test -e /data/complete; do sleep 0.2; done
mkdir -p /data/objects /data/metadata /data/accounts
exec /data/gateway --port :7070 --quiet --iam-dir /data/accounts posix --sidecar /data/metadata /data/objects
"""


def secret(name: str, data: dict[str, str]) -> Object:
    """Return a Secret."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def run_store(hone: Cluster, images: Images, namespace: str) -> None:
    """Start a server without buckets at STORE, which accepts the keys of SECRET."""
    assert not (reason := find_missing_program()), reason
    hone.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "store"},
            "spec": {"selector": {"app": "store"}, "ports": [{"port": 7070}]},
        },
        namespace=namespace,
    )
    keys = [SECRET["AWS_ACCESS_KEY_ID"], SECRET["AWS_SECRET_ACCESS_KEY"]]
    roots = zip(("ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"), keys, strict=True)
    environment = [{"name": name, "value": value} for name, value in roots]
    probe = {"readinessProbe": {"tcpSocket": {"port": 7070}, "periodSeconds": 1}, "env": environment}
    server = pod("store", images.operator, "sh", "-euc", SERVE, **probe)
    server["spec"]["volumes"].append({"name": "data", "emptyDir": {}})
    server["spec"]["containers"][0]["volumeMounts"].append({"name": "data", "mountPath": "/data"})
    hone.create(server, namespace=namespace)
    hone.wait("pod", "store", lambda found: found["status"].get("phase") == "Running", namespace)
    hone.kubectl("cp", "--no-preserve", str(build()), f"{namespace}/store:/data/gateway")
    hone.kubectl(
        "exec", "store", "--", "sh", "-c", "chmod +x /data/gateway && touch /data/complete", namespace=namespace
    )
    hone.wait("pod", "store", condition("Ready"), namespace)
