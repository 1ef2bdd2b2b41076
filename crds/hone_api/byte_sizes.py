"""Sizes in bytes as text for people, for all of Hone's programs. Kubernetes quantities are in `quantities`."""

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def format_bytes(count: float) -> str:
    """Return a size with three or four digits in the largest unit that fits, such as 1.5 GiB."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    # Three digits of 1000 to 1023 would be 1e+03.
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"


def format_gib(count: float, decimals: int = 1) -> str:
    """Return a size in GiB, also a small one, so that it can be compared with the sizes next to it."""
    return f"{count / GIB:,.{decimals}f} GiB"


def format_gib_or_mib(count: float, decimals: int) -> str:
    """Return a size in GiB with `decimals`; below 1 GiB in MiB, with one decimal less."""
    return f"{count / GIB:.{decimals}f} GiB" if count >= GIB else f"{count / MIB:.{decimals - 1}f} MiB"
