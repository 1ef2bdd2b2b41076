"""Check GPUs by product and partition, the resources that offer them, and their health. Pure."""

import re
from collections import Counter

from hone_api.gpus import COMPUTE_UNITS, DEVICE_IDS, is_gpu_resource

from hone_cli.doctor.checks.cluster_facts import VIRTUAL, ClusterFacts, Device, Node, Taint, find_properties
from hone_cli.doctor.checks.findings import Finding, Unread, count_nodes, join_names, report_unread

# The default of spec.resources.gpuResource.
DEFAULT = "amd.com/gpu"
# The extended resource by which Kubernetes makes a claim for a device of AMD's DeviceClass.
CLAIMED = "deviceclass.resource.kubernetes.io/gpu.amd.com"
CLAIMED_SINCE = (1, 36)
NOT_OFFERED = f"{DEFAULT} is offered by no node"
UNPARTITIONED = {"MI210", "MI250X", "Radeon AI PRO R9700"}
UNHEALTHY, REPARTITIONING = "amd-gpu-unhealthy", "amd-dcm"
# AMD's driver sets this taint on partitions that it could make, while others of their GPU are in use.
CONFLICT = "gpu.amd.com/memory-partition-conflict"

_STATE = re.compile(r"metricsexporter\.amd\.com\.gpu\.(.+)\.state")


def check_gpus(facts: ClusterFacts) -> list[Finding]:
    """Return the findings about the GPUs that the nodes have."""
    if isinstance(facts.nodes, Unread):
        return [report_unread("gpus", "The nodes' GPUs", facts.nodes)]
    devices = () if isinstance(facts.devices, Unread) else facts.devices
    nodes = [node for node in facts.nodes if node.has_gpus()]
    if not nodes and not devices:
        return [_report_none(facts)]
    return [
        _check_products(nodes, devices),
        *_check_resources(facts, nodes, devices),
        _check_health(nodes, devices),
    ]


def name_products(node: Node) -> list[str]:
    """Return the products of a node's GPUs by device id, because virtual functions have no product name."""
    ids = [id_.lower().removeprefix("0x") for id_ in find_properties(node, "device-id")]
    products = set(find_properties(node, "product-name"))
    if products and not any(id_ in DEVICE_IDS for id_ in ids):
        names = products
    else:
        names = {DEVICE_IDS.get(id_, f"device {id_}") for id_ in ids}
    suffix = " (virtual function)" if node.labels.get(VIRTUAL) == "true" else ""
    return [f"{name}{suffix}" for name in sorted(names)] or [f"unnamed GPU{suffix}"]


def is_unhealthy(node: Node) -> bool:
    """Return whether AMD's operator reports an unhealthy GPU, by taint or label."""
    return any(taint.key == UNHEALTHY for taint in node.taints) or any(
        value == "unhealthy" and _STATE.fullmatch(name) for name, value in node.labels.items()
    )


def count_gpus(node: Node, *, is_capacity: bool = False) -> int:
    """Return how many devices the device plugin offers, or with `is_capacity` how many it has."""
    source = node.capacity if is_capacity else node.allocatable
    return sum(count for name, count in source.items() if is_gpu_resource(name))


def _report_none(facts: ClusterFacts) -> Finding:
    if isinstance(facts.devices, Unread):
        message = f"No node offers AMD GPUs, and its ResourceSlices could not be read: {facts.devices.reason}"
        return Finding("gpus", "unknown", message, "Ask an administrator to run `hone doctor`.")
    return Finding(
        "gpus",
        "failed",
        "No node has a resource or label of AMD GPUs, and no ResourceSlice has a device of gpu.amd.com",
        "Install AMD's GPU operator, or its device plugin and node labeller. Where an autoscaler adds nodes with GPUs, "
        "run `hone doctor` again while there is one.",
    )


def _check_products(nodes: list[Node], devices: tuple[Device, ...]) -> Finding:
    groups: dict[tuple[str, bool], list[int]] = {}
    for node in nodes:
        partitions = find_properties(node, "compute-memory-partition")
        text = " + ".join(name_products(node)) + (f" in {' + '.join(partitions)}" if partitions else "")
        count = count_gpus(node, is_capacity=True)
        groups.setdefault((text, not count), []).append(count)
    parts = [
        ("" if is_uncounted else f"{sum(counts)} x ") + f"{text} on {count_nodes(len(counts))}"
        for (text, is_uncounted), counts in sorted(groups.items())
    ]
    claimed: Counter[str] = Counter(
        DEVICE_IDS.get(device.device_id, device.product or "unnamed GPU")
        + (f" in {device.partition}" if device.partition else "")
        for device in devices
    )
    parts += [f"{count} x {text} by Dynamic Resource Allocation" for text, count in sorted(claimed.items())]
    return Finding("gpus", "ok", "; ".join(parts))


