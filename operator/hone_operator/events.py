"""What the events about an object tell."""

import re
from datetime import datetime

from hone_operator.autoscalers import Scaling, is_report, read_report
from hone_operator.podstate import parse_time
from hone_operator.resources import Object
from hone_operator.volumes import MULTI_ATTACH


def newest(events: list[Object]) -> Object | None:
    return max(events, key=moment, default=None)


def standing_warning(events: list[Object]) -> str | None:
    """The warning that no good news has followed.

    Of several, which come by turns, the one that is the cause of the others: a reason that alternates would make an
    event of Hone's at every turn.
    """
    good = newest([event for event in events if event["type"] == "Normal"])
    standing = [
        event for event in events if event["type"] == "Warning" and (good is None or moment(event) > moment(good))
    ]
    found = newest([event for event in standing if MULTI_ATTACH in event["message"]]) or newest(standing)
    return f"{found['reason']}: {found['message']}" if found else None


def scaling_of(events: list[Object]) -> Scaling | None:
    """Return the newest report of an autoscaler among the events about a pod; None when there is none."""
    found = newest([event for event in events if is_report(event)])
    return read_report(found) if found else None


def of_workload(events: list[Object], job: str) -> str | None:
    """The newest of what Kueue tells about its Workload for this Job, which has a name of Kueue's making."""
    name = re.compile(rf"job-{re.escape(job)}-[0-9a-f]+")
    found = newest([event for event in events if name.fullmatch(event["involvedObject"]["name"])])
    return f"{found['reason']}: {found['message']}" if found else None


def moment(event: Object) -> datetime:
    """When the event last happened: the field depends on the API that its reporter uses."""
    series = event.get("series") or {}
    moments = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max(parse_time(text) for text in (*moments, event["metadata"]["creationTimestamp"]) if text)
