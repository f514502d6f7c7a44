"""The call loop, over a scripted network and in virtual time."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from support.sockets import client_of, complete, delta, open_stream
from support.virtual import (
    NEVER_ENDS,
    Answer,
    FakeExchange,
    FakeTransport,
    VirtualLoop,
    connected,
    failing,
    hanging,
    in_virtual_time,
    now,
    response,
    run_in_virtual_time,
)

import friendli_async
from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    Attempt,
    ConfigurationError,
    FriendliError,
    RateLimitError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.body.arguments import Arguments
from friendli_async._core.call import Call, Recovery
from friendli_async._core.engine import Engine
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.pacing import on_rejection
from friendli_async._core.protocol import Deployment, Operation
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async._core.work import Work

pytestmark = pytest.mark.compatibility

NO_BACKOFF: Final = RetryPolicy(initial=0.0, max_wait=0.0)
GOOD: Final = b'{"good": true}'
REFUSED: Final = APIConnectionError("could not connect", sent=False)
LOST: Final = APIConnectionError("reset", sent=True)


class Loop:
    """An engine over a scripted network, with one operation."""

    def __init__(
        self,
        *answers: Answer,
        repeatable: bool = True,
        billed: bool = True,
        recover: Recovery | None = None,
        retry: RetryPolicy | None = NO_BACKOFF,
        **settings: Any,
    ) -> None:
        self.transport = FakeTransport(*answers)
        self.runtime = Runtime(self.transport, 10)
        self.settings = Settings.from_options({"token": "t", "retry": retry, "wake": recover is not None, **settings})
        self.engine = Engine(self.runtime, self.settings, Deployment("/serverless"), recover)
        self.operation: Operation[Any] = Operation(
            name="x.y", method="POST", path="/x", reply=Any, repeatable=repeatable, billed=billed
        )

    async def call(self) -> Any:
        return await self.engine.call(self.operation, Arguments(b"{}"))

    async def fails(self, kind: type[FriendliError]) -> Any:
        """Makes a call that must fail, and returns its error."""
        with pytest.raises(kind) as raised:
            await self.call()
        return raised.value

    def client(self) -> AsyncFriendli:
        client = client_of("http://nowhere")
        client._build(self.runtime, self.settings, owner=True)
        return client

    @property
    def sent_at(self) -> list[float]:
        return self.transport.sent_at


def statuses(error: FriendliError) -> list[int | None]:
    assert error.meta is not None
    return [attempt.status for attempt in error.meta.attempts]


# --- success ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_successful_reply_ends_the_call() -> None:
    loop = Loop(response(GOOD, after=2.0))
    assert await loop.call() == {"good": True}
    assert loop.sent_at == [0.0]
    assert loop.transport.exchanges[0].ends == ["finish"]
    assert loop.runtime.calls == set()


# --- statuses --------------------------------------------------------------------------------------------------------

RETRIED: Final = (408, 429, 503)
RETRIED_IF_REPEATABLE: Final = (500, 502, 504)
NOT_RETRIED: Final = (301, 304, 307, 400, 401, 403, 404, 405, 409, 410, 413, 422, 425, 499, 501, 505, 520, 599)


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("status", [*RETRIED, *RETRIED_IF_REPEATABLE, *NOT_RETRIED])
@in_virtual_time
async def test_only_retryable_statuses_are_retried(status: int, repeatable: bool) -> None:
    loop = Loop(response(status=status), response(GOOD), repeatable=repeatable)
    if status in RETRIED or (status in RETRIED_IF_REPEATABLE and repeatable):
        assert await loop.call() == {"good": True}
        assert len(loop.sent_at) == 2
    else:
        error = await loop.fails(APIStatusError)
        assert error.status_code == status
        assert statuses(error) == [status]
    assert loop.runtime.calls == set()
    assert all(exchange.ends for exchange in loop.transport.exchanges)


@pytest.mark.parametrize("attempts", [1, 2, 5, 20])
@in_virtual_time
async def test_attempts_are_limited_by_policy(attempts: int) -> None:
    policy = RetryPolicy(max_attempts=attempts, initial=0.0)
    loop = Loop(*(response(status=503) for _ in range(attempts)), retry=policy)
    assert statuses(await loop.fails(APIStatusError)) == [503] * attempts
    loop = Loop(response(status=503), retry=None)
    assert statuses(await loop.fails(APIStatusError)) == [503]


@in_virtual_time
async def test_concurrent_calls_keep_their_attempts_separate() -> None:
    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        return FakeExchange(status=next(replies))

    replies = iter([503, 429, 500, 503, 502, 429])  # of each attempt in turn, as no wait takes time
    loop = Loop(*[answer] * 6, retry=RetryPolicy(max_attempts=2, initial=0.0))
    errors = await asyncio.gather(*(loop.fails(APIStatusError) for _ in range(3)))
    assert [statuses(error) for error in errors] == [[503, 503], [429, 502], [500, 429]]


@in_virtual_time
async def test_backoff_stays_within_policy_bounds_and_is_recorded() -> None:
    policy = RetryPolicy(max_attempts=6, initial=1.0, multiplier=3.0, max_wait=5.0)
    loop = Loop(*(response(status=503) for _ in range(6)), retry=policy)
    error = await loop.fails(APIStatusError)
    waits = [later - earlier for earlier, later in zip(loop.sent_at, loop.sent_at[1:], strict=False)]
    for wait, bound in zip(waits, (1.0, 3.0, 5.0, 5.0, 5.0), strict=True):
        assert 0 <= wait <= bound
    assert [attempt.wait for attempt in error.meta.attempts] == pytest.approx([*waits, 0.0], abs=1e-5)
    assert sum(waits) > 0


# --- Retry-After -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_retry_after_is_honored_exactly() -> None:
    loop = Loop(response(status=429, retry_after="7"), response(status=503, retry_after="60"), response(GOOD))
    await loop.call()
    assert loop.sent_at == [0.0, 7.0, 67.0]


@in_virtual_time
async def test_retry_after_is_a_lower_bound_with_limited_jitter() -> None:
    loop = Loop(response(status=429, retry_after="7"), response(GOOD), retry=RetryPolicy(initial=0.5))
    await loop.call()
    assert 7.0 <= loop.sent_at[1] <= 7.5


@pytest.mark.parametrize("seconds", ["61", "9" * 21, "1e300"])
@in_virtual_time
async def test_retry_after_longer_than_the_maximum_raises_immediately(seconds: str) -> None:
    loop = Loop(response(status=429, retry_after=seconds))
    error = await loop.fails(RateLimitError)
    assert (error.retry_after, now(), statuses(error)) == (float(seconds), 0.0, [429])


# --- total timeout ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_total_timeout_spans_attempts_and_waits() -> None:
    loop = Loop(response(status=503, retry_after="1", after=4.0), hanging(), timeout=10)
    error = await loop.fails(APITimeoutError)
    assert (error.limit, error.seconds, error.sent, now()) == ("total", 10, True, 10.0)
    assert loop.sent_at == [0.0, 5.0]
    assert statuses(error) == [503, None]
    assert error.meta.timing.total == pytest.approx(10.0)


@pytest.mark.parametrize(("retry_after", "ended"), [("6", 4.0), ("5", 9.0)])
@in_virtual_time
async def test_wait_that_does_not_fit_into_the_rest_of_the_total_timeout_is_not_begun(
    retry_after: str, ended: float
) -> None:
    answers = response(status=503, retry_after=retry_after, after=4.0), response(status=503, retry_after="1")
    error = await Loop(*answers, timeout=10).fails(APIStatusError)
    assert (error.status_code, now()) == (503, ended)


@in_virtual_time
async def test_total_timeout_interrupts_recovery() -> None:
    async def recover(arguments: Arguments, error: APIStatusError) -> bool:
        await asyncio.sleep(NEVER_ENDS)
        return True

    loop = Loop(response(status=404), recover=recover, timeout=10)
    error = await loop.fails(APITimeoutError)
    assert (error.limit, now(), statuses(error)) == ("total", 10.0, [404])


# --- no reply --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeatable", [True, False])
@in_virtual_time
async def test_unsent_request_is_always_retried(repeatable: bool) -> None:
    loop = Loop(failing(REFUSED), failing(REFUSED), response(GOOD), repeatable=repeatable)
    assert await loop.call() == {"good": True}
    loop = Loop(*(failing(REFUSED) for _ in range(3)), repeatable=repeatable)
    error = await loop.fails(APIConnectionError)
    assert (error.sent, statuses(error)) == (False, [None] * 3)


@in_virtual_time
async def test_possibly_accepted_request_is_retried_only_if_repeatable() -> None:
    loop = Loop(failing(LOST), response(GOOD), repeatable=True)
    assert await loop.call() == {"good": True}
    loop = Loop(failing(LOST), repeatable=False)
    error = await loop.fails(APIConnectionError)
    assert (error.sent, statuses(error)) == (True, [None])


@in_virtual_time
async def test_error_is_marked_sent_if_any_attempt_may_have_been_accepted() -> None:
    loop = Loop(failing(LOST), failing(REFUSED), failing(REFUSED))
    assert (await loop.fails(APIConnectionError)).sent is True
    loop = Loop(response(status=500), failing(REFUSED), failing(REFUSED))
    assert (await loop.fails(APIConnectionError)).sent is True
    loop = Loop(response(status=429), failing(REFUSED), failing(REFUSED))
    assert (await loop.fails(APIConnectionError)).sent is False


@in_virtual_time
async def test_token_that_fails_in_a_retry_is_a_configuration_error_only_if_no_attempt_may_have_been_accepted() -> None:
    tokens = iter(["t", "", "t", ""])
    loop = Loop(response(status=500), token=lambda: next(tokens))
    sent = await loop.fails(APIConnectionError)
    assert (sent.sent, statuses(sent)) == (True, [500, None])
    loop = Loop(response(status=429), token=lambda: next(tokens))
    assert statuses(await loop.fails(ConfigurationError)) == [429]


@pytest.mark.parametrize(("repeatable", "billed"), [(True, True), (True, False), (False, False)])
@in_virtual_time
async def test_read_timeout_is_retried_only_if_repeatable_and_not_billed(repeatable: bool, billed: bool) -> None:
    loop = Loop(hanging(), response(GOOD), repeatable=repeatable, billed=billed, timeout=Timeouts(first_event=5))
    if repeatable and not billed:
        assert await loop.call() == {"good": True}
        assert loop.sent_at == [0.0, 5.0]
    else:
        error = await loop.fails(APITimeoutError)
        assert (error.limit, error.sent, now(), len(loop.sent_at)) == ("first_event", True, 5.0, 1)


@pytest.mark.parametrize("repeatable", [True, False])
@in_virtual_time
async def test_connect_timeout_is_always_retried_and_pool_timeout_never(repeatable: bool) -> None:
    limits = Timeouts(connect=5, pool=3)
    loop = Loop(hanging("connect"), response(GOOD), repeatable=repeatable, timeout=limits)
    assert await loop.call() == {"good": True}
    assert loop.sent_at == [0.0, 5.0]
    loop = Loop(hanging("pool"), repeatable=repeatable, timeout=limits)
    error = await loop.fails(APITimeoutError)
    assert (error.limit, error.sent, now(), len(loop.sent_at)) == ("pool", False, 8.0, 1)


@pytest.mark.parametrize(("repeatable", "billed", "retried"), [(True, True, 0), (True, False, 1), (False, False, 0)])
@in_virtual_time
async def test_truncated_reply_is_retried_only_if_repeatable_and_not_billed(
    repeatable: bool, billed: bool, retried: bool
) -> None:
    loop = Loop(response(GOOD[:5], 1.0, LOST), response(GOOD), repeatable=repeatable, billed=billed)
    if retried:
        assert await loop.call() == {"good": True}
    else:
        assert statuses(await loop.fails(APIConnectionError)) == [200]
    assert loop.transport.exchanges[0].ends == ["abort"]


# --- timeouts while the event loop is blocked ------------------------------------------------------------------------


def block(seconds: float, reply: asyncio.Future[None], turns: int) -> None:
    """Blocks the event loop; the reply then takes some turns of it to get from the socket to the call."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.now += seconds

    def turn(left: int) -> None:
        if left:
            loop.call_soon(turn, left - 1)
        else:
            reply.set_result(None)

    turn(turns)


