"""Explain why no node takes a pod.

In: the scheduler's message and facts about nodes. Out: a failure that adds to the message what the nodes lack, and a
remedy that names fields of the object. Single nodes: node_fit.py.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from hone_api.gpus import is_gpu_resource
from hone_api.reasons import UNSCHEDULABLE, VOLUME_NOT_BOUND, HoneError

from hone_operator.diagnosis.node_fit import (
    PodRequirements,
    UnmetRequirement,
    find_request_field,
    find_unmet_requirements,
    read_pod_requirements,
)
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.diagnosis.volumes import list_claims
from hone_operator.objects.quantity import format_quantity, format_resource_amount
from hone_operator.objects.resources import Object

MAX_NODES = 3
SHOW_VOLUMES_COMMAND = (
    "`kubectl get pv --output custom-columns=NAMESPACE:.spec.claimRef.namespace,CLAIM:.spec.claimRef.name,"
    "NODES:.spec.nodeAffinity.required`"
)
WAIT_REMEDY = (
    "Nothing to do: the pod starts when enough is free. A higher spec.pod.priorityClassName puts it before others."
)

# The end of the message is about preemption, which no user can influence.
_PREEMPTION = re.compile(
    r"\.? (?:(?:no new claims to deallocate|still not schedulable), )?preemption: .*|(?<=found)\. not found$"
)
_SHORT = re.compile(r"Insufficient [\w./-]+|Too many pods|cannot allocate all claims")
# The scheduler reports this only about nodes with room: it checks volumes after resources.
_ELSEWHERE = re.compile(
    r"(?<!\d)(?P<count>\d{1,9}) node\(s\) (?:had volume node affinity conflict|"
    r"didn't match PersistentVolume's node affinity|had no available volume zone)"
)
_UNBOUND = re.compile(
    r"unbound immediate PersistentVolumeClaims|persistentvolumeclaim \"|persistentvolume \"|"
    r"didn't find available persistent volumes to bind|did not have enough free storage|"
    r"\"VolumeBinding\"|bound to non-existent|ephemeral volume controller|"
    r"PersistentVolumeClaim is (?:lost|being deleted)",
    re.IGNORECASE,
)
# Rules of the scheduler that the nodes' own objects don't show.
_ADVICE = (
    (
        r"exceed max volume count",
        "A node can attach only so many volumes: wait until other pods with volumes have ended, or add nodes.",
    ),
    (
        r"didn't have free ports",
        "On one node only one pod can have a port of the host: leave out spec.pod.hostNetwork and hostPort, wait until "
        "the other pod has ended, or add nodes.",
    ),
    (
        r"didn't match pod topology spread constraints",
        "Correct spec.pod.topologySpreadConstraints: whenUnsatisfiable: ScheduleAnyway makes one a wish.",
    ),
    (r"didn't match pod (?:anti-)?affinity rules", "Correct podAffinity or podAntiAffinity in spec.pod.affinity."),
    (
        r"didn't satisfy existing pods anti-affinity rules",
        "The podAntiAffinity of pods on the nodes keeps this one away: correct the labels in spec.pod.labels that it "
        "selects, or add nodes.",
    ),
    (
        r"ReadWriteOncePod",
        "Another pod uses the claim, whose access mode is ReadWriteOncePod: wait until that pod has ended, or name "
        "another claim in the spec.",
    ),
)


def explain_unschedulable(pod: Object, message: str, cluster: ClusterNodes | None) -> HoneError:
    """Return the failure. `message`: that of the condition PodScheduled. Without nodes nothing is added to it."""
    message = _PREEMPTION.sub("", message).rstrip(".")
    if _UNBOUND.search(message):
        return HoneError(VOLUME_NOT_BOUND, message)
    if elsewhere := sum(int(found["count"]) for found in _ELSEWHERE.finditer(message)):
        reach, advice = _explain_unreachable_volume(pod, elsewhere, cluster)
        return HoneError(UNSCHEDULABLE, f"{message}. {reach}", remedy=advice)
    if node := (pod.get("status") or {}).get("nominatedNodeName"):
        found = f"{message}. Pods of lower priority are being removed from {node} to make room"
        return HoneError(UNSCHEDULABLE, found, remedy="Nothing to do: the pod starts when they have ended.")
    by_filter = _advise_on_filter(message)
    if cluster is None:
        return HoneError(UNSCHEDULABLE, message, remedy=by_filter)
    demand, short = read_pod_requirements(pod), _SHORT.search(message) is not None
    # Many of a thousand waiting pods have the same demand.
    key = (repr(demand), short)
    if key not in cluster.diagnoses:
        cluster.diagnoses[key] = _compare_nodes(demand, short, cluster)
    found, remedy = cluster.diagnoses[key]
    return HoneError(UNSCHEDULABLE, f"{message}. {found}" if found else message, remedy=remedy or by_filter)


def _advise_on_filter(message: str) -> str | None:
    """Return the remedy; None where the message names no such rule."""
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, message)), None)


def _explain_unreachable_volume(pod: Object, elsewhere: int, cluster: ClusterNodes | None) -> tuple[str, str]:
    """Return message and remedy for a bound volume that nodes with room can't mount.

    The nodes near the volume are either busy, or unable to run the pod. `elsewhere`: how many nodes have room.
    """
    demand, claims = read_pod_requirements(pod), list_claims(pod)
    one_of = f"one of the claims {', '.join(claims)}" if len(claims) > 1 else "".join(claims) or "its claim"
    where = "which is in another zone or on another node"
    reach = f"{elsewhere} of the nodes with room can't mount the volume of {one_of}, {where}"
    is_counted = cluster is not None and not (demand.gpu and demand.gpu in cluster.dra_resources)
    if is_counted and cluster and sum(not find_unmet_requirements(node, demand) for node in cluster.nodes) > elsewhere:
        return f"{reach}; the nodes near the volume have too little free now", WAIT_REMEDY
    # The volume may hold somebody's models or data: no remedy must ask a user to delete its claim.
    remedy = (
        f"See where each volume is: {SHOW_VOLUMES_COMMAND}. Add nodes that can run the pod there, correct "
        "spec.pod.nodeSelector or affinity where they lead the pod away, or copy the data to a claim that nodes with "
        "room can mount and name that one in the spec. docs/troubleshooting.md describes how a claim is made near the "
        "GPUs."
    )
    if not is_counted:
        return reach, f"Nothing to do when nodes near the volume are busy. Otherwise: {remedy[0].lower()}{remedy[1:]}"
    return f"{reach}, and no node near the volume can run the pod", remedy


def _compare_nodes(demand: PodRequirements, short: bool, cluster: ClusterNodes) -> tuple[str, str | None]:
    """Return what the nodes lack, and the remedy. `short`: whether the scheduler lacks a countable resource."""
    gpu = demand.gpu
    if gpu in cluster.dra_resources:  # nodes don't count devices of Dynamic Resource Allocation
        counted = {name: requested for name, requested in demand.resources.items() if name != gpu}
        demand = replace(demand, resources=counted)
    elif gpu and not any(node.count_allocatable(gpu) for node in cluster.nodes):
        found, remedy = _explain_missing_resource(gpu, cluster)
        return (
            f"The pod asks for {format_resource_amount(gpu, demand.resources[gpu])}, and no node has any{found}",
            remedy,
        )
    if not cluster.nodes:
        return "The cluster has no nodes", "Add nodes."
    if too_much := _find_excessive_requests(demand, cluster.nodes):
        lower = " and ".join(
            f"{find_request_field(name, demand)} to {format_quantity(name, _subtract(most, name, demand))} or less"
            for name, most in too_much.items()
        )
        asks = " and ".join(format_resource_amount(name, demand.resources[name]) for name in too_much)
        most = " and ".join(format_resource_amount(name, most) for name, most in too_much.items())
        found = (
            f"The pod asks for {asks}, and no node has more than {most}{_describe_unhealthy(too_much, cluster.nodes)}"
        )
        return found, f"Lower {lower}, or add larger nodes."
    judged = sorted(
        ((node, find_unmet_requirements(node, demand)) for node in cluster.nodes),
        key=lambda item: (_has_no_gpu(item[0], gpu), len(item[1]), item[0].name),
    )
    if fitting := [node.name for node, against in judged if not against]:
        if not short:
            return "", None
        return f"Large enough, but with too little free now: {_join_names(fitting)}", WAIT_REMEDY
    remedies = dict.fromkeys(obstacle.remedy for obstacle in judged[0][1])
    nearest = "; ".join(_describe_node(*item) for item in judged[:MAX_NODES])
    return f"The nodes that come nearest: {nearest}", " ".join(remedies)


def _subtract(most: float, name: str, demand: PodRequirements) -> float:
    """Return how much the spec may request where a node has `most`: sidecars and overhead need their part."""
    return max(0.0, most - (0.0 if name in demand.initial else demand.added.get(name, 0.0)))


def _has_no_gpu(node: Node, gpu: str | None) -> bool:
    return gpu is not None and not node.count_allocatable(gpu)


def _find_excessive_requests(demand: PodRequirements, nodes: tuple[Node, ...]) -> dict[str, float]:
    """Return the resources of which no single node has enough, with the most that one node has."""
    most = {name: max(node.allocatable.get(name, 0) for node in nodes) for name in demand.resources}
    return {name: most[name] for name, requested in demand.resources.items() if requested > most[name]}


def _describe_unhealthy(names: Iterable[str], nodes: tuple[Node, ...]) -> str:
    """Return a note on devices that nodes have and can't allocate, because they are unhealthy; "" without any."""
    found = [
        f"{node.name} has {format_resource_amount(name, node.capacity[name])}, "
        f"of which {node.count_allocatable(name)} are healthy"
        for node in nodes
        for name in names
        if "/" in name and node.count_allocatable(name) < node.capacity.get(name, 0)
    ]
    return f" ({'; '.join(found[:MAX_NODES])})" if found else ""


