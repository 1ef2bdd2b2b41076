"""Explain why no node takes a pod. The messages are those of a real scheduler (Kubernetes 1.36)."""

from typing import Any

import pytest
from hone_operator.diagnosis.node_fit import read_pod_requirements
from hone_operator.diagnosis.nodes import ClusterNodes, Node, Taint, list_dra_resources
from hone_operator.diagnosis.unschedulable import explain_unschedulable

GIB = 1024**3
GPU, SPX, CPX = "amd.com/gpu", "amd.com/spx_nps1", "amd.com/cpx_nps1"
TAIL = " no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
INSUFFICIENT = "0/1 nodes are available: 1 Insufficient amd.com/gpu."
NO_VICTIMS = (
    INSUFFICIENT + " no new claims to deallocate, preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod."
)
TAINTED = "0/1 nodes are available: 1 node(s) had untolerated taint(s)." + TAIL
CORDONED = "0/1 nodes are available: 1 node(s) were unschedulable." + TAIL
MISMATCH = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector." + TAIL
CPU_AND_MEMORY = "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory." + TAIL


def pod(requests: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "trainer", "resources": {"requests": requests}}], **spec}, "status": {}}


def node(name: str = "gpu-1", gpus: int = 8, resource: str = GPU, **more: Any) -> Node:
    allocatable = {"cpu": 128, "memory": 1024 * GIB, resource: gpus}
    return Node(name, **{"allocatable": allocatable, "capacity": allocatable, **more})


def explain(words: str, asking: dict[str, Any], *nodes: Node, dra_resources: tuple[str, ...] = ()) -> str:
    error = explain_unschedulable(asking, words, ClusterNodes(nodes, dra_resources))
    assert error.reason.name == "Unschedulable"
    assert "reemption" not in error.format_message()
    return error.format_message()


ONE = pod({GPU: "1"})


@pytest.mark.parametrize(
    ("asking", "nodes", "found", "advice"),
    [
        (ONE, [node(resource="cpu-only", gpus=0)], "no node has any", "device plugin"),
        (ONE, [Node("gpu-1", labels={"amd.com/gpu.family": "AI"})], "gpu-1 have AMD GPUs by their labels", "plugin"),
        (
            ONE,
            [node(resource=CPX, gpus=64), node("gpu-2", resource=CPX, gpus=64), node("gpu-3", resource=SPX)],
            f"no node has any, but there is {CPX}: 64 on gpu-1, 64 on gpu-2; {SPX}: 8 on gpu-3",
            f"Set spec.resources.gpuResource: {CPX} or {SPX}.",
        ),
        (pod({CPX: "1"}), [node()], f"there is {GPU}: 8 on gpu-1", f"gpuResource: {GPU}."),
        (
            ONE,
            [node(allocatable={GPU: 0}, capacity={GPU: 8})],
            "no node has any that is healthy: gpu-1 has 8 amd.com/gpu",
            "the plugin has stopped, or the GPUs are unhealthy",
        ),
        (
            pod({GPU: "16"}),
            [node(), node("gpu-2", 4)],
            "asks for 16 amd.com/gpu, and no node has more than 8 amd.com/gpu",
            "Lower spec.resources.gpus to 8 or less",
        ),
        (
            pod({GPU: "8"}),
            [node(allocatable={GPU: 7, "cpu": 8}, capacity={GPU: 8, "cpu": 8})],
            "no node has more than 7 amd.com/gpu (gpu-1 has 8 amd.com/gpu, of which 7 are healthy)",
            "spec.resources.gpus to 7",
        ),
    ],
)
def test_the_cluster_lacks_the_gpus(asking: dict[str, Any], nodes: list[Node], found: str, advice: str) -> None:
    said = explain(INSUFFICIENT + TAIL, asking, *nodes)
    assert said.startswith(INSUFFICIENT.rstrip(".") + ". ")
    assert found in said
    assert advice in said


NIC, CLAIMED = "amd.com/nic", "deviceclass.resource.kubernetes.io/gpu.amd.com"
OF_OTHERS = ("nvidia.com/gpu", "example.com/xpu")


@pytest.mark.parametrize("other", [NIC, "amd.com/vnic", "amd.com/xilinx_u250_gen3x16_xdma_shell_2_1-0"])
def test_other_devices_of_amds_are_not_offered_as_gpus(other: str) -> None:
    said = explain(INSUFFICIENT + TAIL, ONE, node(resource=other))
    assert other not in said
    said = explain(INSUFFICIENT + TAIL, ONE, node("a", resource=other), node("b", resource=SPX))
    assert said.endswith(f"Set spec.resources.gpuResource: {SPX}.")


