"""Parses the body of an error response: JSON, also wrapped, events, markup or plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from encodings import normalize_encoding
from encodings.aliases import aliases
from itertools import islice
from typing import Final

from friendli_async._core.error_json import is_error_name, is_success
from friendli_async._json import json_or_none, loads, replace_surrogates

_MAX_MESSAGE: Final = 2000
"""Characters of an error's message. ``APIStatusError.body`` has a limit of its own, ``Limits.error``."""
_MAX_LINE: Final = 200
_MAX_SCANNED: Final = 16384
_MAX_VALUES: Final = 50

# Patterns are strings, compiled when an error needs them, so that they do not slow down the import of the library.
_CHARSET: Final = r"(?i)charset\s*=\s*[\"']?([\w.:+-]+)"

# Control characters could ring the bell of a terminal, or change its display.
_CONTROLS: Final = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]"

_BINARY: Final = r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]"

_EVENT_FIELD: Final = r"(?:data|event|id|retry)?:"

# The start of JSON: a text that begins like this is a malformed reply, not a message.
_JSON_START: Final = r"""\s*(?:\{|\[\s*(?:[\[\]{"\d-]|null|true|false|$)|"|null\s*$)"""
# Malformed JSON that is an error by its first name: truncated, or the repr of a Python dict.
_MALFORMED_ERROR: Final = r"""(?i)[\s\[{]*["'](?:error|err|message|msg|detail|errors|exception)\b"""
# A text in a message field of malformed JSON.
_MESSAGE_FIELD: Final = (
    r"(?is)[\"'](?:err(?:or)?_?|status_?)?(?:message|msg|detail|err|errors?|exception|reason|title)[\"']"
    r"\s*:\s*([\"'])((?:(?!\1)[^\\]|\\.){1,2000})"  # no more: each repetition takes memory
)

_INVISIBLE: Final = r"(?is)<!--.*?(?:-->|\Z)|<(style|script|svg)\b.*?(?:</\1\s*>|\Z)"
_TAG: Final = r"<[^<>]*>"
_CDATA: Final = r"(?s)<!\[CDATA\[(.*?)(?:\]\]>|\Z)"
# Elements that contain the message, the most specific first; and titles without information.
_MESSAGE_ELEMENTS: Final = ("title", "h1", "message", "faultstring", "pre", "h2", "h3", "detail", "reason", "p")
_EMPTY_TITLE: Final = r"(?i)[\W\d_]*(?:error|oops|untitled|document)?[\W\d_]*"


def decode_text(body: bytes, content_type: str) -> str:
    """Decodes a body as UTF-8, or else in the charset of its Content-Type, or else with replacement characters."""
    try:
        return body.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        named = re.search(_CHARSET, content_type)
    name = normalize_encoding(named[1]).lower() if named else ""
    with suppress(LookupError):  # not each of Python's codecs decodes text
        return body.decode(aliases.get(name, name if name in aliases.values() else "utf-8"), "replace")
    return body.decode("utf-8", "replace")


def sanitize(text: str) -> str:
    """Makes a text safe for messages and logs: no control characters, no lone surrogates, and not too long."""
    text = re.sub(_CONTROLS, "", replace_surrogates(text).replace("\r\n", "\n").replace("\r", "\n")).strip()
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 3]}..."


def is_message(data: bytes) -> bool:
    """Whether data that is not JSON is an error message: a text with letters, or a malformed JSON error."""
    try:  # strictly, except for a character that the slice truncates
        text = data[:_MAX_SCANNED].decode("utf-8", "strict" if len(data) <= _MAX_SCANNED else "ignore")
    except UnicodeDecodeError:
        return False
    if _is_malformed_reply(text):
        return False
    visible = _visible_text(re.sub(_INVISIBLE, " ", text))
    return any(map(str.isalpha, visible)) and not is_success(visible)


def is_other_format(data: bytes) -> bool:
    """Whether data that cannot be parsed as JSON was not meant to be a JSON reply: a page, events, a text, an image."""
    text = data[:_MAX_SCANNED].decode("utf-8", "replace")
    return bool(text.strip()) and not _is_malformed_reply(text)


def _is_malformed_reply(text: str) -> bool:
    """Whether a text that is not JSON begins like it, and not like an error in JSON."""
    return re.match(_JSON_START, text) is not None and re.match(_MALFORMED_ERROR, text) is None


