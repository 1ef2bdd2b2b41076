"""What the events about an object tell."""

import re
from collections.abc import AsyncIterable
from datetime import datetime

from hone_operator.diagnosis.autoscalers import Scaling, is_report, read_report
from hone_operator.diagnosis.volumes import MULTI_ATTACH
from hone_operator.objects.resources import Object
from hone_operator.objects.texts import cut_all
from hone_operator.objects.timestamps import parse_time, read_time

_TIMES = ("lastTimestamp", "eventTime")


# Kubernetes joins equal events about an object; what makes so many different ones is not worth waiting for.
MOST_EVENTS = 500


async def read(listing: AsyncIterable[Object]) -> list[Object]:
    """Return what is used of the events of a list, of MOST_EVENTS at most, with their texts cut."""
    found: list[Object] = []
    async for event in listing:
        found.append(reduce(event))
        if len(found) >= MOST_EVENTS:
            break
    return found


def reduce(event: Object) -> Object:
    """Return what is used of an event, with its texts cut."""
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
    """The warning that no good news has followed.

    Of several, which come by turns, the one that is the cause of the others: a reason that alternates would make an
    event of Hone's at every turn.
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
    """The newest of what Kueue tells about its Workload for this Job, which has a name of Kueue's making."""
    name = re.compile(rf"job-{re.escape(job)}-[0-9a-f]+")
    found = newest([event for event in events if name.fullmatch(event["involvedObject"].get("name", ""))])
    return _words(found) if found else None


def moment(event: Object) -> datetime:
    """When the event last happened: the field depends on the API that its reporter uses."""
    series = event.get("series") or {}
    moments = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    created = parse_time(event["metadata"]["creationTimestamp"])
    return max([created, *(found for text in moments if (found := read_time(text)))])


def _words(event: Object) -> str:
    """Return what the event says: anybody may write one without a reason or a message."""
    return f"{event.get('reason', '')}: {event.get('message', '')}"
