"""The rows that are rendered again: faults are found no matter where in the dataset they begin."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hone_trainer.checks.samples import SPREAD, RowSampler

Row = dict[str, Any]
SYSTEM = {"role": "system", "content": "Be a pirate."}
TEMPLATE = (
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if messages[0].role == 'system' %}<think>{% endif %}{% endif %}"
)


def talk(number: int, *before: Row) -> Row:
    """Make a row of messages."""
    asked = [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": f"a {number}"}]
    return {"messages": [*before, *asked]}


def pair(number: int, prompt: str = "q\n", completion: str = "the answer") -> Row:
    """Make a row of a prompt and its completion."""
    return {"prompt": prompt, "completion": f"{completion} {number}"}


def split(row: Row) -> Row:
    """Make prompt and completion of a row of messages."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def choose(rows: list[Row]) -> list[int]:
    sampler = RowSampler()
    for row in rows:
        sampler.add_row(row)
    return sampler.choose()


@pytest.mark.parametrize("count", [0, 1, SPREAD])
def test_a_sample_of_few_rows_has_all_of_them(count: int) -> None:
    assert choose([pair(number) for number in range(count)]) == list(range(count))


@pytest.mark.parametrize(
    "rare",
    [
        talk(0, SYSTEM),
        talk(0, {"role": "assistant", "content": "a"}),
        talk(0, *talk(1)["messages"] * 8),
        {"messages": [*talk(0)["messages"][:1], {"role": "assistant", "content": "a", "reasoning_content": "r"}]},
        {"messages": [*talk(0)["messages"][:1], {"role": "assistant", "content": ""}]},
        talk(0) | {"tools": [{"name": "f"}]},
        talk(0) | {"chat_template_kwargs": {"enable_thinking": False}},
        {"prompt": talk(0)["messages"], "completion": talk(0)["messages"][1:]},
    ],
)
@pytest.mark.parametrize("at", [0, 1_777, 2_999])
def test_a_single_row_of_another_shape_is_in_the_sample(rare: Row, at: int) -> None:
    rows = [talk(number) for number in range(3000)]
    rows[at] = rare
    assert at in choose(rows)


def test_a_fault_that_begins_anywhere_is_in_the_sample() -> None:
    chosen = choose([pair(number) for number in range(20_000)])
    assert SPREAD <= len(chosen) <= SPREAD + 10
    assert chosen == sorted(set(chosen))
    assert max(b - a for a, b in zip(chosen, [*chosen[1:], 20_000], strict=True)) < 2 * 20_000 / SPREAD
    for distance in range(2, 50):
        assert len({number % distance for number in chosen}) == distance, "every remainder is met"


def test_the_sample_is_small_for_any_number_of_shapes() -> None:
    choice = random.Random(0)
    rows = [talk(number, {"role": "tool", f"key{choice.random()}": 1, "content": "x"}) for number in range(20_000)]
    assert len(choose(rows)) <= 2 * SPREAD


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([split(talk(n)) for n in range(1100)] + [split(talk(0, SYSTEM))], "ends differently"),
        ([talk(n) for n in range(1100)] + [talk(0, SYSTEM)], "leaves out"),
    ],
)
def test_a_fault_that_begins_after_the_first_thousand_rows_is_reported(
    tokenizer_of: Callable[..., Any], warnings_of: Callable[..., list[str]], rows: list[Row], text: str
) -> None:
    (warning,) = [line for line in warnings_of(rows, tokenizer_of("<|im_end|>", TEMPLATE)) if text in line]
    assert f"rows to train on that were looked at (there are {len(rows)}) have" in warning
    assert "rows.jsonl, line 1101)" in warning
