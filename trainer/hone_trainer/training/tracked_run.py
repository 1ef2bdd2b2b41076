"""What experiment trackers are told about a run: its settings and tags once, then each line that training logs.

`pipeline` gives the record to `tracking.trackers` and adds the callback to the trainer. The callback only appends to
the journal, so a tracker costs training the time of writing a line.
"""

import hashlib
import json
from typing import Any
from uuid import uuid4

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.layout import choose_base_model_name
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hone_trainer.preparation.prepare import Prepared
from hone_trainer.tracking.journal import Journal
from hone_trainer.tracking.record import RunRecord
from hone_trainer.training.trainer import HoneTrainer


class JournalCallback(TrainerCallback):
    """Appends what is logged to the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "train_runtime" not in logs:  # the summary of this one start
            values = {name: value for name, value in logs.items() if name != "epoch"}
            self._journal.add(state.global_step, state.epoch or 0.0, values)


def make_record(job: FineTuneJob, prepared: Prepared, trainer: HoneTrainer) -> RunRecord:
    """Describe a run. Its tags are the same in all starts, and others when the spec or the data has changed."""
    base = prepared.base.reference
    tags = {
        "hone.job": job.name,
        "hone.digest": digest_spec(job),
        "hone.base": choose_base_model_name(base.name, base.claim, base.path or base.uri),
        "hone.commit": base.revision,
        "hone.dataset": prepared.file.dataset_fingerprint,
    }
    arguments: Any = trainer.args
    network: Any = trainer.accelerator.unwrap_model(trainer.model)
    adapter = network.peft_config["default"].to_dict() if isinstance(network, PeftModel) else None
    return RunRecord(
        id=uuid4().hex[:16],
        name=job.name,
        tags={name: value for name, value in tags.items() if value},
        arguments=_to_json(arguments.to_dict()),
        model=_to_json(network.config.to_dict()),
        adapter=_to_json(adapter),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def digest_spec(job: FineTuneJob) -> str:
    """Return the digest of what decides the result."""
    return "sha256:" + hashlib.sha256(json.dumps(job.spec.drop_unpublished(), sort_keys=True).encode()).hexdigest()


def _to_json(value: Any) -> Any:
    """Return a value as JSON, and as text what JSON can't represent."""
    return json.loads(json.dumps(value, default=str))
