"""The folder report/: the results of training, as a page for people (report.html) and as data (report.json).

It is next to the artifact and not part of its digest, since it contains durations, which would change the digest.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.artifacts.trainer_reports import TrackerReport
from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from hone_api.finetunejobs.training import TypedArguments
from hone_api.io.durable_files import write_atomically
from hone_api.layout import METRICS_LOG, REPORT
from hone_api.reasons import DISK_FULL
from pydantic.alias_generators import to_camel

from hone_trainer.config.auto_profile import Choice
from hone_trainer.preparation.prepare import Prepared
from hone_trainer.reporting.html import render_page
from hone_trainer.runtime.errors import classify_error
from hone_trainer.training import memory_usage
from hone_trainer.training.evaluation import EvaluationResult

MANIFEST, PROFILE, DEFAULT = "written in the manifest", "profile", "default of the library"


def write_report(root: Path, data: dict[str, Any]) -> list[str]:
    """Write both files, the page last. A failure other than a full disk is a warning: the artifact matters more.

    Raises HoneError DiskFull.
    """
    folder = root / REPORT
    try:
        folder.mkdir(exist_ok=True)
        write_atomically(folder / "report.json", json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
        write_atomically(folder / "report.html", render_page(data))
    except Exception as error:
        failure = classify_error(error)
        if failure.reason is DISK_FULL:
            raise failure from error
        return [f"{folder} can't be written: {failure.message}"]
    return []


def collect_report(
    root: Path,
    manifest: ArtifactManifest,
    prepared: Prepared,
    settings: list[dict[str, Any]],
    before: EvaluationResult,
    after: EvaluationResult,
    tracking: Sequence[TrackerReport] = (),
) -> dict[str, Any]:
    """Return all that the report shows, as JSON values."""
    wire, file, log = manifest.to_wire(), prepared.file.to_wire(), _read_log(root / METRICS_LOG)
    answers = [
        {
            "prompt": question.prompt,
            "before": _get_answer(before.answers, index),
            "after": _get_answer(after.answers, index),
        }
        for index, question in enumerate(prepared.questions)
    ]
    return {
        **{name: wire.get(name) for name in ("job", "kind", "digest", "baseModel", "datasetFingerprint")},
        "method": manifest.spec.get("method", "lora"),
        "metrics": manifest.metrics,
        "parameters": manifest.parameters,
        "evaluation": {"answers": answers},
        "dataset": file["dataset"],
        "warnings": prepared.file.all_warnings,
        "settings": settings,
        "memory": {"estimate": file["plan"].get("estimate"), "measured": find_memory_peaks(log)},
        "tracking": [report.to_wire() for report in tracking],
        "versions": manifest.versions,
        "spec": manifest.spec,
        "log": log,
    }


def _get_answer(answers: list[str], index: int) -> str | None:
    return answers[index] if index < len(answers) else None


def find_memory_peaks(log: list[dict[str, Any]]) -> dict[str, int]:
    """Return the maximum of each kind of memory that was logged, in bytes."""
    found = {name: [line[name] for line in log if line.get(name)] for name in memory_usage.MEMORY}
    return {to_camel(name): max(values) for name, values in found.items() if values}


def list_settings(spec: FineTuneJobSpec, args: Any, choices: list[Choice]) -> list[dict[str, Any]]:
    """Return name, value and source of each setting that decides the result; `args` is the SFTConfig in use."""
    written, why = spec.training.get_sft_arguments(), {choice.field: f"{PROFILE}: {choice.why}" for choice in choices}
    chosen = {choice.field: choice.value for choice in choices}
    names = [name for name in TypedArguments.model_fields if hasattr(args, name)]
    found = [
        (
            to_camel(name),
            written[name] if name in written else chosen.get(name, getattr(args, name, None)),
            MANIFEST if name in written else why.get(name, DEFAULT),
        )
        for name in dict.fromkeys([*names, *written, *chosen])
    ]
    if spec.method != "full":
        lora = spec.lora or LoraOptions()
        wire = lora.model_dump(by_alias=True)
        found += [
            (f"lora.{to_camel(name)}", wire[to_camel(name)], MANIFEST if name in lora.model_fields_set else DEFAULT)
            for name in type(lora).model_fields
        ]
    return [{"name": name, "value": _to_json(value), "source": source} for name, value, source in found]


def _to_json(value: Any) -> Any:
    """Return a value as JSON, and as text what JSON can't represent: infinity, objects of libraries."""
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except ValueError:
        return str(value)


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
