"""Rows that a model can't read, by its embeddings and its positions, compared with what the model does."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hone_api.reasons import HoneError
from hone_trainer.checks import limits
from hone_trainer.checks.limits import ModelLimits
from hone_trainer.data.statistics import Truncation
from hone_trainer.memory import architecture
from transformers import AutoModelForCausalLM

Job = Callable[..., dict[str, Any]]
MOST = 16
SIZES: dict[str, int] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": MOST,
}  # fmt: skip
GPT: dict[str, int] = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": MOST}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": MOST, "rope_theta": 1e4}
OPT = {"ffn_dim": 32, "word_embed_proj_dim": 32}
MPT = {"d_model": 32, "n_layers": 1, "n_heads": 4, "vocab_size": 64, "max_seq_len": MOST}
CONFIGS: dict[str, tuple[str, dict[str, Any], int | None, bool]] = {
    "GPT-2": ("GPT2Config", GPT, MOST, True),
    "GPT-BigCode": ("GPTBigCodeConfig", GPT, MOST, True),
    "GPT-J": ("GPTJConfig", GPT | {"rotary_dim": 4}, MOST, True),
    "CodeGen": ("CodeGenConfig", GPT | {"rotary_dim": 4}, MOST, True),
    "GPT": ("OpenAIGPTConfig", GPT, MOST, True),
    "CTRL": ("CTRLConfig", GPT | {"dff": 32}, MOST, True),
    "OPT": ("OPTConfig", SIZES | OPT, MOST, True),
    "BioGPT": ("BioGptConfig", SIZES, MOST, True),
    "BERT": ("BertConfig", SIZES | {"is_decoder": True}, MOST, True),
    "RoBERTa": ("RobertaConfig", SIZES | {"is_decoder": True}, MOST - 2, True),
    "MPT": ("MptConfig", MPT, MOST, True),
    "BLOOM": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4}, None, False),
    "Mamba": ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}, None, False),
    "Falcon with ALiBi": ("FalconConfig", SIZES | {"alibi": True}, None, False),
    "Falcon": ("FalconConfig", SIZES, MOST, False),
    "Llama": ("LlamaConfig", SIZES, MOST, False),
    "Llama with YaRN": ("LlamaConfig", SIZES | {"rope_parameters": YARN}, 4 * MOST, False),
    "Mistral": ("MistralConfig", SIZES | {"num_key_value_heads": 2, "sliding_window": 8}, MOST, False),
    "GPT-NeoX": ("GPTNeoXConfig", SIZES, MOST, False),
    "Gemma 2": ("Gemma2Config", SIZES | {"num_key_value_heads": 2, "head_dim": 8}, MOST, False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_positions_are_those_that_the_model_has(name: str) -> None:
    kind, sizes, positions, is_hard = CONFIGS[name]
    config = getattr(transformers, kind)(**sizes)
    found = limits.read_model_limits(architecture.build_meta_model(config))
    assert found == ModelLimits(64, positions, is_hard)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")

    def read(length: int) -> None:
        with torch.no_grad():
            model(input_ids=torch.full((1, length), 5))

    read(positions or 2 * MOST)
    if is_hard:
        with pytest.raises((IndexError, RuntimeError)):
            read((positions or 0) + 1)
    else:
        read((positions or 2 * MOST) + 1)


def test_positions_of_images_are_not_those_of_text() -> None:
    text = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
    vision = SIZES | {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    assert limits.read_model_limits(architecture.build_meta_model(config)) == ModelLimits(64, MOST, is_hard=False)


@pytest.mark.parametrize(
    ("way", "lengths", "too_long"),
    [
        ({"max_length": 32}, [10, 40, 17], 2),
        ({"max_length": 32}, [10, 16], 0),
        ({"max_length": 16}, [10, 40], 0),
        ({"max_length": None}, [10, 40], 1),
        ({"max_length": 32, "packing": True, "packing_strategy": "bfd"}, [10, 16, 9], 0),
        ({"max_length": 32, "packing": True, "packing_strategy": "bfd_split"}, [10, 40], 1),
        ({"max_length": 32, "packing": True, "packing_strategy": "wrapped"}, [10, 10], 2),
        ({"max_length": 32, "packing": True, "packing_strategy": "wrapped"}, [10, 6], 0),
    ],
)
def test_rows_are_compared_with_the_positions_after_cutting(
    way: dict[str, Any], lengths: list[int], too_long: int
) -> None:
    defaults = {"packing": False, "packing_strategy": "bfd", "truncation_mode": "keep_start"}
    args = SimpleNamespace(**defaults | way)
    call = (args, Truncation.from_args(args, args.packing), args.packing)  # type: ignore[arg-type]
    soft = limits.check_lengths(np.array(lengths), ModelLimits(None, 16, is_hard=False), *call)
    assert sum(finding.count for finding in soft) == too_long
    if too_long:
        with pytest.raises(HoneError, match="the model has 16 positions"):
            limits.check_lengths(np.array(lengths), ModelLimits(None, 16, is_hard=True), *call)
    else:
        assert not limits.check_lengths(np.array(lengths), ModelLimits(None, 16, is_hard=True), *call)


def test_a_token_without_an_embedding_is_refused(warnings_of: Any, tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("</s>")
    tokenizer.add_tokens(["<new>"])
    size = len(tokenizer) - 1
    rows = [{"text": "old"}, {"text": "a <new> one"}, {"text": "<new><new>"}]
    with pytest.raises(HoneError) as refused:
        warnings_of(rows, tokenizer, limits=ModelLimits(size, None, is_hard=False))
    assert refused.value.message == (
        "2 of 3 rows to train on have tokens that the model has no embedding for, such as '<new>': it is token "
        f"{size} of the tokenizer, and the model has {size} embeddings (first: rows.jsonl, line 2)"
    )
    assert not warnings_of(rows, tokenizer, limits=ModelLimits(size + 1, None, is_hard=False))


def test_a_padding_token_without_an_embedding_is_refused(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("</s>")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    training = SimpleNamespace(pad_token=None, eos_token=None)
    with pytest.raises(HoneError, match=r"padded with '<pad>'"):
        limits.check_padding(ModelLimits(len(tokenizer) - 1, None, is_hard=False), tokenizer, training)  # type: ignore[arg-type]
    training.pad_token = "</s>"
    limits.check_padding(ModelLimits(len(tokenizer) - 1, None, is_hard=False), tokenizer, training)  # type: ignore[arg-type]


def test_rows_longer_than_the_positions_of_a_model_are_refused(
    job: Job, train: Any, claim: Path, tmp_path: Path
) -> None:
    config = transformers.GPT2Config(**GPT | {"vocab_size": 320, "n_positions": 8})  # type: ignore[arg-type]
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    for path in (claim / "tiny").glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    document = job(model={"claim": {"name": "short"}}, lora={"targetModules": ["c_attn"]})
    failed = train(document, claims={"claim": claim, "short": tmp_path}, command="prepare")
    assert (failed.code, failed.message["reason"]) == (64, "InvalidSpec"), failed.log
    assert "spec.training.maxLength 1024, and the model has 8 positions" in failed.message["message"]
