"""Set a field that a remedy names in an existing object: the API server accepts it, or names the next step.

Fields that determine the result of a FineTuneJob are immutable; the refusal has to ask for a new FineTuneJob.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from apiserver import ApiServer
from kubernetes.client import ApiException, CustomObjectsApi

sys.path.append(str(Path(__file__).parents[2] / "unit"))

import remedy_fields
import remedy_services
from observed import job_object, service_object
from remedy_catalogue import OF_CATALOGUE
from remedy_states import Field, put

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
Object = dict[str, Any]
PLURALS = {"FineTuneJob": "finetunejobs", "InferenceService": "inferenceservices"}
CASES = [
    case
    for case in (*remedy_fields.FIELDS, *remedy_services.FIELDS, *OF_CATALOGUE)
    if "metadata.name" not in str(case.sets)
]


@pytest.fixture(scope="module")
def objects(crd_server: ApiServer) -> CustomObjectsApi:
    return CustomObjectsApi(crd_server.client())


def body_of(case: Field, number: int, spec: Object) -> Object:
    made = job_object(**spec) if case.kind == "FineTuneJob" else service_object(**spec)
    return made | {"metadata": {"name": f"fields-of-remedies-{number}", "namespace": "default"}}


def why_refused(objects: CustomObjectsApi, place: tuple[str, ...], changed: Object) -> str:
    """Return the API server's reason against the change; empty where it accepts it."""
    try:
        objects.replace_namespaced_custom_object(
            *place, changed["metadata"]["name"], changed, field_validation="Strict"
        )
    except ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_a_field_that_a_remedy_names_is_set_or_the_refusal_names_the_next_step(
    objects: CustomObjectsApi, number: int
) -> None:
    case = CASES[number]
    place = ("hone.dev", "v1alpha1", "default", PLURALS[case.kind])
    spec = body_of(case, number, case.of)["spec"]
    made = objects.create_namespaced_custom_object(*place, body_of(case, number, spec), field_validation="Strict")
    for field, value in case.sets.items():
        spec = put(spec, field.rpartition("|")[2], value)
    changed = body_of(case, number, spec)
    changed["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    if refusal := why_refused(objects, place, changed):
        assert "make a new FineTuneJob" in refusal
        changed = body_of(case, number, spec) | {"metadata": {"name": "new", "namespace": "default"}}
        objects.create_namespaced_custom_object(*place, changed, dry_run="All", field_validation="Strict")
