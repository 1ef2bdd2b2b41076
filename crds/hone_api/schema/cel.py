"""Evaluate CEL rules without an API server, with Kubernetes' additions to CEL for quantities.

Needs the extra [cli], which has cel-python.
"""

from functools import cache
from typing import Any

from hone_api.quantities import is_quantity, parse_exactly


def is_rule_true(rule: str, value: Any) -> bool:
    """Return whether a rule is true of a value; a rule that can't be evaluated is not, as in the API server."""
    from celpy.adapter import json_to_cel
    from celpy.evaluation import CELEvalError

    try:
        return bool(_compile_rule(rule).evaluate({"self": json_to_cel(value)}))
    except (CELEvalError, ValueError):
        return False


@cache
def _compile_rule(rule: str) -> Any:
    environment = _make_environment()
    return environment.program(environment.compile(rule), functions=_FUNCTIONS)


@cache
def _make_environment() -> Any:
    import celpy

    return celpy.Environment()


def _is_quantity(text: Any) -> Any:
    from celpy.celtypes import BoolType

    return BoolType(is_quantity(str(text)))


def _keep_quantity(text: Any) -> Any:
    return text  # compared as text, because CEL's functions take and return CEL's own values


def _compare_to(one: Any, other: Any) -> Any:
    from celpy.celtypes import IntType

    left, right = parse_exactly(str(one)), parse_exactly(str(other))
    return IntType((left > right) - (left < right))


_FUNCTIONS = {"isQuantity": _is_quantity, "quantity": _keep_quantity, "compareTo": _compare_to}
