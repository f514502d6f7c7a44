"""Bulk runs under a rate limit or without a server: rows are sent again, and the run pauses for a Retry-After."""

import asyncio
import gc
import logging
import random
import weakref
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest
from support.sockets import client_of, complete, open_stream
from support.virtual import FakeExchange, FakeTransport, in_virtual_time, now, response

from friendli_async import (
    APIConnectionError,
    APITimeoutError,
    Attempt,
    ChatCompletion,
    ConfigurationError,
    InternalServerError,
    Meta,
    Observer,
    Pacing,
    Partial,
    RateLimitError,
    RetryPolicy,
    Usage,
)
from friendli_async._core.body.arguments import Arguments
from friendli_async._core.engine import Engine
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.observers import AttemptStarted
from friendli_async._core.protocol import Deployment, Operation
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async.bulk import Adaptive, Outcome, RejectedError, Run, run_all, sending
from friendli_async.bulk.gate import Gate
from friendli_async.replies import Headers, Timing
from friendli_async.testing import FriendliServer, event, script, status, text, tool_calls
from friendli_async.tools import tool

NOT_SENT = Meta(status=None, headers=Headers(), attempts=(), elapsed=0.0, timing=Timing())
IN_STREAM = Meta(status=200, attempts=(Attempt(number=1, status=200, elapsed=1.0),), elapsed=1.0)


def limited(seconds: float | None, **options: Any) -> RateLimitError:
    return RateLimitError("slow down", status_code=429, retry_after=seconds, **options)


def no_connection(*, permanent: bool = False, sent: bool = False, **options: Any) -> APIConnectionError:
    error = APIConnectionError("could not connect: refused", sent=sent, **options)
    error.permanent = permanent
    return error


class Calls:
    """Calls that take a second, and raise the errors of their row first."""

    def __init__(self, **errors: list[Exception]) -> None:
        self.started_at: dict[int, list[float]] = {}
        self._errors = {int(row.lstrip("_")): list(given) for row, given in errors.items()}

    async def __call__(self, row: int) -> int:
        self.started_at.setdefault(row, []).append(now())
        await asyncio.sleep(1.0)
        if errors := self._errors.get(row):
            raise errors.pop(0)
        return row


async def collect(run: Run[int, Any]) -> dict[str | int, Outcome[int, Any]]:
    return {outcome.key: outcome async for outcome in run}


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("kind", [RateLimitError, InternalServerError])
@in_virtual_time
async def test_row_is_sent_again_after_the_retry_after_and_no_row_starts_before(kind: Any, adaptive: bool) -> None:
    code = 429 if kind is RateLimitError else 503
    call = Calls(_0=[kind("busy", status_code=code, retry_after=61.0)])
    outcomes = await collect(run_all(range(20), call, concurrency=Adaptive(start=2, max=2) if adaptive else 2))
    assert all(outcome.reply == outcome.row for outcome in outcomes.values())
    assert outcomes[0].attempts == 2
    first, *again = call.started_at[0]
    assert (first, len(again), again[0] >= 62.0) == (0.0, 1, True)
    others = sorted(started for row, starts in call.started_at.items() for started in starts if row)
    assert others[0] == 0.0  # at the same time as row 0
    assert others[1] >= 62.0


@in_virtual_time
async def test_row_that_a_hold_kept_from_being_sent_waits_too_and_does_not_shrink_the_limit() -> None:
    call = Calls(_0=[limited(30.0, meta=NOT_SENT)])
    run = run_all(range(4), call, concurrency=Adaptive(start=4))
    outcomes = await collect(run)
    assert call.started_at[0] == [0.0, 31.0]
    assert (outcomes[0].reply, outcomes[0].attempts) == (0, 1)
    assert (run.progress.refused, run.progress.failed) == (0, 0)
    assert run.progress.limit >= 4


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@in_virtual_time
async def test_overload_reported_inside_a_stream_is_obeyed_like_one_with_a_status(adaptive: bool) -> None:
    call = Calls(_0=[limited(61.0, meta=IN_STREAM)])
    run = run_all(range(10), call, concurrency=Adaptive(start=2, max=2) if adaptive else 2)
    outcomes = await collect(run)
    assert all(outcome.reply == outcome.row for outcome in outcomes.values())
    assert (run.progress.refused, outcomes[0].attempts) == (1, 2)
    others = sorted(started for row, starts in call.started_at.items() for started in starts if row)
    assert (others[0], others[1] >= 62.0) == (0.0, True)


