"""Strings whose ``repr`` is masked, for tokens and other secrets.

A server may quote the token. It is masked in errors and their headers when a call fails (``Call._record_failure``) or a
stream ends (``OpenStream._end``), and in the bytes that a relay sends (``EventStream._masked``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MappingView
from typing import Final, NoReturn, SupportsIndex, TypeVar, cast

from friendli_async.errors import FriendliError
from friendli_async.replies import Headers

T = TypeVar("T")

MIN_TOKEN: Final = 8
"""A shorter token, such as that of a test, would also be found inside of words."""
_MASK: Final = "***"
_QUOTED: Final = frozenset({"message", "body", "excerpt", "code", "type", "request_id"})
"""The attributes of errors that quote the response, besides the message of the exception."""
_NOT_SECRET: Final = frozenset({"team", "timeout", "retry", "limits", "observers", "wake"})


class Secret(str):
    """A string with a masked ``repr``, which is what tools print for the local variables of a traceback.

    It remains a string: comparing, joining and encoding it use its value. A part of it is a secret, too, since some of
    these tools shorten a string before they print it.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __getitem__(self, key: SupportsIndex | slice) -> Secret:
        return Secret(super().__getitem__(key))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        # PyYAML asks for it, too, when vcrpy writes a cassette.
        raise TypeError("the token and the headers of a client cannot be pickled; with vcrpy, use filter_headers")


def masked(value: T) -> T:
    """Returns the value, masked if it is a string, or with what it contains masked if it is a collection.

    A function that takes a secret rebinds its parameter to the result before anything can fail, so that none of our
    frames in a traceback shows the secret. Bytes are replaced: none are accepted, and the error names only their type.
    The keys of mappings are masked, too: a name may be a whole header.
    """
    if isinstance(value, str):
        return cast("T", Secret(str.__str__(value)))  # str() of an enum member would be its name
    if isinstance(value, bytes | bytearray):
        return cast("T", bytes(len(value)))
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return cast("T", {masked(key): masked(inner) for key, inner in items})
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return cast("T", kind(map(masked, cast("Iterable[object]", value))))
    if isinstance(value, MappingView):  # such as the items of headers
        return cast("T", list(map(masked, cast("Iterable[object]", value))))
    return value


def masked_values(values: Mapping[str, object]) -> dict[str, object]:
    """Masks the strings of settings, except of those that hold no secret; unknown names are masked as well."""
    return {name: value if name in _NOT_SECRET else masked(value) for name, value in values.items()}


def mask_token(error: FriendliError, token: str) -> None:
    """Masks the token of the request in what an error quotes of the response: some servers quote what they reject.

    Only as it was sent: neither Friendli's tokens nor JWTs have a character that JSON, HTML or URLs escape.
    """
    if not token:
        return
    error.args = tuple(_masked(each, token) if isinstance(each, str) else each for each in error.args)
    for name in _QUOTED & vars(error).keys():
        if isinstance(value := getattr(error, name), str):
            setattr(error, name, _masked(value, token))


def without_token(headers: Headers, token: str) -> Headers:
    """Masks the token of the request in response headers, once they are accessed."""

    def values() -> dict[str, str]:
        return {name: _masked(value, token) for name, value in headers.items()}

    return Headers(values) if token else headers


def without_token_bytes(data: bytes, token: str) -> bytes:
    """Masks the token of the request in bytes of the response."""
    return _masked(data.decode("latin-1"), token).encode("latin-1") if token else data


def _masked(text: str, token: str) -> str:
    """Masks a token in a text, also if it is cut off at the end of an excerpt."""
    text = text.replace(token, _MASK)
    end = text.rstrip(".'\"")  # an ellipsis, the quotes around the excerpt
    if token[:MIN_TOKEN] in end[-len(token) :]:
        for length in range(len(token) - 1, MIN_TOKEN - 1, -1):
            if end.endswith(token[:length]):
                return f"{end[:-length]}{_MASK}{text[len(end) :]}"
    return text
