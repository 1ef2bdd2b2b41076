"""Each remedy can be followed literally: its fields are in the schemas, its commands can be typed, its pages exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone_api.reasons import CATALOGUE
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.finetunejob import jobs
from observed import IMAGE, job_object, parsed_job

ROOT = Path(__file__).parents[4]
FIELD = re.compile(r"(?<![.\w])spec((?:\.[a-zA-Z][\w-]*)+)")
COMMAND = re.compile(r"`((?:kubectl|hone|oc) [^`]*)`")
DELETES = re.compile(r"(kubectl delete [a-z]+)")
FILE = re.compile(r"\bdocs/[\w/-]+\.md\b")
VERBS = {
    "kubectl": {"cordon", "delete", "describe", "edit", "get", "logs", "patch", "rollout", "taint", "uncordon"},
    "hone": {"plan", "validate"},
    "oc": {"adm"},
}
# Maps, and parts with Kubernetes' own schema: any key may follow.
FREE = {"labels", "annotations", "nodeSelector", "limits", "requests", "affinity"} | {
    "securityContext",
    "containerSecurityContext",
}


def schemas() -> list[dict[str, Any]]:
    files = sorted((ROOT / "charts/hone/files/crds").glob("*.yaml"))
    crds = [yaml.safe_load(file.read_text()) for file in files]
    return [crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] for crd in crds]


SCHEMAS = schemas()


def has_field(schema: dict[str, Any], names: list[str]) -> bool:
    for name in names:
        while "items" in schema:
            schema = schema["items"]
        properties = schema.get("properties") or {}
        if name in properties:
            schema = properties[name]
        else:
            return bool("additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields"))
        if name in FREE:
            return True
    return True


def sentences(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module that are not docstrings; values of run time become NAME."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "NAME" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents | parts:
            yield node.value


def remedies() -> list[str]:
    found = [reason.remedy for reason in CATALOGUE.values()]
    for file in sorted((ROOT / "operator/hone_operator").rglob("*.py")):
        found += [text for text in sentences(ast.parse(file.read_text())) if " " in text]
    return found


REMEDIES = remedies()


@pytest.mark.parametrize("path", sorted({match[1] for text in REMEDIES for match in FIELD.finditer(text)}))
def test_a_field_that_a_remedy_names_exists(path: str) -> None:
    names = [name for name in path.strip(".").split(".") if name != "NAME"]
    assert any(has_field(schema, names) for schema in SCHEMAS), f"spec.{'.'.join(names)} is no field of the objects"


@pytest.mark.parametrize("command", sorted({match[1] for text in REMEDIES for match in COMMAND.finditer(text)}))
def test_a_command_that_a_remedy_names_can_be_typed(command: str) -> None:
    program, verb, *arguments = shlex.split(command)
    assert verb in VERBS[program]
    assert arguments or verb == "edit"
    if "--patch" in arguments:
        assert isinstance(yaml.safe_load(arguments[arguments.index("--patch") + 1]), dict)


def test_no_command_of_a_remedy_deletes_data() -> None:
    deleted = {match[1].split()[2] for text in REMEDIES for match in DELETES.finditer(text)}
    # The Job is that of a push, which Hone makes again.
    assert deleted == {"job", "node", "poddisruptionbudgets"}, "a claim may hold what is not Hone's"


@pytest.mark.parametrize("name", sorted({match[0] for text in REMEDIES for match in FILE.finditer(text)}))
def test_a_page_that_a_remedy_names_exists(name: str) -> None:
    assert (ROOT / name).is_file()


def pod_of(**spec: Any) -> dict[str, Any]:
    owner = job_object(**spec)
    found: dict[str, Any] = jobs.build_train_job(owner, parsed_job(owner), IMAGE)["spec"]["template"]["spec"]
    return found


def test_user_and_group_platform_leaves_the_user_to_openshift() -> None:
    security = pod_of(pod={"userAndGroup": "Platform"})["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security)


@pytest.mark.parametrize(
    ("resources", "kind", "name"),
    [
        ({"limits": {"cpu": "8"}}, "limits", "cpu"),
        ({"limits": {"ephemeral-storage": "9Gi"}}, "limits", "ephemeral-storage"),
        ({"requests": {"ephemeral-storage": "9Gi"}}, "requests", "ephemeral-storage"),
        ({"cpu": "8"}, "requests", "cpu"),
        ({"memory": "9Gi"}, "requests", "memory"),
        ({"memory": "9Gi"}, "limits", "memory"),
    ],
)
def test_the_named_field_satisfies_the_quota(resources: Any, kind: str, name: str) -> None:
    words = f'pods "x" is forbidden: failed quota: q: must specify {kind}.{name} for: trainer'
    field = next(iter(resources))
    named = f"spec.resources.{field}" + (f".{name}" if isinstance(resources[field], dict) else "")
    assert f"set {named}," in explain_refusal(words).remedy
    container = pod_of(resources={"gpus": 0} | resources)["containers"][0]
    assert name in container["resources"][kind]
