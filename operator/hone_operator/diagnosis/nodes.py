"""What the cluster's nodes have: resources, labels, taints, and whether they work."""

from dataclasses import dataclass, field
from sys import intern

from hone_operator.objects.quantity import number
from hone_operator.objects.resources import Object

# Before a DeviceClass's name: the extended resource that Kubernetes 1.36 turns into a claim for a device.
BY_CLASS = "deviceclass.resource.kubernetes.io/"
REPELLING = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class Taint:
    """What keeps pods off a node that don't tolerate it."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"

    def is_tolerated(self, tolerations: list[Object]) -> bool:
        """As the scheduler judges it."""
        return any(self._matches(toleration) for toleration in tolerations)

    def _matches(self, toleration: Object) -> bool:
        if toleration.get("effect") not in (None, "", self.effect):
            return False
        if toleration.get("key") not in (None, "", self.key):
            return False
        return toleration.get("operator") == "Exists" or toleration.get("value", "") == self.value


@dataclass(frozen=True)
class Node:
    """One node. Quantities are in units, bytes for memory; `not_ready` says since when and why."""

    name: str
    allocatable: dict[str, float] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False
    not_ready: str | None = None

    def count(self, resource: str) -> int:
        """How many of an extended resource the node has to give, whether or not they are taken."""
        return int(self.allocatable.get(resource, 0))


@dataclass(frozen=True)
class ClusterFacts:
    """All nodes, and the extended resources that AMD's DeviceClass answers to, where the cluster has it.

    `diagnoses` are what was concluded from these facts, by what was asked.
    """

    nodes: tuple[Node, ...] = ()
    by_claim: tuple[str, ...] = ()
    diagnoses: dict[tuple[str, bool], tuple[str, str | None]] = field(default_factory=dict, compare=False, repr=False)

    def node(self, name: str | None) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)


def node_of(body: Object) -> Node:
    """What matters of a Node object. Thousands of nodes have the same labels, which are kept once."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    return Node(
        name=body["metadata"]["name"],
        allocatable=_numbers(status.get("allocatable")),
        capacity=_numbers(status.get("capacity")),
        labels={intern(name): intern(value) for name, value in (body["metadata"].get("labels") or {}).items()},
        taints=tuple(
            Taint(taint["key"], taint.get("value", ""), taint["effect"])
            for taint in spec.get("taints") or []
            if taint["effect"] in REPELLING
        ),
        cordoned=bool(spec.get("unschedulable")),
        not_ready=_not_ready(status.get("conditions") or []),
    )


def _numbers(quantities: Object | None) -> dict[str, float]:
    return {intern(name): number(quantity) for name, quantity in (quantities or {}).items()}


def _not_ready(conditions: list[Object]) -> str | None:
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    if ready is None:
        return "it has never reported"
    if ready["status"] == "True":
        return None
    words = ": ".join(part for part in (ready.get("reason"), ready.get("message")) if part)
    return f"since {ready.get('lastTransitionTime')}, {words}" if words else f"since {ready.get('lastTransitionTime')}"


def by_claim(device_class: Object | None) -> tuple[str, ...]:
    """The extended resources by which a pod may ask for devices of the class."""
    if device_class is None:
        return ()
    explicit = (device_class.get("spec") or {}).get("extendedResourceName")
    implicit = f"{BY_CLASS}{device_class['metadata']['name']}"
    return (explicit, implicit) if explicit else (implicit,)
