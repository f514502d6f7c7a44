"""The tolerant reading: what msgspec refuses at first sight, read once more. Pure.

What a user pays for is the content of an answer. A count that came as a string, an id that is a number, a details
object that is a list must not cost it: such fields are converted where they can be, and dropped where they cannot.
Content itself is never dropped: where it cannot be read, the reply cannot.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, TypeVar, cast, get_args

import msgspec

from friendli_async._core.error_bodies import excerpt, loads, parsed
from friendli_async.errors import ResponseDecodeError

__all__ = ["convert", "decode"]

T = TypeVar("T")

_NOTHING: Final[tuple[object, ...]] = (None, type(None), Any)
_REPAIRS: Final = 64
# As in: "Expected `int | null`, got `str` - at `$.choices[0].index`".
_PLACE: Final = r"(?s)(?P<reason>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?"
_EXPECTED: Final = r"Expected `(?P<types>[^`]*)`"
_MISSING: Final = r"Object missing required field `(?P<name>[^`]*)`"
_STEP: Final = r"\.([^.\[\]]+)|\[(\d+)\]"
# Fields that hold what the user pays for, by their names on the wire, in all the APIs.
_CONTENT: Final = frozenset(
    {
        "arguments",
        "choices",
        "content",
        "content_block",
        "data",
        "delta",
        "embedding",
        "function",
        "input",
        "item",
        "message",
        "output",
        "part",
        "partial_json",
        "reasoning",
        "reasoning_content",
        "response",
        "text",
        "thinking",
        "tokens",
        "tool_calls",
    }
)
# Of these, what the model writes as JSON, and some servers do not leave as text.
_WRITTEN: Final = frozenset({"arguments", "partial_json"})
_REASONS: Final = frozenset({"finish_reason", "stop_reason"})
# What a reply is kept without, though its schema insists: names, and what only repeats the request.
_NAMES: Final = frozenset(
    {"id", "item_id", "model", "name", "object", "role", "status", "tool_call_id", "type", "value"}
)


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes JSON into the decoder's type: one pass of msgspec, and the tolerant reading of what that refuses.

    Raises:
        ResponseDecodeError: Not JSON, or not of this shape either way.
    """
    if not data and (decoder.type in _NOTHING or type(None) in get_args(decoder.type)):
        return cast("T", None)
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
    try:
        value: T = convert(loads(data), decoder.type)
        return value
    except (ValueError, RecursionError):  # msgspec's, json's and Unicode errors are ValueErrors
        pass
    raise ResponseDecodeError(f"the server's reply could not be read: {reason}", excerpt=excerpt(data))


def convert(value: object, kind: Any) -> Any:
    """Makes decoded JSON into a type, mending it on the way; ``value`` is changed.

    Raises:
        ValueError: What is wrong is the content, or nothing that could be mended.
    """
    tried: set[str] = set()  # places that have been mended before
    for _ in range(_REPAIRS):
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            words = str(error)
        if not _mend(value, words, tried):
            raise ValueError(words)
    raise ValueError("too much of it is not what it should be")


def _mend(root: object, words: str, tried: set[str]) -> bool:
    """Mends the place that an error of msgspec's names, and those like it; False if it cannot be."""
    found = re.fullmatch(_PLACE, words)
    if found is None:
        return False
    steps = [name or int(index) for name, index in re.findall(_STEP, found["path"] or "")]
    missing = re.fullmatch(_MISSING, found["reason"])
    if missing is not None:
        holder = _at(root, steps)
        name = missing["name"]
        # What was never there is not made up, unless it is a mere label of something inside.
        known = name in _NAMES and (bool(steps) or f".{name}" in tried)
        if not isinstance(holder, dict) or not known or name in holder:
            return False
        holder[name] = ""
        return True
    if not steps:
        return False
    place = found["path"]
    again = place in tried
    tried.add(place)
    expected = re.match(_EXPECTED, found["reason"])
    types = set(expected["types"].split(" | ")) if expected is not None else set[str]()
    if _at(root, steps) is not None and found["key"] is None and not again and types:
        return _mend_alike(root, steps, types)
    return _drop(root, steps)


def _at(value: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):  # a place that has been emptied meanwhile
            return None
    return value


def _mend_alike(root: object, steps: list[str | int], types: set[str]) -> bool:
    """Converts the field, in every item of the list that its holder is in: what is wrong once is wrong all along."""
    *above, name = steps
    kind = _kind(_at(root, steps))
    in_a_list = bool(above) and isinstance(above[-1], int)
    holders: list[Any] = _at(root, above[:-1]) if in_a_list else [_at(root, above)]
    for holder in holders:
        value = _at(holder, [name])
        if _kind(value) == kind:
            fitting = _fitting(holder, str(name), value, types)
            if fitting is not None:
                holder[name] = fitting
            elif not _drop_from(holder, name):
                return False
    return True


def _kind(value: object) -> str:
    return type(value).__name__


def _drop(root: object, steps: list[str | int]) -> bool:
    return _drop_from(_at(root, steps[:-1]), steps[-1])


def _drop_from(holder: Any, name: str | int) -> bool:
    """Takes a field out, unless it is content."""
    if not isinstance(holder, dict) or name not in holder:
        return False
    if name in _CONTENT and (holder[name] or name == "message"):  # an answer that is null is none
        return False
    if name == "index" and holder[name]:  # without it, the parts of several answers would be taken for one
        return False
    del holder[name]
    return True


def _fitting(holder: Any, name: str, value: Any, types: set[str]) -> object:
    """A value as one of the types that are expected; None if there is no way."""
    if name in _REASONS and (not value or not isinstance(value, dict)):
        return None  # what is no word, nor has one, does not say that the end has come
    if "str" in types:
        plain = not isinstance(value, dict | list)
        return None if plain and name in _CONTENT - _WRITTEN else _text(holder, name, value)
    if isinstance(value, str) and "object" in types:
        inside = parsed(value.encode("utf-8", "surrogatepass"))
        return cast("object", inside) if isinstance(inside, dict) else None
    if "array" in types:
        if name == "content" and isinstance(value, str):
            return [{"type": "text", "text": value}]
        return [cast("object", value)] if isinstance(value, dict) and name == "tool_calls" else None
    if types & {"int", "float"}:
        return _number(value, types)
    return None


def _number(value: Any, types: set[str]) -> int | float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    if "float" in types and number != int(number):
        return number
    return value if type(value) is int else int(number)


def _text(holder: Any, name: str, value: Any) -> str:
    if name == "content" and _kind(value) == "list":
        return _parts(holder, value)
    if name in _REASONS and isinstance(value, dict):
        return next((word for word in cast("dict[str, Any]", value).values() if isinstance(word, str)), "stop")
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _parts(holder: dict[str, Any], parts: list[Any]) -> str:
    """Text of a message that came as a list of parts; the model's thinking goes where reasoning has its place."""
    text, thinking = "", ""
    for part in parts:
        if isinstance(part, dict):
            fields = cast("dict[str, Any]", part)
            inside: Any = fields.get("thinking", fields.get("text", fields.get("content", "")))
            words = _parts({}, inside) if _kind(inside) == "list" else str(inside)
            if fields.get("type") in {"thinking", "reasoning"}:
                thinking += words
            else:
                text += words
        else:
            text += str(part)
    if thinking and not holder.get("reasoning_content"):
        holder["reasoning_content"] = thinking
    return text
