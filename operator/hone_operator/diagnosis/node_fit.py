"""Find out what keeps one node from taking a pod, by the scheduler's rules.

In: a node and the demand of a pod. Out: obstacles, each with a remedy. Next: unschedulable.py, which compares all
nodes.
"""

import operator
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hone_api.gpucheck import RESOURCE
from hone_api.gpus import is_gpu_resource
from hone_api.pods.node_taints import OUT_OF_SERVICE, find_node_phase
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
    """The resources and rules by which a pod selects a node.

    `added`: of `resources`, the amounts that native sidecars and the overhead of a RuntimeClass add. `initial`: the
    resources of which the pod's init containers need more than its containers.
    """

    resources: dict[str, float] = field(default_factory=dict)
    tolerations: list[Object] = field(default_factory=list)
    node_selector: dict[str, str] = field(default_factory=dict)
    node_terms: list[Object] = field(default_factory=list)
    gpu_resource: str = ""
    added: dict[str, float] = field(default_factory=dict)
    initial: frozenset[str] = frozenset()

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
    containers = _add_up(_read_requests(container) for container in spec["containers"])
    sidecars: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for container in spec.get("initContainers") or []:
        there = _add_up([sidecars, _read_requests(container)])
        if container.get("restartPolicy") == "Always":  # a native sidecar, which stays
            sidecars = there
        peaks = {name: max(there.get(name, 0), peaks.get(name, 0)) for name in (*peaks, *there)}
    overhead = {name: parse_number(quantity) for name, quantity in (spec.get("overhead") or {}).items()}
    running = _add_up([containers, sidecars])
    resources = _add_up(
        [{name: max(running.get(name, 0), peaks.get(name, 0)) for name in (*running, *peaks)}, overhead]
    )
    # Of the pod as a whole, these replace what its containers request.
    resources |= _add_up([_read_requests(spec), overhead]) if _read_requests(spec) else {}
    variables = [variable for container in spec["containers"] for variable in container.get("env") or []]
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return PodRequirements(
        resources,
        spec.get("tolerations") or [],
        spec.get("nodeSelector") or {},
        required.get("nodeSelectorTerms") or [],
        next((str(variable.get("value")) for variable in variables if variable["name"] == RESOURCE), ""),
        _add_up([sidecars, overhead]),
        frozenset(name for name, peak in peaks.items() if peak > running.get(name, 0)),
    )


def _read_requests(holder: Object) -> dict[str, float]:
    """Return the requests of a container, or of a pod as a whole."""
    requests = (holder.get("resources") or {}).get("requests") or {}
    return {name: parse_number(quantity) for name, quantity in requests.items()}


def _add_up(amounts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for each in amounts:
        for name, amount in each.items():
            total[name] += amount
    return dict(total)


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
    found += [_explain_taint(taint, node.name) for taint in taints]
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
                    f"Lower {find_request_field(name, demand)}, or add nodes.",
                )
            )
    return found


def find_request_field(resource: str, demand: PodRequirements) -> str:
    """Return the field of the object that sets a request."""
    if resource in demand.initial:
        return f"the request of {resource} in spec.pod.initContainers"
    if resource == demand.gpu:
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


def _explain_taint(taint: Taint, node: str) -> UnmetRequirement:
    text = f"has taint {taint}"
    if taint.key == OUT_OF_SERVICE:
        return UnmetRequirement(
            text,
            f"Run `kubectl taint node {node} {OUT_OF_SERVICE}-` once the node works again: a person set the taint.",
        )
    phase = find_node_phase(taint.key)
    if phase == "starting":
        return UnmetRequirement(
            text,
            "Nothing to do: the node is being prepared. If the taint stays, look at the pods of the program that "
            "removes it, such as the network or storage driver.",
        )
    if phase == "leaving":
        return UnmetRequirement(text, "Nothing to do: the node is being removed, and the pod has to wait for another.")
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
