"""The rooms of the repository: who imports whom, and what no file may hold."""

import ast
import subprocess
from pathlib import Path

import pytest
from import_graph import FOLDERS as ROOMS
from import_graph import ROOT, circles, import_graph

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate"}
KUBERNETES = {"kubernetes", "kopf"}
REFUSED = {
    "hone_api": HEAVY | KUBERNETES | {"typer", "rich", "fastapi"},
    "hone_operator": HEAVY | {"typer", "fastapi"},
    "hone_trainer": KUBERNETES | {"typer", "fastapi"},
    "hone_server": KUBERNETES | {"typer", "trl", "datasets"},
    "hone": HEAVY | {"kopf", "fastapi", "typer", "rich", "IPython"},
    "hone_cli": HEAVY | {"kopf", "fastapi"},
}


def imports(room: str) -> set[str]:
    """Return the top-level packages that a room's modules import, also inside functions."""
    files = list(ROOMS[room].rglob("*.py"))
    assert files
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    return found


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_other_room_but_the_contract(room: str) -> None:
    """The command is built on the client."""
    allowed = {room, "hone_api"} | ({"hone"} if room == "hone_cli" else set())
    assert imports(room) & ROOMS.keys() <= allowed


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_stays_free_of_what_its_image_lacks(room: str) -> None:
    assert not imports(room) & REFUSED[room]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_are_seen(room: str) -> None:
    assert "hone_api" in imports(room)


@pytest.mark.parametrize("room", ROOMS)
def test_no_modules_of_a_room_import_each_other(room: str) -> None:
    """Not through others, and not through imports inside functions."""
    assert any(import_graph(room).values())
    assert circles(import_graph(room)) == []


def test_no_private_module_of_kopf_is_used() -> None:
    for file in ROOMS["hone_operator"].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kopf":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not [name for name in names if name.startswith("kopf.") and "._" in name], file


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}}
    assert circles(graph) == [["a", "b", "c"], ["e", "f"]]


def test_nothing_shadows_pythons_operator() -> None:
    assert not (ROOT / "operator/__init__.py").exists()
    assert not (ROOT / "tests/operator").exists()


def test_test_files_have_names_of_their_own() -> None:
    names = [Path(name).name for name in tracked() if name.startswith("tests/") and Path(name).name.startswith("test_")]
    assert names
    assert len(names) == len(set(names))
    assert not [name for name in tracked() if name.startswith("tests/") and name.endswith("__init__.py")]


def test_unit_tests_share_helpers_and_no_tests() -> None:
    """pytest would run a module twice that another one imports, and finds none that lies in another folder."""
    for file in (ROOT / "tests/unit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("test_"), file


def test_no_file_names_a_package_registry() -> None:
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("proxy", "golang", "org"))]
    for name in tracked():
        content = (ROOT / name).read_bytes()
        assert not [host for host in hosts if host.encode() in content], name


def test_sources_stay_short() -> None:
    for room in ROOMS.values():
        for file in room.rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 400, file
