"""Many calls: what a run takes, gives, bounds and leaves behind."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sockets import QUICK, client_of, complete, tasks_of_the_library, within

from friendli_async import AsyncFriendli, ChatCompletion, ConfigurationError, RateLimitError
from friendli_async.bulk import Adaptive, Outcome, Progress, RowsError, Run, run_all
from friendli_async.testing import FriendliServer, status, text

LIMIT = 4
WINDOW = 4 * LIMIT
"""Rows that are taken and not given out yet, at most."""


async def double(row: int) -> int:
    await asyncio.sleep(0)
    return 2 * row


async def read_into(seen: list[Outcome[Any, Any]], run: Run[Any, Any]) -> None:
    """Keeps what comes before an error, too."""
    async with asyncio.timeout(30):
        async for outcome in run:
            seen.append(outcome)  # noqa: PERF401  # a list would be lost


async def all_of(run: Run[Any, Any]) -> list[Outcome[Any, Any]]:
    async with asyncio.timeout(30):
        return [outcome async for outcome in run]


class Rows:
    """Counts what is taken of it."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._count = count

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            self.taken += 1
            yield number


class Held:
    """Calls that end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.ends: dict[int, asyncio.Event] = {}
        self._changed = asyncio.Condition()

    async def __call__(self, row: int) -> int:
        self.ends[row] = asyncio.Event()
        self.begun.append(row)
        async with self._changed:
            self._changed.notify_all()
        try:
            await self.ends[row].wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # a call takes its time to leave, as a connection that is closed does
            self.cancelled.append(row)
            raise
        return row

    async def begin(self, count: int) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.begun) >= count)


async def settled() -> None:
    """Lets everything happen that can happen without anybody's doing."""
    for _ in range(200):
        await asyncio.sleep(0)


# --- rows and outcomes -----------------------------------------------------------------------------------------------


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "rows", [lambda: range(50), lambda: iter(range(50)), lambda: numbers(50)], ids=["range", "iterator", "async"]
)
async def test_every_row_has_one_outcome(rows: Any, ordered: bool) -> None:
    outcomes = await all_of(run_all(rows(), double, concurrency=LIMIT, ordered=ordered))
    assert sorted((outcome.key, outcome.row, outcome.reply) for outcome in outcomes) == [
        (n, n, 2 * n) for n in range(50)
    ]
    assert all((outcome.error, outcome.attempts, outcome.resumed) == (None, 1, False) for outcome in outcomes)
    assert tasks_of_the_library() == []


async def test_rows_of_a_file_are_its_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\n\n"two"\r\n3')

    async def same(row: Any) -> Any:
        return row

    outcomes = await all_of(run_all(path, same, concurrency=LIMIT, ordered=True))
    assert [outcome.reply for outcome in outcomes] == [{"n": 1}, "two", 3]


async def test_a_bad_line_of_a_file_ends_the_run_after_what_stood_before(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\n2\n\n{bad\n5\n")
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(RowsError, match=r"rows\.jsonl line 4 is not JSON"):
        await read_into(seen, run_all(path, double, concurrency=1))
    assert [outcome.reply for outcome in seen] == [2, 4]


@pytest.mark.parametrize("rows", ["rows.jsonl", b"rows", 7, None])
def test_what_is_no_rows_is_refused(rows: Any) -> None:
    with pytest.raises(TypeError, match="rows must be"):
        run_all(rows, double)


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5, "8"])
def test_what_is_no_concurrency_is_refused(concurrency: Any) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        run_all([1], double, concurrency=concurrency)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="call must be a coroutine function"):
        run_all([1], None)  # type: ignore[call-overload]  # that is the test


async def test_the_error_of_a_row_is_its_outcome() -> None:
    async def divide(row: int) -> float:
        return 1 / row

    outcomes = await all_of(run_all([1, 0, 2], divide, concurrency=1))
    assert [outcome.reply for outcome in outcomes] == [1.0, None, 0.5]
    assert isinstance(outcomes[1].error, ZeroDivisionError)
    assert outcomes[0].result() == 1.0
    with pytest.raises(ZeroDivisionError):
        outcomes[1].result()


async def test_the_error_of_a_row_is_in_no_reference_cycle() -> None:
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
        await settled()
        assert TroubleError.alive == 0
    finally:
        gc.enable()


async def test_no_rows_give_no_outcomes() -> None:
    assert await all_of(run_all([], double)) == []


