"""The options of all tests."""

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
