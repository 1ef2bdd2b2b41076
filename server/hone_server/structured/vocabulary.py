"""Give llguidance the vocabulary of a model, and encode forced text in ordinary tokens.

In: the tokenizer as JSON. Out: an LLTokenizer, for `guidance` and for the processes of `grammar_trial`, which import
neither torch nor transformers. The library's own encoding reads the name of an added token, such as `<|im_end|>`, as
that token; in the strings of a schema it is text.
"""

import json
from functools import cached_property
from typing import Any

from llguidance import LLParserLimits, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper
from tokenizers import Tokenizer

PARSER_LIMITS = LLParserLimits(
    max_items_in_row=10_000,  # an object may have some 2,500 properties
    step_lexer_fuel=50_000,  # a token of an odd regular expression holds up all answers for 20 ms at most
    max_lexer_states=20_000,  # each takes 1 to 2 kB
    verbose_errors=False,
)
# llguidance encodes forced text again at each token, and uses only the first token of the result.
MAX_ENCODED_CHARACTERS = 4096


class PlainTextEncoder(TokenizerWrapper):
    """The tokenizer that llguidance calls to encode text. It reads the attributes without an underscore."""

    def __init__(self, native: LLTokenizer, plain: Tokenizer | None, eos_token_id: int) -> None:
        self.is_tokenizer_wrapper = True
        self.bos_token_id = None
        self.eos_token_id = eos_token_id
        self.tokens = [native.decode_bytes([token]) for token in range(native.vocab_size)]
        self.special_token_ids = [token for token in range(native.vocab_size) if native.is_special_token(token)]
        self._special = frozenset(self.special_token_ids)
        self._tokenizer = plain

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of the text, or of its beginning if it is long; never a special token."""
        if len(text) > 2 * MAX_ENCODED_CHARACTERS:
            text = text[:MAX_ENCODED_CHARACTERS]
        if self._tokenizer is not None:
            found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            # A normalizer may change the text, and merges may lead to the name of an added token.
            if self._special.isdisjoint(found) and b"".join(self.tokens[one] for one in found) == text.encode():
                return found
        return self._encode_greedily(text.encode())

    @cached_property
    def _token_ids(self) -> dict[bytes, int]:
        return {text: token for token, text in enumerate(self.tokens) if text and token not in self._special}

    def _encode_greedily(self, text: bytes) -> list[int]:
        """Return the tokens of the text, each the longest possible one."""
        found, longest = list[int](), max(map(len, self._token_ids), default=0)
        while text:
            lengths = range(min(longest, len(text)), 0, -1)
            length = next((one for one in lengths if text[:one] in self._token_ids), 0)
            if not length:
                break
            found.append(self._token_ids[text[:length]])
            text = text[length:]
        return found


def make_tokenizer(tokenizer: str, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    """Return the vocabulary of a tokenizer, which is given as its JSON. Raises ValueError."""
    native = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=eos_token_ids, slices=[])
    return LLTokenizer(
        PlainTextEncoder(native, _load_without_added_tokens(tokenizer), eos_token_ids[0]), eos_token=eos_token_ids
    )


def _load_without_added_tokens(tokenizer: str) -> Tokenizer | None:
    """Return the tokenizer for text in the middle of an answer; None if it needs its added tokens."""
    parts = json.loads(tokenizer)
    parts |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    parts["normalizer"] = _remove_prefix(parts.get("normalizer"))
    parts["pre_tokenizer"] = _remove_prefix(parts.get("pre_tokenizer"))
    try:
        return Tokenizer.from_str(json.dumps(parts))
    except Exception:  # the library has no class of its own for it
        return None


def _remove_prefix(part: Any) -> Any:
    """Return this step of a tokenizer, changed to add no space before the text; None: the step is removed."""
    match part:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return {**part, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**part, "add_prefix_space": False}
        case {"type": "Sequence"}:
            [key] = [name for name in part if name != "type"]
            steps = [step for one in part[key] if (step := _remove_prefix(one)) is not None]
            return {**part, key: steps}
    return part
