"""An adaptive limit of concurrent calls. It depends on no clock, no event loop and no network."""

from __future__ import annotations

import math
from typing import Final

from friendli_async.bulk.start_rate import StartRate
from friendli_async.errors import ConfigurationError
from friendli_async.options import check_count, is_finite

__all__ = ["Adaptive"]

_FIRST_PAUSE: Final = 0.25
_MIN_PAUSE: Final = 0.1
"""Bounds of the seconds without new calls after a rejection without ``Retry-After``: a quarter of a round trip."""
_MAX_PAUSE: Final = 15.0
"""The pause doubles with each further rejection, up to this."""
_TOLERANCE: Final = 1e-6
"""Seconds by which the moment of sending, computed from a duration, may be off."""
_MAX_RETRY_DELAY: Final = 1.0
"""A rejected call whose next attempt would have to wait for longer gives its permit back instead."""
_MIN_TOKENS: Final = 16
"""The guard ignores shorter replies: most of their time is spent on the prompt."""
_MIN_WINDOW: Final = 10
_MAX_WINDOW: Final = 50
"""Bounds of the guard's window: the number of replies whose median it takes, half the limit."""
_NEAR_CEILING: Final = 0.88
"""The fraction of the ceiling (the number in flight that was rejected) from which on growth slows down."""
_FAST_STEP: Final = 1.5
_SLOW_STEP: Final = 0.25
"""What a round of successes adds: below that fraction half of the distance, at least the first; above it the second."""
_FIRST_PROBE_STEP: Final = 0.5
"""What the first round above the ceiling adds; each further round adds twice as much as the one before."""
_CREDIT_PER_SUCCESS: Final = 1 / 125
_MAX_CREDIT: Final = 3.0
_MIN_CREDIT: Final = -2.0
"""A success earns credit, and a rejection costs 1. What was rejected is tried again once the credit is 1, so a limit
that has been found rejects under 1 % of the calls. The minimum bounds how long this takes after many rejections."""
_BLOCK: Final = 1.0
"""Rejections are a block once the pause is so long, in seconds: nothing was accepted meanwhile."""
_BLOCK_INTERVAL: Final = 90.0
"""Seconds after the last block, or after the run began (and a round trip), within which a limit per minute blocks calls
again. A block that comes later was an outage."""
_MIN_ACCEPTED: Final = 5
_FREQUENT: Final = 4
"""Rejections are frequent if at most so many calls are accepted for each, and at least ``_MIN_ACCEPTED`` in all."""
_BEST_DECAY: Final = 1.002
"""The best seconds per token grow by this factor per window: a model may have become slower for good."""


