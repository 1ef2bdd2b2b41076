"""What prepare accepts can be trained with: arguments that libraries check late are refused early, by their field."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hone_api.finetunejobs.training import EXTRA_FIELDS
from long_matrix import sample

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
HELD_OUT = {"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.25}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("lrSchedulerType", {"lrSchedulerType": "cosine_with_min_lr"}),
    ("lrSchedulerType", {"lrSchedulerType": "cosine_warmup_with_min_lr"}),
    ("lrSchedulerType", {"lrSchedulerType": "warmup_stable_decay"}),
    ("learningRate", {"lrSchedulerType": "polynomial", "learningRate": 1e-8}),
    ("extra.lrSchedulerKwargs", {"lrSchedulerType": "cosine", "extra": {"lrSchedulerKwargs": {"nope": 1}}}),
    ("adamBeta1", {"adamBeta1": 1.0}),
    ("adamBeta2", {"adamBeta2": 1.0, "optim": "adamw_8bit"}),
    ("extra.torchCompileBackend", {"extra": {"torchCompileBackend": "nope"}}),
    ("extra.torchCompileMode", {"extra": {"torchCompileMode": "nope"}}),
    (
        "extra.activationCheckpointingKwargs",
        {"activationCheckpointing": True, "extra": {"activationCheckpointingKwargs": {"nope": 1}}},
    ),
    (
        "extra.dataloaderMultiprocessingContext",
        {"dataloaderNumWorkers": 1, "extra": {"dataloaderMultiprocessingContext": "nope"}},
    ),
    (
        "extra.lengthColumnName",
        {"trainSamplingStrategy": "group_by_length", "extra": {"lengthColumnName": "input_ids"}},
    ),
    ("extra.padToMultipleOf", {"extra": {"padToMultipleOf": -8}}),
    ("extra.evalAccumulationSteps", {"extra": {"evalAccumulationSteps": 0}}),
    ("extra.lossType", {"extra": {"lossType": "nope"}}),
    ("extra.routerAuxLossCoef", {"extra": {"routerAuxLossCoef": 0.5}}),
    ("extra.activationOffloading", {"extra": {"activationOffloading": True}}),
    ("extra.dataloaderDropLast", {"extra": {"dataloaderDropLast": "yes"}}),
]
COMPILED = ("torchCompileBackend", "torchCompileMode")
ODD: list[tuple[str, Any]] = [
    case
    for case in itertools.product(EXTRA_FIELDS, (-1, 0, 3, 0.5, "nope", ["nope"], {"nope": 1}, True))
    if case[0] not in COMPILED or case[1] == "nope"  # accepted arguments would be compiled
]


@pytest.mark.parametrize(("field", "training"), REFUSED, ids=[field for field, _ in REFUSED])
def test_an_argument_that_training_would_fail_with_is_named(
    job: Job, train: Train, field: str, training: dict[str, Any]
) -> None:
    refused = train(job(training=training, dataset=HELD_OUT), command="prepare")
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec"), refused.log
    assert f"spec.training.{field} is " in refused.message["message"]


@pytest.mark.parametrize(("field", "value"), sample(ODD, "odd values", 6), ids=str)
def test_accepted_arguments_can_be_trained_with(job: Job, train: Train, field: str, value: Any) -> None:
    document = job(training={"maxSteps": 1, "extra": {field: value}}, dataset=HELD_OUT)
    first = train(document, command="prepare")
    assert first.code in (0, 64), first.log
    if first.code == 0:
        done = train(document, output=first.output)
        assert done.code == 0, done.log


def test_a_schedule_with_what_it_needs_is_accepted(job: Job, train: Train) -> None:
    for kind, keywords in (
        ("cosine_with_min_lr", {"min_lr": 1e-6}),
        ("warmup_stable_decay", {"num_decay_steps": 1}),
    ):
        done = train(
            job(training={"lrSchedulerType": kind, "extra": {"lrSchedulerKwargs": keywords}}), command="prepare"
        )
        assert done.code == 0, done.log


def test_an_evaluation_that_never_comes_is_reported(job: Job, train: Train) -> None:
    done = train(job(training={"extra": {"evalDelay": 5}}, dataset=HELD_OUT), command="prepare")
    assert "spec.training.extra.evalDelay is 5, and training ends at step 4: no evaluation follows" in done.log
