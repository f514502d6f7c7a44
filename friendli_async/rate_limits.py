"""Rate limits as servers tell them in headers, under all the names that are about."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_NAME: Final = re.compile(r"(?:[a-z]+-)?rate-?limit-(.+)")  # x-, anthropic-, or none
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII)
_UNIT: Final = r"(ms|milli(?:second)?s?|[uµ]s|ns|d(?:ays?)?|h(?:ours?|rs?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)"
_PART: Final = re.compile(rf"(\d+(?:\.\d+)?) *{_UNIT}(?![a-z]) *", re.ASCII)
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_DURATION_ISO: Final = re.compile(r"p(?=.)(?:\d+d)?(?:t(?=\d)(?:\d+h)?(?:\d+m)?(?:\d+(?:\.\d+)?s)?)?", re.ASCII)
_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "mill": 1e-3, "u": 1e-6, "µ": 1e-6}
_EPOCH: Final = 1e8
"""A reset beyond three years is a point in time, in seconds since 1970; in milliseconds where it is beyond 1e11."""
# What stands between the values of a header that was sent several times; a date has a comma of its own.
_BETWEEN: Final = re.compile(r"(?<!mon)(?<!tue)(?<!wed)(?<!thu)(?<!fri)(?<!sat)(?<!sun)(?<!day),", re.IGNORECASE)


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
        if not of_kind:
            continue
        tightest = min(of_kind, key=lambda window: window.scarcity)
        fields[f"limit_{kind}"] = None if tightest.limit is None else int(tightest.limit)
        fields[f"remaining_{kind}"] = None if tightest.remaining is None else int(tightest.remaining)
        fields[f"reset_{kind}"] = tightest.reset
    if all(value is None for value in fields.values()):
        return None
    return RateLimit(**fields)  # type: ignore[arg-type]  # of each field its own type, by its name


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait after a refusal for which the headers name no other time: until all that is used up resets.

    Where the headers tell of nothing how much is left, what resets last counts.
    """
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
        elif found := _NAME.fullmatch(name):
            names = [part for part in re.split(r"[-_]", found[1]) if part != "after"]
            for field in ("limit", "remaining", "reset"):
                if field in names:
                    names.remove(field)
                    told = _reset(value, headers) if field == "reset" else _amount(value, least=field == "remaining")
                    if told is not None and field == "reset" and "ms" in names:
                        names.remove("ms")
                        told /= 1000
                    if told is not None:
                        setattr(windows.setdefault(tuple(names), _Window()), field, told)
                    break
    return windows


_PARAMETERS: Final = {"r": "remaining", "remaining": "remaining", "q": "limit", "limit": "limit"}
_PARAMETERS.update({"t": "reset", "reset": "reset"})


def _read_list(value: str, windows: _Windows) -> None:
    """``"default";r=50;t=30`` or ``limit=100, remaining=50, reset=5``; of a policy ``"default";q=100;w=60``."""
    names: tuple[str, ...] = ()
    for name, policy in _parameters(value):
        names = names if policy is None else (policy,)
        if field := _PARAMETERS.get(name[0]):
            number = _amount(name[1])
            if number is not None:
                setattr(windows.setdefault(names, _Window()), field, number)


def _parameters(value: str) -> Iterator[tuple[tuple[str, str], str | None]]:
    """Each ``name=value``, and the name of the policy where one stands before it."""
    for item in value.split(","):
        policy, *_ = item.split(";")
        named = None if "=" in policy else policy.strip().strip('"').lower()
        for parameter in item.split(";"):
            name, _, told = parameter.partition("=")
            yield (name.strip().lower(), told.strip()), named


def parts(text: str) -> list[str]:
    """The values of a header that may have been sent several times."""
    return [part.strip() for part in _BETWEEN.split(text)]


def _amount(text: str, *, least: bool = False) -> float | None:
    """A number; of several (sent twice, or with its policy: ``100, 100;w=60``) the first, or the least."""
    numbers = [_number(part.partition(";")[0]) for part in text.split(",")]
    told = [number for number in numbers if number is not None]
    if not told:
        return None
    return min(told) if least else told[0]


def _number(text: str) -> float | None:
    text = text.strip().lower()
    if len(text) > 40 or not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return max(0.0, number) if math.isfinite(number) and number < 1e18 else None


def _reset(text: str, headers: Mapping[str, str]) -> float | None:
    """Seconds from the reply on; of several (sent twice) the longest."""
    told = (_moment(part, headers) for part in parts(text))
    return max((seconds for seconds in told if seconds is not None), default=None)


def _moment(text: str, headers: Mapping[str, str]) -> float | None:
    """``1.5``, ``6m0s``, ``120ms``; ``1700000000``, seconds since 1970; a date of RFC 3339 or of HTTP."""
    text = text.strip()
    if (number := _number(text)) is not None:
        if number < _EPOCH:
            return number
        return max(0.0, (number if number < 1e11 else number / 1000) - sent_at(headers))
    if (seconds := duration(text)) is not None:
        return seconds
    if (date := date_of(text)) is not None:
        return max(0.0, date - sent_at(headers))
    return None


def duration(text: str) -> float | None:
    """Seconds of ``6m0s``, ``1 minute 30 seconds``, ``120ms`` or ``PT8S``; None of anything else."""
    text = text.strip().lower()
    if len(text) > 40:
        return None
    if _DURATION_ISO.fullmatch(text):
        text = text.replace("p", "").replace("t", "")
    elif not _DURATION.fullmatch(text):
        return None
    return sum(float(count) * _unit(name) for count, name in _PART.findall(text))


def _unit(name: str) -> float:
    return 1e-9 if name == "ns" else next(_SECONDS[name[:n]] for n in (4, 2, 1) if name[:n] in _SECONDS)


def sent_at(headers: Mapping[str, str], now: Callable[[], float] = time) -> float:
    """When the reply was sent: by its own clock, as what it tells is, where it says so."""
    date = date_of(parts(headers.get("date", ""))[0])
    return now() if date is None else date


def date_of(text: str) -> float | None:
    """Seconds since 1970 of a date of HTTP (RFC 9110 5.6.7) or of RFC 3339, in UTC where it names no zone."""
    from email.utils import parsedate_to_datetime  # comes with aiohttp; a bare import of ours does without

    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    try:
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
