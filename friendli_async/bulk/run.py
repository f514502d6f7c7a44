"""Many calls: a row in, an outcome out, as many at a time as the server takes.

A run is an iterator over outcomes and, behind it, a ``Job`` that goes on by itself: one task takes rows, one task a
row makes the call. Whoever iterates takes outcomes from the job's queue. The iterator knows the job, and the job does
not know the iterator: so an iterator that is dropped is finalized by its loop, and ends the job.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import CancelledError
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Final, Generic, Self, TypeVar, overload

from friendli_async.bulk.adaptive import Adaptive
from friendli_async.bulk.checkpoint import Checkpoint, check_key
from friendli_async.bulk.gate import Gate
from friendli_async.bulk.outcomes import Ledger, Outcome, Progress
from friendli_async.bulk.rows import rows_of
from friendli_async.errors import APIStatusError, FriendliError
from friendli_async.replies import Meta, Reply, usage_of

__all__ = ["Run", "run_all"]

Row = TypeVar("Row")
R = TypeVar("R")

_log: Final = logging.getLogger("friendli_async")
_REFUSALS: Final = frozenset({429, 503})
_WINDOW: Final = 4
"""So many times the limit of rows are taken and not given out yet: those under way, and outcomes that wait, for whoever
iterates or, in order, for an earlier one."""


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
    reply_type: type[R] | None = None,
) -> Run[Row, R]:
    """Calls a coroutine function with every row, many at a time, and gives each row's outcome as soon as it is there.

    Rows are taken as they are needed, so memory is bounded by the concurrency: at most four times the limit of rows are
    under way or wait to be taken by whoever iterates. (A checkpoint needs some 200 bytes a row besides, for its key.)

    Args:
        rows: What to call with: an iterable (its ``next`` is called in the event loop), an async iterable, or the Path
            of a JSON Lines file. What it raises ends the run: rows under way finish and are given out first.
        call: Called with a row; a coroutine function over a client, as a rule. What it raises is that row's outcome.
        concurrency: The most calls under way at the same time. Default: ``Adaptive()``, which finds out what the server
            takes.
        checkpoint: A file that remembers what is done, made where there is none. A run with the same file goes on where
            the last one ended, in whatever way: what is done is given out from the file (``resumed``), and rows that
            failed by an error worth another try are sent again, as are those whose content has changed. Not those
            whose ``call`` has changed: give that a file of its own.
        key: Names a row, by a str or an int, in the checkpoint: no two rows may have the same. Default: the row's
            place.
        ordered: Whether outcomes come in the order of the rows. A slow row then holds the others up, once four times
            the limit are done that wait for it.
        on_progress: Told how far the run is, after every row. What it raises is logged and changes nothing.
        reply_type: With a checkpoint, what replies are decoded into when they come from it: for types other than JSON
            values and this library's replies (which come back by themselves, without ``meta``).

    Returns:
        The run, which begins when it is first iterated: ``async for`` over it, best inside ``async with``.

    Raises:
        TypeError: ``rows`` are none, ``call`` is not callable, or msgspec cannot decode ``reply_type``.
        ValueError: ``concurrency`` is no whole number above 0.
    """
    if not callable(call):
        raise TypeError(f"call must be a coroutine function, not {type(call).__name__}")
    ledger = None
    if checkpoint is not None:
        ledger = Checkpoint[Row, R](Path(checkpoint), Any if reply_type is None else reply_type)
    return Run(Job(rows, call, concurrency, ledger, key=key, ordered=ordered, on_progress=on_progress))


class Run(Generic[Row, R]):
    """Many calls under way: an async iterator over their outcomes. Made by ``run_all``.

    Leaving it (``async with``, ``aclose()``, the end of the last reference) cancels what is under way and waits for it;
    what was written to the checkpoint stays written. It belongs to the event loop that it is first iterated in.

    Raises:
        CheckpointError: From the iteration: the checkpoint cannot be used, or written any more. Rows that were under
            way have finished, and their outcomes were given out, though they are not all in the file.
        RowsError: From the iteration: a row or its key cannot be used; a ``DuplicateKeyError``, had one before its key.
    """

    def __init__(self, job: Job[Row, R]) -> None:
        self._job = job
        self._outcomes = _outcomes(job)

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        return self._job.progress()

    def stop(self) -> None:
        """Takes no more rows: what is under way finishes and is given out, then the iteration ends."""
        self._job.stop()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Outcome[Row, R]]:
        return self._outcomes.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels what is under way and waits for it. From any task of its loop; whoever iterates gets the end."""
        await self._job.close()
        if isinstance(self._outcomes, AsyncGeneratorType) and not self._outcomes.ag_running:
            await self._outcomes.aclose()


