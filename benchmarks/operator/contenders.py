"""The compared operators: how each is installed and started, and the object with which it makes one Job."""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import build_peers
import yaml
from apiserver import ApiServer, processes
from client import Client, Object
from simulation import STORAGE_CLASS

HERE = Path(__file__).parent
IMAGE = "registry.invalid/trainer:1"
WEBHOOK_PORTS = {"jobset": 19443, "trainer": 19444}
RUNTIME = "torch-distributed"
# Until the API server validates by a CRD that was changed.
SECONDS_UNTIL_SERVED = 3
PODS = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": IMAGE}]}


@dataclass(frozen=True)
class Contender:
    """`parts` are the programs that run; `ended` returns whether an object has reached its end.

    `checkout`: the folder of the Hone that runs, with its own .venv; by default, this one.
    """

    title: str
    api_version: str
    kind: str
    plural: str
    spec: Object
    parts: tuple[str, ...]
    ended: Callable[[Object], bool]
    checkout: Path | None = None

    def path(self, namespace: str) -> str:
        return f"/apis/{self.api_version}/namespaces/{namespace}/{self.plural}"

    def body(self, name: str) -> Object:
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": name}, "spec": self.spec}


def _has_condition(*types: str) -> Callable[[Object], bool]:
    def holds(found: Object) -> bool:
        conditions = (found.get("status") or {}).get("conditions") or []
        return any(each["type"] in types and each["status"] == "True" for each in conditions)

    return holds


def _make_hone(title: str, gpus: int) -> Contender:
    spec = {
        "model": {"name": "example/model"},
        "dataset": {"name": "example/data"},
        "output": {"storage": {"size": "1Gi", "storageClassName": STORAGE_CLASS}},
        "resources": {"gpus": gpus},
    }
    ended = _has_condition("Succeeded", "Failed")
    return Contender(title, "hone.dev/v1alpha1", "FineTuneJob", "finetunejobs", spec, ("hone",), ended)


CONTENDERS = {
    "hone": _make_hone("Hone", gpus=0),
    "prepared": _make_hone("Hone that prepares in a Job of its own", gpus=1),
    "jobset": Contender(
        "JobSet",
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        "jobsets",
        {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": PODS}}}}]},
        ("jobset",),
        _has_condition("Completed", "Failed"),
    ),
    "trainer": Contender(
        "Kubeflow Trainer",
        "trainer.kubeflow.org/v1alpha1",
        "TrainJob",
        "trainjobs",
        {"runtimeRef": {"name": RUNTIME}},
        ("jobset", "trainer"),
        _has_condition("Complete", "Failed"),
    ),
    "bare": Contender(
        "bare kopf handler",
        "bench.hone.dev/v1",
        "BareJob",
        "barejobs",
        {"model": "example/model"},
        ("bare",),
        lambda _: False,
    ),
}
# Hone of another commit, with --checkout.
OTHER = "other"
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


def add_checkout(folder: Path) -> None:
    """Add the Hone of another commit to the contenders, which was installed in this folder (`make install`)."""
    CONTENDERS[OTHER] = replace(CONTENDERS["hone"], title=f"Hone of {folder.name}", checkout=folder.resolve())


@contextmanager
def run_contender(name: str, server: ApiServer) -> Iterator[list[int]]:
    """Run the contender's processes, by pid, each as the user of the contender's name."""
    if "hone" in CONTENDERS[name].parts:
        install_hone_crds(server, CONTENDERS[name].checkout)
    environment = dict(
        os.environ,
        KUBECONFIG=str(server.kubeconfig_of(name)),
        HONE_RUNTIME_IMAGE=IMAGE,
        IMAGE=IMAGE,
        PYTHONWARNINGS="ignore",
        TMPDIR=str(server.folder),
    )
    commands = [_make_command(part, server.folder, CONTENDERS[name].checkout) for part in CONTENDERS[name].parts]
    with (
        (server.folder / f"{name}.log").open("ab") as log,
        processes(commands, environment, log.fileno()) as started,
    ):
        yield [process.pid for process in started]


def _make_command(part: str, folder: Path, checkout: Path | None) -> list[Any]:
    if part == "hone":
        return [find_python(checkout), "-m", "hone_operator", "--log-level", "warning"]
    if part == "bare":
        return [sys.executable, "-m", "kopf", "run", "--quiet", "--standalone", "-A", HERE / "bare_kopf.py"]
    return [build_peers.build_program(part), "--config", folder / f"{part}-config.yaml", "--zap-log-level=error"]


def install_contenders(server: ApiServer, names: Iterable[str]) -> None:
    """Install CRDs, webhooks and configurations: as shipped, except for ports, and without leader election."""
    client = Client(server.url)
    parts = {part for name in names for part in CONTENDERS[name].parts}
    _apply_crd(client, BARE_CRD)
    if "jobset" in parts:
        _create_certificate(server.folder)
        jobset = build_peers.download_source("jobset")
        install_crds(client, jobset / "config/components/crd/bases")
        _write_config(server.folder, "jobset", jobset / "config/components/manager/controller_manager_config.yaml")
        _install_webhooks(client, server.folder, "jobset", jobset / "config/components/webhook/manifests.yaml")
    if "trainer" in parts:
        trainer = build_peers.download_source("trainer")
        install_crds(client, trainer / "manifests/base/crds")
        client.apply(
            "/api/v1/namespaces/kubeflow-system",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow-system"}},
        )
        _write_config(server.folder, "trainer", trainer / "manifests/base/manager/controller_manager_config.yaml")
        _install_webhooks(client, server.folder, "trainer", trainer / "manifests/base/webhook/manifests.yaml")


def install_hone_crds(server: ApiServer, checkout: Path | None) -> None:
    """Install the CRDs of Hone's kinds, in place of those of another commit."""
    install_crds(Client(server.url), (checkout or HERE.parents[1]) / "charts/hone/files/crds")
    time.sleep(SECONDS_UNTIL_SERVED)


def find_python(checkout: Path | None) -> Path:
    """Return the interpreter that has a checkout's packages; without one, this interpreter."""
    return checkout / ".venv/bin/python" if checkout else Path(sys.executable)


def install_crds(client: Client, folder: Path) -> None:
    """Install all CRDs of a folder."""
    for file in sorted(folder.glob("*.yaml")):
        if file.name != "kustomization.yaml":
            _apply_crd(client, yaml.safe_load(file.read_text()))


def _apply_crd(client: Client, crd: Object) -> None:
    client.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}", crd)


