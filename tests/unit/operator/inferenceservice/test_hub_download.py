"""The init container that downloads a service's model: alone with the token, next to engines that work offline."""

from typing import Any

import pytest
from hone_api.containers import DOWNLOAD_PROGRAM, format_failure_line
from hone_api.reasons import (
    DISK_FULL,
    HUB_UNAUTHORIZED,
    HUB_UNREACHABLE,
    MODEL_NOT_FOUND,
    VOLUME_ACCESS_DENIED,
    HoneError,
    Reason,
)
from hone_operator.engines.hub_download import CONTAINER
from hone_operator.engines.resolve import list_needed_claims
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.objects.resources import DEPLOYMENTS, Object
from hone_operator.reconcile.plan import Apply
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
MODEL: Object = {"name": "org/base", "revision": "v1"}
TOKEN: Object = {"tokenSecret": {"name": "hub", "key": "read"}}
CACHE: Object = {"cache": {"claim": {"name": "models"}}}
ADAPTERS: Object = {"adapters": [{"name": "faq", "fineTuneJob": {"name": "faq"}}]}
REFERENCE = {"secretKeyRef": {"name": "hub", "key": "read"}}
# What users put into spec.pod, from which no token may come to the engine.
OWN_TOKENS: list[Object] = [
    {},
    {"env": [{"name": "HF_TOKEN", "value": "hf_plain"}]},
    {"env": [{"name": "HUGGING_FACE_HUB_TOKEN", "valueFrom": {"secretKeyRef": {"name": "own", "key": "token"}}}]},
    {"envFrom": [{"secretRef": {"name": "own"}}]},
]


def pod_of(**spec: Any) -> Object:
    template: Object = deployment_of(finished_job(), **{"model": MODEL, **spec})["spec"]["template"]["spec"]
    return template


def containers_of(found: Object) -> dict[str, Object]:
    return {one["name"]: one for one in [*found.get("initContainers", []), *found["containers"]]}


