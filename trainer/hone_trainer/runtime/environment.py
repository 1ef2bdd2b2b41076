"""Environment variables that must be set before torch and the hub's libraries are imported."""

import sys
from collections.abc import MutableMapping
from pathlib import Path

from hone_api.layout import CACHE

_DEVICE_VARIABLES = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
# Ends the list of devices for both HIP and CUDA. HIP treats an empty list as an unset one, and shows all devices.
NO_DEVICE = "-1"


def set_up_environment(environ: MutableMapping[str, str], output: Path, gpus: int, verbose: bool) -> None:
    """Set the cache below `output`, quiet the libraries, and show only as many devices as the job requests."""
    environ.setdefault("HF_HOME", str(output / CACHE))
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not verbose:
        environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # TRL imports it where it is installed, which takes a second; only a tracker's own process needs it.
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]
    limit_devices(environ, gpus)


def limit_devices(environ: MutableMapping[str, str], gpus: int) -> None:
    """Show torch only as many devices as the job requests: one process would split its batch between all of them."""
    if gpus == 0:
        environ.update(dict.fromkeys(_DEVICE_VARIABLES, NO_DEVICE))
        return
    given = [name for name in _DEVICE_VARIABLES if name in environ]
    first = ",".join(str(index) for index in range(gpus))
    for name in given or ["CUDA_VISIBLE_DEVICES"]:
        environ[name] = ",".join(environ.get(name, first).split(",")[:gpus])


def set_up_distributed(environ: MutableMapping[str, str], nodes: int) -> None:
    """Set what several training processes need; variables that the user has set are kept."""
    environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: otherwise each process would use all cores
    if nodes == 1:
        environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
