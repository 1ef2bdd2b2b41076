"""The children of a FineTuneJob other than its Jobs: the manifest's ConfigMap, the output claim, and a Service.

In: the object. Out: the desired children. The Jobs themselves: jobs.py.
"""

from typing import Any

from hone_api.finetunejobs.output import ClaimStorage
from hone_api.finetunejobs.spec import FineTuneJob, strip_private
from hone_api.layout import FINETUNEJOB_LABEL, POD_MANIFEST

from hone_operator.objects.child_names import TRAINER, make_config_map_name, make_job_name
from hone_operator.objects.drift import add_digest, is_as_desired
from hone_operator.objects.indented_json import dump_indented
from hone_operator.objects.resources import CONFIGMAPS, Object
from hone_operator.pods.pod_spec import build_labels, build_owner_reference
from hone_operator.reconcile.plan import Action, Apply, Create, build_delete


def get_output_claim(job: FineTuneJob) -> str:
    """Return the name of the claim that the artifact goes to."""
    return job.spec.output.claim.name if job.spec.output.claim else job.name


def build_config_map(owner: Object) -> Object:
    """Return the ConfigMap with the object as the trainer reads it: without status, pod options and server fields."""
    metadata = owner["metadata"]
    manifest = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": strip_private(owner["spec"]),
    }
    key = POD_MANIFEST.rpartition("/")[2]
    return add_digest(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": build_metadata(owner, make_config_map_name(metadata["name"])),
            "data": {key: dump_indented(manifest)},
        }
    )


def plan_config_map(observed: Object | None, desired: Object) -> list[Action]:
    """Return the actions that make the ConfigMap as desired."""
    if observed is None:
        # Sent together with the Job, it would delay the Job. No pod needs it before it has a node.
        return [Create(CONFIGMAPS, desired, comes_last=True)]
    if is_as_desired(observed, desired):
        return []
    return [build_delete(CONFIGMAPS, observed) if observed.get("immutable") else Apply(CONFIGMAPS, desired)]


def build_claim(owner: Object, job: FineTuneJob) -> Object:
    """Return the claim for the artifact. It has no owner reference, so that the artifact outlives the object."""
    storage = job.spec.output.storage or ClaimStorage()
    metadata = build_metadata(owner, job.name)
    del metadata["ownerReferences"]
    spec: Object = {
        "accessModes": list(storage.access_modes),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def build_service(owner: Object, job: FineTuneJob) -> Object:
    """Return the headless Service of several pods: each gets its own DNS name, also before it is ready."""
    return add_digest(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": build_metadata(owner, make_job_name(job.name)),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": build_labels(FINETUNEJOB_LABEL, job.name, TRAINER),
            },
        }
    )


def build_metadata(owner: Object, name: str, component: str = TRAINER) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": owner["metadata"]["namespace"],
        "labels": build_labels(FINETUNEJOB_LABEL, owner["metadata"]["name"], component),
        "ownerReferences": [build_owner_reference(owner)],
    }
