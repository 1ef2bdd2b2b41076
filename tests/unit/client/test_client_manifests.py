"""The client's arguments become manifests that the API server takes, or one sentence that names the field."""

from pathlib import Path
from typing import Any

import pytest
from hone.errors import InvalidSpecError
from hone.specs.manifests import Draft, draft_job, draft_service, make_name
from hone_api.finetunejobs.spec import CheckpointOptions, FineTuneJobSpec
from hone_api.schema.validation import validate_object
from hypothesis import given
from hypothesis import strategies as st

ROWS = [{"text": "one"}, {"text": "zwölf"}]


def draft(model: Any = "owner/model", dataset: Any = "owner/rows", *, is_local: bool = False, **fields: Any) -> Draft:
    return draft_job("faq", model, dataset, fields, is_local=is_local)


def refusal(**arguments: Any) -> str:
    with pytest.raises(InvalidSpecError) as caught:
        draft(**arguments)
    return str(caught.value)


def test_only_given_fields_are_written() -> None:
    assert draft().body == {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "faq"},
        "spec": {"model": {"name": "owner/model"}, "dataset": {"name": "owner/rows"}},
    }


def test_fields_are_named_as_in_python_or_as_in_a_manifest() -> None:
    snake = draft(token_secret={"name": "hub"}, output={"storage": {"storage_class_name": "fast", "size": "5Gi"}})
    camel = draft(tokenSecret={"name": "hub"}, output={"storage": {"storageClassName": "fast", "size": "5Gi"}})
    assert snake.body == camel.body
    assert snake.body["spec"]["output"] == {"storage": {"storageClassName": "fast", "size": "5Gi"}}


def test_models_of_the_contract_are_fields() -> None:
    assert draft(checkpoint=CheckpointOptions(save_steps=7)).body["spec"]["checkpoint"] == {"saveSteps": 7}


def test_every_field_of_the_spec_is_taken() -> None:
    """New fields of the contract need no new code of the client."""
    for name in FineTuneJobSpec.model_fields.keys() - {"model", "dataset", "datasets"}:
        assert "unknown field" not in _refusal_or_nothing(name)
    assert 'unknown field "spec.no_such_field"' in refusal(no_such_field=1)


def _refusal_or_nothing(name: str) -> str:
    try:
        draft(**{name: "x"})
    except InvalidSpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("owner/name", {"name": "owner/name"}),
        ("s3://bucket/key", {"uri": "s3://bucket/key"}),
        ("https://host/model.tar", {"uri": "https://host/model.tar"}),
        ({"claim": {"name": "models", "path": "a"}}, {"claim": {"name": "models", "path": "a"}}),
        ({"name": "owner/name", "trust_remote_code": True}, {"name": "owner/name", "trustRemoteCode": True}),
    ],
)
def test_a_source_is_a_name_a_uri_or_its_fields(value: Any, expected: Any) -> None:
    assert draft(model=value).body["spec"]["model"] == expected


def test_rows_become_a_config_map() -> None:
    found = draft(dataset=iter(ROWS))
    assert found.config_map is not None
    name = found.config_map["metadata"]["name"]
    assert name.startswith("faq-")
    assert found.body["spec"]["dataset"] == {"configMap": {"name": name, "key": "train.jsonl"}}
    assert draft(dataset=ROWS).config_map == found.config_map
    assert draft(dataset=ROWS[:1]).body != found.body
    assert found.config_map["data"] == {"train.jsonl": '{"text": "one"}\n{"text": "zwölf"}\n'}


def test_files_of_this_machine_stand_for_claims(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    found = draft(model=tmp_path, dataset=tmp_path / "rows.csv", is_local=True)
    assert found.body["spec"]["dataset"] == {"claim": {"name": "local-dataset", "path": "rows.csv"}}
    assert found.claims == {"local-model": tmp_path.parent, "local-dataset": tmp_path}


def test_refusals_name_the_field_and_the_value(tmp_path: Path) -> None:
    assert "spec.training.learning_rate is 5.0" in refusal(training={"learning_rate": 5.0})
    assert "set exactly one of dataset" in refusal(dataset=None)
    assert "set exactly one of name" in refusal(model={"name": "a/b", "uri": "s3://bucket/key"})
    assert "lora belongs to methods" in refusal(method="full", lora={"r": 8})
    assert "which the cluster can't read" in refusal(model=tmp_path)
    assert "./nowhere does not exist" in refusal(model="./nowhere", is_local=True)
    assert "a row that is 'text'" in refusal(dataset=["text"])
    assert "not JSON" in refusal(dataset=[{"text": {1, 2}}])
    assert "bytes of rows" in refusal(dataset=[{"text": "x" * 2**20}])
    with pytest.raises(InvalidSpecError, match=r"metadata\.name"):
        draft_job("No Name", "a/b", "c/d", {}, is_local=False)


@given(st.text(max_size=80))
def test_a_generated_name_is_valid(model: str) -> None:
    body = draft_service(make_name(model), "a/b", {}, is_local=False).body
    assert validate_object(body) == []


def test_a_service_takes_every_field_of_its_spec() -> None:
    found = draft_service("chat", {"fineTuneJob": {"name": "faq"}}, {"max_model_len": 64}, is_local=False)
    assert found.body["spec"] == {"model": {"fineTuneJob": {"name": "faq"}}, "maxModelLen": 64}


SECRETS = [
    ("model", {"model": "https://user:pa55word@host/models/tiny/"}),
    ("dataset", {"dataset": "https://host/rows.jsonl?X-Amz-Signature=pa55word"}),
    ("dataset", {"dataset": "s3://AKIA:pa55word@bucket/rows/"}),
    ("datasets", {"dataset": None, "datasets": [{"uri": "https://u:pa55word@host/a/very/long/path/to/rows.jsonl"}]}),
    ("tracking", {"tracking": {"mlflow": {"uri": "https://user:pa55word@mlflow"}}}),
    ("output", {"output": {"push": [{"uri": "s3://AKIA:pa55word@bucket/x"}]}}),
]


@pytest.mark.parametrize(("field", "arguments"), SECRETS)
def test_a_refused_url_is_named_without_its_credentials(field: str, arguments: dict[str, Any]) -> None:
    message = refusal(**arguments)
    assert f"spec.{field}" in message
    assert "pa55word" not in message
    assert "must be " in message, "the sentence of the contract, not its regular expression"
    assert "[a-z0-9]" not in message


def test_a_dataset_without_rows_is_refused() -> None:
    assert "dataset has no rows" in refusal(dataset=[])