@pytest.mark.parametrize("limits", [Timeouts(first_event=5), Timeouts(total=5)])
@in_virtual_time
async def test_expired_timeout_rechecks_for_a_reply_already_received(limits: Timeouts) -> None:
    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        reply = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1.0, block, 100.0, reply, 4)
        await reply
        return FakeExchange(GOOD)

    loop = Loop(answer, timeout=limits)
    assert await loop.call() == {"good": True}
    assert now() == 101.0


@in_virtual_time
async def test_timeout_fires_if_recheck_finds_no_reply() -> None:
    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        never = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1.0, block, 100.0, never, 10**6)
        await asyncio.shield(never)
        raise AssertionError

    error = await Loop(answer, timeout=Timeouts(first_event=5)).fails(APITimeoutError)
    assert error.limit == "first_event"


@in_virtual_time
async def test_expired_idle_timeout_rechecks_for_data_already_received() -> None:
    loop = Loop(response(delta("a"), 4.0, delta("b", "stop")), timeout=Timeouts(idle=5))
    stream = await open_stream(loop.client())
    running = asyncio.get_running_loop()
    running.call_later(1.0, block, 100.0, running.create_future(), 0)
    assert [chunk.text async for chunk in stream] == ["a", "b"]
    assert stream.outcome == "done"


