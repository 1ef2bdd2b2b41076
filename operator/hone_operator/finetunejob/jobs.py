"""Build the Jobs of a FineTuneJob: one that prepares without GPUs, and one that trains.

In: the object and the installation's image and GPU access. Out: the desired Jobs. finetunejob/plan.py compares them
with the existing ones.
"""

import json
from collections.abc import Sequence

from hone_api import containers
from hone_api.exit_codes import INTERRUPTED_EXIT_CODE, USER_MISTAKES
from hone_api.finetunejobs.sources import BaseModelSource, DatasetSource
from hone_api.finetunejobs.spec import FineTuneJob, FineTuneJobSpec
from hone_api.layout import (
    FINETUNEJOB_LABEL,
    OFFLINE_VARIABLE,
    POD_CACHE,
    POD_CLAIMS,
    POD_CONFIG_MAPS,
    POD_MANIFEST,
    POD_OUTPUT,
    POD_SECRETS,
    TRAINER_PORT,
    make_artifact_path,
)
from hone_api.pods.pod_options import TRAINER_GRACE_SECONDS

from hone_operator.finetunejob.children import build_metadata, get_output_claim
from hone_operator.finetunejob.replacement_fields import record_job_fields
from hone_operator.objects.child_names import (
    PREPARE,
    TRAINER,
    make_config_map_name,
    make_job_name,
    make_prepare_job_name,
)
from hone_operator.objects.drift import get_annotation
from hone_operator.objects.resources import Object
from hone_operator.objects.spec_fields import FIELDS_ANNOTATION
from hone_operator.pods import tuning
from hone_operator.pods.gpu_access import GpuAccess
from hone_operator.pods.hub_token import add_token, go_offline
from hone_operator.pods.pod_spec import (
    Volumes,
    add_scratch_volumes,
    build_environment,
    build_labels,
    build_pod_spec,
    build_resource_requirements,
    make_volume_name,
)

# Labels and annotations of the owner with this prefix are passed on to the Job.
PASSED_ON_PREFIX = "kueue.x-k8s.io/"

# Annotation of a Job: the names that were passed on. Only these are removed later: a queue sets more with that prefix.
PASSED_ON_ANNOTATION = "hone.dev/passed-on"

# torchrun's default of --master-port.
RENDEZVOUS_PORT = 29500

# Labels of nodes with AMD GPUs, by AMD's node labeller and Node Feature Discovery; amd-vgpu: virtual functions.
GPU_NODE_LABELS = (
    "amd.com/gpu.device-id",
    "beta.amd.com/gpu.device-id",
    "feature.node.kubernetes.io/amd-gpu",
    "feature.node.kubernetes.io/amd-vgpu",
)

DEFAULT_GPU_ACCESS = GpuAccess()


def has_prepare_job(job: FineTuneJob) -> bool:
    """Return whether a separate Job prepares.

    A trainer without GPUs prepares itself, since it blocks no GPU, unless that needs a Secret of its own.
    """
    return job.spec.resources.gpus > 0 or any(source.secret for source in _list_sources(job))


def build_mutable_spec(job: FineTuneJob) -> Object:
    """Return the mutable fields of a Job's spec that Hone sets. `suspend` is left to queues such as Kueue."""
    return {"backoffLimit": job.spec.backoff_limit, "activeDeadlineSeconds": job.spec.active_deadline_seconds}


def _list_sources(job: FineTuneJob) -> list[BaseModelSource | DatasetSource]:
    return [job.spec.model, *job.spec.dataset_sources]


def _list_dataset_config_maps(job: FineTuneJob) -> list[str]:
    """Return the ConfigMaps that hold datasets, each once."""
    return [*dict.fromkeys(source.config_map.name for source in job.spec.dataset_sources if source.config_map)]


def reads_token(job: FineTuneJob, component: str) -> bool:
    """Return whether the pods of this Job read the hub token."""
    return component == PREPARE or not has_prepare_job(job)


def select_passed_on(owner: Object) -> Object:
    """Return the labels and annotations of the owner that are for the Job, and the annotation that lists them."""
    found: Object = {}
    for kind in ("labels", "annotations"):
        given = (owner["metadata"].get(kind) or {}).items()
        found[kind] = {name: value for name, value in given if name.startswith(PASSED_ON_PREFIX)}
    names = [f"{kind}:{name}" for kind in ("annotations", "labels") for name in sorted(found[kind])]
    if names:
        found["annotations"][PASSED_ON_ANNOTATION] = ",".join(names)
    return found


