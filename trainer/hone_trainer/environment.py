"""What must be set before torch and the hub's libraries are imported."""

from collections.abc import MutableMapping
from pathlib import Path

from hone_api.layout import CACHE
from hone_api.reasons import INVALID_SPEC, HoneError

_DEVICES = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def set_up(environ: MutableMapping[str, str], output: Path, gpus: int) -> None:
    """Cache below `output`, quiet libraries, and as many devices as the job asks for. Raises HoneError InvalidSpec."""
    environ.setdefault("HF_HOME", str(output / CACHE))
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    limit_devices(environ, gpus)


def limit_devices(environ: MutableMapping[str, str], gpus: int) -> None:
    """Show torch one device or none: with several it would split the batch between them unasked."""
    if gpus > 1:
        raise HoneError(
            INVALID_SPEC, f"spec.resources.gpus is {gpus}, and a job trains on one GPU so far", remedy="Set it to 1."
        )
    if gpus == 0:
        environ.update(dict.fromkeys(_DEVICES, ""))
        return
    given = [name for name in _DEVICES if name in environ]
    for name in given or ["CUDA_VISIBLE_DEVICES"]:
        environ[name] = environ.get(name, "0").split(",")[0]
