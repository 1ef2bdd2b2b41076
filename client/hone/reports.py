"""The report of a FineTuneJob: a page of HTML that needs nothing else."""

import webbrowser
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import mkdtemp

from hone.errors import ClientError
from hone.notebook.panel import render_report


@dataclass(frozen=True, repr=False)
class Report:
    """A report. A notebook shows it."""

    job: str
    content: bytes

    @property
    def html(self) -> str:
        """Return the page."""
        return self.content.decode("utf-8", "replace")

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the report to a file and return its path. A file with the same content stays.

        Raises ClientError for any other file.
        """
        place = Path(path)
        try:
            with place.open("xb") as file:
                file.write(self.content)
        except FileExistsError:
            if not place.is_file() or place.read_bytes() != self.content:
                raise ClientError(
                    f"{place} exists, and is another file", "Move it away, or name another file."
                ) from None
        return place

    def open(self) -> bool:
        """Open the report in the browser. Return whether there is one."""
        place = self.save(Path(mkdtemp(prefix="hone-")) / f"{self.job}-report.html")
        return webbrowser.open(place.resolve().as_uri())

    def __repr__(self) -> str:
        return f"Report of {self.job}: {len(self.content)} bytes of HTML. Use .save('report.html') or .open()."

    def _repr_html_(self) -> str:
        return render_report(self.html)
