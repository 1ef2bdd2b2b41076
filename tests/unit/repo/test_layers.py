"""The layers of each package of Hone: which of its packages and modules may import which."""

import ast
from functools import cache
from pathlib import Path

import pytest
from import_graph import FOLDERS, circles, import_graph, modules

MOST_FILES = 15
LAYERS = {
    "hone_api": """
        schema requiredgpus
        finetunejobs
        artifacts containers
        inferenceservices reasons
        remote
        errors pods
        attention byte_sizes common dtypes exit_codes figures gpucheck gpus io layout quantities strictjson
    """,
    "hone_operator": """
        __main__
        main uninstall
        handlers
        controller
        reconciler node_watch
        watch_handlers snapshots
        finetunejob inferenceservice
        engines reconcile
        kube pods
        diagnosis observability
        objects
    """,
    "hone_trainer": """
        __main__ worker
        main
        run
        pipeline
        reporting
        training
        preparation
        config merging
        checks memory storage
        data models push
        remote tracking
        distributed inputs
        data.readers modelpack progress runtime
    """,
    "hone_server": """
        __main__
        main key_guard adapter_sidecar
        http
        model_registry
        generation
        engine
        structured
        protocol weights
        artifacts hardware logs torch_internals transformers_internals vllm workers
    """,
    "hone": """
        client
        jobs services
        backends reports
        artifacts local notebook
        kube specs
        progress
        objects
        engine notices
        errors
    """,
    "hone_cli": """
        __main__
        main
        doctor tensorboard
        commands
        doctor.checks
        ui
    """,
}
"""From top to bottom. What stands in a line may import what stands in a lower one, and nothing else."""
COPIED = {
    "hone_server.vllm.middleware",
    "hone_server.vllm.check",
    "hone_cli.doctor.pod_script",
    "hone.artifacts.pod_script",
}
"""Modules that run where nothing else of Hone is."""
WITH_CODE = {"hone_api.gpucheck", "hone"}
"""Packages whose __init__.py holds more than a docstring: one is copied as a whole, one loads its names when used."""


@cache
def layers(room: str) -> dict[str, int]:
    """Return the line of each package and module, counted from the bottom."""
    lines = [line.split() for line in LAYERS[room].strip().splitlines()]
    return {name: number for number, line in enumerate(reversed(lines)) for name in line}


@cache
def boxes(room: str) -> dict[str, str]:
    """Return for each module the package of the room that it is in; a module outside of all packages is its own."""
    found = {}
    for name, file in modules(room).items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = (name if package == room else package).partition(".")[2]
    return found


def arrows(room: str) -> set[tuple[str, str]]:
    """Return which package imports which. The room's own docstring is above and below nothing."""
    box = boxes(room)
    found = {(box[name], box[other]) for name, others in import_graph(room).items() for other in others}
    return {(upper, lower) for upper, lower in found if upper != lower and upper and lower}


@pytest.mark.parametrize("room", LAYERS)
def test_every_package_stands_in_one_line(room: str) -> None:
    assert sorted(layers(room)) == sorted(set(boxes(room).values()) - {""})
    assert len(layers(room)) == len(LAYERS[room].split())


@pytest.mark.parametrize("room", LAYERS)
def test_packages_import_only_from_lines_below(room: str) -> None:
    line = layers(room)
    assert arrows(room)
    assert {(upper, lower) for upper, lower in arrows(room) if line[upper] <= line[lower]} == set()


@pytest.mark.parametrize("room", LAYERS)
def test_no_packages_import_each_other(room: str) -> None:
    graph = {upper: {lower for one, lower in arrows(room) if one == upper} for upper, _ in arrows(room)}
    assert circles(graph) == []


@pytest.mark.parametrize("room", LAYERS)
def test_a_folder_holds_few_files(room: str) -> None:
    folders = {file.parent for file in modules(room).values()}
    files = {folder: [file for file in folder.glob("*.py") if file.name != "__init__.py"] for folder in folders}
    assert {folder.name: len(found) for folder, found in files.items() if len(found) > MOST_FILES} == {}


@pytest.mark.parametrize("room", LAYERS)
def test_importing_a_package_runs_no_code(room: str) -> None:
    """Programs that start without torch import modules of packages in which others need it."""
    for name, file in modules(room).items():
        if file.name == "__init__.py" and name not in WITH_CODE:
            tree = ast.parse(file.read_text())
            assert ast.get_docstring(tree), name
            assert len(tree.body) == 1, name


@pytest.mark.parametrize("name", sorted(COPIED))
def test_what_is_copied_alone_imports_nothing_of_hone(name: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(modules(name.partition(".")[0])[name].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").partition(".")[0])
    assert {each for each in imported if each.startswith(".") or each in FOLDERS} == set()


def test_a_package_that_is_copied_imports_only_itself() -> None:
    files: list[Path] = sorted((FOLDERS["hone_api"] / "gpucheck").glob("*.py"))
    assert len(files) > 1
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & FOLDERS.keys()
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or (node.module or "").partition(".")[0] not in FOLDERS
