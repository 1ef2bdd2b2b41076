"""Threads for the work of a request that grows with the request, so that the event loop never waits for it.

Reading JSON, validating it, the chat template, tokenizing and the text of a long answer run here. Small requests have
threads of their own, because a long prompt takes seconds to tokenize, and would hold up everybody else's.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

LARGE_BYTES = 64 << 10
"""A body from this size on goes to the thread of the large ones."""

_SMALL = ThreadPoolExecutor(2, "small-request")
_LARGE = ThreadPoolExecutor(1, "large-request")

Result = TypeVar("Result")


async def run_in_thread(function: Callable[..., Result], *arguments: Any, is_large: bool = False) -> Result:
    """Call the function in a worker thread and return its result. Raises what the function raises."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_LARGE if is_large else _SMALL, lambda: function(*arguments))
