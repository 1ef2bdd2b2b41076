"""Facts about the machine: GPUs, driver, ROCm, torch, packages. No names of hosts or users, and no secrets."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from acceptance.context import ROOT
from hone_api.gpucheck.collecting import HIDING, ask_torch, collect_files
from hone_api.gpucheck.facts import Torch

MOST_GPUS = 64
TORCH_SECONDS = 300.0
# Variables whose values are in the report. Of all others not even the names are.
SHOWN = (*HIDING, "HSA_XNACK", "HSA_OVERRIDE_GFX_VERSION", "FLASH_ATTENTION_TRITON_AMD_ENABLE", "PYTORCH_ALLOC_CONF")
PACKAGES = (
    "hone accelerate bitsandbytes datasets flash-attn peft tokenizers torch transformers triton pytorch-triton-rocm"
    "  trl vllm".split()
)


def collect_facts(environ: Mapping[str, str], root: Path = Path("/")) -> dict[str, Any]:
    """Return the facts, as JSON's types."""
    seen = ask_torch(environ, MOST_GPUS, TORCH_SECONDS)
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "distribution": _read_distribution(root),
        "cpus": os.cpu_count(),
        "memoryBytes": _read_memory(root),
        "rocm": _read_line(root / "opt/rocm/.info/version"),
        "amdgpuDriver": collect_files(1, "amd.com/gpu", environ, root).driver,
        "nvidiaDriver": _read_line(root / "proc/driver/nvidia/version"),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _find_version(name))},
        "honeCommit": _read_commit(),
        "environment": {name: environ[name] for name in SHOWN if name in environ},
        "torch": describe_torch(seen, environ),
    }


def describe_torch(seen: Torch | str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the GPUs that torch finds. `unusable`: why they can't be used, empty if all compute."""
    if isinstance(seen, str):
        return {"unusable": f"the check of torch ended with {seen}", "vendor": "none", "gpus": []}
    unusable = (
        seen.error or _describe_broken(seen, environ) or ("" if seen.seen else f"torch {seen.version} sees no GPU")
    )
    vendor = "none" if not seen.seen else "amd" if seen.hip else "nvidia"
    gpus = [{"name": gpu.name, "architecture": gpu.architecture, "error": gpu.error} for gpu in seen.devices]
    builds = {"version": seen.version, "hip": seen.hip, "cuda": seen.cuda}
    return builds | {"architectures": list(seen.architectures), "unusable": unusable, "vendor": vendor, "gpus": gpus}


def _describe_broken(seen: Torch, environ: Mapping[str, str]) -> str:
    """Return which GPUs do not compute, and how to run without them if others do."""
    broken = [f"GPU {number}: {gpu.error}" for number, gpu in enumerate(seen.devices) if gpu.error]
    working = [number for number, gpu in enumerate(seen.devices) if not gpu.error]
    if not broken or not working:
        return "; ".join(broken)
    name = "HIP_VISIBLE_DEVICES" if seen.hip else "CUDA_VISIBLE_DEVICES"
    shown = environ[name].split(",") if environ.get(name) else [str(number) for number in range(len(seen.devices))]
    left = ",".join(shown[number].strip() for number in working if number < len(shown))
    return f"{'; '.join(broken)}; to run on the others, set {name}={left}"


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read_line(file: Path) -> str | None:
    """Return the first line of a file; None if it can't be read or is empty."""
    try:
        return next(iter(file.read_text(errors="replace").splitlines()), None)
    except OSError:
        return None


def _read_distribution(root: Path) -> str | None:
    try:
        lines = (root / "etc/os-release").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), None)


def _read_memory(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), None)


def _read_commit() -> str | None:
    """Return the commit of this checkout, if git's files exist."""
    head = _read_line(ROOT / ".git/HEAD") or ""
    if not head.startswith("ref: "):
        return head or None
    return _read_line(ROOT / ".git" / head.removeprefix("ref: "))
