"""Base models that are not what they seem are refused in the preparation, and by every loader, with the true reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hone_api.reasons import HoneError
from hone_trainer.checks.limits import read_model_limits
from hone_trainer.memory import architecture
from hone_trainer.merging.command import merge_adapter_into_base
from hone_trainer.models import weight_files
from hone_trainer.runtime.options import MergeOptions
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
HEAD = "lm_head.weight"


@pytest.fixture
def broken(claim: Path, tmp_path: Path) -> Path:
    """Copy the tiny model to a claim of its own, to be changed."""
    return Path(shutil.copytree(claim / "tiny", tmp_path / "broken"))


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights of a model in its file."""
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def split(folder: Path) -> None:
    """Keep an index and the first of two files."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    max(folder.glob("model-*.safetensors")).unlink()


def as_bin(folder: Path) -> None:
    """Save the weights as torch does, without one of them."""
    found = load_file(folder / "model.safetensors")
    del found[HEAD]
    (folder / "model.safetensors").unlink()
    torch.save(found, folder / "pytorch_model.bin")


def point(folder: Path) -> None:
    """Replace the weights by a pointer of Git LFS."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(text)


def add_adapter(folder: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).save_pretrained(folder)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "adapter": (add_adapter, "holds an adapter"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    "no-head": (lambda folder: rewrite(folder, lambda found: found.pop(HEAD)), f"such as {HEAD}"),
    "no-head-bin": (as_bin, f"such as {HEAD}"),
    "prefix": (
        lambda folder: rewrite(folder, lambda found: [found.update({f"x.{n}": found.pop(n)}) for n in list(found)]),
        "they would be random",
    ),
    "vocabulary": (lambda folder: configure(folder, vocab_size=400), "[400, 32] by config.json"),
    "key-heads": (lambda folder: configure(folder, num_key_value_heads=4), "k_proj.weight has the shape [16, 32]"),
    "no-shard": (split, "such as model-00002"),
    "lfs": (point, "a pointer of Git LFS"),
    "unknown": (lambda folder: configure(folder, quantization_config={"quant_method": "odd"}), "does not know (odd)"),
    "gptq": (
        lambda folder: configure(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantized (gptq), and a package for that is missing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_base_model_that_can_not_be_loaded_is_refused_in_prepare(
    job: Job, train: Train, claim: Path, broken: Path, fault: str
) -> None:
    spoil, words = FAULTS[fault]
    spoil(broken)
    spec = job(model={"claim": {"name": "broken"}})
    failed = train(spec, claims={"claim": claim, "broken": broken}, command="prepare")
    assert (failed.code, failed.message["reason"]) == (66, "ModelInvalid"), failed.log
    assert words in failed.message["message"]


@pytest.mark.parametrize("fault", ["adapter", "no-head", "vocabulary"])
def test_an_adapter_is_not_merged_into_a_base_that_is_refused(broken: Path, claim: Path, fault: str) -> None:
    spoil, words = FAULTS[fault]
    add_adapter(whole := Path(shutil.copytree(claim / "tiny", broken.parent / "whole")))
    spoil(broken)
    with pytest.raises(HoneError) as refused:
        merge_adapter_into_base(MergeOptions(whole, broken.parent / "out", base=str(broken)))
    assert refused.value.reason.name == "ModelInvalid"
    assert words in refused.value.message
    assert not (broken.parent / "out").exists()


def test_unused_weights_are_reported(job: Job, train: Train, claim: Path, broken: Path) -> None:
    configure(broken, num_hidden_layers=1)
    rewrite(broken, lambda found: found.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    spec = job(model={"claim": {"name": "broken"}})
    prepared = train(spec, claims={"claim": claim, "broken": broken}, command="prepare")
    assert prepared.code == 0, prepared.log
    assert "hold 9 weights that LlamaForCausalLM with its config.json does not use: model.layers.1." in prepared.log


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_that_are_not_finite_are_named(job: Job, train: Train, claim: Path, broken: Path, method: str) -> None:
    rewrite(broken, lambda found: found["model.layers.1.mlp.up_proj.weight"][0].fill_(float("nan")))
    spec = job(model={"claim": {"name": "broken"}}, method=method)
    failed = train(spec, claims={"claim": claim, "broken": broken})
    assert (failed.code, failed.message["reason"]) == (68, "NonFiniteLoss"), failed.log
    assert "model.layers.1.mlp.up_proj" in failed.message["message"]
    assert "learningRate" not in failed.message["message"]


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "d_head": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
}
DECODERS = ["GPTNeoX", "Bart", "Pegasus", "XGLM", "OPT"]
ENCODERS = ["Bert", "Roberta", "Electra", "Camembert", "MegatronBert", "RoFormer", "RemBert", "XLNet"]


@torch.no_grad()
def reads_ahead(network: Any) -> bool:
    """Return whether the last of some tokens changes what is predicted after the first."""
    tokens = torch.arange(5, 13)[None]
    other = tokens.clone()
    other[0, -1] = 20
    first, second = (network(input_ids=one).logits[0, 0] for one in (tokens, other))
    return not torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS + ENCODERS)
@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_model_whose_tokens_attend_to_later_ones_is_refused(name: str, is_decoder: bool) -> None:
    given = {"is_decoder": True} if is_decoder and name in ENCODERS else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, **given)
    torch.manual_seed(0)
    config.initializer_range = config.init_std = 0.2
    network: Any = AutoModelForCausalLM.from_config(config)
    if not reads_ahead(network.eval()):
        architecture.build_meta_model(config)
        return
    assert name in ENCODERS
    with pytest.raises(HoneError, match="each token reads the tokens that follow it"):
        architecture.build_meta_model(config)


def test_the_context_is_that_of_the_positions(tmp_path: Path) -> None:
    mpt = transformers.MptConfig(d_model=32, n_layers=1, n_heads=4, max_seq_len=77, vocab_size=64)
    roberta = transformers.RobertaConfig(**(SIZES | {"pad_token_id": 1}), max_position_embeddings=66, is_decoder=True)
    assert read_model_limits(architecture.build_meta_model(mpt)).positions == 77
    assert read_model_limits(architecture.build_meta_model(roberta)).positions == 64


def test_code_of_the_model_decides_which_files_are_read(broken: Path) -> None:
    outline = architecture.build_meta_model(AutoConfig.from_pretrained(broken))
    (broken / "model.safetensors").unlink()
    with pytest.raises(HoneError):
        weight_files.check_weight_files(outline, broken, "The base model")
    outline.__class__ = type("OwnModel", (type(outline),), {})
    assert weight_files.check_weight_files(outline, broken, "The base model") == []
