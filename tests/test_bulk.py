"""Bulk runs: rows and outcomes, bounds, ending a run, and progress."""

import asyncio
import contextlib
import copy
import gc
import json
import logging
import os
import pickle
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from support.clock import Clock, begin_tasks_eagerly, run_loop_iterations, wait_until
from support.sockets import FAST_RETRY, client_of, complete, library_tasks, open_stream, with_timeout

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    Attempt,
    ChatCompletion,
    ConfigurationError,
    FriendliError,
    Meta,
    Partial,
    RateLimitError,
    Usage,
)
from friendli_async.bulk import Adaptive, Outcome, Progress, RejectedError, RowsError, Run, run_all
from friendli_async.bulk.checkpoint import Checkpoint
from friendli_async.replies import Timing, attach_meta
from friendli_async.testing import FriendliServer, chunk, script, stall, status, text

LIMIT = 4
WINDOW = 4 * LIMIT
"""Maximum number of rows taken whose outcomes have not been yielded."""


async def double(row: int) -> int:
    await asyncio.sleep(0)
    return 2 * row


async def read_into(seen: list[Outcome[Any, Any]], run: Run[Any, Any]) -> None:
    """Appends outcomes to `seen`, which keeps those that precede an error."""
    async with asyncio.timeout(30):
        async for outcome in run:
            seen.append(outcome)  # noqa: PERF401  # a comprehension would lose its list on an error


async def collect(run: Run[Any, Any]) -> list[Outcome[Any, Any]]:
    async with asyncio.timeout(30):
        return [outcome async for outcome in run]


class Rows:
    """Rows that count how many of them were taken."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._count = count

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            self.taken += 1
            yield number


class GatedCalls:
    """Calls that block until their gate is set."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}
        self._changed = asyncio.Condition()

    async def __call__(self, row: int) -> int:
        self.gates[row] = asyncio.Event()
        self.started.append(row)
        async with self._changed:
            self._changed.notify_all()
        try:
            await self.gates[row].wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # a cancelled call takes a turn to unwind, as closing a connection does
            self.cancelled.append(row)
            raise
        return row

    async def wait_started(self, count: int) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.started) >= count)


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def settle() -> None:
    """Runs enough turns of the event loop for all tasks to get as far as they can."""
    for _ in range(200):
        await asyncio.sleep(0)


# --- rows and outcomes -----------------------------------------------------------------------------------------------


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


