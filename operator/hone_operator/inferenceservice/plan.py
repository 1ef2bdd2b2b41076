"""Plan a pass over an InferenceService: a pure function from the snapshot to actions and the new status.

In: ObservedInferenceService, from snapshots/reader.py. Out: a Plan. engines/resolve.py finds what the engines load,
compatibility.py checks it, child_actions.py plans the children; this module reports what the engines do. Next:
controller.py carries out the plan.
"""

from datetime import datetime
from typing import Any

from hone_api.containers import find_failures
from hone_api.inferenceservices.spec import InferenceService, ModelStatus
from hone_api.reasons import CATALOGUE, CLAIM_NOT_SHARED, ENGINE_FAILED, ENGINE_SILENT, INVALID_SPEC, HoneError
from pydantic import ValidationError

from hone_operator.diagnosis import containers, liveness, pod_state
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.pod_failure import explain_out_of_memory
from hone_operator.engines import artifact_links, hub_download, key_guard, uri_download
from hone_operator.engines.gpu_errors import explain_no_gpu
from hone_operator.engines.registry import select_engine
from hone_operator.engines.resolve import WAITING_FOR_JOB, ArtifactNotReady, ResolvedModels, resolve_models
from hone_operator.engines.root_images import explain_root
from hone_operator.inferenceservice import (
    adapter_downloads,
    adapter_sidecar,
    autoscaling,
    child_actions,
    children,
    compatibility,
    rollouts,
)
from hone_operator.inferenceservice.rollout_deadlock import explain_deadlock
from hone_operator.inferenceservice.silent_engines import explain_silence, find_unanswered_pods
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_levels import explain_relaxations
from hone_operator.reconcile import readiness
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.ownership import explain_leaving, explain_name_conflict, is_leaving, is_own
from hone_operator.reconcile.plan import Plan
from hone_operator.reconcile.sync_failures import SYNCED, set_synced

CONDITION_TYPES = ("Accepted", "ArtifactsResolved", "Progressing", "Available")
CONTAINERS = (
    hub_download.CONTAINER,
    uri_download.CONTAINER,
    artifact_links.CONTAINER,
    adapter_downloads.CONTAINER,
    adapter_sidecar.CONTAINER,
    key_guard.CONTAINER,
    children.CHECK_CONTAINER,
    children.CONTAINER,
)
MIN_REPORTED_RESTARTS = 2
RECHECK_SECONDS = 20.0
CHILDREN_LEAVING = "ChildrenLeaving"
QUIET_REASONS = frozenset(
    {"Accepted", "ArtifactsNotResolved", "NoEngineReady", "Resolved", "ClaimsShared", "NotLookedYet", CHILDREN_LEAVING}
)
DELETION_RECHECK_SECONDS = 2.0
MAX_LOG_CHARACTERS = 2000


