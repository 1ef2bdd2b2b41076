"""Results of the processes of a run, and the choice of the run's result: the cause, not its consequences. Pure.

`launcher` calls `pick_run_result` for the processes of its node; `coordinator` calls `find_root_cause_node` for the
results of all nodes.
"""

import signal
from dataclasses import dataclass
from typing import Literal

from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.artifacts.trainer_reports import Parameters, Progress, TrackerReports
from hone_api.common import ForeignModel
from hone_api.reasons import CATALOGUE, INTERNAL_ERROR, HoneError

from hone_trainer.runtime.errors import UnclassifiedError
from hone_trainer.runtime.signals import Interrupted


class WorkerResult(ForeignModel):
    """The result that a process writes when it ends.

    `reason` and `remedy` are set for a failure, `traceback` for one without a name. `killed`: it couldn't write a
    result.
    """

    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    reason: str = INTERNAL_ERROR.name
    message: str = ""
    remedy: str = ""
    traceback: str = ""
    killed: bool = False
    progress: Progress | None = None
    parameters: Parameters | None = None
    tracking: TrackerReports | None = None
    manifest: ArtifactManifest | None = None


@dataclass(frozen=True)
class ProcessExit:
    """How one process ended: `exit_code` is the exit status, negative for a signal, None when it had to be killed.

    `ended_at` is the time in seconds at which it wrote its result or ended.
    """

    rank: int
    exit_code: int | None
    ended_at: float
    result: WorkerResult | None


def pick_run_result(endings: list[ProcessExit]) -> WorkerResult:
    """Return the run's result. A written result outranks an exit code: some processes abort after their work is done.

    Of several failures, return the first that has a name: a process that loses its peer fails too, without a name.
    """
    return min(
        endings, key=lambda ending: (_get_precedence(ending), ending.ended_at)
    ).result or _make_result_of_silent_process(endings)


def _get_precedence(ending: ProcessExit) -> int:
    if ending.result is None:
        return 2 if ending.exit_code in (-signal.SIGTERM, -signal.SIGINT) else 5 if ending.exit_code is None else 3
    if ending.result.outcome == "Succeeded":
        return 0
    if ending.result.outcome == "Interrupted":
        return 2
    return 4 if is_unclassified(ending.result) else 1


def _make_result_of_silent_process(endings: list[ProcessExit]) -> WorkerResult:
    ending = min(endings, key=lambda found: (_get_precedence(found), found.ended_at))
    if ending.exit_code in (-signal.SIGTERM, -signal.SIGINT):
        return WorkerResult(outcome="Interrupted")
    if ending.exit_code is None:
        how = "does not end"
    elif ending.exit_code < 0:
        how = f"was killed by {signal.Signals(-ending.exit_code).name}"
    else:
        how = f"ended with exit code {ending.exit_code}"
    hint = ": the host's memory may be full" if ending.exit_code == -signal.SIGKILL else ""
    killed = ending.exit_code is not None and ending.exit_code < 0
    message = f"The process of rank {ending.rank} {how} and wrote no result{hint}"
    return WorkerResult(outcome="Failed", message=message, killed=killed)


def is_unclassified(result: WorkerResult) -> bool:
    """Return whether the result is a failure whose cause may be in another process."""
    return result.outcome == "Failed" and result.reason == INTERNAL_ERROR.name


def find_root_cause_node(results: dict[int, WorkerResult], first: int | None) -> int | None:
    """Return the node that caused all failures when none has a name: one with a killed process, else `first`.

    `first` is the node on which a process ended first. None: the result of some node is no failure, or one with a name.
    """
    if not all(is_unclassified(result) for result in results.values()):
        return None
    return next((node for node, result in results.items() if result.killed), first)


def make_node_result(own: WorkerResult, is_cause: bool, over: str) -> WorkerResult:
    """Return this node's result: Interrupted when another node caused its failure. `over` is why the run is over."""
    if is_cause or not is_unclassified(own):
        return own
    known = {"progress": own.progress, "parameters": own.parameters, "tracking": own.tracking}
    return WorkerResult(outcome="Interrupted", message=over, **known)


def raise_failure(result: WorkerResult) -> None:
    """Raise the failure in a result: HoneError, UnclassifiedError, or Interrupted."""
    if result.outcome == "Interrupted":
        raise Interrupted(result.message)
    if result.outcome == "Failed":
        if result.traceback:
            raise UnclassifiedError(result.message, result.traceback)
        raise HoneError(CATALOGUE[result.reason], result.message, remedy=result.remedy or None)
