"""Create empty stand-ins for NVIDIA's libraries, with which torch's wheel is linked and which a CPU does not need.

The real ones are 3 GB. The dynamic linker requires each library that torch names, with each symbol that torch takes
from it: compiled here as functions that return 0. Only the CUDA runtime is real, because torch asks it for GPUs.
"""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

# NVIDIA's libraries, without the driver's, which only the libraries that torch loads for a GPU name.
MAKER = re.compile(r"lib(cu(?!da\.so)|nv|nccl)\w*\.so")
PREFIXES = ("cu", "nccl", "nvrtc", "nvJitLink", "nvshmem", "nvtx")
SYMBOL = re.compile(r"^(\w+)(?:@+(\S+))?$")


def write_stand_ins(libraries: Path, *real: Path) -> list[str]:
    """Write into torch's folder of libraries the needed libraries that neither it nor the folders `real` have.

    Returns the names of the written files.
    """
    files = sorted(libraries.glob("*.so*"))
    present = {file.name for folder in (libraries, *real) for file in folder.iterdir()}
    missing = sorted({name for file in files for name in needed(file) if MAKER.match(name)} - present)
    defined = {symbol for file in files for symbol, _ in symbols(file, "--defined-only")}
    owners = {version: name for file in files for name, version in versions(file)}
    plain: set[str] = set()
    versioned: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in missing}
    for file in files:
        for symbol, version in symbols(file, "--undefined-only"):
            if owners.get(version) in versioned:
                versioned[owners[version]][version].add(symbol)
            elif not version and symbol.startswith(PREFIXES) and symbol not in defined:
                plain.add(symbol)
    for name in missing:
        compile_library(libraries / name, versioned[name] or {"": plain})
    return missing


def needed(file: Path) -> list[str]:
    """Return the libraries that a library names."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output("readelf", "--dynamic", str(file)))


def versions(file: Path) -> list[tuple[str, str]]:
    """Return the libraries of which a library needs a version of symbols, each with such a version."""
    found, library = [], ""
    for line in output("readelf", "--version-info", "--wide", str(file)).splitlines():
        if match := re.search(r"File: (\S+) +Cnt:", line):
            library = match[1]
        elif library and (match := re.search(r"Name: (\S+) +Flags:", line)):
            found.append((library, match[1]))
    return found


def symbols(file: Path, which: str) -> list[tuple[str, str]]:
    """Return the dynamic symbols of a library, each with its version or ""."""
    names = [line.split()[-1] for line in output("nm", "--dynamic", which, str(file)).splitlines()]
    return [(match[1], match[2] or "") for name in names if (match := SYMBOL.match(name))]


def compile_library(file: Path, names: dict[str, set[str]]) -> None:
    """Compile a library of functions that return 0, by the versions of their symbols; "" has no version."""
    source, script = file.with_name(file.name + ".c"), file.with_name(file.name + ".map")
    source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(set().union(*names.values()))))
    script.write_text(
        "".join(f"{version} {{ global: {'; '.join(sorted(each))}; }};\n" for version, each in names.items())
    )
    options = ["-w", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{file.name}"]
    options += [f"-Wl,--version-script={script}"] if any(names) else []
    output("cc", *options, "-o", str(file), str(source))
    source.unlink()
    script.unlink()


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} was not found: install gcc and binutils") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)}: {error.stderr}") from None
