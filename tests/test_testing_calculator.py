"""The embedded server's calculator: arithmetic on untrusted text."""

import pytest

from friendli_async.testing.calculator import CalculatorError, calculate, find_expression


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1", 1),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("2-3-4", -5),
        ("6/4", 1.5),
        ("6/2", 3),
        ("0.1+0.2", 0.3),
        ("--+1", 1),
        ("1\t+ 1", 2),
        ("*".join(["9" * 99] * 2), (10**99 - 1) ** 2),
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
        ("* 1", "SyntaxError", "invalid"),
        ("()", "SyntaxError", "invalid"),
        ("__import__('os')", "SyntaxError", "invalid"),
        ("1 + x", "SyntaxError", "invalid"),
        ("9 ** 9 ** 9", "SyntaxError", "invalid"),  # would take minutes
        ("7 // 2", "SyntaxError", "invalid"),
        ("1/0", "ZeroDivisionError", "division by zero"),
        ("1" * 201, "ValueError", "longer than 200"),
    ],
)
def test_invalid_or_long_expressions_raise_with_kind(expression: str, kind: str, message: str) -> None:
    with pytest.raises(CalculatorError, match=message) as caught:
        calculate(expression)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("What is 12 * (3+4)?", "12 * (3+4)"),
        ("2 + 2.", "2 + 2"),
        ("1+1 or 10 + 10?", "10 + 10"),
        ("2 +* 3", "2 +* 3"),
        ("Hello!", None),
        ("I have 3 apples and 4 pears", None),
        ("well-known, pizza (yes)", None),
        ("", None),
    ],
)
def test_expression_is_found_in_sentence(text: str, expression: str | None) -> None:
    assert find_expression(text) == expression
