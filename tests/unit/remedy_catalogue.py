"""The catalogue's own remedies that name fields, which a user sets literally.

What the trainer or the engine judges itself is followed as far as the operator goes: the value that the remedy asks for
is valid, and reaches the container that has failed.
"""

from typing import Any

from hone_api import reasons
from hone_api.inferenceservices.spec import InferenceService
from hone_api.reasons import CATALOGUE, HoneError
from hone_operator.diagnosis.image_pull import explain_image_pull
from hone_operator.diagnosis.unschedulable import WAIT_REMEDY, explain_unschedulable
from hone_operator.diagnosis.volumes import explain_mount_failure
from hone_operator.finetunejob import jobs, output_claims
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.inferenceservice.autoscaling import get_max_replicas
from hone_operator.inferenceservice.plan import _set_spreadable
from hone_operator.reconcile.conditions import Conditions
from observed import IMAGE, NOW, finished_job, job_object, message, observed_job, parsed_job, service_object
from remedy_services import served
from remedy_states import Field, Object, container, default, engine_pod_of, pod_of, unless, unless_read

MESSAGES: Object = {"dataset": {"name": "org/data", "format": "messages"}}

# Reason, field as the remedy writes it, its full path, value, and what the trainer then reads.
READ_BY_THE_TRAINER: list[tuple[str, str, str, Any, str]] = [
    ("DatasetColumnMissing", "spec.dataset.columns", "spec.dataset.columns", {"text": "body"}, '"body"'),
    ("DatasetColumnMissing", "spec.dataset.format", "spec.dataset.format", "messages", '"messages"'),
    ("DatasetEmpty", "spec.dataset.split", "spec.dataset.split", "validation", '"validation"'),
    ("DatasetEmpty", "maxSamples", "spec.dataset.maxSamples", 77, "77"),
    (
        "ChatTemplateMissing",
        "spec.dataset.chatTemplate",
        "spec.dataset.chatTemplate",
        "{{ messages }}",
        "{{ messages }}",
    ),
    ("ChatTemplateMissing", "prompt and completion", "spec.dataset.format", "prompt-completion", '"prompt-completion"'),
    ("AllRowsTruncated", "spec.training.maxLength", "spec.training.maxLength", 4096, "4096"),
    ("ModelNotFound", "spec.model", "spec.model", {"name": "org/right"}, '"org/right"'),
    ("ModelNotFound", "revision", "spec.model.revision", "v2", '"v2"'),
    ("ModelInvalid", "spec.model", "spec.model", {"name": "org/causal"}, '"org/causal"'),
    ("DatasetNotFound", "spec.dataset", "spec.dataset", {"configMap": {"name": "rows", "key": "a.jsonl"}}, '"rows"'),
    ("DatasetNotFound", "config", "spec.dataset.config", "en", '"en"'),
    ("DatasetNotFound", "revision", "spec.dataset.revision", "v2", '"v2"'),
    ("NonFiniteLoss", "spec.training.learningRate", "spec.training.learningRate", 1e-05, "1e-05"),
    ("NonFiniteLoss", "maxGradNorm", "spec.training.maxGradNorm", 0.3, "0.3"),
    ("NonFiniteLoss", "bfloat16", "spec.model.dtype", "bfloat16", '"bfloat16"'),
    ("OutOfMemory", "spec.training.perDeviceTrainBatchSize", "spec.training.perDeviceTrainBatchSize", 1, "perDevice"),
    ("OutOfMemory", "maxLength", "spec.training.maxLength", 512, "512"),
    (
        "OutOfMemory",
        "activationCheckpointing",
        "spec.training.activationCheckpointing",
        True,
        "activationCheckpointing",
    ),
    ("OutOfMemory", "method lora", "spec.method", "lora", '"lora"'),
    ("DiskFull", "spec.checkpoint.saveTotalLimit", "spec.checkpoint.saveTotalLimit", 1, "saveTotalLimit"),
    ("MergeMismatch", "spec.output.save: adapter", "spec.output.save", "adapter", '"adapter"'),
]


def env_of(pod: Object) -> dict[str, Any]:
    return {each["name"]: each for each in container(pod)["env"]}


def has(kind: str, name: str, value: str) -> Any:
    return lambda pod: pod["metadata"].get(kind, {}).get(name) == value


def mounts(claim: str) -> Any:
    return lambda pod: claim in str(pod["spec"]["volumes"])


def without_store_secret(spec: Object) -> HoneError | None:
    """Report refused access until the preparing pod, which reads the object store, has the Secret `reader`."""
    owner = job_object(**spec)
    prepare_job = jobs.build_prepare_job(owner, parsed_job(owner), IMAGE, None)
    is_cured = "reader=/secrets/reader" in container(prepare_job["spec"]["template"])["args"]
    return None if is_cured else default(reasons.STORE_UNAUTHORIZED)


