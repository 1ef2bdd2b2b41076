"""The rendered chart is valid, complete and accepted by helm lint, kubeconform and kube-score in each variant."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import ROOT, api_server
from chartrender import CHART, VARIANTS, helm, render
from kube import run

Object = dict[str, Any]
CLUSTER_SCOPED = re.compile("Cluster.*|CustomResourceDefinition|ValidatingAdmissionPolicy.*|Namespace|PriorityClass")
SCORE_EXCEPTIONS = {
    "container-resources": "a CPU limit only makes the leader slower; operator.resources sets one",
    "container-image-pull-policy": "images have fixed tags; operator.imagePullPolicy sets Always",
    "deployment-replicas": "one replica is the default; operator.replicas sets more",
    "pod-networkpolicy": "networkPolicy.enabled is off by default; the Job of an uninstall needs the API server only",
    "networkpolicy-targets-pod": "the operator makes the pods of trainers and engines, the chart does not",
    "container-security-context-user-group-id": "OpenShift chooses both; runAsUser is null there",
    "deployment-strategy": "Recreate is a choice of the variant; the default is RollingUpdate",
    "pod-probes": "the readiness and the liveness probe differ in their paths",
    "deployment-has-host-podantiaffinity": "one replica has none to avoid; affinity replaces the default",
}


@pytest.fixture(scope="module")
def checkers() -> Path:
    """Return the folder with kubeconform, kube-score and the definitions of monitors."""
    return Path(run(ROOT / "tests/cluster/chartcheck/build", timeout=900).strip())


@pytest.fixture(scope="module")
def schemas(control_plane: None, checkers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the JSON schema of every kind of the API server, including monitors."""
    folder = tmp_path_factory.mktemp("schemas")
    with api_server(tmp_path_factory.mktemp("server")) as server:
        kubectl = [server.programs / "kubectl", "--kubeconfig", server.kubeconfig]
        definitions = json.loads(run(*kubectl, "get", "--raw", "/openapi/v2", timeout=60))["definitions"]
    write_schemas(definitions, folder)
    for file in sorted((checkers / "crds").glob("*.yaml")):
        crd = yaml.safe_load(file.read_text())["spec"]
        schema = crd["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {"type": "object"}
        forbid_unknown_fields(schema)
        kind, version = crd["names"]["kind"].lower(), crd["versions"][0]["name"]
        (folder / f"{kind}-{crd['group'].split('.')[0]}-{version}.json").write_text(json.dumps(schema))
    return folder


def write_schemas(definitions: Object, folder: Path) -> None:
    """Write one file for each kind, named as kubeconform looks for it."""
    for name, definition in definitions.items():
        forbid_unknown_fields(definition)
        if name.endswith("IntOrString"):
            definition["type"] = ["string", "integer"]
        elif name.endswith("resource.Quantity"):
            definition["type"] = ["string", "number"]
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", [])[:1]:
            group = [kind["group"].split(".")[0]] if kind["group"] else []
            needed: Object = {}
            collect_references(name, definitions, needed)
            schema = {"$ref": f"#/definitions/{name}", "definitions": needed}
            file = folder / ("-".join([kind["kind"].lower(), *group, kind["version"]]) + ".json")
            file.write_text(json.dumps(schema))


def forbid_unknown_fields(schema: Any) -> None:
    if isinstance(schema, list):
        for each in schema:
            forbid_unknown_fields(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            forbid_unknown_fields(each)


def collect_references(name: str, definitions: Object, found: Object) -> None:
    if name not in found:
        found[name] = definitions[name]
        for reference in re.findall(r'"#/definitions/([^"]+)"', json.dumps(definitions[name])):
            collect_references(reference, definitions, found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_passes_lint_kubeconform_and_kube_score(
    schemas: Path, checkers: Path, tmp_path: Path, variant: str
) -> None:
    objects = render(tmp_path, VARIANTS[variant])
    worked, said = helm("lint", "--strict", CHART, "--values", tmp_path / "values.yaml")
    assert worked, said
    # Hone's definitions contain values of any form; other tests check them with the API server.
    checked = [found for found in objects if found["kind"] != "CustomResourceDefinition"]
    rendered = yaml.safe_dump_all(checked)
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    kubeconform = [checkers / "bin/kubeconform", "-strict", "-summary", "-schema-location", location]
    done = subprocess.run(kubeconform, input=rendered, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    score: list[object] = [checkers / "bin/kube-score", "score", "--output-format=ci"]
    score += [word for name in SCORE_EXCEPTIONS for word in ("--ignore-test", name)]
    done = subprocess.run([*score, "-"], input=rendered, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if "[OK]" not in line)
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize(
    "release",
    ["hone", "a", "my.release", "1st", "9.9", "x" * 53, "a" * 40 + ".b" * 6, "abc-" * 13 + "d", "b" * 46, "b" * 47],
)
def test_every_legal_release_name_gives_legal_names(control_plane: None, tmp_path: Path, release: str) -> None:
    for found in render(tmp_path, VARIANTS["isolated"] | VARIANTS["service-monitor"], release):
        name = found["metadata"]["name"]
        if found["kind"] in ("Service", "Deployment", "Job"):
            assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name), name
            assert len(name) <= 63
        assert len(name) <= 253


def test_releases_with_similar_names_share_no_object(control_plane: None, tmp_path: Path) -> None:
    names = [
        {(each["kind"], each["metadata"]["name"]) for each in render(tmp_path, {"crds": {"enabled": False}}, release)}
        for release in ("a.b", "a-b", "x" * 50, "x" * 51)
    ]
    assert len(set().union(*names)) == sum(len(each) for each in names)


def test_an_installation_for_one_namespace_has_no_cluster_scoped_object(control_plane: None, tmp_path: Path) -> None:
    for found in render(tmp_path, VARIANTS["one-namespace"]):
        assert not CLUSTER_SCOPED.fullmatch(found["kind"]), found["kind"]
        assert found["metadata"]["namespace"] in ("hone-system", "team")


def test_definitions_are_kept_unless_the_values_say_otherwise(control_plane: None, tmp_path: Path) -> None:
    for keep in (True, False):
        kinds = [each for each in render(tmp_path, {"crds": {"keep": keep}}) if "CustomResource" in each["kind"]]
        assert len(kinds) == 2
        for each in kinds:
            assert ((each["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") == "keep") is keep


def test_a_parent_chart_passes_global_values_and_a_condition(control_plane: None, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts/hone")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    dependency = {"name": "hone", "version": version, "condition": "hone.enabled"}
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(chart))
    values = {"global": {"imagePullSecrets": [{"name": "all"}], "storageClass": "fast"}, "hone": {"enabled": True}}
    (deployment,) = (each for each in render(tmp_path, values, chart=parent) if each["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "all"}]
    assert render(tmp_path, {"hone": {"enabled": False}}, chart=parent) == []
