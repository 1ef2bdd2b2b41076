"""Draw docs/pictures/architecture.svg: who talks to whom when a model is trained and served.

`python docs/pictures/architecture.py` writes the picture. A test compares it with this file.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURE = Path(__file__).with_suffix(".svg")
WIDTH, HEIGHT = 960, 500
LINE = 16
"""Pixels from one line of text to the next."""


@dataclass(frozen=True)
class Box:
    """A part of the system. `lines`: its title, then what it does."""

    x: int
    y: int
    width: int
    height: int
    color: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Arrow:
    """A line through points, with its text at a place of its own."""

    points: tuple[tuple[int, int], ...]
    text: str
    at: tuple[int, int]


USER, KUBERNETES, HONE, STORAGE = "#f3f4f6", "#dbeafe", "#fde68a", "#d1fae5"

BOXES = (
    Box(20, 30, 180, 80, USER, ("kubectl, hone (cli)", "FineTuneJob,", "InferenceService")),
    Box(290, 30, 180, 80, KUBERNETES, ("Kubernetes API server", "refuses a bad object", "by the CRD's rules")),
    Box(560, 30, 380, 80, HONE, ("operator", "snapshot → plan (pure) → execute → status", "two replicas, one Lease")),
    Box(
        20,
        200,
        180,
        110,
        HONE,
        ("Job NAME-prepare", "trainer, without a GPU:", "download, check,", "tokenize, estimate"),
    ),
    Box(290, 200, 180, 110, HONE, ("Job NAME-train", "trainer, on AMD GPUs:", "train with TRL,", "checkpoint, save")),
    Box(
        560,
        200,
        380,
        110,
        HONE,
        (
            "Deployment NAME",
            "init container: verify and link the artifacts",
            "engine: vLLM, or embedded (server)",
            "sidecar: adapters at run time",
        ),
    ),
    Box(
        20,
        390,
        450,
        80,
        STORAGE,
        (
            "PersistentVolumeClaim",
            "prepared/ · checkpoints/ · adapter/ merged/ model/ · report/",
            "manifest.json, last: sha256 of every file, and a digest",
        ),
    ),
    Box(730, 390, 210, 80, USER, ("client", "OpenAI-compatible API", "NAME.NAMESPACE.svc/v1")),
)

ARROWS = (
    Arrow(((200, 70), (290, 70)), "apply", (245, 62)),
    Arrow(((470, 60), (560, 60)), "watch", (515, 52)),
    Arrow(((560, 84), (470, 84)), "apply", (515, 102)),
    Arrow(((340, 110), (340, 150), (110, 150), (110, 200)), "first", (225, 143)),
    Arrow(((380, 110), (380, 200)), "then", (402, 160)),
    Arrow(((440, 110), (440, 150), (750, 150), (750, 200)), "when the artifact is complete", (600, 143)),
    Arrow(((110, 310), (110, 390)), "prepared rows", (162, 355)),
    Arrow(((340, 390), (340, 310)), "", (0, 0)),
    Arrow(((400, 310), (400, 390)), "artifact", (432, 355)),
    Arrow(((470, 430), (620, 430), (620, 310)), "files, checked by digest", (548, 448)),
    Arrow(((835, 390), (835, 310)), "Service", (866, 355)),
)


def draw_box(box: Box) -> str:
    top = box.y + (box.height - LINE * len(box.lines)) // 2 + 12
    center = box.x + box.width // 2
    lines = [
        f'<text x="{center}" y="{top + LINE * number}" class="{"text" if number else "title"}">{escape(line)}</text>'
        for number, line in enumerate(box.lines)
    ]
    shape = f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6" fill="{box.color}"/>'
    return "\n".join([shape, *lines])


def draw_arrow(arrow: Arrow) -> str:
    points = " ".join(f"{x},{y}" for x, y in arrow.points)
    line = f'<polyline points="{points}" marker-end="url(#head)"/>'
    if not arrow.text:
        return line
    return f'{line}\n<text x="{arrow.at[0]}" y="{arrow.at[1]}" class="label">{escape(arrow.text)}</text>'


def draw_picture() -> str:
    """Return the picture as SVG."""
    style = (
        "text{font:13px sans-serif;text-anchor:middle;fill:#111827}"
        ".title{font-weight:bold}.label{font-size:12px;fill:#4b5563}"
        "rect{stroke:#6b7280}polyline{fill:none;stroke:#4b5563;stroke-width:1.5}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            "<title>Hone: from a FineTuneJob to an answer</title>",
            f"<style>{style}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#4b5563"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff" style="stroke:none"/>',
            *map(draw_arrow, ARROWS),
            *map(draw_box, BOXES),
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw_picture())
