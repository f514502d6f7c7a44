"""What a client and its ``with_options`` copies share: the pool, the calls under way, and how all of it ends."""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakSet

from friendli_async._core.pacing import Pace
from friendli_async.errors import APIConnectionError, ConfigurationError, FriendliError
from friendli_async.replies import Gauges, LoopGauges

if TYPE_CHECKING:
    from friendli_async._core.net.transport import Transport

__all__ = ["CallUnderWay", "ChangeSignal", "Runtime"]

# A loop that is closed in another thread, with calls in it, tells nobody.
_LOOK_SECONDS: Final = 1.0


class CallUnderWay(Protocol):
    """A call under way, as far as its client has to know it."""

    loop: asyncio.AbstractEventLoop

    def interrupt(self, error: FriendliError) -> None:
        """Makes it raise the error, at its loop's next turn."""
        ...


class ChangeSignal:
    """Called whenever a call or an exchange ends, in whatever loop; tells who listens, if anybody does.

    The transport has this and not the runtime, which has the transport: in a circle, a client that nobody holds any
    more would stay open until the garbage collector came.
    """

    __slots__ = ("listeners",)

    def __init__(self) -> None:
        self.listeners: set[Callable[[], None]] = set()

    def __call__(self) -> None:
        if self.listeners:
            for listener in tuple(self.listeners):
                listener()


class Runtime:
    """What a client and its copies share. There is one of it, however many copies are made.

    Args:
        transport: The pool.
        changes: What the transport calls when an exchange has ended.
        max_connections: Places per event loop.

    Attributes:
        calls: Calls that are being made, or wait for their next attempt.
        changed: Called when something that was under way has ended.
        pace: What they learn from each other.
    """

    def __init__(self, transport: Transport, changes: ChangeSignal, max_connections: int) -> None:
        self.transport = transport
        self.max_connections = max_connections
        self.calls: set[CallUnderWay] = set()
        self.pace: Pace = Pace()
        self.changed = changes
        self._draining = False
        _runtimes.add(self)

    # --- calls ---------------------------------------------------------------------------------------------------

    def begin(self, call: CallUnderWay) -> None:
        """A call begins.

        Raises:
            ConfigurationError: The client is closed, or is being drained.
        """
        self.calls.add(call)  # first: a drain in another thread waits for it, or it sees the drain
        try:
            self.check()
        except ConfigurationError:
            self.end(call)
            raise

    def check(self) -> None:
        """Raises ConfigurationError where nothing new may begin."""
        if self.transport.closed:
            raise ConfigurationError("the client is closed")
        if self._draining:
            raise ConfigurationError("draining: the client is being shut down and makes no new calls")

    def end(self, call: CallUnderWay) -> None:
        """A call has ended, or has become an open stream."""
        self.calls.discard(call)
        self.changed()

    def _calls_in_flight(self) -> int:
        """How many calls there are, but for those whose loop was closed under them: they do not end any more."""
        self.calls.difference_update([call for call in tuple(self.calls) if call.loop.is_closed()])
        return len(self.calls)

    def _under_way(self) -> int:
        return self._calls_in_flight() + sum(loop.in_use + loop.waiting for loop in self.transport.gauges())

    # --- gauges --------------------------------------------------------------------------------------------------

    def gauges(self) -> Gauges:
        """What is under way."""
        loops = tuple(self.transport.gauges())
        sums = {name: sum(getattr(loop, name) for loop in loops) for name in LoopGauges.__struct_fields__}
        return Gauges(
            **sums, calls_in_flight=self._calls_in_flight(), max_connections=self.max_connections, loops=loops
        )

    # --- the end -------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> int:
        """Makes no new calls, and waits for those under way; see ``AsyncFriendli.drain``."""
        self._draining = True
        loop = asyncio.get_running_loop()
        idle = loop.create_future()

        def listen() -> None:
            if not self._under_way():
                with suppress(RuntimeError):  # this loop has closed
                    loop.call_soon_threadsafe(_release, idle)

        self.changed.listeners.add(listen)  # before the look, or the last call of another thread ends in between
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    while self._under_way() and not idle.done():
                        await asyncio.wait((idle,), timeout=_LOOK_SECONDS)
        finally:
            self.changed.listeners.discard(listen)
        cut = self._calls_in_flight() + self.gauges().open_streams
        reason = "the client was drained, and the time for that is over"
        self._interrupt(reason)
        self.transport.abort(reason)
        return cut

    async def close(self) -> None:
        """Ends all that is under way, and closes the pool."""
        self.transport.closed = True  # first: a call of another thread is interrupted, or it sees that
        self._interrupt("the client was closed")
        await self.transport.close()

    def _interrupt(self, reason: str) -> None:
        here = asyncio.get_running_loop()
        for call in tuple(self.calls):
            error = APIConnectionError(reason)
            if call.loop is here:  # at once: a call whose turn is next would else meet what its end leads to
                call.interrupt(error)
            else:
                with suppress(RuntimeError):  # its loop has closed
                    call.loop.call_soon_threadsafe(call.interrupt, error)


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


_runtimes: Final[WeakSet[Runtime]] = WeakSet()


def _after_fork() -> None:
    """A child lets go of what it has inherited, also where it never uses it.

    At the child's exit aiohttp would take the sockets out of the poll that both processes share, and the parent would
    hear no more of them.
    """
    for runtime in list(_runtimes):
        runtime.calls.clear()
        runtime.transport.leave_the_parent()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    """Loops that were closed without being shut down, or not at all (nest_asyncio's), have left their pools open."""
    for runtime in list(_runtimes):
        runtime.transport.discard()
