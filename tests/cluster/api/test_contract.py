"""The API server and the contract agree about refusals and their messages, defaults, mutable fields, and explain."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_manifests import BAD, GOOD, Bad, changed
from hone_api.schema.crd import KINDS, make_schema
from hone_api.schema.manifests import load_documents
from hone_api.schema.validation import validate_object

ROOT = Path(__file__).parents[3]
SMALL: dict[str, dict[str, Any]] = {
    "FineTuneJob": {
        "model": {"name": "a/b"},
        "dataset": {"name": "c/d"},
        "lora": {},
        "resources": {"gpuResource": "hone.dev/none"},
    },
    "InferenceService": {"model": {"fineTuneJob": {"name": "never"}}},
}
WORDS = ["x", "", "A B", "../x", "/x", "a" * 300, "10Gi"]
NUMBERS = [0, -1, 1, 1.5, 2**40, 1e-7]
COMPOSED = [[], {}, ["a"], ["a", "a"], [1], {"a": 1}, {"name": "x"}, [{"name": "x"}, {"name": "x"}]]
VALUES: list[Any] = [*WORDS, *NUMBERS, *COMPOSED, True, None]
UNCHANGEABLE = "can't change after creation, since it decides the result: make a new FineTuneJob"


def small(kind: str) -> dict[str, Any]:
    return {"apiVersion": "hone.dev/v1alpha1", "kind": kind, "metadata": {"name": "small"}, "spec": SMALL[kind]}


def dry_run(hone: Any, manifest: dict[str, Any], *arguments: str) -> str:
    return str(hone.kubectl("apply", "--dry-run=server", "-f", "-", *arguments, stdin=json.dumps(manifest)))


def fields(path: str, of: dict[str, Any]) -> Iterator[str]:
    yield path
    for name, field in of.get("properties", {}).items():
        yield from fields(f"{path}.{name}", field)
    if "items" in of:
        yield from fields(f"{path}.0", of["items"])


def normalize_text(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_manifest_is_refused_with_the_documented_sentence(hone: Any, bad: Bad) -> None:
    with pytest.raises(AssertionError) as refused:
        dry_run(hone, bad.manifest())
    assert bad.sentence in str(refused.value)


@pytest.mark.parametrize("seed", range(60))
def test_offline_validation_agrees_about_random_changes(hone: Any, seed: int) -> None:
    chance = random.Random(seed)
    kind = chance.choice(["FineTuneJob", "FineTuneJob", "InferenceService"])
    path = chance.choice(list(fields("spec", make_schema(kind)["properties"]["spec"])))
    try:
        manifest = changed(GOOD[kind], {path: chance.choice(VALUES)})
    except (IndexError, TypeError):  # the good manifest has no such place
        manifest = changed(GOOD[kind], {path.partition(".0")[0]: chance.choice(VALUES)})
    hints = ("; did you mean", "; write it in quotes")  # only the offline check adds these
    offline = [re.split("|".join(hints), sentence)[0] for sentence in validate_object(manifest)]
    try:
        said = dry_run(hone, manifest)
    except AssertionError as refusal:
        said = str(refusal)
        assert offline, f"only the API server refuses {path}: {said}"
        unknown = [sentence for sentence in offline if sentence.startswith("unknown field")]
        assert not [sentence for sentence in unknown or offline if sentence not in said], said
    else:
        assert not offline, f"only offline is {path} refused"


@pytest.mark.parametrize("kind", GOOD)
def test_good_is_accepted(hone: Any, kind: str) -> None:
    assert "created" in dry_run(hone, GOOD[kind])
    assert "serverside-applied" in dry_run(hone, GOOD[kind], "--server-side")


def test_examples_are_accepted(hone: Any) -> None:
    documents = [document for file in ROOT.glob("examples/**/*.yaml") for document in load_documents(file)]
    assert {"FineTuneJob", "InferenceService"} <= {document["kind"] for document in documents}
    for document in documents:
        if document["kind"] in KINDS:
            dry_run(hone, document, "--server-side")


@pytest.mark.parametrize("kind", SMALL)
def test_defaults_are_those_of_the_models(hone: Any, kind: str) -> None:
    kept = json.loads(dry_run(hone, small(kind), "--output=json"))
    assert kept["spec"] != SMALL[kind]
    assert KINDS[kind].model_validate(kept).spec == KINDS[kind].model_validate(small(kind)).spec


def test_fields_that_determine_the_result_are_immutable(hone: Any, namespace: str) -> None:
    hone.apply(small("FineTuneJob"), namespace=namespace)

    def patch(spec: dict[str, Any]) -> str:
        arguments = ("finetunejob", "small", "--dry-run=server", "--type=merge", "--patch", json.dumps({"spec": spec}))
        return str(hone.kubectl("patch", *arguments, namespace=namespace))

    for field, value in {
        "model": {"name": "a/c"},
        "dataset": {"maxSamples": 5},
        "method": "full",
        "lora": {"r": 4},
        "training": {"extra": {"lossType": "nll"}},
        "output.claim": {"name": "other"},
        "output.save": "merged",
        "output.storage": {"size": "7Gi"},
    }.items():
        name, _, inner = field.partition(".")
        with pytest.raises(AssertionError) as refused:
            patch({name: {inner: value} if inner else value})
        assert f"spec: Invalid value: {field} {UNCHANGEABLE}" in str(refused.value)
    for field, value in {
        "backoffLimit": 7,
        "resources": {"cpu": 2},
        "pod": {"labels": {"team": "nlp"}},
        "output": {"push": [{"uri": "s3://models/faq"}]},
    }.items():
        assert "patched" in patch({field: value})


def test_inference_service_scales(hone: Any, namespace: str) -> None:
    hone.apply(small("InferenceService"), namespace=namespace)
    hone.kubectl("scale", "inferenceservice/small", "--replicas=3", namespace=namespace)
    assert hone.get("hisvc", "small", namespace)["spec"]["replicas"] == 3


@pytest.mark.parametrize("path", ["", ".model", ".lora", ".training", ".output", ".resources", ".pod"])
def test_explain_is_the_manual(hone: Any, path: str) -> None:
    of = make_schema("FineTuneJob")["properties"]["spec"]
    for part in path.split(".")[1:]:
        of = of["properties"][part]
    explained = normalize_text(hone.kubectl("explain", f"finetunejob.spec{path}"))
    assert of["properties"]
    for name, field in of["properties"].items():
        assert f" {name} <" in explained
        assert normalize_text(field["description"]) in explained, name


def test_short_names_category_and_columns(hone: Any, namespace: str) -> None:
    for kind in SMALL:
        hone.apply(small(kind), namespace=namespace)
    assert hone.kubectl("get", "ftj", namespace=namespace).split("\n")[0].split() == [
        "NAME", "STAGE", "READY", "REASON", "PERCENT", "LOSS", "LEFT", "AGE",
    ]  # fmt: skip
    assert hone.kubectl("get", "hisvc", namespace=namespace).split("\n")[0].split() == [
        "NAME", "URL", "READY", "REASON", "ENGINES", "MODELS", "AGE",
    ]  # fmt: skip
    listed = hone.kubectl("get", "hone", "--output=name", namespace=namespace)
    assert listed.split() == ["finetunejob.hone.dev/small", "inferenceservice.hone.dev/small"]


def test_good_manifests_stay_good_when_read_back(hone: Any) -> None:
    for kind, manifest in GOOD.items():
        kept = json.loads(dry_run(hone, changed(manifest, {"metadata.name": "other"}), "--output=json"))
        assert KINDS[kind].model_validate(kept).spec == KINDS[kind].model_validate(manifest).spec
