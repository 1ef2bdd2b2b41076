"""The table and the JSON document of `hone list`. Pure."""

from collections.abc import Sequence
from datetime import datetime

from hone.objects import views
from hone.objects.views import Object

COLUMNS = ("KIND", "NAME", "PHASE", "PROGRESS", "AGE", "MODEL", "DIGEST OR ENDPOINT")


def make_rows(bodies: Sequence[Object]) -> list[Object]:
    """Return one plain object for each object of Hone, with its full values; None: not known."""
    return [
        {
            "kind": body["kind"],
            "namespace": body["metadata"].get("namespace"),
            "name": body["metadata"]["name"],
            "phase": views.describe_phase(body),
            "progress": views.describe_progress(body),
            "createdAt": body["metadata"].get("creationTimestamp"),
            "model": views.describe_model(body),
            "digest": views.find_digest(body),
            "endpoint": views.find_endpoint(body),
        }
        for body in bodies
    ]


def format_table(bodies: Sequence[Object], now: datetime, *, with_namespace: bool) -> list[str]:
    """Return the lines of a table with aligned columns."""
    rows = [_make_cells(body, now, with_namespace) for body in bodies]
    return align_columns([("NAMESPACE", *COLUMNS) if with_namespace else COLUMNS, *rows])


def align_columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return one line for each row, its cells padded to the width of their column; a cell is one line."""
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["   ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _make_cells(body: Object, now: datetime, with_namespace: bool) -> tuple[str, ...]:
    kind, found = views.find_kind(body), views.find_digest(body)
    short = found[: views.SHORT_DIGEST] if found else "-"
    return (
        *([str(body["metadata"].get("namespace"))] if with_namespace else []),
        kind.name,
        body["metadata"]["name"],
        views.describe_phase(body),
        views.describe_progress(body),
        views.format_age(body, now),
        views.describe_model(body),
        views.find_endpoint(body) or short,
    )
