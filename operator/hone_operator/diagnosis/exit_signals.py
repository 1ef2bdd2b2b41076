"""Name the signal that ended a container, and what usually causes it.

In: the exit code in a container's status, which is 128 plus the signal's number. Out: words for a message, and a
remedy. Called for pods of jobs (pod_failure.py) and for engines (inferenceservice/plan.py). SIGKILL is explained where
the reason of the status is known; SIGTERM is how Kubernetes ends pods.
"""

import signal

_BASE = 128
_ADVICE = (
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


def find_signal(exit_code: object) -> str | None:
    """Return the name of the signal of a crash that an exit code means; None for any other end."""
    return next((name for name, _ in _ADVICE if exit_code == _BASE + signal.Signals[name]), None)


def describe_exit(exit_code: object) -> str:
    """Return how a container ended, such as `ended with exit code 139 (SIGSEGV)`."""
    name = find_signal(exit_code)
    return f"ended with exit code {exit_code}" + (f" ({name})" if name else "")


def advise_on_exit(exit_code: object) -> str | None:
    """Return what usually causes the signal and what to do; None for other exit codes."""
    name = find_signal(exit_code)
    return next((advice for found, advice in _ADVICE if found == name), None)
