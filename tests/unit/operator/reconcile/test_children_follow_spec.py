"""Children follow the spec: added, changed and removed fields reach them, and a new version replaces nothing."""

import copy
from typing import Any

import pytest
from hone_api.finetunejobs.spec import FineTuneJob, FineTuneJobSpec
from hone_api.inferenceservices.spec import InferenceService
from hone_api.pods.pod_options import ComputeResources, PodOptions
from hone_operator.engines.resolve import resolve_models
from hone_operator.finetunejob import children, jobs
from hone_operator.finetunejob.plan import plan_finetunejob as plan_job
from hone_operator.finetunejob.replacement_fields import MADE_FROM_ANNOTATION, compute_first_digest
from hone_operator.inferenceservice import children as inferenceservice_children
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.objects.drift import APPLIED_ANNOTATION, contains_fields
from hone_operator.objects.parsing import parse_object
from hone_operator.objects.resources import CONFIGMAPS, DEPLOYMENTS, JOBS, Object
from hone_operator.objects.spec_fields import FIELDS_ANNOTATION, have_fields_changed, record_fields
from hone_operator.pods.pod_spec import Images
from hone_operator.reconcile.plan import Apply, Delete, Patch
from observed import (
    DIGEST,
    IMAGES,
    NOW,
    conditions,
    finished_job,
    job_object,
    message,
    observed_job,
    observed_service,
    parsed_job,
    pod,
    service_child,
    service_object,
    stored,
)
from pydantic import create_model

AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
        }
    }
}
POD: Object = {
    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "x", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": AFFINITY,
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccountName": "robot",
    "supplementalGroups": [109],
    "labels": {"team": "a"},
    "annotations": {"note": "b"},
    "schedulerName": "own",
    "image": "own:1",
}
REMOVALS: list[tuple[Object, Object]] = [({"pod": {name: value}}, {}) for name, value in POD.items()]
REMOVALS += [
    ({"pod": {"env": POD["env"]}}, {"pod": {"env": POD["env"][:1]}}),
    ({"pod": {"tolerations": POD["tolerations"]}}, {"pod": {"tolerations": [{"key": "x", "operator": "Exists"}]}}),
    ({"resources": {"memory": "8Gi"}}, {}),
    ({"resources": {"cpu": "2"}}, {}),
    ({"resources": {"sharedMemory": "1Gi"}}, {}),
]
OF_SERVICES: list[tuple[Object, Object]] = [
    ({"apiKeySecret": {"name": "k"}}, {}),
    ({"apiKeySecret": {"name": "k"}, "engine": "vllm"}, {"engine": "vllm"}),
    ({"maxModelLen": 512}, {}),
    ({"toolCallParser": "hermes"}, {}),
    ({"reasoningParser": "qwen3", "engine": "vllm"}, {"engine": "vllm"}),
    ({"chatTemplate": "{{ messages }}"}, {}),
    ({"extraArgs": ["--a"]}, {}),
    ({"strategy": {"type": "Recreate"}}, {}),
]


def ready(name: str = "p1", **labels: str) -> Object:
    found = pod(name, container="engine", running={"startedAt": "2026-03-01T11:00:00Z"})
    found["status"]["conditions"].append({"type": "Ready", "status": "True"})
    found["metadata"]["labels"] = labels
    return found


def deployment_of(images: Images = IMAGES, **spec: Any) -> Object:
    observed = observed_service(service_object(**spec), finished_job())
    observed.images = images
    [found] = [
        action.body
        for action in plan_inferenceservice(observed, NOW).actions
        if isinstance(action, Apply) and action.resource is DEPLOYMENTS
    ]
    return dict(found)


def deployed(*, now: Object | None = None, images: Images = IMAGES, **spec: Any) -> ObservedInferenceService:
    """Return a service whose Deployment was made from another spec than `now`, its present one."""
    deployment = stored(deployment_of(images, **spec), replicas=1, updatedReplicas=1, observedGeneration=1)
    deployment["metadata"]["generation"] = 1
    owner = service_object(**(spec if now is None else now))
    config_map = stored(inferenceservice_children.build_adapters_config_map(owner, _resolved(owner)))
    return observed_service(
        owner,
        finished_job(),
        deployment=deployment,
        service=service_child(owner),
        adapters_config_map=config_map,
        pods=[ready()],
    )


