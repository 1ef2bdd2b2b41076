"""Explain why no node takes a pod.

In: the scheduler's message and facts about nodes. Out: a failure that adds to the message what the nodes lack, and a
remedy that names fields of the object. Single nodes: node_fit.py.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from hone_api.gpus import is_gpu_resource
from hone_api.reasons import UNSCHEDULABLE, VOLUME_NOT_BOUND, HoneError

from hone_operator.diagnosis.node_fit import Demand, Obstacle, demand_of, field_of, obstacles
from hone_operator.diagnosis.nodes import ClusterFacts, Node
from hone_operator.diagnosis.volumes import claims_of
from hone_operator.objects.quantity import quantity_of, words_of
from hone_operator.objects.resources import Object

MOST_NODES = 3
SHOW_VOLUMES = (
    "`kubectl get pv --output custom-columns=NAMESPACE:.spec.claimRef.namespace,CLAIM:.spec.claimRef.name,"
    "NODES:.spec.nodeAffinity.required`"
)
WAITS = "Nothing to do: the pod starts when enough is free. A higher spec.pod.priorityClassName puts it before others."

# The end of the message is about preemption, which no user can influence.
_PREEMPTION = re.compile(
    r"\.? (?:no new claims to deallocate|still not schedulable), preemption: .*|(?<=found)\. not found$"
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
    r"bound to non-existent|ephemeral volume controller|PersistentVolumeClaim is (?:lost|being deleted)",
    re.IGNORECASE,
)


def why_unschedulable(pod: Object, words: str, facts: ClusterFacts | None) -> HoneError:
    """Return the failure. `words`: the message of the condition PodScheduled. Without facts nothing is added to it."""
    words = _PREEMPTION.sub("", words).rstrip(".")
    if _UNBOUND.search(words):
        return HoneError(VOLUME_NOT_BOUND, words)
    if elsewhere := sum(int(found["count"]) for found in _ELSEWHERE.finditer(words)):
        reach, advice = _out_of_reach(pod, elsewhere, facts)
        return HoneError(UNSCHEDULABLE, f"{words}. {reach}", remedy=advice)
    if node := (pod.get("status") or {}).get("nominatedNodeName"):
        found = f"{words}. Pods of lower priority are being removed from {node} to make room"
        return HoneError(UNSCHEDULABLE, found, remedy="Nothing to do: the pod starts when they have ended.")
    if facts is None:
        return HoneError(UNSCHEDULABLE, words)
    demand, short = demand_of(pod), _SHORT.search(words) is not None
    # Many of a thousand waiting pods have the same demand.
    key = (repr(demand), short)
    if key not in facts.diagnoses:
        facts.diagnoses[key] = _diagnose(demand, short, facts)
    found, remedy = facts.diagnoses[key]
    return HoneError(UNSCHEDULABLE, f"{words}. {found}" if found else words, remedy=remedy)


def _out_of_reach(pod: Object, elsewhere: int, facts: ClusterFacts | None) -> tuple[str, str]:
    """Return message and remedy for a bound volume that nodes with room can't mount.

    The nodes near the volume are either busy, or unable to run the pod. `elsewhere`: how many nodes have room.
    """
    demand, claims = demand_of(pod), claims_of(pod)
    one_of = f"one of the claims {', '.join(claims)}" if len(claims) > 1 else "".join(claims) or "its claim"
    where = "which is in another zone or on another node"
    reach = f"{elsewhere} of the nodes with room can't mount the volume of {one_of}, {where}"
    is_counted = facts is not None and not (demand.gpu and demand.gpu in facts.by_claim)
    if is_counted and facts and sum(not obstacles(node, demand) for node in facts.nodes) > elsewhere:
        return f"{reach}; the nodes near the volume have too little free now", WAITS
    # The volume may hold somebody's models or data: no remedy must ask a user to delete its claim.
    remedy = (
        f"See where each volume is: {SHOW_VOLUMES}. Add nodes that can run the pod there, correct "
        "spec.pod.nodeSelector or affinity where they lead the pod away, or copy the data to a claim that nodes with "
        "room can mount and name that one in the spec. docs/troubleshooting.md describes how a claim is made near the "
        "GPUs."
    )
    if not is_counted:
        return reach, f"Nothing to do when nodes near the volume are busy. Otherwise: {remedy[0].lower()}{remedy[1:]}"
    return f"{reach}, and no node near the volume can run the pod", remedy


def _diagnose(demand: Demand, short: bool, facts: ClusterFacts) -> tuple[str, str | None]:
    """Return what the nodes lack, and the remedy. `short`: whether the scheduler lacks a countable resource."""
    gpu = demand.gpu
    if gpu in facts.by_claim:  # nodes don't count devices of Dynamic Resource Allocation
        counted = {name: asked for name, asked in demand.resources.items() if name != gpu}
        demand = replace(demand, resources=counted)
    elif gpu and not any(node.count(gpu) for node in facts.nodes):
        found, remedy = _no_such_resource(gpu, facts)
        return f"The pod asks for {words_of(gpu, demand.resources[gpu])}, and no node has any{found}", remedy
    if not facts.nodes:
        return "The cluster has no nodes", "Add nodes."
    if too_much := _more_than_any(demand, facts.nodes):
        lower = " and ".join(
            f"{field_of(name, gpu)} to {quantity_of(name, most)} or less" for name, most in too_much.items()
        )
        asks = " and ".join(words_of(name, demand.resources[name]) for name in too_much)
        most = " and ".join(words_of(name, most) for name, most in too_much.items())
        found = f"The pod asks for {asks}, and no node has more than {most}{_unhealthy(too_much, facts.nodes)}"
        return found, f"Lower {lower}, or add larger nodes."
    judged = sorted(
        ((node, obstacles(node, demand)) for node in facts.nodes),
        key=lambda item: (_has_no_gpu(item[0], gpu), len(item[1]), item[0].name),
    )
    if fitting := [node.name for node, against in judged if not against]:
        if not short:
            return "", None
        return f"Large enough, but with too little free now: {_names(fitting)}", WAITS
    remedies = dict.fromkeys(obstacle.remedy for obstacle in judged[0][1])
    nearest = "; ".join(_describe(*item) for item in judged[:MOST_NODES])
    return f"The nodes that come nearest: {nearest}", " ".join(remedies)


def _has_no_gpu(node: Node, gpu: str | None) -> bool:
    return gpu is not None and not node.count(gpu)


def _more_than_any(demand: Demand, nodes: tuple[Node, ...]) -> dict[str, float]:
    """Return the resources of which no single node has enough, with the most that one node has."""
    most = {name: max(node.allocatable.get(name, 0) for node in nodes) for name in demand.resources}
    return {name: most[name] for name, asked in demand.resources.items() if asked > most[name]}


def _unhealthy(names: Iterable[str], nodes: tuple[Node, ...]) -> str:
    """Return a note on devices that nodes have and can't allocate, because they are unhealthy; "" without any."""
    found = [
        f"{node.name} has {words_of(name, node.capacity[name])}, of which {node.count(name)} are healthy"
        for node in nodes
        for name in names
        if "/" in name and node.count(name) < node.capacity.get(name, 0)
    ]
    return f" ({'; '.join(found[:MOST_NODES])})" if found else ""


