"""Hone's side of a case: the trainer's own steps, from the manifest to the batches that the model is given."""

from pathlib import Path

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.layout import CHECKPOINTS
from hone_trainer import pipeline
from hone_trainer.config import device
from hone_trainer.distributed.process_group import ProcessGroup
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.preparation.prepare import prepare
from hone_trainer.progress.terminal import Terminal
from hone_trainer.runtime.errors import classify_error
from hone_trainer.tracking.trackers import Trackers
from parity.learned import Case, Learned, read_batches
from parity.tokenizing import TEMPLATES


def learn(case: Case, model: Path, folder: Path) -> Learned:
    """Return what Hone learns, in the output folder `folder`. Raises HoneError, under its name as in a run."""
    try:
        return _learn(case, model, folder)
    except Exception as error:
        raise classify_error(error) from error


def _learn(case: Case, model: Path, folder: Path) -> Learned:
    claim = folder / "claim"
    claim.mkdir(parents=True)
    (folder / CHECKPOINTS).mkdir()
    path = case.write(claim)
    dataset = {"claim": {"name": "data", "path": path.name}, "columns": case.columns, **case.options}
    if case.template is not None:
        dataset["chatTemplate"] = TEMPLATES[case.template]
    document = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "case"},
        "spec": {
            "method": "full",
            "model": {"claim": {"name": "model", "path": model.name}},
            "dataset": dataset,
            "resources": {"gpus": 0},
            "training": {"profile": "none", **case.training},
        },
    }
    inputs = JobInputs(FineTuneJob.model_validate(document), {"data": claim, "model": model.parent}, {}, {})
    terminal = Terminal(shown=False)
    prepared = prepare(inputs, folder, terminal, device.detect_device())
    run = pipeline.load_training_run(
        prepared, ProcessGroup(), inputs, folder, terminal, Trackers(folder, inputs.job.spec, {})
    )
    if run.metrics_log:
        run.metrics_log.close()
    return Learned(
        train=read_batches(run.trainer.get_train_dataloader()),
        evaluation=None if prepared.evaluation is None else read_batches(run.trainer.get_eval_dataloader()),
        first_row=prepared.segments,
        warnings=prepared.file.all_warnings,
    )