def plan_inferenceservice(observed: ObservedInferenceService, now: datetime) -> Plan:
    """Return the plan of one pass over the object."""
    owner = observed.owner
    before: Object = owner.get("status") or {}
    if owner["metadata"].get("deletionTimestamp"):
        return Plan(status=before)
    conditions = Conditions(owner, now)
    result = Plan(status={**before, "observedGeneration": owner["metadata"].get("generation")})
    children, declared = observed.children, observed.spec
    types: tuple[str, ...] = CONDITION_TYPES
    if isinstance(declared, HoneError):
        _set_refused(observed, HoneError(INVALID_SPEC, declared.message, remedy=declared.remedy), conditions, result)
    elif any(is_leaving(child, owner) for child in children):
        result.requeue_after_seconds = DELETION_RECHECK_SECONDS
        if error := explain_leaving(children, owner, now):
            _set_refused(observed, error, conditions, result)
            result.requeue_after_seconds = RECHECK_SECONDS
        else:
            _set_engines(observed, None, conditions, result)
            conditions.set(
                "Progressing", True, CHILDREN_LEAVING, "A child is being deleted, and made again when it is gone."
            )
    elif error := explain_name_conflict(children, owner):
        _set_refused(observed, error, conditions, result)
        result.requeue_after_seconds = RECHECK_SECONDS
    elif error := explain_relaxations(declared.spec.pod, observed.images.level) or _explain_root_image(
        observed, declared
    ):
        _set_refused(observed, error, conditions, result)
    else:
        conditions.set("Accepted", True, "Accepted", "The object keeps the contract.")
        resolved = _resolve_and_check(observed, declared, conditions)
        turn = child_actions.plan_children(observed, declared, resolved, now, result)
        most = autoscaling.get_max_replicas(declared.spec)
        if most > 1 and resolved:
            types = (*types, readiness.SPREADABLE)
            _set_spreadable(most, observed.claims, conditions)
        if declared.spec.autoscaling:
            types = (*types, autoscaling.SCALING_CONDITION)
            autoscaling.set_scaling_condition(observed.autoscaler, conditions)
        ready = _set_engines(observed, resolved, conditions, result)
        _set_progressing(observed, declared, resolved, len(ready), now, conditions, result)
        if turn and conditions.get_reason_and_message("Progressing")[0] == "Complete":
            conditions.set("Progressing", False, "UpgradeWaiting", turn)
            result.requeue_after_seconds = RECHECK_SECONDS
    set_synced(observed.sync_failures, conditions)
    types = (*types, SYNCED)
    health = readiness.judge_service(result.status.get("models") or [], conditions)
    readiness.set_conditions(conditions, health)
    result.status["conditions"] = conditions.to_list(*types, *readiness.READINESS_TYPES)
    result.events = conditions.build_events(*types, quiet=QUIET_REASONS)
    return result


def _resolve_and_check(
    observed: ObservedInferenceService, declared: InferenceService, conditions: Conditions
) -> ResolvedModels | None:
    try:
        resolved = resolve_models(declared.spec, observed.jobs)
        chosen = select_engine(declared.spec)
        image = declared.spec.pod.image or observed.images.get_engine_image(chosen.name)
        compatibility.check_compatibility(chosen, declared.spec, resolved, image, observed.gpu)
    except ArtifactNotReady as waiting:
        conditions.set("ArtifactsResolved", False, WAITING_FOR_JOB, str(waiting))
        return None
    except HoneError as error:
        conditions.set("ArtifactsResolved", False, error.reason.name, error.format_message())
        return None
    digests = ", ".join(f"{model.name} {model.digest}" for model in resolved.models if model.digest)
    conditions.set("ArtifactsResolved", True, "Resolved", digests or "No artifact of a FineTuneJob is asked for.")
    return resolved


def _explain_root_image(observed: ObservedInferenceService, declared: InferenceService) -> HoneError | None:
    """Return why the engine's image can't start where pods must not run as root; None where it can."""
    image = declared.spec.pod.image or observed.images.get_engine_image(select_engine(declared.spec).name)
    return explain_root(declared.spec.pod, image, observed.images.level)


def _set_spreadable(replicas: int, claims: list[Object], conditions: Conditions) -> None:
    """Report whether the engines can run on several nodes, before one of them waits for a volume."""
    for claim in claims:
        if not child_actions.is_single_node_claim(claim):
            continue
        modes = child_actions.get_access_modes(claim)
        where = "one pod alone" if modes == ["ReadWriteOncePod"] else "the pods of one node alone"
        message = (
            f"PersistentVolumeClaim {claim['metadata']['name']} has accessModes [{', '.join(modes)}]: {where} can "
            f"mount it, and there may be {replicas} engines"
        )
        error = HoneError(CLAIM_NOT_SHARED, message)
        conditions.set(readiness.SPREADABLE, False, error.reason.name, error.format_message())
        return
    conditions.set(readiness.SPREADABLE, True, "ClaimsShared", "Engines can run on several nodes.")


