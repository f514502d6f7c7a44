"""Time limits: one re-armed scope while a call is being opened, one re-armed timer while a stream is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from friendli_async.errors import APIConnectionError, APITimeoutError, FriendliError, TimeoutLimit
from friendli_async.options import Timeouts

__all__ = ["Call", "PhaseClock", "TimedSource"]

_WORDS: dict[TimeoutLimit, str] = {
    "pool": "no free connection",
    "connect": "no connection",
    "first_event": "no reply",
    "idle": "no event",
    "total": "the call was not done",
}


def expired(limit: TimeoutLimit, seconds: float, *, sent: bool, detail: str = "") -> APITimeoutError:
    """The error of an expired limit."""
    return APITimeoutError(
        f"{_WORDS[limit]} within {seconds:g} s ({limit}{detail and ': ' + detail})",
        limit=limit,
        seconds=seconds,
        sent=sent,
    )


class PhaseClock:
    """A scope around one attempt, up to its first event. Each phase has its limit, and total cuts into all of them.

    Args:
        timeouts: The limits.
        total_at: Loop time of the total limit, or None.
        replaced: Whether the call has replaced a dead pooled connection before.
    """

    def __init__(self, timeouts: Timeouts, total_at: float | None, *, replaced: bool = False) -> None:
        self.timeouts = timeouts
        self.sent = False
        """Whether the request can have been accepted by now."""
        self.replaced = replaced
        """Whether a dead pooled connection has been replaced: once a call is enough, and then only fresh ones serve."""
        self._total_at = total_at
        self._scope = asyncio.timeout_at(total_at)
        self._loop = asyncio.get_running_loop()
        self._limit: TimeoutLimit = "total"
        self._detail: Callable[[], str] | None = None
        self._interruption: FriendliError | None = None

    def phase(self, limit: TimeoutLimit, detail: Callable[[], str] | None = None) -> None:
        """Begins a phase; ``detail`` adds to the error's words should its limit expire."""
        seconds = getattr(self.timeouts, limit)
        when = None if seconds is None else self._loop.time() + seconds
        total_at = self._total_at
        if total_at is not None and (when is None or total_at < when):
            limit, when = "total", total_at
        self._limit = limit
        self._detail = detail
        if self._interruption is None and not self._scope.expired():
            self._scope.reschedule(when)

    def interrupt(self, error: FriendliError) -> None:
        """Ends the attempt with this error, at the loop's next turn."""
        self._interruption = error
        if not self._scope.expired():
            self._scope.reschedule(self._loop.time())

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, traceback)
            return
        except TimeoutError:
            pass
        if self._interruption is not None:
            if isinstance(self._interruption, APIConnectionError):
                self._interruption.sent = self.sent
            raise self._interruption
        detail = self._detail() if self._detail is not None else ""
        seconds = getattr(self.timeouts, self._limit)
        raise expired(self._limit, seconds, sent=self.sent, detail=detail)


class Call(Protocol):
    """A call under way, as far as the transport has to know it."""

    loop: asyncio.AbstractEventLoop

    def interrupt(self, error: FriendliError) -> None: ...


class Readable(Protocol):
    """What a TimedSource reads: an Exchange."""

    loop: asyncio.AbstractEventLoop

    async def read(self) -> bytes: ...
    def wake(self, error: FriendliError) -> None: ...
    def abort(self) -> None: ...
    def finish(self) -> None: ...


class TimedSource:
    """An open stream's bytes, read under ``idle`` and ``total`` with one timer, which moves only when it fires.

    It knows nothing of the stream that it serves, so neither the loop nor the client keeps that alive.

    Args:
        exchange: The exchange, open.
        timeouts: The limits.
        total_at: Loop time of the total limit, or None.
    """

    __slots__ = ("_deadline", "_exchange", "_loop", "_timeouts", "_timer", "_total_at", "read")

    def __init__(self, exchange: Readable, timeouts: Timeouts, total_at: float | None) -> None:
        self.read = exchange.read
        self._exchange = exchange
        self._timeouts = timeouts
        self._total_at = total_at
        self._loop = exchange.loop
        self._deadline: float | None = total_at
        self._timer: asyncio.TimerHandle | None = None
        if total_at is not None:
            self._timer = self._loop.call_at(total_at, self._tick)

    def wait_begins(self) -> None:
        """Somebody waits for the next event from now on."""
        idle = self._timeouts.idle
        if idle is None:
            return
        when = self._loop.time() + idle
        self._deadline = when if self._total_at is None else min(when, self._total_at)
        if self._timer is not None and self._timer.when() > self._deadline:  # armed for a total further off
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._tick)

    def wait_ends(self) -> None:
        """Nobody waits any more; only the total runs on."""
        self._deadline = self._total_at

    @property
    def here(self) -> bool:
        """Whether the running loop is the one that it belongs to."""
        return asyncio.get_running_loop() is self._loop

    def wake(self, error: FriendliError) -> None:
        """Aborts; whoever is reading gets the error."""
        self._stop_timer()
        self._exchange.wake(error)

    def abort(self) -> None:
        """Closes the connection at once. In the loop's thread only; see ``drop``."""
        self._stop_timer()
        self._exchange.abort()

    def finish(self) -> None:
        """Gives the connection back to the pool."""
        self._stop_timer()
        self._exchange.finish()

    def drop(self) -> None:
        """Aborts from wherever the last reference went: another thread, or no running loop at all."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self.abort()
            return
        with suppress(RuntimeError):  # the loop is closed, and so is everything that was open in it
            self._loop.call_soon_threadsafe(self.abort)

    def _stop_timer(self) -> None:
        self._total_at = self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        now = self._loop.time()
        if now < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._tick)
            return
        limit: TimeoutLimit = "total" if self._total_at is not None and now >= self._total_at else "idle"
        self._exchange.wake(expired(limit, getattr(self._timeouts, limit), sent=True))
