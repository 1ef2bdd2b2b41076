"""Check that training can begin with the prepared rows, by making everything that it makes of arguments and rows.

This runs at every start, even if rows were prepared earlier: arguments that rows do not depend on may have changed.
"""

from collections.abc import Sized

from hone_api.finetunejobs.spec import FineTuneJobSpec
from trl.trainer.sft_config import SFTConfig

from hone_trainer.checks import trials
from hone_trainer.data.batches import BatchCounts, check_batches


def count_processes(spec: FineTuneJobSpec) -> int:
    """Return how many processes train together."""
    return max(1, spec.resources.gpus) * spec.resources.nodes


def rehearse(train: Sized, evaluation: Sized | None, args: SFTConfig, spec: FineTuneJobSpec) -> list[str]:
    """Return warnings about rows that are not used. Raises HoneError InvalidSpec when training could not begin."""
    processes = count_processes(spec)
    warnings = check_batches(train, evaluation, args, processes)
    batches = BatchCounts(
        rows=len(train),
        size=args.per_device_train_batch_size,
        processes=processes,
        drops_last=args.dataloader_drop_last,
        accumulation=args.gradient_accumulation_steps,
    )
    return warnings + trials.check_steps(train, evaluation, args, batches.steps)
