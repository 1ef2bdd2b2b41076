"""Collect the facts: open the device files, and ask torch in a child process.

The child frees its GPU memory when it ends, and a driver that hangs or ends the child is a normal result.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from .facts import REQUIRED, RESOURCE, Device, DeviceFile, Facts, Problem, Torch
from .judgement import DENIED, LONGEST_MESSAGE, OVERFLOW_ID, judge_files, judge_torch

log = logging.getLogger(__name__)

# The first import of torch from a slow disk takes minutes, and each GPU some seconds.
PROBE_SECONDS = 600.0
# For the end of a killed process. One that waits for a driver which hangs does not end, and is left.
END_SECONDS = 5.0
HIDING = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
DEFAULT_RESOURCE = "amd.com/gpu"
# AMD's number as a maker of PCI devices.
AMD = "0x1002"

Ask = Callable[[Mapping[str, str], int], Torch | str]


def ask_torch(environ: Mapping[str, str], gpu_count: int, seconds: float = PROBE_SECONDS) -> Torch | str:
    """Return what torch finds and whether the first GPUs compute, or how the child ended without an answer."""
    reading, writing = os.pipe()  # not stdout, to which libraries may print
    command = [sys.executable, "-m", f"{__package__}.probe", str(gpu_count), str(writing)]
    with _open_unnamed_file() as printed:
        try:
            process = subprocess.Popen(
                command,
                env=dict(environ),
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=printed,
            )
            code = _await_end(process, seconds)
            answer = _read_what_is_there(reading)
        finally:
            os.close(writing)
            os.close(reading)
        if code is None:
            return f"no answer within {seconds:.0f} s"
        try:
            return read_answer(answer)
        except (ValueError, KeyError, TypeError):
            printed.seek(0)
            output = printed.read().decode(errors="replace")
    log.warning("The check of torch printed: %s", output)
    text = " ".join(output.split()).replace(". ", ", ")[-LONGEST_MESSAGE:].rstrip(". ")
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}{f': {text}' if text else ''}"


def _open_unnamed_file() -> IO[bytes]:
    """Return a file in memory, because a pod may have no writable folder."""
    if sys.platform == "linux":
        return open(os.memfd_create("printed"), "w+b")
    return tempfile.TemporaryFile()


def _await_end(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Return the exit code; None if the process was killed because it took too long, whether or not it ended."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_SECONDS)
        return None


def _read_what_is_there(pipe: int) -> str:
    """Return the data in a pipe, even while another process has it open."""
    os.set_blocking(pipe, False)
    found = b""
    with suppress(BlockingIOError):
        while part := os.read(pipe, 1 << 16):
            found += part
    return found.decode(errors="replace")


def read_answer(text: str) -> Torch:
    """Return the child's answer. Raises ValueError, KeyError or TypeError if it is invalid."""
    found = json.loads(text)
    devices = tuple(Device(**device) for device in found.pop("devices"))
    architectures = tuple(found.pop("architectures"))
    return Torch(**found, devices=devices, architectures=architectures)


def open_device(path: Path) -> DeviceFile | None:
    """Return whether the file can be opened for reading and writing; None: there is none."""
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


def list_render_files(root: Path) -> list[Path]:
    """Return the render files that are, or may be, of AMD's GPUs: other makers' drivers have such files as well."""
    return [path for path in sorted((root / "dev/dri").glob("renderD*")) if _may_be_amds(root, path.name)]


def _may_be_amds(root: Path, name: str) -> bool:
    try:
        return (root / "sys/class/drm" / name / "device/vendor").read_text().strip() == AMD
    except OSError:
        return True


def collect_files(gpu_count: int, resource: str, environ: Mapping[str, str], root: Path) -> Facts:
    """Return the facts that need no torch. `root` is / but for tests."""
    render = (open_device(path) for path in list_render_files(root))
    try:
        driver = (root / "sys/module/amdgpu/version").read_text().strip() or None
    except OSError:
        driver = None
    return Facts(
        wanted=gpu_count,
        resource=resource,
        user=os.geteuid(),
        groups=frozenset({os.getegid(), *os.getgroups()}),
        kfd=open_device(root / "dev/kfd"),
        render=tuple(file for file in render if file),
        driver=driver,
        visible={name: environ[name] for name in HIDING if name in environ},
    )


def find_problem(environ: Mapping[str, str], ask: Ask = ask_torch, root: Path = Path("/")) -> Problem | None:
    """Return why the required GPUs can't be used; None if they can, or none is required."""
    given = environ.get(REQUIRED, "0").strip()
    if not given.isdecimal():
        return Problem(
            f"{REQUIRED} is {given!r}, which is no number of GPUs",
            f"Remove {REQUIRED} from spec.pod.env, or set it to 0 to compute on the CPU where there are no GPUs.",
        )
    gpu_count = int(given)
    if not gpu_count:
        return None
    facts = collect_files(gpu_count, environ.get(RESOURCE) or DEFAULT_RESOURCE, environ, root)
    return judge_files(facts) or judge_torch(replace(facts, torch=ask(environ, gpu_count)))


def describe_closed_devices(root: Path = Path("/")) -> str | None:
    """Return why a user can't open the AMD GPUs of this machine; None if this is not the case."""
    kfd = open_device(root / "dev/kfd")
    if kfd is None:  # GPUs of other vendors, which this can't check
        return None
    render = (open_device(path) for path in list_render_files(root))
    closed = next((file for file in (kfd, *render) if file and file.error), None)
    if closed is None:
        return None
    found = f"{closed.path} can't be opened: {os.strerror(closed.error)}"
    if closed.error not in DENIED:
        return f"{found}. Look for amdgpu in the output of `dmesg`"
    return f"{found} (it belongs to group {closed.group}). {_choose_closed_remedy(closed, root)}"


def _choose_closed_remedy(file: DeviceFile, root: Path) -> str:
    if not any((root / name).exists() for name in (".dockerenv", "run/.containerenv")):
        return "Run `sudo usermod --append --groups render,video $USER` and log in again"
    if file.group == OVERFLOW_ID:
        return (
            "The container lacks your groups: start it with `podman run --group-add keep-groups`, as a user of the "
            "groups render and video"
        )
    return f"Start the container with `--group-add {file.group}`"
