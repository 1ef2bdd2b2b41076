"""The tokenizers and chat templates of the generated cases: each is a way in which real ones differ.

`save_models` writes a tiny Llama with each tokenizer, as a claim holds base models. The vocabulary has the special
tokens of the common families, so that one template fits all tokenizers.
"""

from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "You are a helpful assistant. What is the weather in Paris today?",
    "user: say something assistant: the answer is a number, and it is small",
    "system user assistant tool name content function arguments",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 400
CONTEXT = 4096

# By name: what the tokenizer adds to a text ($A), and its special tokens. "words" splits as SentencePiece does.
TOKENIZERS: dict[str, tuple[str, dict[str, str]]] = {
    "plain": ("$A", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "adds BOS": ("<s> $A", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "adds BOS and EOS": ("<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "adds EOS": ("$A </s>", {"eos_token": "</s>", "pad_token": "<pad>"}),
    "no pad token": ("$A", {"bos_token": "<s>", "eos_token": "</s>"}),
    "pad token is EOS": ("$A", {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}),
    "EOS ends documents only": ("$A", {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}),
    "no EOS": ("$A", {"bos_token": "<s>", "pad_token": "<pad>"}),
    "words": ("<s> $A", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
}

_CHATML_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

HANDWRITTEN: dict[str, str] = {
    "eos": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "bos and eos": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}",
    "markers": "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "markers without the end token": "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "chatml": "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT,
    "no end": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "strips": "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}</s>{% endfor %}",
    "refuses system": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT,
    "alternates": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT,
    "drops system": "{% for m in messages if m.role != 'system' %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT,
    "prompt differs": "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n{% endif %}",
    "takes all": "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% if mood %}mood: {{ mood }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.thinking is defined %}<thinks>{{ m.thinking }}</thinks>{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% elif m.content %}{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% endif %}{% for c in m.tool_calls or [] %}<call>{{ c | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    + _CHATML_PROMPT,
    "shows keys": "{% for m in messages %}{% for k, v in m | items %}{{ k }}={{ v }};{% endfor %}{{ eos_token }}"
    "{% endfor %}",
    "named content": "{% for m in messages %}{{ m['content'] }}{% if m['content'] is none %}nothing{% endif %}"
    "<|im_end|>{% endfor %}",
    "type error": "{% for m in messages %}{{ m.role + 1 }}{% endfor %}",
    "nothing": "{% if false %}x{% endif %}",
}

# The templates of known models that come with TRL.
KNOWN: dict[str, str] = {
    path.name.removesuffix(".jinja"): path.read_text()
    for path in sorted(files("trl").joinpath("chat_templates").iterdir(), key=lambda path: path.name)
    if path.name.endswith(".jinja")
}

TEMPLATES = HANDWRITTEN | KNOWN


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a new tokenizer without a chat template."""
    added, special = TOKENIZERS[name]
    found = Tokenizer(models.BPE(unk_token="<unk>" if name == "words" else None))
    alphabet: list[str] = []
    if name == "words":
        found.pre_tokenizer = pre_tokenizers.Metaspace()
        found.decoder = decoders.Metaspace()
    else:
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        CORPUS * 4,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if added != "$A":
        ids = [(token, found.token_to_id(token)) for token in SPECIAL]
        found.post_processor = processors.TemplateProcessing(single=added, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=found, **special)


def save_models(folder: Path) -> dict[str, Path]:
    """Save a tiny Llama with each tokenizer below `folder`; return the folder of each."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("</s>"),
    )
    network = LlamaForCausalLM(config)
    saved = {}
    for number, name in enumerate(TOKENIZERS):
        saved[name] = folder / f"model-{number}"
        network.save_pretrained(saved[name])
        make_tokenizer(name).save_pretrained(saved[name])
    return saved
