"""Fake nodes: objects that the scheduler and the controllers treat as real, and on which nothing ever runs."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from kube import Cluster

Object = dict[str, Any]
FAKE = "hone.dev/fake"
TOLERATION = {"key": FAKE, "operator": "Exists"}
HEARTBEAT_SECONDS = 10.0


@contextmanager
def fake_nodes(cluster: Cluster, **nodes: Object) -> Iterator[None]:
    """Create nodes until the context ends: `capacity`, `labels`, and `allocatable`, `ready`, `unschedulable`, `dies`.

    All have a taint, so that only pods that tolerate it are placed there. The heartbeat of a node that `dies` is not
    renewed: Kubernetes considers it lost after about 40 seconds.
    """
    ended = threading.Event()
    alive = [name for name, node in nodes.items() if node.get("ready", True) and not node.get("dies")]
    heart = threading.Thread(target=_renew_heartbeats, args=(cluster, alive, ended))
    try:
        for name, node in nodes.items():
            _make(cluster, name, **node)
        heart.start()
        yield
    finally:
        ended.set()
        if heart.ident:
            heart.join()
        cluster.kubectl("delete", "node", "--ignore-not-found", *nodes)


def _renew_heartbeats(cluster: Cluster, names: list[str], ended: threading.Event) -> None:
    """Report the nodes as ready again and again, as kubelets do."""
    while not ended.wait(HEARTBEAT_SECONDS):
        for name in names:
            with suppress(AssertionError, subprocess.TimeoutExpired):  # the next heartbeat will do
                _set_ready(cluster, name, True)


def _make(
    cluster: Cluster,
    name: str,
    *,
    capacity: dict[str, str],
    allocatable: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    unschedulable: bool = False,
    ready: bool = True,
    dies: bool = False,
) -> None:
    taints = [{"key": FAKE, "value": "true", "effect": "NoSchedule"}]
    spec = {"taints": taints, "unschedulable": unschedulable}
    cluster.create(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels or {}}, "spec": spec}
    )
    room = {"cpu": "64", "memory": "256Gi", "pods": "110"}
    has = room | capacity
    _set_status(
        cluster, name, {"capacity": has, "allocatable": room | (capacity if allocatable is None else allocatable)}
    )
    _set_ready(cluster, name, ready)


def _set_ready(cluster: Cluster, name: str, ready: bool) -> None:
    """Set the condition Ready as the kubelet does, or as Kubernetes does when the kubelet is silent."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    words = {"reason": "KubeletReady", "message": "kubelet is posting ready status"}
    if not ready:
        words = {"reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."}
    condition = {"type": "Ready", "status": "True" if ready else "Unknown", "lastTransitionTime": now, **words}
    _set_status(cluster, name, {"conditions": [condition | {"lastHeartbeatTime": now}]})


def _set_status(cluster: Cluster, name: str, status: Object) -> None:
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "node", name, "--subresource=status", "--type=merge", f"--patch={patch}")
