"""Tokens that begin and end a row: the model learns to stop, and reads each special token once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hone_api.artifacts.manifest import BaseModelReference
from hone_api.finetunejobs.sources import BaseModelSource
from hone_trainer.checks.special_tokens import MOST_SPACES, NONE, read_ends
from hone_trainer.data.statistics import IGNORED
from hone_trainer.models.base_model import BaseModel, load_stop_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Warnings = Callable[..., list[str]]
Tokenizers = Callable[..., Any]

# Rows of tokens, each with whether it is learned; the last two are a space and a line break.
WRITTEN = st.lists(
    st.lists(st.tuples(st.sampled_from(["<s>", "</s>", "a", "b", "Ġ", "Ċ"]), st.booleans()), max_size=9),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=WRITTEN.filter(any))
def test_the_ends_of_rows_are_read_as_by_hand(tokenizer_of: Tokenizers, rows: list[list[tuple[str, bool]]]) -> None:
    tokenizer = tokenizer_of("</s>", begin="<s>")
    number = tokenizer.get_vocab()
    ids = [[number[token] for token, _ in row] for row in rows]
    labels = [[number[token] if learned else IGNORED for token, learned in row] for row in rows]
    ends = read_ends(Dataset.from_dict({"input_ids": ids, "labels": labels}), tokenizer)

    def at(tokens: list[int], place: int) -> int:
        return tokens[place] if -len(tokens) <= place < len(tokens) else NONE

    def solid(row: list[tuple[str, bool]]) -> list[int]:
        return [number[token] for token, _ in row if token not in ("Ġ", "Ċ")]

    np.testing.assert_array_equal(ends.first, [at(row, 0) for row in ids])
    np.testing.assert_array_equal(ends.second, [at(row, 1) for row in ids])
    np.testing.assert_array_equal(ends.last, [at(solid(row), -1) for row in rows])
    np.testing.assert_array_equal(ends.before_last, [at(solid(row), -2) for row in rows])
    learned = [[part for part in row if part[1]] for row in rows]
    np.testing.assert_array_equal(ends.last_learned, [at(solid(row), -1) for row in learned])


def test_the_search_over_line_breaks_at_the_end_is_limited(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("</s>")
    row = [tokenizer.get_vocab()[token] for token in ["</s>", *["Ċ"] * (MOST_SPACES + 5)]]
    assert read_ends(Dataset.from_dict({"input_ids": [row], "labels": [row]}), tokenizer).last[0] == row[-1]


TEXT = [{"text": "abc"}, {"text": "b"}]
PAIRS = [{"prompt": "say:\n", "completion": "hello"}, {"prompt": "say:\n", "completion": "ho\n"}]


@pytest.mark.parametrize("adds", ["", "begin", "end", "begin and end"])
@pytest.mark.parametrize("rows", [TEXT, PAIRS], ids=["text", "pairs"])
def test_a_tokenizer_that_adds_the_end_doubles_it(
    warnings_of: Warnings, tokenizer_of: Tokenizers, rows: list[dict[str, str]], adds: str
) -> None:
    found = warnings_of(rows, tokenizer_of("</s>", begin="<s>", adds=adds))
    if "end" in adds:
        assert found == [
            "2 of 2 rows to train on end with '</s>' twice: the tokenizer adds it, too: set add_eos_token to false in "
            "its tokenizer_config.json (first: rows.jsonl, line 1)"
        ]
    else:
        assert not found


def test_a_begin_token_that_is_written_and_added_is_counted(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    rows = [{"text": "abc"}, {"text": "<s>abc"}, {"text": "<s><s>"}]
    found = warnings_of(rows, tokenizer_of("</s>", begin="<s>", adds="begin"))
    assert found == [
        "2 of 3 rows to train on begin with '<s>' twice: the tokenizer adds it, so leave it out of the rows "
        "(first: rows.jsonl, line 2)"
    ]
    assert not warnings_of(rows[:2], tokenizer_of("</s>", begin="<s>"))


def test_rendered_text_that_ends_with_an_end_token_and_a_line_break_is_counted(
    warnings_of: Warnings, tokenizer_of: Tokenizers
) -> None:
    rows = [{"text": "<|im_start|>user\nhi<|im_end|>\n"}, {"text": "hi"}]
    found = warnings_of(rows, tokenizer_of("<|im_end|>", "<|im_start|>"))
    assert found == [
        "1 of 2 rows to train on end with '<|im_end|>' twice: the rows already end with it, and one is added: leave it "
        "out of the rows (first: rows.jsonl, line 1)"
    ]


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
CHATS = [{"messages": CHAT}, {"messages": [*CHAT, {"role": "user", "content": "and?"}]}]
TURNS = [{"prompt": CHAT[:1], "completion": CHAT[1:]}]


@pytest.mark.parametrize("rows", [CHATS, TURNS], ids=["messages", "pairs"])
def test_a_template_whose_end_is_not_the_tokenizers_points_to_eos_token(
    warnings_of: Warnings, tokenizer_of: Tokenizers, rows: list[dict[str, Any]]
) -> None:
    tokenizer = tokenizer_of("<|endoftext|>", CHATML)
    assert warnings_of(rows, tokenizer) == [
        f"1 of {len(rows)} rows to train on do not teach the model to stop: they end with '<|im_end|>', and generation "
        "stops at '<|endoftext|>': when '<|im_end|>' ends an answer, set spec.training.eosToken: '<|im_end|>' "
        "(first: rows.jsonl, line 1)"
    ]
    assert not warnings_of(rows, tokenizer, eos_token="<|im_end|>")
    assert not warnings_of(rows, tokenizer, stops={"<|im_end|>"})


@pytest.mark.parametrize("rows", [CHATS, TURNS], ids=["messages", "pairs"])
def test_a_template_without_an_end_points_to_the_template(
    warnings_of: Warnings, tokenizer_of: Tokenizers, rows: list[dict[str, Any]]
) -> None:
    assert warnings_of(rows, tokenizer_of("</s>", BARE)) == [
        f"1 of {len(rows)} rows to train on do not teach the model to stop: end the assistant's turns with '</s>' in "
        "spec.dataset.chatTemplate (first: rows.jsonl, line 1)"
    ]


def test_a_turn_whose_end_is_outside_the_markers_is_reported(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    inside = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    marked = CHATML.replace("{{ m.content }}", inside + "{% else %}{{ m.content }}{% endif %}")
    found = warnings_of(CHATS[:1], tokenizer_of("<|im_end|>", marked), assistant_only_loss=True)
    assert found == [
        "1 of 1 rows to train on do not teach the model to stop: end the assistant's turns with '<|im_end|>' in "
        "spec.dataset.chatTemplate (first: rows.jsonl, line 1)"
    ]


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"generation_config.json": {"eos_token_id": [1, 106]}}, {1, 106}),
        ({"generation_config.json": {"eos_token_id": 7}}, {7}),
        ({"generation_config.json": {}}, set()),
        ({}, {1}),
    ],
)
def test_generation_stops_at_the_tokens_of_the_model(
    claim: Path, tmp_path: Path, files: dict[str, Any], stops: set[int]
) -> None:
    (tmp_path / "config.json").write_bytes((claim / "tiny/config.json").read_bytes())
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    base = BaseModel(str(tmp_path), None, BaseModelReference(name="any"))
    assert load_stop_tokens(base, BaseModelSource.model_validate({"name": "any"})) == stops


def test_text_and_its_end_are_prepared_without_a_warning(job: Any, train: Any, claim: Path) -> None:
    for path in ("text.jsonl", "chat.jsonl", "pairs.jsonl"):
        dataset = {"claim": {"name": "claim", "path": path}, "evalFraction": 0.2}
        done = train(job(dataset=dataset), command="prepare")
        assert done.code == 0, done.log
        about_rows = [line for line in done.log.splitlines() if "warning: " in line and "rows to" in line]
        assert all("ends differently" in line or "repeat an earlier" in line for line in about_rows)
