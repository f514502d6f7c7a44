"""Checks of the arguments that tests pass to the server and to scripts, so that a mistake raises where it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from friendli_async._hints import shortened

__all__ = ["check_headers", "check_integer", "check_line", "check_seconds", "check_text", "check_type", "describe"]


def describe(value: object) -> str:
    """Return a short representation of a value with the name of its type, for an error message."""
    return "None" if value is None else f"{shortened(value)} ({type(value).__name__})"


def check_type(value: object, expected: type | tuple[type, ...], name: str, accepted: str) -> None:
    """Check the type of an argument; a bool is not accepted as an int. `accepted` says in the message what is.

    Raises:
        TypeError: It has another type.
    """
    if isinstance(value, bool) or not isinstance(value, expected):
        raise TypeError(f"{name} must be {accepted}, not {describe(value)}")


def check_text(**arguments: object) -> None:
    """Check that arguments, given by name, are text or None.

    Raises:
        TypeError: One of them is something else.
    """
    for name, value in arguments.items():
        if value is not None:
            check_type(value, str, name, "text")


def check_line(name: str, value: object) -> None:
    """Check that an argument is one line of text.

    Raises:
        TypeError: It is something else.
        ValueError: It contains a line break or a null character.
    """
    check_type(value, str, name, "text")
    if not set("\r\n\0").isdisjoint(cast("str", value)):
        raise ValueError(f"{name} must not contain a line break or a null character")


def check_integer(name: str, value: object, *, least: float = -math.inf, most: float = math.inf) -> None:
    """Check an integer, which may be from `least` to `most`, both included.

    Raises:
        TypeError: It is not an int.
        ValueError: It is out of range.
    """
    check_type(value, int, name, "an int")
    if not least <= cast("int", value) <= most:
        accepted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} must be {accepted}, not {value}")


def check_seconds(name: str, value: object) -> None:
    """Check a duration.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative, infinite or NaN.
    """
    check_type(value, (int, float), name, "a number of seconds")
    if not 0 <= cast("float", value) < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds, at least 0, not {value}")


def check_headers(headers: Any) -> None:
    """Check the headers of a reply: a mapping, or None.

    Raises:
        TypeError: It is not a mapping, or a name or value is not text.
        ValueError: A name or value contains a line break.
    """
    if headers is None:
        return
    check_type(headers, Mapping, "headers", "a mapping of text to text")
    for item in cast("Mapping[object, object]", headers).items():
        for text in item:
            check_line(f"header {item[0]!r}", text)
