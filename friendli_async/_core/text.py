"""Text of models: pieces joined to a whole."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["joined"]


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
