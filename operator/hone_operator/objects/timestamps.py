"""Timestamps in Kubernetes objects: write, parse and compare them; they may be by another machine's clock. Pure."""

from datetime import datetime, timedelta

EARLIEST_YEAR, LATEST_YEAR = 1970, 2200


def parse_time(text: str) -> datetime:
    """Parse a moment that the API server has set, such as a creationTimestamp."""
    return datetime.fromisoformat(text)


def parse_untrusted_time(text: object) -> datetime | None:
    """Parse a moment that anybody may have written; None where it is not a plausible moment with a time zone."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo and EARLIEST_YEAR <= found.year < LATEST_YEAR else None


def has_lasted(since: datetime, duration: timedelta, now: datetime) -> bool:
    """Return whether something has lasted for `duration`; `since` is by another clock than the operator's.

    A moment far ahead shows that the clocks differ. Then the duration is unknown, and counts as long enough: waiting
    until the operator's clock reaches that moment would hide the problem for as long.
    """
    return abs(now - since) >= duration


def format_timestamp(moment: datetime) -> str:
    """Return a moment in RFC 3339 format, in UTC, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
