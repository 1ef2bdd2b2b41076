"""Run the trainer or the engine as a child process that writes to this terminal."""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_module(module: str, arguments: list[str], *, on_stop: Callable[[], None]) -> int:
    """Run `python -m module` to its end and return its exit code (128 + n when signal n ended it).

    Ctrl-C, SIGTERM and SIGHUP become SIGTERM for the child, and then call `on_stop`; the second one kills the child.
    The child has a process group of its own. Otherwise the terminal's Ctrl-C would also reach it directly.
    """
    stop_count = 0
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stop_count
        if stop_count and number == signal.SIGHUP:  # kernel and shell both send it when one terminal closes
            return
        stop_count += 1
        if child is not None:
            child.terminate() if stop_count == 1 else child.kill()
        if stop_count == 1:
            with suppress(OSError, ValueError, RuntimeError):  # the terminal is gone, or was just being written to
                on_stop()

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # set by nohup, and must stay so
    taken = [number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, stop) for number in taken}
    try:
        child = subprocess.Popen([sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, process_group=0)
        if stop_count:
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
