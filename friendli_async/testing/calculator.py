"""Arithmetic on untrusted text: parsed by Python, evaluated here. The length bounds the depth and the numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Final

_Number = int | float

_MAX_LENGTH: Final = 200
_CANDIDATE: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|[-+*/()]|[ \t])+")
_ARITHMETIC: Final = re.compile(r"[0-9)]\s*[-+*/]")


class CalculatorError(Exception):
    """The expression cannot be evaluated.

    Args:
        kind: `SyntaxError`, `ZeroDivisionError` or `ValueError`.
        message: The error message.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def find_expression(text: str) -> str | None:
    """Find the longest part of a text that looks like arithmetic; it may be invalid."""
    found = (match.group().strip() for match in _CANDIDATE.finditer(text))
    return max((piece for piece in found if _ARITHMETIC.search(piece)), key=len, default=None)


def calculate(expression: str) -> _Number:
    """Evaluate what `find_expression` returned: sums, differences, products and quotients.

    A float is rounded to 12 digits, and a whole one becomes an integer.

    Raises:
        CalculatorError: The expression is invalid, longer than 200 characters, or divides by zero.
    """
    if len(expression) > _MAX_LENGTH:
        raise CalculatorError("ValueError", f"the expression is longer than {_MAX_LENGTH} characters")
    try:
        value = _value_of(ast.parse(expression, mode="eval").body)
    except SyntaxError:  # Python's own messages differ between its versions
        raise CalculatorError("SyntaxError", "the expression is invalid") from None
    except ZeroDivisionError:
        raise CalculatorError("ZeroDivisionError", "division by zero") from None
    if isinstance(value, float):
        value = float(f"{value:.12g}")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def _value_of(node: ast.expr) -> _Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value_of(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value_of(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value_of(left), _value_of(right))
        case _:
            raise SyntaxError


_OPERATORS: Final[Mapping[type[ast.operator], Callable[[_Number, _Number], _Number]]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}
