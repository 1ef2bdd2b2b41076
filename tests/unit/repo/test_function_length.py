"""No function is too long to read in one piece: at most 60 lines of code, without its docstring."""

import ast

import pytest
from import_graph import FOLDERS, ROOT

MAX_LINES = 60
HELPERS = sorted(file for file in (ROOT / "tests").rglob("*.py") if not file.name.startswith("test_"))


def find_long_functions(source: str) -> list[str]:
    """Return the functions of a module that are too long, those inside of others included."""
    return [
        f"{node.name} (line {node.lineno}): {lines} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := count_code_lines(node)) > MAX_LINES
    ]


def count_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines from `def` to the end, without those of the docstring."""
    assert function.end_lineno
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("package", FOLDERS)
def test_functions_of_a_package_are_short(package: str) -> None:
    files = sorted(FOLDERS[package].rglob("*.py"))
    assert files
    assert {file.name: found for file in files if (found := find_long_functions(file.read_text()))} == {}


def test_helpers_of_tests_have_short_functions() -> None:
    assert HELPERS
    assert {file.name: found for file in HELPERS if (found := find_long_functions(file.read_text()))} == {}


def test_docstrings_do_not_count_and_inner_functions_do() -> None:
    body = "    value = 1\n" * (MAX_LINES - 1)
    assert find_long_functions(f'def short():\n    """Return\n\n    nothing.\n    """\n{body}') == []
    assert find_long_functions(f"def long():\n{body}    return value\n") == [f"long (line 1): {MAX_LINES + 1} lines"]
    inner = "".join(f"    {line}\n" for line in f"def inner():\n{body}    return value".splitlines())
    assert len(find_long_functions(f"def outer():\n{inner}")) == 2
