"""Turns the bytes of a stream into events, and passes these to the collector of the reply. No I/O."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from friendli_async._core.events.decoding import NOT_DECODED, Dialect
from friendli_async._core.events.sse import DONE, ServerSentEvent, SSEDecoder
from friendli_async._core.held import clear_tracebacks
from friendli_async._core.status_errors import error_of_payload, parse_unframed
from friendli_async._json import is_object, json_or_none
from friendli_async.errors import FriendliError, ResponseDecodeError, StreamInterruptedError
from friendli_async.replies import Partial, ReplyHead

E = TypeVar("E")
R_co = TypeVar("R_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)

# A blank line: a line end after another one, or at the start of a read (the other may have ended the previous read).
# After each, an event may be complete.
_BLANK_LINE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))(?:\r\n|\n|\r)")


def is_whole(event: ServerSentEvent) -> bool:
    """Whether an event lacks only its blank line at the end of a body: a sentinel or a JSON object proves it.

    The SSE standard discards such an event, but it may have the finish reason or the usage.
    """
    return event.data.strip() == DONE or is_object(json_or_none(event.data))


class Collector(Protocol[E, R_co, U_co]):
    """What an API contributes to its streams: the dialect, the accumulation of events, and the end conditions."""

    @property
    def dialect(self) -> Dialect[E]:
        """How the API encodes its events."""
        ...

    @property
    def begun(self) -> bool:
        """Whether any content has arrived; a stream that ends before that has failed."""
        ...

    @property
    def has_text(self) -> bool:
        """Whether any text has arrived."""
        ...

    @property
    def may_end(self) -> bool:
        """Whether the body may end now: a terminal event has arrived. Implies ``begun``."""
        ...

    @property
    def splits_answer(self) -> bool:
        """Whether the only answer is in several choices, which no reader of choice 0 would notice."""
        ...

    @property
    def is_last(self) -> bool:
        """Whether the final event of the API has arrived: reading stops then."""
        ...

    @property
    def usage(self) -> U_co | None:
        """The usage, once the server has sent it."""
        ...

    @property
    def envelope(self) -> object:
        """The object with the reply's ``id`` and ``model``, as far as they have arrived."""
        ...

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The finish reasons of the choices that have finished."""
        ...

    @property
    def add_texts(self) -> Callable[[Sequence[Any]], int] | None:
        """Adds nameless events up to the first that is not just a text delta; returns how many it added.

        A text delta needs no check by ``Dialect.are_ordinary``, and is never the final event. None if the API has no
        such fast path.
        """
        ...

    def extend(self, events: Sequence[E]) -> int:
        """Adds decoded events of any kind, up to the final event of the API; returns how many it added."""
        ...

    def partial(self) -> Partial:
        """Returns the content that has arrived so far."""
        ...

    def result(self) -> R_co:
        """Returns the complete reply."""
        ...


class EventReader(Generic[E]):
    """Parses the bytes of one stream into decoded events.

    Args:
        collector: Accumulates the events.
        limit: The size limit of an event, in bytes.
        head: The head of the reply.
        stop_conditions: Called with each event after the collector has added it; the stream stops after the event for
            which one returns true.

    Attributes:
        ready: Decoded events that have not been consumed. Reads feed bytes only while it is empty; when a stream ends
            early, what has arrived is fed anyway.
        has_ended: Whether no event follows those in ``ready``: the end of the stream or an error has been read.
        failure: The error that follows the events in ``ready``, or None.
        stopped: Whether a stop condition ended the stream.
        excess: The number of bytes fed that follow the event at which it stopped.
    """

    def __init__(
        self,
        collector: Collector[E, object, object],
        limit: int,
        head: ReplyHead,
        stop_conditions: Sequence[Callable[[E], object]] = (),
    ) -> None:
        self.ready: deque[E] = deque()
        self.has_ended = False
        self.failure: FriendliError | None = None
        self.stopped = False
        self.excess = 0
        self.stop_conditions = stop_conditions
        self._limit = limit
        self._possible_error_data = b""  # the data of the last event that may be an error: see ``Decoded``
        self._begun_at_possible_error = False  # whether the answer had begun by then
        self._collector = collector
        self._add_texts = None if stop_conditions else collector.add_texts
        self._dialect = collector.dialect
        self._decode = self._dialect.decode_payload
        self._sse = SSEDecoder(limit, self._dialect.redundant_names)
        self._head = head

    def from_beginning(
        self, collector: Collector[E, object, object], stop_conditions: Sequence[Callable[[E], object]]
    ) -> EventReader[E]:
        """Returns a reader that parses the same reply from the beginning."""
        return EventReader(collector, self._limit, self._head, stop_conditions)

    @property
    def lacks_line_end(self) -> bool:
        """Whether the stream was read to its end, but not the rest of the line ends after its last event."""
        return self._sse.lacks_line_end and self.failure is None and not self.stopped

    def skip(self, data: bytes) -> None:
        """Reads on after the end, up to the rest of the line ends."""
        self._sse.feed(data)

    def feed(self, data: bytes) -> None:
        """Parses the next bytes; b"" is the end of the body."""
        if self.stop_conditions:
            self._feed_by_event(data)
            return
        payload = self._sse.single(data)
        if payload is None:
            self._feed(data)
            return
        # Like ``_decode_plain``, but without its lists, which cost a fifth of the time of an event of a live stream.
        try:
            event = self._decode(payload)
        except NOT_DECODED:
            self._decode_again(data)
            return
        if self._add_texts is not None and self._add_texts((event,)):
            self.ready.append(event)
        elif self._dialect.are_ordinary((event,), (payload,)):
            self._take((event,))
        else:
            self._decode_again(data)

    def _feed_by_event(self, data: bytes) -> None:
        """Parses the next bytes one event at a time, to know where the last one ends."""
        begin = 0
        for blank in _BLANK_LINE.finditer(data):
            self._feed(data[begin : blank.end()])
            begin = blank.end()
            if self.stopped:
                self.excess = len(data) - begin
            if self.has_ended:
                return
        if begin < len(data) or not data:
            self._feed(data[begin:])

    def _feed(self, data: bytes) -> None:
        sse = self._sse
        if (plain := sse.plain(data)) is not None:
            self._decode_plain(*plain)
            return
        self._decode_each(sse.feed(data))
        if self.has_ended:
            return
        if sse.is_done:
            self._end(explicit=True)
        elif sse.error is not None:
            self._fail(sse.error)
        elif not data:
            last = sse.unfinished()
            if last is not None and is_whole(last):
                self._decode_each([last])
            if not self.has_ended:
                self._end(explicit=False)

    def _decode_plain(self, data: bytes, payloads: list[bytes]) -> None:
        """Decodes the data of plain events, and a sentinel after them: in one pass if all of them are ordinary."""
        is_end = payloads[-1] == DONE
        if is_end:
            payloads.pop()
        try:
            events = list(map(self._decode, payloads))
        except NOT_DECODED:
            events = []
        added = 0 if self._add_texts is None else self._add_texts(events)
        if added == len(payloads):
            self.ready.extend(events)
        else:
            self.ready.extend(events[:added])
            rest, rest_payloads = events[added:], payloads[added:]
            if rest and self._dialect.are_ordinary(rest, rest_payloads):
                self._take(rest)
            else:
                self._decode_again(data, added)
        if is_end and not self.has_ended:
            self._end(explicit=True)

    def _decode_again(self, data: bytes, skipped: int = 0) -> None:
        """Decodes complete events one by one, with their names, but not the first ones."""
        decoder = SSEDecoder(self._limit)
        decoder.stray = self._sse.stray
        self._decode_each(decoder.feed(data)[skipped:])

    def _decode_each(self, events: list[ServerSentEvent]) -> None:
        dialect = self._dialect
        error: FriendliError | None
        decoded: list[E] = []
        for event in events:
            try:
                payload, error, is_end, is_guess = dialect.decode(event.event, event.data, self._head)
            except FriendliError as problem:
                clear_tracebacks(problem)  # from Python 3.12 on, they have the frames of the read, up to the user's own
                payload, error, is_end, is_guess = None, problem, False, False
            if is_guess:
                self._possible_error_data = event.data
                self._take(decoded)
                decoded = []
                if self.has_ended:
                    return
                if self._collector.may_end:
                    error = None  # what follows the answer may be a note
            failure = None if payload is None else dialect.failure_of(payload, self._head)
            if error is not None or failure is not None or is_end:
                self._take(decoded)
                if not self.has_ended:  # anything after the final event of the API is ignored
                    self._end_at(event, payload, error, failure)
                return
            if payload is not None:
                decoded.append(payload)
            if is_guess:
                self._take(decoded)
                decoded = []
                self._begun_at_possible_error = self._collector.begun
        self._take(decoded)

    def _end_at(
        self, event: ServerSentEvent, payload: E | None, error: FriendliError | None, failure: FriendliError | None
    ) -> None:
        """Ends the stream at an event that is an error, reports a failure, or is the end."""
        last = () if payload is None else (payload,)
        if failure is not None:
            self._collector.extend(last)
            self._fail(failure)  # raised instead of delivered
        elif error is not None:
            self._take(last)  # it may be the final event of the API
            if not self.stopped:
                self._fail(error)
        else:
            self._end(explicit=True, stray=event.stray)

    def _take(self, events: Sequence[E]) -> None:
        collector = self._collector
        if self.stop_conditions:
            self._take_each(events)
        else:
            self.ready.extend(events[: collector.extend(events)])
        if collector.is_last:
            self.has_ended = True

    def _take_each(self, events: Sequence[E]) -> None:
        collector = self._collector
        for event in events:
            collector.extend((event,))
            self.ready.append(event)
            verdicts = [condition(event) for condition in self.stop_conditions]  # all of them: some keep state
            if collector.is_last:
                return
            if any(verdicts):
                self.has_ended = self.stopped = True
                return

    def _end(self, *, explicit: bool, stray: bytes | None = None) -> None:
        """Ends the stream: the server sent a sentinel (``explicit``), or just ended the body.

        ``stray`` are the stray lines before the sentinel; None if all of them are.
        """
        self.has_ended = True
        collector, possible_error = self._collector, self._possible_error_data
        stray = self._sse.stray if stray is None else stray
        if collector.may_end:
            return
        if collector.begun and not self._begun_at_possible_error:
            possible_error = b""  # the answer has begun after it
        if possible_error and not stray:
            payload = json_or_none(possible_error)
            self._fail(error_of_payload(payload, possible_error, self._head))
            return
        error, message = parse_unframed(stray, self._head)
        if error is not None:
            self._fail(error)
            return
        if collector.begun and explicit:
            if collector.splits_answer:
                self._fail(
                    ResponseDecodeError("the server numbers its choices wrongly: parts of the answer are in others")
                )
            return  # the sentinel vouches for an answer without a finish reason
        reason = f"the stream ended before {'it was complete' if collector.begun else 'any content came'}"
        self._fail(StreamInterruptedError(f"{reason}: {message!r}" if message else reason, excerpt=message))

    def _fail(self, error: FriendliError) -> None:
        self.failure = error
        self.has_ended = True
