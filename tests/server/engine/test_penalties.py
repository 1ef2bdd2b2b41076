"""Penalties and bias: by their formulas, and as transformers' generate applies them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.engine.penalties import Penalties, apply_penalties
from hone_server.engine.sampler import MIN_TEMPERATURE, SamplingParams, compute_gumbel_scores
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

LOGITS = [2.0, -1.0, 0.5, 3.0, 0.0]


@pytest.mark.parametrize(
    ("penalties", "prompt", "answer", "expected"),
    [
        ({}, [0], [1, 1], LOGITS),
        ({"presence": 0.5}, [0], [1, 1, 3], [2.0, -1.5, 0.5, 2.5, 0.0]),
        ({"presence": -0.5}, [0], [3], [2.0, -1.0, 0.5, 3.5, 0.0]),
        ({"frequency": 0.5}, [0], [1, 1, 3], [2.0, -2.0, 0.5, 2.5, 0.0]),
        ({"presence": 1, "frequency": 0.25}, [], [2, 2, 2, 2], [2.0, -1.0, -1.5, 3.0, 0.0]),
        ({"presence": 1, "frequency": 1}, [0, 1], [], LOGITS),
        ({"repetition": 2.0}, [0, 1], [3, 3], [1.0, -2.0, 0.5, 1.5, 0.0]),
        ({"repetition": 0.5}, [0, 1], [], [4.0, -0.5, 0.5, 3.0, 0.0]),
        ({"bias": ((4, 100.0), (0, -2.0))}, [], [], [0.0, -1.0, 0.5, 3.0, 100.0]),
        ({"bias": ((1, 3.0),), "repetition": 2.0, "presence": 0.5}, [1], [1], [2.0, 0.5, 0.5, 3.0, 0.0]),
    ],
)
def test_formulas(
    penalties: dict[str, Any], prompt: list[Any] | list[int], answer: list[Any] | list[int], expected: Any
) -> None:
    rows = torch.tensor([LOGITS, LOGITS])
    apply_penalties(rows[0], Penalties(**penalties), prompt, answer)
    assert torch.allclose(rows[0], torch.tensor(expected, dtype=torch.float32))
    assert rows[1].tolist() == LOGITS


def greedy(client: Any, prompt: Any, **options: Any) -> Any:
    request = {"model": "tiny-llama", "prompt": prompt, "max_tokens": 40, "temperature": 0, **options}
    return client.completions.create(**request).choices[0].text


@pytest.fixture(scope="module")
def reference(base_folder: Path) -> Any:
    """Return the greedy tokens of transformers' generate, or of plain torch when a rule changes the logits of every
    step.
    """
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)

    def by_transformers(prompt: Any, **options: Any) -> Any:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, max_new_tokens=40, do_sample=False, **options)[0, ids.shape[1] :]
        return tokenizer.decode(out, skip_special_tokens=True)

    @torch.no_grad()
    def by_hand(prompt: Any, rule: Any) -> Any:
        ids, answer = tokenizer(prompt)["input_ids"], []
        while len(answer) < 40 and 2 not in answer:
            logits = model(torch.tensor([ids + answer])).logits[0, -1]
            answer.append(int(rule(logits, torch.tensor(answer, dtype=torch.long)).argmax()))
        return tokenizer.decode(answer, skip_special_tokens=True)

    return by_transformers, by_hand


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(client: Any, reference: Any, penalty: float) -> None:
    by_transformers, _ = reference
    answer = greedy(client, "hello world hello", extra_body={"repetition_penalty": penalty})
    assert answer == by_transformers("hello world hello", repetition_penalty=penalty)
    assert answer != greedy(client, "hello world hello")


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 1.0), (1.0, 0.5), (-1.0, 0.0)])
def test_presence_and_frequency_are_openais_formula(
    client: Any, reference: Any, presence: float, frequency: float
) -> None:
    def rule(logits: Any, answer: Any) -> Any:
        counts = torch.bincount(answer, minlength=logits.numel())
        return logits - counts * frequency - (counts > 0).float() * presence

    _, by_hand = reference
    options = {"presence_penalty": presence, "frequency_penalty": frequency}
    assert greedy(client, "we tune", **options) == by_hand("we tune", rule)


def test_a_bias_forces_and_forbids_a_token(client: Any, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    x, y = (tokenizer(letter)["input_ids"][0] for letter in "xy")
    assert greedy(client, "hello", logit_bias={str(x): 100, str(y): 50}) == "x" * 40
    assert greedy(client, "hello", logit_bias={str(x): -100, str(y): 50}) == "y" * 40


def test_a_seed_holds_with_penalties(client: Any) -> None:
    options = {"presence_penalty": 1, "frequency_penalty": 0.5, "seed": 7, "temperature": 1}
    assert greedy(client, "hello", **options) == greedy(client, "hello", **options)


@given(
    repetition=st.floats(0, 10, exclude_min=True),
    presence=st.floats(-2, 2),
    temperature=st.floats(MIN_TEMPERATURE, 2),
    top_p=st.floats(0, 1),
)
@example(repetition=5e-324, presence=5e-324, temperature=MIN_TEMPERATURE, top_p=5e-324)
@example(repetition=1e-45, presence=0.0, temperature=1.0, top_p=1.0)
@example(repetition=1e-40, presence=-2.0, temperature=2.0, top_p=1e-45)
def test_numbers_of_any_size_leave_a_distribution(repetition: Any, presence: Any, temperature: Any, top_p: Any) -> None:
    scores = torch.tensor([LOGITS])
    apply_penalties(scores[0], Penalties(repetition=repetition, presence=presence), [0, 3], [1])
    assert scores.isfinite().all()
    chosen = compute_gumbel_scores(scores, [SamplingParams(temperature, top_p, 0, 7)], [3])
    assert not chosen.isnan().any()
    assert chosen.max() > 0
    if repetition < 1e-3:
        assert int(chosen.argmax()) == 3, "of the tokens that were seen, the likeliest"


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-45, 1e-39, 1e-37, MIN_TEMPERATURE / 2])
def test_a_tiny_temperature_is_greedy(temperature: Any) -> None:
    assert SamplingParams(temperature, 1.0, 0, 7).is_greedy
