"""Steps that the tests of the acceptance run's runner start, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

from acceptance.context import Context, Failed, Figures, NotRun

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def succeed(context: Context) -> Figures:
    return {
        "device": context.device,
        "hub": os.environ["HF_HUB_OFFLINE"],
        "token": os.environ.get("HF_TOKEN"),
        "shown": [os.environ["SHOWN"]],
    }


def fail(context: Context) -> Figures:
    print("what went before", os.environ["SHOWN"])
    raise Failed("it does not hold, says " + os.environ["SHOWN"])


def lack(context: Context) -> Figures:
    raise NotRun("there is none here")


def raise_other(context: Context) -> Figures:
    raise KeyError("lost")


def die(context: Context) -> Figures:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def exit_early(context: Context) -> Figures:
    os._exit(3)


def hang(context: Context) -> Figures:
    _leave_process(context)
    time.sleep(600)
    return {}


def leave(context: Context) -> Figures:
    _leave_process(context)
    return {}


def _leave_process(context: Context) -> None:
    """Start a process that leaves the step's group and outlives it."""
    left = subprocess.Popen(SLEEP, start_new_session=True)
    (context.folder / "left").write_text(str(left.pid))
