"""Worker threads for the parts of a request whose time grows with its size, so that the event loop never waits.

Reading JSON, validating it, the chat template, tokenizing and the text of a long answer run here. Small requests have
their own threads, because a long prompt takes seconds to tokenize, and would delay all others.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

# Bodies of at least this size go to the thread for large ones.
MIN_LARGE_BYTES = 64 << 10

_SMALL_REQUESTS = ThreadPoolExecutor(2, "small-request")
_LARGE_REQUESTS = ThreadPoolExecutor(1, "large-request")

Result = TypeVar("Result")


async def run_in_thread(function: Callable[..., Result], *arguments: Any, is_large: bool = False) -> Result:
    """Call the function in a worker thread and return its result. Raises what the function raises."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_LARGE_REQUESTS if is_large else _SMALL_REQUESTS, lambda: function(*arguments))