def _check_resources(facts: ClusterFacts, nodes: list[Node], devices: tuple[Device, ...]) -> list[Finding]:
    offered: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    for node in nodes:
        for name, count in node.allocatable.items():
            if is_gpu_resource(name) and count:
                offered[name] += count
                holders[name] += 1
    text = "; ".join(f"{name}: {offered[name]} on {count_nodes(holders[name])}" for name in sorted(offered))
    closed = sorted(node.name for node in nodes if count_gpus(node) and not node.takes_pods)
    bare = _find_bare(nodes, devices)
    if offered and len(closed) == sum(bool(count_gpus(node)) for node in nodes) and not _is_claimable(facts, devices):
        message = f"{text}; none of the nodes can take pods: {join_names(closed)}"
        return [Finding("gpuResources", "failed", message, "See the check nodes: these are not ready or cordoned.")]
    if closed:
        text += f"; of these nodes {len(closed)} can't take pods: {join_names(closed)}"
    if offered[DEFAULT]:
        partitioned = {
            each
            for node in nodes
            if node.allocatable.get(DEFAULT)
            for each in find_properties(node, "compute-memory-partition")
            if not each.startswith("spx")
        }
        if partitioned:
            text += f". Each of {DEFAULT} is a partition ({', '.join(sorted(partitioned))}), not a full GPU"
        unknown = [node.name for node in nodes if node.allocatable.get(DEFAULT) and not _is_partition_label(node)]
        if unknown:
            text += (
                f". Whether {DEFAULT} is a full GPU on {join_names(unknown)} is not known: no label shows partitions"
            )
        others = sorted(offered.keys() - {DEFAULT})
        remedy = f"For partitions set spec.resources.gpuResource: {' or '.join(others)}." if others else ""
        if bare:
            text += f". {count_nodes(len(bare))} with AMD's labels and no such resource: {join_names(bare)}"
            remedy = f"Look at the pods of AMD's device plugin on nodes without the resource. {remedy}".strip()
        return [Finding("gpuResources", "warning" if bare else "ok", text, remedy)]
    if offered:
        without = f"; {count_nodes(len(bare))} with AMD's labels and neither: {join_names(bare)}" if bare else ""
        return [
            Finding(
                "gpuResources",
                "warning",
                f"{text}; {DEFAULT}, the default of spec.resources.gpuResource, is offered by no node "
                f"(the device plugin's strategy is `mixed`){without}",
                f"Set spec.resources.gpuResource: {' or '.join(sorted(offered))} in each object.",
            )
        ]
    if devices:
        return [_check_claimed(facts, devices)]
    known = {name for node in nodes for name in node.capacity if is_gpu_resource(name)}
    if known:
        message = f"The nodes know {', '.join(sorted(known))}, and 0 are allocatable"
        remedy = "Look at the device plugin's pods: either the plugin has stopped, or all GPUs are unhealthy."
    else:
        message = f"{count_nodes(len(nodes))} with AMD's labels and without GPUs: {join_names(n.name for n in nodes)}"
        remedy = "Install AMD's device plugin or GPU operator, and look at its pods on these nodes."
    return [Finding("gpuResources", "failed", message, remedy)]


def _is_partition_label(node: Node) -> bool:
    """Return whether a label shows how the node's GPUs are partitioned, or that they can't be."""
    models = {DEVICE_IDS.get(id_) for id_ in find_properties(node, "device-id")}
    if find_properties(node, "compute-memory-partition") or (models and models <= UNPARTITIONED):
        return True
    whole = {COMPUTE_UNITS.get(model or "") for model in models}
    return bool(models) and set(find_properties(node, "cu-count")) == whole


def _find_bare(nodes: list[Node], devices: tuple[Device, ...]) -> list[str]:
    """Return the nodes that have labels of GPUs, but offer none and have none as capacity."""
    claimed = {device.node for device in devices}
    return [node.name for node in nodes if not count_gpus(node, is_capacity=True) and node.name not in claimed]


