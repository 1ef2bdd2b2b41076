"""A merged and saved model is base plus adapter, for any layers that an adapter can change, and this is checked."""

import copy
import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import long_matrix
import pytest
import torch
from hone_api.reasons import HoneError
from hone_trainer.merging.command import merge_adapter_into_base
from hone_trainer.models import lora, merge_proof
from hone_trainer.models.lora_targets import list_linear_layers
from hone_trainer.runtime.options import MergeOptions
from hone_trainer.storage import artifact
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}


def configs(vocabulary: int) -> dict[str, PreTrainedConfig]:
    sizes = SIZES | {"vocab_size": vocabulary}
    return {
        "llama": LlamaConfig(**sizes),
        "llama, tied": LlamaConfig(**sizes, tie_word_embeddings=True),
        "qwen2, tied": Qwen2Config(**sizes, tie_word_embeddings=True),
        "gemma, tied": GemmaConfig(**sizes, head_dim=8),
        "gpt2, tied": GPT2Config(vocab_size=vocabulary, **GPT2),
        "falcon, tied": FalconConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2
        ),
        # All experts answer each token: otherwise the router's choice would depend on rounding.
        "mixtral": MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=4),
    }


def last(name: str) -> str:
    return name.rpartition(".")[2]


def embedding_and_head(model: Any) -> tuple[str, str]:
    """Return their names in the architecture."""
    names = {id(module): last(name) for name, module in model.named_modules()}
    return names[id(model.get_input_embeddings())], names[id(model.get_output_embeddings())]


