"""A child that Kubernetes refuses as invalid: the user's field is named, the object stalls, a running trainer stays."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from hone_api.schema.crd import make_schema
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.invalid_fields import explain_invalid, find_user_field
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import DEPLOYMENTS, FINETUNEJOBS, JOBS, SERVICES, Key
from hone_operator.observability.metrics import Metrics
from hone_operator.reconcile import readiness
from hone_operator.reconcile.execution import Executor
from hone_operator.reconcile.plan import Apply, Create, Delete, Patch
from hone_operator.reconcile.sync_failures import explain_write_failure
from kubernetes.aio import client
from observed import NOW, job_object, observed_job

POD = "spec.template.spec"
FIELDS = [
    (f"{POD}.containers[0].resources.requests", "spec.resources"),
    (f"{POD}.containers[0].volumeMounts[3].subPath", "spec.pod.volumeMounts"),
    (f"{POD}.containers[0].env[7].valueFrom", "spec.pod.env"),
    (f"{POD}.containers[0].securityContext", "spec.pod.containerSecurityContext"),
    (f"{POD}.containers[0].livenessProbe", None),
    (f"{POD}.initContainers[0].ports[1].name", "spec.pod.initContainers[0].ports[1].name"),
    (f"{POD}.volumes[4].hostPath.path", "spec.pod.volumes.hostPath.path"),
    (f"{POD}.tolerations[2].value", "spec.pod.tolerations.value"),
    (f"{POD}.topologySpreadConstraints[0].maxSkew", "spec.pod.topologySpreadConstraints[0].maxSkew"),
    (f"{POD}.dnsConfig.nameservers[0]", "spec.pod.dnsConfig.nameservers[0]"),
    (f"{POD}.securityContext.sysctls[0].name", "spec.pod.securityContext.sysctls[0].name"),
    (f"{POD}.nodeSelector", "spec.pod.nodeSelector"),
    ("spec.template.labels", "spec.pod.labels"),
    ("spec.template.annotations", "spec.pod.annotations"),
    ("metadata.annotations", "spec.pod.annotations"),
    ("spec.containers[0].resources.requests", "spec.resources"),
    ("spec.completions", None),
    ("status.x", None),
]
TWO = (
    f'Deployment.apps "chat" is invalid: [{POD}.containers[0].resources.requests: Invalid value: "8": must be less '
    f'than or equal to cpu limit of 4, {POD}.dnsConfig.nameservers[0]: Invalid value: "x": must be a valid IP address]'
)
HOST_PATH = f'Job.batch "faq-train" is invalid: {POD}.volumes[2].hostPath.path: Invalid value: "a/../b": no \'..\''


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_the_field_that_the_user_wrote_is_named(path: str, field: str | None) -> None:
    assert find_user_field(path) == field
    error = explain_invalid(f'Job.batch "faq-train" is invalid: {path}: Invalid value: "x": no')
    assert error is not None
    assert path in error.message
    assert error.remedy.startswith(f"Correct {field}." if field else "Correct the field")


@pytest.mark.parametrize("field", sorted({field for _, field in FIELDS if field}))
def test_the_field_that_is_named_exists(field: str) -> None:
    of: dict[str, Any] = make_schema("FineTuneJob")
    for name in field.split("."):
        of = of["properties"][name.partition("[")[0]]
        of = of.get("items", of)


def test_all_fields_of_a_message_are_named_and_nothing_else_is_advised() -> None:
    error = explain_refusal(TWO)
    assert error.reason.name == "ChildInvalid"
    assert error.remedy == "Correct spec.resources and spec.pod.dnsConfig.nameservers[0]."
    assert explain_refusal(HOST_PATH).remedy == "Correct spec.pod.volumes.hostPath.path."


def test_the_message_about_a_controllers_pod_has_no_generated_name() -> None:
    said = [
        explain_refusal(f'Error creating: Pod "chat-{name}" is invalid: spec.nodeSelector: Invalid value: "a"')
        for name in "ab"
    ]
    assert said[0].format_message() == said[1].format_message()
    assert "LimitRange" in said[0].remedy


@pytest.mark.parametrize(
    "words",
    [
        'admission webhook "x" denied the request: Job.batch "faq" is invalid: spec.template.labels: Invalid value: ""',
        'jobs.batch "faq" is forbidden: ValidatingAdmissionPolicy "p" with binding "b" denied request: no',
        'Job.batch "faq" is invalid: spec.template: Invalid value: {}: field is immutable',
        'pods "x" is forbidden: exceeded quota: q',
    ],
)
def test_a_refusal_by_admission_can_pass(words: str) -> None:
    assert explain_invalid(words) is None
    assert explain_refusal(words).reason.name in readiness.TRANSIENT_REASONS


@pytest.mark.parametrize(
    "action",
    [
        Create(JOBS, {"metadata": {"name": "faq"}}),
        Apply(DEPLOYMENTS, {"metadata": {"name": "faq"}}),
        Apply(SERVICES, {"metadata": {"name": "faq"}}),
        Patch(JOBS, "faq", {}),
        Delete(JOBS, "faq", "u", {"metadata": {"name": "faq"}}),
    ],
    ids=lambda action: type(action).__name__,
)
def test_an_invalid_child_waits_for_a_person(action: Any) -> None:
    trouble = explain_write_failure(action, ApiError(422, HOST_PATH), 1)
    assert trouble is not None
    assert trouble.error.reason.name in readiness.STALLED_REASONS
    assert "spec.pod.volumes.hostPath.path" in trouble.error.remedy
    assert trouble.stops_pods == (isinstance(action, Create) or action.resource == DEPLOYMENTS)


def test_a_job_that_is_invalid_stalls_the_object() -> None:
    observed = observed_job(job_object())
    trouble = explain_write_failure(Create(JOBS, {"metadata": {"name": "faq-train"}}), ApiError(422, HOST_PATH), 1)
    assert trouble is not None
    observed.sync_failures = [trouble]
    conditions = {each["type"]: each for each in plan_finetunejob(observed, NOW).status["conditions"]}
    assert conditions["Stalled"]["reason"] == "ChildInvalid"
    assert "Reconciling" not in conditions


@pytest.mark.parametrize(
    ("status", "message", "is_deleted"),
    [
        (201, "", True),
        (422, HOST_PATH, False),
        (403, 'admission webhook "x" denied the request: no', False),
        (403, 'jobs.batch "faq" is forbidden: exceeded quota: q, requested: count/jobs.batch=1', True),
        (403, 'jobs.batch "faq" is forbidden: because it is being terminated', True),
        (400, 'admission webhook "x" does not support dry run', True),
        (500, "failed calling webhook", False),
    ],
)
def test_a_job_is_kept_when_the_one_that_replaces_it_is_refused(status: int, message: str, is_deleted: bool) -> None:
    seen: list[tuple[str, str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.query.get("dryRun", ""), json.loads(await request.read())))
        return web.json_response({"message": message}, status=status if request.method == "POST" else 200)

    async def run() -> Any:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api = Api(client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"), Metrics())
        try:
            new = {"metadata": {"name": "faq-train", "namespace": "team"}, "spec": {"a": 1}}
            action = Delete(JOBS, "faq-train", "u", new)
            return await Executor(api, Cache(), lambda _: []).execute(
                Key(FINETUNEJOBS, "team", "faq"), ("u", 2), [action]
            )
        finally:
            await api.close()
            await runner.cleanup()

    outcome = asyncio.run(run())
    assert seen[0] == (
        "POST",
        "All",
        {"metadata": {"namespace": "team", "generateName": "faq-train-"}, "spec": {"a": 1}},
    )
    assert [method for method, _, _ in seen[1:]] == (["DELETE"] if is_deleted else [])
    assert (outcome.error is None) is is_deleted
    if status in (403, 422) and not is_deleted:
        assert "is kept as it was" in outcome.sync_failures[0].error.message
        assert not outcome.sync_failures[0].stops_pods