def _resolved(owner: Object) -> Any:
    declared = parse_object(InferenceService, owner)
    assert isinstance(declared, InferenceService)
    return resolve_models(declared.spec, {"faq": finished_job()})


@pytest.mark.parametrize(("before", "after"), [*REMOVALS, *OF_SERVICES])
def test_a_removed_field_of_a_service_is_removed_from_its_children(before: Object, after: Object) -> None:
    observed = deployed(now=after, **before)
    [action] = [action for action in plan_inferenceservice(observed, NOW).actions if action.resource is DEPLOYMENTS]
    assert isinstance(action, Apply)
    assert not action.waits_for_turn
    same = deployed(**after)
    assert same.deployment
    assert action.body == deployment_of(**after)
    assert plan_inferenceservice(same, NOW).actions == []


@pytest.mark.parametrize(("before", "after"), REMOVALS)
def test_a_removed_field_of_a_job_replaces_its_job(before: Object, after: Object) -> None:
    observed = observed_job(job_object(**_without_gpus(before)))
    observed.owner = job_object(**_without_gpus(after))
    observed.spec = parsed_job(observed.owner)
    assert Delete(JOBS, "faq-train", "uid-child") in plan_job(observed, NOW).actions


def _without_gpus(spec: Object) -> Object:
    return spec | {"resources": {"gpus": 0} | spec.get("resources", {})}


def test_adapters_that_are_no_longer_served_leave_no_config_map() -> None:
    observed = deployed(now={"model": {"name": "org/base"}})
    [apply] = [action for action in plan_inferenceservice(observed, NOW).actions if isinstance(action, Apply)]
    observed.deployment = stored(apply.body, replicas=2, updatedReplicas=1, observedGeneration=2)
    observed.deployment["metadata"]["generation"] = 2
    assert plan_inferenceservice(observed, NOW).actions == []
    observed.deployment["status"]["replicas"] = 1
    assert plan_inferenceservice(observed, NOW).actions == [Delete(CONFIGMAPS, "chat-adapters", "uid-child")]


@pytest.mark.parametrize(
    ("observed", "desired", "is_same"),
    [
        ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1024Mi"}}, True),
        ({"limits": {"cpu": 1}}, {"limits": {"cpu": "1000m"}}, True),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1001m"}}, False),
        ({"limits": {"memory": "107374182400m"}}, {"limits": {"memory": "0.1Gi"}}, True),
        ({"sizeLimit": "1536Mi"}, {"sizeLimit": "1.5Gi"}, True),
        ({"requests": {"cpu": "many"}}, {"requests": {"cpu": "1"}}, False),
        ({"env": [{"name": "A", "value": "1Gi"}]}, {"env": [{"name": "A", "value": "1024Mi"}]}, False),
        ({"selector": {"a": "b", "c": "d"}}, {"selector": {"a": "b"}}, False),
    ],
)
def test_drift_compares_quantities_by_value_and_selectors_as_a_whole(
    observed: Any, desired: Any, is_same: bool
) -> None:
    assert contains_fields(observed, desired) is is_same


# --- versions ---

NewPod = create_model("NewPod", __base__=PodOptions, runtime_class_name=(str | None, None), host_users=(bool, True))
NewResources = create_model("NewResources", __base__=ComputeResources, shared_memory=(str, "16Gi"))
NAMES = ("resources", "pod", "checkpoint")


def spec_of(model: type[FineTuneJobSpec], **spec: Any) -> FineTuneJobSpec:
    return model.model_validate({"model": {"name": "org/base"}, "dataset": {"name": "org/data"}, **spec})


NewSpec = create_model(
    "NewSpec", __base__=FineTuneJobSpec, pod=(NewPod, NewPod()), resources=(NewResources, NewResources())
)


