"""Kubernetes quantities as numbers."""

from hone_api.byte_sizes import GIB, KIB, MIB
from hone_api.quantities import parse_exactly

__all__ = ["format_amount", "format_quantity", "format_resource_amount", "parse_exactly", "parse_number"]


def parse_number(quantity: str | int | float) -> float:
    """Return a quantity as a number: 0.5 for "500m", 1024 for "1Ki". Raises InvalidOperation, see parse_exactly."""
    return float(parse_exactly(quantity))


def format_amount(resource: str, quantity: float) -> str:
    """Return an amount for a message, such as `8`, `0.5` and `62.5 GiB`."""
    if resource in ("memory", "ephemeral-storage"):
        return f"{quantity / GIB:.4g} GiB"
    return f"{quantity:.10g}"


def format_quantity(resource: str, quantity: float) -> str:
    """Return a quantity for a manifest, rounded down, such as `8`, `0.5` and `62Gi`."""
    if resource not in ("memory", "ephemeral-storage"):
        return f"{quantity:.10g}"
    name, unit = next((each for each in (("Gi", GIB), ("Mi", MIB), ("Ki", KIB)) if quantity >= 10 * each[1]), ("", 1))
    return f"{int(quantity // unit)}{name}"


def format_resource_amount(resource: str, quantity: float) -> str:
    """Return an amount with its resource, such as `8 amd.com/gpu`, `0.5 cpu` and `62.5 GiB memory`."""
    return f"{format_amount(resource, quantity)} {resource}"
