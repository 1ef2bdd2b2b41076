"""Adapters at URIs of running engines: which changes replace pods, and which downloads are requested."""

import copy
import json
from typing import Any

import pytest
from hone_api.inferenceservices.adapter_downloads import RequestedDownloads
from hone_api.inferenceservices.adapter_sync import WantedAdapters, make_revision
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.objects.resources import CONFIGMAPS, DEPLOYMENTS, Object
from hone_operator.reconcile.plan import Apply
from hypothesis import given
from hypothesis import strategies as st
from observed import (
    NOW,
    conditions,
    finished_job,
    message,
    observed_service,
    pod,
    service_child,
    service_object,
    stored,
)
from service_states import applied

CONTAINER = "download-adapters"
MODEL: Object = {"uri": "oci://registry.example.com/models/base:v1", "secret": {"name": "of-model"}}
FAQ: Object = {"name": "faq", "uri": "oci://registry.example.com/adapters/faq:v1", "secret": {"name": "login"}}
OTHER: Object = FAQ | {"name": "other", "uri": "s3://models/other/", "region": "eu-west-1"}
BARE: Object = {"name": "bare", "uri": "https://example.com/bare/"}
CA: Object = {"configMap": {"name": "ca"}}
CHANGES: list[tuple[list[Object], bool]] = [
    ([FAQ, OTHER], False),
    ([OTHER], False),
    ([FAQ | {"uri": "oci://registry.example.com/adapters/faq:v2"}], False),
    ([FAQ | {"digest": f"sha256:{'a' * 64}"}], False),
    ([FAQ | {"endpoint": "http://registry.example.com:5000"}], False),
    ([BARE], False),  # the Secret of the removed adapter stays mounted
    ([FAQ, OTHER | {"secret": {"name": "reader"}}], True),
    ([FAQ | {"caBundle": CA}], True),
    ([], True),
]


@pytest.fixture(params=["vllm", "embedded"])
def engine(request: pytest.FixtureRequest) -> str:
    """Return an engine that loads adapters while it runs."""
    return str(request.param)


def containers_of(**spec: Any) -> dict[str, Object]:
    template = applied(**{"model": MODEL, **spec})["Deployment"]["spec"]["template"]["spec"]
    return {one["name"]: one for one in [*template["initContainers"], *template["containers"]]}


def running(adapters: list[Object], **spec: Any) -> ObservedInferenceService:
    """Return a service whose only engine is ready, and that has these adapters."""
    spec = {"model": MODEL, "adapters": adapters, **spec}
    owner, made = service_object(**spec), applied(**spec)
    deployment = stored(made["Deployment"], replicas=1, updatedReplicas=1, observedGeneration=1)
    deployment["metadata"]["generation"] = 1
    engine = pod("p1", container="engine", running={"startedAt": "2026-03-01T11:00:00Z"})
    engine["status"]["conditions"].append({"type": "Ready", "status": "True"})
    engine["spec"]["initContainers"] = [{"name": "adapters", "image": "x"}]
    more = {"deployment": deployment, "adapters_config_map": stored(made["ConfigMap"]), "pods": [engine]}
    return observed_service(owner, service=service_child(owner), **more)


def change(observed: ObservedInferenceService, adapters: list[Object]) -> list[str]:
    """Give the service other adapters, apply what is planned, and return the kinds."""
    spec = observed.owner["spec"] | {"adapters": adapters}
    observed.owner = service_object(**spec)
    observed = observed_service(
        observed.owner,
        service=observed.service,
        deployment=observed.deployment,
        adapters_config_map=observed.adapters_config_map,
        pods=observed.pods,
    )
    actions = [action for action in plan_inferenceservice(observed, NOW).actions if isinstance(action, Apply)]
    for action in actions:
        if action.resource is DEPLOYMENTS:
            observed.deployment = stored(action.body, **(observed.deployment or {}).get("status", {}))
        elif action.resource is CONFIGMAPS:
            observed.adapters_config_map = stored(action.body)
    return [action.resource.kind for action in actions]


@pytest.mark.parametrize(("adapters", "rolls"), CHANGES)
def test_which_changes_of_adapters_at_uris_replace_the_pods(engine: str, adapters: list[Object], rolls: bool) -> None:
    kinds = change(running([FAQ], engine=engine), adapters)
    assert ("Deployment" in kinds) is rolls
    assert ("ConfigMap" in kinds) is bool(adapters)


