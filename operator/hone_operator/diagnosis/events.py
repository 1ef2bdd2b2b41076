"""Select the events about an object that still explain its state.

In: events of the Kubernetes API. Out: the newest standing warning, an autoscaler's report, or Kueue's reason, as text.
"""

import re
from collections.abc import AsyncIterable
from datetime import datetime

from hone_operator.diagnosis.autoscalers import Scaling, is_report, read_report
from hone_operator.diagnosis.volumes import MULTI_ATTACH
from hone_operator.objects.resources import Object
from hone_operator.objects.texts import cut_all
from hone_operator.objects.timestamps import parse_time, read_time

_TIMES = ("lastTimestamp", "eventTime")


# Kubernetes joins equal events about an object. More different ones than this are not read.
MOST_EVENTS = 500


async def read(listing: AsyncIterable[Object]) -> list[Object]:
    """Return the used fields of the first MOST_EVENTS events of a list, with their texts cut."""
    found: list[Object] = []
    async for event in listing:
        found.append(reduce(event))
        if len(found) >= MOST_EVENTS:
            break
    return found


def reduce(event: Object) -> Object:
    """Return the used fields of an event, with its texts cut."""
    kept: Object = {name: event[name] for name in _TIMES if event.get(name)}
    kept |= {name: event.get(name) or "" for name in ("type", "reason", "message", "reportingComponent")}
    kept["source"] = {"component": (event.get("source") or {}).get("component") or ""}
    kept["series"] = {"lastObservedTime": (event.get("series") or {}).get("lastObservedTime")}
    kept["involvedObject"] = {"name": (event.get("involvedObject") or {}).get("name") or ""}
    kept["metadata"] = {"creationTimestamp": event["metadata"]["creationTimestamp"]}
    cut_all(kept)
    return kept


def newest(events: list[Object]) -> Object | None:
    return max(events, key=moment, default=None)


def standing_warning(events: list[Object]) -> str | None:
    """Return the newest warning after which no event of type Normal came; None without one.

    Where several warnings alternate, return the one that causes the others: an alternating reason would make Hone write
    an event at each change.
    """
    good = newest([event for event in events if event.get("type") == "Normal"])
    standing = [
        event for event in events if event.get("type") == "Warning" and (good is None or moment(event) > moment(good))
    ]
    found = newest([event for event in standing if MULTI_ATTACH in event.get("message", "")]) or newest(standing)
    return _words(found) if found else None


def scaling_of(events: list[Object]) -> Scaling | None:
    """Return the newest report of an autoscaler among the events about a pod; None when there is none."""
    found = newest([event for event in events if is_report(event)])
    return read_report(found) if found else None


def of_workload(events: list[Object], job: str) -> str | None:
    """Return the newest event of Kueue about its Workload for this Job, whose name Kueue derives from the Job's."""
    name = re.compile(rf"job-{re.escape(job)}-[0-9a-f]+")
    found = newest([event for event in events if name.fullmatch(event["involvedObject"].get("name", ""))])
    return _words(found) if found else None


def moment(event: Object) -> datetime:
    """Return when the event last happened: the field depends on the API that its reporter uses."""
    series = event.get("series") or {}
    moments = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    created = parse_time(event["metadata"]["creationTimestamp"])
    return max([created, *(found for text in moments if (found := read_time(text)))])


def _words(event: Object) -> str:
    """Return reason and message of an event, which may lack both: anybody may write events."""
    return f"{event.get('reason', '')}: {event.get('message', '')}"