async def _outcomes(job: Job[Row, R]) -> AsyncGenerator[Outcome[Row, R], None]:
    try:
        job.begin()
        while not job.is_over():
            if job.ready:
                yield job.take()
            else:
                await job.news()
        if job.failure is not None:
            raise job.failure
    finally:
        await job.close()


class Job(Generic[Row, R]):
    """What goes on behind a run; see ``run_all`` for what it takes, but for the ledger."""

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
    ) -> None:
        self.ready: deque[Outcome[Row, R]] = deque()
        self.failure: BaseException | None = None
        self._gate = Gate(_checked_limit(concurrency))
        self._rows: AsyncIterator[Row] = rows_of(rows)
        self._owns_rows = self._rows is not rows  # somebody else's may be read further
        self._call = call
        self._ledger = ledger
        self._key = key
        self._on_progress = on_progress
        self._early: dict[int, Outcome[Row, R]] | None = {} if ordered else None
        self._next = 0  # the number of the row whose outcome is the next in order
        self._taken = self._given = 0
        self._taker: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._shutting: asyncio.Task[None] | None = None
        self._closed = False
        self._stopped = False
        self._news = asyncio.Event()
        self._space = asyncio.Event()
        self._began: float | None = None
        self._seconds = 0.0
        self._done = self._failed = self._resumed = self._refused = self._tokens = 0

    # --- for whoever iterates ---

    def begin(self) -> None:
        """Starts taking rows."""
        if self._closed or self._stopped:
            return
        self._began = asyncio.get_running_loop().time()
        self._taker = asyncio.create_task(self._take_rows())

    def is_over(self) -> bool:
        """Whether no outcome is there, and none will come."""
        if self._closed:
            return True
        return not (self.ready or self._calls or (self._taker is not None and not self._taker.done()))

    async def news(self) -> None:
        """Waits for an outcome, or for the end."""
        self._news.clear()
        await self._news.wait()

    def take(self) -> Outcome[Row, R]:
        """Gives the next outcome out."""
        self._given += 1
        self._space.set()
        return self.ready.popleft()

    def progress(self) -> Progress:
        """How far it has come."""
        if self._began is not None and not self._closed:
            self._seconds = asyncio.get_running_loop().time() - self._began
        return Progress(
            done=self._done,
            failed=self._failed,
            resumed=self._resumed,
            in_flight=len(self._calls),
            refused=self._refused,
            tokens=self._tokens,
            seconds=self._seconds,
            limit=self._gate.limit,
        )

    # --- taking rows ---

    async def _take_rows(self) -> None:
        try:
            if self._ledger is not None:
                await asyncio.to_thread(self._ledger.open)
            await self._start_calls()
        except CancelledError as error:
            if not (self._stopped or self._closed):  # by the rows, or by somebody who is after every task
                self._fail(error)
            raise
        except Exception as error:  # of the rows, of their keys, of the checkpoint: it ends the run
            self._fail(error)
        finally:
            self._news.set()

    async def _start_calls(self) -> None:
        while True:
            while self._taken - self._given >= _WINDOW * self._gate.limit:
                self._space.clear()
                await self._space.wait()
            await self._gate.acquire()
            started = False
            try:
                try:
                    row = await anext(self._rows)
                except StopAsyncIteration:
                    return
                number = self._taken
                key = number if self._key is None else self._key(row)
                check_key(key)
                done = None if self._ledger is None else self._ledger.find(key, row)
                self._taken += 1
                if done is None:
                    call = asyncio.create_task(self._settle(number, key, row))
                    self._calls.add(call)
                    started = True
            finally:
                if not started:
                    self._gate.release()
            if done is not None:
                self._give(number, done)

    # --- calling ---

    async def _settle(self, number: int, key: str | int, row: Row) -> None:
        """Makes one call, and writes and gives out what became of it."""
        reply: R | None = None
        error: Exception | None = None
        outcome: Outcome[Row, R] | None = None
        try:
            try:
                reply, error = await self._attempt(row)
            finally:
                self._gate.release()
            meta = _meta_of(reply if error is None else error)
            attempts = max(1, len(meta.attempts)) if meta is not None else 1
            outcome = Outcome(key=key, row=row, reply=reply, error=error, attempts=attempts)
            try:
                if self._ledger is not None:
                    self._ledger.keep(outcome)
            except FriendliError as failure:
                self._fail(failure)  # and the outcome is given out all the same: it was paid for
            self._give(number, outcome)
        except CancelledError as failure:
            if not self._closed:  # `call` did it, or somebody who is after every task: the row has no outcome
                self._fail(failure)
            raise
        except Exception as failure:
            self._fail(failure)
        finally:
            reply = error = outcome = None  # from 3.12 on an error's traceback leads here, and must not lead back
            task = asyncio.current_task()
            assert task is not None
            self._calls.discard(task)
            self._news.set()

    async def _attempt(self, row: Row) -> tuple[R | None, Exception | None]:
        """The call. Apart from ``_settle``, whose frame would be in the error's traceback and hold the error."""
        began = asyncio.get_running_loop().time()
        try:
            reply = await self._call(row)
        except Exception as error:
            self._report(_meta_of(error), error)
            return None, error
        meta = _meta_of(reply)
        self._report(meta, None)
        usage = usage_of(reply)
        tokens = usage.completion_tokens if usage is not None else 0
        self._tokens += tokens
        seconds = meta.attempts[-1].elapsed if meta is not None and meta.attempts else None
        self._gate.succeeded(tokens or None, seconds or asyncio.get_running_loop().time() - began)
        return reply, None

    def _report(self, meta: Meta | None, error: Exception | None) -> None:
        """Tells the gate what was refused: by the error, and by the attempts that a retry has made good."""
        attempts = () if meta is None else meta.attempts
        told = error.retry_after if isinstance(error, APIStatusError) else None
        if not attempts and isinstance(error, APIStatusError) and error.status_code in _REFUSALS:
            self._refused += 1  # inside a stream, or by a function of the user's own
            self._gate.refused(told)
        ago = 0.0
        for later, attempt in enumerate(reversed(attempts)):
            ago += attempt.elapsed + attempt.wait
            if attempt.status in _REFUSALS:
                self._refused += 1
                # What the server asked to wait after an earlier attempt has been waited for.
                self._gate.refused(0.0 if later else told, ago=ago)

    def _give(self, number: int, outcome: Outcome[Row, R]) -> None:
        self._done += 1
        self._failed += outcome.error is not None
        self._resumed += outcome.resumed
        if self._early is None:
            self.ready.append(outcome)
        else:
            self._early[number] = outcome
            while self._next in self._early:
                self.ready.append(self._early.pop(self._next))
                self._next += 1
        self._news.set()
        if self._on_progress is not None:
            try:
                self._on_progress(self.progress())
            except Exception:
                _log.exception("on_progress has raised")

    # --- the end ---

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self.stop()

    def stop(self) -> None:
        """Takes no more rows."""
        self._stopped = True
        if self._taker is not None:
            self._taker.cancel()

    async def close(self) -> None:
        """Cancels what is under way and waits for it, however often the waiting itself is cancelled."""
        if not self._closed:
            self.progress()
            self._closed = True
            if self._began is None:
                return
            self._news.set()
            self._shutting = asyncio.create_task(self._shut())
        shutting, cancelled = self._shutting, False
        while shutting is not None and not shutting.done():
            try:
                await asyncio.wait((shutting,))
            except CancelledError:
                cancelled = True
        if cancelled:
            raise CancelledError
        if shutting is not None:
            shutting.result()

    async def _shut(self) -> None:
        tasks = [*self._calls]
        if self._taker is not None:
            tasks.append(self._taker)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._owns_rows:
            aclose: Callable[[], Awaitable[None]] | None = getattr(self._rows, "aclose", None)
            if aclose is not None:
                await aclose()
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)


def _checked_limit(concurrency: int | Adaptive | None) -> int | Adaptive:
    limit: object = Adaptive() if concurrency is None else concurrency
    if isinstance(limit, Adaptive):
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"concurrency must be a whole number above 0, or an Adaptive, not {limit!r}")
    return limit


def _meta_of(ended: object) -> Meta | None:
    if isinstance(ended, FriendliError):
        return ended.meta
    if isinstance(ended, Reply):
        return ended.__dict__.get("_meta")
    return None
