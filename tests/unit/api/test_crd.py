"""The CRDs: the generated files are up to date, complete, and agree with the models."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.inferenceservices.spec import InferenceService
from hone_api.pods.pod_options import PodOptions
from hone_api.pods.pod_schema import FIELD
from hone_api.schema.crd import KINDS, fill_defaults, make_definition, make_schema
from hone_api.schema.generate import generate_files, main

ROOT = Path(__file__).parents[3]
TYPED = ["env.valueFrom"] + [
    field.alias or name
    for name, field in PodOptions.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and FIELD in field.json_schema_extra
]
SMALLEST = {
    "FineTuneJob": {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}, "lora": {}, "output": {"storage": {}}},
    "InferenceService": {"model": {"name": "a/b"}},
}


def fields(path: str, of: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in of.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(f"{path}.{name}", field)
    if "items" in of:
        yield from fields(f"{path}[]", of["items"])


def is_of_kubernetes(path: str) -> bool:
    """Return whether the field is inside a value of one of Kubernetes' own types, which its reference describes."""
    parent = path.rpartition(".")[0].replace("[]", "")
    return any(parent.startswith(f"spec.pod.{name}") for name in TYPED)


def keywords(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            if key == "properties":
                for field in value.values():
                    yield from keywords(field)
            elif key in ("items", "additionalProperties", "anyOf"):
                yield from keywords(value)
    elif isinstance(node, list):
        for item in node:
            yield from keywords(item)


def test_generated_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(ROOT)]) == 0, capsys.readouterr().out


def test_check_shows_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    file = tmp_path / "docs/reference/failures.md"
    file.write_text(file.read_text().replace("NonFiniteLoss", "FiniteLoss"))
    capsys.readouterr()
    assert main(["--check", str(tmp_path)]) == 1
    assert "-| `FiniteLoss`" in capsys.readouterr().out


def test_yaml_is_the_definition() -> None:
    for kind in KINDS.values():
        text = generate_files()[f"charts/hone/files/crds/{kind.PLURAL}.yaml"]
        assert yaml.safe_load(text) == make_definition(kind)
        assert "{{" not in text, "Helm would take it for a template"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    spec, status = (make_schema(kind)["properties"][part] for part in ("spec", "status"))
    found = dict([*fields("spec", spec), *fields("status", status)])
    for path, field in found.items():
        if path.startswith("spec.datasets[].") and path.replace("datasets[]", "dataset") in found:
            assert "description" not in field, f"{path}: the definition would be larger than needed"
        elif not path.startswith(("spec.training.extra.", "spec.dataset.columns.")) and not is_of_kubernetes(path):
            assert re.match(r".{4,}\.($| Example: .)", field.get("description", "")), path


@pytest.mark.parametrize("kind", KINDS)
def test_every_string_and_list_of_the_spec_is_bounded(kind: str) -> None:
    for path, field in fields("spec", make_schema(kind)["properties"]["spec"]):
        if field.get("type") == "string" and "enum" not in field:
            assert "maxLength" in field, path
        if field.get("type") == "array":
            assert "maxItems" in field, path
        if field.get("type") in ("integer", "number"):
            assert "minimum" in field, path


@pytest.mark.parametrize("kind", KINDS)
def test_structural(kind: str) -> None:
    found = set(keywords(make_schema(kind)))
    assert not found & {"$ref", "$defs", "title", "const", "oneOf", "examples", "propertyNames", "x-message"}
    assert not [path for path, field in fields("", make_schema(kind)) if field.get("default", 0) is None]


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_the_models(kind: str) -> None:
    document = {
        "apiVersion": "hone.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": SMALLEST[kind],
    }  # fmt: skip
    by_schema = fill_defaults(document, make_schema(kind))
    assert by_schema != document
    assert KINDS[kind].model_validate(by_schema) == KINDS[kind].model_validate(document)


@pytest.mark.parametrize("kind", [FineTuneJob, InferenceService])
def test_printer_columns_point_at_fields(kind: type[FineTuneJob] | type[InferenceService]) -> None:
    known = {path.replace("[]", "[*]") for path, _ in fields("", make_schema(kind.__name__))}
    columns = [re.sub(r"\[\?\(@.type==.\w+.\)\]", "[*]", column["jsonPath"]) for column in kind.PRINTER_COLUMNS]
    assert set(columns) - known == {".metadata.creationTimestamp"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_definition_fits_the_annotation_of_kubectl_apply(kind: type[FineTuneJob] | type[InferenceService]) -> None:
    annotation = json.dumps(make_definition(kind), separators=(",", ":"))
    assert len(annotation.encode()) < 176 * 1024, "Kubernetes allows 256 KiB for all annotations together"


def test_an_entry_of_datasets_is_a_dataset_with_a_weight() -> None:
    spec = make_schema("FineTuneJob")["properties"]["spec"]["properties"]
    entry = {path: field for path, field in fields("", spec["datasets"]["items"]) if path != ".weight"}
    single = {path: {**field, "description": None} for path, field in fields("", spec["dataset"])}
    for path, field in single.items():
        assert {**entry[path], "description": None}.keys() == field.keys()
    assert entry.keys() == single.keys()


def test_inference_service_scales() -> None:
    version = make_definition(InferenceService)["spec"]["versions"][0]
    known = {path for path, _ in fields("", version["schema"]["openAPIV3Schema"])}
    assert set(version["subresources"]["scale"].values()) <= known


def test_every_pattern_has_a_message() -> None:
    """Except in Kubernetes' own types: the cost limit of CEL rules does not allow all of these."""
    for kind in KINDS:
        for path, field in fields("", make_schema(kind)):
            if "pattern" in field and not is_of_kubernetes(path.removeprefix(".")):
                assert re.fullmatch(r"\^[a-z-]+\$", field["pattern"]), f"{path} shows the user {field['pattern']}"
