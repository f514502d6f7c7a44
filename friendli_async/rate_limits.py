"""Rate limits, and how long to wait, as servers tell them in headers, under all the names that are about."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from time import time
from typing import Final

import msgspec

from friendli_async._help import described

__all__ = ["RateLimit"]


@described
class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a server's limits, as of the reply that told it. None is what it did not tell, or nonsense.

    Where a server tells several limits of a kind, as per minute and per day, it is the one of which the least is left.
    """

    limit_requests: int | None = None
    """Requests that are allowed in a window."""
    remaining_requests: int | None = None
    """Requests that are left of them."""
    reset_requests: float | None = None
    """Seconds, from the reply on, until there are all again (or some: servers differ)."""
    limit_tokens: int | None = None
    """Tokens that are allowed in a window."""
    remaining_tokens: int | None = None
    """Tokens that are left of them."""
    reset_tokens: float | None = None
    """Seconds, from the reply on, until there are all again."""
    limit_steps: int | None = None
    """Steps of image generation that are allowed in a window."""
    remaining_steps: int | None = None
    """Steps that are left of them."""
    reset_steps: float | None = None
    """Seconds, from the reply on, until there are all again."""


class _Window(msgspec.Struct):
    """One limit of a server's."""

    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None

    @property
    def scarcity(self) -> tuple[float, float]:
        """Sorts the tightest limit first: by the share that is left, then by what is left."""
        remaining = math.inf if self.remaining is None else self.remaining
        share = remaining / self.limit if self.limit else (math.inf if remaining else 0.0)
        return share, remaining


_Windows = dict[tuple[str, ...], _Window]
"""By what their headers name beside limit, remaining and reset: ``("tokens", "minute")``."""

_KINDS: Final = ("requests", "tokens", "steps")
_FIELDS: Final = ("limit", "remaining", "reset")
_SHORT: Final = {"q": "limit", "r": "remaining", "t": "reset"}  # how a structured list names them
# Patterns are compiled by re when they are first used: the import of the library does not wait for them.
_NAME: Final = r"(?:[a-z]+-)?rate-?limit-(.+)"  # x-, anthropic-, or none
# Where servers say how long to wait, and in which unit; the first that says it counts.
_WAITS: Final = (
    ("retry-after-ms", 0.001),
    ("x-ms-retry-after-ms", 0.001),
    ("retry-after", 1.0),
    ("x-retry-after", 1.0),
    ("x-ratelimit-retry-after", 1.0),
)
_NUMBER: Final = r"(?ai)[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
_UNIT: Final = r"(ms|milli(?:second)?s?|[uµ]s|ns|d(?:ays?)?|h(?:ours?|rs?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)"
_PART: Final = rf"([0-9]+(?:\.[0-9]+)?) *{_UNIT}(?![a-z]) *"
_DURATION: Final = rf"(?:{_PART})+"
_DURATION_ISO: Final = r"(?a)p(?=.)(?:\d+d)?(?:t(?=\d)(?:\d+h)?(?:\d+m)?(?:\d+(?:\.\d+)?s)?)?"
# By how a unit begins, the longest first.
_SECONDS: Final = {"mill": 1e-3, "ms": 1e-3, "ns": 1e-9, "u": 1e-6, "µ": 1e-6, "d": 86400, "h": 3600, "m": 60, "s": 1}
# What stands between the values of a header that was sent several times; a date has a comma of its own.
_BETWEEN: Final = r"(?i)(?<!mon)(?<!tue)(?<!wed)(?<!thu)(?<!fri)(?<!sat)(?<!sun)(?<!day),"


def rate_limit_of(headers: Mapping[str, str]) -> RateLimit | None:
    """Reads the limits out of a reply's headers; None where there are none. It never raises.

    It knows ``x-ratelimit-limit-requests`` (OpenAI, Friendli), ``anthropic-ratelimit-requests-limit``,
    ``x-ratelimit-limit`` (GitHub), with ``-minute`` and the like behind them, and ``RateLimit`` of the IETF's drafts
    (draft-ietf-httpapi-ratelimit-headers: fields of their own up to 02, one list up to 07, structured from 08 on).
    """
    windows = _windows(headers)
    fields: dict[str, int | float | None] = {}
    for kind in _KINDS:
        of_kind = [window for names, window in windows.items() if _kind(names) == kind]
        if of_kind:
            tightest = min(of_kind, key=lambda window: window.scarcity)
            fields[f"limit_{kind}"] = None if tightest.limit is None else int(tightest.limit)
            fields[f"remaining_{kind}"] = None if tightest.remaining is None else int(tightest.remaining)
            fields[f"reset_{kind}"] = tightest.reset
    return RateLimit(**fields) if fields else None  # type: ignore[arg-type]  # of each its own type, by its name


def wait_asked(status: int, headers: Mapping[str, str], now: Callable[[], float] = time) -> float | None:
    """Seconds that a refusal asks to wait; None where it asks nothing, or nonsense.

    ``retry-after-ms``, or ``Retry-After`` in seconds or as a date (RFC 9110 10.2.3), or as servers write it that do not
    know that: ``1m30s``, a date of RFC 3339, seconds since 1970. Without one, when the limit of a 429 resets.
    """
    for name, unit in _WAITS:
        if text := headers.get(name):
            wait = _longest(text, unit, headers, now)
            if wait is not None and wait >= 0:
                return abs(wait)  # of -0, too
    return _wait_of(headers) if status == 429 else None


