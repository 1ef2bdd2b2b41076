"""A rich console for text that others wrote. Only `output.make_console` creates one."""

from collections.abc import Iterable
from typing import Any

from hone_api.io.terminal import make_printable
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment


class PrintableConsole(Console):
    """Prints markup and emoji codes as text, and escapes control characters, except rich's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(make_printable(segment.text), segment.style)
