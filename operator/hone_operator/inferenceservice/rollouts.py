"""Decide when the engines of an InferenceService are replaced.

A user's change rolls out at once. A new version of the operator, or another runtime image, changes the pods of all
services; these are replaced one service at a time, because a roll-out needs room for one more engine, and so that a
broken image stops at the first service. The state is in the Deployments: an annotation marks a roll-out that an upgrade
began, and the status shows how far it is. Used by child_actions.py.
"""

import copy
import json
from collections.abc import Iterable
from datetime import datetime, timedelta

from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.reasons import DEPLOYMENT_PAUSED, HoneError

from hone_operator.engines.resolve import ResolvedModels
from hone_operator.inferenceservice import adapter_downloads
from hone_operator.objects.drift import compute_digest, contains_fields, get_annotation
from hone_operator.objects.resources import Object, find_condition
from hone_operator.objects.spec_fields import (
    FIELDS_ANNOTATION,
    FieldDigests,
    have_fields_changed,
    read_field_record,
    record_fields,
)
from hone_operator.objects.timestamps import format_timestamp, parse_untrusted_time

# Annotation of a Deployment: digest of the desired pod template.
TEMPLATE_ANNOTATION = "hone.dev/template"
# Annotation of a Deployment whose pod template came from an upgrade of the operator: when it was applied.
UPGRADE_ANNOTATION = "hone.dev/upgrade"
MAX_TURN = timedelta(hours=1)

# The fields from which the pods are made. Adapters are compared separately.
_POD_FIELDS = [
    name for name in InferenceServiceSpec.model_fields if name not in ("replicas", "autoscaling", "adapters")
]
_WEIGHTS, _ADAPTERS, _IMAGES = "(weights)", "(adapters)", "(images)"


def compute_deployment_digest(desired: Object) -> str:
    """Return the digest of a Deployment, whose replicas an autoscaler may set."""
    metadata = {name: value for name, value in desired["metadata"].items() if name != "resourceVersion"}
    spec = {name: value for name, value in desired["spec"].items() if name not in ("replicas", "template")}
    return compute_digest([metadata, spec, compute_template_digest(desired)])


def compute_template_digest(desired: Object) -> str:
    """Return the digest of the pod template.

    Claims, and the Secrets and certificates of adapters, are left out: what a removed adapter needed stays mounted
    until another change, so that removing an adapter needs no restart. The comparison of fields ensures that the needed
    ones are mounted.
    """
    template = copy.deepcopy(desired["spec"]["template"])
    pod = template["spec"]
    left_out = {
        volume["name"]
        for volume in pod.get("volumes") or []
        if "persistentVolumeClaim" in volume or volume["name"].startswith(adapter_downloads.VOLUME_PREFIXES)
    }
    pod["volumes"] = [volume for volume in pod.get("volumes") or [] if volume["name"] not in left_out]
    for container in [*pod["containers"], *(pod.get("initContainers") or [])]:
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [mount for mount in mounts if mount["name"] not in left_out]
    return compute_digest(template)


def build_annotations(desired: Object, spec: InferenceServiceSpec, resolved: ResolvedModels) -> dict[str, str]:
    """Return the annotations by which a later pass recognizes what has changed."""
    fields = (
        record_fields(spec, [*_POD_FIELDS, "adapters"])
        | _digest_artifacts(resolved)
        | {_IMAGES: _digest_images(desired)}
    )
    return {
        FIELDS_ANNOTATION: json.dumps(fields, sort_keys=True),
        TEMPLATE_ANNOTATION: compute_template_digest(desired),
    }


def is_deployment_as_desired(observed: Object | None, desired: Object) -> bool:
    """Return whether the Deployment is as desired. Its record of fields is ignored: hot adapters don't update it."""
    metadata = desired["metadata"]
    compared = {name: value for name, value in metadata["annotations"].items() if name != FIELDS_ANNOTATION}
    return observed is not None and contains_fields(
        observed, desired | {"metadata": metadata | {"annotations": compared}}
    )


