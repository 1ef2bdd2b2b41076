"""Create models and rows without a hub: random Llamas whose tokens are bytes, and a few sentences."""

import json
from pathlib import Path

from acceptance.context import Context, Figures

SENTENCES = (
    "the trainer reads the manifest that the cluster takes",
    "a checkpoint is complete or it is absent",
    "every failure has a name and a remedy",
    "nothing is lost when a process is killed",
)
COPIES = 16
SPECIAL = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_inputs(context: Context) -> Figures:
    """Make the small model, the rows, and on a GPU the model whose memory is measured."""
    sizes = {"model": make_model(context.folder / "model", hidden=256, layers=4)}
    if context.device == "gpu":
        sizes["large"] = make_model(context.folder / "large", hidden=2048, layers=6)
        rows = [{"text": "".join(f"{(index * 7 + word) % 97:02d} " for word in range(400))} for index in range(48)]
        _write_rows(context.folder / "long.jsonl", rows)
    _write_rows(context.folder / "rows.jsonl", [{"text": text} for _ in range(COPIES) for text in SENTENCES])
    return {"parameters": sizes}


def make_model(folder: Path, hidden: int, layers: int) -> int:
    """Save a random Llama with heads of 64, and return the number of its parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())


def _write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
