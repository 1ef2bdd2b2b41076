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

from hone_operator.diagnosis.gpus import read_gpu_labels
from hone_operator.diagnosis.nodes import DEVICE_CLASS_PREFIX, Node, Taint
from hone_operator.objects.quantity import format_resource_amount, parse_number
from hone_operator.objects.resources import Object

# Kubernetes itself sets these taints while the node has a problem: nobody should tolerate them.
CONDITION_TAINT_PREFIX = "node.kubernetes.io/"
NOT_READY_TAINTS = {f"{CONDITION_TAINT_PREFIX}not-ready", f"{CONDITION_TAINT_PREFIX}unreachable"}
CORDON_TAINTS = {f"{CONDITION_TAINT_PREFIX}unschedulable"}
REPARTITIONING_TAINT = "amd-dcm"
UNHEALTHY_TAINT = "amd-gpu-unhealthy"

_COMPARE = {"Gt": operator.gt, "Lt": operator.lt}
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_LABELLERS = re.compile(r"(?:beta\.)?amd\.com/gpu\.([a-z-]+)")


@dataclass(frozen=True)
class PodRequirements:
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
        of_gpus = (name for name in names if is_gpu_resource(name) or name.startswith(DEVICE_CLASS_PREFIX))
        return next(of_gpus, names[0] if names else None)


@dataclass(frozen=True)
class UnmetRequirement:
    """A requirement that a node does not meet. `message` continues a sentence that begins with the node's name."""

    message: str
    remedy: str


def read_pod_requirements(pod: Object) -> PodRequirements:
    spec = pod["spec"]
    resources: dict[str, float] = defaultdict(float)
    for container in spec["containers"]:
        for name, quantity in ((container.get("resources") or {}).get("requests") or {}).items():
            resources[name] += parse_number(quantity)
    variables = [variable for container in spec["containers"] for variable in container.get("env") or []]
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return PodRequirements(
        dict(resources),
        spec.get("tolerations") or [],
        spec.get("nodeSelector") or {},
        required.get("nodeSelectorTerms") or [],
        next((str(variable.get("value")) for variable in variables if variable["name"] == RESOURCE), ""),
    )


def find_unmet_requirements(node: Node, demand: PodRequirements) -> list[UnmetRequirement]:
    """Return all obstacles of the node, as if it were empty; an empty list where the pod would fit then."""
    found = []
    if node.not_ready_reason:
        found.append(
            UnmetRequirement(f"is not ready {node.not_ready_reason}", f"Look at `kubectl describe node {node.name}`.")
        )
    if node.is_cordoned:
        found.append(UnmetRequirement("is cordoned", f"`kubectl uncordon {node.name}` when its maintenance is over."))
    reported = (NOT_READY_TAINTS if node.not_ready_reason else set()) | (CORDON_TAINTS if node.is_cordoned else set())
    taints = [
        taint for taint in node.taints if taint.key not in reported and not taint.is_tolerated(demand.tolerations)
    ]
    found += [_explain_taint(taint) for taint in taints]
    missing = [
        _describe_missing_label(node, *item)
        for item in demand.node_selector.items()
        if node.labels.get(item[0]) != item[1]
    ]
    if missing:
        found.append(UnmetRequirement(f"lacks {', '.join(missing)}", "Correct spec.pod.nodeSelector, or label a node."))
    if demand.node_terms and not any(matches_term(node, term) for term in demand.node_terms):
        found.append(
            UnmetRequirement(
                "does not match spec.pod.affinity", "Correct the required nodeAffinity in spec.pod.affinity."
            )
        )
    for name, requested in demand.resources.items():
        has = node.allocatable.get(name, 0)
        if requested > has:
            found.append(
                UnmetRequirement(
                    f"has {format_resource_amount(name, has)}",
                    f"Lower {find_request_field(name, demand.gpu)}, or add nodes.",
                )
            )
    return found


def find_request_field(resource: str, gpu: str | None) -> str:
    """Return the field of the object that sets a request. `gpu`: the resource that spec.resources.gpus counts."""
    if resource == gpu:
        return "spec.resources.gpus"
    if resource in ("cpu", "memory"):
        return f"spec.resources.{resource}"
    kind = "requests" if resource == "ephemeral-storage" else "limits"
    return f"spec.resources.{kind}.{resource}"


def matches_term(node: Node, term: Object) -> bool:
    """Return whether the node matches a nodeSelectorTerm; an empty term matches no node."""
    labels, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    return bool(labels or fields) and (
        all(_matches_expression(node.labels, each) for each in labels)
        and all(_matches_expression({"metadata.name": node.name}, e) for e in fields)
    )


def _matches_expression(labels: dict[str, str], requirement: Object) -> bool:
    value, values = labels.get(requirement["key"]), requirement.get("values") or []
    how = str(requirement["operator"])
    if how in ("Exists", "DoesNotExist"):
        return (value is not None) == (how == "Exists")
    if how in ("In", "NotIn"):
        return (value in values) == (how == "In")
    # The scheduler compares integers; a requirement without one matches no node.
    numbers = [int(text) for text in (value, *values[:1]) if text is not None and _WHOLE.fullmatch(text)]
    return how in _COMPARE and len(numbers) == 2 and bool(_COMPARE[how](*numbers))


def _explain_taint(taint: Taint) -> UnmetRequirement:
    text = f"has taint {taint}"
    if taint.key.startswith(CONDITION_TAINT_PREFIX):
        return UnmetRequirement(text, f"Kubernetes removes {taint.key} when the node's condition is over.")
    if taint.key == REPARTITIONING_TAINT:
        return UnmetRequirement(text, "The node's GPUs are being repartitioned: wait until the taint is gone.")
    if taint.key == UNHEALTHY_TAINT:
        return UnmetRequirement(text, "AMD's operator found unhealthy GPUs: repair the node.")
    value = f"operator: Equal, value: {quote_text(taint.value)}" if taint.value else "operator: Exists"
    toleration = f"{{key: {quote_text(taint.key)}, {value}, effect: {taint.effect}}}"
    return UnmetRequirement(text, f"If the pod may run there, add {toleration} to spec.pod.tolerations.")


def _describe_missing_label(node: Node, name: str, value: str) -> str:
    if name in node.labels:
        return f"label {name}={value} (it has {node.labels[name]})"
    spelled = _LABELLERS.fullmatch(name)
    if spelled and value in read_gpu_labels(node, spelled[1]):
        others = [
            f"{key}={count}" for key, count in sorted(node.labels.items()) if key.endswith(f"{spelled[1]}.{value}")
        ]
        return f"label {name}={value} (a node with several models has {', '.join(others)} instead)"
    return f"label {name}={value}"
