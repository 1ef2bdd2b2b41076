"""Simulate pods of Jobs that run and end without containers: Kubernetes' controllers and scheduler, and KWOK."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import build_peers
import yaml
from apiserver import ApiServer, processes
from client import Client, Object
from hone_api.artifacts.trainer_reports import ArtifactSummary, Progress, TerminationMessage

NODE = "node-0"
POD_CIDR = "127.1.0.0/16"
STORAGE_CLASS = "kwok-volume"
STAGES = (
    "kustomize/stage/node/fast/node-initialize.yaml",
    "kustomize/stage/pod/fast/pod-delete.yaml",
    "kustomize/stage/volume/fast/pvc-provision.yaml",
    "kustomize/stage/volume/fast/pv-bind.yaml",
)
TERMINATION_MESSAGE = TerminationMessage(
    outcome="Succeeded",
    reason="Succeeded",
    message="The artifact is complete.",
    progress=Progress(step=100, total_steps=100, percent=100, loss=1.25),
    metrics={"trainLoss": 1.25, "trainRuntime": 60.0},
    artifact=ArtifactSummary(kind="adapter", digest=f"sha256:{'0' * 64}", base_model="example/model"),
)


@contextmanager
def simulate_pods(server: ApiServer, *, pod_seconds: float) -> Iterator[None]:
    """While the context lasts, let pods of Jobs run for this long and then succeed. Their addresses are loopback."""
    client = Client(server.url)
    stages = [yaml.safe_load((build_peers.download_source("kwok") / file).read_text()) for file in STAGES]
    config = server.folder / "kwok.yaml"
    config.write_text(yaml.safe_dump_all([*stages, _make_running_stage(), _make_ended_stage(pod_seconds)]))
    manager = [server.programs / "kube-controller-manager", "--kubeconfig", server.kubeconfig_of("controllers")]
    manager += ["--controllers=job-controller", "--leader-elect=false", "--secure-port=0"]
    scheduler = [server.programs / "kube-scheduler", "--kubeconfig", server.kubeconfig_of("scheduler")]
    scheduler += ["--leader-elect=false", "--secure-port=0"]
    limits = ["--kube-api-qps=1000", "--kube-api-burst=1000"]
    kwok = [build_peers.build_program("kwok"), "--kubeconfig", server.kubeconfig_of("kwok"), "--config", config]
    kwok += ["--manage-all-nodes", "--node-lease-duration-seconds=40", f"--cidr={POD_CIDR}"]
    _create_storage_class(client)
    with (
        (server.folder / "simulation.log").open("ab") as log,
        processes([manager + limits, scheduler + limits, kwok], dict(os.environ), log.fileno()),
    ):
        _create_node(client, NODE)
        yield


def _create_storage_class(client: Client) -> None:
    body = yaml.safe_load(
        (build_peers.download_source("kwok") / "kustomize/stage/volume/fast/storage-class.yaml").read_text()
    )
    client.apply(f"/apis/storage.k8s.io/v1/storageclasses/{STORAGE_CLASS}", body)


def _create_node(client: Client, name: str) -> None:
    path = f"/api/v1/nodes/{name}"
    client.apply(path, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    room = {"cpu": "100000", "memory": "100Ti", "pods": "100000", "amd.com/gpu": "100000"}
    client.patch(f"{path}/status", {"status": {"capacity": room, "allocatable": room}})
    # New nodes get the taint "not ready", which a controller that does not run here takes off.
    client.patch(path, {"spec": {"taints": None}})


def _make_stage(name: str, phase: str, template: str, seconds: float = 0) -> Object:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {
                "matchExpressions": [
                    {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
                    {"key": ".status.phase", "operator": "In", "values": [phase]},
                ]
            },
            "delay": {"durationMilliseconds": int(seconds * 1000)},
            "next": {"statusTemplate": template},
        },
    }


def _make_running_stage() -> Object:
    return _make_stage(
        "pod-runs",
        "Pending",
        """
conditions:
{{ range $type := (list "Initialized" "Ready" "ContainersReady") }}
- {lastTransitionTime: {{ Now | Quote }}, status: "True", type: {{ $type }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ Now | Quote }}}}
{{ end }}
{{ $ip := index (PodIPsWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace) 0 }}
podIP: {{ $ip }}
podIPs: [{ip: {{ $ip }}}]
phase: Running
startTime: {{ Now | Quote }}
""",
    )


def _make_ended_stage(seconds: float) -> Object:
    words = TERMINATION_MESSAGE.to_bytes().decode().replace("'", "''")
    return _make_stage(
        "pod-ends",
        "Running",
        f"""
conditions:
- {{lastTransitionTime: {{{{ Now | Quote }}}}, status: "False", type: Ready, reason: PodCompleted}}
containerStatuses:
{{{{ range .spec.containers }}}}
- name: {{{{ .name | Quote }}}}
  image: {{{{ .image | Quote }}}}
  ready: false
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      message: '{words}'
      startedAt: {{{{ Now | Quote }}}}
      finishedAt: {{{{ Now | Quote }}}}
{{{{ end }}}}
phase: Succeeded
""",
        seconds,
    )
