"""A continuous-batching loop that outlives the error of a step: the step's requests fail, and others go on.

transformers' own loop ends at the first error, and with it every request of the engine.
"""

import logging
from typing import Any

import torch

MOST_FAILURES = 8
"""So many steps in a row fail only where no request can be answered any more; then the loop ends."""

log = logging.getLogger("hone_server")


class _StepFailed(Exception):
    """The model or the sampler raised the cause."""


def survive(manager: Any) -> None:
    """Let a manager's loop go on after a step that failed. Before its start."""
    step, body = manager._generation_step, manager._generation_loop_body
    failures = 0

    def try_step() -> None:
        nonlocal failures
        try:
            step()
        except Exception as error:
            failures += 1
            raise _StepFailed from error
        failures = 0

    def go_on(processor: Any, bootstrapping: bool) -> bool:
        try:
            return bool(body(processor, bootstrapping))
        except _StepFailed as failed:
            error = failed.__cause__
            assert isinstance(error, Exception)
            log.error("a step of the engine failed: %s", error, exc_info=error)
            if failures >= MOST_FAILURES:
                raise error from None
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # raises where the device computes nothing any more
            processor.handle_batch_error(error)
            processor.scheduler.block_new_requests = False  # as at the end of any request
            return True

    manager._generation_step, manager._generation_loop_body = try_step, go_on


def refuse_unknown_tokens(processor: Any, vocab_size: int) -> None:
    """Let a request with tokens that the model has no embedding for fail by itself, before it is in a batch."""
    scheduler = processor.scheduler
    add = scheduler.add_waiting_request

    def add_known(state: Any) -> None:
        tokens = state.initial_tokens
        if not tokens or max(tokens) >= vocab_size or min(tokens) < 0:
            raise ValueError(f"a prompt needs tokens, of a vocabulary of {vocab_size}")
        add(state)

    scheduler.add_waiting_request = add_known
