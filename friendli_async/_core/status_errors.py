"""What servers say when something is wrong, whatever shape they give it: one reading of it, one error made of it.

A status that is no good one, an error inside a stream and an error inside a good plain reply are all read here, so that
they cannot drift apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from friendli_async._core.error_json import (
    CODES,
    EXCERPT,
    STATUSES,
    TYPES,
    Fields,
    as_object,
    describes_error,
    find_message,
    first,
    normalize_name,
)
from friendli_async._core.error_text import decode_text, is_message, parse_body, sanitize
from friendli_async.errors import APIStatusError, status_class
from friendli_async.rate_limits import wait_asked
from friendli_async.replies import Headers, request_id_of

__all__ = ["error_of_payload", "excerpt", "status_error", "unframed"]


def excerpt(data: bytes) -> str:
    """The beginning of some bytes, as text."""
    return data[:EXCERPT].decode("utf-8", "replace")


def status_error(status: int, headers: Headers, body: bytes) -> APIStatusError:
    """The error of a reply whose status says so."""
    content_type = headers.get("content-type", "")
    value = _most_telling(parse_body(body, content_type))
    read = _read(value)
    words = read.words or _as_it_is(value) or _phrase(status)
    if 300 <= status < 400 and (there := _redirected_to(headers)):
        words = f"{words} (a redirect to {there})"
    return _error(words, read, status, decode_text(body, content_type), headers)


def error_of_payload(value: object, data: bytes, status: int, headers: Headers) -> APIStatusError:
    """The error that a reply with a good status, or an event of a stream, turned out to be.

    Args:
        value: What it says, decoded; None where it is no JSON.
        data: The same as bytes.
        status: The HTTP status that it came with: the error's own, where it names none.
        headers: The reply's headers.
    """
    read = _read(_most_telling(parse_body(data)) if value is None else value)
    return _error(read.words or sanitize(excerpt(data)), read, read.status or status, excerpt(data), headers)


def unframed(data: bytes, status: int, headers: Headers) -> tuple[APIStatusError | None, str]:
    """What was said where events were expected: the error that its JSON is, or None; and its words, for another error.

    Args:
        data: What came.
        status: The HTTP status that it came with.
        headers: The reply's headers.
    """
    value = _most_telling(parse_body(data))
    words = _read(value).message
    is_text = not isinstance(value, str) or is_message(data)
    if describes_error(value) and is_text and data.lstrip()[:1] != b"<":
        return error_of_payload(value, data, status, headers), words
    return None, words[:EXCERPT] or sanitize(excerpt(data))


def _error(words: str, read: _Read, status: int, body: str, headers: Headers) -> APIStatusError:
    return status_class(status)(
        words,
        status_code=status,
        code=read.code,
        type=read.type,
        body=body,
        retry_after=wait_asked(status, headers),
        request_id=request_id_of(headers) or read.request_id,
    )


def _most_telling(values: Sequence[object]) -> object:
    """Of several things that were said the first that tells what is wrong, or else the first that says something."""
    telling = (value for value in values if describes_error(value))
    wordy = (value for value in values if _read(value).message)
    return next(telling, None) or next(wordy, values[0] if values else None)


_ANSWERS: Final = frozenset({"choices", "content", "output", "data", "results", "usage"})


def _as_it_is(value: object) -> str:
    """JSON in which no words were found, if there is anything in it. An answer is nobody's to quote."""
    fields = as_object(value)
    if not fields or fields.keys() & _ANSWERS:
        return ""
    try:
        return sanitize(json.dumps(fields, ensure_ascii=False))[:EXCERPT]
    except RecursionError:
        return ""


def _redirected_to(headers: Headers) -> str:
    """Where to, without what may be secret in it: the query, and who it is; "" where these cannot be told apart."""
    place = re.sub(r"\A(https?://|//|)[^/?#]*@", r"\1", headers.get("location", "").strip(), flags=re.IGNORECASE)
    shown = re.split(r"[?#,\s]", place, maxsplit=1)[0]
    host = re.match(r"(?:https?:)?//([^/]*)", shown, re.IGNORECASE)
    cut_in_a_password = "@" in place and host is not None and re.search(r":(?!\d*$)", host[1])
    return "" if cut_in_a_password else sanitize(shown)[:EXCERPT]


def _phrase(status: int) -> str:
    from http import HTTPStatus  # aiohttp has loaded it

    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


# --- what an error tells beside its words ----------------------------------------------------------------------------


class _Read(msgspec.Struct):
    """An error as it was read."""

    message: str
    code: str | None = None
    type: str | None = None
    request_id: str | None = None
    status: int | None = None

    @property
    def words(self) -> str:
        """What it says; else its code or type, where they are words: a bare number says nothing."""
        return self.message or next((name for name in (self.code, self.type) if name and not name.isdecimal()), "")


def _read(value: object) -> _Read:
    words, objects = find_message(value)
    read = _Read(sanitize(words))
    for depth, fields in enumerate(objects, 1):
        read.code = read.code or _text(first(fields, *CODES))
        read.type = read.type or _text(first(fields, *TYPES))
        read.request_id = read.request_id or _text(fields.get("requestid"))
        read.status = read.status or _status_of(fields)
        if depth < len(objects):  # Google's: RESOURCE_EXHAUSTED
            read.type = read.type or _word(fields.get("status"))
        if words != fields.get("error"):  # OAuth's: invalid_token, with a description beside it
            read.code = read.code or _word(fields.get("error"))
    return read


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


_IN_VAIN: Final = frozenset({"error", "fail", "failed", "failure"})


def _word(value: object) -> str | None:
    """A name, as servers give their errors: no sentence, and not just that it was one."""
    is_name = isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*(?:[.:-]\w+)*", value) is not None
    return str(value) if is_name and str(value).lower() not in _IN_VAIN else None


_NAMING: Final = (*STATUSES, *CODES, "status", *TYPES, "error")
"""Where the status of an error is named, what is most likely to be one first."""

# What servers call their errors, as ``normalize_name`` spells it, and the status that each stands for; most of them are
# about with "error" or "exception" behind them, too.
_NAMES: Final[dict[int, str]] = {
    400: "invalidrequest badrequest badargument invalidargument failedprecondition outofrange validationexception"
    " contextlengthexceeded exceedcontextsize",
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
    500: "apierror internal internalservererror internalfailure servererror",
    501: "unimplemented",
    502: "badgateway",
    503: "overloaded serveroverloaded serviceunavailable unavailable",
    504: "gatewaytimeout deadlineexceeded timeouterror",
}
_NAMED_STATUSES: Final = {name: status for status, names in _NAMES.items() for name in names.split()}

# gRPC's codes, which its gateways put into JSON beside a list of details.
_GRPC_STATUSES: Final[dict[int, int]] = {3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 13: 500, 14: 503, 16: 401}


def _status_of(error: Fields) -> int | None:
    """The status that an error's code, type or status names, numbers first; field names are normalized."""
    named = [value for name in _NAMING if isinstance(value := error.get(name), str | int)]
    for value in named:
        found = re.fullmatch(r"([45]\d\d)\d*(?: \D*)?", str(value)[:40], re.ASCII)
        if found is not None:
            return int(found[1])
    if isinstance(code := error.get("code"), int) and isinstance(error.get("details"), list):
        return _GRPC_STATUSES.get(code)
    for value in named:  # of a namespace#Name the name
        name = normalize_name(str(value).rpartition("#")[2].replace(" ", ""))
        for each in (name, name.removesuffix("error").removesuffix("exception")):
            if each in _NAMED_STATUSES:
                return _NAMED_STATUSES[each]
    return None
