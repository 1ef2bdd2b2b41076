"""Prepare on a machine without the GPU, and train on another device than the one prepared for."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MI300X = ("--gpu-name", "MI300X of node gpu-7", "--gpu-memory", str(192 * 2**30))


def auto(job: Job, gpus: int = 1, **spec: Any) -> dict[str, Any]:
    """Make a job that leaves its choices to the profile."""
    document = job(resources={"gpus": gpus}, **spec)
    document["spec"]["training"] = {"maxSteps": 4, "loggingSteps": 1, "learningRate": 1e-2}
    return document


def plan(done: Any) -> dict[str, Any]:
    return dict(json.loads((done.output / "prepared/prepared.json").read_text())["plan"])


def chosen(done: Any) -> dict[str, Any]:
    return {choice["field"]: choice["value"] for choice in plan(done)["profile"]}


def stamps(done: Any) -> tuple[int, int]:
    """Return the times of the rows, and of prepared.json."""
    folder = done.output / "prepared"
    return (folder / "train").stat().st_mtime_ns, (folder / "prepared.json").stat().st_mtime_ns


def test_the_choices_are_for_the_gpu_of_the_command_line(job: Job, train: Train) -> None:
    done = train(auto(job), command="prepare", arguments=MI300X)
    assert done.code == 0, done.log
    device = plan(done)["device"]
    assert (device["name"], device["memory"], device["kind"]) == ("MI300X of node gpu-7", 192 * 2**30, "gpu")
    assert chosen(done)["bf16"] is True
    assert chosen(done)["activation_checkpointing"] is False
    assert "MI300X of node gpu-7 has 192.0 GiB" in done.log
    stamp = stamps(done)
    again = train(auto(job), command="prepare", arguments=MI300X, output=done.output)
    assert (again.code, stamps(again)) == (0, stamp)


def test_the_termination_message_has_the_estimate_and_the_parameters(job: Job, train: Train) -> None:
    done = train(auto(job), command="prepare", arguments=MI300X)
    assert done.message["estimate"] == plan(done)["estimate"]
    trained = train(auto(job), output=done.output)
    assert done.message["parameters"] == trained.manifest["parameters"]


def test_a_job_that_the_gpu_can_not_hold_is_refused(job: Job, train: Train) -> None:
    small = ("--gpu-name", "MI210 of node gpu-1", "--gpu-memory", str(2**30))
    failed = train(auto(job), command="prepare", arguments=small)
    assert (failed.code, failed.message["reason"]) == (69, "ModelTooLarge"), failed.log
    assert "MI210 of node gpu-1 has 1.0 GiB" in failed.message["message"]


def test_for_an_unknown_gpu_nothing_is_refused_or_chosen_by_memory(job: Job, train: Train) -> None:
    done = train(auto(job), command="prepare")
    assert done.code == 0, done.log
    assert plan(done)["device"]["memory"] is None
    assert "was not compared with a GPU's memory" in done.log
    assert chosen(done).keys() == {"bf16", "attn_implementation", "dataloader_num_workers"}


@pytest.mark.parametrize("told", [(), MI300X])
def test_training_on_another_device_chooses_again_and_keeps_the_rows(
    job: Job, train: Train, told: tuple[str, ...]
) -> None:
    prepared = train(auto(job), command="prepare", arguments=told)
    rows, file = stamps(prepared)
    done = train(auto(job), output=prepared.output)
    assert done.code == 0, done.log
    assert "choosing again for this CPU" in done.log
    assert stamps(done)[0] == rows
    assert stamps(done)[1] != file
    assert plan(done)["device"]["kind"] == "cpu"
    assert "was not compared" not in done.log
    assert done.manifest["digest"] == train(auto(job)).manifest["digest"]


def test_a_smaller_device_than_the_one_prepared_for_is_refused(job: Job, forks: Any, tmp_path: Path) -> None:
    prepared = forks.run(auto(job), tmp_path / "out", command="prepare", arguments=MI300X)
    assert prepared.code == 0, prepared.log
    failed = forks.run(auto(job), tmp_path / "out", gpu=2**30)
    assert (failed.code, failed.message["reason"]) == (69, "ModelTooLarge"), failed.log


def test_choices_are_kept_once_training_has_begun(job: Job, forks: Any, kill: Any, tmp_path: Path) -> None:
    begun = forks.run(auto(job), tmp_path / "out", kill(signal.SIGTERM, "stepping", 3))
    assert begun.code == 75, begun.log
    before = plan(begun)
    done = forks.run(auto(job), tmp_path / "out", gpu=192 * 2**30)
    assert done.code == 0, done.log
    assert "what was chosen for this CPU stays" in done.log
    assert plan(done) == before


def test_a_preparation_that_is_stopped_reports_it(job: Job, forks: Any, kill: Any, tmp_path: Path) -> None:
    told = kill(signal.SIGTERM, "reading")
    stopped = forks.run(auto(job), tmp_path / "out", told, command="prepare", arguments=MI300X)
    assert (stopped.code, stopped.message["outcome"], stopped.message["reason"]) == (
        75,
        "Interrupted",
        "Interrupted",
    )
    assert not list((tmp_path / "out").glob("*prepared*"))


def test_other_rows_are_prepared_from_the_cache_without_the_hub(
    make_worker: Callable[..., Any], job: Job, claim: Path, tmp_path: Path
) -> None:
    """Prepare with FlashAttention, so that rows are packed, and train without it."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn/__init__.py").touch()
    hub = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    fill_cache(tmp_path / "hf/hub", claim)
    document = auto(job, model={"name": "me/tiny"}, dataset={"name": "me/rows"})
    del document["spec"]["training"]["maxSteps"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    prepared = make_worker("flash", hub | {"PYTHONPATH": path}).run(
        document, claims={"claim": claim}, command="prepare", arguments=MI300X
    )
    assert prepared.code == 0, prepared.log
    assert (chosen(prepared)["packing"], chosen(prepared)["attn_implementation"]) == (True, "flash_attention_2")
    rows, _ = stamps(prepared)

    done = make_worker("plain", hub | {"HF_HUB_OFFLINE": "1"}).run(
        document, claims={"claim": claim}, output=prepared.output
    )
    assert done.code == 0, done.log
    assert "packing" not in chosen(done)
    assert stamps(done)[0] != rows


def fill_cache(cache: Path, claim: Path) -> None:
    """Put the model me/tiny and the dataset me/rows, whose rows have different lengths, into a cache of the hub."""
    for repository in ("models--me--tiny", "datasets--me--rows"):
        (cache / repository / "refs").mkdir(parents=True)
        (cache / repository / "refs/main").write_text(COMMIT)
    shutil.copytree(claim / "tiny", cache / "models--me--tiny/snapshots" / COMMIT)
    snapshot = cache / "datasets--me--rows/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    rows = [{"text": "word " * (80 if number % 5 == 0 else 4)} for number in range(40)]
    (snapshot / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
