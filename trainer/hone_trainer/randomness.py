"""What is random in training, kept apart from what is done beside it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def untouched() -> Iterator[None]:
    """Inside, numbers may be drawn: after it, Python's, numpy's and torch's generators stand where they stood."""
    python, numbers = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():  # the CPU's and those of all devices
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)
