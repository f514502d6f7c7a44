"""Detects errors in JSON values, and finds their messages, in all the shapes that servers use.

Streams, plain replies and error bodies of every API are read here, so that they agree. No I/O. ``error_text`` reads
what is not JSON. Which function decides depends on what else the value has:

- beside a field of the API: ``error_beside_reply``. Only ``error`` means an error, as the API may add any other field.
- beside nothing of the API, where the value may still be a success: ``explicit_error``.
- beside nothing of the API, where a reply was expected: ``is_error_alone``, also by a message under any name.
- ``looks_like_error``: a message under any name, or a flag. Beside a field of the API, it never makes an error by
  itself, but is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Final, TypeVar

from friendli_async._json import Fields, as_list, as_object, is_object, items_of, json_or_none

T = TypeVar("T")

EXCERPT_LENGTH: Final = 200

# --- names -----------------------------------------------------------------------------------------------------------

# As ``normalize_name`` spells them. The fields in which servers and gateways put the message, the most specific first.
_MESSAGE_FIELDS: Final = (
    *("message", "faultstring", "detail", "details", "msg", "errormsg", "errmsg", "errormessage", "errordescription"),
    *("errors", "statusmsg", "statusmessage", "fault", "error", "err", "exception", "failure", "problem", "reason"),
    *("title", "description", "cause", "explanation"),
)
# Patterns of further names that hold a message.
_MESSAGE_PATTERN: Final = r"^err(?!.*code$)|(message|msg|description|exception|error|fault|failure)s?$"
# Fields that may hold the error as an object, whose message takes precedence over its siblings.
_NESTED_FIELDS: Final = ("error", "fault")
# The fields for the HTTP status, the error code and the type of an error.
STATUS_FIELDS: Final = ("statuscode", "httpstatuscode", "httpcode", "httpstatus")
CODE_FIELDS: Final = ("code", "errorcode", "errcode")
TYPE_FIELDS: Final = ("type", "errortype")
_CODES: Final = frozenset({*STATUS_FIELDS, *CODE_FIELDS})
_NUMERIC_FIELDS: Final = _CODES | {"status"}
# The fields that never hold a message about a parameter of the request.
_NOT_PARAMETERS: Final = frozenset({*_NUMERIC_FIELDS, *TYPE_FIELDS, "error", "object", "requestid"})
# The fields of a validation error that name the invalid parameter.
_PARAMETER_FIELDS: Final = ("field", "param", "target")
# The fields whose value may be a word for failure: JSend and Ollama; Anthropic; vLLM and SGLang; Friendli until 2024.
_FLAG_FIELDS: Final = frozenset({"status", "type", "object", "event"})
_FAILURE_WORDS: Final = frozenset({"err", "fail", "failed", "failure", "fatal", "critical", "rejected"})
_SUCCESS_WORDS: Final = frozenset({"ok", "success", "successful", "succeeded", "deleted", "done", "completed"})
# The fields that hold nothing but an error: GraphQL and Cloudflare; Apigee; Spring; AWS Lambda; Baidu and Tencent.
_ERROR_FIELDS: Final = frozenset({"error", "errors", "fault", "exception", "errormessage", "errormsg", "errmsg", "err"})
# The fields in which a gateway may wrap an upstream reply (``baseresp``: MiniMax; ``status``: gRPC gateways); a message
# alone in it may belong to a successful reply.
_ENVELOPE_FIELDS: Final = frozenset({"response", "result", "data", "body", "payload", "status", "baseresp"})
# Cloudflare, One API; Slack and Telegram.
_SUCCESS_FIELDS: Final = frozenset({"success", "ok"})
_MAX_CACHED_NAME: Final = 64


def _cached_by_name(function: Callable[[str], T]) -> Callable[[str], T]:
    """Caches a function of a field name: the fields of an API's events are the same in every stream.

    A long name is no field of an API, and a server that makes up such names must not fill the memory.
    """
    cached = lru_cache(maxsize=1024)(function)
    return lambda name: cached(name) if len(name) <= _MAX_CACHED_NAME else function(name)


@_cached_by_name
def normalize_name(name: str) -> str:
    """Returns ``errormsg`` for ``error_msg``, ``errorMsg``, ``ERROR-MSG`` and ``odata.errorMsg``."""
    return name[name.rfind(".") + 1 :].replace("_", "").replace("-", "").lower()


def is_error_name(name: object) -> bool:
    """Whether a name (event, type, status) contains ``error``, ends with ``exception``, or is e.g. ``failed``."""
    if not isinstance(name, str):
        return False
    word = name.lower()
    return "error" in word or word.endswith("exception") or word in _FAILURE_WORDS


def first_value(fields: Fields, *names: str) -> object:
    """Returns the first value, in the order of the names, that is not None."""
    return next((value for name in names if (value := fields.get(name)) is not None), None)


# --- detection -------------------------------------------------------------------------------------------------------

_MAX_DEPTH: Final = 8


def has_value(fields: Fields, names: Iterable[str]) -> bool:
    """Whether any of these fields is neither null nor empty."""
    return any(fields.get(name) not in _EMPTY for name in names)


# What stands in an ``error`` that is none: nothing as a text, and what gateways report of success.
_BLANK_WORDS: Final = frozenset({"", "null", "none", "false", "0", "200"}) | _SUCCESS_WORDS
_EMPTY: Final[tuple[object, ...]] = (None, [], {}, "")


def is_blank(value: object, depth: int = 0) -> bool:
    """Whether a value in place of an error says nothing: null, false, zero, or "" (also as texts), or success.

    An object or list says nothing if all its values do.
    """
    if isinstance(value, str):
        return value.strip().lower() in _BLANK_WORDS
    items = as_list(value) or as_object(value).values()
    if items and depth < _MAX_DEPTH:
        return all(is_blank(item, depth + 1) for item in items)
    return not value or value == 200


def is_success(value: object) -> bool:
    """Whether a value in place of a message is a word for success, or an object or list that says nothing else."""
    if isinstance(value, str):
        word = value.strip().lower()
        return word in _SUCCESS_WORDS or word == "true"  # no word of ``is_blank``: as an ``error``, it means one
    return is_blank(value) and any(map(is_success, as_list(value) or as_object(value).values()))


def error_beside_reply(fields: Fields, own: Collection[str] = ()) -> bool:
    """Whether an object that has a field of the API also has an ``error`` that is not blank, its own or in a choice.

    If ``error`` is among ``own``, the fields of the API, an object in it does not mean that the call failed.
    """
    error = fields.get("error")
    if not is_blank(error) and not ("error" in own and isinstance(error, dict)):
        return True
    return any(map(_is_failed_choice, items_of(fields.get("choices"))))


def explicit_error(value: object) -> bool:
    """Whether a JSON value without a field of the API says that it is an error. Of a list, the first item counts.

    It does so by an ``error``, also by an object without a message, by another field that only errors have, by a
    failure flag such as ``"status": "failed"``, by an error status, or by an error code with a message; also in an
    envelope.
    """
    fields = as_object(_first_item(value))
    error = fields.get("error")
    is_object_of_error = is_object(error) and not is_success(error)  # the text of a TimeoutError is ""
    return is_object_of_error or error_beside_reply(fields) or _states_error(fields)


def _states_error(fields: Fields) -> bool:
    """Whether an object, or one in an envelope, has an error field, a failure flag, or an error code with a message."""
    envelopes = (as_object(each) for name, each in fields.items() if normalize_name(name) in _ENVELOPE_FIELDS)
    return any(map(_has_error_field, (fields, *envelopes)))


def _has_error_field(fields: Fields) -> bool:
    if any(_is_failure_flag(name, each) for name, each in fields.items()):
        return True
    codes = [each for name, each in fields.items() if normalize_name(name) in _CODES]
    return any(map(_is_error_code, codes)) and _has_message(fields)


def _is_error_code(code: object) -> bool:
    is_success_status = isinstance(code, int) and 200 <= code < 300
    return not (is_blank(code) or is_success(code) or is_success_status)


def _first_item(value: object) -> object:
    """Returns the first item of a list, in which Google's gateways put errors, and any other value as it is."""
    while items := as_list(value):
        value = items[0]
    return value


