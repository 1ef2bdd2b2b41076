"""The pod of --deep: its manifest, its run, and its deletion in every case.

It is non-root and read-only, and holds one GPU, because only a pod that holds a GPU has its device files.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.kube import rest, temporary_pod
from hone.kube.cluster import Cluster
from hone_api.gpus import is_gpu_resource
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone_cli.doctor.checks.cluster_facts import ClusterFacts, Node, Object
from hone_cli.doctor.checks.findings import Unread, count_nodes
from hone_cli.doctor.checks.gpus import CLAIMED, CLAIMED_SINCE, DEFAULT, count_gpus, is_unhealthy
from hone_cli.ui import output

LABEL, CONTAINER = "hone.dev/doctor", "doctor"
SCRIPT = Path(__file__).with_name("pod_script.py")
MESSAGE = "/dev/termination-log"
POLL_SECONDS = 1.0
# That the pod may run on.
MOST_NODES = 20
LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Target:
    """Where the pod runs and what it requests. `resource` None: no GPU. `node` None: any.

    `others`: further suitable nodes, because all GPUs of the first one may be in use.
    """

    node: str | None = None
    resource: str | None = None
    tolerations: tuple[Object, ...] = ()
    groups: tuple[int, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probed:
    """How the pod ended. `answer`: its output; `reason` and `error`: why there is no answer."""

    target: Target
    answer: Mapping[str, Any] | None = None
    reason: str = ""
    error: str = ""
    node: str = ""


def choose_target(facts: ClusterFacts, node: str | None, groups: tuple[int, ...]) -> Target:
    """Return the open nodes with the most GPUs and the same resource, or the one that the user named."""
    if isinstance(facts.nodes, Unread):
        return Target(node, DEFAULT, (), groups)
    devices = () if isinstance(facts.devices, Unread) else facts.devices
    claimed = {device.node for device in devices} if facts.version >= CLAIMED_SINCE else set()
    candidates = [each for each in facts.nodes if node in (None, each.name)]
    usable = [each for each in candidates if each.takes_pods and not is_unhealthy(each)] or candidates
    best = max(usable, key=lambda each: (count_gpus(each), each.name in claimed), default=None)
    if best is None:
        return Target(node, None, (), groups)
    resource = _choose_resource(best) or (CLAIMED if best.name in claimed else None)
    if resource is None and node is None:
        return Target(None, None, (), groups)
    alike = [each for each in usable if each is not best and _choose_resource(each) == resource is not None]
    others = sorted(alike, key=count_gpus, reverse=True)[: MOST_NODES - 1]
    taints = dict.fromkeys((taint.key, taint.effect) for each in (best, *others) for taint in each.taints)
    tolerations = tuple(
        {"key": key, "operator": "Exists", "effect": effect}
        for key, effect in taints
        if not key.startswith("node.kubernetes.io/")
    )
    return Target(best.name, resource, tolerations, groups, tuple(each.name for each in others))


def make_pod(name: str, image: str, target: Target, hub: str, images: Sequence[str], seconds: int) -> Object:
    """Return the manifest, which fits the Pod Security level `restricted`."""
    limits = {"cpu": "500m", "memory": "256Mi", "ephemeral-storage": "64Mi"}
    if target.resource:
        limits[target.resource] = "1"
    spec: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": seconds,
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "supplementalGroups": list(target.groups),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [{"key": DEFAULT, "operator": "Exists"}, *target.tolerations],
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "command": ["python3", "-c", SCRIPT.read_text(), MESSAGE, hub, *images],
                "terminationMessagePath": MESSAGE,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "resources": {"requests": dict(limits) | {"cpu": "10m"}, "limits": limits},
                "securityContext": temporary_pod.CONTAINER_SECURITY,
            }
        ],
    }
    if target.node:
        names = (target.node, *target.others)
        fields = [{"key": "metadata.name", "operator": "In", "values": [name]} for name in names]  # each takes one name
        terms = {"nodeSelectorTerms": [{"matchFields": [field]} for field in fields]}
        spec["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    labels = {LABEL: "true", "app.kubernetes.io/managed-by": "hone-cli"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def run_probe(cluster: Cluster, image: str, target: Target, hub: str, images: Sequence[str], seconds: int) -> Probed:
    """Run the pod and return how it ended; it is deleted in every case, also after Ctrl-C and SIGTERM."""
    name = (
        f"hone-doctor-{uuid.uuid4().hex[:10]}"  # chosen here, so that the pod can be deleted even if the answer is lost
    )
    place = f"/api/v1/namespaces/{cluster.namespace}/pods"
    body = make_pod(name, image, target, hub, images, seconds)
    may_exist = False
    with temporary_pod.interrupt_on_signals():
        try:
            if missing := temporary_pod.find_missing_rights(cluster):
                error = f"you may not {', '.join(missing)} pods in namespace {cluster.namespace}"
                return Probed(target, reason="RightsMissing", error=error)
            may_exist = True
            rest.call_api(cluster, place, method="POST", body=body)
            output.print_hint(f"Pod {name} in namespace {cluster.namespace} checks {_describe_place(target)} …")
            return _await_end(cluster, f"{place}/{name}", target, seconds)
        except (ApiException, HTTPError) as error:
            may_exist = may_exist and not temporary_pod.is_final(error)
            return Probed(target, reason="PodRefused", error=rest.describe_error(error))
        finally:
            if may_exist:
                temporary_pod.delete_pod(cluster, place, name)


def has_ended(pod: Object) -> bool:
    """Return whether the script has ended; an injected sidecar may keep its pod for longer."""
    status = pod.get("status") or {}
    return status.get("phase") in ("Succeeded", "Failed") or any(
        (container.get("state") or {}).get("terminated") for container in temporary_pod.find_statuses(pod, CONTAINER)
    )


def read_answer(pod: Object) -> tuple[Mapping[str, Any] | None, str]:
    """Return the script's termination message, or None and why the pod ended without one."""
    status = pod.get("status") or {}
    reason = " ".join(str(status[key]) for key in ("reason", "message") if status.get(key))
    for container in temporary_pod.find_statuses(pod, CONTAINER):
        ended = (container.get("state") or {}).get("terminated") or {}
        text = str(ended.get("message") or "")
        try:
            found = json.loads(text)
        except ValueError:
            reason = f"{reason or ended.get('reason') or ''} {text.strip()[-LONGEST_MESSAGE:]}".strip()
        else:
            return (found, "") if isinstance(found, dict) else (None, text)
    return None, reason


