"""A process that has done the trainer's imports, and forks a trainer for each line of its input.

A line is JSON: `argv`, `log` (file for its output), `fill` and `signals` (see Phases), `limit` (bytes of address space
that it may use beyond what it has), `gpu` (bytes of memory of a GPU that it is to plan for), `rows` (file for the rows
of each batch) and `environ` (variables in addition to this process's). Events are written to the file descriptor given
as argument, a line each: `pid N`, `begin PHASE SECONDS`, `end PHASE SECONDS` (of time.monotonic), and finally
`exit STATUS`, as in os.waitstatus_to_exitcode.
"""

import functools
import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import recording
from hone_trainer import main, pipeline
from hone_trainer.config import device
from hone_trainer.config.auto_profile import TrainingDevice
from hone_trainer.data import dataset
from hone_trainer.models import base_model
from hone_trainer.runtime import signals
from hone_trainer.storage import artifact, checkpoints
from hone_trainer.training import trainer

PHASES: dict[str, tuple[Any, str]] = {
    "listening": (signals.StopSignal, "install_handlers"),
    "reading": (dataset, "load_rows"),
    "downloading": (base_model, "download"),
    "resuming": (trainer.HoneTrainer, "_load_from_checkpoint"),
    "training": (trainer.HoneTrainer, "train"),
    "evaluating": (trainer.HoneTrainer, "evaluate"),
    "stepping": (trainer.HoneTrainer, "training_step"),
    "saving": (trainer.HoneTrainer, "_save_checkpoint"),
    "flushing": (checkpoints, "flush_and_checksum"),
    "sealing": (checkpoints, "commit_checkpoint"),
    "keeping": (artifact, "save_models"),
    "describing": (pipeline, "write_manifest"),
}


class Phases:
    """Announces when a phase begins and ends.

    `fill` is {"phase", "at", "root", "leave"}: when the phase begins for the at-th time, the volume of `root` is filled
    up to `leave` free bytes. `signals` are [phase, at, number]: the process sends itself the signal at that moment.
    """

    def __init__(self, channel: int, fill: dict[str, Any] | None, signals: list[list[Any]]) -> None:
        self._channel = channel
        self._fill = fill
        self._signals = signals
        self._count: Counter[str] = Counter()

    def watch(self, phase: str, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._count[phase] += 1
            tell(self._channel, f"begin {phase} {time.monotonic()}")
            if self._fill and (self._fill["phase"], self._fill["at"]) == (phase, self._count[phase]):
                fill_up(Path(self._fill["root"]), self._fill["leave"])
            for number in [number for *moment, number in self._signals if moment == [phase, self._count[phase]]]:
                os.kill(os.getpid(), number)
            result = original(*args, **kwargs)
            tell(self._channel, f"end {phase} {time.monotonic()}")
            return result

        setattr(owner, name, wrapped)


def fill_up(root: Path, leave: int) -> None:
    """Write a file `ballast` that leaves so many bytes free."""
    with (root / "ballast").open("wb", buffering=0) as ballast:
        rest = shutil.disk_usage(root).free - leave
        while rest > 0:
            rest -= ballast.write(bytes(min(rest, 2**20)))


def tell(channel: int, line: str) -> None:
    os.write(channel, f"{line}\n".encode())


def child(request: dict[str, Any], channel: int) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.environ.update(request.get("environ") or {})
    if request.get("rows"):
        recording.record_rows(Path(request["rows"]))
    phases = Phases(channel, request.get("fill"), request["signals"])
    for phase, (owner, name) in PHASES.items():
        phases.watch(phase, owner, name)
    if request.get("limit"):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + request["limit"],) * 2)
    if request.get("gpu"):  # there is no GPU: its memory is given, all else is real
        small = TrainingDevice("gpu", "a small GPU", request["gpu"], False, False, 1)
        device.detect_device = lambda: small
    return main.main(request["argv"])


def serve(channel: int) -> None:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    names.remove("jemalloc_bg_thd")  # pyarrow's, which jemalloc itself makes safe to fork
    tell(channel, f"ready {len(names)}")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(request, channel)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        tell(channel, f"pid {pid}")
        _, status = os.waitpid(pid, 0)
        tell(channel, f"exit {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
