"""`hone doctor` on nodes as AMD's labeller, device plugin, operator and driver for claims write them."""

from typing import Any

import pytest
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
from hone_cli.doctor import gpudrivers, gpus, nodes
from hone_cli.doctor.findings import Finding, Unread, find_exit_code

CLASS = ("gpu.amd.com",)


def by_check(*findings: Finding) -> dict[str, Finding]:
    assert len({finding.check for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.remedy or finding.status == "ok", finding
        assert not finding.message.endswith("."), finding
    return {finding.check: finding for finding in findings}


def check(found: Any) -> dict[str, Finding]:
    return by_check(*nodes.check_nodes(found), *gpus.check_gpus(found), *gpudrivers.check_gpu_drivers(found))


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


def test_virtual_functions_are_named_by_their_device_id() -> None:
    found = check(facts(node(labels=VIRTUAL)))
    assert found["gpus"].message == "8 x MI300X (virtual function) on 1 node"
    assert found["gpuLabels"].status == "ok"


def test_network_cards_are_no_gpus() -> None:
    found = check(facts(node(capacity={"amd.com/nic": "8"}, labels={})))
    assert found["gpuResources"].status == "failed"


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


def test_partitions_made_on_demand_are_not_ill_while_others_are_in_use() -> None:
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


def test_repartitioning_is_waited_for() -> None:
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
    assert "offer no GPUs" in found["gpuResources"].message


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
