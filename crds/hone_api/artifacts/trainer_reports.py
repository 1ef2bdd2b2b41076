"""The trainer's reports: its progress while it runs (HTTP), and its result at the end (the termination message)."""

import re
from bisect import bisect_right
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import from_json

from hone_api.artifacts.manifest import ArtifactKind, BaseConfig
from hone_api.artifacts.memory_estimate import Estimate
from hone_api.common import ForeignModel
from hone_api.figures import Figures, keep_finite
from hone_api.io.terminal import make_encodable

# The kubelet cuts a termination message after this many bytes.
TERMINATION_MESSAGE_BYTES = 4096


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
# What every reader of JSON takes as it is.
LARGEST_COUNT = 2**53 - 1
# Seconds. More than thirty years is no estimate.
LONGEST_ETA = 10**9
# Characters of the line about a download.
LONGEST_ACTIVITY = 1024

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]


def _keep_moment(value: Any) -> Any:
    """Return a moment in RFC 3339; None for anything else, and for a moment that no machine's clock can show."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return value if 1970 <= moment.year < 2200 else None


def _keep_eta(value: Any) -> Any:
    return value if isinstance(value, int) and 0 <= value <= LONGEST_ETA else None


class Progress(ForeignModel):
    """How far training is. `eta` is in seconds, `updatedAt` RFC 3339."""

    step: Count = Field(description="Optimizer steps done.")
    total_steps: Count = Field(description="Optimizer steps in all.")
    epoch: float | None = Field(None, description="Epochs done.")
    loss: float | None = Field(None, description="Training loss at the last log.")
    grad_norm: float | None = Field(None, description="Gradient norm at the last log.")
    learning_rate: float | None = Field(None, description="Learning rate at the last log.")
    tokens_per_second: float | None = Field(None, description="Trained tokens a second, all processes together.")
    samples_per_second: float | None = Field(None, description="Rows a second, all processes together.")
    percent: Annotated[int, Field(ge=0, le=100)] = Field(0, description="Share of the steps done.")
    eta: Annotated[int | None, BeforeValidator(_keep_eta)] = Field(None, description="Seconds left.")
    updated_at: Annotated[str | None, BeforeValidator(_keep_moment)] = Field(
        None, description="When this was measured (RFC 3339).", json_schema_extra={"format": "date-time"}
    )

    observed_at: str | None = Field(
        None,
        description="When the operator first observed this step (RFC 3339).",
        json_schema_extra={"format": "date-time"},
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_not_finite(cls, data: Any) -> Any:
        return keep_finite(data)


class Parameters(ForeignModel):
    """How many parameters there are."""

    trainable: Count = Field(description="Parameters that training changes.")
    total: Count = Field(description="All parameters, those of the adapter included.")

    def describe(self) -> str:
        """Return the numbers as PEFT prints them."""
        share = 100 * self.trainable / self.total
        return f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {share:.4f}"


class TrackerReport(ForeignModel):
    """How far an experiment tracker is."""

    name: Annotated[str, Field(max_length=32)] = Field(description="mlflow, wandb or trackio.")
    url: Annotated[str | None, Field(max_length=2048)] = Field(None, description="The run's page.")
    unsent: Count = Field(0, description="Logged lines that the tracker has not confirmed.")
    message: Annotated[str, Field(max_length=1024), BeforeValidator(make_encodable)] | None = Field(
        None, description="What happened last, when lines are missing."
    )


TrackerReports = Annotated[list[TrackerReport], Field(max_length=8)]


class ProgressReport(ForeignModel):
    """The body of `GET /progress`."""

    stage: Literal["Preparing", "Training", "Saving"]
    progress: Progress | None = None
    parameters: Parameters | None = None
    tracking: TrackerReports | None = None
    # A line about a download, or about what it waits for.
    activity: Annotated[str, Field(max_length=LONGEST_ACTIVITY), BeforeValidator(make_encodable)] | None = None


class ArtifactSummary(ForeignModel):
    """What the operator must know of an artifact, without reading the claim."""

    kind: ArtifactKind
    digest: str
    base_model: str
    base_revision: str | None = None
    base_config: BaseConfig | None = None


class PushResult(ForeignModel):
    """What came of one destination of spec.output.push, counted from 0. `reason`: None where the artifact is there.

    Addresses are left out, since several of them may not fit into a termination message.
    """

    index: Count
    revision: str | None = None
    reason: str | None = None
    message: Annotated[str, BeforeValidator(make_encodable)] = ""


class TerminationMessage(ForeignModel):
    """The trainer's termination message, in at most TERMINATION_MESSAGE_BYTES bytes of JSON."""

    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    reason: str
    message: Annotated[str, BeforeValidator(make_encodable)]
    # The first fields survive if the kubelet cuts the message shorter than the trainer can know.
    pushed: list[PushResult] | None = None
    artifact: ArtifactSummary | None = None
    progress: Progress | None = None
    parameters: Parameters | None = None
    estimate: Estimate | None = None
    metrics: Figures = Field({})
    tracking: TrackerReports | None = None

    @classmethod
    def recover(cls, text: str) -> "TerminationMessage | None":
        """Return the complete fields of a cut message, and what is left of its sentence; None if nothing is readable.

        The kubelet keeps 12288 bytes for all containers of a pod together, so with many sidecars it cuts each message.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            pass
        try:
            found = from_json(text, allow_partial="trailing-strings")
        except ValueError:
            return None
        if not isinstance(found, dict) or not isinstance(found.get("message", ""), str):
            return None
        last = next(reversed(found), None)
        if last in ("outcome", "reason"):  # the end may be missing
            return None
        if last == "message":
            found["message"] = f"{found['message'].rstrip()} …"
        else:
            found.pop(last, None)
        essential = {name: found.pop(name) for name in ("outcome", "reason", "message") if name in found}
        for name in list(found):
            try:
                cls.model_validate(essential | {name: found[name]})
            except ValidationError:
                del found[name]
        try:
            return cls.model_validate(essential | found)
        except ValidationError:
            return None

    def to_bytes(self) -> bytes:
        """Return JSON that fits: a message that is too long loses its end, and if that is not enough, its metrics."""
        whole = self._encoded()
        if len(whole) <= TERMINATION_MESSAGE_BYTES:
            return whole
        lengths = range(len(self.message))
        kept = (
            bisect_right(lengths, TERMINATION_MESSAGE_BYTES, key=lambda length: len(self._cut(length)._encoded())) - 1
        )
        return self._cut(kept)._encoded() if kept >= 0 else self.model_copy(update={"metrics": {}}).to_bytes()

    def _cut(self, length: int) -> "TerminationMessage":
        return self.model_copy(update={"message": self.message[:length].rstrip() + " …"})

    def _encoded(self) -> bytes:
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()
