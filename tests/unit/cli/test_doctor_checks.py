"""`hone doctor` on storage, Hone's installation, add-ons, the pod of --deep, and this machine."""

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doctor_nodes import MIXED, UNHEALTHY, device_slice, facts, node
from hone.kube import rest, temporary_pod
from hone.objects import operators
from hone_api.gpucheck.facts import Device, DeviceFile, Facts, Torch
from hone_api.schema.crd import KINDS, make_definition
from hone_cli.doctor import deep_findings, machine_findings, pod_script, probe_pod
from hone_cli.doctor.checks import addons, installation, storage
from hone_cli.doctor.checks.findings import Finding, Unread, find_exit_code
from hone_cli.doctor.machine import MachineFacts
from hone_cli.doctor.probe_pod import Probed, Target
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

GB = 1024**3
IMAGES = {"runtime.image": "r.example/hone:1", "runtime.vllmImage": "r.example/vllm:1"}


def by_check(findings: Any) -> dict[str, Finding]:
    found = {finding.check: finding for finding in findings}
    assert all(finding.remedy or finding.status == "ok" for finding in found.values())
    return found


def storage_class(name: str, provisioner: str, is_default: bool = False) -> dict[str, Any]:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if is_default else {}
    return {"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([], {"storageClass": "failed"}),
        ([storage_class("a", "rancher.io/local-path", True)], {"storageClass": "ok", "accessModes": "warning"}),
        ([storage_class("a", "nfs.csi.k8s.io")], {"storageClass": "warning", "accessModes": "ok"}),
        ([storage_class("a", "example.com/new", True)], {"storageClass": "ok", "accessModes": "unknown"}),
    ],
)
def test_storage(classes: list[Any], expected: dict[str, str]) -> None:
    found = by_check(storage.check_storage(facts(storage_classes=tuple(classes))))
    assert {name: finding.status for name, finding in found.items()} == expected


def test_of_several_defaults_the_newest_is_named() -> None:
    classes = [storage_class(name, "nfs.csi.k8s.io", True) for name in ("a", "b", "c")]
    for each, created in zip(
        classes, ("2024-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z"), strict=True
    ):
        each["metadata"]["creationTimestamp"] = created
    found = by_check(storage.check_storage(facts(storage_classes=tuple(classes))))
    assert found["storageClass"].message.startswith("The default StorageClass is b, the newest")
    assert found["storageClass"].message.endswith("the others are a, c")
    assert not found["accessModes"].remedy


