"""Ends the requests whose values are no numbers (NaN or infinity), and keeps these values from others in their batch.

Damaged weights of an adapter make such values, or an overflow in 16 bits. Their scores would choose a token all the
same. And a masked key that is NaN is not masked: it makes the earlier tokens of its prompt NaN, whose keys others may
reuse, and with transformers' attention, which masks the keys of other requests, the answers of all. So such keys and
values are zero. `engine` installs the guard before its loop starts; the sampler shows it the scores.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hone_server.transformers_internals import FutureRequestState, RequestStatus

MAX_MAGNITUDE = 1e15
"""The product of two larger numbers, summed over a head, could leave float32."""
NOT_FINITE_MESSAGE = (
    "the model computes values that are not finite (NaN or infinity), so that it has no answer; its weights or those "
    "of the adapter may be damaged"
)


class FiniteValueFilter:
    """Knows the requests of one step of an engine. `failed_ids`: those that were ended, until `forget_request`."""

    def __init__(self) -> None:
        self.failed_ids: set[str] = set()
        self._requests: Sequence[FutureRequestState] = ()
        self._is_bad_token: torch.Tensor | None = None
        self._shares_keys = self._masks_keys = True

    def watch_processor(self, processor: Any, *, shares_keys: bool) -> None:
        """Watch a batch processor. shares_keys: its attention reads the keys of all requests for each of them."""
        update_cache, update_batch = processor.cache.update, processor.update_batch

        def update_cache_masked(
            key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **more: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if self._masks_keys:
                key_states, value_states = self._mask_non_finite(key_states, value_states)
            found: tuple[torch.Tensor, torch.Tensor] = update_cache(key_states, value_states, *arguments, **more)
            return found

        def update_batch_and_fail() -> None:
            failed = self._find_failed()
            for request in failed:
                # No other request may begin with these keys.
                request.complete_blocks = dict.fromkeys(request.complete_blocks, 0)
            update_batch()
            for request in failed:
                if request.state.status != RequestStatus.FINISHED:
                    processor._handle_request_error(ValueError(NOT_FINITE_MESSAGE), request.state)
                    processor.scheduler.finish_request(request.state.request_id)
                    processor.scheduler.block_new_requests = False

        self._shares_keys = shares_keys
        processor.cache.update = update_cache_masked
        processor.update_batch = update_batch_and_fail

    def begin_step(self, requests: Sequence[FutureRequestState]) -> None:
        """Note the requests of the next step, in the order of their rows."""
        self._requests, self._is_bad_token = list(requests), None
        self._masks_keys = self._shares_keys or any(request.query_length > 1 for request in requests)

    def check_scores(self, scores: torch.Tensor) -> None:
        """Look at the scores (shape [requests, vocab_size]) of those requests that get a token."""
        sums = scores.sum(dim=-1, dtype=torch.float32)
        wrong = (~(sums < torch.inf)).tolist()
        chosen = [request for request in self._requests if request.has_new_token]
        self.failed_ids |= {
            request.state.request_id for request, is_wrong in zip(chosen, wrong, strict=False) if is_wrong
        }

    def forget_request(self, request_id: str) -> None:
        self.failed_ids.discard(request_id)

    def _mask_non_finite(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both (shape [1, heads, tokens, size]) with zeros for tokens that have a value beyond MAX_MAGNITUDE."""
        # Reading a result of a CPU waits for nothing, and this takes a fifth of the time of looking at each token.
        if key.device.type == "cpu" and _is_bounded(key) and _is_bounded(value):
            return key, value
        largest = torch.maximum(*(one.detach().abs().amax(dim=(0, 1, 3)).float() for one in (key, value)))
        is_wrong = ~(largest <= MAX_MAGNITUDE)
        self._is_bad_token = is_wrong if self._is_bad_token is None else self._is_bad_token | is_wrong
        mask = is_wrong[None, None, :, None]
        return key.masked_fill(mask, 0), value.masked_fill(mask, 0)

    def _find_failed(self) -> list[FutureRequestState]:
        if self._is_bad_token is not None:
            row = 0
            wrong = self._is_bad_token.tolist() if bool(self._is_bad_token.any()) else []
            for request in self._requests:
                if any(wrong[row : row + request.query_length]):
                    self.failed_ids.add(request.state.request_id)
                row += request.query_length
        return [request for request in self._requests if request.state.request_id in self.failed_ids]


def _is_bounded(values: torch.Tensor) -> bool:
    """Return whether all values are numbers whose magnitude is at most MAX_MAGNITUDE."""
    smallest, largest = torch.aminmax(values)  # both are NaN if any value is
    return float(smallest) >= -MAX_MAGNITUDE and float(largest) <= MAX_MAGNITUDE
