"""The report of `hone describe`: what an object is, what happened to it in order, and its children. Pure.

In: the object, its children, and the events about all of them. Out: lines of text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hone.objects import job_progress, views
from hone.objects.table import align_columns
from hone.objects.views import Object

NEVER = datetime.min.replace(tzinfo=UTC)
# Conditions that repeat the others, for tools.
REPEATED = ("Ready", "Reconciling", "Stalled")


@dataclass(frozen=True)
class Surroundings:
    """The children of an object and the events about it and them. `unread`: what could not be read, and why."""

    children: Sequence[Object] = ()
    events: Sequence[Object] = ()
    unread: Sequence[str] = ()


@dataclass(frozen=True, order=True)
class Moment:
    """Something that happened."""

    time: datetime
    text: str = field(compare=False)


def describe_object(body: Object, around: Surroundings, now: datetime) -> list[str]:
    """Return the full report."""
    metadata = body["metadata"]
    lines = [f"{body['kind']} {metadata['name']} in namespace {metadata.get('namespace')}"]
    lines += [f"  {line}" for line in align_columns([(f"{name}:", value) for name, value in _list_facts(body, now)])]
    lines += ["", "What happened:"]
    lines += [
        f"  {_format_time(moment.time)}  {' '.join(moment.text.split())}"
        for moment in find_moments(body, around.events)
    ]
    lines += ["", "Children:"]
    rows = [_describe_child(child) for child in around.children]
    lines += [f"  {line}" for line in align_columns(rows)] if rows else ["  none"]
    lines += [f"  not shown: {text}" for text in around.unread]
    if conclusion := _describe_outcome(body):
        lines += ["", *conclusion]
    return lines


def find_moments(body: Object, events: Iterable[Object]) -> list[Moment]:
    """Return what happened, in order: creation, conditions, attempts of the trainer, and events; each once."""
    metadata, status = body["metadata"], body.get("status") or {}
    found = [Moment(_parse_time(metadata.get("creationTimestamp")), "created")]
    for condition in status.get("conditions") or []:
        if condition.get("type") not in REPEATED:
            text = f"{condition.get('type')} is {condition.get('status')}: {_format_reason(condition)}"
            found.append(Moment(_parse_time(condition.get("lastTransitionTime")), text))
    for number, attempt in enumerate(status.get("attempts") or [], 1):
        found += _describe_attempt(number, attempt)
    if finished := status.get("completionTime"):
        found.append(Moment(_parse_time(finished), f"the job ended: {views.describe_phase(body)}"))
    if deleted := metadata.get("deletionTimestamp"):
        found.append(Moment(_parse_time(deleted), "deletion was requested"))
    reported = {(condition.get("reason"), condition.get("message")) for condition in status.get("conditions") or []}
    for event in events:
        if (event.get("reason"), event.get("message")) not in reported:  # the operator writes both
            found.append(Moment(find_event_time(event), _describe_event(event)))
    return sorted(found)


def find_event_time(event: Object) -> datetime:
    """Return when an event last happened: the field depends on the API that its reporter uses."""
    moments = (
        (event.get("series") or {}).get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    )
    return max(map(_parse_time, moments))


def _list_facts(body: Object, now: datetime) -> list[tuple[str, str]]:
    status, spec = body.get("status") or {}, body.get("spec") or {}
    found = [
        ("phase", views.describe_phase(body)),
        ("progress", job_progress.format_figures(status.get("progress") or {}) or views.describe_progress(body)),
        ("age", views.format_age(body, now)),
        ("model", views.describe_model(body)),
    ]
    if body["kind"] == "FineTuneJob":
        found.append(("method", str(spec.get("method") or "lora")))
        if artifact := status.get("artifact"):
            found.append(
                ("artifact", f"{artifact.get('kind')} on claim {artifact.get('claim')}: {artifact.get('path')}")
            )
        found += _list_pushes(body)
        if status.get("gpuSeconds"):
            found.append(("GPU seconds", str(status["gpuSeconds"])))
    else:
        found.append(("engine", str(spec.get("engine") or "auto")))
        names = [f"{each.get('name')} ({each.get('kind')})" for each in status.get("models") or []]
        found.append(("serves", ", ".join(names) or "-"))
        found.append(("endpoint", views.find_endpoint(body) or "-"))
    return [*found, ("digest", views.find_digest(body) or "-")]


def _list_pushes(body: Object) -> list[tuple[str, str]]:
    """Return each destination of the artifact, and what came of the push to it."""
    found = []
    for push in (body.get("status") or {}).get("pushes") or []:
        revision = f", {push['revision']}" if push.get("revision") else ""
        state = f"complete{revision}" if push.get("digest") else _format_reason(push) or "not pushed yet"
        found.append(("push", " ".join(f"{push.get('address')}: {state}".split())))
    return found


def _describe_attempt(number: int, attempt: Object) -> list[Moment]:
    where = f" on node {attempt['node']}" if attempt.get("node") else ""
    found = [
        Moment(_parse_time(attempt.get("startTime")), f"attempt {number}: pod {attempt.get('pod')} started{where}")
    ]
    if ended := attempt.get("endTime"):
        text = f"attempt {number} ended after {job_progress.format_duration(attempt.get('seconds') or 0)}"
        text += f": {attempt.get('reason') or 'no reason'}"
        text += f", exit code {attempt['exitCode']}" if "exitCode" in attempt else ""
        found.append(Moment(_parse_time(ended), text))
    return found


def _describe_event(event: Object) -> str:
    about = event.get("involvedObject") or event.get("regarding") or {}
    count = event.get("count") or (event.get("series") or {}).get("count") or 1
    times = f" ({count} times)" if count > 1 else ""
    mark = "! " if event.get("type") == "Warning" else ""
    return f"{mark}{about.get('kind')}/{about.get('name')}: {_format_reason(event)}{times}"


def _describe_child(child: Object) -> tuple[str, str]:
    name = f"{str(child.get('kind')).lower()}/{child['metadata']['name']}"
    return name, describe_state(child)


def describe_state(child: Object) -> str:
    """Return the state of a Job, a Deployment, a pod or a claim."""
    status = child.get("status") or {}
    if child.get("kind") == "Job":
        ended = next((each for each in status.get("conditions") or [] if each.get("status") == "True"), None)
        counts = ", ".join(f"{status[name]} {name}" for name in ("active", "succeeded", "failed") if status.get(name))
        return f"{ended['type']} ({counts})" if ended and counts else ended["type"] if ended else counts or "no pod yet"
    if child.get("kind") == "Deployment":
        return f"{status.get('readyReplicas') or 0} of {(child.get('spec') or {}).get('replicas') or 0} ready"
    if child.get("kind") == "PersistentVolumeClaim":
        return f"{status.get('phase') or 'Pending'}, {(status.get('capacity') or {}).get('storage') or 'no size yet'}"
    restarts = sum(each.get("restartCount") or 0 for each in status.get("containerStatuses") or [])
    node = (child.get("spec") or {}).get("nodeName")
    parts = [str(status.get("phase") or "Unknown"), f"on {node}" if node else "on no node"]
    return ", ".join(parts + ([f"{restarts} restarts"] if restarts else []))


def _describe_outcome(body: Object) -> list[str]:
    if body["kind"] == "FineTuneJob":
        ended = job_progress.has_succeeded(body)
        if ended is False:
            return [f"✗ {job_progress.explain_failure(body)}"]
        waiting = None if ended else job_progress.explain_waiting(body)
        pushed = views.find_condition(body, "Pushed")
        if pushed and pushed.get("status") != "True":
            return [f"It is not pushed: {' '.join(_format_reason(pushed).split())}"]
        return [f"It waits: {waiting}"] if waiting else []
    wrong = [
        f"{each['type']} is {each['status']}: {_format_reason(each)}"
        for each in (body.get("status") or {}).get("conditions") or []
        if each.get("type") in ("Accepted", "ArtifactsResolved", "Available", "Synced") and each.get("status") != "True"
    ]
    return [] if views.is_true(body, "Available") else ["It does not answer:", *(f"  {text}" for text in wrong)]


def _format_reason(found: Object) -> str:
    return ": ".join(str(found[name]) for name in ("reason", "message") if found.get(name))


def _parse_time(text: str | None) -> datetime:
    return views.parse_time(text) or NEVER


def _format_time(time: datetime) -> str:
    return " " * 20 if time == NEVER else time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
