"""Check Hone in the cluster: its definitions and operator, against this `hone`. Pure."""

from collections.abc import Iterable
from typing import Any

from hone_api.common import VERSION
from hone_api.schema.crd import KINDS, make_schema

from hone_cli.doctor.checks.cluster_facts import ClusterFacts, Object
from hone_cli.doctor.checks.findings import Finding, Unread, join_names, report_unread

# Variables of the operator, and the chart's values that they come from.
IMAGES = {
    "HONE_RUNTIME_IMAGE": "runtime.image",
    "HONE_VLLM_IMAGE": "runtime.vllmImage",
    "HONE_SGLANG_IMAGE": "runtime.sglangImage",
    "HONE_TGI_IMAGE": "runtime.tgiImage",
}
LABEL = "app.kubernetes.io/name=hone"
INSTALL = "Install Hone: see docs/quickstart.md."
UPGRADE = "Upgrade the chart (`helm upgrade`) or this `hone`, so that both have one version."


def check_installation(facts: ClusterFacts, own_version: str) -> list[Finding]:
    """Return the findings about Hone's definitions and operator. `own_version` is this program's."""
    return [_check_definitions(facts), _check_operator(facts, own_version)]


def find_images(operators: Iterable[Object]) -> dict[str, str]:
    """Return the default images by their chart value, as the first operator has them."""
    for deployment in operators:
        environment = {
            each.get("name"): each.get("value") or "" for each in _find_container(deployment).get("env") or []
        }
        return {value: environment[name] for name, value in IMAGES.items() if environment.get(name)}
    return {}


def find_gpu_groups(operators: Iterable[Object]) -> tuple[int, ...]:
    """Return the groups that pods with GPUs get from the chart value runtime.supplementalGroups."""
    for deployment in operators:
        environment = {
            each.get("name"): each.get("value") or "" for each in _find_container(deployment).get("env") or []
        }
        return tuple(int(each) for each in environment.get("HONE_GPU_GROUPS", "").split(",") if each.strip().isdigit())
    return ()


def _check_definitions(facts: ClusterFacts) -> Finding:
    if isinstance(facts.definitions, Unread):
        return report_unread("definitions", "CustomResourceDefinitions", facts.definitions)
    given = facts.definitions
    missing = [name for name, body in given.items() if body is None]
    if missing:
        return Finding("definitions", "failed", f"Missing CustomResourceDefinitions: {', '.join(missing)}", INSTALL)
    different = []
    for kind, model in KINDS.items():
        body = next((body for name, body in given.items() if name.startswith(f"{model.PLURAL}.")), None) or {}
        served = {each["name"]: each for each in (body.get("spec") or {}).get("versions") or [] if each.get("served")}
        if VERSION not in served:
            message = f"{kind} is not served as {VERSION}, but as {join_names(served) or 'nothing'}"
            return Finding("definitions", "failed", message, UPGRADE)
        theirs = _list_fields(served[VERSION].get("schema", {}).get("openAPIV3Schema", {}))
        ours = _list_fields(make_schema(kind))
        lacks = [f"{kind} lacks {join_names(ours - theirs)}"] if ours - theirs else []
        different += lacks + ([f"{kind} has also {join_names(theirs - ours)}"] if theirs - ours else [])
    if different:
        message = f"The cluster's definitions differ from those of this `hone`: {'; '.join(different)}"
        return Finding("definitions", "warning", message, UPGRADE)
    return Finding("definitions", "ok", f"{' and '.join(KINDS)} {VERSION}, with the fields that this `hone` knows")


def _list_fields(node: Any, path: str = "") -> set[str]:
    """Return the paths of all fields of a schema."""
    found = set()
    for name, inner in (node.get("properties") or {}).items():
        here = f"{path}.{name}" if path else name
        found |= {here} | _list_fields(inner, here)
    for key in ("items", "additionalProperties"):
        if isinstance(inner := node.get(key), dict):
            found |= _list_fields(inner, f"{path}[]")
    return found


def _check_operator(facts: ClusterFacts, own_version: str) -> Finding:
    if isinstance(facts.operators, Unread):
        return report_unread("operator", "Deployments of Hone's operator", facts.operators)
    if not facts.operators:
        message = f"No Deployment has the label {LABEL}"
        remedy = f"{INSTALL} Where the chart's nameOverride is set, look with `kubectl get deployments -A`."
        return Finding("operator", "failed", message, remedy)
    deployment = facts.operators[0]
    metadata, status = deployment.get("metadata") or {}, deployment.get("status") or {}
    where = f"{metadata.get('namespace')}/{metadata.get('name')}"
    if len(facts.operators) > 1:
        where += f" (and {len(facts.operators) - 1} more)"
    if not status.get("availableReplicas"):
        look = f"kubectl describe deployment {metadata.get('name')} --namespace {metadata.get('namespace')}"
        return Finding("operator", "failed", f"Operator {where} is not available", f"Look at `{look}`.")
    version = (metadata.get("labels") or {}).get("app.kubernetes.io/version")
    if version is None:
        message = f"Operator {where} is available; it has no label app.kubernetes.io/version to compare"
        return Finding("operator", "unknown", message, "Install it from Hone's chart.", is_required=False)
    if version != own_version:
        return Finding("operator", "warning", f"Operator {where} is {version}, this `hone` is {own_version}", UPGRADE)
    return Finding("operator", "ok", f"Operator {where} {version} is available")


def _find_container(deployment: Object) -> Object:
    template = ((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}
    containers = template.get("containers") or [{}]
    found: Object = next((each for each in containers if each.get("name") == "operator"), containers[0])
    return found
