"""The children of a FineTuneJob: the manifest's ConfigMap, the output's claim, the trainer's Job."""

import json
from typing import Any

from hone_api.finetunejob import FineTuneJob, FineTuneJobSpec
from hone_api.layout import (
    FINETUNEJOB_LABEL,
    POD_CACHE,
    POD_CLAIMS,
    POD_CONFIG_MAPS,
    POD_MANIFEST,
    POD_OUTPUT,
    TRAINER_PORT,
    artifact_path,
)
from hone_api.output import ClaimStorage
from hone_api.reasons import INTERRUPTED_EXIT_CODE, USER_MISTAKES

from hone_operator.podspec import Volumes, environment, labels, owner_reference, pod_spec, requirements, scratch
from hone_operator.resources import Object

CONTAINER = "trainer"
GRACE_SECONDS = {"lora": 60, "qlora": 60, "full": 300}
"""How long the trainer has to save a checkpoint when it is told to stop."""

PASSED_ON = "kueue.x-k8s.io/"
"""The owner's labels with this prefix are for the Job."""


def config_map_name(name: str) -> str:
    return f"{name}-manifest"


def job_name(name: str) -> str:
    return f"{name}-train"


def output_claim(job: FineTuneJob) -> str:
    """Name of the claim that the artifact goes to."""
    return job.spec.output.claim.name if job.spec.output.claim else job.name


def config_map(owner: Object) -> Object:
    """The object as the trainer reads it, without status and without what the API server added."""
    metadata = owner["metadata"]
    manifest = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": owner["spec"],
    }
    key = POD_MANIFEST.rpartition("/")[2]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(owner, config_map_name(metadata["name"])),
        "data": {key: json.dumps(manifest, indent=2, ensure_ascii=False)},
    }


def claim(owner: Object, job: FineTuneJob) -> Object:
    """The claim for the artifact. It has no owner: what was trained outlives the object."""
    storage = job.spec.output.storage or ClaimStorage()
    metadata = _metadata(owner, job.name)
    del metadata["ownerReferences"]
    spec: Object = {
        "accessModes": list(storage.access_modes),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def mutable_job_spec(job: FineTuneJob) -> Object:
    """What of the Job's spec Hone decides and Kubernetes lets change. `suspend` is left to queues such as Kueue."""
    return {"parallelism": 1, "backoffLimit": job.spec.backoff_limit}


def train_job(owner: Object, job: FineTuneJob, image: str) -> Object:
    """The trainer's Job."""
    options = job.spec.pod
    passed_on = {
        name: value for name, value in (owner["metadata"].get("labels") or {}).items() if name.startswith(PASSED_ON)
    }
    metadata = _metadata(owner, job_name(job.name))
    metadata["labels"] = labels(FINETUNEJOB_LABEL, job.name, CONTAINER, options.labels, passed_on)
    if options.annotations:
        metadata["annotations"] = options.annotations
    template_metadata: Object = {"labels": labels(FINETUNEJOB_LABEL, job.name, CONTAINER, options.labels)}
    if options.annotations:
        template_metadata["annotations"] = options.annotations
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": mutable_job_spec(job)
        | {
            "completions": 1,
            "podFailurePolicy": {"rules": _failure_rules()},
            # The claim has one writer: a new trainer starts when the old one has ended, not when it begins to end.
            "podReplacementPolicy": "Failed",
            "template": {"metadata": template_metadata, "spec": _pod(owner, job, image)},
        },
    }


def _failure_rules() -> list[Object]:
    def on_exit(action: str, codes: list[int]) -> Object:
        return {
            "action": action,
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": codes},
        }

    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        on_exit("Ignore", [INTERRUPTED_EXIT_CODE]),
        on_exit("FailJob", list(USER_MISTAKES)),
    ]


def _pod(owner: Object, job: FineTuneJob, image: str) -> Object:
    spec = job.spec
    gpus = spec.resources.gpus
    volumes, arguments = _volumes(owner, job)
    env = environment(_environment(spec), spec.pod)
    if spec.token_secret:
        reference = {"name": spec.token_secret.name, "key": spec.token_secret.key}
        env = [variable for variable in env if variable["name"] != "HF_TOKEN"]
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    container: Object = {
        "name": CONTAINER,
        "image": spec.pod.image or image,
        "command": ["hone-trainer", "run", POD_MANIFEST, "--output", POD_OUTPUT],
        "args": [*arguments, "--port", str(TRAINER_PORT), "--termination-log", "/dev/termination-log"],
        "env": env,
        "ports": [{"name": "http", "containerPort": TRAINER_PORT}],
        "resources": requirements(spec.resources, gpus),
    }
    pod = pod_spec(container, volumes, spec.pod, gpus=gpus, gpu_resource=spec.resources.gpu_resource)
    return pod | {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE_SECONDS[spec.method]}


def _volumes(owner: Object, job: FineTuneJob) -> tuple[Volumes, list[str]]:
    """The mounts, and the trainer's arguments that say where claims and ConfigMaps are mounted."""
    spec = job.spec
    metadata = owner["metadata"]
    volumes = Volumes()
    arguments: list[str] = []
    volumes.config_map("manifest", config_map_name(job.name), POD_MANIFEST.rpartition("/")[0])
    volumes.claim(output_claim(job), POD_OUTPUT, sub_path=artifact_path(metadata["namespace"], job.name))
    read = dict.fromkeys(source.claim.name for source in (spec.model, spec.dataset) if source.claim)
    for name in read:
        path = f"{POD_CLAIMS}/{name}"
        volumes.claim(name, path, read_only=True)
        arguments += ["--claim", f"{name}={path}"]
    if spec.dataset.config_map:
        name = spec.dataset.config_map.name
        path = f"{POD_CONFIG_MAPS}/{name}"
        volumes.config_map("dataset", name, path)
        arguments += ["--config-map", f"{name}={path}"]
    if spec.cache:
        volumes.claim(spec.cache.claim.name, POD_CACHE)
    scratch(volumes, spec.resources)
    return volumes, arguments


def _environment(spec: FineTuneJobSpec) -> dict[str, str]:
    """AMD's recommendations for training; several GPUs have RCCL's, too."""
    env = {"HOME": "/tmp"}
    if spec.cache:
        env["HF_HOME"] = POD_CACHE
    if spec.resources.gpus > 0:
        env |= {"GPU_MAX_HW_QUEUES": "2", "HSA_ENABLE_SDMA": "1"}
    if spec.resources.gpus > 1:
        env |= {"NCCL_MIN_NCHANNELS": "112", "TORCH_NCCL_HIGH_PRIORITY": "1"}
    return env


def _metadata(owner: Object, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": owner["metadata"]["namespace"],
        "labels": labels(FINETUNEJOB_LABEL, owner["metadata"]["name"], CONTAINER),
        "ownerReferences": [owner_reference(owner)],
    }