async def test_concurrency_is_reached_and_never_exceeded() -> None:
    held, most = Held(), 0
    run = run_all(range(20), held, concurrency=LIMIT)
    reading = asyncio.create_task(all_of(run))
    for count in range(LIMIT, 21):
        await held.begin(count)
        most = max(most, run.progress.in_flight)
        held.ends[held.begun[count - LIMIT]].set()
    for end in held.ends.values():
        end.set()
    assert len(await reading) == 20
    assert most == LIMIT


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
async def test_rows_are_taken_only_as_far_as_outcomes_are_taken(ordered: bool) -> None:
    rows = Rows(1000)
    async with run_all(rows, double, concurrency=LIMIT, ordered=ordered) as outcomes:
        await anext(outcomes)
        await settled()
        assert rows.taken == WINDOW + 1
        await anext(outcomes)
        await settled()
        assert rows.taken == WINDOW + 2


async def test_a_slow_row_holds_ordered_outcomes_up_and_bounds_what_waits() -> None:
    rows, first = Rows(1000), asyncio.Event()

    async def slow_first(row: int) -> int:
        if row == 0:
            await first.wait()
        return row

    async with run_all(rows, slow_first, concurrency=LIMIT, ordered=True) as outcomes:
        waiting = asyncio.ensure_future(anext(outcomes))
        await settled()
        assert (rows.taken, waiting.done()) == (WINDOW, False)
        first.set()
        assert (await within(waiting)).key == 0
        assert [outcome.key async for outcome in outcomes] == list(range(1, 1000))


@pytest.mark.parametrize("ordered", [False, True])
async def test_memory_does_not_grow_with_the_rows(ordered: bool) -> None:
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


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_leaving_cancels_what_is_under_way_and_waits_for_it() -> None:
    held = Held()
    async with run_all(range(100), held, concurrency=LIMIT) as outcomes:
        reading = asyncio.ensure_future(anext(outcomes))
        await held.begin(LIMIT)
        held.ends[2].set()
        assert (await within(reading)).key == 2
        await held.begin(LIMIT + 1)
    assert sorted(held.cancelled) == [0, 1, 3, 4]
    assert tasks_of_the_library() == []
    assert await all_of(outcomes) == []


async def test_a_loop_that_is_left_ends_the_run_without_the_garbage_collector() -> None:
    held = Held()
    gc.disable()
    try:

        async def first() -> None:
            async for _ in run_all(range(100), held, concurrency=LIMIT):
                break

        reading = asyncio.create_task(first())
        await held.begin(LIMIT)
        held.ends[0].set()
        await within(reading)
        await settled()
        assert len(held.cancelled) == len(held.begun) - 1
        assert [name for name in tasks_of_the_library() if "first" not in name] == []
    finally:
        gc.enable()


async def test_closing_from_another_task_ends_the_iteration() -> None:
    held = Held()
    run = run_all(range(100), held, concurrency=LIMIT)
    reading = asyncio.create_task(all_of(run))
    await held.begin(LIMIT)
    await within(run.aclose())
    assert await within(reading) == []
    assert sorted(held.cancelled) == [0, 1, 2, 3]
    await within(run.aclose())