class Numbers:
    """Makes iterators that cannot be closed."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def __aiter__(self) -> AsyncIterator[int]:
        return Numbers(self._numbers.copy())

    async def __anext__(self) -> int:
        if not self._numbers:
            raise StopAsyncIteration
        return self._numbers.pop(0)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "rows",
    [lambda: range(50), lambda: iter(range(50)), lambda: numbers(50), lambda: Numbers([*range(50)])],
    ids=["range", "iterator", "async", "not closable"],
)
async def test_every_row_has_one_outcome(rows: Any, ordered: bool) -> None:
    outcomes = await collect(run_all(rows(), double, concurrency=LIMIT, ordered=ordered))
    assert sorted((outcome.key, outcome.row, outcome.reply) for outcome in outcomes) == [
        (n, n, 2 * n) for n in range(50)
    ]
    assert all((outcome.error, outcome.attempts, outcome.resumed) == (None, 1, False) for outcome in outcomes)
    assert library_tasks() == []


async def test_rows_are_read_from_jsonl_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\n\n"two"\r\n3')

    async def same(row: Any) -> Any:
        return row

    outcomes = await collect(run_all(path, same, concurrency=LIMIT, ordered=True))
    assert [outcome.reply for outcome in outcomes] == [{"n": 1}, "two", 3]


async def test_invalid_line_ends_run_after_preceding_outcomes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\n2\n\n{bad\n5\n")
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(RowsError, match=r"rows\.jsonl line 4 is not JSON"):
        await read_into(seen, run_all(path, double, concurrency=1))
    assert [outcome.reply for outcome in seen] == [2, 4]


async def test_file_of_rows_that_opens_after_the_run_was_closed_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n")
    opened: list[Any] = []
    opening, may_open = threading.Event(), threading.Event()

    def open_slowly(path: Path) -> Any:
        opening.set()
        may_open.wait()
        opened.append(path.open("rb"))
        return opened[0]

    monkeypatch.setattr("friendli_async.bulk.rows._open", open_slowly)
    run = run_all(path, double)
    reading = asyncio.ensure_future(anext(run))
    await wait_until(opening.is_set)
    reading.cancel()
    await asyncio.wait([reading])
    may_open.set()
    await wait_until(lambda: bool(opened) and opened[0].closed)
    assert [file.closed for file in opened] == [True]


async def test_path_of_something_else_than_a_regular_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(RowsError, match=f"{path} is not a regular file"):
            await collect(run_all(path, double))
    with pytest.raises(FileNotFoundError):
        await collect(run_all(tmp_path / "missing", double))


@pytest.mark.parametrize("rows", ["rows.jsonl", b"rows", 7, None])
def test_invalid_rows_are_rejected(rows: Any) -> None:
    with pytest.raises(TypeError, match="rows must be"):
        run_all(rows, double)


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5, "8"])
def test_invalid_concurrency_is_rejected(concurrency: Any) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        run_all([1], double, concurrency=concurrency)


def test_call_that_is_not_callable_is_rejected() -> None:
    with pytest.raises(TypeError, match="call must be a coroutine function"):
        run_all([1], None)  # type: ignore[call-overload]  # wrong type on purpose


@pytest.mark.parametrize("method", ["iterrows", "to_dicts"], ids=["pandas", "polars"])
def test_data_frame_is_rejected_because_it_iterates_over_its_columns(method: str) -> None:
    frame: Any = type("DataFrame", (), {"__iter__": lambda self: iter(["id", "text"]), method: None})()
    with pytest.raises(TypeError, match=r'DataFrame are df\.to_dict\("records"\), or df\.to_dicts\(\)'):
        run_all(frame, double)


def test_key_that_is_the_name_of_a_field_is_rejected() -> None:
    key: Any = "id"
    with pytest.raises(TypeError, match="key must be a function of a row, not str"):
        run_all([1], double, key=key)


async def test_exception_of_a_call_is_its_outcome() -> None:
    async def divide(row: int) -> float:
        return 1 / row

    outcomes = await collect(run_all([1, 0, 2], divide, concurrency=1))
    assert [outcome.reply for outcome in outcomes] == [1.0, None, 0.5]
    assert isinstance(outcomes[1].error, ZeroDivisionError)
    assert outcomes[0].result() == 1.0
    with pytest.raises(ZeroDivisionError):
        outcomes[1].result()


async def test_exception_of_a_call_is_not_in_a_reference_cycle() -> None:
    class TroubleError(Exception):
        alive = 0

        def __init__(self) -> None:
            TroubleError.alive += 1

        def __del__(self) -> None:
            TroubleError.alive -= 1

    async def fail(row: int) -> None:
        raise TroubleError

    gc.disable()
    try:
        async for outcome in run_all(range(20), fail, concurrency=2):
            assert isinstance(outcome.error, TroubleError)
            del outcome
        await settle()
        assert TroubleError.alive == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("base", [Exception, BaseException])
async def test_error_that_ends_a_run_is_not_in_a_reference_cycle(base: Any) -> None:
    class TroubleError(base):  # type: ignore[misc]  # of the class in a variable
        alive = 0

        def __init__(self) -> None:
            TroubleError.alive += 1

        def __del__(self) -> None:
            TroubleError.alive -= 1

    def rows() -> Iterator[int]:
        yield 1
        if base is Exception:
            raise TroubleError

    async def call(row: int) -> None:
        if base is not Exception:
            raise TroubleError

    gc.disable()
    try:
        with contextlib.suppress(TroubleError):
            await collect(run_all(rows(), call, concurrency=2))
        await settle()
        assert TroubleError.alive == 0
    finally:
        gc.enable()


async def test_no_rows_yield_no_outcomes() -> None:
    assert await collect(run_all([], double)) == []


async def test_concurrency_is_reached_and_never_exceeded() -> None:
    gated, most = GatedCalls(), 0
    run = run_all(range(20), gated, concurrency=LIMIT)
    reading = asyncio.create_task(collect(run))
    for count in range(LIMIT, 21):
        await gated.wait_started(count)
        most = max(most, run.progress.in_flight)
        gated.gates[gated.started[count - LIMIT]].set()
    for gate in gated.gates.values():
        gate.set()
    assert len(await reading) == 20
    assert most == LIMIT


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
async def test_rows_are_consumed_only_as_outcomes_are_consumed(ordered: bool) -> None:
    rows = Rows(1000)
    async with run_all(rows, double, concurrency=LIMIT, ordered=ordered) as outcomes:
        await anext(outcomes)
        await settle()
        assert rows.taken == WINDOW + 1
        await anext(outcomes)
        await settle()
        assert rows.taken == WINDOW + 2


async def test_slow_row_delays_ordered_outcomes_and_rows_are_bounded() -> None:
    rows, first = Rows(1000), asyncio.Event()

    async def slow_first(row: int) -> int:
        if row == 0:
            await first.wait()
        return row

    async with run_all(rows, slow_first, concurrency=LIMIT, ordered=True) as outcomes:
        waiting = asyncio.ensure_future(anext(outcomes))
        await settle()
        assert (rows.taken, waiting.done()) == (WINDOW, False)
        first.set()
        assert (await with_timeout(waiting)).key == 0
        assert [outcome.key async for outcome in outcomes] == list(range(1, 1000))


@pytest.mark.parametrize("ordered", [False, True])
async def test_memory_does_not_grow_with_row_count(ordered: bool) -> None:
    class Row:
        alive = most = 0

        def __init__(self) -> None:
            Row.alive += 1
            Row.most = max(Row.most, Row.alive)

        def __del__(self) -> None:
            Row.alive -= 1

    async def call(row: Row) -> None:
        await asyncio.sleep(0)

    count = 0
    async for _ in run_all((Row() for _ in range(5_000)), call, concurrency=LIMIT, ordered=ordered):
        count += 1
    assert count == 5_000
    assert Row.most <= WINDOW + LIMIT


# --- ending a run ----------------------------------------------------------------------------------------------------


async def test_leaving_cancels_calls_in_flight_and_waits_for_them() -> None:
    gated = GatedCalls()
    async with run_all(range(100), gated, concurrency=LIMIT) as outcomes:
        reading = asyncio.ensure_future(anext(outcomes))
        await gated.wait_started(LIMIT)
        gated.gates[2].set()
        assert (await with_timeout(reading)).key == 2
        await gated.wait_started(LIMIT + 1)
    assert sorted(gated.cancelled) == [0, 1, 3, 4]
    assert library_tasks() == []
    assert await collect(outcomes) == []


async def test_breaking_out_of_the_loop_ends_the_run_without_gc() -> None:
    gated = GatedCalls()
    gc.disable()
    try:

        async def first() -> None:
            async for _ in run_all(range(100), gated, concurrency=LIMIT):
                break

        reading = asyncio.create_task(first())
        await gated.wait_started(LIMIT)
        gated.gates[0].set()
        await with_timeout(reading)
        await settle()
        assert len(gated.cancelled) == len(gated.started) - 1
        assert [name for name in library_tasks() if "first" not in name] == []
    finally:
        gc.enable()


@contextlib.contextmanager
def without_asyncgen_hooks() -> Iterator[None]:
    """Makes the running loop like that of nest_asyncio, which notebooks use: it sets no such hooks."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)


