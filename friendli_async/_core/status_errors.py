"""Builds an ``APIStatusError`` from what a server sends, in whatever shape.

Error responses (``Call._error_response``), errors in a stream (``Dialect.decode``, ``EventReader._end``) and errors in
a plain reply with a good status (``plain_reply``) are all parsed here, so that they cannot diverge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from friendli_async._core.error_json import (
    CODE_FIELDS,
    EXCERPT_LENGTH,
    STATUS_FIELDS,
    TYPE_FIELDS,
    find_message,
    first_value,
    is_error_alone,
    normalize_name,
)
from friendli_async._core.error_text import decode_text, is_message, parse_body, sanitize
from friendli_async._json import Fields, as_object, json_or_none
from friendli_async.errors import APIStatusError, FriendliError, ResponseDecodeError, status_class
from friendli_async.rate_limits import retry_delay_of
from friendli_async.replies import Headers, ReplyHead, request_id_of


def excerpt(data: bytes) -> str:
    """Returns the beginning of some bytes as text."""
    return data[:EXCERPT_LENGTH].decode("utf-8", "replace")


def status_error(head: ReplyHead, body: bytes, proxy: str | None = None) -> APIStatusError:
    """Builds the error of a reply with an error status; ``proxy`` is the address of a proxy that may have sent it."""
    from http.client import responses  # aiohttp has loaded it

    status, headers = head
    content_type = headers.get("content-type", "")
    value = _first_error(parse_body(body, content_type))
    parsed, text = _parse(value), decode_text(body, content_type)
    message = parsed.summary or _as_json(value) or f"HTTP {status} {responses.get(status, '')}".rstrip()
    if 300 <= status < 400 and (target := _shown_location(headers)):
        message = f"{message} (a redirect to {target})"
    error = _build(message, parsed, status, text, headers)
    is_json = text.lstrip("\ufeff \t\r\n")[:1] in {"{", "["}  # as the API's own errors are
    if proxy is not None and (status == 407 or not is_json):
        error._after = f" ({'from' if status == 407 else 'through'} the proxy {proxy})"  # pyright: ignore[reportPrivateUsage]  # our own addition
    return error


def error_of_payload(value: object, data: bytes, head: ReplyHead, *, is_named: bool = False) -> APIStatusError:
    """Builds the error that a reply with a good status, or an event of a stream, contains.

    ``value`` is the decoded data, or None if it is not JSON. An error that has no status has that of the reply. If the
    event itself is named an error, a text or number in it is parsed like a field ``error``, which may have a status.
    """
    value = _first_error(parse_body(data)) if value is None else value
    parsed = _parse({"error": value} if is_named and isinstance(value, str | int) else value)
    message = parsed.summary or sanitize(excerpt(data)) or "the server reported an error without a message"
    return _build(message, parsed, parsed.status or head.status, excerpt(data), head.headers)


def parse_unframed(data: bytes, head: ReplyHead) -> tuple[APIStatusError | None, str]:
    """Parses data received in place of events: returns the error that it is, or None, and its message."""
    value = _first_error(parse_body(data))
    message = _parse(value).message
    is_text = not isinstance(value, str) or is_message(data) or json_or_none(data) == value
    if is_error_alone(value) and is_text and data.lstrip()[:1] != b"<":
        return error_of_payload(value, data, head), message
    return None, message[:EXCERPT_LENGTH] or sanitize(excerpt(data))


def unexpected_content(data: bytes, head: ReplyHead, expected: str, subtype: str) -> FriendliError:
    """Builds the error of a reply with a good status that is not in the format of the API.

    It is an ``APIStatusError`` if the data is an error, in JSON or as plain text. Markup is not: most likely another
    server sent it, such as the login page of a gateway. ``expected`` names the format, such as ``JSON``, whose content
    type contains ``subtype``.
    """
    error, text = parse_unframed(data, head)
    if error is not None:
        return error
    actual = head.headers.get("content-type", "")
    if actual and subtype not in actual.lower():
        message = f"the server answered with {actual} instead of {expected}"
    else:
        message = f"the server's reply is not {expected}"
    return ResponseDecodeError(f"{message}: {text!r}" if text else message, excerpt=excerpt(data))


def _build(message: str, parsed: _Parsed, status: int, body: str, headers: Headers) -> APIStatusError:
    return status_class(status)(
        message,
        status_code=status,
        code=parsed.code,
        type=parsed.type,
        body=body,
        retry_after=retry_delay_of(status, headers),
        request_id=request_id_of(headers) or parsed.request_id,
    )


def _first_error(values: Sequence[object]) -> object:
    """Returns the first value that is an error, or else the first that has a message, or else the first."""
    errors = (value for value in values if is_error_alone(value))
    with_message = (value for value in values if _parse(value).message)
    return next(errors, None) or next(with_message, values[0] if values else None)


_REPLY_FIELDS: Final = frozenset({"choices", "content", "output", "data", "results", "usage"})


def _as_json(value: object) -> str:
    """Returns JSON without a message as text; "" if it is empty or contains a reply, which must not be quoted."""
    fields = as_object(value)
    if not fields or fields.keys() & _REPLY_FIELDS:
        return ""
    try:
        return sanitize(json.dumps(fields, ensure_ascii=False))[:EXCERPT_LENGTH]
    except RecursionError:
        return ""


def _shown_location(headers: Headers) -> str:
    """Returns the location of a redirect without query and credentials; "" if these cannot be separated."""
    location = re.sub(r"\A(https?://|//|)[^/?#]*@", r"\1", headers.get("location", "").strip(), flags=re.IGNORECASE)
    shown = re.split(r"[?#,\s]", location, maxsplit=1)[0]
    host = re.match(r"(?:https?:)?//([^/]*)", shown, re.IGNORECASE)
    may_hold_password = "@" in location and host is not None and re.search(r":(?!\d*$)", host[1])
    return "" if may_hold_password else sanitize(shown)[:EXCERPT_LENGTH]


# --- code, type, status ----------------------------------------------------------------------------------------------


class _Parsed(msgspec.Struct):
    """The parts of an error in JSON."""

    message: str
    code: str | None = None
    type: str | None = None
    request_id: str | None = None
    status: int | None = None

    @property
    def summary(self) -> str:
        """The message, or else the code or type, unless it is a bare number."""
        return self.message or next((name for name in (self.code, self.type) if name and not name.isdecimal()), "")


def _parse(value: object) -> _Parsed:
    message, objects = find_message(value)
    parsed = _Parsed(sanitize(message))
    for depth, fields in enumerate(objects, 1):
        parsed.code = parsed.code or _as_text(first_value(fields, *CODE_FIELDS))
        parsed.type = parsed.type or _as_text(first_value(fields, *TYPE_FIELDS))
        parsed.request_id = parsed.request_id or _as_text(fields.get("requestid"))
        parsed.status = parsed.status or _status_of(fields)
        if depth < len(objects):  # Google: RESOURCE_EXHAUSTED
            parsed.type = parsed.type or _as_name(fields.get("status"))
        if message != fields.get("error"):  # OAuth: invalid_token, with a separate description
            parsed.code = parsed.code or _as_name(fields.get("error"))
    return parsed


def _as_text(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) else sanitize(str(value))


_GENERIC_NAMES: Final = frozenset({"error", "fail", "failed", "failure"})


def _as_name(value: object) -> str | None:
    """Returns a value if it is the name of an error: an identifier, and not just ``error`` or ``failed``; else None."""
    is_name = isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*(?:[.:-]\w+)*", value) is not None
    return str(value) if is_name and str(value).lower() not in _GENERIC_NAMES else None


_STATUS_SOURCES: Final = (*STATUS_FIELDS, *CODE_FIELDS, "status", *TYPE_FIELDS, "error")
"""The fields from which the status of an error can be derived, the most reliable first."""

# The status of servers' error names, as ``normalize_name`` spells them; most of them also occur with the suffix "error"
# or "exception".
_NAMES_BY_STATUS: Final[dict[int, str]] = {
    400: "invalidrequest badrequest badargument invalidargument failedprecondition outofrange validationexception"
    " contextlengthexceeded exceedcontextsize"
    # of a failed response
    " invalidprompt invalidimage invalidimageformat invalidbase64image invalidimageurl imagetoolarge imagetoosmall"
    " imageparse imagecontentpolicyviolation invalidimagemode imagefiletoolarge unsupportedimagemediatype"
    " emptyimagefile failedtodownloadimage imagefilenotfound",
    401: "authentication invalidapikey unauthorized unauthenticated invalidtoken expiredtoken",
    402: "billing paymentrequired insufficientcredits",
    403: "permission permissiondenied forbidden accessdenied",
    404: "notfound modelnotfound resourcenotfound",
    408: "requesttimeout",
    409: "conflict aborted alreadyexists",
    413: "requesttoolarge payloadtoolarge",
    422: "unprocessableentity validationerror",
    429: "ratelimit ratelimitexceeded ratelimited insufficientquota quotaexceeded resourceexhausted toomanyrequests"
    " throttling",
    500: "apierror internal internalserver internalfailure servererror",
    501: "unimplemented",
    502: "badgateway",
    503: "overloaded serveroverloaded serviceunavailable unavailable",
    504: "gatewaytimeout deadlineexceeded timeouterror vectorstoretimeout",
}
_STATUS_BY_NAME: Final = {name: status for status, names in _NAMES_BY_STATUS.items() for name in names.split()}

# gRPC status codes, which its gateways put into JSON next to a list ``details``.
_GRPC_STATUSES: Final[dict[int, int]] = {3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 13: 500, 14: 503, 16: 401}


def _status_of(error: Fields) -> int | None:
    """Derives the HTTP status from the code, type or status of an error, numbers first; field names are normalized."""
    values = [value for name in _STATUS_SOURCES if isinstance(value := error.get(name), str | int)]
    for value in values:
        found = re.fullmatch(r"([45]\d\d)(?:\d*| \D*)", str(value)[:40], re.ASCII)
        if found is not None:
            return int(found[1])
    if isinstance(code := error.get("code"), int) and isinstance(error.get("details"), list):
        return _GRPC_STATUSES.get(code)
    for value in values:  # of "namespace#Name" the name
        name = normalize_name(str(value).rpartition("#")[2].replace(" ", ""))
        for each in (name, name.removesuffix("error").removesuffix("exception")):
            if each in _STATUS_BY_NAME:
                return _STATUS_BY_NAME[each]
    return None
