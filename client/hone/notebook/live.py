"""A place in a notebook whose HTML is replaced again and again; in a terminal, lines; anywhere else, nothing."""

import sys
from typing import Any

from hone_api.io.terminal import print_line


class LiveView:
    """Shows text. It is looked up when it is made where it shows it."""

    def __init__(self) -> None:
        self._notebook = _find_notebook()
        self._handle: Any = None
        self._is_terminal = self._notebook is None and sys.stderr is not None and sys.stderr.isatty()
        self._last = ""

    def show(self, html: str, text: str) -> None:
        """Show the HTML in a notebook; in a terminal the text, if it is another one."""
        if self._notebook is not None:
            shown = {"text/html": html, "text/plain": text}
            if self._handle is None:
                self._handle = self._notebook.display(shown, raw=True, display_id=True)
            else:
                self._handle.update(shown, raw=True)
        elif self._is_terminal and text != self._last:
            print_line(text)
        self._last = text


def _find_notebook() -> Any:
    """Return IPython's module for output where a kernel of a notebook runs; None anywhere else."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return sys.modules["IPython"].display