def install_runtime(client: Client) -> None:
    """Install the Trainer's torch runtime, which its own webhook has to accept."""
    body = yaml.safe_load(
        (build_peers.download_source("trainer") / "manifests/base/runtimes/torch_distributed.yaml").read_text()
    )
    client.apply(f"/apis/{CONTENDERS['trainer'].api_version}/clustertrainingruntimes/{RUNTIME}", body)


def _write_config(folder: Path, part: str, shipped: Path) -> None:
    config = yaml.safe_load(shipped.read_text())
    certificates = "internalCertManagement" if part == "jobset" else "certManagement"
    config |= {
        "leaderElection": {"leaderElect": False},
        certificates: {"enable": False},
        "webhook": {"port": WEBHOOK_PORTS[part]},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": "0"},
    }
    (folder / f"{part}-config.yaml").write_text(yaml.safe_dump(config))


def _create_certificate(folder: Path) -> None:
    """Write the certificate where controller-runtime looks for it, in the temporary folder."""
    where = folder / "k8s-webhook-server/serving-certs"
    where.mkdir(parents=True)
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=webhooks", "-days", "2"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", where / "tls.key", "-out", where / "tls.crt"]
    subprocess.run(request, check=True, capture_output=True)


def _install_webhooks(client: Client, folder: Path, part: str, shipped: Path) -> None:
    bundle = base64.b64encode((folder / "k8s-webhook-server/serving-certs/tls.crt").read_bytes()).decode()
    for body in yaml.safe_load_all(shipped.read_text()):
        if not body:
            continue
        for webhook in body["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {
                "url": f"https://127.0.0.1:{WEBHOOK_PORTS[part]}{path}",
                "caBundle": bundle,
            }
            if path.endswith("--v1-pod"):  # as JobSet's kustomization has it
                selector = {"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}
                webhook["objectSelector"] = {"matchExpressions": [selector]}
        body["metadata"]["name"] = f"{part}-{body['metadata']['name']}"
        plural = body["kind"].lower() + "s"
        client.apply(f"/apis/admissionregistration.k8s.io/v1/{plural}/{body['metadata']['name']}", body)
