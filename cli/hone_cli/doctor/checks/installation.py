"""Check Hone in the cluster: its definitions and operator, against this `hone`. Pure."""

from typing import Any

from hone.objects import operators
from hone_api.common import VERSION
from hone_api.schema.crd import KINDS, make_schema

from hone_cli.doctor.checks.cluster_facts import ClusterFacts
from hone_cli.doctor.checks.findings import Finding, Unread, join_names, report_unread

INSTALL = "Install Hone: see docs/quickstart.md."
UPGRADE = "Upgrade the chart (`helm upgrade`) or this `hone`, so that both have one version."


def check_installation(facts: ClusterFacts, own_version: str) -> list[Finding]:
    """Return the findings about Hone's definitions and operator. `own_version` is this program's."""
    return [_check_definitions(facts), _check_operator(facts, own_version)]


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
        message = f"No Deployment has the label {operators.LABEL}"
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
