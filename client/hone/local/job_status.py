"""The status of a FineTuneJob on this machine, in the form that the operator writes. Pure."""

from pathlib import Path
from typing import Any

from hone_api.artifacts.trainer_reports import TerminationMessage

from hone.local.trainer_process import Observed
from hone.objects.views import Object

PLACE = "this machine"


def make_status(observed: Observed, output: Path, log: Path) -> Object:
    """Return the status of a job whose trainer was observed."""
    status: Object = {"startTime": observed.started_at}
    if observed.is_running:
        report = observed.report
        status |= {
            "stage": report.stage if report else "Pending",
            "conditions": [_make_condition("Running", "Started")],
        }
        if report and report.progress:
            status["progress"] = report.progress.to_wire()
        return status
    result = observed.result
    if result is None:
        code = "" if observed.exit_code is None else f" with exit code {observed.exit_code}"
        message = f"The trainer ended{code} and wrote no result. See its log: {log}"
        return status | {"stage": "Failed", "conditions": [_make_condition("Failed", "TrainerEnded", message)]}
    if result.progress:
        status["progress"] = result.progress.to_wire()
    return status | _describe_result(result, output)


def _describe_result(result: TerminationMessage, output: Path) -> Object:
    if result.outcome == "Interrupted":
        message = f"{result.message} Start it again with resume()."
        return {"stage": "Suspended", "conditions": [_make_condition("Suspended", result.reason, message)]}
    if result.outcome == "Failed":
        return {"stage": "Failed", "conditions": [_make_condition("Failed", result.reason, result.message)]}
    found: Object = {
        "stage": "Succeeded",
        "metrics": dict(result.metrics),
        "conditions": [_make_condition("Succeeded", result.reason, result.message)],
    }
    if result.artifact:
        found["artifact"] = result.artifact.to_wire() | {"claim": PLACE, "path": str(output)}
    return found


def _make_condition(kind: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}