@in_virtual_time
async def test_idle_stream_raises_idle_timeout() -> None:
    loop = Loop(response(delta("a"), 5.5, delta("b", "stop")), timeout=Timeouts(idle=5))
    stream = await open_stream(loop.client())
    await anext(stream)
    with pytest.raises(APITimeoutError) as raised:
        await anext(stream)
    assert (raised.value.limit, now()) == ("idle", 5.0)


# --- streams ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_shorter_limit_fires_before_the_total_limit() -> None:
    timeouts = Timeouts(first_event=20.0, idle=7.0, total=50.0)
    error = await Loop(hanging(), timeout=timeouts).fails(APITimeoutError)
    assert (error.limit, now()) == ("first_event", 20.0)
    stream = await open_stream(Loop(response(delta("a"), NEVER_ENDS), timeout=timeouts).client())
    with pytest.raises(APITimeoutError) as raised:
        await stream.result()
    assert (raised.value.limit, now()) == ("idle", 27.0)


@in_virtual_time
async def test_body_that_is_passed_on_as_it_arrives_may_pause_for_the_idle_limit_only() -> None:
    class Received:
        async def begin(self, size: int | None) -> None:
            pieces.clear()

        async def write(self, data: bytes) -> None:
            pieces.append(data)

    pieces: list[bytes] = []
    loop = Loop(response(b"a", 6.0, b"b", 6.0, b"c", NEVER_ENDS), timeout=Timeouts(first_event=600.0, idle=10.0))
    with pytest.raises(APITimeoutError) as raised:
        await loop.engine.receive(loop.operation, Arguments(b"{}"), Received())
    assert (raised.value.limit, now(), pieces) == ("idle", 22.0, [b"a", b"b", b"c"])


