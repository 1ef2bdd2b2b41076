"""`hone validate`: every bad manifest is refused with the API server's sentence, every good one accepted."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_manifests import BAD, GOOD, REMOVED, Bad, changed
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.schema.crd import KINDS
from hone_api.schema.manifests import load_documents
from hone_api.schema.validation import validate_object

ROOT = Path(__file__).parents[3]
MINIMAL = {
    "FineTuneJob": {"spec": {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}}},
    "InferenceService": {"spec": {"model": {"name": "a/b"}}},
}


def minimal(kind: str) -> dict[str, Any]:
    return {"apiVersion": "hone.dev/v1alpha1", "kind": kind, "metadata": {"name": "small"}, **MINIMAL[kind]}


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_refused_with_the_sentence(bad: Bad) -> None:
    assert [sentence for sentence in validate_object(bad.manifest()) if bad.sentence in sentence]


@pytest.mark.parametrize("kind", GOOD)
def test_good_is_accepted(kind: str) -> None:
    assert validate_object(GOOD[kind]) == []
    assert validate_object(minimal(kind)) == []
    assert KINDS[kind].model_validate(GOOD[kind]).spec


def test_a_mistake_is_reported_once_and_alone() -> None:
    manifest = changed(GOOD["FineTuneJob"], {"spec.method": "loraa"})
    assert validate_object(manifest) == [
        'spec.method: Unsupported value: "loraa": supported values: "lora", "qlora", "full"'
    ]


def test_rules_wait_until_the_types_are_right() -> None:
    manifest = changed(GOOD["FineTuneJob"], {"spec.model": {}, "spec.method": 5})
    assert not [sentence for sentence in validate_object(manifest) if "exactly one" in sentence]


def test_null_counts_as_left_out() -> None:
    manifest = changed(GOOD["FineTuneJob"], {"spec.pod": None, "spec.tokenSecret": None, "spec.method": None})
    assert validate_object(manifest) == []
    job = FineTuneJob.model_validate(manifest)
    assert (job.spec.method, job.spec.token_secret) == ("lora", None)
    extra = changed(GOOD["FineTuneJob"], {"spec.training.extra.lossType": None})
    assert validate_object(extra) == []
    assert FineTuneJob.model_validate(extra).spec.training.get_sft_arguments()["loss_type"] is None


def test_generated_name_is_checked_too() -> None:
    named = {"metadata": {"generateName": "try-"}}
    assert validate_object(minimal("FineTuneJob") | named) == []
    assert validate_object(minimal("FineTuneJob") | {"metadata": {}}) == [
        "metadata.name: Required value: name or generateName is required"
    ]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        (
            {"spec.training.learning_rate": 1},
            'unknown field "spec.training.learning_rate"; did you mean spec.training.learningRate?',
        ),
        ({"spec.saveSteps": 1}, 'unknown field "spec.saveSteps"; did you mean spec.checkpoint.saveSteps?'),
        (
            {"spec.dataset": REMOVED, "spec.datasets": [{"name": "a/b"}, {"name": "c/d", "wieght": 1}]},
            'unknown field "spec.datasets[1].wieght"; did you mean spec.datasets[1].weight?',
        ),
        (
            {"spec.training.lossType": "nll"},
            'unknown field "spec.training.lossType"; did you mean spec.training.extra.lossType?',
        ),
        ({"spec.zebra": 1}, 'unknown field "spec.zebra"'),
    ],
)
def test_an_unknown_field_is_refused_with_its_right_place(changes: dict[str, Any], hint: str) -> None:
    assert validate_object(changed(GOOD["FineTuneJob"], changes)) == [hint]


def test_of_many_values_the_nearest_is_named() -> None:
    (sentence,) = validate_object(changed(GOOD["FineTuneJob"], {"spec.training.optim": "adamw_8bits"}))
    assert sentence.endswith('"stable_adamw"; did you mean adamw_8bit?')


@pytest.mark.parametrize("kind", GOOD)
def test_every_bad_manifest_differs_from_the_good_one(kind: str) -> None:
    changes = [bad.changes for bad in BAD if bad.kind == kind]
    assert all(changed(GOOD[kind], change) != GOOD[kind] for change in changes)
    assert REMOVED not in GOOD[kind].values()


def documents() -> list[tuple[str, dict[str, Any]]]:
    """Return every Hone object in the examples and in the YAML blocks of the documentation."""
    found = []
    for file in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]:
        blocks = re.findall(r"```yaml\n(.*?)```", file.read_text(), re.DOTALL)
        found += [(str(file), document) for block in blocks for document in yaml.safe_load_all(block)]
    for file in ROOT.glob("examples/**/*.yaml"):
        found += [(str(file), document) for document in load_documents(file)]
    return [
        (file, document) for file, document in found if isinstance(document, dict) and document.get("kind") in KINDS
    ]


def test_examples_and_documentation_are_good() -> None:
    shown = documents()
    assert {document["kind"] for _, document in shown} == set(KINDS)
    assert [(file, sentence) for file, document in shown for sentence in validate_object(document)] == []
    for _, document in shown:
        KINDS[document["kind"]].model_validate(document)


@pytest.mark.parametrize(
    "uri", ["https://host/x?X-Amz-Signature=TOPSECRET", "https://user:TOPSECRET@host/x", "s3://key:TOPSECRET@data/x#y"]
)
def test_credentials_in_a_uri_are_not_shown(uri: str) -> None:
    document = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "x"},
        "spec": {"model": {"name": "a/b"}, "dataset": {"uri": uri}},
    }
    (problem,) = validate_object(document)
    assert problem.startswith('spec.dataset.uri: Invalid value: "')
    assert "TOPSECRET" not in problem
