"""`hone doctor` on nodes as AMD's labeller, device plugin, operator and driver for claims write them."""

from typing import Any

import pytest
import yaml
from doctor_nodes import (
    LABELS,
    MIXED,
    REPARTITIONING,
    SINGLE_CPX,
    UNHEALTHY,
    VIRTUAL,
    device_slice,
    facts,
    node,
)
from hone_cli.doctor.checks import gpu_drivers, gpus, nodes
from hone_cli.doctor.checks.cluster_facts import read_devices
from hone_cli.doctor.checks.findings import Finding, Unread, find_exit_code

CLASS = {"gpu.amd.com": ""}


def by_check(*findings: Finding) -> dict[str, Finding]:
    assert len({finding.check for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.remedy or finding.status == "ok", finding
        assert not finding.message.endswith("."), finding
    return {finding.check: finding for finding in findings}


def check(found: Any) -> dict[str, Finding]:
    return by_check(*nodes.check_nodes(found), *gpus.check_gpus(found), *gpu_drivers.check_gpu_drivers(found))


def statuses(found: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.status for check, finding in found.items()}


def test_healthy_nodes_are_all_ok() -> None:
    found = check(facts(node("a"), node("b")))
    assert set(statuses(found).values()) == {"ok"}
    assert found["nodes"].message == "2 of 2 nodes can take pods"
    assert found["gpus"].message == "16 x MI300X in spx_nps1 on 2 nodes"
    assert found["gpuResources"].message == "amd.com/gpu: 16 on 2 nodes"


def test_partitions_under_the_strategy_single_are_explained() -> None:
    found = check(facts(node(capacity={"amd.com/gpu": "64"}, labels=SINGLE_CPX)))
    assert found["gpus"].message == "64 x MI300X in cpx_nps4 on 1 node"
    assert found["gpuResources"].status == "ok"
    assert "Each of amd.com/gpu is a partition (cpx_nps4)" in found["gpuResources"].message


def test_partitions_under_the_strategy_mixed_have_the_resource_to_ask_for() -> None:
    found = check(facts(node(capacity={"amd.com/spx_nps1": "4", "amd.com/cpx_nps1": "32"}, labels=MIXED)))
    assert found["gpus"].message == "36 x MI300X in cpx_nps1 + spx_nps1 on 1 node"
    resources = found["gpuResources"]
    assert resources.status == "warning"
    assert "mixed" in resources.message
    assert "spec.resources.gpuResource: amd.com/cpx_nps1 or amd.com/spx_nps1" in resources.remedy


def test_full_gpus_next_to_partitions_keep_the_default() -> None:
    found = check(facts(node("a"), node("b", capacity={"amd.com/cpx_nps1": "64"}, labels=MIXED)))
    assert found["gpuResources"].status == "ok"
    assert "amd.com/cpx_nps1" in found["gpuResources"].remedy


@pytest.mark.parametrize(
    ("labels", "is_known"),
    [
        ({"device-id": "74a1", "cu-count": "304"}, True),
        ({"device-id": "74a1", "compute-memory-partition": "spx_nps1"}, True),
        ({"device-id": "740f"}, True),
        ({"device-id": "74a1"}, False),
        ({"device-id": "74a1", "cu-count": "38"}, False),
        ({"device-id": "ffff", "cu-count": "304"}, False),
        ({"vram": "192G"}, False),
    ],
)
def test_partitions_that_no_label_shows_are_called_unknown(labels: dict[str, str], is_known: bool) -> None:
    found = check(facts(node(labels={f"amd.com/gpu.{name}": value for name, value in labels.items()})))
    assert found["gpuResources"].status == "ok"
    assert ("is not known: no label shows partitions" in found["gpuResources"].message) != is_known


def test_virtual_functions_are_named_by_their_device_id() -> None:
    found = check(facts(node(labels=VIRTUAL)))
    assert found["gpus"].message == "8 x MI300X (virtual function) on 1 node"
    assert found["gpuLabels"].status == "ok"


def test_a_gpu_of_an_unknown_device_id_has_the_name_of_its_label() -> None:
    labels = {"amd.com/gpu.device-id": "738c", "amd.com/gpu.product-name": "AMD_Instinct_MI100"}
    assert check(facts(node(labels=labels)))["gpus"].message == "8 x AMD_Instinct_MI100 on 1 node"
    del labels["amd.com/gpu.product-name"]
    assert check(facts(node(labels=labels)))["gpus"].message == "8 x device 738c on 1 node"


NO_GPUS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "network card": ({"amd.com/nic": "8"}, {"feature.node.kubernetes.io/amd-nic": "true"}),
    "virtual card": ({"amd.com/vnic": "8", "nvidia.com/gpu": "8"}, {"feature.node.kubernetes.io/amd-vnic": "true"}),
    "FPGA": ({"amd.com/xilinx_u250_gen3x16_xdma_shell_2_1-0": "2"}, {}),
    "label that denies": ({}, {"feature.node.kubernetes.io/amd-gpu": "false"}),
}


@pytest.mark.parametrize("name", NO_GPUS)
def test_other_amd_devices_are_no_gpus(name: str) -> None:
    capacity, labels = NO_GPUS[name]
    other = node("other", capacity=capacity, labels=labels, taints=[{"key": "a", "effect": "NoSchedule"}])
    assert statuses(check(facts(other))) == {"nodes": "ok", "gpus": "failed", "gpuDriver": "failed"}
    found = check(facts(other, node("gpu-1")))
    assert set(statuses(found).values()) == {"ok"}
    assert found["gpus"].message == "8 x MI300X in spx_nps1 on 1 node"


@pytest.mark.parametrize("closed", [{"is_cordoned": True}, {"ready": "Unknown"}])
@pytest.mark.parametrize("how", ["plugin", "claims"])
def test_gpus_on_nodes_that_take_no_pods_fail(closed: dict[str, Any], how: str) -> None:
    cpu = node("cpu", capacity={}, labels={})
    if how == "plugin":
        found = facts(node("a", **closed), cpu)
    else:
        found = facts(node("a", capacity={}, labels={}, **closed), cpu, slices=(device_slice("a"),))
    resources = check(found)["gpuResources"]
    assert resources.status == "failed"
    assert "none of the nodes can take pods: a" in resources.message
    some = check(facts(node("a", **closed), node("b")))["gpuResources"]
    assert (some.status, "can't take pods: a" in some.message) == ("ok", True)


@pytest.mark.parametrize("capacity", [{}, {"amd.com/gpu": "0"}])
def test_a_node_that_lost_its_device_plugin_is_named_next_to_others(capacity: dict[str, str]) -> None:
    found = check(facts(node("a"), node("b", capacity=capacity)))
    assert found["gpus"].message == "8 x MI300X in spx_nps1 on 1 node; MI300X in spx_nps1 on 1 node"
    assert found["gpuResources"].status == "warning"
    assert found["gpuResources"].message.endswith("no such resource: b")


def test_a_device_plugin_of_others_is_not_taken_for_amds() -> None:
    images = {"nvcr.io/nvidia/k8s-device-plugin:v0.17.0-amd64": (4, 3), "mirror/amd64/k8s-device-plugin": (1, 0)}
    assert check(facts(node(), daemon_sets=images))["gpuDriver"].status == "ok"
    found = check(facts(node(capacity={}), daemon_sets=images))["gpuDriver"]
    assert found.message == "Neither a device plugin nor a driver offers AMD GPUs"
    mirrored = {"mirror.example.com/amd/k8s-device-plugin:1": (4, 3)}
    assert check(facts(node(), daemon_sets=mirrored))["gpuDriver"].status == "warning"


TAINT_TEXTS = ("", "true", "1", "on", "No", "null", "1e3", "0x1f", "2026-01-01", "1_0", "a.b", "x-y", "A")


@pytest.mark.parametrize("value", TAINT_TEXTS)
def test_a_toleration_can_be_pasted(value: str) -> None:
    key = value or "gpu"
    taint = {"key": key, "value": value, "effect": "NoSchedule"}
    written = check(facts(node(taints=[taint])))["taints"].remedy.partition("spec.pod.tolerations: ")[2].rstrip(".")
    (toleration,) = yaml.safe_load(written)
    expected = {"operator": "Equal", "value": value} if value else {"operator": "Exists"}
    assert toleration == {"key": key, "effect": "NoSchedule"} | expected


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_devices_by_claims_have_the_resource_to_ask_for(version: str) -> None:
    found = check(facts(node(capacity={}), slices=(device_slice(version=version),), device_classes=CLASS))
    assert "8 x MI300X in spx_nps1 by Dynamic Resource Allocation" in found["gpus"].message
    assert found["gpuResources"].status == "warning"
    assert "deviceclass.resource.kubernetes.io/gpu.amd.com" in found["gpuResources"].remedy
    assert found["gpuDriver"].status == "ok"
    assert "stays Pending" in found["gpuDriver"].message


def test_devices_by_claims_fail_before_kubernetes_makes_the_claims() -> None:
    found = check(facts(node(capacity={}), slices=(device_slice(),), device_classes=CLASS, version=(1, 34)))
    assert found["gpuResources"].status == "failed"
    assert "1.34" in found["gpuResources"].message


@pytest.mark.parametrize("class_name", ["gpu.amd.com", "team-gpus"])
@pytest.mark.parametrize(
    ("resource", "status", "words"),
    [
        ("amd.com/gpu", "ok", "a DeviceClass offers them as amd.com/gpu"),
        ("amd.com/cpx_nps4", "warning", "DeviceClasses offer amd.com/cpx_nps4"),
        ("example.com/fpga", "failed", "makes no claims for extended resources"),
    ],
)
def test_extended_resources_of_device_classes_are_known(
    class_name: str, resource: str, status: str, words: str
) -> None:
    """The API server keeps this field only where Kubernetes makes the claims, so no version decides."""
    classes = CLASS | {class_name: resource}
    found = check(facts(node(capacity={}), slices=(device_slice(),), device_classes=classes, version=(1, 35)))
    assert found["gpuResources"].status == status
    assert words in found["gpuResources"].message
    assert ("stays Pending" in found["gpuDriver"].message) == (resource != "amd.com/gpu")


def test_devices_without_their_class_fail() -> None:
    found = check(facts(node(capacity={}), slices=(device_slice(),)))
    assert found["gpuDriver"].status == "failed"


def test_a_class_without_devices_fails() -> None:
    found = check(facts(node(capacity={}), device_classes=CLASS))
    assert found["gpuDriver"].status == "failed"
    assert "no ResourceSlice" in found["gpuDriver"].message


def test_the_plugin_and_the_driver_exclude_each_other() -> None:
    assert check(facts(node(), slices=(device_slice(),), device_classes=CLASS))["gpuDriver"].status == "warning"


def test_a_device_with_a_taint_is_reported() -> None:
    taint = {"key": "example.com/broken", "effect": "NoExecute"}
    found = check(facts(node(capacity={}), slices=(device_slice(taints=[taint]),), device_classes=CLASS))
    assert found["gpuHealth"].status == "failed"
    assert "example.com/broken" in found["gpuHealth"].message


def test_partitions_made_on_demand_are_healthy_while_others_are_in_use() -> None:
    attributes = {"computePartition": {"string": "cpx"}, "memoryPartition": {"string": "nps4"}}
    attributes["deviceID"] = {"string": "0x74a1"}
    taint = {"key": "gpu.amd.com/memory-partition-conflict", "effect": "NoExecute"}
    some = device_slice(attributes=attributes, taints=[taint])
    found = check(facts(node(capacity={}), slices=(some,), device_classes=CLASS))
    assert "8 x MI300X in cpx_nps4 on demand by Dynamic Resource Allocation" in found["gpus"].message
    assert found["gpuHealth"].status == "ok"


UNHEALTHY_LABEL = LABELS | {"metricsexporter.amd.com.gpu.0.state": "unhealthy"}


@pytest.mark.parametrize("ill", [node("ill", taints=[UNHEALTHY]), node("ill", labels=UNHEALTHY_LABEL)])
def test_unhealthy_gpus_are_a_warning_while_others_are_left(ill: Any) -> None:
    found = check(facts(ill, node("well")))
    assert found["gpuHealth"].status == "warning"
    assert "ill" in found["gpuHealth"].message
    assert "taints" not in found or found["taints"].status == "ok"
    assert check(facts(ill))["gpuHealth"].status == "failed"


def test_repartitioning_is_reported_as_temporary() -> None:
    found = check(facts(node(taints=[REPARTITIONING])))
    assert found["gpuHealth"].status == "failed"
    assert found["gpuHealth"].remedy == "Wait until the taint amd-dcm is gone."


def test_fewer_allocatable_gpus_than_known_are_reported() -> None:
    found = check(facts(node(allocatable={"amd.com/gpu": "7"})))
    assert found["gpuHealth"].status == "warning"
    assert check(facts(node(allocatable={"amd.com/gpu": "0"})))["gpuResources"].status == "failed"


def test_a_cordoned_and_a_lost_node_are_named() -> None:
    found = check(facts(node("a"), node("b", is_cordoned=True), node("c", ready="Unknown")))
    assert found["nodes"].status == "warning"
    assert found["nodes"].message == "1 of 3 nodes can take pods; 1 not ready: c; 1 cordoned: b"
    assert check(facts(node(is_cordoned=True)))["nodes"].status == "failed"


def test_a_taint_of_others_has_its_toleration_written_out() -> None:
    taint = {"key": "team", "value": "research", "effect": "NoSchedule"}
    found = check(facts(node(taints=[taint, {"key": "amd.com/gpu", "effect": "NoSchedule"}])))
    assert found["taints"].status == "warning"
    assert "{key: team, operator: Equal, value: research, effect: NoSchedule}" in found["taints"].remedy
    assert "amd.com/gpu" not in found["taints"].remedy


def test_nodes_without_gpus_fail() -> None:
    found = check(facts(node(capacity={}, labels={})))
    assert found["gpus"].status == "failed"
    assert find_exit_code(found.values()) == 1


def test_labels_without_resources_fail() -> None:
    found = check(facts(node(capacity={})))
    assert found["gpuResources"].status == "failed"
    assert "without GPUs" in found["gpuResources"].message


def test_a_missing_labeller_is_a_warning() -> None:
    found = check(facts(node(labels={})))
    assert found["gpuLabels"].status == "warning"
    images = {"rocm/k8s-device-plugin:labeller-latest": (1, 1)}
    assert "Start" in check(facts(node(labels={}), daemon_sets=images))["gpuLabels"].remedy


def test_pods_of_the_plugin_that_are_not_ready_are_reported() -> None:
    images = {"rocm/k8s-device-plugin:latest": (4, 3), "rocm/k8s-device-plugin:labeller-latest": (4, 4)}
    assert check(facts(node(), daemon_sets=images))["gpuDriver"].status == "warning"
    found = check(facts(node(capacity={}, labels={}), daemon_sets=images))["gpuDriver"]
    assert "3 of 4 pods ready" in found.message


def test_without_the_right_nothing_is_called_ok() -> None:
    forbidden = Unread("nodes is forbidden")
    found = check(facts(nodes=forbidden))
    assert set(statuses(found).values()) == {"unknown"}
    assert find_exit_code(found.values()) == 2
    hidden = check(facts(node(capacity={}, labels={}), devices=Unread("forbidden")))
    assert hidden["gpus"].status == hidden["gpuDriver"].status == "unknown"


def test_ten_thousand_nodes_are_a_summary() -> None:
    many = [node(f"n{i}", taints=[UNHEALTHY], is_cordoned=i % 2 == 0, ready="False") for i in range(10_000)]
    found = check(facts(*many))
    assert sum(len(finding.message) + len(finding.remedy) for finding in found.values()) < 2_500
    assert "and 9997 more" in found["nodes"].message


@pytest.mark.parametrize("key", ["ToBeDeletedByClusterAutoscaler", "karpenter.sh/unregistered"])
def test_nodes_that_come_or_go_are_reported_without_a_toleration(key: str) -> None:
    found = check(facts(node("gpu-1", taints=[{"key": key, "effect": "NoSchedule"}])))["taints"]
    assert found.status == "warning"
    assert f"gpu-1 ({key}:NoSchedule)" in found.message
    assert "toleration" not in found.remedy


def test_a_slice_that_its_driver_has_replaced_is_not_counted() -> None:
    def slice_of(generation: int, *names: str) -> dict[str, Any]:
        pool = {"name": "gpu-1", "generation": generation, "resourceSliceCount": 1}
        devices = [{"name": name} for name in names]
        return {"spec": {"driver": "gpu.amd.com", "nodeName": "gpu-1", "pool": pool, "devices": devices}}

    assert len(read_devices([slice_of(1, "gpu-0", "gpu-1"), slice_of(2, "gpu-0")])) == 1
    assert len(read_devices([slice_of(2, "gpu-0"), slice_of(2, "gpu-1")])) == 2
