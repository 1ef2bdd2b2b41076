"""Read a log that a process of this machine writes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_SECONDS = 0.1


def read_lines(path: Path, is_growing: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines of a log, and new ones as they come, while it grows."""
    with path.open(encoding="utf-8", errors="replace") as file:
        rest = ""
        while True:
            is_last = not is_growing()
            for piece in file:
                if piece.endswith("\n"):
                    yield (rest + piece).rstrip("\n")
                    rest = ""
                else:
                    rest += piece
            if is_last:
                break
            time.sleep(POLL_SECONDS)
    if rest:
        yield rest
