"""Bulk calls: maps rows to outcomes, with as many calls in flight as the server accepts.

A run is an iterator over outcomes, backed by a ``Job`` that runs on its own: one task takes rows, and one task per row
makes the call. The iterator takes outcomes from the job's queue. It references the job, but the job does not reference
it: so a dropped iterator is finalized by its loop, and closes the job.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

from friendli_async._callables import check_plain
from friendli_async._lazy import TypeForm
from friendli_async.bulk.adaptive import Adaptive
from friendli_async.bulk.checkpoint import Checkpoint
from friendli_async.bulk.job import Job
from friendli_async.bulk.outcomes import Outcome, Progress
from friendli_async.bulk.reply_codec import ReplyCodec

__all__ = ["Run", "run_all"]

Row = TypeVar("Row")
R = TypeVar("R")


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
        call: Usually a coroutine function that uses a client. What it returns is the row's ``reply``: None, too, as of
            a function whose ``return`` was forgotten. Its exceptions become the outcome of the row: a CancelledError,
            if it was not cancelled, as the cause of a FriendliError; a ConfigurationError if it is a plain function, or
            returns a coroutine or a stream that was not read.
            After a 429 or 503, or without a connection (an APIConnectionError with ``sent`` False), it is called again
            with the same row: up to five times, and unless the row's waits exceed an hour; but not once a run with
            tools has ended a turn, which would be repeated. The run pauses for the ``Retry-After``, up to an hour.
            Without one, the row waits, longer each time, about a minute in all, and an adaptive run pauses briefly; the
            client's own retries wait for its pauses, too, or are left to the run.
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
    ledger = None
    if checkpoint is not None:
        ledger = Checkpoint[Row, R](Path(checkpoint), ReplyCodec(reply_type, call))
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
        )
    )


class Run(Generic[Row, R]):
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
        RuntimeError: Two tasks wait for an outcome at the same time; a read was cancelled before, for instance by
            ``asyncio.wait_for``, which closed the run; or an error was raised before: another loop must not look
            complete.
    """

    def __init__(self, job: Job[Row, R]) -> None:
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
        # A coroutine raises the error: CPython 3.11 crashes if this does, and anext() was called with a default.
        job = self._job
        return _raise_ended(job) if job.was_read_cancelled or job.raised is not None else self._outcomes.__anext__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.progress}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run cannot be copied or pickled: it holds tasks")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the calls in flight, waits for them and ends the iteration. Any task of the loop may call it.

        In a call or the rows of the run itself, it does not wait, and they are cancelled like the others.
        """
        self._job.was_read_cancelled = False  # closed on purpose: the next read just ends
        if isinstance(self._outcomes, AsyncGeneratorType) and not self._outcomes.ag_running:
            await self._outcomes.aclose()
        await self._job.close()


async def _raise_ended(job: Job[Any, Any]) -> NoReturn:
    if job.raised is not None:
        raise RuntimeError(f"the run has ended with an error: {job.raised}; a new run continues")
    if job.failure is not None:
        raise job.take_failure()
    raise RuntimeError("a read of the run was cancelled, which closed it before it was complete")


async def _outcomes(job: Job[Row, R]) -> AsyncGenerator[Outcome[Row, R], None]:
    # A loop without async generator hooks (nest_asyncio's) leaves a dropped generator to its destructor, which cannot
    # wait. ``Run.aclose`` waits by itself.
    may_wait = sys.get_asyncgen_hooks().finalizer is not None
    is_left = False
    try:
        job.start()
        try:
            while not job.is_finished():
                if job.ready:
                    yield job.pop()
                else:
                    await job.wait()
            if job.failure is not None:  # not taken yet: if this wait is cancelled, the next read raises it
                with suppress(Exception):  # it is raised again below, with the failure as its context
                    await job.close()
        except asyncio.CancelledError:
            job.was_read_cancelled = True
            raise
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
