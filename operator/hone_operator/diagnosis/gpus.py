"""Find out which GPUs the nodes have, from the labels of AMD's node labeller.

In: nodes, the GPU resource and the node selector of a pod. Out: model and memory of the GPUs that the pod may get.
"""

import re
from collections.abc import Iterable

from hone_api.gpus import CARD_MEMORY, COMPUTE_UNITS, DEVICE_IDS, GB, WITHHELD

from hone_operator.diagnosis.nodes import Node

# The number of devices that a GPU becomes in each compute partition mode.
DEVICES_PER_GPU = {"spx": 1, "dpx": 2, "tpx": 3, "qpx": 4}
# In CPX mode every compute die is a device.
CPX_DEVICES_PER_GPU = {"MI300A": 6, "MI300X": 8, "MI308X": 4, "MI325X": 8, "MI350P": 4, "MI350X": 8, "MI355X": 8}
SHARED_WITH_HOST = "MI300A"

_PARTITION = re.compile(r"([sdtqc]px)_nps\d+")


def find_largest_gpu(nodes: Iterable[Node], gpu_resource: str, node_selector: dict[str, str]) -> tuple[str, int] | None:
    """Return name and memory in bytes of the largest GPU that the pod may get; None where no label shows it.

    The memory is the smallest amount that a process may see, so that a job that fits here is not refused in its pod. A
    node labelled with several models may assign any of them: its largest counts.
    """
    found: dict[str, int] = {}
    for node in nodes:
        if _may_get(node, gpu_resource, node_selector):
            for model, memory in _read_devices(node, gpu_resource):
                found[f"{model} of node {node.name}"] = memory
    return max(found.items(), key=lambda item: item[1], default=None)


def are_unpartitioned(
    nodes: Iterable[Node], gpu_resource: str, node_selector: dict[str, str], models: frozenset[str]
) -> bool:
    """Return whether, by the labels, every GPU that the pod may get is of these models and not partitioned."""
    candidates = [node for node in nodes if _may_get(node, gpu_resource, node_selector)]
    return bool(candidates) and all(_has_unpartitioned(node, gpu_resource, models) for node in candidates)


def _may_get(node: Node, gpu_resource: str, node_selector: dict[str, str]) -> bool:
    return bool(node.count_allocatable(gpu_resource)) and node_selector.items() <= node.labels.items()


def _has_unpartitioned(node: Node, gpu_resource: str, models: frozenset[str]) -> bool:
    found = {DEVICE_IDS.get(id_) for id_ in read_gpu_labels(node, "device-id")}
    if not found or not found <= models:
        return False
    if modes := set(_read_partition_modes(node, gpu_resource)):
        return modes == {"spx"}
    units = {COMPUTE_UNITS.get(model or "") for model in found}
    return len(units) == 1 and units == set(read_gpu_labels(node, "cu-count"))


def read_gpu_labels(node: Node, name: str) -> list[str]:
    """Return the values of a property of the node's GPUs, in all three spellings of the labeller's labels."""
    if whole := node.labels.get(f"amd.com/gpu.{name}") or node.labels.get(f"beta.amd.com/gpu.{name}"):
        return [whole]
    prefixes = (f"amd.com/gpu.{name}.", f"beta.amd.com/gpu.{name}.")
    return sorted({label.removeprefix(p) for label in node.labels for p in prefixes if label.startswith(p)})


def _read_devices(node: Node, gpu_resource: str) -> list[tuple[str, int]]:
    """Return model and memory in bytes of the devices behind the resource.

    Today's labeller reads `vram` from the same source as ROCm, so it is the memory that a process sees, also of a
    partition. Earlier ones read the memory of the full card: the smaller of label and table is right in both cases.
    Both are rounded up: a process sees up to WITHHELD bytes less, also of a partition.
    """
    modes = _read_partition_modes(node, gpu_resource)
    labelled = [int(size[:-1]) * GB for size in read_gpu_labels(node, "vram") if re.fullmatch(r"\d+G", size)]
    if len(labelled) > 1:  # the labels don't show which model has which size
        labelled = []
    found = []
    for model in (DEVICE_IDS[id_] for id_ in read_gpu_labels(node, "device-id") if id_ in DEVICE_IDS):
        table = [size for mode in modes or ["spx"] if (size := _get_device_memory_bytes(model, mode))]
        # An APU shares its memory with the host, and a setting of the node limits its part: only a label shows it.
        if labelled or (table and model != SHARED_WITH_HOST):
            found.append((model, _get_visible_bytes(min(labelled + table))))
    return found or [("GPU", _get_visible_bytes(size)) for size in labelled]


def _read_partition_modes(node: Node, gpu_resource: str) -> list[str]:
    """Return the compute partition modes of the devices behind the resource; an empty list where none is named."""
    labelled = " ".join(read_gpu_labels(node, "compute-memory-partition"))
    return _PARTITION.findall(gpu_resource) or _PARTITION.findall(labelled)


def _get_device_memory_bytes(model: str, mode: str) -> int | None:
    """Return the memory in bytes of one device: partitions have equal shares, in every memory partition mode."""
    parts = CPX_DEVICES_PER_GPU.get(model) if mode == "cpx" else DEVICES_PER_GPU[mode]
    return CARD_MEMORY[model] // parts if parts else None


def _get_visible_bytes(size: int) -> int:
    """Return the smallest number of bytes that a process sees of `size`; 0 for a small integrated GPU."""
    return max(0, size - WITHHELD)
