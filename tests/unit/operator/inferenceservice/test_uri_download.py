"""The init container that downloads a service's models and adapters from URIs, alone with their Secrets."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hone_api.containers import DOWNLOAD_PROGRAM, format_failure_line
from hone_api.reasons import DISK_FULL, STORE_UNAUTHORIZED, HoneError, Reason
from hone_operator.engines.uri_download import CONTAINER
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.objects.resources import Object
from observed import (
    IMAGE,
    NOW,
    conditions,
    finished_job,
    message,
    observed_service,
    pod,
    service_child,
    service_object,
    stored,
    terminated,
)
from service_states import deployment_of

ENGINES = ["vllm", "sglang", "tgi", "embedded"]
DIGEST = f"sha256:{'a' * 64}"
MODEL: Object = {
    "uri": "oci://registry.example.com/models/faq:v1",
    "secret": {"name": "login"},
    "caBundle": {"configMap": {"name": "ca"}},
    "digest": DIGEST,
}
ADAPTER: Object = {"name": "support", "uri": "s3://models/support/", "secret": {"name": "reader"}}
CACHE: Object = {"cache": {"claim": {"name": "models"}}}


def pod_of(*jobs: Object, **spec: Any) -> Object:
    template: Object = deployment_of(*jobs, **{"model": MODEL, **spec})["spec"]["template"]["spec"]
    return template


def containers_of(found: Object) -> dict[str, Object]:
    return {one["name"]: one for one in [*found.get("initContainers", []), *found["containers"]]}


def mounts(container: Object) -> Object:
    """Return whether each path is mounted read-only."""
    return {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}


def requests_of(container: Object) -> list[Object]:
    arguments = container["args"]
    return [json.loads(text) for option, text in pairwise(arguments) if option == "--download"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("more", [{}, CACHE])
def test_only_the_download_has_the_secrets(engine: str, more: Object) -> None:
    containers = containers_of(pod_of(engine=engine, adapters=[ADAPTER], **more))
    assert next(iter(containers)) == CONTAINER, "it runs before the containers that read the model"
    download, hot = containers.pop(CONTAINER), containers.pop("download-adapters", None)
    shared = {"/cache": False, "/downloaded": False, "/tmp": False}
    of_model, of_adapter = {"/secrets/login": True, "/configmaps/ca": True}, {"/secrets/reader": True}
    if hot:
        assert mounts(download) == shared | of_model
        assert mounts(hot) == shared | of_adapter | {"/etc/hone/adapters": True}
    else:
        assert mounts(download) == shared | of_model | of_adapter
    assert containers["engine"]
    for container in containers.values():
        assert "secret" not in str(container.get("volumeMounts", []))
        assert "login" not in str(container)
        assert "reader" not in str(container)


def test_the_download_gets_the_sources_and_where_to_link_them() -> None:
    download = containers_of(pod_of(engine="sglang", adapters=[ADAPTER]))[CONTAINER]
    assert download["image"] == IMAGE
    assert download["command"] == ["python3", "-m", "hone_trainer.models.uri_download"]
    assert download["args"][:6] == [
        "--secret",
        "login=/secrets/login",
        "--secret",
        "reader=/secrets/reader",
        "--config-map",
        "ca=/configmaps/ca",
    ]
    assert requests_of(download) == [
        {
            "field": "spec.model",
            "link": "/downloaded/model",
            "source": MODEL | {"caBundle": {"configMap": {"name": "ca", "key": "ca.crt"}}},
        },
        {
            "field": "spec.adapters[0]",
            "link": "/downloaded/adapters/support",
            "source": {"uri": ADAPTER["uri"], "secret": ADAPTER["secret"]},
        },
    ]


def test_the_kubelet_expands_nothing_in_a_uri() -> None:
    download = containers_of(pod_of(model={"uri": "s3://models/$(HOME)/x"}))[CONTAINER]
    assert "$" not in str(download["args"])
    assert requests_of(download)[0]["source"]["uri"] == "s3://models/$(HOME)/x"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_loads_offline_what_was_downloaded(engine: str) -> None:
    found = pod_of(engine=engine, **CACHE)
    containers = containers_of(found)
    variables = {one["name"]: one.get("value") for one in containers["engine"]["env"]}
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert mounts(containers["engine"])["/cache"], "read-only"
    assert mounts(containers["engine"])["/downloaded"]
    arguments = " ".join(containers["engine"]["args"])
    if engine == "embedded":
        assert arguments.startswith(f"/downloaded/model --name faq --expect faq={DIGEST}")
    else:
        assert "/served/model-aaaaaaaaaaaa" in arguments
        placed = " ".join(containers["place"]["args"])
        assert placed.endswith(f"--model /downloaded/model --expect-model {DIGEST}")
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in found["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims == ["models"]


def test_adapters_of_uris_are_served_on_a_base_of_the_hub_or_a_job() -> None:
    on_hub = containers_of(pod_of(engine="vllm", model={"name": "org/base"}, adapters=[ADAPTER]))
    assert list(on_hub) == ["download-adapters", "adapters", "check", "engine"]
    assert not mounts(on_hub["engine"])["/cache"], "the engine downloads its model into the same volume"
    assert mounts(on_hub["adapters"])["/cache"], "it verifies the adapters, and writes nothing"
    placed = containers_of(pod_of(engine="sglang", model={"name": "org/base"}, adapters=[ADAPTER]))
    assert mounts(placed["place"])["/cache"]
    gated = {"model": {"name": "org/base"}, "tokenSecret": {"name": "hub", "key": "token"}, **CACHE}
    for engine, container in (("vllm", "download-adapters"), ("sglang", CONTAINER)):
        names = list(containers_of(pod_of(engine=engine, adapters=[ADAPTER], **gated)))
        assert names[0] == "download"
        assert container in names
    of_job = {"model": {"fineTuneJob": {"name": "faq"}}, "adapters": [ADAPTER]}
    assert "/downloaded" in mounts(containers_of(pod_of(finished_job(), **of_job))["engine"])


def test_another_digest_or_uri_replaces_the_engines() -> None:
    first = deployment_of(engine="tgi", model=MODEL, adapters=[ADAPTER])["spec"]["template"]
    for changed in (
        {"model": MODEL | {"uri": "oci://registry.example.com/models/faq:v2"}},
        {"model": MODEL | {"digest": f"sha256:{'b' * 64}"}},
        {"adapters": [ADAPTER | {"uri": "s3://models/other/"}]},
    ):
        spec = {"engine": "tgi", "model": MODEL, "adapters": [ADAPTER], **changed}
        assert deployment_of(**spec)["spec"]["template"] != first


def explained(spec: Object, reason: Reason, found: str) -> Object:
    """Return the status of a service whose pod's download has failed."""
    owner = service_object(model=MODEL, **spec)
    starting = pod("chat-1", container="engine")
    starting["spec"]["initContainers"] = [{"name": CONTAINER, "image": IMAGE}]
    line = format_failure_line(DOWNLOAD_PROGRAM, HoneError(reason, found))
    status = {
        "name": CONTAINER,
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": terminated(reason.exit_code or 1, line)},
    }
    waiting = {"waiting": {"reason": "PodInitializing"}}
    starting["status"] |= {
        "phase": "Pending",
        "initContainerStatuses": [status],
        "containerStatuses": [{"name": "engine", "restartCount": 0, "state": waiting}],
    }
    made = stored(deployment_of(model=MODEL, **spec))
    observed = observed_service(owner, deployment=made, service=service_child(owner), pods=[starting])
    return plan_inferenceservice(observed, NOW).status


def test_why_the_download_fails_is_in_the_conditions() -> None:
    status = explained({}, STORE_UNAUTHORIZED, "spec.model.uri is oci://…, and the server refused access")
    assert conditions(status)["Progressing"] == ("False", "StoreUnauthorized")
    assert "spec.model.secret" in message(status, "Progressing")
    full = message(explained(CACHE, DISK_FULL, "/cache can't be written"), "Progressing")
    assert "/cache is PersistentVolumeClaim models. Remove models" in full
