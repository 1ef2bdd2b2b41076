"""The plan for an InferenceService in each situation."""

from typing import Any

import pytest
from hone_api.inferenceservices.spec import InferenceService
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.inferenceservice import children as inferenceservice_children
from hone_operator.inferenceservice.plan import ObservedInferenceService, plan_inferenceservice
from hone_operator.objects.resources import AUTOSCALERS, BUDGETS, DEPLOYMENTS, SERVICES, Object
from hone_operator.reconcile.plan import Apply, Delete, Patch
from observed import (
    BEFORE,
    DIGEST,
    NOW,
    conditions,
    finished_job,
    foreign,
    job_object,
    message,
    observed_service,
    pod,
    service_object,
    stored,
    unschedulable,
)
from service_states import deployment_of, ready, running

FAQ = {"fineTuneJob": {"name": "faq"}}


def engine_of(*jobs: Object, **spec: Any) -> Object:
    [container] = deployment_of(*jobs, **spec)["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["hone-server"]
    return dict(container)


def mounts_of(*jobs: Object, **spec: Any) -> dict[str, tuple[str, str | None, bool]]:
    """Return claim, folder and read-only flag, by mount path."""
    template = deployment_of(*jobs, **spec)["spec"]["template"]["spec"]
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in template["volumes"] if "persistentVolumeClaim" in v
    }
    return {
        m["mountPath"]: (claims[m["name"]], m.get("subPath"), m.get("readOnly", False))
        for m in template["containers"][0]["volumeMounts"]
        if m["name"] in claims
    }


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (None, "FineTuneJob faq does not exist"),
        (job_object(), "its stage is Pending"),
        (job_object(status={"stage": "Training"}), "its stage is Training"),
    ],
)
def test_a_service_waits_for_its_job_and_reports_that(job: Object | None, words: str) -> None:
    found = plan_inferenceservice(observed_service(service_object(), *([job] if job else [])), NOW)
    assert [action.resource for action in found.actions if isinstance(action, Apply)] == [SERVICES]
    assert conditions(found.status)["ArtifactsResolved"] == ("False", "WaitingForFineTuneJob")
    assert words in message(found.status, "ArtifactsResolved")
    assert conditions(found.status)["Available"] == ("False", "NoEngineReady")
    assert [event.reason for event in found.events] == ["WaitingForFineTuneJob"]


def test_a_service_does_not_wait_for_a_failed_job() -> None:
    job = job_object(status={"stage": "Failed", "conditions": [{"type": "Failed", "message": "no column"}]})
    found = plan_inferenceservice(observed_service(service_object(), job), NOW)
    assert conditions(found.status)["ArtifactsResolved"] == ("False", "FineTuneJobFailed")
    assert "FineTuneJob faq failed: no column. Delete the FineTuneJob" in message(found.status, "ArtifactsResolved")
    assert [(event.type, event.reason) for event in found.events] == [("Warning", "FineTuneJobFailed")]


