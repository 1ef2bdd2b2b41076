"""Moments in Kubernetes objects: written, read, and compared by a clock that is not the operator's. Pure."""

from datetime import datetime, timedelta

EARLIEST_YEAR, LATEST_YEAR = 1970, 2200


def parse_time(text: str) -> datetime:
    """Return a moment that the API server has set, such as a creationTimestamp."""
    return datetime.fromisoformat(text)


def read_time(text: object) -> datetime | None:
    """Return a moment that anybody may have written; None where it is none that a clock can show."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo and EARLIEST_YEAR <= found.year < LATEST_YEAR else None


def has_lasted(since: datetime, patience: timedelta, now: datetime) -> bool:
    """Whether something has lasted for `patience`, by a clock that is not the operator's.

    A moment that lies far ahead shows that the clocks differ: then it is not known how long it lasted, and waiting
    until the operator's clock is there as well would hide it for as long.
    """
    return abs(now - since) >= patience


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
