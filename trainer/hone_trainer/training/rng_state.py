"""The random generators of training, protected from numbers that are drawn for other purposes."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def get_rng_states() -> tuple[Any, ...]:
    """Return the states of the generators of Python, numpy, torch and all its devices."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), devices


def set_rng_states(states: tuple[Any, ...]) -> None:
    """Set the generators back to `get_rng_states`."""
    python, numbers, cpu, devices = states
    random.setstate(python)
    numpy.random.set_state(numbers)
    torch.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)


@contextmanager
def preserve_rng_states() -> Iterator[None]:
    """Within the context, allow drawing random numbers; afterwards, set the generators back."""
    before = get_rng_states()
    try:
        yield
    finally:
        set_rng_states(before)
