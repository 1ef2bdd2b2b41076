"""The tiny model of the cluster tests, which a namespace gets as a copy.

This machine makes it once for each seed, since each pod that imports torch for that takes many seconds. A ConfigMap
takes it to the cluster: all of its files have about 450 KB, and a ConfigMap may have 1 MiB.
"""

import base64
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

from kube import Cluster, Images, pod, run

HIDDEN = "64"
SCRIPT = Path(__file__).with_name("make_model.py")


def put_model(cluster: Cluster, images: Images, namespace: str, claim: str = "models", seed: int = 0) -> None:
    """Write the model to the folder `tiny` of the claim."""
    name = f"copy-to-{claim}"
    files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "binaryData": _files(seed)}
    copy = "mkdir -p /claim/tiny && cp -L /files/* /claim/tiny"
    copier: dict[str, Any] = pod(name, images.operator, "sh", "-c", copy, claims={claim: "/claim"})
    copier["spec"]["volumes"].append({"name": "files", "configMap": {"name": name}})
    copier["spec"]["containers"][0]["volumeMounts"].append({"name": "files", "mountPath": "/files"})
    cluster.create(files, namespace=namespace)
    cluster.run_pod(copier, namespace)


@functools.cache
def _files(seed: int) -> dict[str, str]:
    """Return the content of each file, in base64."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, SCRIPT, folder, HIDDEN, str(seed))
        return {path.name: base64.b64encode(path.read_bytes()).decode() for path in Path(folder).iterdir()}