@in_virtual_time
async def test_exception_that_the_token_callable_raises_at_the_total_limit_is_not_replaced() -> None:
    async def token() -> str:
        try:
            await asyncio.sleep(NEVER_ENDS)
        except asyncio.CancelledError:
            raise LookupError("the vault is sealed") from None
        return "t"

    with pytest.raises(LookupError, match="sealed"):
        await Loop(token=token, timeout=2.0).call()
    assert now() == 2.0


@in_virtual_time
async def test_timeout_while_the_first_event_is_read_keeps_its_class() -> None:
    loop = Loop(response(APITimeoutError(limit="idle", seconds=1.0)), retry=None)
    with pytest.raises(APITimeoutError):
        await open_stream(loop.client())


@in_virtual_time
async def test_cause_of_a_failed_attempt_has_no_request_id() -> None:
    error = await Loop(response(b"busy", status=400, x_request_id="r1")).fails(APIStatusError)
    assert str(error) == "400 busy (request id r1)"
    assert [attempt.cause for attempt in error.meta.attempts] == ["BadRequestError: 400 busy"]


@pytest.mark.parametrize(
    ("status", "tunnelled", "is_ascribed"), [(407, False, True), (407, True, False), (400, False, False)]
)
@in_virtual_time
async def test_only_status_407_is_ascribed_to_the_proxy_unless_it_came_through_a_tunnel(
    status: int, tunnelled: bool, is_ascribed: bool
) -> None:
    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        dial.proxy, dial.tunnelled = "http://proxy:1", tunnelled
        return FakeExchange(status=status)

    error = await Loop(answer).fails(APIStatusError)
    assert ("(from the proxy http://proxy:1)" in str(error)) is is_ascribed