async def test_overloads_inside_streams_shrink_the_limit_also_if_a_retry_resolves_them() -> None:
    adaptive = Adaptive(start=8)
    overloaded = script(event({"error": {"message": "overloaded", "code": 429}}), headers={"Retry-After": "0"})
    async with FriendliServer() as server, client_of(server.url, retry=RetryPolicy(initial=0.0)) as client:
        server.enqueue(overloaded, text("good"))

        async def call(row: int) -> ChatCompletion:
            return await open_stream(client).result()

        run = run_all([0], call, concurrency=adaptive)
        async with asyncio.timeout(30):
            [reply] = [outcome.result() async for outcome in run]
    assert [attempt.status for attempt in reply.meta.attempts] == [200, 200]
    assert (run.progress.refused, adaptive.limit) == (1, 5)


@pytest.mark.parametrize(("retried_at", "limit"), [(0.0, 5), (2.0, 3)])
@in_virtual_time
async def test_limit_shrinks_once_for_requests_from_before_a_rejection(
    monkeypatch: pytest.MonkeyPatch, retried_at: float, limit: int
) -> None:
    async def call(row: int) -> None:
        await asyncio.sleep(1.0 + 2.0 * row)
        elapsed = now() - retried_at * row
        raise limited(None, meta=Meta(attempts=(Attempt(number=1, status=429, elapsed=elapsed),)))

    monkeypatch.setattr(sending, "_MAX_RESENDS", 0)
    adaptive = Adaptive(start=8)
    assert len(await collect(run_all([0, 1], call, concurrency=adaptive))) == 2
    assert adaptive.limit == limit


@pytest.mark.parametrize("pacing", [Pacing(), None])
async def test_limit_shrinks_at_a_rejection_before_the_call_is_retried(pacing: Pacing | None) -> None:
    adaptive = Adaptive(start=8)
    limits: list[int] = []

    class Recorder(Observer):
        def attempt_started(self, event: AttemptStarted) -> None:
            limits.append(adaptive.limit)

    options = {"retry": RetryPolicy(initial=0.0), "observers": [Recorder()], "pacing": pacing}
    async with FriendliServer() as server, client_of(server.url, **options) as client:
        server.enqueue(status(429), status(429), text("good"))

        async def call(row: int) -> str:
            return (await complete(client)).text

        run = run_all([0], call, concurrency=adaptive)
        async with asyncio.timeout(30):
            [outcome] = [outcome async for outcome in run]
    assert limits == [8, 5, 3]
    assert (outcome.reply, run.progress.refused) == ("good", 2)


@in_virtual_time
async def test_row_is_sent_again_five_times() -> None:
    call = Calls(_0=[limited(10.0) for _ in range(7)])
    outcomes = await collect(run_all([0], call))
    assert isinstance(outcomes[0].error, RateLimitError)
    assert (outcomes[0].attempts, len(call.started_at[0])) == (6, 6)


@in_virtual_time
async def test_rows_that_were_rejected_together_are_not_sent_again_together() -> None:
    rejected: dict[str, list[Exception]] = {f"_{row}": [limited(None)] for row in range(8)}
    call = Calls(**rejected)
    await collect(run_all(range(8), call, concurrency=8))
    assert len({starts[1] for starts in call.started_at.values()}) == 8


