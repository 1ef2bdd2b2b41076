"""Keep the cached prefixes of different adapters apart, and order the requests of a batch by adapter.

transformers' continuous batching does not know adapters, and would reuse a prefix that another adapter computed. Only a
request's id reaches the functions in question, so the id begins with the number of its adapter.
"""

import uuid
from collections.abc import Callable
from typing import Any

SPREAD = 1024  # numbers go into two tokens in this base, so that those stay in 32 bits


def request_id_of(number: int) -> str:
    return f"{number}.{uuid.uuid4().hex}"


def keep_adapters_apart(processor: Any, vocab_size: int) -> None:
    """Make a batch processor reuse only what the same adapter computed, and put the rows of an adapter together."""
    cache, scheduler = processor.cache, processor.scheduler
    search, schedule = cache.search_prefix_match, scheduler.schedule_batch

    def search_own(request_id: str, prompt: list[int]) -> int:
        return int(search(request_id, owned(request_id, prompt, vocab_size)))

    def marker(mark: Callable[..., None]) -> Callable[..., None]:
        return lambda request_id, tokens, blocks: mark(request_id, owned(request_id, tokens, vocab_size), blocks)

    def schedule_in_order(*budgets: int) -> Any:
        requests, *rest = schedule(*budgets)
        return requests and sorted(requests, key=lambda request: _number(request.state.request_id)), *rest

    cache.search_prefix_match = search_own
    for allocator in cache.cache_allocators.values():
        allocator.mark_complete_blocks = marker(allocator.mark_complete_blocks)
    scheduler.schedule_batch = schedule_in_order


def owned(request_id: str, tokens: list[int], vocab_size: int) -> list[int]:
    """Return the tokens under which the cache stores them: those of two adapters never match.

    The adapter's number is encoded in the first two tokens, as multiples of the size of the vocabulary.
    """
    high, low = divmod(_number(request_id), SPREAD)
    marked = [token + vocab_size * part for token, part in zip(tokens, (low, high), strict=False)]
    return marked + tokens[len(marked) :]


def _number(request_id: str) -> int:
    return int(request_id.partition(".")[0])