def test_the_first_adapter_at_a_uri_replaces_the_pods(engine: str) -> None:
    other = {"name": "mounted", "claim": {"name": "c", "path": "p"}}
    assert change(running([other], engine=engine), [other, FAQ]) == ["ConfigMap", "Deployment"]
    assert change(running([other, FAQ], engine=engine), [other]) == ["ConfigMap", "Deployment"]


def test_the_container_names_no_adapter(engine: str) -> None:
    found = containers_of(engine=engine, adapters=[FAQ])[CONTAINER]
    assert found["restartPolicy"] == "Always"
    assert found["command"] == ["python3", "-m", "hone_trainer.models.adapter_downloads"]
    assert "args" not in found
    for adapter in (FAQ | {"name": "x"}, FAQ | {"uri": "oci://other.example.com/a:b"}):
        assert containers_of(engine=engine, adapters=[adapter]) == containers_of(engine=engine, adapters=[FAQ])


def test_its_memory_does_not_grow_with_that_of_the_engine(engine: str) -> None:
    found = containers_of(engine=engine, adapters=[FAQ], resources={"memory": "400Gi"})[CONTAINER]
    assert found["resources"]["limits"]["memory"] == "256Mi"


def test_a_proxy_applies_to_it_and_its_cache_is_the_claim(engine: str) -> None:
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}
    environment = {"env": [proxy, {"name": "HF_HOME", "value": "/elsewhere"}]}
    cache = {"claim": {"name": "models"}}
    found = containers_of(engine=engine, adapters=[FAQ], pod=environment, cache=cache)[CONTAINER]
    assert proxy in found["env"]
    assert [one["value"] for one in found["env"] if one["name"] == "HF_HOME"] == ["/cache"]


def test_secrets_of_adapters_may_be_deleted_after_the_adapters() -> None:
    """One that stays mounted must not keep a later pod from starting."""
    template = applied(model=MODEL, adapters=[FAQ | {"caBundle": CA}])["Deployment"]["spec"]["template"]["spec"]
    optional = {one["name"]: one for one in template["volumes"] if one["name"].startswith("adapter-")}
    assert sorted(source.get("secretName") or source["name"] for source in map(source_of, optional.values())) == [
        "ca",
        "login",
    ]
    assert all(source_of(volume)["optional"] for volume in optional.values())


def source_of(volume: Object) -> Object:
    return dict(volume.get("secret") or volume["configMap"])


def test_the_links_that_are_made_are_those_that_are_waited_for(engine: str) -> None:
    job = finished_job(model={"uri": MODEL["uri"]})
    data = applied(job, engine=engine, model=MODEL, adapters=[BARE, FAQ])["ConfigMap"]["data"]
    wanted = WantedAdapters.model_validate_json(data["adapters.json"]).adapters
    requested = RequestedDownloads.model_validate_json(data["downloads.json"]).downloads
    assert [adapter.path for adapter in wanted] == [download.link for download in requested]
    assert [download.field for download in requested] == ["spec.adapters[0]", "spec.adapters[1]"]
    assert requested[1].source.to_wire() == {key: FAQ[key] for key in ("uri", "secret")}
    assert {str(adapter.folder) for adapter in wanted} == {"/downloaded/adapters/bare", "/downloaded/adapters/faq"}


def test_services_without_adapters_at_uris_keep_their_config_map() -> None:
    data = applied(model=MODEL, adapters=[{"name": "a", "claim": {"name": "c", "path": "p"}}])["ConfigMap"]["data"]
    assert list(data) == ["adapters.json"]
    assert "download" not in data["adapters.json"]


def reported(observed: ObservedInferenceService, **state: Any) -> Object:
    """Return the status of the service whose sidecar reports this of its adapter."""
    assert observed.adapters_config_map
    revision = make_revision(observed.adapters_config_map["data"]["adapters.json"])
    observed.answers = {
        "uid-p1": {"revision": revision, "models": ["base"], "adapters": {"faq": {"loaded": False, **state}}}
    }
    status: Object = plan_inferenceservice(observed, NOW).status
    return status


