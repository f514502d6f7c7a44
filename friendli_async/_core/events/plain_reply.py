"""Decodes plain replies, and detects the errors that are sent with a good status. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from functools import cache
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

from friendli_async._core.error_json import (
    error_beside_reply,
    explicit_error,
    has_value,
    holds_content,
    is_error_alone,
    is_error_name,
)
from friendli_async._core.error_text import is_other_format
from friendli_async._core.events.decoding import METADATA, NOT_DECODED
from friendli_async._core.lenient import convert, decode, structs_of
from friendli_async._core.status_errors import error_of_payload, excerpt, unexpected_content
from friendli_async._json import Fields, as_object, is_object, items_of, json_or_none
from friendli_async.errors import APIStatusError, FriendliError, ResponseDecodeError
from friendli_async.replies import Partial, ReplyHead, partial_of

T = TypeVar("T")

# Fields that both replies and errors have.
_AMBIGUOUS: Final = frozenset({"status", "type", "role", "usage"})


def decode_reply(data: bytes, decoder: msgspec.json.Decoder[T], head: ReplyHead) -> T:
    """Decodes a plain reply with a good status.

    Raises:
        APIStatusError: The body is an error, in JSON or as plain text.
        ResponseDecodeError: The body is not JSON (markup, events), not a reply of this API, or has no answer.
    """
    kind: Any = decoder.type
    own = _own_fields(kind)
    if b'"error"' in data:  # most replies are parsed only once
        value: object = json_or_none(data)
        if error_beside_reply(as_object(value), own):
            raise _error_in_reply(value, data, decoder, head)
    try:
        reply = decode(data, decoder)
    except ResponseDecodeError:
        value = json_or_none(data)
        if value is None and is_other_format(data):
            raise unexpected_content(data, head, "JSON", "json") from None
        if not _is_error_reply(value, kind):
            raise
    else:
        is_certain = _has_own_value(reply) and _is_answered(reply)  # it cannot be part of an error
        if is_certain and _has_content(reply):
            return reply
        value = json_or_none(data)
        if is_certain or not _is_error_in_place_of(reply, value, kind):
            _check_reply(reply, as_object(value), data, own)
            return reply
    raise _error_in_reply(value, data, decoder, head)


def not_a_stream(data: bytes, decoder: msgspec.json.Decoder[Any], head: ReplyHead) -> FriendliError:
    """Builds the error of a body that is not an event stream.

    If the body is a plain reply, which ``decoder`` decodes, the error has it as ``partial``.
    """
    error = unexpected_content(data, head, "an event stream", "event-stream")
    with suppress(FriendliError):
        error.partial = partial_of(decode_reply(data, decoder, head))
    return error


@cache
def _own_fields(kind: Any) -> frozenset[str]:
    """The field names of a reply type, or of all members of a union; empty if the type has no fields."""
    return frozenset(name for struct in structs_of(kind) for name in struct.__struct_encode_fields__)


def _check_reply(reply: object, fields: Fields, data: bytes, own: Collection[str]) -> None:
    """Checks that a reply has a field of this API, and an answer, also in each choice.

    Raises:
        ResponseDecodeError: It lacks any.
    """
    if own and fields and not fields.keys() & own:
        raise ResponseDecodeError("the server's reply has none of the fields of this API", excerpt=excerpt(data))
    if not _is_answered(reply):
        wanted = " and no ".join(getattr(reply, "_answered_by", ()))
        raise ResponseDecodeError(f"the server's reply contains no answer: it has no {wanted}", excerpt=excerpt(data))
    _check_choices(reply, fields, data)


@cache
def _answers_of(kind: Any) -> dict[str, str]:
    """The fields in which a reply type, or a member of a union, has the answer, with their names on the wire.

    They are its required fields, or, if it has none (a page may be empty), its lists and mappings.
    """
    fields = [field for struct in structs_of(kind) for field in msgspec.structs.fields(struct)]
    answers = [field for field in fields if field.required] or [
        field for field in fields if get_origin(field.type) in (tuple, dict)
    ]
    return {field.name: field.encode_name for field in answers if field.name not in METADATA | _AMBIGUOUS}


def _has_content(reply: Any) -> bool:
    """Whether a reply has text, or if it is of another kind, any answer; checked without parsing it again."""
    if (text := getattr(reply, "text", None)) is not None:
        return bool(text)
    answers = _answers_of(reply.__class__)
    return not answers or any(getattr(reply, name) for name in answers)


def _is_error_in_place_of(reply: object, value: object, kind: Any) -> bool:
    """Whether a reply that was decoded, but has no value of its own, is an error.

    If its answer is empty, or may be anything, it must say so: a text in it may be about a success.
    """
    answers = (as_object(value).get(name) for name in _answers_of(kind).values())
    is_empty_answer = _is_answered(reply) and any(isinstance(answer, str | list | dict) for answer in answers)
    if is_empty_answer or not _own_fields(kind):
        return explicit_error(value)
    return _is_error_reply(value, kind)


def _is_answered(reply: object) -> bool:
    """Whether any field of ``_answered_by`` is filled; true if the reply type names none."""
    wanted: tuple[str, ...] = getattr(reply, "_answered_by", ())
    return not wanted or any(getattr(reply, name) not in (None, (), "") for name in wanted)


def _has_own_value(reply: Any) -> bool:
    """Whether a reply has a value that cannot be part of an error."""
    for name in reply.__struct_fields__ if isinstance(reply, msgspec.Struct) else ():
        value: object = getattr(reply, name)
        if value in (None, (), [], {}, "", False) or name in METADATA:
            continue
        if name not in _AMBIGUOUS or (isinstance(value, str) and value in _literal_values(reply.__class__, name)):
            return True
    return False


@cache
def _literal_values(struct: Any, name: str) -> frozenset[object]:
    """The values that the API documents for a field: the literals of its type."""
    kinds = [field.type for field in msgspec.structs.fields(struct) if field.name == name]
    return frozenset(value for kind in kinds for member in get_args(kind) for value in get_args(member))


def _error_in_reply(value: object, data: bytes, decoder: msgspec.json.Decoder[Any], head: ReplyHead) -> APIStatusError:
    """Builds the error that a reply contains; the content and usage beside it, which were billed, are ``partial``."""
    error = error_of_payload(value, data, head)
    with suppress(*NOT_DECODED):
        reply = convert({name: each for name, each in as_object(value).items() if name != "error"}, decoder.type)
        partial = partial_of(reply)
        error.partial = None if partial == Partial() else partial
    return error


def _check_choices(reply: object, fields: Fields, data: bytes) -> None:
    """Checks that each choice of a reply without text has an answer where this API has it.

    A choice that has finished without one may be empty.

    Raises:
        ResponseDecodeError: A choice has none.
    """
    own_choices: Any = getattr(reply, "choices", ())
    if not own_choices:
        return
    wanted = "message" if hasattr(own_choices[0], "message") else "text"
    for choice in map(as_object, items_of(fields.get("choices"))):
        is_finished = wanted in choice and choice.get("finish_reason")
        if _lacks(choice, wanted) and (not is_finished or holds_content(choice)):
            raise ResponseDecodeError("a choice in the server's reply contains no answer", excerpt=excerpt(data))


_ANSWER_FIELDS: Final = (
    *("content", "tool_calls", "function_call", "reasoning_content", "reasoning", "reasoning_details", "refusal"),
)


def _lacks(choice: Fields, wanted: str) -> bool:
    """Whether a choice has no answer, not even an empty one."""
    answer = choice.get(wanted)
    return answer is None or (is_object(answer) and not any(name in answer for name in _ANSWER_FIELDS))


def _is_error_reply(value: object, kind: Any) -> bool:
    """Whether a value without an answer says that it is an error, or has a message and no content of the API."""
    if not is_object(value):
        return is_error_alone(value)
    fields = as_object(value)
    if explicit_error(fields):
        return True
    own = _own_fields(kind)
    if has_value(fields, [name for name in own if name not in METADATA | _AMBIGUOUS and not is_error_name(name)]):
        return False
    return is_error_alone({name: each for name, each in fields.items() if name not in own or is_error_name(name)})
