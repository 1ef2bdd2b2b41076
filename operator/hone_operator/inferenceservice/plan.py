"""Plan a pass over an InferenceService: a pure function from the snapshot to actions and the new status.

In: ObservedInferenceService, from snapshots.py. Out: a Plan. engines/resolve.py finds what the engines load,
compatibility.py checks it, child_actions.py plans the children; this module reports what the engines do. Next:
controller.py carries out the plan.
"""

from datetime import datetime
from typing import Any

from hone_api.containers import find_failures
from hone_api.inferenceservices.spec import InferenceService, ModelStatus
from hone_api.reasons import CATALOGUE, CLAIM_NOT_SHARED, ENGINE_FAILED, ENGINE_SILENT, INVALID_SPEC, HoneError
from pydantic import ValidationError

from hone_operator.diagnosis import liveness, pod_state
from hone_operator.diagnosis.admission import refused
from hone_operator.diagnosis.pod_failure import out_of_memory
from hone_operator.engines import artifact_links, key_guard
from hone_operator.engines.gpu_errors import explain_no_gpu
from hone_operator.engines.registry import engine_of
from hone_operator.engines.resolve import WAITING, NotYet, Resolved, resolve
from hone_operator.engines.root_images import explain_root
from hone_operator.inferenceservice import (
    adapter_sidecar,
    autoscaling,
    child_actions,
    children,
    compatibility,
    rollouts,
)
from hone_operator.inferenceservice.rollout_deadlock import explain_deadlock
from hone_operator.inferenceservice.silent_engines import find_silence, find_unheard
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_levels import explain_relaxations
from hone_operator.reconcile import readiness
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.ownership import conflict, explain_leaving, is_leaving, is_own
from hone_operator.reconcile.plan import Plan
from hone_operator.reconcile.sync_failures import SYNCED, report

CONDITION_TYPES = ("Accepted", "ArtifactsResolved", "Progressing", "Available")
CONTAINERS = (
    artifact_links.CONTAINER,
    adapter_sidecar.CONTAINER,
    key_guard.CONTAINER,
    children.CHECK,
    children.CONTAINER,
)
RESTARTS_THAT_ARE_A_PATTERN = 2
LOOK_AGAIN_SECONDS = 20.0
LEAVING = "ChildrenLeaving"
QUIET = frozenset(
    {"Accepted", "ArtifactsNotResolved", "NoEngineReady", "Resolved", "ClaimsShared", "NotLookedYet", LEAVING}
)
GONE_SOON_SECONDS = 2.0
LONGEST_WORDS = 2000


def plan(observed: ObservedInferenceService, now: datetime) -> Plan:
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
        _refuse(observed, HoneError(INVALID_SPEC, declared.message, remedy=declared.remedy), conditions, result)
    elif any(is_leaving(child, owner) for child in children):
        result.requeue_after = GONE_SOON_SECONDS
        if error := explain_leaving(children, owner, now):
            _refuse(observed, error, conditions, result)
            result.requeue_after = LOOK_AGAIN_SECONDS
        else:
            _engines(observed, None, conditions, result)
            conditions.set("Progressing", True, LEAVING, "A child is being deleted, and made again when it is gone.")
    elif error := conflict(children, owner):
        _refuse(observed, error, conditions, result)
        result.requeue_after = LOOK_AGAIN_SECONDS
    elif error := explain_relaxations(declared.spec.pod, observed.images.level) or _needs_root(observed, declared):
        _refuse(observed, error, conditions, result)
    else:
        conditions.set("Accepted", True, "Accepted", "The object keeps the contract.")
        resolved = _resolve(observed, declared, conditions)
        turn = child_actions.make(observed, declared, resolved, now, result)
        most = autoscaling.most(declared.spec)
        if most > 1 and resolved:
            types = (*types, readiness.SPREADABLE)
            _spreadable(most, observed.claims, conditions)
        if declared.spec.autoscaling:
            types = (*types, autoscaling.CONDITION)
            autoscaling.tell(observed.autoscaler, conditions)
        ready = _engines(observed, resolved, conditions, result)
        _progressing(observed, declared, resolved, len(ready), now, conditions, result)
        if turn and conditions.words_of("Progressing")[0] == "Complete":
            conditions.set("Progressing", False, "UpgradeWaiting", turn)
            result.requeue_after = LOOK_AGAIN_SECONDS
    report(observed.troubles, conditions)
    types = (*types, SYNCED)
    health = readiness.judge_service(result.status.get("models") or [], conditions)
    readiness.set_conditions(conditions, health)
    result.status["conditions"] = conditions.to_list(*types, *readiness.TYPES)
    result.events = conditions.events(*types, quiet=QUIET)
    return result


