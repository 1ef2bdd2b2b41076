"""Every right that the operator's code can use is in the chart's roles, and no other.

The rights are read from the calls in the code, so that rare branches count as well.
"""

import ast
import re
from pathlib import Path
from typing import Any

import hone_operator
import pytest
import yaml
from hone_operator.kube.client import READ_BY_LISTS
from hone_operator.objects import resources
from hone_operator.objects.resources import CHILDREN, OWNERS, WATCHED, Resource
from least_rights import Right, granted

CODE = Path(hone_operator.__file__).parent
CHART = Path(__file__).parents[3] / "charts/hone/templates"
# Verbs of the client's methods, and of functions that pass a kind on to these.
VERBS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("get", "refresh_cached", "_reread"), ("get",)),
    **dict.fromkeys(("read", "read_cached", "read_child", "read_child_or_foreign"), ("get",)),
    **dict.fromkeys(("iterate_items", "list", "_list"), ("list",)),
    **dict.fromkeys(("create", "try_create"), ("create",)),
    **dict.fromkeys(("patch", "apply"), ("patch",)),
    "replace": ("update",),
    "delete": ("delete",),
    "watch": ("watch",),
}
# Verbs of an action, including the reads of execution.py where the object differs from the expected one.
ACTIONS = {
    "Create": ("create", "get"),
    "Apply": ("create", "patch", "get"),
    "Patch": ("patch", "get"),
    "build_delete": ("delete",),
    "Delete": ("delete",),
}
# The kinds that a variable can have in these functions.
HANDED_ON: dict[tuple[str, str], tuple[Resource, ...]] = {
    ("hone_operator.kube.reflector", "_list"): WATCHED,
    ("hone_operator.kube.reflector", "_watch"): WATCHED,
    ("hone_operator.reconciler", "patch_status"): OWNERS,
}
# Calls in these modules don't count: the client, modules with methods of the same names, and the executor of actions.
WITHOUT_CALLS = (
    "hone_operator.kube.client",
    "hone_operator.kube.cache",
    "hone_operator.reconcile.execution",
    "hone_operator.reconcile.plan",
)
# Admission checks this right when a child names its owner; there is no request.
WITHOUT_REQUEST = {("update", "hone.dev", f"{owner.plural}/finalizers") for owner in OWNERS}
KINDS = {name: found for name, found in vars(resources).items() if isinstance(found, Resource)}
INNER = frozenset(VERBS)


def right(verb: str, resource: Resource, subresource: str = "") -> Right:
    if verb == "get" and resource in READ_BY_LISTS:
        verb = "list"
    group = resource.api_version.rpartition("/")[0]
    return verb, group, f"{resource.plural}/{subresource}" if subresource else resource.plural


def calls(tree: ast.AST, function: str = "") -> list[tuple[str, ast.Call]]:
    """Return all calls, each with the function that contains it."""
    found = []
    for node in ast.iter_child_nodes(tree):
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call):
            found.append((function, node))
        found += calls(node, name)
    return found


def called(call: ast.Call) -> tuple[str, str]:
    """Return the receiver and the name of a called method."""
    if isinstance(call.func, ast.Attribute):
        on = call.func.value
        return (on.attr if isinstance(on, ast.Attribute) else getattr(on, "id", "")), call.func.attr
    return "", getattr(call.func, "id", "")


def kinds_of(module: str, function: str, argument: ast.expr) -> tuple[Resource, ...] | None:
    """Return the kinds that an argument stands for; None where the caller's call counts."""
    if isinstance(argument, ast.Name) and argument.id in KINDS:
        return (KINDS[argument.id],)
    if (module, function) in HANDED_ON:
        return HANDED_ON[module, function]
    return None if function in INNER else ()


def needed_rights() -> set[Right]:
    found: set[Right] = set()
    for file in sorted(CODE.rglob("*.py")):
        module = ".".join(file.relative_to(CODE.parent).with_suffix("").parts)
        for function, call in calls(ast.parse(file.read_text())):
            on, name = called(call)
            is_request = name in VERBS and (
                on in ("api", "_api", "objects", "_objects")
                or (name.startswith("_") and on == "self")
                or name == "refresh_cached"
            )
            if not (is_request or (name in ACTIONS and not on)) or not call.args or module in WITHOUT_CALLS:
                continue
            first = call.args[2] if name == "refresh_cached" else call.args[0]
            if name == "serves":
                continue
            kinds = kinds_of(module, function, first)
            where = f"{file.name}:{call.lineno}: add {module}.{function} to HANDED_ON"
            assert kinds != (), where
            subresource = next((ast.literal_eval(k.value) for k in call.keywords if k.arg == "subresource"), "")
            for kind in kinds or ():
                found |= {right(verb, kind, subresource) for verb in {**VERBS, **ACTIONS}[name]}
                if any(k.arg == "replaced_by" for k in call.keywords):
                    found.add(right("create", kind))
    return found


def rules_of(text: str) -> list[dict[str, Any]]:
    """Return the rules in a template's text."""
    lines = [
        line for line in text.splitlines() if re.match(r"- apiGroups: |  (resources|resourceNames|verbs): \[", line)
    ]
    found: list[dict[str, Any]] = yaml.safe_load("\n".join(lines))
    return found


@pytest.fixture(scope="module")
def granted_rights() -> set[Right]:
    helpers = (CHART / "_helpers.tpl").read_text()
    block = helpers[helpers.index('define "hone.rules"') :]
    return granted(rules_of(block[: block.index("{{- end }}")])) | granted(rules_of((CHART / "rbac.yaml").read_text()))


def test_the_calls_are_found() -> None:
    found = needed_rights()
    assert {right(verb, kind) for kind in WATCHED for verb in ("list", "watch")} <= found
    assert right("patch", resources.FINETUNEJOBS, "status") in found
    assert {right("get", kind) for kind in CHILDREN} <= found


def test_the_roles_grant_exactly_the_rights_that_the_code_needs(granted_rights: set[Right]) -> None:
    needed = needed_rights()
    assert needed - granted_rights == set(), "lacking"
    assert granted_rights - needed == WITHOUT_REQUEST, "granted in vain"
