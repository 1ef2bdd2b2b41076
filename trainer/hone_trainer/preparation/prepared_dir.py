"""The folder prepared/: the tokenized rows and prepared.json. Training needs only these and the base model's files.

The folder is complete or absent. A fingerprint of everything that it depends on decides whether it is reused, and
checksums detect damage.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from hone_api.artifacts.dataset_report import DatasetReport
from hone_api.artifacts.manifest import BaseModelReference
from hone_api.common import ForeignModel
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.io.durable_files import flush_to_disk, remove_path, write_atomically
from hone_api.layout import PREPARED

from hone_trainer.models.base_model import BaseModel
from hone_trainer.preparation.device_plan import DevicePlan
from hone_trainer.runtime.checksums import CHECKSUM, FileChecksum, checksum_content, find_difference, flush_and_checksum

FILE = "prepared.json"
TRAIN, EVAL = "train", "eval"
PACKAGES = ("hone", "transformers", "trl", "tokenizers", "datasets")
# Fields of spec.training that decide the tokenized rows.
DECIDES_THE_DATA = (
    "max_length packing packing_strategy seed eos_token completion_only_loss assistant_only_loss extra".split()
)
# Fields of spec.training on which neither the rows and their warnings nor the profile's choices and the estimate
# depend. Every other field makes the preparation start again, so that a new field can't be forgotten.
DECIDES_NOTHING_HERE = frozenset(
    "learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon "
    "logging_steps eval_steps neftune_noise_alpha".split()
)


class PreparedFile(ForeignModel):
    """The content of prepared.json."""

    fingerprint: str
    model: BaseModelReference
    dataset_fingerprint: str
    dataset: DatasetReport
    plan: DevicePlan
    warnings: list[str]
    versions: dict[str, str]
    # Size and checksums of every file of the rows, by its path below prepared/.
    files: dict[str, FileChecksum]

    def has_the_rows_of(self, plan: DevicePlan) -> bool:
        """Return whether another plan needs the same rows."""
        return _list_row_fields(self.plan) == _list_row_fields(plan)

    @property
    def all_warnings(self) -> list[str]:
        """The warnings about the rows and about the device."""
        return self.warnings + self.plan.warnings


def make_fingerprint(spec: FineTuneJobSpec, base: BaseModel, dataset_fingerprint: str) -> str:
    """Return the digest of all that the preparation depends on: it is repeated when this changes."""
    depends_on = {
        "model": [base.reference.to_wire(), base.digest, spec.model.trust_remote_code],
        "dataset": [dataset_fingerprint, spec.chat_template],
        "training": {name: value for name, value in spec.training if name not in DECIDES_NOTHING_HERE},
        "method": [spec.method, spec.lora and spec.lora.to_wire(), spec.model.dtype],
        "resources": [spec.resources.gpus, spec.resources.nodes],
        "versions": read_package_versions(),
    }
    return "sha256:" + hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()


def read_package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide how rows are tokenized."""
    return {package: version(package) for package in PACKAGES}


def read_prepared_file(root: Path) -> PreparedFile | str | None:
    """Return prepared.json, what is wrong with it, or None when nothing was prepared yet."""
    path = root / PREPARED / FILE
    if not os.path.lexists(root / PREPARED):
        return None
    if not path.is_file():  # a FIFO would block the reader
        return f"{FILE} is missing"
    try:
        content = json.loads(path.read_bytes())
        if content.pop(CHECKSUM) != checksum_content(content):
            return f"{FILE} has other content than was written"
        return PreparedFile.model_validate(content)
    except OSError as error:
        return f"{FILE} can't be read: {error.strerror}"
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return f"{FILE} can't be understood"


def find_damage(root: Path, file: PreparedFile) -> str | None:
    """Return what is wrong with the rows that `file` describes; None when every byte is as it was written."""
    folder = root / PREPARED
    if (folder / EVAL).is_dir() and file.dataset.evaluation is None:
        return f"{EVAL} does not belong to it"
    try:
        return find_difference(folder, file.files)
    except OSError as error:
        return f"{error.filename or folder} can't be read: {error.strerror}"


def open_datasets(root: Path) -> tuple[Dataset, Dataset | None]:
    """Open the tokenized rows to train on, and those to evaluate on."""
    folder = root / PREPARED
    evaluation = load_from_disk(str(folder / EVAL)) if (folder / EVAL).is_dir() else None
    return load_from_disk(str(folder / TRAIN)), evaluation


def write_plan(root: Path, file: PreparedFile, plan: DevicePlan) -> PreparedFile:
    """Replace the plan in prepared.json; keep the rows."""
    found = file.model_copy(update={"plan": plan})
    _write_file(root / PREPARED, found)
    return found


def write_prepared(root: Path, fill: Callable[[Path], tuple[PreparedFile, Dataset, Dataset | None]]) -> PreparedFile:
    """Write prepared/, complete or not at all. `fill` may keep temporary files in the folder that it receives."""
    temporary = root / f".{PREPARED}.tmp"
    remove_path(temporary)
    scratch = temporary / "scratch"
    scratch.mkdir(parents=True)
    try:
        file, train, evaluation = fill(scratch)
        for name, rows in ((TRAIN, train), (EVAL, evaluation)):
            if rows is not None:
                rows.save_to_disk(str(temporary / name))
        shutil.rmtree(scratch)
        file = file.model_copy(update={"files": flush_and_checksum(temporary)})
        _write_file(temporary, file)
        remove_path(root / PREPARED)
        temporary.rename(root / PREPARED)
        flush_to_disk(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return file


def _write_file(folder: Path, file: PreparedFile) -> None:
    content = file.model_dump(mode="json", by_alias=True)
    content[CHECKSUM] = checksum_content(content)
    write_atomically(folder / FILE, json.dumps(content, indent=2))


def _list_row_fields(plan: DevicePlan) -> dict[str, Any]:
    return {choice.field: choice.value for choice in plan.profile if choice.field in DECIDES_THE_DATA}