@pytest.mark.parametrize("error", [limited(1.0), no_connection()], ids=["rejected", "no connection"])
@in_virtual_time
async def test_row_whose_run_has_made_progress_is_not_sent_again(error: Any) -> None:
    error.partial = Partial()
    call = Calls(_0=[error])
    outcomes = await collect(run_all([0], call))
    assert (outcomes[0].error, len(call.started_at[0])) == (error, 1)


@pytest.mark.parametrize("decided", [False, True])
async def test_tools_of_a_run_in_a_row_are_called_once(server: FriendliServer, decided: bool) -> None:
    called: list[str] = []

    @tool
    def send_mail(to: str) -> str:
        called.append(to)
        return "sent"

    async def ask(row: str) -> ChatCompletion:
        messages: list[Any] = [{"role": "user", "content": row}]
        if decided:
            asked = {"id": "1", "type": "function", "function": {"name": "send_mail", "arguments": '{"to": "a"}'}}
            messages.append({"role": "assistant", "tool_calls": [asked]})
        options: dict[str, Any] = {"decisions": {"1": True}} if decided else {}
        run = client.serverless.chat.run(model="m", messages=messages, tools=[send_mail], **options)
        return (await run.result()).reply

    if not decided:
        server.enqueue(tool_calls(("send_mail", {"to": "a"})))
    server.always(status(429))
    async with client_of(server.url, retry=None) as client, run_all(["x"], ask) as run:
        [outcome] = [outcome async for outcome in run]
    assert called == ["a"]
    assert isinstance(outcome.error, RateLimitError)
    assert outcome.error.partial is not None
    assert (outcome.error.partial.usage is None) == decided


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("retry_after", [None, 0.0])
@in_virtual_time
async def test_row_without_a_retry_after_is_sent_again_after_growing_waits_of_a_minute_in_all(
    retry_after: float | None, adaptive: bool
) -> None:
    call = Calls(_0=[limited(retry_after) for _ in range(7)])
    run = run_all(range(8), call, concurrency=Adaptive() if adaptive else 4)
    outcomes = await collect(run)
    assert isinstance(outcomes[0].error, RateLimitError)
    assert outcomes[0].attempts == 6
    waits = [later - earlier - 1.0 for earlier, later in pairwise(call.started_at[0])]
    for backoff, wait in zip([0.5, 1.5, 4.5, 13.5, 40.5], waits, strict=True):
        assert backoff <= wait <= 1.5 * backoff + 1.0  # up to a second for a permit
    assert (run.progress.refused, run.progress.failed) == (6, 1)
    assert max(starts[-1] for row, starts in call.started_at.items() if row) < 4.0  # the others go on


@in_virtual_time
async def test_rate_limit_without_a_retry_after_fails_no_row_and_each_rejection_shrinks_the_limit() -> None:
    in_flight = 0

    async def call(row: int) -> int:
        nonlocal in_flight
        if in_flight == 8:
            raise limited(None)
        in_flight += 1
        await asyncio.sleep(1.0)
        in_flight -= 1
        return row

    adaptive = Adaptive(start=32)
    run = run_all(range(200), call, concurrency=adaptive)
    outcomes = await collect(run)
    assert sorted(outcome.result() for outcome in outcomes.values()) == list(range(200))
    assert run.progress.refused > 0
    assert adaptive.limit <= 16


class CappedTransport(FakeTransport):
    """Rejects requests above a number of calls in flight."""

    def __init__(self, most: int, seconds: float) -> None:
        super().__init__()
        self.rejections: list[bool] = []
        self._most = most
        self._seconds = seconds
        self._rng = random.Random(0)

    async def send(self, request: Any, dial: DialContext) -> FakeExchange:
        is_rejected = self.in_use >= self._most
        self.rejections.append(is_rejected)
        after = self._seconds * self._rng.uniform(0.5, 1.5)
        self._answers.append(response(b"{}", status=429) if is_rejected else response(b"{}", after=after))
        return await super().send(request, dial)


