"""Text of models: pieces joined to a whole."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["joined", "missing"]


def joined(pieces: Iterable[str]) -> str:
    """Joins text; a character that two tokens share arrives as two lone surrogates and becomes one again."""
    text = "".join(pieces)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return text


def missing(whole: str | None, pieces: Iterable[str]) -> str:
    """What a whole text, given once more or for the first time, adds to the pieces of it that have come.

    It is nothing where the whole is no continuation of them: the pieces have been handed out already.
    """
    given = joined(pieces)
    return whole.removeprefix(given) if whole and whole.startswith(given) else ""