def _no_such_resource(gpu: str, facts: ClusterFacts) -> tuple[str, str]:
    """Return what the nodes have instead, as the end of a sentence, and the remedy."""
    ill = [node for node in facts.nodes if node.capacity.get(gpu)]
    if ill:
        found = ", ".join(f"{node.name} has {words_of(gpu, node.capacity[gpu])}" for node in ill[:MOST_NODES])
        remedy = (
            "Look at the device plugin's pods and the nodes' GPUs (amd-smi, node labels metricsexporter.amd.com.gpu): "
            "either the plugin has stopped, or the GPUs are unhealthy."
        )
        return f" that is healthy: {found}", remedy
    others: dict[str, list[str]] = {}
    for node in facts.nodes:
        for name in node.allocatable:
            if is_gpu_resource(name) and node.count(name):
                others.setdefault(name, []).append(f"{node.count(name)} on {node.name}")
    if others:
        found = "; ".join(f"{name}: {', '.join(where[:MOST_NODES])}" for name, where in sorted(others.items()))
        names = " or ".join(sorted(others))
        return f", but there is {found}", f"Set spec.resources.gpuResource: {names}."
    if facts.by_claim:
        remedy = (
            f"Set spec.resources.gpuResource: {facts.by_claim[0]} (Kubernetes 1.36 or later), or install AMD's "
            "device plugin in place of the driver for Dynamic Resource Allocation: one excludes the other."
        )
        return ", since Dynamic Resource Allocation hands out AMD GPUs here (DeviceClass gpu.amd.com)", remedy
    labelled = [node.name for node in facts.nodes if any("amd.com/gpu." in label for label in node.labels)]
    remedy = (
        "Where an autoscaler adds nodes with GPUs, wait for one. Otherwise install AMD's device plugin or GPU "
        "operator, or name the resource that the nodes do have in spec.resources.gpuResource."
    )
    return f", though {_names(labelled)} have AMD GPUs by their labels" if labelled else "", remedy


def _describe(node: Node, against: list[Obstacle]) -> str:
    return f"{node.name} {' and '.join(obstacle.words for obstacle in against)}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NODES} more" if len(names) > MOST_NODES else ""
    return ", ".join(names[:MOST_NODES]) + more
