"""The lenient fallback: coerces JSON that msgspec rejects. No I/O.

Users pay for the content of a reply. A count sent as a string, an id that is a number, or a details object that is a
list must not cost them the content: such fields are coerced if possible, and dropped if not. Content itself is never
dropped: if it cannot be decoded, decoding the reply fails.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from friendli_async._core.error_json import explicit_error, has_value, holds_content
from friendli_async._core.status_errors import excerpt
from friendli_async._json import (
    Fields,
    as_list,
    as_object,
    is_object,
    items_of,
    json_or_none,
    loads_with_replacement,
    prepared,
)
from friendli_async.errors import ResponseDecodeError
from friendli_async.replies import TokenUsage, Usage

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

_SCALARS: Final = frozenset({"bool", "int", "float", "NoneType", "UnsetType"})
# The fields that hold the content, by their names on the wire, of all APIs.
_CONTENT: Final = frozenset(
    {
        *("arguments", "choices", "content", "content_block", "data", "delta", "embedding", "function", "input"),
        *("item", "message", "output", "part", "partial_json", "reasoning", "reasoning_content", "response", "results"),
        *("text", "thinking", "tokens", "tool_calls"),
    }
)
# Of these, text that the model writes as JSON, and that some servers send parsed.
_MODEL_JSON: Final = frozenset({"arguments", "partial_json"})
# Of these, the fields that may be dropped if they hold no text.
_DROPPABLE_WITHOUT_TEXT: Final = frozenset({"reasoning", "reasoning_content", "thinking", "tool_calls"})
# Fields that hold a list; for an object in its place see ``items_of``.
_LIST_FIELDS: Final = frozenset({"choices", "content", "data", "output", "reasoning_details", "summary", "tool_calls"})
# Of the content fields, those of text.
_TEXT_FIELDS: Final = frozenset({"content", "reasoning", "reasoning_content", "text", "thinking"})
# Of the text fields, those of an answer: thinking that a server sends in them belongs in a field of its own.
_ANSWER_TEXTS: Final = frozenset({"content", "text"})
# The fields that hold a list of parts, and the type of a text part.
_PART_TYPES: Final = {"content": "text", "reasoning_details": "reasoning.text", "summary": "summary_text"}
# The fields in which a part of a text has it.
_PART_TEXTS: Final = ("thinking", "text", "content", "summary")
_FINISH_REASONS: Final = frozenset({"finish_reason", "stop_reason"})
_BOOLEANS: Final = {"true": True, "false": False, "1": True, "0": False}


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes JSON into the decoder's type: with msgspec, or else with the lenient fallback.

    Raises:
        ResponseDecodeError: The data is not JSON, or cannot be coerced to the type.
    """
    kind: Any = decoder.type
    if not data and (kind is Any or type(None) in get_args(kind)):
        return cast("T", None)
    if not data:
        raise ResponseDecodeError("the server's reply is empty")
    try:
        reply = decoder.decode(data)
    except msgspec.DecodeError as error:
        reason = str(error)
    except UnicodeDecodeError as error:
        reason = f"a text in it is not UTF-8: {error.reason}"
    except RecursionError as error:
        reason = type(error).__name__
    else:
        if lacks_counts(getattr(reply, "usage", None)):
            correct_usage(reply, as_object(json_or_none(data)))
        return reply
    try:
        return cast("T", convert(loads_with_replacement(data), decoder.type))
    except (ValueError, RecursionError):  # the errors of msgspec, json and Unicode are ValueErrors
        pass
    raise ResponseDecodeError(f"the server's reply could not be decoded: {reason}", excerpt=excerpt(data))


def text_of(value: object) -> str:
    """Returns the text of an object or of a list of parts, in the place of a text."""
    return (_coerce_to_text({}, "text", value) or "") if holds_content(value) else ""


_prepared: Final = cache(prepared)


def convert(value: object, kind: Any) -> Any:
    """Converts decoded JSON to a type, repairing what msgspec rejects; ``value`` is modified.

    Only the rejected parts are walked, and only once: the cost grows with the size of the value, not with the number
    of its faults.

    Raises:
        ValueError: The content is invalid, or something else that cannot be repaired.
    """
    _prepared(kind)
    try:
        converted = msgspec.convert(value, kind)
    except ValueError as error:  # not only msgspec's own: half a character in place of a number is a UnicodeEncodeError
        reason = str(error)
        try:
            converted = msgspec.convert(_repair(value, kind), kind)
        except ValueError:
            raise ValueError(reason) from None
    correct_usage(converted, as_object(value))
    return converted


# --- usage -----------------------------------------------------------------------------------------------------------

