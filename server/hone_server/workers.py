"""Worker threads for the parts of a request whose time grows with its size, so that the event loop never waits.

Reading JSON, validating it, the chat template, tokenizing and the text of a long answer run here. Small requests have
their own threads, because a long prompt takes seconds to tokenize, and would delay all others.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

# Bodies of at least this size go to the thread for large ones.
MIN_LARGE_BYTES = 64 << 10
# How long a Python thread runs while another one waits to run, as long as a large request is processed.
#
# The engine's thread releases Python's lock at every operation of torch, and waits this long each time while a worker
# thread reads a large request: with Python's default, ten times as much, a token took up to 98 ms instead of 19, and
# with this up to 84. Without large requests the default is better: 8 clients get 4 % more tokens a second.
LARGE_REQUEST_SWITCH_SECONDS = 0.0005

_SMALL_REQUESTS = ThreadPoolExecutor(2, "small-request")
_LARGE_REQUESTS = ThreadPoolExecutor(1, "large-request")

Result = TypeVar("Result")


async def run_in_thread(function: Callable[..., Result], *arguments: Any, is_large: bool = False) -> Result:
    """Call the function in a worker thread and return its result. Raises what the function raises."""
    loop = asyncio.get_running_loop()
    if is_large:
        return await loop.run_in_executor(_LARGE_REQUESTS, _call_with_short_turns, lambda: function(*arguments))
    return await loop.run_in_executor(_SMALL_REQUESTS, lambda: function(*arguments))


def _call_with_short_turns(function: Callable[[], Result]) -> Result:
    """Call the function while Python's threads take shorter turns. Only the thread of large requests may call this."""
    default = sys.getswitchinterval()
    sys.setswitchinterval(LARGE_REQUEST_SWITCH_SECONDS)
    try:
        return function()
    finally:
        sys.setswitchinterval(default)
