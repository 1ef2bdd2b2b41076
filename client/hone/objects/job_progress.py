"""Describe a FineTuneJob's progress and result as text. Pure."""

from dataclasses import dataclass
from typing import Any

Job = dict[str, Any]


@dataclass(frozen=True)
class ProgressLine:
    """The parts of a progress line: the stage, percent done, the figures, and why it waits, if it does."""

    stage: str
    percent: int
    figures: str
    waiting: str | None


def make_progress_line(job: Job) -> ProgressLine:
    """Return the progress of a job that has not ended."""
    status = job.get("status") or {}
    progress = status.get("progress") or {}
    stage = status.get("stage") or "Pending"
    return ProgressLine(stage, progress.get("percent", 0), format_figures(progress), explain_waiting(job))


def format_figures(progress: dict[str, Any]) -> str:
    """Return the known figures, as in `step 40/120 · loss 1.2345 · 512 tokens/s · 3m 20s left`."""
    parts = []
    if "step" in progress:
        parts.append(f"step {progress['step']}/{progress.get('totalSteps', '?')}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if progress.get("tokensPerSecond") is not None:
        parts.append(f"{progress['tokensPerSecond']:,.0f} tokens/s")
    if progress.get("eta") is not None:
        parts.append(f"{format_duration(progress['eta'])} left")
    return " · ".join(parts)


def format_duration(seconds: float) -> str:
    """Return a duration as text, such as `2h 5m`, `3m 20s` or `12s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def explain_waiting(job: Job) -> str | None:
    """Return why the job does not run, by its conditions; None while it runs."""
    conditions = _read_conditions(job)
    if not conditions:
        return "no status yet; if it stays so, check that Hone's operator runs"
    for kind in ("Accepted", "Running"):
        condition = conditions.get(kind)
        if condition and condition["status"] != "True" and condition.get("message"):
            return f"{condition['reason']}: {_join_lines(condition['message'])}"
    return None


def has_succeeded(job: Job) -> bool | None:
    """Return True when the job succeeded, False when it failed, None while it has not ended."""
    stage = (job.get("status") or {}).get("stage")
    return {"Succeeded": True, "Failed": False}.get(str(stage))


def is_suspended(job: Job) -> bool:
    """Return whether the job is stopped, until somebody changes its spec. Queues suspend only what it is made of."""
    is_asked = bool((job.get("spec") or {}).get("suspend"))
    return is_asked and (job.get("status") or {}).get("stage") == "Suspended"


def describe_result(job: Job) -> list[str]:
    """Return the message for a job that succeeded."""
    status = job["status"]
    artifact = status.get("artifact") or {}
    lines = []
    if artifact:
        base = " ".join(str(artifact[key]) for key in ("baseModel", "baseRevision") if artifact.get(key))
        lines = [
            f"artifact  {artifact['kind']} on claim {artifact['claim']}, in folder {artifact['path']}",
            f"digest    {artifact['digest']}",
            f"base      {base}",
        ]
    lines += [f"{name}  {value:g}" for name, value in sorted((status.get("metrics") or {}).items())]
    return lines


def explain_failure(job: Job) -> str:
    """Return why a job failed: the reason, and the message, which ends with a remedy."""
    condition = _read_conditions(job).get("Failed") or {"reason": "Failed", "message": "the operator gave no reason"}
    return f"{condition['reason']}: {_join_lines(condition['message'])}"


def _join_lines(text: str) -> str:
    """Return a message without line feeds: a part that quotes data must not look like a line of the command."""
    return " ".join(text.split())


def _read_conditions(job: Job) -> dict[str, dict[str, Any]]:
    found = (job.get("status") or {}).get("conditions") or []
    return {one["type"]: one for one in found if one["status"] != "Unknown"}
