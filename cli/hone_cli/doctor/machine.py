"""Gather facts about this machine, with a timeout on every call that could hang."""

import http.client
import importlib.util
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hone_api.gpucheck.collecting import ask_torch, collect_files, describe_closed_devices
from hone_api.gpucheck.facts import Facts, Torch

from hone_cli.doctor.checks.findings import Unread

HUB = "https://huggingface.co"
HUB_SECONDS = 10
TORCH_SECONDS = 180.0
MOST_GPUS = 64
TRAINER = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


@dataclass(frozen=True)
class MachineFacts:
    """Facts about this machine. Sizes are in bytes. `torch`: its devices, how its check ended, or None without torch.

    `hub` is the status of the hub's answer, or why there is no answer; None if it must not be asked.
    """

    python: tuple[int, int]
    missing: tuple[str, ...]
    torch: Torch | str | None
    files: Facts
    closed: str | None
    memory: int | Unread
    cache: Path
    cache_error: str | None
    cache_free: int | Unread
    free: int | Unread
    hub_url: str
    hub: int | str | None
    system: str = ""


def collect_machine(environ: Mapping[str, str], root: Path = Path("/")) -> MachineFacts:
    """Return the facts about this machine."""
    missing = tuple(name for name in TRAINER if importlib.util.find_spec(name) is None)
    cache = find_cache(environ)
    url = find_hub(environ)
    is_offline = any(environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)
    return MachineFacts(
        python=sys.version_info[:2],
        missing=missing,
        torch=None if "torch" in missing else ask_torch(environ, MOST_GPUS, TORCH_SECONDS),
        files=collect_files(1, "amd.com/gpu", environ, root),
        closed=describe_closed_devices(root),
        memory=read_free_memory(root),
        cache=cache,
        cache_error=find_cache_error(cache),
        cache_free=read_free_disk(cache),
        free=read_free_disk(Path.cwd()),
        hub_url=url,
        hub=None if is_offline else ask_hub(url),
        system=platform.system(),
    )


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def find_cache(environ: Mapping[str, str]) -> Path:
    """Return the folder in which the hub's libraries keep models, found as they do."""
    if given := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def find_cache_error(cache: Path) -> str | None:
    """Return why models can't be written to the cache; None if they can, even if the folder does not exist yet."""
    there = _find_existing(cache)
    if not there.is_dir():
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def read_free_disk(folder: Path) -> int | Unread:
    """Return the free bytes on the disk of a folder, which need not exist."""
    try:
        return shutil.disk_usage(_find_existing(folder)).free
    except OSError as error:
        return Unread(str(error))


def read_free_memory(root: Path) -> int | Unread:
    """Return the bytes of memory that programs can still allocate."""
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError) as error:
        return Unread(str(error))
    return Unread("/proc/meminfo has no MemAvailable")


def find_hub(environ: Mapping[str, str]) -> str:
    """Return the hub's address, without a user and password in it."""
    url = environ.get("HF_ENDPOINT") or HUB
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def ask_hub(url: str) -> int | str:
    """Return the status of the hub's answer, or why there is none."""
    if not url.startswith(("http://", "https://")):
        return "its address begins neither with https:// nor with http://"
    try:
        asked = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "hone-doctor"})
        with urllib.request.urlopen(asked, timeout=HUB_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def _find_existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