def parse_body(body: bytes, content_type: str = "") -> list[object]:
    """Parses a body into its values, in order: decoded JSON, markup as an object like an error in JSON, a message."""
    try:
        return [loads(body)]
    except ValueError:
        text = decode_text(body, content_type).lstrip("\ufeff \t\r\n")
    is_stream = "event-stream" in content_type.lower() or re.match(_EVENT_FIELD, text) is not None
    if is_stream and (events := _parse_events(text)) is not None:
        return events
    if values := list(islice(_iter_json(text), _MAX_VALUES)):
        return values
    if "html" in content_type.lower() or text.startswith("<"):
        return [_parse_markup(text[:_MAX_SCANNED])]
    return [_text_message(text)]


def _iter_json(text: str) -> Iterator[object]:
    """Yields the consecutive JSON objects and lists at the start of a text."""
    begin, decode = 0, json.JSONDecoder().raw_decode
    while text[begin : begin + 1] in {"{", "["}:
        try:
            value, begin = decode(text, begin)
        except (ValueError, RecursionError):
            return
        yield value
        while text[begin : begin + 1].isspace():
            begin += 1


def _parse_events(text: str) -> list[object] | None:
    """Parses the data of the events in an error response; returns None if the text has no event.

    Unlike in the SSE standard, an event that the end of the body truncates counts, as the body is complete.
    """
    events: list[object] = []
    is_stream = False
    for block in "\n".join(text.splitlines()).split("\n\n"):
        fields = [line.partition(":") for line in block.split("\n")]
        data = [value.removeprefix(" ") for name, _, value in fields if name == "data"]
        is_stream = is_stream or bool(data)
        whole = "\n".join(data).strip()
        if whole and whole != "[DONE]":
            is_error = any(name == "event" and is_error_name(value.strip()) for name, _, value in fields)
            text = string if isinstance(string := json_or_none(whole), str) else _text_message(whole)
            events.append(next(_iter_json(whole), {"error": text} if is_error else text))
    return events[:_MAX_VALUES] if is_stream else None


def _text_message(text: str) -> str:
    """Returns the message in a plain text: its first line, or more if that ends with a colon; "" for binary data."""
    head = text[:_MAX_LINE]
    if 1 < len(re.findall(_BINARY, head)) > len(head) // 4:
        return ""
    lines = [line.strip() for line in sanitize(text[:_MAX_SCANNED]).splitlines()] or [""]
    if lines[0].startswith("Traceback "):  # the exception is in the last line
        return lines[-1][:_MAX_LINE]
    if "".join(lines).lstrip("[ ")[:1] == "{":  # malformed JSON: not quoted as a whole, since it may repeat the request
        found = re.search(_MESSAGE_FIELD, text)
        return (
            " ".join(sanitize(found[2].replace("\\n", "\n").replace('\\"', '"')).split())[:_MAX_LINE] if found else ""
        )
    if lines[0].endswith(":"):
        return " ".join(" ".join(lines).split())[:_MAX_LINE]
    return lines[0][:_MAX_LINE]


def _parse_markup(text: str) -> dict[str, str]:
    """Returns the message of a page: its title, or else its heading; of XML also the code and the request ID."""
    is_page = re.search(r"<(?:html|body|p|title)\b", text, re.IGNORECASE) is not None
    text = re.sub(_CDATA, lambda found: found[1].replace("<", "&lt;"), re.sub(_INVISIBLE, " ", text))
    message = next(
        (found for name in _MESSAGE_ELEMENTS if not re.fullmatch(_EMPTY_TITLE, found := _element_text(text, name))), ""
    )
    fields = {"message": message or _visible_text(text)}
    if not is_page:
        fields |= {"code": _element_text(text, "code"), "request_id": _element_text(text, "request-?id")}
    return {name: value for name, value in fields.items() if value}


def _element_text(text: str, name: str) -> str:
    """Returns the visible text of the first element of a name that has any, or ""."""
    pattern = rf"<(?:\w+:)?{name}(?:\s[^<>]*)?>(.*?)(?:</(?:\w+:)?{name}\s*>|<(?=/?(?:head|body|p|h\d|title)\b)|\Z)"
    found = re.finditer(pattern, text, re.IGNORECASE | re.DOTALL)
    return next((content for match in found if (content := _visible_text(match[1]))), "")


def _visible_text(markup: str) -> str:
    """Returns the visible text of markup, in one line."""
    from html import unescape  # needed only for an error

    return " ".join(sanitize(unescape(re.sub(_TAG, " ", markup))).split())[:_MAX_LINE]
