"""Keep the cached prefixes of different adapters apart, and order the requests of a batch by adapter.

Replaces functions of transformers' batch processor, which does not know adapters, and would reuse a prefix that another
adapter computed. Only a request's id and its tokens reach these functions, so the id begins with the adapter's number,
and the tokens under which blocks are stored contain it:

    before   request "9f2c": tokens t0 t1 t2 ...   stored and searched as t0 t1 t2 ...
    after    request "7.9f2c": the same tokens     stored and searched as (t0 + V * low) (t1 + V * high) t2 ...

with V the size of the vocabulary, and the number 7 = high * SALT_BASE + low. Blocks of two adapters never match,
because a block's hash contains all tokens before it. The base model has the number 0, so its tokens are stored as they
are.
"""

import uuid
from collections.abc import Callable
from typing import Any

SALT_BASE = 1024  # numbers go into two tokens in this base, so that those stay in 32 bits


def make_request_id(number: int) -> str:
    return f"{number}.{uuid.uuid4().hex}"


def isolate_prefix_cache(processor: Any, vocab_size: int) -> None:
    """Make a batch processor reuse only what the same adapter computed, and put the rows of an adapter together."""
    cache, scheduler = processor.cache, processor.scheduler
    search, schedule = cache.search_prefix_match, scheduler.schedule_batch

    def search_salted(request_id: str, prompt: list[int]) -> int:
        return int(search(request_id, salt_tokens(request_id, prompt, vocab_size)))

    def salt_marked(mark: Callable[..., None]) -> Callable[..., None]:
        return lambda request_id, tokens, blocks: mark(request_id, salt_tokens(request_id, tokens, vocab_size), blocks)

    def schedule_by_adapter(*budgets: int) -> Any:
        requests, *rest = schedule(*budgets)
        return requests and sorted(requests, key=lambda request: _parse_adapter_number(request.state.request_id)), *rest

    cache.search_prefix_match = search_salted
    for allocator in cache.cache_allocators.values():
        allocator.mark_complete_blocks = salt_marked(allocator.mark_complete_blocks)
    scheduler.schedule_batch = schedule_by_adapter


def salt_tokens(request_id: str, tokens: list[int], vocab_size: int) -> list[int]:
    """Return the tokens under which the cache stores them: those of two adapters never match.

    The adapter's number is encoded in the first two tokens, as multiples of the size of the vocabulary.
    """
    high, low = divmod(_parse_adapter_number(request_id), SALT_BASE)
    salted = [token + vocab_size * part for token, part in zip(tokens, (low, high), strict=False)]
    return salted + tokens[len(salted) :]


def _parse_adapter_number(request_id: str) -> int:
    return int(request_id.partition(".")[0])
