"""Collects the facts: opens the device files, and asks torch in a child process.

The child keeps no GPU memory for the rest of the pod's life, and a driver that hangs or ends its process is a result
like others.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from .facts import REQUIRED, RESOURCE, Device, DeviceFile, Facts, Problem, Torch
from .judgement import DENIED, LONGEST_WORDS, judge_files, judge_torch

log = logging.getLogger(__name__)

PROBE_SECONDS = 600.0
"""The first import of torch from a slow disk takes minutes, and each GPU some seconds."""
HIDING = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
DEFAULT_RESOURCE = "amd.com/gpu"

Ask = Callable[[Mapping[str, str], int], Torch | str]


def ask_torch(environ: Mapping[str, str], wanted: int, seconds: float = PROBE_SECONDS) -> Torch | str:
    """Return what torch sees and whether the first `wanted` GPUs compute, or how the child ended without an answer."""
    reading, writing = os.pipe()  # what libraries print goes elsewhere
    command = [sys.executable, "-m", f"{__package__}.probe", str(wanted), str(writing)]
    with open(reading) as answer:
        try:
            done = subprocess.run(
                command,
                env=dict(environ),
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {seconds:.0f} s"
        finally:
            os.close(writing)
        try:
            return read_answer(answer.read())
        except (ValueError, KeyError, TypeError):
            said = done.stderr.decode(errors="replace")
    log.warning("The check of torch printed: %s", said)
    words = " ".join(said.split()).replace(". ", ", ")[-LONGEST_WORDS:].rstrip(". ")
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return f"{ended}{f': {words}' if words else ''}"


def read_answer(text: str) -> Torch:
    """Return the child's answer. Raises ValueError, KeyError or TypeError where it is none."""
    found = json.loads(text)
    devices = tuple(Device(**device) for device in found.pop("devices"))
    architectures = tuple(found.pop("architectures"))
    return Torch(**found, devices=devices, architectures=architectures)


def open_device(path: Path) -> DeviceFile | None:
    """Return whether the file can be opened for reading and writing; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return DeviceFile(str(path), error.errno or 0)
    found = DeviceFile(str(path), 0, status.st_mode & 0o7777, status.st_uid, status.st_gid)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return replace(found, error=error.errno or 0)
    return found


def collect_files(wanted: int, resource: str, environ: Mapping[str, str], root: Path) -> Facts:
    """Return the facts that need no torch. `root` is / but for tests."""
    render = (open_device(path) for path in sorted((root / "dev/dri").glob("renderD*")))
    try:
        driver = (root / "sys/module/amdgpu/version").read_text().strip() or None
    except OSError:
        driver = None
    return Facts(
        wanted=wanted,
        resource=resource,
        user=os.geteuid(),
        groups=frozenset({os.getegid(), *os.getgroups()}),
        kfd=open_device(root / "dev/kfd"),
        render=tuple(file for file in render if file),
        driver=driver,
        visible={name: environ[name] for name in HIDING if name in environ},
    )


def find_problem(environ: Mapping[str, str], ask: Ask = ask_torch, root: Path = Path("/")) -> Problem | None:
    """Return why the GPUs that the environment requires can't be used; None where they can, or none is required."""
    given = environ.get(REQUIRED, "0").strip()
    if not given.isdecimal():
        return Problem(
            f"{REQUIRED} is {given!r}, which is no number of GPUs",
            f"Remove {REQUIRED} from spec.pod.env, or set it to 0 to compute on the CPU where there are no GPUs.",
        )
    wanted = int(given)
    if not wanted:
        return None
    facts = collect_files(wanted, environ.get(RESOURCE) or DEFAULT_RESOURCE, environ, root)
    return judge_files(facts) or judge_torch(replace(facts, torch=ask(environ, wanted)))


def describe_closed_devices(root: Path = Path("/")) -> str | None:
    """Return why a person on a machine of their own can't open its AMD GPUs; None where that is not the case."""
    paths = [root / "dev/kfd", *sorted((root / "dev/dri").glob("renderD*"))]
    closed = next((file for path in paths if (file := open_device(path)) and file.error), None)
    if closed is None:
        return None
    found = f"{closed.path} can't be opened: {os.strerror(closed.error)}"
    if closed.error not in DENIED:
        return f"{found}. Look for amdgpu in the output of `dmesg`"
    return (
        f"{found} (it belongs to group {closed.group}). Run `sudo usermod --append --groups render,video $USER` and "
        "log in again"
    )
