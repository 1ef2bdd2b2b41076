"""Run a private etcd and kube-apiserver on free ports, without kubelets and controllers.

For tests and benchmarks of the operator's use of the API server. The programs are those of the local cluster
(`make cluster-up` builds them).
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import kubernetes
import urllib3
import yaml
from hone_api.io.durable_files import write_atomically
from kubernetes.client import ApiClient, ApiextensionsV1Api, CoreV1Api

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "charts/hone/files/crds"
ADMIN = "admin"
IMAGE = "registry.invalid/hone-runtime:1"
# Below the ports that systems choose from for the local end of a connection, and Kubernetes for its node ports.
PORTS = range(10_000, 30_000)
SECONDS_TO_START = 120
SECONDS_TO_END = 10
# Runs the operator with other values of constants: argv[1] has them in JSON, by "module.NAME".
WITH_SETTINGS = """
import importlib, json, sys
from hone_operator import main
for path, value in json.loads(sys.argv[1]).items():
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(module), name), path
    setattr(importlib.import_module(module), name, value)
main.main(sys.argv[2:])
"""


@dataclass(frozen=True)
class ApiServer:
    """A running API server. Any user of `users` has a kubeconfig."""

    url: str
    folder: Path
    programs: Path

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of the administrator."""
        return self.kubeconfig_of(ADMIN)

    def kubeconfig_of(self, user: str, url: str | None = None) -> Path:
        """Return a kubeconfig of this user, whose token is the name. `url`: that of a proxy in front of the server."""
        file = self.folder / f"{user.replace(':', '-')}-{(url or self.url).rpartition(':')[2]}.conf"
        cluster = {"server": url or self.url, "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        if not file.exists():
            write_atomically(file, yaml.safe_dump(config))  # programs that run may read it now
        return file

    def client(self, user: str = ADMIN) -> ApiClient:
        return kubernetes.config.new_client_from_config(str(self.kubeconfig_of(user)))

    def install_crds(self) -> None:
        extensions = ApiextensionsV1Api(self.client())
        for file in sorted(CRDS.glob("*.yaml")):
            extensions.create_custom_resource_definition(yaml.safe_load(file.read_text()))
        core = kubernetes.client.CustomObjectsApi(self.client())
        for file in sorted(CRDS.glob("*.yaml")):
            plural = yaml.safe_load(file.read_text())["spec"]["names"]["plural"]
            _until(lambda name=plural: core.list_cluster_custom_object("hone.dev", "v1alpha1", name))  # type: ignore[misc]


def programs() -> Path | None:
    """Return the folder with kube-apiserver and etcd; None before it is built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = sorted(cache.glob("hone/cluster/*/bin/kube-apiserver"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


@contextmanager
def api_server(
    folder: Path, *, users: dict[str, tuple[str, ...]] | None = None, flags: tuple[str, ...] = ()
) -> Iterator[ApiServer]:
    """Run an API server until the context ends. `users`: names and groups; with any, RBAC is enforced."""
    bin_ = programs()
    if bin_ is None:
        raise RuntimeError("there is no kube-apiserver yet: `make cluster-up` builds it")
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    folder.mkdir(parents=True, exist_ok=True)
    key, tokens = folder / "key", folder / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    everybody = {ADMIN: ("system:masters",), **(users or {})}
    tokens.write_text("".join(f'{name},{name},{name},"{",".join(groups)}"\n' for name, groups in everybody.items()))
    client_port, peer_port, api_port = free_ports(3)
    etcd_url, peer_url = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    etcd = [bin_ / "etcd", "--unsafe-no-fsync", "--data-dir", folder / "etcd", "--log-level", "error"]
    etcd += ["--listen-client-urls", etcd_url, "--advertise-client-urls", etcd_url, "--listen-peer-urls", peer_url]
    server = [bin_ / "kube-apiserver", "--etcd-servers", etcd_url, "--secure-port", api_port]
    server += ["--cert-dir", folder / "certificates", "--token-auth-file", tokens]
    server += ["--authorization-mode", "RBAC" if users else "AlwaysAllow", "--endpoint-reconciler-type", "none"]
    server += ["--service-account-issuer", "https://test", "--service-account-key-file", key]
    server += ["--service-account-signing-key-file", key, "--service-cluster-ip-range", "10.99.0.0/24"]
    server += ["--disable-admission-plugins", "ServiceAccount", *flags]
    log = (folder / "log").open("w")
    # The processes are killed: a terminated API server would wait for open watches.
    with log, processes([etcd, server], dict(os.environ), log.fileno(), end=signal.SIGKILL):
        found = ApiServer(f"https://127.0.0.1:{api_port}", folder, bin_)
        _until(lambda: CoreV1Api(found.client()).read_namespace("default"))
        yield found


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens. No connection of another process takes one before it is used."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found += [port] if port not in found else []
    return found


def _until(works: object) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            works()  # type: ignore[operator]
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


@contextmanager
def processes(
    commands: list[list[object]], environment: dict[str, str], output: int | None = None, *, end: int = signal.SIGTERM
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the commands until the context ends, which sends them the signal `end`."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            words = [str(word) for word in command]
            started.append(subprocess.Popen(words, env=environment, stdout=output, stderr=output))
        yield started
    finally:
        for process in reversed(started):
            process.send_signal(end)
        for process in started:
            try:
                process.wait(timeout=SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def operator(
    kubeconfig: Path,
    *arguments: str,
    log: Path | None = None,
    settings: dict[str, float] | None = None,
    python: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Hone's operator as a local process, until the context ends or the test ends it.

    `settings`: other values of the operator's constants, by "module.NAME", so that a test need not wait for long.
    `python`: the interpreter of another checkout.
    """
    environment = dict(os.environ, KUBECONFIG=str(kubeconfig), HONE_RUNTIME_IMAGE=IMAGE, PYTHONWARNINGS="ignore")
    command: list[object] = [python or sys.executable, "-c", WITH_SETTINGS, json.dumps(settings or {}), *arguments]
    with (log or Path(os.devnull)).open("ab") as out, processes([command], environment, out.fileno()) as started:
        yield started[0]
