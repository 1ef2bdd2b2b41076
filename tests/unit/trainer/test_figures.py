"""Any measured value is written as standard JSON, and no finished run is lost because of a value."""

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hone_api.artifacts.manifest import (
    ArtifactManifest,
    BaseModelReference,
    compute_files_digest,
    read_manifest,
    write_manifest,
)
from hone_api.artifacts.trainer_reports import ArtifactSummary, Progress, ProgressReport, TerminationMessage
from hone_trainer.distributed.results import WorkerResult
from hone_trainer.progress.http_server import TrainerCollector
from hone_trainer.progress.state import ProgressState
from hone_trainer.runtime.errors import classify_error
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

FIGURES = st.floats(allow_nan=True, allow_infinity=True)
METRICS = st.dictionaries(st.text("abcXYZ", min_size=1, max_size=8), FIGURES, max_size=6)
MEASURED = ("epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second", "samples_per_second")
PROGRESS = st.fixed_dictionaries({name: st.none() | FIGURES for name in MEASURED})


def strict(text: str | bytes) -> Any:
    """Parse JSON as other languages do."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def make_manifest(metrics: dict[str, float]) -> ArtifactManifest:
    return ArtifactManifest(
        kind="adapter",
        job="job",
        digest=compute_files_digest({}),
        base_model=BaseModelReference(name="a/b"),
        dataset_fingerprint="0",
        files={},
        metrics=metrics,
        parameters={},
        versions={},
        spec={},
    )


@given(METRICS, PROGRESS)
def test_the_termination_message_is_read_as_it_was_written(metrics: dict[str, float], values: dict[str, Any]) -> None:
    said = TerminationMessage(
        outcome="Succeeded",
        reason="Succeeded",
        message="done",
        metrics=metrics,
        progress=Progress(step=1, total_steps=2, **values),
        artifact=ArtifactSummary(kind="adapter", digest="sha256:0", base_model="a/b"),
    )
    assert strict(said.to_bytes())["artifact"]["digest"] == "sha256:0"
    heard = TerminationMessage.model_validate_json(said.to_bytes())
    assert heard == said
    assert heard.metrics == finite(metrics)
    assert heard.progress
    assert heard.progress.model_dump(include=set(values), exclude_none=True) == finite(values)


@given(METRICS)
def test_null_and_nan_in_a_message_are_left_out(metrics: dict[str, float]) -> None:
    message = {"outcome": "Succeeded", "reason": "Succeeded", "message": "", "metrics": metrics}
    assert TerminationMessage.model_validate(message).metrics == finite(metrics)
    nulls = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    text = json.dumps(message | {"metrics": nulls})
    assert TerminationMessage.model_validate_json(text).metrics == finite(metrics)


@given(METRICS, PROGRESS)
def test_the_result_of_a_worker_reaches_the_launcher(metrics: dict[str, float], values: dict[str, Any]) -> None:
    progress = Progress(step=1, total_steps=2, **values)
    said = WorkerResult(outcome="Succeeded", manifest=make_manifest(metrics), progress=progress)
    strict(said.model_dump_json())
    assert WorkerResult.model_validate_json(said.model_dump_json()) == said


@given(PROGRESS)
def test_progress_and_prometheus_hold_finite_figures_only(values: dict[str, Any]) -> None:
    telemetry = ProgressState()
    telemetry.progress = Progress(step=1, total_steps=2, **values)
    report = telemetry.make_report().model_dump_json(by_alias=True, exclude_none=True)
    strict(report)
    assert ProgressReport.model_validate_json(report).progress == telemetry.progress
    registry = CollectorRegistry()
    registry.register(TrainerCollector(telemetry))
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert all(math.isfinite(float(line.rpartition(" ")[2])) for line in lines)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_manifest_is_json(tmp_path: Path, value: float) -> None:
    write_manifest(tmp_path, make_manifest({"evalLossAfter": value, "trainLoss": 1.5}))
    assert strict((tmp_path / "manifest.json").read_bytes())["metrics"] == {"trainLoss": 1.5}
    assert read_manifest(tmp_path).metrics == {"trainLoss": 1.5}


def test_what_an_exception_hides_is_not_its_cause() -> None:
    def fail(hide: bool) -> BaseException:
        try:
            try:
                raise OSError(errno.ENOSPC, "a full disk")
            except OSError as error:
                if hide:
                    raise ValueError("a bad value") from None
                raise ValueError("a bad value") from error
        except ValueError as error:
            return error

    assert classify_error(fail(hide=True)).reason.name == "InternalError"
    assert classify_error(fail(hide=False)).reason.name == "DiskFull"
