"""Count how often the trainer was started, and for how long it held GPUs. Pure: the status is the only memory."""

from datetime import datetime

from hone_operator.diagnosis import pod_state
from hone_operator.diagnosis.pod_failure import explain_pod_failure
from hone_operator.finetunejob.snapshot import get_pod_index
from hone_operator.objects import timestamps
from hone_operator.objects.resources import Object

# The limit of the contract's status.attempts.
MAX_ATTEMPTS = 100
# A running trainer's seconds are counted in steps of this size, so that the status changes at most that often.
STEP_SECONDS = 60


def update_attempts(status: Object, pods: list[Object], container: str, gpus: int, now: datetime) -> None:
    """Update attempts, restarts and gpuSeconds of `status`. `pods`: all trainer pods; `gpus`: the GPUs of each.

    A pod is counted as long as it exists: its time between the last pass and its deletion is not counted.
    """
    attempts = {attempt["uid"]: dict(attempt) for attempt in status.get("attempts") or []}
    restarts, gpu_seconds = status.get("restarts") or 0, status.get("gpuSeconds") or 0
    dropped_until = min((a["endTime"] for a in attempts.values() if "endTime" in a), default="")
    is_full = len(attempts) >= MAX_ATTEMPTS
    started = [(since, pod) for pod in pods if (since := pod_state.get_start_time(pod, container))]
    for since, pod in sorted(started, key=lambda one: (one[0], one[1]["metadata"]["name"])):
        uid, ended = pod["metadata"]["uid"], pod_state.get_terminated_state(pod, container)
        attempt = attempts.get(uid)
        if attempt is None:
            if is_full and ended and (ended.get("finishedAt") or "") <= dropped_until:
                continue  # it was counted, and dropped from the list since then
            if attempts and get_pod_index(pod) == 0:
                restarts += 1
            attempt = attempts[uid] = {"pod": pod["metadata"]["name"], "uid": uid, "startTime": since, "seconds": 0}
            if node := pod["spec"].get("nodeName"):
                attempt["node"] = node
        gpu_seconds = max(0, gpu_seconds + gpus * _update_attempt(attempt, ended, now))
        if ended and "reason" not in attempt:
            failure = explain_pod_failure(pod, container)
            attempt["reason"] = failure.reason if failure else "Succeeded"
    if not attempts:
        return
    oldest = sorted(attempts.values(), key=lambda attempt: attempt.get("endTime", "9"))
    for attempt in oldest[: max(0, len(attempts) - MAX_ATTEMPTS)]:
        del attempts[attempt["uid"]]
    status["attempts"], status["restarts"], status["gpuSeconds"] = list(attempts.values()), restarts, gpu_seconds


def _update_attempt(attempt: Object, ended: Object | None, now: datetime) -> int:
    """Update an attempt. Return the seconds that were not counted yet."""
    if "endTime" in attempt:
        return 0
    since, counted = timestamps.parse_untrusted_time(attempt["startTime"]), int(attempt["seconds"])
    until = (timestamps.parse_untrusted_time(ended.get("finishedAt")) if ended else None) or now
    seconds = max(0, int((until - since).total_seconds())) if since else counted
    # Start and end are by the clock of the node. So at the end, seconds that were counted too much are subtracted.
    more = seconds - counted if ended and ended.get("finishedAt") else max(0, seconds - counted)
    if ended:
        attempt["endTime"] = ended.get("finishedAt") or attempt["startTime"]
        attempt["exitCode"] = ended["exitCode"]
    elif more < STEP_SECONDS:
        return 0
    attempt["seconds"] += more
    return more
