"""OpenStream: the resources of one open stream, and the ways in which it ends."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

import msgspec

from friendli_async._core.held import reject_stop_iteration, weak_method
from friendli_async._core.loops import CallOnce, call_in_loop, call_once_soon
from friendli_async._core.secret import Secret, mask_token
from friendli_async.errors import APIConnectionError, FriendliError, StreamInterruptedError
from friendli_async.replies import Meta, Timing, attach_meta, usage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from friendli_async._core.events.reader import Collector, EventReader
    from friendli_async._core.net.clock import ReadClock
    from friendli_async._core.net.exchange import Exchange
    from friendli_async._core.reporting import CallReporter
    from friendli_async._core.timing import Stopwatch

E = TypeVar("E")
R_co = TypeVar("R_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)

Outcome = Literal["open", "done", "stopped", "truncated", "failed", "cancelled"]
"""The state of a stream: ``stopped`` is an intended end, ``truncated`` an end without a terminal event, ``failed`` a
time or size limit, an error in the stream or an undecodable event. ``cancelled`` means that it was abandoned or closed
early, by anyone, or that a read of it was cancelled."""
SUCCESSFUL_OUTCOMES: Final = frozenset({"done", "stopped"})
"""Those of a stream that has a result."""


class StreamState(msgspec.Struct, eq=False):
    """Whether a stream or a run is open, or how it has ended: one object from its creation to its end.

    Until a stream has its first event, its ``StreamOpening`` changes it, and from then on its ``OpenStream``.

    Attributes:
        outcome: How it has ended.
        error: The error that ended it, without a traceback; None while it is open, and if it ended as ``done`` or
            ``stopped`` after it was opened.
        closed: Whether it was closed on purpose: by ``aclose()`` or ``stop()``, also after its end, or by leaving
            ``async with`` while it was open.
    """

    outcome: Outcome = "open"
    error: FriendliError | None = None
    closed: bool = False

    def final_error(self) -> FriendliError:
        """Returns a copy of the error that ended it, to be raised again."""
        assert self.error is not None, "it has not ended with an error"
        return copy.copy(self.error)

    @property
    def has_failed(self) -> bool:
        """Whether it ended before anybody closed it."""
        return self.outcome in {"truncated", "failed"}

    @property
    def raises(self) -> bool:
        """Whether later reads raise ``error``, so that a second loop does not look like an empty answer.

        They just end after it was closed on purpose, unless it had failed before.
        """
        return self.error is not None and (self.has_failed or not self.closed)

    def raise_error(self) -> None:
        """Raises the error that ended it, if it ended with one."""
        if self.error is not None:
            raise self.final_error()

    def check_readable(self) -> None:
        """Raises the error that ended it, if later reads do."""
        if self.raises:
            raise self.final_error()


def judge_end(
    reader: EventReader[Any], collector: Collector[Any, Any, Any], broken: FriendliError | None = None
) -> tuple[Outcome, FriendliError | None]:
    """Decides how a stream has ended that nobody has stopped.

    Args:
        reader: Its reader.
        collector: Its collector.
        broken: What ended it, unless its end was read before.

    Returns:
        The outcome, and the error if there is one.
    """
    failure = reader.failure
    if reader.has_ended and failure is None:
        return ("stopped" if reader.stopped else "done"), None
    if reader.has_ended:
        return ("truncated" if isinstance(failure, StreamInterruptedError) else "failed"), failure
    if isinstance(broken, APIConnectionError) and collector.may_end:
        return "done", None  # nothing of the answer is missing
    if isinstance(broken, StreamInterruptedError):  # ``abort_with``, by the end of the client or loop
        return "cancelled", broken
    if type(broken) is APIConnectionError:
        return "truncated", StreamInterruptedError(str(broken))
    return "failed", broken  # a timeout, or a reply that cannot be decompressed


class OpenStream(msgspec.Struct, Generic[E, R_co, U_co], eq=False, weakref=True):
    """The resources of an open stream: its connection, reader and limits.

    It does not reference the ``EventStream`` that wraps it: that is freed with the user's last reference, and then ends
    this stream. Nor does its timer reference it, only the exchange.

    It ends in one of four ways, each of which lets go of the connection first and then calls ``_end``, once. ``stop``
    is told the outcome, and ``judge_end`` decides on it in the others:

    - ``stop``: the user ends it, also by cancelling a read or by an exception of a stop condition; or the content is
      unusable (``OutputStream``). What was not delivered is discarded.
    - ``settle``: the reader has read the end, and what precedes that was delivered.
    - ``_break``: a read has failed, because the connection broke.
    - ``_end_aborted``: from outside, even if nobody reads: a timeout, a drain that timed out, the end of the client or
      loop (``Exchange.abort_with``). What has arrived is delivered after that, so the error is raised later.

    While a stream is being opened, ``Call.run`` ends it, and ``StreamOpening`` records that.

    Attributes:
        kept_bytes: The bytes that have arrived, and that a ``RawView`` has yet to return: before the first read, those
            up to the first event. None if nobody will read bytes: events are read, or the stream was closed.
        token: The token of the request, which errors must not quote.
        on_abort: Called when the exchange is aborted, for waiters of something other than bytes.
        is_unread: Whether no read has begun, and it was not closed.
    """

    state: StreamState
    exchange: Exchange
    reader: EventReader[E]
    collector: Collector[E, R_co, U_co]
    clock: ReadClock
    _meta: Meta
    stopwatch: Stopwatch
    reporter: CallReporter | None
    kept_bytes: bytes | None
    token: Secret
    on_abort: Callable[[], None] | None = None
    is_unread: bool = True
    _meta_is_final: bool = False

    def __post_init__(self) -> None:
        # The pool holds the exchange, and a stop condition may refer to the ``EventStream``.
        self.exchange.on_abort = weak_method(self._end_aborted)

    def __repr__(self) -> str:  # its fields would include the received bytes
        return f"<OpenStream {self.state.outcome}>"

    async def fill(self, *, shared: bool = False) -> None:
        """Reads until there is an event, or the stream has ended; if bytes are kept, once, even if there is none.

        Args:
            shared: Other tasks wait for the same events: cancelling this read does not end the stream.

        Raises:
            FriendliError: The stream failed.
        """
        exchange, reader, clock = self.exchange, self.reader, self.clock
        ready = reader.ready
        waiting = False
        try:
            while not ready and not reader.has_ended:
                try:
                    while (data := exchange.take()) is None:
                        if not waiting:  # the time limit applies between events, not between reads
                            waiting = True
                            clock.begin_wait()
                        await exchange.wait_readable()
                except FriendliError as error:
                    self._break(error)
                    break
                reader.feed(data)
                self.stopwatch.record_read(len(data), len(ready))
                if self.kept_bytes is not None:
                    self.kept_bytes = data  # a ``RawView`` has taken what was kept before
                    clock.carry_over(no_event=not ready, waited=waiting)
                    break
        except BaseException as error:  # cancelled, or raised by a stop condition, which may raise any class
            if isinstance(error, Exception) or not shared:
                self._fail_read(error)
            raise
        finally:
            if waiting:
                clock.end_wait()
        data = None  # no frame of an error holds it: it may quote the token
        if self.state.outcome != "open":
            if self.state.closed:
                ready.clear()  # they arrived in the same loop iteration as aclose()
            if not ready and not self.kept_bytes:  # else the read after those raises it
                self.state.raise_error()
        elif reader.has_ended and self.kept_bytes is None:  # else a ``RawView`` settles it
            self.settle()
        if self.stopwatch.first_text_at is None and self.collector.has_text:
            self.stopwatch.record_first_text()

    def _fail_read(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self.stop(StreamInterruptedError(f"the stream failed: {type(error).__name__}"), "failed")
        else:
            self.stop(StreamInterruptedError("a read of the stream was cancelled, which closed it"))
        reject_stop_iteration(error)

    def apply_stop_conditions(
        self, stop_conditions: Sequence[Callable[[E], object]], collector: Collector[E, R_co, U_co]
    ) -> None:
        """Parses the bytes received so far again, and stops at the first event for which a condition is true.

        Args:
            stop_conditions: See ``EventReader``.
            collector: A new collector, as all events are decoded again.

        Raises:
            Exception: What a stop condition raises.
        """
        reader = self.reader.from_beginning(collector, stop_conditions)
        try:
            reader.feed(self.kept_bytes or b"")
            if self.reader.has_ended and not reader.has_ended:
                reader.feed(b"")  # the body has ended, too: its exchange may be aborted, and cannot say so again
        except BaseException as error:
            self._fail_read(error)
            raise
        self.reader, self.collector = reader, collector
        if reader.has_ended and not reader.lacks_line_end:
            self.release()

    def settle(self) -> None:
        """Releases the connection when the reader has finished, and ends the stream when its events are consumed.

        Therefore the outcome does not depend on how the bytes were split into reads.

        Raises:
            FriendliError: The stream failed.
        """
        if not self.reader.has_ended:
            return
        self.release()
        if self.reader.ready or self.state.outcome != "open":
            return
        self._end(*judge_end(self.reader, self.collector))
        self.state.raise_error()

    def stop_watching(self) -> None:
        """Makes sure that neither a timeout nor an abort of the exchange ends the stream any more."""
        self.clock.stop()
        self.exchange.on_abort = None

    def release(self) -> None:
        """Lets go of the connection, and keeps it for another call if the reply was read to its end."""
        reader = self.reader
        self.stop_watching()
        if reader.has_ended and reader.failure is None and not reader.stopped:
            self.exchange.finish()
        else:
            self.exchange.abort()

    def _break(self, error: FriendliError) -> None:
        """Ends the stream after a failed read, unless something else has ended it, and made the read fail."""
        if self.state.outcome == "open":
            self.release()
            self._end(*judge_end(self.reader, self.collector, error))

    def _end_aborted(self, error: FriendliError) -> None:
        """Ends the stream after ``Exchange.abort_with``, although nobody may be reading it.

        What has arrived is still delivered. The error is raised after that, by the read that waits, or by a later one.
        """
        self.stop_watching()
        if self.on_abort is not None:
            self.on_abort()
        arrived = self._read_arrived()
        if self.kept_bytes is not None:
            self.kept_bytes += arrived
        del arrived  # an observer may raise, and the traceback must not have bytes that may quote the token
        self._end(*judge_end(self.reader, self.collector, error))

    def stop(self, error: FriendliError, outcome: Outcome = "cancelled", *, waited_for: bool = False) -> None:
        """Ends the stream immediately, and discards undelivered events; synchronous, so that it cannot be cancelled.

        Args:
            error: What later reads raise, unless it was stopped.
            outcome: The outcome of the stream.
            waited_for: Whether another task is waiting for an event: the error is raised there.
        """
        self.reader.ready.clear()
        self.kept_bytes = None
        self.is_unread = False
        if self.state.outcome != "open":
            return
        if outcome == "stopped":
            self._read_arrived()
            self.reader.ready.clear()
        self.stop_watching()
        if waited_for:
            self.exchange.abort_with(error)
        else:
            self.exchange.abort()
        self._end(outcome, None if outcome == "stopped" else error)

    def _read_arrived(self) -> bytes:
        """Decodes what has arrived and nobody has read, before the stream ends early.

        Returns:
            The bytes.
        """
        reader, ready = self.reader, self.reader.ready
        if reader.stop_conditions:
            return b""  # they would be called outside of a read, and may raise
        pieces: list[bytes] = []
        with suppress(FriendliError):
            while not reader.has_ended and (data := self.exchange.take_arrived()):
                queued = len(ready)
                reader.feed(data)
                self.stopwatch.record_read(len(data), len(ready) - queued)
                pieces.append(data)
        if self.stopwatch.first_text_at is None and self.collector.has_text:
            self.stopwatch.record_first_text()
        return b"".join(pieces)

    def _end(self, outcome: Outcome, error: FriendliError | None = None) -> None:
        """Records how the stream, which is open, has ended, and reports it."""
        self.state.outcome = outcome
        self.stopwatch.stop()
        if error is not None:
            mask_token(error, self.token)
            error.meta = self.meta
            error.partial = self.collector.partial()
            self.state.error = copy.copy(error)  # without the traceback, whose frames refer to the stream
        if self.reporter is not None:
            self._report_end(self.reporter, outcome, error)

    def _report_end(self, reporter: CallReporter, outcome: Outcome, error: FriendliError | None) -> None:
        collector, usage = self.collector, usage_of(self.collector)
        reply: object = None
        if reporter.wants("call_content"):
            reply = collector.result() if outcome in SUCCESSFUL_OUTCOMES else collector.partial()
            attach_meta(reply, self.meta)
        was_read = outcome == "done" and self.reader.has_ended  # else the connection broke after the finish reason
        reporter.end(
            outcome,
            self.meta,
            usage,
            collector.finish_reasons,
            error,
            # Before the finish reason, the usage is incomplete: a message begins with that of its prompt.
            is_complete=was_read or (usage is not None and bool(collector.finish_reasons)),
            envelope=collector.envelope,
            reply=reply,
        )

    @property
    def meta(self) -> Meta:
        """The metadata of the reply; while the stream is open, its timing ends at the first event.

        It is final once the stream has ended.
        """
        if self.state.outcome != "open" and not self._meta_is_final:
            self._meta_is_final = True
            self._meta = msgspec.structs.replace(self._meta, timing=self.timing())
        return self._meta

    def timing(self) -> Timing:
        """Returns the timing so far."""
        usage = usage_of(self.collector)
        return self.stopwatch.timing(None if usage is None else usage.completion_tokens)

    def drop(self, reason: str) -> None:
        """Ends the stream when its last reference is dropped, maybe in another thread or without a running loop."""
        call_in_loop(self.clock.loop, CallOnce(self._end_dropped, StreamInterruptedError(reason)))

    def _end_dropped(self, error: FriendliError) -> None:
        """Ends the stream now, and reports that in the loop's next turn, or now if the loop is closed.

        This may be running within an observer, in a finalizer: one that holds a lock would wait for itself forever.
        """
        reporter, self.reporter = self.reporter, None
        self.stop(error)
        if reporter is not None:
            call_once_soon(self.clock.loop, self._report_end, reporter, "cancelled", error)
