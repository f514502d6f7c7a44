"""The tolerant reading: what msgspec refuses at first sight, read once more. Pure.

What a user pays for is the content of an answer. A count that came as a string, an id that is a number, a details
object that is a list must not cost it: such fields are converted where they can be, and dropped where they cannot.
Content itself is never dropped: where it cannot be read, the reply cannot.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from friendli_async._core.error_json import Fields, as_list, as_object, is_object, json_or_none, loads
from friendli_async._core.status_errors import excerpt
from friendli_async.errors import ResponseDecodeError

__all__ = ["convert", "decode"]

T = TypeVar("T")

_SCALARS: Final = frozenset({"bool", "int", "float", "NoneType"})
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
        "results",
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
_LISTED: Final = frozenset({"choices", "content", "data", "output", "reasoning_details", "tool_calls"})
# Of these, what is words, whatever they come in.
_WORDED: Final = frozenset({"content", "reasoning", "reasoning_content", "text", "thinking"})
# Of these, what is a list of parts, and the type of a part that is text.
_PARTS: Final = {"content": "text", "reasoning_details": "reasoning.text"}
_REASONS: Final = frozenset({"finish_reason", "stop_reason"})
_TRUTHS: Final = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_MILLISECONDS: Final = 1e11  # in seconds it would be the year 5138
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
    if not data:
        raise ResponseDecodeError("the server's reply is empty")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
    try:
        return cast("T", convert(loads(data), decoder.type))
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
    fields = as_object(value)
    if is_object(value) and (struct := _struct_of(kind, fields)) is not None:
        return _mended_fields(fields, struct, root=root)
    item = _item_of(kind, dict) if is_object(value) else _item_of(kind, list, tuple)
    if isinstance(value, dict | list) and item is not None:
        return _mended_items(value, item)
    raise ValueError("nothing inside that could be mended")


def _mended_items(holder: Any, item: Any) -> Any:
    """Mends the items of a list, or the values of an object whose names are ids."""
    for place, inside in as_object(holder).items() or enumerate(as_list(holder)):
        if not _fits(inside, item):
            if isinstance(place, int):
                _place(as_object(inside), item, place)
            holder[place] = _brought(holder, "", inside, item)
    return holder


def _place(fields: Fields, item: Any, place: int) -> None:
    """Gives one of several answers, whose index says nothing, the place where it stands for its index."""
    struct = _struct_of(item, fields)
    has_index = struct is not None and ("index", int) in [(name, kind) for name, kind, _ in _fields_of(struct)]
    if has_index and "index" in fields and _number(fields["index"], {"int"}) is None:
        fields["index"] = place


def _mended_fields(holder: Fields, struct: Any, *, root: bool) -> Fields:
    for name, kind, required in _fields_of(struct):
        told = name in holder
        if told and not _fits(holder[name], kind):
            try:
                holder[name] = _brought(holder, name, holder[name], kind)
            except ValueError:
                if not _may_go(holder, name, kind, required=required):
                    raise
                del holder[name]
        if required and name not in holder:
            # What was never there is not made up, unless it is a mere label of something inside.
            if name not in _NAMES or (root and not told) or name in getattr(struct, "answered_by", ()):
                raise ValueError(f"{name} is missing")
            holder[name] = ""
    return holder


def _brought(holder: Any, name: str, value: Any, kind: Any) -> Any:
    """A value that does not fit its type as one that does. Raises ValueError where there is no way."""
    types = _names_of(kind)
    if not name and isinstance(value, str) and _is_part(kind):
        return {"text": value}
    if (isinstance(value, dict) and "object" in types) or (isinstance(value, list) and "array" in types):
        return _mended(value, kind)
    if name == "content" and isinstance(value, str) and not _takes_text(_item_of(kind, list, tuple)):
        types.discard("array")
    fitting = None if value is None else _fitting(holder, name, value, types)
    if fitting is None:
        raise ValueError(f"{name} cannot be read")
    return fitting if _fits(fitting, kind) else _mended(fitting, kind)


def _may_go(holder: Fields, name: str, kind: Any, *, required: bool) -> bool:
    """Whether a field that cannot be read may be taken out."""
    value, types = holder[name], _names_of(kind)
    if name not in _CONTENT or types <= _SCALARS or (name in _BESIDE and not _has_words(value)):
        return True
    if name == "message":
        return "object" not in types  # what a tool says of its progress
    return not value or (name == "tokens" and not required)  # an answer that is null is none; or beside their text


def _has_words(value: object) -> bool:
    return isinstance(value, str) or any(map(_has_words, (*as_object(value).values(), *as_list(value))))


# --- types -----------------------------------------------------------------------------------------------------------


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _struct_of(kind: Any, value: Fields) -> Any:
    """Which of a type's structs an object is meant to be."""
    structs = [member for member in _members(kind) if _is_struct(member)]
    for struct in structs:
        config = struct.__struct_config__
        if config.tag is None or value.get(config.tag_field) == config.tag:
            return struct
    return None


def _item_of(kind: Any, *holders: type) -> Any:
    """The type of the items of a type's lists, or of the values of its objects whose names are ids."""
    held = (get_args(member) for member in _members(kind) if get_origin(member) in holders)
    return next((arguments[0 if arguments[-1] is ... else -1] for arguments in held if arguments), None)


def _is_part(kind: Any) -> bool:
    """Whether a type is a part of a text, by its kind: as a bare text it is one, too."""
    return _is_struct(kind) and {"type", "text"} <= set(kind.__struct_encode_fields__)


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
        if (plain and name in _CONTENT - _WRITTEN) or name == "type" or (not plain and name == "status"):
            return None
        return None if name in _WORDED and value == {} else _text(holder, name, value)
    if isinstance(value, str) and (types & {"object", "array"}):
        inside: object = json_or_none(value)
        if isinstance(inside, dict if "object" in types else list):
            return cast("object", inside)
    if "array" in types:
        if name in _PARTS and isinstance(value, str):
            return [{"type": _PARTS[name], "text": value}]
        return [cast("object", value)] if value and isinstance(value, dict) and name in _LISTED else None
    if types & {"int", "float"}:
        return _number(value, types)
    if "bool" in types:
        return _TRUTHS.get(f"{value}".lower())
    return _time(value) if "datetime" in types else None


def _time(value: Any) -> datetime | None:
    """Seconds or milliseconds since 1970, or a date, with a time or without."""
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        return datetime.fromtimestamp(value / 1000 if value > _MILLISECONDS else value, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _number(value: Any, types: set[str]) -> int | float | None:
    if isinstance(value, bool):
        return None
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
    if name in _WORDED:
        parts = [value] if as_object(value).keys() & _WORDED else as_list(value)
        if parts or value == []:
            return _joined(holder, parts)
    if name in _REASONS:
        return next((word for word in as_object(value).values() if isinstance(word, str)), "stop")
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _joined(holder: Fields, parts: list[Any]) -> str:
    """Text of a message that came as a list of parts; the model's thinking goes where reasoning has its place."""
    text, thinking = "", ""
    for part in parts:
        if isinstance(part, dict):
            fields = cast("Fields", part)
            inside: Any = fields.get("thinking", fields.get("text", fields.get("content", "")))
            words = _joined({}, cast("list[object]", inside)) if isinstance(inside, list) else f"{inside}"
            if fields.get("type") in {"thinking", "reasoning"}:
                thinking += words
            else:
                text += words
        elif part is not None:
            text += part if isinstance(part, str) else json.dumps(part)
    if thinking and not holder.get("reasoning_content"):
        holder["reasoning_content"] = thinking
    return text
