"""Different causes with similar messages: policies, volumes, autoscalers, refusals of the kubelet, and cut messages.

OpenShift's messages are as users have reported them. Those of Kyverno, Cluster Autoscaler, Karpenter and the kubelet
are partly from memory, and were not compared with their sources.
"""

import json
from datetime import timedelta
from typing import Any

import pytest
from hone_api.artifacts.trainer_reports import TerminationMessage
from hone_api.reasons import CATALOGUE
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.autoscalers import ScalingReport
from hone_operator.diagnosis.events import find_scaling_report
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.diagnosis.pod_failure import explain_pod_failure
from hone_operator.diagnosis.pod_state import explain_not_running
from hone_operator.diagnosis.unschedulable import explain_unschedulable
from hone_operator.finetunejob.plan import plan_finetunejob
from observed import BEFORE, NOW, PREPARED, failure, job_object, observed_job, pod, success, terminated, unschedulable

Object = dict[str, Any]
SCC = (
    'pods "faq-train-" is forbidden: unable to validate against any security context constraint: [provider "anyuid": '
    "Forbidden: not usable by user or serviceaccount, provider restricted-v2: .spec.securityContext.fsGroup: Invalid "
    "value: []int64{65532}: 65532 is not an allowed group, provider restricted-v2: .containers[0].runAsUser: Invalid "
    'value: 65532: must be in the ranges: [1000750000, 1000759999], provider "nonroot-v2": Forbidden: not usable by '
    "user or serviceaccount]"
)


@pytest.mark.parametrize(
    ("words", "advice", "other"),
    [
        (SCC, ["nonroot-v2", "spec.pod.serviceAccountName"], "Create the ServiceAccount"),
        (
            'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: trainer',
            ["spec.resources.limits.cpu"],
            "",
        ),
        (
            'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: t; requests.memory for: t',
            ["spec.resources.limits.cpu and spec.resources.memory"],
            "spec.resources.cpu",
        ),
        (
            'pods "x" is forbidden: failed quota: q: must specify limits.ephemeral-storage for: t; '
            "requests.ephemeral-storage for: t",
            ["spec.resources.limits.ephemeral-storage and spec.resources.requests.ephemeral-storage"],
            "spec.resources.memory",
        ),
        ('pods "x" is forbidden: failed quota: q: must specify cpu,memory', ["spec.resources.cpu and"], "limits"),
        (
            'admission webhook "validate.kyverno.svc-fail" denied the request: resource Pod/team/x was blocked due to '
            "the following policies require-limits: validate-limits: 'validation error: CPU limits are required. rule "
            "validate-limits failed at path /spec/containers/0/resources/limits/cpu/'",
            ["spec.resources.limits.cpu"],
            "ServiceAccount",
        ),
        (
            'admission webhook "validate.kyverno.svc-fail" denied the request: require-run-as-user: validation error: '
            "rule failed at path /spec/securityContext/runAsUser/",
            ["spec.pod.securityContext"],
            "ServiceAccount",
        ),
        (
            'Internal error occurred: failed calling webhook "mjob.kb.io": failed to call webhook: no endpoints',
            ["does not answer"],
            "spec.pod",
        ),
        (
            'pods "x" is forbidden: error looking up service account team/nope: serviceaccount "nope" not found',
            ["Create the ServiceAccount"],
            "nonroot",
        ),
    ],
)
def test_a_refusal_is_explained_by_who_refuses(words: str, advice: list[str], other: str) -> None:
    remedy = explain_refusal(words).remedy
    assert all(one in remedy for one in advice), remedy
    assert not other or other not in remedy


GPU = "amd.com/gpu"
CONFLICT = "0/3 nodes are available: 1 Insufficient amd.com/gpu, 2 node(s) had volume node affinity conflict."
NEWER = CONFLICT.replace("had volume node affinity conflict", "didn't match PersistentVolume's node affinity")


def nodes(*gpus: int) -> ClusterNodes:
    return ClusterNodes(tuple(Node(f"n{i}", allocatable={GPU: n}, capacity={GPU: n}) for i, n in enumerate(gpus)))


