"""The progress of a run: one state, read by the HTTP server and the terminal.

Training writes it through `training.callbacks`; the termination message is made from it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.artifacts.memory_estimate import Estimate
from hone_api.artifacts.trainer_reports import (
    ArtifactSummary,
    Parameters,
    Progress,
    ProgressReport,
    TerminationMessage,
    TrackerReport,
)
from hone_api.layout import choose_base_model_name

from hone_trainer.progress.activity import read_activity

Stage = Literal["Preparing", "Training", "Saving"]


class ProgressState:
    """The latest state. Each field is replaced in one assignment, so that other threads can read without a lock."""

    def __init__(self) -> None:
        self.stage: Stage = "Preparing"
        self.progress: Progress | None = None
        self.parameters: Parameters | None = None
        self.estimate: Estimate | None = None
        self.tokens = 0
        self.read_trackers: Callable[[], list[TrackerReport] | None] = lambda: None

    def make_report(self) -> ProgressReport:
        """Return the body of `GET /progress`."""
        return ProgressReport(
            stage=self.stage,
            progress=self.progress,
            parameters=self.parameters,
            tracking=self.read_trackers(),
            activity=read_activity(),
        )

    def make_failed_message(self, reason: str, message: str) -> TerminationMessage:
        """Return the termination message of a failed run."""
        return self._complete_message(TerminationMessage(outcome="Failed", reason=reason, message=message))

    def make_interrupted_message(self, reason: str, message: str) -> TerminationMessage:
        """Return the termination message of a run that a signal stopped."""
        return self._complete_message(TerminationMessage(outcome="Interrupted", reason=reason, message=message))

    def make_prepared_message(self, summary: str) -> TerminationMessage:
        """Return the termination message of a preparation."""
        return self._complete_message(TerminationMessage(outcome="Succeeded", reason="Prepared", message=summary))

    def make_succeeded_message(self, manifest: ArtifactManifest) -> TerminationMessage:
        """Return the termination message of a run whose artifact is complete."""
        base = manifest.base_model
        artifact = ArtifactSummary(
            kind=manifest.kind,
            digest=manifest.digest,
            base_model=choose_base_model_name(base.name, base.claim, base.path or base.uri),
            base_revision=base.revision,
            base_config=manifest.base_config,
        )
        return self._complete_message(
            TerminationMessage(
                outcome="Succeeded",
                reason="Succeeded",
                message=f"Saved {manifest.kind}, digest {manifest.digest}",
                metrics=manifest.metrics,
                artifact=artifact,
            )
        )

    def _complete_message(self, message: TerminationMessage) -> TerminationMessage:
        known = {"progress": self.progress, "parameters": self.parameters, "estimate": self.estimate}
        return message.model_copy(update=known | {"tracking": self.read_trackers()})


def format_now() -> str:
    """Return the time in RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