def _explain_missing_resource(gpu: str, cluster: ClusterNodes) -> tuple[str, str]:
    """Return what the nodes have instead, as the end of a sentence, and the remedy."""
    ill = [node for node in cluster.nodes if node.capacity.get(gpu)]
    if ill:
        found = ", ".join(
            f"{node.name} has {format_resource_amount(gpu, node.capacity[gpu])}" for node in ill[:MAX_NODES]
        )
        remedy = (
            "Look at the device plugin's pods and the nodes' GPUs (amd-smi, node labels metricsexporter.amd.com.gpu): "
            "either the plugin has stopped, or the GPUs are unhealthy."
        )
        return f" that is healthy: {found}", remedy
    others: dict[str, list[str]] = {}
    for node in cluster.nodes:
        for name in node.allocatable:
            if is_gpu_resource(name) and node.count_allocatable(name):
                others.setdefault(name, []).append(f"{node.count_allocatable(name)} on {node.name}")
    if others:
        found = "; ".join(f"{name}: {', '.join(where[:MAX_NODES])}" for name, where in sorted(others.items()))
        names = " or ".join(sorted(others))
        return f", but there is {found}", f"Set spec.resources.gpuResource: {names}."
    if cluster.dra_resources:
        remedy = (
            f"Set spec.resources.gpuResource: {cluster.dra_resources[0]} (Kubernetes 1.36 or later), or install AMD's "
            "device plugin in place of the driver for Dynamic Resource Allocation: one excludes the other."
        )
        return ", since Dynamic Resource Allocation hands out AMD GPUs here (DeviceClass gpu.amd.com)", remedy
    labelled = [node.name for node in cluster.nodes if any("amd.com/gpu." in label for label in node.labels)]
    remedy = (
        "Where an autoscaler adds nodes with GPUs, wait for one. Otherwise install AMD's device plugin or GPU "
        "operator, or name the resource that the nodes do have in spec.resources.gpuResource."
    )
    return f", though {_join_names(labelled)} have AMD GPUs by their labels" if labelled else "", remedy


def _describe_node(node: Node, against: list[UnmetRequirement]) -> str:
    return f"{node.name} {' and '.join(obstacle.message for obstacle in against)}"


def _join_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NODES} more" if len(names) > MAX_NODES else ""
    return ", ".join(names[:MAX_NODES]) + more
