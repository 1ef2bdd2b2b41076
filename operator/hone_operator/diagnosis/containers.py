"""What to do where the container runtime can't start a container, and where a signal ended it.

In: its message and exit code, in the container's status. Out: a remedy. Called for pods that wait (pod_state.py), pods
that have ended (pod_failure.py), since without a restart policy the failed start is the container's end, and engines
(inferenceservice/plan.py). SIGKILL is explained where the reason of the status is known.
"""

import re
import signal

from hone_operator.diagnosis import volumes

# Reasons of a terminated container that never ran.
START_FAILURES = frozenset({"StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError"})

_ADVICE = (
    (
        r"/dev/(?:kfd|dri)|[Cc][Dd][Ii] device",
        "The node's GPUs have changed since the device plugin or driver listed them, or the amdgpu driver is not "
        "loaded: look at the node's `dmesg`, restart AMD's device plugin there, or run `kubectl cordon NODE` to have "
        "other nodes used.",
    ),
    (
        r"executable file not found|exec format error",
        "Correct spec.pod.image: the image lacks the program, or is for another architecture.",
    ),
)
# The exit code is this plus the number of the signal.
_SIGNAL_BASE = 128
_SIGNAL_ADVICE = (
    (
        "SIGILL",
        "The program has instructions that the node's CPU lacks, such as AVX2 or AVX-512: have other nodes "
        "used by spec.pod.nodeSelector, or name an image that is built for this CPU in spec.pod.image.",
    ),
    (
        "SIGTRAP",
        "A library has ended the program at a failed check: its log names it.",
    ),
    (
        "SIGABRT",
        "A library has given up: its log names the check or error. In ROCm it often means that the image "
        "has no code for the GPU's gfx target, or that HSA_OVERRIDE_GFX_VERSION in spec.pod.env names a wrong one.",
    ),
    (
        "SIGBUS",
        "The memory behind a mapped file was missing: often /dev/shm is full, so raise "
        "spec.resources.sharedMemory; or the file was cut, or its volume failed.",
    ),
    (
        "SIGFPE",
        "Native code has divided by zero: its log names the last call. Name another image in spec.pod.image.",
    ),
    (
        "SIGSEGV",
        "Native code has crashed: often the image's ROCm does not fit the node's amdgpu driver, or an "
        "extension does not fit its torch. See the node's `dmesg`, and name another image in spec.pod.image.",
    ),
)


def advise_on_start(message: str) -> str | None:
    """Return the remedy; None for other messages."""
    found = next((advice for pattern, advice in _ADVICE if re.search(pattern, message)), None)
    return found or volumes.advise_on_missing_source(message)


def find_signal(exit_code: object) -> str | None:
    """Return the name of the signal of a crash that an exit code means; None for any other end."""
    return next((name for name, _ in _SIGNAL_ADVICE if exit_code == _SIGNAL_BASE + signal.Signals[name]), None)


def describe_exit(exit_code: object) -> str:
    """Return how a container ended, such as `ended with exit code 139 (SIGSEGV)`."""
    name = find_signal(exit_code)
    return f"ended with exit code {exit_code}" + (f" ({name})" if name else "")


def advise_on_exit(exit_code: object) -> str | None:
    """Return what usually causes the signal and what to do; None for other exit codes."""
    name = find_signal(exit_code)
    return next((advice for found, advice in _SIGNAL_ADVICE if found == name), None)
