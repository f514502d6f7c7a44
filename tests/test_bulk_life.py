"""Random lives of a bulk job, in virtual time: however often its runs are interrupted, each row is answered once."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Final, NamedTuple
from unittest.mock import patch
from weakref import WeakSet

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import deterministic
from support.sockets import library_tasks
from support.virtual import VirtualLoop

from friendli_async import (
    APIConnectionError,
    BadRequestError,
    ChatCompletion,
    ConfigurationError,
    RateLimitError,
    Usage,
)
from friendli_async.bulk import Adaptive, Outcome, RejectedError, Run, journal, run_all
from friendli_async.errors import OutputInvalidError


class SourceError(Exception):
    pass


class FatalError(BaseException):
    pass


ROWS: Final = 24
MOST: Final = 4
"""The maximum of an adaptive limit."""
ERRORS: Final[dict[str, Callable[[], BaseException]]] = {
    "busy": lambda: RateLimitError("busy", status_code=429),
    "pausing": lambda: RateLimitError("busy", status_code=429, retry_after=5.0),
    "always busy": lambda: RateLimitError("busy", status_code=429),
    "unsent": lambda: APIConnectionError("refused", sent=False),
    "invalid": lambda: BadRequestError("invalid", status_code=400),
    "wrong output": lambda: OutputInvalidError("not JSON"),
    "cancelled": asyncio.CancelledError,
    "fatal": FatalError,
}
ONCE: Final = {"busy", "pausing", "unsent", "fatal"}
"""These errors come once in a run; a row that was answered then, or is invalid, is not sent again by the next run."""
CALLS: Final = ("at once", "well", "well", "slow", "stubborn", "ignores its cancellation", *ERRORS)
SECONDS: Final = {"slow": 30.0, "stubborn": 3.0, "ignores its cancellation": 3.0}
"""Others take one second."""
SOURCES: Final = ("plain", "async", "slow", "endless", "raises")

Command = tuple[str, Any]
PAUSES: Final = st.sampled_from([0.0, 0.5])
COMMANDS: Final = st.one_of(
    st.tuples(st.just("take"), st.sampled_from([1, 5, ROWS + 1])),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.5, 3.0, 40.0])),
    st.tuples(
        st.just("end"), st.tuples(PAUSES, st.sampled_from(["close", "cancel closer", "cancel consumer", "crash"]))
    ),
    st.tuples(st.just("end"), st.tuples(PAUSES, st.sampled_from(["drop", "stop"]))),
    st.tuples(st.just("client"), st.just("close")),
)


def error_of(how: str) -> BaseException:
    return ERRORS[how]()


class Job(NamedTuple):
    calls: list[str]
    """How the calls of the rows go, over and over."""
    limit: int | None
    """None is an adaptive one."""
    is_ordered: bool
    is_kept: bool
    """Whether there is a checkpoint."""
    source: str


JOBS: Final = st.builds(
    Job,
    st.lists(st.sampled_from(CALLS), min_size=1, max_size=4),
    st.sampled_from([1, 2, 5, None]),
    st.booleans(),
    st.sampled_from([True, True, True, False]),
    st.sampled_from(SOURCES),
)


@dataclass(eq=False)  # can be referenced weakly
class Row:
    number: int


class Server:
    """Answers the calls of one run, and counts them by row."""

    def __init__(self, calls: Sequence[str]) -> None:
        self.is_closed = False
        """Whether the client is."""
        self.running = self.most = 0
        self.started, self.answered, self.failed = Counter[int](), Counter[int](), Counter[str]()
        self.invalid = set[int]()
        self._calls = calls

    async def __call__(self, row: Row) -> ChatCompletion:
        number, how = row.number, self._calls[row.number % len(self._calls)]
        self.started[number] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.wait(how)
            self.fail(number, how)
        finally:
            self.running -= 1
        self.answered[number] += 1
        return ChatCompletion(choices=(), id=str(number), usage=Usage(completion_tokens=number))

    async def wait(self, how: str) -> None:
        if how == "at once":
            return
        try:
            await asyncio.sleep(SECONDS.get(how, 1.0))
        except asyncio.CancelledError:
            await asyncio.sleep(2.0 if how in {"stubborn", "ignores its cancellation"} else 0.0)
            if how != "ignores its cancellation":
                raise

    def fail(self, number: int, how: str) -> None:
        if self.is_closed:
            raise ConfigurationError("the client is closed")
        if how in ERRORS and not (how in ONCE and self.started[number] > 1):
            self.failed[how] += 1
            if how == "invalid":
                self.invalid.add(number)
            raise error_of(how)


class Life:
    """A job and its runs, one after another."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.path = folder / "0"
        self.finished = set[int]()
        """Rows that are in the checkpoint for good."""
        self.begin(job.calls, job.source)

    def begin(self, calls: list[str], source: str) -> None:
        job = self.job
        self.server, self.taken, self.alive = Server(calls), 0, WeakSet[Row]()
        self.outcomes: list[tuple[int, bool, bool]] = []
        """The row of each, whether it failed, and whether it was resumed."""
        self.source = self.rows(source) if source in {"plain", "endless"} else self.later_rows(source)
        self.run: Run[Row, ChatCompletion] = run_all(
            self.source,
            self.server,
            concurrency=Adaptive(start=2, max=MOST) if job.limit is None else job.limit,
            checkpoint=self.path if job.is_kept else None,
            key=lambda row: row.number,
            ordered=job.is_ordered,
            reply_type=ChatCompletion,
        )

    def rows(self, source: str) -> Iterator[Row]:
        for number in count() if source == "endless" else range(ROWS):
            self.taken += 1
            self.check_bounds()
            yield self.row(number)

    def row(self, number: int) -> Row:
        row = Row(number)
        self.alive.add(row)
        return row

    async def later_rows(self, source: str) -> AsyncIterator[Row]:
        for row in self.rows(source):
            yield row
            await asyncio.sleep(2.0 if source == "slow" else 0.0)
            if source == "raises" and self.taken == ROWS // 2:
                raise SourceError

    async def do(self, command: Command) -> None:
        match command:
            case "take", number:
                for _ in range(number):
                    if not await self.take():
                        self.begin(self.job.calls, self.job.source)
                        break
            case "sleep", seconds:
                await asyncio.sleep(seconds)
            case "client", _:
                self.server.is_closed = True
            case _, [pause, how]:
                if pause and not await self.take():  # mostly it has calls in flight then
                    self.begin(self.job.calls, self.job.source)
                await asyncio.sleep(pause)
                await (self.stop() if how == "stop" else self.end(how))
        self.check_bounds()

    # --- taking outcomes ---

    async def next_outcome(self) -> Outcome[Row, ChatCompletion] | None:
        """Returns None if the run has ended."""
        try:
            return await anext(self.run)
        except (StopAsyncIteration, SourceError, FatalError, RejectedError):
            return None
        except RuntimeError as error:
            if "the run has ended with an error" not in str(error):
                raise
            return None  # another read after one of these must not look complete

    async def take(self) -> bool:
        """Takes and checks an outcome. Returns False if the run has ended instead."""
        return await self.goes_on(await self.next_outcome())

    async def goes_on(self, outcome: Outcome[Row, ChatCompletion] | None) -> bool:
        """Checks an outcome, or a run that has ended by itself. Returns whether it goes on."""
        if outcome is not None:
            self.check(outcome)
            return True
        progress = self.run.progress
        assert self.taken == len(self.outcomes) + self.server.failed["fatal"]
        assert progress.done == len(self.outcomes)
        assert progress.failed == sum(failed for _, failed, _ in self.outcomes)
        assert progress.resumed == sum(resumed for _, _, resumed in self.outcomes)
        await self.check_end()
        return False

    def check(self, outcome: Outcome[Row, ChatCompletion]) -> None:
        number, error, reply = outcome.row.number, outcome.error, outcome.reply
        how = self.job.calls[number % len(self.job.calls)]
        assert outcome.key == number
        assert outcome.resumed == (number in self.finished)
        assert outcome.resumed or outcome.attempts == self.server.started[number]
        if error is None:
            assert reply is not None
            assert reply.id == str(number)
        elif not isinstance(error, ConfigurationError):
            assert isinstance(error.__cause__ if how == "cancelled" else error, type(error_of(how)))
        self.outcomes.append((number, error is not None, outcome.resumed))

    def check_bounds(self) -> None:
        limit = self.job.limit or MOST
        assert self.server.most <= limit
        assert self.taken - len(self.outcomes) <= 4 * limit
        assert len(self.alive) <= 4 * limit + 1

    # --- ends ---

    async def stop(self) -> None:
        taken, started = self.taken, self.server.started.copy()
        self.run.stop()
        while await self.take():
            pass
        assert self.taken == taken
        assert all(times <= max(1, started[number]) for number, times in self.server.started.items())
        self.begin(self.job.calls, self.job.source)

    async def end(self, how: str) -> None:
        loop = asyncio.get_running_loop()
        survivors, path = None, self.path
        if how == "drop":
            await self.drop()
        elif how == "cancel consumer":
            consumer = loop.create_task(self.next_outcome())
            await asyncio.sleep(0.2)
            consumer.cancel()
            await asyncio.wait([consumer])
            if not consumer.cancelled() and not await self.goes_on(consumer.result()):
                self.begin(self.job.calls, self.job.source)
                return
            await self.close()  # unless it was cancelled
        else:
            if how == "crash" and path.exists():
                survivors, path = self.finished | self.kept(), path.with_name(f"{path.name}0")
                shutil.copy(self.path, path)
            closer = loop.create_task(self.close())
            await asyncio.sleep(0)
            is_cancelled = how == "cancel closer" and closer.cancel()
            await asyncio.wait([closer])
            assert is_cancelled if closer.cancelled() else closer.result() is None
        await self.check_end()
        self.path, self.finished = path, self.finished if survivors is None else survivors
        self.begin(self.job.calls, self.job.source)

    async def close(self) -> None:
        """Closes the run: nothing is called after that, and calls in flight are not waited for until they are done."""
        started, loop = self.server.started.copy(), asyncio.get_running_loop()
        began = loop.time()
        try:
            await self.run.aclose()
        finally:
            assert self.server.started == started
            assert loop.time() - began < 2.5

    async def drop(self) -> None:
        """Drops the run; it is closed, and releases its checkpoint."""
        del self.run
        await asyncio.sleep(3.0)
        if self.job.is_kept:
            none: list[Row] = []
            assert [outcome async for outcome in run_all(none, self.server, checkpoint=self.path)] == []

    def kept(self) -> set[int]:
        return {*self.server.answered, *self.server.invalid} if self.job.is_kept else set()

    async def check_end(self) -> None:
        """Checks a run that has ended: nothing goes on, no row was sent in vain, and the figures are right."""
        server, numbers = self.server, [number for number, _, _ in self.outcomes]
        if hasattr(self, "run"):
            assert await self.next_outcome() is None
            progress = self.run.progress
            assert progress.tokens == sum(number * times for number, times in server.answered.items())
            assert progress.refused == sum(server.failed[how] for how in ("busy", "pausing", "always busy"))
            assert progress.in_flight == self.run._job._gate._limit.in_flight == 0
        assert server.running == 0
        if isinstance(self.source, AsyncGeneratorType):
            await self.source.aclose()  # not closed by the run, which does not wait for a row any more
        assert library_tasks() == []
        timers: list[asyncio.TimerHandle] = vars(asyncio.get_running_loop())["_scheduled"]
        assert [timer for timer in timers if not timer.cancelled()] == []
        assert len(set(numbers)) == len(numbers)
        assert not self.job.is_ordered or numbers == sorted(numbers)
        assert self.finished.isdisjoint(server.started)
        assert max(server.started.values(), default=1) <= 6
        assert max(server.answered.values(), default=1) == 1
        self.finished |= self.kept()
        if self.path.exists():
            lines = [json.loads(line) for line in self.path.read_bytes().splitlines()]
            assert {line["key"] for line in lines if line.get("error", {"final": True})["final"]} == self.finished


async def live(job: Job, commands: Sequence[Command], folder: Path) -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    life = Life(job, folder)
    for command in commands:
        await life.do(command)
    await life.run.aclose()
    await life.check_end()
    finished = life.finished.copy()
    life.begin(["well"], "plain")
    while await life.take():
        pass
    assert life.server.answered == dict.fromkeys(set(range(ROWS)) - finished, 1)
    assert reported == []


async def in_this_thread(function: Callable[..., Any], *args: Any) -> Any:
    await asyncio.sleep(0)
    return function(*args)


@settings(deterministic, max_examples=150)
@given(JOBS, st.lists(COMMANDS, min_size=4, max_size=16))
def test_however_often_a_job_is_interrupted_each_row_is_answered_once(job: Job, commands: list[Command]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("asyncio.to_thread", in_this_thread),  # in virtual time nothing waits for a thread
        patch.object(journal, "_sync", lambda file: None),
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
    ):
        runner.run(live(job, commands, Path(folder)))