_USAGE_HOLDERS: Final = ("message", "response")
"""The fields of events that hold the beginning or the whole of a reply, with its usage."""
_USAGE_NAMES: Final = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "prompt_tokens_details": "input_tokens_details",
    "completion_tokens_details": "output_tokens_details",
}
_USAGE_ALIASES: Final = _USAGE_NAMES | {theirs: ours for ours, theirs in _USAGE_NAMES.items()}
"""The counts of a usage in one API, by their names in another."""


def has_usage_without_counts(value: object) -> bool:
    """Whether a decoded event or reply has a usage without counts, which ``correct_usage`` must look at."""
    return any(lacks_counts(getattr(each, "usage", None)) for each in _usage_holders(value))


def correct_usage(value: object, fields: Fields) -> None:
    """Fills a usage without counts from those that the server sent under another API's names.

    A usage without any becomes None: an absent usage must not look like a measured 0.
    """
    sources = (fields, *(as_object(fields.get(name)) for name in _USAGE_HOLDERS))
    for each, source in zip(_usage_holders(value), sources, strict=True):
        usage: Any = getattr(each, "usage", None)
        if lacks_counts(usage):
            reported = _reported_usage(usage, as_object(source.get("usage")))
            msgspec.structs.force_setattr(cast("msgspec.Struct", each), "usage", reported)


def _reported_usage(usage: Any, counts: Fields) -> object:
    foreign = {_USAGE_ALIASES[name]: count for name, count in counts.items() if name in _USAGE_ALIASES}
    counts = counts | {name: count for name, count in foreign.items() if count is not None}
    converted = convert(counts, type(usage))  # also converts the counts themselves to numbers
    return converted if any(_has_number(counts.get(name)) for name in usage.__struct_encode_fields__) else None


def _usage_holders(value: object) -> tuple[object, ...]:
    """Returns what may have a usage: a reply or event, and the replies in its fields, or None for one that it lacks."""
    return value, *(getattr(value, name, None) for name in _USAGE_HOLDERS)


def lacks_counts(usage: object) -> bool:
    """Whether a usage, or details of one, have only zeros, except for a total."""
    if not isinstance(usage, msgspec.Struct):
        return False
    for name in usage.__struct_fields__:
        count = getattr(usage, name)
        if count and name != "total_tokens" and not isinstance(count, str) and not lacks_counts(count):
            return False  # mostly at the first field
    return True


_COUNTS: Final = frozenset({"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"})
"""The counts of which a total is the sum."""


def latest_usage(usage: S, earlier: S | None) -> S:
    """Returns a usage with what an earlier one of the same stream has and it lacks: the counts are totals.

    Some servers send the prompt's tokens first and the others last, or zeros once more.
    """
    if earlier is None or _has_all(usage, earlier):
        return usage
    missing: dict[str, Any] = {}
    for name in usage.__struct_fields__:
        latest, known = getattr(usage, name), getattr(earlier, name)
        if known is not None and (not latest or lacks_counts(latest)):
            missing[name] = known
    if isinstance(usage, TokenUsage) and not _COUNTS.isdisjoint(missing):
        whole = msgspec.structs.replace(usage, **{**missing, "total_tokens": 0})  # which becomes their sum
        missing["total_tokens"] = max([getattr(each, "total_tokens", 0) for each in (usage, earlier, whole)])
    return msgspec.structs.replace(usage, **missing) if missing else usage


def _has_all(usage: object, earlier: object) -> bool:
    """Whether a usage in a chunk has what an earlier one has, as mostly of a server that sends one with every chunk."""
    if not isinstance(usage, Usage) or not isinstance(earlier, Usage):
        return False
    has_details = earlier.prompt_tokens_details or earlier.completion_tokens_details
    has_counts = usage.prompt_tokens and usage.completion_tokens
    return bool(has_counts) and not has_details and earlier.cost is earlier.reasoning_tokens is None


def _has_number(count: object) -> bool:
    return type(count) in (int, float) or any(map(_has_number, as_object(count).values()))


# --- repair ----------------------------------------------------------------------------------------------------------


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except ValueError:
        return False
    return True


def _repair(value: Any, kind: Any) -> Any:
    """Repairs the fields of an object, or the items of a list, that do not match the type. Raises ValueError."""
    if is_object(value) and (struct := _struct_of(kind, value)) is not None:
        return _repair_fields(value, struct)
    item = _item_of(kind, dict) if is_object(value) else _item_of(kind, list, tuple)
    if item is not None:
        return _repair_items(value, item)
    raise ValueError("nothing inside can be repaired")


def _repair_items(holder: Any, item: Any) -> Any:
    """Repairs the items of a list, or the values of a mapping."""
    for key, value in as_object(holder).items() or enumerate(as_list(holder)):
        if not _fits(value, item):
            holder[key] = _coerce_field(holder, "", value, item)
    return holder