def adapted(config: PreTrainedConfig, dtype: torch.dtype, choice: random.Random) -> PeftModel:
    """Make a model with an adapter of random kind, layers and weights."""
    torch.manual_seed(choice.randrange(2**32))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # `to` would round the rotary frequencies as well
    ends = embedding_and_head(model)
    linear = list_linear_layers(model)
    targets = choice.sample(linear, choice.randint(1, len(linear)))
    targets += choice.choice([[], [ends[0]], [ends[1]], list(ends)])
    full = [name for name in ends if name not in targets and choice.random() < 0.3]
    only_linear = not set(ends) & set(targets)
    lora = LoraConfig(
        r=choice.choice([1, 4]),
        lora_alpha=8,
        target_modules=targets,
        modules_to_save=full or None,
        use_rslora=choice.random() < 0.3,
        use_dora=only_linear and choice.random() < 0.4,
        bias=choice.choice(["none", "none", "all", "lora_only"]),
        fan_in_fan_out=isinstance(config, GPT2Config),
        task_type="CAUSAL_LM",
    )
    network = get_peft_model(model, lora)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data += torch.randn_like(parameter) * 0.05
    return network.eval()  # type: ignore[return-value]


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Compute logits in float32, so that only the weights are rounded."""
    with torch.no_grad():
        found: torch.Tensor = copy.deepcopy(model).float().eval()(input_ids=tokens).logits
    return found


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance of most tokens: rounding may send a few to another expert."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)).quantile(0.75))


@pytest.mark.parametrize("seed", long_matrix.sample(range(400), "merged models", 16))
def test_any_adapter_merged_saved_and_loaded_is_base_plus_adapter(claim: Path, tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(claim / "tiny")
    architecture, config = choice.choice(list(configs(len(tokenizer)).items()))
    dtype, tolerance = choice.choice([(torch.float32, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
    network = adapted(config, dtype, choice)
    lora: Any = network.peft_config["default"]
    ends = set(embedding_and_head(network.get_base_model())) & {*lora.target_modules, *(lora.modules_to_save or [])}
    tokens = torch.arange(len(tokenizer))[None, :200]
    expected = logits(network, tokens)
    warnings: list[str] = []

    artifact.save_models(tmp_path, network, tokenizer, "both", lambda _: "card", lambda: network, warn=warnings.append)

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert warnings == []
    assert merged.dtype == dtype
    assert distance(logits(merged, tokens), expected) < tolerance
    if "tied" in architecture:
        assert merged.config.tie_word_embeddings is not bool(ends)


def forgotten(network: PeftModel) -> Any:
    """Merge with PEFT alone."""
    return network.merge_and_unload()


def unsaved(network: PeftModel) -> Any:
    """Return the base without the adapter."""
    return network.unload()


SPOILT = [(["embed_tokens"], forgotten), (["lm_head"], forgotten), (["q_proj", "down_proj"], unsaved)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("targets", "spoil"), SPOILT)
def test_a_merged_model_that_answers_differently_is_refused(
    claim: Path, tmp_path: Path, dtype: torch.dtype, targets: list[str], spoil: Callable[[PeftModel], Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(claim / "tiny")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs(len(tokenizer))["llama, tied"]).to(dtype)
    network: Any = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    compared = merge_proof.compare_with(network)
    check = functools.partial(artifact.check_merged, compared, False, pytest.fail)
    with pytest.raises(HoneError, match="differ from those of base plus adapter") as refused:
        artifact.save_model(tmp_path / "out", spoil(network), tokenizer, "card", check=check)
    assert refused.value.reason.name == "MergeMismatch"
    assert list(tmp_path.iterdir()) == []


def forget_the_adapter(network: PeftModel, *, safely: bool = True) -> Any:
    """Stand in for the merge of Hone: return a model that loads, and is the base."""
    return network.unload()


@pytest.fixture
def network(claim: Path, tmp_path: Path) -> Any:
    """Make a base in `base`, and an adapter of random weights on it, also in `adapter`."""
    torch.manual_seed(0)
    make_base(tmp_path, "llama, tied", claim)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    network: Any = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    network.save_pretrained(tmp_path / "adapter")
    return network


@pytest.mark.usefixtures("network")
def test_hone_merge_writes_no_model_that_answers_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "merge_adapter", forget_the_adapter)
    with pytest.raises(HoneError) as refused:
        merge_adapter_into_base(MergeOptions(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "base")))
    assert refused.value.reason.name == "MergeMismatch"
    assert not list(tmp_path.glob("*out*")), "nothing is left"


@pytest.mark.parametrize("kind", ["merged", "both"])
@pytest.mark.parametrize("is_shared", [False, True], ids=["one process", "several processes"])
def test_a_job_saves_no_merged_model_that_answers_differently(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, is_shared: bool
) -> None:
    monkeypatch.setattr(artifact, "merge_adapter", forget_the_adapter)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    weights = network.state_dict() if is_shared else None
    load_base = functools.partial(AutoModelForCausalLM.from_pretrained, tmp_path / "base")
    root = tmp_path / "tree"
    root.mkdir()
    with pytest.raises(HoneError) as refused:
        artifact.save_models(root, network, tokenizer, kind, str, load_base, weights, warn=pytest.fail)
    assert refused.value.reason.name == "MergeMismatch"
    assert [path.name for path in root.iterdir()] == (["adapter"] if kind == "both" else [])


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj", "lm_head"]])
def test_hone_merge_unties_layers_that_the_adapter_changes(claim: Path, tmp_path: Path, targets: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(claim / "tiny")
    model = AutoModelForCausalLM.from_config(configs(len(tokenizer))["llama, tied"])
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    network: Any = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    network.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(20)[None]
    expected = logits(network, tokens)
    merge_adapter_into_base(MergeOptions(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "base")))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not merged.config.tie_word_embeddings
    assert distance(logits(merged, tokens), expected) < 1e-5


def make_base(folder: Path, architecture: str, claim: Path) -> Path:
    """Save a model as its author would, with the data of the claim."""
    tokenizer = AutoTokenizer.from_pretrained(claim / "tiny")
    AutoModelForCausalLM.from_config(configs(len(tokenizer))[architecture]).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    shutil.copy(claim / "text.jsonl", folder)
    return folder


@pytest.mark.parametrize("architecture", ["mixtral", "gpt2, tied"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_saved_configuration_is_that_of_the_base(
    job: Job, train: Train, claim: Path, tmp_path: Path, architecture: str, method: str
) -> None:
    root = make_base(tmp_path, architecture, claim)
    settings = {"output": {"save": "merged"}} if method == "lora" else {}
    source = {"claim": {"name": "claim", "path": "base"}}
    done = train(job(model=source, method=method, **settings), claims={"claim": root})
    assert done.code == 0, done.log
    before = json.loads((root / "base/config.json").read_text())
    after = json.loads((done.output / done.manifest["kind"] / "config.json").read_text())
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"bos_token_id", "eos_token_id", "pad_token_id"}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_hone_merge_writes_the_same_model_as_the_job(
    job: Job, train: Train, claim: Path, tmp_path: Path, method: str
) -> None:
    root = make_base(tmp_path, "llama, tied", claim)
    source = {"claim": {"name": "claim", "path": "base"}}
    document = job(
        model=source,
        method=method,
        lora={"targetModules": ["q_proj", "embed_tokens"]} if method == "lora" else {"r": 2},
        output={"save": "both"},
        training={"eosToken": "<pad>"},
    )
    done = train(document, claims={"claim": root})
    assert done.code == 0, done.log
    merge_adapter_into_base(MergeOptions(done.output, tmp_path / "out"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads(
            (done.output / "merged" / name).read_text()
        )
    saved, merged = (load_file(folder / "model.safetensors") for folder in (done.output / "merged", tmp_path / "out"))
    assert saved.keys() == merged.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)
