"""Output for a person: a live bar on a terminal, plain lines elsewhere.

All of it goes to standard error, through a console that escapes control characters, since texts come from datasets and
models. `pipeline` and `training.callbacks` call it; of several processes only the first one's is shown.
"""

import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from hone_api.artifacts.dataset_report import DatasetReport, SplitReport
from hone_api.artifacts.trainer_reports import Progress
from hone_api.io.terminal import make_printable
from pydantic.alias_generators import to_camel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# The lines of the dataset's report.
ROWS: dict[str, Callable[[SplitReport], str]] = {
    "rows": lambda split: f"{split.rows:,}",
    "tokens": lambda split: f"{split.tokens:,}",
    "tokens that are learned": lambda split: f"{split.trained_tokens:,}",
    "tokens a row: median": lambda split: f"{split.lengths.p50:,}",
    "95 of 100 rows have at most": lambda split: f"{split.lengths.p95:,}",
    "the longest row": lambda split: f"{split.lengths.max:,}",
    "rows that maxLength cuts": lambda split: f"{split.truncated_rows:,}",
    "tokens cut off": lambda split: f"{split.truncated_tokens:,}",
    "rows with nothing left to learn": lambda split: f"{split.dropped_rows:,}",
    "rows with nothing to learn": lambda split: f"{split.empty_rows:,}",
    "rows that repeat another": lambda split: f"{split.duplicate_rows:,}",
    "rows left, after cutting and packing": lambda split: f"{split.kept_rows:,}",
}


class PrintableConsole(Console):
    """A console that shows markup and emoji codes as text, and escapes control characters other than rich's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(make_printable(segment.text), segment.style)


class Terminal:
    """Shows progress on standard error, as a context manager; shows nothing when not `shown`."""

    def __init__(self, shown: bool = True) -> None:
        self._console = PrintableConsole(stderr=True, soft_wrap=True, quiet=not shown)
        self._live = shown and self._console.is_terminal
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

    def show_progress(self, progress: Progress) -> None:
        """Update the bar."""
        if self._live:
            self._bar.update(
                self._task,
                completed=progress.step,
                total=progress.total_steps,
                figures=format_figures(progress),
                visible=True,
                refresh=True,
            )

    def print_logged_step(self, progress: Progress | None) -> None:
        """Print a line for a logged step when there is no bar."""
        if progress and not self._live:
            done = f"step {progress.step}/{progress.total_steps} ({progress.percent} %)"
            named = {name: getattr(progress, name) for name in ("grad_norm", "learning_rate", "epoch")}
            values = "  ".join(f"{name} {value:.4g}" for name, value in named.items() if value is not None)
            self.print_note(f"{done}  {format_figures(progress)}  {values}")

    def print_metrics(self, metrics: dict[str, float]) -> None:
        """Print the metrics of all starts of the run together, by Trainer's names; runtime is in seconds."""
        names = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
        self.print_note("  ".join(f"{name} {metrics[to_camel(name)]:.4g}" for name in names))

    def print_warnings(self, warnings: list[str]) -> None:
        """Print warnings, one per line."""
        for warning in warnings:
            self.print_note(f"warning: {warning}")

    def print_dataset_report(self, report: DatasetReport) -> None:
        """Print the properties of the rows, a column for each split."""
        splits = {"train": report.train, "evaluation": report.evaluation}
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(report.format)
        for name, split in splits.items():
            if split:
                table.add_column(name, justify="right")
        for label, value in ROWS.items():
            table.add_row(label, *(value(split) for split in splits.values() if split))
        self._console.print(table)
        for number, one in enumerate(report.datasets, start=1):
            self.print_note(f"dataset {number}: {one.describe()}")

    def print_sample(self, segments: list[tuple[str, bool]]) -> None:
        """Print a row as the model reads it; what is learned is in green, or without colours between ⟦ and ⟧."""
        has_colours = self._console.color_system is not None
        text = Text("a row, ")
        text.append("what is learned in green\n" if has_colours else "what is learned between ⟦ and ⟧\n")
        for piece, learned in segments:
            shown = piece if has_colours or not learned else f"⟦{piece}⟧"
            text.append(shown, style="green" if learned else "dim")
        self._console.print(text)

    def print_note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(text)
        sys.stderr.flush()


def format_figures(progress: Progress) -> str:
    """Return loss, speed and time left as a short text."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta is not None:
        parts.append(f"{format_duration(progress.eta)} left")
    return "  ".join(parts)


def format_duration(seconds: int) -> str:
    """Format a duration, for example 1h 02m, 3m 05s or 12s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"
