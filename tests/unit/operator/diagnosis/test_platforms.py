"""Explanations hold in every shape that platforms give the same cause."""

from typing import Any

import pytest
from hone_api.pods.node_taints import find_node_phase
from hone_cli.doctor.checks.cluster_facts import Taint as NodeTaint
from hone_cli.doctor.checks.nodes import needs_toleration
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.image_pull import explain_image_pull
from hone_operator.diagnosis.node_fit import read_pod_requirements
from hone_operator.diagnosis.nodes import ClusterNodes, Node, Taint
from hone_operator.diagnosis.pod_failure import explain_pod_failure
from hone_operator.diagnosis.pod_state import explain_not_running, waits_for_volumes
from hone_operator.diagnosis.quotas import advise_on_quota
from hone_operator.diagnosis.unschedulable import explain_unschedulable
from hypothesis import given
from hypothesis import strategies as st
from observed import NOW, terminated, unschedulable
from observed import pod as pod_in_state

Object = dict[str, Any]
GPU = "amd.com/gpu"
CODES = ("401", "403", "429", "502")


def pulled(words: str) -> str:
    return explain_image_pull("ErrImagePull", words, "registry.example.com/x:1").remedy


@given(st.sampled_from(CODES), st.text("0123456789abcdef", min_size=61, max_size=61), st.integers(0, 61))
def test_a_digest_that_contains_a_status_code_changes_no_advice(code: str, rest: str, at: int) -> None:
    image = f"registry.example.com/x@sha256:{rest[:at]}{code}{rest[at:]}"
    assert "network, DNS" in pulled(f'failed to resolve reference "{image}": dial tcp: lookup registry: i/o timeout')
    assert "disk space" in pulled(f'failed to extract layer of "{image}": no space left on device')


@given(st.integers(1024, 65535))
def test_a_port_changes_no_advice(port: int) -> None:
    assert "network, DNS" in pulled(f"read tcp 10.4.0.5:{port}->140.82.1.1:443: i/o timeout")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("unexpected status from HEAD request to https://r/v2/: 403 Forbidden", "imagePullSecrets"),
        ("failed with status code [manifests 1]: 401 Unauthorized", "imagePullSecrets"),
        ("error parsing HTTP 429 response body", "mirror"),
        ("unexpected status code: 503 Service Unavailable", "network, DNS"),
        ("read: connection reset by peer", "network, DNS"),
    ],
)
def test_a_status_of_the_registry_is_understood(words: str, advice: str) -> None:
    assert advice in pulled(words)


@pytest.mark.parametrize("reason", ["ImageInspectError", "SignatureValidationFailed"])
def test_refusals_of_cri_o_are_failures_of_the_pull(reason: str) -> None:
    waiting = pod_in_state(scheduled=True, waiting={"reason": reason, "message": "short name mode is enforcing"})
    found = explain_not_running(waiting, "trainer", cluster=None, warning=None, now=NOW)
    assert found
    assert (found.reason.name, "docker.io/" in found.remedy) == ("ImagePullFailed", True)


AMOUNTS = st.dictionaries(st.sampled_from(["cpu", "memory", GPU]), st.integers(1, 9))


def make_container(requests: dict[str, int], **more: Any) -> Object:
    return {"name": "c", "resources": {"requests": {name: str(value) for name, value in requests.items()}}, **more}


@given(
    st.lists(AMOUNTS, min_size=1, max_size=3),
    st.lists(st.tuples(AMOUNTS, st.booleans()), max_size=4),
    AMOUNTS,
)
def test_a_pod_needs_the_most_that_runs_at_once(
    containers: list[dict[str, int]], initial: list[tuple[dict[str, int], bool]], overhead: dict[str, int]
) -> None:
    spec = {
        "containers": [make_container(each) for each in containers],
        "initContainers": [
            make_container(each, **({"restartPolicy": "Always"} if stays else {})) for each, stays in initial
        ],
        "overhead": {name: str(value) for name, value in overhead.items()},
    }
    moments, sidecars = [], []
    for each, stays in initial:
        moments.append([*sidecars, each])
        sidecars += [each] if stays else []
    moments.append([*sidecars, *containers])
    found = read_pod_requirements({"spec": spec}).resources
    for name in ("cpu", "memory", GPU):
        most = max(sum(each.get(name, 0) for each in moment) for moment in moments)
        assert found.get(name, 0) == most + overhead.get(name, 0)


