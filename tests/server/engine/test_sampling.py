"""The sampler's choices have the right distribution and depend only on seed and position."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hone_server.engine.sampler import SamplingParams, compute_gumbel_scores, draw_token_noise

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))


def choose(position: Any, **settings: Any) -> Any:
    sampling = SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 7, **settings})
    return int(compute_gumbel_scores(LOGITS[None], [sampling], [position]).argmax())


def frequencies(**settings: Any) -> Any:
    draws = torch.tensor([choose(position, **settings) for position in range(4000)])
    return torch.bincount(draws, minlength=4) / 4000


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 100}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.8}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        ({"temperature": 1e-6}, [1, 0, 0, 0]),
    ],
)
def test_distribution(settings: dict[str, Any], expected: Any) -> None:
    assert torch.allclose(frequencies(**settings), torch.tensor(expected, dtype=torch.float32), atol=0.03)


def test_the_same_seed_and_position_choose_the_same() -> None:
    assert [choose(p) for p in range(50)] == [choose(p) for p in range(50)]


def test_another_seed_chooses_otherwise() -> None:
    assert [choose(p, seed=1) for p in range(50)] != [choose(p, seed=2) for p in range(50)]


def test_logits_that_differ_in_their_last_bits_choose_the_same() -> None:
    wobble = LOGITS + torch.tensor([1e-6, -1e-6, 1e-6, -1e-6])
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=7)
    positions = range(200)
    steady, wobbled = (
        compute_gumbel_scores(x.expand(200, -1), [sampling] * 200, positions).argmax(-1) for x in (LOGITS, wobble)
    )
    assert torch.equal(steady, wobbled)


def test_every_row_of_a_batch_has_its_own_settings() -> None:
    settings = [{"top_k": 1}, {"temperature": 0.5, "seed": 9}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.5}]
    samplings = [SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 7, **one}) for one in settings]
    for position in range(100):
        batch = compute_gumbel_scores(LOGITS.expand(4, -1), samplings, [position] * 4).argmax(-1).tolist()
        assert batch == [choose(position, **one) for one in settings]


VOCABULARY = 512
NEIGHBOURS = {
    "positions of one seed": lambda number: (number // 100, number % 100),
    "seeds at one position": lambda number: (number, 3),
    "seeds and positions that rise together": lambda number: (number, number),
}


@pytest.mark.parametrize("title", NEIGHBOURS)
def test_noise_is_not_repeated_at_neighbouring_seeds_and_positions(title: str) -> None:
    noise = np.stack([draw_token_noise(*NEIGHBOURS[title](number), VOCABULARY) for number in range(1000)])
    pairs = np.stack([noise[:, :-1], noise[:, 1:]], axis=-1).view(np.uint64)
    assert len(np.unique(pairs)) > 0.999 * pairs.size


def test_a_token_is_chosen_independently_of_the_one_before() -> None:
    draws = [[_uniform(seed, position) for position in range(20)] for seed in range(200)]
    pairs = np.zeros((10, 10))
    for row in draws:
        for before, after in pairwise(row):
            pairs[before, after] += 1
    expected = pairs.sum() / 100
    # Chi-squared with 99 degrees of freedom: above 180 once in a million.
    assert ((pairs - expected) ** 2 / expected).sum() < 180


def test_tokens_with_almost_no_probability_are_not_chosen() -> None:
    logits = torch.full((1, 150_000), -40.0)
    logits[0, 0] = 0.0  # all others together have a probability below 1e-12
    samplings = [SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=seed) for seed in range(300)]
    assert {int(compute_gumbel_scores(logits, [sampling], [3]).argmax()) for sampling in samplings} == {0}


def _uniform(seed: Any, position: Any) -> Any:
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=seed)
    return int(compute_gumbel_scores(torch.zeros(1, 10), [sampling], [position]).argmax())