def test_the_command_for_a_default_also_replaces_the_annotation_that_denies_it() -> None:
    denied = storage_class("a", "nfs.csi.k8s.io")
    denied["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "false"}
    remedy = by_check(storage.check_storage(facts(storage_classes=(denied,))))["storageClass"].remedy
    assert "kubectl annotate storageclass NAME --overwrite storageclass.kubernetes.io/is-default-class=true" in remedy


def operator(version: str = "1.0.0", available: int = 1) -> dict[str, Any]:
    env = [
        {"name": "HONE_RUNTIME_IMAGE", "value": IMAGES["runtime.image"]},
        {"name": "HONE_GPU_GROUPS", "value": "109"},
    ]
    env.append({"name": "HONE_VLLM_IMAGE", "value": IMAGES["runtime.vllmImage"]})
    return {
        "metadata": {"name": "op", "namespace": "hs", "labels": {"app.kubernetes.io/version": version}},
        "spec": {"template": {"spec": {"containers": [{"name": "operator", "env": env}]}}},
        "status": {"availableReplicas": available},
    }


def definitions() -> dict[str, Any]:
    return {f"{kind.PLURAL}.hone.dev": make_definition(kind) for kind in KINDS.values()}


def test_hone_of_the_same_version_is_ok() -> None:
    found = facts(definitions=definitions(), operators=(operator(),))
    assert {f.status for f in installation.check_installation(found, "1.0.0")} == {"ok"}
    assert operators.find_images(found.operators) == IMAGES
    assert operators.find_gpu_groups(found.operators) == (109,)


def test_another_version_and_other_fields_are_warnings() -> None:
    older = definitions()
    spec = older["finetunejobs.hone.dev"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["method"]
    spec["properties"]["magic"] = {"type": "string"}
    found = by_check(installation.check_installation(facts(definitions=older, operators=(operator("0.9"),)), "1.0.0"))
    assert found["operator"].status == found["definitions"].status == "warning"
    assert "FineTuneJob lacks spec.method" in found["definitions"].message
    assert "has also spec.magic" in found["definitions"].message


def test_missing_definitions_and_operators_fail() -> None:
    missing = definitions() | {"finetunejobs.hone.dev": None}
    found = by_check(installation.check_installation(facts(definitions=missing), "1.0.0"))
    assert found["operator"].status == found["definitions"].status == "failed"
    gone = by_check(installation.check_installation(facts(operators=(operator(available=0),)), "1.0.0"))
    assert gone["operator"].status == "failed"


def test_addons_that_are_missing_never_fail() -> None:
    found = addons.check_addons(facts())
    assert find_exit_code(found) == 0
    assert {finding.status for finding in found} <= {"ok", "warning"}
    assert find_exit_code(addons.check_addons(facts(groups=Unread("forbidden")))) == 0


def test_addons_that_are_there_are_ok() -> None:
    groups = frozenset({"kueue.x-k8s.io", "monitoring.coreos.com", "metrics.k8s.io", "custom.metrics.k8s.io"})
    services = {"metrics.k8s.io": True, "custom.metrics.k8s.io": False}
    found = by_check(addons.check_addons(facts(groups=groups, services=services, local_queues=("team",))))
    assert found["kueue"].status == found["usageMetrics"].status == found["prometheus"].status == "ok"
    assert found["autoscalingMetrics"].status == "warning"
    assert by_check(addons.check_addons(facts(groups=groups, services=services)))["kueue"].status == "warning"


def answer(**more: Any) -> dict[str, Any]:
    kfd = {"path": "/dev/kfd", "mode": 0o660, "owner": 0, "group": 109, "error": 0}
    render = [kfd | {"path": "/dev/dri/renderD128"}]
    found = {"user": 65532, "groups": [65532], "kfd": kfd, "render": render, "driver": "6.12.12"}
    return found | {"hub": {"status": 200}, "images": {"r.example/vllm:1": {"status": 200}}} | more


def deep(**more: Any) -> dict[str, Finding]:
    return by_check(
        deep_findings.check_probed(Probed(Target("gpu-1", "amd.com/gpu"), answer(**more), node="gpu-1"), IMAGES)
    )


def test_a_pod_that_opens_its_gpu_is_ok() -> None:
    assert {finding.status for finding in deep().values()} == {"ok"}


def test_a_pod_outside_the_render_group_names_the_group() -> None:
    found = deep(kfd=answer()["kfd"] | {"error": errno.EACCES})["gpuAccess"]
    assert found.status == "failed"
    assert "109" in found.remedy


def test_a_pod_without_device_files_fails() -> None:
    assert deep(kfd=None, render=[])["gpuAccess"].status == "failed"


@pytest.mark.parametrize(
    ("found", "status"),
    [({"status": 404}, "failed"), ({"status": 401}, "unknown"), ({"error": "timed out"}, "unknown"), (None, "unknown")],
)
def test_an_image_that_is_not_found_fails_and_one_that_is_refused_is_unknown(found: Any, status: str) -> None:
    assert deep(images={"r.example/vllm:1": found})["images"].status == status


def test_a_hub_out_of_reach_is_a_warning() -> None:
    assert deep(hub={"error": "no route"})["nodeHub"].status == "warning"
    assert deep(hub={"status": 503})["nodeHub"].status == "warning"


@pytest.mark.parametrize("reason", ["RightsMissing", "PodRefused", "Timeout", "NoAnswer", "CreateContainerConfigError"])
def test_a_pod_without_an_answer_is_unknown(reason: str) -> None:
    found = deep_findings.check_probed(Probed(Target(), reason=reason, error="words"), IMAGES)
    assert find_exit_code(found) == 2
    assert all("words" in finding.message for finding in by_check(found).values())


def test_a_runtime_image_that_cannot_be_pulled_fails() -> None:
    found = deep_findings.check_probed(Probed(Target("n"), reason="ErrImagePull", error="not found"), IMAGES)
    assert by_check(found)["images"].status == "failed"


@pytest.mark.parametrize("broken", [{"hub": None}, {"kfd": {"x": 1}}, {"user": "x"}, {"images": []}, {"render": 1}])
def test_an_answer_of_another_version_is_unknown(broken: dict[str, Any]) -> None:
    assert {finding.status for finding in deep(**broken).values()} == {"unknown"}


def test_the_pod_goes_to_a_healthy_node_with_the_resource_that_it_offers() -> None:
    partitions = node("mixed", capacity={"amd.com/cpx_nps1": "64"}, labels=MIXED)
    ill = node("ill", capacity={"amd.com/gpu": "99"}, taints=[UNHEALTHY])
    found = probe_pod.choose_target(facts(ill, node("cordoned", is_cordoned=True), partitions, node("a")), None, (109,))
    assert (found.node, found.resource) == ("mixed", "amd.com/cpx_nps1")
    assert probe_pod.choose_target(facts(node("a"), ill), "ill", ()).tolerations[0]["key"] == UNHEALTHY["key"]
    claimed = probe_pod.choose_target(facts(node("gpu-1", capacity={}), slices=(device_slice(),)), None, ())
    assert claimed.resource == "deviceclass.resource.kubernetes.io/gpu.amd.com"
    assert probe_pod.choose_target(facts(node(capacity={}, labels={})), None, ()).resource is None
    assert probe_pod.choose_target(facts(nodes=Unread("forbidden")), "a", ()).node == "a"


def test_the_pod_may_run_on_any_open_node_with_the_same_resource() -> None:
    taints = [{"key": "team", "value": "a", "effect": "NoSchedule"}]
    nodes = [node("small", capacity={"amd.com/gpu": "2"}), node("big", taints=taints), node("none", capacity={})]
    nodes += [node("mixed", capacity={"amd.com/cpx_nps1": "4"}), node("cordoned", is_cordoned=True)]
    target = probe_pod.choose_target(facts(*nodes), None, ())
    assert (target.node, target.others, target.resource) == ("big", ("small",), "amd.com/gpu")
    spec = probe_pod.make_pod("p", "i", target, "h", [], 9)["spec"]
    assert {"key": "team", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchFields"][0]["values"] for term in terms] == [["big"], ["small"]]
    assert probe_pod.choose_target(facts(*nodes), "big", ()).others == ()
    many = probe_pod.choose_target(facts(*(node(f"n{number}") for number in range(99))), None, ())
    assert len(many.others) == probe_pod.MOST_NODES - 1


def test_the_image_reference_is_split_as_runtimes_do() -> None:
    assert pod_script.split_image("rocm/vllm:1") == ("registry-1.docker.io", "rocm/vllm", "1")
    assert pod_script.split_image("ubuntu") == ("registry-1.docker.io", "library/ubuntu", "latest")
    assert pod_script.split_image("127.0.0.1:5000/a/b:2@sha256:0f") == ("127.0.0.1:5000", "a/b", "sha256:0f")


def test_the_script_of_the_pod_writes_an_answer_that_is_understood(tmp_path: Path) -> None:
    message = tmp_path / "message"
    pod_script.main(str(message), "http://127.0.0.1:1", ["127.0.0.1:1/a:1"])
    ended = {"name": "doctor", "state": {"terminated": {"message": message.read_text()}}}
    sidecar = {"name": "proxy", "state": {"running": {}}}
    pod = {"status": {"phase": "Running", "containerStatuses": [sidecar, ended]}}
    assert probe_pod.has_ended(pod)
    found, _ = probe_pod.read_answer(pod)
    assert found is not None
    assert len(message.read_bytes()) < 4096
    findings = by_check(deep_findings.check_probed(Probed(Target("n", "amd.com/gpu"), found), IMAGES))
    assert findings["nodeHub"].status == "warning"


def test_a_pod_that_cannot_start_is_not_waited_for() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    pod = {"status": {"phase": "Pending", "containerStatuses": [{"name": "doctor", "state": {"waiting": waiting}}]}}
    assert temporary_pod.judge_waiting(pod, "doctor") == ("ImagePullBackOff", "not found")
    assert not probe_pod.has_ended(pod)
    refused = {"status": {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no GPU is left"}}
    assert probe_pod.has_ended(refused)
    assert probe_pod.read_answer(refused) == (None, "UnexpectedAdmissionError no GPU is left")


def api_error(status: int) -> ApiException:
    return ApiException(status=status, reason=f"status {status}")


def run_probe(monkeypatch: pytest.MonkeyPatch, *answers: Any, allowed: bool = True) -> tuple[Probed, list[str]]:
    """Run the pod against answers to its creation and to each request. Return how it ended, and the methods used."""
    left, methods = list(answers), []

    def read(cluster: Any, path: str, query: Any = None, *, method: str = "GET", body: Any = None) -> Any:
        if "accessreviews" in path:
            return {"status": {"allowed": allowed}}
        methods.append(method)
        found = {} if method == "DELETE" else left.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(rest, "call_api", read)
    monkeypatch.setattr(probe_pod, "POLL_SECONDS", 0)
    cluster = SimpleNamespace(namespace="ns")
    return probe_pod.run_probe(cluster, "i", Target(), "https://h", [], 1000), methods  # type: ignore[arg-type]


FAILED_POD = {"status": {"phase": "Failed", "reason": "Evicted"}, "spec": {"nodeName": "gpu-1"}}


def test_after_a_broken_connection_the_pod_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    found, methods = run_probe(monkeypatch, {}, HTTPError("broken"), api_error(503), FAILED_POD)
    assert (found.reason, found.error, found.node) == ("NoAnswer", "Evicted", "gpu-1")
    assert methods == ["POST", "GET", "GET", "GET", "DELETE"]


@pytest.mark.parametrize("moment", [[], [{}], [{}, {}]])
def test_ctrl_c_deletes_the_pod_whenever_it_comes(monkeypatch: pytest.MonkeyPatch, moment: list[Any]) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(temporary_pod, "delete_pod", lambda cluster, place, name: deleted.append(name))
    with pytest.raises(KeyboardInterrupt):
        run_probe(monkeypatch, *moment, KeyboardInterrupt())
    assert len(deleted) == 1


def test_a_pod_that_others_delete_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found, methods = run_probe(monkeypatch, {}, api_error(404))
    assert found.reason == "PodLost"
    assert methods[-1] == "DELETE"


def test_no_pod_is_created_that_could_not_be_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    found, methods = run_probe(monkeypatch, allowed=False)
    assert found.error == "you may not create, get, delete pods in namespace ns"
    assert not methods


def test_a_refused_pod_is_not_deleted_and_one_whose_answer_was_lost_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found, methods = run_probe(monkeypatch, api_error(403))
    assert (found.reason, methods) == ("PodRefused", ["POST"])
    found, methods = run_probe(monkeypatch, HTTPError("lost"))
    assert (found.reason, methods) == ("PodRefused", ["POST", "DELETE"])


def machine(**more: Any) -> MachineFacts:
    open_ = DeviceFile("/dev/kfd")
    files = Facts(1, "amd.com/gpu", 0, frozenset({0}), open_, (DeviceFile("/dev/dri/renderD128"),), "6.12.12")
    torch = Torch("2.10", hip="7.2", seen=1, devices=(Device("MI300X", "gfx942"),))
    found = MachineFacts((3, 12), (), torch, files, None, 64 * GB, Path("/c"), None, 99 * GB, 99 * GB, "https://h", 200)
    return replace(found, **more)


def test_a_complete_machine_is_ok() -> None:
    assert {finding.status for finding in by_check(machine_findings.check_machine(machine())).values()} == {"ok"}


CLOSED = "/dev/kfd can't be opened: Permission denied (it belongs to group 109). Run `sudo usermod` and log in again"


@pytest.mark.parametrize(
    ("more", "check", "status"),
    [
        ({"python": (3, 10)}, "python", "failed"),
        ({"missing": ("trl",)}, "python", "warning"),
        ({"torch": None}, "torch", "warning"),
        ({"torch": None}, "gpus", "unknown"),
        ({"torch": "signal 11"}, "torch", "failed"),
        ({"torch": Torch("2.10", cuda="12.8")}, "torch", "failed"),
        ({"torch": Torch("2.10", hip="7.2")}, "gpus", "failed"),
        ({"torch": Torch("2.10", hip="7.2", seen=1, devices=(Device("g", "a", "hung"),))}, "gpus", "failed"),
        ({"closed": CLOSED}, "deviceFiles", "failed"),
        (
            {"closed": "/dev/kfd can't be opened: I/O. Look for amdgpu in the output of `dmesg`"},
            "deviceFiles",
            "failed",
        ),
        ({"memory": GB}, "memory", "warning"),
        ({"memory": Unread("no /proc")}, "memory", "unknown"),
        ({"free": GB}, "disk", "warning"),
        ({"cache_error": "/c is not writable"}, "hubCache", "failed"),
        ({"hub": "no route"}, "hub", "warning"),
        ({"hub": 503}, "hub", "warning"),
        ({"hub": None}, "hub", "ok"),
    ],
)
def test_what_a_machine_lacks(more: dict[str, Any], check: str, status: str) -> None:
    assert by_check(machine_findings.check_machine(machine(**more)))[check].status == status


def test_a_machine_without_gpus_and_torch_is_not_a_failure() -> None:
    files = Facts(1, "amd.com/gpu", 0, frozenset({0}))
    found = machine_findings.check_machine(machine(files=files, torch=Torch("2.10")))
    assert find_exit_code(found) == 0
