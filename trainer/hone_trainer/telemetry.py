"""How the run goes: one state, that the HTTP server and the terminal read and the last word is made from."""

from datetime import UTC, datetime
from typing import Literal

from hone_api.reports import Parameters, Progress, ProgressReport, TerminationMessage

Stage = Literal["Preparing", "Training", "Saving"]


class Telemetry:
    """The latest state. Each field is replaced whole, so that other threads can read without a lock."""

    def __init__(self) -> None:
        self.stage: Stage = "Preparing"
        self.progress: Progress | None = None
        self.parameters: Parameters | None = None
        self.tokens = 0

    def report(self) -> ProgressReport:
        """The body of `GET /progress`."""
        return ProgressReport(stage=self.stage, progress=self.progress, parameters=self.parameters)

    def termination(self, message: TerminationMessage) -> TerminationMessage:
        """The last word, with the progress that was made."""
        return message.model_copy(update={"progress": self.progress, "parameters": self.parameters})


def now() -> str:
    """The time as RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
