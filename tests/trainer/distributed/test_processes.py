"""Several processes train as one does, stop together, and report one cause when they fail. With gloo, on the CPU."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_model import make_broken_model
from hone_trainer.distributed.ranks import find_rendezvous, make_local_ranks
from hone_trainer.distributed.results import ProcessExit, WorkerResult, pick_run_result
from hone_trainer.runtime.options import RunOptions
from long_matrix import is_long, make_random, sample
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader, TensorStorageMetadata

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]

pytestmark = pytest.mark.timeout(240)

# 16 of 24 rows to train on: accelerate fills up the last step of an epoch with its first rows.
EVALUATED = {"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.334}


@dataclass(frozen=True)
class Together:
    """How the processes ended, by rank."""

    words: list[WorkerResult]
    output: Path

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "manifest.json").read_text()))


class Ranks:
    """Up to `size` processes."""

    def __init__(self, folder: Path, claim: Path, size: int) -> None:
        self.folder = folder
        self._claim = claim
        self._count = 0
        environ = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environ |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).parents[1] / "rank.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(folder / f"log-{rank}").open("w"),
                env={**os.environ, **environ},
                text=True,
            )
            for rank in range(size)
        ]

    def run(
        self,
        manifest: Path,
        output: Path,
        size: int,
        rows: bool = False,
        stop_at: int | None = None,
    ) -> Together:
        """Train in the first `size` processes.

        `rows`: each appends its rows to `rows-RANK` below the output folder. `stop_at`: the batch at which the last one
        sends itself SIGTERM.
        """
        options = RunOptions(manifest, output, claims={"claim": self._claim}, port=0)
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)  # as the launcher does when it locks the folder
        for place in make_local_ranks(find_rendezvous(1, {}), size):
            asked: dict[str, Any] = {"argv": options.to_arguments(), "place": asdict(place)}
            asked["rows"] = str(output / f"rows-{place.rank}") if rows else None
            asked["stop_at"] = stop_at if place.rank == size - 1 else None
            channel = self.processes[place.rank].stdin
            assert channel
            channel.write(json.dumps(asked) + "\n")
            channel.flush()
        answers = [process.stdout.readline() for process in self.processes[:size] if process.stdout]
        assert all(answers), self.log()
        return Together([WorkerResult.model_validate_json(answer) for answer in answers], output)

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("log-*")))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, claim: Path) -> Iterator[Ranks]:
    found = Ranks(tmp_path_factory.mktemp("ranks"), claim, 4)
    yield found
    found.close()


@pytest.fixture
def together(ranks: Ranks, tmp_path: Path) -> Callable[..., Together]:
    """Train a job in `size` processes: together(job(...), size, output=…)."""

    def run(document: dict[str, Any], size: int, output: str = "out", **how: Any) -> Together:
        document["spec"]["resources"]["gpus"] = size  # there is none here: the processes train on the CPU
        manifest = tmp_path / f"{output}.yaml"
        manifest.write_text(yaml.safe_dump(document))
        return ranks.run(manifest, tmp_path / output, size, **how)

    return run


def lines(output: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, without what differs from run to run."""
    path = output / "logs/metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        {
            name: value
            for name, value in line.items()
            if "runtime" not in name and "second" not in name and "memory" not in name
        }
        for line in found
    ]


def difference(one: Path, other: Path) -> float:
    """Return the largest difference between the weights of two files."""
    weights, others = load_file(one), load_file(other)
    assert weights.keys() == others.keys()
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


