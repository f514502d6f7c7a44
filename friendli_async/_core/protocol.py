"""Operations and requests; replies to values and errors. Pure: no I/O, no clock."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC
from time import time
from typing import Any, Final, Generic, TypeVar, cast, get_args

import msgspec

from friendli_async._core.body.forms import Form
from friendli_async.errors import APIStatusError, ResponseDecodeError, status_class
from friendli_async.replies import Headers

T = TypeVar("T")

EXCERPT: Final = 200
_NOTHING: Final[tuple[object, ...]] = (None, type(None), Any)


class Operation(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One operation of the API: what is written once, whatever deployment answers it."""

    method: str
    path: str
    """Below the deployment's prefix; ``{name}`` stands for a path parameter."""
    reply: msgspec.json.Decoder[T]
    """Decodes the whole reply of a plain call; one of None, ``X | None`` or Any takes an empty body, too."""
    repeatable: bool = False
    """Whether an attempt that the server may have accepted may be repeated."""
    billed: bool = False
    """Whether an accepted attempt costs money: then it is not repeated after a read timeout."""
    team: bool = True
    """Whether it takes the X-Friendli-Team header (outside of containers)."""


class Deployment(msgspec.Struct, frozen=True):
    """Where operations are served."""

    prefix: str
    """Path prefix, as ``/serverless``."""
    container: bool = False
    """A self-hosted engine: its own base URL, no token needed, no team header."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request, ready to be sent. Its repr shows neither headers, query nor body."""

    method: str
    url: str
    path: str
    headers: Mapping[str, str]
    body: bytes | Form | None = None
    repeatable: bool = False

    @property
    def sendable(self) -> bool:
        """Whether it can be sent, or sent again: of some bodies there is only one."""
        return not isinstance(self.body, Form) or self.body.sendable

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


def excerpt(data: bytes) -> str:
    """The beginning of some bytes, as text."""
    return bytes(data[:EXCERPT]).decode("utf-8", "replace")


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes JSON into the decoder's type.

    The fast path is one pass of msgspec. What it refuses gets a second, tolerant reading: lone surrogates (a token that
    ends inside an emoji), NaN, and null where the schema has a value.

    Raises:
        ResponseDecodeError: Not JSON, or not of this shape either way.
    """
    if not data and (decoder.type in _NOTHING or type(None) in get_args(decoder.type)):
        return cast("T", None)
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
    try:
        return msgspec.convert(_without_nulls(json.loads(data)), decoder.type)
    except (ValueError, RecursionError):  # msgspec's, json's and Unicode errors are ValueErrors
        pass
    raise ResponseDecodeError(f"the server's reply could not be read: {reason}", excerpt=excerpt(data))


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in cast("dict[str, object]", value).items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in cast("list[object]", value)]
    return value


def retry_after(headers: Headers, now: Callable[[], float] = time) -> float | None:
    """Seconds that the server asks to wait; None where it asks nothing, or nonsense.

    ``retry-after-ms``, or ``Retry-After`` in seconds or as a date (RFC 9110 10.2.3).
    """
    from email.utils import parsedate_to_datetime  # comes with aiohttp; a bare import of ours does without

    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            try:
                date = parsedate_to_datetime(text)
                # Without a zone (asctime, -0000) it is UTC, too: RFC 9110 5.6.7.
                seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now()
            except (ValueError, TypeError, OverflowError):
                continue
            seconds = max(seconds, 0.0)  # a date that has passed: now
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def status_error(status: int, headers: Headers, body: bytes) -> APIStatusError:
    """The error of a reply whose status says so."""
    fields = _error_fields(_loads(body))
    return status_class(status)(
        fields.message or _first_line(body, headers) or f"HTTP {status}",
        status_code=status,
        code=fields.code,
        type=fields.type,
        body=body.decode("utf-8", "replace"),
        retry_after=retry_after(headers),
        request_id=headers.get("x-request-id") or fields.request_id,
    )


def embedded_error(data: bytes, status: int, headers: Headers) -> APIStatusError | None:
    """The error that sits inside a reply or an event with a good status; None where there is none."""
    value = _loads(data)
    found = value is not None and (value.get("error") or value.get("object") == "error" or value.get("type") == "error")
    return error_event(data, status, headers) if found else None


def error_event(data: bytes, status: int, headers: Headers) -> APIStatusError:
    """The error of an event that is one.

    Args:
        data: What it says: JSON of whatever shape, or not even that.
        status: The HTTP status that it came with: the error's own, where it names none.
        headers: The reply's headers.
    """
    value = _loads(data)
    fields = _error_fields(value)
    status = fields.status or status
    return status_class(status)(
        fields.message or excerpt(data),
        status_code=status,
        code=fields.code,
        type=fields.type,
        body=excerpt(data),
        retry_after=retry_after(headers),
        request_id=headers.get("x-request-id") or fields.request_id,
    )


def _loads(data: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


class _ErrorFields(msgspec.Struct):
    message: str = ""
    code: str | None = None
    type: str | None = None
    request_id: str | None = None
    status: int | None = None


def _error_fields(value: dict[str, object] | None) -> _ErrorFields:
    """Reads an error body of any of the shapes that are about.

    ``{"error": {...}}``, ``{"error": "..."}``, flat ``{"message": ...}``, ``{"detail": [...]}``.
    """
    if value is None:
        return _ErrorFields()
    nested = value.get("error")
    source = cast("dict[str, object]", nested) if isinstance(nested, dict) else value
    message: object = source.get("message") or value.get("message") or value.get("detail")
    message = message or value.get("error")
    if message is not None and not isinstance(message, str):
        message = _details(message)
    return _ErrorFields(
        message=message if isinstance(message, str) else "",
        code=_text(source.get("code")),
        type=_text(source.get("type")),
        request_id=_text(source.get("request_id") or value.get("request_id")),
        status=_status_of(source) or _status_of(value),
    )


def _details(detail: object) -> str:
    """``[{"loc": ["body", "n"], "msg": "..."}]``, the 422 body, as one line."""
    if not isinstance(detail, list):
        return json.dumps(detail)[:EXCERPT]
    lines: list[str] = []
    for item in cast("list[object]", detail):
        entry = cast("dict[str, object]", item) if isinstance(item, dict) else {"msg": item}
        loc = entry.get("loc")
        where = ".".join(str(part) for part in cast("list[object]", loc)) if isinstance(loc, list) else ""
        lines.append(f"{where}: {entry.get('msg')}" if where else str(entry.get("msg")))
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


def _first_line(body: bytes, headers: Headers) -> str:
    """The words of a plain-text body; of HTML only its title says something."""
    text = body[:4096].decode("utf-8", "replace")
    if "html" in headers.get("content-type", "") or text.lstrip()[:1] == "<":
        title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
        return title.group(1).strip()[:EXCERPT] if title else ""
    stripped = text.strip()
    return "" if stripped[:1] in {"{", "["} else (stripped.splitlines() or [""])[0][:EXCERPT]
