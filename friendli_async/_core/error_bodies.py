"""What servers say when something is wrong, whatever shape they give it: one reading of it, one error made of it.

A status that is no good one, an error inside a stream and an error inside a good plain reply are all read here, so that
they cannot drift apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC
from time import time
from typing import Any, Final, cast

import msgspec

from friendli_async.errors import APIStatusError, status_class
from friendli_async.rate_limits import wait_of
from friendli_async.replies import Headers

__all__ = [
    "EXCERPT",
    "excerpt",
    "has_words",
    "is_filled",
    "is_telling",
    "loads",
    "parsed",
    "request_id_of",
    "retry_after",
    "said_error",
    "says_error",
    "status_error",
]

EXCERPT: Final = 200


def excerpt(data: bytes) -> str:
    """The beginning of some bytes, as text."""
    return bytes(data[:EXCERPT]).decode("utf-8", "replace")


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


def retry_after(headers: Headers, now: Callable[[], float] = time) -> float | None:
    """Seconds that the server asks to wait; None where it asks nothing, or nonsense.

    ``retry-after-ms``, or ``Retry-After`` in seconds or as a date (RFC 9110 10.2.3). Of one that was sent twice, by a
    server and a proxy, the longer wait counts: neither may be undercut.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is not None:
            whole = _seconds(text, unit, now)
            waits = [whole] if whole is not None else [_seconds(part, unit, now) for part in text.split(",")]
            if told := [wait for wait in waits if wait is not None]:
                return max(told)
    return None


def _wait_asked(status: int, headers: Headers) -> float | None:
    """The Retry-After; without one, when the limit that a 429 is about resets."""
    asked = retry_after(headers)
    return wait_of(headers) if asked is None and status == 429 else asked


def _seconds(text: str, unit: float, now: Callable[[], float]) -> float | None:
    from email.utils import parsedate_to_datetime  # comes with aiohttp; a bare import of ours does without

    try:
        seconds = float(text) * unit
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
            # Without a zone (asctime, -0000) it is UTC, too: RFC 9110 5.6.7.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
        seconds = max(seconds, 0.0)  # a date that has passed: now
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def request_id_of(headers: Headers) -> str | None:
    """The ``x-request-id``: the first, where a proxy has added another."""
    return headers.get("x-request-id", "").partition(",")[0].strip() or None


def status_error(status: int, headers: Headers, body: bytes) -> APIStatusError:
    """The error of a reply whose status says so."""
    fields = _read(_of_body(body))
    return status_class(status)(
        fields.message or _first_line(body, headers) or fields.code or fields.type or f"HTTP {status}",
        status_code=status,
        code=fields.code,
        type=fields.type,
        body=body.decode("utf-8", "replace"),
        retry_after=_wait_asked(status, headers),
        request_id=request_id_of(headers) or fields.request_id,
    )


def said_error(value: object, data: bytes, status: int, headers: Headers) -> APIStatusError:
    """The error that a reply with a good status, or an event of a stream, turned out to be.

    Args:
        value: What it says, decoded; None where it is no JSON.
        data: The same as bytes.
        status: The HTTP status that it came with: the error's own, where it names none.
        headers: The reply's headers.
    """
    fields = _read(value)
    status = fields.status or status
    return status_class(status)(
        fields.message or excerpt(data),
        status_code=status,
        code=fields.code,
        type=fields.type,
        body=excerpt(data),
        retry_after=_wait_asked(status, headers),
        request_id=request_id_of(headers) or fields.request_id,
    )


def says_error(value: object) -> bool:
    """Whether a JSON value says that it is an error: a filled ``error``, or a type or object of that name."""
    if isinstance(value, list):  # Google's gateways wrap theirs in a list
        items = cast("list[object]", value)
        return bool(items) and says_error(items[0])
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, object]", value)
    return bool(fields.get("error")) or fields.get("object") == "error" or fields.get("type") == "error"


def has_words(fields: Mapping[str, object]) -> bool:
    """Whether a JSON object says something in words, where servers and gateways put them, or that it was in vain."""
    return any(fields.get(name) for name in _WORDS) or fields.get("error") == {} or fields.get("success") is False


def is_telling(value: object) -> bool:
    """Whether a JSON value that is no reply at all says what is wrong: that it is an error, or something in words."""
    return says_error(value) or (isinstance(value, dict) and has_words(cast("dict[str, object]", value)))


def is_filled(fields: Mapping[str, object], names: Iterable[str]) -> bool:
    """Whether any of these fields says something."""
    return any(fields.get(name) not in _EMPTY for name in names)


_EMPTY: Final[tuple[object, ...]] = (None, [], {}, "")


class _Fields(msgspec.Struct):
    message: str = ""
    code: str | None = None
    type: str | None = None
    request_id: str | None = None
    status: int | None = None


_WORDS: Final = (
    "message",
    "detail",
    "details",
    "msg",
    "error_msg",
    "error_message",
    "errorMessage",
    "error_description",
    "errors",
    "Message",
    "fault",
    "Error",
    "err",
    "exception",
    "failure",
    "problem",
    "reason",
    "title",
    "description",
)
"""Where servers and gateways put their words, the most telling first."""


