"""Arithmetic on untrusted text: a recursive-descent parser with bounds on length, depth and the size of numbers.

sum     = product { ("+" | "-") product }
product = signed { ("*" | "/" | "//" | "%") signed }
signed  = ("+" | "-") signed | power
power   = atom [ ("**" | "^") signed ]
atom    = number | "pi" | "(" sum ")" | function "(" sum ")"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

__all__ = ["CalculatorError", "Number", "calculate", "find_expression"]

Number = int | float

_MAX_LENGTH: Final = 200
_MAX_DEPTH: Final = 32
_MAX_EXPONENT: Final = 1000
_MAX_BITS: Final = 4096
_MAX_SEARCHED: Final = 10_000
_TOO_BIG: Final = "the number is too big"

_NUMBER: Final = r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_NAME: Final = r"\b(?:sqrt|abs|round|floor|ceil|pi)\b"
_OPERATOR: Final = r"\*\*|//|[-+*/%^()]"
_TOKEN: Final = re.compile(rf"\s*({_NUMBER}|{_NAME}|{_OPERATOR})\s*")
_CANDIDATE: Final = re.compile(rf"(?:{_NUMBER}|{_NAME}|{_OPERATOR}|[ \t])+")
_ARITHMETIC: Final = re.compile(rf"(?:[\d)]|\bpi)\s*[-+*/%^]|{_NAME}\s*\(")
_SIGNS: Final = str.maketrans({"×": "*", "÷": "/", "−": "-"})  # noqa: RUF001 -- the minus sign of pasted text

_FUNCTIONS: Final[Mapping[str, Callable[[Number], Number]]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
}
_OPERATORS: Final[Sequence[Mapping[str, Callable[[Number, Number], Number]]]] = (
    {"+": lambda left, right: left + right, "-": lambda left, right: left - right},
    {
        "*": lambda left, right: left * right,
        "/": lambda left, right: left / right,
        "//": lambda left, right: left // right,
        "%": lambda left, right: left % right,
    },
)
"""The operators of sums and of products."""
_FAILURES: Final[Mapping[type[Exception], str]] = {  # Python's own messages differ between its versions
    ZeroDivisionError: "division by zero",
    OverflowError: _TOO_BIG,
    ValueError: "the result is not a real number",
}


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
    """Find the longest part of a text's first 10,000 characters that looks like arithmetic; it may be invalid."""
    found = (match.group().strip() for match in _CANDIDATE.finditer(text[:_MAX_SEARCHED].translate(_SIGNS)))
    return max((piece for piece in found if _ARITHMETIC.search(piece)), key=len, default=None)


def calculate(expression: str) -> Number:
    """Evaluate an expression, and round a float to 12 significant digits; whole numbers become integers.

    Raises:
        CalculatorError: The expression is invalid, longer than 200 characters, nested deeper than 32 levels, divides by
            zero, or has a power or a number that is too big.
    """
    if len(expression) > _MAX_LENGTH:
        raise CalculatorError("ValueError", f"the expression is longer than {_MAX_LENGTH} characters")
    value = _Parser(_tokens(expression.translate(_SIGNS))).parse()
    if isinstance(value, float):
        value = float(f"{value:.12g}")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def _tokens(expression: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise CalculatorError("SyntaxError", f"unexpected {expression[position:].strip()[:10]!r}")
        tokens.append(match.group(1))
        position = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def parse(self) -> Number:
        value = self._joined()
        if self._peek() is not None:
            raise CalculatorError("SyntaxError", f"unexpected {self._peek()!r}")
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, *wanted: str) -> str | None:
        token = self._peek()
        if token not in wanted:
            return None
        self._next += 1
        return token

    def _joined(self, level: int = 0) -> Number:
        """Parse a sum (level 0), a product (1), or an operand of one."""
        if level == len(_OPERATORS):
            return self._signed()
        value = self._joined(level + 1)
        while sign := self._take(*_OPERATORS[level]):
            value = _checked(_OPERATORS[level][sign], value, self._joined(level + 1))
        return value

    def _signed(self) -> Number:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise CalculatorError("ValueError", f"the expression is nested deeper than {_MAX_DEPTH} levels")
        sign = self._take("+", "-")
        value = self._power() if sign is None else self._signed()
        self._depth -= 1
        return -value if sign == "-" else value

    def _power(self) -> Number:
        value = self._atom()
        if self._take("**", "^"):
            return _checked(_power, value, self._signed())
        return value

    def _atom(self) -> Number:
        token = self._peek()
        if token is None:
            raise CalculatorError("SyntaxError", "the expression ends too early")
        self._next += 1
        if token in _FUNCTIONS:
            self._expect("(")
            return _checked(lambda value, _: _FUNCTIONS[token](value), self._in_parentheses(), 0)
        if token == "(":
            return self._in_parentheses()
        if token == "pi":
            return math.pi
        if not (token[0].isdecimal() or token[0] == "."):
            raise CalculatorError("SyntaxError", f"unexpected {token!r}")
        return _bounded(int(token) if token.isdecimal() else float(token))

    def _in_parentheses(self) -> Number:
        value = self._joined()
        self._expect(")")
        return value

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise CalculatorError("SyntaxError", f"expected {wanted!r}, found {self._peek() or 'the end'!r}")


def _power(value: Number, exponent: Number) -> Number:
    if abs(exponent) > _MAX_EXPONENT:
        raise CalculatorError("OverflowError", f"the exponent is bigger than {_MAX_EXPONENT}")
    if isinstance(value, int) and value.bit_length() * abs(exponent) > _MAX_BITS:
        raise CalculatorError("OverflowError", _TOO_BIG)
    result: Number | complex = value**exponent
    if isinstance(result, complex):
        raise ValueError
    return result


def _checked(function: Callable[[Number, Number], Number], left: Number, right: Number) -> Number:
    try:
        return _bounded(function(left, right))
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise CalculatorError(type(error).__name__, _FAILURES[type(error)]) from error


def _bounded(value: Number) -> Number:
    too_big = value.bit_length() > _MAX_BITS if isinstance(value, int) else not math.isfinite(value)
    if too_big:
        raise CalculatorError("OverflowError", _TOO_BIG)
    return value
