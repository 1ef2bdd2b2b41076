"""Keep a continuous-batching loop running after the error of a step.

The requests of that step fail, and all others continue. transformers' own loop ends at the first error, and with it
every request of the engine.
"""

import logging
from typing import Any

import torch

# The loop ends after this many failed steps in a row: then no request can be answered.
MAX_CONSECUTIVE_FAILURES = 8

log = logging.getLogger("hone_server")


class _StepFailed(Exception):
    """The model or the sampler raised the cause."""


def survive_step_errors(manager: Any) -> None:
    """Make a manager's loop continue after a step that failed. Call before the manager starts."""
    step, loop_body = manager._generation_step, manager._generation_loop_body
    consecutive_failures = 0

    def try_step() -> None:
        nonlocal consecutive_failures
        try:
            step()
        except Exception as error:
            consecutive_failures += 1
            raise _StepFailed from error
        consecutive_failures = 0

    def continue_after_failure(processor: Any, bootstrapping: bool) -> bool:
        try:
            return bool(loop_body(processor, bootstrapping))
        except _StepFailed as failed:
            error = failed.__cause__
            assert isinstance(error, Exception)
            log.error("a step of the engine failed: %s", error, exc_info=error)
            if consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                raise error from None
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # raises if the device can't compute any longer
            processor.handle_batch_error(error)
            processor.scheduler.block_new_requests = False  # as at the end of any request
            return True

    manager._generation_step, manager._generation_loop_body = try_step, continue_after_failure


def refuse_unknown_tokens(processor: Any, vocab_size: int) -> None:
    """Make a request whose tokens have no embedding in the model fail alone, before it enters a batch."""
    scheduler = processor.scheduler
    add = scheduler.add_waiting_request

    def add_checked(state: Any) -> None:
        tokens = state.initial_tokens
        if not tokens or max(tokens) >= vocab_size or min(tokens) < 0:
            raise ValueError(f"a prompt needs tokens, of a vocabulary of {vocab_size}")
        add(state)

    scheduler.add_waiting_request = add_checked
