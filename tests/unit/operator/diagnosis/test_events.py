"""Select the event about an object that still explains its state."""

from typing import Any

import pytest
from hone_operator.diagnosis.events import find_standing_warning, find_workload_event


def event(minute: int, type_: str, reason: str, message: str = "", *, new_api: bool = False) -> dict[str, Any]:
    when = f"2026-03-01T11:{minute:02}:00"
    field = {"eventTime": f"{when}.123456Z", "lastTimestamp": None} if new_api else {"lastTimestamp": f"{when}Z"}
    created = {"creationTimestamp": "2026-03-01T11:00:00Z"}
    return {"type": type_, "reason": reason, "message": message, "metadata": created, **field}


MULTI = 'Multi-Attach error for volume "pvc-0b7f" Volume is already used by pod(s) old'
ATTACH = event(5, "Warning", "FailedAttachVolume", MULTI)
MOUNT = event(9, "Warning", "FailedMount", "Unable to attach or mount volumes: timed out")


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([], None),
        ([event(1, "Warning", "FailedScheduling"), event(2, "Normal", "Scheduled", new_api=True)], None),
        ([event(1, "Normal", "Scheduled"), MOUNT], f"FailedMount: {MOUNT['message']}"),
        ([MOUNT, event(10, "Normal", "Pulling")], None),
        ([event(1, "Normal", "Scheduled"), ATTACH, MOUNT], f"FailedAttachVolume: {MULTI}"),
        ([event(1, "Normal", "Scheduled"), ATTACH, event(7, "Normal", "SuccessfulAttachVolume"), MOUNT], "FailedMount"),
        (
            [
                event(2, "Normal", "Scheduled"),
                event(1, "Warning", "Slow", new_api=True) | {"series": {"lastObservedTime": "2026-03-01T11:03:00Z"}},
            ],
            "Slow: ",
        ),
    ],
)
def test_only_a_warning_without_a_later_normal_event_counts(events: list[dict[str, Any]], found: str | None) -> None:
    said = find_standing_warning(events)
    assert said is found if found is None else said is not None and said.startswith(found)


def test_only_kueues_events_about_the_job_count() -> None:
    def about(workload: str, event: dict[str, Any]) -> dict[str, Any]:
        return event | {"involvedObject": {"name": workload}}

    others = [about("job-faq-train-2-0a1b2", event(9, "Warning", "Pending")), about("other", event(9, "Warning", "X"))]
    assert find_workload_event(others, "faq-train") is None
    ours = [about("job-faq-train-7167d", event(minute, "Warning", "Pending", f"lacks {minute}")) for minute in (3, 5)]
    assert find_workload_event([*ours, *others], "faq-train") == "Pending: lacks 5"