def _is_failure_flag(name: str, value: object) -> bool:
    """Whether a field is like ``"errors": [...]``, ``"success": false``, ``"type": "error"``, ``"statusCode": 500``."""
    plain = normalize_name(name)
    if plain in _ERROR_FIELDS:
        return not is_blank(value)
    if plain in _SUCCESS_FIELDS:
        return value is False or (isinstance(value, str) and value.lower() == "false")
    if plain in _NUMERIC_FIELDS and _is_error_status(value):
        return True
    if plain == "status" and isinstance(value, str) and value.isupper():
        return False  # the state of a resource, which the caller asked for
    return plain in _FLAG_FIELDS and is_error_name(value)


def _is_error_status(value: object) -> bool:
    """Whether a value is a number from 400 to 599."""
    return isinstance(value, int) and 400 <= value <= 599


def _is_failed_choice(choice: object) -> bool:
    """Whether a choice has a filled ``error``: its own, or that of its ``delta`` or ``message``."""
    fields = as_object(choice)
    parts = (fields, fields.get("delta"), fields.get("message"))
    return any(not is_blank(as_object(part).get("error")) for part in parts)


def looks_like_error(fields: Fields) -> bool:
    """Whether an object has a message, or says in another way than by ``error`` that it is an error."""
    return _has_message(fields) or _states_error(fields)


