"""What servers say when something is wrong, whatever shape they give it: one reading of it, one error made of it.

A status that is no good one, an error inside a stream and an error inside a good plain reply are all read here, so that
they cannot drift apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Final, cast

import msgspec

from friendli_async._core.error_texts import clean, said, text_of
from friendli_async._core.error_words import EXCERPT, WORDS, is_telling, parsed, plain_name, prose, says_text
from friendli_async.errors import APIStatusError, status_class
from friendli_async.rate_limits import date_of, duration, parts, sent_at, wait_of
from friendli_async.replies import Headers, request_id_of

__all__ = ["excerpt", "retry_after", "said_error", "status_error", "unframed"]


def excerpt(data: bytes) -> str:
    """The beginning of some bytes, as text."""
    return bytes(data[:EXCERPT]).decode("utf-8", "replace")


# Where servers say how long to wait, and in which unit; the first that says it counts.
_WAITS: Final = (
    ("retry-after-ms", 0.001),
    ("x-ms-retry-after-ms", 0.001),
    ("retry-after", 1.0),
    ("x-retry-after", 1.0),
    ("x-ratelimit-retry-after", 1.0),
)


def retry_after(headers: Headers, now: Callable[[], float] = time) -> float | None:
    """Seconds that the server asks to wait; None where it asks nothing, or nonsense.

    ``retry-after-ms``, or ``Retry-After`` in seconds or as a date (RFC 9110 10.2.3), or as servers write it that do not
    know that: ``1m30s``, a date of RFC 3339, seconds since 1970. Of one that was sent twice, by a server and a proxy,
    the longer wait counts: neither may be undercut.
    """
    for name, unit in _WAITS:
        text = headers.get(name)
        if text is not None:
            sent = sent_at(headers, now)
            waits = (_seconds(part, unit, sent) for part in parts(text))
            if told := [wait for wait in waits if wait is not None]:
                return max(told)
    return None


def _wait_asked(status: int, headers: Headers) -> float | None:
    """The Retry-After; without one, when the limit that a 429 is about resets."""
    asked = retry_after(headers)
    return wait_of(headers) if asked is None and status == 429 else asked


def _seconds(text: str, unit: float, sent: float) -> float | None:
    text = text.partition(";")[0].strip(" \t\"'")
    if re.fullmatch(r"\+?(?:\d+\.?\d*|\.\d+)(?:[eE]\+?\d+)?|-0+", text, re.ASCII):
        seconds = abs(float(text)) * unit
        for since_1970 in (seconds, seconds / 1000):
            if 1e9 <= since_1970 < 1e10:  # a point in time, of this century or one of the next two
                seconds = max(0.0, since_1970 - sent)
        return seconds if math.isfinite(seconds) else None
    if (seconds_told := duration(text)) is not None:
        return seconds_told
    date = date_of(text)
    return None if date is None else max(0.0, date - sent)  # a date that has passed: now


def status_error(status: int, headers: Headers, body: bytes) -> APIStatusError:
    """The error of a reply whose status says so."""
    content_type = headers.get("content-type", "")
    value = _most_telling(said(body, content_type))
    fields = _read(value)
    words = fields.message or fields.named or _unread(value) or _phrase(status)
    there = _redirected_to(headers) if 300 <= status < 400 else ""
    return status_class(status)(
        f"{words} (a redirect to {there})" if there else words,
        status_code=status,
        code=fields.code,
        type=fields.type,
        body=text_of(body, content_type),
        retry_after=_wait_asked(status, headers),
        request_id=request_id_of(headers) or fields.request_id,
    )


def _most_telling(values: Sequence[object]) -> object:
    """Of several things that were said the first that tells what is wrong, or else the first that says something."""
    telling = (value for value in values if is_telling(value))
    wordy = (value for value in values if _read(value).message)
    return next(telling, None) or next(wordy, values[0] if values else None)


def _unread(value: object) -> str:
    """JSON in which no words were found, as it is, if there is anything in it. An answer is nobody's to quote."""
    if not isinstance(value, dict) or cast("_Object", value).keys() & _ANSWERS:
        return ""
    try:
        return clean(json.dumps(value, ensure_ascii=False))[:EXCERPT] if value else ""
    except (ValueError, RecursionError):
        return ""


def _redirected_to(headers: Headers) -> str:
    """Where to, without what may be secret in it."""
    place = re.match(r"(https?://|//)?(?:[^/?#@]*@)?([^?#,\s]*)", headers.get("location", "").strip(), re.IGNORECASE)
    return clean("".join(part or "" for part in place.groups()))[:EXCERPT] if place is not None else ""


