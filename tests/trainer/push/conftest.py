"""Artifacts to push, and the servers that they are pushed to."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hub_writes import WritableHub
from huggingface_hub import constants
from huggingface_hub.utils import _http
from ociserver.fixtures import locked_registry as locked_registry
from ociserver.fixtures import registry as registry
from ociserver.fixtures import with_registry as with_registry
from pushed_artifacts import write_artifact
from s3server.fixtures import authority as authority
from s3server.fixtures import gateway as gateway
from s3server.fixtures import secure_gateway as secure_gateway
from s3server.fixtures import with_programs as with_programs


@pytest.fixture
def artifact(tmp_path: Path) -> LocalArtifact:
    """Return a small adapter."""
    return load_artifact(write_artifact(tmp_path / "artifact"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WritableHub]:
    """Yield a hub without repositories, with which the library waits shortly after a failure."""
    server = WritableHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None}))
    yield server
    server.shutdown()
    server.server_close()