def build_passed_on_removal(desired: Object, observed: Object) -> Object:
    """Return a merge patch of the metadata that removes from a Job what was passed on and its owner no longer has."""
    now = desired["metadata"]
    patch: Object = {"labels": {}, "annotations": {}}
    names = get_annotation(observed, PASSED_ON_ANNOTATION)
    for entry in (names or "").split(","):
        kind, _, name = entry.partition(":")
        if kind in patch and name.startswith(PASSED_ON_PREFIX) and name not in now[kind]:
            patch[kind][name] = None
    if names and PASSED_ON_ANNOTATION not in now["annotations"]:
        patch["annotations"][PASSED_ON_ANNOTATION] = None
    return patch


def build_train_job(
    owner: Object, job: FineTuneJob, image: str, access: GpuAccess = DEFAULT_GPU_ACCESS, *, more_channels: bool = False
) -> Object:
    """Return the training Job, with one pod per node. `more_channels`: whether RCCL gets the channels of tuning.py."""
    nodes, gpus = job.spec.resources.nodes, job.spec.resources.gpus
    volumes, arguments = _build_volumes(owner, job)
    arguments += ["--port", str(TRAINER_PORT)]
    env = _build_environment(job.spec, more_channels=more_channels) | access.build_environment(job.spec.resources, gpus)
    if nodes > 1:
        arguments += ["--nnodes", str(nodes)]
        first = f"{make_job_name(job.name)}-0.{make_job_name(job.name)}"
        env |= {"MASTER_ADDR": first, "MASTER_PORT": str(RENDEZVOUS_PORT)}
    variables = build_environment(env, job.spec.pod)
    if has_prepare_job(job):
        variables = go_offline(variables, job.spec.pod)
        if any(source.uri for source in _list_sources(job)):
            variables.append({"name": OFFLINE_VARIABLE, "value": "1"})
    else:
        variables = add_token(variables, job.spec.token_secret)
        arguments += _add_secrets_and_certificates(volumes, job)
    arguments += _add_tracker_secrets(volumes, job, arguments)
    groups = access.get_groups(gpus)
    pod = _build_pod(job, image, TRAINER, "run", arguments, variables, volumes, gpus=gpus, groups=groups)
    if nodes > 1:
        pod["subdomain"] = make_job_name(job.name)
    made = _build_job(owner, job, make_job_name(job.name), TRAINER, pod)
    for kind, found in select_passed_on(owner).items():
        made["metadata"][kind] = found | made["metadata"][kind]
    made["spec"] |= {"parallelism": nodes, "completions": nodes}
    if nodes > 1:
        made["spec"]["completionMode"] = "Indexed"
    return made


def build_prepare_job(owner: Object, job: FineTuneJob, image: str, gpu: tuple[str, int] | None) -> Object:
    """Return the preparing Job. Only it has the hub token and the Secrets of sources.

    `gpu`: name and bytes of the GPU that will train.
    """
    volumes, arguments = _build_volumes(owner, job)
    arguments += _add_secrets_and_certificates(volumes, job)
    if gpu:
        arguments += ["--gpu-name", gpu[0], "--gpu-memory", str(gpu[1])]
    if not job.spec.pod.host_network:  # there the port may be taken
        arguments += ["--port", str(TRAINER_PORT)]
    variables = add_token(build_environment(_build_environment(job.spec), job.spec.pod), job.spec.token_secret)
    pod = _build_pod(job, image, PREPARE, "prepare", arguments, variables, volumes, gpus=0)
    # Nodes with GPUs are preferred, since the claim's volume may be bound to the node of its first pod.
    if job.spec.resources.gpus and "affinity" not in pod:
        preferences = [
            {"weight": 1, "preference": {"matchExpressions": [{"key": label, "operator": "Exists"}]}}
            for label in GPU_NODE_LABELS
        ]
        pod["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferences}}
    made = _build_job(owner, job, make_prepare_job_name(job.name), PREPARE, pod)
    made["spec"] |= {"parallelism": 1, "completions": 1}
    return made


def _build_job(owner: Object, job: FineTuneJob, name: str, component: str, pod: Object) -> Object:
    options = job.spec.pod
    metadata = build_metadata(owner, name, component)
    metadata["labels"] = build_labels(FINETUNEJOB_LABEL, job.name, component, options.labels)
    metadata["annotations"] = options.annotations | {
        FIELDS_ANNOTATION: json.dumps(record_job_fields(job, has_token=reads_token(job, component)), sort_keys=True)
    }
    template_metadata: Object = {"labels": build_labels(FINETUNEJOB_LABEL, job.name, component, options.labels)}
    if options.annotations:
        template_metadata["annotations"] = options.annotations
    mutable = {name: value for name, value in build_mutable_spec(job).items() if value is not None}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": mutable
        | {
            "podFailurePolicy": {"rules": build_failure_rules(component)},
            # The claim has one writer: a new trainer starts when the old one has ended, not when it is terminating.
            "podReplacementPolicy": "Failed",
            "template": {"metadata": template_metadata, "spec": pod},
        },
    }


