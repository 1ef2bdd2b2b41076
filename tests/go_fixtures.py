"""What fixtures of servers that are built with Go have in common."""

import os

import pytest


def skip_without_programs(reason: str | None) -> None:
    """Skip a test when there is a reason why its server can't be built. Under CI it fails."""
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"this test must run under CI: {reason}")
    pytest.skip(f"NOT RUN: {reason}")
