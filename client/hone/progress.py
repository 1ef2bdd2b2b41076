"""How far a FineTuneJob is, as the client reports it."""

from dataclasses import dataclass

from hone_api.io.terminal import make_printable

from hone.objects import job_progress
from hone.objects.views import Object

# Step and value.
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Progress:
    """A moment of a FineTuneJob. None: not known yet. `waiting`: why it does not run."""

    stage: str
    percent: int = 0
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    waiting: str | None = None
    figures: str = ""

    def __str__(self) -> str:
        parts = (self.stage, f"{self.percent}%", self.figures, self.waiting)
        return make_printable("  ".join(part for part in parts if part))


def read_progress(body: Object) -> Progress:
    """Return the progress in the status of a job."""
    status = body.get("status") or {}
    found = status.get("progress") or {}
    has_ended = job_progress.has_succeeded(body) is not None
    line = job_progress.make_progress_line(body)
    return Progress(
        stage=line.stage,
        percent=100 if line.stage == "Succeeded" else line.percent,
        step=found.get("step"),
        total_steps=found.get("totalSteps"),
        epoch=found.get("epoch"),
        loss=found.get("loss"),
        grad_norm=found.get("gradNorm"),
        learning_rate=found.get("learningRate"),
        tokens_per_second=found.get("tokensPerSecond"),
        eta_seconds=found.get("eta"),
        waiting=None if has_ended else line.waiting,
        figures=line.figures,
    )
