"""A fake cluster, and the command in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_cluster import FakeCluster, serve
from hone_cli.main import main

Hone = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    found = FakeCluster()
    with serve(found, tmp_path, monkeypatch):
        yield found


@pytest.fixture
def hone(capsys: pytest.CaptureFixture[str]) -> Hone:
    """Run the command; return exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err  # type: ignore[return-value]

    return run
