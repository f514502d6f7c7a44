"""What the user's values are as JSON: their conversion, their check and their encoding. Pure."""

from __future__ import annotations

import math
import re
import sys
from collections import UserString
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, cast

import msgspec

from friendli_async._json import encode_json, replace_surrogates
from friendli_async._pydantic import dump_model
from friendli_async.errors import ArgumentError
from friendli_async.replies import Reply

# Sequences that are not JSON lists.
_NOT_LISTS: Final = (str, bytes, bytearray, memoryview, UserString)
_SCALARS: Final = frozenset({str, int, bool, type(None)})
_BUILTINS: Final = _SCALARS | {list, dict, float}


def is_list(value: object) -> bool:
    """Whether a value is sent as a JSON list."""
    return isinstance(value, list) or (isinstance(value, Sequence) and not isinstance(value, _NOT_LISTS))


def normalize(value: object) -> object:
    """Converts a subclass or look-alike of a built-in type to that type; returns any other value as it is."""
    if type(value) in _BUILTINS:
        return value
    # The value of a subclass, whatever its str() is.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, datetime):
        with suppress(ValueError):  # pandas' NaT has no time
            return datetime.combine(value.date(), value.timetz())
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    if is_list(value):
        return list(cast("Sequence[object]", value))
    numpy: Any = sys.modules.get("numpy")  # not imported: the value cannot be a numpy scalar
    if numpy is None or not isinstance(value, numpy.generic):
        return value
    scalar: Any = value
    if scalar.dtype.kind in "mM":  # a time or a duration, whose item() may be an int: its nanoseconds
        return value
    found: object = scalar.item()
    return found if isinstance(found, str | int | float) else value


def json_hook(value: object) -> object:
    """Converts what msgspec does not know, as a hook of an encoder: a look-alike of a built-in type, a pydantic model.

    Raises:
        TypeError: The value has no JSON form.
    """
    plain = normalize(value)
    return dump_model(value) if plain is value else plain


def struct_to_dict(struct: msgspec.Struct) -> dict[str, object]:
    """Returns a struct as a dict that encodes the same. Its values are not converted, so that they are checked, too."""
    config = struct.__struct_config__
    named = zip(struct.__struct_encode_fields__, msgspec.structs.astuple(struct), strict=True)
    fields = {name: value for name, value in named if value is not msgspec.UNSET}
    if config.omit_defaults:
        fields = {name: value for name, value in fields.items() if value is not None}
    return {config.tag_field: config.tag, **fields} if config.tag_field else fields


class AsSent(dict[str, object]):
    """A part of a reply that goes back as the server sent it: its type may be one that requests do not have."""


class Unchecked(msgspec.Struct, tag_field="type", tag="(unchecked)"):
    """Stands for an ``AsSent`` in a check."""


def to_builtins(value: object, *, checked: bool = False) -> object:
    """Normalizes a value at every level.

    Structs that are parts of replies, such as a tool call inside a message dict, become dicts, too. If it is to be
    checked, replaces what msgspec cannot compare, lone surrogates, and what it must not.
    """
    if checked and isinstance(value, AsSent):
        return Unchecked()
    if isinstance(value, msgspec.Struct) and not isinstance(value, Reply):
        value = struct_to_dict(value)
    plain = normalize(value)
    if isinstance(plain, dict):
        items = cast("dict[object, object]", plain).items()
        return {
            to_builtins(key, checked=checked) if isinstance(key, str) else key: to_builtins(item, checked=checked)
            for key, item in items
        }
    if isinstance(plain, list):
        return [to_builtins(item, checked=checked) for item in cast("list[object]", plain)]
    return replace_surrogates(plain) if checked and isinstance(plain, str) else plain


def check_json(value: object, path: str = "", above: tuple[int, ...] = ()) -> None:
    """Checks that a value is JSON, and rejects what the encoder would silently convert.

    Raises:
        ValueError: With its path: NaN, infinity, a value or key that is not JSON, a container that contains itself.
    """
    plain = struct_to_dict(value) if isinstance(value, msgspec.Struct) else normalize(value)
    if type(plain) in _SCALARS or (isinstance(plain, float) and math.isfinite(plain)):
        return
    where = path or "value"
    if isinstance(plain, float):
        raise ArgumentError(f"{plain} is not valid JSON", where)
    if id(value) in above:
        raise ArgumentError("contains a circular reference", where)
    above = (*above, id(value))
    if isinstance(plain, dict):
        for key, item in cast("dict[object, object]", plain).items():
            if not isinstance(key, str):
                raise ArgumentError(f"the key {key!r} is not a string", where)
            if type(item) not in _SCALARS:
                check_json(item, f"{path}.{key}" if path else key, above)
    elif isinstance(plain, list):
        for index, item in enumerate(cast("list[object]", plain)):
            if type(item) not in _SCALARS:
                check_json(item, f"{path}[{index}]", above)
    else:
        raise ArgumentError(f"{type(value).__name__} is not JSON serializable{callable_hint(where)}", where)


def _is_builtin_json(value: object) -> bool:
    """Whether a value is JSON made of the built-in types themselves, at every level: a fast path."""
    kind = type(value)
    plain: Any = value  # not ``cast``, whose calls would take an eighth of the time
    if kind is dict or kind is AsSent:
        for key, item in plain.items():
            if type(key) is not str or (type(item) not in _SCALARS and not _is_builtin_json(item)):
                return False
        return True
    if kind is list or kind is tuple:
        for item in plain:  # noqa: SIM110  # a generator would cost twice as much
            if type(item) not in _SCALARS and not _is_builtin_json(item):
                return False
        return True
    return kind in _SCALARS or (kind is float and math.isfinite(plain))


_encoder: Final = msgspec.json.Encoder(enc_hook=normalize)


def encode_body(body: Mapping[str, object]) -> bytes:
    """Encodes a body as JSON (see ``encode_json``), and checks it.

    Raises:
        ValueError: The body is not JSON (see ``check_json``).
    """
    try:
        try:
            plain = _is_builtin_json(body)
        except RecursionError:
            plain = False
        if not plain:  # slow path: accepts more types, and reports the path of a bad value
            check_json(body)
        return encode_json(body, _encoder)
    except RecursionError:
        raise ArgumentError("the arguments are nested too deeply") from None


def callable_hint(where: str) -> str:
    """Returns what takes a type or a function, which may have been passed as an option, as the end of an error."""
    return CALLABLE_HINTS.get(re.sub(r"\[\d+\]$", "", where), "")


# Options for which other clients accept a type or a function.
CALLABLE_HINTS: Final = {
    "response_format": "; for an answer of a type, use chat.parse(T, ...)",
    "text": "; for an answer of a type, use responses.parse(T, ...)",
    "tools": "; make a tool of a function with friendli_async.tools.tool",
}
