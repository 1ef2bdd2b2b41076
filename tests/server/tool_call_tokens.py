"""The tokens with which models mark tool calls, for the vocabulary of a test's tokenizer."""

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
SPECIAL_TOKENS = ["[TOOL_CALLS]", "<|python_tag|>"]


def add_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the tokens of tool calls in its vocabulary."""
    tokenizer.add_tokens([AddedToken(token, special=False) for token in TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer
