"""Makes the calls of a run's rows, and tells its gate of each reply and each rejection by load.

A row that the server rejected because of its load, or that found no server, is sent again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Final, Generic, TypeVar

from friendli_async._core.held import weak_method
from friendli_async._core.pacing import is_rejected_by_load, on_rejection
from friendli_async.bulk.errors import is_overload, is_unsent
from friendli_async.bulk.gate import Gate
from friendli_async.errors import APIStatusError, ConfigurationError, FriendliError
from friendli_async.replies import Meta, Reply, usage_of
from friendli_async.streams.stream import EventStream

Row = TypeVar("Row")
R = TypeVar("R")

_Reported = set[tuple[int, float]]
"""The attempts of a call whose rejections were reported to the gate, by their number and duration."""

_logger: Final = logging.getLogger("friendli_async")
_MAX_RESENDS: Final = 5
_MAX_RESEND_WAIT: Final = 3600.0
"""How often a row is sent again, and how many seconds it waits for that in all. A pause of the run does not last
longer, either: then the server is asked again, or the run ends if no row is left."""
_FIRST_BACKOFF: Final = 0.5
_BACKOFF_FACTOR: Final = 3.0
"""The waits of a row without a ``Retry-After``: just over a minute in all, since many limits are per minute."""
_RATE_LIMITED: Final = 429


class RunState:
    """How far a run has ended. Its job changes this; others read it.

    Attributes:
        stopped: No more rows are taken, and none is sent again.
        closed: The calls in flight are cancelled, too: a cancellation then ends a row, instead of its wait.
    """

    def __init__(self) -> None:
        self.stopped: bool = False
        self.closed: bool = False


class RowSender(Generic[Row, R]):
    """Makes the call for each row, and makes it again if the server was overloaded or not reached.

    Args:
        call: See ``run_all``.
        gate: The run's gate. Whoever calls ``send`` has taken a permit.
        state: The run's state.

    Attributes:
        refused: The rejections so far.
        tokens: The completion tokens so far.
    """

    def __init__(self, call: Callable[[Row], Awaitable[R]], gate: Gate, state: RunState) -> None:
        self.refused: int = 0
        self.tokens: int = 0
        self._call = call
        self._gate = gate
        self._state = state
        # A connection that a call opens keeps the call's context, which must not keep the user's function alive.
        self._report_weakly = weak_method(self._report_rejection)
        self._resending: set[asyncio.Task[None]] = set()  # tasks without a permit, which wait to send a row again
        self._is_outage_known = False  # a row found no connection, which was logged, until no row waits

    async def send(self, row: Row) -> tuple[R | None, Exception | None, int]:
        """Makes the call for one row, with a permit, and again while ``_resend_wait`` allows it.

        Returns:
            The reply, the error, and the number of requests.

        Raises:
            BaseException: What the call raises that is not an Exception; a CancelledError only if its task was
                cancelled.
        """
        if self._state.closed:  # in this turn: the task is cancelled in the next one
            raise CancelledError
        attempts, resends, waited = 0, 0, 0.0
        reply: R | None = None
        error: Exception | None = None
        try:
            while True:
                reply, error = await self._make_call(row)
                meta = _meta_of(reply if error is None else error)
                attempts += 1 if meta is None else len(meta.attempts)
                wait = _resend_wait(error, resends)
                if wait is None or resends == _MAX_RESENDS or waited + wait > _MAX_RESEND_WAIT:
                    break
                resends, waited = resends + 1, waited + wait
                self._log_resend(error, wait)
                if self._state.stopped or not await self._wait_to_resend(wait):
                    break
            return reply, error, max(1, attempts)
        finally:
            reply = error = None  # from 3.12 on an error's traceback has this frame: avoid a cycle

    def _log_resend(self, error: Exception | None, wait: float) -> None:
        """Logs that a row is sent again; the first row of an outage as a warning, since nothing else reports it yet."""
        if not is_unsent(error):
            _logger.info("run_all: a rate limit rejected a row, which is sent again in %.1f s", wait)
            return
        level = logging.INFO if self._is_outage_known else logging.WARNING
        self._is_outage_known = True
        _logger.log(level, "run_all: no connection for a row, which is sent again in %.1f s: %s", wait, error)

    def end_waits(self) -> None:
        """Ends the waits of rows to be sent again, for a run that has been stopped."""
        for task in self._resending:
            task.cancel()

    def return_permit(self, task: asyncio.Task[None]) -> None:
        """Returns the permit of a task that has ended, unless that was waiting without one to send its row again."""
        if task not in self._resending:
            self._gate.release()

    async def _wait_to_resend(self, wait: float) -> bool:
        """Waits, and then for a permit; the gate gives none before a ``Retry-After``. Returns False if stopped."""
        task = asyncio.current_task()
        assert task is not None
        self._gate.release()
        self._resending.add(task)
        try:
            await asyncio.sleep(wait)
            await self._gate.acquire()
        except CancelledError:
            if self._state.closed or not self._state.stopped:
                raise
            return False
        self._resending.discard(task)
        return True

    async def _make_call(self, row: Row) -> tuple[R | None, Exception | None]:
        """Makes the call once.

        It is not a part of ``send``, whose frame would then be in the traceback of the error that it holds: a cycle.
        """
        started_at = asyncio.get_running_loop().time()
        reported: _Reported = set()
        on_rejection.set(partial(self._report_weakly, reported))
        try:
            reply = await _awaitable(self._call(row))
            await _check_reply(reply)
        except Exception as error:
            if is_rejected_by_load(error):
                self._report_late(reported, error)
            return None, error
        except CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return None, _cancelled_call(error)  # raised by what it awaited: nobody has cancelled the row
        self._report_reply(reply, asyncio.get_running_loop().time() - started_at)
        return reply, None

    def _report_reply(self, reply: R, seconds: float) -> None:
        """Counts the tokens of a reply, and reports it to the gate; ``seconds`` is what the call took."""
        self._is_outage_known = self._is_outage_known and bool(self._resending)
        usage = usage_of(reply)
        tokens = usage.completion_tokens if usage is not None else 0
        self.tokens += tokens
        meta = _meta_of(reply)
        if meta is not None and meta.attempts:  # without the time of failed attempts, and of waits
            seconds = meta.attempts[-1].elapsed + _seconds_after_first_event(meta) or seconds
        self._gate.succeeded(tokens, seconds)

    def _report_rejection(self, reported: _Reported, error: APIStatusError, wait: float | None) -> float | None:
        """Reports the rejection of an attempt to the gate, at once: the call goes on with its retries.

        Args:
            reported: The attempts of the call that were reported so far.
            error: The rejection.
            wait: The seconds until the next attempt; None if there is none.

        Returns:
            The same, or more if the gate asks for it. If it asks for a long wait, None: the call fails, and its row
            waits without a permit.
        """
        assert error.meta is not None
        attempt = error.meta.attempts[-1]
        reported.add((attempt.number, attempt.elapsed))
        self._refuse(error, attempt.elapsed)
        if wait is None:
            return None
        delay = self._gate.retry_delay()
        return None if delay is None else max(wait, delay)

    def _report_late(self, reported: _Reported, error: APIStatusError) -> None:
        """Reports a rejection with which a call has failed, unless it was reported as that of an attempt."""
        if error.meta is None:  # raised by the user's own function
            self._refuse(error, None)
        elif not error.meta.attempts:  # not sent: paused by a hold of the client, which an earlier rejection started
            self._gate.hold(_pause_after(error))
        else:
            attempt = error.meta.attempts[-1]
            if (attempt.number, attempt.elapsed) not in reported:  # rejected inside its stream, which was open
                self._refuse(error, attempt.elapsed + _seconds_after_first_event(error.meta))

    def _refuse(self, error: APIStatusError, ago: float | None) -> None:
        self.refused += 1
        self._gate.refused(_pause_after(error), ago=ago, is_rate_limit=error.status_code == _RATE_LIMITED)


def _awaitable(made: Awaitable[R]) -> Awaitable[R]:
    """Returns what ``call`` returned; raises ConfigurationError, which can end the run, if it is a plain function."""
    if not isawaitable(made):
        raise ConfigurationError(f"call must be a coroutine function: its {type(made).__name__} cannot be awaited")
    return made


async def _check_reply(reply: Any) -> None:
    """Closes a coroutine or an unread stream in place of an answer, and raises ConfigurationError."""
    name: str = type(reply).__name__
    if isinstance(reply, CoroutineType):
        reply.close()  # without a warning that it was never awaited
    elif isinstance(reply, EventStream) and reply.outcome == "open":
        await reply.aclose()
    else:
        return
    raise ConfigurationError(
        f"call returned a {name} that is not awaited or read: return its answer, such as `await stream.result()`"
    )


def _resend_wait(error: Exception | None, resends: int) -> float | None:
    """Returns the seconds until a row is sent again; None if it is not.

    It is if the server rejected it because of its load, before any content, or if it cannot have reached the server;
    but not if an earlier turn of a run has succeeded: its tools would be called again.
    """
    if is_overload(error):
        retry_after = error.retry_after
    elif is_unsent(error) and error.partial is None and not error.permanent:
        retry_after = None
    else:
        return None
    return retry_after or _FIRST_BACKOFF * _BACKOFF_FACTOR**resends * (1.0 + random.random() / 2)


def _pause_after(error: APIStatusError) -> float | None:
    """Returns the seconds for which a rejection pauses the run: its ``Retry-After``, up to an hour."""
    return None if error.retry_after is None else min(error.retry_after, _MAX_RESEND_WAIT)


def _cancelled_call(cancellation: CancelledError) -> FriendliError:
    """Returns the error of a row whose call raised CancelledError without being cancelled."""
    error = FriendliError("the call was cancelled by something that it awaited")
    error.__cause__ = cancellation
    return error


def _seconds_after_first_event(meta: Meta) -> float:
    """Returns what the ``elapsed`` of the last attempt lacks if the call was a stream."""
    return max(0.0, meta.timing.total - meta.elapsed)


def _meta_of(result: object) -> Meta | None:
    if isinstance(result, FriendliError):
        return result.meta
    if isinstance(result, Reply):
        return result.__dict__.get("_meta")
    return None
