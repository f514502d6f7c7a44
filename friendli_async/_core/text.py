"""Text of models: pieces joined to a whole."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["joined", "missing", "whole"]


def joined(pieces: Iterable[str]) -> str:
    """Joins text; a character that two tokens share arrives as two lone surrogates and becomes one again."""
    text = "".join(pieces)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _paired(text)
    return text


def _paired(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def whole(held: str, text: str) -> tuple[str, str]:
    """The whole characters of a piece of text, and half of one that the next piece has to complete.

    Args:
        held: The half that the piece before has left.
        text: The piece, not "".
    """
    if not held and not "\ud800" <= text[-1] <= "\udbff":
        return text, ""
    text = _paired(held + text)
    held = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    return text.removesuffix(held), held


def missing(whole: str | None, pieces: Iterable[str]) -> str:
    """What a whole text, given once more or for the first time, adds to the pieces of it that have come.

    It is nothing where the whole is no continuation of them: the pieces have been handed out already.
    """
    given = joined(pieces)
    return whole.removeprefix(given) if whole and whole.startswith(given) else ""
