"""The tasks behind a run: one takes rows, and one for each row makes the call."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, Generic, TypeVar

from friendli_async._core.held import Held
from friendli_async._core.loops import call_in_loop, running_loop, wait_done, wait_ended
from friendli_async._core.pacing import is_rejected_by_load
from friendli_async._core.work import Scope
from friendli_async.bulk.adaptive import Adaptive
from friendli_async.bulk.checkpoint import plain_key
from friendli_async.bulk.errors import CheckpointError, CheckpointInUseError, RejectedError, is_rejection
from friendli_async.bulk.gate import Gate
from friendli_async.bulk.outcomes import Ledger, Outcome, Progress, close_in_thread
from friendli_async.bulk.rows import rows_of
from friendli_async.bulk.sending import RowSender, RunState
from friendli_async.options import is_count

Row = TypeVar("Row")
R = TypeVar("R")

_logger: Final = logging.getLogger("friendli_async")
_WINDOW_FACTOR: Final = 4
"""Up to this many times the limit of rows are taken and not delivered yet: calls in flight, and outcomes that wait for
the consumer or, in ordered runs, for an earlier row."""
_REOPEN_SECONDS: Final = 0.5
"""The wait before a checkpoint that is in use is opened again: a run that was just left is closed meanwhile."""


class Job(Generic[Row, R]):
    """The tasks behind a run.

    Args:
        ledger: The record of finished rows, such as a checkpoint; None if there is none.
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
    ) -> None:
        self.ready: deque[Outcome[Row, R]] = deque()
        self.failure: Held[BaseException] | None = None
        self.was_read_cancelled: bool = False
        self.raised: str | None = None  # the message of the failure, once it was raised
        self._gate = Gate(concurrency)
        self._rows: AsyncIterator[Row] = rows_of(rows)
        self._max_rejections = _check_max_rejections(max_rejections)
        self._rejections = 0  # calls in a row
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
        self._changed, self._has_room = asyncio.Event(), asyncio.Event()
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
        await asyncio.sleep(0)  # an eager task has begun before the run has it, and so could not be cancelled
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
        try:
            await asyncio.to_thread(ledger.open)
        except CheckpointInUseError:
            await asyncio.sleep(_REOPEN_SECONDS)
            await asyncio.to_thread(ledger.open)

    async def _start_calls(self) -> None:
        while not self.state.stopped:
            while self._is_full():
                self._has_room.clear()
                await self._has_room.wait()
            await self._gate.acquire()
            has_started = False
            try:
                try:
                    row = await anext(self._rows)
                except StopAsyncIteration:
                    return
                if self.state.closed:  # the rows have suppressed the cancellation
                    return
                has_started = self._start_call(row)
            finally:
                if not has_started:
                    self._gate.release()

    def _start_call(self, row: Row) -> bool:
        """Starts the call for a row, which takes over the permit; returns False if the ledger has the outcome."""
        index = self._rows_taken
        key, done = self._find(index, row)
        self._rows_taken += 1
        if done is not None:
            self._deliver(index, done)
            return False
        call = asyncio.create_task(self._process(index, key, row))
        call.add_done_callback(self._after_call)
        self._calls.add(call)
        return True

    def _find(self, index: int, row: Row) -> tuple[str | int, Outcome[Row, R] | None]:
        """Returns the key of a row, and its outcome if it is finished. An error says which row it is."""
        try:
            key = index if self._key is None else plain_key(self._key(row))
            return key, None if self._ledger is None else self._ledger.find(key, row)
        except Exception as error:
            error.add_note(f"run_all: at row {index}, counted from 0")
            raise

    def _is_full(self) -> bool:
        """Whether the next row is not to be taken yet."""
        return self._rows_taken - self._outcomes_taken >= _WINDOW_FACTOR * self._gate.limit

    # --- calling ---

    async def _process(self, index: int, key: str | int, row: Row) -> None:
        """Makes the call for one row, then records and delivers the outcome."""
        reply: R | None = None
        error: Exception | None = None
        outcome: Outcome[Row, R] | None = None
        if asyncio.current_task() not in self._calls:
            await asyncio.sleep(0)  # an eager task has begun before the run has it, and so could not be cancelled
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
        self._sender.return_permit(call)
        self._has_room.set()
        self._after_task(call, self.state.closed)

    def _after_taking(self, taker: asyncio.Task[None]) -> None:
        self._row_taker = None
        self._after_task(taker, self.state.stopped)

    def _after_task(self, task: asyncio.Task[None], was_ended: bool) -> None:
        # A task that was cancelled, or raised a BaseException such as pytest's Failed, has no outcome, so the run must
        # not go on. Once the run is closed, nobody gets what it raised: it is not retrieved here, so that asyncio logs
        # it. The error of a cancelled task is always retrieved, or the task would keep it: a cycle, by its traceback.
        if task.cancelled() or not self.state.closed:
            try:
                error = task.exception()  # not result(), which would add this frame, with the task, to its traceback
            except asyncio.CancelledError as cancellation:
                if not was_ended:
                    self._fail(cancellation)
            else:
                if error is not None:
                    self._fail(error)
        if not self._calls:
            if self._out_of_order:  # kept for after a row that will have no outcome
                self.ready.extend(self._out_of_order.pop(index) for index in sorted(self._out_of_order))
            self._changed.set()

    def _judge(self, error: Exception | None) -> None:
        """Ends the run after too many rejections in a row."""
        self._rejections = self._rejections + 1 if is_rejection(error) or is_rejected_by_load(error) else 0
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
        self.raised = str(self.failure.error)
        return self.failure.take()

    async def close(self) -> None:
        """Cancels the calls in flight and waits for them, even if this wait itself is cancelled."""
        shutdown = self._start_shutdown()
        if self._loop is None or self._scope.is_current():
            return  # it was never started; or a call or the rows close their own run: each would wait for the other
        await wait_ended([task for task in (shutdown, self._row_taker, *self._calls) if task is not None])
        if shutdown is None or shutdown.cancelled():  # by code that cancels all tasks
            return
        try:
            shutdown.result()
        except CheckpointError as error:
            if str(error) != self.raised:  # a ledger that cannot be written fails again when it is closed
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
                self._shutdown = asyncio.create_task(self._shut_down())
                self._shutdown.add_done_callback(self._after_shutdown)
        return self._shutdown

    async def _shut_down(self) -> None:
        for call in self._calls:  # a turn after aclose(): a reply that had arrived by then is an outcome
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
        if shutdown.cancelled():
            self._shutdown = None  # it keeps its error: see ``_after_task``
            if self._ledger is not None:
                self._ledger.close()


def _check_max_rejections(number: int | None) -> int | None:
    if number is None or is_count(number):
        return number
    raise ValueError(f"max_rejections must be a whole number above 0, or None, not {number!r}")
