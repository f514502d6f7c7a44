"""Stop conditions: the functions that ``stop_when`` accepts."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from friendli_async._callables import is_async
from friendli_async._core.text import split_surrogate

__all__ = ["check_predicate", "predicate_on_text"]

F = TypeVar("F", bound=Callable[..., object])


def check_predicate(predicate: F | None) -> F:
    """Checks a function that is to be called between two events.

    Raises:
        TypeError: It is not callable, or it is a coroutine function, whose result would always be true.
    """
    if predicate is None or not callable(predicate):
        raise TypeError(f"stop_when() takes a function, not {type(predicate).__name__}")
    if is_async(predicate):
        raise TypeError("stop_when() takes a plain function, not a coroutine function")
    return predicate


def predicate_on_text(predicate: Callable[[str], object], text_of: Callable[[Any], str]) -> Callable[[Any], object]:
    """Turns a predicate on the text so far into a predicate on events, which accumulates the text."""

    def evaluate() -> Generator[object, Any, None]:
        text = high_surrogate = ""  # a local variable: CPython appends in place only to those
        verdict: object = False
        while True:
            piece = text_of((yield verdict))
            verdict = False
            if piece:
                piece, high_surrogate = split_surrogate(high_surrogate, piece)
                text += piece
                verdict = predicate(text)

    evaluator = evaluate()
    next(evaluator)
    return evaluator.send