def _move_fields(holder: Fields, names: set[str]) -> None:
    """Moves what a server sends elsewhere to the field that the struct, with these ``names`` of fields, has for it."""
    legacy = as_object(holder.get("function_call"))  # of OpenAI's API before tool calls
    if any(legacy.values()) and "tool_calls" in names:
        holder["tool_calls"] = holder.get("tool_calls") or [{"index": 0, "function": legacy}]
    if "function" in names:
        _complete_function(holder)
    is_delta = {"text", "tool_calls"} <= names
    if is_delta and isinstance(holder.get("text"), str | list | dict) and not holder.get("content"):
        holder["content"] = holder.pop("text")
    if {"choices", "usage"} <= names and not holder.get("usage"):
        usages = (as_object(choice).get("usage") for choice in items_of(holder.get("choices")))
        holder["usage"] = next(filter(None, usages), None)


def _complete_function(call: Fields) -> None:
    """Moves the name and the arguments of a tool call to its function, each from where a server sends it."""
    function, custom = as_object(call.get("function")), as_object(call.get("custom"))
    if any(custom.values()) and not any(function.values()):
        call["type"] = "custom"
    name = function.get("name") or custom.get("name") or call.get("name")
    # In Llama's own format, arguments are parameters. A custom call has a text.
    places: list[Any] = [function.get("arguments"), function.get("parameters"), custom.get("input")]
    places += [call.get("arguments"), call.get("parameters")]
    # Empty ones count, too: in a stream, they tell where a name has ended.
    arguments = max((each for each in places if each is not None), key=bool, default=None)
    if name or arguments:
        call["function"] = {"name": name, "arguments": arguments}


def _repair_fields(holder: Fields, struct: Any) -> Fields:
    _move_fields(holder, set(struct.__struct_encode_fields__))
    for name, kind in _fields_of(struct):
        if name in holder and not _fits(holder[name], kind):
            try:
                holder[name] = _coerce_field(holder, name, holder[name], kind)
            except ValueError:
                if not _is_droppable(holder, name, kind):
                    raise
                del holder[name]
    return holder


def _coerce_field(holder: Any, name: str, value: Any, kind: Any) -> Any:
    """Converts a value to a type that it does not match. Raises ValueError if that is impossible."""
    types, item = _json_types_of(kind), _item_of(kind, list, tuple)
    if name == "data" and is_object(value) and not _may_be_items(value, item):
        raise ValueError("data has no item")
    if name == "reasoning_details" and isinstance(value, list):
        return _reasoning_details(cast("list[object]", value))
    if (isinstance(value, dict) and "object" in types) or (isinstance(value, list) and "array" in types):
        return _repair(value, kind)
    if name == "content" and isinstance(value, str) and not _has_text_field(item):
        types.discard("array")
    coerced = None if value is None else _coerce(holder, name, value, types)
    if coerced is None:
        raise ValueError(f"{name} cannot be read")
    return coerced if _fits(coerced, kind) else _repair(coerced, kind)


def _may_be_items(value: Fields, item: Any) -> bool:
    """Whether an object may stand in the place of a list: as its only item, which fills a field of one, or by index.

    Else it is about an error, which servers put into ``data``, too.
    """
    struct = None if item is None else _struct_of(item, value)
    return struct is None or items_of(value) != [value] or has_value(value, struct.__struct_encode_fields__)


def _reasoning_details(details: list[object]) -> list[object]:
    """Returns the objects of a list, with texts as objects, too. Anything else in it must not cost them."""
    kind = _PART_TYPES["reasoning_details"]
    parts = [{"type": kind, "text": each} if isinstance(each, str) else each for each in details]
    return [part for part in parts if is_object(part)]


def _is_droppable(holder: Fields, name: str, kind: Any) -> bool:
    """Whether a field that cannot be decoded may be dropped."""
    value, types = holder[name], _json_types_of(kind)
    if not _may_hold_content(name, kind) or types <= _SCALARS:
        return True
    if name in _DROPPABLE_WITHOUT_TEXT and not _has_text(value):
        return True
    if name == "message":
        return "object" not in types  # a tool's progress message
    if "str" in types and type(value) in (int, float):
        return False  # 0, too: it is no empty text
    return not value or name == "tokens"  # no content; or tokens, which accompany their text unless required


def _may_hold_content(name: str, kind: Any) -> bool:
    """Whether a field may hold content, by its name and type: the delta that ends a message has only metadata."""
    structs = structs_of(kind)
    return name in _CONTENT and (not structs or any(_CONTENT & {*each.__struct_encode_fields__} for each in structs))


def _has_text(value: object) -> bool:
    return isinstance(value, str) or any(map(_has_text, (*as_object(value).values(), *as_list(value))))


