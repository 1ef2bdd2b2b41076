"""Why a pod does not start or has ended.

Messages of the API server, of the controllers, and those of the kubelet that
tests/cluster/diagnosis/test_explained.py provokes are recorded from Kubernetes 1.36. All others are copied from their
sources.
"""

from datetime import timedelta
from typing import Any

import pytest
from hone_operator.diagnosis import volumes
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.pod_failure import explain_pod_failure
from hone_operator.diagnosis.pod_state import explain_not_running
from observed import BEFORE, NOW, failure, pod, terminated, unschedulable

Object = dict[str, Any]
IMAGE = "registry.example.com/hone-runtime:none"
NOT_FOUND = (
    f'Back-off pulling image "{IMAGE}": ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack '
    f'image "{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
)
MULTI_ATTACH = (
    'FailedAttachVolume: Multi-Attach error for volume "pvc-0b7f" Volume is already exclusively attached to one node '
    "and can't be attached to another"
)
FORBIDDEN = "is forbidden: exceeded quota: gpus, requested: requests.amd.com/gpu=2, used: requests.amd.com/gpu=0"


def why(waiting: Object, warning: str | None = None) -> tuple[str, str]:
    error = explain_not_running(waiting, "trainer", cluster=None, warning=warning, now=NOW)
    assert error
    return error.reason.name, error.format_message()


def test_a_combined_event_is_explained_like_a_single_one() -> None:
    words = f'FailedCreate: Error creating: pods "a-train-b7dq6" {FORBIDDEN}'
    many = words.replace("Error", "(combined from similar events): Error", 1)
    assert explain_refusal(many).format_message() == explain_refusal(words).format_message()


@pytest.mark.parametrize(
    ("words", "reason", "advice"),
    [
        (f'FailedCreate: Error creating: pods "a-train-b7dq6" {FORBIDDEN}', "QuotaExceeded", "spec.resources"),
        (f'jobs.batch "a-train" {FORBIDDEN}', "QuotaExceeded", "spec.resources"),
        (
            'pods "x" is forbidden: failed quota: compute: must specify limits.cpu for: t; requests.memory for: t',
            "QuotaExceeded",
            "LimitRange with defaults",
        ),
        (
            'FailedCreate: Error creating: pods "j2-svj5p" is forbidden: maximum memory usage per Container is 1Gi, '
            "but limit is 2Gi",
            "QuotaExceeded",
            "spec.resources",
        ),
        ('pods "x" is forbidden: minimum cpu usage per Container is 1, but request is 1m', "QuotaExceeded", "Raise"),
        (
            'persistentvolumeclaims "big" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but '
            "request is 100Gi",
            "QuotaExceeded",
            "with a lower spec.output.storage.size",
        ),
        (
            'pods "x" is forbidden: memory max limit to request ratio per Container is 1, but provided ratio is 2.0',
            "QuotaExceeded",
            "Set spec.resources.requests.memory and spec.resources.limits.memory",
        ),
        (
            'pods "x" is forbidden: no PriorityClass with name nope was found',
            "PodNotStarted",
            "spec.pod.priorityClassName",
        ),
        (
            'pods "x" is forbidden: error looking up service account team/nope: serviceaccount "nope" not found',
            "PodNotStarted",
            "spec.pod.serviceAccountName",
        ),
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)',
            "PodNotStarted",
            "`restricted`",
        ),
        ("admission webhook denied the request: no", "PodNotStarted", "leave out pods with the label"),
        ("admission webhook denied the request: label team is missing", "PodNotStarted", "spec.pod.labels"),
        ('pods "x" is forbidden: pod rejected: RuntimeClass "g" not found', "PodNotStarted", "runtimeClassName"),
        (
            'jobs.batch "x" is forbidden: unable to create new content in namespace a because it is being terminated',
            "PodNotStarted",
            "Nothing has to be changed",
        ),
    ],
)
def test_a_refusal_quotes_the_server_without_generated_names(words: str, reason: str, advice: str) -> None:
    error = explain_refusal(words)
    assert error.reason.name == reason
    assert words.partition(" is forbidden: ")[2][:40] in error.message
    assert "b7dq6" not in error.message
    assert advice in error.remedy


