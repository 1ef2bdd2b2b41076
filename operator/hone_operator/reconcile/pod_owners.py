"""Which pods belong to which Job or Deployment.

In: the pods that labels assign to an object. Labels can be copied by whoever may make pods, so the controller of a pod
decides. Next: snapshots.py, which hands the pods to the plans.
"""

from hone_api.layout import COMPONENT_LABEL

from hone_operator.diagnosis import pod_state
from hone_operator.objects import child_names
from hone_operator.objects.resources import JOBS, Object, controller_of
from hone_operator.reconcile.ownership import is_leaving

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


def trainers_of(job_name: str, pods: list[Object], since: str) -> list[Object]:
    """Return the pods that Jobs of this name made to train, from the moment `since` on."""
    return [
        pod
        for pod in pods
        if (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == child_names.TRAINER
        and _maker_of(pod) == job_name
        and pod["metadata"]["creationTimestamp"] >= since
    ]


def pods_of(job: Object | None, pods: list[Object]) -> list[Object]:
    """Return the pods of this very Job."""
    if job is None:
        return []
    uid = job["metadata"]["uid"]
    return [pod for pod in pods if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences") or [])]


def is_stray(pod: Object, makers: tuple[str, ...]) -> bool:
    """Whether a pod that one of these Jobs made may still be at work. What a user labelled alike is not Hone's."""
    return _maker_of(pod) in makers and pod_state.phase(pod) in ("Pending", "Running")


def engines_of(deployment: Object | None, owner: Object, pods: list[Object]) -> list[Object]:
    """Return the pods of the present Deployment: those of a deleted one's, or a user's own, answer for nothing."""
    if deployment is None or is_leaving(deployment, owner):
        return []
    metadata = deployment["metadata"]
    made = [pod for pod in pods if (controller_of(pod) or {}).get("name", "").rpartition("-")[0] == metadata["name"]]
    newer = [pod for pod in made if pod["metadata"]["creationTimestamp"] >= metadata["creationTimestamp"]]
    # A Deployment that was made again adopts the pods of the one before it, if that left them.
    replicas = (deployment.get("status") or {}).get("replicas", 0)
    return made if replicas > len(newer) else newer


def _maker_of(pod: Object) -> str | None:
    """Return the name of the Job that made the pod. Where the Job was deleted without it, the label still names it."""
    if maker := controller_of(pod):
        return str(maker["name"]) if maker.get("kind") == JOBS.kind else None
    return (pod["metadata"].get("labels") or {}).get(JOB_NAME_LABEL)
