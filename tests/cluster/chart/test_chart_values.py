"""Each value of the chart is used as it is given, or refused by name; names and labels of Hone are kept."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from chartrender import CHART, VARIANTS, helm, render
from long_matrix import sample

Object = dict[str, Any]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("enabled=false", "has an effect only where this chart is a dependency"),
        ("operator.imagePulSecrets=x", "imagePulSecrets"),
        ("prometheus.servicemonitor.enabled=true,prometheus.podmonitor.enabled=true", "scraped twice"),
        ("fullnameOverride=1st", "fullnameOverride"),
        ("watchNamespaces={Team}", "watchNamespaces"),
        ("runtime.imagePullSecrets=x", "imagePullSecrets"),
        ("networkPolicy.egress=null", "missing property 'egress'"),
        ("operator.extraEnv[0].name=HONE_VLLM_IMAGE", "Set runtime.vllmImage instead"),
        ("operator.extraEnv[0].name=A,operator.extraEnv[1].name=A", "operator.extraEnv names A twice"),
        ("operator.extraArgs[0]=--log-level=debug", "Set operator.logLevel instead"),
        ("operator.extraArgs[0]=--names,operator.extraArgs[1]=team", "Set watchNamespaces instead"),
        ("operator.extraArgs[0]=--listen=:1", "operator.extraArgs has --listen"),
        ("operator.extraArgs[0]=--lis=:1", "operator.extraArgs has --lis"),
        ("operator.extraArgs[0]=--lease-namespace=other", "operator.extraArgs has --lease-namespace"),
        ("global.imagePullSecrets[0].secret=x", "imagePullSecrets"),
        ("prometheus.servicemonitor.interval=1s1h", "interval"),
        ("prometheus.servicemonitor.scrapeTimeout=", "scrapeTimeout"),
        ("operator.volumes[0].name=tmp", "operator.volumes names tmp"),
        ("operator.volumeMounts[0].mountPath=/tmp/", "operator.volumeMounts has the mountPath /tmp"),
    ],
)
def test_values_without_a_meaning_are_refused(control_plane: None, values: str, message: str) -> None:
    worked, said = helm("template", "hone", CHART, "--set", values)
    assert not worked
    assert message in said


@pytest.mark.parametrize("given", ["{all,registry}", None])
def test_pull_secrets_are_names_or_objects(control_plane: None, given: str | None) -> None:
    objects = "global.imagePullSecrets[0].name=all,operator.imagePullSecrets[0]=registry"
    values = f"global.imagePullSecrets={given},operator.imagePullSecrets={{registry}}" if given else objects
    worked, printed = helm("template", "hone", CHART, "--set", values)
    assert worked, printed
    [deployment] = [each for each in yaml.safe_load_all(printed) if each and each["kind"] == "Deployment"]
    secrets = deployment["spec"]["template"]["spec"]["imagePullSecrets"]
    assert secrets == [{"name": "all"}, {"name": "registry"}]


@pytest.mark.parametrize("interval", ["0", "30s", "1d", "1h30m", "500ms"])
def test_intervals_are_durations_of_prometheus(control_plane: None, interval: str) -> None:
    enabled, given = "prometheus.servicemonitor.enabled=true", f"prometheus.servicemonitor.interval={interval}"
    worked, printed = helm("template", "hone", CHART, "--set", enabled, "--set-string", given)
    assert worked, printed
    assert f"interval: {interval}" in printed.replace('"', "")


def test_the_schema_describes_exactly_the_values_that_there_are(control_plane: None) -> None:
    def compare(schema: Object, values: Any, path: str) -> None:
        assert schema.get("description") or not path, path
        if schema.get("additionalProperties") is False and "properties" in schema:
            assert schema["properties"].keys() == values.keys(), path
            for name, each in schema["properties"].items():
                compare(each, values[name], f"{path}.{name}")

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    compare(json.loads((CHART / "values.schema.json").read_text()), values, "")


LABELS = [
    "global.commonLabels",
    "serviceAccount.labels",
    "operator.labels",
    "operator.podLabels",
    "operator.nodeSelector",
    "prometheus.servicemonitor.labels",
    "prometheus.podmonitor.labels",
    "prometheus.engines.labels",
]
ANNOTATIONS = [
    "serviceAccount.annotations",
    "operator.annotations",
    "operator.podAnnotations",
    "prometheus.servicemonitor.annotations",
    "prometheus.podmonitor.annotations",
    "prometheus.engines.annotations",
]
DOMAIN = ".".join(["a" * 49] * 5) + ".bcd"
BAD_KEYS = ["", "a key", "-team", "team-", "a/b/c", "/team", "ex_ample.com/team", "a..b/team", "example.com/", "ä"]
BAD_KEYS += ["k" * 64, f"example.com/{'k' * 64}", f"{DOMAIN}e/team", "team\n"]
GOOD_KEYS = ["team", "T.e_a-m", "k" * 63, "example.com/team", f"{DOMAIN}/{'k' * 63}", "1/2"]
BAD_VALUES = ["two words", "-a", "a-", "a/b", "a:b", "v" * 64, "ä", "a\n", " "]
GOOD_VALUES = ["", "a", "A.b_c-9", "v" * 63, "0"]


def test_every_map_of_labels_and_annotations_is_checked() -> None:
    def find(schema: Object, path: str) -> dict[str, str]:
        found = {path: schema["$ref"]} if "$ref" in schema else {}
        for name, each in schema.get("properties", {}).items():
            found |= find(each, f"{path}.{name}" if path else name)
        return found

    every = find(json.loads((CHART / "values.schema.json").read_text()), "")
    found = {path: name for path, name in every.items() if name in ("#/$defs/labels", "#/$defs/annotations")}
    expected = dict.fromkeys(LABELS, "#/$defs/labels") | dict.fromkeys(ANNOTATIONS, "#/$defs/annotations")
    assert found == expected
    paths = find_paths(yaml.safe_load((CHART / "values.yaml").read_text()))
    maps = {path for path in paths if path.lower().endswith(("labels", "annotations", "nodeselector"))}
    assert {path for path in maps if not path.endswith(".honorLabels")} == {*expected}  # a switch of Prometheus


def template_with(folder: Path, path: str, given: Object) -> tuple[bool, str]:
    *parents, last = path.split(".")
    values: Object = {last: given}
    for name in reversed(parents):
        values = {name: values}
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return helm("template", "hone", CHART, "--values", file)


@pytest.mark.parametrize("path", LABELS + ANNOTATIONS)
def test_labels_and_annotations_that_kubernetes_refuses_are_refused(
    control_plane: None, tmp_path: Path, path: str
) -> None:
    keys = dict.fromkeys(GOOD_KEYS, "a")
    if path in ANNOTATIONS:
        accepted: list[Object] = [keys | {"Example.COM/team": "two words\n" * 50}]
        refused = [{key: "a"} for key in sample(BAD_KEYS, f"keys of {path}", 4)]
    else:
        accepted = [keys, {f"team{number}": value for number, value in enumerate(GOOD_VALUES)}]
        refused = [{key: "a"} for key in sample([*BAD_KEYS, "Example.com/team"], f"keys of {path}", 3)]
        refused += [{"team": value} for value in sample(BAD_VALUES, f"values of {path}", 3)]
    for given in accepted:
        worked, said = template_with(tmp_path, path, given)
        assert worked, said
    for given in refused:
        worked, said = template_with(tmp_path, path, given)
        assert not worked, given
        assert path.rpartition(".")[2] in said


def test_what_the_chart_sets_is_refused_in_additions(control_plane: None, tmp_path: Path) -> None:
    (deployment,) = (found for found in render(tmp_path, {}) if found["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = [("extraEnv[0].name", each["name"]) for each in container["env"]]
    given += [("extraArgs[0]", each) for each in container["args"]]
    for key, value in given:
        worked, said = helm("template", "hone", CHART, "--set", f"operator.{key}={value}")
        assert not worked, value
        assert value.partition("=")[0] in said


def find_paths(values: Object, prefix: str = "") -> list[str]:
    """Return the path of each value, and of each map of values."""
    found = []
    for name, value in values.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += find_paths(value, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize(
    "path", sample(find_paths(yaml.safe_load((CHART / "values.yaml").read_text())), "values without a value", 12)
)
def test_a_value_that_is_null_is_refused_by_name_or_left_out(control_plane: None, path: str) -> None:
    with_all = ("networkPolicy", "dashboard", "prometheus.servicemonitor", "prometheus.engines")
    enabled = [word for name in with_all for word in ("--set", f"{name}.enabled=true")]
    two = ("--set", "operator.replicas=2,watchNamespaces={team}")
    worked, said = helm("template", "hone", CHART, *enabled, *two, "--set", f"{path}=null")
    if worked:
        assert [found for found in yaml.safe_load_all(said) if found]
    else:
        assert f"missing property '{path.rpartition('.')[2]}'" in said


def find_wrong_strings(found: Any, key: str = "") -> list[Any]:
    """Return names, labels and annotations that are not strings."""
    if isinstance(found, list):
        return [wrong for each in found for wrong in find_wrong_strings(each)]
    if not isinstance(found, dict):
        return [found] if key in ("name", "namespace", "serviceAccountName") and not isinstance(found, str) else []
    if key in ("labels", "annotations", "matchLabels", "selector") and not any(map(is_container, found.values())):
        return [each for each in found.values() if not isinstance(each, str)]
    return [wrong for name, each in found.items() for wrong in find_wrong_strings(each, name)]


def is_container(value: Any) -> bool:
    return isinstance(value, dict | list)


@pytest.mark.parametrize(
    ("name", "variant"),
    sample(
        list(product(["123", "true", "no", "0x1f", "1e3"], ["isolated", "one-namespace", "service-monitor"])),
        "names like other values",
        5,
    ),
)
def test_names_that_look_like_other_values_stay_strings(
    control_plane: None, tmp_path: Path, name: str, variant: str
) -> None:
    values: Object = {**VARIANTS[variant], "nameOverride": name, "serviceAccount": {"name": name}}
    values["operator"] = {"replicas": 2}
    if variant == "one-namespace":
        values["watchNamespaces"] = [name]
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(values))
    worked, said = helm("template", name, CHART, "--namespace", name, "--values", file)
    assert worked, said
    for found in yaml.safe_load_all(said):
        if found and found["kind"] != "CustomResourceDefinition":
            assert not find_wrong_strings(found), found
    # Helm's YAML reads some texts as numbers that Python's does not.
    assert not re.search(rf"(?:name|[nN]amespace|serviceAccountName|instance): {name}[,}}\s]", said)


def labels_of(found: Object) -> Object:
    labels: Object = found["metadata"].get("labels") or {}
    return labels


def test_common_labels_reach_every_object_and_pod_and_change_none_of_hones(control_plane: None, tmp_path: Path) -> None:
    values = VARIANTS["isolated"] | VARIANTS["service-monitor"] | {"operator": {"replicas": 2}}
    own = [{**labels_of(found), **pod_labels(found)} for found in render(tmp_path, values)]
    keys = {key for labels in own for key in labels if key != "release"} | {"app.kubernetes.io/component"}
    values["global"] = {"commonLabels": dict.fromkeys(keys, "theirs") | {"app.kubernetes.io/part-of": "ml"}}
    objects = render(tmp_path, values)
    assert len(objects) == len(own)
    for found, before in zip(objects, own, strict=True):
        now = {**labels_of(found), **pod_labels(found)}
        assert {key: now[key] for key in before} == before
        assert labels_of(found)["app.kubernetes.io/part-of"] == "ml"
        if pod_labels(found):
            assert pod_labels(found)["app.kubernetes.io/part-of"] == "ml"
    # PyYAML accepts a repeated key; the API server does not.
    rendered = helm("template", "hone", CHART, "--values", tmp_path / "values.yaml")[1]
    for block in re.findall(r"^( *)labels:((?:\n\1  \S.*)+)", rendered, re.MULTILINE):
        names = [line.strip().partition(":")[0] for line in block[1].splitlines() if line]
        assert len(names) == len(set(names)), names


def pod_labels(found: Object) -> Object:
    labels: Object = found["spec"]["template"]["metadata"]["labels"] if found["kind"] in ("Deployment", "Job") else {}
    return labels


def test_pods_of_the_operator_and_of_the_uninstallation_have_the_given_metadata(
    control_plane: None, tmp_path: Path
) -> None:
    given = {"sidecar.istio.io/inject": "false"}
    theirs = {**given, "app.kubernetes.io/component": "theirs"}
    pods = {
        found["kind"]: found["spec"]["template"]["metadata"]
        for found in render(tmp_path, {"operator": {"podLabels": theirs, "podAnnotations": given}})
        if found["kind"] in ("Deployment", "Job")
    }
    assert {kind: each["labels"]["app.kubernetes.io/component"] for kind, each in pods.items()} == {
        "Deployment": "operator",
        "Job": "uninstall",
    }
    assert pods["Deployment"]["annotations"] == given
    for each in pods.values():
        assert given.items() <= each["annotations"].items()
        assert each["labels"]["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize("asked", [{}, {"sidecar.istio.io/inject": "true", "linkerd.io/inject": "enabled"}])
def test_no_sidecar_of_a_mesh_keeps_the_uninstallation_from_its_end(
    control_plane: None, tmp_path: Path, asked: Object
) -> None:
    (job,) = (
        found
        for found in render(tmp_path, {"operator": {"podLabels": asked, "podAnnotations": asked}})
        if found["kind"] == "Job"
    )
    metadata = job["spec"]["template"]["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"]["linkerd.io/inject"] == "disabled"


@pytest.mark.parametrize("name", ["ingress", "engineClients", "namespaces"])
def test_network_policies_may_have_empty_lists(control_plane: None, tmp_path: Path, name: str) -> None:
    policy = next(
        found
        for found in render(tmp_path, {"networkPolicy": {"enabled": True, name: []}})
        if found["kind"] == "NetworkPolicy"
    )
    assert name != "ingress" or policy["spec"]["ingress"] == []


def test_default_images_name_their_registry(control_plane: None, tmp_path: Path) -> None:
    images = [
        variable["value"]
        for found in render(tmp_path, {})
        if found["kind"] == "Deployment"
        for variable in found["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"].endswith("_IMAGE")
    ]
    assert len(images) == 4
    for image in images:
        assert "." in image.partition("/")[0], f"CRI-O does not complete {image}"


def test_pods_that_are_not_ready_block_no_drain(control_plane: None, tmp_path: Path) -> None:
    objects = render(tmp_path, {"operator": {"replicas": 2}})
    (budget,) = (found for found in objects if found["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize(
    ("namespaces", "more", "kinds"),
    [
        ([], {}, {"ClusterRole"}),
        (["team", "hone-system"], {}, {"ClusterRole"}),
        (["hone-system"], {}, {"Role"}),
        (["team"], {"crds": {"enabled": False}, "admission": {"enabled": False}}, {"Role"}),
    ],
)
def test_the_uninstallation_needs_no_namespace_that_can_be_gone(
    control_plane: None, tmp_path: Path, namespaces: list[str], more: Object, kinds: set[str]
) -> None:
    hooks = [
        found
        for found in render(tmp_path, {"watchNamespaces": namespaces, **more})
        if "helm.sh/hook" in (found["metadata"].get("annotations") or {})
    ]
    assert {found["kind"] for found in hooks} & {"Role", "ClusterRole"} == kinds
    if kinds == {"ClusterRole"}:
        assert {found["metadata"].get("namespace", "hone-system") for found in hooks} == {"hone-system"}
    (job,) = (found for found in hooks if found["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ([f"--namespace={each}" for each in namespaces] or ["--namespace="])


def test_releases_of_one_namespace_that_watch_others_have_a_lease_each(control_plane: None, tmp_path: Path) -> None:
    leases = []
    for release in ("first", "second"):
        objects = render(tmp_path, {"watchNamespaces": [f"team-{release}"], "crds": {"enabled": False}}, release)
        (deployment,) = (found for found in objects if found["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (lease,) = (each.partition("=")[2] for each in container["args"] if each.startswith("--lease-name="))
        rights = [rule for found in objects if found["kind"] == "Role" for rule in found["rules"]]
        named = [rule for rule in rights if rule["resources"] == ["leases"] and "resourceNames" in rule]
        both = [lease, "hone-operator"]  # the second may be that before an upgrade
        assert [(rule["resourceNames"], rule["verbs"]) for rule in named] == [(both, ["get", "update"])]
        leases.append(lease)
    assert leases[0] != leases[1]


def test_what_pods_may_and_must_have_reaches_the_operator(control_plane: None, tmp_path: Path) -> None:
    def variables(runtime: Object) -> list[str]:
        (deployment,) = (found for found in render(tmp_path, {"runtime": runtime}) if found["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        found = {each["name"]: each["value"] for each in container["env"]}
        return [found["HONE_GPU_GROUPS"], found["HONE_REQUIRE_GPUS"], found["HONE_POD_SECURITY_LEVEL"]]

    assert variables({}) == ["", "true", "restricted"]
    assert variables({"requireGpus": None, "podSecurityLevel": None}) == ["", "true", "restricted"]
    assert variables({"podSecurityLevel": "privileged"})[2] == "privileged"
    assert variables({"supplementalGroups": [109, 2000000000], "requireGpus": False})[:2] == ["109,2000000000", "false"]
    worked, said = helm("template", "hone", CHART, "--set", "runtime.supplementalGroups={render}")
    assert not worked
    assert "supplementalGroups" in said
    worked, said = helm("template", "hone", CHART, "--set", "runtime.podSecurityLevel=open")
    assert not worked
    assert "podSecurityLevel" in said