@pytest.mark.parametrize("other", [NIC, "a.example/nic", "rdma/hca"])
@pytest.mark.parametrize(
    ("gpu", "is_told"),
    [
        *((gpu, is_told) for gpu in (GPU, SPX, CLAIMED) for is_told in (True, False)),
        *((gpu, True) for gpu in OF_OTHERS),
    ],
)
def test_the_pods_gpus_are_distinguished_from_its_other_devices(gpu: str, other: str, is_told: bool) -> None:
    asking = pod(dict(sorted({gpu: "4", other: "2"}.items())))
    if is_told:
        asking["spec"]["containers"][0]["env"] = [{"name": "HONE_GPU_RESOURCE", "value": gpu}]
    assert read_pod_requirements(asking).gpu == gpu
    said = explain(INSUFFICIENT + TAIL, asking, node(allocatable={gpu: 8, other: 1}, capacity={gpu: 8, other: 1}))
    assert f"asks for 2 {other}, and no node has more than 1 {other}" in said
    assert f"Lower spec.resources.limits.{other} to 1 or less" in said


def test_dynamic_resource_allocation_excludes_the_device_plugin() -> None:
    names = list_dra_resources({"metadata": {"name": "gpu.amd.com"}, "spec": {}})
    said = explain(INSUFFICIENT + TAIL, ONE, Node("gpu-1"), dra_resources=names)
    assert "Dynamic Resource Allocation hands out AMD GPUs here (DeviceClass gpu.amd.com)" in said
    assert "Set spec.resources.gpuResource: deviceclass.resource.kubernetes.io/gpu.amd.com" in said


@pytest.mark.parametrize("name", ["deviceclass.resource.kubernetes.io/gpu.amd.com", GPU])
def test_devices_of_a_device_class_are_not_searched_on_the_nodes(name: str) -> None:
    names = list_dra_resources({"metadata": {"name": "gpu.amd.com"}, "spec": {"extendedResourceName": GPU}})
    words = "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, preemption: 0/1 nodes …"
    said = explain(words, pod({name: "4"}), node(gpus=0), dra_resources=names)
    assert "too little free now: gpu-1" in said
    assert "no node has" not in said


def test_a_node_that_is_large_enough_is_waited_for() -> None:
    said = explain(NO_VICTIMS, pod({GPU: "2"}), *(node(f"gpu-{number}") for number in range(5)), node("small", 1))
    assert "Large enough, but with too little free now: gpu-0, gpu-1, gpu-2 and 2 more. Nothing to do" in said
    assert "spec.pod.priorityClassName" in said


@pytest.mark.parametrize(
    ("words", "blocked", "asking", "found", "advice"),
    [
        (
            TAINTED,
            node(taints=(Taint("team", "ml", "NoSchedule"),)),
            ONE,
            "gpu-1 has taint team=ml:NoSchedule",
            "add {key: team, operator: Equal, value: ml, effect: NoSchedule} to spec.pod.tolerations",
        ),
        (
            TAINTED,
            node(taints=(Taint("dedicated", "", "NoExecute"),)),
            ONE,
            "dedicated:NoExecute",
            "{key: dedicated, operator: Exists, effect: NoExecute}",
        ),
        (
            TAINTED,
            node(taints=(Taint("amd-dcm", "up", "NoExecute"),)),
            ONE,
            "amd-dcm=up:NoExecute",
            "being repartitioned",
        ),
        (TAINTED, node(taints=(Taint("amd-gpu-unhealthy", "", "NoSchedule"),)), ONE, "amd-gpu-unhealthy", "repair"),
        (
            TAINTED,
            node(taints=(Taint("node.kubernetes.io/disk-pressure", "", "NoSchedule"),)),
            ONE,
            "disk-pressure",
            "Kubernetes removes node.kubernetes.io/disk-pressure",
        ),
        (
            CORDONED,
            node(is_cordoned=True, taints=(Taint("node.kubernetes.io/unschedulable", "", "NoSchedule"),)),
            ONE,
            "The nodes that come nearest: gpu-1 is cordoned. ",
            "`kubectl uncordon gpu-1`",
        ),
        (
            TAINTED,
            node(
                not_ready_reason="since 2026-03-01T11:00:00Z, NodeStatusUnknown: Kubelet stopped posting node status.",
                taints=(Taint("node.kubernetes.io/unreachable", "", "NoSchedule"),),
            ),
            ONE,
            "gpu-1 is not ready since 2026-03-01T11:00:00Z, NodeStatusUnknown: Kubelet stopped posting node status. ",
            "`kubectl describe node gpu-1`",
        ),
        (
            MISMATCH,
            node(labels={"zone": "a"}),
            pod({GPU: "1"}, nodeSelector={"zone": "b", "disk": "fast"}),
            "gpu-1 lacks label zone=b (it has a), label disk=fast",
            "spec.pod.nodeSelector",
        ),
        (
            MISMATCH,
            node(labels={"amd.com/gpu.vram.192G": "4", "amd.com/gpu.vram.64G": "4"}),
            pod({GPU: "1"}, nodeSelector={"amd.com/gpu.vram": "192G"}),
            "a node with several models has amd.com/gpu.vram.192G=4 instead",
            "spec.pod.nodeSelector",
        ),
        (
            MISMATCH,
            node(),
            pod(
                {GPU: "1"},
                affinity={
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}
                            ]
                        }
                    }
                },
            ),
            "gpu-1 does not match spec.pod.affinity",
            "nodeAffinity",
        ),
    ],
)
def test_a_node_that_has_the_gpus_does_not_take_the_pod(
    words: str, blocked: Node, asking: dict[str, Any], found: str, advice: str
) -> None:
    said = explain(words, asking, blocked)
    assert "The nodes that come nearest: gpu-1 " in said
    assert found in said
    assert advice in said


