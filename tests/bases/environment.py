"""The environments of `make test-bases`: a stand-in for a base, and on it what Dockerfile.rocm installs.

A virtual environment stands in for the base: its Python, and its torch for CPUs. The commands of Dockerfile.rocm
install the packages and Hone into folders next to it. All but Hone is kept in the user's cache, under the digest of
what it is made from.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from base_images import Base
from dockerfile import read_run
from stand_in import write_stand_ins

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hone/bases"
CODE = ROOT / "build/bases"
UV = Path(sys.executable).with_name("uv")
# torch, and the requirements of its import, except NVIDIA's libraries.
TORCH = "torch triton filelock fsspec jinja2 markupsafe mpmath networkx setuptools sympy typing-extensions".split()
# The packages of the one that is not a stand-in, of CUDA 13 and 12.
CUDA_RUNTIMES = ["nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"]
# What the tests need in addition, at the versions of constraints.txt.
TOOLS = ["httpx", "hypothesis", "openai", "pytest", "pytest-timeout", "websocket-client"]
WRITE, INSTALL, CHECK, ADD = (
    read_run(ROOT / "Dockerfile.rocm", stage, text)
    for stage, text in (
        ("requirements", 'write("runtime"'),
        ("runtime-dependencies", "--target /opt/hone --require-hashes"),
        ("runtime-dependencies", "and Hone needs"),
        ("runtime", "/src/dist/*.whl"),
    )
)


@contextmanager
def installed(base: Base) -> Iterator[tuple[Path, dict[str, str]]]:
    """Return the interpreter and the variables of a base's environment, which is built if the cache lacks it."""
    python = find_python(base.python)
    folder = CACHE / f"{base.torch}-{compute_digest(base, python)}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(folder, fcntl.LOCK_EX):
        if not (folder / "done").exists():
            build(folder, base, python)
    # Shared, so that other checkouts can test at the same time, and remove nothing that is in use.
    with locked(folder, fcntl.LOCK_SH):
        remove_others(folder, base)
        add_hone(folder)
        yield folder / "base/bin/python", variables(folder)


def find_python(version: str) -> Path:
    """Return an interpreter of a version such as 3.12: on the PATH, of pyenv, or of uv.

    Raises SystemExit when there is none.
    """
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = sorted(pyenv.glob(f"versions/{version}.*/bin/python3"), reverse=True)
    # pyenv's shims are there for versions that are not chosen, too.
    if (found := shutil.which(name)) and "shims" not in found:
        candidates.insert(0, Path(found))
    if candidates:
        return candidates[0]
    command = [UV, "python", "find", "--no-python-downloads", version]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if result.returncode == 0:
        return Path(result.stdout.strip())
    raise SystemExit(
        f"{name} was not found. It is the Python of a base image (docs/images.md). Install it, for example: "
        f"{UV} python install {version}"
    )


def pins(base: Base) -> Path:
    """Return the file with the versions and hashes of a base's torch: constraints.txt for the torch of most tests."""
    own = HERE / f"torch-{base.torch}.txt"
    return own if own.exists() else ROOT / "constraints.txt"