@pytest.mark.parametrize("spec", [{}, {"pod": POD}, {"resources": {"sharedMemory": "8Gi"}, "pod": {}}])
@pytest.mark.parametrize("filled_in", [{}, {"pod": {"hostUsers": True}}])
def test_a_version_with_new_fields_and_other_defaults_sees_no_change(spec: Object, filled_in: Object) -> None:
    old = record_fields(spec_of(FineTuneJobSpec, **spec), NAMES)
    filled = copy.deepcopy(spec)
    for part, fields in filled_in.items():  # as the API server does with a new default
        filled[part] = filled.get(part, {}) | fields
    new = spec_of(NewSpec, **filled)
    assert not have_fields_changed(old, new, NAMES)
    assert not have_fields_changed(record_fields(new, NAMES), spec_of(FineTuneJobSpec, **spec), NAMES), (
        "after a rollback"
    )
    changed = spec_of(NewSpec, **filled | {"pod": filled.get("pod", {}) | {"runtimeClassName": "kata"}})
    assert have_fields_changed(old, changed, NAMES)


@pytest.mark.parametrize(("before", "after"), [*REMOVALS, *((after, before) for before, after in REMOVALS)])
def test_the_record_of_fields_shows_every_change(before: Object, after: Object) -> None:
    recorded = record_fields(spec_of(FineTuneJobSpec, **before), NAMES)
    assert have_fields_changed(recorded, spec_of(FineTuneJobSpec, **after), NAMES)
    assert not have_fields_changed(recorded, spec_of(FineTuneJobSpec, **before), NAMES)


FIRST: list[tuple[Object, str]] = [
    ({}, "dce6cc71cb7d1491"),
    ({"resources": {"gpus": 0}}, "32d7a3acb4824eca"),
    (
        {
            "resources": {"gpus": 8, "cpu": 8, "memory": "64Gi"},
            "checkpoint": {"saveSteps": 7},
            "cache": {"claim": {"name": "c"}},
            "tokenSecret": {"name": "t"},
            "pod": {
                "env": [{"name": "A", "value": "1"}],
                "tolerations": [{"key": "x", "operator": "Exists"}],
                "imagePullSecrets": [{"name": "r"}],
                "nodeSelector": {"a": "b"},
                "affinity": {
                    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
                },
                "supplementalGroups": [109],
                "labels": {"l": "m"},
            },
        },
        "b0d284b849df7572",
    ),
]


@pytest.mark.parametrize(("spec", "digest"), FIRST)
def test_the_digest_of_the_first_version_is_known(spec: Object, digest: str) -> None:
    assert compute_first_digest(spec) == digest


@pytest.mark.parametrize("changed", [False, True])
def test_a_job_of_the_first_version_is_replaced_only_for_changes(changed: bool) -> None:
    observed = observed_job(job_object(), pod(running={"startedAt": "2026-03-01T11:00:00Z"}))
    assert observed.job
    annotations = observed.job["metadata"]["annotations"]
    fields = annotations.pop(FIELDS_ANNOTATION)
    annotations[MADE_FROM_ANNOTATION] = "32d7a3acb4824eca"
    if changed:
        observed.owner["spec"]["pod"] = {"priorityClassName": "high"}
        observed.spec = parsed_job(observed.owner)
    [action] = plan_job(observed, NOW).actions
    if changed:
        assert action == Delete(JOBS, "faq-train", "uid-child")
        assert isinstance(action, Delete)
        template = (action.replaced_by or {})["spec"]["template"]["spec"]
        assert template["priorityClassName"] == "high", "the Job is kept when this one is refused"
        return
    assert isinstance(action, Patch)
    assert action.patch["metadata"]["annotations"][FIELDS_ANNOTATION] == fields


def test_a_new_image_of_the_operator_leaves_running_jobs() -> None:
    observed = observed_job(job_object(), pod(running={"startedAt": "2026-03-01T11:00:00Z"}))
    observed.image = "runtime:2"
    assert plan_job(observed, NOW).actions == []


def test_the_token_of_a_job_that_trains_offline_replaces_nothing() -> None:
    owner = job_object(resources={"gpus": 1}, tokenSecret={"name": "t"})
    made = jobs.build_train_job(owner, parsed_job(owner), "i")
    without = job_object(resources={"gpus": 1})
    assert (
        made["metadata"]["annotations"]
        == jobs.build_train_job(without, parsed_job(without), "i")["metadata"]["annotations"]
    )
    preparing = jobs.build_prepare_job(owner, parsed_job(owner), "i", None)["metadata"]["annotations"]
    assert "tokenSecret.name" in preparing[FIELDS_ANNOTATION]


