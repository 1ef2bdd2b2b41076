"""What programs read from their container: options that the operator writes, and limits that the kernel writes."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from hone_api.io import control_group
from hone_api.io.command_line import parse_pair
from hone_api.io.control_group import read_control_group, read_memory_limit


def test_only_the_first_equals_sign_separates() -> None:
    assert parse_pair("data=/mnt/a=b") == ("data", "/mnt/a=b")


@pytest.mark.parametrize("text", ["", "=", "data", "data=", "=/mnt"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"'{text}' is not of the form NAME=DIR"):
        parse_pair(text, "NAME=DIR")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1048576\n"}, 2**20),
        ({"memory/memory.limit_in_bytes": "2097152\n"}, 2**21),
    ],
)
def test_the_memory_limit_is_read_in_both_versions(
    files: dict[str, str], limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_group, "_ROOT", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_memory_limit() == limit
    assert read_control_group("cpu.max") is None
