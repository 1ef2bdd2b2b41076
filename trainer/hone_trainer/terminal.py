"""What a person sees: a live bar on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType

from hone_api.reports import Progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar


class Terminal:
    """A context: inside, progress is shown on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal
        self._bar = Bar(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("training", total=None, figures="", visible=False)

    def __enter__(self) -> "Terminal":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Bring the bar up to date."""
        if self._live:
            self._bar.update(
                self._task,
                completed=progress.step,
                total=progress.total_steps,
                figures=figures(progress),
                visible=True,
                refresh=True,
            )

    def logged(self, progress: Progress | None) -> None:
        """A step was logged: a line, where there is no bar."""
        if progress and not self._live:
            self.note(f"step {progress.step}/{progress.total_steps} ({progress.percent} %)  {figures(progress)}")

    def warn(self, warnings: list[str]) -> None:
        """Print warnings, one a line."""
        for warning in warnings:
            self.note(f"warning: {warning}")

    def note(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(text, markup=False)
        sys.stderr.flush()


def figures(progress: Progress) -> str:
    """Loss, speed and time left in a few words."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta is not None:
        parts.append(f"{duration(progress.eta)} left")
    return "  ".join(parts)


def duration(seconds: int) -> str:
    """Such as 1h 02m, 3m 05s or 12s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"
