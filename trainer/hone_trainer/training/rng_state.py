"""What is random in training, kept apart from what is done beside it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def states() -> tuple[Any, ...]:
    """Where the generators of Python, numpy, torch and all its devices stand."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), devices


def restore(states: tuple[Any, ...]) -> None:
    """Put the generators back to where `states` says they stood."""
    python, numbers, cpu, devices = states
    random.setstate(python)
    numpy.random.set_state(numbers)
    torch.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)


@contextmanager
def untouched() -> Iterator[None]:
    """Inside, numbers may be drawn: after it, the generators stand where they stood."""
    before = states()
    try:
        yield
    finally:
        restore(before)
