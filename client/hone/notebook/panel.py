"""The HTML of a job, a transfer and a report. Pure. All text is escaped: conditions and names are written by others."""

from collections.abc import Mapping, Sequence
from html import escape

from hone_api.io.terminal import make_printable

from hone.progress import Curve

WIDTH, HEIGHT = 320, 96
# Of a curve: more than there are pixels show nothing more.
MOST_POINTS = 640
COLORS = {"Succeeded": "#2e7d32", "Failed": "#c62828"}
BOX = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.5;max-width:680px"


def render_job(title: str, stage: str, percent: int, lines: Sequence[str], curves: Mapping[str, Curve]) -> str:
    """Return a box with a bar, lines of text, and a chart for each curve of two points or more."""
    charts = "".join(_render_curve(name, points) for name, points in curves.items() if len(points) > 1)
    return _render_box(title, stage, percent, lines) + f'<div style="display:flex;flex-wrap:wrap">{charts}</div>'


def render_transfer(title: str, received: int, total: int) -> str:
    """Return a box with a bar for bytes."""
    percent = 100 * received // total if total else 100
    stage = "Succeeded" if received >= total else ""
    return _render_box(title, stage, percent, [f"{_format_mib(received)} of {_format_mib(total)}"])


def render_report(content: str) -> str:
    """Return a frame with a page, whose styles do not reach the notebook."""
    source = escape(content, quote=True)
    return f'<iframe srcdoc="{source}" sandbox style="width:100%;height:600px;border:1px solid #ccc"></iframe>'


def _render_box(title: str, stage: str, percent: int, lines: Sequence[str]) -> str:
    color = COLORS.get(stage, "#1565c0")
    shown = f"{title}: {stage}" if stage else title
    bar = f'<div style="width:{max(0, min(100, percent))}%;height:6px;background:{color}"></div>'
    rows = "".join(f"<div>{_escape(line)}</div>" for line in lines if line)
    return (
        f'<div style="{BOX}"><div><b style="color:{color}">{_escape(shown)}</b> {percent} %</div>'
        f'<div style="background:#ddd;margin:3px 0">{bar}</div>{rows}</div>'
    )


def _render_curve(name: str, points: Curve) -> str:
    shown = points[:: max(1, len(points) // MOST_POINTS)]
    if shown[-1] != points[-1]:
        shown = [*shown, points[-1]]
    steps, values = [step for step, _ in shown], [value for _, value in shown]
    low, high = min(values), max(values)
    width, height = max(1, steps[-1] - steps[0]), (high - low) or 1.0
    path = " ".join(
        f"{WIDTH * (step - steps[0]) / width:.1f},{HEIGHT - HEIGHT * (value - low) / height:.1f}"
        for step, value in shown
    )
    return (
        f'<figure style="margin:6px 12px 0 0"><figcaption style="font-size:12px">{_escape(name)} '
        f"{values[-1]:.4g} (from {values[0]:.4g}), step {steps[-1]}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="-2 -2 {WIDTH + 4} {HEIGHT + 4}" role="img">'
        f'<polyline points="{path}" fill="none" stroke="#1565c0" stroke-width="1.5"/></svg></figure>'
    )


def _escape(text: str) -> str:
    return escape(make_printable(text), quote=True)


def _format_mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