def _is_claimable(facts: ClusterFacts, devices: tuple[Device, ...]) -> bool:
    """Return whether a device for claims may be on a node that accepts pods."""
    nodes = () if isinstance(facts.nodes, Unread) else facts.nodes
    closed = {node.name for node in nodes if not node.takes_pods}
    return any(device.node not in closed for device in devices)


def list_claimed_resources(facts: ClusterFacts) -> list[str]:
    """Return the extended resources of GPUs for which Kubernetes makes claims, by the DeviceClasses."""
    classes = {} if isinstance(facts.device_classes, Unread) else facts.device_classes
    return sorted({name for name in classes.values() if is_gpu_resource(name)})


def _check_claimed(facts: ClusterFacts, devices: tuple[Device, ...]) -> Finding:
    message = (
        f"{len(devices)} devices by Dynamic Resource Allocation on "
        f"{count_nodes(len({device.node for device in devices}))}; {NOT_OFFERED}"
    )
    if not _is_claimable(facts, devices):
        message += f"; none of the nodes can take pods: {join_names({device.node for device in devices})}"
        return Finding("gpuResources", "failed", message, "See the check nodes: these are not ready or cordoned.")
    names = list_claimed_resources(facts)
    if DEFAULT in names:
        return Finding("gpuResources", "ok", message.replace(NOT_OFFERED, f"a DeviceClass offers them as {DEFAULT}"))
    if names:
        message += f", and DeviceClasses offer {', '.join(names)}"
        return Finding(
            "gpuResources", "warning", message, f"Set spec.resources.gpuResource: {' or '.join(names)} in each object."
        )
    if facts.version >= CLAIMED_SINCE:
        return Finding("gpuResources", "warning", message, f"Set spec.resources.gpuResource: {CLAIMED} in each object.")
    return Finding(
        "gpuResources",
        "failed",
        f"{message}, and Kubernetes {facts.version[0]}.{facts.version[1]} makes no claims for extended resources",
        f"Upgrade to Kubernetes {CLAIMED_SINCE[0]}.{CLAIMED_SINCE[1]}, or install AMD's device plugin in place of the "
        "driver: one excludes the other.",
    )


def _check_health(nodes: list[Node], devices: tuple[Device, ...]) -> Finding:
    ill = [node for node in nodes if is_unhealthy(node)]
    less = [node for node in nodes if not is_unhealthy(node) and count_gpus(node) < count_gpus(node, is_capacity=True)]
    changing = [node for node in nodes if any(taint.key == REPARTITIONING for taint in node.taints)]
    tainted = [device for device in devices if _is_ill(device)]
    parts, remedies = [], []
    if ill:
        parts.append(f"{count_nodes(len(ill))} with unhealthy GPUs: {join_names(node.name for node in ill)}")
        remedies.append(
            f"Repair the GPUs (`amd-smi` on the node); AMD's operator then removes the taint {UNHEALTHY} and the "
            "labels metricsexporter.amd.com.gpu.*.state. Pods that run there are not evicted."
        )
    if less:
        parts.append(
            f"{count_nodes(len(less))} with fewer GPUs allocatable than known: {join_names(n.name for n in less)}"
        )
        remedies.append("Look at `kubectl describe node NAME`, and at the device plugin's pod there.")
    if changing:
        parts.append(f"{count_nodes(len(changing))} being repartitioned: {join_names(n.name for n in changing)}")
        remedies.append(f"Wait until the taint {REPARTITIONING} is gone.")
    if tainted:
        kinds: Counter[Taint] = Counter(taint for device in tainted for taint in device.taints if taint.key != CONFLICT)
        parts.append(f"{len(tainted)} devices with taints: {join_names(map(str, kinds))}")
        remedies.append("Look at the taints of the devices in `kubectl get resourceslices --output yaml`.")
    if not parts:
        return Finding("gpuHealth", "ok", "No GPU is reported as unhealthy")
    bad = {node.name for node in (*ill, *changing)}
    is_any_left = any(node.takes_pods and node.name not in bad and count_gpus(node) for node in nodes) or any(
        not _is_ill(device) and device.node not in bad for device in devices
    )
    return Finding("gpuHealth", "warning" if is_any_left else "failed", "; ".join(parts), " ".join(remedies))


def _is_ill(device: Device) -> bool:
    return any(taint.key != CONFLICT for taint in device.taints)
