"""Joining the text deltas of a model, whose characters may be split between deltas."""

from __future__ import annotations

from collections.abc import Iterable


def join_text(pieces: Iterable[str]) -> str:
    """Joins text. A character split between two tokens arrives as two lone surrogates, which are paired again."""
    text = "".join(pieces)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _pair_surrogates(text)
    return text


def _pair_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def split_surrogate(held: str, text: str) -> tuple[str, str]:
    """Splits a delta into whole characters and a trailing high surrogate, which the next delta completes.

    Args:
        held: The high surrogate left over from the previous delta, or "".
        text: The delta, not "".
    """
    if not held and not "\ud800" <= text[-1] <= "\udbff":
        return text, ""
    text = _pair_surrogates(held + text)
    held = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    return text.removesuffix(held), held


def missing_suffix(complete: str | None, pieces: Iterable[str]) -> str:
    """Returns the rest of a complete text (which some streams send at their end) after the deltas received so far.

    Returns "" if the text does not start with the deltas: they have been delivered already.
    """
    given = join_text(pieces)
    return complete.removeprefix(given) if complete and complete.startswith(given) else ""