def environment(container: Object) -> Object:
    """Return the variables of a container, of which the last one of a name counts."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", [])}


def mounts(container: Object) -> Object:
    """Return whether each path is mounted read-only."""
    return {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("more", [TOKEN, CACHE, TOKEN | CACHE, TOKEN | CACHE | ADAPTERS])
@pytest.mark.parametrize("own", OWN_TOKENS)
def test_only_the_download_has_a_token(engine: str, more: Object, own: Object) -> None:
    containers = containers_of(pod_of(engine=engine, pod=own, **more))
    download = environment(containers.pop(CONTAINER))
    if "tokenSecret" in more:
        assert download["HF_TOKEN"] == REFERENCE
        assert "HUGGING_FACE_HUB_TOKEN" not in download
    assert containers["engine"]
    for container in containers.values():
        variables = environment(container)
        # A variable without a value hides the one of a Secret in envFrom.
        needed = "" if container.get("envFrom") else None
        assert [variables.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")] == [needed, needed]
        assert "hf_plain" not in str(container)
        assert "'hub'" not in str(container)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("more", [TOKEN, CACHE])
def test_the_engine_loads_offline_what_was_downloaded(engine: str, more: Object) -> None:
    own = {"env": [{"name": "HF_HUB_OFFLINE", "value": "0"}]}
    found = pod_of(engine=engine, pod=own, **more)
    containers = containers_of(found)
    assert next(iter(containers)) == CONTAINER, "it runs before the containers that read the model"
    for name in {"engine", "check"} & containers.keys():
        assert environment(containers[name])["HF_HUB_OFFLINE"] == "1"
        assert environment(containers[name])["HF_HOME"] == "/cache"
        assert environment(containers[name])["HF_MODULES_CACHE"] == "/tmp/modules", "the cache is read-only"
        assert mounts(containers[name])["/cache"]
        assert mounts(containers[name])["/downloaded"]
    arguments = " ".join(containers["engine"]["args"])
    if engine == "embedded":
        assert arguments.startswith("/downloaded/model --name org/base ")
    else:
        assert "/served/model" in arguments
        assert mounts(containers["place"])["/cache"]
        assert " ".join(containers["place"]["args"]).endswith("--model /downloaded/model")
    assert "--revision" not in arguments


def test_the_download_writes_what_the_engine_reads() -> None:
    containers = containers_of(pod_of(**TOKEN, **CACHE))
    download = containers[CONTAINER]
    assert download["command"] == ["python3", "-m", "hone_trainer.inputs.model_download"]
    assert download["args"] == ["org/base", "--link", "/downloaded/model", "--revision", "v1"]
    assert download["image"] == IMAGE
    assert mounts(download) == {"/cache": False, "/downloaded": False, "/tmp": False}
    names = {mount["mountPath"]: mount["name"] for mount in containers["engine"]["volumeMounts"]}
    assert {(mount["mountPath"], mount["name"]) for mount in download["volumeMounts"]} <= names.items()
    assert environment(download)["HF_HUB_CACHE"] == "/cache/hub"


def test_the_download_uses_the_mirror_the_proxy_and_the_certificates_of_the_pod() -> None:
    own = {
        "env": [
            {"name": "HF_ENDPOINT", "value": "https://hub.example.com"},
            {"name": "HF_HOME", "value": "/elsewhere"},
        ],
        "envFrom": [{"configMapRef": {"name": "proxy"}}],
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/own"}],
    }
    download = containers_of(pod_of(pod=own, **TOKEN))[CONTAINER]
    assert environment(download)["HF_ENDPOINT"] == "https://hub.example.com"
    assert environment(download)["HF_HOME"] == "/cache", "the engine looks there"
    assert download["envFrom"] == own["envFrom"]
    assert "/etc/ssl/own" in mounts(download)


def test_the_download_has_the_memory_of_the_engine_and_no_gpu() -> None:
    download = containers_of(pod_of(resources={"gpus": 2, "cpu": "4", "memory": "64Gi"}, **CACHE))[CONTAINER]
    assert download["resources"] == {"requests": {"cpu": "4", "memory": "64Gi"}, "limits": {"memory": "64Gi"}}


def test_the_cache_is_the_claim_or_a_volume_of_the_pod() -> None:
    def cache_of(found: Object) -> Object:
        [name] = [mount["name"] for mount in found["containers"][0]["volumeMounts"] if mount["mountPath"] == "/cache"]
        return next(dict(volume) for volume in found["volumes"] if volume["name"] == name)

    assert cache_of(pod_of(**CACHE))["persistentVolumeClaim"] == {"claimName": "models"}
    assert cache_of(pod_of(**TOKEN))["emptyDir"] == {}
    spec = observed_service(service_object(model=MODEL, **CACHE)).spec
    assert not isinstance(spec, HoneError)
    assert list_needed_claims(spec.spec, {}) == ["models"], "whether several nodes can mount it is checked"


@pytest.mark.parametrize("engine", ENGINES)
def test_without_both_fields_the_engine_downloads_itself(engine: str) -> None:
    own = {"env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "own", "key": "token"}}}]}
    found = pod_of(engine=engine, pod=own)
    containers = containers_of(found)
    assert CONTAINER not in containers
    assert not mounts(containers["engine"])["/cache"]
    assert "/downloaded" not in str(found)
    assert "HF_TOKEN" in environment(containers["engine"])
    assert "HF_HUB_OFFLINE" not in environment(containers["engine"])
    assert "org/base" in containers["engine"]["args"]


def test_adapters_of_jobs_are_served_on_a_downloaded_base() -> None:
    containers = containers_of(pod_of(engine="vllm", **TOKEN, **CACHE, **ADAPTERS))
    assert list(containers) == [CONTAINER, "place", "adapters", "check", "engine"]
    assert mounts(containers["adapters"])["/claims/faq"]
    assert "/claims/faq" not in mounts(containers[CONTAINER])


@pytest.mark.parametrize(
    "changed",
    [
        TOKEN | {"cache": {"claim": {"name": "others"}}},
        CACHE | {"tokenSecret": {"name": "hub", "key": "other"}},
        CACHE,
        TOKEN,
    ],
)
def test_a_change_of_either_field_replaces_the_engines_at_once(changed: Object) -> None:
    made = stored(deployment_of(model=MODEL, **TOKEN, **CACHE), replicas=1, updatedReplicas=1, readyReplicas=1)
    owner = service_object(model=MODEL, **changed)
    # Another service's roll-out, for whose end an upgrade of the operator would wait.
    other = stored(deployment_of(model=MODEL, **TOKEN))
    observed = observed_service(owner, deployment=made, service=service_child(owner), upgrading_deployments=[other])
    [applied] = [
        action
        for action in plan_inferenceservice(observed, NOW).actions
        if isinstance(action, Apply) and action.resource is DEPLOYMENTS
    ]
    assert applied.body["spec"]["template"] == deployment_of(model=MODEL, **changed)["spec"]["template"]
    assert not applied.waits_for_turn


def explained(*, spec: Object, **state: Any) -> Object:
    """Return the status of a service whose pod's download is in a state."""
    owner = service_object(model=MODEL, **spec)
    starting = pod("chat-1", container="engine")
    limits = {"limits": {"memory": "1Gi"}}
    starting["spec"]["initContainers"] = [{"name": CONTAINER, "image": IMAGE, "resources": limits}]
    waiting = {"waiting": {"reason": "PodInitializing"}}
    starting["status"] |= {
        "phase": "Pending",
        "initContainerStatuses": [{"name": CONTAINER, "restartCount": 2, **state}],
        "containerStatuses": [{"name": "engine", "restartCount": 0, "state": waiting}],
    }
    made = stored(deployment_of(model=MODEL, **spec))
    observed = observed_service(owner, deployment=made, service=service_child(owner), pods=[starting])
    return plan_inferenceservice(observed, NOW).status


