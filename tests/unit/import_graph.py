"""Which modules of a package import which: read from their syntax trees, imports inside functions included."""

import ast
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "hone_api": ROOT / "crds/hone_api",
    "hone_operator": ROOT / "operator/hone_operator",
    "hone_trainer": ROOT / "trainer/hone_trainer",
    "hone_server": ROOT / "server/hone_server",
    "hone": ROOT / "client/hone",
    "hone_cli": ROOT / "cli/hone_cli",
}
Graph = Mapping[str, Set[str]]


@cache
def modules(package: str) -> dict[str, Path]:
    """Return the dotted names of a package's modules, and of the packages below it, with their files."""
    found = {}
    for file in sorted(FOLDERS[package].rglob("*.py")):
        name = ".".join(file.relative_to(FOLDERS[package].parent).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


@cache
def import_graph(package: str) -> Graph:
    """Return for each module of a package the modules of the same package that it imports."""
    found = {}
    for name, file in modules(package).items():
        here = name if file.name == "__init__.py" else name.rpartition(".")[0]
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(here.split(".")[: len(here.split(".")) - node.level + 1]) if node.level else ""
                module = ".".join(part for part in (base, node.module) if part)
                names |= {full if (full := f"{module}.{alias.name}") in modules(package) else module
                          for alias in node.names}  # fmt: skip
        found[name] = (names & modules(package).keys()) - {name}
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, set()))) for a in graph if a in reached[a]}
    return [list(group) for group in sorted(groups)]
