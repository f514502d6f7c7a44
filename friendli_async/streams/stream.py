"""EventStream: what users hold of a stream. What is open of it is one object, ``_core.events.stream.OpenStream``."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, Literal, NoReturn, Self, TypeVar

from friendli_async._core.events.stream import Opening, OpenStream, Outcome
from friendli_async._core.held import refuse_stop_iteration
from friendli_async.errors import FriendliError, StreamInterruptedError
from friendli_async.replies import Meta, Timing, attach_meta
from friendli_async.streams.raw import RawView
from friendli_async.streams.stop_conditions import over_text, plain_function
from friendli_async.streams.tee import Branch, Fanout, Slow, Trunk, fanout_of
from friendli_async.streams.views import TextView

__all__ = ["AssembledStream", "EventStream"]

E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")

_Way = Literal["events", "raw()", "tee()"]
_GOOD_ENDS: Final = frozenset({"done", "stopped"})


class EventStream(Generic[E]):
    """A stream of events: ``async with stream:``, bare ``async for event in stream:``, or ``await stream``.

    It is opened on first use, and it is open once its first event has arrived; what goes wrong before that is retried
    by the client's policy. Leaving ``async with``, ``aclose()``, cancellation, or dropping the last reference closes
    the connection at once. A stream ends in exactly one way, which ``outcome`` tells.

    One thing reads a stream: its iteration (and the views of its text), or ``raw()``, or the branches of ``tee()``.

    A read that is cancelled, by ``asyncio.wait_for`` for instance, closes the stream: the next one raises
    StreamInterruptedError, with what had arrived in ``partial``, so that a cut text never looks whole.

    Raises:
        FriendliError: While it is opened, whatever a plain call raises; afterwards StreamInterruptedError,
            APITimeoutError ("idle", "total"), APIStatusError (an error in the stream) or ResponseDecodeError, each with
            ``partial``.
        RuntimeError: Two tasks wait for its events at the same time; or it is iterated over, and read in another way.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_fanout",
        "_open",
        "_opening",
        "_opening_cut",
        "_outcome",
        "_ready",
        "_stop_conditions",
        "_waiting",
        "_way",
    )

    def __init__(self, opening: Opening[E, Any, Any]) -> None:
        self._opening = opening
        self._open: OpenStream[E, Any, Any] | None = None
        self._ready: deque[E] | None = None  # the open stream's, once it is iterated over: at hand for each event
        self._way: _Way | None = None
        self._stop_conditions: tuple[Callable[[E], object], ...] = ()  # of stop_when()
        self._fanout: Fanout[E] | None = None  # of tee()
        self._outcome: Outcome = "open"  # until there is an open stream, which has its own
        self._error: FriendliError | None = None
        self._waiting = False
        self._opening_cut = False

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

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be copied or pickled: it holds a connection")

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ending():  # else its loop is closed
            self._drop()

    def _drop(self) -> None:
        opened: OpenStream[E, Any, Any] | None = getattr(self, "_open", None)  # None, too, where __init__ never ran
        if opened is not None and opened.outcome == "open":
            opened.drop()

    # --- opening and closing ---------------------------------------------------------------------------------------

    def __await__(self) -> Generator[object, None, Self]:
        return self._ensure_open().__await__()

    async def __aenter__(self) -> Self:
        return await self._ensure_open()

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop("the stream was left before it was complete")

    async def aclose(self) -> None:
        """Closes the connection at once. Whoever waits for an event gets StreamInterruptedError; iteration has ended.

        May be called from any task of the stream's loop, and as often as one likes.
        """
        self._stop("the stream was closed")

    async def stop(self) -> None:
        """Ends the stream on purpose: the connection is closed at once, and ``outcome`` is ``stopped``.

        ``result()`` then gives what had arrived: choices that had not finished have no finish reason, and the usage is
        None where the server had not told it. Iteration has ended, also for whoever waits; events that nobody had taken
        yet are not delivered any more. A stream that has ended stays as it is. One that was not open yet never will be:
        opening it, and ``result()``, raise StreamInterruptedError, since nothing had come.

        May be called from any task of the stream's loop, and as often as one likes.
        """
        self._stop("the stream was stopped", "stopped")

    def _stop(self, reason: str, outcome: Outcome = "cancelled") -> None:
        opened = self._open
        self._uncut()  # closed on purpose: iteration has ended
        if self._fanout is not None and self.outcome == "open":  # else the branches may still be taking its last events
            self._fanout.clear()
        if opened is not None:
            if opened.clock.running_loop() is not opened.loop:
                self._refuse_loop()
            opened.reader.ready.clear()
            opened.stop(reason, outcome, waited_for=self._waiting)
        elif self._outcome == "open":
            self._outcome = outcome
            self._error = StreamInterruptedError(f"{reason} before it was opened")
            if self._waiting:
                self._opening.interrupt(StreamInterruptedError(reason), outcome)

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
                cut: Outcome = "cancelled" if self._opening.interrupted else "truncated"
                self._outcome = cut if isinstance(error, StreamInterruptedError) else "failed"
            self._error = copy.copy(error)
            raise
        except BaseException as error:
            self._opening_cut = not isinstance(error, Exception)
            self._outcome = "cancelled" if self._opening_cut else "failed"  # a token callable can fail, too
            self._error = StreamInterruptedError(f"the stream could not be opened: {type(error).__name__}")
            refuse_stop_iteration(error)
            raise
        self._open = opened
        if self._outcome != "open":  # closed by another task in this very instant
            opened.reader.ready.clear()
            opened.stop("the stream was closed", self._outcome)
            raise self._ending()
        opened.settle()
        return opened

    def _refuse_loop(self) -> NoReturn:
        raise RuntimeError("the stream belongs to another event loop, the one in which it was opened")

    def _begin_waiting(self) -> None:
        opened = self._open
        if opened is not None and opened.clock.running_loop() is not opened.loop:
            self._refuse_loop()
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
        if ready is None and (ready := await self._begin_iterating()):
            return ready.popleft()
        opened = self._open
        if opened is None or opened.outcome != "open":
            self._check_cut()
            raise StopAsyncIteration
        self._begin_waiting()
        try:
            await opened.fill()
        finally:
            self._waiting = False
        if ready:
            return ready.popleft()
        raise StopAsyncIteration

    async def _begin_iterating(self) -> deque[E] | None:
        """Opens it, unless it is; gives what the events will be in, or None where there will be none."""
        if self._way != "events":
            self._begin_reading("events")
        self._begin_waiting()
        try:
            opened = await self._open_to_read()
            if opened is not None:
                self._begin_taking(opened)
                self._ready = opened.reader.ready
        finally:
            self._waiting = False
        return self._ready

    async def _open_to_read(self) -> OpenStream[E, Any, Any] | None:
        """What is open; None where there will be nothing to read."""
        if self._open is None and self._outcome == "open":
            try:
                await self._open_now()
            except StreamInterruptedError:
                if self.outcome != "stopped":
                    raise
        return self._open

    def _begin_reading(self, way: _Way) -> None:
        """Decides in which way the events are read: once, since what was read in one way is missing in another."""
        if self._way is None:
            self._way = way
        elif self._way == "events":
            raise RuntimeError(f"events of the stream have been taken already: call {way} before that")
        else:
            raise RuntimeError(f"the stream is read by {self._way} already")

    def _begin_taking(self, opened: OpenStream[E, Any, Any]) -> None:
        """The first event is about to be taken: what came with the opening is judged, and its bytes are let go."""
        if opened.outcome == "open" and self._stop_conditions:
            opened.apply_stop_conditions(self._stop_conditions, self._opening.collector())
        if self._way != "raw()":
            opened.head = b""

    # --- its bytes -------------------------------------------------------------------------------------------------

    def raw(self) -> RawView:
        """The bytes of the body as they come, instead of the events: for a relay.

        They are what the server sent, after content decoding (gzip and the like), comments, ids and line ends included.
        The stream decodes them all the same, so ``outcome``, ``usage``, ``timing`` and ``result()`` are as ever, and
        what is wrong with them raises, once all that came have been given out.

        Raises:
            RuntimeError: The stream is being iterated over, or its bytes are given out already.
        """
        if self._open is not None and self._open.head is None:
            raise RuntimeError("too much came before the first event to be kept (Limits.event)")
        self._begin_reading("raw()")
        return RawView(self, self._read_bytes)

    async def _read_bytes(self) -> bytes:
        self._begin_waiting()
        try:
            opened = self._open
            if opened is None:
                opened = await self._open_to_read()
            if opened is not None and opened.outcome == "open":
                if opened.head != b"":
                    self._begin_taking(opened)
                return await opened.read()
            self._check_cut()
            return b""
        finally:
            self._waiting = False

    def _check_cut(self) -> None:
        """Tells, once, that the stream was cut by the cancellation of a read: its end must not look like a good one."""
        opened = self._open
        was_cut = self._opening_cut if opened is None else opened.was_cut
        self._uncut()
        if was_cut:
            raise self._ending()

    def _uncut(self) -> None:
        self._opening_cut = False
        if self._open is not None:
            self._open.was_cut = False

    # --- branches --------------------------------------------------------------------------------------------------

    def tee(self, n: int, buffer: int = 256, slow: Slow = "wait") -> tuple[Branch[E], ...]:
        """Several independent iterators over the events, instead of one.

        Each branch gets all events, ends as the stream ends, and raises what the stream raises, after its last event.
        Closing one leaves the others; when all are closed, or dropped, the stream is closed. ``stop()``, ``outcome``
        and ``usage`` stay here; ``result()`` is there when the branches are through.

        Args:
            n: How many.
            buffer: How many events a branch may be behind the one that is ahead.
            slow: What happens when a branch is further behind: ``wait`` holds the others back; ``drop`` passes its
                oldest events over, and counts them (``Branch.dropped``); ``fail`` ends it with BranchOverrunError, and
                the others go on.

        Raises:
            ValueError: A bad argument.
            RuntimeError: Events have been taken already, or the stream is read in another way.
        """
        fanout: Fanout[E] = fanout_of(n, buffer, slow)
        self._begin_reading("tee()")
        self._fanout = fanout
        trunk: Trunk[E] = Trunk(
            stream=self,
            open=self._ensure_open,
            read_on=self._read_on,
            events=self._waiting_events,
            stop=self._stop,
            drop=self._drop,
            ending=self._ending,
            broken=self._broken,
            text=self._text,
        )
        return tuple(Branch(trunk, fanout) for _ in range(n))

    async def _read_on(self) -> None:
        """Reads until there is an event or the end; a read that is cancelled leaves the stream open."""
        opened = self._open
        assert opened is not None, "the branches open it first"
        self._begin_waiting()
        try:
            if opened.reader.is_last:
                opened.settle()
            else:
                await opened.fill(shared=True)
        finally:
            self._waiting = False

    def _waiting_events(self) -> deque[E] | None:
        """The events that no branch has got yet; None before the stream is open."""
        opened = self._open
        if opened is None:
            return None
        if opened.head != b"":
            self._begin_taking(opened)
            opened.exchange.on_wake = None if self._fanout is None else self._fanout.interrupt
        return opened.reader.ready

    def _broken(self, reason: str) -> StreamInterruptedError:
        """The error of a branch that has ended before its stream."""
        error = StreamInterruptedError(reason)
        if self._open is not None:
            error.meta, error.partial = self._open.meta, self._open.collector.partial()
        return error

    # --- stopping by itself ----------------------------------------------------------------------------------------

    def stop_when(
        self, predicate: Callable[[str], object] | None = None, *, event: Callable[[E], object] | None = None
    ) -> Self:
        """Has the stream stop by itself, as by ``stop()``, at the first event for which a predicate is true.

        That event is the last one: it is delivered, and in ``result()``; nothing behind it is, nor in ``raw()``. The
        connection is closed as soon as it has come. Several calls add up. What a predicate raises is raised to the
        reader, and the stream is closed.

        Args:
            predicate: A function of the text so far (what ``text()`` gives, joined), asked whenever it has grown.
            event: A function of an event, asked of each.

        Returns:
            The stream itself.

        Raises:
            TypeError: Not one function, or a coroutine function.
            RuntimeError: Events or bytes have been taken already.
        """
        if (predicate is None) == (event is None):
            raise TypeError("stop_when() takes one function: of the text so far, or, as event=, of an event")
        if self._open is not None and self._open.head == b"":
            raise RuntimeError("the stream has been read from already: call stop_when() before that, or stop()")
        of_event = event if predicate is None else over_text(plain_function(predicate), self._wording())
        self._stop_conditions = (*self._stop_conditions, plain_function(of_event))
        return self

    @staticmethod
    def _text_of(event: Any) -> str:
        """The text that an event brings."""
        raise NotImplementedError

    def _wording(self) -> Callable[[Any], str]:
        """What gives the text that each event of a stream brings, in turn: it may remember those before."""
        return self._text_of

    def _text(self, source: EventStream[E] | Branch[E]) -> TextView:
        """The text of the stream's events, wherever they are read from."""
        return TextView(source, self._wording())

    # --- to the end ------------------------------------------------------------------------------------------------

    async def _exhaust(self) -> OpenStream[E, Any, Any]:
        """Reads to the end, past events that nobody has taken.

        Raises:
            FriendliError: The stream did not end well; again, if it has already said so.
        """
        if self._way == "tee()" and self.outcome == "open":
            raise RuntimeError("the stream is read by the branches of tee(): its result is there when they are through")
        self._begin_waiting()
        self._way = self._way or "events"
        try:
            opened = self._open
            if opened is None and self._outcome == "open":
                opened = await self._open_now()
            if opened is not None and opened.head != b"":
                self._begin_taking(opened)
            while opened is not None and opened.outcome == "open":
                opened.head = b""
                opened.reader.ready.clear()
                await opened.fill()
            if opened is None or opened.outcome not in _GOOD_ENDS:
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

    def text(self) -> TextView:
        """The text (of choice 0, where there may be several), piece by piece, never ""."""
        return self._text(self)

    @property
    def usage(self) -> U | None:
        """The usage, once the server has told it (with the last events)."""
        return None if self._open is None else self._open.collector.usage

    async def result(self) -> R:
        """Reads what is left and returns the whole reply, with ``meta``. Of a stopped stream it is what had arrived.

        Raises:
            FriendliError: The stream did not end well, or was closed early; ``partial`` is what had arrived.
        """
        if self._result is None:
            opened: OpenStream[E, R, U] = await self._exhaust()
            self._result = opened.collector.result()
            attach_meta(self._result, opened.meta)
        return self._result
