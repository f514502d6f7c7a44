"""Whether a JSON value says that something is wrong, and in which words, whatever shape servers give it.

Streams and plain replies of every API ask here, and so do error bodies: one reading of it. Pure. What is no JSON is for
``error_text`` to read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any, Final, cast

__all__ = [
    "CODES",
    "EXCERPT",
    "STATUSES",
    "TYPES",
    "Fields",
    "as_list",
    "as_object",
    "declares_error",
    "describes_error",
    "find_message",
    "first",
    "has_message",
    "has_value",
    "is_error_name",
    "is_object",
    "is_success",
    "json_or_none",
    "loads",
    "normalize_name",
    "wraps_error",
]

Fields = dict[str, Any]

EXCERPT: Final = 200


def loads(data: bytes | str) -> object:
    """Decodes JSON of any kind, lone surrogates and NaN included; raises ValueError, never RecursionError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_or_none(data: bytes | str) -> Any:
    """Decodes JSON of any kind; None where it is none."""
    try:
        return loads(data)
    except ValueError:
        return None


def is_object(value: object) -> bool:
    """Whether a value is a JSON object."""
    return isinstance(value, dict)


def as_object(value: object) -> Fields:
    """A JSON object; an empty one in place of anything else."""
    return cast("Fields", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """A JSON array; an empty one in place of anything else."""
    return cast("list[object]", value) if isinstance(value, list) else []


# --- names -----------------------------------------------------------------------------------------------------------

# All in lower case, without "_" and "-". Where servers and gateways put their words, the most telling first.
_WORDS: Final = (
    "message",
    "faultstring",
    "detail",
    "details",
    "msg",
    "errormsg",
    "errmsg",
    "errormessage",
    "errordescription",
    "errors",
    "statusmsg",
    "statusmessage",
    "fault",
    "error",
    "err",
    "exception",
    "failure",
    "problem",
    "reason",
    "title",
    "description",
    "cause",
    "explanation",
)
# Further names for them.
_WORDLY: Final = r"^err(?!.*code$)|^fail|(message|msg|description|exception|error|fault|failure|blockreason)s?$"
# Where an error is an object of its own: its words go before those beside it.
_NESTING: Final = ("error", "fault")
# Where an error has its HTTP status, its own code, and its kind.
STATUSES: Final = ("statuscode", "httpstatuscode", "httpcode", "httpstatus")
CODES: Final = ("code", "errorcode", "errcode")
TYPES: Final = ("type", "errortype")
_NUMBERED: Final = frozenset({*STATUSES, *CODES, "status"})
_LABELS: Final = frozenset({*_NUMBERED, *TYPES, "error", "object", "requestid"})
# Where an entry of a list of faults says what its fault is in.
_PLACES: Final = ("field", "param", "target")
# Where an object may say how what it is about ended.
_VERDICTS: Final = frozenset({"status", "state", "level", "severity", "result", "outcome", "type", "object", "event"})
_FAILURES: Final = frozenset({"err", "fail", "failed", "failure", "fatal", "critical", "ko", "rejected"})
_SUCCESSES: Final = frozenset({"ok", "success", "successful", "succeeded", "true", "deleted", "done", "completed"})
# What may hold the whole of what a server behind a gateway said.
_ENVELOPES: Final = frozenset({"response", "result", "data", "body", "payload", "status", "baseresp"})


def normalize_name(name: str) -> str:
    """A name as all its spellings have it: ``error_msg``, ``errorMsg``, ``ERROR-MSG``, ``odata.errorMsg``."""
    return name[name.rfind(".") + 1 :].replace("_", "").replace("-", "").lower()


def is_error_name(name: object) -> bool:
    """Whether a word for a kind of event, object or status stands for an error."""
    if not isinstance(name, str):
        return False
    word = name.lower()
    return "error" in word or word.endswith("exception") or word in _FAILURES


def is_success(value: object) -> bool:
    """Whether a value that could be words only says that all is well."""
    return isinstance(value, str) and value.strip().lower() in _SUCCESSES


def first(fields: Fields, *names: str) -> object:
    """What stands under the first of some names under which there is anything."""
    return next((value for name in names if (value := fields.get(name)) is not None), None)


# --- whether something is wrong --------------------------------------------------------------------------------------


def has_value(fields: Fields, names: Iterable[str]) -> bool:
    """Whether any of these fields says something."""
    return any(fields.get(name) not in _EMPTY for name in names)


_EMPTY: Final[tuple[object, ...]] = (None, [], {}, "")


def declares_error(value: object, own: Collection[str] = ()) -> bool:
    """Whether a JSON value says that it is an error, whatever stands beside that.

    Args:
        value: The value.
        own: The fields that it has where it comes from: there, a status and an object ``error`` are something else.
    """
    fields = as_object(_unlisted(value))
    if (error := fields.get("error")) and not ("error" in own and isinstance(error, dict)):
        return True
    if any(_is_verdict(name, each) for name, each in fields.items() if name != "status" or name not in own):
        return True
    return any(map(_is_failed, as_list(fields.get("choices"))))


def _unlisted(value: object) -> object:
    """What stands first in a list, which Google's gateways put their errors in; what is in no list as it is."""
    while items := as_list(value):
        value = items[0]
    return value


def _is_verdict(name: str, value: object) -> bool:
    plain = normalize_name(name)
    if plain in {"success", "ok"}:
        return value is False or (isinstance(value, str) and value.lower() == "false")
    if plain in {"status", "state"} and isinstance(value, str) and value.isupper():
        return False  # the state of something: that it has failed is what was asked for
    return plain in _VERDICTS and (is_error_name(value) or (plain == "status" and _is_bad_status(value)))


def _is_bad_status(value: object) -> bool:
    return isinstance(value, int) and 400 <= value <= 599


def _is_failed(choice: object) -> bool:
    """Whether one of several answers is an error in place of an answer."""
    fields = as_object(choice)
    return any(as_object(part).get("error") for part in (fields, fields.get("delta"), fields.get("message")))


def has_message(fields: Fields) -> bool:
    """Whether a JSON object says something in words, where servers put them, or that it was in vain."""
    for name, value in fields.items():
        if _holds_words(name, value) or _is_verdict(name, value):
            return True
        if normalize_name(name) in _NUMBERED and _is_bad_status(value):
            return True
    return fields.get("error") == {} or wraps_error(fields)


def _holds_words(name: str, value: object) -> bool:
    plain = normalize_name(name)
    return bool(value) and (plain in _WORDS or re.search(_WORDLY, plain) is not None) and not is_success(value)


def wraps_error(fields: Fields) -> bool:
    """Whether an object holds, in an envelope, another one that is an error."""
    return any(_is_refusal(as_object(value)) for name, value in fields.items() if normalize_name(name) in _ENVELOPES)


def _is_refusal(fields: Fields) -> bool:
    """Whether the object in an envelope is an error; words alone may be part of something good."""
    if fields.get("error") or any(_is_verdict(name, each) for name, each in fields.items()):
        return True
    codes = [each for name, each in fields.items() if normalize_name(name) in _NUMBERED]
    in_vain = any(code and code != 200 and not is_success(code) for code in codes)
    return in_vain and any(_holds_words(name, each) for name, each in fields.items())


def describes_error(value: object) -> bool:
    """Whether a JSON value that is no reply at all says what is wrong: that it is an error, or something in words."""
    value = _unlisted(value)
    if isinstance(value, str):
        return bool(value.strip()) and not is_success(value)
    fields = as_object(value)
    return declares_error(fields) or has_message(fields) or bool(_prose(fields))


# --- in which words --------------------------------------------------------------------------------------------------

_DEEPEST: Final = 8
_MOST: Final = 20


def find_message(value: object) -> tuple[str, list[Fields]]:
    """The words of an error of any of the shapes that are about: nested, in a list, or flat; "" where there are none.

    And the objects that they stand in, the innermost first, their fields spelt by ``normalize_name``.
    """
    words, objects = _find_below(value)
    return words or _by_field(value) or _prose(as_object(value)), objects


def _find_below(value: object, depth: int = 0) -> tuple[str, list[Fields]]:
    """The words of an object that has none where others have them: those of an object in it."""
    words, objects = _find(value)
    if words or depth > _DEEPEST:
        return words, objects
    for item in as_object(value).values():
        inside = _inside(item) if isinstance(item, str) else item
        found = next((fields for each in (*as_list(inside), inside) if (fields := as_object(each))), None)
        words, inner = _find_below(found, depth + 1)
        if words:
            return words, [*inner, *objects]
    return "", objects


def _find(value: object, depth: int = 0) -> tuple[str, list[Fields]]:
    """The words of an error where most have them, and the objects that they stand in."""
    if depth > _DEEPEST:
        return "", []
    if isinstance(value, str):
        inside = _inside(value)
        return (value, []) if inside is None else _find(inside, depth + 1)
    if items := as_list(value):
        return _find_in_list(items, depth)
    fields: Fields = {}
    for name, item in as_object(value).items():
        fields.setdefault(normalize_name(name), item)
    if not fields:
        return "", []
    nested = [name for name in _NESTING if isinstance(fields.get(name), dict | list)]
    objects: list[Fields] = []
    for name in dict.fromkeys((*nested, *_WORDS)):
        item = fields.get(name)
        words, inner = (str(item), []) if item and type(item) in {int, float} else _find(item, depth + 1)
        if not words and name == "errors":  # {"errors": {"model": ["This field is required."]}}
            words = _by_field(item)
        if words or name in nested:
            objects += inner
        if words:
            return _in_full(name, words, fields), [*objects, fields]
    texts = (first(as_object(item), "value", "text") for item in fields.values())
    return next((text for text in texts if isinstance(text, str)), ""), [*objects, fields]


def _in_full(name: str, words: str, fields: Fields) -> str:
    """The words of an object with those that belong to them: RFC 9457's title, or what a router's provider said."""
    title, raw = fields.get("title"), as_object(fields.get("metadata")).get("raw")
    if name == "detail" and isinstance(title, str) and title and title not in words:
        return f"{title.rstrip('.: ')}: {words}"
    return f"{words}: {raw[:EXCERPT]}" if isinstance(raw, str) and raw else words


def _find_in_list(items: list[object], depth: int) -> tuple[str, list[Fields]]:
    """``[{"loc": ["body", "n"], "msg": "..."}]``, the 422 body, as one line; so what is told otherwise."""
    lines: list[str] = []
    objects: list[Fields] = []
    for item in items[:_MOST]:
        words, inner = _find(item, depth + 1)
        where = _place(as_object(item))
        if words:
            lines.append(f"{where}: {words}" if where else words)
        if len(items) == 1 and not where:
            objects = inner
    return "; ".join(lines), objects


def _place(item: Fields) -> str:
    """Where an entry of a list of faults says that its fault is."""
    if loc := as_list(item.get("loc")):
        return ".".join(map(str, loc[:_MOST]))
    return next((place for name in _PLACES if isinstance(place := item.get(name), str)), "")


def _by_field(value: object) -> str:
    """``{"model": ["This field is required."]}``: what says nothing but words, field by field."""
    lines: list[str] = []
    for name, item in as_object(value).items():
        if normalize_name(name) not in _LABELS and item != []:
            words = as_list(item) or [item]
            if not all(isinstance(word, str) for word in words):
                return ""
            lines += [f"{name}: {word}" for word in words[:_MOST] if word]
    return "; ".join(lines)


def _prose(fields: Fields) -> str:
    """A text of several words in an object, under whatever name."""
    texts = (text.strip() for text in fields.values() if isinstance(text, str))
    return next((text for text in texts if " " in text and any(map(str.isalpha, text))), "")


def _inside(text: str) -> object:
    """The error that a text is, if it is one: servers that pass on what another said put its JSON into theirs."""
    value = json_or_none(text) if text.lstrip()[:1] in {"{", "["} else None
    return value if describes_error(value) else None