class Adaptive:
    """A limit of calls in flight that grows while calls succeed, and shrinks when the server is overloaded.

    Until the first rejection, each success adds 1. A rejection multiplies the limit by ``shrink``, and pauses the
    calls: for longer each time, until a call is accepted again. Then the limit decides what was the cause:

    - The number of calls, if more were in flight than the server had accepted before. This number is the ceiling. The
      limit approaches it in smaller and smaller steps, and exceeds it only for credit, which 125 successes earn. Above
      it, capacity was freed: each round of successes (as many as the limit) adds more than the one before.
    - A limit of requests per minute, if fewer were in flight. The limit returns to what it was. From then on, calls are
      started at the rate that was accepted in the last minute, and this rate grows in the same way.
    - An outage, if nothing was accepted for seconds, and that had not happened before. Then all goes on as before.

    If a server rejects nothing but slows down, the guard shrinks the limit. It compares seconds per token, since the
    duration of a call depends on the length of its answer.

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
        # First what the repr needs: a debugger shows it if the rest fails.
        self._limit = 0.0
        self._in_flight = 0
        most = max
        for name, count in (("start", start), ("max", most)):
            check_count(f"Adaptive: {name}", count)
        if start > most:
            raise ConfigurationError(f"Adaptive: start ({start}) must not be greater than max ({most})")
        if not is_finite(shrink) or not 0 < shrink < 1:
            raise ConfigurationError(f"Adaptive: shrink must be a number above 0 and below 1, not {shrink!r}")
        if guard is not None and not (is_finite(guard) and guard > 1):
            raise ConfigurationError(f"Adaptive: guard must be a number above 1, or None, not {guard!r}")
        self._limit = float(start)
        self._max = most
        self._shrink = shrink
        self._guard = guard
        self._starts = StartRate()
        self._paused_until = -math.inf
        self._decreased_at = -math.inf
        self._round_trip = 0.0  # smoothed seconds of a call
        self._ceiling = math.inf  # the number in flight that was rejected
        self._accepted = 0  # the highest number in flight that was accepted since the last rejections
        self._accepted_since = -math.inf
        self._credit = _MAX_CREDIT
        self._probe_step = _FIRST_PROBE_STEP
        self._round_successes = 0  # successes of this round above the ceiling
        self._rejections: _Rejections | None = None  # until calls are accepted again
        self._block_ended_at = math.inf  # the last one; or when the run began
        self._last_was_rate = False  # whether the last rejections were caused by a rate limit
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
        """Returns the seconds until the next call may start, if the limit allows it; 0 if it may now."""
        return max(0.0, self._paused_until - now, self._starts.delay(now))

    def acquire(self, now: float) -> bool:
        """Takes a permit for one call. Returns False if the limit is reached or a pause is active.

        Args:
            now: Seconds on a monotonic clock; the same clock in all methods.
        """
        if self._in_flight >= int(self._limit) or now < self._paused_until or self._starts.delay(now) > 0:
            return False
        self._in_flight += 1
        self._starts.start(now, self._in_flight, self._spacing())
        return True

    def release(self) -> None:
        """Returns a permit, however its call ended: once for each successful ``acquire``.

        Raises:
            RuntimeError: No permit is taken.
        """
        if self._in_flight < 1:
            raise RuntimeError("Adaptive.release() without a permit")
        self._in_flight -= 1

    def retry_delay(self, now: float) -> float | None:
        """Returns the seconds until a rejected call that keeps its permit may be sent again, and counts it as started.

        Returns None if that is too far off: the call should end, and be made again with a new permit.
        """
        delay = self.pause(now)
        if self._in_flight > self._limit:  # another call has to end first
            delay = max(delay, min(_MAX_RETRY_DELAY, self._round_trip / self._limit))
        if delay > _MAX_RETRY_DELAY:
            return None
        self._starts.start(now + delay, self._in_flight, self._spacing())
        return delay

    def succeeded(self, tokens: int | None, seconds: float, now: float) -> None:
        """Records a successful call, before its permit is released.

        Args:
            tokens: The completion tokens; None if unknown.
            seconds: The duration of the call, from sending to the complete reply.
            now: See ``acquire``.
        """
        seconds = max(0.0, seconds)
        self._block_ended_at = min(self._block_ended_at, now)
        sent = now - seconds + _TOLERANCE
        self._credit = min(_MAX_CREDIT, self._credit + _CREDIT_PER_SUCCESS)
        self._round_trip += (seconds - self._round_trip) / 8 if self._round_trip else seconds
        if self._rejections is not None:
            if sent >= self._rejections.last_at:
                self._resume(self._rejections, now)
        elif sent >= self._accepted_since:
            self._accepted = max(self._accepted, self._starts.in_flight_at(sent, 0))
        self._starts.grow(now, self._credit >= 1.0)
        if self._apply_guard(tokens, seconds, now) or self._in_flight * 2 < self._limit:
            return  # a limit that is not reached gives no evidence for a higher one
        limit = self._limit + min(1.0, self._step_size() / self._limit)
        if limit < self._ceiling or self._limit >= self._ceiling or self._credit >= 1.0:
            self._limit = min(limit, float(self._max))

    def refused(
        self, retry_after: float | None, now: float, sent: float | None = None, *, is_rate_limit: bool = True
    ) -> None:
        """Records that the server rejected a call, or an attempt of one, because of its load.

        Args:
            retry_after: The ``Retry-After`` of the rejection in seconds from now, or None. No permits are given until
                it has passed.
            now: See ``acquire``.
            sent: When the rejected request was sent. A request from before the last decrease does not cause another.
                Default: when the last call was started, as servers reject at once.
            is_rate_limit: Whether a limit of requests per minute may be the cause. It is not that of a 503, for
                example: it would slow the run down after an outage.
        """
        sent = self._starts.last(now) if sent is None else sent
        in_flight = self._starts.in_flight_at(sent + _TOLERANCE, self._in_flight)
        self._credit = max(_MIN_CREDIT, self._credit - 1.0)
        if self._rejections is not None and self._rejections.persist(self._limit):
            self._end(self._rejections, now)
        rejections = self._rejections
        if rejections is None:
            if sent < self._decreased_at:  # sent before the last decrease: it causes no other
                self.hold(_seconds_or(self._first_pause(), retry_after), now)
                return
            is_new = True
            rejections = self._rejections = self._first_rejection(in_flight, now)
        else:
            rejections.number += 1
            if is_new := sent > rejections.last_at + _TOLERANCE:
                rejections.repeated = rejections.pause > 0.0
                rejections.pause = min(_MAX_PAUSE, 2 * rejections.pause) if rejections.pause else self._first_pause()
                rejections.few_in_flight |= in_flight <= max(1, self._accepted / 2)
        if is_new:
            rejections.last_at = now
            rejections.may_be_rate |= is_rate_limit
            rejections.are_block |= rejections.pause >= _BLOCK
            self._decrease(self._shrink, now)
            self._ceiling = in_flight if in_flight > 1 else rejections.ceiling
        self.hold(_seconds_or(rejections.pause, retry_after), now)

    def _first_rejection(self, in_flight: int, now: float) -> _Rejections:
        """Returns rejections that begin now, with what is known of their cause."""
        ceiling = self._limit if self._ceiling == math.inf else self._ceiling
        rejections = _Rejections(now, ceiling, self._first_pause())
        rejections.few_in_flight = in_flight <= max(1, self._accepted)
        rejections.rate_held_back = self._starts.is_limited and in_flight < int(self._limit)
        rejections.is_limit_known = self._accepted > 0 or not self._last_was_rate
        return rejections

    def hold(self, retry_after: float | None, now: float) -> None:
        """Gives no permits for ``retry_after`` seconds from now, and keeps the limit; see ``refused``."""
        self._paused_until = max(self._paused_until, now + _seconds_or(_FIRST_PAUSE, retry_after))

    def _first_pause(self) -> float:
        """Returns the pause after a single rejection: shorter than a call, as half of these may have ended by then."""
        return max(_MIN_PAUSE, min(_FIRST_PAUSE, self._round_trip / 4)) if self._round_trip else _FIRST_PAUSE

    def _spacing(self) -> float:
        """Returns the seconds between starts while calls are rejected: one finds out whether the server accepts again.

        After a single rejection the server probably does, so calls go on at the rate that the limit allows.
        """
        if self._rejections is None:
            return 0.0
        if self._rejections.repeated:
            return self._rejections.pause
        return min(_FIRST_PAUSE, self._round_trip / self._limit / 2)

    def _resume(self, rejections: _Rejections, now: float) -> None:
        """Records a success after rejections: a round of them ends these."""
        if rejections.pause:
            if rejections.repeated:
                rejections.repeated = False
                self._starts.resume(now)
            rejections.pause, rejections.successes = 0.0, 0
        rejections.successes += 1
        rejections.accepted += 1
        if rejections.successes >= self._limit:
            self._end(rejections, now)

    def _end(self, rejections: _Rejections, now: float) -> None:
        """Decides what caused rejections, and draws the consequences."""
        self._rejections = None
        if rejections.few_in_flight:
            self._ceiling = rejections.ceiling
            if rejections.may_be_rate and not self._was_outage(rejections):
                self._starts.measure(rejections.began_at, rejections.number, now)
        elif rejections.is_limit_known:
            self._starts.loosen()
        else:  # nothing was accepted since the last rejections, which a rate limit caused: probably it did again
            self._ceiling = rejections.ceiling
        if rejections.are_block and rejections.pause < _BLOCK:  # else it goes on, as part of the next rejections
            self._block_ended_at = now
        self._last_was_rate = rejections.few_in_flight
        self._accepted, self._accepted_since = 0, now + _MAX_RETRY_DELAY  # rejected calls wait, but count as in flight

    def _was_outage(self, rejections: _Rejections) -> bool:
        is_first = rejections.began_at >= self._block_ended_at + _BLOCK_INTERVAL + self._round_trip
        return rejections.are_block and is_first and not rejections.rate_held_back

    def _step_size(self) -> float:
        """Returns what a round of successes adds: less and less below the ceiling, then increasingly more."""
        if self._ceiling == math.inf:
            return self._limit
        if self._limit <= self._ceiling:
            near = _NEAR_CEILING * self._ceiling
            return max(_FAST_STEP, (near - self._limit) / 2) if self._limit < near else _SLOW_STEP
        self._round_successes += 1
        if self._round_successes >= self._limit:
            self._round_successes = 0
            self._probe_step *= 2
        return self._probe_step

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


class _Rejections:
    """Rejections in a row: they end once a round of calls that were sent after them has been accepted."""

    def __init__(self, now: float, ceiling: float, pause: float) -> None:
        self.began_at: float = now
        self.last_at: float = now
        self.number: int = 1
        self.pause: float = pause  # in seconds, after the last rejection; 0 once a call was accepted after it
        self.repeated: bool = False  # whether the call after a pause was rejected again, and none was accepted since
        self.successes: int = 0  # calls that were accepted since the last rejection
        self.accepted: int = 0  # calls that were accepted since the first one
        self.ceiling: float = ceiling  # the one in force before the first rejection
        self.few_in_flight: bool = False  # whether fewer calls were in flight than the server had accepted before
        self.is_limit_known: bool = True  # not if a rate limit caused the last ones, and none was accepted since
        self.may_be_rate: bool = False  # whether a limit of requests per minute can be the cause of one
        self.are_block: bool = False  # whether the pause has been a block: see ``_BLOCK``
        self.rate_held_back: bool = False  # whether the rate of starts, and not the limit, had held calls back

    def persist(self, limit: float) -> bool:
        """Whether they are frequent, although calls were accepted in between: no round will be accepted entirely."""
        return max(_MIN_ACCEPTED, 2 * limit) <= self.accepted <= _FREQUENT * self.number


def _seconds_or(pause: float, retry_after: float | None) -> float:
    """Returns what a server asked for, or the pause if that is no number of seconds."""
    return retry_after if is_finite(retry_after) and retry_after >= 0 else pause