def groups(pod: Object) -> bool:
    return 109 in pod["spec"]["securityContext"].get("supplementalGroups", [])


def differs(claim: Object, name: str = "faq") -> Any:
    """Return the state of a job whose claim exists; under another name there is none yet, and Hone makes it."""

    def state(spec: Object) -> HoneError | None:
        called = spec.get("_name", name)
        job = parsed_job(job_object(**{key: value for key, value in spec.items() if key != "_name"}))
        found = {"metadata": {"name": name, "namespace": "team"}, "spec": claim}
        return output_claims.compare_claim(found if called == name else None, job)

    return state


def shares_a_claim(spec: Object) -> HoneError | None:
    """Return the state of a service whose claim one node can mount; well when its engines are one."""
    declared = served_spec(spec)
    if get_max_replicas(declared) <= 1:
        return None
    claim = {"metadata": {"name": "faq"}, "spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}}
    found = Conditions(service_object(**spec), NOW)
    _set_spreadable(get_max_replicas(declared), [claim], found)
    sentence, _, remedy = found.get_reason_and_message("Spreadable")[1].partition("engines. ")
    return HoneError(CATALOGUE["ClaimNotShared"], sentence, remedy=remedy)


def served_spec(spec: Object) -> Any:
    return InferenceService.model_validate(service_object(**spec)).spec


def deadline(spec: Object) -> HoneError | None:
    """Return the state of a job that trains for an hour."""
    ends = {
        "type": "Failed",
        "status": "True",
        "reason": "DeadlineExceeded",
        "lastTransitionTime": "2026-03-01T11:00:00Z",
    }
    if (spec.get("activeDeadlineSeconds") or 0) >= 3600:
        return None
    found = message(plan_finetunejob(observed_job(job_object(**spec), job_conditions=[ends]), NOW).status, "Failed")
    sentence, _, remedy = found.partition("s. ")
    return HoneError(reasons.DEADLINE_EXCEEDED, sentence, remedy=remedy)


def engine(is_cured: Any, error: HoneError) -> Any:
    return lambda spec: None if is_cured(engine_pod_of(spec)) else error


def name_of_priority(spec: Object) -> HoneError | None:
    """Return the state of a pod that waits for its turn, or that of one that was preempted."""
    return None if pod_of(spec)["spec"].get("priorityClassName") == "high" else default(reasons.PREEMPTED)


def waits(spec: Object) -> HoneError | None:
    return None if name_of_priority(spec) is None else HoneError(reasons.UNSCHEDULABLE, "0/1 nodes", remedy=WAIT_REMEDY)


SIDECARS = (
    ("labels", "sidecar.istio.io/inject: 'false'"),
    ("annotations", "linkerd.io/inject: disabled"),
    ("annotations", "vault.hashicorp.com/agent-pre-populate-only: 'true'"),
    ("annotations", "config.alpha.linkerd.io/proxy-enable-native-sidecar: 'true'"),
)
ONCE = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "slow"}
FULL_OUT: Object = {"resources": {"gpus": 1}, "method": "full"}

