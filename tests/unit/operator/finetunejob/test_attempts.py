"""Restarts and GPU seconds, counted from the existing pods and the status."""

from datetime import timedelta
from typing import Any

from hone_operator.finetunejob.attempts import MAX_ATTEMPTS, update_attempts
from hone_operator.objects.timestamps import format_timestamp
from observed import NOW, failure, pod, terminated

Object = dict[str, Any]


def ago(seconds: int) -> str:
    return format_timestamp(NOW - timedelta(seconds=seconds))


def running(name: str, since: int) -> Object:
    return pod(name, running={"startedAt": ago(since)})


def ended(name: str, since: int, until: int, code: int = 75) -> Object:
    word = failure("Interrupted", "stopped") if code else None
    return pod(name, terminated=terminated(code, word) | {"startedAt": ago(since), "finishedAt": ago(until)})


def after(status: Object, *pods: Object, gpus: int = 2, later: int = 0) -> Object:
    found = dict(status)
    update_attempts(found, list(pods), "trainer", gpus, NOW + timedelta(seconds=later))
    return found


def test_before_a_trainer_has_started_nothing_is_counted() -> None:
    assert after({}, pod(waiting={"reason": "ContainerCreating"})) == {}


def test_a_running_trainer_counts_in_minutes_and_an_ended_one_to_the_second() -> None:
    first = after({}, running("a", 130))
    assert (first["gpuSeconds"], first["restarts"]) == (260, 0)
    assert after(first, running("a", 130), later=59) == first
    assert after(first, running("a", 130), later=60)["gpuSeconds"] == 380
    found = after(first, ended("a", 130, 100))
    assert found["attempts"][0]["reason"] == "Interrupted"
    assert found["attempts"][0]["exitCode"] == 75


def test_seconds_that_a_wrong_clock_of_the_node_added_are_subtracted_at_the_end() -> None:
    for behind in (-3600, 0, 3600):
        first = after({}, running("a", 130 + behind))
        found = after(first, ended("a", 130 + behind, behind), later=1)
        assert (found["gpuSeconds"], found["attempts"][0]["seconds"]) == (260, 130)


def test_each_pod_counts_once_after_any_number_of_passes() -> None:
    pods = [ended("a", 300, 200), ended("b", 150, 50, 0)]
    once = after({}, *pods)
    assert (once["restarts"], once["gpuSeconds"]) == (1, 400)
    assert after(once, *pods, later=9999) == once


def test_a_deleted_pod_stays_counted() -> None:
    once = after({}, ended("a", 300, 200))
    found = after(once, running("b", 60))
    assert (found["restarts"], found["gpuSeconds"], len(found["attempts"])) == (1, 320, 2)


def test_of_many_attempts_the_newest_are_kept_and_all_are_counted() -> None:
    pods = [ended(f"p{number:03}", 5000 - number * 10, 4995 - number * 10) for number in range(MAX_ATTEMPTS + 30)]
    once = after({}, *pods)
    assert (once["restarts"], once["gpuSeconds"]) == (MAX_ATTEMPTS + 29, (MAX_ATTEMPTS + 30) * 5 * 2)
    assert len(once["attempts"]) == MAX_ATTEMPTS
    assert once["attempts"][-1]["pod"] == f"p{MAX_ATTEMPTS + 29}"
    assert after(once, *pods) == once


def test_the_pods_of_several_nodes_count_as_one_start() -> None:
    def of_gang(name: str, index: int) -> Object:
        found = running(name, 60)
        found["metadata"]["labels"] = {"batch.kubernetes.io/job-completion-index": str(index)}
        return found

    found = after({}, of_gang("a", 0), of_gang("b", 1), gpus=1)
    assert (found["restarts"], found["gpuSeconds"]) == (0, 120)