def is_upgrade(
    observed: Object, desired: Object, spec: InferenceServiceSpec, resolved: ResolvedModels, *, is_hot: bool
) -> bool:
    """Return whether applying the Deployment would replace pods without a change of the object or its artifacts.

    `is_hot`: adapters change without a new record, so the recorded adapters may be old.
    """
    if get_annotation(observed, TEMPLATE_ANNOTATION) == compute_template_digest(desired):
        return False
    recorded = read_field_record(observed)
    if recorded is None:  # made by a version that kept no record
        return True
    artifacts = _digest_artifacts(resolved)
    if recorded.get(_WEIGHTS) != artifacts[_WEIGHTS] or have_fields_changed(recorded, spec, _POD_FIELDS):
        return False
    if recorded.get(_ADAPTERS) == artifacts[_ADAPTERS] and not have_fields_changed(recorded, spec, ["adapters"]):
        return True
    return is_hot and recorded.get(_IMAGES) != _digest_images(desired)


def choose_upgrade_mark(observed: Object, desired: Object, now: datetime, *, takes_turn: bool) -> str | None:
    """Return UPGRADE_ANNOTATION's value for the Deployment that is applied now; None when no upgrade made its pods."""
    if takes_turn:
        return format_timestamp(now)
    is_same = get_annotation(observed, TEMPLATE_ANNOTATION) == get_annotation(desired, TEMPLATE_ANNOTATION)
    return get_annotation(observed, UPGRADE_ANNOTATION) if is_same else None


def list_upgrade_rollouts(deployments: Iterable[Object], now: datetime) -> list[Object]:
    """Return the Deployments whose roll-out an upgrade began, and that neither ended nor took too long."""
    return [each for each in deployments if _has_its_turn(each, now) and _is_rolling_out(each)]


def _has_its_turn(deployment: Object, now: datetime) -> bool:
    """Return whether its turn has begun and is not over. MAX_TURN limits it, also for edited annotations."""
    began = parse_untrusted_time(get_annotation(deployment, UPGRADE_ANNOTATION))
    return began is not None and began <= now < began + MAX_TURN


def explain_pause(deployment: Object | None) -> HoneError | None:
    """Return what to report when somebody paused the Deployment, so that no roll-out proceeds; else None."""
    if deployment is None or not deployment["spec"].get("paused"):
        return None
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    is_seen = status.get("observedGeneration") == metadata.get("generation")
    if not is_seen or status.get("updatedReplicas", 0) >= deployment["spec"].get("replicas", 1):
        return None
    text = f"Deployment {metadata['name']} is paused, so that its pods are not replaced"
    command = f"kubectl rollout resume deployment/{metadata['name']} --namespace {metadata['namespace']}"
    return HoneError(DEPLOYMENT_PAUSED, text, remedy=f"Run `{command}`.")


def _is_rolling_out(deployment: Object) -> bool:
    status, spec = deployment.get("status") or {}, deployment["spec"]
    if deployment["metadata"].get("deletionTimestamp") or spec.get("replicas") == 0 or spec.get("paused"):
        return False
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return True
    progress = find_condition(deployment, "Progressing")
    if progress is None:
        return True
    if progress.get("reason") == "ProgressDeadlineExceeded":
        return False
    is_complete = status.get("updatedReplicas", 0) == status.get("replicas", 0)
    return not (is_complete and progress.get("reason") == "NewReplicaSetAvailable")


def _digest_artifacts(resolved: ResolvedModels) -> FieldDigests:
    own, others = (
        [[model.name, model.kind, model.digest] for model in resolved.models if (model.kind == "adapter") is is_adapter]
        for is_adapter in (False, True)
    )
    return {_WEIGHTS: compute_digest(own), _ADAPTERS: compute_digest(others)}


def _digest_images(desired: Object) -> str:
    pod = desired["spec"]["template"]["spec"]
    return compute_digest(
        [container.get("image") for container in [*pod["containers"], *(pod.get("initContainers") or [])]]
    )
