"""EventStream: the life of one stream. What is open of it is one object, ``OpenStream``."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, Self, TypeVar

from friendli_async._core.held import Held
from friendli_async.errors import APIConnectionError, FriendliError, StreamInterruptedError
from friendli_async.replies import Meta, Timing, attach_meta, usage_of

if TYPE_CHECKING:
    import asyncio

    from friendli_async._core.events.reader import Collector, EventReader
    from friendli_async._core.net.clock import ReadClock
    from friendli_async._core.net.exchange import Exchange
    from friendli_async._core.observers import Watch
    from friendli_async._core.timing import Stopwatch

__all__ = ["AssembledStream", "EventStream", "OpenStream", "Opening", "Outcome"]

E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")
R_co = TypeVar("R_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)

Outcome = Literal["open", "done", "truncated", "failed", "cancelled"]
"""How a stream stands, or ended: ``truncated`` is an end without a terminal event, ``failed`` a time or size limit, an
error in the stream or an undecodable event, ``cancelled`` that it was left or closed early, by whomever, or that a read
of it was cancelled."""


class OpenStream(Generic[E, R_co, U_co]):
    """What is open of a stream: its bytes, their reader, its limits, its outcome.

    It does not know the ``EventStream`` that serves it to its user: so when the user's last reference goes, that one
    goes, and ends this. Who knows it besides is its timer, while one runs.

    Attributes:
        outcome: How it stands, or ended.
        error: The error that it ended with, without a traceback; None where it has not, or well.
    """

    __slots__ = (
        "_meta",
        "_meta_is_final",
        "clock",
        "collector",
        "error",
        "exchange",
        "loop",
        "outcome",
        "reader",
        "stopwatch",
        "watch",
    )

    def __init__(
        self,
        exchange: Exchange,
        reader: EventReader[E],
        collector: Collector[E, R_co, U_co],
        clock: ReadClock,
        meta: Meta,
        stopwatch: Stopwatch,
        watch: Watch | None,
    ) -> None:
        self.exchange = exchange
        self.reader = reader
        self.collector = collector
        self.clock = clock
        self._meta = meta
        self._meta_is_final = False
        self.loop: asyncio.AbstractEventLoop = exchange.loop
        self.outcome: Outcome = "open"
        self.error: FriendliError | None = None
        self.stopwatch = stopwatch
        self.watch = watch

    async def fill(self) -> None:
        """Reads until there is an event, or the stream has ended.

        Raises:
            FriendliError: It did not end well.
        """
        exchange, reader, clock = self.exchange, self.reader, self.clock
        ready = reader.ready
        problem: Held[FriendliError] | None = None
        waits = False
        try:
            while not ready and not reader.is_last:
                data = exchange.take()
                if data is None:
                    if not waits:  # the limit runs from event to event, not from read to read
                        waits = True
                        clock.wait_begins()
                    await exchange.arrival()
                    continue
                reader.feed(data)
                self.stopwatch.read(len(data), len(ready))
        except FriendliError as error:
            problem = Held(error)
        except BaseException as error:
            cancelled = not isinstance(error, Exception)
            words = "a read of the stream was cancelled, which closed it" if cancelled else "the stream failed"
            self.stop(words, "cancelled" if cancelled else "failed")
            raise
        finally:
            if waits:
                clock.wait_ends()
        if problem is not None:
            self._break(problem)
        elif self.outcome != "open":  # bytes and aclose() came in the same instant
            ready.clear()
            self._fail(Held(StreamInterruptedError("the stream was closed")))
        elif reader.is_last:
            self.settle()
        if self.stopwatch.text_missing and self.collector.has_text:
            self.stopwatch.text_came()

    def settle(self) -> None:
        """Lets go of the connection once the reader is through, and ends the stream once its events have been taken.

        So how a stream ends does not depend on how its bytes were cut into reads.

        Raises:
            FriendliError: It did not end well.
        """
        reader = self.reader
        if not reader.is_last:
            return
        self.clock.stop()
        if reader.failure is None:
            self.exchange.finish()
        else:
            self.exchange.abort()
        if reader.ready:
            return
        if reader.failure is not None:
            failure, reader.failure = Held(reader.failure), None
            self._fail(failure)
        self._end("done")

    def _break(self, problem: Held[FriendliError]) -> None:
        """The bytes stopped coming: a limit, a broken connection, or our own side. Raises, unless all has come."""
        self.clock.stop()
        self.exchange.abort()
        error = problem.error
        lost = isinstance(error, APIConnectionError)
        closed = isinstance(error, StreamInterruptedError)
        plain = type(error) is APIConnectionError
        words = str(error)
        del error  # it is raised below, with this frame in its traceback
        if self.outcome == "open" and lost and self.collector.begun and self.collector.may_end:
            self._end("done")  # everything that was promised had arrived
        elif plain:
            self._fail(Held(StreamInterruptedError(words)), "truncated")
        else:
            self._fail(problem, "cancelled" if closed else "failed")

    def _fail(self, problem: Held[FriendliError], outcome: Outcome | None = None) -> NoReturn:
        interrupted = isinstance(problem.error, StreamInterruptedError)
        self._end(outcome or ("truncated" if interrupted else "failed"), problem.error)
        raise problem.take()

    def stop(self, reason: str, outcome: Outcome = "cancelled", *, waited_for: bool = False) -> None:
        """Ends it here and now; synchronous, so that nothing can cancel it.

        Args:
            reason: Why, for whoever waits or asks.
            outcome: How it has ended.
            waited_for: Whether another task waits for an event: it gets the error.
        """
        if self.outcome != "open":
            return
        error = StreamInterruptedError(reason)
        self.clock.stop()
        if waited_for:
            self.exchange.wake(error)
        else:
            self.exchange.abort()
        self._end(outcome, error)

    def _end(self, outcome: Outcome, error: FriendliError | None = None) -> None:
        """It has ended, in one way: the first counts, and an error is completed in any case."""
        first = self.outcome == "open"
        if first:
            self.outcome = outcome
            self.stopwatch.stop()
        if error is not None:
            error.meta = self.meta
            error.partial = self.collector.partial()
            self.error = copy.copy(error)  # without the traceback, whose frames hold the stream
        if first and self.watch is not None:
            self.watch.end(outcome, self.timing(), usage_of(self.collector), self.collector.finish_reasons, error)

    @property
    def meta(self) -> Meta:
        """How it came about; its timing is final once it has ended, and up to its first event before."""
        if self.outcome != "open" and not self._meta_is_final:
            self._meta_is_final = True
            self._meta = self._meta.with_timing(self.timing())
        return self._meta

    def timing(self) -> Timing:
        """How long it took so far."""
        usage = usage_of(self.collector)
        return self.stopwatch.timing(None if usage is None else usage.completion_tokens)

    def drop(self) -> None:
        """Ends it from wherever the last reference went: another thread, or no running loop at all."""
        try:
            here = _running_loop() is self.loop
        except RuntimeError:
            here = False
        if here:
            self.stop("the stream was dropped")
            return
        try:
            self.loop.call_soon_threadsafe(self.stop, "the stream was dropped")
        except RuntimeError:  # the loop is closed, and so is everything that was open in it
            self._end("cancelled", StreamInterruptedError("the stream was dropped"))


def _running_loop() -> asyncio.AbstractEventLoop:
    import asyncio  # loaded long ago where a stream is open; a bare import of the library does without

    return asyncio.get_running_loop()


class Opening(Protocol[E, R_co, U_co]):
    """Opens a stream; how, and how often it has to try, is the call's."""

    async def open(self) -> OpenStream[E, R_co, U_co]:
        """Returns once the first event has arrived."""
        ...

    def interrupt(self, error: FriendliError) -> None:
        """Makes an ``open`` that is under way raise the error."""
        ...


