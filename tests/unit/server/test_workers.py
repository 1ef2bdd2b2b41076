"""Large requests make Python's threads take short turns; everything else runs with Python's default."""

import asyncio
import sys

import pytest
from hone_server.workers import LARGE_REQUEST_SWITCH_SECONDS, run_in_thread


def fail() -> None:
    raise ValueError("a fault of the request")


def test_turns_are_short_only_while_a_large_request_is_processed() -> None:
    default = sys.getswitchinterval()
    assert default > LARGE_REQUEST_SWITCH_SECONDS

    async def run() -> None:
        for _ in range(2):
            assert await run_in_thread(sys.getswitchinterval, is_large=True) == pytest.approx(
                LARGE_REQUEST_SWITCH_SECONDS
            )
            assert await run_in_thread(sys.getswitchinterval) == default
            with pytest.raises(ValueError, match="of the request"):
                await run_in_thread(fail, is_large=True)
            assert sys.getswitchinterval() == default

    asyncio.run(run())
