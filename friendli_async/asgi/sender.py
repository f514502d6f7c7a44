"""Sends one response: pings while there is nothing to send, and gives up on a browser that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, MutableMapping
from contextlib import suppress
from math import inf
from typing import Any, Final

from friendli_async._core.held import Held
from friendli_async._core.loops import wait_done
from friendli_async._core.net.clock import Deadline
from friendli_async.asgi.disconnect import Send

_PING: Final = b": ping\n\n"
_LAST_SECONDS: Final = 1.0
"""``send_timeout`` once the stream was ended from outside: long enough for a browser that reads to get the error."""
_LONGEST_CHECK: Final = 3600.0  # seconds between two checks


class EventSender(Deadline):
    """Sends the messages of one response, within ``run``.

    Its one deadline is for what it does by itself: it starts the response early, pings, or gives up (``_expire``). All
    three are rare, so messages do not move the deadline: ``_expire`` moves it if they have been sent meanwhile. A ping
    is sent in a task of its own, and the next piece waits for it.

    Args:
        send: The ASGI send callable.
        heartbeat: Seconds without a message after which a ping is sent, or None.
        send_timeout: Seconds that the server may take to accept a message, or None.

    Attributes:
        answered: Whether the response has been started.
        gave_up: Whether ``run`` has ended because the browser stopped reading.
    """

    def __init__(self, send: Send, heartbeat: float | None, send_timeout: float | None) -> None:
        super().__init__(asyncio.get_running_loop())
        self.answered: bool = False
        self.gave_up: bool = False
        self._send = send
        self._heartbeat = inf if heartbeat is None else heartbeat
        self._send_timeout = inf if send_timeout is None else send_timeout
        self._scope: asyncio.Timeout | None = None  # of ``run``: ends its work
        self._last = 0.0  # when the last message was passed to the server
        self._is_sending = False
        self._is_stuck = False  # the browser does not read, which ends the work
        self._ping: asyncio.Task[None] | None = None
        self._failure: Held[Exception] | None = None  # of a ping
        self._early_head: MutableMapping[str, Any] | None = None  # starts the response if the deadline expires before

    async def run(self, work: Awaitable[None], failed: bytes) -> None:
        """Awaits the work, which sends the response, then ends the response.

        Ends the work, without an error, if the browser stops reading; then ``gave_up`` is true.

        Not an async context manager: from Python 3.12 on, contextlib's frame would keep an error that does not leave
        it, and the error's traceback the frame.

        Args:
            work: What to do; its exceptions propagate.
            failed: Sent before the end if there was one, once the response has been started.
        """
        try:
            async with asyncio.timeout(None) as self._scope:
                try:
                    await work
                    await self.end()
                except Exception:  # raised by the user's code, or by the server because the connection is broken
                    if self.answered:
                        with suppress(Exception):
                            await self.send(failed)
                            await self.end()
                    raise
                finally:
                    await self._close()
        except TimeoutError:
            if not self._is_stuck:
                raise
            self.gave_up = True

    async def _close(self) -> None:
        """Stops the pings."""
        self._scope = None  # it refers to the task, whose error may refer to the stream, which refers to this
        self._disarm()
        if self._ping is not None:
            self._ping.cancel()
            try:
                await self._finish_ping(self._ping)
            finally:
                self._failure = None  # if that was cancelled, nobody raises it, and its traceback refers to this object

    # --- messages ------------------------------------------------------------------------------------------------

    async def answer(self, head: MutableMapping[str, Any]) -> None:
        """Starts the response."""
        self.answered = True
        self._watch()
        await self._pass_on(head)

    def answer_after(self, seconds: float, head: MutableMapping[str, Any]) -> None:
        """Starts the response and sends a ping after a number of seconds, unless it is answered or closed before."""
        self._early_head = head
        self.reschedule(self.now() + seconds)

    def send(self, data: bytes) -> Awaitable[None]:
        """Sends data that ends at an event boundary; completes once the server has accepted it."""
        return self._pass_on(_body(data, more=True))

    def end(self) -> Awaitable[None]:
        """Ends the response."""
        return self._pass_on(_body(b"", more=False))

    async def _pass_on(self, message: MutableMapping[str, Any]) -> None:
        self._is_sending = True
        if self._ping is not None:
            await self._finish_ping(self._ping)
        self._last = self.now()
        await self._send(message)
        self._is_sending = False

    # --- pings ---------------------------------------------------------------------------------------------------

    def _start_ping(self, *before: MutableMapping[str, Any]) -> None:
        self._last = self.now()
        self._ping = self.loop.create_task(self._send_ping(before))

    async def _send_ping(self, before: tuple[MutableMapping[str, Any], ...]) -> None:
        try:
            for message in (*before, _body(_PING, more=True)):  # a server may hold back the head until there is a body
                await self._send(message)
        except Exception as error:  # the connection is broken: `_close` raises it
            self._failure = Held(error)
            self._end_work()

    async def _finish_ping(self, ping: asyncio.Task[None]) -> None:
        """Waits for the ping, and raises its failure.

        If this wait is cancelled first, the cancellation is the context of the failure, and its traceback has the task,
        which therefore must not keep the failure: a reference cycle.
        """
        await wait_done((ping,))
        self._ping = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.take()

    # --- the deadline --------------------------------------------------------------------------------------------

    def hurry(self, _reason: object = None) -> None:
        """Gives up soon on a browser that does not read from now on: the stream was ended from outside."""
        self._send_timeout = min(self._send_timeout, _LAST_SECONDS)
        if self.answered:
            self._watch()

    def _watch(self, until: float = inf) -> None:
        """Sets the deadline, to an earlier time if another limit may apply by then."""
        if self._scope is not None:  # else the work is ending: with eager tasks, because of the ping just sent
            latest = self.now() + min(self._heartbeat, self._send_timeout, _LONGEST_CHECK)
            self.reschedule(min(until, latest))

    def _expire(self) -> None:
        is_sending = self._is_sending or (self._ping is not None and not self._ping.done())
        due = self._last + (self._send_timeout if is_sending else self._heartbeat)
        if not self.answered and self._early_head is not None:
            self.answered = True
            self._start_ping(self._early_head)
            self._watch()
        elif self.now() < due:  # not a difference of times: rounding may leave a rest that never passes
            self._watch(due)
        elif is_sending:
            self._is_stuck = True
            self._end_work()
        else:
            self._start_ping()
            self._watch()

    def _end_work(self) -> None:
        self._disarm()  # the work may take long to end: what it runs is cleaned up
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.reschedule(self.loop.time())


def _body(data: bytes, *, more: bool) -> MutableMapping[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
