"""qlora, the kinds of LoRA, and bitsandbytes' optimizers: trained, resumed, refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_api.reasons import HoneError
from hone_trainer.models.quantization import require_bitsandbytes
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
PROMPT = "what was trained"
ADAPTER = "adapter/adapter_model.safetensors"


def logits(model: Any, folder: Path) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return model.eval()(**tokens).logits.float()


def stop_at(document: dict[str, Any], steps: int) -> dict[str, Any]:
    """Change the job to save a checkpoint after `steps` and keep it next to later ones."""
    return document | {"spec": document["spec"] | {"checkpoint": {"saveSteps": steps, "saveTotalLimit": 100}}}


def resume_from(output: Path, step: int) -> None:
    """Make the output look as if the run had ended at the checkpoint of `step`."""
    (output / "manifest.json").unlink()
    for checkpoint in (output / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            (checkpoint / "hone.json").unlink()


def qlora_job(job: Job) -> dict[str, Any]:
    lora = {"r": 8, "loraDropout": 0.1}
    return stop_at(job(method="qlora", lora=lora, output={"save": "both"}, training={"maxSteps": 20}), 8)


@pytest.fixture(scope="module")
def qlora(job: Job, train: Train) -> Any:
    return train(qlora_job(job))


def test_qlora_learns_and_its_adapter_loads_on_the_base_in_4_bits_and_in_full(qlora: Any, claim: Path) -> None:
    assert qlora.code == 0, qlora.log
    losses = [line["loss"] for line in qlora.metrics]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05
    for quantization in (NF4, None):
        base = AutoModelForCausalLM.from_pretrained(claim / "tiny", quantization_config=quantization)
        before = logits(base, claim / "tiny")
        adapted = logits(PeftModel.from_pretrained(base, qlora.output / "adapter"), claim / "tiny")
        assert (adapted - before).abs().max() > 0.1


def test_qlora_trains_a_bfloat16_adapter_on_a_base_that_is_counted_in_full(qlora: Any, claim: Path) -> None:
    written = load_file(qlora.output / ADAPTER)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    config = json.loads((qlora.output / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(claim / "tiny")
    base = AutoModelForCausalLM.from_pretrained(claim / "tiny")
    trainable = sum(tensor.numel() for tensor in written.values())
    assert qlora.message["parameters"] == {"trainable": trainable, "total": base.num_parameters() + trainable}


def test_qlora_merges_into_the_unquantized_base(qlora: Any, claim: Path) -> None:
    merged = AutoModelForCausalLM.from_pretrained(qlora.output / "merged")
    assert not hasattr(merged.config, "quantization_config")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(claim / "tiny"), qlora.output / "adapter")
    in_4_bits = AutoModelForCausalLM.from_pretrained(claim / "tiny", quantization_config=NF4)
    on_4_bits = PeftModel.from_pretrained(in_4_bits, qlora.output / "adapter")
    found = logits(merged, claim / "tiny")
    torch.testing.assert_close(found, logits(adapted, claim / "tiny"), atol=1e-5, rtol=1e-5)
    assert (found - logits(on_4_bits, claim / "tiny")).abs().max() > 1e-3


def test_qlora_resumes_bit_for_bit(qlora: Any, job: Job, train: Train) -> None:
    whole, metrics = (qlora.output / ADAPTER).read_bytes(), qlora.metrics
    resume_from(qlora.output, 8)
    again = train(qlora_job(job), output=qlora.output)
    assert again.code == 0, again.log
    assert "checkpoint at step 8 of 20" in again.log
    assert (again.output / ADAPTER).read_bytes() == whole
    assert again.metrics == metrics


def test_qlora_trains_with_activation_checkpointing_and_autocast(job: Job, train: Train) -> None:
    done = train(job(method="qlora", training={"maxSteps": 12, "activationCheckpointing": True, "bf16": True}))
    assert done.code == 0, done.log
    losses = [line["loss"] for line in done.metrics]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    ("optim", "paged"), [("adamw_8bit", False), ("adamw_bnb_8bit", False), ("paged_adamw_8bit", True)]
)
def test_8_bit_optimizers_resume_bit_for_bit(job: Job, train: Train, optim: str, paged: bool) -> None:
    document = stop_at(job(method="full", training={"maxSteps": 8, "optim": optim}), 5)
    first = train(document)
    assert first.code == 0, first.log
    assert ("not paged" in first.log) == paged
    state = torch.load(first.output / "checkpoints/step-00000005/optimizer.pt", weights_only=False)["state"]
    kept = [held["__bnb_optimizer_quant_state__"] for held in state.values()]
    # Embeddings, and tensors of fewer than 4096 elements, stay in 32 bits: all of this model but the output head.
    assert [found["state1"].shape for found in kept if found["state1"].dtype == torch.uint8] == [(320, 32)]
    whole = (first.output / "model/model.safetensors").read_bytes()
    resume_from(first.output, 5)
    again = train(document, output=first.output)
    assert "checkpoint at step 5 of 8" in again.log
    assert (again.output / "model/model.safetensors").read_bytes() == whole


def test_a_paged_32_bit_optimizer_trains(job: Job, train: Train) -> None:
    done = train(job(training={"optim": "paged_adamw_32bit"}))
    assert done.code == 0, done.log
    assert "spec.training.optim is paged_adamw_32bit, and torch sees no GPU: its state is not paged" in done.log


def test_an_optimizer_whose_package_is_missing_is_refused_before_the_data_is_prepared(job: Job, train: Train) -> None:
    refused = train(job(training={"optim": "lomo"}))
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec")
    assert "spec.training.optim is lomo, which can't be used:" in refused.message["message"]
    assert not (refused.output / "prepared").exists()


def test_bitsandbytes_is_requested_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.cextension", None)
    with pytest.raises(HoneError) as refused:
        require_bitsandbytes("spec.method is qlora")
    assert refused.value.message.startswith("spec.method is qlora, and bitsandbytes can't be imported:")
    assert "pip install" in refused.value.remedy


@pytest.fixture(scope="module")
def quantized(claim: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    AutoModelForCausalLM.from_pretrained(claim / "tiny", quantization_config=NF4).save_pretrained(folder / "nf4")
    AutoTokenizer.from_pretrained(claim / "tiny").save_pretrained(folder / "nf4")
    return {"claim": claim, "quantized": folder}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "qlora"}, "spec.method is qlora, and {} is quantized already (bitsandbytes)"),
        ({"method": "full"}, "spec.method is full, and {} is quantized already (bitsandbytes)"),
        ({"output": {"save": "merged"}}, "spec.output.save is merged, and {} is quantized (bitsandbytes)"),
    ],
    ids=["qlora", "full", "merged"],
)
def test_a_quantized_model_is_refused_where_it_does_not_fit(
    job: Job, train: Train, quantized: dict[str, Path], changes: dict[str, Any], message: str
) -> None:
    model = {"claim": {"name": "quantized", "path": "nf4"}}
    refused = train(job(model=model, **changes), claims=quantized)
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec"), refused.log
    assert message.format(quantized["quantized"] / "nf4") in refused.message["message"]


def test_lora_trains_on_a_quantized_model(job: Job, train: Train, quantized: dict[str, Path]) -> None:
    done = train(job(model={"claim": {"name": "quantized", "path": "nf4"}}), claims=quantized)
    assert done.code == 0, done.log
    assert done.manifest["baseConfig"] == done.message["artifact"]["baseConfig"] == base_config("bitsandbytes")


def base_config(quantization: str | None = None) -> dict[str, Any]:
    """Return that of the tests' Llama: keys and values of 2 layers, 2 heads of 8 numbers, 2 bytes each."""
    found = {"architecture": "LlamaForCausalLM", "embeddingModules": ["embed_tokens", "lm_head"]}
    return found | {"cacheBytesPerToken": 128} | ({"quantization": quantization} if quantization else {})


