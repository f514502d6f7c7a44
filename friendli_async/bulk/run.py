"""Bulk calls: maps rows to outcomes, with as many calls in flight as the server accepts.

A run is an iterator over outcomes, backed by a ``Job`` that runs on its own: one task takes rows, and one task per row
makes the call. The iterator takes outcomes from the job's queue. It references the job, but the job does not reference
it: so a dropped iterator is finalized by its loop, and closes the job.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Final, Generic, NoReturn, Self, TypeVar, overload

from friendli_async._callables import check_plain
from friendli_async._core.held import Held
from friendli_async._core.loops import call_in_loop, running_loop, wait_done, wait_ended
from friendli_async._core.work import Scope
from friendli_async._lazy import TypeForm
from friendli_async.bulk.adaptive import Adaptive
from friendli_async.bulk.checkpoint import Checkpoint, plain_key
from friendli_async.bulk.errors import CheckpointError, CheckpointInUseError, RejectedError, is_overload, is_rejection
from friendli_async.bulk.gate import Gate
from friendli_async.bulk.outcomes import Ledger, Outcome, Progress, close_in_thread
from friendli_async.bulk.reply_codec import ReplyCodec
from friendli_async.bulk.rows import rows_of
from friendli_async.bulk.sending import AnyRun, RowSender, RunState
from friendli_async.options import is_count, plain_number

__all__ = ["Run", "run_all"]

Row = TypeVar("Row")
R = TypeVar("R")

_logger: Final = logging.getLogger("friendli_async")
_WINDOW_FACTOR: Final = 4
"""Up to this many times the limit of rows are taken and not delivered yet: calls in flight, and outcomes that wait for
the consumer or, in ordered runs, for an earlier row."""
_PROBES: Final = 3
"""Up to this many first rows are sent one at a time, until a reply shows that replies can be kept in the checkpoint."""
_ENDING_SECONDS: Final = 5.0
"""How long a run waits for abandoned runs before it reports its checkpoint as in use."""
_ending: Final[set[Job[Any, Any]]] = set()
"""Runs that use their checkpoint although nobody iterates them: they were dropped, or are closing."""


@overload
def run_all(
    rows: Path,
    call: Callable[[Any], Awaitable[R]],
    *,
    concurrency: int | Adaptive | None = None,
    checkpoint: str | Path | None = None,
    key: Callable[[Any], str | int] | None = None,
    ordered: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
    reply_type: type[R] | None = None,
    max_rejections: int | None = 10,
) -> Run[Any, R]: ...


@overload
def run_all(
    rows: Iterable[Row] | AsyncIterable[Row],
    call: Callable[[Row], Awaitable[R]],
    *,
    concurrency: int | Adaptive | None = None,
    checkpoint: str | Path | None = None,
    key: Callable[[Row], str | int] | None = None,
    ordered: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
    reply_type: type[R] | None = None,
    max_rejections: int | None = 10,
) -> Run[Row, R]: ...


@overload
def run_all(
    rows: Iterable[Row] | AsyncIterable[Row] | Path,
    call: Callable[[Row], Awaitable[R]],
    *,
    concurrency: int | Adaptive | None = None,
    checkpoint: str | Path | None = None,
    key: Callable[[Row], str | int] | None = None,
    ordered: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
    reply_type: TypeForm[R],
    max_rejections: int | None = 10,
) -> Run[Row, R]: ...


def run_all(
    rows: Iterable[Row] | AsyncIterable[Row] | Path,
    call: Callable[[Row], Awaitable[R]],
    *,
    concurrency: int | Adaptive | None = None,
    checkpoint: str | Path | None = None,
    key: Callable[[Row], str | int] | None = None,
    ordered: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
    reply_type: Any = None,
    max_rejections: int | None = 10,
) -> Run[Row, R]:
    """Calls a coroutine function with every row, many at a time, and yields each outcome as soon as it is available.

    Rows are taken on demand, so memory is bounded by the concurrency: at most four times the limit of rows are in
    flight or wait for the consumer. (A checkpoint also needs some 200 bytes of memory per row, for its key.)

    Args:
        rows: The rows: an iterable (its ``next`` is called in the event loop), an async iterable, or the Path of a
            JSON Lines file. Its exceptions end the run, once the rows in flight have finished and been delivered. An
            iterator of yours is not closed, so you can read on from it; but an async generator ends if the run is
            stopped or closed while it waits for a row, since this wait is cancelled.
        call: Usually a coroutine function that uses a client. Its exceptions become the outcome of the row; so does a
            CancelledError that it raises without being cancelled, as the cause of a FriendliError, and a
            ConfigurationError if it returns what is not awaited or read, such as a stream. After a 429 or 503, or
            without a connection (an APIConnectionError with ``sent`` False), it is called again with the same row: up
            to five times, and unless the row's waits exceed an hour. The run pauses for the ``Retry-After``, up to an
            hour; without one, the row waits, longer each time, about a minute in all, and an adaptive run pauses
            briefly. There, retries of the client wait, too; with over a second left of it, the row is called again.
        concurrency: The maximum number of calls in flight. Default: ``Adaptive()``, which adapts to the server.
        checkpoint: A file that records finished rows, created if missing. A run with the same file continues where the
            last one ended, whatever ended it: finished rows are delivered from the file (``resumed``), and rows that
            failed with a retryable error are sent again, as are rows whose content has changed. A change of ``call``
            is not detected and needs another file.
        key: Returns the key of a row in the checkpoint, a unique str or int. Default: the index of the row.
        ordered: Whether to deliver outcomes in the order of the rows. A slow row then blocks the run once four times
            the limit of rows wait for it.
        on_progress: Called with the progress after every row. Its exceptions are logged and otherwise ignored.
        reply_type: With a checkpoint, the type that recorded replies are restored to. Needed unless replies are JSON
            values, replies of this library (restored without ``meta``), or of the type that ``call`` is annotated to
            return. A parsed reply needs its whole type: ``ParsedCompletion[City]``.
        max_rejections: End the run when this many rows in a row failed for a reason that no row can change: with 401,
            402, 403, 404 or 407, a ``ConfigurationError``, a ``UsageLimitError``, or, after all repetitions, still with
            429, 503 or no connection. None: never.

    Returns:
        The run, which starts when it is first iterated. Use ``async for``, best inside ``async with``.

    Raises:
        TypeError: ``rows`` is not iterable, ``call`` is not callable, ``key`` or ``on_progress`` is not a plain
            function, or ``reply_type`` cannot be decoded from JSON.
        ValueError: ``concurrency`` is not a positive integer or an ``Adaptive``, or ``max_rejections`` is below 1.
    """
    if not callable(call):
        raise TypeError(f"call must be a coroutine function, not {type(call).__name__}")
    check_plain(key, "key", "a row")
    check_plain(on_progress, "on_progress", "a Progress")
    ledger, probes = None, 0
    if checkpoint is not None:
        codec: ReplyCodec[R] = ReplyCodec(reply_type, call)
        ledger = Checkpoint[Row, R](Path(checkpoint), codec)
        probes = 0 if codec.is_type_known else _PROBES
    return Run(
        Job(
            rows,
            call,
            concurrency,
            ledger,
            key=key,
            ordered=ordered,
            on_progress=on_progress,
            max_rejections=max_rejections,
            probes=probes,
        )
    )


class Run(AnyRun, Generic[Row, R]):
    """A run of bulk calls: an async iterator over their outcomes. Created by ``run_all``.

    Closing it (leaving ``async with``, ``aclose()``, dropping the last reference) cancels the calls in flight and waits
    for them; the checkpoint keeps what was written. A run belongs to the event loop in which it is first iterated.

    Raises:
        CheckpointError: During iteration: the checkpoint cannot be used or written any more, or a reply could not be
            restored from it. Rows in flight have finished, and their outcomes were delivered, though not all of them
            are in the file.
        RejectedError: During iteration: see ``max_rejections``. Rows in flight have finished, and were delivered.
        RowsError: During iteration: a row or its key is invalid; ``DuplicateKeyError`` if an earlier row has its key.
        BaseException: During iteration: what ``call``, ``key`` or the rows raised that is not an Exception, such as
            pytest's ``Failed``. Rows in flight have finished, and were delivered; the row itself has no outcome.
    """

    def __init__(self, job: Job[Row, R]) -> None:
        super().__init__(job.state)
        self._job = job
        self._outcomes = _outcomes(job)

    @property
    def progress(self) -> Progress:
        """The progress of the run."""
        return self._job.progress()

    def stop(self) -> None:
        """Takes no more rows: rows in flight finish and are delivered, then the iteration ends.

        A row that waits to be sent again is delivered with its error. The wait for the next row is cancelled; see
        ``rows`` of ``run_all``.
        """
        self._job.stop()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Outcome[Row, R]]:
        return self._outcomes.__anext__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.progress}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run cannot be copied or pickled: it holds tasks")

    def __del__(self) -> None:
        self._job.note_ending()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the calls in flight, waits for them and ends the iteration. Any task of the loop may call it.

        In a call or the rows of the run itself, it does not wait, and they are cancelled like the others.
        """
        if isinstance(self._outcomes, AsyncGeneratorType) and not self._outcomes.ag_running:
            await self._outcomes.aclose()
        await self._job.close()


