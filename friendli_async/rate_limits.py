"""Parses rate limits and retry delays from response headers, under all names in use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from time import time
from typing import Final

import msgspec

from friendli_async._help import document_fields
from friendli_async._pydantic import PydanticField

__all__ = ["RateLimit"]


@document_fields
class RateLimit(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """The rate limits of a server as of one reply. A value is None if the server did not send it, or it is malformed.

    If a server sends several limits of a kind, such as per minute and per day, this is the one with the least left.
    """

    limit_requests: int | None = None
    """Requests allowed per window."""
    remaining_requests: int | None = None
    """Requests remaining in the window."""
    reset_requests: float | None = None
    """Seconds from the reply until the limit is fully available again (or partly: servers differ)."""
    limit_tokens: int | None = None
    """Tokens allowed per window."""
    remaining_tokens: int | None = None
    """Tokens remaining in the window."""
    reset_tokens: float | None = None
    """Seconds from the reply until the limit is fully available again."""
    limit_steps: int | None = None
    """Steps of image generation allowed per window."""
    remaining_steps: int | None = None
    """Steps remaining in the window."""
    reset_steps: float | None = None
    """Seconds from the reply until the limit is fully available again."""


_Windows = dict[tuple[str, ...], dict[str, float]]
"""The limits of a server, each with those of ``_FIELDS`` that were sent, by the words of the header name other than
these: ``("tokens", "minute")``."""

_MAX_VALUES: Final = 20
_FIELDS: Final = ("limit", "remaining", "reset")
_ABBREVIATIONS: Final = {"q": "limit", "r": "remaining", "t": "reset"}  # the names in a structured list
# Patterns are strings, compiled on first use, so that they do not slow down the import of the library.
_NAME: Final = r"(?:[a-z]+-)?rate-?limit-(.+)"  # x-, anthropic-, or none
# The headers for the retry delay and their units in seconds; the first valid one applies.
_DELAY_HEADERS: Final = (
    ("retry-after-ms", 0.001),
    ("x-ms-retry-after-ms", 0.001),
    ("retry-after", 1.0),
    ("x-retry-after", 1.0),
    ("x-ratelimit-retry-after", 1.0),
)
_NUMBER: Final = r"(?ai)[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
_DURATION_PART: Final = r"([0-9]+(?:\.[0-9]+)?)(ms|[uµ]s|ns|[dhms]) *"
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}
# The comma between the values of a header that was sent several times, but not that of a date.
_SEPARATOR: Final = r"(?i)(?<!mon)(?<!tue)(?<!wed)(?<!thu)(?<!fri)(?<!sat)(?<!sun)(?<!day),"


def rate_limit_of(headers: Mapping[str, str]) -> RateLimit | None:
    """Parses the rate limits from the headers of a reply; returns None if there are none. Never raises.

    It supports ``x-ratelimit-limit-requests`` (OpenAI, Friendli), ``anthropic-ratelimit-requests-limit``,
    ``x-ratelimit-limit`` (GitHub), also with suffixes like ``-minute``, and ``RateLimit`` of the IETF's drafts
    (draft-ietf-httpapi-ratelimit-headers: separate fields up to 02, one list up to 07, structured fields from 08).
    """
    windows = _windows(headers)
    fields: dict[str, float] = {}
    for kind in ("requests", "tokens", "steps"):
        of_kind = [window for names, window in windows.items() if _kind(names) == kind]
        if of_kind:
            for field, number in min(of_kind, key=_scarcity).items():
                fields[f"{field}_{kind}"] = number if field == "reset" else int(number)
    return RateLimit(**fields) if fields else None  # type: ignore[arg-type]  # the name determines the type of each value


def retry_delay_of(status: int, headers: Mapping[str, str]) -> float | None:
    """Returns the retry delay of an error response in seconds; None if there is none, or it is malformed.

    It is taken from ``retry-after-ms`` or ``Retry-After``, in seconds or as a date (RFC 9110 10.2.3), or in nonstandard
    forms: ``1m30s``, a date of RFC 3339, seconds since 1970. For a 429 without these, it is when the limit resets.
    """
    for name, unit in _DELAY_HEADERS:
        if text := headers.get(name):
            delay = _longest_delay(text, unit, headers)
            if delay is not None and delay >= 0:
                return delay
    return _reset_delay(headers) if status == 429 else None


def _scarcity(window: Mapping[str, float]) -> tuple[float, float]:
    """Returns the sort key of limits, the tightest first: the share that remains, then the amount."""
    limit, remaining = window.get("limit"), window.get("remaining", math.inf)
    share = remaining / limit if limit else (math.inf if remaining else 0.0)
    return share, remaining


def _reset_delay(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds until all exhausted limits reset, or all limits if none has a remaining amount."""
    windows = _windows(headers).values()
    has_remaining = any("remaining" in window for window in windows)
    blocking = (window for window in windows if not has_remaining or window.get("remaining", 1) < 1)
    return max((window["reset"] for window in blocking if "reset" in window), default=None)


