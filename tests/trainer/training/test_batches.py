"""How many batches, steps and rows an epoch has, compared with those that torch and accelerate make."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from hone_api.reasons import HoneError
from hone_trainer.data.batches import BatchCounts
from hone_trainer.pipeline import refuse_incomplete
from hone_trainer.storage.checkpoints import RunTotals
from torch.utils.data import BatchSampler

Job = Callable[..., dict[str, Any]]
DROPS = {"extra": {"dataloaderDropLast": True}, "profile": "none"}


@pytest.mark.parametrize("drops_last", [False, True])
def test_an_epoch_has_the_batches_that_the_samplers_make(drops_last: bool) -> None:
    for rows, size, processes in itertools.product(range(1, 20), (1, 2, 3, 8), (1, 2, 3)):
        batches = BatchCounts(rows, size, processes, drops_last)
        shards = [
            BatchSamplerShard(BatchSampler(range(rows), size, drops_last), num_processes=processes, process_index=index)
            for index in range(processes)
        ]
        made = [list(shard) for shard in shards]
        assert {len(found) for found in made} == {batches.per_process} == {len(shard) for shard in shards}
        assert len({row for found in made for batch in found for row in batch}) == batches.taken


def test_the_rows_of_a_number_of_steps_are_those_of_their_batches() -> None:
    for rows, size, accumulation, drops_last in itertools.product(range(1, 12), (1, 2, 3), (1, 2, 3), (False, True)):
        batches = BatchCounts(rows, size, 1, drops_last, accumulation)
        epoch = [len(batch) for batch in BatchSampler(range(rows), size, drops_last)]
        steps = [sum(epoch[at : at + accumulation]) for at in range(0, len(epoch), accumulation)]
        assert batches.steps == len(steps)
        for count in range(2 * len(steps) + 1):
            assert batches.count_rows(count) == sum((steps * 2)[:count])


@pytest.mark.parametrize(
    ("training", "dataset", "found", "remedy"),
    [
        ({"perDeviceTrainBatchSize": 25}, {}, "24 rows to train on fill no batch of 25", "perDeviceTrainBatchSize"),
        (
            {"maxSteps": None, "numTrainEpochs": 1, "perDeviceTrainBatchSize": 64},
            {},
            "24 rows to train on fill no batch of 64",
            "perDeviceTrainBatchSize",
        ),
        ({}, {"evalFraction": 0.25}, "6 rows to evaluate on fill no batch of 8", "perDeviceEvalBatchSize"),
    ],
)
def test_too_few_rows_for_a_batch_are_refused_before_training(
    job: Job, train: Callable[..., Any], training: dict[str, Any], dataset: dict[str, Any], found: str, remedy: str
) -> None:
    claim = {"claim": {"name": "claim", "path": "text.jsonl"}}
    refused = train(job(training={**DROPS, **training}, dataset=claim | dataset), command="prepare")
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec"), refused.log
    assert found in refused.message["message"]
    assert remedy in refused.message["message"]


def test_rows_that_an_epoch_leaves_out_are_reported_at_every_start(job: Job, train: Callable[..., Any]) -> None:
    document = job(training={**DROPS, "perDeviceTrainBatchSize": 7, "maxSteps": None, "numTrainEpochs": 1})
    first = train(document, command="prepare")
    done = train(document, output=first.output)
    assert done.code == 0, done.log
    for log in (first.log, done.log):
        assert "each epoch leaves out 3 of 24 rows to train on, which do not fill a batch of 7" in log
    assert done.message["progress"]["step"] == 3


def test_training_that_ends_early_is_a_failure() -> None:
    account = RunTotals(
        step=3, total_steps=4, tokens=0, runtime=0, samples=0, loss_sum=0, loss_since_log=0, last_logged_step=0
    )
    with pytest.raises(HoneError, match="ended after step 3 of 4"):
        refuse_incomplete(account)
