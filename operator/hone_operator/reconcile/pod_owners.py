"""Which pods belong to which Job or Deployment.

In: the pods that labels assign to an object. Anybody who may create pods can copy labels, so the controller of a pod
decides. Next: snapshots/reader.py, which passes the pods to the plans.
"""

from hone_api.layout import COMPONENT_LABEL

from hone_operator.diagnosis import pod_state
from hone_operator.objects import child_names
from hone_operator.objects.resources import JOBS, Object, find_controller
from hone_operator.reconcile.ownership import is_leaving

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


def select_trainers(job_name: str, pods: list[Object], since: str) -> list[Object]:
    """Return the trainer pods that Jobs of this name created, from the moment `since` on."""
    return [
        pod
        for pod in pods
        if (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == child_names.TRAINER
        and _find_job_name(pod) == job_name
        and pod["metadata"]["creationTimestamp"] >= since
    ]


def select_pods(job: Object | None, pods: list[Object]) -> list[Object]:
    """Return the pods of this very Job."""
    if job is None:
        return []
    uid = job["metadata"]["uid"]
    return [pod for pod in pods if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences") or [])]


def is_stale_pod(pod: Object, makers: tuple[str, ...]) -> bool:
    """Return whether a pod that one of these Jobs created may still be at work.

    Pods that a user labelled don't count.
    """
    return _find_job_name(pod) in makers and pod_state.get_phase(pod) in ("Pending", "Running")


def select_engines(deployment: Object | None, owner: Object, pods: list[Object]) -> list[Object]:
    """Return the pods of the present Deployment, without those of a deleted one and those that a user created."""
    if deployment is None or is_leaving(deployment, owner):
        return []
    metadata = deployment["metadata"]
    made = [pod for pod in pods if (find_controller(pod) or {}).get("name", "").rpartition("-")[0] == metadata["name"]]
    newer = [pod for pod in made if pod["metadata"]["creationTimestamp"] >= metadata["creationTimestamp"]]
    # A Deployment that was created again adopts the pods that the deleted one left.
    replicas = (deployment.get("status") or {}).get("replicas", 0)
    return made if replicas > len(newer) else newer


def _find_job_name(pod: Object) -> str | None:
    """Return the name of the Job that created the pod: by its label where the Job was deleted without its pods."""
    if maker := find_controller(pod):
        return str(maker["name"]) if maker.get("kind") == JOBS.kind else None
    return (pod["metadata"].get("labels") or {}).get(JOB_NAME_LABEL)