@in_virtual_time
async def test_retry_that_a_bulk_run_delays_beyond_the_total_timeout_is_not_waited_for() -> None:
    on_rejection.set(lambda error, wait: 60.0)
    error = await Loop(response(status=429), timeout=10).fails(RateLimitError)
    assert (statuses(error), now()) == ([429], 0.0)


@in_virtual_time
async def test_stream_is_retried_only_before_its_first_event() -> None:
    good = response(delta("a", "stop"))
    overloaded = b'data: {"error": {"message": "overloaded", "code": 503}}\n\n'
    for bad in (response(status=503), response(LOST), response(overloaded), response(b""), failing(REFUSED)):
        loop = Loop(bad, good)
        assert [chunk.text async for chunk in open_stream(loop.client())] == ["a"]
        assert len(loop.sent_at) == 2
    loop = Loop(response(delta("a"), LOST), good)
    stream = await open_stream(loop.client())
    assert (await anext(stream)).text == "a"
    with pytest.raises(StreamInterruptedError):
        await anext(stream)
    assert len(loop.sent_at) == 1


# --- close, drain, interrupt, cancel ---------------------------------------------------------------------------------


async def start_call(loop: Loop, seconds: float) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(loop.call())
    await asyncio.sleep(seconds)
    return task


@in_virtual_time
async def test_closing_the_client_ends_a_call_during_backoff() -> None:
    loop = Loop(response(status=429, retry_after="30"), response(GOOD))
    task = await start_call(loop, 3.0)
    await loop.runtime.close()
    with pytest.raises(APIConnectionError, match="the client was closed") as raised:
        await task
    assert (now(), loop.sent_at, statuses(raised.value), raised.value.sent) == (3.0, [0.0], [429], False)
    with pytest.raises(ConfigurationError, match="closed"):
        await loop.call()
    assert loop.runtime.calls == set()


@in_virtual_time
async def test_closing_the_client_ends_an_attempt_without_retry() -> None:
    loop = Loop(hanging(), response(GOOD))
    task = await start_call(loop, 3.0)
    await loop.runtime.close()
    with pytest.raises(APIConnectionError, match="the client was closed") as raised:
        await task
    assert (now(), len(loop.sent_at), raised.value.sent) == (3.0, 1, True)


@in_virtual_time
async def test_drain_lets_a_call_in_backoff_complete() -> None:
    loop = Loop(response(status=429, retry_after="30"), response(GOOD, after=1.0))
    task = await start_call(loop, 3.0)
    drain = asyncio.ensure_future(loop.runtime.drain(None))
    await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="draining"):
        await loop.call()
    assert await task == {"good": True}
    assert await drain == 0
    assert now() == 31.0


@in_virtual_time
async def test_expired_drain_aborts_calls_in_backoff() -> None:
    loop = Loop(response(status=429, retry_after="30"))
    task = await start_call(loop, 3.0)
    assert await loop.runtime.drain(5.0) == 1
    with pytest.raises(APIConnectionError, match="drained"):
        await task
    assert (now(), loop.sent_at) == (8.0, [0.0])


@in_virtual_time
async def test_concurrent_drains_both_finish() -> None:
    loop = Loop(response(GOOD, after=4.0))
    task = await start_call(loop, 1.0)
    interrupted = await asyncio.gather(*(loop.runtime.drain(timeout) for timeout in (None, None, 1.0)))
    assert interrupted == [0, 0, 1]
    with pytest.raises(APIConnectionError):
        await task
    loop = Loop(response(GOOD, after=4.0))
    task = await start_call(loop, 1.0)
    assert await asyncio.gather(*(loop.runtime.drain(None) for _ in range(2))) == [0, 0]
    assert await task == {"good": True}


@in_virtual_time
async def test_call_that_a_finished_work_has_left_behind_is_not_a_part_of_it_any_more() -> None:
    async def call_later() -> object:
        await asyncio.sleep(2.0)
        return await loop.call()

    loop = Loop(response(GOOD, after=4.0), response(GOOD))
    with loop.runtime.as_one_call():
        await loop.call()
        left_behind = asyncio.ensure_future(call_later())
    assert await left_behind == {"good": True}
    assert loop.runtime.works == set()
    assert await loop.runtime.drain(None) == 0
    with pytest.raises(ConfigurationError, match="draining"):
        await call_later()


