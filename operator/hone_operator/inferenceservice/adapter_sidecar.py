"""The adapter sidecar, which loads and unloads adapters in a running engine.

In: the resolved adapters, and the sidecars' reports from the last polls. Out: the ConfigMap with the desired adapters,
the sidecar's container, and which models are loaded. The sidecar runs hone_server.adapter_sidecar.
"""

from datetime import datetime, timedelta
from typing import Any

from hone_api.common import CacheOptions
from hone_api.containers import ADAPTER_SIDECAR, build_module_command
from hone_api.inferenceservices.adapter_sync import AdapterSyncReport, WantedAdapter, WantedAdapters, make_revision
from hone_api.inferenceservices.spec import InferenceServiceSpec, ModelStatus
from hone_api.io.listening import join_address
from hone_api.layout import (
    ADAPTER_SIDECAR_PORT,
    ENGINE_PORT,
    POD_ADAPTERS,
    SIDECAR_READY_PATH,
    SIDECAR_REPORT_PATH,
    SIDECAR_STARTED_PATH,
    make_link_name,
)
from hone_api.reasons import CATALOGUE, ENGINE_FAILED, HoneError
from pydantic import ValidationError

from hone_operator.engines import hub_download
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.inferenceservice import adapter_downloads
from hone_operator.objects.child_names import make_adapters_config_map_name
from hone_operator.objects.resources import PODS, Object
from hone_operator.objects.timestamps import format_timestamp, has_lasted, parse_untrusted_time
from hone_operator.pods.pod_spec import POD_API_KEY, Volumes, build_container_security
from hone_operator.reconcile.plan import Patch

CONTAINER = "adapters"
NUDGE_ANNOTATION = "hone.dev/adapters"
# A nudge is repeated after this time: the kubelet may not have known of the ConfigMap's change at the first one.
NUDGE_INTERVAL = timedelta(seconds=5)
MAX_START_SECONDS = 3600


def build_config_data(resolved: ResolvedModels) -> dict[str, str]:
    """Return the ConfigMap's data: the adapters that every engine of the service should have."""
    revisions = {download.link: download.revision for download in resolved.uri_downloads.adapters}
    adapters = [
        WantedAdapter(
            name=adapter.name, folder=adapter.folder, digest=adapter.digest, download=revisions.get(adapter.folder)
        )
        for adapter in resolved.all_adapters
    ]
    content = WantedAdapters(base=resolved.base_name, base_revision=resolved.base_revision, adapters=adapters)
    return {POD_ADAPTERS.rpartition("/")[2]: content.model_dump_json(by_alias=True, exclude_none=True, indent=2)}


def compute_revision(resolved: ResolvedModels) -> str:
    [text] = build_config_data(resolved).values()
    return make_revision(text)


def build_volumes(name: str) -> Volumes:
    """Return the volume with the list of desired adapters. It is a folder: the kubelet never updates a single file."""
    found = Volumes()
    found.add_config_map("adapters", make_adapters_config_map_name(name), POD_ADAPTERS.rpartition("/")[0])
    return found