def _set_refused(observed: ObservedInferenceService, error: HoneError, conditions: Conditions, result: Plan) -> None:
    """Report why the object is not worked on, and what its engines do meanwhile."""
    conditions.set("Accepted", False, error.reason.name, error.format_message())
    if not isinstance(observed.spec, HoneError):
        _resolve_and_check(observed, observed.spec, conditions)
    _set_engines(observed, None, conditions, result)
    conditions.set("Progressing", False, error.reason.name, error.format_message())


def _set_engines(
    observed: ObservedInferenceService, resolved: ResolvedModels | None, conditions: Conditions, result: Plan
) -> list[Object]:
    """Write into the status what the engines do. Return the ready pods.

    `resolved` None: the desired models are not known now, so the status keeps those of an earlier pass.
    """
    status, owner = result.status, observed.owner
    declared = None if isinstance(observed.spec, HoneError) else observed.spec
    is_there = observed.deployment is not None and is_own(observed.deployment, owner)
    deployment, pods = (observed.deployment, observed.pods) if is_there else (None, [])
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    ready = [pod for pod in staying if pod_state.is_ready(pod)]
    replicas = autoscaling.get_wanted_replicas(declared.spec, deployment) if declared else _read_replicas(deployment)
    status["url"] = children.build_url(owner)
    selector = children.build_selector(owner["metadata"]["name"])
    status["selector"] = ",".join(f"{name}={value}" for name, value in selector.items())
    status["replicas"] = ((deployment or {}).get("status") or {}).get("replicas", 0)
    status["readyReplicas"] = len(ready)
    # The list of models needs the clients' key as well, which the operator does not have.
    needs_key = declared is None or declared.spec.api_key_secret is not None
    polled_pods = [pod for pod in staying if pod in ready or adapter_sidecar.has_adapter_sidecar(pod)]
    result.poll_urls = adapter_sidecar.build_poll_urls(polled_pods, needs_key=needs_key)
    answers = [observed.answers.get(pod["metadata"]["uid"]) for pod in ready]
    # While no engine has answered yet, the loaded models are unknown, not zero.
    is_loading_known = not ready or any(answer is not None for answer in answers)
    if declared and resolved:
        reports_models = is_loading_known and _can_report_models(declared, resolved)
        status["models"] = [
            _build_model_status(model, answers, replicas if reports_models else None) for model in resolved.models
        ]
        status["modelNames"] = ", ".join(model["name"] for model in status["models"])
    elif known := _read_reported_models(status):
        status["models"] = [
            _build_model_status(each, answers, replicas if is_loading_known and each.loaded else None) for each in known
        ]
    _set_available(replicas, ready, conditions)
    return ready


def _read_reported_models(status: Object) -> list[ModelStatus]:
    """Return the models of an earlier pass."""
    try:
        return [ModelStatus.model_validate(each) for each in status.get("models") or []]
    except ValidationError:
        return []


def _read_replicas(deployment: Object | None) -> int | None:
    return None if deployment is None else deployment["spec"].get("replicas", 1) or None


def _set_available(replicas: int | None, ready: list[Object], conditions: Conditions) -> None:
    """Set the condition Available. `replicas` None: the number of engines is unknown, because the spec is not valid."""
    if ready:
        text = f"{len(ready)} engines answer." if replicas is None else f"{len(ready)} of {replicas} engines answer."
        conditions.set("Available", True, "EnginesReady", text)
    elif replicas == 0:
        conditions.set("Available", False, "ScaledToZero", "spec.replicas is 0.")
    else:
        conditions.set("Available", False, "NoEngineReady", "No engine answers yet.")


