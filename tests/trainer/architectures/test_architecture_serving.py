"""The embedded engine answers as plain transformers and PEFT do, or reports why it can't serve an architecture."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_table import TABLE, Architecture, gpt_like, llama_like
from hone_api.reasons import HoneError
from hone_server.artifacts.sources import find_model_sources
from hone_server.model_registry import ModelRegistry
from long_matrix import sample
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

MakeArchitecture = Callable[[Architecture], Path]
PROMPT = list(range(40, 60))
NEW = 12
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
GEMMA4 = LAYERS | {"global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320}
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 4}
SERVED = [one for one in TABLE if one.unserved is None]
UNSERVED = [
    *(one for one in TABLE if one.unserved is not None),
    Architecture("diffllama", "DiffLlamaConfig", llama_like(), unserved="computes several times in each layer"),
    Architecture("doge", "DogeConfig", llama_like(), unserved="a mask of its own"),
    Architecture("bert", "BertConfig", gpt_like(), unserved="reads later tokens as well"),
    Architecture("roberta", "RobertaConfig", gpt_like(is_decoder=True), unserved="the number of its padding token"),
    Architecture("gemma4", "Gemma4TextConfig", llama_like(head_dim=8, **GEMMA4), unserved="heads of different sizes"),
]


def generate(network: Any) -> list[int]:
    """Continue the prompt greedily with plain transformers, without a cache."""
    tokens = list(PROMPT)
    with torch.no_grad():
        for _ in range(NEW):
            logits = network(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(PROMPT) :]


async def serve(base: Path, adapter: Path | None) -> dict[str, list[int]]:
    """Load the engine in this process and let each of its models continue the prompt."""
    adapters = {"tuned": adapter} if adapter else {}
    service = ModelRegistry(find_model_sources(str(base), name="base", adapters=adapters, expected={}, claims={}), 128)
    try:
        await service.load_models()
        answers = {}
        for name in ["base", *adapters]:
            model = service.get_model(name)
            greedy = replace(model.default_params, temperature=0)
            async for tokens in model.handle.generate(PROMPT, greedy, NEW, stream=False, ignore_eos=True):
                answers[name] = answers.get(name, []) + tokens.token_ids
        return answers
    finally:
        service.stop()


@pytest.mark.parametrize("architecture", sample(SERVED, "architectures: serving", 4), ids=lambda one: one.name)
def test_the_engine_answers_as_transformers_does(
    architecture: Architecture, make_architecture: MakeArchitecture, tmp_path: Path
) -> None:
    folder = make_architecture(architecture)
    base: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain = generate(base)
    torch.manual_seed(1)
    linear = {name for name, part in base.named_modules() if type(part).__name__ in ("Linear", "Conv1D")} - {"lm_head"}
    lora = LoraConfig(r=4, target_modules=sorted(linear)[:4], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    answers = asyncio.run(serve(folder, tmp_path / "adapter"))
    assert answers == {"base": plain, "tuned": generate(tuned)}


@pytest.mark.parametrize("architecture", sample(UNSERVED, "architectures: unserved", 3), ids=lambda one: one.name)
def test_the_engine_reports_why_it_can_not_serve(
    architecture: Architecture, make_architecture: MakeArchitecture
) -> None:
    with pytest.raises(HoneError) as refused:
        asyncio.run(serve(make_architecture(architecture), None))
    assert refused.value.reason.name == "ModelUnsupported"
    assert architecture.unserved
    assert architecture.unserved in refused.value.message


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_type": "of-tomorrow"}, "of-tomorrow` but Transformers does not recognize this architecture"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}, "brings code of its own"),
        ({"model_type": "t5"}, "is of the type t5, an encoder-decoder"),
        ({"model_type": "vit"}, "is of the type vit, which transformers has no causal language model for"),
    ],
)
def test_a_model_that_transformers_does_not_have_is_unsupported(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(HoneError) as refused:
        asyncio.run(serve(tmp_path, None))
    assert refused.value.reason.name == "ModelUnsupported"
    assert words in refused.value.message


def test_the_text_of_a_model_that_also_reads_images_is_served(make_architecture: MakeArchitecture) -> None:
    sizes = {"text_config": llama_like(head_dim=8, vocab_size=320, **LAYERS), "vision_config": VISION}
    folder = make_architecture(Architecture("gemma3-images", "Gemma3Config", sizes))
    plain = generate(AutoModelForCausalLM.from_pretrained(folder).eval())
    assert asyncio.run(serve(folder, None)) == {"base": plain}