def _kind(names: Iterable[str]) -> str:
    if any(name.startswith("token") for name in names):
        return "tokens"
    return "steps" if "steps" in names else "requests"


def _windows(headers: Mapping[str, str]) -> _Windows:
    windows: _Windows = {}
    for header, value in headers.items():
        name = header.lower()
        if name in {"ratelimit", "ratelimit-policy"}:
            _parse_list(value, windows)
        elif found := re.fullmatch(_NAME, name):
            names = [part for part in re.split(r"[-_]", found[1]) if part != "after"]
            field = next((each for each in _FIELDS if each in names), "")
            unit = 0.001 if "ms" in names else 1.0
            number = (
                _longest_delay(value, unit, headers)
                if field == "reset"
                else _parse_amount(value, least=field == "remaining")
            )
            if field and number is not None:
                rest = tuple(part for part in names if part not in {field, "ms"})
                windows.setdefault(rest, {})[field] = max(0.0, number)
    return windows


def _parse_list(value: str, windows: _Windows) -> None:
    """Parses ``"default";r=50;t=30`` or ``limit=100, remaining=50, reset=5``; for a policy ``"default";q=100;w=60``."""
    names: tuple[str, ...] = ()
    for item in value.split(","):
        policy, *_ = parameters = item.split(";")
        if "=" not in policy:
            names = (policy.strip().strip('"').lower(),)
        for name, _, text in (parameter.partition("=") for parameter in parameters):
            field, number = name.strip().lower(), _parse_number(text)
            field = _ABBREVIATIONS.get(field, field)
            if field in _FIELDS and number is not None:
                windows.setdefault(names, {})[field] = max(0.0, number)


def _split_values(text: str) -> list[str]:
    """Splits the values of a header that may have been sent several times, the first of them if there are many."""
    return [part.strip() for part in re.split(_SEPARATOR, text, maxsplit=_MAX_VALUES)[:_MAX_VALUES]]


def _parse_amount(text: str, *, least: bool) -> float | None:
    """Parses a number; of several (sent twice, or with a policy: ``100, 100;w=60``) the first, or the least."""
    numbers = [_parse_number(part.partition(";")[0]) for part in text.split(",")]
    valid = [number for number in numbers if number is not None]
    return (min(valid) if least else valid[0]) if valid else None


def _parse_number(text: str) -> float | None:
    text = text.strip()
    number = float(text) if re.fullmatch(_NUMBER, text) else math.inf
    return number if math.isfinite(number) else None


def _longest_delay(text: str, unit: float, headers: Mapping[str, str]) -> float | None:
    """Parses seconds from the reply; of several (sent by a server and a proxy) the most, which satisfies all."""
    delays = (_delay(part, unit, headers) for part in _split_values(text))
    return max((seconds for seconds in delays if seconds is not None), default=None)


def _delay(text: str, unit: float, headers: Mapping[str, str]) -> float | None:
    """Parses ``1.5``, ``6m0s``, ``120ms``, seconds or milliseconds since 1970, or a date of RFC 3339 or HTTP.

    The result is negative only for a negative number; a time in the past is 0.
    """
    text = text.partition(";")[0].strip(" \t\"'")
    if (number := _parse_number(text)) is not None:
        seconds = number * unit
        for since_1970 in (seconds, seconds / 1000):
            if 1e9 <= since_1970 < 1e10:  # a time since 1970, from 2001 to 2286
                return max(0.0, since_1970 - _sent_at(headers))
        return seconds
    if (duration := _parse_duration(text.lower())) is not None:
        return duration
    date = _parse_date(text)
    return None if date is None else max(0.0, date - _sent_at(headers))


def _parse_duration(text: str) -> float | None:
    """Parses ``6m0s`` or ``120ms`` into seconds; returns None for anything else."""
    if len(text) > 40 or not re.fullmatch(rf"(?:{_DURATION_PART})+", text):
        return None
    return sum(float(count) * _SECONDS[unit] for count, unit in re.findall(_DURATION_PART, text))


def _sent_at(headers: Mapping[str, str]) -> float:
    """Returns when the reply was sent, by the server's clock like the times in it, or else by ours."""
    date = _parse_date(_split_values(headers.get("date", ""))[0])
    return time() if date is None else date


def _parse_date(text: str) -> float | None:
    """Parses a date of HTTP (RFC 9110 5.6.7) or RFC 3339 into seconds since 1970; UTC if it has no time zone."""
    from email.utils import parsedate_to_datetime  # aiohttp loads it; importing the library alone does not need it

    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = read(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            pass
    return None