def test_tolerated_taints_are_no_obstacle() -> None:
    taints = (Taint(GPU, "present", "NoSchedule"), Taint("team", "ml", "NoSchedule"))
    tolerations = [{"key": GPU, "operator": "Exists"}, {"key": "team", "value": "ml", "effect": "NoSchedule"}]
    asking = pod({GPU: "1"}, tolerations=tolerations)
    assert "too little free now: gpu-1" in explain(NO_VICTIMS, asking, node(taints=taints))
    other = pod({GPU: "1"}, tolerations=[{"key": "team", "value": "web"}])
    assert "taint amd.com/gpu=present:NoSchedule and has taint team=ml" in explain(TAINTED, other, node(taints=taints))


def test_more_cpu_and_memory_than_any_node_has() -> None:
    said = explain(CPU_AND_MEMORY, pod({GPU: "1", "cpu": "200", "memory": "1500Gi"}), node())
    assert "asks for 200 cpu and 1500 GiB memory, and no node has more than 128 cpu and 1024 GiB memory" in said
    assert "Lower spec.resources.cpu to 128 or less and spec.resources.memory to 1024Gi or less" in said


def test_resources_that_only_different_nodes_have_are_named() -> None:
    gpus = node(allocatable={GPU: 8, "memory": 64 * GIB})
    said = explain(CPU_AND_MEMORY, pod({GPU: "8", "memory": "512Gi"}), node("cpu-1", resource="none"), gpus)
    assert "The nodes that come nearest: gpu-1 has 64 GiB memory; cpu-1 has 0 amd.com/gpu. " in said
    assert said.endswith("Lower spec.resources.memory, or add nodes.")


def test_the_three_nearest_nodes_are_named_those_with_gpus_first() -> None:
    taints = (Taint("a", "", "NoSchedule"), Taint("b", "", "NoSchedule"))
    nodes = [node("cpu-1", resource="none"), *(node(f"gpu-{n}", taints=taints[:n]) for n in (2, 1)), node("z", 0)]
    said = explain(TAINTED, ONE, *nodes, node("gpu-3", taints=taints, is_cordoned=True))
    assert "gpu-1 has taint a:NoSchedule; gpu-2 has taint a:NoSchedule and has taint b:NoSchedule; gpu-3 is" in said
    assert "cpu-1" not in said


def test_other_messages_of_the_scheduler_get_no_addition() -> None:
    said = explain("0/1 nodes are available: 1 node(s) broke a rule of another scheduler." + TAIL, ONE, node())
    assert said.startswith("0/1 nodes are available: 1 node(s) broke a rule of another scheduler. Lower")


def test_a_cluster_without_nodes() -> None:
    words = "no nodes available to schedule pods"
    assert explain(words, pod({"cpu": "1"})) == f"{words}. The cluster has no nodes. Add nodes."


def test_without_facts_the_schedulers_message_gets_no_addition() -> None:
    assert explain_unschedulable(ONE, INSUFFICIENT + TAIL, None).message == INSUFFICIENT.rstrip(".")


def test_room_that_is_being_made_is_waited_for() -> None:
    asking = pod({GPU: "2"}) | {"status": {"nominatedNodeName": "gpu-1"}}
    said = explain_unschedulable(asking, INSUFFICIENT, ClusterNodes((node(),))).format_message()
    assert "Pods of lower priority are being removed from gpu-1" in said


@pytest.mark.parametrize(
    "words",
    [
        '0/1 nodes are available: persistentvolumeclaim "nope" not found. not found',
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
        "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind." + TAIL,
    ],
)
def test_a_missing_volume_is_not_explained_by_nodes(words: str) -> None:
    error = explain_unschedulable(ONE, words, ClusterNodes((node(),)))
    assert error.reason.name == "VolumeNotBound"
    assert not error.message.endswith("not found. not found")


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        ({"key": "zone", "operator": "In", "values": ["a"]}, True),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "zone", "operator": "DoesNotExist"}, False),
        ({"key": "rank", "operator": "Gt", "values": ["2"]}, True),
        ({"key": "rank", "operator": "Lt", "values": ["2"]}, False),
        ({"key": "none", "operator": "NotIn", "values": ["a"]}, True),
    ],
)
def test_affinity_is_judged_as_the_scheduler_does(requirement: dict[str, Any], fits: bool) -> None:
    term = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    said = explain(NO_VICTIMS, pod({GPU: "1"}, affinity=affinity), node(labels={"zone": "a", "rank": "3"}))
    assert ("does not match spec.pod.affinity" not in said) == fits
