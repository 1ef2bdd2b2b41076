"""From creating objects to their Jobs: Hone's operator against a bare kopf handler. Goal: at most 1.5 times as long.

Starts an etcd and an API server of its own, without anything that runs pods, from the programs of the local cluster
(`make cluster-up` builds them). Both operators run here as processes, in turns, on the same API server.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import kubernetes
from common import compare
from kubernetes.client import (
    ApiClient,
    ApiextensionsV1Api,
    BatchV1Api,
    CoreV1Api,
    CustomObjectsApi,
    V1Namespace,
    V1ObjectMeta,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests/cluster"))

from apiserver import api_server, processes  # noqa: E402

IMAGE = "registry.invalid/trainer:1"
SECONDS_TO_SETTLE = 120
CREATORS = 8

KINDS = {
    "hone": (
        ("hone.dev", "v1alpha1", "finetunejobs"),
        "FineTuneJob",
        {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}},
    ),
    "bare": (("bench.hone.dev", "v1", "barejobs"), "BareJob", {"model": "example/model"}),
}
COMMANDS = {
    "hone": [sys.executable, "-m", "hone_operator", "--log-level", "warning"],
    "bare": [sys.executable, "-m", "kopf", "run", "--quiet", "--standalone", "-A", str(HERE / "bare_kopf.py")],
}
BARE_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "barejobs.bench.hone.dev"},
    "spec": {
        "group": "bench.hone.dev",
        "names": {"kind": "BareJob", "plural": "barejobs", "singular": "barejob"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=10, help="objects created one by one, a round")
    parser.add_argument("--many", type=int, default=200, help="objects created at once, a round")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    one: dict[str, list[float]] = {kind: [] for kind in KINDS}
    many: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name, api_server(Path(name)) as server:
        kubeconfig = server.kubeconfig
        kubernetes.config.load_kube_config(str(kubeconfig))
        ApiextensionsV1Api().create_custom_resource_definition(BARE_CRD)
        server.install_crds()
        for number in range(options.rounds):
            for kind in sorted(KINDS, reverse=bool(number % 2)):
                with operator(kind, kubeconfig), namespace(f"{kind}-{number}") as space:
                    seconds_to_jobs(kind, space, ["warm-up"])
                    singles = [seconds_to_jobs(kind, space, [f"single-{each}"]) for each in range(options.singles)]
                    one[kind].append(statistics.median(singles))
                    names = [f"many-{each}" for each in range(options.many)]
                    many[kind].append(seconds_to_jobs(kind, space, names))
    compare("1 object", "s to its Job", one["hone"], one["bare"], "bare kopf handler")
    compare(f"{options.many} objects", "s to the last Job", many["hone"], many["bare"], "bare kopf handler")


def seconds_to_jobs(kind: str, space: str, names: list[str]) -> float:
    """Create the objects and wait for the Job of each. Seconds from before the first creation to the last Job."""
    (group, version, plural), kind_name, spec = KINDS[kind]
    wanted, started, finished = {f"{name}-train" for name in names}, 0.0, threading.Event()
    listing = BatchV1Api().list_namespaced_job(space)

    def watch() -> None:
        stream = kubernetes.watch.Watch().stream(
            BatchV1Api(ApiClient()).list_namespaced_job,
            space,
            resource_version=listing.metadata.resource_version,
            timeout_seconds=SECONDS_TO_SETTLE,
        )
        for event in stream:
            wanted.discard(event["object"].metadata.name)
            if not wanted:
                finished.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    objects = CustomObjectsApi()

    def create(name: str) -> None:
        body = {"apiVersion": f"{group}/{version}", "kind": kind_name, "metadata": {"name": name}, "spec": spec}
        objects.create_namespaced_custom_object(group, version, space, plural, body)

    started = time.monotonic()
    with ThreadPoolExecutor(CREATORS) as pool:
        list(pool.map(create, names))
    if not finished.wait(SECONDS_TO_SETTLE):
        sys.exit(f"{kind}: {len(wanted)} of {len(names)} Jobs were not there after {SECONDS_TO_SETTLE} s")
    return time.monotonic() - started


@contextmanager
def operator(kind: str, kubeconfig: Path) -> Iterator[None]:
    environment = dict(
        os.environ, KUBECONFIG=str(kubeconfig), HONE_RUNTIME_IMAGE=IMAGE, IMAGE=IMAGE, PYTHONWARNINGS="ignore"
    )
    with processes([COMMANDS[kind]], environment):
        yield


@contextmanager
def namespace(name: str) -> Iterator[str]:
    CoreV1Api().create_namespace(V1Namespace(metadata=V1ObjectMeta(name=name)))
    yield name


if __name__ == "__main__":
    main()
