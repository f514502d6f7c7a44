"""JSON: what msgspec needs help with (lone surrogates, bytes that are not UTF-8, threads); and values of any shape.

A lone surrogate is half of a character. A model's token may be one, but UTF-8 cannot encode it, and msgspec rejects it.
What msgspec accepts takes no slower path here.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn, TypeGuard, TypeVar, cast

import msgspec

from friendli_async._locks import lock_over_forks

T = TypeVar("T")
Fields = dict[str, Any]
"""A JSON object."""

type_lock: Final = lock_over_forks()
"""Held wherever msgspec may see a type for the first time. It then stores what it knows of the type before that is
complete, and a thread that uses the type meanwhile crashes the process. Later uses need no lock. Import nothing while
holding it."""

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder[Any]()


def prepared(kind: T) -> T:
    """Returns a type that msgspec has seen, so that any thread may use it: see ``type_lock``."""
    with type_lock:
        msgspec.json.Decoder(kind)
    return kind


def encode_json(value: Any, encoder: msgspec.json.Encoder = _encoder) -> bytes:
    """Encodes a value as compact UTF-8 JSON, or with ASCII escapes if it has lone surrogates.

    Raises:
        Exception: What the encoder raises, but never UnicodeEncodeError.
    """
    try:
        return encoder.encode(value)
    except UnicodeEncodeError:
        pass
    hook = encoder.enc_hook

    def convert(inner: object) -> object:
        if isinstance(inner, msgspec.Raw):
            return json.loads(bytes(inner))
        if hook is None:
            raise TypeError(f"Encoding objects of type {type(inner).__name__} is unsupported")
        return hook(inner)

    text = json.dumps(msgspec.to_builtins(value, enc_hook=convert, order=encoder.order, str_keys=True))
    finite = json.loads(text, parse_constant=lambda _: None)  # msgspec encodes NaN and infinity as null
    return json.dumps(finite, separators=(",", ":")).encode("ascii")


def decode_json(data: bytes | str, decoder: msgspec.json.Decoder[Any] = _decoder) -> Any:
    """Decodes JSON to the decoder's type, also if it has lone surrogates.

    Raises:
        ValueError: It is not JSON, or not of the type (``msgspec.ValidationError``).
        RecursionError: It is nested too deeply.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeError) as error:
        try:
            text = data if isinstance(data, str) else data.decode()
            value = json.loads(text, parse_constant=reject_constant)
        except ValueError:
            raise error from None
    return msgspec.convert(value, decoder.type, strict=decoder.strict, dec_hook=decoder.dec_hook, str_keys=True)


def loads(data: bytes | str) -> object:
    """Parses any JSON, lone surrogates and NaN included; raises ValueError, never RecursionError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_with_replacement(data: bytes | str) -> object:
    """Parses JSON. Bytes that are not UTF-8 become U+FFFD, as the SSE and Fetch standards say."""
    try:
        return loads(data)
    except UnicodeDecodeError as error:
        return loads(error.object.decode("utf-8", "replace"))


def json_or_none(data: bytes | str) -> Any:
    """Like ``loads_with_replacement``, but returns None if the data is not JSON."""
    try:
        return loads_with_replacement(data)
    except ValueError:
        return None


def is_object(value: object) -> TypeGuard[Fields]:
    """Whether a value is a JSON object."""
    return isinstance(value, dict)


def as_object(value: object) -> Fields:
    """Returns a JSON object as it is, and {} for any other value."""
    return cast("Fields", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """Returns a JSON array as it is, and [] for any other value."""
    return cast("list[object]", value) if isinstance(value, list) else []


def items_of(value: object) -> list[object]:
    """Returns the items of a JSON array, or of what may stand in its place: an object with them by index, or one."""
    fields = as_object(value)
    if fields and all(map(str.isdecimal, fields)):
        by_size = sorted(fields, key=lambda index: (len(index), index))  # int() rejects thousands of digits
        return [fields[index] for index in by_size]
    return as_list(value) or [value]


def reject_constant(name: str) -> NoReturn:
    """Rejects NaN and infinity, as ``parse_constant`` of ``json``."""
    raise ValueError(f"{name} is not JSON")


def replace_surrogates(text: str) -> str:
    """Returns a text that UTF-8 can encode: pairs of surrogates are joined, lone ones become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def without_surrogates(value: object) -> Any:
    """Returns JSON values with lone surrogates replaced, for pydantic, which cannot serialize them."""
    return json.loads(replace_surrogates(json.dumps(value, ensure_ascii=False)))


def arguments_json(text: str) -> str:
    """Returns the arguments of a tool call; "{}" for what models send to a tool that takes none: nothing, or null."""
    return "{}" if text.strip() in {"", "null"} else text


def is_json_object(text: str) -> bool:
    """Whether text is a JSON object."""
    if not text.rstrip().endswith("}"):
        return False
    try:
        return isinstance(decode_json(text), dict)
    except (ValueError, RecursionError):
        return False
