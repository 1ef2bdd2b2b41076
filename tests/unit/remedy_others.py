"""Remedies that change the cluster, or need somebody outside it.

Each has the state before it, and the one after it where that can be shown. The commands among them are typed in
tests/cluster/diagnosis/test_typed_remedies.py.
"""

from hone_api import reasons
from hone_api.layout import FINETUNEJOB_LABEL
from hone_operator.diagnosis.autoscalers import ScalingReport, explain_scaling
from hone_operator.diagnosis.nodes import Node
from hone_operator.kube.retention import Unknown
from hone_operator.objects.sizes import OVERSIZED_FIELD
from hone_operator.reconcile import sync_failures
from observed import BEFORE, NOW, finished_job, foreign, job_object, stored, terminated
from observed import pod as pod_in_state
from remedy_services import ADAPTER, DORA, PRIVATE, above_level, full_cache, root_only, served
from remedy_states import GPU, World, default, node, unplaced
from remedy_world import (
    LONG_AGO,
    alive,
    answering,
    crashing,
    crowded,
    disrupted,
    earlier,
    ended,
    explain_admission,
    explain_not_mounted,
    explain_placement,
    explain_pull,
    explain_silence,
    failed_pod,
    labelled,
    lacking,
    leaving,
    named,
    near_volume,
    nominated,
    parsed,
    paused,
    same_commit,
    scaled,
    served_job,
    starting,
    taint,
    uninstalled,
    written,
)

PERSON = "a person outside the cluster's API does it"

ITSELF = "it passes without anybody's doing"

RAISED_BY_OTHERS = (
    "trainer or engine raise it, and what has to change is a file, an account or a network outside the object"
)

GATED = {
    "spec": {"schedulingGates": [{"name": "example.com/quota"}]},
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}],
}

UNBOUND = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims",
        }
    ],
    "warning": "PersistentVolumeClaim faq (1Gi, ReadWriteOnce, StorageClass slow) is Pending.",
}

ROOM = 'pods "x" is forbidden: '

