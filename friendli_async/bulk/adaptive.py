"""An adaptive limit of concurrent calls. It depends on no clock, no event loop and no network."""

from __future__ import annotations

import math
from typing import Final

from friendli_async.errors import ConfigurationError

__all__ = ["Adaptive"]

_DEFAULT_PAUSE: Final = 0.25
"""Seconds without new calls after a rejection that has no ``Retry-After``."""
_MIN_TOKENS: Final = 16
"""The guard ignores shorter replies: most of their time is spent on the prompt."""
_MIN_WINDOW: Final = 10
_MAX_WINDOW: Final = 50
"""Bounds of the guard's window: it takes the median of half the limit of replies, within these bounds."""
_NEAR_CEILING: Final = 0.85
"""The fraction of the ceiling (the limit at the last decrease) from which on growth slows down."""
_FAST_STEP: Final = 1.5
_SLOW_STEP: Final = 0.33
"""What a round of successes adds: below that fraction at least, where it halves the distance; above, to the ceiling."""
_FIRST_PROBE_STEP: Final = 0.5
"""What the first round above the ceiling adds; each further round adds twice as much as the one before."""
_SHORT_PATIENCE: Final = 32
_PATIENCE: Final = 160
_MAX_PATIENCE: Final = 3 * _PATIENCE
"""The number of successes before the limit reaches the ceiling again: at first; once it was rejected there twice, so
that under 1 % of the calls are rejected by a hard limit; and if the rejected call's retries were rejected, too."""
_BEST_DECAY: Final = 1.002
"""The best seconds per token grow by this factor per window: a model may have become slower for good."""


