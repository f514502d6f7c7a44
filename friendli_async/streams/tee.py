"""One stream's events, delivered to several readers.

No background task reads the stream: one of the waiting branches reads for all, and when its task is cancelled, another
waiting branch takes over. Only opening runs in a task, which ends with it, since an opening cannot be handed over.

``Fanout`` is the state that the branches share. It references neither the branches nor the stream, so that each of
them is finalized when its last reference is dropped.
"""

# A branch is a part of its stream:
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, Self, TypeVar, get_args

from friendli_async._core.held import Held
from friendli_async._core.loops import call_in_loop, running_loop
from friendli_async._lazy import LazyModule
from friendli_async.errors import ArgumentError, FriendliError, StreamInterruptedError
from friendli_async.options import check_choice, is_count
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    import asyncio

    from friendli_async.streams import stream as stream_module
else:
    asyncio, stream_module = LazyModule("asyncio"), LazyModule("friendli_async.streams.stream")

__all__ = ["Branch", "BranchOverrunError", "Slow"]

E = TypeVar("E")

Slow = Literal["wait", "drop", "fail"]
"""What happens when a branch lags too far behind: the others wait, it loses events, or it ends with an error."""

_CANCELLED: Final = "a read of the branch was cancelled, which closed it"


class BranchOverrunError(FriendliError):
    """A branch of ``tee(slow="fail")`` lagged too far behind. The other branches and the stream continue without it.

    ``partial`` is what the stream had received when it was raised, which is more than the branch delivered.
    """


class _Buffer(Generic[E]):
    """The buffered events of one branch, and the state of its reader."""

    def __init__(self) -> None:
        self.events: deque[E] = deque()
        self.dropped: int = 0
        self.overrun: bool = False
        self.closed: bool = False
        """The branch was closed, or has ended, and raised its error if there was one."""
        self.task: asyncio.Task[Any] | None = None
        """The task that waits for the next event."""


class Fanout(Generic[E]):
    """The buffers of a stream's branches, and which of them reads.

    Attributes:
        changed: Wakes the waiting branches; it is never set for long.
        reading: Whether the stream is being opened, or a branch is reading for all.
        is_blocked: Whether a branch waits for room in another's buffer.
        loop: The event loop of the branches; None before the first read.
        failure: An exception from opening that is no FriendliError (a token callable can fail); one branch raises it.
        opening: The task that opens the stream, while it runs.

    Raises:
        ValueError: An argument is invalid.
    """

    def __init__(self, n: int, limit: int, slow: Slow) -> None:
        for name, value in (("n", n), ("buffer", limit)):
            if not is_count(value):
                raise ArgumentError(f"Expected `int` >= 1, got {value!r}", name)
        check_choice("slow", slow, get_args(Slow))
        import asyncio  # loaded by the time a stream is read; importing the library alone does not load it

        self.changed: Final = asyncio.Event()
        self.reading: bool = False
        self.is_blocked: bool = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None
        self.opening: asyncio.Task[Any] | None = None
        self.limit: Final = limit
        self.slow: Final[Slow] = slow
        self.buffers: list[_Buffer[E]] = [_Buffer() for _ in range(n)]
        self._all_buffers = tuple(self.buffers)
        self._unbounded = False

    def room(self) -> int:
        """Returns how many events fit into every buffer."""
        if self._unbounded:
            return 1 << 30
        return self.limit - max([len(buffer.events) for buffer in self.buffers], default=0)

    def distribute(self, events: deque[E]) -> None:
        """Moves as many events to every buffer as fit into all of them."""
        room = self.room()
        if len(events) <= room:
            batch = list(events)
            events.clear()
        else:
            batch = [events.popleft() for _ in range(room)]
        for buffer in self.buffers:
            buffer.events.extend(batch)

    def force_distribute(self, event: E) -> None:
        """Adds an event to every buffer, and handles full ones according to ``slow``."""
        for buffer in tuple(self.buffers):
            if len(buffer.events) < self.limit:
                buffer.events.append(event)
            elif self.slow == "drop":
                buffer.events.popleft()
                buffer.events.append(event)
                buffer.dropped += 1
            else:
                buffer.overrun = True
                self.buffers.remove(buffer)

    def wake(self) -> None:
        """Wakes all waiting branches, which check the state again."""
        self.is_blocked = False
        self.changed.set()
        self.changed.clear()

    def interrupt(self) -> None:
        """Delivers all received events, regardless of slow branches: the stream was interrupted."""
        self._unbounded = True
        self.wake()

    def clear(self) -> None:
        """Discards undelivered events: the stream was closed or stopped."""
        for buffer in self._all_buffers:
            buffer.events.clear()
        self.wake()

    def on_opened(self, task: asyncio.Task[Any]) -> None:
        """Handles the end of the opening task; the stream keeps a FriendliError itself, for each branch."""
        self.opening = None
        self.reading = False
        error = None if task.cancelled() else task.exception()
        if self.buffers and not isinstance(error, FriendliError):
            self.failure = error
        self.wake()


