"""Running the trainer or the engine as a child that writes to this terminal."""

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

from hone_cli.output import Problem

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def require(extra: str, *modules: str) -> None:
    """Raises Problem, saying what to install, unless all modules of an extra are there. Imports none of them."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise Problem(
            f"this needs Hone's extra '{extra}', and {', '.join(missing)} can't be found",
            f"Install it in a checkout of Hone: pip install '.[{extra}]'",
        )


def run_module(module: str, arguments: list[str], *, on_stop: Callable[[], None]) -> int:
    """Run `python -m module` to its end and return its exit code (128 + n when signal n ended it).

    Ctrl-C, SIGTERM and SIGHUP become SIGTERM for the child, after `on_stop`; the second one kills it. It is in a
    process group of its own, so that the terminal's Ctrl-C reaches it only through here.
    """
    asked = 0
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            on_stop()
        if child is not None:
            child.terminate() if asked == 1 else child.kill()

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        child = subprocess.Popen([sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, process_group=0)
        if asked:
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
