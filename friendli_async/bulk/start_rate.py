"""The rate at which calls are started, for servers that limit requests per minute. It depends on no clock."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Final

_MAX_STARTS: Final = 20_000
"""How many starts are remembered; half of them are forgotten at once."""
_MINUTE: Final = 60.0
"""The seconds before a rejection over which the rate is measured: most limits are per minute."""
_MIN_STARTS: Final = 5
"""A rate is not measured from fewer starts."""
_CAUTION: Final = 0.85
"""The fraction of the measured rate to go on with, since what was sent too early still counts."""
_CAUSE: Final = 0.5
"""A rejection is not blamed on the rate if calls were started at less than this fraction of the rate in force, or of
the highest rate over a minute."""
_CATCH_UP: Final = 0.005
"""The growth per success up to the measured rate: it takes about 32."""
_BELOW_REJECTED: Final = 0.97
"""The fraction of the rejected rate that is assumed to be accepted."""
_GROWTH: Final = 0.1
"""The growth above the measured rate in the first minute; it doubles every minute. Rejections come up to a minute late:
a limit per minute counts what was sent before."""
_MAX_GROWTH_SECONDS: Final = 10.0


class StartRate:
    """The rate at which calls are started: unlimited, until a rate limit has caused a rejection.

    Then it is what the server has accepted in the last minute, including the time of the rejections. From there it
    grows to the rate that was rejected, and above that only if a rejection can be afforded.
    """

    def __init__(self) -> None:
        self._rate = self._measured = self._rejected = math.inf  # calls per second
        self._next = -math.inf  # when the next call may start
        self._times: list[float] = []
        self._levels: list[int] = []  # calls in flight after each start
        self._since = -math.inf  # when the rate was last measured
        self._most = 0  # the most calls that were accepted in a minute
        self._grown_at = -math.inf
        self._growing = 0.0  # seconds of growth above the measured, or above the rejected rate

    @property
    def is_limited(self) -> bool:
        """Whether calls are started at a limited rate."""
        return self._rate < math.inf

    def delay(self, now: float) -> float:
        """Returns the seconds until the next call may start; 0 or less if it may start now."""
        return self._next - now

    def start(self, at: float, in_flight: int, spacing: float) -> None:
        """Records the start of a call.

        Args:
            at: When it starts.
            in_flight: The calls in flight, including this one.
            spacing: The minimum number of seconds until the next start.
        """
        index = bisect_right(self._times, at)  # a retry is recorded ahead of its time
        self._times.insert(index, at)
        self._levels.insert(index, in_flight)
        if len(self._times) > _MAX_STARTS:
            del self._times[: _MAX_STARTS // 2], self._levels[: _MAX_STARTS // 2]
        interval = max(spacing, 1.0 / self._rate)
        self._next = max(self._next + interval, at)  # a late start does not delay the later ones

    def resume(self, now: float) -> None:
        """Forgets the spacing during rejections."""
        self._next = now

    def last(self, now: float) -> float:
        """Returns when the last call was started; now if none was."""
        index = bisect_right(self._times, now) - 1
        return self._times[index] if index >= 0 else now

    def in_flight_at(self, sent: float, default: int) -> int:
        """Returns the number of calls in flight when a call was sent."""
        index = bisect_right(self._times, sent) - 1
        return self._levels[index] if index >= 0 else default

    def measure(self, rejected_at: float, rejections: int, now: float) -> None:
        """Lowers the rate to what the server has accepted.

        Args:
            rejected_at: When the rejections began.
            rejections: Their number.
            now: When they were over.
        """
        if len(self._times) < _MIN_STARTS:
            return
        until = bisect_right(self._times, rejected_at)
        in_minute = until - bisect_right(self._times, rejected_at - _MINUTE)
        if in_minute < _CAUSE * self._most:
            return  # the server has accepted far more in an earlier minute, so the rate was not the cause
        self._most = max(self._most, in_minute - rejections)
        since = max(self._since, rejected_at - _MINUTE, self._times[0])
        first = bisect_right(self._times, since)
        accepted = len(self._times) - first - rejections
        if accepted < _MIN_STARTS or now <= since:
            return
        measured = accepted / (now - since)
        if rejected_at > since:
            rate_before = (until - first) / (rejected_at - since)
            if self._rate < math.inf and rate_before < _CAUSE * self._rate:
                return  # pauses or the limit held the calls back, so the rate was not the cause
            self._rejected = min(self._rate, max(measured, rate_before))
        else:
            self._rejected = self._rate
        self._measured = min(measured, _BELOW_REJECTED * self._rejected)
        self._rate = _CAUTION * self._measured
        self._growing = 0.0
        self._since = now

    def loosen(self) -> None:
        """Doubles the rate, after a rejection that was caused by something else."""
        self._rate, self._measured, self._rejected = 2 * self._rate, 2 * self._measured, 2 * self._rejected

    def grow(self, now: float, may_probe: bool) -> None:
        """Raises the rate after a success, if it is what holds calls back.

        Args:
            now: See ``start``.
            may_probe: Whether a rejection can be afforded.
        """
        seconds = min(now - self._grown_at, _MAX_GROWTH_SECONDS)
        self._grown_at = now
        if now >= self._next or self._rate == math.inf:
            return
        bound = _BELOW_REJECTED * self._rejected
        faster = self._rate * (1.0 + _GROWTH * seconds / _MINUTE * 2.0 ** (self._growing / _MINUTE))
        if self._rate < self._measured:
            self._rate = min(self._measured, self._rate * (1.0 + _CATCH_UP))
        elif self._rate < bound <= faster:
            self._rate, self._growing = bound, 0.0
        elif self._rate != bound or may_probe:
            self._rate = faster
            self._growing += seconds
