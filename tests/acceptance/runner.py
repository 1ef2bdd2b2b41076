"""Run one step in a process of its own, with a time limit and a log, and return its result."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acceptance.catalogue import Step
from acceptance.context import HIDING, ROOT, Context
from acceptance.redaction import find_secrets, redact, redact_values

TAIL_LINES = 40
# For the end of killed processes. One that waits for a driver which hangs does not end, and is left.
END_SECONDS = 20.0
# The variable by which all processes of a step are found when it has ended.
MARK = "HONE_ACCEPTANCE_STEP"
TESTS = ROOT / "tests"


def run_step(step: Step, context: Context, logs: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the result of a step: status, reason, seconds, figures, and the path of its log.

    The log is redacted when the step has ended. On KeyboardInterrupt the step's processes are ended, too.
    """
    logs.mkdir(parents=True, exist_ok=True)
    context.folder.mkdir(parents=True, exist_ok=True)
    log, request_file, answered = (
        logs / f"{step.name}.log",
        context.folder / "context.json",
        context.folder / "result.json",
    )
    request_file.write_text(context.to_json())
    answered.unlink(missing_ok=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "acceptance.perform", step.function, str(request_file), str(answered)]
    try:
        with log.open("wb") as out:
            code, left = _run(command, make_environment(context, environ), out, step.seconds)
    finally:
        log.write_text(redact(log.read_text(errors="replace"), environ))
    found: dict[str, Any] = redact_values(read_result(answered, code, step.seconds), environ)
    if left:
        ids = ", ".join(map(str, sorted(left)))
        words = f"its processes {ids} can't be ended: look for the driver in the output of `dmesg`"
        found |= {"status": "failed", "reason": "; ".join(filter(None, (found["reason"], words)))}
    tail = [] if found["status"] == "passed" else log.read_text().splitlines()[-TAIL_LINES:]
    return found | {"seconds": round(time.monotonic() - started, 1), "log": f"logs/{log.name}", "logTail": tail}


def make_environment(context: Context, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a step: without secrets, without the hub, and without GPUs if the CPU stands in."""
    secrets = find_secrets(environ)
    found = {name: value for name, value in environ.items() if name not in secrets}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [environ.get("PYTHONPATH", ""), str(TESTS)]))
    found |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(context.folder / "hub"), "PYTHONUNBUFFERED": "1"}
    if context.device == "cpu":
        found |= dict.fromkeys(HIDING, "-1")
    return found


def read_result(file: Path, code: int | None, limit: int) -> dict[str, Any]:
    """Return a step's result, or why there is none. `code`: its exit code, None when it was ended at its limit."""
    if code is None:
        return {"status": "failed", "reason": f"it took longer than its limit of {limit} s", "figures": {}}
    try:
        found = json.loads(file.read_text())
        return {name: found[name] for name in ("status", "reason", "figures")}
    except (OSError, ValueError, KeyError, TypeError):
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"status": "failed", "reason": f"its process ended with {ended} and wrote no result", "figures": {}}


def _run(command: list[str], environment: dict[str, str], out: Any, limit: float) -> tuple[int | None, list[int]]:
    """Return the exit code, None when the limit was reached, and the processes that could not be ended.

    All processes of the step are killed in every case.
    """
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        env=environment | {MARK: mark},
        start_new_session=True,
    )
    code: int | None = None
    left: list[int] = []
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=limit)
    finally:
        left = _end_processes(process, mark)
    return code, left


def _end_processes(process: "subprocess.Popen[bytes]", mark: str) -> list[int]:
    """Kill a process and all processes with the mark; return those that do not end."""
    until = time.monotonic() + END_SECONDS
    while left := [*find_marked(mark), *([process.pid] if process.poll() is None else [])]:
        if time.monotonic() > until:
            return sorted(set(left))
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return []


def find_marked(mark: str) -> list[int]:
    """Return the processes that have a mark in their environment, also those that left the step's group, by /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended, or another user's
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
