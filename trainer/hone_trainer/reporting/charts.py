"""Curves of the report, from logged lines: pure arithmetic.

Input is the lines of metrics.jsonl; output is charts with SVG paths and ticks, which `html` puts into the page. There
is no plotting library, so that the page needs nothing else.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hone_api.byte_sizes import GIB, MIB

Points = list[tuple[float, float]]

# Width and height of the box in which curves are drawn; the page stretches it.
SIZE = 1000
# More points than a screen can show apart.
MOST_POINTS = 600
# Each chart's title, unit, and curves: the name in the log and the displayed one.
CURVES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "", (("loss", "training"), ("eval_loss", "evaluation"))),
    ("Learning rate", "", (("learning_rate", "learning rate"),)),
    ("Gradient norm", "", (("grad_norm", "gradient norm"),)),
    ("Speed", "tokens/s", (("tokens_per_second", "tokens/s"),)),
    (
        "Device memory",
        "bytes",
        (("device_memory_reserved", "reserved"), ("device_memory_allocated", "allocated")),
    ),
    ("Memory of the process (no GPU)", "bytes", (("process_memory", "resident set"),)),
)


@dataclass(frozen=True)
class ChartCurve:
    """A curve. `path` is an SVG path within SIZE x SIZE; `points` are steps and values."""

    name: str
    points: Points
    path: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis. `share` is its position, from 0 (left or bottom) to 1."""

    value: float
    share: float


@dataclass(frozen=True)
class Chart:
    """Curves over the same steps."""

    title: str
    unit: str
    curves: list[ChartCurve]
    across: list[Tick]
    up: list[Tick]
    # Left, right, bottom and top, in steps and values.
    box: tuple[float, float, float, float]


def make_charts(log: Iterable[dict[str, Any]]) -> list[Chart]:
    """Return the charts for which the logged lines have values."""
    lines = list(log)
    found = []
    for title, unit, names in CURVES:
        series = [(shown, thin_points(points)) for name, shown in names if (points := _read_points(lines, name))]
        if series and unit == "bytes":
            unit, series = _scale_bytes(series)
        if series:
            found.append(_make_chart(title, unit, series))
    return found


def _scale_bytes(series: list[tuple[str, Points]]) -> tuple[str, list[tuple[str, Points]]]:
    most = max(value for _, points in series for _, value in points)
    unit, each = ("GiB", GIB) if most >= GIB else ("MiB", MIB)
    return unit, [(name, [(step, value / each) for step, value in points]) for name, points in series]


def _read_points(lines: list[dict[str, Any]], name: str) -> Points:
    return [(line["step"], line[name]) for line in lines if _is_number(line.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thin_points(points: Points, most: int = MOST_POINTS) -> Points:
    """Return at most `most` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= most:
        return points
    stretches = max((most - 2) // 2, 1)
    inner = points[1:-1]
    thinned = {points[0], points[-1]}
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        thinned |= {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
    return sorted(thinned)


def make_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers from `low` to `high`, `about` that many: 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    apart = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    first = math.ceil(low / apart - 1e-9)
    return [float(f"{number * apart:.12g}") for number in range(first, math.floor(high / apart + 1e-9) + 1)]


def _make_chart(title: str, unit: str, series: Sequence[tuple[str, Points]]) -> Chart:
    steps = [step for _, points in series for step, _ in points]
    values = [value for _, points in series for _, value in points]
    left, right = min(steps), max(steps)
    room = (max(values) - min(values)) * 0.05 or abs(max(values)) * 0.05 or 1.0
    bottom, top = min(values) - room, max(values) + room
    if min(values) >= 0:
        bottom = max(bottom, 0.0)
    box = (left, right, bottom, top)
    return Chart(
        title,
        unit,
        [ChartCurve(name, points, _draw_path(points, box)) for name, points in series],
        [Tick(step, _compute_share(step, left, right)) for step in make_ticks(left, right) if step == int(step)],
        [Tick(value, _compute_share(value, bottom, top)) for value in make_ticks(bottom, top)],
        box,
    )


def _compute_share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _draw_path(points: Points, box: tuple[float, float, float, float]) -> str:
    left, right, bottom, top = box
    places = [
        f"{SIZE * _compute_share(step, left, right):.1f} {SIZE * (1 - _compute_share(value, bottom, top)):.1f}"
        for step, value in points
    ]
    return f"M{places[0]}h0" if len(places) == 1 else "M" + "L".join(places)
