"""EventStream: the life of one open stream."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Literal, Protocol, Self, TypeVar

from friendli_async._core.events.sse import ServerSentEvent, SSEDecoder
from friendli_async._core.protocol import embedded_error, error_event
from friendli_async.errors import APIConnectionError, APIStatusError, FriendliError, StreamInterruptedError
from friendli_async.replies import Headers, Meta, Partial

if TYPE_CHECKING:
    from friendli_async._core.net.clock import TimedSource

__all__ = ["Collector", "EventReader", "EventStream", "Opened", "Opening", "Outcome"]

T = TypeVar("T")

Outcome = Literal["open", "done", "truncated", "failed", "cancelled"]
"""How a stream stands, or ended: ``truncated`` is an end without a terminal event, ``failed`` a time or size limit, an
error in the stream or an undecodable event, ``cancelled`` that it was left or closed early."""

_DONE: Final = b"[DONE]"


class Collector(Protocol[T]):
    """What an API contributes to its streams: how events are decoded, what they add up to, when they are complete."""

    @property
    def ended(self) -> bool:
        """Whether the API's own last event has come: then nothing more is waited for."""
        ...

    def decode(self, data: bytes) -> T | None:
        """Decodes an event without a name; None for one that says nothing, or an error. Raises ResponseDecodeError."""
        ...

    def decode_each(self, payloads: list[bytes]) -> Sequence[T] | None:
        """Decodes events without names, all at once; None if there is one that ``decode`` has to look at."""
        ...

    def decode_named(self, name: str, data: bytes) -> T | None:
        """Decodes a named event; None for one that means nothing here. Raises ResponseDecodeError."""
        ...

    def extend(self, events: Sequence[T]) -> None:
        """Takes decoded events in."""
        ...

    def complete(self) -> bool:
        """Whether a terminal event has been seen, so that the end of the body is a good end."""
        ...

    def partial(self) -> Partial:
        """What has arrived so far."""
        ...


class EventReader(Generic[T]):
    """One stream's bytes to its events. No I/O.

    Attributes:
        ready: Decoded events that nobody has taken yet.
        failure: What was wrong with the event after those.
        over: Nothing more will come: the sentinel, a failure or the end of the body.
    """

    def __init__(self, collector: Collector[T], limit: int, status: int, headers: Headers) -> None:
        self.ready: deque[T] = deque()
        self.failure: FriendliError | None = None
        self.over = False
        self.collector = collector
        self._sse = SSEDecoder(limit)
        self._status = status
        self._headers = headers

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; b"" is the end of the body."""
        sse = self._sse
        payloads = sse.plain(data)
        if payloads is None:
            self._decode_all(sse.feed(data))
        elif (fresh := self.collector.decode_each(payloads)) is None:
            self._decode_all([ServerSentEvent(payload) for payload in payloads])
        else:
            self._take(fresh)
        if self.over:
            if self.collector.ended:  # what is wrong behind the last event is not heard
                self.failure = None
            return
        if sse.error is not None:
            self._fail(sse.error)
        elif self.collector.ended or sse.ends_with(_DONE):
            self.over = True  # the sentinel needs no blank line after it
        elif not data:
            self.over = True
            if sse.cut() != _DONE and not self.collector.complete():
                self.failure = StreamInterruptedError("the stream ended before it was complete")

    def _decode_all(self, events: list[ServerSentEvent]) -> None:
        decode = self.collector.decode
        fresh: list[T] = []
        for event in events:
            data = event.data
            if data == _DONE:
                self.over = True
                break
            if not data:
                continue
            try:
                item = decode(data) if event.event is None else self._named(event.event, data)
                if item is not None:
                    fresh.append(item)
                elif (error := embedded_error(data, self._status, self._headers)) is not None:
                    self._fail(error)
                    break
            except FriendliError as error:
                self._fail(error)
                break
        self._take(fresh)

    def _take(self, events: Sequence[T]) -> None:
        self.collector.extend(events)
        self.ready.extend(events)

    def _named(self, name: str, data: bytes) -> T | None:
        if name == "error":
            raise error_event(data, self._status, self._headers)
        if name == "message":  # the standard's name for an event without one
            return self.collector.decode(data)
        return self.collector.decode_named(name, data)

    def _fail(self, error: FriendliError) -> None:
        if isinstance(error, APIStatusError) and error.request_id is None:
            error.request_id = self._headers.get("x-request-id")
        self.failure = error
        self.over = True


class Opening(Protocol[T]):
    """Opens a stream; how, and how often it has to try, is the engine's."""

    async def open(self) -> Opened[T]:
        """Returns once the first event has arrived."""
        ...

    def interrupt(self, error: FriendliError) -> None:
        """Makes an ``open`` that is under way raise the error."""
        ...


