"""Arithmetic on untrusted text: parsed by Python, evaluated here, with bounds on the length and the size of numbers."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["CalculatorError", "Number", "calculate", "find_expression"]

Number = int | float

_MAX_LENGTH: Final = 200
_MAX_BITS: Final = 4096
_MAX_SEARCHED: Final = 10_000
_TOO_BIG: Final = "the number is too big"
_INVALID: Final = "the expression is invalid"

_NUMBER: Final = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NAME: Final = r"\b(?:sqrt|abs|round|floor|ceil|pi)\b"
_CANDIDATE: Final = re.compile(rf"(?:{_NUMBER}|{_NAME}|[-+*/%^()]|[ \t])+")
_ARITHMETIC: Final = re.compile(rf"(?:[0-9)]|\bpi)\s*[-+*/%^]|{_NAME}\s*\(")
_SIGNS: Final = str.maketrans({"×": "*", "÷": "/", "−": "-"})  # noqa: RUF001 -- the minus sign of pasted text


class CalculatorError(Exception):
    """The expression cannot be evaluated.

    Args:
        kind: `SyntaxError`, `ZeroDivisionError`, `OverflowError` or `ValueError`.
        message: The error message.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def find_expression(text: str) -> str | None:
    """Find the longest part of a text's first 10,000 characters that looks like arithmetic; it may be invalid.

    The signs of pasted text become those of Python.
    """
    found = (match.group().strip() for match in _CANDIDATE.finditer(text[:_MAX_SEARCHED].translate(_SIGNS)))
    return max((piece for piece in found if _ARITHMETIC.search(piece)), key=len, default=None)


def calculate(expression: str) -> Number:
    """Evaluate what `find_expression` returned. A float is rounded to 12 digits, and a whole one becomes an integer.

    Raises:
        CalculatorError: The expression is invalid, longer than 200 characters, divides by zero, or has a power or a
            number that is too big.
    """
    if len(expression) > _MAX_LENGTH:
        raise CalculatorError("ValueError", f"the expression is longer than {_MAX_LENGTH} characters")
    try:
        tree = ast.parse(expression.replace("^", "**"), mode="eval")
    except SyntaxError:  # Python's own messages differ between its versions
        raise CalculatorError("SyntaxError", _INVALID) from None
    value = _value_of(tree.body)
    if isinstance(value, float):
        value = float(f"{value:.12g}")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def _value_of(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return _bounded(value)
        case ast.Name(id="pi"):
            return math.pi
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value_of(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value_of(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _applied(_OPERATORS[type(op)], _value_of(left), _value_of(right))
        case ast.Call(func=ast.Name(id=name), args=[argument]) if name in _FUNCTIONS:
            return _applied(_FUNCTIONS[name], _value_of(argument))
        case _:
            raise CalculatorError("SyntaxError", _INVALID)


def _applied(function: Callable[..., Number], *operands: Number) -> Number:
    try:
        return _bounded(function(*operands))
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise CalculatorError(type(error).__name__, _FAILURES[type(error)]) from error


def _bounded(value: Number) -> Number:
    too_big = value.bit_length() > _MAX_BITS if isinstance(value, int) else not math.isfinite(value)
    if too_big:
        raise CalculatorError("OverflowError", _TOO_BIG)
    return value


def _power(value: Number, exponent: Number) -> Number:
    if isinstance(value, int) and value.bit_length() * abs(exponent) > _MAX_BITS:
        raise CalculatorError("OverflowError", _TOO_BIG)
    result: Number | complex = value**exponent
    if isinstance(result, complex):
        raise ValueError
    return result


_FUNCTIONS: Final[Mapping[str, Callable[[Number], Number]]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
}
_OPERATORS: Final[Mapping[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: left // right,
    ast.Mod: lambda left, right: left % right,
    ast.Pow: _power,
}
_FAILURES: Final[Mapping[type[Exception], str]] = {
    ZeroDivisionError: "division by zero",
    OverflowError: _TOO_BIG,
    ValueError: "the result is not a real number",
}
