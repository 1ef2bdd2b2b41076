"""Which GPU a pod may get, from the labels that AMD's node labeller sets."""

from pathlib import Path

import pytest
from hone_api.gpus import CARD_MEMORY, DEVICE_IDS, GPUS, WITHHELD
from hone_operator.diagnosis.gpus import find_largest_gpu
from hone_operator.diagnosis.nodes import Node, read_node

GIB = 1024**3
WHOLE = "amd.com/gpu"


def seen(gib: float) -> int:
    """Return the smallest number of bytes that a process sees of so many GiB."""
    return int(gib * GIB) - WITHHELD


def node(name: str = "gpu-1", resource: str = WHOLE, count: int = 8, **labels: str) -> Node:
    """Return a node; labels by property, with `device-id` spelled device_id."""
    return Node(
        name,
        allocatable={resource: count},
        labels={f"amd.com/gpu.{key.replace('_', '-')}": value for key, value in labels.items()},
    )


@pytest.mark.parametrize(
    ("found", "model", "gib"),
    [
        (node(device_id="74a1", vram="192G"), "MI300X", 192),
        (node(device_id="74b5"), "MI300X", 192),  # a virtual function, whose product name is missing
        (node(device_id="740c", vram="64G"), "MI250X", 64),
        (node(device_id="75a3"), "MI355X", 288),
        (node(vram="32G", product_name="AMD_Radeon_PRO_W7900"), "GPU", 32),
        (node(device_id="ffff", vram="48G"), "GPU", 48),
        # The driver divides the memory by the number of compute partitions.
        (node(device_id="74a1", vram="24G", compute_memory_partition="cpx_nps1"), "MI300X", 24),
        (node(device_id="74a1", vram="192G", compute_memory_partition="cpx_nps4"), "MI300X", 24),
        (node(device_id="74a1", compute_memory_partition="dpx_nps1"), "MI300X", 96),
        (node(device_id="74a0", vram="64G"), "MI300A", 64),
        (node(device_id="74a0", vram="126G", compute_memory_partition="cpx_nps1"), "MI300A", 128 / 6),
        (node(device_id="74a2", compute_memory_partition="cpx_nps1"), "MI308X", 48),
        (node(device_id="74bc"), "MI308X", 192),
        (node(device_id="75b8", compute_memory_partition="cpx_nps1"), "MI350P", 36),
        (node(device_id="7551"), "Radeon AI PRO R9700", 32),
    ],
)
def test_model_and_memory_of_a_node(found: Node, model: str, gib: float) -> None:
    assert find_largest_gpu([found], WHOLE, {}) == (f"{model} of node gpu-1", seen(gib))


@pytest.mark.parametrize(
    ("resource", "gib"),
    [("amd.com/spx_nps1", 192), ("amd.com/dpx_nps2", 96), ("amd.com/qpx_nps1", 48), ("amd.com/cpx_nps4", 24)],
)
def test_the_resource_name_of_a_partition_gives_its_share_of_the_memory(resource: str, gib: int) -> None:
    assert find_largest_gpu([node(resource=resource, device_id="74a1")], resource, {}) == (
        "MI300X of node gpu-1",
        seen(gib),
    )


@pytest.mark.parametrize(
    "found",
    [
        node(),
        node(product_name="AMD_Instinct_MI300X_OAM"),
        node(device_id="ffff"),
        node(device_id="74a0"),  # an APU: how much it may use is the node's setting
        node(device_id="7551", compute_memory_partition="cpx_nps1"),
        node(device_id="74a1", vram="192G", count=0),
        Node("gpu-1", allocatable={"amd.com/cpx_nps1": 64}, labels={"amd.com/gpu.vram": "24G"}),
    ],
)
def test_a_gpu_without_labels_is_not_guessed(found: Node) -> None:
    assert find_largest_gpu([found], WHOLE, {}) is None