@pytest.mark.parametrize("seconds", [0.02, 2.0])
@pytest.mark.parametrize("most", [1, 2, 8])
@in_virtual_time
async def test_few_calls_are_rejected_once_the_hard_limit_of_the_server_is_found(most: int, seconds: float) -> None:
    random.seed(0)  # the backoff of the calls and the rows
    transport = CappedTransport(most, seconds)
    engine = Engine(Runtime(transport, 1000), Settings.from_options({"token": "t"}), Deployment("/serverless"))
    operation: Operation[Any] = Operation(name="x.y", method="POST", path="/x", reply=Any)
    run = run_all(range(1200), lambda row: engine.call(operation, Arguments(b"{}")))
    outcomes = await collect(run)
    assert all(outcome.reply == {} for outcome in outcomes.values())
    assert run.progress.refused == sum(transport.rejections)
    assert sum(transport.rejections[-1000:]) <= 10
    assert run.progress.limit <= most + 1


@pytest.mark.parametrize(
    ("waits", "sends"), [([3600.0], 2), ([3601.0], 1), ([1800.0, 1800.0], 3), ([1800.0, 1801.0], 2)]
)
@in_virtual_time
async def test_waits_of_a_row_are_limited_to_an_hour(waits: list[float], sends: int) -> None:
    call = Calls(_0=[limited(wait) for wait in waits])
    outcomes = await collect(run_all([0], call))
    assert len(call.started_at[0]) == sends
    assert (outcomes[0].error is None) is (sends == len(waits) + 1)


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("options", [{}, {"meta": NOT_SENT}, {"meta": IN_STREAM}], ids=["", "not sent", "in a stream"])
@in_virtual_time
async def test_run_pauses_for_at_most_an_hour(options: dict[str, Any], adaptive: bool) -> None:
    call = Calls(_0=[limited(90_000.0, **options)], _1=[limited(90_000.0, **options)])
    outcomes = await collect(run_all([0, 1], call, concurrency=Adaptive(start=1) if adaptive else 1))
    assert [type(outcome.error) for outcome in outcomes.values()] == [RateLimitError, RateLimitError]
    assert call.started_at == {0: [0.0], 1: [3601.0]}
    assert now() <= 7202.0  # also after the last row


@pytest.mark.parametrize(
    "error",
    [
        limited(5.0, partial=Partial(text="half")),
        no_connection(sent=True),
        no_connection(permanent=True),
        no_connection(draining=True),
        LookupError("mine"),
    ],
    ids=["after content", "perhaps accepted", "permanent", "client is drained", "another error"],
)
@in_virtual_time
async def test_other_errors_fail_the_row_at_once(error: Exception) -> None:
    call = Calls(_0=[error])
    outcomes = await collect(run_all([0], call))
    assert outcomes[0].error is error
    assert call.started_at[0] == [0.0]