class Branch(Generic[E]):
    """One of the iterators of ``stream.tee()``: ``async for event in branch:``, in ``async with`` or bare.

    It yields the stream's events from the first one on, independently of the other branches. Leaving ``async with``,
    ``aclose()``, cancelling a read, or dropping the last reference closes this branch only; closing the last branch
    closes the stream. Iteration then ends, but what had failed before raises its error again; after a cancelled read it
    raises StreamInterruptedError until the branch is closed. If the stream itself is closed, its branches raise that
    error, too; if it is stopped (``stream.stop()``), they just end, and undelivered events are discarded.

    Raises:
        FriendliError: What the stream raises, after the last event; a copy for each branch.
        BranchOverrunError: It lagged too far behind, with ``slow="fail"``; raised after its buffered events.
        RuntimeError: Two tasks wait for its events at the same time.
    """

    __slots__ = ("__weakref__", "_buffer", "_error", "_fanout", "_stream")

    def __init__(self, stream: stream_module.EventStream[E], fanout: Fanout[E], buffer: _Buffer[E]) -> None:
        self._stream = stream
        self._fanout = fanout
        self._buffer = buffer
        self._error: FriendliError | None = None  # to be raised by later reads

    @property
    def dropped(self) -> int:
        """How many events were discarded for this branch, with ``slow="drop"``."""
        return self._buffer.dropped

    def text(self) -> TextView:
        """Returns the branch's text, as ``stream.text()`` does."""
        return TextView(self, self._stream._text_extractor())

    def __repr__(self) -> str:
        return f"<Branch of {self._stream!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a branch cannot be copied or pickled: it reads a connection")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        events = self._buffer.events
        if not events:
            await self._wait()
        event = events.popleft()
        if self._fanout.is_blocked:
            self._fanout.wake()
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._leave()

    async def aclose(self) -> None:
        """Closes the branch. A task waiting for its next event gets StreamInterruptedError."""
        self._leave()
        if not self._stream._state.has_failed and not self._buffer.overrun:
            self._error = None  # closed on purpose: later reads just end

    def _leave(self) -> None:
        self._check_loop(running_loop())
        if not self._buffer.closed:  # what has failed stays failed, even if no read has raised it yet
            if self._buffer.overrun:
                self._error = self._overrun_error()
            elif self._stream._state.raises:
                self._error = self._stream._state.final_error()
        _close_branch(self._fanout, self._buffer, self._stream._stop)

    def _overrun_error(self) -> FriendliError:
        message = f"the branch was more than {self._fanout.limit} events behind"
        return self._stream._with_received(BranchOverrunError(message))

    def __del__(self) -> None:  # in any thread, with or without a running loop
        buffer: _Buffer[E] | None = getattr(self, "_buffer", None)
        if buffer is None or buffer.closed:
            return
        loop, stream = self._fanout.loop, self._stream
        if loop is None:  # no branch has ever waited
            _close_branch(self._fanout, buffer, stream._drop)
            return
        end = stream._stop if stream._open is None else stream._drop
        call_in_loop(loop, _close_branch, self._fanout, buffer, end)  # a closed loop has nothing open any more

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Waits until an event is buffered.

        Raises:
            StopAsyncIteration: The stream has ended.
        """
        import asyncio

        buffer = self._buffer
        if buffer.task is not None:
            raise RuntimeError("another task is already waiting for this branch's events")
        task = asyncio.current_task()
        assert task is not None, "a coroutine of asyncio runs in a task"
        cancelling = task.cancelling()
        self._check_loop(task.get_loop())
        self._fanout.loop = task.get_loop()
        buffer.task = task
        try:
            while not buffer.events:
                self._check_end()
                await self._advance()
        except Exception as error:
            if self._stream.outcome != "open" or buffer.overrun:  # the error or the end
                if not isinstance(error, StopAsyncIteration):
                    self._error = copy.copy(error) if isinstance(error, FriendliError) else self._stream._state.error
                buffer.task = None
                _close_branch(self._fanout, buffer, self._stream._stop)
            raise  # if another task is opening the stream, the branch can be read after that
        except asyncio.CancelledError:
            if buffer.closed and task.uncancel() <= cancelling:  # closing it cancelled this task
                raise self._stream._with_received(StreamInterruptedError("the branch was closed")) from None
            self._error = self._stream._with_received(StreamInterruptedError(_CANCELLED))
            buffer.task = None
            _close_branch(self._fanout, buffer, self._stream._stop)
            raise
        finally:
            buffer.task = None
            del task  # the task may keep the exception, whose traceback has this frame: a cycle
            self._fanout.wake()  # the others may have events now, or one of them must take over reading

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._fanout.loop not in {None, loop}:
            self._stream._raise_wrong_loop()

    def _check_end(self) -> None:
        """Raises if no more events will come."""
        fanout, stream = self._fanout, self._stream
        if self._error is not None:
            raise copy.copy(self._error)
        if self._buffer.closed:
            raise StopAsyncIteration
        if fanout.failure is not None:
            failure, fanout.failure = Held(fanout.failure), None
            raise failure.take()
        if self._buffer.overrun:
            raise self._overrun_error()
        if stream.outcome != "open" and fanout.opening is None and not stream._undelivered_events():
            stream._check_complete()
            raise StopAsyncIteration

    async def _advance(self) -> None:
        """Takes one step towards the next event: reads for all, or waits for the reading branch or a slow one."""
        fanout, stream = self._fanout, self._stream
        if fanout.reading:
            await fanout.changed.wait()
            return
        events = stream._undelivered_events()
        if events is None:
            self._begin_opening()
        elif not events:
            fanout.reading = True
            try:
                await stream._read_more()
            except FriendliError:
                pass  # the stream keeps it, for each branch
            finally:
                fanout.reading = False
        elif fanout.room() > 0:
            fanout.distribute(events)
        elif fanout.slow == "wait":
            fanout.is_blocked = True
            await fanout.changed.wait()
        else:
            await self._force_next(events)

    async def _force_next(self, events: deque[E]) -> None:
        """Delivers the next event even if a buffer is full, after giving its reader one turn of the loop."""
        import asyncio

        fanout = self._fanout
        fanout.reading = True
        try:
            await asyncio.sleep(0)
        finally:
            fanout.reading = False
        if events:  # not closed meanwhile
            fanout.force_distribute(events.popleft())

    def _begin_opening(self) -> None:
        """Opens the stream in a task of its own: a branch's task may be cancelled while the others need the stream."""
        fanout = self._fanout
        fanout.reading = True
        fanout.opening = running_loop().create_task(self._stream._ensure_open())
        fanout.opening.add_done_callback(fanout.on_opened)


def _close_branch(fanout: Fanout[Any], buffer: _Buffer[Any], end: Callable[[str], None]) -> None:
    """Closes a branch; the last one closes the stream, by calling ``end``."""
    if buffer.closed:
        return
    buffer.closed = True
    if buffer.task is not None:
        buffer.task.cancel()  # `_wait` turns it into StreamInterruptedError
    buffer.events.clear()
    if buffer in fanout.buffers:
        fanout.buffers.remove(buffer)
    if fanout.buffers:
        fanout.wake()  # there may be room now
    else:
        fanout.failure = None  # no branch is left to raise it, and its traceback holds the stream
        end("all branches of the stream were closed")
