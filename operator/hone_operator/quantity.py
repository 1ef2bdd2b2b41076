"""Kubernetes quantities as numbers."""

from hone_api.quantities import exact_number

__all__ = ["amount_of", "exact_number", "number", "words_of"]


def number(quantity: str | int | float) -> float:
    """Such as 0.5 for "500m" and 1024 for "1Ki". Raises InvalidOperation as `exact_number` does."""
    return float(exact_number(quantity))


def amount_of(resource: str, quantity: float) -> str:
    """Such as `8`, `0.5` and `62.5 GiB`."""
    if resource in ("memory", "ephemeral-storage"):
        return f"{quantity / 2**30:.4g} GiB"
    return f"{quantity:.10g}"


def words_of(resource: str, quantity: float) -> str:
    """Such as `8 amd.com/gpu`, `0.5 cpu` and `62.5 GiB memory`."""
    return f"{amount_of(resource, quantity)} {resource}"