@pytest.mark.parametrize(
    ("reason", "words", "advice"),
    [
        ("ImagePullBackOff", NOT_FOUND, "push that tag"),
        ("ErrImagePull", "pull access denied, repository does not exist or may require authorization", "Secrets"),
        ("ErrImagePull", "failed to do request: Head: dial tcp: lookup r on 10.0.0.10:53: no such host", "registry"),
        ("ErrImagePull", 'no match for platform in manifest "sha256:1"', "architecture"),
        ("ErrImagePull", "429 Too Many Requests: toomanyrequests", "mirror"),
        ("InvalidImageName", 'Failed to apply default image tag "A:": couldn\'t parse image name "A:"', "reference"),
        ("ErrImageNeverPull", "", "spec.pod.image"),
    ],
)
def test_an_image_that_can_not_be_pulled(reason: str, words: str, advice: str) -> None:
    found, said = why(pod(waiting={"reason": reason, "message": words}))
    assert found == "ImagePullFailed"
    assert said.startswith("hone-runtime:test: ")
    assert "Back-off" not in said
    assert advice in said


def test_the_message_is_the_same_while_the_kubelet_tries_and_waits() -> None:
    trying = why(pod(waiting={"reason": "ErrImagePull", "message": NOT_FOUND.partition("ErrImagePull: ")[2]}))
    assert why(pod(waiting={"reason": "ImagePullBackOff", "message": NOT_FOUND})) == trying


@pytest.mark.parametrize(
    ("waiting", "warning", "reason", "advice"),
    [
        ("CreateContainerConfigError", 'secret "hf-token" not found', "PodNotStarted", "Create Secret hf-token"),
        (
            "CreateContainerConfigError",
            "couldn't find key tokn in Secret team/hf-token",
            "PodNotStarted",
            "Add the key",
        ),
        (
            "ContainerCreating",
            'FailedMount: MountVolume.SetUp failed for volume "dataset" : configmap "words" not found',
            "PodNotStarted",
            "Create ConfigMap words",
        ),
        (
            "ContainerCreating",
            'FailedMount: MountVolume.SetUp failed for volume "dataset" : references non-existent config key: b.jsonl',
            "PodNotStarted",
            "Add the key",
        ),
        ("ContainerCreating", MULTI_ATTACH, "VolumeInUse", "ReadWriteMany"),
    ],
)
def test_a_pod_with_a_node_does_not_start(waiting: str, warning: str, reason: str, advice: str) -> None:
    state = {"reason": waiting, "message": warning}
    found, said = why(pod(waiting=state), warning)
    assert found == reason
    assert warning in said
    assert advice in said


def test_a_pod_that_no_scheduler_looks_at() -> None:
    waiting = pod(scheduled=False)
    waiting["spec"]["schedulerName"] = "mine"
    assert why(waiting) == (
        "Unschedulable",
        "The scheduler mine has not looked at the pod yet. Correct spec.pod.schedulerName, or look whether that "
        "scheduler runs.",
    )
    just_now = NOW - timedelta(minutes=59, seconds=50)
    assert explain_not_running(waiting, "trainer", cluster=None, warning=None, now=just_now) is None


def test_a_pod_behind_a_scheduling_gate() -> None:
    waiting = pod(scheduled=False)
    waiting["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/topology"}]
    words = "Scheduling is blocked due to non-empty scheduling gates"
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": words}
    waiting["status"]["conditions"] = [gated]
    assert "gate kueue.x-k8s.io/topology" in why(waiting)[1]


CLAIM = {
    "metadata": {"name": "models"},
    "spec": {
        "storageClassName": "fast",
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "5Gi"}},
    },
    "status": {"phase": "Pending"},
}


