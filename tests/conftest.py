"""The options of all tests, and what tests of several rooms use."""

import socket
from typing import Any

import long_matrix
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run all cases of the long matrices")


def pytest_configure(config: pytest.Config) -> None:
    long_matrix.configure(config)


def pytest_report_header() -> str:
    return long_matrix.describe()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(long_matrix.describe())


@pytest.fixture
def outgoing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the hosts that the test tries to reach. Requests to the hub are allowed; no host name resolves."""
    hosts: list[str] = []

    def refuse(host: Any, *args: Any, **options: Any) -> Any:
        hosts.append(str(host))
        raise socket.gaierror(socket.EAI_NONAME, "no name is resolved in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.lower(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return hosts
