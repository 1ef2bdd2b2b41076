"""report.html from the report's data: one self-contained file, in which all external text is escaped."""

import json
import re
from functools import cache, partial
from importlib.resources import files
from typing import Any

import jinja2
from hone_api.byte_sizes import format_gib_or_mib

from hone_trainer.progress.terminal import format_duration
from hone_trainer.reporting.charts import Chart, ChartCurve, make_charts
from hone_trainer.reporting.terms import TERMS


def render(data: dict[str, Any]) -> str:
    """Return the page."""
    return _template().render(report=data, charts=make_charts(data.get("log", [])), terms=TERMS)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(
        number=number,
        size=partial(format_gib_or_mib, decimals=2),
        words=words,
        took=lambda seconds: format_duration(round(seconds)),
        shown=shown,
    )
    environment.filters.update(pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False))
    environment.filters.update(alt=alt, read_out=read_out, flat=flat, anchor=anchor)
    return environment.from_string(
        files("hone_trainer.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    )


def number(value: float, unit: str = "") -> str:
    """Format a number as short as a person reads it, with its unit."""
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return f"{text} {unit}" if unit else text


def words(name: str) -> str:
    """Return a name in separate terms: `trainedTokens` as `trained tokens`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f" {found[1].lower()}", name).replace("_", " ")


def anchor(name: str) -> str:
    """Return the id of a term's explanation on the page."""
    return "term-" + name.replace(" ", "-")


def shown(value: Any) -> str:
    """Return a setting's value as in the manifest."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def alt(chart: Chart) -> str:
    """Return the alternative text of a chart."""
    return f"{chart.title} over steps: " + "; ".join(_told(curve, chart.unit) for curve in chart.curves)


def _told(curve: ChartCurve, unit: str) -> str:
    (first, began), (last, ended) = curve.points[0], curve.points[-1]
    values = [value for _, value in curve.points]
    return (
        f"{curve.name} from {number(began, unit)} at step {number(first)} to {number(ended, unit)} at step "
        f"{number(last)}, lowest {number(min(values), unit)}, highest {number(max(values), unit)}"
    )


def read_out(chart: Chart) -> str:
    """Return, as JSON, what the page's script shows under the pointer."""
    curves = [
        {"name": curve.name, "points": [[step, number(value, chart.unit)] for step, value in curve.points]}
        for curve in chart.curves
    ]
    return json.dumps({"left": chart.box[0], "right": chart.box[1], "curves": curves}, ensure_ascii=False)


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a dict of dicts: `{lengths: {max: 3}}` becomes `{lengths max: 3}`."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        key = f"{prefix} {name}".strip()
        found |= flat(item, key) if isinstance(item, dict) else {key: item}
    return found
