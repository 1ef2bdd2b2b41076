"""Decide whether a FineTuneJob can be suspended or resumed, and what that does. Pure."""

from hone.errors import ClientError
from hone.objects import job_progress
from hone.objects.names import JOB, SERVICE, parse_name, parse_reference
from hone.objects.views import Object, describe_phase


def parse_job(text: str, command: str) -> str:
    """Return the job's name. Raises ClientError for a service, with the command that stops its engines."""
    kind, name = parse_reference(text)
    if kind is SERVICE:
        count = "0" if command == "suspend" else "1"
        raise ClientError(
            f"{text}: an InferenceService can't be {command}ed"
            if command == "suspend"
            else f"{text}: an InferenceService can't be resumed",
            f"Change the number of its engines: kubectl scale hisvc {name} --replicas {count}",
        )
    return parse_name(text, JOB, command)


def plan_change(job: Object, *, suspend: bool) -> tuple[bool, str]:
    """Return whether spec.suspend changes, and the message. Raises ClientError for a job that has ended."""
    name, stage = job["metadata"]["name"], describe_phase(job)
    if job_progress.has_succeeded(job) is not None:
        raise ClientError(
            f"FineTuneJob {name} has ended: its stage is {stage}", "Nothing is left to suspend or resume."
        )
    is_suspended = bool((job.get("spec") or {}).get("suspend"))
    if is_suspended == suspend:
        return False, f"FineTuneJob {name} is {'already' if suspend else 'not'} suspended; nothing was changed."
    if suspend:
        return True, f"✓ FineTuneJob {name} is being suspended: the trainer saves a checkpoint and frees its GPUs."
    step = ((job.get("status") or {}).get("progress") or {}).get("step")
    where = f" from step {step}" if step else ""
    return True, f"✓ FineTuneJob {name} resumes{where} as soon as it has a node."
