"""Run in a pod: write a tiny Llama with random weights, its tokenizer and a chat template to the folder argv[1].

argv[2:]: the size of its hidden layer, of four heads, and the random seed.
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder, hidden, seed = sys.argv[1:] if len(sys.argv) > 2 else (sys.argv[1], "64", "0")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(
    [], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
)
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
fast.chat_template = CHAT_TEMPLATE

torch.manual_seed(int(seed))
config = LlamaConfig(
    vocab_size=len(fast),
    hidden_size=int(hidden),
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.2,
)
LlamaForCausalLM(config).save_pretrained(folder)
fast.save_pretrained(folder)
