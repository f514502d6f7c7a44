"""When a stream is to stop by itself: the functions that ``stop_when`` takes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from friendli_async._core.text import whole

__all__ = ["over_text", "plain_function"]

F = TypeVar("F", bound=Callable[..., object])


def plain_function(given: F | None) -> F:
    """Checks what is to be called between two events.

    Raises:
        TypeError: It cannot be called, or would have to be awaited: then it would always be true.
    """
    import inspect  # for who stops by a predicate only

    if given is None or not callable(given):
        raise TypeError(f"stop_when() takes a function, not {type(given).__name__}")
    if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(getattr(given, "__call__", None)):  # noqa: B004  # not whether it is callable
        raise TypeError("stop_when() takes a plain function: it is called between two events and cannot wait")
    return given


def over_text(predicate: Callable[[str], object], text_of: Callable[[Any], str]) -> Callable[[Any], object]:
    """Makes a judge of events of a predicate of the text so far, which it keeps."""

    def judging() -> Generator[object, Any, None]:
        text = held = ""  # in a local variable: CPython appends to a string in place there, and nowhere else
        verdict: object = False
        while True:
            piece = text_of((yield verdict))
            verdict = False
            if piece:
                piece, held = whole(held, piece)
                text += piece
                verdict = predicate(text)

    running = judging()
    next(running)
    return running.send
