"""One stream's bytes to its events, and to what they add up to. No I/O."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from friendli_async._core.error_bodies import excerpt, is_telling, parsed, request_id_of, said_error
from friendli_async._core.events.decoding import DONE, Dialect
from friendli_async._core.events.sse import ServerSentEvent, SSEDecoder
from friendli_async.errors import APIStatusError, FriendliError, StreamInterruptedError
from friendli_async.replies import Headers, Partial

__all__ = ["Collector", "EventReader"]

E = TypeVar("E")
R_co = TypeVar("R_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)

# A line end behind another, or first in a read, where the other may have been the last of the read before: with each
# of these, whichever the line ends are and however they are cut, an event may be whole.
_BLANK_LINE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))(?:\r\n|\n|\r)")


class Collector(Protocol[E, R_co, U_co]):
    """What an API contributes to its streams: its dialect, what its events add up to, and when they are complete."""

    @property
    def dialect(self) -> Dialect[E]:
        """What an event is."""
        ...

    @property
    def begun(self) -> bool:
        """Whether anything of an answer has come; an end before that is no good end."""
        ...

    @property
    def has_text(self) -> bool:
        """Whether any text has come."""
        ...

    @property
    def may_end(self) -> bool:
        """Whether the end of the body would be a good end now: a terminal event has been seen."""
        ...

    @property
    def is_last(self) -> bool:
        """Whether the API's own last event has come: then nothing more is waited for."""
        ...

    @property
    def usage(self) -> U_co | None:
        """The usage, once the server has told it."""
        ...

    @property
    def head(self) -> object:
        """What has the reply's ``id`` and ``model``, as far as they have come."""
        ...

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why the choices that have finished did so."""
        ...

    def extend(self, events: Sequence[E]) -> None:
        """Takes decoded events in."""
        ...

    def partial(self) -> Partial:
        """What has arrived so far."""
        ...

    def result(self) -> R_co:
        """What all of it adds up to."""
        ...


class EventReader(Generic[E]):
    """One stream's bytes to its events.

    Args:
        collector: Takes the events, too.
        limit: The largest event, bytes.
        status: The reply's status.
        headers: The reply's headers.
        judges: Asked of each event, when the collector has it: the first that says yes makes it the last one.

    Attributes:
        ready: Decoded events that nobody has taken yet. New bytes are fed only when there are none.
        is_last: Nothing follows those: the end, a failure or the end of the body has been read.
        failure: What was wrong behind them.
        stopped: Whether it was a judge that made the last event the last one.
        unheard: How many of the bytes that were fed stand behind that event.
    """

    __slots__ = (
        "_collector",
        "_dialect",
        "_headers",
        "_judges",
        "_limit",
        "_sse",
        "_status",
        "failure",
        "is_last",
        "ready",
        "stopped",
        "unheard",
    )

    def __init__(
        self,
        collector: Collector[E, object, object],
        limit: int,
        status: int,
        headers: Headers,
        judges: Sequence[Callable[[E], object]] = (),
    ) -> None:
        self.ready: deque[E] = deque()
        self.is_last = False
        self.failure: FriendliError | None = None
        self.stopped = False
        self.unheard = 0
        self._judges = judges
        self._limit = limit
        self._collector = collector
        self._dialect = collector.dialect
        self._sse = SSEDecoder(limit)
        self._status = status
        self._headers = headers

    def anew(self, collector: Collector[E, object, object], judges: Sequence[Callable[[E], object]]) -> EventReader[E]:
        """A reader of the same reply from its beginning."""
        return EventReader(collector, self._limit, self._status, self._headers, judges)

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; b"" is the end of the body."""
        if self._judges:
            self._feed_by_event(data)
        else:
            self._feed(data)

    def _feed_by_event(self, data: bytes) -> None:
        """Takes the next bytes event by event, so that it is known where the last one ends."""
        begin = 0
        for blank in _BLANK_LINE.finditer(data):
            self._feed(data[begin : blank.end()])
            begin = blank.end()
            if self.stopped:
                self.unheard = len(data) - begin
            if self.is_last:
                return
        if begin < len(data) or not data:
            self._feed(data[begin:])

    def _feed(self, data: bytes) -> None:
        sse = self._sse
        payloads = sse.plain(data)
        if payloads is not None:
            self._decode_plain(payloads)
            return
        self._decode_each(sse.feed(data))
        if self.is_last:
            return
        if sse.error is not None:
            self._fail(sse.error)
        elif sse.ends_with(DONE):  # the sentinel needs no blank line after it
            self._end(stated=True)
        elif not data:
            self._body_ended()

    def _decode_plain(self, payloads: list[bytes]) -> None:
        """Decodes the data of nameless events: all at once, if all are ordinary, but for the sentinel behind them."""
        is_end = bool(payloads) and payloads[-1] == DONE
        ordinary = payloads[:-1] if is_end else payloads
        events = self._dialect.decode_all(ordinary)
        if events is None:
            self._decode_each([ServerSentEvent(payload) for payload in payloads])
            return
        self._take(events)
        if is_end and not self.is_last:
            self._end(stated=True)

    def _decode_each(self, events: list[ServerSentEvent]) -> None:
        fresh: list[E] = []
        error: FriendliError | None = None
        is_end = False
        for event in events:
            try:
                payload, error, is_end = self._dialect.decode(event.event, event.data, self._status, self._headers)
            except FriendliError as problem:
                payload, error = None, problem
            if payload is not None:
                if (told := self._dialect.failure_of(payload)) is not None:
                    self._take(fresh)
                    if self.is_last:
                        return
                    self._collector.extend((payload,))
                    self._fail(told)  # raised, and not delivered as well
                    return
                fresh.append(payload)
            if error is not None or is_end:
                break
        self._take(fresh)
        if self.is_last:  # what is behind the API's own last event is not heard
            return
        if error is not None:
            self._fail(error)
        elif is_end:
            self._end(stated=True)

    def _take(self, events: Sequence[E]) -> None:
        collector = self._collector
        if self._judges:
            self._take_each(events)
        else:
            collector.extend(events)
            self.ready.extend(events)
        if collector.is_last:
            self.is_last = True

    def _take_each(self, events: Sequence[E]) -> None:
        collector = self._collector
        for event in events:
            collector.extend((event,))
            self.ready.append(event)
            if not collector.is_last and any([judge(event) for judge in self._judges]):  # noqa: C419  # each keeps count
                self.is_last = self.stopped = True
                return

    def _body_ended(self) -> None:
        cut = self._sse.cut()
        self._end(stated=cut is not None and cut.strip() == DONE)

    def _end(self, *, stated: bool) -> None:
        """The end: the server has stated it, or just stopped."""
        collector = self._collector
        self.is_last = True
        if collector.begun and (stated or collector.may_end):
            return
        stray = self._sse.stray
        said: object = parsed(stray)
        if is_telling(said):
            self._fail(said_error(said, stray, self._status, self._headers))
            return
        words = "the stream ended before it was complete" if collector.begun else "the stream ended before it began"
        self._fail(StreamInterruptedError(f"{words}: {excerpt(stray)!r}" if stray else words))

    def _fail(self, error: FriendliError) -> None:
        if isinstance(error, APIStatusError) and error.request_id is None:
            error.request_id = request_id_of(self._headers)
        self.failure = error
        self.is_last = True