async def test_cancelling_twice_still_waits_for_what_is_under_way() -> None:
    leaving, left = asyncio.Event(), asyncio.Event()

    async def stubborn(row: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            leaving.set()
            await asyncio.sleep(0.01)
            left.set()

    reading = asyncio.create_task(all_of(run_all([1], stubborn)))
    await settled()
    reading.cancel()
    await within(leaving.wait())
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(reading)
    assert left.is_set()
    assert tasks_of_the_library() == []


async def test_stop_lets_what_is_under_way_finish_and_takes_no_more() -> None:
    held, rows = Held(), Rows(100)
    run = run_all(rows, held, concurrency=LIMIT)
    reading = asyncio.create_task(all_of(run))
    await held.begin(LIMIT)
    run.stop()
    for end in held.ends.values():
        end.set()
    assert sorted(outcome.key for outcome in await within(reading)) == [0, 1, 2, 3]
    assert rows.taken == LIMIT
    assert held.cancelled == []


async def test_stop_does_not_wait_for_rows_that_do_not_come() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with run_all(silent(), double) as run:
        assert (await within(anext(run))).reply == 2
        run.stop()
        assert await all_of(run) == []


async def test_a_run_that_is_stopped_or_closed_before_it_begins_does_nothing() -> None:
    rows = Rows(10)
    stopped, closed = run_all(rows, double), run_all(rows, double)
    stopped.stop()
    await closed.aclose()
    assert await all_of(stopped) == await all_of(closed) == []
    assert rows.taken == 0


async def test_what_rows_raise_comes_after_the_outcomes_of_those_before() -> None:
    def rows() -> Iterator[int]:
        yield from range(10)
        raise LookupError("the database has gone")

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(LookupError, match="the database has gone"):
        await read_into(seen, run_all(rows(), double, concurrency=LIMIT))
    assert sorted(outcome.reply for outcome in seen) == [2 * n for n in range(10)]
    assert tasks_of_the_library() == []


async def test_a_cancellation_out_of_a_call_is_not_an_outcome() -> None:
    async def cancelled(row: int) -> int:
        if row == 3:
            raise asyncio.CancelledError
        return await double(row)

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(asyncio.CancelledError):
        await read_into(seen, run_all(range(100), cancelled, concurrency=2))
    assert 3 not in {outcome.key for outcome in seen}
    assert len(seen) < 10
    assert tasks_of_the_library() == []


async def test_a_cancellation_out_of_the_rows_is_not_their_end() -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(asyncio.CancelledError):
        await read_into(seen, run_all(rows(), double))
    assert [outcome.reply for outcome in seen] == [2]


# --- progress --------------------------------------------------------------------------------------------------------


async def test_progress_is_told_after_every_row_and_what_it_raises_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        if progress.done == 2:
            raise RuntimeError("no terminal")

    async def fail_odd(row: int) -> int:
        if row % 2:
            raise ValueError(row)
        return row

    with caplog.at_level(logging.ERROR, "friendli_async"):
        await all_of(run_all(range(6), fail_odd, concurrency=2, on_progress=on_progress))
    assert [progress.done for progress in told] == [1, 2, 3, 4, 5, 6]
    assert (told[-1].failed, told[-1].resumed, told[-1].in_flight <= 2, told[-1].limit) == (3, 0, True, 2)
    assert "on_progress" in caplog.text


async def test_tokens_attempts_and_refusals_come_from_the_replies(server: FriendliServer) -> None:
    refusal = status(429, retry_after=0)
    server.enqueue(
        refusal, status(503, retry_after=0), text("Hel", "lo"), status(400), text("one"), refusal, refusal, refusal
    )
    async with client_of(server.url, retry=QUICK) as client:

        async def call(row: int) -> ChatCompletion:
            return await complete(client)

        run = run_all(range(4), call, concurrency=1)
        outcomes = await all_of(run)
    assert [outcome.attempts for outcome in outcomes] == [3, 1, 1, 3]
    assert [type(outcome.error).__name__ for outcome in outcomes] == [
        "NoneType",
        "BadRequestError",
        "NoneType",
        "RateLimitError",
    ]
    assert (run.progress.refused, run.progress.tokens, run.progress.failed) == (5, 3, 2)


async def test_a_thousand_calls_go_through_one_client(server: FriendliServer, client: AsyncFriendli) -> None:
    async def call(row: int) -> ChatCompletion:
        messages = [{"role": "user", "content": f"row {row}"}]
        return await client.serverless.chat.complete(model="m", messages=messages)

    async for outcome in run_all(range(1000), call, concurrency=64):
        assert outcome.result().text == f"You said: row {outcome.row}"
    assert len(server.requests) == 1000
    assert server.connections <= 64
    assert len({json.dumps(request.json_object) for request in server.requests}) == 1000


async def test_successes_raise_the_limit_of_an_adaptive_run_and_a_refusal_lowers_it() -> None:
    limits: list[int] = []

    async def refuse_one(row: int) -> int:
        if row == 40:
            raise RateLimitError("slow down", status_code=429, retry_after=0.0)
        return await double(row)

    run = run_all(range(80), refuse_one, concurrency=Adaptive(), on_progress=lambda told: limits.append(told.limit))
    outcomes = await all_of(run)
    refused = [outcome.key for outcome in outcomes].index(40)
    assert max(limits[:refused]) > 20
    assert limits[refused] < 0.8 * limits[refused - 1]
    assert (run.progress.refused, run.progress.failed, run.progress.done) == (1, 1, 80)


async def test_an_adaptive_serves_one_run_at_a_time() -> None:
    adaptive, held = Adaptive(start=1, max=1), Held()
    first = run_all([1, 2], held, concurrency=adaptive)
    reading = asyncio.create_task(all_of(first))
    await held.begin(1)
    with pytest.raises(ConfigurationError, match="in use by another run"):
        await all_of(run_all([1], double, concurrency=adaptive))
    held.ends[1].set()
    await held.begin(2)
    held.ends[2].set()
    assert len(await reading) == 2
