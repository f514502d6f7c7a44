"""Time limits. One timer a call or stream: it moves only when it fires, and lets the loop turn before it gives up."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Final, Self

from friendli_async.errors import APIConnectionError, APITimeoutError, FriendliError, TimeoutLimit
from friendli_async.options import Timeouts

__all__ = ["CallClock", "ReadClock", "expired"]

_WORDS: dict[TimeoutLimit, str] = {
    "pool": "no free connection",
    "connect": "no connection",
    "first_event": "no reply",
    "idle": "no event",
    "total": "the call was not done",
}

_LOOKS: Final = 8
"""Turns of the loop between a timer and its verdict. A program that blocks the loop for longer than a limit finds the
limit over and the bytes in the socket: a turn reads them, some more take them to whoever waits for them."""


def expired(limit: TimeoutLimit, seconds: float, *, sent: bool, detail: str = "") -> APITimeoutError:
    """The error of an expired limit."""
    return APITimeoutError(
        f"{_WORDS[limit]} within {seconds:g} s ({limit}{detail and ': ' + detail})",
        limit=limit,
        seconds=seconds,
        sent=sent,
    )


class _Deadline:
    """A point in time that may be moved. When it has passed, and nothing moved it in the next turns, ``_over`` runs."""

    __slots__ = ("_handle", "_looks", "_timer_at", "loop", "now", "when")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        # What ``loop.time`` reads, without the method around it where that is asyncio's own.
        own = getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time
        self.now: Callable[[], float] = monotonic if own else loop.time
        self.when: float | None = None
        self._handle: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._looks = 0

    def move(self, when: float | None) -> None:
        """Sets it. A timer that would fire earlier is left as it is: it will find that the time has not come."""
        self.when = when
        if when is not None and (self._handle is None or when < self._timer_at):
            self._arm(when)

    def _arm(self, when: float) -> None:
        self._disarm()
        self._handle = self.loop.call_at(when, self._look)
        self._timer_at = when
        self._looks = 0

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        self._handle = None
        if self.when is None:
            return
        if self.now() < self.when:
            self._arm(self.when)
        elif self._looks < _LOOKS:
            self._looks += 1
            self._timer_at = self.when
            self._handle = self.loop.call_soon(self._look)
        else:
            self._over()

    def _over(self) -> None:
        raise NotImplementedError


class CallClock(_Deadline):
    """A call's limits up to its first event, or its whole reply: a scope around each attempt, and around each wait.

    Each phase of an attempt has its limit, and ``total`` cuts into all of them. It works as ``asyncio.timeout`` does,
    by cancelling the task, and costs a fraction of it, since most phases end long before their limit.

    Args:
        timeouts: The limits.
        loop: The running loop.

    Attributes:
        sent: Whether the request of the attempt can have been accepted by now.
    """

    __slots__ = (
        "_cancelling",
        "_detail",
        "_expired",
        "_interruption",
        "_limit",
        "_task",
        "sent",
        "timeouts",
        "total_at",
    )

    def __init__(self, timeouts: Timeouts, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.timeouts: Timeouts = timeouts
        self.total_at: float | None = None if timeouts.total is None else self.now() + timeouts.total
        self.sent: bool = False
        self._limit: TimeoutLimit = "total"
        self._detail: Callable[[], str] | None = None
        self._interruption: FriendliError | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._expired = False

    @property
    def interrupted(self) -> bool:
        """Whether the call has been told to end."""
        return self._interruption is not None

    def time_left(self) -> float | None:
        """Seconds until the total limit, or None."""
        return None if self.total_at is None else self.total_at - self.now()

    def phase(self, limit: TimeoutLimit, detail: Callable[[], str] | None = None) -> None:
        """Begins a phase; ``detail`` adds to the error's words should its limit expire."""
        seconds: float | None = getattr(self.timeouts, limit)
        when = None if seconds is None else self.now() + seconds
        total_at = self.total_at
        if total_at is not None and (when is None or total_at < when):
            limit, when = "total", total_at
        self._limit = limit
        self._detail = detail
        if self._interruption is None:
            self.move(when)

    def interrupt(self, error: FriendliError) -> None:
        """Ends the attempt or wait with this error, at the loop's next turn; further ones do not begin."""
        if self._interruption is None:
            self._interruption = error
            if self._task is not None:
                self._disarm()
                self._handle = self.loop.call_soon(self._over)

    def __enter__(self) -> Self:
        if self._interruption is not None:
            raise copy.copy(self._interruption)  # its traceback would hold this clock, which holds it
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False
        self._limit, self._detail = "total", None
        self.move(self.total_at)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self.move(None)
        self._disarm()
        if not self._expired or task is None:
            return
        if task.uncancel() > self._cancelling or kind is not asyncio.CancelledError:
            return  # the caller's own cancellation goes first
        if self._interruption is not None:
            if isinstance(self._interruption, APIConnectionError):
                self._interruption.sent = self.sent
            raise copy.copy(self._interruption) from None
        detail = self._detail() if self._detail is not None else ""
        raise expired(self._limit, getattr(self.timeouts, self._limit), sent=self.sent, detail=detail) from None

    def _over(self) -> None:
        if self._task is not None and not self._expired:
            self._expired = True
            self._task.cancel()


class ReadClock(_Deadline):
    """An open stream's limits: ``idle`` while somebody waits for its next event, ``total`` all the time.

    Args:
        timeouts: The limits.
        total_at: The loop's time at which ``total`` is over, or None.
        loop: The stream's loop.
        give_up: Called with the error of a limit that is over. It must not know the stream's user, or that user's last
            reference could not end the stream.
    """

    __slots__ = ("_give_up", "_idle", "_timeouts", "_total_at")

    running_loop = staticmethod(asyncio.get_running_loop)
    """At hand for each event, in modules that a bare import loads, and which do without asyncio."""

    def __init__(
        self,
        timeouts: Timeouts,
        total_at: float | None,
        loop: asyncio.AbstractEventLoop,
        give_up: Callable[[APITimeoutError], object],
    ) -> None:
        super().__init__(loop)
        self._timeouts = timeouts
        self._idle = timeouts.idle
        self._total_at = total_at
        self._give_up: Callable[[APITimeoutError], object] | None = give_up
        if total_at is not None:
            self.move(total_at)

    def wait_begins(self) -> None:
        """Somebody waits for the next event from now on."""
        idle = self._idle
        if idle is None:
            return
        when = self.now() + idle
        if self._total_at is not None and self._total_at < when:
            when = self._total_at
        self.when = when
        if self._handle is None or when < self._timer_at:
            self._arm(when)

    def wait_ends(self) -> None:
        """Nobody waits any more; only the total runs on."""
        self.when = self._total_at

    def carry_over(self, *, rest: bool, waited: bool) -> None:
        """Says how long the next wait may be, where one does not go on until there is an event.

        Args:
            rest: Whether no event has come: then only what is left of this wait; else all of the limit again.
            waited: Whether it was waited for.
        """
        if self._give_up is None or self._idle is None:
            return
        if not rest:
            self._idle = self._timeouts.idle
        elif waited and self.when is not None:
            self._idle = max(0.0, self.when - self.now())

    def stop(self) -> None:
        """The stream has ended: no limit holds any more."""
        self._idle = self._total_at = self.when = self._give_up = None
        self._disarm()

    def _over(self) -> None:
        give_up = self._give_up
        if give_up is not None:
            total = self._total_at is not None and self.now() >= self._total_at
            limit: TimeoutLimit = "total" if total else "idle"
            give_up(expired(limit, getattr(self._timeouts, limit), sent=True))
