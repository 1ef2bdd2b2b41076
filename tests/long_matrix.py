"""Matrices of cases that are too long to run in full at each commit.

A test parametrized by `sample(cases, key, n)` runs `n` cases that are drawn at random, and all of them under `--long`
(`make test-long`). The seed is in pytest's header; `HONE_TEST_SEED` sets it, so that a draw can be repeated. The
profiles of Hypothesis follow the same option and the same seed. tests/conftest.py calls `configure`.
"""

import os
import random
from collections.abc import Sequence
from typing import TypeVar

import pytest

SEED = "HONE_TEST_SEED"
EXAMPLES = {"ci": 200, "long": 3000}
# Hypothesis needs at most five minutes to make a failing case smaller, and its warning speaks of them. A larger case
# is printed sooner.
SHRINKING_SECONDS = 60

Case = TypeVar("Case")

_is_long = False


def configure(config: pytest.Config) -> None:
    """Choose the seed, and the profile of Hypothesis. Processes that pytest starts inherit the seed."""
    global _is_long
    _is_long = bool(config.getoption("--long"))
    os.environ.setdefault(SEED, str(random.SystemRandom().randrange(2**32)))
    _configure_hypothesis()


def is_long() -> bool:
    """Return whether all cases are to run."""
    return _is_long


def get_seed() -> int:
    """Return the seed of this run."""
    return int(os.environ[SEED])


def make_random(key: str) -> random.Random:
    """Return random numbers that follow from the seed and the key alone."""
    return random.Random(f"{get_seed()}:{key}")


def sample(cases: Sequence[Case], key: str, n: int) -> list[Case]:
    """Return all cases under `--long`, or else `n` of them at random, in their order.

    `key` names the matrix: matrices with different keys are drawn independently.
    """
    if _is_long or n >= len(cases):
        return list(cases)
    return [cases[index] for index in sorted(make_random(key).sample(range(len(cases)), n))]


def describe() -> str:
    """Return the line of pytest's header."""
    return f"{SEED}={get_seed()}, {'all cases' if _is_long else 'a sample of the long matrices (--long runs all)'}"


def _configure_hypothesis() -> None:
    from hypothesis import HealthCheck, Phase, core, settings
    from hypothesis.internal.conjecture import engine

    engine.MAX_SHRINKING_SECONDS = SHRINKING_SECONDS
    for name, examples in EXAMPLES.items():
        settings.register_profile(
            name,
            max_examples=examples,
            deadline=None,
            print_blob=True,
            phases=set(Phase) - {Phase.explain},  # which traces lines: each case then takes five times as long
            derandomize=False,
            database=None,  # the seed repeats a run
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile("long" if _is_long else "ci")
    if core.global_force_seed is None:
        core.global_force_seed = get_seed()