def compute_digest(base: Base, python: Path) -> str:
    """Return the digest of everything from which the cached folders are made."""
    files = [ROOT / "constraints.txt", pins(base), HERE / "stand_in.py", Path(__file__)]
    parts = [
        read_version(python),
        str(python),
        WRITE,
        INSTALL,
        runtime_requirements(),
        *(file.read_text() for file in files),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def read_version(python: Path) -> str:
    return subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout


def runtime_requirements() -> str:
    """Return the runtime image's requirements: other changes of pyproject.toml need no new environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return "\n".join([*project["dependencies"], *extras["trainer"], *extras["server"], *extras["tracking"]])


def lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def locked(folder: Path, kind: int) -> Iterator[None]:
    with lock_of(folder).open("w") as file:
        fcntl.flock(file, kind)
        yield


def build(folder: Path, base: Base, python: Path) -> None:
    """Make the stand-in of the base, and next to it what the image and the tests add."""
    print(f"building {folder}; downloads about 1 GB unless uv has it cached", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv, work = folder / "base", folder / "work"
    work.mkdir(parents=True)
    call([UV, "venv", "--quiet", "--python", python, venv])
    install_torch(base, venv / "bin/python", work)

    for file in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, work)
    run_of_image(WRITE, {'f"/{image}.toml"': f'f"{work}/{{image}}.toml"'}, folder, work)
    (work / "runtime.toml").rename(work / "pyproject.toml")
    places = {"/opt/uv/bin/uv": str(UV), "/opt/hone": str(folder / "hone"), "/tmp/excludes.txt": f"{work}/excludes.txt"}
    run_of_image(INSTALL, places, folder, work)

    pip = install_into(venv / "bin/python")
    call([*pip, "--target", folder / "tools", *chosen(TOOLS, ROOT / "constraints.txt", work)], cwd=work)
    (folder / "done").touch()


def install_torch(base: Base, python: Path, work: Path) -> None:
    """Install a base's torch into an interpreter's packages, and the stand-ins for NVIDIA's libraries next to it."""
    pinned = {line.partition("==")[0] for line in pins(base).read_text().splitlines()}
    names = [*TORCH, *(name for name in CUDA_RUNTIMES if name in pinned)]
    call([*install_into(python), "--no-deps", *chosen(names, pins(base), work)], cwd=work)
    ask = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    result = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True)
    packages = Path(result.stdout.strip())
    write_stand_ins(packages / "torch/lib", *packages.glob("nvidia/*/lib"))


def install_into(python: Path) -> list[str | Path]:
    return [UV, "pip", "install", "--quiet", "--python", python, "--require-hashes"]


def chosen(names: list[str], constraints: Path, work: Path) -> list[str | Path]:
    """Return options of `uv pip install` for packages at the versions and hashes of a file, as in Dockerfile.rocm."""
    (work / "pyproject.toml").write_text(f'[project]\nname = "chosen"\nversion = "0"\ndependencies = {names}\n')
    return ["--requirement", "pyproject.toml", "--constraint", constraints]


def add_hone(folder: Path) -> None:
    """Install the checkout's wheel as the image does, into a folder of the checkout's own."""
    shutil.rmtree(CODE, ignore_errors=True)
    call([UV, "build", "--quiet", "--wheel", "--out-dir", CODE / "dist"], cwd=ROOT)
    places = {"/opt/uv/bin/uv": str(UV), "/opt/hone": str(CODE / "hone"), "/src/dist": str(CODE / "dist")}
    run_of_image(ADD, places, folder, CODE)


def variables(folder: Path) -> dict[str, str]:
    """Return the environment with the image's PATH and PYTHONPATH; the tests' additions come last."""
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    found["PATH"] = os.pathsep.join([str(CODE / "hone/bin"), str(folder / "base/bin"), os.environ["PATH"]])
    found["PYTHONPATH"] = os.pathsep.join(str(part) for part in (CODE / "hone", folder / "hone", folder / "tools"))
    return found | {"INSTALL_TORCH": "0", "HONE_BASE_TARGET": str(folder / "hone"), "HONE_BASE_CHECK": CHECK}


def remove_others(folder: Path, base: Base) -> None:
    """Remove the base's unused environments of other digests: each has gigabytes."""
    for other in CACHE.glob(f"{base.torch}-*"):
        if not other.is_dir() or other == folder:
            continue
        with lock_of(other).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(other)


def run_of_image(command: str, places: dict[str, str], folder: Path, at: Path) -> None:
    """Run a command of Dockerfile.rocm with other paths, each of which must be in it."""
    for old, new in places.items():
        if old not in command:
            raise SystemExit(f"tests/bases/environment.py expects {old} in this command of Dockerfile.rocm: {command}")
        command = command.replace(old, new)
    call(["sh", "-euc", command], cwd=at, env=variables(folder))


def call(command: list[str | Path], **options: Any) -> None:
    done = subprocess.run(command, **options)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {' '.join(str(part) for part in command)}")
