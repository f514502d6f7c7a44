"""Stop conditions on the text of a stream."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from friendli_async._core.text import split_surrogate

__all__ = ["predicate_on_text"]


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
