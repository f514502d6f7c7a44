"""What the body of a refusal says: JSON in whatever wrapping, events, markup or plain words, in whatever charset."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from friendli_async._core.error_json import is_success, loads

__all__ = ["decode_text", "is_message", "parse_body", "sanitize"]

_LONGEST: Final = 2000
"""Words in an error, characters: the whole of them is in ``APIStatusError.body``."""
_LINE: Final = 200
_LOOKED_AT: Final = 16384
_MOST: Final = 50

# Codecs that take text to be something else than characters in bytes, or for which a long input is slow.
_NO_CHARSETS: Final = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7"})
# Patterns are compiled by re when an error needs them: the import of the library does not wait for them.
_NAMED: Final = r"(?i)charset\s*=\s*[\"']?([\w.:+-]+)"
_NAMED_INSIDE: Final = r"(?i)<\?xml[^>]*\sencoding\s*=\s*[\"']([\w.:+-]+)|<meta[^>]*charset\s*=\s*[\"']?([\w.:+-]+)"
_MARKS: Final = (
    ("utf-8-sig", (codecs.BOM_UTF8,)),
    ("utf-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),  # before UTF-16, whose mark it begins with
    ("utf-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)

# Controls would ring a bell, or paint a terminal.
_UNPRINTABLE: Final = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]"

_NO_TEXT: Final = r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]"

# What is put around JSON so that no page runs it, or that one does: )]}' and while(1); and callback(...).
_WRAPPING: Final = r"(?:\)\]\}'?,?|while\s*\(1\);|for\s*\(;;\);|/\*.*?\*/|[A-Za-z_$][\w.$]{0,80}\(|\s)*"
_FIELD: Final = r"(?:data|event|id|retry)?:"

# How JSON of an object or a list begins, so that it is no text: a broken reply, of which nobody knows what it says.
_JSON: Final = r"""\s*(?:\{|\[\s*(?:[\[\]{"\d-]|null|true|false|$)|"|(?:null|true|false|-?[\d.]+)\s*$)"""
# The same, where its first name says that it is an error: cut off, or written by Python.
_BROKEN_ERROR: Final = r"""(?i)[\s\[{]*["'](?:error|err|message|msg|detail|errors|exception)\b"""
# A text under one of the names of words, in what is no whole JSON.
_QUOTED: Final = (
    r"(?is)[\"'](?:error_?|status_?)?(?:message|msg|detail|error|errors|reason|title)[\"']"
    r"\s*:\s*([\"'])((?:(?!\1)[^\\]|\\.)+)"
)

_UNSEEN: Final = r"(?is)<!--.*?(?:-->|\Z)|<(style|script|svg)\b.*?(?:</\1\s*>|\Z)"
_TAG: Final = r"<[^<>]*>"
_CDATA: Final = r"(?s)<!\[CDATA\[(.*?)(?:\]\]>|\Z)"
# Elements that tell what is wrong, the most telling first; and those of a title that say nothing.
_ELEMENTS: Final = ("title", "h1", "message", "faultstring", "pre", "h2", "h3", "detail", "reason", "p")
_EMPTY_WORDS: Final = r"(?i)[\W\d_]*(?:error|oops|untitled|document)?[\W\d_]*"


def decode_text(body: bytes, content_type: str = "") -> str:
    """A body as text: in the charset that it names, or that its first bytes show; else UTF-8, as far as it is that."""
    named = re.search(_NAMED, content_type)
    inside = re.search(_NAMED_INSIDE, body[:1024].decode("latin-1"))
    marked = next((charset for charset, marks in _MARKS if body.startswith(marks)), None)
    for charset in (marked, named and named[1], inside and (inside[1] or inside[2])):
        if charset is not None and (text := _decoded(body, charset)) is not None:
            return text
    return body.decode("utf-8", "replace")


def _decoded(body: bytes, charset: str) -> str | None:
    """A body in a charset, if it is in it; a character that was cut at its end does not count."""
    try:
        if codecs.lookup(charset).name in _NO_CHARSETS:
            return None
        return body.decode(charset)
    except UnicodeDecodeError as error:
        cut = len(body) > 4 and error.start > len(body) - 4
        return body[: error.start].decode(charset, "replace") if cut else None
    except (LookupError, ValueError):
        return None


def sanitize(text: str) -> str:
    """Words as they may stand in a message and in a log: bounded, and without controls."""
    text = re.sub(_UNPRINTABLE, "", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def is_message(data: bytes) -> bool:
    """Whether data that is no JSON says something in words; not where it is broken JSON that could be anything."""
    try:  # strictly, but for a character in which the look ends
        text = data[:_LOOKED_AT].decode("utf-8", "strict" if len(data) <= _LOOKED_AT else "ignore")
    except UnicodeDecodeError:
        return False
    if re.match(_JSON, text) and not re.match(_BROKEN_ERROR, text):
        return False
    words = _shown(re.sub(_UNSEEN, " ", text))
    return any(map(str.isalpha, words)) and not is_success(words)


def parse_body(body: bytes, content_type: str = "") -> list[object]:
    """What a body says, in its order: decoded JSON; what markup says, as if it were JSON; or words.

    Args:
        body: The body.
        content_type: Its Content-Type.
    """
    try:
        return [loads(body)]
    except ValueError:
        text = decode_text(body, content_type).lstrip("\ufeff \t\r\n")
    is_stream = "event-stream" in content_type.lower() or re.match(_FIELD, text) is not None
    if is_stream and (events := _of_events(text)) is not None:
        return events
    if values := list(islice(_of_json(text), _MOST)):
        return values
    if "html" in content_type.lower() or text.startswith("<"):
        return [_of_markup(text[:_LOOKED_AT])]
    return [_words(text)]


def _of_json(text: str) -> Iterator[object]:
    """The objects and lists that a text begins with, one behind the other, whatever is put around them."""
    begin, decode = _end_of(_WRAPPING, text, 0), json.JSONDecoder().raw_decode
    while text[begin : begin + 1] in {"{", "["}:
        try:
            value, end = decode(text, begin)
        except (ValueError, RecursionError):
            return
        yield value
        begin = _end_of(r"\s*", text, end)


def _end_of(pattern: str, text: str, begin: int) -> int:
    """Where what a pattern takes of a text ends; it may take nothing."""
    found = re.compile(pattern).match(text, begin)
    return begin if found is None else found.end()


def _of_events(text: str) -> list[object] | None:
    """The data of a refused stream's events; None where it is none.

    It is not the standard's reading to the letter: one event that the end cuts off counts, as there is no more to come.
    """
    events: list[object] = []
    is_stream = False
    for block in "\n".join(text.splitlines()).split("\n\n"):
        fields = [line.partition(":") for line in block.split("\n")]
        data = [value.removeprefix(" ") for name, _, value in fields if name == "data"]
        is_stream = is_stream or bool(data)
        whole = "\n".join(data).strip()
        if whole and whole != "[DONE]":
            is_error = any(name == "event" and "error" in value.lower() for name, _, value in fields)
            events.append(next(_of_json(whole), {"error": whole} if is_error else whole))
    return events[:_MOST] if is_stream else None


def _words(text: str) -> str:
    """The words of a plain text: its first line, or more where that only leads up to them; "" of what is no text."""
    head = text[:_LINE]
    if 1 < len(re.findall(_NO_TEXT, head)) > len(head) // 4:
        return ""
    lines = [line.strip() for line in sanitize(text[:_LOOKED_AT]).splitlines() if line.strip()] or [""]
    if lines[0].startswith("Traceback "):  # what was raised stands last
        return lines[-1][:_LINE]
    if lines[0][:1] == "{":  # cut off, or JSON by its looks only; not quoted, as it may repeat the request
        found = re.search(_QUOTED, text)
        return " ".join(sanitize(found[2].replace("\\n", "\n").replace('\\"', '"')).split())[:_LINE] if found else ""
    if lines[0].endswith(":"):
        return " ".join(" ".join(lines).split())[:_LINE]
    return lines[0][:_LINE]


def _of_markup(text: str) -> dict[str, str]:
    """The words of a page: its title, or else its heading; of XML the message, the code and the request's id."""
    is_page = re.search(r"<(?:html|body|p|title)\b", text, re.IGNORECASE) is not None
    text = re.sub(_CDATA, lambda found: found[1].replace("<", "&lt;"), re.sub(_UNSEEN, " ", text))
    words = next((found for name in _ELEMENTS if not re.fullmatch(_EMPTY_WORDS, found := _element(text, name))), "")
    told = {"message": words or _shown(text)}
    if not is_page:
        told |= {"code": _element(text, "code"), "request_id": _element(text, "request-?id")}
    return {name: value for name, value in told.items() if value}


def _element(text: str, name: str) -> str:
    """What the first element of a name says, if it says anything."""
    pattern = rf"<(?:\w+:)?{name}(?:\s[^<>]*)?>(.*?)(?:</(?:\w+:)?{name}\s*>|<(?=/?(?:head|body|p|h\d|title)\b)|\Z)"
    found = re.finditer(pattern, text, re.IGNORECASE | re.DOTALL)
    return next((words for match in found if (words := _shown(match[1]))), "")


def _shown(markup: str) -> str:
    """What a reader sees of markup."""
    from html import unescape  # only on the way to an error

    return " ".join(sanitize(unescape(re.sub(_TAG, " ", markup))).split())[:_LINE]