def test_drain_does_not_count_work_whose_event_loop_was_closed() -> None:
    runtime, work = Runtime(FakeTransport(), 10), Work()
    loop = asyncio.new_event_loop()
    work.begin(runtime.works, loop)
    work.is_between_calls = True
    loop.close()
    assert run_in_virtual_time(runtime.drain(0.0)) == 0


@pytest.mark.parametrize("answer", [hanging(), response(status=503, retry_after="30"), response(b"{", NEVER_ENDS)])
@in_virtual_time
async def test_interrupt_ends_attempt_or_backoff_immediately(answer: Answer) -> None:
    loop = Loop(answer, response(GOOD))
    call: Call[Any] = Call(loop.engine, loop.operation, Arguments(b"{}"), "json")
    task = asyncio.ensure_future(call.run(call.read_reply))
    await asyncio.sleep(2.0)
    call.interrupt(StreamInterruptedError("stop"))
    call.interrupt(StreamInterruptedError("too late"))
    with pytest.raises(StreamInterruptedError, match="stop"):
        await task
    assert (now(), len(loop.sent_at)) == (2.0, 1)
    assert all(exchange.ends for exchange in loop.transport.exchanges)


@pytest.mark.parametrize("turns", range(12))
@in_virtual_time
async def test_interrupt_in_any_turn_around_a_timeout_or_a_change_of_phase_ends_the_attempt_then(turns: int) -> None:
    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        await asyncio.sleep(20.0)
        for _ in range(6):  # as for a redirect: the limit gets shorter
            dial.clock.begin_phase("connect")
            await asyncio.sleep(0)
        await asyncio.sleep(NEVER_ENDS)
        raise AssertionError("no limit")

    async def answer_that_ends_slowly(dial: DialContext) -> FakeExchange:
        try:
            return await hanging()(dial)
        finally:
            for _ in range(3):
                await asyncio.sleep(0)

    for first, first_event in ((answer, 600.0), (hanging(), 20.0), (answer_that_ends_slowly, 20.0)):
        loop = Loop(first, timeout=Timeouts(first_event=first_event, connect=5.0))
        call: Call[Any] = Call(loop.engine, loop.operation, Arguments(b"{}"), "json")
        began = now()
        task = asyncio.ensure_future(call.run(call.read_reply))
        await asyncio.sleep(20.0)
        for _ in range(turns):
            await asyncio.sleep(0)
        call.interrupt(APIConnectionError("the client was closed"))
        with pytest.raises(APIConnectionError):  # never a CancelledError: nobody has cancelled the task
            await task
        assert (task.cancelling(), now() - began) == (0, 20.0)


@in_virtual_time
async def test_closing_the_last_branch_in_on_retry_prevents_the_next_attempt() -> None:
    def close_the_other(attempt: Attempt) -> None:
        branches.clear()

    policy = RetryPolicy(initial=0.0, on_retry=close_the_other)
    loop = Loop(response(status=503, after=2.0), response(delta("a", "stop")), retry=policy)
    branches = list(open_stream(loop.client()).tee(2))
    reading = asyncio.ensure_future(anext(branches[0]))
    await asyncio.sleep(1.0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.sleep(5.0)
    assert (branches, loop.sent_at, loop.runtime.calls) == ([], [0.0], set())


@pytest.mark.parametrize(("how", "status"), [("interrupted", None), ("closed", 503)])
@in_virtual_time
async def test_attempt_that_ends_with_the_client_is_neither_recovered_nor_announced_as_retried(
    how: str, status: int | None
) -> None:
    retries: list[Attempt] = []
    policy = RetryPolicy(initial=0.0, on_retry=retries.append)
    recovery = FakeRecovery(True)
    loop = Loop(response(status=503, after=2.0), response(GOOD), retry=policy, recover=recovery)
    call: Call[Any] = Call(loop.engine, loop.operation, Arguments(b"{}"), "json")
    task = asyncio.ensure_future(call.run(call.read_reply))
    await asyncio.sleep(1.0)
    if how == "interrupted":
        call.interrupt(APIConnectionError("the client was drained"))
    else:
        loop.transport.closed = True
    with pytest.raises(FriendliError) as raised:
        await task
    assert (statuses(raised.value), retries, recovery.seen) == ([status], [], [])


@in_virtual_time
async def test_events_that_arrive_with_the_end_of_the_body_in_the_turn_of_aclose_are_discarded() -> None:
    class Ended(FakeExchange):
        def abort_with(self, error: FriendliError) -> None:
            """Like the real one at the end of the body."""

    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        return Ended(delta("a"), 5.0, delta("b", "stop"))

    def close() -> None:
        with pytest.raises(StopIteration):
            stream.aclose().send(None)

    stream = await open_stream(Loop(answer).client())
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(5.0, close)
    with pytest.raises(StreamInterruptedError):
        await waiting
    assert [event async for event in stream] == []
    assert stream.outcome == "cancelled"


@pytest.mark.parametrize("answer", [hanging(), response(status=503, retry_after="30"), response(b"{", NEVER_ENDS)])
@in_virtual_time
async def test_cancellation_propagates_and_cleans_up(answer: Answer) -> None:
    loop = Loop(answer, response(GOOD))
    task = await start_call(loop, 2.0)
    task.cancel("mine")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (now(), len(loop.sent_at), loop.runtime.calls) == (2.0, 1, set())
    assert all(exchange.ends for exchange in loop.transport.exchanges)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("bug"), KeyboardInterrupt()])
