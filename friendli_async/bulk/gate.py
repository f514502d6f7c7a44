"""Permits for calls: a fixed or adaptive limit of calls in flight, in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque

from friendli_async.bulk.adaptive import Adaptive
from friendli_async.errors import ConfigurationError
from friendli_async.options import is_count


class Gate:
    """Admits a limited number of callers at a time, first come, first served.

        await gate.acquire()
        try:
            ...  # the call; gate.succeeded(...) or gate.refused(...)
        finally:
            gate.release()

    It belongs to one event loop. A cancelled waiter leaves the queue; if it was just given a permit, the permit goes to
    the next waiter.

    Args:
        limit: A fixed or an adaptive limit; None is an ``Adaptive()``. A ``Retry-After`` pauses either.

    Raises:
        ValueError: The limit is not a positive integer.
    """

    def __init__(self, limit: int | Adaptive | None) -> None:
        given: object = Adaptive() if limit is None else limit
        if isinstance(given, Adaptive):
            self._limit = given
        elif is_count(given):
            self._limit = Adaptive(given, given)
        else:
            raise ValueError(f"concurrency must be a whole number above 0, or an Adaptive, not {limit!r}")
        self._is_fixed = self._limit is not given  # an Adaptive that is never adjusted
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._admitted = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """The current maximum number of admitted callers."""
        return self._limit.limit

    def pause(self, now: float) -> float:
        """Returns the seconds until a caller may be admitted; see ``Adaptive.pause``."""
        return self._limit.pause(now)

    async def acquire(self) -> None:
        """Waits for a permit; ``release`` returns it.

        Raises:
            ConfigurationError: Another gate holds all permits of the same ``Adaptive``, which serves one at a time.
        """
        loop = asyncio.get_running_loop()
        if not self._waiters and self._limit.acquire(loop.time()):
            self._admitted += 1
            return
        waiter = loop.create_future()
        self._waiters.append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                self.release()  # it was admitted and cancelled in the same turn of the loop
            else:
                self._admit()  # removes it, and the timer unless others wait
            raise

    def release(self) -> None:
        """Returns a permit."""
        self._limit.release()
        self._admitted -= 1
        self._admit()

    def succeeded(self, tokens: int, seconds: float) -> None:
        """Reports a reply, before ``release``; see ``Adaptive.succeeded``."""
        if not self._is_fixed:
            self._limit.succeeded(tokens, seconds, asyncio.get_running_loop().time())
            self._admit()

    def refused(self, retry_after: float | None, *, ago: float | None = None, is_rate_limit: bool = True) -> None:
        """Reports a rejection, before ``release``; see ``Adaptive.refused``.

        Args:
            retry_after: The ``Retry-After`` in seconds from now, or None.
            ago: Seconds since the rejected attempt was sent; None if unknown.
            is_rate_limit: Whether a limit of requests per minute may be the cause.
        """
        if not self._is_fixed:
            now = asyncio.get_running_loop().time()
            sent = None if ago is None else now - ago
            self._limit.refused(retry_after, now, sent, is_rate_limit=is_rate_limit)
        elif retry_after is not None:
            self.hold(retry_after)

    def retry_delay(self) -> float | None:
        """Returns the seconds until a rejected call may be sent again; see ``Adaptive.retry_delay``."""
        return 0.0 if self._is_fixed else self._limit.retry_delay(asyncio.get_running_loop().time())

    def hold(self, seconds: float | None) -> None:
        """Admits nobody for so many seconds, and keeps the limit; see ``Adaptive.hold``."""
        self._limit.hold(seconds, asyncio.get_running_loop().time())

    def _admit(self) -> None:
        """Admits waiters while there are permits, and schedules itself for the end of a pause."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiters:
            if self._waiters[0].done():  # cancelled
                self._waiters.popleft()
            elif self._limit.acquire(now):
                self._admitted += 1
                self._waiters.popleft().set_result(None)
            else:
                break
        pause = self._limit.pause(now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters and pause:
            self._timer = loop.call_later(pause, self._admit)
        elif self._waiters and not self._admitted:  # no caller of this gate will release a permit
            self._turn_away()

    def _turn_away(self) -> None:
        """Fails all waiters: another gate holds the permits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(
                    ConfigurationError("this Adaptive is in use by another run: create one for each run")
                )
