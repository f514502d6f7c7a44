"""One stream's bytes to its events, and to what they add up to. No I/O."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from friendli_async._core.error_json import json_or_none
from friendli_async._core.events.decoding import DONE, NOT_DECODED, Dialect
from friendli_async._core.events.sse import ServerSentEvent, SSEDecoder
from friendli_async._core.status_errors import error_of_payload, unframed
from friendli_async.errors import APIStatusError, FriendliError, StreamInterruptedError
from friendli_async.replies import Headers, Partial, request_id_of

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

    @property
    def add_texts(self) -> Callable[[Sequence[Any]], int] | None:
        """Takes nameless events in, up to the first that is more than a piece of the text; gives how many those are.

        There is nothing beside a piece of the text that ``Dialect.are_ordinary`` would have to look for, and it is
        not the last event. None where an API has no such short way.
        """
        ...

    def extend(self, events: Sequence[E]) -> None:
        """Takes decoded events in, whatever they are."""
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
        stop_conditions: Asked of each event, when the collector has it: the first that says yes makes it the last one.

    Attributes:
        ready: Decoded events that nobody has taken yet. New bytes are fed only when there are none.
        is_last: Nothing follows those: the end, a failure or the end of the body has been read.
        failure: What was wrong behind them.
        stopped: Whether it was a judge that made the last event the last one.
        excess: How many of the bytes that were fed stand behind that event.
    """

    __slots__ = (
        "_add_texts",
        "_collector",
        "_decode",
        "_dialect",
        "_headers",
        "_limit",
        "_odd",
        "_sse",
        "_status",
        "_stop_conditions",
        "excess",
        "failure",
        "is_last",
        "ready",
        "stopped",
    )

    def __init__(
        self,
        collector: Collector[E, object, object],
        limit: int,
        status: int,
        headers: Headers,
        stop_conditions: Sequence[Callable[[E], object]] = (),
    ) -> None:
        self.ready: deque[E] = deque()
        self.is_last = False
        self.failure: FriendliError | None = None
        self.stopped = False
        self.excess = 0
        self._stop_conditions = stop_conditions
        self._limit = limit
        self._odd = b""  # the last event of an unknown kind that said something in words
        self._collector = collector
        self._add_texts = None if stop_conditions else collector.add_texts
        self._dialect = collector.dialect
        self._decode = self._dialect.decode_payload
        self._sse = SSEDecoder(limit)
        self._status = status
        self._headers = headers

    def restarted(
        self, collector: Collector[E, object, object], stop_conditions: Sequence[Callable[[E], object]]
    ) -> EventReader[E]:
        """A reader of the same reply from its beginning."""
        return EventReader(collector, self._limit, self._status, self._headers, stop_conditions)

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; b"" is the end of the body."""
        if self._stop_conditions:
            self._feed_by_event(data)
            return
        payload = self._sse.single(data)
        if payload is None:
            self._feed(data)
            return
        # As ``_decode_plain`` does for many, without its lists: a fifth of what an event of a live stream costs here.
        try:
            event = self._decode(payload)
        except NOT_DECODED:
            self._decode_each([ServerSentEvent(payload)])
            return
        if self._add_texts is not None and self._add_texts((event,)):
            self.ready.append(event)
        elif self._dialect.are_ordinary((event,), (payload,)):
            self._take((event,))
        else:
            self._decode_each([ServerSentEvent(payload)])

    def _feed_by_event(self, data: bytes) -> None:
        """Takes the next bytes event by event, so that it is known where the last one ends."""
        begin = 0
        for blank in _BLANK_LINE.finditer(data):
            self._feed(data[begin : blank.end()])
            begin = blank.end()
            if self.stopped:
                self.excess = len(data) - begin
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
        if is_end:
            payloads.pop()
        try:
            events = list(map(self._decode, payloads))
        except NOT_DECODED:
            events = []
        texts = 0 if self._add_texts is None else self._add_texts(events)
        if texts == len(payloads):
            self.ready.extend(events)
        else:
            self.ready.extend(events[:texts])
            rest, behind = events[texts:], payloads[texts:]
            if rest and self._dialect.are_ordinary(rest, behind):
                self._take(rest)
            else:
                self._decode_each([ServerSentEvent(payload) for payload in behind])
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
                if self._dialect.is_unexplained(payload, event.data):
                    self._odd = event.data
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
        if self._stop_conditions:
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
            if not collector.is_last and any([condition(event) for condition in self._stop_conditions]):  # noqa: C419  # each keeps count
                self.is_last = self.stopped = True
                return

    def _body_ended(self) -> None:
        cut = self._sse.cut()
        self._end(stated=cut is not None and cut.strip() == DONE)

    def _end(self, *, stated: bool) -> None:
        """The end: the server has stated it, or just stopped."""
        collector = self._collector
        self.is_last = True
        odd = self._odd
        if collector.begun and collector.may_end:
            return
        if odd and not self._sse.stray:
            self._fail(error_of_payload(json_or_none(odd), odd, self._status, self._headers))
            return
        stray = self._sse.stray
        error, said = unframed(stray, self._status, self._headers) if stray else (None, "")
        if error is not None:
            self._fail(error)
        elif not (collector.begun and stated):
            words = "the stream ended before it was complete" if collector.begun else "the stream ended before it began"
            self._fail(StreamInterruptedError(f"{words}: {said!r}" if said else words))

    def _fail(self, error: FriendliError) -> None:
        if isinstance(error, APIStatusError) and error.request_id is None:
            error.request_id = request_id_of(self._headers)
        self.failure = error
        self.is_last = True
