"""What the containers of a pod run, and the line in which a program of Hone reports why it ends.

The operator writes these commands into pods, whose images have the server and the trainer. It reads the failure line
from the termination message or the end of a container's log. A command that changes here restarts services when the
operator is upgraded.
"""

import re
from typing import NamedTuple

from hone_api.reasons import HoneError

TRAINER = "hone-trainer"
EMBEDDED_ENGINE = "hone-server"

LINK_ARTIFACTS = "hone_server.adapter_sidecar.link_artifacts"
ADAPTER_SIDECAR = "hone_server.adapter_sidecar.main"
KEY_GUARD = "hone_server.key_guard"
MODEL_DOWNLOAD = "hone_trainer.inputs.model_download"
URI_DOWNLOAD = "hone_trainer.models.uri_download"
ADAPTER_DOWNLOADS = "hone_trainer.models.adapter_downloads"
PUSH = "hone_trainer.push.main"

# Modules that LINK_ARTIFACTS copies into the volume that the engine's container mounts. vLLM's image has no Hone.
VLLM_MIDDLEWARE = "hone_gate"
VLLM_MIDDLEWARE_CLASS = "Gate"
VLLM_CHECK = "hone_vllm"

# How each program calls itself in its failure line.
SERVER_PROGRAM, LINKS_PROGRAM, GUARD_PROGRAM, CHECK_PROGRAM = "hone-server", "hone-place", "hone-guard", "hone-check"
DOWNLOAD_PROGRAM = "hone-download"
_PROGRAMS = (SERVER_PROGRAM, LINKS_PROGRAM, GUARD_PROGRAM, CHECK_PROGRAM, DOWNLOAD_PROGRAM)

_FAILURE = re.compile(rf"^(?:{'|'.join(_PROGRAMS)}): (\w+): (.*)$", re.MULTILINE)


class Failure(NamedTuple):
    """The reason, in UpperCamelCase, and the sentence of a failure line."""

    reason: str
    sentence: str


def build_module_command(module: str) -> list[str]:
    """Return the command of a container that runs a Python module."""
    return ["python3", "-m", module]


def format_failure_line(program: str, error: HoneError) -> str:
    """Return the last line that a program prints when it cannot do its work."""
    return f"{program}: {error.reason.name}: {error.format_message()}"


def find_failures(log: str) -> list[Failure]:
    """Return the failures of a log's failure lines, in their order."""
    return [Failure(*found) for found in _FAILURE.findall(log)]
