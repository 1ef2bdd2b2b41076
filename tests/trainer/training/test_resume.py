"""Interrupted runs resume where they stopped, and end as if they had not been interrupted."""

import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hone_trainer.storage import checkpoints
from run_isolation import find_free_port

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]

LONG = {"maxSteps": 100, "loggingSteps": 4}
DROPOUT = {"r": 4, "loraDropout": 0.2}


def get(port: int, path: str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def same_weights(one: Path, other: Path, name: str) -> bool:
    return (one / name).read_bytes() == (other / name).read_bytes()


def test_sigterm_saves_a_checkpoint_and_the_next_start_ends_bit_for_bit_alike(
    job: Job, train: Train, process: Callable[..., Any], hold: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    document = job(training=LONG, lora=DROPOUT, checkpoint={"saveSteps": 1000})
    port = find_free_port()
    run = process(document, tmp_path / "out", "--port", str(port), **hold(20))

    def step() -> int:
        progress = json.loads(get(port, "/progress") or b"{}").get("progress") or {}
        return int(progress.get("step", 0)) if progress.get("loss") else 0

    run.wait_for(lambda: step() >= 6)
    metrics, health, nothing = get(port, "/metrics"), get(port, "/healthz"), get(port, "/nothing")
    run.signal(signal.SIGTERM)
    stopped = run.result()

    assert health == b"ok\n"
    assert nothing is None
    assert metrics
    assert b'hone_trainer_stage{stage="Training"} 1.0' in metrics
    assert b"hone_trainer_total_steps 100.0" in metrics
    assert (stopped.code, stopped.message["outcome"], stopped.message["reason"]) == (
        75,
        "Interrupted",
        "Interrupted",
    )
    at = stopped.message["progress"]["step"]
    assert 6 <= at < 100
    assert [folder.name for folder in (tmp_path / "out/checkpoints").glob("step-*")] == [f"step-{at:08d}"]
    assert not (tmp_path / "out/manifest.json").exists()

    resumed = train(document, output=tmp_path / "out")
    whole = train(document, output=tmp_path / "whole")
    assert (resumed.code, whole.code) == (0, 0)
    assert f"checkpoint at step {at} of 100" in resumed.log
    assert same_weights(resumed.output, whole.output, "adapter/adapter_model.safetensors")
    assert resumed.metrics == whole.metrics
    assert [line["step"] for line in whole.metrics] == list(range(4, 101, 4))
    for name in ("trainLoss", "numTokens"):
        assert resumed.manifest["metrics"][name] == whole.manifest["metrics"][name]


def test_sigkill_loses_only_the_steps_after_the_newest_checkpoint(
    job: Job, train: Train, forks: Any, kill: Callable[..., Any], tmp_path: Path
) -> None:
    document = job(method="full", training=LONG | {"loggingSteps": 1}, checkpoint={"saveSteps": 7, "saveTotalLimit": 2})
    checkpoints = tmp_path / "out/checkpoints"
    assert forks.run(document, tmp_path / "out", kill(signal.SIGKILL, "stepping", 10)).code == -signal.SIGKILL
    assert [folder.name for folder in checkpoints.glob("*-*")] == ["step-00000007"]
    (checkpoints / "checkpoint-99").mkdir()
    (checkpoints / "step-00000099").mkdir()

    resumed = train(document, output=tmp_path / "out")
    whole = train(document, output=tmp_path / "whole")
    assert (resumed.code, whole.code) == (0, 0)
    assert "checkpoint-99: its writing was cut short" in resumed.log
    assert same_weights(resumed.output, whole.output, "model/model.safetensors")
    assert resumed.metrics == whole.metrics
    assert [line["step"] for line in whole.metrics] == list(range(1, 101))
    assert sorted(folder.name for folder in checkpoints.glob("*-*")) == ["step-00000098", "step-00000100"]


def test_a_run_on_several_datasets_resumes_bit_for_bit(
    job: Job, train: Train, forks: Any, kill: Callable[..., Any], tmp_path: Path
) -> None:
    document = job(training=LONG | {"loggingSteps": 1}, lora=DROPOUT, checkpoint={"saveSteps": 7})
    del document["spec"]["dataset"]
    document["spec"]["datasets"] = [
        {"claim": {"name": "claim", "path": "text.jsonl"}, "weight": 2, "evalFraction": 0.25},
        {"claim": {"name": "claim", "path": "chat.jsonl"}, "weight": 1},
    ]
    for phase in (kill(signal.SIGKILL, "reading", 2), kill(signal.SIGKILL, "stepping", 30)):
        assert forks.run(document, tmp_path / "out", phase).code == -signal.SIGKILL
    prepared = (tmp_path / "out/prepared/prepared.json").read_bytes()

    resumed = train(document, output=tmp_path / "out")
    whole = train(document, output=tmp_path / "whole")
    assert (resumed.code, whole.code) == (0, 0)
    assert "checkpoint at step 28 of 100" in resumed.log
    assert (tmp_path / "out/prepared/prepared.json").read_bytes() == prepared
    assert same_weights(resumed.output, whole.output, "adapter/adapter_model.safetensors")
    assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_ends_the_run_at_once(
    job: Job, process: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    run = process(job(), tmp_path / "out")
    run.wait_for(lambda: (tmp_path / "out/checkpoints").exists())
    run.signal(number)
    stopped = run.result()
    assert stopped.code == 75
    assert "before training began" in stopped.message["message"]
    assert "Traceback" not in stopped.log


def test_a_run_whose_saving_was_cut_short_only_saves(job: Job, train: Train, tmp_path: Path) -> None:
    evaluated = {"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.25}
    document = job(dataset=evaluated, training={"loggingSteps": 3})
    first = train(document, output=tmp_path / "out")
    before = first.manifest
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/adapter/adapter_model.safetensors").write_bytes(b"cut short")
    again = train(document, output=tmp_path / "out")
    assert again.code == 0
    assert "checkpoint at step 4 of 4" in again.log
    assert again.message["progress"]["percent"] == 100
    assert (
        again.manifest["files"]["adapter/adapter_model.safetensors"]
        == before["files"]["adapter/adapter_model.safetensors"]
    )
    for name in ("evalLossBefore", "evalLossAfter", "perplexityBefore", "perplexityAfter"):
        assert again.manifest["metrics"][name] == before["metrics"][name]
    assert again.manifest["metrics"]["trainLoss"] == before["metrics"]["trainLoss"]


def test_a_rerun_of_the_same_spec_succeeds_at_once(job: Job, train: Train, tmp_path: Path) -> None:
    first = train(job(), output=tmp_path / "out")
    written = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    again = train(job(checkpoint={"saveSteps": 3}), output=tmp_path / "out")
    assert (first.code, again.code) == (0, 0)
    assert again.message["artifact"] == first.message["artifact"]
    assert again.message["metrics"] == first.message["metrics"]
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == written


def test_a_folder_of_another_spec_is_refused(job: Job, train: Train, tmp_path: Path) -> None:
    assert train(job(), output=tmp_path / "out").code == 0
    other = train(job(training={"learningRate": 0.5}), output=tmp_path / "out")
    assert (other.code, other.message["reason"]) == (64, "InvalidSpec")
    assert "spec.training differs" in other.message["message"]

    (tmp_path / "out/manifest.json").unlink()
    other = train(job(lora={"r": 2}), output=tmp_path / "out")
    assert (other.code, other.message["reason"]) == (64, "InvalidSpec")
    assert "checkpoints of another spec: spec.lora differs" in other.message["message"]


def test_the_kind_of_output_of_a_trained_run_can_be_changed(job: Job, train: Train, tmp_path: Path) -> None:
    first = train(job(), output=tmp_path / "out")
    other = train(job(output={"save": "merged"}), output=tmp_path / "out")
    assert (other.code, "spec.output.save differs" in other.message["message"]) == (64, True)
    (tmp_path / "out/manifest.json").unlink()  # as when saving had failed
    merged = train(job(output={"save": "merged"}), output=tmp_path / "out")
    assert (merged.code, merged.manifest["kind"]) == (0, "merged")
    assert "resuming from the checkpoint at step 4 of 4" in merged.log
    assert merged.manifest["metrics"] == first.manifest["metrics"]
    assert merged.manifest["spec"]["output"]["save"] == "merged"


def test_a_run_is_not_resumed_when_one_of_its_datasets_has_changed(
    job: Job, train: Train, claim: Path, tmp_path: Path
) -> None:
    changing = tmp_path / "changing.jsonl"
    changing.write_text('{"text": "something"}\n')
    document = job()
    del document["spec"]["dataset"]
    document["spec"]["datasets"] = [
        {"claim": {"name": "claim", "path": "text.jsonl"}},
        {"claim": {"name": "data", "path": "changing.jsonl"}},
    ]
    claims = {"claim": claim, "data": tmp_path}
    assert train(document, output=tmp_path / "out", claims=claims).code == 0
    changing.write_text('{"text": "something else"}\n')
    for _ in ("complete", "with a checkpoint"):
        again = train(document, output=tmp_path / "out", claims=claims)
        assert (again.code, again.message["reason"]) == (65, "DatasetInvalid")
        assert "has changed since" in again.message["message"]
        (tmp_path / "out/manifest.json").unlink(missing_ok=True)


def test_a_run_with_a_changed_dataset_is_not_resumed(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    changing = tmp_path / "changing.jsonl"
    changing.write_bytes((claim / "text.jsonl").read_bytes())
    document = job(dataset={"claim": {"name": "data", "path": "changing.jsonl"}})
    claims = {"claim": claim, "data": tmp_path}
    assert train(document, output=tmp_path / "out", claims=claims).code == 0
    changing.unlink()
    assert train(document, output=tmp_path / "out", claims=claims).code == 0, "nothing is left to do"
    changing.write_text('{"text": "something else"}\n')
    finished = train(document, output=tmp_path / "out", claims=claims)
    assert (finished.code, finished.message["reason"]) == (65, "DatasetInvalid")
    assert "complete artifact of this spec, and the dataset has changed since" in finished.message["message"]
    (tmp_path / "out/manifest.json").unlink()
    again = train(document, output=tmp_path / "out", claims=claims)
    assert (again.code, again.message["reason"]) == (65, "DatasetInvalid")
    assert "has changed since step 4" in again.message["message"]


def test_a_changed_file_of_the_artifact_is_found(job: Job, train: Train, tmp_path: Path) -> None:
    assert train(job(), output=tmp_path / "out").code == 0
    weights = tmp_path / "out/adapter/adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    again = train(job(), output=tmp_path / "out")
    assert (again.code, again.message["reason"]) == (65, "ArtifactCorrupt")
    assert "adapter_model.safetensors" in again.message["message"]


@pytest.mark.parametrize("folder", ["model", "checkpoints/checkpoint-500"])
def test_a_folder_with_files_of_others_is_left_alone(job: Job, train: Train, tmp_path: Path, folder: str) -> None:
    keep = tmp_path / "out" / folder / "keep"
    keep.parent.mkdir(parents=True)
    keep.write_text("me")
    refused = train(job(method="full"), output=tmp_path / "out")
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec")
    assert keep.read_text() == "me"


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json", "additional_chat_templates/tool_use.jinja"])
def test_a_base_model_that_was_replaced_is_refused(
    job: Job, train: Train, claim: Path, tmp_path: Path, changed: str
) -> None:
    shutil.copytree(claim / "tiny", tmp_path / "models/base")
    (tmp_path / "models/base/additional_chat_templates").mkdir()
    shutil.copyfile(
        claim / "tiny/chat_template.jinja", tmp_path / "models/base/additional_chat_templates/tool_use.jinja"
    )
    document = job(model={"claim": {"name": "models", "path": "base"}}, checkpoint={"saveSteps": 2})
    claims = {"claim": claim, "models": tmp_path / "models"}
    assert train(document, output=tmp_path / "out", claims=claims).code == 0
    file = tmp_path / "models/base" / changed
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-2] ^= 1  # of the same size
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    finished = train(document, output=tmp_path / "out", claims=claims)
    assert (finished.code, finished.message["reason"]) == (66, "ModelInvalid")
    assert "complete artifact of this spec, and the base model has changed since" in finished.message["message"]
    (tmp_path / "out/manifest.json").unlink()
    refused = train(document, output=tmp_path / "out", claims=claims)
    assert (refused.code, refused.message["reason"]) == (66, "ModelInvalid")
    assert "has changed since step" in refused.message["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"of": "another"}', b"\xff"])
def test_a_damaged_record_of_the_run_is_written_again_or_named(
    job: Job, train: Train, tmp_path: Path, content: bytes
) -> None:
    output = tmp_path / "out"
    assert train(job(), command="prepare", output=output).code == 0
    (output / "checkpoints/run.json").write_bytes(content)
    assert train(job(), command="prepare", output=output).code == 0
    folder = output / "checkpoints/checkpoint-4"
    folder.mkdir()
    seal_nothing(folder)
    (output / "checkpoints/run.json").write_bytes(content)
    refused = train(job(), command="prepare", output=output)
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec"), refused.log
    assert f"{output}/checkpoints/run.json is not what an earlier start wrote" in refused.message["message"]


def seal_nothing(folder: Path) -> None:
    """Make a complete checkpoint of no files."""
    account = checkpoints.RunTotals(
        step=4, total_steps=4, tokens=0, runtime=0, samples=0, loss_sum=0, loss_since_log=0, last_logged_step=0
    )
    checkpoints.commit_checkpoint(folder, account, limit=1)