# --- types -----------------------------------------------------------------------------------------------------------


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def structs_of(kind: Any) -> list[Any]:
    """Returns a type if it is a struct, or those members of a union that are."""
    return [member for member in _members(kind) if _is_struct(member)]


def _struct_of(kind: Any, value: Fields) -> Any:
    """Returns the struct of a type or union whose tag the object has, or that has no tag; else None."""
    for struct in structs_of(kind):
        config = struct.__struct_config__
        if config.tag is None or value.get(config.tag_field) == config.tag:
            return struct
    return None


def _item_of(kind: Any, *holders: type) -> Any:
    """Returns the type of the items of a list type, or of the values of a mapping type, or None."""
    held = (get_args(member) for member in _members(kind) if get_origin(member) in holders)
    return next((arguments[0 if arguments[-1] is ... else -1] for arguments in held if arguments), None)


def _has_text_field(item: Any) -> bool:
    return item is Any or (_is_struct(item) and "text" in item.__struct_encode_fields__)


@cache
def _fields_of(struct: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((field.encode_name, field.type) for field in msgspec.structs.fields(struct))


def _json_types_of(kind: Any) -> set[str]:
    """Returns the JSON types that a type accepts, by msgspec's names."""
    return {_json_type_of(get_origin(member) or member) for member in _members(kind)}


def _json_type_of(kind: Any) -> str:
    if kind is dict or _is_struct(kind):
        return "object"
    if kind in (list, tuple):
        return "array"
    return "str" if kind is Literal else getattr(kind, "__name__", "")


# --- values ----------------------------------------------------------------------------------------------------------


def _coerce(holder: Any, name: str, value: Any, types: set[str]) -> object:
    """Converts a value to one of the expected JSON types; returns None if that is impossible."""
    if name in _FINISH_REASONS:  # it may be in an object; anything else is none
        fields = {} if "int" in types else as_object(value)  # what may be a token is no reason
        return next((word for word in fields.values() if isinstance(word, str)), "stop") if fields else None
    if "str" in types:
        return _coerce_to_text(holder, name, value)
    if "array" in types:
        if name in _PART_TYPES and isinstance(value, str):
            return [{"type": _PART_TYPES[name], "text": value}]
        if name not in _LIST_FIELDS or explicit_error({name: value}):  # an error is no item
            return None
        item = cast("object", value)
        return items_of(item) if item and is_object(item) else None
    if types & {"int", "float"}:
        return _to_number(value, types)
    if "bool" in types:
        return _BOOLEANS.get(f"{value}".lower())
    return _to_datetime(value) if "datetime" in types else None


def _coerce_to_text(holder: Any, name: str, value: Any) -> str | None:
    is_nested = isinstance(value, dict | list)
    if name == "type":
        return None
    if (name == "status") if is_nested else (name in _CONTENT - _MODEL_JSON):
        return None
    if name in _TEXT_FIELDS:
        parts = [value] if as_object(value).keys() & _TEXT_FIELDS else as_list(value)
        if parts or value == []:
            return _join_parts(holder, name, parts)
        if value == {}:
            return None
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _to_datetime(value: Any) -> datetime | None:
    """Converts seconds since 1970, or an ISO 8601 date with or without a time."""
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value) if "-" in value else None  # it takes 13 digits, too, for a date
        return datetime.fromtimestamp(value, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _to_number(value: Any, types: set[str]) -> int | float | None:
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
    try:
        return int(value)  # of a text with a large integer, the float is another number
    except ValueError:  # a text such as "7.0"
        return int(number)


def _join_parts(holder: Fields, name: str, parts: list[Any]) -> str:
    """Joins the text of a list of parts; in an answer, that of thinking parts goes to its ``reasoning_content``."""
    text: list[str] = []
    thinking: list[str] = [] if name in _ANSWER_TEXTS else text
    _collect_texts(parts, text, thinking)
    if thinking is not text and any(thinking) and not holder.get("reasoning_content"):
        holder["reasoning_content"] = "".join(thinking)
    return "".join(text)


def _collect_texts(parts: list[Any], text: list[str], thinking: list[str]) -> None:
    """Adds the texts of a list of parts to ``text``, and those inside of thinking parts to ``thinking``."""
    for part in parts:
        if is_object(part):
            content: Any = next((value for name in _PART_TEXTS if (value := part.get(name)) is not None), "")
            if is_object(content):  # {"value": "text", "annotations": []}
                content = content.get("value", content)
            inner = cast("list[object]", content) if isinstance(content, list) else [content]
            is_thinking = f"{part.get('type')}".startswith(("thinking", "reasoning"))
            _collect_texts(inner, thinking if is_thinking else text, thinking)
        elif part is not None:
            text.append(part if isinstance(part, str) else json.dumps(part))