def test_what_sidecars_and_the_runtime_need_is_left_in_the_advice() -> None:
    pod = unschedulable("0/1 nodes are available: 1 Insufficient cpu.", cpu="64")
    pod["spec"] |= {
        "initContainers": [make_container({"cpu": 2}, restartPolicy="Always")],
        "overhead": {"cpu": "1"},
    }
    node = Node("n", allocatable={"cpu": 64}, capacity={"cpu": 64})
    found = explain_unschedulable(pod, pod["status"]["conditions"][0]["message"], ClusterNodes((node,)))
    assert "asks for 67 cpu" in found.format_message()
    assert "Lower spec.resources.cpu to 61 or less" in found.remedy


STARTING = [
    "node.cloudprovider.kubernetes.io/uninitialized",
    "node.cluster.x-k8s.io/uninitialized",
    "karpenter.sh/unregistered",
    "node.cilium.io/agent-not-ready",
    "ebs.csi.aws.com/agent-not-ready",
    "efs.csi.aws.com/agent-not-ready",
    "startup-taint.cluster-autoscaler.kubernetes.io/gpu",
    "readiness.k8s.io/amd-gpu",
]
LEAVING = [
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "cloud.google.com/impending-node-termination",
    "node.cloudprovider.kubernetes.io/shutdown",
    "aws-node-termination-handler/spot-itn",
]


@pytest.mark.parametrize("key", [*STARTING, *LEAVING])
@pytest.mark.parametrize("value", ["", "true", "1733000000"])
@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
def test_nobody_is_told_to_tolerate_a_node_that_comes_or_goes(key: str, value: str, effect: str) -> None:
    assert find_node_phase(key) == ("starting" if key in STARTING else "leaving")
    node = Node("n", allocatable={GPU: 8}, capacity={GPU: 8}, taints=(Taint(key, value, effect),))
    message = "0/1 nodes are available: 1 node(s) had untolerated taint(s)."
    found = explain_unschedulable(unschedulable(message, **{GPU: "1"}), message, ClusterNodes((node,)))
    assert "tolerations" not in found.remedy
    assert not needs_toleration(NodeTaint(key, value, effect))


@pytest.mark.parametrize("key", ["dedicated", "nvidia.com/gpu", "node-role.kubernetes.io/control-plane", "sku"])
def test_other_taints_are_tolerated(key: str) -> None:
    assert find_node_phase(key) is None
    assert needs_toleration(NodeTaint(key, "", "NoSchedule"))


@pytest.mark.parametrize(
    "words",
    [
        'running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded',
        'running PreBind plugin "VolumeBinding": binding volumes: timed out waiting for the condition',
        'running PreBind plugin "VolumeBinding": binding volumes: provisioning failed for PVC "faq-output"',
    ],
)
def test_a_volume_that_nobody_provisions_in_time_is_the_cause(words: str) -> None:
    pod = unschedulable(words, **{GPU: "1"})
    pod["status"]["conditions"][0]["reason"] = "SchedulerError"
    assert waits_for_volumes(pod, NOW)
    claim = "PersistentVolumeClaim faq-output (1Gi, ReadWriteOnce, StorageClass gp3) is Pending: no driver."
    found = explain_not_running(pod, "trainer", cluster=None, warning=claim, now=NOW)
    assert found
    assert found.reason.name == "VolumeNotBound"
    assert claim in found.format_message()