def on_a_volume(words: str, *claims: str) -> Object:
    found = unschedulable(words, **{GPU: "1"})
    found["spec"]["volumes"] = [
        {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims or ("faq",)
    ]
    found["metadata"]["labels"] = {"hone.dev/finetunejob": "faq"}
    return found


@pytest.mark.parametrize("words", [CONFLICT, NEWER])
def test_a_busy_gpu_near_a_bound_volume_is_a_wait(words: str) -> None:
    error = explain_unschedulable(on_a_volume(words), words, nodes(8, 8, 8))
    assert error.reason.name == "Unschedulable"
    assert "volume of faq" in error.message
    assert error.remedy.startswith("Nothing to do")


@pytest.mark.parametrize("words", [CONFLICT, NEWER])
@pytest.mark.parametrize("claims", [["faq"], ["company-models", "company-data", "faq"], ["company-models"]])
def test_a_volume_away_from_all_gpus_has_a_remedy(words: str, claims: list[str]) -> None:
    error = explain_unschedulable(on_a_volume(words, *claims), words, nodes(0, 8, 8))
    assert error.reason.name == "Unschedulable"
    assert all(claim in error.message for claim in claims)
    for said in ("`kubectl get pv ", "copy the data", "spec.pod.nodeSelector", "docs/troubleshooting.md"):
        assert said in error.remedy
    assert explain_unschedulable(on_a_volume(words), words, None).remedy.startswith("Nothing to do when")


@pytest.mark.parametrize(
    "words",
    [
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
        '0/3 nodes are available: persistentvolumeclaim "faq" not found. not found',
        '0/3 nodes are available: persistentvolumeclaim "faq" is being deleted. not found',
        "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.",
        "0/3 nodes are available: 3 node(s) did not have enough free storage.",
        "0/3 nodes are available: 3 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).",
    ],
)
def test_a_claim_that_is_not_bound_is_the_cause(words: str) -> None:
    assert explain_unschedulable(on_a_volume(words), words, nodes(8, 8, 8)).reason.name == "VolumeNotBound"


def event(
    reason: str, message: str, *, minute: int = 0, type_: str = "Normal", by: str = "cluster-autoscaler"
) -> Object:
    at = f"2026-03-01T11:{minute:02}:00Z"
    metadata = {"creationTimestamp": at}
    return {"type": type_, "reason": reason, "message": message, "metadata": metadata, "source": {"component": by}}


UP = event("TriggeredScaleUp", "pod triggered scale-up: [{gpu-pool 0->1 (max: 3)}]", minute=2)
NOT_UP = event("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached", minute=1)
NOMINATED = event("Nominated", "Pod should schedule on: nodeclaim/gpu-x7", by="karpenter")
NO_POOL = event(
    "FailedScheduling", "Failed to schedule pod, incompatible with nodepool gpu", type_="Warning", by="karpenter"
)
SCHEDULER = event("FailedScheduling", "0/3 nodes are available", type_="Warning", by="default-scheduler", minute=5)


@pytest.mark.parametrize(
    ("events", "comes"),
    [
        ([UP], True),
        ([NOT_UP], False),
        ([NOT_UP, UP, SCHEDULER], True),
        ([UP | {"metadata": {"creationTimestamp": "2026-03-01T10:00:00Z"}}, NOT_UP], False),
        ([NOMINATED], True),
        ([NO_POOL], False),
        ([SCHEDULER], None),
        ([], None),
    ],
)
def test_the_newest_report_of_an_autoscaler_counts(events: list[Object], comes: bool | None) -> None:
    found = find_scaling_report(events)
    assert (found.adds_node if found else None) == comes


def waits(scaling: ScalingReport | None, words: str = "0/3 nodes are available: 3 Insufficient amd.com/gpu.") -> Any:
    waiting = unschedulable(words, **{GPU: "1"})
    error = explain_not_running(waiting, "trainer", cluster=nodes(0, 0, 0), warning=None, now=NOW, scaling=scaling)
    assert error
    return error


def test_a_pool_that_grows_from_zero_is_no_missing_installation() -> None:
    grows = waits(ScalingReport(True, "gpu-pool 0->1"))
    assert grows.reason.name == "ScalingUp"
    assert "gpu-pool 0->1. Nothing to do" in grows.format_message()
    stays = waits(ScalingReport(False, "max node group size reached"))
    assert stays.reason.name == "Unschedulable"
    assert "max node group size reached. Let a node pool" in stays.format_message()
    unknown = waits(None)
    assert unknown.remedy.startswith("Where an autoscaler adds nodes")
    assert "gpus: 0" not in unknown.remedy


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfcpu", "NodeAffinity", "TopologyAffinityError"])
def test_a_pod_that_the_kubelet_rejects_has_a_reason_of_its_own(reason: str) -> None:
    rejected = pod()
    rejected["spec"]["nodeName"] = "gpu-1"
    rejected["status"] |= {"phase": "Failed", "reason": reason, "message": "Pod was rejected: Allocate failed"}
    found = explain_pod_failure(rejected, "trainer")
    assert found
    assert (found.reason, "gpu-1" in found.message) == ("PodRejected", True)


LOW = "The node was low on resource: {}. Threshold quantity: 100Mi, available: 87608Ki. "
USED = "Container {} was using 48458972Ki, request is {}, has larger consumption of {}. "


@pytest.mark.parametrize(
    ("words", "reason", "advice"),
    [
        (LOW.format("memory") + USED.format("trainer", "0", "memory"), "EvictedForUse", "spec.resources.memory"),
        (
            LOW.format("ephemeral-storage") + USED.format("trainer", "0", "ephemeral-storage"),
            "EvictedForUse",
            "spec.resources.requests.ephemeral-storage",
        ),
        (LOW.format("memory") + USED.format("istio-proxy", "0", "memory"), "Evicted", "Nothing to do"),
        (LOW.format("memory"), "Evicted", "Nothing to do"),
        (
            "Pod ephemeral local storage usage exceeds the total limit of containers 10Gi. ",
            "EvictedForUse",
            "spec.resources.limits.ephemeral-storage",
        ),
        (
            'Container trainer exceeded its local ephemeral storage limit "1Gi". ',
            "EvictedForUse",
            "spec.resources.limits.ephemeral-storage",
        ),
    ],
)
def test_an_eviction_for_the_pods_own_usage_names_the_field_to_raise(words: str, reason: str, advice: str) -> None:
    evicted = pod()
    evicted["status"] |= {"phase": "Failed", "reason": "Evicted", "message": words}
    found = explain_pod_failure(evicted, "trainer")
    assert found
    assert found.reason == reason
    assert advice in found.message


WHOLE = json.dumps(failure("DatasetInvalid", "row 7 " + "x" * 500) | {"metrics": {"a": 1.0}}, separators=(",", ":"))


@pytest.mark.parametrize("length", range(60, len(WHOLE) + 1, 37))
def test_a_message_that_the_kubelet_cut_keeps_its_reason(length: int) -> None:
    found = TerminationMessage.recover(WHOLE[:length])
    assert found
    assert found.reason == "DatasetInvalid"
    assert found.message.startswith("row 7"[: max(0, length - 60)])


@pytest.mark.parametrize("length", range(0, 1200, 7))
def test_an_artifact_that_was_cut_is_never_half(length: int) -> None:
    whole = TerminationMessage.model_validate(success(metrics={f"m{i}": 1.0 for i in range(40)}))
    text = whole.to_bytes().decode()
    found = TerminationMessage.recover(text[:length])
    assert found is None or found.artifact in (None, whole.artifact)
    assert found is None or found.progress in (None, whole.progress)


@pytest.mark.parametrize(
    "text", ["", "{", '{"outcome":"Fai', "Traceback: no", "[1,2]", '{"outcome":"Failed","reason":"Da']
)
def test_a_termination_message_of_another_program_is_quoted(text: str) -> None:
    assert TerminationMessage.recover(text) is None
    found = explain_pod_failure(pod(terminated=terminated(1, text)), "trainer")
    assert found
    assert found.reason == "InternalError"
    assert text in found.message
    assert ("left no message" in found.message) == (not text)


@pytest.mark.parametrize("reason", ["DiskFull", "VolumeAccessDenied"])
def test_a_volume_is_named_by_its_claim(reason: str) -> None:
    sentence = f"/output/cache/x can't be written: Permission denied. {CATALOGUE[reason].remedy}"
    ended = pod(terminated=terminated(67, failure(reason, sentence)))
    ended["spec"]["volumes"] = [{"name": "c", "persistentVolumeClaim": {"claimName": "faq"}}]
    ended["spec"]["containers"][0]["volumeMounts"] = [{"name": "c", "mountPath": "/output", "subPath": "team/faq"}]
    found = explain_pod_failure(ended, "trainer")
    assert found
    assert "/output is folder team/faq of PersistentVolumeClaim faq." in found.message
    assert "pvc NAME" not in found.message


def test_a_lost_node_of_an_earlier_trainer_is_named() -> None:
    old = pod("old", running={"startedAt": BEFORE})
    old["spec"]["nodeName"] = "gone"
    observed = observed_job(job_object(resources={"gpus": 1}, status=PREPARED))
    observed.job, observed.stale_pods, observed.cluster = None, [old], nodes(8)
    told = next(
        c for c in plan_finetunejob(observed, NOW + timedelta(hours=1)).status["conditions"] if c["type"] == "Running"
    )
    assert told["reason"] == "NodeLost"
    assert "kubectl delete node" in told["message"]
