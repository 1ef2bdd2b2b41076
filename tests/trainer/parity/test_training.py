"""A run equals TRL with the same arguments: the same losses and the same weights, bit for bit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, concatenate_datasets, interleave_datasets, load_dataset
from hone_api.finetunejobs.spec import FineTuneJob
from hone_trainer.config import sft_config
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.models import lora_targets
from peft import LoraConfig
from pydantic.alias_generators import to_camel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
HOW_TO = Path(__file__).parents[3] / "examples/llama2-guanaco"

# AMD's published run in today's names; TensorBoard is written by every run of Hone.
HOW_TO_ARGUMENTS = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "optim": "paged_adamw_32bit",
    "save_steps": 50,
    "logging_steps": 50,
    "learning_rate": 4e-5,
    "weight_decay": 0.001,
    "fp16": False,
    "bf16": False,
    "max_grad_norm": 0.3,
    "max_steps": -1,
    "warmup_steps": 0.03,
    "train_sampling_strategy": "group_by_length",
    "lr_scheduler_type": "constant",
    "pad_token": "</s>",
    "packing": False,
    "activation_checkpointing": False,
    "max_length": 1024,
}
HOW_TO_LORA = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.1, "bias": "none", "target_modules": {"q_proj", "v_proj"}}

OWN_ARGUMENTS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0.25,
    "logging_steps": 5,
    "activation_checkpointing": True,
    "seed": 7,
}
OWN_TRAINING = {
    "numTrainEpochs": 2,
    "perDeviceTrainBatchSize": 2,
    "gradientAccumulationSteps": 2,
    "learningRate": 1e-2,
    "warmupSteps": 0.25,
    "loggingSteps": 5,
    "seed": 7,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def how_to(method: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((HOW_TO / f"{method}.yaml").read_text())
    return document


def load_rows(claim: Path, folder: Path, file: str = "text.jsonl") -> Dataset:
    found: Dataset = load_dataset("json", data_files=str(claim / file), split="train", cache_dir=str(folder))
    return found


def plain_trl(
    claim: Path,
    folder: Path,
    lora: LoraConfig | None,
    quantization: BitsAndBytesConfig | None = None,
    rows: Dataset | None = None,
    **written: Any,
) -> SFTTrainer:
    """Train as a user of TRL would."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(claim / "tiny", quantization_config=quantization),
        processing_class=AutoTokenizer.from_pretrained(claim / "tiny"),
        train_dataset=load_rows(claim, folder) if rows is None else rows,
        args=SFTConfig(output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", **written),
        peft_config=lora,
    )
    trainer.train()
    return trainer