def _has_message(fields: Fields) -> bool:
    """Whether a field is named like ``detail`` or ``errorMsg``, and is neither blank nor a word for success."""
    return any(
        _is_message_name(name) and not is_blank(value) and not is_success(value) for name, value in fields.items()
    )


@_cached_by_name  # the last event of most streams, their usage, is searched for a message
def _is_message_name(name: str) -> bool:
    plain = normalize_name(name)
    return plain in _MESSAGE_FIELDS or re.search(_MESSAGE_PATTERN, plain) is not None


# Fields inside of an answer that say nothing by themselves.
_LABELS: Final = frozenset(
    {
        *("index", "role", "type", "object", "id", "status", "seed"),
        *("finish_reason", "native_finish_reason", "stop_reason", "stop_sequence", "matched_stop"),
    }
)


def holds_content(value: object, depth: int = 0) -> bool:
    """Whether an answer, or a part of one, has any text, number or tool call."""
    if depth > _MAX_DEPTH:
        return True
    if is_object(value):
        inside = (each for name, each in value.items() if name not in _LABELS)
        return bool(value.get("tool_calls")) or any(holds_content(each, depth + 1) for each in inside)
    if items := as_list(value):
        return any(holds_content(each, depth + 1) for each in items)
    return type(value) in {int, float} or (isinstance(value, str) and value != "")


def is_error_alone(value: object) -> bool:
    """Whether a JSON value in the place of a reply, without a field of the API, is an error.

    It is one if it says so, has a message or any text of several words, or is a text (but not ``ok``).
    """
    value = _first_item(value)
    if isinstance(value, str):
        return bool(value.strip()) and not is_success(value)
    fields = as_object(value)
    return explicit_error(fields) or _has_message(fields) or bool(_sentence_in(fields))


# --- messages --------------------------------------------------------------------------------------------------------

_MAX_ITEMS: Final = 20


def find_message(value: object) -> tuple[str, list[Fields]]:
    """Returns the message of an error, which may be nested, in a list, or flat; "" if there is none.

    Also returns the objects that contain it, the innermost first, with their field names normalized.
    """
    message, objects = _find_anywhere(value)
    return message or _join_fields(value) or _sentence_in(as_object(value)), objects


def _find_anywhere(value: object, depth: int = 0) -> tuple[str, list[Fields]]:
    """Returns the message of a value; if its usual fields have none, that of an object in any other field."""
    message, objects = _find_in_usual_fields(value)
    if message or depth > _MAX_DEPTH:
        return message, objects
    for item in as_object(value).values():
        embedded = _embedded_error(item) if isinstance(item, str) else item
        candidates = map(as_object, (*as_list(embedded), embedded))
        found = next((fields for fields in candidates if fields), None)
        message, inner = _find_anywhere(found, depth + 1)
        if message:
            return message, [*inner, *objects]
    return "", objects


