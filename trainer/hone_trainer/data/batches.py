"""How rows become batches and optimizer steps: which rows an epoch leaves out, and how many rows some steps have taken.

It is used after the rows are prepared, and again during training. It counts as torch's BatchSampler and accelerate's
BatchSamplerShard do: a batch that is not full is dropped with `dataloader_drop_last`, and so are the last batches that
only some of the processes get.
"""

from collections.abc import Sized
from dataclasses import dataclass

from hone_api.reasons import INVALID_SPEC, HoneError
from trl.trainer.sft_config import SFTConfig

FIELD = "spec.training.extra.dataloaderDropLast"


@dataclass(frozen=True)
class BatchCounts:
    """Rows in batches of `size` for each of several processes; an optimizer step takes `accumulation` batches."""

    rows: int
    size: int
    processes: int
    drops_last: bool
    accumulation: int = 1

    @property
    def per_process(self) -> int:
        """Batches that each process takes in an epoch."""
        if self.drops_last:
            return self.rows // self.size // self.processes
        return -(-self.rows // (self.size * self.processes))

    @property
    def taken(self) -> int:
        """Rows of an epoch that are in a batch."""
        return self.per_process * self.size * self.processes if self.drops_last else self.rows

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.per_process // self.accumulation)

    def count_rows(self, steps: int) -> int:
        """Return how many rows the first `steps` optimizer steps of a run take."""
        epochs, rest = divmod(steps, max(self.steps, 1))
        return epochs * self.taken + min(rest * self.accumulation * self.size * self.processes, self.taken)


def check_batches(train: Sized, evaluation: Sized | None, args: SFTConfig, processes: int) -> list[str]:
    """Return a warning for rows that no batch takes. Raises HoneError InvalidSpec when there is no batch."""
    found = [("to train on", train, args.per_device_train_batch_size, "perDeviceTrainBatchSize")]
    if evaluation is not None:
        found.append(("to evaluate on", evaluation, args.per_device_eval_batch_size, "perDeviceEvalBatchSize"))
    warnings = []
    for purpose, rows, size, field in found:
        batches = BatchCounts(len(rows), size, processes, args.dataloader_drop_last)
        on = f" on each of {processes} GPUs" if processes > 1 else ""
        if not batches.per_process:
            raise HoneError(
                INVALID_SPEC,
                f"{FIELD} is true, and the {len(rows)} rows {purpose} fill no batch of {size}{on}",
                remedy=f"Remove dataloaderDropLast, or lower spec.training.{field}.",
            )
        left_out = len(rows) - batches.taken
        if left_out:
            when = "each epoch" if purpose == "to train on" else "each evaluation"
            warnings.append(
                f"{FIELD} is true: {when} leaves out {left_out} of {len(rows)} rows {purpose}, which do not fill a "
                f"batch of {size}{on}"
            )
    return warnings
