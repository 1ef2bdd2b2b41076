"""States of the cluster, and what Hone reports of each: what remedy_others.py puts before and after a remedy."""

import copy
from datetime import timedelta
from typing import Any

from hone_api import reasons
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.layout import MANAGED_BY_LABEL
from hone_api.reasons import HoneError
from hone_operator import uninstall
from hone_operator.diagnosis import liveness, volumes
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.image_pull import explain_image_pull
from hone_operator.diagnosis.nodes import ClusterNodes, Node, Taint
from hone_operator.diagnosis.pod_failure import explain_pod_failure
from hone_operator.diagnosis.pod_state import explain_not_running
from hone_operator.diagnosis.unschedulable import WAIT_REMEDY, explain_unschedulable
from hone_operator.inferenceservice import rollouts, silent_engines
from hone_operator.inferenceservice.autoscaling import set_scaling_condition
from hone_operator.inferenceservice.plan import _explain_engine_exit
from hone_operator.kube.client import ApiError
from hone_operator.kube.retention import Unknown
from hone_operator.objects.parsing import parse_object
from hone_operator.objects.resources import FINETUNEJOBS, JOBS, WATCHED, Key
from hone_operator.reconcile import ownership, sync_failures
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.coverage import Coverage
from hone_operator.reconcile.plan import Create
from observed import BEFORE, NOW, job_object, service_object, stored, unschedulable
from observed import pod as pod_in_state
from remedy_services import COMMITS, served
from remedy_states import GPU, Object, node, unplaced

LONG_AGO = NOW - timedelta(hours=1)

CONFLICT = f"0/3 nodes are available: 1 Insufficient {GPU}, 2 node(s) had volume node affinity conflict."


def explain_placement(nodes: list[Node]) -> HoneError | None:
    return unplaced(*nodes)({"resources": {"gpus": 1}})


def explain_filtered(words: str) -> HoneError:
    """Return the state of a pod that nodes with room are refused for by a rule of the scheduler."""
    message = f"0/2 nodes are available: {words}. preemption: 0/2 nodes are available: 2 No preemption victims found."
    facts = ClusterNodes((node(), node("gpu-2")))
    return explain_unschedulable(unschedulable(message, **{GPU: "1"}), message, facts)


def near_volume(gpus: tuple[int, ...] | None) -> HoneError | None:
    """Return the state of a pod whose volume is near the first of these nodes, which have so many GPUs."""
    pod = unschedulable(CONFLICT, **{GPU: "1"})
    pod["spec"]["volumes"] = [{"name": "out", "persistentVolumeClaim": {"claimName": "faq"}}]
    facts = None if gpus is None else ClusterNodes(tuple(node(f"n{i}", each) for i, each in enumerate(gpus)))
    error = explain_unschedulable(pod, CONFLICT, facts)
    return None if error.remedy == WAIT_REMEDY else error


def nominated(is_nominated: bool) -> HoneError | None:
    pod = unschedulable("0/1 nodes are available", **{GPU: "1"})
    pod["status"] |= {"nominatedNodeName": "gpu-1"} if is_nominated else {}
    return explain_unschedulable(pod, "0/1 nodes are available", None) if is_nominated else None


def starting(change: Object) -> HoneError | None:
    """Return the state of a pod without a node, with changes of its spec and status."""
    pod = pod_in_state(scheduled=not change, waiting={"reason": "ContainerCreating"})
    pod["spec"] |= change.get("spec", {})
    pod["status"]["conditions"] += change.get("conditions", [])
    return explain_not_running(pod, "trainer", cluster=None, warning=change.get("warning"), now=NOW)


def explain_not_mounted(words: str) -> HoneError | None:
    return volumes.explain_mount_failure(words) if words else None


def explain_admission(words: str) -> HoneError | None:
    return explain_refusal(words) if words else None


def explain_pull(words: str) -> HoneError | None:
    return explain_image_pull("ErrImagePull", words, "registry.example.com/x:1") if words else None


def leaving(metadata: Object | None) -> HoneError | None:
    """Return the state of an object whose Job has this metadata; None: there is none."""
    owner = job_object()
    owner["metadata"]["creationTimestamp"] = LONG_AGO.isoformat()
    job = {"kind": "Job", "metadata": {"name": "faq-train", "namespace": "team", **(metadata or {})}}
    return ownership.explain_leaving([job] if metadata else [], owner, NOW)


def earlier(uid: str) -> Object:
    reference = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "name": "faq",
        "uid": uid,
        "controller": True,
    }
    return {"ownerReferences": [reference]}


def paused(is_paused: bool) -> HoneError | None:
    spec = {"replicas": 2} | ({"paused": True} if is_paused else {})
    metadata = {"name": "chat", "namespace": "team", "generation": 2}
    return rollouts.explain_pause({"metadata": metadata, "spec": spec, "status": {"observedGeneration": 2}})


