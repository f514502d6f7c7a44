"""Text that must not be shown: its value goes on the wire, and its ``repr`` is masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn, TypeVar, cast

__all__ = ["Secret", "masked", "masked_values"]

T = TypeVar("T")

_NO_SECRETS: Final = frozenset({"team", "timeout", "retry", "limits", "observers", "wake"})


class Secret(str):
    """A string whose ``repr`` is masked: tools that show a traceback's local variables print that.

    It is still a string: comparing, joining and encoding it give its value.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


def masked(value: T) -> T:
    """The same, masked where it is a string, or a mapping that holds some.

    Whoever is given a secret binds what this returns to the parameter's own name, before anything can fail: so no frame
    of ours that an error has passed through shows it.
    """
    if isinstance(value, str):
        return cast("T", Secret(str.__str__(value)))  # an enum's str() is its name
    if isinstance(value, Mapping):
        return cast("T", {key: masked(inner) for key, inner in cast("Mapping[object, object]", value).items()})
    return value


def masked_values(values: Mapping[str, object]) -> dict[str, object]:
    """Settings, with the strings masked that may hold a secret: tokens, URLs, headers, and what is called otherwise."""
    return {name: value if name in _NO_SECRETS else masked(value) for name, value in values.items()}