def _find_in_usual_fields(value: object, depth: int = 0) -> tuple[str, list[Fields]]:
    """Returns the message in the usual fields, and the objects that contain it."""
    if depth > _MAX_DEPTH:
        return "", []
    if isinstance(value, str):
        embedded = _embedded_error(value)
        return (value, []) if embedded is None else _find_in_usual_fields(embedded, depth + 1)
    if items := as_list(value):
        return _find_in_list(items, depth)
    fields: Fields = {}
    for name, item in as_object(value).items():
        fields.setdefault(normalize_name(name), item)
    nested = [name for name in _NESTED_FIELDS if isinstance(fields.get(name), dict | list)]
    objects: list[Fields] = []
    for name in dict.fromkeys((*nested, *_MESSAGE_FIELDS)):
        if (item := fields.get(name)) is None:
            continue
        is_number = bool(item) and type(item) in {int, float}
        message, inner = (str(item), []) if is_number else _find_in_usual_fields(item, depth + 1)
        if not message and name == "errors":  # {"errors": {"model": ["This field is required."]}}
            message = _join_fields(item)
        if message or name in nested:
            objects += inner
        if message:
            return _with_context(name, message, fields), [*objects, fields]
    texts = (first_value(as_object(item), "value", "text") for item in fields.values())
    return next((text for text in texts if isinstance(text, str)), ""), [*objects, fields]


def _with_context(name: str, message: str, fields: Fields) -> str:
    """Adds to a message the title that RFC 9457 puts next to it, or the raw error of a router's provider."""
    title, raw = fields.get("title"), as_object(fields.get("metadata")).get("raw")
    if name == "detail" and isinstance(title, str) and title not in message:
        return f"{title.rstrip('.: ')}: {message}"
    return f"{message}: {raw[:EXCERPT_LENGTH]}" if isinstance(raw, str) and raw else message


def _find_in_list(items: list[object], depth: int) -> tuple[str, list[Fields]]:
    """Joins the messages of a list, such as the 422 body ``[{"loc": ["body", "n"], "msg": "..."}]``, into one line."""
    lines: list[str] = []
    objects: list[Fields] = []
    for item in items[:_MAX_ITEMS]:
        message, inner = _find_in_usual_fields(item, depth + 1)
        parameter = _parameter_of(as_object(item))
        if message:
            lines.append(f"{parameter}: {message}" if parameter else message)
        if len(items) == 1 and not parameter:
            objects = inner
    return "; ".join(lines), objects


def _parameter_of(item: Fields) -> str:
    """Returns the parameter that a validation error names, or ""."""
    if loc := as_list(item.get("loc")):
        return ".".join(map(str, loc[:_MAX_ITEMS]))
    return next((parameter for name in _PARAMETER_FIELDS if isinstance(parameter := item.get(name), str)), "")


def _join_fields(value: object) -> str:
    """Joins ``{"model": ["This field is required."]}`` into one line; returns "" if any value is not text."""
    lines: list[str] = []
    for name, item in as_object(value).items():
        if normalize_name(name) not in _NOT_PARAMETERS and item != []:
            messages = as_list(item) or [item]
            if not all(isinstance(message, str) for message in messages):
                return ""
            lines += [f"{name}: {message}" for message in messages[:_MAX_ITEMS] if message]
    return "; ".join(lines)


def _sentence_in(fields: Fields) -> str:
    """Returns the first text of several words in an object, in any field, or ""."""
    texts = (text.strip() for text in fields.values() if isinstance(text, str))
    return next((text for text in texts if " " in text and any(map(str.isalpha, text))), "")


def _embedded_error(text: str) -> object:
    """Parses a text that is an error in JSON, as forwarded by gateways, or returns None."""
    value = json_or_none(text) if text.lstrip()[:1] in {"{", "["} else None
    return value if is_error_alone(value) else None