@pytest.mark.parametrize(
    ("size", "method", "kept", "tolerance"),
    [
        (2, "lora", "adapter/adapter_model.safetensors", 1e-4),
        (4, "full", "model/model.safetensors", 1e-4),
        # rounded to bfloat16, some of Adam's steps change sign
        (2, "qlora", "adapter/adapter_model.safetensors", 5e-2),
    ],
)
def test_several_processes_train_as_one_does(
    job: Job, train: Train, together: Callable[..., Together], size: int, method: str, kept: str, tolerance: float
) -> None:
    def document(batch: int) -> dict[str, Any]:
        training = {"perDeviceTrainBatchSize": batch, "perDeviceEvalBatchSize": 1, "maxSteps": 8, "evalSteps": 4}
        return job(method=method, training=training, dataset=EVALUATED, evaluation={"prompts": ["the trainer"]})

    one = train(document(4))
    several = together(document(4 // size), size)
    assert [word.outcome for word in several.words] == ["Succeeded"] * size
    losses = [line["loss"] for line in lines(one.output) if "loss" in line]
    assert losses == pytest.approx([line["loss"] for line in lines(several.output) if "loss" in line], abs=tolerance)
    assert len(losses) == 8
    assert difference(one.output / kept, several.output / kept) < tolerance
    for name in ("trainLoss", "evalLossBefore", "evalLossAfter", "numTokens"):
        assert one.manifest["metrics"][name] == pytest.approx(several.manifest["metrics"][name], abs=tolerance)
    assert several.words[1].progress
    assert several.words[1].progress.percent == 100


def test_a_signal_to_one_process_stops_all_and_they_resume_bit_for_bit(
    job: Job, ranks: Ranks, together: Callable[..., Together], tmp_path: Path
) -> None:
    document = job(
        training={
            "maxSteps": 36,
            "loggingSteps": 3,
            "perDeviceTrainBatchSize": 1,
            "trainSamplingStrategy": "group_by_length",
        },
        lora={"r": 4, "loraDropout": 0.2},
        checkpoint={"saveSteps": 1000},
    )

    stopped = together(document, 2, stop_at=16)  # in the second epoch of three
    assert [word.outcome for word in stopped.words] == ["Interrupted"] * 2
    steps = {word.progress.step for word in stopped.words if word.progress}
    (checkpoint,) = (tmp_path / "out/checkpoints").glob("step-*")
    assert steps == {int(checkpoint.name.removeprefix("step-"))}
    assert min(steps) < 36
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}

    other = together(document, 3)
    assert "at step" in other.words[0].message
    assert {(word.reason, word.outcome) for word in other.words} == {("InvalidSpec", "Failed")}

    resumed = together(document, 2)
    whole = together(document, 2, output="whole")
    assert [word.outcome for word in resumed.words + whole.words] == ["Succeeded"] * 4
    rows = json.loads((tmp_path / "whole/prepared/prepared.json").read_text())["dataset"]["train"]
    assert whole.manifest["metrics"]["numTokens"] == 3 * rows["tokens"]  # each row once per epoch, for any length
    kept = "adapter/adapter_model.safetensors"
    assert (resumed.output / kept).read_bytes() == (whole.output / kept).read_bytes()
    assert lines(resumed.output) == lines(whole.output)
    assert resumed.manifest["metrics"]["trainLoss"] == whole.manifest["metrics"]["trainLoss"]


ORDERS = ["random", "sequential", "group_by_length"]
MODES = list(itertools.product(ORDERS, [1, 2], ["lora", "full"], [False, True], [0, 1]))


@pytest.mark.parametrize(
    ("order", "accumulation", "method", "packing", "workers"), sample(MODES, "same bytes of two processes", 2)
)
def test_stopped_in_any_epoch_two_processes_take_the_same_rows_and_end_with_the_same_bytes(
    job: Job,
    together: Callable[..., Together],
    tmp_path: Path,
    order: str,
    accumulation: int,
    method: str,
    packing: bool,
    workers: int,
) -> None:
    training = {
        "numTrainEpochs": 3,
        "perDeviceTrainBatchSize": 1,
        "gradientAccumulationSteps": accumulation,
        "trainSamplingStrategy": order,
        "dataloaderNumWorkers": workers,
        "evalSteps": 4,
        **({"packing": True, "maxLength": 32} if packing else {}),
    }
    lora = {"lora": {"r": 4, "loraDropout": 0.2}} if method == "lora" else {}
    document = job(
        method=method, training=training, dataset=EVALUATED, checkpoint={"saveSteps": 1, "saveTotalLimit": 1000}, **lora
    )
    del document["spec"]["training"]["maxSteps"]
    whole = together(document, 2, output="whole", rows=True)
    assert [word.outcome for word in whole.words] == ["Succeeded"] * 2
    expected = [taken_rows(whole.output, rank) for rank in range(2)]
    total = max(expected[0])
    steps = (
        range(1, total + 1) if is_long() else [make_random(f"{order} {accumulation}").randint(total // 3 + 1, total)]
    )
    for step in steps:
        killed = tmp_path / f"killed-{step}"
        shutil.copytree(whole.output, killed, ignore=shutil.ignore_patterns("rows-*", "manifest.json"))
        for folder in killed.glob("checkpoints/step-*"):
            if int(folder.name.removeprefix("step-")) > step:
                shutil.rmtree(folder)
        batches = sum(len(batches) for number, batches in expected[1].items() if number <= step)
        stopped = together(document, 2, output=f"stopped-{step}", rows=True, stop_at=batches)
        assert [word.outcome for word in stopped.words] == ["Interrupted"] * 2
        for output in (killed, stopped.output):
            resumed = together(document, 2, output=output.name, rows=True)
            assert [word.outcome for word in resumed.words] == ["Succeeded"] * 2
            for rank in range(2):
                taken = taken_rows(output, rank)
                assert taken == {number: expected[rank][number] for number in taken}, output.name
            assert resumed.manifest["digest"] == whole.manifest["digest"], output.name
            assert lines(output) == lines(whole.output), output.name


def taken_rows(output: Path, rank: int) -> dict[int, list[Any]]:
    """Return the batches of each step."""
    found: dict[int, list[Any]] = {}
    path = output / f"rows-{rank}"
    for line in path.read_text().splitlines() if path.exists() else []:
        step, *batch = json.loads(line)
        found.setdefault(step, []).append(batch)
    return found


def test_a_loss_that_is_not_finite_is_the_failure_of_all_processes(job: Job, together: Callable[..., Together]) -> None:
    failed = together(job(method="full", training={"adamEpsilon": 0, "optim": "adamw_torch"}), 2)
    word = pick_run_result([ProcessExit(rank, 1, rank, word) for rank, word in enumerate(failed.words)])
    assert (word.outcome, word.reason) == ("Failed", "NonFiniteLoss")


@pytest.mark.parametrize(
    ("method", "dtype", "kept", "tolerance"),
    [
        ("full", "float32", ["model/model.safetensors"], 1e-4),
        # adapters in float32 on a base in bfloat16, whose rounding depends on the order of sums
        ("lora", "bfloat16", ["adapter/adapter_model.safetensors", "merged/model.safetensors"], 2e-2),
    ],
)
def test_a_sharded_model_learns_the_same_and_resumes_after_a_stop(
    job: Job,
    ranks: Ranks,
    together: Callable[..., Together],
    tmp_path: Path,
    method: str,
    dtype: str,
    kept: list[str],
    tolerance: float,
) -> None:
    def document(parallelism: str) -> dict[str, Any]:
        return job(
            model={"claim": {"name": "claim", "path": "tiny"}, "dtype": dtype},
            method=method,
            training={"maxSteps": 20, "parallelism": parallelism, "evalSteps": 10},
            dataset=EVALUATED,
            checkpoint={"saveSteps": 1000},
            evaluation={"prompts": ["the trainer"]},
            **({"output": {"save": "both"}} if method == "lora" else {}),
        )

    stopped = together(document("fsdp"), 2, output="fsdp", stop_at=4)
    assert [word.outcome for word in stopped.words] == ["Interrupted"] * 2
    (checkpoint,) = (tmp_path / "fsdp/checkpoints").glob("step-*")
    assert parts_of_weights(checkpoint) == {2}

    fsdp = together(document("fsdp"), 2, output="fsdp")
    ddp = together(document("ddp"), 2, output="ddp")
    assert [word.outcome for word in fsdp.words + ddp.words] == ["Succeeded"] * 4
    losses, others = ([line["loss"] for line in lines(run.output) if "loss" in line] for run in (fsdp, ddp))
    assert losses == pytest.approx(others, abs=tolerance)
    assert len(losses) == 20
    for name in kept:
        assert difference(fsdp.output / name, ddp.output / name) < tolerance
    for name in ("evalLossBefore", "evalLossAfter"):
        assert fsdp.manifest["metrics"][name] == pytest.approx(ddp.manifest["metrics"][name], abs=tolerance)
    assert fsdp.manifest["parameters"] == ddp.manifest["parameters"]


def parts_of_weights(checkpoint: Path) -> set[int]:
    """Return in how many parts the processes held a checkpoint's weights: one per process if they were DTensors."""
    (folder,) = checkpoint.glob("pytorch_model_fsdp_*")
    entries = FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    return {len(entry.chunks) for entry in entries.values() if isinstance(entry, TensorStorageMetadata)}


def test_a_killed_process_ends_the_run_and_the_next_start_resumes(
    job: Job,
    process: Callable[..., Any],
    together: Callable[..., Together],
    hold: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    document = job(
        training={"maxSteps": 60, "perDeviceTrainBatchSize": 1}, checkpoint={"saveSteps": 5}, resources={"gpus": 2}
    )
    run = process(document, tmp_path / "out", **hold(10, rank=1))
    run.wait_for(lambda: (tmp_path / "out/checkpoints/step-00000005").exists())
    first, second = sorted(children(run.pid))
    os.kill(second, signal.SIGKILL)
    ended = run.result()
    assert (ended.code, ended.message["reason"]) == (70, "InternalError")
    assert "rank 1 was killed by SIGKILL" in ended.message["message"]
    assert not Path(f"/proc/{first}").exists()
    assert not (tmp_path / "out/manifest.json").exists()

    resumed = together(document, 2)
    assert [word.outcome for word in resumed.words] == ["Succeeded"] * 2
    assert [line["step"] for line in lines(resumed.output)] == list(range(1, 61))


def test_a_failure_without_a_name_leaves_its_traceback_in_the_logs(
    job: Job, process: Callable[..., Any], claim: Path, tmp_path: Path
) -> None:
    broken = make_broken_model(claim / "tiny", claim / "broken")
    failed = process(job(model=broken, resources={"gpus": 2}), tmp_path / "out").result()
    assert (failed.code, failed.message["reason"]) == (70, "InternalError"), failed.log
    file = tmp_path / "out/logs/traceback.txt"
    assert "ZeroDivisionError: this model is broken" in file.read_text()
    assert str(file) in failed.message["message"]
    assert "Traceback" not in failed.log


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
