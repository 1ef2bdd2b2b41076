"""Sizes as text for people."""

import pytest
from hone_api.byte_sizes import GIB, MIB, format_bytes, format_gib, format_gib_or_mib


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1.5 * GIB, "1.5 GiB"),
        (2000 * 1024 * GIB, "2000 TiB"),
    ],
)
def test_the_unit_is_the_largest_that_fits(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_sizes_of_a_table_are_all_in_gib() -> None:
    assert [format_gib(size, 2) for size in (MIB, 1234 * GIB)] == ["0.00 GiB", "1,234.00 GiB"]
    assert format_gib(4 * GIB, 0) == "4 GiB"
    assert format_gib(1.25 * GIB) == "1.2 GiB"


def test_less_than_a_gib_is_in_mib() -> None:
    assert [format_gib_or_mib(size, 2) for size in (GIB - 1, GIB)] == ["1024.0 MiB", "1.00 GiB"]
    assert format_gib_or_mib(20.4 * MIB, 1) == "20 MiB"
