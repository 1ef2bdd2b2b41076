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

TYPES = ("Ready", "Reconciling", "Stalled")
# Reasons that stay until a person changes the object or what it names: a tool that waits should give up.
WAITS_FOR_A_PERSON = frozenset(
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
        "Stalled",
        "VolumeAccessDenied",
    }
)
# Reasons that can pass without a change of the object: a GPU becomes free, a Secret arrives, a node returns.
MAY_PASS = frozenset(
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
        "TrainerSilent",
        "Unschedulable",
        "VolumeInUse",
        "VolumeNotBound",
    }
)
# Reasons of Progressing while all engines serve the present models.
SERVES_ALL = frozenset({"Complete", "UpgradeWaiting"})
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


_NOT_JUDGED = Health("Reconciling", "ChildrenLeaving", "A child of an earlier object is being deleted.")


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
        return _final("Ready", stage, conditions)
    if stage == "Failed":
        return _final("Stalled", stage, conditions)
    if refusal := _refusal(conditions):
        return refusal
    if conditions.is_fresh(SUSPENDED) and conditions.holds(SUSPENDED):
        reason, message = conditions.words_of(SUSPENDED)
        return Health("Ready" if reason == SUSPENDED else "Reconciling", reason, message)
    if conditions.is_fresh("Running"):
        return _by_reason(*conditions.words_of("Running"))
    return Health("Reconciling", *conditions.words_of("Accepted"))


def judge_service(models: list[Object], conditions: Conditions) -> Health:
    """Return the health of an InferenceService. Ready: all engines that the spec wants serve all its models."""
    if refusal := _refusal(conditions):
        return refusal
    if _waits_for_a_shared_claim(conditions):
        return _by_reason(*conditions.words_of(SPREADABLE))
    for type_ in ("ArtifactsResolved", "Progressing"):
        if not conditions.is_fresh(type_):
            return Health("Reconciling", *conditions.words_of("Accepted"))
        reason, message = conditions.words_of(type_)
        if type_ == "ArtifactsResolved" and not conditions.holds(type_):
            return _by_reason(reason, message)
        if type_ == "Progressing" and reason not in SERVES_ALL:
            return _by_reason(reason, message)
    reason, message = conditions.words_of("Available")
    if reason == SCALED_TO_ZERO:
        return Health("Ready", reason, message)
    for model in models:
        loaded, _, wanted = str(model.get("loaded") or "").partition("/")
        if loaded != wanted and wanted:
            words = f"Model {model['name']} is loaded on {loaded} of {wanted} engines, by their own lists."
            return Health("Reconciling", "ModelsNotLoaded", words)
    return Health("Ready" if conditions.holds("Available") else "Reconciling", reason, message)


def _refusal(conditions: Conditions) -> Health | None:
    """Return the health of an object that this pass did not accept; None for an accepted one."""
    if not conditions.is_fresh("Accepted"):
        return _NOT_JUDGED
    return None if conditions.holds("Accepted") else _by_reason(*conditions.words_of("Accepted"))


def _waits_for_a_shared_claim(conditions: Conditions) -> bool:
    """Return whether an engine waits for a volume that another running engine occupies on its node."""
    is_fresh = conditions.is_fresh(SPREADABLE) and conditions.is_fresh("Progressing")
    return is_fresh and not conditions.holds(SPREADABLE) and conditions.words_of("Progressing")[0] == VOLUME_IN_USE.name


def _by_reason(reason: str, message: str) -> Health:
    return Health("Stalled" if reason in WAITS_FOR_A_PERSON else "Reconciling", reason, message)


def _final(state: State, stage: str, conditions: Conditions) -> Health:
    """Return the health of a job with a result. An earlier pass may have set its conditions."""
    if conditions.holds(stage):
        return Health(state, *conditions.words_of(stage))
    return Health(state, stage, f"The stage is {stage}.")
