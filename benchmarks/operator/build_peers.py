"""Build the Go programs that the operator is compared or used with, once, from their modules."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

MODULES = {
    "jobset": "sigs.k8s.io/jobset",
    "trainer": "github.com/kubeflow/trainer/v2",
    "kwok": "sigs.k8s.io/kwok",
}
# For each a go.mod with the version and the program (`tool`).
HERE = Path(__file__).parent / "modules"


@cache
def build_program(name: str) -> Path:
    digest = hashlib.sha256((HERE / name / "go.mod").read_bytes() + (HERE / name / "go.sum").read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hone/benchmarks"
    built = folder / f"{name}-{digest.hexdigest()[:12]}"
    if not built.exists():
        print(f"building {name}: up to 5 minutes, once", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        _run_go(name, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(part), "tool")
        part.rename(built)
    return built


@cache
def download_source(name: str) -> Path:
    """Return the module's own folder, which has its manifests."""
    _run_go(name, "mod", "download", MODULES[name])
    return Path(json.loads(_run_go(name, "list", "-m", "-json", MODULES[name]))["Dir"])


def read_version(name: str) -> str:
    return str(json.loads(_run_go(name, "list", "-m", "-json", MODULES[name]))["Version"])


def _run_go(name: str, *arguments: str) -> str:
    environment = dict(os.environ, CGO_ENABLED="0", GOWORK="off", GOFLAGS="-mod=readonly")
    done = subprocess.run(["go", *arguments], cwd=HERE / name, env=environment, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()
