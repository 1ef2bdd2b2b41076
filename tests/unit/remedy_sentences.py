"""Every remedy that the operator can give, read from its code: a new one appears here without being entered anywhere.

In: the syntax trees of operator/hone_operator. A remedy is what is passed as `remedy=`, what an UnmetRequirement has
second, and what a function `_remedy` returns; names, calls and tables are followed to the texts they stand for. Out:
the texts, in which what is filled in at run time is a hole. Next: test_followed_remedies.py, where a case has to
produce each.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "operator"
HOLE = "\0"
FOLLOWED_ELSEWHERE = {
    # A cache in front of the function.
    "cluster.diagnoses[key]": ("hone_operator.diagnosis.unschedulable", "_compare_nodes"),
}
"""Expressions that no assignment in the module explains, and the function that gives their value."""

PASSED_ON = {"sentence.partition('. ')"}
"""The end of the engine's log: its messages come from the catalogue or from the server."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def module(name: str) -> ast.Module:
    """Return the syntax tree of a module of the operator by its dotted name."""
    path = SOURCES.joinpath(*name.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def function(name: str, of: str) -> Function | None:
    return next((node for node in ast.walk(module(of)) if isinstance(node, Function) and node.name == name), None)


def imported(variable: str, name: str) -> str | None:
    """Return the dotted name of the operator's module that is imported as `variable` into module `name`."""
    for node in ast.walk(module(name)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hone_operator"):
            for alias in node.names:
                found = f"{node.module}.{alias.name}"
                path = SOURCES.joinpath(*found.split("."))
                if variable == (alias.asname or alias.name) and (path.is_dir() or path.with_suffix(".py").is_file()):
                    return found
    return None


def function_of(variable: str, called: str, name: str) -> tuple[str, Function] | None:
    """Return the function that `variable.called` stands for in module `name`, with the module it is in."""
    other = imported(variable, name)
    found = function(called, other) if other else None
    return (other, found) if other and found else None


def operator_remedies() -> list[str]:
    """Return the texts, sorted. Raises LookupError, with the place, for an expression that can't be followed."""
    found: set[str] = set()
    for file in sorted(SOURCES.rglob("*.py")):
        name = ".".join(file.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
        functions = [node for node in ast.walk(module(name)) if isinstance(node, Function)]
        for each in functions:
            for expression in _sinks(each):
                found |= set(_texts(expression, name, each, None))
    return sorted(text for text in found if text.replace(HOLE, "").strip())


def pattern(text: str) -> re.Pattern[str]:
    """Return what a printed remedy with this text matches."""
    return re.compile(".+".join(re.escape(part) for part in text.split(HOLE)), re.DOTALL)


def _sinks(of: Function) -> Iterator[ast.expr]:
    if of.name == "_remedy":
        yield from _returns(of)
    for node in ast.walk(of):
        if not isinstance(node, ast.Call):
            continue
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "remedy")
        if isinstance(node.func, ast.Name) and node.func.id == "UnmetRequirement":
            yield node.args[1]


def _returns(of: Function) -> Iterator[ast.expr]:
    yield from (node.value for node in ast.walk(of) if isinstance(node, ast.Return) and node.value)


def _texts(node: ast.expr, name: str, of: Function | None, index: int | None) -> Iterator[str]:
    """Yield the texts of an expression of module `name`; `index`: which item, where it is a tuple."""
    where = f"{name}:{node.lineno}: {ast.unparse(node)}"
    match node:
        case ast.Constant(value=str() as text):
            yield text
        case ast.Constant(value=None):
            return
        case ast.JoinedStr():
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
        case ast.BoolOp():
            for value in node.values:
                yield from _texts(value, name, of, index)
        case ast.IfExp():
            yield from _texts(node.body, name, of, index)
            yield from _texts(node.orelse, name, of, index)
        case ast.BinOp(op=ast.Add()):
            yield "".join(next(_texts(side, name, of, index), HOLE) for side in (node.left, node.right))
        case ast.Tuple() if index is not None:
            yield from _texts(node.elts[index], name, of, None)
        case ast.Attribute(attr="remedy"):
            return  # another error's, or the catalogue's
        case _ if ast.unparse(node) in PASSED_ON:
            return
        case ast.Name(id=variable):
            values = list(_values(variable, of)) or list(_values(variable, module(name)))
            if not values:
                raise LookupError(where)
            for value, part in values:
                yield from _texts(value, name, of, index if part is None else part)
        case ast.Call(func=ast.Name(id="next"), args=[ast.GeneratorExp() as items, *_]):
            yield from _of_table(items, name, of)
        case ast.Call(func=ast.Attribute(attr="replace", value=inner)):
            yield from _texts(inner, name, of, index)
        case ast.Call(func=ast.Attribute(attr="join")):
            yield HOLE
        case ast.Call(func=ast.Name(id=called)) if target := function(called, name):
            for value in _returns(target):
                yield from _texts(value, name, target, index)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=variable), attr=called)) if pair := function_of(
            variable, called, name
        ):
            for value in _returns(pair[1]):
                yield from _texts(value, pair[0], pair[1], index)
        case ast.Call() | ast.Subscript() if ast.unparse(node) in FOLLOWED_ELSEWHERE:
            other, called = FOLLOWED_ELSEWHERE[ast.unparse(node)]
            for value in _returns(function(called, other)):  # type: ignore[arg-type]
                yield from _texts(value, other, function(called, other), index)
        case _:
            raise LookupError(where)


def _values(variable: str, scope: ast.AST | None) -> Iterator[tuple[ast.expr, int | None]]:
    """Yield what is assigned to a name, and which item of it where a tuple is unpacked."""
    nodes = scope.body if isinstance(scope, ast.Module) else ast.walk(scope) if scope else []
    for node in nodes:
        if isinstance(node, ast.NamedExpr) and node.target.id == variable:
            yield node.value, None
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id == variable:
            yield node.value, None
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name) and target.id == variable:
                yield node.value, None  # type: ignore[union-attr]
            for index, item in enumerate(target.elts if isinstance(target, ast.Tuple) else ()):
                if isinstance(item, ast.Name) and item.id == variable:
                    yield node.value, index  # type: ignore[union-attr]


def _of_table(items: ast.GeneratorExp, name: str, of: Function | None) -> Iterator[str]:
    """Yield the texts of `advice for pattern, advice in TABLE`, or of a formatted item."""
    if not isinstance(items.elt, ast.Name):
        yield from _texts(items.elt, name, of, None)
        return
    [loop] = items.generators
    assert isinstance(loop.target, ast.Tuple)
    index = [ast.unparse(item) for item in loop.target.elts].index(items.elt.id)
    for table, _ in _values(ast.unparse(loop.iter), module(name)):
        assert isinstance(table, ast.Tuple)
        for row in table.elts:
            yield from _texts(row, name, of, index)