def test_labels_for_the_queue_are_changed_and_removed() -> None:
    queue, priority = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
    owner = job_object(labels={queue: "gpus", priority: "high"})
    owner["metadata"]["annotations"] = {"kueue.x-k8s.io/some": "1"}
    observed = observed_job(owner)
    assert observed.job
    observed.job["metadata"]["labels"]["kueue.x-k8s.io/by-kueue"] = "x"
    assert plan_job(observed, NOW).actions == []
    observed.owner["metadata"] |= {"labels": {queue: "cpus"}, "annotations": {"kueue.x-k8s.io/some": "2"}}
    [patch] = plan_job(observed, NOW).actions
    assert isinstance(patch, Patch)
    labels, annotations = patch.patch["metadata"]["labels"], patch.patch["metadata"]["annotations"]
    assert (labels[queue], labels[priority], annotations["kueue.x-k8s.io/some"]) == ("cpus", None, "2")
    assert "kueue.x-k8s.io/by-kueue" not in labels


# --- roll-outs of an upgrade ---

NEW = Images("hone-runtime:2", {"vllm": "vllm:2"})


def test_an_upgrade_replaces_the_engines_in_turn() -> None:
    observed = deployed()
    observed.images = NEW
    [action] = plan_inferenceservice(observed, NOW).actions
    assert isinstance(action, Apply)
    assert action.waits_for_turn
    observed.upgrading_deployments = [stored(deployment_of())]
    observed.upgrading_deployments[0]["metadata"]["name"] = "other"
    models = [{"id": "org/base"}, {"id": "faq", "digest": DIGEST}]
    observed.answers = {pod["metadata"]["uid"]: {"data": models} for pod in observed.pods}
    found = plan_inferenceservice(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["Progressing"] == ("False", "UpgradeWaiting")
    assert conditions(found.status)["Ready"] == ("True", "EnginesReady")
    assert "InferenceService other" in message(found.status, "Progressing")
    observed.upgrading_deployments[0]["metadata"]["namespace"] = "another"
    assert "other" not in message(plan_inferenceservice(observed, NOW).status, "Progressing").replace("another", "")


@pytest.mark.parametrize("spec", [{"pod": {"env": [{"name": "A", "value": "1"}]}}, {"strategy": {"type": "Recreate"}}])
def test_a_change_of_the_spec_waits_for_no_turn(spec: Object) -> None:
    observed = deployed(now=spec)
    observed.images = NEW
    observed.upgrading_deployments = [stored(deployment_of())]
    [action] = plan_inferenceservice(observed, NOW).actions
    assert isinstance(action, Apply)
    assert not action.waits_for_turn


def test_a_service_that_waits_for_its_turn_is_still_scaled() -> None:
    observed = deployed(now={"replicas": 3})
    observed.images = NEW
    observed.upgrading_deployments = [stored(deployment_of())]
    patches = [action for action in plan_inferenceservice(observed, NOW).actions if isinstance(action, Patch)]
    assert [patch.patch for patch in patches] == [{"spec": {"replicas": 3}}]


def test_a_service_without_engines_needs_no_turn() -> None:
    observed = deployed()
    observed.images, observed.pods = NEW, []
    observed.upgrading_deployments = [stored(deployment_of())]
    [action] = plan_inferenceservice(observed, NOW).actions
    assert isinstance(action, Apply)
    assert not action.waits_for_turn


def test_a_deployment_of_the_first_version_is_replaced_in_turn_and_changes_are_known_meanwhile() -> None:
    observed = deployed()
    assert observed.deployment
    del observed.deployment["metadata"]["annotations"]
    observed.upgrading_deployments = [stored(deployment_of())]
    [patch] = plan_inferenceservice(observed, NOW).actions
    assert isinstance(patch, Patch)
    observed.deployment["metadata"]["annotations"] = patch.patch["metadata"]["annotations"]
    assert plan_inferenceservice(observed, NOW).actions == []
    observed.owner["spec"]["maxModelLen"] = 512
    observed.spec = parse_object(InferenceService, observed.owner)
    assert [type(action) for action in plan_inferenceservice(observed, NOW).actions] == [Apply]


def test_new_adapters_need_no_turn_although_they_are_not_recorded() -> None:
    observed = deployed(now={"adapters": [{"name": "x", "claim": {"name": "new-claim"}}]})
    observed.upgrading_deployments = [stored(deployment_of())]
    actions = {
        action.resource: action for action in plan_inferenceservice(observed, NOW).actions if isinstance(action, Apply)
    }
    assert actions.keys() == {DEPLOYMENTS}
    assert not actions[DEPLOYMENTS].waits_for_turn


def test_nothing_is_rolled_out_for_what_others_add() -> None:
    observed = deployed()
    assert observed.deployment
    template = observed.deployment["spec"]["template"]
    template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "now"
    template["spec"]["containers"].append({"name": "istio-proxy", "image": "i"})
    observed.deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "3"
    assert APPLIED_ANNOTATION in observed.deployment["metadata"]["annotations"]
    assert plan_inferenceservice(observed, NOW).actions == []


def pending(gpus: str = "1") -> Object:
    found = pod("new", container="engine", scheduled=False)
    found["metadata"]["labels"] = {"pod-template-hash": "new"}
    found["spec"]["containers"][0]["resources"] = {"requests": {"amd.com/gpu": gpus}}
    words = "0/1 nodes are available: 1 Insufficient amd.com/gpu."
    found["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    ]
    return found


@pytest.mark.parametrize(
    ("recreates", "holds", "told"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_a_deadlocked_roll_out_is_reported_with_a_remedy(recreates: bool, holds: bool, told: bool) -> None:
    spec: Object = {"resources": {"gpus": 1}, "strategy": {"type": "Recreate" if recreates else "RollingUpdate"}}
    observed = deployed(**spec)
    assert observed.deployment
    observed.deployment["status"] |= {"replicas": 2}
    old = ready("old", **{"pod-template-hash": "old"})
    old["spec"]["nodeName"] = "gpu-1"
    if holds:
        old["spec"]["containers"][0]["resources"] = {"requests": {"amd.com/gpu": "1"}}
    observed.pods = [old, pending()]
    words = message(plan_inferenceservice(observed, NOW).status, "Progressing")
    assert ("Set spec.strategy.type: Recreate" in words) is told


# --- fields that a desired object no longer has ---


def older(child: Object) -> Object:
    """Return a child that was made from another desired object, and has all fields of the present one."""
    child = stored(child)
    assert APPLIED_ANNOTATION in child["metadata"]["annotations"]
    child["metadata"]["annotations"][APPLIED_ANNOTATION] = "another"
    return child


def test_each_child_of_a_service_that_was_made_from_another_object_is_written() -> None:
    spec: Object = {"engine": "vllm", "autoscaling": {"minReplicas": 2, "maxReplicas": 4, "targetConcurrency": 8}}
    owner = service_object(**spec)
    declared = parse_object(InferenceService, owner)
    assert isinstance(declared, InferenceService)
    observed = deployed(**spec)
    observed.deployment = older(deployment_of(**spec))
    observed.service = older(inferenceservice_children.build_service(owner))
    observed.adapters_config_map = older(inferenceservice_children.build_adapters_config_map(owner, _resolved(owner)))
    observed.budget = older(inferenceservice_children.build_budget(owner, 1))
    observed.autoscaler = older(inferenceservice_children.build_autoscaler(owner, declared))
    written = {action.resource.kind for action in plan_inferenceservice(observed, NOW).actions}
    assert written == {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "HorizontalPodAutoscaler"}


def test_each_child_of_a_job_that_was_made_from_another_object_is_written() -> None:
    owner = job_object(resources={"nodes": 2, "gpus": 1}, output={"claim": {"name": "shared"}})
    observed = observed_job(owner)
    assert isinstance(observed.spec, FineTuneJob)
    observed.config_map = older(children.build_config_map(owner))
    observed.service = older(children.build_service(owner, observed.spec))
    written = {action.resource.kind for action in plan_job(observed, NOW).actions if isinstance(action, Apply)}
    assert written == {"ConfigMap", "Service"}