def explain_silence(when: Any) -> HoneError | None:
    return silent_engines.explain_silence([pod_in_state("p1", container="engine")], {"uid-p1": when}, NOW)


def crowded(unknown: Unknown) -> HoneError | None:
    found = sync_failures.explain_pod_limit(Key(FINETUNEJOBS, "team", "faq"), job_object(), unknown)
    return found.error if found else None


def lacking(allowed: bool) -> HoneError | None:
    coverage = Coverage([])
    for resource in WATCHED:
        if allowed or resource != JOBS:
            coverage.mark_listed(resource, "")
        else:
            coverage.mark_refused(resource, "", "jobs.batch is forbidden")
    found = coverage.find_missing_list(Key(FINETUNEJOBS, "team", "faq"))
    return found.error if found else None


def uninstalled(namespaces: list[str]) -> HoneError | None:
    return (
        HoneError(reasons.CHILD_REFUSED, "Refused", remedy=uninstall._make_remedy(namespaces)) if namespaces else None
    )


def parsed(owner: Object) -> HoneError | None:
    found = parse_object(FineTuneJob, owner)
    return found if isinstance(found, HoneError) else None


def ended(pod: Object) -> HoneError | None:
    failure = explain_pod_failure(pod, "trainer")
    if failure is None:
        return None
    sentence, _, remedy = failure.message.partition(". ")
    return HoneError(reasons.CATALOGUE[failure.reason], sentence, remedy=remedy)


def failed_pod(status: Object, **state: Any) -> Object:
    found = pod_in_state(**state)
    found["spec"]["nodeName"] = "gpu-1"
    found["status"] |= {"phase": "Failed"} | status
    return found


def disrupted(reason: str) -> Object:
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "Kubernetes's words"}
    return failed_pod({"conditions": [target]})


def alive(node_or_none: Node | None) -> HoneError | None:
    pod = pod_in_state(running={"startedAt": BEFORE})
    pod["spec"]["nodeName"] = "gpu-1"
    return liveness.explain_lost_node(pod, ClusterNodes((node_or_none,) if node_or_none else ()))


def answering(when: Any) -> HoneError | None:
    pod = pod_in_state(running={"startedAt": BEFORE})
    return liveness.judge_trainer(pod, None, when, None, NOW, liveness.DEFAULT_LIMITS).error


def named(children: list[Object]) -> HoneError | None:
    return ownership.explain_name_conflict(children, job_object())


def served_job(job: Object) -> HoneError | None:
    return served(job)({"model": {"fineTuneJob": {"name": "faq"}}})


def labelled(value: str) -> HoneError | None:
    owner = job_object()
    child = stored(
        {"kind": "Job", "metadata": {"name": "faq-train", "labels": {MANAGED_BY_LABEL: value}, **earlier("uid-faq")}}
    )
    found = sync_failures.find_hidden_children([child], owner)
    return found[0].error if found else None


def written(status: int | None) -> HoneError | None:
    if status is None:
        return None
    action = Create(JOBS, {"metadata": {"name": "faq-train"}})
    found = sync_failures.explain_write_failure(
        action, ApiError(status, "failed calling webhook 'v': no endpoints"), sync_failures.REPORTED_AFTER_FAILURES
    )
    return found.error if found else None


def scaled(status: str) -> HoneError | None:
    conditions = Conditions(service_object(), NOW)
    metrics = {
        "type": "ScalingActive",
        "status": status,
        "reason": "R",
        "message": "no metrics from custom.metrics.k8s.io",
    }
    set_scaling_condition({"status": {"conditions": [metrics]}}, conditions)
    if conditions.is_true("ScalingActive"):
        return None
    sentence, _, remedy = conditions.get_reason_and_message("ScalingActive")[1].partition(". ")
    return HoneError(reasons.LOAD_NOT_SERVED, sentence, remedy=remedy)


def crashing(is_so: bool) -> HoneError | None:
    engine = pod_in_state("chat-1", container="engine")
    return _explain_engine_exit(engine, "engine", {"exitCode": 1, "message": "no model"}) if is_so else None


def same_commit(commits: tuple[str, str]) -> HoneError | None:
    jobs = copy.deepcopy(COMMITS)
    for job, commit in zip(jobs, commits, strict=True):
        job["status"]["artifact"]["baseRevision"] = commit * 40
    return served(*jobs)(
        {"model": {"fineTuneJob": {"name": "faq"}}, "adapters": [{"name": "o", "fineTuneJob": {"name": "other"}}]}
    )


def taint(key: str, value: str = "") -> Node:
    return node(taints=(Taint(key, value, "NoSchedule"),))
