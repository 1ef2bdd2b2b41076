"""What benchmarks and examples import from the repository exists there: most of them are run by nobody but people."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("crds", "operator", "trainer", "server", "client", "cli")
# Folders that the scripts, or the settings of pytest, put on the path.
FOLDERS = (
    *("tests", "tests/unit", "tests/trainer", "tests/trainer/tracking", "tests/server", "tests/cluster"),
    *("benchmarks", "examples/quickstart"),
)
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))


def find_module(name: str, script: Path) -> Path | None:
    """Return the file of a module of this repository; None for a module from elsewhere."""
    for folder in (script.parent, *(ROOT / each for each in (*ROOMS, *FOLDERS))):
        place = folder / name.replace(".", "/")
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def list_names(module: Path) -> Iterator[str]:
    """Yield the names that a module defines or imports at its top level, and those of its submodules."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (each.asname or each.name for each in node.names)
    if module.name == "__init__.py":
        yield from (path.stem for path in module.parent.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imported_names_exist(script: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if module := find_module(node.module or "", script):
            missing = {each.name for each in node.names} - set(list_names(module))
            assert not missing, f"{node.module} has no {', '.join(missing)}"


def test_the_search_finds_a_missing_name() -> None:
    module = find_module("hone_api.reasons", SCRIPTS[0])
    assert module
    assert "HoneError" in set(list_names(module))
    assert "NoSuchName" not in set(list_names(module))