async def test_connections_that_were_opened_for_a_run_do_not_keep_its_function(server: FriendliServer) -> None:
    async with client_of(server.url) as client:

        async def call(_: int) -> None:
            await complete(client)

        async with run_all(range(3), call, concurrency=LIMIT) as run:
            assert [outcome.error async for outcome in run] == [None] * 3
        assert client.gauges().idle
        seen = weakref.ref(call)
        del call, run
        gc.collect()
        assert seen() is None


async def test_dropped_run_ends_in_silence_in_a_loop_without_asyncgen_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    gated = GatedCalls()
    reports: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reports.append(unraisable.exc_value))

    async def first() -> None:
        async for _ in run_all(range(100), gated, concurrency=LIMIT):
            break

    with without_asyncgen_hooks():
        reading = asyncio.create_task(first())
        await gated.wait_started(LIMIT)
        gated.gates[0].set()
        await with_timeout(reading)
        await settle()
    assert reports == []
    assert len(gated.cancelled) == len(gated.started) - 1
    assert library_tasks() == []


async def test_closing_a_run_waits_for_its_calls_in_a_loop_without_asyncgen_hooks() -> None:
    gated = GatedCalls()
    with without_asyncgen_hooks():
        run = run_all(range(100), gated, concurrency=LIMIT)
        reading = asyncio.ensure_future(anext(run))
        await gated.wait_started(LIMIT)
        gated.gates[0].set()
        assert (await with_timeout(reading)).key == 0
        await with_timeout(run.aclose())
    assert len(gated.cancelled) == len(gated.started) - 1
    assert library_tasks() == []


