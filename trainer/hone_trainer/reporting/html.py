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


def render_page(data: dict[str, Any]) -> str:
    """Return the page."""
    return _load_template().render(report=data, charts=make_charts(data.get("log", [])), terms=TERMS)


@cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(
        number=format_number,
        size=partial(format_gib_or_mib, decimals=2),
        words=split_name,
        took=lambda seconds: format_duration(round(seconds)),
        shown=show_setting,
    )
    environment.filters.update(pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False))
    environment.filters.update(alt=describe_chart, read_out=read_out, flat=flatten_names, anchor=make_anchor)
    return environment.from_string(
        files("hone_trainer.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    )


def format_number(value: float, unit: str = "") -> str:
    """Format a number as short as a person reads it, with its unit."""
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return f"{text} {unit}" if unit else text


def split_name(name: str) -> str:
    """Return a name in separate terms: `trainedTokens` as `trained tokens`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f" {found[1].lower()}", name).replace("_", " ")


def make_anchor(name: str) -> str:
    """Return the id of a term's explanation on the page."""
    return "term-" + name.replace(" ", "-")


def show_setting(value: Any) -> str:
    """Return a setting's value as in the manifest."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def describe_chart(chart: Chart) -> str:
    """Return the alternative text of a chart."""
    return f"{chart.title} over steps: " + "; ".join(_describe_curve(curve, chart.unit) for curve in chart.curves)


def _describe_curve(curve: ChartCurve, unit: str) -> str:
    (first, began), (last, ended) = curve.points[0], curve.points[-1]
    values = [value for _, value in curve.points]
    start, end, least, most = (format_number(value, unit) for value in (began, ended, min(values), max(values)))
    steps = f"from {start} at step {format_number(first)} to {end} at step {format_number(last)}"
    return f"{curve.name} {steps}, lowest {least}, highest {most}"


def read_out(chart: Chart) -> str:
    """Return, as JSON, what the page's script shows under the pointer."""
    curves = [
        {"name": curve.name, "points": [[step, format_number(value, chart.unit)] for step, value in curve.points]}
        for curve in chart.curves
    ]
    return json.dumps({"left": chart.box[0], "right": chart.box[1], "curves": curves}, ensure_ascii=False)


def flatten_names(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a dict of dicts: `{lengths: {max: 3}}` becomes `{lengths max: 3}`."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        key = f"{prefix} {name}".strip()
        found |= flatten_names(item, key) if isinstance(item, dict) else {key: item}
    return found
