"""Facts about a cluster, reduced from API objects to what the checks depend on. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import InvalidOperation
from sys import intern
from typing import Any

from hone_api.gpus import is_gpu_resource
from hone_api.quantities import parse_exactly

from hone_cli.doctor.checks.findings import Unread

Object = dict[str, Any]
AMD = "amd.com/"
# AMD's driver for Dynamic Resource Allocation, and its DeviceClass.
DRIVER = "gpu.amd.com"
# Node Feature Discovery's label for virtual functions.
VIRTUAL = "feature.node.kubernetes.io/amd-vgpu"
# Node Feature Discovery's label for other GPUs. AMD's network cards have amd-nic and amd-vnic.
HAS_GPU = "feature.node.kubernetes.io/amd-gpu"
_BY_LABELLER = ("amd.com/gpu.", "beta.amd.com/gpu.")
_KEPT_LABELS = (*_BY_LABELLER, HAS_GPU, VIRTUAL, "metricsexporter.amd.com.gpu.")


@dataclass(frozen=True)
class Taint:
    """A taint that keeps pods from a node, or a device from a claim."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True)
class Node:
    """The relevant facts about a node. `capacity` and `allocatable` hold only AMD's extended resources."""

    name: str
    is_ready: bool = True
    is_cordoned: bool = False
    taints: tuple[Taint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    allocatable: Mapping[str, int] = field(default_factory=dict)

    @property
    def takes_pods(self) -> bool:
        """Return whether it is ready and not cordoned."""
        return self.is_ready and not self.is_cordoned

    def has_gpus(self) -> bool:
        """Return whether it has a resource or label of AMD's GPUs."""
        return (
            any(count for name, count in self.capacity.items() if is_gpu_resource(name))
            or any(name.startswith(_BY_LABELLER) for name in self.labels)
            or any(self.labels.get(name) == "true" for name in (HAS_GPU, VIRTUAL))
        )


@dataclass(frozen=True)
class Device:
    """A device of AMD's driver for Dynamic Resource Allocation. Attributes that it does not publish are empty.

    Partitions that the driver makes on demand are devices as well: several of them are alternatives for one GPU.
    """

    node: str
    device_id: str = ""
    product: str = ""
    partition: str = ""
    taints: tuple[Taint, ...] = ()


@dataclass(frozen=True)
class ClusterFacts:
    """All facts about a cluster; Unread for those that could not be read, also for lack of rights.

    `daemon_sets` maps the images of DaemonSets to (desired, ready). `definitions` has None for a missing one.
    `services` maps the API groups that other programs serve to whether they are available.
    """

    version: tuple[int, int]
    nodes: tuple[Node, ...] | Unread = ()
    devices: tuple[Device, ...] | Unread = ()
    device_classes: Mapping[str, str] | Unread = field(default_factory=dict)
    """By name, the extended resource that pods may request in place of a claim; "" if there is none."""
    daemon_sets: Mapping[str, tuple[int, int]] | Unread = field(default_factory=dict)
    storage_classes: tuple[Object, ...] | Unread = ()
    definitions: Mapping[str, Object | None] | Unread = field(default_factory=dict)
    operators: tuple[Object, ...] | Unread = ()
    groups: frozenset[str] | Unread = frozenset()
    services: Mapping[str, bool] | Unread = field(default_factory=dict)
    local_queues: tuple[str, ...] | Unread = ()
    namespace: str = "default"


def read_node(body: Object) -> Node:
    """Reduce a Node object. Thousands of nodes share their labels, which are stored once."""
    metadata, spec, status = body.get("metadata") or {}, body.get("spec") or {}, body.get("status") or {}
    ready = [each for each in status.get("conditions") or [] if each.get("type") == "Ready"]
    labels = metadata.get("labels") or {}
    return Node(
        name=str(metadata.get("name")),
        is_ready=any(each.get("status") == "True" for each in ready),
        is_cordoned=bool(spec.get("unschedulable")),
        taints=read_taints(spec.get("taints")),
        labels={intern(name): intern(value) for name, value in labels.items() if name.startswith(_KEPT_LABELS)},
        capacity=_count_resources(status.get("capacity")),
        allocatable=_count_resources(status.get("allocatable")),
    )


def read_taints(found: Iterable[Object] | None) -> tuple[Taint, ...]:
    """Reduce taints; those that only express a preference are left out."""
    return tuple(
        Taint(str(each.get("key")), str(each.get("value") or ""), str(each.get("effect")))
        for each in found or []
        if each.get("effect") in ("NoSchedule", "NoExecute")
    )


def read_devices(slices: Iterable[Object]) -> tuple[Device, ...]:
    """Reduce ResourceSlices of any version of the API to the devices of AMD's driver."""
    found = []
    specs = [spec for each in slices if (spec := each.get("spec") or {}).get("driver") == DRIVER]
    newest: dict[str, int] = {}
    for spec in specs:
        name, generation = _read_pool(spec)
        newest[name] = max(generation, newest.get(name, generation))
    for spec in specs:
        name, generation = _read_pool(spec)
        if generation < newest[name]:  # a slice that its driver has replaced, and not yet removed
            continue
        for device in spec.get("devices") or []:
            inner = device.get("basic") or device  # v1beta1 has the attributes one level deeper
            attributes = {name.removeprefix(f"{DRIVER}/"): of for name, of in (inner.get("attributes") or {}).items()}
            compute, memory = _read_text(attributes, "computePartition"), _read_text(attributes, "memoryPartition")
            on_demand = f"{compute}_{memory} on demand" if compute else ""
            found.append(
                Device(
                    node=str(spec.get("nodeName") or device.get("nodeName") or ""),
                    device_id=_read_text(attributes, "deviceID").lower().removeprefix("0x"),
                    product=_read_text(attributes, "productName"),
                    partition=_read_text(attributes, "partitionProfile") or on_demand,
                    taints=read_taints(inner.get("taints")),
                )
            )
    return tuple(found)


def find_properties(node: Node, name: str) -> list[str]:
    """Return the values of a property of the node's GPUs, in all three spellings of AMD's labels."""
    if single := node.labels.get(f"amd.com/gpu.{name}") or node.labels.get(f"beta.amd.com/gpu.{name}"):
        return [single]
    prefixes = (f"amd.com/gpu.{name}.", f"beta.amd.com/gpu.{name}.")
    return sorted({label.removeprefix(p) for label in node.labels for p in prefixes if label.startswith(p)})


def _read_pool(spec: Object) -> tuple[str, int]:
    """Return name and generation of a slice's pool. Without a name, each node is a pool."""
    pool = spec.get("pool") or {}
    return str(pool.get("name") or spec.get("nodeName") or ""), int(pool.get("generation") or 0)


def _read_text(attributes: Object, name: str) -> str:
    return str((attributes.get(name) or {}).get("string") or "")


def _count_resources(quantities: Object | None) -> dict[str, int]:
    found = {}
    for name, quantity in (quantities or {}).items():
        if name.startswith(AMD):
            try:
                found[intern(name)] = int(parse_exactly(quantity))
            except (InvalidOperation, ValueError, OverflowError):
                continue
    return found
