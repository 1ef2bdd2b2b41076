"""What to do where the container runtime can't start a container.

In: its message, in the container's status. Out: a remedy. Called for pods that wait (pod_state.py) and pods that have
ended (pod_failure.py): without a restart policy, the failed start is the container's end.
"""

import re

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


def advise_on_start(message: str) -> str | None:
    """Return the remedy; None for other messages."""
    found = next((advice for pattern, advice in _ADVICE if re.search(pattern, message)), None)
    return found or volumes.advise_on_missing_source(message)