@in_virtual_time
async def test_other_exceptions_propagate(error: BaseException) -> None:
    async def answer(dial: DialContext) -> FakeExchange:
        raise error

    with pytest.raises(type(error)) as caught:
        await Loop(response(status=503), answer, response(GOOD)).call()
    assert caught.value is error


@in_virtual_time
async def test_timeout_of_the_caller_raises_plain_timeout_error() -> None:
    loop = Loop(hanging(), timeout=Timeouts(first_event=5))
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(2.0):
            await loop.call()
    assert not isinstance(raised.value, FriendliError)
    assert now() == 2.0


# --- recovery --------------------------------------------------------------------------------------------------------


class FakeRecovery:
    """A `recover` callback with scripted results, each after a delay."""

    def __init__(self, *answers: bool, seconds: float = 0.0) -> None:
        self.seen: list[int | None] = []
        self._answers = list(answers)
        self._seconds = seconds

    async def __call__(self, arguments: Arguments, error: APIStatusError) -> bool:
        self.seen.append(error.status_code)
        await asyncio.sleep(self._seconds)
        return self._answers.pop(0)


@pytest.mark.parametrize("retry", [None, NO_BACKOFF])
@in_virtual_time
async def test_recovered_call_is_retried_regardless_of_policy(retry: RetryPolicy | None) -> None:
    recovery = FakeRecovery(True, seconds=3.0)
    loop = Loop(response(status=404), response(GOOD), recover=recovery, retry=retry)
    assert await loop.call() == {"good": True}
    assert (recovery.seen, loop.sent_at) == ([404], [0.0, 3.0])


@in_virtual_time
async def test_recovery_is_also_tried_after_a_later_attempt() -> None:
    recovery = FakeRecovery(False, True)
    loop = Loop(response(status=429), response(status=404), response(GOOD), recover=recovery)
    assert await loop.call() == {"good": True}
    assert recovery.seen == [429, 404]


@in_virtual_time
async def test_call_is_recovered_only_once() -> None:
    recovery = FakeRecovery(True)
    loop = Loop(response(status=404), response(status=404), recover=recovery)
    error = await loop.fails(APIStatusError)
    assert (recovery.seen, statuses(error)) == ([404], [404, 404])


@in_virtual_time
async def test_recovery_uses_no_attempt_and_its_duration_is_recorded() -> None:
    recovery = FakeRecovery(True, seconds=2.0)
    loop = Loop(*(response(status=503) for _ in range(4)), recover=recovery)
    error = await loop.fails(APIStatusError)
    assert statuses(error) == [503] * 4
    assert error.meta.attempts[0].wait == 2.0


@in_virtual_time
async def test_recovery_is_not_tried_without_a_status() -> None:
    recovery = FakeRecovery()
    loop = Loop(failing(REFUSED), failing(LOST), response(GOOD), recover=recovery)
    assert await loop.call() == {"good": True}
    assert recovery.seen == []


@in_virtual_time
async def test_interrupt_while_a_recovery_ends_prevents_the_next_attempt() -> None:
    async def recover(arguments: Arguments, error: APIStatusError) -> bool:
        call.interrupt(APIConnectionError("the client was drained"))
        return True

    loop = Loop(response(status=404), response(GOOD), recover=recover)
    call: Call[Any] = Call(loop.engine, loop.operation, Arguments(b"{}"), "json")
    with pytest.raises(APIConnectionError, match="drained") as raised:
        await call.run(call.read_reply)
    assert (statuses(raised.value), len(loop.sent_at)) == ([404], 1)


