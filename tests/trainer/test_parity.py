"""A run is what TRL does with the same arguments: the same losses and the same weights, bit for bit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_trl(
    claim: Path, folder: Path, lora: LoraConfig | None, quantization: BitsAndBytesConfig | None = None
) -> SFTTrainer:
    """What a user of TRL would write."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(claim / "tiny", quantization_config=quantization),
        processing_class=AutoTokenizer.from_pretrained(claim / "tiny"),
        train_dataset=load_dataset("json", data_files=str(claim / "text.jsonl"), split="train", cache_dir=str(folder)),
        args=SFTConfig(
            output_dir=str(folder),
            num_train_epochs=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            warmup_steps=0.25,
            logging_steps=5,
            activation_checkpointing=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            seed=7,
        ),
        peft_config=lora,
    )
    trainer.train()
    return trainer


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
    )
    document = job(
        method=method, **({} if method == "full" else {"lora": {"r": 4, "loraAlpha": 8, "loraDropout": 0.1}})
    )
    document["spec"]["training"] = {
        "numTrainEpochs": 2,
        "perDeviceTrainBatchSize": 2,
        "gradientAccumulationSteps": 2,
        "learningRate": 1e-2,
        "warmupSteps": 0.25,
        "loggingSteps": 5,
        "seed": 7,
    }
    hone = train(document)
    assert hone.code == 0, hone.log

    names = ("step", "loss", "grad_norm", "learning_rate", "num_tokens", "entropy", "mean_token_accuracy")
    expected = [{name: line[name] for name in names} for line in trl.state.log_history if "loss" in line]
    assert [{name: line[name] for name in names} for line in hone.metrics] == expected
    assert [line["step"] for line in expected] == [5, 10]
    assert hone.manifest["metrics"]["trainLoss"] == pytest.approx(trl.state.log_history[-1]["train_loss"], rel=1e-12)

    trl.save_model(str(tmp_path / "saved"))
    file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    theirs = load_file(tmp_path / "saved" / file)
    ours = load_file(hone.output / ("model" if method == "full" else "adapter") / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