class Adaptive:
    """A limit of calls in flight that grows while calls succeed, and shrinks when the server is overloaded.

    It works as TCP does (additive increase, multiplicative decrease), with three additions. Until the first rejection,
    each success adds 1. After that, a round of successes (as many as the limit) brings the limit closer to its value at
    the last rejection, by less and less. That value is tried again after 32 successes, or after 160 once it has been
    rejected twice, so that a server with a fixed limit rejects few calls; above it, each round adds more than the one
    before, since capacity was freed. And if a server rejects nothing but slows down, the guard shrinks the limit. It
    compares seconds per token, since the duration of a call depends on the length of its answer.

    The caller drives it, with any clock: ``acquire`` and ``release`` around each call, ``succeeded`` and ``refused`` in
    between. ``Gate`` does this for asyncio. An instance serves one run at a time; the next run may reuse it, with what
    it has learned.

    Args:
        start: The initial limit, at least 1.
        max: The maximum of the limit.
        shrink: The factor of the limit at a rejection, above 0 and below 1; applied at most once per round trip.
        guard: The limit shrinks when the median seconds per token exceed the best ones by this factor, above 1. None
            disables the guard.

    Raises:
        ConfigurationError: An argument is invalid.
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
        self._decreased_at = -math.inf
        self._round_trip = 0.0  # smoothed seconds of a call
        self._ceiling: int | None = None  # the limit at the last decrease; None if unknown
        self._patience = 0  # the successes since the last rejection before the limit reaches the ceiling again
        self._successes = 0  # successes since the last rejection
        self._probe_step = _FIRST_PROBE_STEP
        self._round_successes = 0  # successes of this round
        self._window: list[float] = []  # seconds per token of the guard's window
        self._best_seconds = math.inf

    @property
    def limit(self) -> int:
        """The maximum number of calls in flight."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return self._in_flight

    def pause(self, now: float) -> float:
        """Returns the seconds until the pause after a rejection ends; 0 if there is none."""
        return max(0.0, self._paused_until - now)

    def acquire(self, now: float) -> bool:
        """Takes a permit for one call. Returns False if the limit is reached or a pause is active.

        Args:
            now: Seconds on a monotonic clock; the same clock in all methods.
        """
        if self._in_flight >= int(self._limit) or now < self._paused_until:
            return False
        self._in_flight += 1
        return True

    def release(self) -> None:
        """Returns a permit, however its call ended: once for each successful ``acquire``.

        Raises:
            RuntimeError: No permit is taken.
        """
        if self._in_flight < 1:
            raise RuntimeError("Adaptive.release() without a permit")
        self._in_flight -= 1

    def succeeded(self, tokens: int | None, seconds: float, now: float) -> None:
        """Records a successful call, before its permit is released.

        Args:
            tokens: The completion tokens; None if unknown.
            seconds: The duration of the call, from sending to the complete reply.
            now: See ``acquire``.
        """
        seconds = max(0.0, seconds)
        self._successes += 1
        self._round_trip += (seconds - self._round_trip) / 8 if self._round_trip else seconds
        if self._apply_guard(tokens, seconds, now) or self._in_flight * 2 < self._limit:
            return  # a limit that is not reached gives no evidence for a higher one
        if self._ceiling is None:
            limit = self._limit + 1.0
        else:
            limit = self._limit + min(1.0, self._step_size(self._ceiling) / self._limit)
            if limit >= self._ceiling and self._successes < self._patience:
                return
        self._limit = min(limit, float(self._max))

    def refused(self, retry_after: float | None, now: float, sent: float | None = None) -> None:
        """Records that the server rejected a call, or an attempt of one, because of its load.

        Args:
            retry_after: The ``Retry-After`` of the rejection in seconds from now, or None. No permits are given until
                it has passed.
            now: See ``acquire``.
            sent: When the rejected request was sent. A request from before the last decrease does not cause another.
                Default: one round trip ago.
        """
        self.hold(retry_after, now)
        if self._patience >= _PATIENCE and self._successes < self._limit:  # a retry of the same call, probably
            self._patience = min(self._patience + _PATIENCE, _MAX_PATIENCE)
        else:
            self._patience = _PATIENCE if int(self._limit) == self._ceiling else _SHORT_PATIENCE
        self._successes = 0
        if (now - self._round_trip if sent is None else sent) >= self._decreased_at:
            self._decrease(self._shrink, now)
            # After an earlier decrease, more may be in flight. A single call was not rejected for their number.
            self._ceiling = None if self._in_flight <= 1 else max(self._ceiling or 0, self._in_flight)

    def _step_size(self, ceiling: int) -> float:
        """Returns what a round of successes adds: less and less below the ceiling, then increasingly more."""
        if self._limit <= ceiling:
            near = _NEAR_CEILING * ceiling
            return max(_FAST_STEP, (near - self._limit) / 2) if self._limit < near else _SLOW_STEP
        self._round_successes += 1
        if self._round_successes >= self._limit:
            self._round_successes = 0
            self._probe_step *= 2
        return self._probe_step

    def hold(self, retry_after: float | None, now: float) -> None:
        """Gives no permits for ``retry_after`` seconds from now, and keeps the limit; see ``refused``."""
        wait = _DEFAULT_PAUSE if retry_after is None or not _is_number(retry_after) or retry_after < 0 else retry_after
        self._paused_until = max(self._paused_until, now + wait)

    def _decrease(self, factor: float, now: float) -> None:
        self._ceiling = int(self._limit)
        self._limit = max(1.0, self._limit * factor)
        self._decreased_at = now
        self._probe_step = _FIRST_PROBE_STEP
        self._round_successes = 0

    def _apply_guard(self, tokens: int | None, seconds: float, now: float) -> bool:
        """Applies the guard. Returns whether it shrank the limit."""
        if self._guard is None or tokens is None or tokens < _MIN_TOKENS or not seconds:
            return False
        self._window.append(seconds / tokens)
        if len(self._window) < max(_MIN_WINDOW, min(_MAX_WINDOW, self._limit / 2)):
            return False
        median = sorted(self._window)[len(self._window) // 2]
        self._window.clear()
        self._best_seconds = min(self._best_seconds * _BEST_DECAY, median)
        allowed = self._guard * self._best_seconds
        if median <= allowed:
            return False
        self._decrease(max(self._shrink, allowed / median), now)
        return True

    def __repr__(self) -> str:
        return f"<Adaptive limit={self.limit} in_flight={self._in_flight}>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