PARTITIONS = [f"amd.com/{mode}_nps{number}" for mode in ("spx", "dpx", "tpx", "qpx", "cpx") for number in (1, 2, 4, 8)]
DEVICES = [
    GPU,
    *PARTITIONS,
    "nvidia.com/gpu",
    "nvidia.com/mig-1g.10gb",
    "example.com/gpu",
    "deviceclass.resource.kubernetes.io/gpu.amd.com",
]


@pytest.mark.parametrize("name", DEVICES)
def test_a_quota_on_gpus_of_any_name_names_the_number_of_gpus(name: str) -> None:
    for words in (
        f"exceeded quota: q, requested: requests.{name}=8, used: requests.{name}=8, limited: requests.{name}=8",
        f"maximum {name} usage per Pod is 4, but limit is 8",
    ):
        found = advise_on_quota(f'pods "x" is forbidden: {words}')
        assert found
        assert found.startswith("Lower spec.resources.gpus, ")
        assert "spec.resources.limits" not in found


def test_a_quota_on_claims_for_devices_names_the_number_of_gpus() -> None:
    name = "gpu.amd.com.deviceclass.resource.k8s.io/devices"
    found = advise_on_quota(
        f'"x" is forbidden: exceeded quota: q, requested: {name}=8, used: {name}=8, limited: {name}=8'
    )
    assert found
    assert found.startswith("Lower spec.resources.gpus, ")


@pytest.mark.parametrize("name", ["amd.com/nic", "rdma/hca", "intel.com/qat"])
def test_a_quota_on_other_devices_names_their_field(name: str) -> None:
    found = advise_on_quota(f'"x" is forbidden: exceeded quota: q, requested: requests.{name}=8, used: 8, limited: 8')
    assert found
    assert f"spec.resources.limits.{name}" in found


@pytest.mark.parametrize("names", ["istio-proxy", "trainer,istio-proxy", "linkerd-proxy,vault-agent"])
def test_a_quota_that_an_injected_container_breaks_names_that_container(names: str) -> None:
    found = explain_refusal(f'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: {names}').remedy
    others = [name for name in names.split(",") if name != "trainer"]
    assert f"spec.resources does not reach {' and '.join(others)}" in found


@pytest.mark.parametrize("resource", ["cpu", "memory", "ephemeral-storage"])
@pytest.mark.parametrize("kind", ["limit", "request"])
@pytest.mark.parametrize(
    ("words", "verb"),
    [
        ("<96> is higher than the maximum allowed of <64>", "Lower"),
        ("exceeds the maximum of 64", "Lower"),
        ("must be less than 64", "Lower"),
        ("<1> is less than the minimum of <4>", "Raise"),
        ("must be at least 4", "Raise"),
        ("is required", "The policy requires"),
    ],
)
def test_a_policy_on_an_amount_names_the_direction(resource: str, kind: str, words: str, verb: str) -> None:
    denied = 'admission webhook "validation.gatekeeper.sh" denied the request: container <trainer>'
    message = f"{denied} {resource} {kind} {words}"
    assert explain_refusal(message).remedy.startswith(verb)


@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun"])
@pytest.mark.parametrize("device", ["/dev/kfd", "/dev/dri/renderD135"])
def test_a_device_file_that_is_gone_is_no_error_of_the_trainer(reason: str, device: str) -> None:
    words = (
        f'OCI runtime create failed: error gathering device information while adding custom device "{device}": no such'
    )
    pod = pod_in_state(terminated={**terminated(128, words), "reason": reason})
    found = explain_pod_failure(pod, "trainer")
    assert found
    assert found.reason == "PodNotStarted"
    assert device in found.message
    assert "device plugin" in found.message


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (137, "ContainerStatusUnknown", "The container could not be located when the pod was terminated"),
        (255, "Unknown", ""),
    ],
)
def test_a_node_that_restarted_is_no_error_of_the_trainer(code: int, reason: str, words: str) -> None:
    pod = pod_in_state(terminated={**terminated(code, words), "reason": reason})
    found = explain_pod_failure(pod, "trainer")
    assert found
    assert (found.reason, found.exit_code) == ("NodeLost", code)
    assert "backoffLimit counts this one" in found.message
