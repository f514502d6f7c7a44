"""Operations to requests, replies to values and errors. Pure: no I/O, no clock."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Final, Generic, TypeVar, cast, get_type_hints
from urllib.parse import urlencode, urlsplit

import msgspec

from friendli_async.errors import (
    APIStatusError,
    ConfigurationError,
    ResponseDecodeError,
    status_class,
)
from friendli_async.replies import Headers

T = TypeVar("T")

EXCERPT: Final = 200
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Controls end or break a header (RFC 9110 5.5); beyond Latin-1 nothing can be sent.
_UNSENDABLE: Final = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection", "host"})


class Operation(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One operation of the API: what is written once, whatever deployment answers it."""

    method: str
    path: str
    """Below the deployment's prefix; ``{name}`` stands for a path parameter."""
    reply: msgspec.json.Decoder[T]
    """Decodes the whole reply of a plain call."""
    repeatable: bool = False
    """Whether an attempt that the server may have accepted may be repeated."""
    billed: bool = False
    """Whether an accepted attempt costs money: then it is not repeated after a read timeout."""


class Deployment(msgspec.Struct, frozen=True):
    """Where operations are served."""

    prefix: str
    """Path prefix, as ``/serverless``."""
    container: bool = False
    """A self-hosted engine: its own base URL, no token needed, no team header."""


class Arguments(msgspec.Struct, frozen=True):
    """What a call was given, checked and encoded: nothing that the caller does to its objects later changes it."""

    body: bytes | None = None
    query: Mapping[str, object] | None = None

    def __repr__(self) -> str:
        return "Arguments(...)"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request, ready to be sent. Its repr shows neither headers, query nor body."""

    method: str
    url: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    repeatable: bool = False

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


# --- what goes out ---------------------------------------------------------------------------------------------------


def base_url(value: str, name: str) -> str:
    """Checks a base URL and takes one trailing slash off. A path prefix is kept.

    Raises:
        ConfigurationError: It is not an absolute http(s) URL, or has a query, a fragment or credentials.
    """
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except (ValueError, AttributeError, TypeError):
        raise ConfigurationError(f"{name} is not a URL") from None
    # The value itself stays out of the message where it can hold a password.
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"{name} must not hold credentials; pass token= instead")
    if not usable or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ConfigurationError(f"{name} must be an http or https URL without query or fragment, not {value!r}")
    return value.removesuffix("/")


def check_token(token: object) -> str:
    """Returns the value of the Authorization header for a token; what begins with "bearer " is taken as it is.

    Raises:
        ConfigurationError: It is not a string, is empty, or cannot go into a header. The token is not repeated.
    """
    if not isinstance(token, str):
        raise ConfigurationError(f"the token must be a string, not {type(token).__name__}")
    if not token.strip():
        raise ConfigurationError("the token is empty")
    if not re.fullmatch(r"[\x20-\x7e]+", token):
        raise ConfigurationError("the token contains control or non-ASCII characters, so it cannot be sent")
    return token if token[:7].lower() == "bearer " else f"Bearer {token}"


def check_header(name: object, value: object, what: str) -> None:
    """Checks one header that the user gave.

    Raises:
        ConfigurationError: Name or value would break out of the header, or it is one that frames the message.
    """
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise ConfigurationError(f"{what}: {name!r} is not a header name")
    if name.lower() in _FRAMING:
        raise ConfigurationError(f"{what}: {name} is set by the HTTP layer")
    if not isinstance(value, str):
        raise ConfigurationError(f"{what}: the value of {name} must be a string, not {type(value).__name__}")
    if _UNSENDABLE.search(value):
        raise ConfigurationError(f"{what}: the value of {name} contains characters that cannot go into a header")


def encode_query(query: Mapping[str, object]) -> str:
    """Encodes query parameters: sequences repeat the key, booleans are lower-case, None is left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        values = cast("Sequence[object]", value) if isinstance(value, list | tuple) else [value]
        pairs.extend((name, _query_text(name, item)) for item in values if item is not None)
    return urlencode(pairs)


def _query_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise ValueError(f"extra_query[{name!r}]: {value!r} cannot be sent in a query")


SETTINGS: Final = frozenset({"token", "team", "server_url", "container_url", "timeout", "retry", "limits", "headers"})


