"""Whether a JSON value, or a text, says that something is wrong, whatever shape servers give it.

Streams and plain replies of every API ask here, and so do error bodies: one reading of it. Pure. In which words is for
``error_bodies`` to find.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, cast

__all__ = [
    "EXCERPT",
    "WORDS",
    "has_words",
    "holds_refusal",
    "is_filled",
    "is_success",
    "is_telling",
    "loads",
    "names_an_error",
    "parsed",
    "plain_name",
    "prose",
    "says_error",
    "says_text",
]

Fields = Mapping[str, Any]

EXCERPT: Final = 200


def loads(data: bytes) -> object:
    """Decodes JSON of any kind, lone surrogates and NaN included; raises ValueError, never RecursionError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parsed(data: bytes) -> Any:
    """Decodes JSON of any kind; None where it is none."""
    try:
        return loads(data)
    except ValueError:
        return None


# --- names -----------------------------------------------------------------------------------------------------------

# Where servers and gateways put their words, the most telling first; lower case, without "_" and "-".
WORDS: Final = (
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
_WORDLY: Final = re.compile(
    r"^err(?!.*code$)|^fail|(message|msg|description|exception|error|fault|failure|blockreason)s?$"
)
# Where an object may say how what it is about ended.
_VERDICTS: Final = frozenset({"status", "state", "level", "severity", "result", "outcome", "type", "object", "event"})
_FAILURES: Final = frozenset({"err", "fail", "failed", "failure", "fatal", "critical", "exception", "ko", "rejected"})
_SUCCESSES: Final = frozenset({"ok", "success", "successful", "succeeded", "true", "deleted", "done", "completed"})
_CODES: Final = frozenset({"code", "status", "statuscode", "httpstatus", "httpcode", "httpstatuscode", "errorcode"})
# What may hold the whole of what a server behind a gateway said.
_ENVELOPES: Final = frozenset({"response", "result", "data", "body", "payload", "status", "baseresp"})


def plain_name(name: str) -> str:
    """A name as all its spellings have it: ``error_msg``, ``errorMsg``, ``ERROR-MSG``, ``odata.errorMsg``."""
    return name[name.rfind(".") + 1 :].replace("_", "").replace("-", "").lower()


def names_an_error(name: object) -> bool:
    """Whether a word for a kind of event, object or status stands for an error."""
    if not isinstance(name, str):
        return False
    word = name.lower()
    return "error" in word or word.endswith("exception") or word in _FAILURES


def is_success(value: object) -> bool:
    """Whether a value that could be words only says that all is well."""
    return isinstance(value, str) and value.strip().lower() in _SUCCESSES


# --- verdicts --------------------------------------------------------------------------------------------------------


def is_filled(fields: Fields, names: Iterable[str]) -> bool:
    """Whether any of these fields says something."""
    return any(fields.get(name) not in _EMPTY for name in names)


_EMPTY: Final[tuple[object, ...]] = (None, [], {}, "")


def says_error(value: object, own: Collection[str] = ()) -> bool:
    """Whether a JSON value says that it is an error, whatever stands beside that.

    Args:
        value: The value.
        own: The fields that it has where it comes from: there, a status and an object ``error`` are something else.
    """
    if isinstance(value, list):  # Google's gateways wrap theirs in a list
        items = cast("list[object]", value)
        return bool(items) and says_error(items[0])
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, Any]", value)
    if (error := fields.get("error")) and not ("error" in own and isinstance(error, dict)):
        return True
    if any(_is_verdict(name, each) for name, each in fields.items() if name != "status" or name not in own):
        return True
    choices: object = fields.get("choices")
    return isinstance(choices, list) and any(_is_failed(choice) for choice in cast("list[object]", choices))


def _is_verdict(name: str, value: object) -> bool:
    plain = plain_name(name)
    if plain in {"success", "ok"}:
        return value is False or (isinstance(value, str) and value.lower() == "false")
    if plain in {"status", "state"} and isinstance(value, str) and value.isupper():
        return False  # the state of something: that it has failed is what was asked for
    return plain in _VERDICTS and (names_an_error(value) or (plain == "status" and _is_bad_status(value)))


def _is_bad_status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599


def _is_failed(choice: object) -> bool:
    """Whether one of several answers is an error in place of an answer."""
    if not isinstance(choice, dict):
        return False
    fields = cast("dict[str, Any]", choice)
    inside = [fields, fields.get("delta"), fields.get("message")]
    return any(isinstance(part, dict) and bool(cast("dict[str, Any]", part).get("error")) for part in inside)


def has_words(fields: Fields) -> bool:
    """Whether a JSON object says something in words, where servers put them, or that it was in vain."""
    for name, value in fields.items():
        if _holds_words(name, value) or _is_verdict(name, value):
            return True
        if plain_name(name) in _CODES and _is_bad_status(value):
            return True
    return fields.get("error") == {} or holds_refusal(fields)


def _holds_words(name: str, value: object) -> bool:
    plain = plain_name(name)
    return bool(value) and (plain in WORDS or _WORDLY.search(plain) is not None) and not is_success(value)


def holds_refusal(fields: Fields) -> bool:
    """Whether an object holds, in an envelope, another one that is an error."""
    return any(_is_refusal(value) for name, value in fields.items() if plain_name(name) in _ENVELOPES)


def _is_refusal(value: object) -> bool:
    """Whether the object in an envelope is an error; words alone may be part of something good."""
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, Any]", value)
    if fields.get("error") or any(_is_verdict(name, each) for name, each in fields.items()):
        return True
    codes = [each for name, each in fields.items() if plain_name(name) in _CODES]
    in_vain = any(code and code != 200 and not is_success(code) for code in codes)
    return in_vain and any(_holds_words(name, each) for name, each in fields.items())


def is_telling(value: object) -> bool:
    """Whether a JSON value that is no reply at all says what is wrong: that it is an error, or something in words."""
    if isinstance(value, str):
        return bool(value.strip()) and not is_success(value)
    if isinstance(value, list):
        items = cast("list[object]", value)
        return bool(items) and is_telling(items[0])
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, Any]", value)
    return says_error(fields) or has_words(fields) or bool(prose(fields))


# --- words -----------------------------------------------------------------------------------------------------------


def prose(value: object) -> str:
    """A text of several words in an object, under whatever name."""
    fields: Fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    texts = (text.strip() for text in fields.values() if isinstance(text, str))
    return next((text for text in texts if " " in text and any(map(str.isalpha, text))), "")


# --- texts -----------------------------------------------------------------------------------------------------------

# How JSON of an object or a list begins, so that it is no text: a broken reply, of which nobody knows what it says.
_JSON: Final = re.compile(r"""\s*(?:\{|\[\s*(?:[\[\]{"\d-]|null|true|false|$)|"|(?:null|true|false|-?[\d.]+)\s*$)""")
# The same, where its first name says that it is an error: cut off, or written by Python.
_BROKEN_ERROR: Final = re.compile(r"""[\s\[{]*["'](?:error|err|message|msg|detail|errors|exception)\b""", re.IGNORECASE)


_markup = re.compile(r"<(style|script).*?</\1>|<[^>]*>", re.DOTALL).sub


def says_text(data: bytes) -> bool:
    """Whether data that is no JSON says something in words; not where it is broken JSON that could be anything."""
    try:
        text = data[:4096].decode("utf-8", "strict" if len(data) <= 4096 else "ignore")
    except UnicodeDecodeError:
        return False
    if _JSON.match(text) and not _BROKEN_ERROR.match(text):
        return False
    words = _markup(" ", text)
    return any(letter.isalpha() for letter in words) and not is_success(words)