def _set_progressing(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: ResolvedModels | None,
    ready: int,
    now: datetime,
    conditions: Conditions,
    result: Plan,
) -> None:
    replicas = autoscaling.get_wanted_replicas(declared.spec, observed.deployment)
    if trouble := next((each for each in observed.sync_failures if each.stops_pods), None):
        conditions.set("Progressing", False, trouble.error.reason.name, trouble.error.format_message())
        return
    if resolved is None:
        conditions.set("Progressing", False, "ArtifactsNotResolved", "What is to be served is not there; see above.")
        return
    found: Object = (observed.deployment or {}).get("status") or {}
    up_to_date = (observed.deployment or {}).get("metadata", {}).get("generation") == found.get("observedGeneration")
    if up_to_date and found.get("updatedReplicas", 0) == found.get("replicas", 0) == replicas == ready:
        _set_loading(observed, declared, resolved, replicas, now, conditions, result)
        return
    result.requeue_after_seconds = RECHECK_SECONDS
    if failure := rollouts.explain_pause(observed.deployment) or _find_engine_failure(observed, resolved, now):
        conditions.set("Progressing", False, failure.reason.name, failure.format_message())
        return
    text = f"{found.get('updatedReplicas', 0)} of {replicas} engines are of the present models, {ready} answer."
    text += hub_download.describe_running(observed.pods)
    text += adapter_sidecar.describe_downloads(observed.pods, observed.answers)
    conditions.set("Progressing", True, "RollingOut", text)


def _set_loading(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: ResolvedModels,
    replicas: int,
    now: datetime,
    conditions: Conditions,
    result: Plan,
) -> None:
    """Report whether the engines, which are all ready, have loaded the present adapters."""
    revision = adapter_sidecar.compute_revision(resolved)
    polled_pods = (
        [pod for pod in observed.pods if pod["metadata"]["uid"] in result.poll_urls]
        if _can_report_models(declared, resolved)
        else []
    )
    if polled_pods:
        result.requeue_after_seconds = RECHECK_SECONDS
    if silence := explain_silence(polled_pods, observed.last_answer_at, now):
        result.requeue_after_seconds = RECHECK_SECONDS
        conditions.set("Progressing", False, silence.reason.name, silence.format_message())
        return
    if unheard := find_unanswered_pods(polled_pods, observed.answers):
        result.requeue_after_seconds = RECHECK_SECONDS
        if not _was_judged(observed.owner):
            text = f"{len(unheard)} of {replicas} engines have not reported yet which models they have loaded."
            conditions.set("Progressing", True, "WaitingForEngines", text)
            return
        # The operator was restarted: the earlier finding holds until the engines have had time to answer.
        conditions.keep_previous("Progressing")
        return
    behind = adapter_sidecar.count_outdated_engines(observed.pods, observed.answers, revision)
    if not children.hot_swaps_adapters(declared.spec, resolved) or not behind:
        conditions.set("Progressing", False, "Complete", f"All {replicas} engines serve the present models.")
    elif failure := adapter_sidecar.find_adapter_error(observed.pods, observed.answers, revision, declared.spec.cache):
        conditions.set("Progressing", False, failure.reason.name, failure.format_message())
    else:
        text = f"{behind} of {replicas} engines change their adapters."
        text += adapter_sidecar.describe_downloads(observed.pods, observed.answers)
        conditions.set("Progressing", True, "LoadingAdapters", text)
        result.requeue_after_seconds = adapter_sidecar.NUDGE_INTERVAL.total_seconds()


def _can_report_models(declared: InferenceService, resolved: ResolvedModels) -> bool:
    """Return whether the engines' pods can report to the operator which models are loaded."""
    needs_key = declared.spec.api_key_secret is not None
    return children.hot_swaps_adapters(declared.spec, resolved) or (
        select_engine(declared.spec).reports_digests and not needs_key
    )


def _was_judged(owner: Object) -> bool:
    """Return whether an earlier pass over this very spec found that all is served, or that engines are silent."""
    status = owner.get("status") or {}
    if status.get("observedGeneration") != owner["metadata"].get("generation"):
        return False
    judged = {"Complete", ENGINE_SILENT.name}
    return any(c["type"] == "Progressing" and c["reason"] in judged for c in status.get("conditions") or [])


