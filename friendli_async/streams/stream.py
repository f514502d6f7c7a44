"""EventStream: the stream as users hold it. Its open state is one object, ``_core.events.stream.OpenStream``."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, Self, TypeVar

from friendli_async._callables import check_plain
from friendli_async._core.events.stream import SUCCESSFUL_OUTCOMES, OpenStream, Outcome
from friendli_async._core.secret import without_token_bytes
from friendli_async._core.text import split_surrogate
from friendli_async._lazy import LazyModule
from friendli_async.errors import FriendliError, StreamInterruptedError
from friendli_async.replies import Meta, Partial, Timing, attach_meta
from friendli_async.streams.tee import Branch, Fanout, Slow
from friendli_async.streams.views import RawView, TextView

if TYPE_CHECKING:
    from friendli_async._core import engine as engine_module
    from friendli_async._core.work import Work
else:
    engine_module = LazyModule("friendli_async._core.engine")

__all__ = ["AssembledStream", "EventStream"]

E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")

_ReadMode = Literal["events", "result()", "raw()", "tee()"]
_SPENT: Final = "it was read to its end, stopped, or closed, as `async with` does when it is left"


class EventStream(Generic[E]):
    """A stream of events: ``async with stream:``, bare ``async for event in stream:``, or ``await stream``.

    It is opened on first use, and it is open once its first event has arrived; failures before that are retried
    according to the client's retry policy. Leaving ``async with``, ``aclose()``, cancellation, or dropping the last
    reference closes the connection at once. A stream ends in exactly one way, and ``outcome`` reports which.

    A stream is read in one way: by iteration (and its text views), by ``raw()``, or by the branches of ``tee()``. Each
    event is delivered once: ``result()`` reads those that are left, and a second iteration ends at once. After an
    error, it raises that again, so that it does not look like an empty answer.

    Cancelling a read, for instance by ``asyncio.wait_for``, closes the stream: later reads raise
    StreamInterruptedError, with what had arrived in ``partial``, so that truncated text never looks complete.

    Raises:
        FriendliError: While opening, whatever a plain call raises; afterwards StreamInterruptedError,
            APITimeoutError ("idle", "total"), APIStatusError (an error in the stream) or ResponseDecodeError, each with
            ``partial``.
        RuntimeError: Two tasks wait for its events at the same time, it is read in two ways, or it is iterated for the
            first time after ``result()`` has read it.
    """

    # What serializes an object by its attributes, as FastAPI does, must not find the client in a stream.
    __slots__ = (
        "__weakref__",
        "_fanout",
        "_open",
        "_opening",
        "_read_mode",
        "_ready",
        "_state",
        "_stop_conditions",
        "_waiting",
    )

    def __init__(self, opening: engine_module.StreamOpening[E, Any, Any]) -> None:
        self._opening = opening
        self._state = opening.state
        self._open: OpenStream[E, Any, Any] | None = None
        self._ready: deque[E] | None = None  # the open stream's queue, for the fast path of iteration
        self._read_mode: _ReadMode | None = None
        self._stop_conditions: tuple[Callable[[E], object], ...] = ()  # from stop_when()
        self._fanout: Fanout[E] | None = None  # from tee()
        self._waiting = False

    @property
    def outcome(self) -> Outcome:
        """The state of the stream: open, or how it ended."""
        return self._state.outcome

    @property
    def meta(self) -> Meta:
        """Status, headers, request id, attempts and timing.

        These are final once the stream is open, its timing at the end. Raises RuntimeError before, unless opening
        failed.
        """
        if self._open is not None:
            return self._open.meta
        error = self._state.error
        if error is not None and error.meta is not None:
            return error.meta
        if self.outcome != "open":
            raise RuntimeError("the stream was never opened")
        raise RuntimeError("the stream is not open yet: use `async with`, or await it")

    @property
    def timing(self) -> Timing:
        """Durations so far, in seconds; final once the stream has ended. Raises RuntimeError before it is open."""
        if self._open is None:
            return self.meta.timing
        return self._open.timing()

    @property
    def _may_have_been_sent(self) -> bool:
        """Whether the server may have accepted the request; see ``APIConnectionError``."""
        error = self._state.error
        if self._open is not None or error is None:
            return self._open is not None or self._waiting
        return getattr(error, "sent", True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.outcome}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be copied or pickled: it holds a connection")

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # at interpreter shutdown its loop is closed
            self._drop("the last reference to the stream was dropped")

    def _drop(self, reason: str) -> None:
        opened: OpenStream[E, Any, Any] | None = getattr(self, "_open", None)  # also None if __init__ never ran
        if opened is not None and opened.state.outcome == "open":
            opened.drop(reason)

    # --- opening and closing ---------------------------------------------------------------------------------------

    def __await__(self) -> Generator[object, None, Self]:
        return self._ensure_open().__await__()

    async def __aenter__(self) -> Self:
        return await self._ensure_open()

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop("the stream was closed before it was complete")

    async def aclose(self) -> None:
        """Closes the connection at once and ends iteration. A task waiting for an event gets StreamInterruptedError.

        May be called from any task of the stream's loop, any number of times.
        """
        self._stop("the stream was closed")
        self._state.closed = True

    async def stop(self) -> None:
        """Ends the stream on purpose: closes the connection at once and sets ``outcome`` to ``stopped``.

        ``result()`` then returns what had arrived: unfinished choices have no finish reason, and the usage is None if
        the server had not sent it. Iteration ends, also for a waiting task, and skips events that were not delivered
        yet. A stream that has already ended does not change. If the stream was never open, opening it and
        ``result()`` raise StreamInterruptedError, since nothing had arrived.

        May be called from any task of the stream's loop, any number of times.
        """
        self._stop("the stream was stopped", "stopped")
        self._state.closed = True

    def _stop(self, reason: str, outcome: Outcome = "cancelled") -> None:
        opened = self._open
        if opened is not None and opened.clock.running_loop() is not opened.clock.loop:
            self._raise_wrong_loop()
        if self.outcome == "open":  # else branches may still be reading its last events
            self._state.closed = True
            if self._fanout is not None:
                self._fanout.clear()
        if opened is None:
            self._opening.stop(reason, outcome, waited_for=self._waiting)
        else:
            opened.stop(StreamInterruptedError(reason), outcome, waited_for=self._waiting)

    async def _ensure_open(self) -> Self:
        if self._open is None:
            if self.outcome != "open":
                raise self._state.final_error()
            self._begin_waiting()
            try:
                await self._open_now()
            finally:
                self._waiting = False
        return self

    async def _open_now(self) -> None:
        self._open = opened = await self._opening.open()
        if not opened.reader.lacks_line_end:  # else raw() reads it, and anything else settles at the end
            opened.settle()

    def _raise_wrong_loop(self) -> NoReturn:
        raise RuntimeError("the stream belongs to another event loop, the one in which it was opened")

    def _begin_waiting(self) -> None:
        opened = self._open
        if opened is not None and opened.clock.running_loop() is not opened.clock.loop:
            self._raise_wrong_loop()
        if self._waiting:
            raise RuntimeError("another task is already waiting for this stream's events")
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
        if opened is None or self._state.outcome != "open":
            self._state.check_readable()
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
        """Opens the stream if needed. Returns the queue of its events, or None if there will be none."""
        self._begin_waiting()  # first: a read that is refused leaves the stream as it was
        try:
            self._reject_after_result()
            if self._read_mode not in {"events", "result()"}:
                self._set_read_mode("events")
            opened = await self._open_to_read()
            if opened is not None:
                self._ready = opened.reader.ready
        finally:
            self._waiting = False
        return self._ready

    async def _open_to_read(self) -> OpenStream[E, Any, Any] | None:
        """Opens the stream and begins to read it, if needed. Returns None if there is nothing to read."""
        if self._open is None and self._state.outcome == "open":
            try:
                await self._open_now()
            except StreamInterruptedError:
                if self.outcome != "stopped":
                    raise
        opened = self._open
        if opened is not None and opened.is_unread:
            self._begin_reading(opened)
        return opened

    def _set_read_mode(self, mode: _ReadMode) -> None:
        """Sets the read mode, once: events that were read in one mode are missing in another."""
        if self._read_mode is None:
            self._read_mode = mode
        elif self._read_mode in {"events", "result()"}:
            raise RuntimeError(f"events have already been read from the stream: call {mode} before reading")
        else:
            raise RuntimeError(f"the stream is already being read by {self._read_mode}")

    def _reject_after_result(self) -> None:
        """Raises if ``result()`` has read everything before another read began: that must not find the stream empty."""
        if self._read_mode == "result()" and self.outcome in SUCCESSFUL_OUTCOMES:
            raise RuntimeError("result() has already read all events: iterate over the stream before calling it")

    def _begin_reading(self, opened: OpenStream[E, Any, Any]) -> None:
        """Prepares for the first read: applies stop conditions to what was read while opening, and releases it."""
        if self._stop_conditions:
            opened.apply_stop_conditions(self._stop_conditions, self._opening.make_collector())
        if self._read_mode != "raw()":
            opened.kept_bytes = None
        opened.is_unread = False

    # --- raw bytes -------------------------------------------------------------------------------------------------

    def raw(self) -> RawView:
        """Returns the bytes of the body as they arrive, instead of the events: for a relay.

        They are what the server sent, after content decoding (such as gzip), including comments, ids and line endings.
        The stream still decodes them, so ``outcome``, ``usage``, ``timing`` and ``result()`` work as usual, and an
        error in them is raised once all received bytes have been delivered.

        Raises:
            RuntimeError: The stream is already being read.
        """
        self._set_read_mode("raw()")
        return RawView(self)

    # --- responses -------------------------------------------------------------------------------------------------

    def _begin_response(self, work: Work, on_abort: Callable[[], None]) -> None:
        """Prepares the open stream for a response that relays the rest of it.

        Args:
            work: The response, for which a drain of the client waits.
            on_abort: Called when the stream is ended from outside.

        Raises:
            RuntimeError: The stream is read in another way, or nothing is left of it: the response would be empty, and
                look complete.
            StreamInterruptedError: A cancelled read has closed it, or its client was closed.
        """
        opened = self._open
        assert opened is not None, "the response opens it first"
        if self._read_mode not in {None, "events"}:
            raise RuntimeError(f"the stream is already being read by {self._read_mode}")
        if self.outcome != "open" and not opened.is_unread and not opened.reader.ready:
            self._state.check_readable()
            raise RuntimeError(f"the stream has ended before the response started: {_SPENT}")
        opened.on_abort = on_abort
        self._opening.include_in(work)

    def _check_complete(self) -> None:
        """Raises the error that ended the stream early: iteration just ends if another task has closed it."""
        if self.outcome not in SUCCESSFUL_OUTCOMES:
            raise self._state.final_error()

    def _masked(self, data: bytes) -> bytes:
        """Masks the token in bytes of the body, if they end with an error: some servers quote what they reject."""
        opened = self._open
        if opened is None or opened.reader.failure is None:
            return data
        return without_token_bytes(data, opened.token)

    # --- branches --------------------------------------------------------------------------------------------------

    def tee(self, n: int, buffer: int = 256, slow: Slow = "wait") -> tuple[Branch[E], ...]:
        """Returns several independent iterators over the events.

        Each branch yields all events, ends when the stream ends, and raises the stream's error after its last event.
        Closing one leaves the others open; once all are closed or dropped, the stream is closed. ``stop()``,
        ``outcome`` and ``usage`` stay on the stream; ``result()`` is available once the branches have finished.

        Args:
            n: The number of branches.
            buffer: How many events a branch may lag behind the fastest one.
            slow: What happens when a branch lags further: ``wait`` makes the others wait; ``drop`` discards its
                oldest events and counts them (``Branch.dropped``); ``fail`` ends it with BranchOverrunError, and
                the others continue.

        Raises:
            ValueError: An argument is invalid.
            RuntimeError: The stream is already being read.
        """
        fanout: Fanout[E] = Fanout(n, buffer, slow)
        self._set_read_mode("tee()")
        self._fanout = fanout
        return tuple(Branch(self, fanout, each) for each in fanout.buffers)

    async def _read_more(self) -> None:
        """Reads until there is an event or the end; cancelling this read leaves the stream open."""
        opened = self._open
        assert opened is not None, "the branches open it first"
        self._begin_waiting()
        try:
            await opened.fill(shared=True)
        finally:
            self._waiting = False

    def _undelivered_events(self) -> deque[E] | None:
        """Returns the events that no branch has received yet, or None if the stream is not open yet.

        The first time that it is open, prepares it for reading.
        """
        opened = self._open
        if opened is None:
            return None
        if opened.is_unread:
            self._begin_reading(opened)
            opened.on_abort = None if self._fanout is None else self._fanout.interrupt
        return opened.reader.ready

    def _with_received(self, error: FriendliError) -> FriendliError:
        """Adds to an error that does not end the stream what the stream has received."""
        if self._open is not None:
            error.meta, error.partial = self._open.meta, self._open.collector.partial()
        return error

    # --- stop conditions -------------------------------------------------------------------------------------------

    def stop_when(
        self, predicate: Callable[[str], object] | None = None, *, event: Callable[[E], object] | None = None
    ) -> Self:
        """Makes the stream stop itself, as by ``stop()``, at the first event for which a predicate is true.

        That event is the last one that is delivered and part of ``result()``; ``raw()`` ends with it, too. The
        connection is closed as soon as it has arrived. Calls add predicates; any of them stops the stream. An exception
        from a predicate closes the stream and propagates to the reader. If that event is the one that ends a message or
        a response, nothing is left to stop, and the outcome is ``done``.

        Args:
            predicate: A function of the text so far (the joined ``text()``), called whenever the text has grown.
            event: A function of an event, called for each.

        Returns:
            The stream itself.

        Raises:
            TypeError: Not exactly one argument is given, or it is not a plain function.
            RuntimeError: Events or bytes have been read already.
        """
        check_plain(predicate, "predicate of stop_when()", "the text so far")
        check_plain(event, "event of stop_when()", "an event")
        if predicate is not None and event is None:
            event = _predicate_on_text(predicate, self._text_extractor())
        elif predicate is not None or event is None:
            raise TypeError(
                "stop_when() takes one function: either predicate (of the text so far) or event= (of an event)"
            )
        if self._open is not None and not self._open.is_unread:
            raise RuntimeError("the stream has already been read from: call stop_when() before reading, or use stop()")
        self._stop_conditions = (*self._stop_conditions, event)
        return self

    def _text_extractor(self) -> Callable[[Any], str]:
        """Returns a function that maps each event, in order, to its text, or to ""; it may keep state."""
        raise NotImplementedError

    # --- reading to the end ----------------------------------------------------------------------------------------

    async def _exhaust(self) -> OpenStream[E, Any, Any]:
        """Reads to the end and discards undelivered events.

        Raises:
            FriendliError: The stream failed or was closed early; raised again on every call.
        """
        if self._read_mode == "tee()" and self.outcome == "open":
            raise RuntimeError("the stream is read by the branches of tee(): call result() after they have finished")
        self._begin_waiting()
        opened = self._open
        is_unread = self.outcome == "open" if opened is None else opened.is_unread
        if is_unread and self._read_mode in {None, "raw()"}:
            self._read_mode = "result()"
        try:
            opened = await self._open_to_read()
            while opened is not None and self._state.outcome == "open":
                opened.kept_bytes = None
                opened.reader.ready.clear()
                await opened.fill()
            if opened is None or self.outcome not in SUCCESSFUL_OUTCOMES:
                raise self._state.final_error()
            if self._read_mode != "tee()":  # the branches may not have taken them yet
                opened.reader.ready.clear()
            return opened
        finally:
            self._waiting = False


class AssembledStream(EventStream[E], Generic[E, R, U]):
    """A stream whose events are assembled into a reply, with its usage."""

    __slots__ = ("_result",)

    _opening: engine_module.StreamOpening[E, R, U]
    _open: OpenStream[E, R, U] | None

    def __init__(self, opening: engine_module.StreamOpening[E, R, U]) -> None:
        super().__init__(opening)
        self._result: R | None = None

    def text(self) -> TextView:
        """Returns a view of the text (of choice 0, if there may be several), in non-empty pieces."""
        return TextView(self, self._text_extractor())

    @property
    def usage(self) -> U | None:
        """The usage; None until the server has sent it (with the last events)."""
        return None if self._open is None else self._open.collector.usage

    @property
    def partial(self) -> Partial:
        """What has arrived so far (of choice 0, if there may be several), as in the error of a stream that failed."""
        return Partial() if self._open is None else self._open.collector.partial()

    async def result(self) -> R:
        """Reads the rest and returns the complete reply, with ``meta``; for a stopped stream, what had arrived.

        The events that it reads are not delivered any more. Iteration in progress ends; one that begins later raises
        RuntimeError.

        Raises:
            FriendliError: The stream failed or was closed early; ``partial`` is what had arrived.
        """
        if self._result is None:
            opened: OpenStream[E, R, U] = await self._exhaust()
            self._result = opened.collector.result()
            attach_meta(self._result, opened.meta)
        return self._result


def _predicate_on_text(predicate: Callable[[str], object], text_of: Callable[[Any], str]) -> Callable[[Any], object]:
    """Turns a predicate on the text so far into a predicate on events, which accumulates the text."""

    def evaluate() -> Generator[object, Any, None]:
        text = high_surrogate = ""  # a local variable: CPython appends in place only to those
        verdict: object = False
        while True:
            piece = text_of((yield verdict))
            verdict = False
            if piece:
                piece, high_surrogate = split_surrogate(high_surrogate, piece)
                text += piece
                verdict = predicate(text)

    evaluator = evaluate()
    next(evaluator)
    return evaluator.send