@pytest.mark.parametrize("prefix", ["amd.com", "beta.amd.com"])
def test_a_node_with_two_models_counts_as_the_larger(prefix: str) -> None:
    labels = {f"{prefix}/gpu.device-id.740f": "2", f"{prefix}/gpu.device-id.74a1": "2", f"{prefix}/gpu.vram.64G": "2"}
    mixed = Node("gpu-1", allocatable={WHOLE: 4}, labels=labels | {f"{prefix}/gpu.vram.192G": "2"})
    assert find_largest_gpu([mixed], WHOLE, {}) == ("MI300X of node gpu-1", seen(192))


def test_the_largest_gpu_on_the_nodes_that_the_selector_chooses() -> None:
    small, large = node("gpu-1", device_id="740f", vram="64G"), node("gpu-2", device_id="74a5", vram="256G")
    assert find_largest_gpu([small, large], WHOLE, {}) == ("MI325X of node gpu-2", seen(256))
    assert find_largest_gpu([small, large], WHOLE, {"amd.com/gpu.vram": "64G"}) == ("MI210 of node gpu-1", seen(64))
    assert find_largest_gpu([small, large], WHOLE, {"zone": "b"}) is None


def test_a_node_is_read_from_its_object() -> None:
    found = read_node(
        {
            "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {
                "capacity": {"amd.com/gpu": "8", "cpu": "128"},
                "allocatable": {"amd.com/gpu": "7", "cpu": "127500m", "memory": "1Ti"},
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "Unknown",
                        "reason": "NodeStatusUnknown",
                        "message": "Kubelet stopped posting node status.",
                        "lastTransitionTime": "2026-03-01T11:00:00Z",
                    }
                ],
            },
        }
    )
    assert found.count_allocatable("amd.com/gpu") == 7
    assert found.allocatable["cpu"] == 127.5
    assert found.allocatable["memory"] == 1024**4
    assert found.is_cordoned
    assert [str(taint) for taint in found.taints] == ["k:NoSchedule"]
    assert (
        found.not_ready_reason == "since 2026-03-01T11:00:00Z, NodeStatusUnknown: Kubelet stopped posting node status."
    )


def amd_names() -> list[tuple[str, str]]:
    """Return device ids and product names from AMD's own lists."""
    lines = (Path(__file__).parents[2] / "amd_device_ids.txt").read_text().splitlines()
    rows = [line.split(",\t") for line in lines if not line.startswith("#")]
    return [(device.lower(), name.removeprefix("AMD ").removeprefix("Instinct ")) for device, _, name in rows]


def test_every_device_id_of_amds_lists_has_its_model() -> None:
    named: dict[str, set[str]] = {}
    for device, name in amd_names():
        named.setdefault(device, set()).add(name)
    assert named.keys() == DEVICE_IDS.keys()
    # Variants and virtual functions have longer names: "MI308X HF VF".
    wrong = {device for device, names in named.items() if not any(n.startswith(DEVICE_IDS[device]) for n in names)}
    assert not wrong
    assert set(DEVICE_IDS.values()) == CARD_MEMORY.keys()


@pytest.mark.parametrize(
    ("device", "model", "listed"),
    [("740c", "MI250X", 63.98), ("74a1", "MI300X", 191.98), ("74b5", "MI300X", 191.67), ("74b9", "MI325X", 255.69)],
)
def test_the_expected_memory_is_at_most_what_torch_lists(device: str, model: str, listed: float) -> None:
    found = find_largest_gpu([node(device_id=device, vram=f"{round(listed)}G")], WHOLE, {})
    assert found
    assert 0 <= listed - found[1] / GIB < 0.35
    assert found[1] == next(gpu.memory for gpu in GPUS if gpu.name == model)


def test_a_gpu_with_almost_no_memory_counts_as_zero() -> None:
    assert find_largest_gpu([node(vram="0G")], WHOLE, {}) == ("GPU of node gpu-1", 0)
