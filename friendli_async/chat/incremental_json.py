"""JSON that is read while it arrives: no I/O, any split, time in proportion to the length.

Every rule of RFC 8259 holds. Where the RFC leaves a choice, this is chosen:

- Of duplicate keys the last value counts, and takes the first one's place, as in ``json``.
- Integers are exact. A number that no float can hold (``1e400``) is refused, since it could not be written back, and so
  is one of more than 4,300 characters. NaN and Infinity are no JSON.
- An escaped lone surrogate stays one, as in ``json``. A pair that two pieces of text share is put together.
- A byte order mark is refused, and so are bytes that are not UTF-8.
- Containers are nested 256 deep at most: so what was read can be compared, printed and copied without a
  RecursionError.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn, cast

from friendli_async._core.text import whole

__all__ = ["MAX_DEPTH", "JSONDepthError", "JSONError", "JSONIncompleteError", "JSONReader", "read_json"]

MAX_DEPTH: Final = 256
"""How deep containers may be nested, where nothing else is said."""

_MAX_NUMBER: Final = 4300  # characters; Python's own limit for integers
_LONG: Final = 8192  # characters of a string that is shown as often as it grows
_LAG: Final = 128  # a longer one is shown whenever it has grown by this part of it
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def _run_of(characters: str) -> Callable[..., re.Match[str]]:
    """Finds the characters, as many as follow each other from a place on: perhaps none, so it always matches."""
    return cast("Callable[..., re.Match[str]]", re.compile(f"{characters}*").match)


_blanks: Final = _run_of(r"[ \t\n\r]")
_plain: Final = _run_of(r'[^"\\\x00-\x1f]')
_number_characters: Final = _run_of(r"[-+.0-9eE]")
_letters: Final = _run_of(r"[A-Za-z]")
_hex_digits: Final = _run_of(r"[0-9A-Fa-f]")
_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LITERALS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}


class JSONError(ValueError):
    """What was read is not JSON.

    Attributes:
        reason: What is wrong.
        position: Where, in characters from the beginning.
    """

    def __init__(self, reason: str = "", position: int = 0) -> None:
        super().__init__(reason, position)
        self.reason = reason
        self.position = position

    def __str__(self) -> str:
        return f"{self.reason} at character {self.position}"


class JSONIncompleteError(JSONError):
    """It ends before it is complete: up to there it can be JSON."""


class JSONDepthError(JSONError):
    """Its containers are nested more deeply than allowed."""


class JSONReader:
    """Reads one JSON value in pieces.

    ``value`` is the value so far, and always the same object: it grows, so what it costs to look at it does not depend
    on how much there is. Whoever keeps a state of it copies it (``copy.deepcopy``); nobody else may change it. A string
    that is still arriving is in it as far as it has come, less its latest hundredth where it has thousands of
    characters; a number, a literal or a key only once it is complete.

    Args:
        max_depth: How deep containers may be nested.

    Attributes:
        changes: How often ``value`` has changed.
    """

    def __init__(self, *, max_depth: int = MAX_DEPTH) -> None:
        self.changes: int = 0
        self._max_depth = max_depth
        self._root: Any = None
        self._open: list[Any] = []
        self._holder: Any = None  # the innermost open container
        self._key = ""  # of the object that is the holder
        self._string_open = False
        self._in_key = False
        self._parts: list[str] = []  # of a string, what `_shown` has not
        self._pending = 0  # characters in the parts of a string that is no key
        self._shown = ""
        self._escape = ""
        self._high = ""  # half of a pair of escapes
        self._half = ""  # half of a character that two pieces of text share
        self._token = ""  # a number or a literal
        self._offset = 0  # of the piece
        self._error: JSONError | None = None
        self._decoder: codecs.IncrementalDecoder | None = None
        # A plain function, not a bound method: that would make a cycle.
        self._state: Callable[[JSONReader, str, int], int] = JSONReader._at_value

    @property
    def value(self) -> Any:
        """The value so far; None before it has begun."""
        if self._pending and (len(self._shown) < _LONG or self._pending * _LAG > len(self._shown)):
            self._show()
        return self._root

    @property
    def begun(self) -> bool:
        """Whether there is anything in ``value``."""
        return self.changes > 0

    @property
    def complete(self) -> bool:
        """Whether the value is complete. A number that is not in a container is so by ``close`` alone."""
        return self._state is JSONReader._at_end

    def feed(self, piece: str | bytes) -> None:
        """Reads the next piece.

        Raises:
            JSONError: It is not JSON; every further call raises it again.
        """
        if self._error is not None:
            raise type(self._error)(self._error.reason, self._error.position)
        text = piece if isinstance(piece, str) else self._decoded(piece)
        if text:
            text, self._half = whole(self._half, text)
        self._read(text)

    def close(self) -> Any:
        """Says that there is no more, and returns the value.

        Raises:
            JSONError: It is not JSON.
            JSONIncompleteError: It is not complete.
        """
        self.feed("" if self._decoder is None else self._decoded(b"", final=True))
        half, self._half = self._half, ""
        self._read(half)
        if self._state is JSONReader._in_number:
            self._end_number(0)
        if self._state is not JSONReader._at_end:
            begun = self.changes or self._token
            self.fail("it is incomplete" if begun else "it is empty", 0, JSONIncompleteError)
        return self._root

    def closed_items(self, items: list[Any]) -> int:
        """How many elements of a list, itself a part of ``value``, are complete."""
        for depth, holder in enumerate(self._open, 1):
            if holder is items:
                return len(items) - (depth < len(self._open) or self._string_open)
        return len(items)

    # --- what the states are made of -------------------------------------------------------------------------------

    def fail(self, reason: str, at: int, kind: type[JSONError] = JSONError) -> NoReturn:
        """Raises an error at a place of the present piece, now and ever after."""
        self._error = kind(reason, self._offset + at)
        raise kind(reason, self._offset + at)

    def _read(self, text: str) -> None:
        at, end = 0, len(text)
        while at < end:
            at = self._state(self, text, at)
        self._offset += end

    def _decoded(self, piece: bytes, *, final: bool = False) -> str:
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            return self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            self._error = JSONError("the bytes are not UTF-8", self._offset)
        raise JSONError(self._error.reason, self._offset)

    def _put(self, value: Any) -> None:
        """Places a value that begins, or that has come whole."""
        holder: Any = self._holder
        if holder is None:
            self._root = value
        elif type(holder) is list:
            holder.append(value)  # pyright: ignore[reportUnknownMemberType]  # mypy calls a cast redundant
        else:
            holder[self._key] = value
        self.changes += 1

    def _replace(self, value: str) -> None:
        """Replaces the string that was placed last."""
        holder = self._holder
        if holder is None:
            self._root = value
        else:
            holder[-1 if type(holder) is list else self._key] = value

    def _show(self) -> None:
        """Places what has come of the string."""
        self._shown += "".join(self._parts)
        self._parts.clear()
        self._pending = 0
        self._replace(self._shown)

    def _enter(self, container: Any, at: int) -> None:
        if len(self._open) >= self._max_depth:
            self.fail(f"it is nested more than {self._max_depth} deep", at, JSONDepthError)
        self._put(container)
        self._open.append(container)
        self._holder = container

    def _leave(self) -> None:
        self._open.pop()
        self._holder = self._open[-1] if self._open else None
        self.changes += 1
        self._state = JSONReader._after_value if self._open else JSONReader._at_end

    def _begin_string(self, *, key: bool) -> None:
        self._string_open = True
        self._in_key = key
        if not key:
            self._put("")
        self._state = JSONReader._in_string

    def _end_string(self) -> None:
        self._string_open = False
        if self._in_key:
            self._key = "".join(self._parts)
            self._parts.clear()
            self._state = JSONReader._at_colon
            return
        if self._parts:
            self._show()
        self._shown = ""
        self.changes += 1
        self._state = JSONReader._after_value if self._open else JSONReader._at_end

    def _add(self, text: str) -> None:
        """Adds to the string, or the key, that is arriving."""
        self._parts.append(text)
        if not self._in_key:
            self._pending += len(text)
            self.changes += 1

    def _unhalve(self) -> None:
        """An escaped half of a pair whose other half does not come."""
        self._add(self._high)
        self._high = ""

    def _end_number(self, at: int) -> None:
        token, self._token = self._token, ""
        found = _NUMBER.fullmatch(token)
        if found is None:
            self.fail(f"{token[:20]!r} is no number", at)
        value = int(token) if found[1] is None and found[2] is None else float(token)
        if isinstance(value, float) and math.isinf(value):
            self.fail(f"the number {token[:20]} is too large", at)
        self._put(value)
        self._state = JSONReader._after_value if self._open else JSONReader._at_end

    # --- the states: each reads from a place of the piece, and returns where it stopped ------------------------------

    def _at_value(self, text: str, at: int) -> int:
        character = text[at]
        if character == '"':
            self._begin_string(key=False)
        elif character == "{":
            self._enter({}, at)
            self._state = JSONReader._at_first_key
        elif character == "[":
            self._enter([], at)
            self._state = JSONReader._at_first_item
        elif character in "-0123456789":
            self._state = JSONReader._in_number
            return at
        elif character in "tfn":
            self._state = JSONReader._in_literal
            return at
        else:
            return self._blank(text, at, "a value")
        return at + 1

    def _at_first_item(self, text: str, at: int) -> int:
        if text[at] == "]":
            self._leave()
            return at + 1
        return self._at_value(text, at)

    def _at_first_key(self, text: str, at: int) -> int:
        if text[at] == "}":
            self._leave()
            return at + 1
        return self._at_key(text, at)

    def _at_key(self, text: str, at: int) -> int:
        if text[at] == '"':
            self._begin_string(key=True)
            return at + 1
        return self._blank(text, at, "a key")

    def _at_colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._state = JSONReader._at_value
            return at + 1
        return self._blank(text, at, "a colon")

    def _after_value(self, text: str, at: int) -> int:
        character = text[at]
        in_list = type(self._holder) is list
        if character == ",":
            self._state = JSONReader._at_value if in_list else JSONReader._at_key
        elif character == ("]" if in_list else "}"):
            self._leave()
        else:
            return self._blank(text, at, "a comma or the end of the list" if in_list else "a comma or the object's end")
        return at + 1

    def _at_end(self, text: str, at: int) -> int:
        return self._blank(text, at, "nothing more")

    def _blank(self, text: str, at: int, expected: str) -> int:
        end = _blanks(text, at).end()
        if end == at:
            self.fail(f"there is {text[at]!r} in place of {expected}", at)
        return end

    def _in_string(self, text: str, at: int) -> int:
        end = _plain(text, at).end()
        if self._high and text[at] != "\\":
            self._unhalve()
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
            self.fail(f"the control character {character!r} stands in a string", end)
        return end + 1

    def _in_escape(self, text: str, at: int) -> int:
        character = text[at]
        if character == "u":
            self._state = JSONReader._in_unicode_escape
            return at + 1
        if character not in _ESCAPES:
            self.fail(f"{character!r} cannot be escaped", at)
        if self._high:
            self._unhalve()
        self._add(_ESCAPES[character])
        self._state = JSONReader._in_string
        return at + 1

    def _in_unicode_escape(self, text: str, at: int) -> int:
        end = _hex_digits(text, at, at + 4 - len(self._escape)).end()
        self._escape += text[at:end]
        if len(self._escape) < 4:
            if end < len(text):
                self.fail(f"there is {text[end]!r} in place of a hexadecimal digit", end)
            return end
        character, self._escape = chr(int(self._escape, 16)), ""
        if self._high and "\udc00" <= character <= "\udfff":
            pair = self._high + character
            self._add(pair.encode("utf-16-le", "surrogatepass").decode("utf-16-le"))
            self._high = ""
        else:
            if self._high:
                self._unhalve()
            if "\ud800" <= character <= "\udbff":
                self._high = character
            else:
                self._add(character)
        self._state = JSONReader._in_string
        return end

    def _in_number(self, text: str, at: int) -> int:
        end = _number_characters(text, at).end()
        self._token += text[at:end]
        if len(self._token) > _MAX_NUMBER:
            self.fail(f"a number has more than {_MAX_NUMBER} characters", at)
        if end < len(text):
            self._end_number(end)
        return end

    def _in_literal(self, text: str, at: int) -> int:
        end = _letters(text, at, at + 6).end()
        self._token += text[at:end]
        if self._token in _LITERALS:
            self._put(_LITERALS[self._token])
            self._token = ""
            self._state = JSONReader._after_value if self._open else JSONReader._at_end
        elif end < len(text) or not any(word.startswith(self._token) for word in _LITERALS):
            self.fail(f"{self._token!r} is no JSON", at)
        return end


def read_json(text: str | bytes) -> Any:
    """Reads a whole JSON value; see ``JSONReader``.

    Raises:
        JSONError: It is not JSON.
    """
    reader = JSONReader()
    reader.feed(text)
    return reader.close()
