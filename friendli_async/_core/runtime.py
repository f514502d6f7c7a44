"""State that a client shares with its ``with_options`` copies: the pool, the calls in flight, and their shutdown."""

from __future__ import annotations

import asyncio
import atexit
import os
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakSet

from msgspec import structs

from friendli_async._core.loops import call_in_loop, running_loop
from friendli_async._core.net.clock import TimeLimit
from friendli_async._core.pacing import Pace
from friendli_async._core.work import Work, current_lineage, current_scope
from friendli_async.errors import APIConnectionError, ConfigurationError, StreamInterruptedError
from friendli_async.replies import Gauges, LoopGauges

if TYPE_CHECKING:
    from friendli_async._core.net.transport import Transport

# drain() polls: calls end in any loop of any thread, and those of a closed loop end unnoticed.
_POLL_SECONDS: Final = 0.05
# How long drain() waits at most for calls that it has interrupted. Most end in the next turns of the loop, but a token
# callable, for example, may suppress its cancellation.
_END_SECONDS: Final = 1.0
_END_TURNS: Final = 8


class InFlightCall(Protocol):
    """A call in flight, as far as its client needs to know it."""

    loop: asyncio.AbstractEventLoop
    held: bool
    """Whether a rate-limit hold pauses it."""

    def interrupt(self, error: APIConnectionError) -> None:
        """Makes the call raise the error at its loop's next turn."""
        ...


