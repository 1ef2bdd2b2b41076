"""Fixtures with registries, which a conftest.py imports by name."""

from collections.abc import Iterator

import pytest
from go_fixtures import skip_without_programs
from ociserver.registry import RegistryServer, find_missing_program


@pytest.fixture(scope="session")
def with_registry() -> None:
    """Skip tests of a real registry where it can't be built; under CI they fail."""
    skip_without_programs(find_missing_program())


@pytest.fixture(scope="module")
def registry(with_registry: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Yield a registry over HTTP that everybody may read and write."""
    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def locked_registry(with_registry: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Yield a registry that requires user and password."""
    with RegistryServer(tmp_path_factory.mktemp("locked-registry"), has_login=True) as server:
        yield server