def _wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds until all that is used up resets; where nothing tells how much is left, until what resets last does."""
    windows = _windows(headers).values()
    told = any(window.remaining is not None for window in windows)
    blocking = (window for window in windows if not told or (window.remaining is not None and window.remaining < 1))
    return max((window.reset for window in blocking if window.reset is not None), default=None)


def _kind(names: Iterable[str]) -> str:
    if any(name.startswith("token") for name in names):
        return "tokens"
    return "steps" if "steps" in names else "requests"


def _windows(headers: Mapping[str, str]) -> _Windows:
    windows: _Windows = {}
    for header, value in headers.items():
        name = header.lower()
        if "limit" not in name:
            continue
        if name in {"ratelimit", "ratelimit-policy"}:
            _read_list(value, windows)
        elif found := re.fullmatch(_NAME, name):
            names = [part for part in re.split(r"[-_]", found[1]) if part != "after"]
            field = next((each for each in _FIELDS if each in names), "")
            unit = 0.001 if "ms" in names else 1.0
            told = _longest(value, unit, headers) if field == "reset" else _amount(value, least=field == "remaining")
            if field and told is not None:
                rest = tuple(part for part in names if part not in {field, "ms"})
                setattr(windows.setdefault(rest, _Window()), field, max(0.0, told))
    return windows


def _read_list(value: str, windows: _Windows) -> None:
    """``"default";r=50;t=30`` or ``limit=100, remaining=50, reset=5``; of a policy ``"default";q=100;w=60``."""
    names: tuple[str, ...] = ()
    for item in value.split(","):
        policy, *_ = parameters = item.split(";")
        if "=" not in policy:
            names = (policy.strip().strip('"').lower(),)
        for name, _, told in (parameter.partition("=") for parameter in parameters):
            field, number = name.strip().lower(), _number(told)
            field = _SHORT.get(field, field)
            if field in _FIELDS and number is not None:
                setattr(windows.setdefault(names, _Window()), field, max(0.0, number))


def parts(text: str) -> list[str]:
    """The values of a header that may have been sent several times."""
    return [part.strip() for part in re.split(_BETWEEN, text)]


def _amount(text: str, *, least: bool) -> float | None:
    """A number; of several (sent twice, or with its policy: ``100, 100;w=60``) the first, or the least."""
    numbers = [_number(part.partition(";")[0]) for part in text.split(",")]
    told = [number for number in numbers if number is not None]
    return (min(told) if least else told[0]) if told else None


def _number(text: str) -> float | None:
    text = text.strip()
    number = float(text) if re.fullmatch(_NUMBER, text) else math.inf
    return number if abs(number) < 1e18 else None


def _longest(text: str, unit: float, headers: Mapping[str, str], now: Callable[[], float] = time) -> float | None:
    """Seconds from the reply on; of several (sent by a server and a proxy) the longest: none may be undercut."""
    told = (_moment(part, unit, lambda: _sent_at(headers, now)) for part in parts(text))
    return max((seconds for seconds in told if seconds is not None), default=None)


def _moment(text: str, unit: float, sent: Callable[[], float]) -> float | None:
    """``1.5``, ``6m0s``, ``120ms``; ``1700000000``, seconds since 1970, or milliseconds; a date of RFC 3339 or of HTTP.

    It is below 0 only where that is the number; what has passed is now.
    """
    text = text.partition(";")[0].strip(" \t\"'")
    if (number := _number(text)) is not None:
        seconds = number * unit
        for since_1970 in (seconds, seconds / 1000):
            if 1e9 <= since_1970 < 1e10:  # a point in time, of this century or one of the next two
                return max(0.0, since_1970 - sent())
        return seconds
    if (duration := _duration(text.lower())) is not None:
        return duration
    date = _date_of(text)
    return None if date is None else max(0.0, date - sent())


def _duration(text: str) -> float | None:
    """Seconds of ``6m0s``, ``1 minute 30 seconds``, ``120ms`` or ``PT8S``; None of anything else."""
    if len(text) > 40:
        return None
    if re.fullmatch(_DURATION_ISO, text):
        text = text.replace("p", "").replace("t", "")
    elif not re.fullmatch(_DURATION, text):
        return None
    return sum(float(count) * _unit(name) for count, name in re.findall(_PART, text))


def _unit(name: str) -> float:
    return next(seconds for begin, seconds in _SECONDS.items() if name.startswith(begin))


def _sent_at(headers: Mapping[str, str], now: Callable[[], float]) -> float:
    """When the reply was sent: by its own clock, as what it tells is, where it says so."""
    date = _date_of(parts(headers.get("date", ""))[0])
    return now() if date is None else date


def _date_of(text: str) -> float | None:
    """Seconds since 1970 of a date of HTTP (RFC 9110 5.6.7) or of RFC 3339, in UTC where it names no zone."""
    from email.utils import parsedate_to_datetime  # comes with aiohttp; a bare import of ours does without

    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = read(text.strip())
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            pass
    return None