def _phrase(status: int) -> str:
    from http import HTTPStatus  # aiohttp has loaded it

    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def said_error(value: object, data: bytes, status: int, headers: Headers) -> APIStatusError:
    """The error that a reply with a good status, or an event of a stream, turned out to be.

    Args:
        value: What it says, decoded; None where it is no JSON.
        data: The same as bytes.
        status: The HTTP status that it came with: the error's own, where it names none.
        headers: The reply's headers.
    """
    fields = _read(_most_telling(said(data)) if value is None else value)
    status = fields.status or status
    return status_class(status)(
        fields.message or fields.named or clean(excerpt(data)),
        status_code=status,
        code=fields.code,
        type=fields.type,
        body=excerpt(data),
        retry_after=_wait_asked(status, headers),
        request_id=request_id_of(headers) or fields.request_id,
    )


def unframed(data: bytes, status: int, headers: Headers) -> tuple[APIStatusError | None, str]:
    """What was said where events were expected: the error that its JSON is, or None; and its words, for another error.

    Args:
        data: What came.
        status: The HTTP status that it came with.
        headers: The reply's headers.
    """
    value = _most_telling(said(data))
    words = _read(value).message
    is_text = not isinstance(value, str) or says_text(data)
    if is_telling(value) and is_text and data.lstrip()[:1] != b"<":
        return said_error(value, data, status, headers), words
    return None, words[:EXCERPT] or clean(excerpt(data))


class _Fields(msgspec.Struct):
    message: str = ""
    code: str | None = None
    type: str | None = None
    request_id: str | None = None
    status: int | None = None

    @property
    def named(self) -> str:
        """Code or type, where they are words: a bare number says nothing."""
        return next((name for name in (self.code, self.type) if name and not name.isdecimal()), "")


_NESTING: Final = ("error", "fault")
"""Where an error is an object of its own: its words go before those beside it."""
_CODES: Final = ("code", "errorcode", "errcode")
_TYPES: Final = ("type", "errortype")
_STATUSES: Final = ("statuscode", "httpstatuscode", "httpcode", "httpstatus", *_CODES, "status", *_TYPES, "error")
_LABELS: Final = frozenset({*_STATUSES, "object", "requestid"})
_ANSWERS: Final = frozenset({"choices", "content", "output", "data", "results", "usage"})
_PLACES: Final = ("field", "param", "target")
_DEEPEST: Final = 8
_MOST: Final = 20
_IN_VAIN: Final = frozenset({"error", "fail", "failed", "failure"})

_Object = Mapping[str, object]


def _read(value: object) -> _Fields:
    """Reads an error of any of the shapes that are about: see ``WORDS``; nested, in a list, or flat."""
    message, objects = _find_below(value)
    fields = _Fields(
        message=clean(message or _by_field(value) or (prose(cast("_Object", value)) if isinstance(value, dict) else ""))
    )
    for depth, found in enumerate(objects, 1):
        fields.code = fields.code or _text(_first(found, *_CODES))
        fields.type = fields.type or _text(_first(found, *_TYPES))
        fields.request_id = fields.request_id or _text(_first(found, "requestid"))
        fields.status = fields.status or _status_of(found)
        if depth < len(objects):  # Google's: RESOURCE_EXHAUSTED
            fields.type = fields.type or _word(found.get("status"))
        if message != found.get("error"):  # OAuth's: invalid_token, with a description beside it
            fields.code = fields.code or _word(found.get("error"))
    return fields


def _find(value: object, depth: int = 0) -> tuple[str, list[_Object]]:
    """The words of an error, and the objects that they stand in, the innermost first; "" where there are none."""
    if depth > _DEEPEST:
        return "", []
    if isinstance(value, str):
        inside = _inside(value)
        return (value, []) if inside is None else _find(inside, depth + 1)
    if isinstance(value, list):
        return _find_in_list(cast("list[object]", value), depth)
    if not isinstance(value, dict):
        return "", []
    fields: dict[str, object] = {}
    for name, item in cast("_Object", value).items():
        fields.setdefault(plain_name(name), item)
    nested = [name for name in _NESTING if isinstance(fields.get(name), dict | list)]
    objects: list[_Object] = []
    for name in dict.fromkeys((*nested, *WORDS)):
        item = fields.get(name)
        words, inner = (str(item), []) if _is_number(item) and item else _find(item, depth + 1)
        if not words and name == "errors":  # {"errors": {"model": ["This field is required."]}}
            words = _by_field(item)
        if words or name in nested:
            objects += inner
        if words:
            return _in_full(name, words, fields), [*objects, fields]
    texts = (_first(cast("_Object", item), "value", "text") for item in fields.values() if isinstance(item, dict))
    return next((text for text in texts if isinstance(text, str)), ""), [*objects, fields]


def _in_full(name: str, words: str, fields: _Object) -> str:
    """The words of an object with those that belong to them: RFC 9457's title, or what a router's provider said."""
    title, routed = fields.get("title"), fields.get("metadata")
    if name == "detail" and isinstance(title, str) and title and title not in words:
        return f"{title.rstrip('.: ')}: {words}"
    raw = cast("_Object", routed).get("raw") if isinstance(routed, dict) else None
    return f"{words}: {raw[:EXCERPT]}" if isinstance(raw, str) and raw else words


