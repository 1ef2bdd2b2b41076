"""A tiny random chat model, and the output of figures, for all benchmarks."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROW_WORDS = 40


def make_model(folder: Path) -> Path:
    """Save a random Llama of 1.4 million parameters whose tokens are bytes. Small, so that overheads show."""
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
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_rows(file: Path, rows: int) -> Path:
    """Save a JSON-lines dataset of text rows."""
    texts = (" ".join(f"word{(index * 7 + word) % 97}" for word in range(ROW_WORDS)) for index in range(rows))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def run(command: list[str]) -> tuple[str, int]:
    """Return the command's output, and its process's peak memory in bytes. Exits with its output when it fails."""
    with tempfile.TemporaryFile("w+") as out:
        with subprocess.Popen(command, stdout=out, stderr=out, env=dict(os.environ, HF_HUB_OFFLINE="1")) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        printed = out.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}\n{printed[-3000:]}")
    return printed, usage.ru_maxrss * 1024


def print_comparison(name: str, unit: str, ours: list[float], theirs: list[float], them: str) -> None:
    """Print both medians with their ranges, and the ratio ours / theirs."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"{name}: hone {format_spread(ours)}, {them} {format_spread(theirs)} {unit}; ratio {ratio:.3f}", flush=True)


def format_spread(values: list[float]) -> str:
    """Return the median of values, and their range."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