def same_as_trl(trl: SFTTrainer, hone: Any, folder: Path, lora: bool) -> None:
    assert hone.code == 0, hone.log
    names = ("step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens", "entropy", "mean_token_accuracy")
    expected = [{name: line[name] for name in names} for line in trl.state.log_history if "loss" in line]
    assert [{name: line[name] for name in names} for line in hone.metrics] == expected
    assert len(expected) > 1
    assert hone.manifest["metrics"]["trainLoss"] == pytest.approx(trl.state.log_history[-1]["train_loss"], rel=1e-12)

    trl.save_model(str(folder))
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    theirs = load_file(folder / file)
    ours = load_file(hone.output / ("adapter" if lora else "model") / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_losses_and_weights_are_those_of_trl(job: Job, train: Train, claim: Path, tmp_path: Path, method: str) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    trl = plain_trl(
        claim,
        tmp_path / "trl",
        None if method == "full" else lora,
        quantization if method == "qlora" else None,
        **OWN_ARGUMENTS,
    )
    document = job(
        method=method, **({} if method == "full" else {"lora": {"r": 4, "loraAlpha": 8, "loraDropout": 0.1}})
    )
    document["spec"]["training"] = {"profile": "none", **OWN_TRAINING}
    same_as_trl(trl, train(document), tmp_path / "saved", method != "full")


@pytest.mark.parametrize(
    "changed", [{}, {"packing": True, "max_length": 64}, {"train_sampling_strategy": "sequential"}]
)
@pytest.mark.parametrize("weights", [None, [1, 3]])
def test_several_datasets_are_those_that_the_library_mixes(
    job: Job, train: Train, claim: Path, tmp_path: Path, weights: list[float] | None, changed: dict[str, Any]
) -> None:
    files = ("text.jsonl", "other.jsonl")
    given = [
        {"text": f"{word} is another sentence of the second dataset"} for word in "one two three four five".split()
    ]
    (claim / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given * 3))
    parts = [load_rows(claim, tmp_path / "cache", file) for file in files]
    rows = interleave_datasets(parts, probabilities=[0.25, 0.75], seed=7) if weights else concatenate_datasets(parts)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trl = plain_trl(claim, tmp_path / "trl", lora, rows=rows, **(OWN_ARGUMENTS | {"logging_steps": 1} | changed))
    document = job(lora={"r": 4, "loraAlpha": 8})
    del document["spec"]["dataset"]
    document["spec"]["datasets"] = [
        {"claim": {"name": "claim", "path": file}} | ({"weight": weights[number]} if weights else {})
        for number, file in enumerate(files)
    ]
    written = {to_camel(name): value for name, value in changed.items()}
    document["spec"]["training"] = {"profile": "none", **OWN_TRAINING, "loggingSteps": 1, **written}
    same_as_trl(trl, train(document), tmp_path / "saved", lora=True)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_how_to_becomes_the_documented_arguments(tmp_path: Path, method: str) -> None:
    spec = FineTuneJob.model_validate(how_to(method)).spec
    assert (spec.model.name, spec.dataset.name) == ("meta-llama/Llama-2-7b-chat-hf", "mlabonne/guanaco-llama2-1k")
    assert (spec.model.dtype, spec.training.profile) == ("float32", "none")
    args = make_sft_config(sft_config.make_sft_keywords(spec, tmp_path, use_cpu=True))
    values = {name: getattr(args, name) for name in HOW_TO_ARGUMENTS}
    assert {name: getattr(value, "value", value) for name, value in values.items()} == HOW_TO_ARGUMENTS
    found = lora_targets.make_lora_config(spec, None, AutoModelForCausalLM.from_config(small_llama()))
    assert (found is None) == (method == "full")
    if found:
        assert {name: getattr(found, name) for name in HOW_TO_LORA} == HOW_TO_LORA


def small_llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_how_to_on_a_tiny_model_trains_as_trl_does(train: Train, claim: Path, tmp_path: Path, method: str) -> None:
    more = {"num_train_epochs": 2, "logging_steps": 1, "learning_rate": 1e-2}  # so that there is something to compare
    lora = LoraConfig(**HOW_TO_LORA, task_type="CAUSAL_LM") if method == "lora" else None
    trl = plain_trl(claim, tmp_path / "trl", lora, **(HOW_TO_ARGUMENTS | more))
    document = how_to(method)
    spec = document["spec"]
    spec["model"] = {"claim": {"name": "claim", "path": "tiny"}, "dtype": "float32"}
    spec["dataset"] = {"claim": {"name": "claim", "path": "text.jsonl"}, "format": "text"}
    spec["resources"] = {"gpus": 0}
    spec["training"] |= {"numTrainEpochs": 2, "loggingSteps": 1, "learningRate": 1e-2}
    hone = train(document)
    same_as_trl(trl, hone, tmp_path / "saved", method == "lora")
    assert "lrSchedulerType is constant, which ignores warmupSteps" in hone.log
    assert list((hone.output / "logs").glob("events.out.tfevents.*"))
    for name in ("loss", "grad_norm", "learning_rate", "epoch"):
        assert f"{name} " in hone.log
    for name in ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"):
        assert f"{name} " in hone.log
