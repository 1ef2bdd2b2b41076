"""Fixtures with S3 servers, which a conftest.py imports by name."""

from collections.abc import Iterator

import pytest
from go_fixtures import skip_without_programs
from s3server.gateway import Authority, Gateway, find_missing_program


@pytest.fixture(scope="session")
def with_programs() -> None:
    """Skip tests of a real S3 server where it can't be built; under CI they fail."""
    skip_without_programs(find_missing_program())


@pytest.fixture(scope="module")
def gateway(with_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Yield an S3 server over HTTP."""
    with Gateway(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def authority(with_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the authority of `secure_gateway`."""
    return Authority(tmp_path_factory.mktemp("authority") / "of-server")


@pytest.fixture(scope="module")
def secure_gateway(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Yield an S3 server over HTTPS."""
    with Gateway(tmp_path_factory.mktemp("s3-secure"), authority) as server:
        yield server
