"""A real API server refuses and takes what the contract says of pods: in the Hone object, and in the Job of it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import ApiServer, api_server
from hone_api.finetunejob import FineTuneJob
from hone_api.validation import validate
from hone_operator import trainer
from kubernetes.client import ApiException, BatchV1Api, CustomObjectsApi
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from pod_cases import ACCEPTED, REFUSED, UNWISE

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
MODEL = {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}, "lora": {}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("rules")) as found:
        found.install_crds()
        yield found


def manifest(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "faq", "namespace": "default", "uid": "3f1c7a52-0000-4000-8000-000000000000"},
        "spec": MODEL | spec,
    }


def why_refused(server: ApiServer, spec: dict[str, Any]) -> str:
    """Return the API server's reason against the object, empty where it takes it."""
    objects = CustomObjectsApi(server.client())
    try:
        objects.create_namespaced_custom_object(
            "hone.dev", "v1alpha1", "default", "finetunejobs", manifest(spec), dry_run="All", field_validation="Strict"
        )
    except ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


def why_job_refused(server: ApiServer, spec: dict[str, Any]) -> str:
    """Return the API server's reason against the Job that Hone would make."""
    owner = manifest(spec)
    try:
        job = trainer.train_job(owner, FineTuneJob.model_validate(owner), "registry.invalid/hone:1")
    except ValidationError as error:
        return str(error)
    try:
        BatchV1Api(server.client()).create_namespaced_job("default", job, dry_run="All", field_validation="Strict")
    except ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


@pytest.mark.parametrize("name", [*REFUSED, *UNWISE])
def test_the_object_is_refused_with_the_sentence_of_validate(server: ApiServer, name: str) -> None:
    spec = (REFUSED | UNWISE)[name]
    said = why_refused(server, spec)
    assert all(sentence in said for sentence in validate(manifest(spec))), said
    assert said


@pytest.mark.parametrize("name", REFUSED)
def test_the_job_would_be_refused(server: ApiServer, name: str) -> None:
    assert why_job_refused(server, REFUSED[name])


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_a_pod_can_be_is_accepted(server: ApiServer, name: str) -> None:
    assert why_refused(server, ACCEPTED[name]) == ""
    assert why_job_refused(server, ACCEPTED[name]) == ""