class Runtime:
    """State shared by a client and its copies. All of them have the same one.

    Attributes:
        calls: Calls in flight, including those that wait for their next attempt.
        works: Work of more than one call, from its first call on.
        pace: Rate-limit holds and the retry budget.
        lock: Held while a drain or the close begins, and while work begins without a call.
    """

    def __init__(self, transport: Transport, max_connections: int) -> None:
        self.transport = transport
        self.max_connections = max_connections
        self.calls: set[InFlightCall] = set()
        self.works: set[Work] = set()
        self.pace: Pace = Pace()
        self._loops: frozenset[int] = frozenset()  # the ids of the loops with calls, when another one was last used
        self._draining = False
        self.lock: Lock = Lock()
        _runtimes.add(self)

    # --- calls ---------------------------------------------------------------------------------------------------

    def begin(self, call: InFlightCall) -> None:
        """Registers a call, until ``end``.

        Raises:
            ConfigurationError: The client is closed, or is being drained.
        """
        if id(call.loop) not in self._loops:  # no new loop has the id of a closed one, which its calls keep in memory
            self._forget_closed_loops()
            self._loops = frozenset([id(each.loop) for each in (call, *self.calls)])
        self.calls.add(call)  # before the check: a drain in another thread either waits for the call or rejects it
        self.check()
        if (scope := current_scope.get()) is not None:
            scope.begin(self.works, call.loop)

    def begin_work(self, work: Work) -> None:
        """Makes work that does not begin with a call open work of the client.

        Raises:
            ConfigurationError: The client is closed, or is being drained.
        """
        with self.lock:  # a drain in another thread either waits for the work or rejects it
            self.check()
            work.begin(self.works, running_loop())

    @contextmanager
    def as_one_call(self, begun_in: asyncio.AbstractEventLoop | None = None) -> Generator[None, None, None]:
        """Makes the calls that begin in this context one piece of work, of a call that has begun if a loop is given."""
        with closing(Work()) as work, work.making_calls():
            if begun_in is not None:
                work.begin(self.works, begun_in)
            yield

    def check(self) -> None:
        """Raises ConfigurationError if no new call may start."""
        if self.transport.closed:
            raise ConfigurationError("the client is closed", draining=True)
        if self._draining and self.works.isdisjoint(current_lineage()):
            raise ConfigurationError("draining: the client is being shut down and makes no new calls", draining=True)

    def end(self, call: InFlightCall) -> None:
        """Removes a call that has ended, or has become an open stream."""
        self.calls.discard(call)

    def _forget_closed_loops(self) -> None:
        """Removes the calls of closed loops: they never end, and keep task and socket."""
        self.calls.difference_update([call for call in list(self.calls) if call.loop.is_closed()])

    def _calls_in_flight(self) -> int:
        self._forget_closed_loops()
        return len(self.calls)

    def _work_in_flight(self) -> int:
        """Returns how much there is to wait for. Work that drains the client itself, such as a tool's run, is not."""
        works = sum(not work.loop.is_closed() for work in self.works - current_lineage())
        connections = sum(loop.in_use + loop.waiting for loop in self.transport.gauges().values())
        return works + self._calls_in_flight() + connections

    # --- gauges --------------------------------------------------------------------------------------------------

    def gauges(self) -> Gauges:
        """Returns the current state of the calls and the pool."""
        calls = [call for call in list(self.calls) if not call.loop.is_closed()]
        counts, pools = Counter(call.loop for call in calls), self.transport.gauges()
        waiting = [work for work in self._own_works() if work.is_between_calls and not work.loop.is_closed()]
        runs = Counter(work.loop for work in waiting)
        loops = tuple(
            structs.replace(pools.get(loop, LoopGauges()), calls_in_flight=counts[loop], runs_between_calls=runs[loop])
            for loop in {**pools, **counts, **runs}
        )
        sums = {name: sum(getattr(loop, name) for loop in loops) for name in LoopGauges.__struct_fields__}
        return Gauges(
            **sums,
            held=sum(call.held for call in calls),
            max_connections=self.max_connections,
            loops=loops,
        )

    # --- shutdown ------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> int:
        """Rejects new calls, and waits for those in flight and open works; see ``AsyncFriendli.drain``."""
        running_loop()  # without one nothing is drained, and calls are still accepted
        with self.lock:
            self._draining = True
        with suppress(TimeoutError), TimeLimit(timeout):
            while self._work_in_flight():  # noqa: ASYNC110  # not every end is notified
                await asyncio.sleep(_POLL_SECONDS)
        open_now = self.gauges()
        aborted = open_now.calls_in_flight + open_now.open_streams + open_now.runs_between_calls
        reason = "the client was drained, and the drain timed out"
        is_inside = not self.works.isdisjoint(current_lineage())  # a tool that drains is itself interrupted
        self._interrupt(reason)
        self.transport.abort(reason)
        if not is_inside:
            await self._wait_interrupted()
        return aborted

    async def _wait_interrupted(self) -> None:
        """Waits until what was interrupted has raised its error: a task that is cancelled earlier would not get it."""
        with suppress(TimeoutError), TimeLimit(_END_SECONDS):
            while True:
                for _ in range(_END_TURNS):
                    await asyncio.sleep(0)
                if not self._calls_in_flight():
                    return
                await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Interrupts everything in flight, and closes the pool."""
        with self.lock:
            self.transport.closed = True  # before the interrupt: a call that another thread starts now fails its check
        self._interrupt("the client was closed")
        await self.transport.close()

    def _own_works(self) -> list[Work]:
        return [work for work in list(self.works) if work.is_of(self.works)]

    def _interrupt(self, reason: str) -> None:
        for work in self._own_works():
            if work.interrupt is not None:
                call_in_loop(work.loop, work.interrupt, StreamInterruptedError(reason, draining=True))
        self.works.clear()
        for call in list(self.calls):
            # In this loop at once: a call whose turn is next would otherwise fail on the closing transport.
            call_in_loop(call.loop, call.interrupt, APIConnectionError(reason, draining=True))


_runtimes: Final[WeakSet[Runtime]] = WeakSet()


def _after_fork() -> None:
    """Releases inherited sockets in a forked child, even if the child never uses them.

    Otherwise aiohttp would, when the child exits, remove the sockets from the epoll set that both processes share, and
    the parent would no longer be notified of them.
    """
    for runtime in list(_runtimes):
        runtime.calls.clear()
        runtime.works.clear()
        runtime.lock = Lock()  # another thread of the parent may have held it
        runtime.transport.abandon_after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    """Discards the pools of loops that were closed without being shut down, or never closed (nest_asyncio)."""
    for runtime in list(_runtimes):
        runtime.transport.discard()
