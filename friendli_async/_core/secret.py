"""Strings whose ``repr`` is masked, for tokens and other secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MappingView
from typing import Any, Final, NoReturn, SupportsIndex, TypeVar, cast

from friendli_async.errors import FriendliError
from friendli_async.replies import Headers

T = TypeVar("T")

MIN_TOKEN: Final = 8
"""A shorter token, such as that of a test, would also be found inside of words."""
_MASK: Final = "***"
# Compiled when an error first needs them: with those of ``choices``, that would be 1.4 % of the import.
_ESCAPED: Final = (
    r"\\\\{0,6}(?:u00[0-9a-fA-F]{2}|[^\\])"  # JSON, up to three times
    r"|%(?:25){0,2}[0-9a-fA-F]{2}"  # URLs, up to three times
    r"|&#(?:0{0,4}[0-9]{2,3}|[xX]0{0,4}[0-9a-fA-F]{2});"  # HTML
)
"""An escaped character. That each alternative begins with a literal one makes the search fast."""
_ESCAPES: Final = frozenset("\\%&")
"""These literal ones."""
_CHARACTER: Final = rf"(?s:{_ESCAPED}|.)"
"""A character of a text, escaped or not."""
_LONGEST_CUT: Final = 16
_CUT: Final = r"(?:%(?:25){0,2}[0-9a-fA-F]?|\\{1,7}(?:u[0-9a-fA-F]{0,3})?|&#?[xX]?[0-9a-fA-F]{0,6})?(?:\.{3})?\Z"
"""The end of an excerpt: an escaped character that is cut off, and an ellipsis."""
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


class _SecretBytes(bytes):
    """Bytes in place of a secret string, which cannot be used, but are in the traceback of the error."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'***'"

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        part = super().__getitem__(key)
        return part if isinstance(part, int) else _SecretBytes(part)


_SecretBytes.__name__ = "bytes"  # errors name the type of what was given


def masked(value: T) -> T:
    """Returns the value, masked if it is a string or bytes, or with what it contains masked if it is a collection.

    A function that takes a secret rebinds its parameter to the result before anything can fail, so that none of our
    frames in a traceback shows the secret. The keys of mappings are masked, too: a name may be a whole header.
    """
    if isinstance(value, str):
        return cast("T", Secret(str.__str__(value)))  # str() of an enum member would be its name
    if isinstance(value, bytes | bytearray):
        return cast("T", _SecretBytes(value))
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
    """Masks the token of the request in what an error quotes of the response: some servers quote what they reject."""
    if not token:
        return
    error.args = tuple(_masked(each, token) if isinstance(each, str) else each for each in error.args)
    for name in _QUOTED & vars(error).keys():
        if isinstance(value := getattr(error, name), str):
            setattr(error, name, _masked(value, token))


def without_token(headers: Headers, token: str) -> Headers:
    """Masks the token of the request in response headers, once they are accessed."""

    def values() -> dict[str, str]:
        found = dict(headers.items())
        if not _may_quote("\n".join(found.values()), token):  # as nearly all
            return found
        return {name: _masked(value, token) for name, value in found.items()}

    return Headers(values) if token else headers


def without_token_bytes(data: bytes, token: str) -> bytes:
    """Masks the token of the request in bytes of the response."""
    return _masked(data.decode("latin-1"), token).encode("latin-1") if token else data


def _may_quote(text: str, token: str) -> bool:
    """Whether a text can have a part of a token, by a quick look at it."""
    return str(token)[:MIN_TOKEN] in text or any(escape in text or escape in token for escape in _ESCAPES)


def _masked(text: str, token: str) -> str:
    """Masks a token in a text, however it is escaped, and also if it is cut off at the end of an excerpt."""
    if not _may_quote(text, token):
        return text
    text = text.replace(token, _MASK)  # what precedes it may be no escape
    found = re.compile(_CUT).search(text, max(0, len(text) - _LONGEST_CUT))
    plain = text[: None if found is None else found.start()]
    unescaped, token = re.sub(_ESCAPED, _unescaped, plain), Secret(re.sub(_ESCAPED, _unescaped, token))
    if token[:MIN_TOKEN] not in unescaped:
        return text
    characters = re.findall(_CHARACTER, plain)  # as many as in the unescaped text
    places = [match.span() for match in re.finditer(re.escape(token), unescaped)]
    for length in range(len(token) - 1, MIN_TOKEN - 1, -1):
        if unescaped.endswith(token[:length]):
            places.append((len(unescaped) - length, len(unescaped)))
            break
    for start, stop in reversed(places):
        characters[start:stop] = [_MASK]
    return "".join(characters) + text[len(plain) :]


def _unescaped(match: re.Match[str]) -> str:
    character = match[0]
    if character[0] == "&":
        return chr(int(character[3:-1], 16) if character[2] in "xX" else int(character[2:-1]))
    if character[0] == "%" or "u00" in character:
        return chr(int(character[-2:], 16))
    return character[-1]