def test_facts_for_engines_are_those_of_the_checkpoint(job: Job, train: Train) -> None:
    """Check that neither a quantizing method nor an adapter on the embeddings changes it."""
    for changes in ({"method": "qlora"}, {"method": "full"}, {"lora": {"targetModules": ["embed_tokens", "q_proj"]}}):
        done = train(job(**changes))
        assert done.code == 0, done.log
        assert done.manifest["baseConfig"] == base_config()


@pytest.mark.parametrize("targets", [["q_proj", "elbow"], ["q_proj", "mlp"]])
def test_a_target_that_is_not_a_layer_is_named_with_the_existing_layers(
    job: Job, train: Train, targets: list[str]
) -> None:
    refused = train(job(lora={"targetModules": targets}))
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec")
    assert f"spec.lora.targetModules[1] is '{targets[1]}'" in refused.message["message"]
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in refused.message["message"]


def test_only_named_targets_are_trained(job: Job, train: Train) -> None:
    done = train(job(lora={"r": 4, "targetModules": ["q_proj", "layers.1.mlp.up_proj"]}))
    assert done.code == 0, done.log
    changed = {name.partition(".lora_")[0].rpartition("layers.")[2] for name in load_file(done.output / ADAPTER)}
    assert changed == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}


@pytest.mark.parametrize("lora", [{"useDora": True}, {"bias": "all"}, {"r": 600}])
def test_an_adapter_that_vllm_refuses_is_reported_unless_it_is_merged(
    job: Job, train: Train, lora: dict[str, Any]
) -> None:
    ((field, value),) = lora.items()
    shown = str(value).lower() if value is True else value
    alone, merged = (train(job(lora=lora, output={"save": save})) for save in ("adapter", "merged"))
    assert (alone.code, merged.code) == (0, 0), alone.log
    assert f"spec.lora.{field} is {shown}" in alone.log
    assert "vLLM can't serve such an adapter" in alone.log
    assert "vLLM" not in merged.log