OF_CATALOGUE = [
    *(
        Field(f"{reason}: {field}", unless_read(words, default(CATALOGUE[reason])), {f"{field}|{path}": value}, {})
        for reason, field, path, value, words in READ_BY_THE_TRAINER
    ),
    Field(
        "HubUnauthorized",
        unless(lambda pod: "HF_TOKEN" in env_of(pod), default(reasons.HUB_UNAUTHORIZED)),
        {"spec.tokenSecret": {"name": "hub", "key": "token"}},
        {},
    ),
    Field(
        "HubUnreachable: model",
        unless(mounts("models"), default(reasons.HUB_UNREACHABLE)),
        {"claim|spec.model": {"claim": {"name": "models", "path": "base"}}},
        {},
    ),
    Field(
        "HubUnreachable: dataset",
        unless(mounts("rows"), default(reasons.HUB_UNREACHABLE)),
        {"claim|spec.dataset": {"claim": {"name": "rows", "path": "a.jsonl"}}},
        {},
    ),
    *(
        Field(
            f"StoreUnauthorized: {source}",
            without_store_secret,
            {f"spec.{source}.secret": {"name": "reader"}},
            {source: {"uri": "s3://data/faq/"}},
        )
        for source in ("model", "dataset")
    ),
    Field(
        "GpuNotUsable",
        unless(groups, default(reasons.GPU_NOT_USABLE)),
        {"spec.pod.supplementalGroups": [109]},
        {"resources": {"gpus": 1}},
    ),
    Field(
        "GpuNotUsable: image",
        unless(lambda pod: container(pod)["image"] == "rocm:7", default(reasons.GPU_NOT_USABLE)),
        {"image|spec.pod.image": "rocm:7"},
        {"resources": {"gpus": 1}},
    ),
    Field(
        "VolumeAccessDenied",
        unless(groups, default(reasons.VOLUME_ACCESS_DENIED)),
        {"spec.pod.supplementalGroups": [109]},
        {},
    ),
    Field(
        "HostOutOfMemory",
        unless(
            lambda pod: container(pod)["resources"]["limits"].get("memory") == "16Gi",
            default(reasons.HOST_OUT_OF_MEMORY),
        ),
        {"spec.resources.memory": "16Gi"},
        {"resources": {"gpus": 0, "memory": "8Gi"}},
    ),
    *(
        Field(
            f"ImagePullFailed: {field}",
            unless(cured, explain_image_pull("ErrImagePull", "something else", "x:1")),
            {field: value},
            {},
        )
        for field, value, cured in (
            ("spec.pod.image", "y:1", lambda pod: container(pod)["image"] == "y:1"),
            ("spec.pod.imagePullSecrets", [{"name": "s"}], lambda pod: pod["spec"].get("imagePullSecrets")),
        )
    ),
    Field(
        "Unschedulable",
        lambda spec: None if spec["resources"]["gpus"] == 1 else explain_unschedulable(pod_of(spec), "0/1", None),
        {"spec.resources|spec.resources.gpus": 1},
        {"resources": {"gpus": 8}},
    ),
    Field(
        "VolumeInUse",
        unless(mounts("shared"), explain_mount_failure("Multi-Attach error for volume")),
        {"claim|spec.output.claim": {"name": "shared"}},
        {},
    ),
    *(
        Field(
            f"EvictedForUse: {name}",
            unless(
                lambda pod, name=name: name in container(pod)["resources"]["requests"], default(reasons.EVICTED_FOR_USE)
            ),
            {field: "20Gi"},
            {},
        )
        for name, field in (
            ("memory", "spec.resources.memory"),
            ("ephemeral-storage", "spec.resources.requests.ephemeral-storage"),
        )
    ),
    *(
        Field(
            f"SidecarRunning: {words}",
            unless(has(kind, *words.replace("'", "").split(": ")), default(reasons.SIDECAR_RUNNING)),
            {f"{words}|spec.pod.{kind}.{words.partition(':')[0]}": words.partition(": ")[2].strip("'")},
            {},
        )
        for kind, words in SIDECARS
    ),
    Field(
        "QuotaExceeded",
        lambda spec: default(reasons.QUOTA_EXCEEDED) if "8" in str(container(pod_of(spec))["resources"]) else None,
        {"spec.resources|spec.resources.gpus": 1},
        {"resources": {"gpus": 8}},
    ),
    Field(
        "DeadlineExceeded",
        deadline,
        {"activeDeadlineSeconds|spec.activeDeadlineSeconds": 7200},
        {"activeDeadlineSeconds": 60},
    ),
    Field("Preempted", name_of_priority, {"spec.pod.priorityClassName": "high"}, {}),
    Field("a pod that waits for its turn", waits, {"spec.pod.priorityClassName": "high"}, {}),
    Field("ClaimNotShared: replicas", shares_a_claim, {"spec.replicas": 1}, {"replicas": 3}, "InferenceService"),
    Field(
        "ClaimNotShared: autoscaling",
        shares_a_claim,
        {"spec.autoscaling.maxReplicas": 1},
        {"autoscaling": {"maxReplicas": 3, "targetConcurrency": 4}},
        "InferenceService",
    ),
    Field(
        "AdapterMismatch",
        served(finished_job("other")),
        {"base model|spec.model.name": "org/base"},
        {"model": {"name": "org/wrong"}, "adapters": [{"name": "a", "fineTuneJob": {"name": "other"}}]},
        "InferenceService",
    ),
    *(
        Field(
            f"ModelUnsupported: {name}",
            engine(
                lambda pod, words=words: words in str(container(pod)["command"]), default(reasons.MODEL_UNSUPPORTED)
            ),
            {f"{name}|spec.engine": name},
            {"engine": other},
            "InferenceService",
        )
        for name, other, words in (
            ("vllm", "embedded", "vllm"),
            ("sglang", "vllm", "sglang"),
            ("embedded", "vllm", "hone-server"),
        )
    ),
    Field(
        "ModelUnsupported: image",
        engine(lambda pod: container(pod)["image"] == "vllm:2", default(reasons.MODEL_UNSUPPORTED)),
        {"spec.pod.image": "vllm:2"},
        {"engine": "vllm"},
        "InferenceService",
    ),
    Field(
        "ClaimDiffers: class",
        differs(ONCE),
        {"metadata.name|spec._name": "faq-2"},
        {"output": {"storage": {"storageClassName": "fast"}}},
    ),
    Field(
        "ClaimDiffers: access mode",
        differs(ONCE),
        {"metadata.name|spec._name": "faq-2"},
        {"output": {"storage": {"accessModes": ["ReadWriteMany"]}}},
    ),
]