async def test_repr_of_a_run_shows_its_progress() -> None:
    run = run_all(range(3), double)
    assert repr(run).startswith("<Run Progress(done=0, failed=0, ")
    await collect(run)
    assert repr(run).startswith("<Run Progress(done=3, failed=0, ")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_run_cannot_be_copied_or_pickled(
    duplicate: Callable[[object], object], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_all(range(3), double)
    with pytest.raises(TypeError, match="a run cannot be copied or pickled: it holds tasks"):
        duplicate(run)
    assert [outcome.reply for outcome in await collect(run)] == [0, 2, 4]
    assert capsys.readouterr().err == ""


async def test_cancelled_run_and_its_rows_are_freed_without_gc() -> None:
    class Row:
        pass

    gated = GatedCalls()
    refs: list[weakref.ref[Row]] = []

    async def read() -> None:
        def rows() -> Iterator[Row]:
            for _ in range(100):
                row = Row()
                refs.append(weakref.ref(row))
                yield row

        async for _ in run_all(rows(), lambda row: gated(len(gated.started)), concurrency=LIMIT):
            pass

    gc.disable()
    try:
        reading = asyncio.create_task(read())
        await gated.wait_started(LIMIT)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await with_timeout(reading)
        await settle()
        assert len(refs) >= LIMIT
        assert [ref for ref in refs if ref() is not None] == []
    finally:
        gc.enable()


async def test_run_whose_end_is_cancelled_with_all_tasks_is_not_kept(tmp_path: Path) -> None:
    async def start_and_cancel_all() -> weakref.ref[Any]:
        gated = GatedCalls()
        run = run_all(range(100), gated, concurrency=LIMIT, checkpoint=tmp_path / "done.jsonl", reply_type=int)
        reading = asyncio.create_task(collect(run))
        await gated.wait_started(LIMIT)
        reading.cancel()
        await wait_until(lambda: run._job._shutdown is not None)
        await asyncio.sleep(0)  # so that it has begun
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        with pytest.raises(asyncio.CancelledError):
            await reading
        await run.aclose()
        return weakref.ref(run._job)

    gc.disable()
    try:
        job = await start_and_cancel_all()
        await settle()
        assert job() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("begun", [True, False])
async def test_close_whose_end_is_cancelled_with_other_tasks_waits_for_the_calls(begun: bool) -> None:
    started, ended = list[int](), list[int]()

    async def call(row: int) -> None:
        started.append(row)
        try:
            await asyncio.Event().wait()
        finally:
            await run_loop_iterations()  # longer than the end of the run
            ended.append(row)

    run = run_all(range(100), call, concurrency=LIMIT)
    reading = asyncio.create_task(collect(run))
    await wait_until(lambda: len(started) == LIMIT)
    closing = asyncio.create_task(run.aclose())
    await run_loop_iterations(2 if begun else 1)
    for task in asyncio.all_tasks() - {asyncio.current_task(), closing}:
        task.cancel()
    await with_timeout(closing)
    assert sorted(ended) == sorted(started)
    await asyncio.wait([reading])


async def test_no_call_begins_once_the_run_is_being_closed() -> None:
    begun: list[int] = []

    async def call(row: int) -> None:
        begun.append(row)

    run = run_all(numbers(100), call, concurrency=LIMIT)
    await anext(run)
    await asyncio.sleep(0)
    assert run.progress.in_flight > 0  # a call that has not begun
    before = begun.copy()
    await run.aclose()
    assert begun == before


async def test_reply_that_has_arrived_when_the_run_is_closed_is_an_outcome() -> None:
    replies: list[asyncio.Future[str]] = [asyncio.get_running_loop().create_future() for _ in range(LIMIT)]
    run = run_all(replies, lambda reply: reply, concurrency=LIMIT)
    reading = asyncio.create_task(collect(run))
    await settle()
    for reply in replies:
        reply.set_result("paid for")
    await run.aclose()
    assert run.progress.done == LIMIT
    await asyncio.wait([reading])


async def test_closing_from_another_task_ends_the_iteration() -> None:
    gated = GatedCalls()
    run = run_all(range(100), gated, concurrency=LIMIT)
    reading = asyncio.create_task(collect(run))
    await gated.wait_started(LIMIT)
    await with_timeout(run.aclose())
    assert await with_timeout(reading) == []
    assert sorted(gated.cancelled) == [0, 1, 2, 3]
    await with_timeout(run.aclose())


async def test_run_with_a_cancelled_read_does_not_end_as_if_it_were_complete() -> None:
    gated = GatedCalls()
    run = run_all(range(100), gated, concurrency=LIMIT)
    reading = asyncio.ensure_future(run.__anext__())
    await gated.wait_started(LIMIT)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await with_timeout(reading)
    for read in (lambda: collect(run), lambda: anext(run), lambda: anext(run, None)):
        with pytest.raises(RuntimeError, match="a read of the run was cancelled"):
            await read()
    assert sorted(gated.cancelled) == [0, 1, 2, 3]
    await run.aclose()
    assert await collect(run) == []


async def test_run_that_a_cancelled_read_was_closing_still_raises_what_ended_it() -> None:
    class Rows:
        async def __aiter__(self) -> AsyncIterator[int]:
            try:
                for row in range(10):
                    yield row
            finally:
                closing.set()
                await closed.wait()

    def key(row: int) -> int:
        if row == 2:
            raise KeyError("no key")
        return row

    closing, closed = asyncio.Event(), asyncio.Event()
    run = run_all(Rows(), double, key=key)
    seen: list[Outcome[Any, Any]] = []
    reading = asyncio.ensure_future(read_into(seen, run))
    await with_timeout(closing.wait())
    reading.cancel()
    closed.set()
    with pytest.raises(asyncio.CancelledError):
        await with_timeout(reading)
    assert [outcome.reply for outcome in seen] == [0, 2]
    with pytest.raises(KeyError, match="no key"):
        await anext(run)
    with pytest.raises(RuntimeError, match="the run has ended with an error: 'no key'"):
        await collect(run)
    await run.aclose()
    with pytest.raises(RuntimeError, match="the run has ended with an error"):  # another loop must not look complete
        await collect(run)


async def test_cancelling_twice_still_waits_for_calls_in_flight() -> None:
    leaving, left = asyncio.Event(), asyncio.Event()

    async def stubborn(row: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            leaving.set()
            await asyncio.sleep(0.01)
            left.set()

    reading = asyncio.create_task(collect(run_all([1], stubborn)))
    await settle()
    reading.cancel()
    await with_timeout(leaving.wait())
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await with_timeout(reading)
    assert left.is_set()
    assert library_tasks() == []


async def test_closing_in_a_cancelled_anyio_scope_waits_without_being_cancelled_again() -> None:
    cancels: list[int] = []

    async def stubborn(row: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await settle()

    with anyio.CancelScope() as scope:
        run = run_all([1], stubborn)
        reading = asyncio.create_task(collect(run))
        await settle()
        scope.cancel()
        try:
            await run.aclose()
        finally:
            cancels.append(current_task().cancelling())
    await reading
    assert cancels[0] <= 1  # anyio cancels a task that does not shield itself on every turn of the loop
    assert library_tasks() == []


async def test_stop_finishes_calls_in_flight_and_takes_no_more_rows() -> None:
    gated, rows = GatedCalls(), Rows(100)
    run = run_all(rows, gated, concurrency=LIMIT)
    reading = asyncio.create_task(collect(run))
    await gated.wait_started(LIMIT)
    run.stop()
    for gate in gated.gates.values():
        gate.set()
    assert sorted(outcome.key for outcome in await with_timeout(reading)) == [0, 1, 2, 3]
    assert rows.taken == LIMIT
    assert gated.cancelled == []


async def test_rows_that_stop_their_own_run_are_the_last() -> None:
    taken: list[int] = []

    def rows() -> Iterator[int]:
        for row in range(LIMIT):  # there is a permit for each: taking them waits for nothing
            taken.append(row)
            if row == 1:
                run.stop()
            yield row

    run = run_all(rows(), double, concurrency=LIMIT)
    assert sorted(outcome.key for outcome in await collect(run)) == [0, 1]
    assert taken == [0, 1]


async def test_stop_does_not_wait_for_pending_rows() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with run_all(silent(), double) as run:
        assert (await with_timeout(anext(run))).reply == 2
        run.stop()
        assert await collect(run) == []


@pytest.mark.parametrize("waits_for_row", [False, True])
async def test_generator_of_the_caller_can_be_read_further_unless_it_was_waiting_for_a_row(waits_for_row: bool) -> None:
    async def rows() -> AsyncIterator[int]:
        for row in range(6):
            if row == 4 and waits_for_row:
                await asyncio.Event().wait()
            yield row

    generator = rows()
    async with run_all(generator, double, concurrency=1) as run:
        await settle()
        await anext(run)
        await settle()
        run.stop()
        assert [outcome.row async for outcome in run] == ([1, 2, 3] if waits_for_row else [1, 2, 3, 4])
    assert [row async for row in generator] == ([] if waits_for_row else [5])


async def test_run_stopped_or_closed_before_start_does_nothing(tmp_path: Path) -> None:
    rows, checkpoint = Rows(10), tmp_path / "done.jsonl"
    stopped, closed = (run_all(rows, double, checkpoint=checkpoint) for _ in range(2))
    stopped.stop()
    await closed.aclose()
    assert await collect(stopped) == await collect(closed) == []
    assert rows.taken == 0
    assert not checkpoint.exists()


async def test_exception_from_rows_is_raised_after_preceding_outcomes() -> None:
    def rows() -> Iterator[int]:
        yield from range(10)
        raise LookupError("the database has gone")

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(LookupError, match="the database has gone"):
        await read_into(seen, run_all(rows(), double, concurrency=LIMIT))
    assert sorted(outcome.result() for outcome in seen) == [2 * n for n in range(10)]
    assert library_tasks() == []


async def test_cancellation_raised_by_a_call_that_nobody_cancelled_is_the_error_of_its_row(tmp_path: Path) -> None:
    shared = asyncio.create_task(asyncio.Event().wait())

    async def call(row: int) -> int:
        if row == 3:
            shared.cancel()
            await shared
        return await double(row)

    outcomes = await collect(run_all(range(10), call, concurrency=2, ordered=True, checkpoint=tmp_path / "done"))
    assert [outcome.reply for outcome in outcomes] == [None if row == 3 else 2 * row for row in range(10)]
    error = outcomes[3].error
    assert isinstance(error, FriendliError)
    assert isinstance(error.__cause__, asyncio.CancelledError)
    resumed = await collect(run_all(range(10), double, checkpoint=tmp_path / "done"))
    assert [outcome.key for outcome in resumed if not outcome.resumed] == [3]


async def test_call_that_is_cancelled_by_others_ends_the_run() -> None:
    async def call(row: int) -> int:
        if row == 3:
            current_task().cancel()
        return await double(row)

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(asyncio.CancelledError):
        await read_into(seen, run_all(range(100), call, concurrency=2))
    assert 3 not in {outcome.key for outcome in seen}
    assert len(seen) < 10
    assert library_tasks() == []


async def test_cancellation_raised_by_rows_propagates() -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(asyncio.CancelledError):
        await read_into(seen, run_all(rows(), double))
    assert [outcome.reply for outcome in seen] == [2]


class Panic(BaseException):
    """Not an Exception, like pytest's `Failed` and the panics of Rust extensions."""


PANICS = [Panic("boom"), GeneratorExit("boom")]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("panic", PANICS, ids=repr)
async def test_base_exception_of_a_call_is_raised_after_what_has_finished(
    panic: BaseException, ordered: bool, tmp_path: Path
) -> None:
    async def call(row: int) -> int:
        for _ in range(2 if row == 1 else 5):
            await asyncio.sleep(0)
        if row == 1:
            raise panic
        return row

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(type(panic), match="boom"):
        await read_into(seen, run_all(range(100), call, concurrency=4, ordered=ordered, checkpoint=tmp_path / "done"))
    assert [outcome.reply for outcome in seen] == [0, 2, 3]  # those in flight, also behind the missing row
    assert library_tasks() == []
    async with run_all(range(4), double, checkpoint=tmp_path / "done") as resumed:  # it was closed
        assert [outcome.key async for outcome in resumed if not outcome.resumed] == [1]


@pytest.mark.parametrize("panic", PANICS, ids=repr)
@pytest.mark.parametrize("where", ["rows", "async rows", "key", "on_progress"])
async def test_base_exception_of_the_other_callbacks_is_raised_after_what_has_finished(
    where: str, panic: BaseException
) -> None:
    def raise_if(name: str, at: bool) -> None:
        if name == where and at:
            raise panic

    def rows() -> Iterator[int]:
        for row in range(10):
            raise_if("rows", row == 2)
            yield row

    async def async_rows() -> AsyncIterator[int]:
        for row in range(10):
            raise_if("async rows", row == 2)
            yield row

    def key(row: int) -> int:
        raise_if("key", row == 2)
        return row

    run = run_all(
        async_rows() if where == "async rows" else rows(),
        double,
        concurrency=1,
        key=key,
        on_progress=lambda progress: raise_if("on_progress", progress.done == 2),
    )
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(type(panic), match="boom"):
        await read_into(seen, run)
    assert [outcome.reply for outcome in seen] == [0, 2]
    assert library_tasks() == []


async def test_base_exception_of_a_reply_being_recorded_does_not_lose_the_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(self: object, outcome: Outcome[int, int]) -> None:
        if outcome.key == 1:
            raise Panic("boom")

    monkeypatch.setattr(Checkpoint, "keep", keep)
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(Panic, match="boom"):
        await read_into(seen, run_all(range(9), double, concurrency=1, checkpoint=tmp_path / "done"))
    assert [outcome.reply for outcome in seen] == [0, 2]


async def test_ordered_outcomes_behind_a_cancelled_call_are_delivered_before_the_cancellation() -> None:
    async def call(row: int) -> int:
        if row == 1:
            current_task().cancel()
        await asyncio.sleep(0)
        return row

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(asyncio.CancelledError):
        await read_into(seen, run_all(range(100), call, concurrency=4, ordered=True))
    assert [outcome.reply for outcome in seen] == [0, 2, 3]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_call_ends_the_event_loop_and_closes_the_checkpoint(
    kind: type[BaseException], tmp_path: Path
) -> None:
    async def call(row: int) -> int:
        if row == 3:
            raise kind
        return await double(row)

    async def main() -> None:
        await collect(run_all(range(100), call, concurrency=1, checkpoint=tmp_path / "done"))

    with pytest.raises(kind):
        asyncio.run(main())

    async def resume() -> list[Any]:
        run = run_all(range(5), double, concurrency=1, checkpoint=tmp_path / "done")
        return [outcome.key for outcome in await collect(run) if outcome.resumed]

    assert asyncio.run(resume()) == [0, 1, 2]


async def test_closing_a_run_whose_window_is_full_returns_every_permit() -> None:
    adaptive = Adaptive(start=1, max=1)
    async with run_all(range(100), double, concurrency=adaptive) as run:
        await anext(run)
        await settle()
        await anext(run)  # makes room: a row is taken on the next turn of the loop
    assert adaptive.in_flight == 0
    assert len(await collect(run_all(range(3), double, concurrency=adaptive))) == 3


def test_end_of_the_event_loop_returns_every_permit() -> None:
    adaptive = Adaptive(start=1, max=1)
    run = run_all(range(100), double, concurrency=adaptive)

    async def main() -> None:
        await anext(run)
        await settle()
        await anext(run)

    asyncio.run(main())  # cancels the call of the next row before its first step
    assert adaptive.in_flight == 0


async def test_calls_cancelled_by_others_before_they_run_end_the_run_with_an_error() -> None:
    adaptive = Adaptive(start=2)

    def rows() -> Iterator[int]:
        yield 1
        for task in asyncio.all_tasks() - {current_task()}:
            if "_process" in repr(task.get_coro()):
                task.cancel()
        yield 2

    with pytest.raises(asyncio.CancelledError):
        await collect(run_all(rows(), double, concurrency=adaptive))
    assert adaptive.in_flight == 0


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("where", ["call", "task of the call", "rows", "cleanup of the rows"])
async def test_run_can_be_closed_by_its_own_call_and_rows(where: str, eager: bool) -> None:
    if eager:
        begin_tasks_eagerly()
    cancelled: list[int] = []

    class Source:
        async def __aiter__(self) -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
                if where == "rows":
                    await run.aclose()
                yield 3
            finally:
                if where == "cleanup of the rows":
                    await run.aclose()

    async def call(row: int) -> int:
        if row > 1:
            try:
                if where == "call":
                    await run.aclose()
                elif where == "task of the call":
                    await asyncio.gather(run.aclose())
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(row)
                raise
        return row

    run = run_all(Source(), call, concurrency=2)
    reading = asyncio.create_task(collect(run))
    await settle()
    if where == "cleanup of the rows":
        await with_timeout(run.aclose())
    await with_timeout(reading)
    assert 2 in cancelled
    assert library_tasks() == []


async def test_run_stopped_before_it_takes_a_row_ends() -> None:
    rows = Rows(10)
    run = run_all(rows, double)
    reading = asyncio.create_task(collect(run))
    asyncio.get_running_loop().call_soon(run.stop)  # after the first step of the reader, before that of the row taker
    assert await with_timeout(reading) == []
    assert rows.taken == 0


@pytest.mark.parametrize("end", ["stop", "close"])
async def test_cleanup_of_the_rows_is_not_interrupted_by_ending_the_run_again(end: str) -> None:
    cleaned_up = asyncio.Event()

    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await settle()
            cleaned_up.set()

    async with run_all(rows(), double) as run:
        await anext(run)
        run.stop()
        await asyncio.sleep(0)
        if end == "stop":
            run.stop()
            assert await collect(run) == []
    assert cleaned_up.is_set()


async def test_rows_that_suppress_their_cancellation_start_no_call_after_close() -> None:
    calls: list[int] = []

    async def rows() -> AsyncIterator[int]:
        yield 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await settle()
        yield 2

    async def call(row: int) -> None:
        calls.append(row)

    async with run_all(rows(), call) as run:
        await anext(run)
    assert calls == [1]
    assert library_tasks() == []


# --- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no terminal"), asyncio.CancelledError()], ids=repr)
async def test_progress_is_reported_per_row_and_callback_errors_are_logged(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    reports: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        reports.append(progress)
        if progress.done == 2:
            raise error

    async def fail_odd(row: int) -> int:
        if row % 2:
            raise ValueError(row)
        return row

    with caplog.at_level(logging.ERROR, "friendli_async"):
        await collect(run_all(range(6), fail_odd, concurrency=2, on_progress=on_progress))
    assert [progress.done for progress in reports] == [1, 2, 3, 4, 5, 6]
    assert (reports[-1].failed, reports[-1].resumed, reports[-1].in_flight <= 2, reports[-1].limit) == (3, 0, True, 2)
    assert "on_progress" in caplog.text


async def test_progress_has_its_duration_while_the_run_is_being_closed(clock: Clock) -> None:
    durations: list[float] = []

    class Next(asyncio.Future[None]):
        def cancel(self, msg: Any = None) -> bool:
            durations.append(run.progress.seconds)
            return super().cancel(msg)

    async def rows() -> AsyncIterator[int]:
        yield 0
        await Next()

    run = run_all(rows(), double)
    await anext(run)
    clock.advance(2.0)
    await run.aclose()
    assert set(durations) == {2.0}


def test_progress_is_available_in_other_threads_and_after_the_event_loop() -> None:
    run = run_all(range(10), double, concurrency=1)

    async def main() -> Progress:
        await anext(run)
        return await asyncio.to_thread(lambda: run.progress)

    loop = asyncio.new_event_loop()
    try:
        during = loop.run_until_complete(main())
        after = run.progress
        loop.run_until_complete(run.aclose())
    finally:
        loop.close()
    assert during.done >= 1
    assert after.seconds >= during.seconds > 0
    ended = run.progress
    assert ended.seconds >= after.seconds
    assert run.progress == ended


async def test_tokens_attempts_and_rejections_are_counted(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("friendli_async.bulk.sending._MAX_RESENDS", 0)
    limited = status(429, retry_after=0)
    server.enqueue(
        limited, status(503, retry_after=0), text("Hel", "lo"), status(400), text("one"), limited, limited, limited
    )
    async with client_of(server.url, retry=FAST_RETRY) as client:

        async def call(row: int) -> ChatCompletion:
            return await complete(client)

        run = run_all(range(4), call, concurrency=1)
        outcomes = await collect(run)
    assert [outcome.attempts for outcome in outcomes] == [3, 1, 1, 3]
    assert [type(outcome.error).__name__ for outcome in outcomes] == [
        "NoneType",
        "BadRequestError",
        "NoneType",
        "RateLimitError",
    ]
    assert (run.progress.refused, run.progress.tokens, run.progress.failed) == (5, 3, 2)
    assert (Progress(tokens=6, seconds=0.5).tokens_per_second, Progress().tokens_per_second) == (12.0, 0.0)


@pytest.mark.parametrize(
    "usage",
    [
        {"completion_tokens": 3},
        Usage(completion_tokens=-3),
        SimpleNamespace(input_tokens=None, output_tokens=None),
        SimpleNamespace(input_tokens=1, output_tokens=2, input_tokens_details={"cached_tokens": 0}),
    ],
)
async def test_usage_of_another_library_or_below_zero_counts_nothing(usage: Any) -> None:
    async def call(row: int) -> Any:
        return SimpleNamespace(text="paid", usage=usage)

    run = run_all([1, 2], call)
    assert [outcome.result().text for outcome in await collect(run)] == ["paid", "paid"]
    assert run.progress.tokens == 0


async def test_thousand_calls_share_one_client(server: FriendliServer, client: AsyncFriendli) -> None:
    async def call(row: int) -> ChatCompletion:
        messages = [{"role": "user", "content": f"row {row}"}]
        return await client.serverless.chat.complete(model="m", messages=messages)

    async for outcome in run_all(range(1000), call, concurrency=64):
        assert outcome.result().text == f"You said: row {outcome.row}"
    assert len(server.requests) == 1000
    assert server.connections <= 64
    assert len({json.dumps(request.json_object) for request in server.requests}) == 1000


async def test_adaptive_limit_grows_on_success_and_shrinks_on_rejection() -> None:
    limits: list[int] = []

    async def reject_one(row: int) -> int:
        if row == 40:
            raise RateLimitError("slow down", status_code=429, retry_after=0.0, partial=Partial(text="half"))
        return await double(row)

    run = run_all(
        range(80), reject_one, concurrency=Adaptive(), on_progress=lambda progress: limits.append(progress.limit)
    )
    outcomes = await collect(run)
    rejected = [outcome.key for outcome in outcomes].index(40)
    assert max(limits[:rejected]) > 20
    assert limits[rejected] < 0.8 * limits[rejected - 1]
    assert (run.progress.refused, run.progress.failed, run.progress.done) == (1, 1, 80)


@pytest.mark.parametrize("total", [0.5, 4.0], ids=["plain", "stream"])
async def test_adaptive_limit_learns_the_seconds_up_to_the_end_of_a_stream(total: float) -> None:
    class Recorder(Adaptive):
        def succeeded(self, tokens: int | None, seconds: float, now: float) -> None:
            recorded.append((tokens, seconds))

    async def call(row: int) -> ChatCompletion:
        reply = ChatCompletion(choices=(), usage=Usage(completion_tokens=20))
        attempts = (Attempt(number=1, status=503, elapsed=0.25), Attempt(number=2, status=200, elapsed=0.125))
        attach_meta(reply, Meta(attempts=attempts, elapsed=0.5, timing=Timing(total=total)))
        return reply

    recorded: list[tuple[int | None, float]] = []
    await collect(run_all([1], call, concurrency=Recorder()))
    assert recorded == [(20, 0.125 + total - 0.5)]


async def test_adaptive_limit_serves_one_run_at_a_time() -> None:
    adaptive, gated = Adaptive(start=1, max=1), GatedCalls()
    first = run_all([1, 2], gated, concurrency=adaptive)
    reading = asyncio.create_task(collect(first))
    await gated.wait_started(1)
    with pytest.raises(ConfigurationError, match="in use by another run"):
        await collect(run_all([1], double, concurrency=adaptive))
    gated.gates[1].set()
    await gated.wait_started(2)
    gated.gates[2].set()
    assert len(await reading) == 2


# --- rejections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 402, 403, 404, 407])
async def test_ten_rejections_in_a_row_end_the_run(server: FriendliServer, client: AsyncFriendli, code: int) -> None:
    server.always(status(code, message="not for you"))
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(
        RejectedError, match=rf"10 calls in a row were rejected, the last with \w+: {code} not"
    ) as caught:
        await read_into(seen, run_all(range(500), lambda row: complete(client), concurrency=4))
    assert 10 <= len(seen) <= 13  # calls in flight finish, and are delivered
    assert len(server.requests) == len(seen)
    assert caught.value.__cause__ in [outcome.error for outcome in seen]


async def test_stream_that_is_not_read_is_no_reply_and_is_closed(server: FriendliServer, client: AsyncFriendli) -> None:
    async def call(row: int) -> object:
        return await open_stream(client)

    server.always(script(chunk("a"), stall()))
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(RejectedError, match="returned a ChatStream that is not awaited or read: return its answer"):
        await read_into(seen, run_all(range(500), call, concurrency=4))
    assert {type(outcome.error) for outcome in seen} == {ConfigurationError}
    assert client.gauges().open_streams == 0


async def test_coroutine_that_is_not_awaited_is_no_reply(client: AsyncFriendli) -> None:
    async def call(row: int) -> object:
        return complete(client)

    (outcome,) = await collect(run_all([1], call))
    assert "returned a coroutine that is not awaited or read" in str(outcome.error)


async def test_run_whose_call_is_a_plain_function_ends_early() -> None:
    called: list[int] = []
    plain: Any = called.append
    with pytest.raises(RejectedError, match="call must be a coroutine function: its NoneType cannot be awaited"):
        await collect(run_all(range(500), plain, concurrency=4))
    assert 10 <= len(called) <= 13  # each might have been billed


async def test_stream_that_has_ended_is_a_reply(server: FriendliServer, client: AsyncFriendli) -> None:
    async def call(row: int) -> Any:
        stream = open_stream(client)
        await stream.result()
        return stream

    server.enqueue(text("Hi"))
    (outcome,) = await collect(run_all([1], call))
    assert outcome.result().outcome == "done"


async def test_missing_configuration_ends_the_run() -> None:
    async def call(row: int) -> None:
        raise ConfigurationError("no token")

    with pytest.raises(RejectedError, match="no token"):
        await collect(run_all(range(500), call))


async def test_rows_that_fail_do_not_hold_back_the_others() -> None:
    async def call(row: int) -> int:
        if row < 2:
            raise ValueError
        return await gated(row)

    gated = GatedCalls()
    async with run_all(range(9), call, concurrency=4) as run:
        reading = asyncio.create_task(collect(run))
        await gated.wait_started(4)
        assert gated.started == [2, 3, 4, 5]
    await reading


@pytest.mark.parametrize("other", [None, ValueError("mine"), APIStatusError("bad row", status_code=400)])
async def test_rejections_that_are_not_in_a_row_do_not_end_the_run(other: Exception | None) -> None:
    async def call(row: int) -> int:
        error = other if row % 10 == 9 else APIStatusError("no such model", status_code=404)
        if error is not None:
            raise error
        return row

    assert len(await collect(run_all(range(100), call, concurrency=1))) == 100
    with pytest.raises(RejectedError, match="9 calls in a row"):
        await collect(run_all(range(100), call, concurrency=1, max_rejections=9))


async def test_rejections_do_not_fail_a_run_that_was_stopped() -> None:
    async def call(row: int) -> None:
        run.stop()
        raise APIStatusError("expired", status_code=401)

    run = run_all(range(50), call, concurrency=1, max_rejections=1)
    assert len(await collect(run)) == 1


async def test_rejections_never_end_a_run_without_a_limit() -> None:
    async def call(row: int) -> None:
        raise APIStatusError("expired", status_code=401)

    assert len(await collect(run_all(range(50), call, max_rejections=None))) == 50


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3"])
def test_invalid_limit_of_rejections_is_rejected(limit: Any) -> None:
    with pytest.raises(ValueError, match="max_rejections"):
        run_all([], double, max_rejections=limit)