class EventStream(Generic[E]):
    """A stream of events: ``async with stream:``, bare ``async for event in stream:``, or ``await stream``.

    It is opened on first use, and it is open once its first event has arrived; what goes wrong before that is retried
    by the client's policy. Leaving ``async with``, ``aclose()``, cancellation, or dropping the last reference closes
    the connection at once. A stream ends in exactly one way, which ``outcome`` tells.

    A read that is cancelled, by ``asyncio.wait_for`` for instance, closes the stream: the next one raises
    StreamInterruptedError, with what had arrived in ``partial``, so that a cut text never looks whole.

    Raises:
        FriendliError: While it is opened, whatever a plain call raises; afterwards StreamInterruptedError,
            APITimeoutError ("idle", "total"), APIStatusError (an error in the stream) or ResponseDecodeError, each with
            ``partial``.
        RuntimeError: Two tasks wait for its events at the same time.
    """

    __slots__ = ("__weakref__", "_cancelled_read", "_error", "_open", "_opening", "_outcome", "_ready", "_waiting")

    def __init__(self, opening: Opening[E, Any, Any]) -> None:
        self._opening = opening
        self._open: OpenStream[E, Any, Any] | None = None
        self._ready: deque[E] | tuple[()] = ()  # the open stream's, at hand for each event
        self._outcome: Outcome = "open"  # until there is an open stream, which has its own
        self._error: FriendliError | None = None
        self._waiting = False
        self._cancelled_read = False

    @property
    def outcome(self) -> Outcome:
        """How the stream stands, or ended."""
        return self._outcome if self._open is None else self._open.outcome

    @property
    def meta(self) -> Meta:
        """Status, headers, request id and attempts. Final once the stream is open; raises RuntimeError before."""
        if self._open is not None:
            return self._open.meta
        if self._error is not None and self._error.meta is not None:
            return self._error.meta
        if self._outcome != "open":
            raise RuntimeError("the stream was never opened")
        raise RuntimeError("the stream is not open yet: use `async with`, or await it")

    @property
    def timing(self) -> Timing:
        """How long things took so far, seconds; all of it once the stream has ended. RuntimeError before it is open."""
        if self._open is None:
            return self.meta.timing
        return self._open.timing()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.outcome}>"

    def __copy__(self) -> NoReturn:
        raise TypeError("a stream cannot be copied: it holds a connection")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled: it holds a connection")

    def __del__(self) -> None:
        opened: OpenStream[E, Any, Any] | None = getattr(self, "_open", None)  # None, too, where __init__ never ran
        if opened is not None and opened.outcome == "open":
            opened.drop()

    # --- opening and closing ---------------------------------------------------------------------------------------

    def __await__(self) -> Generator[object, None, Self]:
        return self._ensure_open().__await__()

    async def __aenter__(self) -> Self:
        return await self._ensure_open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop("the stream was left before it was complete")

    async def aclose(self) -> None:
        """Closes the connection at once. Whoever waits for an event gets StreamInterruptedError; iteration has ended.

        May be called from any task of the stream's loop, and as often as one likes.
        """
        self._stop("the stream was closed")

    def _stop(self, reason: str) -> None:
        opened = self._open
        self._cancelled_read = False  # closed on purpose: iteration has ended
        if opened is not None:
            self._check_loop(opened)
            opened.reader.ready.clear()
            opened.stop(reason, waited_for=self._waiting)
        elif self._outcome == "open":
            self._outcome = "cancelled"
            if self._waiting:
                self._opening.interrupt(StreamInterruptedError(reason))

    async def _ensure_open(self) -> Self:
        if self._open is None:
            if self._outcome != "open":
                raise self._ending()
            self._begin_waiting()
            try:
                await self._open_now()
            finally:
                self._waiting = False
        return self

    async def _open_now(self) -> OpenStream[E, Any, Any]:
        try:
            opened = await self._opening.open()
        except FriendliError as error:
            if self._outcome == "open":
                self._outcome = "truncated" if isinstance(error, StreamInterruptedError) else "failed"
            self._error = copy.copy(error)
            raise
        except BaseException as error:
            self._cancelled_read = not isinstance(error, Exception)
            self._outcome = "cancelled" if self._cancelled_read else "failed"  # a token callable can fail, too
            raise
        self._open = opened
        self._ready = opened.reader.ready
        if self._outcome != "open":  # closed by another task in this very instant
            opened.stop("the stream was closed")
            raise self._ending()
        opened.settle()
        return opened

    def _check_loop(self, opened: OpenStream[E, Any, Any]) -> None:
        if _running_loop() is not opened.loop:
            raise RuntimeError("the stream belongs to another event loop, the one in which it was opened")

    def _begin_waiting(self) -> None:
        if self._open is not None:
            self._check_loop(self._open)
        if self._waiting:
            raise RuntimeError("another task is waiting for this stream's events already")
        self._waiting = True

    # --- iterating -------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        ready = self._ready
        if ready:
            return ready.popleft()
        opened = self._open
        self._begin_waiting()
        try:
            if opened is None and self._outcome == "open":
                opened = await self._open_now()
            if opened is None or (opened.outcome != "open" and not opened.reader.ready):
                self._check_cancelled_read()
                raise StopAsyncIteration
            await self._fill(opened)
            if opened.reader.ready:
                return opened.reader.ready.popleft()
        finally:
            self._waiting = False
        raise StopAsyncIteration

    async def _fill(self, opened: OpenStream[E, Any, Any]) -> None:
        if opened.reader.ready:
            return
        if opened.reader.is_last:
            opened.settle()
            return
        try:
            await opened.fill()
        except FriendliError:
            raise
        except BaseException:
            self._cancelled_read = True
            raise

    def _check_cancelled_read(self) -> None:
        """Tells, once, that the stream was cut by the cancellation of a read: its end must not look like a good one."""
        if self._cancelled_read:
            self._cancelled_read = False
            raise self._ending()

    async def _exhaust(self) -> OpenStream[E, Any, Any]:
        """Reads to the end, past events that nobody has taken.

        Raises:
            FriendliError: The stream did not end well; again, if it has already said so.
        """
        self._begin_waiting()
        try:
            opened = self._open
            if opened is None and self._outcome == "open":
                opened = await self._open_now()
            while opened is not None and opened.outcome == "open":
                opened.reader.ready.clear()
                await self._fill(opened)
            if opened is None or opened.outcome != "done":
                raise self._ending()
            opened.reader.ready.clear()
            return opened
        finally:
            self._waiting = False

    def _ending(self) -> FriendliError:
        """The error of a stream that did not end well, to be raised once more."""
        error = self._error if self._open is None else self._open.error
        if error is not None:
            return copy.copy(error)
        return StreamInterruptedError("the stream was closed before it was opened")


class AssembledStream(EventStream[E], Generic[E, R, U]):
    """A stream whose events add up to a reply, with a usage."""

    __slots__ = ("_result",)

    _opening: Opening[E, R, U]
    _open: OpenStream[E, R, U] | None

    def __init__(self, opening: Opening[E, R, U]) -> None:
        super().__init__(opening)
        self._result: R | None = None

    @property
    def usage(self) -> U | None:
        """The usage, once the server has told it (with the last events)."""
        return None if self._open is None else self._open.collector.usage

    async def result(self) -> R:
        """Reads what is left and returns the whole reply, with ``meta``.

        Raises:
            FriendliError: The stream did not end well, or was closed early; ``partial`` is what had arrived.
        """
        if self._result is None:
            opened: OpenStream[E, R, U] = await self._exhaust()
            self._result = opened.collector.result()
            attach_meta(self._result, opened.meta)
        return self._result