class Parameters:
    """The keywords of a method that sends JSON: which there are, and what their values must be.

    Args:
        options: A TypedDict of the optional ones.
        required: Types of those that the method spells out.
        checks: Types to check by where the annotation is wider than the wire: annotations serve the type checkers, and
            take any mapping; a check takes a tagged struct.
    """

    def __init__(self, options: type, required: Mapping[str, Any], checks: Mapping[str, Any]) -> None:
        hints = get_type_hints(options)
        types = {**hints, **required, **checks}
        self._known = frozenset(hints)
        self._expected = msgspec.defstruct(
            "Arguments", [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in types.items()]
        )

    def check(self, values: Mapping[str, object], prefix: str = "") -> None:
        """Checks values by name; keys that it does not know pass.

        Raises:
            ValueError: With the path of the bad value, as ``messages[2].role``.
        """
        check_values(values, self._expected, prefix)

    def encode(
        self,
        method: str,
        required: Mapping[str, object],
        options: Mapping[str, object],
        fixed: Mapping[str, object],
    ) -> Arguments:
        """Checks what a method was given and makes it into a body.

        Args:
            method: The method's name, for the errors.
            required: Its spelt-out parameters.
            options: Its other keywords; ``extra_body`` and ``extra_query`` among them pass anything through.
            fixed: What the method itself sends.

        Raises:
            TypeError: A keyword that the method does not have.
            ValueError: A value of the wrong type, or one that is not JSON, with its path.
        """
        check_keywords(options, self._known, method)
        given = {**required, **options}
        self.check(given)
        query = cast("Mapping[str, object] | None", given.pop("extra_query", None))
        extra = cast("Mapping[str, object]", given.pop("extra_body", None) or {})
        if "stream" in extra:
            raise ValueError("extra_body.stream: complete() and stream() are two methods, so it cannot be set here")
        return Arguments(encode_json({**given, **fixed, **extra}), dict(query) if query else None)


def check_keywords(given: Mapping[str, object], known: frozenset[str], method: str) -> None:
    """Refuses keywords that the method does not have.

    Raises:
        TypeError: Names the unknown keyword and the nearest known one, or where a setting belongs.
    """
    for name in given:
        if name in known:
            continue
        if name in SETTINGS:
            raise TypeError(f"{method}() takes no {name!r}: it is a setting, use client.with_options({name}=...)")
        from difflib import get_close_matches  # only on the way to an error

        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; what is not listed goes into extra_body={...}"
        raise TypeError(f"{method}() got an unexpected keyword argument {name!r}{hint}")


def check_values(values: object, expected: type[Any], prefix: str = "") -> None:
    """Checks values against a type; unknown keys are nobody's business here.

    Raises:
        ValueError: With the path of the bad value, as ``messages[2].role``.
    """
    try:
        msgspec.convert(values, expected)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        where = prefix + path.rstrip("`")
        where = where.lstrip(".") or "arguments"
        raise ValueError(f"{where}: {reason}") from None
    except RecursionError:
        raise ValueError("the arguments are nested too deeply, or contain themselves") from None


_PLAIN: Final = frozenset({str, int, bool, type(None)})


def check_json(value: object, path: str = "", above: tuple[int, ...] = ()) -> None:
    """Checks that a value is JSON: what the encoder would quietly turn into something else is refused.

    Raises:
        ValueError: With its path: NaN, infinity, a value or key that is not JSON, a container that contains itself.
    """
    kind = type(value)
    if kind in _PLAIN or isinstance(value, str | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path or 'value'}: {value} is not JSON")
        return
    if id(value) in above:
        raise ValueError(f"{path or 'value'}: contains itself")
    above = (*above, id(value))
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            if type(key) is not str:
                raise ValueError(f"{path or 'value'}: the key {key!r} is not a string")
            if type(item) not in _PLAIN:
                check_json(item, f"{path}.{key}" if path else key, above)
    elif isinstance(value, list | tuple) or (isinstance(value, Sequence) and not isinstance(value, bytes | bytearray)):
        for index, item in enumerate(cast("Sequence[object]", value)):
            if type(item) not in _PLAIN:
                check_json(item, f"{path}[{index}]", above)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            check_json(getattr(value, name), f"{path}.{name}", above)
    elif value is not msgspec.UNSET:
        raise ValueError(f"{path or 'value'}: {kind.__name__} is not JSON")


def _plain(value: object) -> object:
    """What the encoder does not know by itself, of what ``check_json`` lets pass."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    return list(cast("Sequence[object]", value))


_encoder: Final = msgspec.json.Encoder(enc_hook=_plain)


def encode_json(body: Mapping[str, object]) -> bytes:
    """Encodes a body as compact UTF-8 JSON; text with lone surrogates, which UTF-8 has no form for, goes out escaped.

    Raises:
        ValueError: The body is not JSON (see ``check_json``).
    """
    try:
        check_json(body)
        return _encoder.encode(body)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(body, enc_hook=_plain)
        return json.dumps(plain, separators=(",", ":")).encode("ascii")
    except RecursionError:
        raise ValueError("the arguments are nested too deeply") from None


# --- what comes back -------------------------------------------------------------------------------------------------


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
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - now()
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
        status=_status_of(source),
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