def build_failure_rules(container: str) -> list[Object]:
    """Return the rules of a podFailurePolicy: a retry can't fix a user's mistake, and interruptions don't count."""

    def on_exit(action: str, codes: list[int]) -> Object:
        return {
            "action": action,
            "onExitCodes": {"containerName": container, "operator": "In", "values": codes},
        }

    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        on_exit("Ignore", [INTERRUPTED_EXIT_CODE]),
        on_exit("FailJob", list(USER_MISTAKES)),
    ]


def _build_pod(
    job: FineTuneJob,
    image: str,
    name: str,
    command: str,
    arguments: list[str],
    variables: list[Object],
    volumes: Volumes,
    *,
    gpus: int,
    groups: Sequence[int] = (),
) -> Object:
    spec = job.spec
    container: Object = {
        "name": name,
        "image": spec.pod.image or image,
        "command": [containers.TRAINER, command, POD_MANIFEST, "--output", POD_OUTPUT],
        "args": [*arguments, "--termination-log", "/dev/termination-log"],
        "env": variables,
        "resources": build_resource_requirements(spec.resources, gpus),
    }
    if "--port" in arguments:
        container["ports"] = [{"name": "http", "containerPort": TRAINER_PORT}]
    pod = build_pod_spec(
        container,
        volumes,
        spec.pod,
        gpus=spec.resources.gpus,
        gpu_resource=spec.resources.gpu_resource,
        selector=build_labels(FINETUNEJOB_LABEL, job.name, name),
        groups=groups,
    )
    grace = spec.pod.termination_grace_period_seconds or TRAINER_GRACE_SECONDS[spec.method]
    return pod | {"restartPolicy": "Never", "terminationGracePeriodSeconds": grace}


def _build_volumes(owner: Object, job: FineTuneJob) -> tuple[Volumes, list[str]]:
    """Return the volumes, and the trainer's arguments with the mount paths of claims and ConfigMaps."""
    spec = job.spec
    metadata = owner["metadata"]
    volumes = Volumes()
    arguments: list[str] = []
    volumes.add_config_map("manifest", make_config_map_name(job.name), POD_MANIFEST.rpartition("/")[0])
    volumes.add_claim(get_output_claim(job), POD_OUTPUT, sub_path=make_artifact_path(metadata["namespace"], job.name))
    read = dict.fromkeys(source.claim.name for source in _list_sources(job) if source.claim)
    for name in read:
        path = f"{POD_CLAIMS}/{name}"
        volumes.add_claim(name, path, read_only=True)
        arguments += ["--claim", f"{name}={path}"]
    for number, name in enumerate(_list_dataset_config_maps(job)):
        path = f"{POD_CONFIG_MAPS}/{name}"
        # Further names can't be those of volumes in spec.pod.
        volume = make_volume_name("dataset-", name) if number else "dataset"
        volumes.add_config_map(volume, name, path)
        arguments += ["--config-map", f"{name}={path}"]
    if spec.cache:
        volumes.add_claim(spec.cache.claim.name, POD_CACHE)
    add_scratch_volumes(volumes, spec.resources)
    return volumes, arguments


def _add_secrets_and_certificates(volumes: Volumes, job: FineTuneJob) -> list[str]:
    """Mount the Secrets and CA bundles of sources, and return the trainer's arguments with their paths."""
    sources = _list_sources(job)
    return volumes.add_inputs(
        (source.secret.name for source in sources if source.secret),
        (source.ca_bundle.config_map.name for source in sources if source.ca_bundle),
        mounted=_list_dataset_config_maps(job),
    )


def _add_tracker_secrets(volumes: Volumes, job: FineTuneJob, given: list[str]) -> list[str]:
    """Mount the Secrets of experiment trackers that are not mounted yet, and return the trainer's arguments."""
    arguments: list[str] = []
    secrets = job.spec.tracking.secrets if job.spec.tracking else {}
    for number, name in enumerate(dict.fromkeys(secrets.values())):
        path = f"{POD_SECRETS}/{name}"
        if f"{name}={path}" not in given:
            volumes.add_all_of_secret(f"tracker-{number}", name, path)
            arguments += ["--secret", f"{name}={path}"]
    return arguments


def _build_environment(spec: FineTuneJobSpec, *, more_channels: bool = False) -> dict[str, str]:
    env = {"HOME": "/tmp", "USER": "hone"}  # torch looks up the user's name, which a user id of the platform lacks
    if spec.cache:
        env["HF_HOME"] = POD_CACHE
    return env | tuning.build_training_environment(spec.resources, more_channels=more_channels)
