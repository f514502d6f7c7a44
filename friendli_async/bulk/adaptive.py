"""How many calls at a time: a limit that finds out what the server takes. It knows no clock, no loop and no network."""

from __future__ import annotations

import math
from typing import Final

from friendli_async.errors import ConfigurationError

__all__ = ["Adaptive"]

_BREATH: Final = 0.25
"""Seconds without new calls after a refusal that names no time."""
_TELLING_TOKENS: Final = 16
"""Shorter replies say little of the speed: most of their time is the prompt's."""
_FEWEST: Final = 10
_MOST: Final = 50
"""Replies of which the guard takes the median, at least and at most; half the limit in between."""
_NEAR: Final = 0.85
"""The part of the limit at the last cut from which on growth is careful."""
_FAR: Final = 1.5
_CLOSE: Final = 0.33
"""What a round of successes adds below and above that, up to the limit at the last cut."""
_PROBE: Final = 0.5
"""What the first round beyond that adds; each further one adds twice as much."""
_DRIFT: Final = 1.002
"""By so much a window is the best speed forgotten: a model may have become slower for good."""


class Adaptive:
    """A limit of calls under way that grows while all goes well, and shrinks when the server has enough.

    It is what TCP does (additive increase, multiplicative decrease), with two additions. Until the first refusal each
    success adds 1. From then on a round of successes, as many as the limit, adds about 1 up to near where the last
    refusal was, less there, and beyond it more each round, since more is free than was. And where a server refuses
    nothing but slows down, the guard shrinks the limit: it looks at the seconds per token, since the seconds of a call
    say how long its answer was.

    It is moved by what it is told, on whatever clock: ``acquire`` and ``release`` around each call, ``succeeded`` and
    ``refused`` in between. ``Gate`` does so for asyncio. One is for one run at a time; the next may go on with what it
    has learned.

    Args:
        start: The first limit, at least 1.
        max: The limit is never greater.
        shrink: What the limit is multiplied by at a refusal, above 0 and below 1; at most once a round trip.
        guard: How many times the best seconds per token the median may be before the limit shrinks, above 1; None is
            no guard.

    Raises:
        ConfigurationError: A value that is none of these.
    """

    def __init__(self, start: int = 4, max: int = 256, shrink: float = 0.7, guard: float | None = 2.0) -> None:
        for name, count in (("start", start), ("max", max)):
            if type(count) is not int or count < 1:
                raise ConfigurationError(f"Adaptive: {name} must be a whole number, at least 1, not {count!r}")
        if start > max:
            raise ConfigurationError(f"Adaptive: start ({start}) must not be greater than max ({max})")
        if not _is_number(shrink) or not 0 < shrink < 1:
            raise ConfigurationError(f"Adaptive: shrink must be a number above 0 and below 1, not {shrink!r}")
        if guard is not None and (not _is_number(guard) or guard <= 1):
            raise ConfigurationError(f"Adaptive: guard must be a number above 1, or None, not {guard!r}")
        self._limit = float(start)
        self._max = max
        self._shrink = shrink
        self._guard = guard
        self._in_flight = 0
        self._paused_until = -math.inf
        self._cut_at = -math.inf
        self._round_trip = 0.0  # smoothed seconds of a call
        self._ceiling: float | None = None  # the limit at the last cut; None: there was none, and the start goes on
        self._step = _PROBE
        self._counted = 0  # successes of this round
        self._speeds: list[float] = []  # seconds per token of the guard's window
        self._best = math.inf

    @property
    def limit(self) -> int:
        """How many calls may be under way."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """How many are."""
        return self._in_flight

    def pause(self, now: float) -> float:
        """Seconds until the end of the pause that a refusal began; 0 where there is none."""
        return max(0.0, self._paused_until - now)

    def acquire(self, now: float) -> bool:
        """Takes a permit for one call; False where there is none: as many are under way, or a pause is on.

        Args:
            now: Seconds on a clock that never goes back; the same one in all methods.
        """
        if self._in_flight >= int(self._limit) or now < self._paused_until:
            return False
        self._in_flight += 1
        return True

    def release(self) -> None:
        """Gives a permit back, however its call ended: once for each that ``acquire`` gave.

        Raises:
            RuntimeError: None is out.
        """
        if self._in_flight < 1:
            raise RuntimeError("Adaptive.release() without a permit")
        self._in_flight -= 1

    def succeeded(self, tokens: int | None, seconds: float, now: float) -> None:
        """A call, whose permit is still out, has brought its reply.

        Args:
            tokens: What the model wrote; None where that is not known.
            seconds: What the call took, from sending to the whole reply.
            now: See ``acquire``.
        """
        seconds = max(0.0, seconds)
        self._round_trip += (seconds - self._round_trip) / 8 if self._round_trip else seconds
        if self._slows_down(tokens, seconds, now) or self._in_flight * 2 < self._limit:
            return  # a limit that is not used says nothing of what a greater one would bring
        if self._ceiling is None:
            self._limit += 1.0
        else:
            self._limit += min(1.0, self._step_of(self._ceiling) / self._limit)
        self._limit = min(self._limit, float(self._max))

    def refused(self, retry_after: float | None, now: float, sent: float | None = None) -> None:
        """The server has refused a call, or an attempt of one: there were too many.

        Args:
            retry_after: Seconds that it asks to wait, counted from now; None where it names none. Nobody gets a permit
                before they are over.
            now: See ``acquire``.
            sent: When the refused request was sent. What was sent before the last cut does not cut again. Default: a
                round trip ago.
        """
        self.hold(retry_after, now)
        if (now - self._round_trip if sent is None else sent) >= self._cut_at:
            self._cut(self._shrink, now)

    def _step_of(self, ceiling: float) -> float:
        """What a round of successes, as many as the limit, adds: much, little, and more and more."""
        if self._limit <= ceiling:
            return _FAR if self._limit < _NEAR * ceiling else _CLOSE
        self._counted += 1
        if self._counted >= self._limit:
            self._counted = 0
            self._step *= 2
        return self._step

    def hold(self, retry_after: float | None, now: float) -> None:
        """Gives nobody a permit for so many seconds from now, and leaves the limit as it is; see ``refused``."""
        wait = _BREATH if retry_after is None or not _is_number(retry_after) or retry_after < 0 else retry_after
        self._paused_until = max(self._paused_until, now + wait)

    def _cut(self, factor: float, now: float) -> None:
        self._ceiling = self._limit
        self._limit = max(1.0, self._limit * factor)
        self._cut_at = now
        self._step = _PROBE
        self._counted = 0

    def _slows_down(self, tokens: int | None, seconds: float, now: float) -> bool:
        """Whether the guard has shrunk the limit."""
        if self._guard is None or tokens is None or tokens < _TELLING_TOKENS or not seconds:
            return False
        self._speeds.append(seconds / tokens)
        if len(self._speeds) < max(_FEWEST, min(_MOST, self._limit / 2)):
            return False
        median = sorted(self._speeds)[len(self._speeds) // 2]
        self._speeds.clear()
        self._best = min(self._best * _DRIFT, median)
        allowed = self._guard * self._best
        if median <= allowed:
            return False
        self._cut(max(self._shrink, allowed / median), now)
        return True

    def __repr__(self) -> str:
        return f"<Adaptive limit={self.limit} in_flight={self._in_flight}>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
