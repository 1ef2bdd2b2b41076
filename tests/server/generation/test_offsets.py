"""Where the tokens of a prompt begin in its text, over tokenizers of several kinds and texts with special tokens."""

from types import SimpleNamespace
from typing import Any

import pytest
from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.sampler import SamplingParams
from hone_server.generation.generate import make_completion_tasks
from hone_server.generation.logprobs import estimate_token_offsets, find_token_offsets
from hone_server.generation.served_model import make_served_model
from hone_server.protocol.requests import CompletionRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = ["hello", "world", "user", " ", "  ", "\n", "é", "😀", "日本", "A", *SPECIAL]


def wrapped(tokenizer: Any, *, begins: Any) -> Any:
    if begins:
        tokenizer.post_processor = processors.Sequence(
            [
                *([tokenizer.post_processor] if tokenizer.post_processor else []),
                processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
            ]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def byte_level(*, trims: Any, begins: Any) -> Any:
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġh", "el", "lo"]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "h"), ("e", "l"), ("l", "o")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trims)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return wrapped(tokenizer, begins=begins)


def sentence_piece(*, begins: Any) -> Any:
    """Return a tokenizer like Llama 2's: spaces become ▁, one precedes the text, and other characters are bytes."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrdus", "▁h", "el"]
    vocabulary = {token: number for number, token in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "h"), ("e", "l")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return wrapped(tokenizer, begins=begins)


def lowering() -> Any:
    """Return a tokenizer whose text differs from the prompt's."""
    tokenizer = byte_level(trims=False, begins=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(trims=False, begins=False),
    "byte level with a beginning": byte_level(trims=False, begins=True),
    "byte level that trims": byte_level(trims=True, begins=True),
    "sentence piece": sentence_piece(begins=True),
    "lower case": lowering(),
}


def planned(tokenizer: Any, text: Any) -> Any:
    """Return the job of a completion with this prompt."""
    lane = SimpleNamespace(max_model_len=4096, vocab_size=len(tokenizer), eos_token_ids=frozenset())
    model = make_served_model(ModelEntry("m", "model", "m"), tokenizer, lane, SamplingParams(1.0, 1.0, 0, 0))
    asked = CompletionRequest(model="m", prompt=text, echo=True, logprobs=1, max_tokens=1)
    [job] = make_completion_tasks(model, asked)
    return model, job


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
def test_each_token_begins_where_the_prompt_spells_it(name: str, words: Any) -> None:
    text = "".join(words)
    tokenizer = TOKENIZERS[name]
    model, job = planned(tokenizer, text)
    offsets = job.prompt_offsets
    assert job.echo == text
    assert len(offsets) == len(job.prompt)
    assert offsets == sorted(offsets)
    # An independent count: the bytes of the tokens so far.
    spelled = 0
    is_first = True
    for place, (token, offset) in enumerate(zip(job.prompt, offsets, strict=True)):
        if tokenizer("")["input_ids"] and place in (0, len(offsets) - 1):
            continue  # added by the tokenizer
        shown = model.decode_token([token])
        assert offset == len(text.encode()[:spelled].decode(errors="ignore"))
        if name == "sentence piece" and is_first:
            shown = shown.removeprefix(" ")
        is_first = shown in SPECIAL
        if "\ufffd" in shown:
            spelled += 1
            continue
        assert text[offset : offset + len(shown)].lower() == shown.lower()
        spelled += len(shown.encode())


def test_a_special_token_in_the_prompt_has_its_own_place() -> None:
    text = "<|im_start|>user\nhello<|im_end|>\n"
    _, job = planned(TOKENIZERS["byte level"], text)
    assert job.prompt_offsets[:2] == [0, len("<|im_start|>")]
    assert job.prompt_offsets[-2:] == [text.index("<|im_end|>"), len(text) - 1]


def test_a_space_that_the_tokenizer_leaves_out_of_a_span_belongs_to_its_token() -> None:
    assert find_token_offsets("a  b c", [(0, 1), (3, 4), (5, 6), (0, 0)], ["a", "  b", "c", "</s>"]) == [0, 1, 5, 6]


def test_without_the_tokenizers_spans_the_texts_are_searched() -> None:
    assert estimate_token_offsets("hello <s>x", ["<s>", " hel", "lo", "\ufffd", " ", "<s>", "x"]) == [
        0,
        0,
        3,
        5,
        5,
        6,
        9,
    ]
