"""Limit the operations of chat templates that could create something huge in one step.

prompts.py ends a template that takes too long, but only between two of its instructions. A single instruction, such as
`10 ** (10 ** 9)`, would block this process until it is done. So operations that could do this check their operands
first, and raise SecurityError. What a template builds up in many steps needs no limit here.
"""

import re
from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

# Size of a number: about 19,000 digits.
MAX_BITS = 1 << 16
# Size of a text that is padded or repeated, in characters, and of a list, in items: as large as a request's body.
MAX_SIZE = 1 << 22
MAX_WIDTH = 9_999
# Methods of texts, and filters, that pad to a width given as an argument.
PADDING_FUNCTIONS = frozenset({"center", "expandtabs", "indent", "ljust", "rjust", "tojson", "zfill"})
# A format in a text, up to and including its widths.
FORMAT_PATTERN = re.compile(r"%(?:\([^()%]*\))?[-+ #0-9.]*|\{[^{}]*")
WIDTH_PATTERN = re.compile(r"\d{5,}")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox; an operation whose result would be too large raises SecurityError."""

    intercepted_binops = frozenset({"**", "*", "%"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filters = _BoundedFilters(self.filters)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            check_power(left, right)
        elif operator == "*":
            check_product(left, right)
        elif isinstance(left, str):
            check_formats([left, *(right if isinstance(right, tuple) else [right])])
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            return _bound_arguments(wrapped, check_formats, first=0, before=[value.__self__])
        if isinstance(getattr(value, "__self__", None), str) and getattr(value, "__name__", None) in PADDING_FUNCTIONS:
            return _bound_arguments(value, check_widths, first=0)
        return None


def install_bounds() -> None:
    """Make transformers compile chat templates with this environment."""
    vars(chat_template_utils)["ImmutableSandboxedEnvironment"] = BoundedEnvironment


def check_power(base: Any, exponent: Any) -> None:
    """Raise SecurityError for a power that has too many digits."""
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        _check_size(abs(exponent) * base.bit_length(), MAX_BITS)


def check_product(left: Any, right: Any) -> None:
    """Raise SecurityError for a product that has too many digits, characters or items."""
    if isinstance(left, int) and isinstance(right, int):
        _check_size(left.bit_length() + right.bit_length(), MAX_BITS)
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
            _check_size(len(many) * times, MAX_SIZE)


def check_widths(given: Iterable[Any]) -> None:
    """Raise SecurityError if one of the arguments, which may be a width, is too large."""
    for one in given:
        if isinstance(one, dict):
            check_widths(one.values())
        elif isinstance(one, int):
            _check_size(one, MAX_WIDTH)


def check_formats(given: Iterable[Any]) -> None:
    """Raise SecurityError if a text, with formats or to be formatted, has a width that is too large.

    An argument counts as a width if the text has a star, or braces within braces.
    """
    text, *others = given
    if isinstance(text, str):
        for found in FORMAT_PATTERN.finditer(text):
            written = found[0] if found[0][0] == "%" else found[0].partition(":")[2]
            for width in WIDTH_PATTERN.findall(written):
                _check_size(int(width[:20]), MAX_WIDTH)
        if "*" in text or re.search(r"\{[^{}]*\{", text):
            check_widths(others)


class _BoundedFilters(dict[str, Callable[..., Any]]):
    """Jinja's filters, where those that pad are bounded, including filters that are set later."""

    def __init__(self, filters: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        for name, fill in filters.items():
            self[name] = fill

    def __setitem__(self, name: str, fill: Callable[..., Any]) -> None:
        if name == "format":
            fill = _bound_arguments(fill, check_formats, first=0)
        elif name in PADDING_FUNCTIONS:
            fill = _bound_arguments(fill, check_widths)
        super().__setitem__(name, fill)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise SecurityError(f"an operation of the template would make something of the size {size:.3g}, above {limit}")


def _bound_arguments(
    fill: Callable[..., Any], check: Callable[[Iterable[Any]], None], *, first: int = 1, before: Iterable[Any] = ()
) -> Callable[..., Any]:
    """Return the function with its arguments checked, starting with the one at position `first`."""

    def call_checked(*args: Any, **kwargs: Any) -> Any:
        check([*before, *args[first:], *kwargs.values()])
        return fill(*args, **kwargs)

    return update_wrapper(call_checked, fill)