def _find_engine_failure(
    observed: ObservedInferenceService, resolved: ResolvedModels, now: datetime
) -> HoneError | None:
    """Return why the newest engine that is not ready does not start; None without a failure."""
    starting = [pod for pod in observed.pods if not pod_state.is_ready(pod)]
    pod = pod_state.find_newest_pod(p for p in starting if not p["metadata"].get("deletionTimestamp"))
    if pod is None:
        return explain_refusal(observed.warning) if observed.warning else None
    if lost := liveness.explain_lost_node(pod, observed.cluster):
        return lost
    cache = None if isinstance(observed.spec, HoneError) else observed.spec.spec.cache
    claim = cache.claim.name if cache else None
    for name in CONTAINERS:
        container = pod_state.get_container_status(pod, name)
        ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
        if not ended or not ended.get("exitCode"):
            continue
        if named := _read_named_failure(ended) or _explain_no_gpu(observed, ended):
            if name in (hub_download.CONTAINER, uri_download.CONTAINER):
                return hub_download.explain_failure(named, claim, pod["metadata"]["namespace"])
            return named
        if container.get("restartCount", 0) >= MIN_REPORTED_RESTARTS:
            return _explain_engine_exit(pod, name, ended)
    if adapter_error := adapter_sidecar.find_adapter_error(
        [pod], observed.answers, adapter_sidecar.compute_revision(resolved), cache
    ):
        return adapter_error
    for name in CONTAINERS:
        why = pod_state.explain_not_running(
            pod, name, cluster=observed.cluster, warning=observed.warning, now=now, scaling=observed.scaling
        )
        if why:
            return explain_deadlock(why, pod, observed.pods, observed.deployment)
    return None


def _read_named_failure(ended: Object) -> HoneError | None:
    """Return the failure that the engine or a helper container named in its termination message; None without one."""
    failures = find_failures((ended.get("message") or "").strip())
    if not failures or failures[-1].reason not in CATALOGUE:
        return None
    reason, sentence = failures[-1]
    message, _, remedy = sentence.partition(". ")
    return HoneError(CATALOGUE[reason], message, remedy=remedy)


def _explain_no_gpu(observed: ObservedInferenceService, ended: Object) -> HoneError | None:
    """Return the failure of an engine that could use no GPU, by the end of its log; None for any other."""
    if isinstance(observed.spec, HoneError):
        return None
    spec = observed.spec.spec
    text, resources = ended.get("message") or "", spec.resources
    return explain_no_gpu(text, select_engine(spec).name, resources.gpus, resources.gpu_resource)


def _explain_engine_exit(pod: Object, container: str, ended: Object) -> HoneError:
    if ended.get("reason") == "OOMKilled":
        return explain_out_of_memory(pod, container)
    text = (ended.get("message") or "").strip()
    code = ended.get("exitCode")
    last = text[-MAX_LOG_CHARACTERS:] or f"exit code {code} and no message"
    crash, advice = containers.find_signal(code), containers.advise_on_exit(code)
    by = f" by {crash} (exit code {code})" if crash else ""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    log = f"See its log: kubectl logs {name} --namespace {namespace} --container {container} --previous"
    remedy = f"{advice} {log}" if advice else log
    return HoneError(ENGINE_FAILED, f"The engine exits again and again{by}: {last}", remedy=remedy)


def _build_model_status(model: ModelStatus, answers: list[Any], replicas: int | None) -> Object:
    """Return a model for the status, with the number of engines that loaded it. `replicas` None: that is unknown."""
    count = sum(adapter_sidecar.is_model_loaded(model, answer) for answer in answers)
    loaded = None if replicas is None else f"{count}/{replicas}"
    return model.model_copy(update={"loaded": loaded, "digest": adapter_sidecar.find_digest(model, answers)}).to_wire()
