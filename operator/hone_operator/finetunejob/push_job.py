"""Build the Job that pushes an artifact: without GPUs, and the only one with the credentials of the destinations.

In: the object, the installation's image, and the digest of the artifact. Out: the desired Job, with a digest of itself
as an annotation. Next: pushing.py, which compares it with the existing one. It runs hone_trainer.push.main.
"""

from hone_api.containers import PUSH, build_module_command
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.layout import (
    FINETUNEJOB_LABEL,
    POD_MANIFEST,
    POD_OUTPUT,
    make_artifact_path,
)
from hone_api.pods.pod_options import ComputeResources

from hone_operator.finetunejob.children import build_metadata, get_output_claim
from hone_operator.finetunejob.jobs import build_failure_rules
from hone_operator.objects import child_names
from hone_operator.objects.drift import add_digest, compute_digest
from hone_operator.objects.quantity import parse_number
from hone_operator.objects.resources import Object
from hone_operator.pods.hub_token import add_token
from hone_operator.pods.pod_spec import (
    Volumes,
    build_environment,
    build_helper_requirements,
    build_labels,
    build_pod_spec,
)

# Annotation of the Job: a digest of the destinations, which its pod reads from the manifest.
DESTINATIONS_ANNOTATION = "hone.dev/destinations"
# How often a failed pod is restarted. pushing.py makes another Job after a longer pause.
BACKOFF_LIMIT = 3
# What the pod requests. Each of 8 threads that upload to a bucket holds a part of 16 MiB. The hub's library takes more.
CPU, MEMORY = "200m", "1Gi"


def build_push_job(owner: Object, job: FineTuneJob, image: str, digest: str) -> Object:
    """Return the Job that pushes the artifact with this digest to all destinations."""
    spec, name = job.spec, job.name
    volumes = Volumes()
    volumes.add_config_map("manifest", child_names.make_config_map_name(name), POD_MANIFEST.rpartition("/")[0])
    folder = make_artifact_path(owner["metadata"]["namespace"], name)
    volumes.add_claim(get_output_claim(job), POD_OUTPUT, sub_path=folder, read_only=True)
    volumes.add_empty_dir("tmp", "/tmp")
    arguments = [POD_OUTPUT, "--manifest", POD_MANIFEST, "--digest", digest, *_add_secrets(volumes, job)]
    variables = build_environment({"HOME": "/tmp", "USER": "hone", "HF_HUB_DISABLE_TELEMETRY": "1"}, spec.pod)
    if any(each.hub and not each.hub.token_secret for each in spec.output.push):
        variables = add_token(variables, spec.token_secret)
    container: Object = {
        "name": child_names.PUSH,
        "image": spec.pod.image or image,
        "command": build_module_command(PUSH),
        "args": [*arguments, "--termination-log", "/dev/termination-log"],
        "env": variables,
        "resources": _build_requirements(spec.resources),
    }
    labels = build_labels(FINETUNEJOB_LABEL, name, child_names.PUSH, spec.pod.labels)
    destinations = compute_digest([each.to_wire() for each in spec.output.push])
    pod = build_pod_spec(
        container,
        volumes,
        spec.pod,
        gpus=spec.resources.gpus,
        gpu_resource=spec.resources.gpu_resource,
        selector=build_labels(FINETUNEJOB_LABEL, name, child_names.PUSH),
    )
    template: Object = {"metadata": {"labels": labels}, "spec": pod | {"restartPolicy": "Never"}}
    if spec.pod.annotations:
        template["metadata"]["annotations"] = spec.pod.annotations
    return add_digest(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": build_metadata(owner, child_names.make_push_job_name(name), child_names.PUSH)
            | {"labels": labels, "annotations": spec.pod.annotations | {DESTINATIONS_ANNOTATION: destinations}},
            "spec": {
                "backoffLimit": BACKOFF_LIMIT,
                "parallelism": 1,
                "completions": 1,
                "podFailurePolicy": {"rules": build_failure_rules(child_names.PUSH)},
                "podReplacementPolicy": "Failed",
                "template": template,
            },
        }
    )


def _build_requirements(resources: ComputeResources) -> Object:
    """Return requests and limits: the limit of memory is the trainer's, so that the same field raises it."""
    memory = resources.memory or resources.limits.get("memory")
    is_small = memory is not None and parse_number(memory) < parse_number(MEMORY)
    found = build_helper_requirements(ComputeResources(cpu=CPU, memory=memory if is_small else MEMORY), resources)
    if memory:
        found["limits"]["memory"] = memory
    else:
        del found["limits"]["memory"]
    return found


def _add_secrets(volumes: Volumes, job: FineTuneJob) -> list[str]:
    """Mount Secrets and CA bundles of the destinations, and return the arguments with their paths."""
    destinations = job.spec.output.push
    named = [each.secret.name for each in destinations if each.secret]
    named += [each.hub.token_secret.name for each in destinations if each.hub and each.hub.token_secret]
    return volumes.add_inputs(named, (each.ca_bundle.config_map.name for each in destinations if each.ca_bundle))
