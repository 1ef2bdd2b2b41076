"""End pods whose trainer has ended while another container still runs, and so holds the pod and its GPUs.

Such containers are injected: proxies of a service mesh, agents, log shippers. The pod stays Running, so its Job never
ends. In: a Job and its pods. Out: the actions that end them, and the result where the trainer left one. A pod whose
trainer failed is ended by a deadline: its status and its log remain, and the Job's usual rules apply. A pod whose
trainer succeeded would then count as failed, so its result is read and its Job removed. Next: status.py.
"""

from datetime import datetime, timedelta

from hone_api.reasons import SIDECAR_RUNNING, HoneError

from hone_operator.finetunejob.snapshot import JobView
from hone_operator.objects.resources import JOBS, PODS, Object
from hone_operator.reconcile.plan import Action, Patch, build_delete

# A container that waits for the trainer's end needs a moment to end as well.
SIDECAR_GRACE = timedelta(seconds=30)
# The smallest valid activeDeadlineSeconds of a pod: the kubelet ends the pod at once.
DEADLINE_SECONDS = 1


def find_held_pods(view: JobView) -> list[Object]:
    """Return the active pods whose trainer has ended while other containers of theirs have not."""
    return [
        pod for pod in view.active_pods if view.get_terminated_state(pod) and list_running_sidecars(pod, view.container)
    ]


def list_running_sidecars(pod: Object, container: str) -> list[str]:
    """Return the names of the containers, other than the working one, that have not ended.

    Init containers are left out: native sidecars end with the pod's containers.
    """
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    others = [status for status in statuses if status["name"] != container]
    return [str(status["name"]) for status in others if "terminated" not in (status.get("state") or {})]


def get_seconds_left(pods: list[Object], held_since: dict[str, datetime], now: datetime) -> float:
    """Return for how many seconds the other containers may still run.

    `held_since`: when when the operator observes the end of each pod's trainer, by uid. The kubelet's own time of that
    end is not used, since the clock of its node may be wrong.
    """
    ends = [min(held_since.get(pod["metadata"]["uid"], now), now) for pod in pods]
    return max(0.0, (max(ends, default=now - SIDECAR_GRACE) + SIDECAR_GRACE - now).total_seconds())


def has_succeeded(view: JobView, nodes: int) -> bool:
    """Return whether the trainer of each pod succeeded, although the Job can't end."""
    done = {
        view.get_index(pod) for pod in view.pods if (state := view.get_terminated_state(pod)) and state["exitCode"] == 0
    }
    return bool(find_held_pods(view)) and len(done) >= nodes


def plan_failed_pod_ends(view: JobView) -> list[Action]:
    """Return the actions that end the held pods whose trainer has failed."""
    return [
        Patch(PODS, pod["metadata"]["name"], {"spec": {"activeDeadlineSeconds": DEADLINE_SECONDS}})
        for pod in find_held_pods(view)
        if (view.get_terminated_state(pod) or {}).get("exitCode")
        and "deletionTimestamp" not in pod["metadata"]
        and pod["spec"].get("activeDeadlineSeconds") != DEADLINE_SECONDS
    ]


def plan_job_removal(view: JobView) -> list[Action]:
    """Return the action that removes the Job of a trainer whose result was read, and its pods with it."""
    return [build_delete(JOBS, view.job)] if view.job else []


def explain_sidecars(view: JobView, pod: Object) -> HoneError:
    """Return the failure that names the containers that still run, and how the trainer ended."""
    state = view.get_terminated_state(pod) or {}
    names, name = ", ".join(list_running_sidecars(pod, view.container)), pod["metadata"]["name"]
    ended = f"Container {view.container} of pod {name} ended with exit code {state.get('exitCode')}"
    found = f"{ended}, and {names} still runs in it"
    return HoneError(SIDECAR_RUNNING, found)