def test_an_adapter_is_served_on_its_base_from_the_jobs_own_claim() -> None:
    job = finished_job()
    container = engine_of(job)
    arguments = ["org/base", "--admin-token-file", "/served/admin-token", "--port", "8000"]
    assert container["args"] == [*arguments, "--drain-seconds", "10"]
    assert {"name": "HF_HOME", "value": "/claims/faq/team/faq/cache"} in container["env"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    assert mounts_of(job) == {"/claims/faq": ("faq", None, True)}
    status = plan_inferenceservice(observed_service(service_object(), job), NOW).status
    assert status["models"] == [
        {"name": "org/base", "kind": "base", "loaded": "0/1"},
        {"name": "faq", "kind": "adapter", "digest": DIGEST, "loaded": "0/1"},
    ]
    assert status["modelNames"] == "org/base, faq"


def test_a_base_on_a_claim_and_a_shared_cache_are_mounted_read_only() -> None:
    on_claim = finished_job(model={"claim": {"name": "models", "path": "tiny"}})
    assert mounts_of(on_claim)["/claims/models"] == ("models", None, True)
    assert engine_of(on_claim)["args"][:3] == ["/claims/models/tiny", "--name", "tiny"]
    artifact = engine_of(model={"claim": {"name": "models", "path": "tuned"}})["args"]
    assert artifact[:5] == ["/claims/models/tuned", "--name", "tuned", "--claim", "models=/claims/models"]
    cached = finished_job(cache={"claim": {"name": "hub-cache"}})
    assert mounts_of(cached)["/claims/hub-cache"] == ("hub-cache", None, True)
    assert {"name": "HF_HOME", "value": "/claims/hub-cache"} in engine_of(cached)["env"]


def test_a_merged_model_needs_no_base() -> None:
    job = finished_job(kind="merged", model={"claim": {"name": "models"}})
    assert list(mounts_of(job)) == ["/claims/faq"]
    models = plan_inferenceservice(observed_service(service_object(), job), NOW).status["models"]
    assert models == [{"name": "faq", "kind": "merged", "digest": DIGEST, "loaded": "0/1"}]


def test_a_model_of_the_hub_is_downloaded_to_scratch() -> None:
    container = engine_of(model={"name": "org/other", "revision": "v1"})
    assert container["args"][:3] == ["org/other", "--revision", "v1"]
    assert {"name": "HF_HOME", "value": "/cache"} in container["env"]
    assert "HF_HUB_OFFLINE" not in [variable["name"] for variable in container["env"]]


def test_adapters_are_mounted_next_to_the_model() -> None:
    adapters = [
        {"name": "support", "fineTuneJob": {"name": "other"}},
        {"name": "legal", "claim": {"name": "c", "path": "p"}},
    ]
    jobs = finished_job(), finished_job("other")
    mounts = mounts_of(*jobs, adapters=adapters)
    assert mounts == {f"/claims/{name}": (name, None, True) for name in ("faq", "other", "c")}


@pytest.mark.parametrize(
    ("model", "jobs", "words"),
    [
        (FAQ, [finished_job(), finished_job("other", model={"name": "org/x"})], "org/x"),
        (FAQ, [finished_job(kind="merged"), finished_job("other")], "merged model"),
        (FAQ, [finished_job(), finished_job("other", "merged")], "made a merged"),
        ({"name": "org/y"}, [finished_job("other")], "org/y"),
        (
            {"claim": {"name": "m", "path": "a"}},
            [finished_job("other", model={"claim": {"name": "m"}})],
            "trained on m",
        ),
    ],
)
def test_an_adapter_of_another_base_is_refused(model: Object, jobs: list[Object], words: str) -> None:
    owner = service_object(model=model, adapters=[{"name": "support", "fineTuneJob": {"name": "other"}}])
    found = plan_inferenceservice(observed_service(owner, *jobs), NOW)
    assert conditions(found.status)["ArtifactsResolved"] == ("False", "AdapterMismatch")
    assert words in message(found.status, "ArtifactsResolved")
    assert DEPLOYMENTS not in [action.resource for action in found.actions]


def test_two_models_of_one_name_are_refused() -> None:
    owner = service_object(adapters=[{"name": "faq", "fineTuneJob": {"name": "other"}}])
    found = plan_inferenceservice(observed_service(owner, finished_job(), finished_job("other")), NOW)
    assert conditions(found.status)["ArtifactsResolved"] == ("False", "InvalidSpec")


def test_loaded_counts_the_engines_own_lists() -> None:
    job = finished_job(kind="merged")
    lists = {"uid-p1": {"data": [{"id": "faq", "digest": DIGEST}]}}
    lists["uid-p2"] = {"data": [{"id": "faq", "digest": "sha256:old"}]}
    found = plan_inferenceservice(running(job, ready("p1"), ready("p2"), answers=lists, replicas=2), NOW)
    assert found.actions == []
    assert [(model["name"], model["loaded"]) for model in found.status["models"]] == [("faq", "1/2")]
    assert found.poll_urls["uid-p1"] == "http://10.0.0.7:8000/v1/models"
    assert conditions(found.status)["Available"] == ("True", "EnginesReady")
    assert conditions(found.status)["Progressing"] == ("False", "Complete")
    assert (found.status["replicas"], found.status["readyReplicas"]) == (2, 2)
    assert found.status["url"] == "http://chat.team.svc/v1"


@pytest.mark.parametrize("spec", [{"engine": "tgi"}, {"engine": "sglang", "apiKeySecret": {"name": "k"}}])
def test_without_a_list_of_models_loaded_is_unknown(spec: Object) -> None:
    found = plan_inferenceservice(running(finished_job(), ready(), **spec), NOW)
    assert [model.get("loaded") for model in found.status["models"]] == [None, None]
    assert bool(found.poll_urls) == ("apiKeySecret" not in spec)
    assert conditions(found.status)["Progressing"] == ("False", "Complete")


def test_another_digest_of_a_model_rolls_out() -> None:
    observed = running(finished_job(kind="merged"), ready())
    observed.jobs = {"faq": finished_job(kind="merged", digest="sha256:" + "b" * 64)}
    [action] = plan_inferenceservice(observed, NOW).actions
    assert isinstance(action, Apply)
    assert "faq=sha256:" + "b" * 64 in action.body["spec"]["template"]["spec"]["containers"][0]["args"]
    assert action.body["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_running_service_continues_when_its_job_is_deleted() -> None:
    observed = running(finished_job(), ready())
    observed.jobs = {"faq": None}
    found = plan_inferenceservice(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["ArtifactsResolved"] == ("False", "WaitingForFineTuneJob")
    assert conditions(found.status)["Available"] == ("True", "EnginesReady")


@pytest.mark.parametrize("child", ["deployment", "service"])
def test_deleted_or_edited_children_are_restored(child: str) -> None:
    observed = running(finished_job(), ready())
    edited = getattr(observed, child)
    edited["spec"]["selector" if child == "service" else "replicas"] = {"x": "y"} if child == "service" else 7
    assert len(plan_inferenceservice(observed, NOW).actions) == 1
    setattr(observed, child, None)
    assert len(plan_inferenceservice(observed, NOW).actions) == 1


@pytest.mark.parametrize("child", ["deployment", "service"])
def test_objects_of_others_are_never_taken_over(child: str) -> None:
    observed = running(finished_job(), ready())
    setattr(observed, child, foreign(getattr(observed, child)))
    found = plan_inferenceservice(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["Accepted"] == ("False", "NameConflict")


def restarted(words: str, reason: str = "Error", code: int = 65) -> Object:
    found = pod(container="engine", waiting={"reason": "CrashLoopBackOff"})
    [status] = found["status"]["containerStatuses"]
    status |= {"restartCount": 3, "lastState": {"terminated": {"exitCode": code, "reason": reason, "message": words}}}
    return found


def not_placed(words: str) -> Object:
    """Return an engine's pod whose container `place`, which checks artifacts, has failed once."""
    found = pod(container="engine", waiting={"reason": "PodInitializing"})
    ended = {"terminated": {"exitCode": 65, "reason": "Error", "message": words}}
    found["status"]["initContainerStatuses"] = [{"name": "place", "restartCount": 0, "state": ended}]
    return found


@pytest.mark.parametrize(
    ("trouble", "reason", "words"),
    [
        (
            restarted("log\nhone-server: ArtifactCorrupt: adapter/x differs. Train it again."),
            "ArtifactCorrupt",
            "adapter/x differs. Train it again.",
        ),
        (restarted("Traceback: boom"), "EngineFailed", "boom"),
        (restarted("boom", code=139), "EngineFailed", "by SIGSEGV (exit code 139): boom. Native code has crashed"),
        (
            not_placed("hone-place: AdapterMismatch: Adapter x has rank 9. Do this."),
            "AdapterMismatch",
            "rank 9. Do this.",
        ),
        (restarted("", "OOMKilled"), "HostOutOfMemory", "memory"),
        (unschedulable("0/1 nodes"), "Unschedulable", "0/1 nodes"),
        (pod(container="engine", waiting={"reason": "ErrImagePull", "message": "no"}), "ImagePullFailed", "no"),
    ],
)
def test_an_engine_that_does_not_start_is_explained(trouble: Object, reason: str, words: str) -> None:
    found = plan_inferenceservice(running(finished_job(), trouble), NOW)
    assert conditions(found.status)["Progressing"] == ("False", reason)
    assert words in message(found.status, "Progressing")
    assert reason in [event.reason for event in found.events]


def test_an_engine_whose_node_is_lost_is_reported() -> None:
    lost = pod(container="engine", running={"startedAt": BEFORE})
    lost["spec"]["nodeName"] = "gpu-1"
    observed = running(finished_job(), lost)
    observed.cluster = ClusterNodes((Node("gpu-1", not_ready_reason="since 2026-03-01T11:50:00Z"),))
    found = plan_inferenceservice(observed, NOW)
    assert conditions(found.status)["Progressing"] == ("False", "NodeLost")
    assert "node gpu-1, which is not ready since" in message(found.status, "Progressing")


def test_no_replicas_is_no_failure() -> None:
    found = plan_inferenceservice(running(finished_job(), replicas=0), NOW)
    assert conditions(found.status)["Available"] == ("False", "ScaledToZero")
    assert conditions(found.status)["Progressing"] == ("False", "Complete")


def test_a_second_pass_changes_nothing() -> None:
    observed = running(finished_job(), ready())
    first = plan_inferenceservice(observed, NOW)
    observed.owner["status"] = first.status
    second = plan_inferenceservice(observed, NOW.replace(hour=13))
    assert (second.status, second.events, second.actions) == (first.status, [], [])


def claim(*modes: str) -> Object:
    return {"metadata": {"name": "faq"}, "spec": {"accessModes": list(modes)}}


def scaled(**more: Any) -> ObservedInferenceService:
    observed = running(finished_job(), ready("p1"), ready("p2"), ready("p3"), replicas=3)
    for name, value in more.items():
        setattr(observed, name, value)
    return observed


def test_above_one_replica_a_drain_evicts_one_engine_at_a_time() -> None:
    [made] = plan_inferenceservice(scaled(budget=None), NOW).actions
    assert isinstance(made, Apply)
    assert made.resource is BUDGETS
    assert made.body["spec"]["maxUnavailable"] == 1
    assert made.body["metadata"]["ownerReferences"][0]["controller"] is True
    assert plan_inferenceservice(scaled(budget=stored(made.body)), NOW).actions == []
    alone = running(finished_job(), ready())
    alone.budget = stored(made.body, uid="uid-budget")
    assert plan_inferenceservice(alone, NOW).actions == [Delete(BUDGETS, "chat", "uid-budget")]


def alone(*, node: str = "gpu-1", modes: str = "ReadWriteMany", **more: Any) -> ObservedInferenceService:
    """Return a service with one ready engine on a node, and a claim with these access modes."""
    engine_pod = ready()
    engine_pod["spec"]["nodeName"] = node
    observed = running(finished_job(), engine_pod)
    observed.cordoned_nodes, observed.claims = frozenset(), [claim(modes)]
    for name, value in more.items():
        setattr(observed, name, value)
    return observed


def test_a_drain_must_not_evict_a_single_engine_that_can_move() -> None:
    [made] = plan_inferenceservice(alone(), NOW).actions
    assert isinstance(made, Apply)
    assert (made.resource, made.body["spec"]["maxUnavailable"]) == (BUDGETS, 0)
    budget = stored(made.body, uid="uid-budget")
    assert plan_inferenceservice(alone(budget=budget), NOW).actions == []
    assert plan_inferenceservice(alone(budget=budget, cordoned_nodes=None), NOW).actions == [
        Delete(BUDGETS, "chat", "uid-budget")
    ]
    assert plan_inferenceservice(alone(budget=budget, modes="ReadWriteOnce"), NOW).actions == [
        Delete(BUDGETS, "chat", "uid-budget")
    ]


def test_a_single_engine_is_moved_off_a_cordoned_node_once() -> None:
    budget = stored(inferenceservice_children.build_budget(service_object(), 0))
    cordoned = frozenset({"gpu-1"})
    assert plan_inferenceservice(alone(budget=budget, node="gpu-2", cordoned_nodes=cordoned), NOW).actions == []
    observed = alone(budget=budget, cordoned_nodes=cordoned)
    [made] = plan_inferenceservice(observed, NOW).actions
    marked = {"metadata": {"annotations": {"hone.dev/moved-from": "p1"}}}
    assert made == Patch(DEPLOYMENTS, "chat", {"spec": {"template": marked}})
    assert observed.deployment
    observed.deployment["spec"]["template"]["metadata"]["annotations"] |= marked["metadata"]["annotations"]
    assert plan_inferenceservice(observed, NOW).actions == []
    second = ready("p2")
    second["spec"]["nodeName"] = "gpu-1"
    second["metadata"]["annotations"] = marked["metadata"]["annotations"]
    observed.pods = [second]
    [again] = plan_inferenceservice(observed, NOW).actions
    assert isinstance(again, Patch)
    assert again.patch["spec"]["template"]["metadata"]["annotations"] == {"hone.dev/moved-from": "p2"}


def test_one_of_several_engines_is_not_moved() -> None:
    several = scaled(cordoned_nodes=frozenset({"gpu-1"}))
    several.pods[0]["spec"]["nodeName"] = "gpu-1"
    assert plan_inferenceservice(several, NOW).actions == []


AUTOSCALED = {"autoscaling": {"minReplicas": 2, "maxReplicas": 4, "targetConcurrency": 8}}


def autoscaled(replicas: int, **more: Any) -> ObservedInferenceService:
    """Return a service whose autoscaler has set this number of engines."""
    observed = scaled()
    alike = observed_service(service_object(**AUTOSCALED), finished_job())
    observed.owner, observed.spec = alike.owner, alike.spec
    assert observed.deployment
    observed.deployment["spec"]["replicas"] = replicas
    assert isinstance(observed.spec, InferenceService)
    observed.autoscaler = stored(
        inferenceservice_children.build_autoscaler(observed.owner, observed.spec), uid="uid-scaler"
    )
    for name, value in more.items():
        setattr(observed, name, value)
    return observed


def test_an_autoscaler_is_made_changed_and_pruned() -> None:
    [made] = plan_inferenceservice(autoscaled(3, autoscaler=None), NOW).actions
    assert isinstance(made, Apply)
    assert made.resource is AUTOSCALERS
    spec = made.body["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 4)
    [metric] = spec["metrics"]
    assert metric["pods"]["metric"] == {"name": "hone_engine_requests"}
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "8"}
    stale = stored(made.body)
    stale["spec"]["maxReplicas"] = 9
    assert [
        a.resource for a in plan_inferenceservice(autoscaled(3, autoscaler=stale), NOW).actions if isinstance(a, Apply)
    ] == [AUTOSCALERS]
    back = scaled(autoscaler=stored(made.body, uid="uid-scaler"))
    assert plan_inferenceservice(back, NOW).actions == [Delete(AUTOSCALERS, "chat", "uid-scaler")]


@pytest.mark.parametrize(("found", "kept"), [(2, 2), (3, 3), (4, 4), (0, 2), (1, 2), (9, 4)])
def test_the_number_that_the_autoscaler_set_stays_within_its_bounds(found: int, kept: int) -> None:
    actions = plan_inferenceservice(autoscaled(found), NOW).actions
    [body] = [a.body for a in actions if isinstance(a, Apply) and a.resource is DEPLOYMENTS] or [None]
    assert (body is None) == (found == kept)
    if body:
        assert body["spec"]["replicas"] == kept
        assert body["metadata"]["resourceVersion"] == "1", "refused where the autoscaler was faster"


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (None, ("False", "NotLookedYet"), "has not looked"),
        ("False", ("False", "LoadNotServed"), "no custom metrics API. Let a custom-metrics adapter"),
        ("True", ("True", "ValidMetricFound"), "no custom metrics API"),
    ],
)
def test_the_condition_scaling_active_repeats_the_autoscalers_message(
    status: str | None, expected: tuple[str, str], words: str
) -> None:
    observed = autoscaled(3)
    assert observed.autoscaler
    told = {"type": "ScalingActive", "status": status, "reason": "ValidMetricFound", "message": "no custom metrics API"}
    observed.autoscaler["status"] = {"conditions": [told] if status else []}
    found = plan_inferenceservice(observed, NOW)
    assert conditions(found.status)["ScalingActive"] == expected
    assert words in message(found.status, "ScalingActive")
    back = scaled()
    back.owner["status"] = found.status
    assert "ScalingActive" not in conditions(plan_inferenceservice(back, NOW).status)


def test_engines_are_spread_over_nodes_for_any_number_of_replicas() -> None:
    one, three = (deployment_of(finished_job(), replicas=n)["spec"]["template"] for n in (1, 3))
    assert one == three
    [spread] = one["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"].items() <= one["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("modes", "expected", "words"),
    [
        (["ReadWriteOnce"], ("False", "ClaimNotShared"), "[ReadWriteOnce]: the pods of one node alone can mount it"),
        (["ReadWriteOncePod"], ("False", "ClaimNotShared"), "one pod alone can mount it, and there may be 3 engines"),
        (["ReadWriteOnce", "ReadOnlyMany"], ("True", "ClaimsShared"), ""),
        (["ReadWriteMany"], ("True", "ClaimsShared"), ""),
    ],
)
def test_a_claim_that_only_one_node_can_mount_is_reported_beforehand(
    modes: list[str], expected: tuple[str, str], words: str
) -> None:
    found = plan_inferenceservice(scaled(claims=[claim(*modes)]), NOW)
    assert conditions(found.status)["Spreadable"] == expected
    assert words in message(found.status, "Spreadable")
    assert [event.reason for event in found.events if event.reason.startswith("Claim")] == (
        ["ClaimNotShared"] if words else []
    )
    back = running(finished_job(), ready())
    back.owner["status"] = found.status
    assert "Spreadable" not in conditions(plan_inferenceservice(back, NOW).status)