def _resolve(observed: ObservedInferenceService, declared: InferenceService, conditions: Conditions) -> Resolved | None:
    try:
        resolved = resolve(declared.spec, observed.jobs)
        chosen = engine_of(declared.spec)
        image = declared.spec.pod.image or observed.images.of(chosen.NAME)
        compatibility.check(chosen, declared.spec, resolved, image, observed.gpu)
    except NotYet as waiting:
        conditions.set("ArtifactsResolved", False, WAITING, str(waiting))
        return None
    except HoneError as error:
        conditions.set("ArtifactsResolved", False, error.reason.name, error.sentence())
        return None
    digests = ", ".join(f"{model.name} {model.digest}" for model in resolved.models if model.digest)
    conditions.set("ArtifactsResolved", True, "Resolved", digests or "No artifact of a FineTuneJob is asked for.")
    return resolved


def _needs_root(observed: ObservedInferenceService, declared: InferenceService) -> HoneError | None:
    """Return why the engine's image can't start where pods must not run as root; None where it can."""
    image = declared.spec.pod.image or observed.images.of(engine_of(declared.spec).NAME)
    return explain_root(declared.spec.pod, image, observed.images.level)


def _spreadable(replicas: int, claims: list[Object], conditions: Conditions) -> None:
    """Report whether the engines can run on several nodes, before one of them waits for a volume."""
    for claim in claims:
        if not child_actions.is_bound(claim):
            continue
        modes = child_actions.modes_of(claim)
        where = "one pod alone" if modes == ["ReadWriteOncePod"] else "the pods of one node alone"
        message = (
            f"PersistentVolumeClaim {claim['metadata']['name']} has accessModes [{', '.join(modes)}]: {where} can "
            f"mount it, and there may be {replicas} engines"
        )
        error = HoneError(CLAIM_NOT_SHARED, message)
        conditions.set(readiness.SPREADABLE, False, error.reason.name, error.sentence())
        return
    conditions.set(readiness.SPREADABLE, True, "ClaimsShared", "Engines can run on several nodes.")


def _refuse(observed: ObservedInferenceService, error: HoneError, conditions: Conditions, result: Plan) -> None:
    """Report why the object is not worked on, and what its engines do meanwhile."""
    conditions.set("Accepted", False, error.reason.name, error.sentence())
    if not isinstance(observed.spec, HoneError):
        _resolve(observed, observed.spec, conditions)
    _engines(observed, None, conditions, result)
    conditions.set("Progressing", False, error.reason.name, error.sentence())


