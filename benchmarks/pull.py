"""MB a second of `hone pull` from a claim of a cluster: against a bare `kubectl exec … tar` in the same pod.

Hone's figure is that of the transfer: with the digests proved on arrival and all forced to the disk, without the start
of the pod, which tar finds running. Both alternate, and the order changes every round. Goal: at least 0.8 of tar.
KUBECONFIG names the cluster, on which Hone is installed: the benchmark uses the image of its operator, and a namespace
of its own.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import print_comparison
from hone.artifacts import pod_script, reader_pod
from hone.artifacts.pull import pull_artifact
from hone.artifacts.transfer import Session
from hone.kube.cluster import connect
from hone_api.artifacts.manifest import read_manifest
from hone_api.layout import make_artifact_path

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/trainer")]

from pushed_artifacts import write_artifact

Object = dict[str, Any]
NAMESPACE, NAME = "hone-pull-benchmark", "artifact"
OPERATOR = "app.kubernetes.io/name=hone,app.kubernetes.io/component=operator"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="the size of the artifact, in four files")
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as name:
        root = write_artifact(Path(name) / "artifact", "model", shards=(size // 4,) * 4)
        rates: dict[str, list[float]] = {"hone": [], "tar": []}
        kubectl("create", "namespace", NAMESPACE)
        try:
            image = find_image()
            fill_claim(root, image, size)
            job = {"apiVersion": "", "kind": "", "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": ""}}
            body = reader_pod.make_pod("reader", {**job, "spec": {}}, image, None, ())
            del body["metadata"]["ownerReferences"]
            cluster = connect(None, NAMESPACE)
            with reader_pod.open_pod(cluster, body) as pod:
                for number in range(options.rounds):
                    for who in list(rates) if number % 2 == 0 else reversed(rates):
                        target = Path(name) / "pulled"
                        target.mkdir()
                        began = time.perf_counter()
                        if who == "tar":
                            pull_with_tar(pod, target)
                        else:
                            digest = read_manifest(root).digest
                            pull_artifact(Session(cluster, pod), target, digest, lambda sizes: lambda path, count: None)
                        rates[who].append(size / 1e6 / (time.perf_counter() - began))
                        shutil.rmtree(target)
        finally:
            kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    print_comparison(f"an artifact of {options.gigabytes:g} GB", "MB/s", rates["hone"], rates["tar"], "tar")


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Return the output of kubectl. Exits with its error when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def find_image() -> str:
    """Return the image of Hone's operator, which has Python and tar."""
    pods = json.loads(kubectl("get", "pods", "--all-namespaces", "--selector", OPERATOR, "--output", "json"))["items"]
    if not pods:
        sys.exit(f"No pod has the labels {OPERATOR}: install Hone on the cluster.")
    return str(pods[0]["spec"]["containers"][0]["image"])


def fill_claim(root: Path, image: str, size: int) -> None:
    """Copy the artifact to a new claim, by a pod that ends afterwards."""
    storage = {"requests": {"storage": str(2 * size)}}
    claim = {"metadata": {"name": NAME}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": storage}}
    container = {
        "name": "writer",
        "image": image,
        "command": ["sleep", "3600"],
        "volumeMounts": [{"name": "claim", "mountPath": "/output"}],
    }
    spec = {
        "containers": [container],
        "securityContext": dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), reader_pod.USER),
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": NAME}}],
    }
    pod = {"metadata": {"name": "writer"}, "spec": spec}
    for kind, made in (("PersistentVolumeClaim", claim), ("Pod", pod)):
        kubectl("create", "-n", NAMESPACE, "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": kind, **made}))
    kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", "pod/writer", "--timeout=300s")
    folder = f"/output/{make_artifact_path(NAMESPACE, NAME)}"
    unpack = ["kubectl", "exec", "-i", "-n", NAMESPACE, "writer", "--", "sh", "-c"]
    unpack.append(f"mkdir -p {folder} && tar xf - -C {folder}")
    with subprocess.Popen(["tar", "cf", "-", "-C", root, "."], stdout=subprocess.PIPE) as packing:
        subprocess.run(unpack, stdin=packing.stdout, check=True)
    kubectl("delete", "-n", NAMESPACE, "pod", "writer")


def pull_with_tar(pod: str, target: Path) -> None:
    """Copy what the reading pod has mounted by `kubectl exec … tar`."""
    pack = ["kubectl", "exec", "-n", NAMESPACE, pod, "--", "tar", "cf", "-", "-C", pod_script.ROOT, "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
        subprocess.run(["tar", "xf", "-", "-C", target], stdin=packing.stdout, check=True)
    if packing.returncode:
        sys.exit("kubectl exec … tar failed")


if __name__ == "__main__":
    main()
