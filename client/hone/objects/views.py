"""The fields of Hone's objects that several views show: phase, progress, age, model, result. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hone.errors import ClientError
from hone.objects.job_progress import format_duration
from hone.objects.names import KINDS, Kind

Object = dict[str, Any]
SHORT_DIGEST = len("sha256:") + 12


def find_kind(body: Object) -> Kind:
    """Return the kind of an object of Hone."""
    return next(kind for kind in KINDS if kind.name == body.get("kind"))


def find_condition(body: Object, kind: str) -> Object | None:
    """Return the condition of a type; None without one."""
    conditions: list[Object] = (body.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), None)


def is_true(body: Object, kind: str) -> bool:
    """Return whether a condition is True."""
    return (find_condition(body, kind) or {}).get("status") == "True"


def describe_phase(body: Object) -> str:
    """Return the stage of a job; of a service Available, or the reason why it is not ready."""
    if body["metadata"].get("deletionTimestamp"):
        return "Deleting"
    if body.get("kind") == "FineTuneJob":
        return str((body.get("status") or {}).get("stage") or "Pending")
    if is_true(body, "Available"):
        return "Available"
    return str((find_condition(body, "Ready") or {}).get("reason") or "Pending")


def describe_progress(body: Object) -> str:
    """Return how far a job is, such as `40%, 3m 20s left`, and how many engines of a service are ready, such as 1/2."""
    status = body.get("status") or {}
    if body.get("kind") != "FineTuneJob":
        return f"{status.get('readyReplicas') or 0}/{status.get('replicas') or 0}"
    found = status.get("progress") or {}
    if status.get("stage") == "Succeeded":
        return "100%"
    if "percent" not in found:
        return "-"
    is_training = status.get("stage") == "Training" and found.get("eta") is not None
    return f"{found['percent']}%" + (f", {format_duration(found['eta'])} left" if is_training else "")


def describe_model(body: Object) -> str:
    """Return the model that is trained or served: a name on the hub, a URI, claim:path, or finetunejob/NAME."""
    source: Mapping[str, Any] = (body.get("spec") or {}).get("model") or {}
    if name := source.get("name") or source.get("uri"):
        return str(name)
    if claim := source.get("claim"):
        return f"{claim.get('name')}:{claim.get('path') or '/'}"
    job = (source.get("fineTuneJob") or {}).get("name")
    return f"finetunejob/{job}" if job else "-"


def find_digest(body: Object) -> str | None:
    """Return the digest of a job's artifact, and that of the artifact that a service serves as its model."""
    status = body.get("status") or {}
    if artifact := status.get("artifact"):
        return str(artifact.get("digest"))
    return next((str(each["digest"]) for each in status.get("models") or [] if each.get("digest")), None)


def find_endpoint(body: Object) -> str | None:
    """Return the URL of a service in the cluster."""
    return (body.get("status") or {}).get("url")


def parse_time(text: str | None) -> datetime | None:
    """Return a time of the API; None for anything else."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def format_age(body: Object, now: datetime) -> str:
    """Return the time since an object was created, such as 5d, 2h, 3m or 12s."""
    created = parse_time(body["metadata"].get("creationTimestamp"))
    seconds = max(0, int((now - created).total_seconds())) if created else 0
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def require_available(service: Object) -> None:
    """Raise ClientError, with the conditions' messages, unless the InferenceService is available."""
    title = f"InferenceService {service['metadata']['name']}"
    found = service.get("status", {}).get("conditions", [])
    conditions = [condition for condition in found if condition["type"] != "Ready"]  # Ready repeats the others
    if not conditions:
        raise ClientError(
            f"{title} has no status yet", "Wait a moment; if it stays so, check that Hone's operator runs."
        )
    if any(condition["type"] == "Available" and condition["status"] == "True" for condition in conditions):
        return
    reasons = [f"{one['type']}: {one['reason']}: {one['message']}" for one in conditions if one["status"] != "True"]
    raise ClientError(f"{title} is not available", "\n  ".join(reasons))


def require_artifact(job: Object) -> Object:
    """Return status.artifact of a job. Raises ClientError without one."""
    name, artifact = job["metadata"]["name"], (job.get("status") or {}).get("artifact")
    if not artifact:
        raise ClientError(
            f"FineTuneJob {name} has no artifact: its stage is {describe_phase(job)}",
            f"Follow it with `hone watch {name}`.",
        )
    found: Object = artifact
    return found
