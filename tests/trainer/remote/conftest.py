"""A store with a few files, and downloads that lose no time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import PIECE, Store, content
from hone_trainer.remote import download as downloads
from hone_trainer.remote import fetch as fetching


@pytest.fixture
def store() -> Iterator[Store]:
    server = Store({"faq/a.jsonl": content(1), "faq/deep/b.jsonl": content(2, 100), "faq/empty.jsonl": b""})
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use small pieces, short waits, and a cache of the test's own."""
    make = downloads.Downloader

    def make_quick(*arguments: object) -> downloads.Downloader:
        return make(*arguments, piece_bytes=PIECE, first_wait_seconds=0.01)  # type: ignore[arg-type]

    monkeypatch.setattr(fetching, "Downloader", make_quick)
    monkeypatch.setattr(fetching.constants, "HF_HOME", str(tmp_path / "cache"))
