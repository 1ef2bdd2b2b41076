"""Stores with a few files, real S3 servers with a bucket `data`, real registries, and caches of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import PIECE, Store, content
from hone_trainer.remote import download as downloads
from hone_trainer.remote import fetch as fetching
from ociserver.fixtures import locked_registry as locked_registry
from ociserver.fixtures import registry as registry
from ociserver.fixtures import with_registry as with_registry
from s3server.fixtures import authority as authority
from s3server.fixtures import gateway as gateway
from s3server.fixtures import secure_gateway as secure_gateway
from s3server.fixtures import with_programs as with_programs


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


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the test's own cache."""
    monkeypatch.setattr(fetching.constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
