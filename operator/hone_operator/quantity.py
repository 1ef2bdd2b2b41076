"""Kubernetes quantities as numbers."""

SUFFIXES = {
    **{suffix: 1024.0**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
    **{suffix: 1000.0**power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    "m": 1e-3,
    "u": 1e-6,
    "n": 1e-9,
}


def number(quantity: str | int | float) -> float:
    """Such as 0.5 for "500m" and 1024 for "1Ki"."""
    text = str(quantity)
    for suffix, factor in SUFFIXES.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def amount_of(resource: str, quantity: float) -> str:
    """Such as `8`, `0.5` and `62.5 GiB`."""
    if resource in ("memory", "ephemeral-storage"):
        return f"{quantity / 2**30:.4g} GiB"
    return f"{quantity:.10g}"


def words_of(resource: str, quantity: float) -> str:
    """Such as `8 amd.com/gpu`, `0.5 cpu` and `62.5 GiB memory`."""
    return f"{amount_of(resource, quantity)} {resource}"
