"""Artifacts to push, and the servers that they are pushed to."""

from pathlib import Path

import pytest
from hone_trainer.push.artifact import LocalArtifact, load_artifact
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
