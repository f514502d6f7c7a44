"""The tolerant reading: what msgspec refuses at first sight, read once more. Pure.

What a user pays for is the content of an answer. A count that came as a string, an id that is a number, a details
object that is a list must not cost it: such fields are converted where they can be, and dropped where they cannot.
Content itself is never dropped: where it cannot be read, the reply cannot.
"""

from __future__ import annotations

import json
import math
from functools import cache
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from friendli_async._core.error_bodies import excerpt, loads, parsed
from friendli_async.errors import ResponseDecodeError

__all__ = ["convert", "decode"]

T = TypeVar("T")

_NOTHING: Final[tuple[object, ...]] = (None, type(None), Any)
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
# Of these, what stands beside the answer.
_BESIDE: Final = frozenset({"reasoning", "reasoning_content", "thinking", "tool_calls"})
_LISTED: Final = frozenset({"reasoning_details", "tool_calls"})
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

    It is walked once, and only where msgspec finds a fault: the work grows with the size of the value, and not with
    the number of its faults.

    Raises:
        ValueError: What is wrong is the content, or nothing that could be mended.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        words = str(error)
    try:
        return msgspec.convert(_mended(value, kind, root=True), kind)
    except ValueError:
        raise ValueError(words) from None


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _mended(value: Any, kind: Any, *, root: bool = False) -> Any:
    """Mends the inside of an object or a list that does not fit its type. Raises ValueError where that cannot be."""
    if isinstance(value, dict) and (struct := _struct_of(kind, cast("dict[str, Any]", value))) is not None:
        return _mended_fields(cast("dict[str, Any]", value), struct, root=root)
    item = _item_of(kind)
    if not isinstance(value, list) or item is None:
        raise ValueError("nothing inside that could be mended")
    items: list[Any] = cast("list[object]", value)
    for index, inside in enumerate(items):
        if not _fits(inside, item):
            items[index] = _brought(items, "", inside, item)
    return items


def _mended_fields(holder: dict[str, Any], struct: Any, *, root: bool) -> dict[str, Any]:
    for name, kind, required in _fields_of(struct):
        told = name in holder
        if told and not _fits(holder[name], kind):
            try:
                holder[name] = _brought(holder, name, holder[name], kind)
            except ValueError:
                if not _may_go(holder, name):
                    raise
                del holder[name]
        if required and name not in holder:
            # What was never there is not made up, unless it is a mere label of something inside.
            if name not in _NAMES or (root and not told):
                raise ValueError(f"{name} is missing")
            holder[name] = ""
    return holder


def _brought(holder: Any, name: str, value: Any, kind: Any) -> Any:
    """A value that does not fit its type as one that does. Raises ValueError where there is no way."""
    types = _names_of(kind)
    if (isinstance(value, dict) and "object" in types) or (isinstance(value, list) and "array" in types):
        return _mended(value, kind)
    if name == "content" and isinstance(value, str) and not _takes_text(_item_of(kind)):
        types.discard("array")
    fitting = None if value is None else _fitting(holder, name, value, types)
    if fitting is None:
        raise ValueError(f"{name} cannot be read")
    return fitting if _fits(fitting, kind) else _mended(fitting, kind)


def _may_go(holder: dict[str, Any], name: str) -> bool:
    """Whether a field that cannot be read may be taken out."""
    if name in _BESIDE and isinstance(holder[name], bool | int | float):
        return True  # a number has none of the words that stand here
    if name in _CONTENT and (holder[name] or name == "message"):  # an answer that is null is none
        return False
    return not (name == "index" and holder[name])  # without it, the parts of several answers would be taken for one


# --- types -----------------------------------------------------------------------------------------------------------


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _struct_of(kind: Any, value: dict[str, Any]) -> Any:
    """Which of a type's structs an object is meant to be."""
    structs = [member for member in _members(kind) if _is_struct(member)]
    for struct in structs:
        config = struct.__struct_config__
        if config.tag is None or value.get(config.tag_field) == config.tag:
            return struct
    return None


def _item_of(kind: Any) -> Any:
    """The type of the items of a type's lists."""
    lists = (get_args(member) for member in _members(kind) if get_origin(member) in (list, tuple))
    return next((arguments[0] for arguments in lists if arguments), None)


def _takes_text(item: Any) -> bool:
    return item is Any or (_is_struct(item) and "text" in item.__struct_encode_fields__)


@cache
def _fields_of(struct: Any) -> tuple[tuple[str, Any, bool], ...]:
    return tuple((field.encode_name, field.type, field.required) for field in msgspec.structs.fields(struct))


def _names_of(kind: Any) -> set[str]:
    """What JSON a type takes, in msgspec's words."""
    return {_name_of(get_origin(member) or member) for member in _members(kind)}


def _name_of(kind: Any) -> str:
    if kind is dict or _is_struct(kind):
        return "object"
    if kind in (list, tuple):
        return "array"
    return "str" if kind is Literal else getattr(kind, "__name__", "")


# --- values ----------------------------------------------------------------------------------------------------------


def _fitting(holder: Any, name: str, value: Any, types: set[str]) -> object:
    """A value as one of the types that are expected; None if there is no way."""
    if name in _REASONS and (not value or not isinstance(value, dict)):
        return None  # what is no word, nor has one, does not say that the end has come
    if "str" in types:
        plain = not isinstance(value, dict | list)
        return None if plain and name in _CONTENT - _WRITTEN else _text(holder, name, value)
    if isinstance(value, str) and (types & {"object", "array"}):
        inside = parsed(value.encode("utf-8", "surrogatepass"))
        if isinstance(inside, dict if "object" in types else list):
            return cast("object", inside)
    if "array" in types:
        if name == "content" and isinstance(value, str):
            return [{"type": "text", "text": value}]
        if name == "reasoning_details" and isinstance(value, str):
            return [{"type": "reasoning.text", "text": value}]
        return [cast("object", value)] if isinstance(value, dict) and name in _LISTED else None
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
    if name == "content" and isinstance(value, list):
        parts: list[Any] = cast("list[object]", value)
        return _parts(holder, parts)
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
            words = _parts({}, cast("list[object]", inside)) if isinstance(inside, list) else f"{inside}"
            if fields.get("type") in {"thinking", "reasoning"}:
                thinking += words
            else:
                text += words
        else:
            text += str(part)
    if thinking and not holder.get("reasoning_content"):
        holder["reasoning_content"] = thinking
    return text
