"""A stream's events to several readers.

No task of its own reads the stream: of the branches that wait, one reads for all, and when its reader goes, another
that waits takes over. Only opening has a task, since it cannot be handed over; it ends with the opening.

``Fanout`` is what the branches share. It knows neither them nor the stream, so that each of these ends when its last
reference goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, NoReturn, Self, TypeVar, get_args

from friendli_async._core.events.stream import running_loop
from friendli_async._core.held import Held
from friendli_async.errors import FriendliError, StreamInterruptedError
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    import asyncio

    from friendli_async.streams.stream import EventStream

__all__ = ["Branch", "BranchOverrunError", "Fanout", "Slow", "Trunk", "fanout_of"]

E = TypeVar("E")

Slow = Literal["wait", "drop", "fail"]
"""What happens when a branch is too far behind: the others wait for it, it misses events, or it ends with an error."""

_CANCELLED: Final = "a read of the branch was cancelled, which closed it"
_CLOSED: Final = "the branch was closed"


class BranchOverrunError(FriendliError):
    """A branch of ``tee(slow="fail")`` was too far behind the others. They, and the stream, go on without it."""


class _Place(Generic[E]):
    """What one branch has in store."""

    __slots__ = ("closed", "dropped", "events", "overrun", "task", "waiter")

    def __init__(self) -> None:
        self.events: deque[E] = deque()
        self.dropped: int = 0
        self.overrun: bool = False
        self.closed: bool = False
        self.task: asyncio.Task[Any] | None = None
        """Who waits for its next event."""
        self.waiter: asyncio.Future[None] | None = None
        """What that task waits for, unless it reads for all."""

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Fanout(Generic[E]):
    """The places of a stream's branches, and whose turn it is to read.

    Attributes:
        reading: Whether somebody reads for all.
        held_back: Whether somebody waits for room in another's place.
        loop: Where the branches are read; None before the first read.
        failure: What opening raised and is no error of the call (a token callable can fail): for one branch to raise.
        opening: The opening that is under way.
    """

    def __init__(self, n: int, limit: int, slow: Slow) -> None:
        self.reading: bool = False
        self.held_back: bool = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None
        self.opening: asyncio.Task[Any] | None = None
        self.limit: Final = limit
        self.slow: Final[Slow] = slow
        self.places: list[_Place[E]] = [_Place() for _ in range(n)]
        self._all = tuple(self.places)
        self.vacant: Iterator[_Place[E]] = iter(self._all)
        """The places that no branch has taken."""
        self._unbounded = False

    def room(self) -> int:
        """How many events fit into every place."""
        if self._unbounded:
            return 1 << 30
        return self.limit - max([len(place.events) for place in self.places], default=0)

    def spread(self, events: deque[E]) -> None:
        """Gives every place what fits into all of them."""
        room = self.room()
        if len(events) <= room:
            batch = list(events)
            events.clear()
        else:
            batch = [events.popleft() for _ in range(room)]
        for place in self.places:
            place.events.extend(batch)

    def force(self, event: E) -> None:
        """Gives an event to every place, and does with those that are full what ``slow`` says."""
        for place in tuple(self.places):
            if len(place.events) < self.limit:
                place.events.append(event)
            elif self.slow == "drop":
                place.events.popleft()
                place.events.append(event)
                place.dropped += 1
            else:
                place.overrun = True
                self.places.remove(place)

    def wake(self) -> None:
        """Something has changed: everybody who waits looks again."""
        self.held_back = False
        for place in self.places:
            place.wake()

    def interrupt(self) -> None:
        """The stream has been broken off: what has come is given out, however slow somebody is."""
        self._unbounded = True
        self.wake()

    def clear(self) -> None:
        """The stream has been closed, or stopped: what has come is not given out any more."""
        for place in self._all:
            place.events.clear()
        self.wake()

    async def open(self, open_stream: Callable[[], Awaitable[object]]) -> None:
        """Opens the stream, well or not: the stream says which."""
        try:
            await open_stream()
        except FriendliError:
            pass  # which the stream keeps, for each branch
        except Exception as error:
            if self.places:  # before anybody looks at how the stream ended; a task may even have run by now (eager)
                self.failure = error

    def opened(self, task: asyncio.Task[Any]) -> None:
        """The opening is over."""
        self.opening = None
        self.reading = False
        if not task.cancelled() and (error := task.exception()) is not None:  # nothing that a program goes on from
            self.failure = error
        self.wake()


def fanout_of(n: int, limit: int, slow: Slow) -> Fanout[Any]:
    """Checks the arguments of ``tee``.

    Raises:
        ValueError: A bad one.
    """
    for name, value in (("n", n), ("buffer", limit)):
        given: object = value
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise ValueError(f"{name}: Expected `int` >= 1, got {given!r}")
    if slow not in get_args(Slow):
        raise ValueError(f"slow: Expected 'wait', 'drop' or 'fail', got {slow!r}")
    return Fanout(n, limit, slow)


class Trunk(NamedTuple, Generic[E]):
    """A stream as its branches see it."""

    stream: EventStream[E]
    open: Callable[[], Awaitable[object]]
    """Opens it."""
    read_on: Callable[[], Awaitable[None]]
    """Reads until there is an event, or the end."""
    events: Callable[[], deque[E] | None]
    """What has come, and no branch has got yet; None before it is open."""
    stop: Callable[[str], None]
    """Closes it."""
    drop: Callable[[], None]
    """Closes it, from whatever thread."""
    ending: Callable[[], FriendliError]
    """The error of a stream that has not ended well."""
    broken: Callable[[str], StreamInterruptedError]
    """The error of a branch that has ended before its stream."""
    text: Callable[[Branch[E]], TextView]
    """The text of a branch."""


class Branch(Generic[E]):
    """One of the iterators of ``stream.tee()``: ``async for event in branch:``, in ``async with`` or bare.

    It is the stream's events from the first one on, however far the others are. Leaving ``async with``, ``aclose()``,
    a read that is cancelled, or dropping the last reference closes it, and leaves the others; the last one closes the
    stream. After that iteration has ended; after a cancelled read it first raises StreamInterruptedError, once. Where
    the stream is closed under it, it raises that, too; where the stream is stopped (``stream.stop()``), it just ends,
    and what it had not given out yet is not given out any more.

    Raises:
        FriendliError: What the stream raises, after the last event; a copy for each branch.
        BranchOverrunError: It was too far behind, with ``slow="fail"``; after the events that it still had.
        RuntimeError: Two tasks wait for its events at the same time.
    """

    __slots__ = ("__weakref__", "_error", "_fanout", "_place", "_told", "_trunk")

    def __init__(self, trunk: Trunk[E], fanout: Fanout[E]) -> None:
        self._trunk = trunk
        self._fanout = fanout
        self._place = next(fanout.vacant)
        self._error: FriendliError | None = None  # to be raised by the next read
        self._told = False  # it has ended, and said how

    @property
    def dropped(self) -> int:
        """How many events it has missed, with ``slow="drop"``."""
        return self._place.dropped

    def text(self) -> TextView:
        """The branch's text, as ``stream.text()``."""
        return self._trunk.text(self)

    def __repr__(self) -> str:
        return f"<Branch of {self._trunk.stream!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a branch cannot be copied or pickled: it reads a connection")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        events = self._place.events
        if not events:
            await self._wait()
        event = events.popleft()
        if self._fanout.held_back:
            self._fanout.wake()
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the branch. Whoever waits for its next event gets StreamInterruptedError."""
        self._check_loop(running_loop())
        self._error = None  # closed on purpose: iteration has ended
        self._close()

    def __del__(self) -> None:
        place: _Place[E] | None = getattr(self, "_place", None)
        if place is not None and not place.closed:
            _drop(self._trunk, self._fanout, place)

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Waits until there is an event in store.

        Raises:
            StopAsyncIteration: The stream has ended.
        """
        import asyncio  # loaded long ago where a stream is read; a bare import of the library does without

        place = self._place
        if place.task is not None:
            raise RuntimeError("another task is waiting for this branch's events already")
        task = asyncio.current_task()
        assert task is not None, "a coroutine of asyncio runs in a task"
        cancelling = task.cancelling()
        self._check_loop(task.get_loop())
        self._fanout.loop = task.get_loop()
        place.task = task
        try:
            while not place.events:
                self._check_end()
                await self._advance()
        except Exception:  # the error, or the end: told once
            self._told = True
            raise
        except asyncio.CancelledError:
            if place.closed and task.uncancel() <= cancelling:  # it was _close() that cancelled this task
                raise self._trunk.broken(_CLOSED) from None
            self._error = self._trunk.broken(_CANCELLED)
            place.task = None
            self._close()
            raise
        finally:
            place.task = None
            del task  # which may keep what is raised here, with this frame in its traceback
            self._fanout.wake()  # there is news for the others, or one of them has to read now

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._fanout.loop not in {None, loop}:
            raise RuntimeError("the stream belongs to another event loop, the one in which it was opened")

    def _check_end(self) -> None:
        """Raises if nothing more is to come."""
        fanout, stream = self._fanout, self._trunk.stream
        if self._error is not None:
            error, self._error = Held(self._error), None
            raise error.take()
        if self._told or self._place.closed:
            raise StopAsyncIteration
        if fanout.failure is not None:
            failure, fanout.failure = Held(fanout.failure), None
            raise failure.take()
        if self._place.overrun:
            raise BranchOverrunError(f"the branch was more than {fanout.limit} events behind")
        if stream.outcome != "open" and not self._trunk.events():
            if stream.outcome in {"done", "stopped"}:
                raise StopAsyncIteration
            raise self._trunk.ending()

    async def _advance(self) -> None:
        """One step towards the next event: reads for all, or waits for whoever does, or for whoever is slow."""
        fanout, trunk = self._fanout, self._trunk
        if fanout.reading:
            await self._turn()
            return
        events = trunk.events()
        if events is None:
            self._begin_opening()
        elif not events:
            fanout.reading = True
            try:
                await trunk.read_on()
            except FriendliError:
                pass  # the stream keeps it, for each branch
            finally:
                fanout.reading = False
        elif fanout.room() > 0:
            fanout.spread(events)
        elif fanout.slow == "wait":
            fanout.held_back = True
            await self._turn()
        else:
            await self._push(events)

    async def _turn(self) -> None:
        waiter = self._place.waiter = running_loop().create_future()
        await waiter

    async def _push(self, events: deque[E]) -> None:
        """Gives the next event to all though somebody has no room, who is given one turn of the loop to make some."""
        import asyncio

        fanout = self._fanout
        fanout.reading = True
        try:
            await asyncio.sleep(0)
        finally:
            fanout.reading = False
        if events and fanout.room() > 0:
            fanout.spread(events)
        elif events:  # not closed meanwhile
            fanout.force(events.popleft())

    def _begin_opening(self) -> None:
        """Opens the stream in a task: a branch's own may be cancelled, and the others need what it opens."""
        fanout = self._fanout
        fanout.reading = True
        fanout.opening = running_loop().create_task(fanout.open(self._trunk.open))
        fanout.opening.add_done_callback(fanout.opened)

    # --- closing -----------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        place = self._place
        if place.closed:
            return
        if place.task is not None:
            place.task.cancel()  # which becomes StreamInterruptedError there
        _leave(self._trunk, self._fanout, place)


def _leave(trunk: Trunk[Any], fanout: Fanout[Any], place: _Place[Any]) -> None:
    """A branch goes; the last one closes the stream."""
    place.closed = True
    place.events.clear()
    if place in fanout.places:
        fanout.places.remove(place)
    if fanout.places:
        fanout.wake()  # there may be room now
    else:
        fanout.failure = None  # nobody is left to raise it, and its frames hold the stream
        trunk.stop("all branches of the stream were closed")


def _drop(trunk: Trunk[Any], fanout: Fanout[Any], place: _Place[Any]) -> None:
    """The last reference to a branch has gone, in whatever thread, or in no running loop at all."""
    loop = fanout.loop
    if loop is None:  # nobody has ever waited
        if place in fanout.places:
            fanout.places.remove(place)
        if not fanout.places:
            trunk.drop()
        return
    try:
        here = running_loop() is loop
    except (RuntimeError, ImportError):  # the latter where Python is shutting down
        here = False
    if here:
        _leave(trunk, fanout, place)
    else:
        with suppress(RuntimeError):  # the loop has closed, and all that was open in it
            loop.call_soon_threadsafe(_leave, trunk, fanout, place)
