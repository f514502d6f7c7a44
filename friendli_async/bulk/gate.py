"""Waiting for a permit: a fixed or adaptive limit of calls under way, in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from friendli_async.bulk.adaptive import Adaptive
from friendli_async.errors import ConfigurationError

__all__ = ["Gate"]


class Gate:
    """Lets so many callers in at a time, first come, first served.

        await gate.acquire()
        try:
            ...  # the call; gate.succeeded(...) or gate.refused(...)
        finally:
            gate.release()

    It belongs to one event loop. A waiter that is cancelled leaves the line, and its permit, if it had been given one
    in that moment, goes to the next.

    Args:
        limit: How many: a whole number, or what finds out. A refusal with a ``Retry-After`` pauses either.
    """

    def __init__(self, limit: int | Adaptive) -> None:
        # A number is an Adaptive that is never told to change.
        self._fixed = not isinstance(limit, Adaptive)
        self._limit = limit if isinstance(limit, Adaptive) else Adaptive(limit, limit, guard=None)
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """How many callers may be inside now."""
        return self._limit.limit

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    async def acquire(self) -> None:
        """Waits for a permit; ``release`` gives it back.

        Raises:
            ConfigurationError: Another gate holds all permits of the same ``Adaptive``: it serves one at a time.
        """
        loop = asyncio.get_running_loop()
        if not self._waiters and self._limit.acquire(loop.time()):
            self._held += 1
            return
        waiter = loop.create_future()
        self._waiters.append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release()  # it was let in and cancelled in the same turn
            else:
                with suppress(ValueError):  # taken out already
                    self._waiters.remove(waiter)
                self._admit()
            raise

    def release(self) -> None:
        """Gives a permit back."""
        self._limit.release()
        self._held -= 1
        self._admit()

    def succeeded(self, tokens: int | None, seconds: float) -> None:
        """Reports a reply, before ``release``; see ``Adaptive.succeeded``."""
        if not self._fixed:
            self._limit.succeeded(tokens, seconds, asyncio.get_running_loop().time())
            self._admit()

    def refused(self, retry_after: float | None, *, ago: float | None = None) -> None:
        """Reports a refusal, before ``release``; see ``Adaptive.refused``.

        Args:
            retry_after: Seconds from now that the server asks to wait, or None.
            ago: Seconds since the refused attempt was sent; None where that is not known.
        """
        now = asyncio.get_running_loop().time()
        if self._fixed and retry_after is not None:
            self._limit.hold(retry_after, now)
        elif not self._fixed:
            self._limit.refused(retry_after, now, None if ago is None else now - ago)

    def _admit(self) -> None:
        """Lets in whom there are permits for; comes back at the end of a pause."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiters:
            if self._waiters[0].done():  # cancelled, and its task has not run yet
                self._waiters.popleft()
            elif self._limit.acquire(now):
                self._held += 1
                self._waiters.popleft().set_result(None)
            else:
                break
        pause = self._limit.pause(now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters and pause:
            self._timer = loop.call_later(pause, self._admit)
        elif self._waiters and not self._held:  # nobody in here will ever release anything
            while self._waiters:
                self._waiters.popleft().set_exception(
                    ConfigurationError("this Adaptive is in use by another run: give each its own")
                )
