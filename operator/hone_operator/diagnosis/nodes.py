"""Facts about the cluster's nodes: resources, labels, taints, and whether they are ready."""

from dataclasses import dataclass, field
from sys import intern

from hone_operator.objects.quantity import parse_number
from hone_operator.objects.resources import Object

# With a DeviceClass's name after it, an extended resource that Kubernetes 1.36 turns into a claim for a device.
DEVICE_CLASS_PREFIX = "deviceclass.resource.kubernetes.io/"
REPELLING_EFFECTS = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class Taint:
    """A taint that keeps pods without a toleration off a node."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"

    def is_tolerated(self, tolerations: list[Object]) -> bool:
        """Return whether one of these tolerations matches, by the scheduler's rules."""
        return any(self._matches(toleration) for toleration in tolerations)

    def _matches(self, toleration: Object) -> bool:
        if toleration.get("effect") not in (None, "", self.effect):
            return False
        if toleration.get("key") not in (None, "", self.key):
            return False
        return toleration.get("operator") == "Exists" or toleration.get("value", "") == self.value


@dataclass(frozen=True)
class Node:
    """One node. Quantities are in units, bytes for memory. `not_ready_reason`: since when, and why; None when ready."""

    name: str
    allocatable: dict[str, float] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    is_cordoned: bool = False
    not_ready_reason: str | None = None

    def count_allocatable(self, resource: str) -> int:
        """Return how many of an extended resource are allocatable on the node, in use or not."""
        return int(self.allocatable.get(resource, 0))


@dataclass(frozen=True)
class ClusterNodes:
    """All nodes, and the extended resources of AMD's DeviceClass, where the cluster has it.

    `diagnoses`: results that were computed from these nodes, by demand.
    """

    nodes: tuple[Node, ...] = ()
    dra_resources: tuple[str, ...] = ()
    diagnoses: dict[tuple[str, bool], tuple[str, str | None]] = field(default_factory=dict, compare=False, repr=False)

    def find_node(self, name: str | None) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)


def read_node(body: Object) -> Node:
    """Return the used parts of a Node object. Thousands of nodes have the same labels, which are kept once."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    return Node(
        name=body["metadata"]["name"],
        allocatable=_parse_quantities(status.get("allocatable")),
        capacity=_parse_quantities(status.get("capacity")),
        labels={intern(name): intern(value) for name, value in (body["metadata"].get("labels") or {}).items()},
        taints=tuple(
            Taint(taint["key"], taint.get("value", ""), taint["effect"])
            for taint in spec.get("taints") or []
            if taint["effect"] in REPELLING_EFFECTS
        ),
        is_cordoned=bool(spec.get("unschedulable")),
        not_ready_reason=_explain_not_ready(status.get("conditions") or []),
    )


def _parse_quantities(quantities: Object | None) -> dict[str, float]:
    return {intern(name): parse_number(quantity) for name, quantity in (quantities or {}).items()}


def _explain_not_ready(conditions: list[Object]) -> str | None:
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    if ready is None:
        return "it has never reported"
    if ready["status"] == "True":
        return None
    text = ": ".join(part for part in (ready.get("reason"), ready.get("message")) if part)
    return f"since {ready.get('lastTransitionTime')}, {text}" if text else f"since {ready.get('lastTransitionTime')}"


def list_dra_resources(device_class: Object | None) -> tuple[str, ...]:
    """Return the extended resources by which a pod may request devices of the class."""
    if device_class is None:
        return ()
    explicit = (device_class.get("spec") or {}).get("extendedResourceName")
    implicit = f"{DEVICE_CLASS_PREFIX}{device_class['metadata']['name']}"
    return (explicit, implicit) if explicit else (implicit,)
