"""Find out what keeps one node from taking a pod, by the scheduler's rules.

In: a node and the demand of a pod. Out: obstacles, each with a remedy. Next: unschedulable.py, which compares all
nodes.
"""

import operator
import re
from collections import defaultdict
from dataclasses import dataclass, field

from hone_api.gpucheck import RESOURCE
from hone_api.gpus import is_gpu_resource
from hone_api.schema.manifests import quote_text

from hone_operator.diagnosis.gpus import properties
from hone_operator.diagnosis.nodes import BY_CLASS, Node, Taint
from hone_operator.objects.quantity import number, words_of
from hone_operator.objects.resources import Object

# Kubernetes itself sets these taints while the node has a problem: nobody should tolerate them.
BY_CONDITION = "node.kubernetes.io/"
NOT_READY = {f"{BY_CONDITION}not-ready", f"{BY_CONDITION}unreachable"}
CORDONED = {f"{BY_CONDITION}unschedulable"}
REPARTITIONING = "amd-dcm"
UNHEALTHY = "amd-gpu-unhealthy"

_COMPARE = {"Gt": operator.gt, "Lt": operator.lt}
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_LABELLERS = re.compile(r"(?:beta\.)?amd\.com/gpu\.([a-z-]+)")


@dataclass(frozen=True)
class Demand:
    """The resources and rules by which a pod selects a node."""

    resources: dict[str, float] = field(default_factory=dict)
    tolerations: list[Object] = field(default_factory=list)
    node_selector: dict[str, str] = field(default_factory=dict)
    node_terms: list[Object] = field(default_factory=list)
    gpu_resource: str = ""

    @property
    def gpu(self) -> str | None:
        """The extended resource that spec.resources.gpus counts; the API server sorts it among other devices.

        `gpu_resource` is the name in the pod's variables. Pods that need no real GPUs, and pods of others, have none.
        """
        names = [name for name in self.resources if "/" in name]
        if self.gpu_resource in names:
            return self.gpu_resource
        of_gpus = (name for name in names if is_gpu_resource(name) or name.startswith(BY_CLASS))
        return next(of_gpus, names[0] if names else None)


@dataclass(frozen=True)
class Obstacle:
    """A reason against a node. `words` continue a sentence that begins with the node's name."""

    words: str
    remedy: str


def demand_of(pod: Object) -> Demand:
    spec = pod["spec"]
    resources: dict[str, float] = defaultdict(float)
    for container in spec["containers"]:
        for name, quantity in ((container.get("resources") or {}).get("requests") or {}).items():
            resources[name] += number(quantity)
    variables = [variable for container in spec["containers"] for variable in container.get("env") or []]
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return Demand(
        dict(resources),
        spec.get("tolerations") or [],
        spec.get("nodeSelector") or {},
        required.get("nodeSelectorTerms") or [],
        next((str(variable.get("value")) for variable in variables if variable["name"] == RESOURCE), ""),
    )


def obstacles(node: Node, demand: Demand) -> list[Obstacle]:
    """Return all obstacles of the node, as if it were empty; an empty list where the pod would fit then."""
    found = []
    if node.not_ready:
        found.append(Obstacle(f"is not ready {node.not_ready}", f"Look at `kubectl describe node {node.name}`."))
    if node.cordoned:
        found.append(Obstacle("is cordoned", f"`kubectl uncordon {node.name}` when its maintenance is over."))
    said = (NOT_READY if node.not_ready else set()) | (CORDONED if node.cordoned else set())
    taints = [taint for taint in node.taints if taint.key not in said and not taint.is_tolerated(demand.tolerations)]
    found += [_taint(taint) for taint in taints]
    missing = [_label(node, *item) for item in demand.node_selector.items() if node.labels.get(item[0]) != item[1]]
    if missing:
        found.append(Obstacle(f"lacks {', '.join(missing)}", "Correct spec.pod.nodeSelector, or label a node."))
    if demand.node_terms and not any(matches(node, term) for term in demand.node_terms):
        found.append(
            Obstacle("does not match spec.pod.affinity", "Correct the required nodeAffinity in spec.pod.affinity.")
        )
    for name, asked in demand.resources.items():
        has = node.allocatable.get(name, 0)
        if asked > has:
            found.append(Obstacle(f"has {words_of(name, has)}", f"Lower {field_of(name, demand.gpu)}, or add nodes."))
    return found


def field_of(resource: str, gpu: str | None) -> str:
    """Return the field of the object that sets a request. `gpu`: the resource that spec.resources.gpus counts."""
    if resource == gpu:
        return "spec.resources.gpus"
    if resource in ("cpu", "memory"):
        return f"spec.resources.{resource}"
    kind = "requests" if resource == "ephemeral-storage" else "limits"
    return f"spec.resources.{kind}.{resource}"


def matches(node: Node, term: Object) -> bool:
    """Return whether the node matches a nodeSelectorTerm; an empty term matches no node."""
    labels, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    return bool(labels or fields) and (
        all(_fits(node.labels, each) for each in labels) and all(_fits({"metadata.name": node.name}, e) for e in fields)
    )


def _fits(labels: dict[str, str], requirement: Object) -> bool:
    value, values = labels.get(requirement["key"]), requirement.get("values") or []
    how = str(requirement["operator"])
    if how in ("Exists", "DoesNotExist"):
        return (value is not None) == (how == "Exists")
    if how in ("In", "NotIn"):
        return (value in values) == (how == "In")
    # The scheduler compares integers; a requirement without one matches no node.
    numbers = [int(text) for text in (value, *values[:1]) if text is not None and _WHOLE.fullmatch(text)]
    return how in _COMPARE and len(numbers) == 2 and bool(_COMPARE[how](*numbers))


def _taint(taint: Taint) -> Obstacle:
    words = f"has taint {taint}"
    if taint.key.startswith(BY_CONDITION):
        return Obstacle(words, f"Kubernetes removes {taint.key} when the node's condition is over.")
    if taint.key == REPARTITIONING:
        return Obstacle(words, "The node's GPUs are being partitioned anew: wait until the taint is gone.")
    if taint.key == UNHEALTHY:
        return Obstacle(words, "AMD's operator found unhealthy GPUs: repair the node.")
    value = f"operator: Equal, value: {quote_text(taint.value)}" if taint.value else "operator: Exists"
    toleration = f"{{key: {quote_text(taint.key)}, {value}, effect: {taint.effect}}}"
    return Obstacle(words, f"If the pod may run there, add {toleration} to spec.pod.tolerations.")


def _label(node: Node, name: str, value: str) -> str:
    if name in node.labels:
        return f"label {name}={value} (it has {node.labels[name]})"
    spelled = _LABELLERS.fullmatch(name)
    if spelled and value in properties(node, spelled[1]):
        others = [
            f"{key}={count}" for key, count in sorted(node.labels.items()) if key.endswith(f"{spelled[1]}.{value}")
        ]
        return f"label {name}={value} (a node with several models has {', '.join(others)} instead)"
    return f"label {name}={value}"
