"""From creating objects to their Jobs: Hone's operator against a bare kopf handler. Goal: at most 1.5 times as long.

Starts an etcd and an API server of its own, without anything that runs pods, from the programs of the local cluster
(`make cluster-up` builds them). Both operators run here as processes, in turns, on the same API server.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import kubernetes
import urllib3
import yaml
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
CRDS = HERE.parent / "charts" / "hone" / "files" / "crds"
IMAGE = "registry.invalid/trainer:1"
SECONDS_TO_SETTLE = 120
CREATORS = 8
CLIENT_PORT, PEER_PORT, API_PORT = 23890, 23900, 16543

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
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    one: dict[str, list[float]] = {kind: [] for kind in KINDS}
    many: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name, api_server(Path(name)) as kubeconfig:
        kubernetes.config.load_kube_config(str(kubeconfig))
        extensions = ApiextensionsV1Api()
        for crd in [BARE_CRD, *(yaml.safe_load(file.read_text()) for file in sorted(CRDS.glob("*.yaml")))]:
            extensions.create_custom_resource_definition(crd)
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


@contextmanager
def api_server(folder: Path) -> Iterator[Path]:
    """A kubeconfig of an API server that lasts as long as the context."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    programs = sorted(cache.glob("hone/cluster/*/bin/kube-apiserver"), key=lambda path: path.stat().st_mtime)
    if not programs:
        sys.exit("There is no kube-apiserver yet: `make cluster-up` builds it.")
    key, tokens, kubeconfig = folder / "key", folder / "tokens.csv", folder / "kubeconfig"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens.write_text("token,admin,admin,system:masters\n")
    client_url, peer_url = f"http://127.0.0.1:{CLIENT_PORT}", f"http://127.0.0.1:{PEER_PORT}"
    etcd = [programs[-1].with_name("etcd"), "--unsafe-no-fsync", "--data-dir", folder / "etcd"]
    etcd += ["--listen-client-urls", client_url, "--advertise-client-urls", client_url]
    etcd += ["--listen-peer-urls", peer_url]
    server = [
        programs[-1],
        "--etcd-servers",
        client_url,
        "--secure-port",
        API_PORT,
        "--cert-dir",
        folder / "certificates",
    ]
    server += ["--token-auth-file", tokens, "--authorization-mode", "AlwaysAllow", "--endpoint-reconciler-type", "none"]
    server += ["--service-account-issuer", "https://benchmark", "--service-account-key-file", key]
    server += ["--service-account-signing-key-file", key, "--service-cluster-ip-range", "10.99.0.0/24"]
    server += ["--disable-admission-plugins", "ServiceAccount"]
    cluster = {"server": f"https://127.0.0.1:{API_PORT}", "insecure-skip-tls-verify": True}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "benchmark", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": "token"}}],
        "contexts": [{"name": "benchmark", "context": {"cluster": "benchmark", "user": "admin"}}],
        "current-context": "benchmark",
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    with (folder / "log").open("w") as log, processes([etcd, server], dict(os.environ), log.fileno()):
        wait_until_served(kubeconfig)
        yield kubeconfig


def wait_until_served(kubeconfig: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_SETTLE
    client = kubernetes.config.new_client_from_config(str(kubeconfig))
    while time.monotonic() < deadline:
        try:
            CoreV1Api(client).read_namespace("default")
            return
        except Exception:
            time.sleep(0.5)
    sys.exit("the API server did not come up")


@contextmanager
def processes(commands: list[list[object]], environment: dict[str, str], output: int | None = None) -> Iterator[None]:
    """Run the commands until the context ends."""
    started = []
    try:
        for command in commands:
            words = [str(word) for word in command]
            started.append(subprocess.Popen(words, env=environment, stdout=output, stderr=output))
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # an API server waits for the watches that are open
                process.kill()


if __name__ == "__main__":
    main()
