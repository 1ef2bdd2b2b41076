"""The conditions that tools read: Ready, Reconciling and Stalled, as kstatus defines them.

In: the conditions that a pass has set, with the stage or the models of the status. Out: one Health. `Ready` is always
present. `Reconciling` is present while the object is being worked on, or waits for something that can come without a
change of the object. `Stalled` is present when nothing more happens until a person acts. The plan functions call this
module last, so that the three conditions follow from all others.
"""

from dataclasses import dataclass
from typing import Literal

from hone_api.reasons import VOLUME_IN_USE

from hone_operator.objects.resources import Object
from hone_operator.reconcile.conditions import Conditions

READINESS_TYPES = ("Ready", "Reconciling", "Stalled")
# Reasons that stay until a person changes the object or what it names: a tool that waits should give up.
STALLED_REASONS = frozenset(
    {
        "AdapterMismatch",
        "AllRowsTruncated",
        "ArtifactCorrupt",
        "ArtifactMissing",
        "BackoffLimitExceeded",
        "ChatTemplateMissing",
        "ChildInvalid",
        "ClaimNotShared",
        "DatasetColumnMissing",
        "DatasetEmpty",
        "DatasetInvalid",
        "DatasetNotFound",
        "DeadlineExceeded",
        "DeploymentPaused",
        "ClaimDiffers",
        "DestinationMissing",
        "DestinationOccupied",
        "DestinationRefused",
        "DiskFull",
        "EngineFailed",
        "EvictedForUse",
        "FineTuneJobFailed",
        "GpuNotUsable",
        "HostOutOfMemory",
        "HubUnauthorized",
        "ImagePullFailed",
        "InternalError",
        "InvalidSpec",
        "MergeMismatch",
        "ModelInvalid",
        "ModelNotFound",
        "ModelTooLarge",
        "ModelUnsupported",
        "NameConflict",
        "NonFiniteLoss",
        "OutOfMemory",
        "SourceChanged",
        "Stalled",
        "StoreUnauthorized",
        "VolumeAccessDenied",
    }
)
# Reasons that can pass without a change of the object: a GPU becomes free, a Secret arrives, a node returns.
TRANSIENT_REASONS = frozenset(
    {
        "ApiFailing",
        "ChildContested",
        "ChildHidden",
        "ChildLeaving",
        "ChildRefused",
        "EngineSilent",
        "Evicted",
        "HubUnreachable",
        "Interrupted",
        "LoadNotServed",
        "NodeLost",
        "OperatorError",
        "PodNotStarted",
        "PodRejected",
        "Preempted",
        "QuotaExceeded",
        "ScalingUp",
        "SidecarRunning",
        "StoreUnreachable",
        "TrainerSilent",
        "Unschedulable",
        "VolumeInUse",
        "VolumeNotBound",
    }
)
# Reasons of Progressing while all engines serve the present models.
SERVING_REASONS = frozenset({"Complete", "UpgradeWaiting"})
SUSPENDED = "Suspended"
SPREADABLE = "Spreadable"
SCALED_TO_ZERO = "ScaledToZero"

State = Literal["Ready", "Reconciling", "Stalled"]


@dataclass(frozen=True)
class Health:
    """The state of an object, with its reason and message."""

    state: State
    reason: str
    message: str


_CHILDREN_LEAVING = Health("Reconciling", "ChildrenLeaving", "A child of an earlier object is being deleted.")


def set_conditions(conditions: Conditions, health: Health) -> None:
    """Set the three conditions by the health. Ready is always set; of the others only the one that is true."""
    conditions.set("Ready", health.state == "Ready", health.reason, health.message)
    for type_ in ("Reconciling", "Stalled"):
        if health.state == type_:
            conditions.set(type_, True, health.reason, health.message)
        else:
            conditions.remove(type_)


def judge_job(stage: str, conditions: Conditions) -> Health:
    """Return the health of a FineTuneJob. Ready: the artifact is complete, or the job is suspended as it should be."""
    if stage == "Succeeded":
        return _judge_finished("Ready", stage, conditions)
    if stage == "Failed":
        return _judge_finished("Stalled", stage, conditions)
    if refusal := _judge_acceptance(conditions):
        return refusal
    if conditions.is_set_in_this_pass(SUSPENDED) and conditions.is_true(SUSPENDED):
        reason, message = conditions.get_reason_and_message(SUSPENDED)
        return Health("Ready" if reason == SUSPENDED else "Reconciling", reason, message)
    if conditions.is_set_in_this_pass("Running"):
        return _judge_reason(*conditions.get_reason_and_message("Running"))
    return Health("Reconciling", *conditions.get_reason_and_message("Accepted"))


def judge_service(models: list[Object], conditions: Conditions) -> Health:
    """Return the health of an InferenceService. Ready: all engines that the spec wants serve all its models."""
    if refusal := _judge_acceptance(conditions):
        return refusal
    if _waits_for_a_shared_claim(conditions):
        return _judge_reason(*conditions.get_reason_and_message(SPREADABLE))
    for type_ in ("ArtifactsResolved", "Progressing"):
        if not conditions.is_set_in_this_pass(type_):
            return Health("Reconciling", *conditions.get_reason_and_message("Accepted"))
        reason, message = conditions.get_reason_and_message(type_)
        if type_ == "ArtifactsResolved" and not conditions.is_true(type_):
            return _judge_reason(reason, message)
        if type_ == "Progressing" and reason not in SERVING_REASONS:
            return _judge_reason(reason, message)
    reason, message = conditions.get_reason_and_message("Available")
    if reason == SCALED_TO_ZERO:
        return Health("Ready", reason, message)
    for model in models:
        loaded, _, replicas = str(model.get("loaded") or "").partition("/")
        if loaded != replicas and replicas:
            text = f"Model {model['name']} is loaded on {loaded} of {replicas} engines, by their own lists."
            return Health("Reconciling", "ModelsNotLoaded", text)
    return Health("Ready" if conditions.is_true("Available") else "Reconciling", reason, message)


def _judge_acceptance(conditions: Conditions) -> Health | None:
    """Return the health of an object that this pass did not accept; None for an accepted one."""
    if not conditions.is_set_in_this_pass("Accepted"):
        return _CHILDREN_LEAVING
    return None if conditions.is_true("Accepted") else _judge_reason(*conditions.get_reason_and_message("Accepted"))


def _waits_for_a_shared_claim(conditions: Conditions) -> bool:
    """Return whether an engine waits for a volume that another running engine occupies on its node."""
    is_fresh = conditions.is_set_in_this_pass(SPREADABLE) and conditions.is_set_in_this_pass("Progressing")
    return (
        is_fresh
        and not conditions.is_true(SPREADABLE)
        and conditions.get_reason_and_message("Progressing")[0] == VOLUME_IN_USE.name
    )


def _judge_reason(reason: str, message: str) -> Health:
    return Health("Stalled" if reason in STALLED_REASONS else "Reconciling", reason, message)


def _judge_finished(state: State, stage: str, conditions: Conditions) -> Health:
    """Return the health of a job with a result. An earlier pass may have set its conditions."""
    if conditions.is_true(stage):
        return Health(state, *conditions.get_reason_and_message(stage))
    return Health(state, stage, f"The stage is {stage}.")