class Opened(Generic[T]):
    """An open stream: where its bytes come from, and the reader that has its first event."""

    __slots__ = ("meta", "reader", "source")

    def __init__(self, source: TimedSource, reader: EventReader[T], meta: Meta) -> None:
        self.source = source
        self.reader = reader
        self.meta = meta


class EventStream(Generic[T]):
    """A stream of events: ``async with stream:``, bare ``async for event in stream:``, or ``await stream``.

    It is opened on first use, and it is open once its first event has arrived; what goes wrong before that is retried
    by the client's policy. Leaving ``async with``, ``aclose()``, cancellation, or dropping the last reference closes
    the connection at once. A stream ends in exactly one way, which ``outcome`` tells.

    Raises:
        FriendliError: While it is opened, whatever a plain call raises; afterwards StreamInterruptedError,
            APITimeoutError ("idle", "total"), APIStatusError (an error in the stream) or ResponseDecodeError, each with
            ``partial``.
        RuntimeError: Two tasks wait for its events at the same time.
    """

    def __init__(self, opening: Opening[T]) -> None:
        self._opening = opening
        self._opened: Opened[T] | None = None
        self._ready: deque[T] = deque()
        self._outcome: Outcome = "open"
        self._error: FriendliError | None = None
        self._waiting = False

    @property
    def outcome(self) -> Outcome:
        """How the stream stands, or ended."""
        return self._outcome

    @property
    def meta(self) -> Meta:
        """Status, headers, request id and attempts. Final once the stream is open; raises RuntimeError before."""
        if self._opened is not None:
            return self._opened.meta
        if self._error is not None and self._error.meta is not None:
            return self._error.meta
        if self._outcome != "open":
            raise RuntimeError("the stream was never opened")
        raise RuntimeError("the stream is not open yet: use `async with`, or await it")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._outcome}>"

    def __del__(self) -> None:
        opened: Opened[T] | None = getattr(self, "_opened", None)  # None, too, where __init__ never ran
        if opened is not None and self._outcome == "open":
            opened.source.drop()

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
        """Ends the stream here and now; synchronous, so that nothing can cancel it."""
        self._check_loop()
        self._ready.clear()
        if self._outcome != "open":
            return
        self._outcome = "cancelled"
        error = StreamInterruptedError(reason)
        if self._opened is None:
            if self._waiting:
                self._opening.interrupt(error)
        elif self._waiting:
            self._opened.source.wake(error)
        elif not self._opened.reader.over:  # else the connection has been let go of
            self._opened.source.abort()

    async def _ensure_open(self) -> Self:
        if self._opened is None:
            if self._outcome != "open":
                raise self._ending()
            self._begin_waiting()
            try:
                await self._open()
            finally:
                self._waiting = False
        return self

    async def _open(self) -> None:
        try:
            opened = await self._opening.open()
        except FriendliError as error:
            if self._outcome == "open":
                self._outcome = "truncated" if isinstance(error, StreamInterruptedError) else "failed"
            self._error = copy.copy(error)
            raise
        except BaseException as error:
            self._outcome = "failed" if isinstance(error, Exception) else "cancelled"  # a token callable can fail, too
            raise
        self._opened = opened
        if self._outcome != "open":  # closed by another task in this very instant
            opened.source.abort()
            raise self._ending()
        self._ready = opened.reader.ready
        self._settle(opened)

    def _check_loop(self) -> None:
        if self._opened is not None and not self._opened.source.here:
            raise RuntimeError("the stream belongs to another event loop, the one in which it was opened")

    def _begin_waiting(self) -> None:
        self._check_loop()
        if self._waiting:
            raise RuntimeError("another task is waiting for this stream's events already")
        self._waiting = True

    # --- iterating -------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._ready:
            return self._ready.popleft()
        self._begin_waiting()
        try:
            if self._opened is None and self._outcome == "open":
                await self._open()
            if not self._ready:
                await self._fill()
        finally:
            self._waiting = False
        if self._ready:
            return self._ready.popleft()
        raise StopAsyncIteration

    async def _exhaust(self) -> None:
        """Reads to the end, past events that nobody has taken.

        Raises:
            FriendliError: The stream did not end well; again, if it has already said so.
        """
        self._begin_waiting()
        try:
            if self._opened is None and self._outcome == "open":
                await self._open()
            while self._outcome == "open":
                self._ready.clear()
                await self._fill()
            self._ready.clear()
        finally:
            self._waiting = False
        if self._outcome != "done":
            raise self._ending()

    async def _fill(self) -> None:
        """Reads until there is an event, or the stream has ended."""
        opened = self._opened
        if opened is None or self._outcome != "open":
            return
        error = None if opened.reader.over else await self._read(opened)
        failure = self._settle(opened) if error is None else self._broken(opened, error)
        if failure is not None:
            try:
                raise failure
            finally:  # or this frame, which the traceback holds, would hold the error, until the collector comes
                del failure, error

    async def _read(self, opened: Opened[T]) -> FriendliError | None:
        """Reads until there is an event or the reader is through; returns what came in between, if anything did."""
        source, reader = opened.source, opened.reader
        source.wait_begins()
        try:
            while not reader.ready and not reader.over:
                reader.feed(await source.read())
        except FriendliError as error:
            return error
        except BaseException:
            self._waiting = False  # nobody is left to be woken
            self._stop("the reading task was cancelled")
            raise
        finally:
            source.wait_ends()
        if self._outcome != "open":  # bytes and aclose() came in the same instant
            return StreamInterruptedError("the stream was closed")
        return None

    def _settle(self, opened: Opened[T]) -> FriendliError | None:
        """Lets go of the connection once the reader is through, and ends the stream once its events have been taken.

        So how a stream ends does not depend on how its bytes were cut into reads. Returns the error to raise.
        """
        reader = opened.reader
        if not reader.over:
            return None
        if reader.failure is None:
            opened.source.finish()
        else:
            opened.source.abort()
        if reader.ready:
            return None
        if reader.failure is not None:
            return self._failed(opened, reader.failure)
        self._outcome = "done"
        return None

    def _broken(self, opened: Opened[T], error: FriendliError) -> FriendliError | None:
        """The source gave up: a limit, a broken connection, or our own side closed it. Returns the error to raise."""
        opened.source.abort()
        lost = isinstance(error, APIConnectionError)
        if self._outcome == "open" and lost and opened.reader.collector.complete():
            self._outcome = "done"  # everything that was promised had arrived
            return None
        if type(error) is APIConnectionError:
            return self._failed(opened, StreamInterruptedError(str(error)), "truncated")
        return self._failed(opened, error, "cancelled" if isinstance(error, StreamInterruptedError) else "failed")

    def _failed(self, opened: Opened[T], error: FriendliError, outcome: Outcome | None = None) -> FriendliError:
        if self._outcome == "open":
            self._outcome = outcome or ("truncated" if isinstance(error, StreamInterruptedError) else "failed")
        error.meta = opened.meta
        error.partial = opened.reader.collector.partial()
        self._error = copy.copy(error)  # without the traceback, whose frames hold this stream
        return error

    def _ending(self) -> FriendliError:
        """The error of a stream that did not end well, to be raised once more."""
        if self._error is not None:
            return copy.copy(self._error)
        error = StreamInterruptedError("the stream was closed before it was complete")
        if self._opened is not None:
            error.meta = self._opened.meta
            error.partial = self._opened.reader.collector.partial()
        return error
