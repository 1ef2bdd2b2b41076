"""The operator's writes to the API server: strict, fenced, and with the server's warnings logged.

The server here is a plain HTTP server, which records requests and answers as the test requires.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientError, web
from hone_api.reasons import API_FAILING
from hone_operator.controller import Controller
from hone_operator.kube import client as api_module
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api, ApiError, NotLeading
from hone_operator.objects.resources import (
    CLAIMS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    Key,
    Object,
)
from hone_operator.observability.metrics import Metrics
from hone_operator.reconcile.event_writer import write_event
from hone_operator.reconcile.execution import Executor
from hone_operator.reconcile.ownership import bind_to_uid
from hone_operator.reconcile.plan import Action, Apply, Create, Delete, Event, Patch, Plan
from hone_operator.reconcile.sync_failures import REPORTED_AFTER_FAILURES
from kubernetes.aio import client
from observed import IMAGES, job_object

KEY = Key(INFERENCESERVICES, "team", "chat")
BODY = {"metadata": {"name": "chat", "namespace": "team"}}
FOUND = {"kind": "Deployment", "metadata": {**BODY["metadata"], "uid": "child"}}
ACTIONS: list[Action] = [
    Create(DEPLOYMENTS, BODY),
    Apply(DEPLOYMENTS, BODY),
    Apply(DEPLOYMENTS, BODY, waits_for_turn=True),
    Patch(DEPLOYMENTS, "chat", {"spec": {}}),
    Delete(DEPLOYMENTS, "chat", "uid"),
]


@dataclass
class Server:
    """Received requests as (method, path), their queries, and the answers to give."""

    status: int = 200
    body: Object = field(
        default_factory=lambda: {"metadata": {**BODY["metadata"], "uid": "child", "resourceVersion": "1"}}
    )
    warnings: list[str] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    patched: Object = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append((request.method, request.path))
        self.queries.append(dict(request.query))
        if request.method == "PATCH":
            self.patched = await request.json()
        response = web.json_response(self.body, status=self.status)
        for warning in self.warnings:
            response.headers.add("Warning", warning)
        return response

    def of(self, method: str) -> int:
        return sum(each == method for each, _ in self.seen)


def with_api(check: Callable[[Server, Api], Awaitable[None]], fence: Callable[[], float] | None = None) -> None:
    async def run() -> None:
        server = Server()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        api = Api(client.Configuration(host=f"http://127.0.0.1:{port}"), Metrics(), fence)
        try:
            await check(server, api)
        finally:
            await api.close()
            await runner.cleanup()

    asyncio.run(run())


def test_a_create_has_the_api_server_refuse_fields_that_it_does_not_know() -> None:
    async def check(server: Server, api: Api) -> None:
        await api.create(JOBS, BODY)
        assert server.queries == [{"fieldManager": "hone", "fieldValidation": "Strict"}]

    with_api(check)


def test_no_write_asks_that_unknown_fields_be_ignored() -> None:
    async def check(server: Server, api: Api) -> None:
        await api.apply(JOBS, BODY)
        await api.patch(JOBS, "team", "chat", {})
        await api.replace(JOBS, BODY)
        assert [query.get("fieldValidation", "") for query in server.queries] == ["", "", ""]
        assert server.queries[0] == {"fieldManager": "hone", "force": "true"}

    with_api(check)


def test_each_warning_is_logged_once_for_each_object(caplog: pytest.LogCaptureFixture) -> None:
    async def check(server: Server, api: Api) -> None:
        server.warnings = ['299 - "unknown field \\"spec.x\\""', "299 - deprecated"]
        for _ in range(3):
            await api.apply(JOBS, BODY)
        await api.apply(DEPLOYMENTS, BODY)
        server.status = 422
        with pytest.raises(ApiError):
            await api.patch(JOBS, "team", "chat", {})

    with caplog.at_level(logging.WARNING):
        with_api(check)
    job, deployment = "/apis/batch/v1/namespaces/team/jobs/chat", "/apis/apps/v1/namespaces/team/deployments/chat"
    lines = [f"PATCH {job}: the API server warns: {text}" for text in ('unknown field "spec.x"', "299 - deprecated")]
    assert caplog.messages == [*lines, *(line.replace(job, deployment) for line in lines)]


def test_few_warnings_are_remembered(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "WARNINGS_KEPT", 2)

    async def check(server: Server, api: Api) -> None:
        for text in ("a", "b", "c", "c", "a"):
            server.warnings = [f'299 - "{text}"']
            await api.get(JOBS, "team", "chat")

    with caplog.at_level(logging.WARNING):
        with_api(check)
    assert [line[-1] for line in caplog.messages] == ["a", "b", "c", "a"]


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
@pytest.mark.parametrize("is_bound", [False, True])
def test_a_replica_that_no_longer_leads_writes_no_child(action: Action, is_bound: bool) -> None:
    async def check(server: Server, api: Api) -> None:
        executor = Executor(api, Cache(), lambda _: [])
        bound = bind_to_uid(action, [FOUND]) if is_bound else action
        with pytest.raises(NotLeading):
            await executor.execute(KEY, ("u", 1), [bound])
        assert not [method for method, _ in server.seen if method != "GET"]

    with_api(check, fence=lambda: 0.0)


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_a_replica_that_loses_the_lease_before_the_request_leaves_writes_no_child(action: Action) -> None:
    async def check(server: Server, api: Api) -> None:
        executor = Executor(api, Cache(), lambda _: [])
        try:
            outcome = await executor.execute(KEY, ("u", 1), [action])
        except NotLeading:
            pass
        else:
            assert isinstance(outcome.error, ClientError)
        assert not [method for method, _ in server.seen if method != "GET"]

    asked = iter([10.0])
    with_api(check, fence=lambda: next(asked, 0.0))


def test_a_replica_that_no_longer_leads_writes_no_status_event_or_lease() -> None:
    async def check(server: Server, api: Api) -> None:
        controller = Controller(api, IMAGES, [], Metrics(), lambda: False)
        owner = job_object()
        owner["metadata"]["resourceVersion"] = "1"
        key = Key(FINETUNEJOBS, "team", "faq")
        for write in (
            controller.reconciler.write_status(key, owner, Plan(status={"stage": "Pending"})),
            write_event(api, key, owner, Event("Normal", "X", "x")),
            api.replace(JOBS, BODY),
        ):
            with pytest.raises(NotLeading):
                await write
        assert not [method for method, _ in server.seen if method != "GET"]
        await controller.poller.close()

    with_api(check, fence=lambda: 0.0)


@pytest.mark.parametrize("status", [200, 403])
def test_a_claim_is_created_first_and_a_config_map_last(status: int) -> None:
    async def check(server: Server, api: Api) -> None:
        server.status = status
        actions: list[Action] = [
            Create(CONFIGMAPS, BODY, comes_last=True),
            Create(JOBS, BODY),
            Create(CLAIMS, BODY, blocks_others=True),
        ]
        outcome = await Executor(api, Cache(), lambda _: []).execute(KEY, ("u", 1), actions)
        created = [path.rpartition("/")[2] for method, path in server.seen if method == "POST"]
        assert created == (
            ["persistentvolumeclaims"] if status == 403 else ["persistentvolumeclaims", "jobs", "configmaps"]
        )
        assert outcome.is_undecided == (status == 403)

    with_api(check)


def test_a_config_map_is_created_although_its_job_is_refused() -> None:
    async def check(server: Server, api: Api) -> None:
        server.status = 403
        actions: list[Action] = [Create(CONFIGMAPS, BODY, comes_last=True), Create(JOBS, BODY)]
        outcome = await Executor(api, Cache(), lambda _: []).execute(KEY, ("u", 1), actions)
        assert [path.rpartition("/")[2] for _, path in server.seen] == ["jobs", "configmaps"]
        assert outcome.error is not None

    with_api(check)


def test_the_second_of_two_roll_outs_of_an_upgrade_waits_for_its_turn() -> None:
    async def check(server: Server, api: Api) -> None:
        begun = list[Object]()
        executor = Executor(api, Cache(), lambda _: begun)
        action = bind_to_uid(Apply(DEPLOYMENTS, BODY, waits_for_turn=True), [FOUND])
        free = bind_to_uid(Apply(DEPLOYMENTS, BODY), [FOUND])
        assert (await executor.execute(KEY, ("u", 1), [action])).has_changes
        begun.append({})
        assert (await executor.execute(KEY, ("u", 1), [action])).has_changes
        assert server.of("PATCH") == 1
        await executor.execute(KEY, ("u", 1), [free])
        assert server.of("PATCH") == 2

    with_api(check)


@pytest.mark.parametrize(("status", "reported_at"), [(422, 1), (500, REPORTED_AFTER_FAILURES)])
def test_a_status_that_cannot_be_written_is_reported_by_one_event(status: int, reported_at: int) -> None:
    async def check(server: Server, api: Api) -> None:
        controller = Controller(api, IMAGES, [], Metrics(), lambda: True)
        owner = job_object()
        owner["metadata"]["resourceVersion"] = "1"
        key = Key(FINETUNEJOBS, "team", "faq")

        async def one_pass() -> int:
            before = server.of("POST")
            await controller.executor.execute(key, ("u", 1), [])
            with pytest.raises(ApiError):
                await controller.reconciler.write_status(key, owner, Plan(status={"stage": "Pending"}))
            return server.of("POST") - before

        server.status, server.body = status, {"message": "no"}
        expected = [int(number == reported_at) for number in range(1, REPORTED_AFTER_FAILURES + 3)]
        assert [await one_pass() for _ in expected] == expected
        server.status, server.body = 200, owner
        await controller.reconciler.write_status(key, owner, Plan(status={"stage": "Pending"}))
        server.status, server.body = status, {"message": "no"}
        assert [await one_pass() for _ in expected] == expected
        await controller.poller.close()

    with_api(check)


def test_an_error_of_the_operator_itself_is_reported_to_the_object() -> None:
    async def check(server: Server, api: Api) -> None:
        controller = Controller(api, IMAGES, [], Metrics(), lambda: True)
        owner = job_object()
        owner["metadata"] |= {"uid": "u", "resourceVersion": "1"}
        key = Key(FINETUNEJOBS, "team", owner["metadata"]["name"])
        owner["metadata"]["namespace"] = "team"
        controller.cache.put(FINETUNEJOBS, owner)
        await controller.reconciler.report_error(key, KeyError("image"))
        synced = next(each for each in server.patched["status"]["conditions"] if each["type"] == "Synced")
        assert (synced["status"], synced["reason"]) == ("False", "OperatorError")
        assert "KeyError('image')" in synced["message"]
        server.status = 500
        await controller.reconciler.report_error(key, KeyError("other"))
        await controller.poller.close()

    with_api(check)


def test_a_child_that_fails_is_counted_though_the_status_fails_too() -> None:
    async def check(server: Server, api: Api) -> None:
        controller = Controller(api, IMAGES, [], Metrics(), lambda: True)
        owner = job_object()
        owner["metadata"]["resourceVersion"] = "1"
        key = Key(FINETUNEJOBS, "team", "faq")
        server.status, server.body = 500, {"message": "no"}
        for number in range(1, REPORTED_AFTER_FAILURES + 1):
            outcome = await controller.executor.execute(key, ("u", 1), [Apply(DEPLOYMENTS, BODY)])
            assert [each.error.reason for each in outcome.sync_failures] == [API_FAILING] * (
                number == REPORTED_AFTER_FAILURES
            )
            with pytest.raises(ApiError):
                await controller.reconciler.write_status(key, owner, Plan(status={"stage": "Pending"}))
        await controller.poller.close()

    with_api(check)
