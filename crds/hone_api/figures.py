"""Measured figures. JSON has no NaN and no infinity, so reports leave out values that are not finite.

A figure that matters (a loss) is refused by the trainer before it comes here, so that nothing is lost silently.
"""

from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator


def is_figure(value: Any) -> bool:
    """Return whether JSON can hold a value: not NaN, not infinite, and not null in their place."""
    return value is not None and not (isinstance(value, float) and not isfinite(value))


def keep_finite(values: Any) -> Any:
    """Return a dict without its values that are no figures. Anything else is returned as it is."""
    return {name: value for name, value in values.items() if is_figure(value)} if isinstance(values, dict) else values


# Figures by name.
Figures = Annotated[dict[str, float], BeforeValidator(keep_finite)]