@pytest.mark.parametrize("wait", [600.0, None])
@in_virtual_time
async def test_stop_delivers_waiting_rows_with_their_error(wait: float | None) -> None:
    call = Calls(_0=[limited(wait) for _ in range(5)], _1=[limited(wait) for _ in range(5)])
    run = run_all(range(2), call, concurrency=2)
    reading = asyncio.create_task(collect(run))
    await asyncio.sleep(3.0)
    assert run.progress.in_flight == 2
    run.stop()
    outcomes = await reading
    assert now() == 3.0
    assert [type(outcome.error) for outcome in outcomes.values()] == [RateLimitError, RateLimitError]


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("error", [no_connection(), APITimeoutError("no connection", limit="connect", sent=False)])
@in_virtual_time
async def test_outage_of_a_minute_loses_no_row_and_keeps_the_limit(
    error: Exception, adaptive: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def call(row: int) -> int:
        if 3.0 <= now() < 63.0:
            raise error
        await asyncio.sleep(1.0)
        return row

    run = run_all(range(1000), call, concurrency=Adaptive() if adaptive else 8)
    outcomes = await collect(run)
    assert sorted(outcome.result() for outcome in outcomes.values()) == list(range(1000))
    assert (run.progress.limit >= 8, run.progress.refused) == (True, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # of the first row


@in_virtual_time
async def test_server_that_is_down_ends_the_run_after_a_few_rows() -> None:
    attempts: Counter[int] = Counter()

    async def call(row: int) -> None:
        attempts[row] += 1
        raise no_connection()

    with pytest.raises(RejectedError, match="the last with APIConnectionError: could not connect: refused"):
        await collect(run_all(range(1_000_000), call))
    assert len(attempts) <= 4 * 4 + 10  # four times the initial limit, and one for each row that has failed
    assert Counter(attempts.values())[6] >= 10
    assert 60.0 <= now() <= 95.0


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("code", [429, 503])
@in_virtual_time
async def test_server_that_rejects_all_calls_for_minutes_ends_the_run(code: int, adaptive: bool) -> None:
    attempts: Counter[int] = Counter()

    async def call(row: int) -> None:
        attempts[row] += 1
        raise InternalServerError("busy", status_code=code)

    run = run_all(range(1_000_000), call, concurrency=Adaptive() if adaptive else 4)
    with pytest.raises(RejectedError, match=f"the last with InternalServerError: {code} busy"):
        await collect(run)
    assert len(attempts) <= 4 * 4 + 10
    assert Counter(attempts.values())[6] >= 10
    assert 60.0 <= now() <= 1800.0


@pytest.mark.parametrize("error", [limited(None), no_connection()], ids=["rejected", "no connection"])
@in_virtual_time
async def test_rejections_after_a_turn_of_each_run_end_the_run(error: Any) -> None:
    error.partial = Partial(usage=Usage())
    attempts: Counter[int] = Counter()

    async def call(row: int) -> None:
        attempts[row] += 1
        raise error

    with pytest.raises(RejectedError):
        await collect(run_all(range(1000), call, concurrency=1))
    assert attempts == dict.fromkeys(range(10), 1)


@in_virtual_time
async def test_progress_says_how_long_the_run_is_paused() -> None:
    run = run_all(range(3), Calls(_0=[limited(600.0)]), concurrency=1)
    assert run.progress.paused == 0.0
    reading = asyncio.create_task(collect(run))
    await asyncio.sleep(101.0)
    assert run.progress.paused == pytest.approx(500.0)
    await reading
    assert run.progress.paused == 0.0


async def test_bad_certificate_ends_the_run_without_sending_rows_again() -> None:
    attempts: Counter[int] = Counter()

    async def call(row: int) -> None:
        attempts[row] += 1
        raise no_connection(permanent=True)

    with pytest.raises(RejectedError):
        await collect(run_all(range(100), call, concurrency=1))
    assert attempts == dict.fromkeys(range(10), 1)


async def test_restart_of_the_server_between_two_rows_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_FIRST_BACKOFF", 0.0)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(FriendliServer())
        client = await stack.enter_async_context(client_of(server.url, retry=RetryPolicy(initial=0.0)))
        port, sends = int(server.url.rpartition(":")[2]), Counter[int]()

        async def call(row: int) -> str:
            sends[row] += 1
            if row == 3 and sends[row] == 1:
                await server.aclose()
            elif row == 3:
                await stack.enter_async_context(FriendliServer(port=port))
            return (await complete(client)).text

        outcomes = [outcome async for outcome in run_all(range(10), call, concurrency=1)]
    assert [type(outcome.error) for outcome in outcomes] == [type(None)] * 10
    assert sends[3] == 2


@in_virtual_time
async def test_stop_in_an_outage_delivers_the_waiting_rows_and_ends_without_an_error() -> None:
    async def call(row: int) -> None:
        raise no_connection()

    run = run_all(range(100), call, concurrency=20)
    reading = asyncio.create_task(collect(run))
    await asyncio.sleep(3.0)
    run.stop()
    outcomes = await reading
    assert (now(), len(outcomes), {type(outcome.error) for outcome in outcomes.values()}) == (
        3.0,
        80,
        {APIConnectionError},
    )


@in_virtual_time
async def test_run_whose_limit_is_taken_by_another_while_a_row_waits_ends_with_an_error() -> None:
    limit = Adaptive(start=1, max=1)
    reading = asyncio.create_task(collect(run_all([0], Calls(_0=[limited(None)]), concurrency=limit)))
    await asyncio.sleep(1.3)  # the row waits to be sent again
    await Gate(limit).acquire()
    with pytest.raises(ConfigurationError, match="in use by another run"):
        await reading


@in_virtual_time
async def test_row_rejected_after_stop_is_not_sent_again() -> None:
    call = Calls(_0=[limited(600.0)])
    run = run_all(range(10), call, concurrency=1)
    reading = asyncio.create_task(collect(run))
    await asyncio.sleep(0.5)
    run.stop()
    outcomes = await reading
    assert (now(), list(outcomes), call.started_at) == (1.0, [0], {0: [0.0]})


@in_virtual_time
async def test_closing_the_run_ends_waiting_rows() -> None:
    call = Calls(_0=[limited(600.0)])
    run = run_all(range(10), call, concurrency=1)
    reading = asyncio.create_task(collect(run))
    await asyncio.sleep(5.0)
    await run.aclose()
    assert (now(), await reading, call.started_at) == (5.0, {}, {0: [0.0]})


@pytest.mark.parametrize(
    ("stopped", "closed", "ends"),
    [(True, False, True), (True, True, False), (False, True, False), (False, False, False)],
)
@in_virtual_time
async def test_cancelling_the_wait_of_a_row_ends_it_with_its_error_only_in_a_stopped_run(
    stopped: bool, closed: bool, ends: bool
) -> None:
    gate, state = Gate(1), sending.RunState()
    sender = sending.RowSender(Calls(_0=[limited(600.0)]), gate, state)
    await gate.acquire()
    task = asyncio.ensure_future(sender.send(0))
    await asyncio.sleep(5.0)
    state.stopped, state.closed = stopped, closed
    task.cancel()
    [result] = await asyncio.gather(task, return_exceptions=True)
    if ends:
        assert isinstance(result, tuple)
        assert (type(result[1]), result[2]) == (RateLimitError, 1)
    else:
        assert isinstance(result, asyncio.CancelledError)


@in_virtual_time
async def test_waiting_rows_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "friendli_async"):
        await collect(run_all([0], Calls(_0=[limited(61.0)])))
        await collect(run_all([0], Calls(_0=[no_connection()])))
    first, second = caplog.messages
    assert first == "run_all: a rate limit rejected a row, which is sent again in 61.0 s"
    assert second.startswith("run_all: no connection for a row, which is sent again in 0.")


@in_virtual_time
async def test_error_of_a_row_is_released_without_gc() -> None:
    gc.collect()
    gc.disable()
    try:

        class Marked:
            pass

        refs: list[weakref.ref[Marked]] = []

        async def call(row: int) -> int:
            marked = Marked()
            refs.append(weakref.ref(marked))
            raise limited(2000.0)  # two waits would exceed an hour

        outcomes = await collect(run_all([0], call))
        assert len(refs) == 2
        outcomes.clear()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


async def test_no_row_is_lost_when_the_server_names_a_wait_beyond_max_retry_after() -> None:
    retry = RetryPolicy(initial=0.0, max_retry_after=0.05)
    async with FriendliServer() as server, client_of(server.url, retry=retry) as client:
        server.enqueue(status(429, retry_after=0.3), *(text("good") for _ in range(20)))

        async def call(row: int) -> str:
            return (await complete(client)).text

        async with asyncio.timeout(30):
            outcomes = [outcome async for outcome in run_all(range(20), call, concurrency=4)]
        assert Counter(outcome.reply for outcome in outcomes) == {"good": 20}
        assert len(server.requests) == 21