def test_a_download_is_reported_with_the_command_for_its_log() -> None:
    status = reported(running([FAQ]), downloading=True)
    assert conditions(status)["Progressing"] == ("True", "LoadingAdapters")
    log = "kubectl logs p1 --namespace team --container download-adapters"
    assert f"Pod p1 downloads faq; how far it is: {log}" in message(status, "Progressing")
    starting = running([FAQ])
    starting.pods[0]["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    assert "Pod p1 downloads faq" in message(reported(starting, downloading=True), "Progressing")


def test_why_a_download_fails_is_in_the_conditions() -> None:
    error = {"reason": "StoreUnauthorized", "message": "spec.adapters[0].uri is oci://…", "remedy": "Do this."}
    status = reported(running([FAQ]), error=error)
    assert conditions(status)["Progressing"] == ("False", "StoreUnauthorized")
    assert message(status, "Progressing") == "spec.adapters[0].uri is oci://…. Do this."
    full = {"reason": "DiskFull", "message": "/cache can't be written", "remedy": "Do this."}
    cached = reported(running([FAQ], cache={"claim": {"name": "models"}}), error=full)
    assert "/cache is PersistentVolumeClaim models. Remove models" in message(cached, "Progressing")


def test_pods_of_an_earlier_version_keep_their_adapters_until_they_are_replaced() -> None:
    """Their sidecar knows no downloads: the adapter that it wants must be the one that it has loaded."""
    data = applied(model=MODEL, adapters=[FAQ])["ConfigMap"]["data"]["adapters.json"]
    [adapter] = json.loads(data)["adapters"]
    adapter.pop("download")
    assert adapter == {"name": "faq", "folder": "/downloaded/adapters/faq"}


ADAPTERS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["a", "b", "c"]),
            "uri": st.sampled_from(["s3://models/1/", "oci://r.example.com/m:2"]),
        },
        optional={
            "secret": st.sampled_from([{"name": "x"}, {"name": "y"}]),
            "caBundle": st.just(CA),
            "digest": st.just(f"sha256:{'b' * 64}"),
        },
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda adapter: adapter["name"],
)


@given(st.lists(ADAPTERS, min_size=2, max_size=5))
def test_pods_mount_what_their_adapters_need_after_any_changes(lists: list[list[Object]]) -> None:
    """Pods are replaced only for an input that they don't mount, and the ConfigMap is that of a new service."""
    spec: Object = {"model": {"name": "org/base"}, "engine": "embedded"}
    made = applied(**spec, adapters=lists[0])
    for adapters in lists[1:]:
        mounted = mounts_of(made["Deployment"])
        observed = running_of(made, **spec, adapters=adapters)
        actions = [action for action in plan_inferenceservice(observed, NOW).actions if isinstance(action, Apply)]
        made = made | {action.resource.kind: action.body for action in actions}
        new = applied(**spec, adapters=adapters)
        assert made["ConfigMap"]["data"] == new["ConfigMap"]["data"]
        assert mounts_of(new["Deployment"]) <= mounts_of(made["Deployment"])
        is_replaced = "Deployment" in [action.resource.kind for action in actions]
        assert is_replaced is (not mounts_of(new["Deployment"]) <= mounted)


def running_of(made: dict[str, Object], **spec: Any) -> ObservedInferenceService:
    owner = service_object(**spec)
    made = copy.deepcopy(made)
    return observed_service(
        owner,
        service=service_child(owner),
        deployment=stored(made["Deployment"]),
        adapters_config_map=stored(made["ConfigMap"]),
    )


def mounts_of(deployment: Object) -> set[str]:
    [found] = [one for one in deployment["spec"]["template"]["spec"]["initContainers"] if one["name"] == CONTAINER]
    return {mount["mountPath"] for mount in found["volumeMounts"]}


def test_the_revision_of_the_list_changes_with_a_source() -> None:
    revisions = set()
    for adapter in (FAQ, FAQ | {"digest": f"sha256:{'a' * 64}"}, FAQ | {"uri": "s3://models/faq/"}):
        data = applied(model=MODEL, adapters=[adapter])["ConfigMap"]["data"]
        revisions.add(make_revision(data["adapters.json"]))
    assert len(revisions) == 3
