"""The charset of a response body."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import Final

# Python's codecs, by their own names; some have no alias. UTF-7 is slow for a long input.
_CODECS: Final = frozenset({*aliases.values(), "cp874", "koi8_u", "utf_8_sig"}) - {"utf_7"}
# A string, compiled when it is needed, so that it does not slow down the import of the library.
_CHARSET: Final = r"(?i)charset\s*=\s*[\"']?([\w.:+-]+)"
_BYTE_ORDER_MARKS: Final = (
    ("utf-8-sig", (codecs.BOM_UTF8,)),
    ("utf-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),  # before UTF-16: its mark begins with that of UTF-16
    ("utf-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)


def decode_by_charset(body: bytes, content_type: str, declared: str | None = None) -> str | None:
    """Decodes a body by its byte order mark, its Content-Type, or the charset that it declares itself.

    Returns None if these name no charset, or none that the body is in.
    """
    marked = next((charset for charset, marks in _BYTE_ORDER_MARKS if body.startswith(marks)), None)
    named = re.search(_CHARSET, content_type)
    charsets = (marked, named and named[1], declared)
    return next((text for each in charsets if each and (text := _decode(body, each)) is not None), None)


def to_utf8(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Returns a body that is not UTF-8, but in the charset that its headers name, as UTF-8; any other as it is.

    UTF-8 is tried first, because JSON has no other charset (RFC 8259), and many servers name a wrong one.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        text = decode_by_charset(body, headers.get("content-type", ""))
        return body if text is None else text.encode()
    return body


def _decode(body: bytes, charset: str) -> str | None:
    """Decodes a body, or returns None if it is not in the charset; a character truncated at its end is dropped."""
    name = normalize_encoding(charset).lower().removeprefix("x_")  # as in x-sjis
    name = name.replace("windows_31j", "cp932").replace("windows_", "cp")  # Java's name, and windows-874
    codec = aliases.get(name, name)
    if codec not in _CODECS:  # not looked up: Python keeps every name that was, found or not, forever
        return None
    try:
        return body.decode(codec)
    except UnicodeDecodeError as error:
        read = error.object  # without the byte order mark, which a codec may have removed
        is_truncated = error.end == len(read)  # else it is in another charset
        return (read[: error.start].decode(codec) or None) if is_truncated else None
    except LookupError:  # a codec that decodes no text, or that only Windows has
        return None