@pytest.mark.parametrize(
    ("claim", "event", "words"),
    [
        (None, None, "PersistentVolumeClaim models does not exist: create it"),
        (
            CLAIM,
            'storageclass.storage.k8s.io "fast" not found',
            "PersistentVolumeClaim models (5Gi, ReadWriteOnce, StorageClass fast) is Pending: "
            'storageclass.storage.k8s.io "fast" not found.',
        ),
        (CLAIM | {"spec": {}}, None, "no StorageClass"),
        (CLAIM | {"status": {"phase": "Lost"}}, None, "is Lost"),
        (CLAIM | {"metadata": {"deletionTimestamp": BEFORE}}, None, "is being deleted"),
    ],
)
def test_a_claim_that_is_not_bound_is_named(claim: Object | None, event: str | None, words: str) -> None:
    said = volumes.explain_unbound_claim("models", claim, event)
    assert said
    assert words in said
    waiting = unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found")
    assert why(waiting, said)[0] == "VolumeNotBound"
    assert why(waiting, said)[1].startswith(said.rstrip("."))


def test_a_bound_claim_is_not_reported() -> None:
    assert volumes.explain_unbound_claim("models", CLAIM | {"status": {"phase": "Bound"}}, "old") is None


def ended(state: Object | None, *, limit: str | None = None, target: str | None = None, **status: str) -> Object:
    found = pod(**({"terminated": state} if state else {}))
    found["spec"] |= {"nodeName": "gpu-1"}
    if limit:
        found["spec"]["containers"][0]["resources"] = {"limits": {"memory": limit}}
    found["status"] |= {"phase": "Failed", **status}
    if target:
        reason, _, words = target.partition(": ")
        found["status"]["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": words}
        ]
    return found


KILLED = terminated(137)
PREEMPTION = "PreemptionByScheduler: default-scheduler: preempting to accommodate a higher priority pod"
TAINT = "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint"
LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 86Mi. "


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        (ended(terminated(137, reason="OOMKilled"), limit="64Gi"), "HostOutOfMemory", "memory limit of 64Gi. Raise"),
        (ended(terminated(137, reason="OOMKilled")), "HostOutOfMemory", "Set spec.resources.memory"),
        (ended(KILLED, target=PREEMPTION), "Preempted", "on node gpu-1: default-scheduler: preempting"),
        (ended(KILLED, target=TAINT), "Evicted", "DeletionByTaintManager on node gpu-1: Taint manager"),
        (ended(None, target="DeletionByPodGC: PodGC: node no longer exists"), "NodeLost", "node no longer exists"),
        (ended(KILLED, reason="Evicted", message=LOW), "Evicted", "low on resource: memory"),
        (
            ended(None, reason="Evicted", message='Usage of EmptyDir volume "shm" exceeds the limit "8Gi". '),
            "EvictedForUse",
            'exceeds the limit "8Gi". Raise spec.resources.sharedMemory.',
        ),
        (
            ended(terminated(75, failure("Interrupted", "Saved step 7.")), target=PREEMPTION),
            "Interrupted",
            "Saved step 7. Why: PreemptionByScheduler on node gpu-1: default-scheduler: preempting",
        ),
        (ended(terminated(65, failure("DatasetEmpty", "No rows.")), target=TAINT), "DatasetEmpty", "No rows."),
        (
            ended(
                None,
                reason="UnexpectedAdmissionError",
                message="Allocate failed due to requested number of devices unavailable for amd.com/gpu, which is "
                "unexpected",
            ),
            "PodRejected",
            "UnexpectedAdmissionError: Allocate failed",
        ),
        (ended(KILLED), "InternalError", "was killed"),
        (
            ended(terminated(132)),
            "InternalError",
            "ended with exit code 132 (SIGILL) and left no message. The program ",
        ),
        (ended(terminated(134)), "InternalError", "(SIGABRT) and left no message. A library has given up"),
        (ended(terminated(135)), "InternalError", "so raise spec.resources.sharedMemory"),
        (ended(terminated(139)), "InternalError", "(SIGSEGV) and left no message. Native code has crashed"),
        (ended(terminated(1)), "InternalError", "ended with exit code 1 and left no message"),
    ],
)
def test_why_a_trainer_ended(found: Object, reason: str, words: str) -> None:
    failed = explain_pod_failure(found, "trainer")
    assert failed
    assert failed.reason == reason
    assert words in failed.message


@pytest.mark.parametrize("alive", [pod(running={"startedAt": BEFORE}), pod(terminated=terminated(0)), pod()])
def test_no_failure(alive: Object) -> None:
    assert explain_pod_failure(alive, "trainer") is None
