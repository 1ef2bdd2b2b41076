"""What must be set before torch and the hub's libraries are imported."""

from collections.abc import MutableMapping
from pathlib import Path

from hone_api.layout import CACHE

_DEVICES = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
NO_DEVICE = "-1"
"""Ends the list of devices for HIP and CUDA alike. HIP takes an empty list for one that is not set, and shows all."""


def set_up(environ: MutableMapping[str, str], output: Path, gpus: int, verbose: bool) -> None:
    """Cache below `output`, quiet libraries, and as many devices as the job asks for."""
    environ.setdefault("HF_HOME", str(output / CACHE))
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not verbose:
        environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    limit_devices(environ, gpus)


def limit_devices(environ: MutableMapping[str, str], gpus: int) -> None:
    """Show torch no more devices than the job asks for: one process would split its batch between all it sees."""
    if gpus == 0:
        environ.update(dict.fromkeys(_DEVICES, NO_DEVICE))
        return
    given = [name for name in _DEVICES if name in environ]
    first = ",".join(str(index) for index in range(gpus))
    for name in given or ["CUDA_VISIBLE_DEVICES"]:
        environ[name] = ",".join(environ.get(name, first).split(",")[:gpus])


def for_several(environ: MutableMapping[str, str], nodes: int) -> None:
    """What processes that train together need; what the user has set stays."""
    environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun: else each process would take all cores
    if nodes == 1:
        environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
