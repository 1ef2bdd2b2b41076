"""Kubernetes quantities as exact numbers."""

import re
from decimal import Decimal

SUFFIXES = {
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: Decimal(1000) ** -power for power, suffix in enumerate(("m", "u", "n"), start=1)},
}
_QUANTITY = re.compile(
    r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,3})?", re.ASCII
)


def is_quantity(text: str) -> bool:
    """Return whether Kubernetes reads the text as a quantity."""
    return _QUANTITY.fullmatch(text) is not None


def parse_exactly(quantity: str | int | float) -> Decimal:
    """Return a quantity as an exact number, for comparisons. Raises decimal.InvalidOperation if it is none."""
    text = str(quantity)
    for suffix, factor in SUFFIXES.items():
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * factor
    return Decimal(text)
