"""`hone-trainer plan`, from a folder that holds only a config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone_trainer.main import main

LLAMA_2_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "dtype": "float16",
}
HOW_TO = {"r": 64, "loraAlpha": 16, "loraDropout": 0.1, "targetModules": ["q_proj", "v_proj"]}


def plan(folder: Path, config: dict[str, Any] | None, **spec: Any) -> int:
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    job = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "planned"},
        "spec": {"model": {"claim": {"name": "models"}}, "dataset": {"name": "some/data"}, **spec},
    }
    manifest = folder / "job.yaml"
    manifest.write_text(yaml.safe_dump(job))
    return main(["plan", str(manifest), "--claim", f"models={folder}"])


def test_the_parameters_are_those_of_the_how_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, LLAMA_2_7B, lora=HOW_TO) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trainable params: 33,554,432 || all params: 6,771,970,048 || trainable%: 0.4955"
    assert "batch 8, up to 1,024 tokens a row, activation checkpointing on" in lines[2]
    rows = {line[:30].strip(): line.split()[-2] for line in lines if line.endswith("GiB")}
    assert rows["weights"] == "12.68"
    assert [line for line in lines if "MI210" in line and line.endswith("left")]


def test_a_job_that_fits_nowhere_names_the_fields_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = {"perDeviceTrainBatchSize": 64, "maxLength": 4096, "activationCheckpointing": False}
    assert plan(tmp_path, LLAMA_2_7B, method="full", training=training) == 0
    printed = capsys.readouterr().out
    assert "Fits none" in printed
    assert "287.7 GiB: spec.training.activationCheckpointing: true" in printed


PAGED = {"optim": "paged_adamw_32bit"}


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({}, "spec.resources.memory, if you set it, must have room"),
        ({"memory": "40Gi"}, "spec.resources.memory, which is 40Gi and so too small, must have room"),
        ({"memory": "160Gi"}, "spec.resources.memory (160Gi) must also have room"),
    ],
)
def test_paged_states_count_in_the_hosts_memory(
    resources: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, LLAMA_2_7B, method="full", training=PAGED, resources={"gpus": 1, **resources}) == 0
    printed = capsys.readouterr()
    assert words in printed.err
    assert "its states, 50.2 GiB in each pod, lie in the host's memory" in printed.err
    rows = {line[:56].strip(): line.split()[-2] for line in printed.out.splitlines() if line.endswith("GiB")}
    assert rows["optimizer states in the host's memory, a process"] == "50.21"
    assert "optimizer states" not in rows


@pytest.mark.parametrize(
    "spec",
    [
        {"training": PAGED, "resources": {"gpus": 0}},
        {"training": PAGED, "pod": {"env": [{"name": "HSA_XNACK", "value": "1"}]}},
        {"training": {"optim": "adamw_8bit"}},
        {"training": {"optim": "adamw_torch_fused"}},
        {},
    ],
)
def test_other_states_count_on_the_device(
    spec: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, LLAMA_2_7B, method="full", **spec) == 0
    printed = capsys.readouterr()
    assert "host's memory, a process" not in printed.out
    assert "  optimizer states  " in printed.out
    assert "spec.training.optim" not in printed.err


def test_a_model_without_a_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, None) == 66
    assert "ModelNotFound" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["of_nobody", "vit"])
def test_a_model_that_is_not_a_causal_language_model_is_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, {"model_type": kind}) == 66
    assert "ModelInvalid" in capsys.readouterr().err


def test_a_missing_target_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, LLAMA_2_7B, lora={"targetModules": ["query"]}) == 64
    assert "spec.lora.targetModules[0] is 'query'" in capsys.readouterr().err
