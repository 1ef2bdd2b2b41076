"""Print several models' answers to one question in columns, as they come. For a terminal; a pipe gets lines."""

import threading
from contextlib import closing
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hone.engine import Engine, Message


def print_answers_in_columns(
    engine: "Engine", conversations: dict[str, "list[Message]"], console: Console
) -> dict[str, str]:
    """Ask every model at once, each with its own conversation. Raises ClientError as soon as one fails."""
    answers = dict.fromkeys(conversations, "")
    failures: list[Exception] = []
    ended = threading.Event()

    def listen(model: str) -> None:
        try:
            with closing(engine.answer(model, conversations[model])) as pieces:
                for piece in pieces:
                    if ended.is_set():
                        return
                    answers[model] += piece
        except Exception as error:
            failures.append(error)
            ended.set()

    # Daemon threads, because a thread that waits for its first piece would delay Ctrl-C.
    threads = [threading.Thread(target=listen, args=(model,), daemon=True) for model in conversations]
    with Live(get_renderable=lambda: columns(answers), console=console):
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not ended.wait(0.05):
                pass
        finally:
            ended.set()
    if failures:
        raise failures[0]
    return answers


def columns(answers: dict[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    for model in answers:
        table.add_column(Text(model), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in answers.values()))
    return table