async def _outcomes(job: Job[Row, R]) -> AsyncGenerator[Outcome[Row, R], None]:
    # A loop without async generator hooks (nest_asyncio's) leaves a dropped generator to its destructor, which cannot
    # wait. ``Run.aclose`` waits by itself.
    may_wait = sys.get_asyncgen_hooks().finalizer is not None
    is_left = False
    try:
        job.start()
        while not job.is_finished():
            if job.ready:
                yield job.pop()
            else:
                await job.wait()
        if job.failure is not None:
            raise job.take_failure()
    except GeneratorExit:
        is_left = True
        raise
    finally:
        if may_wait or not is_left:
            await job.close()
        else:
            job.close_soon()


class Job(Generic[Row, R]):
    """The tasks behind a run.

    Args:
        ledger: The record of finished rows, such as a checkpoint; None if there is none.
        probes: Number of rows to send one at a time at first, until one has a reply.
        others: See ``run_all``.
    """

    def __init__(
        self,
        rows: Iterable[Row] | AsyncIterable[Row] | Path,
        call: Callable[[Row], Awaitable[R]],
        concurrency: int | Adaptive | None,
        ledger: Ledger[Row, R] | None,
        *,
        key: Callable[[Row], str | int] | None = None,
        ordered: bool = False,
        on_progress: Callable[[Progress], object] | None = None,
        max_rejections: int | None = None,
        probes: int = 0,
    ) -> None:
        self.ready: deque[Outcome[Row, R]] = deque()
        self.failure: Held[BaseException] | None = None
        self._raised = ""  # the message of the failure that was raised
        self._gate = Gate(concurrency)
        self._rows: AsyncIterator[Row] = rows_of(rows)
        self._max_rejections = _check_max_rejections(max_rejections)
        self._rejections = 0  # calls in a row
        self._probes = probes
        self._owns_rows = self._rows is not rows  # an iterator of the caller is not closed: it may be read further
        self.state: RunState = RunState()
        self._scope = Scope()  # of its tasks, which must not wait for its end
        self._sender = RowSender(call, self._gate, self.state)
        self._ledger = ledger
        self._key = key
        self._on_progress = on_progress
        self._out_of_order: dict[int, Outcome[Row, R]] | None = {} if ordered else None
        self._next_index = 0  # in ordered runs, the index of the next row to deliver
        self._rows_taken = self._outcomes_taken = 0
        self._row_taker: asyncio.Task[None] | None = None  # while it takes rows
        self._calls: set[asyncio.Task[None]] = set()
        self._shutdown: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started_at = 0.0
        self._seconds = 0.0  # how long it took, once it is closed
        self._done = self._failed = self._resumed = 0

    # --- for the iterator ---

    def start(self) -> None:
        """Starts taking rows."""
        self._loop = running_loop()
        self._started_at = self._loop.time()
        self._row_taker = asyncio.create_task(self._take_rows())
        self._row_taker.add_done_callback(self._after_taking)

    def is_finished(self) -> bool:
        """Whether no outcome is available, and none will be."""
        return not (self.ready or self._calls or self._row_taker)

    async def wait(self) -> None:
        """Waits for an outcome or the end."""
        self._changed.clear()
        await self._changed.wait()

    def pop(self) -> Outcome[Row, R]:
        """Removes and returns the next outcome."""
        self._outcomes_taken += 1
        self._has_room.set()
        return self.ready.popleft()

    def progress(self) -> Progress:
        """Returns the progress so far."""
        seconds, paused = self._seconds, 0.0
        if self._loop is not None and not self.state.closed:
            now = self._loop.time()
            seconds, paused = now - self._started_at, self._gate.pause(now)
        return Progress(
            done=self._done,
            failed=self._failed,
            resumed=self._resumed,
            in_flight=len(self._calls),
            refused=self._sender.refused,
            tokens=self._sender.tokens,
            seconds=seconds,
            limit=self._gate.limit,
            paused=paused,
        )

    # --- taking rows ---

    async def _take_rows(self) -> None:
        if self.state.stopped:  # before the run was iterated: the checkpoint is not created
            return
        try:
            with self._scope.making_calls():
                if self._ledger is not None:
                    await self._open_ledger(self._ledger)
                await self._start_calls()
        except Exception as error:  # from the rows, their keys or the checkpoint: it ends the run
            self._fail(error)

    async def _open_ledger(self, ledger: Ledger[Row, R]) -> None:
        ending = {*_ending}  # one of them may be using the file, and may have released it when the error arrives here
        try:
            await asyncio.to_thread(ledger.open)
        except CheckpointInUseError:
            ending |= _ending
            if not ending:
                raise
        else:
            return
        await asyncio.gather(*(job.finish_ending() for job in ending))
        await asyncio.to_thread(ledger.open)

    async def _start_calls(self) -> None:
        while not self.state.stopped:
            while self._is_full():
                self._has_room.clear()
                await self._has_room.wait()
            await self._gate.acquire()
            started = False
            try:
                try:
                    row = await anext(self._rows)
                except StopAsyncIteration:
                    return
                if self.state.closed:  # the rows have suppressed the cancellation
                    return
                index = self._rows_taken
                key = index if self._key is None else plain_key(self._key(row))
                done = None if self._ledger is None else self._ledger.find(key, row)
                self._rows_taken += 1
                if done is None:
                    call = asyncio.create_task(self._process(index, key, row))
                    call.add_done_callback(self._after_call)
                    self._calls.add(call)
                    started = True
            finally:
                if not started:
                    self._gate.release()
            if done is not None:
                self._deliver(index, done)

    def _is_full(self) -> bool:
        """Whether the next row is not to be taken yet."""
        if self._probes and self._calls:
            return True
        return self._rows_taken - self._outcomes_taken >= _WINDOW_FACTOR * self._gate.limit

    # --- calling ---

    async def _process(self, index: int, key: str | int, row: Row) -> None:
        """Makes the call for one row, then records and delivers the outcome."""
        reply: R | None = None
        error: Exception | None = None
        outcome: Outcome[Row, R] | None = None
        try:
            reply, error, attempts = await self._sender.send(row)
            outcome = Outcome(key=key, row=row, reply=reply, error=error, attempts=attempts)
            try:
                if self._ledger is not None:
                    self._ledger.keep(outcome)
            except Exception as failure:
                self._fail(failure)
            finally:  # the outcome is delivered anyway: the call was paid for
                self._judge(error)
                self._deliver(index, outcome)
        finally:
            reply = error = outcome = None  # from 3.12 on an error's traceback has this frame: avoid a cycle

    def _after_call(self, call: asyncio.Task[None]) -> None:
        """Returns the permit of a call: a callback also runs if the task was cancelled before its first step."""
        self._calls.discard(call)
        if not self._sender.gave_permit_back(call):
            self._gate.release()
        self._has_room.set()
        self._after_task(call, self.state.closed)

    def _after_taking(self, taker: asyncio.Task[None]) -> None:
        self._row_taker = None
        self._after_task(taker, self.state.stopped)

    def _after_task(self, task: asyncio.Task[None], was_ended: bool) -> None:
        # A cancellation comes from the rows or the call, or from code that cancels all tasks; another BaseException,
        # such as pytest's Failed, from the rows, their keys or the call. There is no outcome: the run must not go on.
        # Once the run is closed nobody would get the failure, but asyncio logs an exception that is not retrieved.
        # A cancelled task keeps its error until it is asked for, and the traceback refers back to the run: a cycle.
        if task.cancelled() or not self.state.closed:
            try:
                error = task.exception()  # not result(), which would add this frame, with the task, to its traceback
            except asyncio.CancelledError as cancellation:
                if not was_ended:
                    self._fail(cancellation)
            else:
                if error is not None:
                    self._fail(error)
        if not self._calls and self._row_taker is None:
            self._deliver_waiting()
        if not self._calls:
            self._changed.set()

    def _deliver_waiting(self) -> None:
        """Delivers what an ordered run has kept for after a row that will have no outcome."""
        if self._out_of_order:
            self.ready.extend(self._out_of_order.pop(index) for index in sorted(self._out_of_order))

    def _judge(self, error: Exception | None) -> None:
        """Ends the run after too many rejections in a row, and the probing after a reply."""
        self._probes = 0 if error is None else max(0, self._probes - 1)
        self._rejections = self._rejections + 1 if is_rejection(error) or is_overload(error) else 0
        if self._rejections == self._max_rejections and not self.state.stopped:  # stopped rows do not wait
            failure = RejectedError(
                f"{self._rejections} calls in a row were rejected, the last with {type(error).__name__}: {error}. "
                "Another run sends their rows again; max_rejections=None never ends a run for this reason"
            )
            failure.__cause__ = error
            self._fail(failure)

    def _deliver(self, index: int, outcome: Outcome[Row, R]) -> None:
        self._done += 1
        self._failed += outcome.error is not None
        self._resumed += outcome.resumed
        if self._out_of_order is None:
            self.ready.append(outcome)
        else:
            self._out_of_order[index] = outcome
            while self._next_index in self._out_of_order:
                self.ready.append(self._out_of_order.pop(self._next_index))
                self._next_index += 1
        self._changed.set()
        if self._on_progress is not None:
            try:
                self._on_progress(self.progress())
            except (Exception, asyncio.CancelledError):  # which cannot be genuine: nothing cancels a plain function
                _logger.exception("on_progress raised an exception")

    # --- ending ---

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = Held(error)
        self.stop()

    def stop(self) -> None:
        """Takes no more rows, and sends none again."""
        if self.state.stopped:
            return  # another cancellation could interrupt the cleanup of the rows
        self.state.stopped = True
        self._sender.end_waits()
        if self._row_taker is not None:
            self._row_taker.cancel()

    def take_failure(self) -> BaseException:
        """Returns the failure, to raise it."""
        assert self.failure is not None
        self._raised = str(self.failure.error)
        return self.failure.take()

    def note_ending(self) -> None:
        """Notes that the run will be closed soon, so that another run with its checkpoint waits for it."""
        is_over = self._loop is None or (self._shutdown is not None and self._shutdown.done())
        if self._ledger is not None and not is_over:
            _ending.add(self)

    async def finish_ending(self) -> None:
        """Closes an abandoned run and waits for it, unless it belongs to another loop that is running.

        The wait is limited: a call of that run may ignore its cancellation, or be what is waiting here.
        """
        if self._loop is asyncio.get_running_loop():
            shutdown = self._start_shutdown()
            if shutdown is not None:
                await wait_done((shutdown,), timeout=_ENDING_SECONDS)
        elif self._loop is not None and self._loop.is_closed() and self._ledger is not None:
            _ending.discard(self)
            await close_in_thread(self._ledger)  # its tasks will never run again

    async def close(self) -> None:
        """Cancels the calls in flight and waits for them, even if this wait itself is cancelled."""
        shutdown = self._start_shutdown()
        if shutdown is None or self._scope.is_current():
            return  # a call or the rows close their own run: each would wait for the other
        await wait_ended((shutdown,))
        try:
            shutdown.result()
        except CheckpointError as error:
            if str(error) != self._raised:  # a ledger that cannot be written fails again when it is closed
                raise

    def close_soon(self) -> None:
        """Closes the run in its loop, as far as that still runs. Nobody waits for it."""
        if self._loop is not None:
            call_in_loop(self._loop, self._start_shutdown)

    def _start_shutdown(self) -> asyncio.Task[None] | None:
        """Returns the task that closes the run; None if it was never started."""
        if not self.state.closed:
            if self._loop is not None:  # first: another thread may read the progress
                self._seconds = self._loop.time() - self._started_at
            self.state.closed = True
            self.stop()
            if self._loop is not None:
                self._changed.set()
                self.note_ending()
                self._shutdown = asyncio.create_task(self._shut_down())
                self._shutdown.add_done_callback(self._after_shutdown)
        return self._shutdown

    async def _shut_down(self) -> None:
        for call in self._calls:
            call.cancel()
        try:
            if tasks := [task for task in (self._row_taker, *self._calls) if task is not None]:
                await wait_done(tasks)
            aclose: Callable[[], Awaitable[None]] | None = getattr(self._rows, "aclose", None)
            if self._owns_rows and aclose is not None:
                with self._scope.making_calls():
                    await aclose()
        finally:
            if self._ledger is not None:
                await close_in_thread(self._ledger)

    def _after_shutdown(self, shutdown: asyncio.Task[None]) -> None:
        """Releases the checkpoint if the shutdown was cancelled before its first step."""
        _ending.discard(self)
        if shutdown.cancelled() and self._ledger is not None:
            self._ledger.close()


def _check_max_rejections(number: int | None) -> int | None:
    given: object = plain_number(number)
    if given is None or is_count(given):
        return given
    raise ValueError(f"max_rejections must be a whole number above 0, or None, not {number!r}")
