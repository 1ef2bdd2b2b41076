"""Every module of Hone that a file names exists: in commands, patches of tests, documents, charts and Dockerfiles."""

import ast
import re
import subprocess
from functools import cache

import pytest
from import_graph import FOLDERS, ROOT, modules

ROOMS = "|".join(FOLDERS.keys() - {"hone"})
# `hone` is also a variable, a folder and a part of labels: only imports name a module of it for sure.
NAME = re.compile(rf"(?<![\w./])(?:{ROOMS})(?:\.[A-Za-z_]\w*)+|(?<=^from )hone(?:\.\w+)+(?= import )", re.MULTILINE)
FILE = re.compile(rf"(?<![\w.-])(?:{ROOMS})(?:/[\w.-]+)+")
LOGGERS = {"hone_server.requests", "hone_operator.test"}


@cache
def attributes(module: str) -> frozenset[str]:
    """Return all names that a module binds anywhere in it, methods and fields included."""
    found = {"__file__", "__path__", "__name__"}
    for node in ast.walk(ast.parse(modules(module.partition(".")[0])[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return frozenset(found)


def exists(name: str) -> bool:
    """Return whether a dotted name is a module, or something that a module has."""
    known = modules(name.partition(".")[0])
    parts = name.split(".")
    length = next(length for length in range(len(parts), 0, -1) if ".".join(parts[:length]) in known)
    return length == len(parts) or parts[length] in attributes(".".join(parts[:length]))


@cache
def texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            content = (ROOT / name).read_bytes()
            if b"hone_" in content:
                found[name] = content.decode(errors="replace")
    return found


def test_modules_that_files_name_exist() -> None:
    found = {(file, name) for file, text in texts().items() for name in NAME.findall(text)}
    assert len(found) > 1000
    assert sorted((file, name) for file, name in found if name not in LOGGERS and not exists(name)) == []


def test_files_of_modules_that_files_name_exist() -> None:
    found = set()
    for file, text in texts().items():
        for path in FILE.findall(text):
            package, _, below = path.rstrip(".").partition("/")
            if not (FOLDERS[package] / below).exists():
                found.add((file, path))
    assert found == set()


@pytest.mark.parametrize("name", ["no_such_module", "reasons.no_such_name"])
def test_a_module_that_does_not_exist_is_found(name: str) -> None:
    assert not exists(f"hone_api.{name}")
