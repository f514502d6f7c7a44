"""Timeouts: one lazily rescheduled timer per call or stream, with a few loop turns of grace before it expires.

A ``CallClock`` limits a call up to its first event or whole reply; then a ``ReadClock`` limits the open stream. Two
limits are elsewhere: ``connect`` on a session that was passed in, which aiohttp enforces (``failures.translate``), and
that of an error body (``exchange``).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Final, Self

from friendli_async.errors import APIConnectionError, APITimeoutError, TimeoutLimit
from friendli_async.options import Timeouts

_MESSAGES: Final[dict[TimeoutLimit, str]] = {
    "pool": "no free connection",
    "connect": "no connection",
    "first_event": "no reply",
    "idle": "no event",
    "total": "the call did not finish",
}

TURNS_TO_READ: Final = 8
"""Loop turns that received bytes get, before a timeout or the reuse of a connection is decided. After a program has
blocked the loop, they may still be in the socket: one turn reads them, and the others are a margin for TLS and for the
tasks that pass the bytes on. They cost microseconds."""

_BLOCKED_SECONDS: Final = 0.5
_BLOCKED: Final = "the event loop was blocked meanwhile"
"""Added to the error of a timer that fired so late: the program had no chance to read what had arrived."""


def timeout_error(limit: TimeoutLimit, seconds: float, *, sent: bool, detail: str) -> APITimeoutError:
    """Returns the error for an expired limit."""
    return APITimeoutError(
        f"{_MESSAGES[limit]} within {seconds:g} s ({limit}{detail and ': ' + detail})",
        limit=limit,
        seconds=seconds,
        sent=sent,
    )


class Deadline:
    """A deadline that can be moved. ``_expire`` runs if it has passed and is not moved during the grace turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        # asyncio's own ``loop.time`` only wraps ``monotonic``.
        own = getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time
        self.now: Callable[[], float] = monotonic if own else loop.time
        self.when: float | None = None
        self._handle: asyncio.Handle | None = None  # of the timer, the next grace turn, or an interruption
        self._timer_at = 0.0  # when it fires: maybe before the deadline, which may have been moved
        self._turns = 0  # of grace, since the deadline has passed
        self._was_blocked = False  # the event loop, when the deadline passed

    def reschedule(self, when: float | None) -> None:
        """Moves the deadline. An earlier timer is kept: when it fires, it finds that the deadline has not passed."""
        self.when = when
        if when is not None and (self._handle is None or when < self._timer_at):
            self._arm(when)

    def _arm(self, when: float) -> None:
        self._disarm()
        self._handle = self.loop.call_at(when, self._check)
        self._timer_at = when
        self._turns = 0

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _check(self) -> None:
        self._handle = None
        if self.when is None:
            return
        if self.now() < self.when:
            self._arm(self.when)
        elif self._turns < TURNS_TO_READ:
            if not self._turns:
                self._was_blocked = self.now() - self.when > _BLOCKED_SECONDS
            self._turns += 1
            self._timer_at = self.when
            self._handle = self.loop.call_soon(self._check)
        else:
            self._expire()

    def _expire(self) -> None:
        raise NotImplementedError

    def _timeout_error(
        self, timeouts: Timeouts, limit: TimeoutLimit, *, sent: bool, detail: str = ""
    ) -> APITimeoutError:
        detail = "; ".join(filter(None, (detail, _BLOCKED if self._was_blocked else "")))
        return timeout_error(limit, getattr(timeouts, limit), sent=sent, detail=detail)


