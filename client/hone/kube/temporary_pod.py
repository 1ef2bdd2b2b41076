"""A short-lived pod that a command runs with the user's own rights, and deletes in every case."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone import notices
from hone.kube import rest
from hone.kube.cluster import Cluster, Object

POD_VERBS = ("create", "get", "delete")
DELETE_TRIES = 3
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# Reasons of a waiting container that a person has to remove.
HOPELESS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
)


def judge_waiting(pod: Object, container: str) -> tuple[str, str] | None:
    """Return reason and message of a container that can't start without help; None if it can."""
    for status in find_statuses(pod, container):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in HOPELESS:
            return str(waiting["reason"]), str(waiting.get("message") or waiting["reason"])
    return None


def describe_pending(pod: Object, container: str) -> str:
    """Return why a pod does not run yet: the scheduler's message, or the state of its container."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason"))
    if status.get("reason"):  # such as Evicted
        return ": ".join(str(status[name]) for name in ("reason", "message") if status.get(name))
    for found in find_statuses(pod, container):
        if waiting := (found.get("state") or {}).get("waiting"):
            return f"its container waits: {waiting.get('reason')}"
    return f"phase {status.get('phase') or 'Unknown'}"


def find_statuses(pod: Object, container: str) -> list[Object]:
    """Return the statuses of a pod's container; none before the kubelet has written one."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return [each for each in statuses if each.get("name") == container]


def find_missing_rights(cluster: Cluster, verbs: Sequence[str] = POD_VERBS, resource: str = "pods") -> list[str]:
    """Return the verbs that the user lacks: a pod that can't be deleted must not be created."""
    kind, _, below = resource.partition("/")
    missing = []
    for verb in verbs:
        asked = {"namespace": cluster.namespace, "verb": verb, "resource": kind, "subresource": below}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = rest.call_api(cluster, path, method="POST", body=review)
        if not (answer.get("status") or {}).get("allowed"):
            missing.append(verb)
    return missing


def is_final(error: ApiException | HTTPError) -> bool:
    """Return whether the API server refused the request, so that another try would be refused, too."""
    return isinstance(error, ApiException) and error.status not in (None, 429) and error.status < 500


def delete_pod(cluster: Cluster, place: str, name: str) -> None:
    """Delete the pod, and retry after a Ctrl-C in the meantime; without success print the command for it."""
    error = ""
    for _ in range(DELETE_TRIES):
        try:
            rest.call_api(cluster, f"{place}/{name}", {"gracePeriodSeconds": "1"}, method="DELETE")
            return
        except KeyboardInterrupt:
            error = "interrupted"
        except ApiException as refused:
            if refused.status == 404:
                return
            error = rest.describe_error(refused)
        except HTTPError as broken:
            error = rest.describe_error(broken)
    notices.report_next_step(
        f"Pod {name} could not be deleted ({error}); it ends by its deadline. Remove it with",
        f"kubectl delete pod {name} {cluster.flags}",
    )


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Make SIGTERM, and SIGHUP of a closed terminal, end the context as Ctrl-C does. nohup stays in force."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, interrupt) for number in numbers}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
