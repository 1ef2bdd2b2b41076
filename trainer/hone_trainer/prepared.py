"""prepared/: the tokenized dataset and prepared.json. Training needs nothing else but the base model's files."""

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from hone_api.artifact import BaseModelReference
from hone_api.common import ForeignModel
from hone_api.datareport import DatasetReport
from hone_api.finetunejob import FineTuneJobSpec
from hone_api.layout import PREPARED
from pyarrow import ArrowException

from hone_trainer.data import Found
from hone_trainer.files import flush_tree, write_atomically
from hone_trainer.model import BaseModel
from hone_trainer.planning import DevicePlan

FILE = "prepared.json"
PACKAGES = ("hone", "transformers", "trl", "tokenizers", "datasets")
DECIDES_THE_DATA = (
    "max_length packing packing_strategy seed eos_token completion_only_loss assistant_only_loss extra".split()
)
"""Fields of spec.training that decide what the tokenized rows are."""
DECIDES_NOTHING_HERE = frozenset(
    "learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon "
    "logging_steps eval_steps neftune_noise_alpha".split()
)
"""Fields of spec.training that neither the rows, nor their warnings, the profile's choices and the estimate depend on.
Whatever is not listed makes the preparation start again, so that a new field can't be forgotten."""


class PreparedFile(ForeignModel):
    """The content of prepared.json."""

    fingerprint: str
    model: BaseModelReference
    dataset_fingerprint: str
    dataset: DatasetReport
    plan: DevicePlan
    warnings: list[str]
    versions: dict[str, str]

    def has_the_rows_of(self, plan: DevicePlan) -> bool:
        """Whether another plan needs the same rows."""
        return _rows_by(self.plan) == _rows_by(plan)

    @property
    def all_warnings(self) -> list[str]:
        """About the rows, and about the device."""
        return self.warnings + self.plan.warnings


def fingerprint(spec: FineTuneJobSpec, base: BaseModel, found: Found) -> str:
    """Of all that the preparation depends on: it is done again when this changes."""
    depends_on = {
        "model": [base.reference.to_wire(), base.digest, spec.model.trust_remote_code],
        "dataset": [found.fingerprint, spec.dataset.chat_template],
        "training": {name: value for name, value in spec.training if name not in DECIDES_NOTHING_HERE},
        "method": [spec.method, spec.lora and spec.lora.to_wire(), spec.model.dtype],
        "resources": [spec.resources.gpus, spec.resources.nodes],
        "versions": versions(),
    }
    return "sha256:" + hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of the packages that decide how rows are turned into tokens."""
    return {package: version(package) for package in PACKAGES}


def read(root: Path) -> PreparedFile | None:
    """prepared.json, when there is one that this version can read, with all rows that it reports."""
    path = root / PREPARED / FILE
    try:
        file = PreparedFile.model_validate_json(path.read_bytes())
        rows = open_datasets(root)
    except (OSError, ValueError, KeyError, TypeError, ArrowException):  # something was removed, or cut short
        return None
    reports = (file.dataset.train, file.dataset.evaluation)
    found = [None if part is None else len(part) for part in rows]
    return file if found == [None if report is None else report.kept_rows for report in reports] else None


def open_datasets(root: Path) -> tuple[Dataset, Dataset | None]:
    """The tokenized rows to train on, and those to evaluate on."""
    folder = root / PREPARED
    evaluation = load_from_disk(str(folder / "eval")) if (folder / "eval").is_dir() else None
    return load_from_disk(str(folder / "train")), evaluation


def write_plan(root: Path, file: PreparedFile, plan: DevicePlan) -> PreparedFile:
    """Put another plan into prepared.json; the rows stay."""
    found = file.model_copy(update={"plan": plan})
    write_atomically(root / PREPARED / FILE, found.model_dump_json(by_alias=True, indent=2))
    return found


def write(root: Path, fill: Callable[[Path], tuple[PreparedFile, Dataset, Dataset | None]]) -> PreparedFile:
    """Write prepared/ so that it is there whole or not at all. `fill` may keep files in the folder that it gets."""
    temporary = root / f".{PREPARED}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    scratch = temporary / "scratch"
    scratch.mkdir(parents=True)
    try:
        file, train, evaluation = fill(scratch)
        for name, rows in (("train", train), ("eval", evaluation)):
            if rows is not None:
                rows.save_to_disk(str(temporary / name))
        shutil.rmtree(scratch)
        write_atomically(temporary / FILE, file.model_dump_json(by_alias=True, indent=2))
        flush_tree(temporary)
        shutil.rmtree(root / PREPARED, ignore_errors=True)
        temporary.rename(root / PREPARED)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return file


def _rows_by(plan: DevicePlan) -> dict[str, Any]:
    return {choice.field: choice.value for choice in plan.profile if choice.field in DECIDES_THE_DATA}
