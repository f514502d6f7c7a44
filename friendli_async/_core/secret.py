"""Strings whose ``repr`` is masked, for tokens and other secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn, TypeVar, cast

T = TypeVar("T")

_MIN_TOKEN: Final = 8
"""A shorter token, such as that of a test, would also be found inside of words."""
_NOT_SECRET: Final = frozenset({"team", "timeout", "retry", "limits", "observers", "wake"})


class Secret(str):
    """A string with a masked ``repr``, which is what tools print for the local variables of a traceback.

    It remains a string: comparing, joining and encoding it use its value.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


def masked(value: T) -> T:
    """Returns the value, masked if it is a string; the values of mappings are masked recursively.

    A function that takes a secret rebinds its parameter to the result before anything can fail, so that none of our
    frames in a traceback shows the secret.
    """
    if isinstance(value, str):
        return cast("T", Secret(str.__str__(value)))  # str() of an enum member would be its name
    if isinstance(value, Mapping):
        return cast("T", {key: masked(inner) for key, inner in cast("Mapping[object, object]", value).items()})
    return value


def masked_values(values: Mapping[str, object]) -> dict[str, object]:
    """Masks the strings of settings, except of those that hold no secret; unknown names are masked as well."""
    return {name: value if name in _NOT_SECRET else masked(value) for name, value in values.items()}


def without_token(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Masks the token of a request in the body of its error response: some servers quote what they reject."""
    for name, value in headers.items():
        token = value.rpartition(" ")[2].encode()
        if name.lower() == "authorization" and len(token) >= _MIN_TOKEN:
            return body.replace(token, b"***")
    return body
