"""Stores with a few files, real S3 servers with a bucket `data`, real registries, and caches of the test's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import PIECE, Store, content
from hone_trainer.remote import download as downloads
from hone_trainer.remote import fetch as fetching
from ociserver.registry import RegistryServer
from ociserver.registry import find_missing_program as find_missing_registry
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


@pytest.fixture(scope="session")
def with_registry() -> None:
    """Skip tests of a real registry where it can't be built; under CI they fail."""
    if reason := find_missing_registry():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the tests with a registry must run under CI: {reason}")
        pytest.skip(f"NOT RUN: {reason}")


@pytest.fixture(scope="module")
def registry(with_registry: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Yield a registry over HTTP that everybody may read and write."""
    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def locked_registry(with_registry: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Yield a registry that wants user and password."""
    with RegistryServer(tmp_path_factory.mktemp("locked-registry"), has_login=True) as server:
        yield server


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the test's own cache."""
    monkeypatch.setattr(fetching.constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
