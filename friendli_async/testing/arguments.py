"""Checks of those arguments of scripts that would otherwise be sent as something else, or fail during a request."""

from __future__ import annotations

from friendli_async._hints import shortened


def describe(value: object) -> str:
    """Return a short representation of a value with the name of its type, for an error message."""
    return "None" if value is None else f"{shortened(value)} ({type(value).__name__})"


def check_type(value: object, expected: type, name: str, accepted: str) -> None:
    """Check the type of an argument. `accepted` says in the message what is.

    Raises:
        TypeError: It has another type.
    """
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be {accepted}, not {describe(value)}")
