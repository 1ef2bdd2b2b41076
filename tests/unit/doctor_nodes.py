"""Nodes and ResourceSlices as AMD's labeller, device plugin, operator and driver write them."""

from typing import Any

from hone_cli.doctor.checks.cluster_facts import ClusterFacts, read_devices, read_node

Object = dict[str, Any]
UNHEALTHY = {"key": "amd-gpu-unhealthy", "value": "true", "effect": "NoSchedule"}
REPARTITIONING = {"key": "amd-dcm", "value": "up", "effect": "NoExecute"}


def node(
    name: str = "gpu-1",
    *,
    capacity: dict[str, str] | None = None,
    allocatable: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    taints: list[Object] | None = None,
    is_cordoned: bool = False,
    ready: str = "True",
) -> Object:
    has = {"amd.com/gpu": "8"} if capacity is None else capacity
    return {
        "metadata": {"name": name, "labels": LABELS if labels is None else labels},
        "spec": {"taints": taints or [], "unschedulable": is_cordoned},
        "status": {
            "conditions": [{"type": "Ready", "status": ready}],
            "capacity": {"cpu": "192", "memory": "2048Gi"} | has,
            "allocatable": {"cpu": "191", "memory": "2000Gi"} | (has if allocatable is None else allocatable),
        },
    }


LABELS = {
    "amd.com/gpu.device-id": "74a1",
    "amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM",
    "amd.com/gpu.vram": "192G",
    "amd.com/gpu.compute-memory-partition": "spx_nps1",
    "beta.amd.com/gpu.device-id.74a1": "8",
    "feature.node.kubernetes.io/amd-gpu": "true",
    "kubernetes.io/hostname": "gpu-1",
}
SINGLE_CPX = LABELS | {"amd.com/gpu.compute-memory-partition": "cpx_nps4", "amd.com/gpu.vram": "24G"}
MIXED = {
    "amd.com/gpu.device-id.74a1": "36",
    "beta.amd.com/gpu.device-id.74a1": "36",
    "amd.com/gpu.compute-memory-partition.spx_nps1": "4",
    "amd.com/gpu.compute-memory-partition.cpx_nps1": "32",
}
VIRTUAL = {"amd.com/gpu.device-id": "74b5", "feature.node.kubernetes.io/amd-vgpu": "true"}
"""product-name is missing on virtual functions."""


def device_slice(node: str = "gpu-1", count: int = 8, version: str = "v1", **device: Any) -> Object:
    attributes = {
        "type": {"string": "amdgpu"},
        "deviceID": {"string": "0x74a1"},
        "productName": {"string": "AMD_Instinct_MI300X_OAM"},
        "partitionProfile": {"string": "spx_nps1"},
        "numaNode": {"int": 0},
    }
    inner = {"attributes": attributes, "capacity": {"memory": {"value": "192Gi"}}, **device}
    devices = [{"name": f"gpu-{i}-{128 + i}"} | (inner if version == "v1" else {"basic": inner}) for i in range(count)]
    return {
        "apiVersion": f"resource.k8s.io/{version}",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-gpu.amd.com"},
        "spec": {
            "driver": "gpu.amd.com",
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }


def facts(*nodes: Object, slices: tuple[Object, ...] = (), version: tuple[int, int] = (1, 36), **more: Any) -> Any:
    found: dict[str, Any] = {"nodes": tuple(map(read_node, nodes)), "devices": read_devices(slices)}
    return ClusterFacts(version, **(found | more))