def _describe_place(target: Target) -> str:
    if target.others:
        return f"one of {count_nodes(1 + len(target.others))} with GPUs"
    return target.node or "a node"


def _choose_resource(node: Node) -> str | None:
    offered = sorted(name for name, count in node.allocatable.items() if count and is_gpu_resource(name))
    return DEFAULT if DEFAULT in offered else next(iter(offered), None)


def _await_end(cluster: Cluster, path: str, target: Target, seconds: int) -> Probed:
    deadline = time.monotonic() + seconds
    node, pending = "", "it was not read once"
    while True:
        try:
            pod = rest.call_api(cluster, path)
        except (ApiException, HTTPError) as error:
            if temporary_pod.is_final(error):
                return Probed(target, None, "PodLost", rest.describe_error(error), node)
            pending = rest.describe_error(error)
        else:
            node = str((pod.get("spec") or {}).get("nodeName") or "")
            pending = temporary_pod.describe_pending(pod, CONTAINER)
            if has_ended(pod):
                answer, text = read_answer(pod)
                return Probed(target, answer, "" if answer else "NoAnswer", text, node)
            if waiting := temporary_pod.judge_waiting(pod, CONTAINER):
                return Probed(target, None, *waiting, node)
        if time.monotonic() > deadline:
            return Probed(target, None, "Timeout", pending, node)
        time.sleep(POLL_SECONDS)