class _TaskLimit(Deadline):
    """A deadline for the block of a ``with`` statement. Like ``asyncio.timeout``, it cancels the task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.expired: bool = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def _begin(self, when: float | None) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call must run in an asyncio task")
        self._task = task
        self._cancelling = task.cancelling()
        self.expired = False
        self.reschedule(when)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self.reschedule(None)
        self._disarm()
        if not self.expired or task is None:
            return
        if task.uncancel() > self._cancelling or kind is not asyncio.CancelledError:
            return  # the caller has cancelled it, too, or the block has ended otherwise: both take precedence
        del task  # it may keep the error raised below, whose traceback has this frame: a cycle
        raise self._error() from None

    def _expire(self) -> None:
        if self._task is not None and not self.expired:
            self.expired = True
            self._task.cancel()

    def _error(self) -> Exception:
        """Returns the error of the expired limit."""
        return TimeoutError()


class TimeLimit(_TaskLimit):
    """A time limit for a block, with the grace turns: what finished while the loop was blocked counts.

    Args:
        seconds: The limit; None is none.

    Attributes:
        expired: Whether the limit has expired.
    """

    def __init__(self, seconds: float | None) -> None:
        super().__init__(asyncio.get_running_loop())
        self._seconds = seconds

    def __enter__(self) -> Self:
        self._begin(None if self._seconds is None else self.now() + self._seconds)
        return self


class CallClock(_TaskLimit):
    """Limits of a call up to its first event or whole reply: a context manager around each attempt and each wait.

    Each phase of an attempt has its own limit, and ``total`` caps all of them. It costs a fraction of an
    ``asyncio.timeout``, since most phases end long before their limit.

    Args:
        timeouts: The limits.
        loop: The running loop.

    Attributes:
        timeouts: The limits.
        total_at: Loop time at which ``total`` expires, or None.
        interruption: The error of ``interrupt``.
        sent: Whether the server may have accepted the attempt's request by now.
    """

    def __init__(self, timeouts: Timeouts, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.timeouts: Timeouts = timeouts
        self.total_at: float | None = None if timeouts.total is None else self.now() + timeouts.total
        self.sent: bool = False
        self._limit: TimeoutLimit = "total"
        self._detail = ""
        self.interruption: APIConnectionError | None = None

    def time_left(self) -> float | None:
        """Returns the seconds until the total limit, or None if there is none."""
        return None if self.total_at is None else self.total_at - self.now()

    def begin_phase(self, limit: TimeoutLimit, detail: str = "") -> None:
        """Begins a phase. If the limit expires, the error has ``detail``: what the call waited for."""
        seconds: float | None = getattr(self.timeouts, limit)
        when = None if seconds is None else self.now() + seconds
        total_at = self.total_at
        if total_at is not None and (when is None or total_at < when):
            limit, when = "total", total_at
        self._limit = limit
        self._detail = detail
        if self.interruption is None:
            self.reschedule(when)

    def describe(self, detail: str) -> None:
        """Changes the ``detail`` of the current phase: the same limit now covers something else."""
        self._detail = detail

    def suspend(self) -> float | None:
        """Lifts the limit of the phase. Returns the seconds that it had left, or None if there is none."""
        when = self.when
        self.reschedule(None)
        return None if when is None else when - self.now()

    def interrupt(self, error: APIConnectionError) -> None:
        """Ends the attempt or wait with this error at the loop's next turn. Later ones raise it when they begin."""
        self.interruption = error
        self._disarm()
        self._handle = self.loop.call_soon(self._expire)

    def __enter__(self) -> Self:
        if self.interruption is not None:
            raise copy.copy(self.interruption)  # a traceback would form a cycle with this clock
        self._limit, self._detail = "total", ""
        self._begin(self.total_at)
        return self

    def _error(self) -> Exception:
        if self.interruption is not None:
            return copy.copy(self.interruption)
        return self._timeout_error(self.timeouts, self._limit, sent=self.sent, detail=self._detail)


class ReadClock(Deadline):
    """Limits of an open stream: ``idle`` while a reader waits for the next event, ``total`` throughout.

    Args:
        timeouts: The limits.
        total_at: Loop time at which ``total`` expires, or None.
        loop: The stream's loop.
        on_timeout: Called with the error of an expired limit. It must not reference the ``EventStream``, whose last
            reference could then not end the stream.
    """

    running_loop = staticmethod(asyncio.get_running_loop)
    """For ``streams``, which does not import asyncio: a bare import of the library loads it."""

    def __init__(
        self,
        timeouts: Timeouts,
        total_at: float | None,
        loop: asyncio.AbstractEventLoop,
        on_timeout: Callable[[APITimeoutError], object],
    ) -> None:
        super().__init__(loop)
        self._timeouts = timeouts
        self._idle = timeouts.idle
        self._total_at = total_at
        self._on_timeout = on_timeout
        self.reschedule(total_at)

    def begin_wait(self) -> None:
        """Starts the idle limit: a reader waits for the next event."""
        idle = self._idle
        if idle is None:
            return
        when = self.now() + idle
        if self._total_at is not None and self._total_at < when:
            when = self._total_at
        self.when = when  # from here on as ``reschedule``, whose call would cost each read of a live stream
        if self._handle is None or when < self._timer_at:
            self._arm(when)

    def end_wait(self) -> None:
        """Stops the idle limit; ``total`` keeps running."""
        self.when = self._total_at

    def carry_over(self, *, no_event: bool, waited: bool) -> None:
        """Sets the idle limit of the next wait, for a reader that returns after each read.

        Args:
            no_event: Whether the read has completed no event: the next wait then has only the rest of the limit.
            waited: Whether the read has waited, so that there is less left of the limit.
        """
        if self._idle is None:
            return
        if not no_event:
            self._idle = self._timeouts.idle
        elif waited and self.when is not None:
            self._idle = max(0.0, self.when - self.now())

    def stop(self) -> None:
        """Disables all limits: the stream has ended."""
        self._idle = self._total_at = self.when = None
        self._disarm()

    def _expire(self) -> None:
        total = self._total_at is not None and self.now() >= self._total_at
        limit: TimeoutLimit = "total" if total else "idle"
        self._on_timeout(self._timeout_error(self._timeouts, limit, sent=True))
