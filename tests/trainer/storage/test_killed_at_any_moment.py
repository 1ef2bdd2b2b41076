"""A run that is killed at any moment resumes from its newest good checkpoint and ends as if it had not been killed."""

import json
import random
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
from hone_trainer.storage import checkpoints
from long_matrix import make_random
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Job = Callable[..., dict[str, Any]]

SAVE_STEPS = 3
# The minimum number of times that a phase begins in a start that resumes from a checkpoint and has steps left.
AT_MOST = {"resuming": 1, "training": 1, "stepping": 6, "saving": 2, "flushing": 2, "sealing": 2}
AT_ONCE, DELAYED = 10, 7
# Within which a checkpoint is loaded, or a little more.
RESUME_SECONDS = 0.03


def long_job(job: Job, method: str) -> dict[str, Any]:
    lora = {"lora": {"r": 4, "loraDropout": 0.2}} if method == "lora" else {}
    return job(
        method=method,
        dataset={"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.25},
        training={"maxSteps": 120, "loggingSteps": 4, "evalSteps": 5, "perDeviceEvalBatchSize": 1},
        evaluation={"prompts": ["say something"], "maxNewTokens": 4},
        checkpoint={"saveSteps": SAVE_STEPS, "saveTotalLimit": 2},
        **lora,
    )


def plans(chance: random.Random, whole: Any, kill: Callable[..., Any]) -> list[Any]:
    """Choose when to kill each start: at the beginning of a phase, or at a random time within one that lasts."""
    lengths = {"resuming": RESUME_SECONDS}
    lengths |= {phase: statistics.median(whole.durations(phase)) for phase in ("saving", "evaluating")}

    def at_once(phase: str, at: int = 1) -> Any:
        return kill(chance.choice([SIGKILL, SIGTERM]), phase, at)

    found = [at_once(phase, chance.randint(1, AT_MOST[phase])) for phase in chance.choices(list(AT_MOST), k=AT_ONCE)]
    found += [
        kill(chance.choice([SIGKILL, SIGTERM]), phase, 1, chance.uniform(0, lengths[phase]))
        for phase in chance.choices(list(lengths), k=DELAYED)
    ]
    chance.shuffle(found)
    return [at_once("reading"), at_once("flushing", 2), *found, at_once("keeping"), at_once("describing")]


def scalars(output: Path) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's curves, as steps and values, without durations."""
    shown = EventAccumulator(str(output / "logs"), size_guidance={"scalars": 0})
    shown.Reload()
    return {
        tag: [(event.step, event.value) for event in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
        if not any(word in tag for word in ("runtime", "second", "train/t", "flos"))
    }


def same_end(one: Any, other: Any) -> None:
    assert (one.code, other.code) == (0, 0), one.log
    assert one.manifest["digest"] == other.manifest["digest"]
    assert one.metrics == other.metrics
    assert scalars(one.output) == scalars(other.output)
    reports = [json.loads((run.output / "report/report.json").read_text()) for run in (one, other)]
    assert reports[0]["evaluation"] == reports[1]["evaluation"]
    for name in ("trainLoss", "evalLossBefore", "evalLossAfter", "numTokens"):
        assert one.manifest["metrics"][name] == other.manifest["metrics"][name]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_killed_at_twenty_moments_ends_like_an_uninterrupted_one(
    forks: Any, kill: Callable[..., Any], job: Job, tmp_path: Path, method: str
) -> None:
    document = long_job(job, method)
    whole = forks.run(document, tmp_path / "whole")
    assert whole.code == 0, whole.log
    steps = [line["step"] for line in whole.metrics]
    assert steps == sorted({0, *range(4, 121, 4), *range(5, 121, 5)})

    ends: Counter[Any] = Counter()
    for plan in plans(make_random(f"killed {method}"), whole, kill):
        ended = forks.run(document, tmp_path / "out", plan)
        ends[ended.code] += 1
        if ended.code == 0 and plan.delay:  # this machine was too busy to kill it in time
            break
        assert ended.code == (-SIGKILL if plan.number == SIGKILL else 75), f"{plan}\n{ended.log}"
    print(ends)
    same_end(forks.run(document, tmp_path / "out"), whole)


@pytest.fixture(scope="module")
def short(job: Job) -> dict[str, Any]:
    return job(
        dataset={"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.5},
        training={"maxSteps": 6, "evalSteps": 2, "perDeviceEvalBatchSize": 1, "gradientAccumulationSteps": 4},
        checkpoint={"saveSteps": 3},
    )


@pytest.fixture(scope="module")
def short_whole(forks: Any, short: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return forks.run(short, tmp_path_factory.mktemp("short") / "out")


@pytest.mark.parametrize(
    ("phase", "at", "step", "due"),
    [
        ("stepping", 5, 2, True),  # the first of two batches: the step is done, the evaluation after it is not
        ("evaluating", 2, 2, True),  # the first is the evaluation of the untouched model
        ("stepping", 8, 3, False),  # the second of four
        ("flushing", 1, 4, True),  # while the checkpoint of step 3 is written: one more step
    ],
)
def test_a_signal_takes_effect_at_the_end_of_a_step_or_of_a_batch_of_an_evaluation(
    forks: Any,
    kill: Any,
    short: dict[str, Any],
    short_whole: Any,
    tmp_path: Path,
    phase: str,
    at: int,
    step: int,
    due: bool,
) -> None:
    stopped = forks.run(short, tmp_path / "out", kill(SIGTERM, phase, at))
    assert (stopped.code, stopped.message["progress"]["step"]) == (75, step), stopped.log
    newest, warnings = checkpoints.find_newest_checkpoint(tmp_path / "out/checkpoints")
    assert newest
    assert (newest.totals.step, newest.totals.evaluation_due, warnings) == (step, due, [])
    same_end(forks.run(short, tmp_path / "out"), short_whole)


def test_a_second_signal_ends_at_once_and_damages_nothing(
    forks: Any, kill: Any, short: dict[str, Any], short_whole: Any, tmp_path: Path
) -> None:
    stopped = forks.run(short, tmp_path / "out", kill(SIGTERM, "stepping", 14), kill(SIGTERM, "flushing", 2))
    assert stopped.code == 75
    assert "Traceback" not in stopped.log
    assert [folder.name for folder in sorted((tmp_path / "out/checkpoints").glob("*-*"))] == [
        "checkpoint-5",
        "step-00000003",
    ]
    resumed = forks.run(short, tmp_path / "out")
    assert f"warning: removing {tmp_path / 'out/checkpoints/checkpoint-5'}: its writing was cut short" in resumed.log
    same_end(resumed, short_whole)
