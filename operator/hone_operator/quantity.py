"""Kubernetes quantities as numbers."""

from decimal import Decimal

SUFFIXES = {
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: Decimal(1000) ** -power for power, suffix in enumerate(("m", "u", "n"), start=1)},
}


def number(quantity: str | int | float) -> float:
    """Such as 0.5 for "500m" and 1024 for "1Ki". Raises InvalidOperation as `exact_number` does."""
    return float(exact_number(quantity))


def exact_number(quantity: str | int | float) -> Decimal:
    """Return a quantity as an exact number, for comparisons. Raises decimal.InvalidOperation where it is none."""
    text = str(quantity)
    for suffix, factor in SUFFIXES.items():
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * factor
    return Decimal(text)


def amount_of(resource: str, quantity: float) -> str:
    """Such as `8`, `0.5` and `62.5 GiB`."""
    if resource in ("memory", "ephemeral-storage"):
        return f"{quantity / 2**30:.4g} GiB"
    return f"{quantity:.10g}"


def words_of(resource: str, quantity: float) -> str:
    """Such as `8 amd.com/gpu`, `0.5 cpu` and `62.5 GiB memory`."""
    return f"{amount_of(resource, quantity)} {resource}"
