"""A real API server agrees with the contract about pods: in the Hone object, and in the Job made from it."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from apiserver import ApiServer
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import CHILD_INVALID
from hone_api.schema.validation import validate_object
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.finetunejob import jobs
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api
from hone_operator.objects.resources import FINETUNEJOBS, JOBS, Key
from hone_operator.observability.metrics import Metrics
from hone_operator.reconcile.execution import Executor
from hone_operator.reconcile.plan import build_delete
from kubernetes import aio
from kubernetes.client import ApiException, BatchV1Api, CustomObjectsApi
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[2] / "unit"))

from pod_cases import ACCEPTED, LATER, REFUSED, UNWISE

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
MODEL = {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}, "lora": {}}


def manifest(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "faq", "namespace": "default", "uid": "3f1c7a52-0000-4000-8000-000000000000"},
        "spec": MODEL | spec,
    }


def why_refused(crd_server: ApiServer, spec: dict[str, Any]) -> str:
    """Return the API server's reason against the object; empty where it accepts it."""
    objects = CustomObjectsApi(crd_server.client())
    try:
        objects.create_namespaced_custom_object(
            "hone.dev", "v1alpha1", "default", "finetunejobs", manifest(spec), dry_run="All", field_validation="Strict"
        )
    except ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


def job_of(owner: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = jobs.build_train_job(owner, FineTuneJob.model_validate(owner), "registry.invalid/hone:1")
    return found


def why_job_refused(crd_server: ApiServer, spec: dict[str, Any]) -> str:
    """Return the API server's reason against the Job that Hone would create."""
    try:
        job = job_of(manifest(spec))
    except ValidationError as error:
        return str(error)
    try:
        BatchV1Api(crd_server.client()).create_namespaced_job("default", job, dry_run="All", field_validation="Strict")
    except ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


@pytest.mark.parametrize("name", [*REFUSED, *UNWISE])
def test_the_object_is_refused_with_the_sentence_of_validate(crd_server: ApiServer, name: str) -> None:
    spec = (REFUSED | UNWISE)[name]
    said = why_refused(crd_server, spec)
    assert all(sentence in said for sentence in validate_object(manifest(spec))), said
    assert said


@pytest.mark.parametrize("name", REFUSED)
def test_the_job_would_be_refused(crd_server: ApiServer, name: str) -> None:
    assert why_job_refused(crd_server, REFUSED[name])


@pytest.mark.parametrize("name", LATER)
def test_a_fault_that_only_the_job_shows_names_the_users_field(crd_server: ApiServer, name: str) -> None:
    spec, field = LATER[name]
    assert why_refused(crd_server, spec) == ""
    error = explain_refusal(why_job_refused(crd_server, spec))
    assert (error.reason, error.remedy) == (CHILD_INVALID, f"Correct {field}.")


def test_a_running_job_is_deleted_only_for_one_that_can_be_made(crd_server: ApiServer) -> None:
    right = job_of(manifest({"resources": {"gpus": 0}}))
    wrong = job_of(manifest(LATER["part of a huge page"][0]))
    key = Key(FINETUNEJOBS, "default", "faq")

    async def run() -> list[bool]:
        configuration = aio.client.Configuration()
        await aio.config.load_kube_config(str(crd_server.kubeconfig), client_configuration=configuration)
        api, kept = Api(configuration, Metrics()), []
        try:
            made = await api.create(JOBS, right)
            for new in (wrong, right):
                action = build_delete(JOBS, made, replaced_by=new)
                outcome = await Executor(api, Cache(), lambda _: []).execute(key, ("u", 1), [action])
                found = await api.get(JOBS, "default", made["metadata"]["name"])
                kept.append(found is not None and "deletionTimestamp" not in found["metadata"])
                assert [each.error.reason for each in outcome.sync_failures] == (
                    [CHILD_INVALID] if new is wrong else []
                )
            return kept
        finally:
            await api.close()

    assert asyncio.run(run()) == [True, False]


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_possible_pod_is_accepted(crd_server: ApiServer, name: str) -> None:
    assert why_refused(crd_server, ACCEPTED[name]) == ""
    assert why_job_refused(crd_server, ACCEPTED[name]) == ""