def build_sidecar_container(
    spec: InferenceServiceSpec, largest_rank: int | None, image: str, resources: Object, mounts: list[Object]
) -> Object:
    """Return the native sidecar, which starts before the engine and runs as long as it."""
    arguments = ["--max-rank", str(largest_rank)] if largest_rank else []
    if spec.api_key_secret:
        arguments += ["--api-key-file", POD_API_KEY]
    return {
        "name": CONTAINER,
        "restartPolicy": "Always",
        "image": image,
        "command": build_module_command(ADAPTER_SIDECAR),
        "args": arguments,
        "ports": [{"name": "adapters", "containerPort": ADAPTER_SIDECAR_PORT}],
        "resources": resources,
        "startupProbe": _build_probe(SIDECAR_STARTED_PATH, 1, MAX_START_SECONDS),
        "readinessProbe": _build_probe(SIDECAR_READY_PATH, 2, 1),
        "volumeMounts": mounts,
        "securityContext": build_container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _build_probe(path: str, period_seconds: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "adapters"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def has_adapter_sidecar(pod: Object) -> bool:
    return any(one["name"] == CONTAINER for one in pod["spec"].get("initContainers") or [])


def build_poll_urls(pods: list[Object], *, needs_key: bool) -> dict[str, str]:
    """Return the URL to poll, by pod uid: the sidecar's, else the engine's list of models where it needs no key."""
    found = {}
    for pod in pods:
        if (address := pod["status"].get("podIP")) and (has_adapter_sidecar(pod) or not needs_key):
            port, path = (
                (ADAPTER_SIDECAR_PORT, SIDECAR_REPORT_PATH) if has_adapter_sidecar(pod) else (ENGINE_PORT, "/v1/models")
            )
            found[pod["metadata"]["uid"]] = f"http://{join_address(address, port)}{path}"
    return found


def parse_report(answer: Any) -> AdapterSyncReport | None:
    try:
        return AdapterSyncReport.model_validate(answer)
    except ValidationError:
        return None


def plan_nudges(pods: list[Object], answers: dict[str, Any], revision: str, now: datetime) -> list[Patch]:
    """Return patches that make kubelets update the ConfigMaps of pods at once, instead of within about a minute.

    A change of a pod's annotations has that effect.
    """
    found = []
    for pod in pods:
        metadata = pod["metadata"]
        report = parse_report(answers.get(metadata["uid"]))
        if report is None or report.revision == revision or metadata.get("deletionTimestamp"):
            continue
        nudged, _, at = (metadata.get("annotations") or {}).get(NUDGE_ANNOTATION, "").partition(" ")
        moment = parse_untrusted_time(at)
        if nudged == revision and moment and not has_lasted(moment, NUDGE_INTERVAL, now):
            continue
        annotations = {NUDGE_ANNOTATION: f"{revision} {format_timestamp(now)}"}
        found.append(Patch(PODS, metadata["name"], {"metadata": {"annotations": annotations}}))
    return found


def is_model_loaded(model: ModelStatus, answer: Any) -> bool:
    """Return whether the engine itself lists the model, with the desired digest."""
    if report := parse_report(answer):
        state = report.adapters.get(model.name)
        if state is None:
            return model.kind != "adapter" and model.name in report.models
        return state.loaded and model.digest in (None, state.digest)
    try:
        entry = next((entry for entry in answer["data"] if entry["id"] == model.name), None)
    except (TypeError, KeyError):
        return False
    if entry is None or model.digest is None or entry.get("digest") == model.digest:
        return entry is not None
    return str(entry.get("root", "")).endswith(make_link_name("", model.digest))


def find_digest(model: ModelStatus, answers: list[Any]) -> str | None:
    """Return the model's digest. Of an adapter on a claim only the sidecars know it."""
    states = [report.adapters.get(model.name) for answer in answers if (report := parse_report(answer))]
    return model.digest or next((state.digest for state in states if state and state.digest), None)


def find_adapter_error(
    pods: list[Object], answers: dict[str, Any], revision: str, cache: CacheOptions | None
) -> HoneError | None:
    """Return why an adapter of this revision is not loaded; None without a failure. `cache`: that of downloads."""
    for pod in pods:
        report = parse_report(answers.get(pod["metadata"]["uid"]))
        if report is None or report.revision != revision:
            continue
        for state in report.adapters.values():
            if error := state.error:
                found = HoneError(CATALOGUE.get(error.reason, ENGINE_FAILED), error.message, remedy=error.remedy)
                claim = cache.claim.name if cache else None
                return hub_download.explain_failure(found, claim, pod["metadata"]["namespace"])
    return None


def describe_downloads(pods: list[Object], answers: dict[str, Any]) -> str:
    """Return a sentence about a pod that downloads adapters now; an empty text without one."""
    for pod in pods:
        report = parse_report(answers.get(pod["metadata"]["uid"]))
        if report and (names := sorted(name for name, state in report.adapters.items() if state.downloading)):
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            log = f"kubectl logs {name} --namespace {namespace} --container {adapter_downloads.CONTAINER}"
            return f" Pod {name} downloads {', '.join(names)}; how far it is: {log}"
    return ""


def count_outdated_engines(pods: list[Object], answers: dict[str, Any], revision: str) -> int:
    """Return how many engines don't have the adapters of this revision yet."""
    reports = [found for pod in pods if (found := parse_report(answers.get(pod["metadata"]["uid"])))]
    return sum(one.revision != revision or not all(state.loaded for state in one.adapters.values()) for one in reports)