def _find_in_list(items: list[object], depth: int) -> tuple[str, list[_Object]]:
    """``[{"loc": ["body", "n"], "msg": "..."}]``, the 422 body, as one line; so what is told otherwise."""
    lines: list[str] = []
    objects: list[_Object] = []
    for item in items[:_MOST]:
        words, inner = _find(item, depth + 1)
        where = _place(cast("_Object", item)) if isinstance(item, dict) else ""
        if words:
            lines.append(f"{where}: {words}" if where else words)
        if len(items) == 1 and not where:
            objects = inner
    return "; ".join(lines), objects


def _place(item: _Object) -> str:
    """Where an entry of a list of faults says that its fault is."""
    if isinstance(loc := item.get("loc"), list):
        return ".".join(str(part) for part in cast("list[object]", loc)[:_MOST])
    return next((place for name in _PLACES if isinstance(place := item.get(name), str)), "")


def _find_below(value: object, depth: int = 0) -> tuple[str, list[_Object]]:
    """The words of an object that has none where others have them: those of an object in it."""
    words, objects = _find(value)
    if words or not isinstance(value, dict) or depth > _DEEPEST:
        return words, objects
    for item in cast("_Object", value).values():
        inside: object = _inside(item) if isinstance(item, str) else item
        if isinstance(inside, list):
            inside = next(filter(_is_object, cast("list[object]", inside)), None)
        words, inner = _find_below(inside, depth + 1) if _is_object(inside) else ("", [])
        if words:
            return words, [*inner, *objects]
    return "", objects


def _by_field(value: object) -> str:
    """``{"model": ["This field is required."]}``: what says nothing but words, field by field."""
    if not isinstance(value, dict):
        return ""
    said = {name: item for name, item in cast("_Object", value).items() if plain_name(name) not in _LABELS}
    lines: list[str] = []
    for name, item in said.items():
        words = cast("list[object]", item) if isinstance(item, list) else [item]
        if not all(isinstance(word, str) for word in words):
            return ""
        lines += [f"{name}: {word}" for word in words[:_MOST] if word]
    return "; ".join(lines)


def _inside(text: str) -> object:
    """The error that a text is, if it is one: servers that pass on what another said put its JSON into theirs."""
    value = parsed(text.encode("utf-8", "replace")) if text.lstrip()[:1] in {"{", "["} else None
    return value if is_telling(value) else None


def _first(fields: _Object, *names: str) -> object:
    return next((value for name in names if (value := fields.get(name)) is not None), None)


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


def _word(value: object) -> str | None:
    """A name, as servers give their errors: no sentence, and not just that it was one."""
    is_name = isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*(?:[.:-]\w+)*", value) is not None
    return str(value) if is_name and str(value).lower() not in _IN_VAIN else None


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What servers call their errors, as ``plain_name`` spells it, and the status that each stands for.
_NAMES: Final[dict[int, str]] = {
    400: "invalidrequest invalidrequesterror badrequest badrequesterror badargument invalidargument failedprecondition"
    " outofrange validationexception contextlengthexceeded exceedcontextsizeerror",
    401: "authenticationerror invalidapikey unauthorized unauthenticated invalidtoken expiredtoken",
    402: "billingerror paymentrequired insufficientcredits",
    403: "permissionerror permissiondenied permissiondeniederror forbidden accessdenied accessdeniedexception",
    404: "notfound notfounderror modelnotfound resourcenotfoundexception",
    408: "requesttimeout",
    409: "conflict conflicterror aborted alreadyexists",
    413: "requesttoolarge payloadtoolarge",
    422: "unprocessableentity unprocessableentityerror validationerror",
    429: "ratelimiterror ratelimitexceeded ratelimited insufficientquota quotaexceeded resourceexhausted"
    " toomanyrequests throttling throttlingexception",
    500: "apierror internal internalerror internalservererror internalfailure servererror",
    501: "unimplemented",
    502: "badgateway",
    503: "overloaded overloadederror serveroverloaded serviceunavailable serviceunavailableexception unavailable"
    " unavailableerror",
    504: "gatewaytimeout deadlineexceeded timeouterror",
}
_NAMED_STATUSES: Final = {name: status for status, names in _NAMES.items() for name in names.split()}

# gRPC's codes, which its gateways put into JSON beside a list of details.
_GRPC_STATUSES: Final[dict[int, int]] = {3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 13: 500, 14: 503, 16: 401}


def _status_of(error: _Object) -> int | None:
    """The status that an error's code, type or status names, numbers first; its fields are spelt by ``plain_name``."""
    named = [value for name in _STATUSES if isinstance(value := error.get(name), str | int)]
    for value in named:
        found = re.fullmatch(r"([45]\d\d)\d*(?: \D*)?", str(value)[:40], re.ASCII)
        if found is not None:
            return int(found[1])
    if isinstance(code := error.get("code"), int) and isinstance(error.get("details"), list):
        return _GRPC_STATUSES.get(code)
    for value in named:  # of a namespace#Name the name
        if status := _NAMED_STATUSES.get(plain_name(str(value).rpartition("#")[2].replace(" ", ""))):
            return status
    return None