WORLDS = [
    World("no nodes", lambda nodes: unplaced(*nodes)({"resources": {"gpus": 0}}), [], ("Add nodes",), [node()]),
    World(
        "nodes without GPUs",
        explain_placement,
        [Node("n", labels={"amd.com/gpu.family": "AI"})],
        ("n", "device plugin"),
        [node("n")],
    ),
    World(
        "unhealthy GPUs",
        explain_placement,
        [node(allocatable={GPU: 0.0}, capacity={GPU: 8.0})],
        ("gpu-1", "amd-smi"),
        [node()],
    ),
    World(
        "a node that is not ready",
        explain_placement,
        [node(not_ready_reason="since noon")],
        ("kubectl describe node gpu-1",),
        [node()],
    ),
    World("a cordoned node", explain_placement, [node(is_cordoned=True)], ("kubectl uncordon gpu-1",), [node()]),
    World(
        "a condition of the node",
        explain_placement,
        [taint("node.kubernetes.io/disk-pressure")],
        ("gpu-1", "disk-pressure"),
        [node()],
    ),
    World(
        "GPUs that are being partitioned", explain_placement, [taint("amd-dcm", "up")], ("gpu-1", "amd-dcm"), [node()]
    ),
    World(
        "GPUs that AMD's operator calls unhealthy",
        explain_placement,
        [taint("amd-gpu-unhealthy")],
        ("gpu-1",),
        [node()],
    ),
    World(
        "a label that no node has",
        lambda labels: unplaced(node(labels=labels))(
            {"resources": {"gpus": 1}, "pod": {"nodeSelector": {"zone": "b"}}}
        ),
        {},
        ("zone=b", "label a node"),
        {"zone": "b"},
    ),
    World(
        "GPUs too few on each node",
        lambda nodes: unplaced(*nodes)({"resources": {"gpus": 16}}),
        [node()],
        ("add larger nodes",),
        [node(gpus=16)],
    ),
    World("no GPU near the volume", near_volume, (0, 8, 8), ("faq", "kubectl get pv"), (8, 8, 8)),
    World("whether a GPU is near the volume is unknown", near_volume, None, ("faq", "kubectl get pv"), (8, 8, 8)),
    World("pods give way", nominated, True, ("gpu-1",), False),
    World(
        "no node yet",
        lambda comes: explain_scaling("0/1", ScalingReport(True, "pool 1->2")) if comes else None,
        True,
        ("pool 1->2",),
        False,
    ),
    World(
        "an autoscaler's pool",
        lambda full: explain_scaling("0/1", ScalingReport(False, "max reached")) if full else None,
        True,
        ("max reached",),
        False,
    ),
    World("a scheduling gate", starting, GATED, ("example.com/quota",), {}),
    World("an unbound claim", starting, UNBOUND, ("PersistentVolumeClaim faq", "kubectl describe pvc"), {}),
    World("no Secret", explain_not_mounted, 'secret "hub" not found', ("Create Secret hub",), ""),
    World("no key", explain_not_mounted, "couldn't find key tokn in Secret team/hub", ("tokn", "team/hub"), ""),
    World("another event of the kubelet", explain_not_mounted, "FailedMount: mount failed", ("mount failed",), ""),
    World("PodSecurity", explain_admission, f'{ROOM}violates PodSecurity "restricted:latest": x', ("restricted",), ""),
    World(
        "a role without a right",
        explain_admission,
        'jobs.batch is forbidden: User "hone" cannot create resource "jobs" in API group "batch"',
        ("create", "jobs", "`helm upgrade`", "rbac.create: false"),
        "",
    ),
    World(
        "a namespace that ends",
        explain_admission,
        'jobs.batch "x" is forbidden: unable to create new content in namespace a because it is being terminated',
        ("namespace a",),
        "",
    ),
    World(
        "a webhook that is down",
        explain_admission,
        'failed calling webhook "v.example.com": no endpoints',
        ("v.example.com",),
        "",
    ),
    *(
        World(f"an image: {words}", explain_pull, words, (name,), "")
        for words, name in (
            ("no match for platform in manifest", "registry.example.com/x:1"),
            ("toomanyrequests", "mirror"),
            ("no space left on device", "disk space"),
            ("dial tcp: no such host", "network, DNS, proxy"),
        )
    ),
    World(
        "a finalizer",
        leaving,
        {"deletionTimestamp": LONG_AGO.isoformat(), "finalizers": ["a/b"]},
        ("a/b", "kubectl get job faq-train --namespace team"),
        None,
        "typed in tests/cluster",
    ),
    World(
        "a child of an earlier object", leaving, earlier("uid-old"), ("uid-old", "--namespace team"), earlier("uid-faq")
    ),
    World("a paused Deployment", paused, True, ("kubectl rollout resume deployment/chat --namespace team",), False),
    World("silent engines", explain_silence, LONG_AGO, ("port 8000",), NOW),
    World("pods of others", crowded, Unknown(0, 3), ("--namespace team", f"{FINETUNEJOB_LABEL}=faq"), Unknown(0, 0)),
    World("a Role that lacks", lacking, False, ("jobs", "Role"), True),
    World("an uninstallation", uninstalled, ["team"], ("-n team",), []),
    World(
        "an object that is too large",
        parsed,
        job_object() | {OVERSIZED_FIELD: 1 << 30},
        ("1073741824 bytes",),
        job_object(),
    ),
    World(
        "an object against the contract",
        parsed,
        job_object(method="nope"),
        ("spec.method", "hone validate"),
        job_object(),
    ),
    World(
        "DoRA",
        lambda job: served(job)({"engine": "vllm", "model": {"fineTuneJob": {"name": "faq"}}}),
        DORA,
        ("spec.output.save: merged",),
        finished_job(kind="merged", lora={"useDora": True}, output={"save": "merged"}),
    ),
    World("an adapter of another commit", same_commit, ("a", "b"), ("spec.model.revision: " + "a" * 40,), ("a", "a")),
    World(
        "what was trained is no adapter",
        lambda kind: served(finished_job("other", kind))(
            {"model": {"name": "org/base"}, "adapters": [{"name": "o", "fineTuneJob": {"name": "other"}}]}
        ),
        "merged",
        ("spec.output.save: adapter or both",),
        "both",
    ),
    World(
        "an eviction",
        ended,
        failed_pod({"reason": "Evicted", "message": "The node had condition: [PIDPressure]."}),
        ("gpu-1",),
        pod_in_state(running={"startedAt": BEFORE}),
    ),
    World(
        "a pod that the kubelet rejected",
        ended,
        failed_pod({"reason": "UnexpectedAdmissionError", "message": "no devices"}),
        ("gpu-1", "kubectl cordon"),
        pod_in_state(running={"startedAt": BEFORE}),
    ),
    World(
        "preemption", ended, disrupted("PreemptionByScheduler"), ("gpu-1",), pod_in_state(running={"startedAt": BEFORE})
    ),
    World(
        "an end that nobody explains",
        ended,
        failed_pod({}, terminated=terminated(1, "?")),
        ("exit code 1",),
        None,
        "nobody has foreseen what it was",
    ),
    World(
        "a level that is too strict",
        lambda level: above_level({"pod": {"hostNetwork": True}}, level),
        "restricted",
        ("runtime.podSecurityLevel: privileged", "spec.pod.hostNetwork"),
        "privileged",
    ),
    World(
        "a level without root",
        lambda level: root_only(ADAPTER | {"engine": "tgi"}, level),
        "restricted",
        ("runtime.podSecurityLevel: baseline",),
        "baseline",
    ),
    World(
        "a node that is lost", alive, node(not_ready_reason="since noon"), ("gpu-1", "kubectl delete node NODE"), node()
    ),
    World(
        "a full cache",
        lambda claim: full_cache(PRIVATE | {"cache": {"claim": {"name": claim}}}),
        "small",
        ("PersistentVolumeClaim small", "kubectl patch pvc small --namespace team"),
        "large",
    ),
    World("a silent trainer", answering, LONG_AGO, ("port 8080", "p1"), NOW),
    World(
        "a name that is taken",
        named,
        [foreign(stored({"kind": "ConfigMap", "metadata": {"name": "faq-manifest"}}))],
        ("faq-manifest",),
        [],
    ),
    World(
        "a FineTuneJob that failed",
        served_job,
        job_object(status={"stage": "Failed", "conditions": []}),
        ("FineTuneJob faq",),
        finished_job(),
    ),
    World("a label that a policy changes", labelled, "argocd", ("faq-train", "argocd"), "hone"),
    World("a webhook that fails", written, 500, ("faq-train", "webhook"), None, "an answer of the API server follows"),
    World("no metric of the load", scaled, "False", ("custom.metrics.k8s.io", "docs/engines/autoscaling.md"), "True"),
    World(
        "an engine that crashes",
        crashing,
        True,
        ("kubectl logs chat-1 --namespace team --container engine --previous",),
        False,
    ),
    World(
        "children that are contested",
        lambda by: sync_failures.explain_contest(("Job", "faq-train"), by).error,
        "'argocd'",
        ("faq-train", "argocd"),
        None,
        PERSON,
    ),
    *(
        World(reason.name, lambda _, reason=reason: default(reason), None, (name,), None, why)
        for reason, name, why in (
            (reasons.DATASET_INVALID, "the file and line", RAISED_BY_OTHERS),
            (reasons.MODEL_TOO_LARGE, "hone plan FILE", "the message names the field: test_plan and the fields above"),
            (reasons.HUB_UNAUTHORIZED, "licence", RAISED_BY_OTHERS),
            (reasons.STORE_UNREACHABLE, "endpoint", RAISED_BY_OTHERS),
            (reasons.SOURCE_CHANGED, "a new prefix", RAISED_BY_OTHERS),
            (reasons.DESTINATION_MISSING, "Create the bucket", RAISED_BY_OTHERS),
            (reasons.DESTINATION_OCCUPIED, "another folder", RAISED_BY_OTHERS),
            (reasons.DESTINATION_REFUSED, "quota", RAISED_BY_OTHERS),
            (reasons.INTERRUPTED, "Nothing to do", ITSELF),
            (reasons.ARTIFACT_MISSING, "FineTuneJob", RAISED_BY_OTHERS),
            (reasons.ARTIFACT_CORRUPT, "FineTuneJob", RAISED_BY_OTHERS),
            (reasons.CHILD_REFUSED, "policy", PERSON),
            (reasons.CHILD_INVALID, "spec.pod", "the message of Kubernetes names no field that the spec has"),
            (reasons.CHILD_LEAVING, "finalizers", "the operator's own remedy replaces it"),
            (reasons.OPERATOR_ERROR, "traceback", PERSON),
            (reasons.BACKOFF_LIMIT_EXCEEDED, "delete the FineTuneJob", "the trainer's failure names what to correct"),
            (reasons.STALLED, "pod's log", PERSON),
            (reasons.DEPLOYMENT_PAUSED, "kubectl rollout resume", "the operator's own remedy replaces it"),
            (reasons.ENGINE_FAILED, "the pod's log", PERSON),
            (reasons.ENGINE_SILENT, "8081", "the operator's own remedy replaces it"),
            (reasons.CLAIM_DIFFERS, "allowVolumeExpansion", "typed in tests/cluster"),
        )
    ),
]
