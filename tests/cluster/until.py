"""Wait in a test until something holds."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], seconds: float = 120) -> float:
    """Wait until it holds, and return the seconds until then. Fails when it does not hold in time."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - begun
