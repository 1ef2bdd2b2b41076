"""Select the events about an object that still explain its state.

In: events of the Kubernetes API. Out: the newest standing warning, an autoscaler's report, or Kueue's reason, as text.
"""

import re
from collections.abc import AsyncIterable
from datetime import datetime

from hone_operator.diagnosis.autoscalers import ScalingReport, is_scaling_report, read_scaling_report
from hone_operator.diagnosis.volumes import MULTI_ATTACH
from hone_operator.objects.resources import Object
from hone_operator.objects.texts import truncate_all_texts
from hone_operator.objects.timestamps import parse_time, parse_untrusted_time

_TIME_FIELDS = ("lastTimestamp", "eventTime")


# Kubernetes joins equal events about an object. More different ones than this are not read.
MAX_EVENTS = 500


async def read_events(listing: AsyncIterable[Object]) -> list[Object]:
    """Return the used fields of the first MAX_EVENTS events of a list, with their texts cut."""
    found: list[Object] = []
    async for event in listing:
        found.append(reduce_event(event))
        if len(found) >= MAX_EVENTS:
            break
    return found


def reduce_event(event: Object) -> Object:
    """Return the used fields of an event, with its texts cut."""
    reduced: Object = {name: event[name] for name in _TIME_FIELDS if event.get(name)}
    reduced |= {name: event.get(name) or "" for name in ("type", "reason", "message", "reportingComponent")}
    reduced["source"] = {"component": (event.get("source") or {}).get("component") or ""}
    reduced["series"] = {"lastObservedTime": (event.get("series") or {}).get("lastObservedTime")}
    reduced["involvedObject"] = {"name": (event.get("involvedObject") or {}).get("name") or ""}
    reduced["metadata"] = {"creationTimestamp": event["metadata"]["creationTimestamp"]}
    truncate_all_texts(reduced)
    return reduced


def find_newest_event(events: list[Object]) -> Object | None:
    return max(events, key=get_event_time, default=None)


def find_standing_warning(events: list[Object]) -> str | None:
    """Return the newest warning after which no event of type Normal came; None without one.

    Where several warnings alternate, return the one that causes the others: an alternating reason would make Hone write
    an event at each change.
    """
    good = find_newest_event([event for event in events if event.get("type") == "Normal"])
    standing = [
        event
        for event in events
        if event.get("type") == "Warning" and (good is None or get_event_time(event) > get_event_time(good))
    ]
    found = find_newest_event(
        [event for event in standing if MULTI_ATTACH in event.get("message", "")]
    ) or find_newest_event(standing)
    return _format_event(found) if found else None


def find_scaling_report(events: list[Object]) -> ScalingReport | None:
    """Return the newest report of an autoscaler among the events about a pod; None when there is none."""
    found = find_newest_event([event for event in events if is_scaling_report(event)])
    return read_scaling_report(found) if found else None


def find_workload_event(events: list[Object], job: str) -> str | None:
    """Return the newest event of Kueue about its Workload for this Job, whose name Kueue derives from the Job's."""
    name = re.compile(rf"job-{re.escape(job)}-[0-9a-f]+")
    found = find_newest_event([event for event in events if name.fullmatch(event["involvedObject"].get("name", ""))])
    return _format_event(found) if found else None


def get_event_time(event: Object) -> datetime:
    """Return when the event last happened: the field depends on the API that its reporter uses."""
    series = event.get("series") or {}
    moments = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    created = parse_time(event["metadata"]["creationTimestamp"])
    return max([created, *(found for text in moments if (found := parse_untrusted_time(text)))])


def _format_event(event: Object) -> str:
    """Return reason and message of an event, which may lack both: anybody may write events."""
    return f"{event.get('reason', '')}: {event.get('message', '')}"