def _of_body(body: bytes) -> object:
    try:
        return loads(body)
    except ValueError:
        pass
    # The last event of a stream that was refused, or one JSON text a line: the first that is one.
    for line in body.splitlines():
        if line.startswith((b"data:", b"{", b"[")):
            try:
                return loads(line.removeprefix(b"data:"))
            except ValueError:
                continue
    return None


def _read(value: object) -> _Fields:
    """Reads an error of any of the shapes that are about: see ``_WORDS``; nested in ``error``, in a list, or flat."""
    while isinstance(value, list):
        items = cast("list[object]", value)
        value = items[0] if items else None
    if isinstance(value, str):
        return _Fields(message=value)
    if not isinstance(value, dict):
        return _Fields()
    outer = cast("dict[str, object]", value)
    nested: object = outer.get("error") or outer.get("fault") or outer.get("Error")
    inner = cast("dict[str, object]", nested) if isinstance(nested, dict) else outer
    return _Fields(
        message=_message(inner) or _message(outer) or (nested if isinstance(nested, str) else ""),
        code=_text(_first(inner, "code", "error_code", "errorCode", "Code")),
        type=_text(_first(inner, "type", "error_type", "status" if inner is not outer else "type")),
        request_id=_text(_first(inner, "request_id", "requestId") or _first(outer, "request_id", "requestId")),
        status=_status_of(inner) or _status_of(outer),
    )


def _first(fields: Mapping[str, object], *names: str) -> object:
    return next((value for name in names if (value := fields.get(name)) is not None), None)


def _message(fields: Mapping[str, object]) -> str:
    for name in _WORDS:
        value = fields.get(name)
        try:
            if value and (text := value if isinstance(value, str) else _details(value)):
                return text
        except RecursionError:  # nested too deeply to hold words
            continue
    return ""


def _details(detail: object) -> str:
    """``[{"loc": ["body", "n"], "msg": "..."}]``, the 422 body, as one line; what is told otherwise as it is."""
    if isinstance(detail, dict):
        return _message(cast("dict[str, object]", detail)) or json.dumps(detail)[:EXCERPT]
    if not isinstance(detail, list):
        return json.dumps(detail)[:EXCERPT]
    lines: list[str] = []
    for item in cast("list[object]", detail):
        entry = cast("dict[str, object]", item) if isinstance(item, dict) else {"msg": item}
        loc = entry.get("loc")
        where = ".".join(str(part) for part in cast("list[object]", loc)) if isinstance(loc, list) else ""
        words = str(entry.get("msg") or _message(entry) or json.dumps(item)[:EXCERPT])
        lines.append(f"{where}: {words}" if where else words)
    return "; ".join(lines)


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


# What servers call their errors, and the status that each stands for.
_NAMED_STATUSES: Final[dict[str, int]] = {
    "invalid_request_error": 400,
    "bad_request": 400,
    "bad_request_error": 400,
    "badrequesterror": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "unauthorized": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "permission_denied_error": 403,
    "forbidden": 403,
    "not_found": 404,
    "not_found_error": 404,
    "notfounderror": 404,
    "model_not_found": 404,
    "conflict": 409,
    "conflict_error": 409,
    "unprocessable_entity": 422,
    "unprocessable_entity_error": 422,
    "validation_error": 422,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "ratelimiterror": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "too_many_requests": 429,
    "api_error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "internalservererror": 500,
    "server_error": 500,
    "bad_gateway": 502,
    "overloaded": 503,
    "overloaded_error": 503,
    "server_overloaded": 503,
    "service_unavailable": 503,
    "unavailable": 503,
    "unavailable_error": 503,
    "gateway_timeout": 504,
    "timeout_error": 504,
}


def _status_of(error: Mapping[str, object]) -> int | None:
    """The status that an error's code, type or status names, numbers first."""
    named = [error.get("status_code"), error.get("code"), error.get("status"), error.get("type")]
    for value in named:
        text = str(value)
        if not isinstance(value, bool) and text.isdecimal() and 400 <= int(text[:4]) <= 599:
            return int(text[:4])
    for value in named:
        if isinstance(value, str) and (status := _NAMED_STATUSES.get(value.lower().replace("-", "_"))):
            return status
    return None


# Elements that tell what is wrong, the most telling first.
_TAGS: Final = tuple(
    rf"<(?:\w+:)?{name}(?:\s[^>]*)?>\s*([^<\s][^<]*)"
    for name in ("title", "h1", "message", "faultstring", "h2", "h3", "detail", "p")
)


def _first_line(body: bytes, headers: Headers) -> str:
    """The words of a plain-text body; of HTML its title, or else its heading; of XML its message."""
    text = body[:4096].decode("utf-8", "replace")
    if "html" in headers.get("content-type", "") or text.lstrip()[:1] == "<":
        found = next((match for tag in _TAGS if (match := re.search(tag, text, re.IGNORECASE))), None)
        words = found[1] if found else re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
        return " ".join(words.split())[:EXCERPT]
    stripped = text.strip()
    return "" if stripped[:1] in {"{", "["} else (stripped.splitlines() or [""])[0][:EXCERPT]
