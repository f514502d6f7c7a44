"""An incremental JSON parser: no I/O, input split anywhere, linear time.

It follows RFC 8259 strictly. Where the RFC leaves a choice:

- The last value of a duplicate key wins and keeps the first one's position, as in ``json``.
- Integers are exact. A number too large for a float (``1e400``) is rejected because it could not be serialized again;
  so is a number of more than 4,300 characters. NaN and Infinity are not JSON.
- An escaped lone surrogate is kept, as in ``json``. A surrogate pair split across two pieces of text is joined.
- A byte order mark is rejected, and so is invalid UTF-8.
- Containers may be nested at most 256 deep, so that the result can be compared, printed and copied without a
  RecursionError.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn, cast

from friendli_async._core.text import split_surrogate

MAX_DEPTH: Final = 256
"""Default limit on the nesting depth of containers."""

_MAX_NUMBER_LENGTH: Final = 4300  # characters; Python's own limit for integers
_LONG_STRING: Final = 8192  # characters; up to this length, each piece flushes the open string
_FLUSH_RATIO: Final = 128  # a longer string is flushed when it has grown by 1 part in this many
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def _run_of(characters: str) -> Callable[..., re.Match[str]]:
    """Returns a function that matches the longest run of the characters at a position. It may be empty, never None."""
    return cast("Callable[..., re.Match[str]]", re.compile(f"{characters}*").match)


_whitespace: Final = _run_of(r"[ \t\n\r]")
_plain: Final = _run_of(r'[^"\\\x00-\x1f]')
_number_characters: Final = _run_of(r"[-+.0-9eE]")
_letters: Final = _run_of(r"[A-Za-z]")
_hex_digits: Final = _run_of(r"[0-9A-Fa-f]")
_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LITERALS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}


class JSONError(ValueError):
    """The input is not JSON.

    Attributes:
        reason: What is wrong.
        position: Offset in characters from the start of the input.
    """

    def __init__(self, reason: str = "", position: int = 0) -> None:
        super().__init__(reason, position)
        self.reason = reason
        self.position = position

    def __str__(self) -> str:
        return f"{self.reason} at character {self.position}"


class JSONIncompleteError(JSONError):
    """The input is valid so far, but ends before the value is complete."""


class JSONDepthError(JSONError):
    """Containers are nested more deeply than allowed."""


class JSONReader:
    """Parses one JSON value from pieces.

    ``value`` is the value so far; None before it has begun. It is always the same object and grows in place, so reading
    it costs the same however large it is. Do not modify it; to keep a snapshot, copy it (``copy.deepcopy``). It
    includes the received part of an unfinished string, which may lag by up to a hundredth once the string has thousands
    of characters. A number, a literal or a key is included only once it is complete.

    Args:
        max_depth: Limit on the nesting depth of containers.

    Attributes:
        value: The value so far.
        changes: Number of changes to ``value`` so far.
    """

    def __init__(self, *, max_depth: int = MAX_DEPTH) -> None:
        self.changes: int = 0
        self._max_depth = max_depth
        self.value: Any = None
        self._open: list[Any] = []
        self._container: Any = None  # the innermost open container
        self._key = ""  # of the innermost open object
        self._string_open = False
        self._in_key = False
        self._parts: list[str] = []  # of the open string or key, not yet in `_flushed`
        self._pending = 0  # characters in `_parts`, unless they belong to a key
        self._flushed = ""
        self._escape = ""
        self._surrogate = ""  # a high surrogate at the end of the open string, which the next character may complete
        self._token = ""  # a number or a literal
        self._offset = 0  # of the current piece
        self._error: JSONError | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        # A plain function, because a bound method would create a reference cycle.
        self._state: Callable[[JSONReader, str, int], int] = JSONReader._at_value

    @property
    def complete(self) -> bool:
        """Whether the value is complete. A top-level number is complete only after ``close``."""
        return self._state is JSONReader._after_value and not self._open

    def feed(self, piece: str | bytes) -> None:
        """Parses the next piece.

        Raises:
            JSONError: The input is not JSON. Every further call raises the error again.
        """
        if self._error is not None:
            raise type(self._error)(self._error.reason, self._error.position)
        self._read(piece if isinstance(piece, str) else self._decode(piece))

    def close(self) -> Any:
        """Marks the end of the input and returns the value.

        Raises:
            JSONError: The input is not JSON.
            JSONIncompleteError: The value is incomplete.
        """
        self.feed(self._decode(b"", final=True))
        if self._state is JSONReader._in_number:
            self._end_number(0)
        if not self.complete:
            begun = self.changes or self._token
            self.fail("unexpected end of input" if begun else "empty input", 0, JSONIncompleteError)
        return self.value

    def closed_items(self, items: list[Any]) -> int:
        """Returns how many elements of a list inside ``value`` are complete."""
        for depth, container in enumerate(self._open, 1):
            if container is items:
                return len(items) - (depth < len(self._open) or self._string_open)
        return len(items)

    # --- building blocks of the states -----------------------------------------------------------------------------

    def fail(self, reason: str, at: int, kind: type[JSONError] = JSONError) -> NoReturn:
        """Raises an error at a position in the current piece, and stores it for further calls."""
        self._error = kind(reason, self._offset + at)
        raise kind(reason, self._offset + at)

    def _read(self, text: str) -> None:
        at, end = 0, len(text)
        while at < end:
            at = self._state(self, text, at)
        self._offset += end
        if self._pending and (len(self._flushed) < _LONG_STRING or self._pending * _FLUSH_RATIO > len(self._flushed)):
            self._flush_string()

    def _decode(self, piece: bytes, *, final: bool = False) -> str:
        try:
            return self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            self.fail("invalid UTF-8", 0)

    def _put(self, value: Any) -> None:
        """Stores a new value, complete or just opened, in the innermost container."""
        container: Any = self._container
        if container is None:
            self.value = value
        elif type(container) is list:
            container.append(value)  # pyright: ignore[reportUnknownMemberType]  # mypy calls a cast redundant
        else:
            container[self._key] = value
        self.changes += 1

    def _flush_string(self) -> None:
        """Replaces the open string, which was stored last, by what has been received of it."""
        self._flushed += "".join(self._parts)
        self._parts.clear()
        self._pending = 0
        container = self._container
        if container is None:
            self.value = self._flushed
        else:
            container[-1 if type(container) is list else self._key] = self._flushed
        self.changes += 1

    def _enter(self, container: Any, at: int) -> None:
        if len(self._open) >= self._max_depth:
            self.fail(f"nested more than {self._max_depth} levels deep", at, JSONDepthError)
        self._put(container)
        self._open.append(container)
        self._container = container
        self._state = JSONReader._at_first_element

    def _leave(self) -> None:
        self._open.pop()
        self._container = self._open[-1] if self._open else None
        self._state = JSONReader._after_value

    def _begin_string(self, *, key: bool) -> None:
        self._string_open = True
        self._in_key = key
        if not key:
            self._put("")
        self._state = JSONReader._in_string

    def _end_string(self) -> None:
        self._string_open = False
        if self._surrogate:
            self._parts.append(self._surrogate)
            self._surrogate = ""
        if self._in_key:
            self._key = "".join(self._parts)
            self._parts.clear()
            self._state = JSONReader._at_colon
            return
        if any(self._parts):
            self._flush_string()
        self._parts.clear()
        self._flushed = ""
        self._state = JSONReader._after_value

    def _add(self, text: str) -> None:
        """Appends to the open string or key, without a high surrogate at the end."""
        text, self._surrogate = split_surrogate(self._surrogate, text)
        self._parts.append(text)
        if text and not self._in_key:
            self._pending += len(text)

    def _end_number(self, at: int) -> None:
        token, self._token = self._token, ""
        found = _NUMBER.fullmatch(token)
        if found is None:
            self.fail(f"invalid number {token[:20]!r}", at)
        value = int(token) if found[1] is None and found[2] is None else float(token)
        if isinstance(value, float) and math.isinf(value):
            self.fail(f"number too large: {token[:20]}", at)
        self._put(value)
        self._state = JSONReader._after_value

    # --- states: each parses from a position in the piece and returns where it stopped -----------------------------

    def _at_value(self, text: str, at: int) -> int:
        character = text[at]
        if character == '"':
            self._begin_string(key=False)
        elif character in "{[":
            self._enter({} if character == "{" else [], at)
        elif character in "-0123456789":
            self._state = JSONReader._in_number
            return at
        elif character in "tfn":
            self._state = JSONReader._in_literal
            return at
        else:
            return self._skip_whitespace(text, at, "a value")
        return at + 1

    def _at_first_element(self, text: str, at: int) -> int:
        in_list = type(self._container) is list
        if text[at] == ("]" if in_list else "}"):
            self._leave()
            return at + 1
        return self._at_value(text, at) if in_list else self._at_key(text, at)

    def _at_key(self, text: str, at: int) -> int:
        if text[at] == '"':
            self._begin_string(key=True)
            return at + 1
        return self._skip_whitespace(text, at, "a key")

    def _at_colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._state = JSONReader._at_value
            return at + 1
        return self._skip_whitespace(text, at, "a colon")

    def _after_value(self, text: str, at: int) -> int:
        if not self._open:
            return self._skip_whitespace(text, at, "the end of input")
        character = text[at]
        in_list = type(self._container) is list
        if character == ",":
            self._state = JSONReader._at_value if in_list else JSONReader._at_key
        elif character == ("]" if in_list else "}"):
            self._leave()
        else:
            return self._skip_whitespace(
                text, at, "a comma or the end of the list" if in_list else "a comma or the end of the object"
            )
        return at + 1

    def _skip_whitespace(self, text: str, at: int, expected: str) -> int:
        end = _whitespace(text, at).end()
        if end == at:
            self.fail(f"expected {expected}, found {text[at]!r}", at)
        return end

    def _in_string(self, text: str, at: int) -> int:
        end = _plain(text, at).end()
        if end > at:
            self._add(text[at:end])
        if end == len(text):
            return end
        character = text[end]
        if character == '"':
            self._end_string()
        elif character == "\\":
            self._state = JSONReader._in_escape
        else:
            self.fail(f"unescaped control character {character!r} in a string", end)
        return end + 1

    def _in_escape(self, text: str, at: int) -> int:
        character = text[at]
        if character == "u":
            self._state = JSONReader._in_unicode_escape
            return at + 1
        if character not in _ESCAPES:
            self.fail(f"invalid escape character {character!r}", at)
        self._add(_ESCAPES[character])
        self._state = JSONReader._in_string
        return at + 1

    def _in_unicode_escape(self, text: str, at: int) -> int:
        end = _hex_digits(text, at, at + 4 - len(self._escape)).end()
        self._escape += text[at:end]
        if len(self._escape) < 4:
            if end < len(text):
                self.fail(f"expected a hexadecimal digit, found {text[end]!r}", end)
            return end
        self._add(chr(int(self._escape, 16)))
        self._escape = ""
        self._state = JSONReader._in_string
        return end

    def _in_number(self, text: str, at: int) -> int:
        end = _number_characters(text, at).end()
        self._token += text[at:end]
        if len(self._token) > _MAX_NUMBER_LENGTH:
            self.fail(f"number longer than {_MAX_NUMBER_LENGTH} characters", at)
        if end < len(text):
            self._end_number(end)
        return end

    def _in_literal(self, text: str, at: int) -> int:
        end = _letters(text, at, at + 6).end()
        self._token += text[at:end]
        if self._token in _LITERALS:
            self._put(_LITERALS[self._token])
            self._token = ""
            self._state = JSONReader._after_value
        elif end < len(text) or not any(word.startswith(self._token) for word in _LITERALS):
            self.fail(f"invalid literal {self._token!r}", at)
        return end


def read_json(text: str | bytes) -> Any:
    """Parses a complete JSON value; see ``JSONReader``.

    Raises:
        JSONError: The text is not JSON.
    """
    reader = JSONReader()
    reader.feed(text)
    return reader.close()
