"""OpenStream: what is open of one stream, and the ways in which it ends."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Generic, Literal, NoReturn, Protocol, TypeVar

from friendli_async._core.held import Held, refuse_stop_iteration
from friendli_async.errors import APIConnectionError, FriendliError, ResponseDecodeError, StreamInterruptedError
from friendli_async.replies import Meta, Timing, usage_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from friendli_async._core.events.reader import Collector, EventReader
    from friendli_async._core.net.clock import ReadClock
    from friendli_async._core.net.exchange import Exchange
    from friendli_async._core.observers import CallReporter
    from friendli_async._core.timing import Stopwatch

__all__ = ["OpenStream", "Opening", "Outcome", "running_loop"]

E = TypeVar("E")
R_co = TypeVar("R_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)

Outcome = Literal["open", "done", "stopped", "truncated", "failed", "cancelled"]
"""How a stream stands, or ended: ``stopped`` is an end on purpose, ``truncated`` one without a terminal event,
``failed`` a time or size limit, an error in the stream or an undecodable event, ``cancelled`` that it was left or
closed early, by whomever, or that a read of it was cancelled."""


class OpenStream(Generic[E, R_co, U_co]):
    """What is open of a stream: its bytes, their reader, its limits, its outcome.

    It does not know the ``EventStream`` that serves it to its user: so when the user's last reference goes, that one
    goes, and ends this. Who knows it besides is its timer, while one runs.

    Attributes:
        head: The bytes up to and with those that completed its first event, until its events are taken; then b"". None
            where they were too many to be kept.
        outcome: How it stands, or ended.
        error: The error that it ended with, without a traceback; None where it has not, or well.
        was_cut: Whether a read that was cancelled, or failed in code that is not ours, has ended it, and nobody has
            been told since.
    """

    __slots__ = (
        "_meta",
        "_meta_is_final",
        "clock",
        "collector",
        "error",
        "exchange",
        "head",
        "loop",
        "outcome",
        "reader",
        "reporter",
        "stopwatch",
        "was_cut",
    )

    def __init__(
        self,
        exchange: Exchange,
        reader: EventReader[E],
        collector: Collector[E, R_co, U_co],
        clock: ReadClock,
        meta: Meta,
        stopwatch: Stopwatch,
        reporter: CallReporter | None,
        head: bytes | bytearray | None,
    ) -> None:
        self.exchange = exchange
        self.head = head
        self.reader = reader
        self.collector = collector
        self.clock = clock
        self._meta = meta
        self._meta_is_final = False
        self.loop: asyncio.AbstractEventLoop = exchange.loop
        self.outcome: Outcome = "open"
        self.error: FriendliError | None = None
        self.was_cut = False
        self.stopwatch = stopwatch
        self.reporter = reporter

    async def fill(self, *, once: bool = False, shared: bool = False) -> bytes:
        """Reads until there is an event, or the stream has ended.

        Args:
            once: Takes one read, whether there is an event in it or not. If it is the last one, ``settle`` is still
                due.
            shared: Others wait for the same events: a read that is cancelled does not end the stream.

        Returns:
            What was read last.

        Raises:
            FriendliError: It did not end well.
        """
        exchange, reader, clock = self.exchange, self.reader, self.clock
        ready = reader.ready
        problem: Held[FriendliError] | None = None
        waits = False
        data: bytes | None = None
        try:
            while not ready and not reader.is_last:
                while (data := exchange.take()) is None:
                    if not waits:  # the limit runs from event to event, not from read to read
                        waits = True
                        clock.wait_begins()
                    await exchange.arrival()
                reader.feed(data)
                self.stopwatch.read(len(data), len(ready))
                if once:
                    clock.carry_over(rest=not ready, waited=waits)
                    break
        except FriendliError as error:
            problem = Held(error)
        except BaseException as error:
            if isinstance(error, Exception) or not shared:
                self._read_failed(error)
            raise
        finally:
            if waits:
                clock.wait_ends()
        if problem is not None:
            self._break(problem)
        elif self.outcome != "open":  # bytes and aclose() came in the same instant
            ready.clear()
            self._break(Held(StreamInterruptedError("the stream was closed")))
            data = b""
        elif reader.is_last and not once:
            self.settle()
        if self.stopwatch.text_missing and self.collector.has_text:
            self.stopwatch.text_came()
        return data or b""

    def _read_failed(self, error: BaseException) -> None:
        self.reader.ready.clear()
        self.was_cut = True
        if isinstance(error, Exception):
            self.stop(f"the stream failed: {type(error).__name__}", "failed")
            refuse_stop_iteration(error)
        else:
            self.stop("a read of the stream was cancelled, which closed it", "cancelled")

    async def read(self) -> bytes:
        """Reads the next bytes: as they came, and decoded, too; their events are passed over.

        What they turned out to be is told once all of them have been given out.

        Returns:
            The bytes; b"" where the stream has ended.

        Raises:
            FriendliError: It did not end well.
        """
        reader = self.reader
        data = b""
        if self.head != b"":
            data, self.head = self._whole_head(), b""
        if not data and not reader.is_last:
            data = await self.fill(once=True)
        reader.ready.clear()
        if not data:
            self.settle()
        elif reader.is_last:
            self._let_go()
        return data[: len(data) - reader.excess] if reader.excess else data

    def apply_stop_conditions(
        self, stop_conditions: Sequence[Callable[[E], object]], collector: Collector[E, R_co, U_co]
    ) -> None:
        """Reads what has come so far once more, and from here on, up to the event for which a judge says yes.

        Args:
            stop_conditions: See ``EventReader``.
            collector: A new one, for what comes before that event.

        Raises:
            FriendliError: Too much came before the first event.
            Exception: What a judge raises.
        """
        head = self._whole_head()
        reader = self.reader.restarted(collector, stop_conditions)
        try:
            reader.feed(head)
        except BaseException as error:
            self._read_failed(error)
            raise
        self.reader, self.collector = reader, collector
        self._let_go()

    def _whole_head(self) -> bytes:
        if self.head is None:
            self._break(Held(ResponseDecodeError("too much came before the first event to be kept (Limits.event)")))
        return bytes(self.head or b"")

    def settle(self) -> None:
        """Lets go of the connection once the reader is through, and ends the stream once its events have been taken.

        So how a stream ends does not depend on how its bytes were cut into reads.

        Raises:
            FriendliError: It did not end well.
        """
        reader = self.reader
        if not reader.is_last:
            return
        self._let_go()
        if reader.ready:
            return
        if reader.failure is not None:
            failure, reader.failure = Held(reader.failure), None
            self._fail(failure)
        self._end("stopped" if reader.stopped else "done")

    def _let_go(self) -> None:
        """Lets go of the connection if the reader is through."""
        reader = self.reader
        if not reader.is_last:
            return
        self.clock.stop()
        if reader.failure is None and not reader.stopped:
            self.exchange.finish()
        else:
            self.exchange.abort()

    def _break(self, problem: Held[FriendliError]) -> None:
        """The bytes stopped coming: a limit, a broken connection, or our own side. Raises, unless all has come."""
        self.clock.stop()
        self.exchange.abort()
        if self.outcome == "stopped":
            problem.take()  # let go of, as wherever it is not raised: its traceback holds the frame that holds it
            return
        error = problem.error
        lost = isinstance(error, APIConnectionError)
        closed = isinstance(error, StreamInterruptedError)
        plain = type(error) is APIConnectionError
        words = str(error)
        del error  # it is raised below, with this frame in its traceback
        if self.outcome == "open" and lost and self.collector.begun and self.collector.may_end:
            problem.take()
            self._end("done")  # everything that was promised had arrived
        elif plain:
            problem.take()
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
            self.exchange.abort_with(error)
        else:
            self.exchange.abort()
        self._end(outcome, None if outcome == "stopped" else error)

    def _end(self, outcome: Outcome, error: FriendliError | None = None) -> None:
        """It has ended, in one way: the first counts, and an error is completed in any case."""
        first = self.outcome == "open"
        if first:
            self.outcome = outcome
            self.head = b""
            self.stopwatch.stop()
        if error is not None:
            error.meta = self.meta
            error.partial = self.collector.partial()
            self.error = copy.copy(error)  # without the traceback, whose frames hold the stream
        if first and self.reporter is not None:
            self._tell_of_the_end(self.reporter, outcome, error)

    def _tell_of_the_end(self, reporter: CallReporter, outcome: Outcome, error: FriendliError | None) -> None:
        collector = self.collector
        reply: object = None
        if reporter.wants_content:
            reply = collector.result() if outcome in {"done", "stopped"} else collector.partial()
        reporter.end(
            outcome,
            self.timing(),
            usage_of(collector),
            collector.finish_reasons,
            error,
            status=self._meta.status,
            head=collector.head,
            reply=reply,
        )

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
            here = running_loop() is self.loop
        except (RuntimeError, ImportError):  # the latter where Python is shutting down
            here = False
        if here:
            self.stop("the stream was dropped")
            return
        try:
            self.loop.call_soon_threadsafe(self.stop, "the stream was dropped")
        except RuntimeError:  # the loop is closed, and so is everything that was open in it
            self._end("cancelled", StreamInterruptedError("the stream was dropped"))


def running_loop() -> asyncio.AbstractEventLoop:
    import asyncio  # loaded long ago where a stream is open; a bare import of the library does without

    return asyncio.get_running_loop()


class Opening(Protocol[E, R_co, U_co]):
    """Opens a stream; how, and how often it has to try, is the call's."""

    async def open(self) -> OpenStream[E, R_co, U_co]:
        """Returns once the first event has arrived."""
        ...

    def collector(self) -> Collector[E, R_co, U_co]:
        """A new collector of the stream's events."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether it was told to end before it was open: by ``interrupt``, or by its client's end."""
        ...

    def interrupt(self, error: FriendliError, outcome: Outcome) -> None:
        """Makes an ``open`` that is under way raise the error; ``outcome`` is how the stream has ended then."""
        ...
