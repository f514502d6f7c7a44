"""Rate limits as servers tell them in headers, under all the names that are about."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
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
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|d|h|m|s))+", re.ASCII)
_UNITS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_EPOCH: Final = 1e8
"""A reset beyond three years is a point in time, in seconds since 1970; in milliseconds where it is beyond 1e11."""


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
    whole = _moment(text, headers)
    told = [whole] if whole is not None else [_moment(part, headers) for part in text.split(",")]
    return max((seconds for seconds in told if seconds is not None), default=None)


def _moment(text: str, headers: Mapping[str, str]) -> float | None:
    """``1.5``, ``6m0s``, ``120ms``; ``1700000000``, seconds since 1970; a date of RFC 3339 or of HTTP."""
    text = text.strip()
    if (number := _number(text)) is not None:
        if number < _EPOCH:
            return number
        return max(0.0, (number if number < 1e11 else number / 1000) - _sent_at(headers))
    if len(text) <= 40 and _DURATION.fullmatch(text.lower()):
        parts = re.findall(r"(\d+(?:\.\d+)?)([a-zµ]+)", text.lower())
        return sum(float(count) * _UNITS[unit] for count, unit in parts)
    if (date := _date(text)) is not None:
        return max(0.0, date - _sent_at(headers))
    return None


def _sent_at(headers: Mapping[str, str]) -> float:
    """When the reply was sent: by its own clock, as the resets are, where it says so."""
    date = _date(headers.get("date", ""))
    return time() if date is None else date


def _date(text: str) -> float | None:
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