def failed(reason: Reason, found: str) -> Object:
    line = format_failure_line(DOWNLOAD_PROGRAM, HoneError(reason, found))
    ended = {"terminated": terminated(reason.exit_code or 1, f"hone-download: org/base at c: downloading\n{line}\n")}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    return {"state": waiting, "lastState": ended}


@pytest.mark.parametrize(
    ("reason", "words", "health"),
    [
        (HUB_UNAUTHORIZED, "spec.tokenSecret", "Stalled"),
        (MODEL_NOT_FOUND, "Check spec.model", "Stalled"),
        (HUB_UNREACHABLE, "network and proxy", "Reconciling"),
    ],
)
@pytest.mark.parametrize("spec", [TOKEN, CACHE])
def test_why_the_download_fails_is_in_the_conditions(spec: Object, reason: Reason, words: str, health: str) -> None:
    status = explained(spec=spec, **failed(reason, "spec.model.name is org/base, and the hub said no"))
    assert conditions(status)["Progressing"] == ("False", reason.name)
    assert conditions(status)[health] == ("True", reason.name)
    assert "spec.model.name is org/base, and the hub said no" in message(status, "Progressing")
    assert words in message(status, "Progressing")


def test_a_full_cache_is_explained_with_its_volume() -> None:
    state = failed(DISK_FULL, "/cache/hub can't be written: 0 bytes of 1 GiB are free on its volume")
    said = message(explained(spec=CACHE, **state), "Progressing")
    assert "/cache is PersistentVolumeClaim models. Remove models" in said
    assert "kubectl patch pvc models --namespace team" in said
    assert "checkpoint" not in said
    said = message(explained(spec=TOKEN, **state), "Progressing")
    assert "/cache is on the disk of the pod's node. Set spec.cache.claim" in said


def test_a_cache_that_may_not_be_written_is_explained_with_its_claim() -> None:
    state = failed(VOLUME_ACCESS_DENIED, "/cache/hub: Permission denied, for user 65532 and groups 65532")
    status = explained(spec=CACHE, **state)
    assert conditions(status)["Progressing"] == ("False", "VolumeAccessDenied")
    assert "groups 65532; /cache is PersistentVolumeClaim models. Give the user" in message(status, "Progressing")


def test_a_download_without_enough_memory_is_explained_with_its_limit() -> None:
    killed = {"lastState": {"terminated": terminated(137, reason="OOMKilled")}}
    status = explained(spec=TOKEN, state={"waiting": {"reason": "CrashLoopBackOff"}}, **killed)
    assert conditions(status)["Progressing"] == ("False", "HostOutOfMemory")
    assert "memory limit of 1Gi. Raise spec.resources.memory" in message(status, "Progressing")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ('secret "hub" not found', "Create Secret hub"),
        ("couldn't find key read in Secret team/hub", "Add the key"),
    ],
)
def test_a_secret_that_is_missing_is_explained(found: str, words: str) -> None:
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": found}}
    status = explained(spec=TOKEN, state=waiting)
    assert conditions(status)["Progressing"] == ("False", "PodNotStarted")
    assert found in message(status, "Progressing")
    assert words in message(status, "Progressing")


def test_a_download_that_runs_is_reported_with_its_log() -> None:
    status = explained(spec=TOKEN, state={"running": {"startedAt": "2026-03-01T11:00:00Z"}})
    assert conditions(status)["Progressing"] == ("True", "RollingOut")
    assert "Pod chat-1 downloads the model" in message(status, "Progressing")
    assert "kubectl logs chat-1 --namespace team --container download" in message(status, "Progressing")


def test_a_finished_download_is_not_reported() -> None:
    status = explained(spec=TOKEN, state={"terminated": terminated(0, reason="Completed")})
    assert conditions(status)["Progressing"] == ("True", "RollingOut")
    assert "downloads" not in message(status, "Progressing")
