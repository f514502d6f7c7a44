"""The embedded server's calculator: bounded arithmetic on untrusted text."""

import math

import pytest

from friendli_async.testing.calculator import CalculatorError, calculate, find_expression


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1", 1),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("2-3-4", -5),
        ("2**3**2", 512),
        ("-2**2", -4),
        ("2**-1", 0.5),
        ("2^10", 1024),
        ("7//2", 3),
        ("-7 % 3", 2),
        ("6/4", 1.5),
        ("6/2", 3),
        ("0.1+0.2", 0.3),
        (".5 * 4", 2),
        ("1e3", 1000),
        ("--+1", 1),
        ("sqrt(16) + abs(-2) + round(2.6) + floor(2.5) + ceil(2.5)", 14),
        ("pi", round(math.pi, 11)),
        ("1e20", 1e20),
        ("2**1000 % 7", 2),
        ("1\t+ 1", 2),
        ("1.0001 ** 5000", 1.64868005593),
        ("(" * 99 + "1" + ")" * 99, 1),
        ("-" * 199 + "1", -1),
    ],
)
def test_expressions_are_evaluated(expression: str, value: float) -> None:
    assert calculate(expression) == value
    assert type(calculate(expression)) is type(value)


@pytest.mark.parametrize(
    ("expression", "kind", "message"),
    [
        ("", "SyntaxError", "invalid"),
        ("1 +", "SyntaxError", "invalid"),
        ("1 1", "SyntaxError", "invalid"),
        ("(1", "SyntaxError", "invalid"),
        ("1)", "SyntaxError", "invalid"),
        ("* 1", "SyntaxError", "invalid"),
        ("sqrt 4", "SyntaxError", "invalid"),
        ("sqrt", "SyntaxError", "invalid"),
        ("sqrt()", "SyntaxError", "invalid"),
        ("sqrt(**2)", "SyntaxError", "invalid"),
        ("pi(2)", "SyntaxError", "invalid"),
        ("()", "SyntaxError", "invalid"),
        ("__import__('os')", "SyntaxError", "invalid"),
        ("1 + x", "SyntaxError", "invalid"),
        ("1/0", "ZeroDivisionError", "division by zero"),
        ("1 % 0", "ZeroDivisionError", "zero"),
        ("0 ** -1", "ZeroDivisionError", "zero"),
        ("sqrt(-1)", "ValueError", "not a real number"),
        ("(-8) ** 0.5", "ValueError", "not a real number"),
        ("2 ** 5000", "OverflowError", "too big"),
        ("1.5 ** 5000", "OverflowError", "too big"),
        ("99999999 ** 999", "OverflowError", "too big"),
        ("9 ** 9 ** 9", "OverflowError", "too big"),  # would take minutes
        ("9.9 ** 1000", "OverflowError", "too big"),
        ("1e999", "OverflowError", "too big"),
        ("*".join(["(10**300)"] * 5), "OverflowError", "too big"),
        ("1e300 * 1e300", "OverflowError", "too big"),
        ("1" * 201, "ValueError", "longer than 200"),
    ],
)
def test_invalid_or_oversized_expressions_raise_with_kind(expression: str, kind: str, message: str) -> None:
    with pytest.raises(CalculatorError, match=message) as caught:
        calculate(expression)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("What is 12 * (3+4)?", "12 * (3+4)"),
        ("2 + 2.", "2 + 2"),
        ("Take sqrt(2), please", "sqrt(2)"),
        ("1+1 or 10 + 10?", "10 + 10"),
        ("2 +* 3", "2 +* 3"),
        ("3 \u00d7 4 \u00f7 2 \u2212 1", "3 * 4 / 2 - 1"),
        ("Hello!", None),
        ("I have 3 apples and 4 pears", None),
        ("well-known, pizza (yes)", None),
        ("", None),
        ("x" * 20_000 + "1+1", None),
    ],
)
def test_expression_is_found_in_sentence(text: str, expression: str | None) -> None:
    assert find_expression(text) == expression
