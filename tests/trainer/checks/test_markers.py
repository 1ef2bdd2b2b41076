"""With assistantOnlyLoss, rows that learn other tokens than those of the marked turns are counted."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hone_api.reasons import HoneError
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import PythonBackend

HEADER, END = "<|im_start|>", "<|im_end|>"
TURNS = ["user", "assistant", "user", "assistant", "user", "assistant"]
ANSWERS = ["a b", "\nb", "c \n"]
MARKED = {
    # text before and after the answer inside {% generation %}, and after it outside
    "the answer and its end": ("", END, "\n"),
    "the answer alone": ("", "", END),
    "a line break last": ("", END + "\n", ""),
    "a space last": ("", " ", END),
    "a line break first": ("\n", END, "\n"),
    "line breaks around": ("\n", END + "\n", ""),
}


def make_template(before: str, after: str, outside: str) -> str:
    header = f"{{{{ '{HEADER}' + m.role + ':' }}}}"
    inside = f"{{{{ {before!r} + m.content + {after!r} }}}}"
    return (
        f"{{% for m in messages %}}{header}{{% if m.role == 'assistant' %}}{{% generation %}}{inside}"
        f"{{% endgeneration %}}{{{{ {outside!r} }}}}{{% else %}}{{{{ m.content + {END!r} }}}}{{% endif %}}"
        "{% endfor %}"
    )


def keep_all(inner: Any) -> None:
    return


def drop_between_words(inner: Any) -> None:
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), inner.pre_tokenizer])


def delete_line_breaks(inner: Any) -> None:
    inner.normalizer = normalizers.Replace(Regex("\n"), "")


def trim_offsets(inner: Any) -> None:
    from tokenizers import processors

    inner.post_processor = processors.ByteLevel(trim_offsets=True)


def find_true_labels(messages: list[dict[str, str]], marked: tuple[str, str, str], tokenizer: Any) -> list[bool]:
    """Return whether each token is the assistant's: every piece of text is tokenized alone."""
    before, after, outside = marked
    pieces = []
    for message in messages:
        pieces.append((f"{HEADER}{message['role']}:", False))
        if message["role"] == "assistant":
            pieces += [(before + message["content"] + after, True), (outside, False)]
        else:
            pieces.append((message["content"] + END, False))
    return [label for text, label in pieces for _ in tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("drops", [keep_all, drop_between_words, delete_line_breaks, trim_offsets])
@pytest.mark.parametrize("marked", MARKED.values(), ids=MARKED)
def test_tokens_that_are_wrongly_learned_or_not_are_counted(
    warnings_of: Callable[..., list[str]], tokenizer_of: Callable[..., Any], marked: Any, drops: Callable[[Any], None]
) -> None:
    tokenizer = tokenizer_of(END, make_template(*marked).replace("<|im_start|>", HEADER))
    drops(tokenizer.backend_tokenizer)
    foreign, missed = [], []
    rows = []
    for turns in (1, 2, 4, 5, 6):
        messages = [{"role": role, "content": ANSWERS[turn // 2]} for turn, role in enumerate(TURNS[:turns])]
        if turns == 1:
            messages = [{"role": "assistant", "content": "alone"}]
        rows.append({"messages": messages})
        labels = find_true_labels(messages, marked, tokenizer)
        found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        mask = found["assistant_masks"]
        assert len(mask) == len(labels)
        if not any(mask):  # refused by TRL
            rows.pop()
            continue
        foreign.append(sum(is_label and not label for is_label, label in zip(mask, labels, strict=True)))
        missed.append(sum(label and not is_label for is_label, label in zip(mask, labels, strict=True)))
    if not rows:
        return
    found = warnings_of(rows, tokenizer, assistant_only_loss=True)
    expected = []
    for counts, words in ((foreign, "learn {} tokens that are not"), (missed, "do not learn {} tokens of")):
        if any(counts):
            start = f"{sum(map(bool, counts))} of {len(rows)} rows to train on {words.format(sum(counts))}"
            first = next(number for number, count in enumerate(counts, start=1) if count)
            expected.append((start, f"(first: rows.jsonl, line {first})"))
    said = [text for text in found if re.search(r"rows to train on (do not )?learn \d+ tokens", text)]
    assert len(said) == len(expected)
    for text, (start, end) in zip(said, expected, strict=True):
        if drops is trim_offsets:  # a token of white space has no place of its own, and is not counted
            text, start = (re.sub(r"learn \d+ ", "learn ", part) for part in (text, start))
        assert text.startswith(start)
        assert text.endswith(end)


def test_text_after_a_turn_and_a_turn_itself_can_be_learned_wrongly(
    warnings_of: Callable[..., list[str]], tokenizer_of: Callable[..., Any]
) -> None:
    for marked, second, said in (
        ("a line break last", "b", "1 of 2 rows to train on learn 11 tokens that are not the assistant's"),
        ("the answer and its end", "\nb", "1 of 2 rows to train on do not learn 2 tokens of the assistant's turns"),
    ):
        messages = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": second}]
        tokenizer = tokenizer_of(END, make_template(*MARKED[marked]))
        delete_line_breaks(tokenizer.backend_tokenizer)
        rows = [{"messages": messages[:1]}, {"messages": messages}]
        (found,) = [text for text in warnings_of(rows, tokenizer, assistant_only_loss=True) if " tokens " in text]
        assert found.startswith(said)
        assert found.endswith("(first: rows.jsonl, line 2)")


def test_messages_excluded_from_the_loss_are_not_missed(
    warnings_of: Callable[..., list[str]], tokenizer_of: Callable[..., Any]
) -> None:
    messages = [{"role": role, "content": "a"} for role in TURNS[:4]]
    rows = [{"messages": [*messages, {"role": "assistant", "content": "b", "weight": 0}]}]
    tokenizer = tokenizer_of(END, make_template(*MARKED["the answer and its end"]))
    assert not [text for text in warnings_of(rows, tokenizer, assistant_only_loss=True) if "learn" in text]
    pair = [{"prompt": messages[:3], "completion": messages[3:]}]
    assert not [text for text in warnings_of(pair, tokenizer, assistant_only_loss=True) if "learn" in text]


def test_a_tokenizer_that_does_not_report_places_in_the_text_is_refused(
    warnings_of: Callable[..., list[str]], tokenizer_of: Callable[..., Any]
) -> None:
    class Slow(PythonBackend):
        """Tokens are letters."""

        vocab_size = 300

        def get_vocab(self) -> dict[str, int]:
            return {END: 299, **{chr(code): code for code in range(256)}}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return self.get_vocab()[token]

    tokenizer = Slow(eos_token=END)
    tokenizer.chat_template = make_template(*MARKED["the answer and its end"])
    with pytest.raises(HoneError, match=r"spec\.training\.assistantOnlyLoss is true, and the tokenizer .* in Python"):
        warnings_of([{"messages": [{"role": "assistant", "content": "a"}]}], tokenizer, assistant_only_loss=True)