@in_virtual_time
async def test_error_of_a_call_that_the_recovery_makes_keeps_its_meta() -> None:
    async def recover(arguments: Arguments, error: APIStatusError) -> bool:
        await Loop(response(status=409)).call()
        return True

    error = await Loop(response(status=404), recover=recover).fails(APIStatusError)
    assert statuses(error) == [409]


# --- on_retry --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_on_retry_is_called_before_each_wait() -> None:
    calls: list[tuple[float, Attempt]] = []
    policy = RetryPolicy(initial=0.0, on_retry=lambda attempt: calls.append((now(), attempt)))
    busy = response(b"slow down", status=429, retry_after="7")
    loop = Loop(busy, failing(REFUSED, after=1.0), response(status=400), retry=policy)
    error = await loop.fails(APIStatusError)
    assert [moment for moment, _ in calls] == [0.0, 8.0]
    assert [(attempt.number, attempt.status, attempt.error, attempt.wait) for _, attempt in calls] == [
        (1, 429, "RateLimitError", 7.0),
        (2, None, "APIConnectionError", 0.0),
    ]
    assert (calls[0][1].cause, calls[1][1].elapsed) == ("RateLimitError: 429 slow down", 1.0)
    assert [attempt for _, attempt in calls] == list(error.meta.attempts[:2])


@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError])
def test_exception_in_on_retry_is_logged_and_retry_continues(
    caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    def fail(attempt: Attempt) -> None:
        raise kind("no good callback")

    async def main() -> None:
        loop = Loop(response(status=503), response(GOOD), retry=RetryPolicy(initial=0.0, on_retry=fail))
        assert await loop.call() == {"good": True}
        assert len(loop.sent_at) == 2

    with caplog.at_level(logging.ERROR, logger="friendli_async"):
        run_in_virtual_time(main())
    assert "on_retry" in caplog.text
    assert "no good callback" in caplog.text


# --- logging ---------------------------------------------------------------------------------------------------------


def test_attempts_are_logged_with_method_path_status_and_duration(caplog: pytest.LogCaptureFixture) -> None:
    answers = failing(REFUSED), response(status=503, retry_after="7", after=1.0), response(GOOD, after=2.0)
    with caplog.at_level(logging.DEBUG, logger="friendli_async"):
        run_in_virtual_time(Loop(*answers).call())
    records = [record for record in caplog.records if record.name == "friendli_async"]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("DEBUG", "POST /serverless/x: no reply, APIConnectionError: could not connect in 0.000 s"),
        ("INFO", "POST /serverless/x: retrying in 0.00 s after APIConnectionError: could not connect"),
        ("DEBUG", "POST /serverless/x: 503, InternalServerError in 1.000 s"),
        ("WARNING", "POST /serverless/x: rate limit: a 503 asks to wait for 7 s"),
        ("INFO", "POST /serverless/x: retrying in 7.00 s after 503"),
        ("DEBUG", "POST /serverless/x: 200 in 2.000 s"),
    ]


# --- call depth ------------------------------------------------------------------------------------------------------

PACKAGE: Final = str(Path(friendli_async.__file__).parent)


@pytest.mark.parametrize("at_connector", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
async def test_at_most_nine_library_frames_precede_aiohttp(
    streamed: bool, at_connector: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    async def reached(*args: Any, **kwargs: Any) -> None:
        frame = sys._getframe()
        while (caller := frame.f_back) is not None:
            frame = caller
            if frame.f_code.co_filename.startswith(PACKAGE):
                found.append(frame.f_code.co_qualname)
        raise aiohttp.ClientConnectionError

    if at_connector:
        monkeypatch.setattr(aiohttp.TCPConnector, "connect", reached)
    else:
        monkeypatch.setattr(aiohttp.ClientSession, "_request", reached)
    async with client_of("http://nowhere") as client:
        with pytest.raises(APIConnectionError):
            await (open_stream(client).__aenter__() if streamed else complete(client))
    assert 1 <= len(found) <= 9, found
    assert found[-1] == ("EventStream.__aenter__" if streamed else "Chat.complete")
