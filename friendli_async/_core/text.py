"""Joining the text deltas of a model, whose characters may be split between deltas."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice


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


def join_up_to(length: int, pieces: Iterable[str]) -> str | None:
    """Joins text of at most ``length`` characters; returns None for a longer one, which it does not read to its end.

    So a server that compares a short text with a long one in each event makes each of them cost no more than its size.
    """
    most = 2 * length  # characters may be split into surrogates
    beginning = list(islice(filter(None, pieces), most + 1))
    if sum(map(len, beginning)) > most:
        return None
    text = join_text(beginning)
    return text if len(text) <= length else None


def missing_suffix(complete: str | None, pieces: Iterable[str]) -> str:
    """Returns the rest of a complete text (which some streams send at their end) after the deltas received so far.

    Returns "" if the text does not start with the deltas: they have been delivered already.
    """
    given = join_up_to(len(complete), pieces) if complete else None
    return complete.removeprefix(given) if complete and given is not None and complete.startswith(given) else ""
