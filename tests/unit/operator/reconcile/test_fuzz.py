"""10,000 malformed manifests and statuses: parsing and planning name the fault, and never fail themselves."""

import copy
import json
import random
from typing import Any

import pytest
from bad_manifests import GOOD
from garbage import fuzz, schema
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.inferenceservices.spec import InferenceService
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.finetunejob.push_job import build_push_job
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.inferenceservice import plan as inferenceservice_plan
from hone_operator.inferenceservice.dependents import list_named_jobs
from hone_operator.objects import bounded_json
from hone_operator.objects.parsing import MAX_SPEC_DEPTH, parse_object
from hone_operator.reconcile.plan import Plan
from observed import DIGEST, IMAGE, IMAGES, NOW
from odd_values import ODD_VALUES, list_paths, replace_value
from pod_page import EXAMPLES

# Malformed manifests of each kind.
MANIFESTS = 5000
CONTEXT = {
    "capabilities": {"add": ["SYS_ADMIN"], "drop": ["ALL"]},
    "seLinuxOptions": {"type": "container_t", "user": "u", "role": "r"},
    "seccompProfile": {"type": "Unconfined"},
    "appArmorProfile": {"type": "Unconfined"},
    "privileged": True,
}
PROBE = {"httpGet": {"host": "example.com", "port": 80}, "tcpSocket": {"host": "example.com", "port": 80}}
# What the level of Pod Security is decided from.
SECURED = {
    "apiVersion": "hone.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "secured"},
    "spec": {
        "model": {"name": "a/b"},
        "dataset": {"name": "c/d"},
        "pod": {
            "securityContext": CONTEXT | {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]},
            "containerSecurityContext": CONTEXT,
            "volumes": [{"name": "host", "hostPath": {"path": "/x"}}],
            "initContainers": [
                {
                    "name": "one",
                    "image": "i",
                    "securityContext": CONTEXT,
                    "ports": [{"hostPort": 80}],
                    "lifecycle": {"postStart": PROBE},
                    "livenessProbe": PROBE,
                }
            ],
        },
    },
}


def plan(owner: dict[str, Any]) -> tuple[Any, Plan]:
    """Parse and plan an object that is new. Return its spec, or the fault, and the plan."""
    if owner["kind"] == "FineTuneJob":
        job = parse_object(FineTuneJob, owner)
        if not isinstance(job, HoneError):
            build_push_job(owner, job, IMAGE, DIGEST)
        return job, finetunejob_plan.plan_finetunejob(ObservedFineTuneJob(owner, job, IMAGE), NOW)
    service = parse_object(InferenceService, owner)
    list_named_jobs(owner)
    observed = inferenceservice_plan.ObservedInferenceService(owner, service, IMAGES)
    return service, inferenceservice_plan.plan_inferenceservice(observed, NOW)


@pytest.mark.parametrize("kind", ["FineTuneJob", "InferenceService"])
def test_malformed_objects_are_reported_and_stop_nothing(kind: str) -> None:
    random_ = random.Random(kind)
    spec_schema = schema(kind)
    refused = 0
    for _ in range(MANIFESTS):
        owner = fuzz(random_, kind, spec_schema)
        try:
            job, result = plan(owner)
        except Exception as error:
            pytest.fail(f"{error!r} for {json.dumps(owner)[:2000]}")
        accepted = next(each for each in result.status["conditions"] if each["type"] == "Accepted")
        json.dumps([result.status, [vars(action) for action in result.actions]], default=str)
        if isinstance(job, HoneError):
            refused += 1
            assert accepted["status"] == "False"
            assert accepted["reason"] == INVALID_SPEC.name
            assert not result.actions
            assert len(json.dumps(accepted)) < 33_000
    assert MANIFESTS / 2 < refused < MANIFESTS


@pytest.mark.parametrize("manifest", [*EXAMPLES, *GOOD.values(), SECURED], ids=lambda one: one["metadata"]["name"])
def test_a_value_of_any_type_at_any_place_stops_nothing(manifest: dict[str, Any]) -> None:
    metadata = {"namespace": "team", "uid": "u", "generation": 1}
    for path in list_paths(manifest["spec"]):
        for odd in ODD_VALUES:
            owner = replace_value(manifest, path, odd) | {"metadata": {**manifest["metadata"], **metadata}}
            try:
                plan(owner)
            except Exception as error:
                pytest.fail(f"{error!r} for {odd!r} at {'.'.join(map(str, path))}")


@pytest.mark.parametrize("depth", [MAX_SPEC_DEPTH + 10, 900, 9990])
def test_a_deeply_nested_field_is_named_and_hides_no_other_field(depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    third = f'{{"name":"a }} \\" ] string","deep":{deep}}}'
    data = f'{{"items":[{{"name":"first"}},{deep},{third},{{"name":"last"}}]}}'
    items = bounded_json.load_bounded_json(data.encode())["items"]
    assert [items[index].get("name") for index in (0, 2, 3)] == ["first", 'a } " ] string', "last"]
    owner = copy.deepcopy(GOOD["FineTuneJob"])
    owner["spec"]["training"]["extra"]["optimArgs"] = items[2]["deep"]
    refused = parse_object(FineTuneJob, owner)
    assert isinstance(refused, HoneError)
    assert refused.reason == INVALID_SPEC