def _engines(
    observed: ObservedInferenceService, resolved: Resolved | None, conditions: Conditions, result: Plan
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
    wanted = autoscaling.wanted(declared.spec, deployment) if declared else _replicas_of(deployment)
    status["url"] = children.url(owner)
    selector = children.selector(owner["metadata"]["name"])
    status["selector"] = ",".join(f"{name}={value}" for name, value in selector.items())
    status["replicas"] = ((deployment or {}).get("status") or {}).get("replicas", 0)
    status["readyReplicas"] = len(ready)
    # The list of models needs the clients' key as well, which the operator does not have.
    needs_key = declared is None or declared.spec.api_key_secret is not None
    asked = [pod for pod in staying if pod in ready or adapter_sidecar.has_keeper(pod)]
    result.poll = adapter_sidecar.urls(asked, needs_key=needs_key)
    answers = [observed.answers.get(pod["metadata"]["uid"]) for pod in ready]
    # While no engine has answered yet, the loaded models are unknown, not zero.
    is_told = not ready or any(answer is not None for answer in answers)
    if declared and resolved:
        tells = is_told and _tells(declared, resolved)
        status["models"] = [_loaded(model, answers, wanted if tells else None) for model in resolved.models]
        status["modelNames"] = ", ".join(model["name"] for model in status["models"])
    elif known := _known_models(status):
        status["models"] = [_loaded(each, answers, wanted if is_told and each.loaded else None) for each in known]
    _available(wanted, ready, conditions)
    return ready


def _known_models(status: Object) -> list[ModelStatus]:
    """Return the models of an earlier pass."""
    try:
        return [ModelStatus.model_validate(each) for each in status.get("models") or []]
    except ValidationError:
        return []


def _replicas_of(deployment: Object | None) -> int | None:
    return None if deployment is None else deployment["spec"].get("replicas", 1) or None


def _available(wanted: int | None, ready: list[Object], conditions: Conditions) -> None:
    """Set the condition Available. `wanted` None: the number of engines is unknown, because the spec is not valid."""
    if ready:
        words = f"{len(ready)} engines answer." if wanted is None else f"{len(ready)} of {wanted} engines answer."
        conditions.set("Available", True, "EnginesReady", words)
    elif wanted == 0:
        conditions.set("Available", False, "ScaledToZero", "spec.replicas is 0.")
    else:
        conditions.set("Available", False, "NoEngineReady", "No engine answers yet.")


def _progressing(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: Resolved | None,
    ready: int,
    now: datetime,
    conditions: Conditions,
    result: Plan,
) -> None:
    wanted = autoscaling.wanted(declared.spec, observed.deployment)
    if trouble := next((each for each in observed.troubles if each.stops_pods), None):
        conditions.set("Progressing", False, trouble.error.reason.name, trouble.error.sentence())
        return
    if resolved is None:
        conditions.set("Progressing", False, "ArtifactsNotResolved", "What is to be served is not there; see above.")
        return
    found: Object = (observed.deployment or {}).get("status") or {}
    up_to_date = (observed.deployment or {}).get("metadata", {}).get("generation") == found.get("observedGeneration")
    if up_to_date and found.get("updatedReplicas", 0) == found.get("replicas", 0) == wanted == ready:
        _loading(observed, declared, resolved, wanted, now, conditions, result)
        return
    result.requeue_after = LOOK_AGAIN_SECONDS
    if failure := rollouts.explain_pause(observed.deployment) or _failure(observed, resolved, now):
        conditions.set("Progressing", False, failure.reason.name, failure.sentence())
        return
    words = f"{found.get('updatedReplicas', 0)} of {wanted} engines are of the present models, {ready} answer."
    conditions.set("Progressing", True, "RollingOut", words)


def _loading(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: Resolved,
    wanted: int,
    now: datetime,
    conditions: Conditions,
    result: Plan,
) -> None:
    """Report whether the engines, which are all ready, have loaded the present adapters."""
    revision = adapter_sidecar.revision(resolved)
    asked = (
        [pod for pod in observed.pods if pod["metadata"]["uid"] in result.poll] if _tells(declared, resolved) else []
    )
    if asked:
        result.requeue_after = LOOK_AGAIN_SECONDS
    if silence := find_silence(asked, observed.heard, now):
        result.requeue_after = LOOK_AGAIN_SECONDS
        conditions.set("Progressing", False, silence.reason.name, silence.sentence())
        return
    if unheard := find_unheard(asked, observed.answers):
        result.requeue_after = LOOK_AGAIN_SECONDS
        if not _was_judged(observed.owner):
            words = f"{len(unheard)} of {wanted} engines have not reported yet which models they have loaded."
            conditions.set("Progressing", True, "WaitingForEngines", words)
            return
        # The operator was restarted: the earlier finding holds until the engines have had time to answer.
        conditions.keep("Progressing")
        return
    behind = adapter_sidecar.behind(observed.pods, observed.answers, revision)
    if not children.is_hot(declared.spec, resolved) or not behind:
        conditions.set("Progressing", False, "Complete", f"All {wanted} engines serve the present models.")
    elif failure := adapter_sidecar.error(observed.pods, observed.answers, revision):
        conditions.set("Progressing", False, failure.reason.name, failure.sentence())
    else:
        conditions.set("Progressing", True, "LoadingAdapters", f"{behind} of {wanted} engines change their adapters.")
        result.requeue_after = adapter_sidecar.NUDGE_AGAIN.total_seconds()


def _tells(declared: InferenceService, resolved: Resolved) -> bool:
    """Return whether the engines' pods can report to the operator which models are loaded."""
    needs_key = declared.spec.api_key_secret is not None
    return children.is_hot(declared.spec, resolved) or (engine_of(declared.spec).TELLS and not needs_key)


def _was_judged(owner: Object) -> bool:
    """Return whether an earlier pass over this very spec found that all is served, or that engines are silent."""
    status = owner.get("status") or {}
    if status.get("observedGeneration") != owner["metadata"].get("generation"):
        return False
    judged = {"Complete", ENGINE_SILENT.name}
    return any(c["type"] == "Progressing" and c["reason"] in judged for c in status.get("conditions") or [])


def _failure(observed: ObservedInferenceService, resolved: Resolved, now: datetime) -> HoneError | None:
    """Return why the newest engine that is not ready does not start; None without a failure."""
    starting = [pod for pod in observed.pods if not pod_state.is_ready(pod)]
    pod = pod_state.newest(p for p in starting if not p["metadata"].get("deletionTimestamp"))
    if pod is None:
        return refused(observed.warning) if observed.warning else None
    if lost := liveness.lost(pod, observed.facts):
        return lost
    for name in CONTAINERS:
        container = pod_state.container_status(pod, name)
        ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
        if not ended or not ended.get("exitCode"):
            continue
        if named := _named(ended) or _no_gpu(observed, ended):
            return named
        if container.get("restartCount", 0) >= RESTARTS_THAT_ARE_A_PATTERN:
            return _engine_failure(pod, name, ended)
    if told := adapter_sidecar.error([pod], observed.answers, adapter_sidecar.revision(resolved)):
        return told
    for name in CONTAINERS:
        why = pod_state.why_not_running(
            pod, name, facts=observed.facts, warning=observed.warning, now=now, scaling=observed.scaling
        )
        if why:
            return explain_deadlock(why, pod, observed.pods, observed.deployment)
    return None


def _named(ended: Object) -> HoneError | None:
    """Return the failure that the engine or a helper container named in its termination message; None without one."""
    failures = find_failures((ended.get("message") or "").strip())
    if not failures or failures[-1].reason not in CATALOGUE:
        return None
    reason, sentence = failures[-1]
    message, _, remedy = sentence.partition(". ")
    return HoneError(CATALOGUE[reason], message, remedy=remedy)


def _no_gpu(observed: ObservedInferenceService, ended: Object) -> HoneError | None:
    """Return the failure of an engine that could use no GPU, by the end of its log; None for any other."""
    if isinstance(observed.spec, HoneError):
        return None
    spec = observed.spec.spec
    words, resources = ended.get("message") or "", spec.resources
    return explain_no_gpu(words, engine_of(spec).NAME, resources.gpus, resources.gpu_resource)


def _engine_failure(pod: Object, container: str, ended: Object) -> HoneError:
    if ended.get("reason") == "OOMKilled":
        return out_of_memory(pod, container)
    words = (ended.get("message") or "").strip()
    last = words[-LONGEST_WORDS:] or f"exit code {ended.get('exitCode')}, without a word"
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    remedy = f"What it said before: kubectl logs {name} --namespace {namespace} --container {container} --previous"
    return HoneError(ENGINE_FAILED, f"The engine ends again and again: {last}", remedy=remedy)


def _loaded(model: ModelStatus, answers: list[Any], wanted: int | None) -> Object:
    """Return a model for the status, with the number of engines that loaded it. `wanted` None: that is unknown."""
    count = sum(adapter_sidecar.is_loaded(model, answer) for answer in answers)
    loaded = None if wanted is None else f"{count}/{wanted}"
    return model.model_copy(update={"loaded": loaded, "digest": adapter_sidecar.digest_of(model, answers)}).to_wire()
