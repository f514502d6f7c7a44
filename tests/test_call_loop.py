"""The call loop, by itself: a network that is a script, and time that passes at once."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from support.sockets import ask, client_of, complete, delta
from support.virtual import (
    FOREVER,
    Answer,
    FakeExchange,
    FakeTransport,
    VirtualLoop,
    connected,
    failing,
    hanging,
    now,
    replying,
    virtually,
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
from friendli_async._core.call import Call, Engine, Recovery
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.protocol import Deployment, Operation
from friendli_async._core.runtime import ChangeSignal, Runtime
from friendli_async._core.settings import Settings

pytestmark = pytest.mark.compatibility

AT_ONCE: Final = RetryPolicy(initial=0.0, max_wait=0.0)
GOOD: Final = b'{"good": true}'
REFUSED: Final = APIConnectionError("could not connect", sent=False)
LOST: Final = APIConnectionError("reset", sent=True)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        virtually(test(*args, **kwargs))

    return run


class Loop:
    """An engine over a scripted network, and one operation."""

    def __init__(
        self,
        *answers: Answer,
        repeatable: bool = True,
        billed: bool = True,
        recover: Recovery | None = None,
        retry: RetryPolicy | None = AT_ONCE,
        **settings: Any,
    ) -> None:
        self.transport = FakeTransport(*answers)
        self.runtime = Runtime(self.transport, ChangeSignal(), 10)
        self.settings = Settings.from_options({"token": "t", "retry": retry, **settings})
        self.engine = Engine(self.runtime, self.settings, Deployment("/serverless"), recover)
        self.operation: Operation[Any] = Operation(
            name="x.y", method="POST", path="/x", reply=Any, repeatable=repeatable, billed=billed
        )

    async def call(self) -> Any:
        return await self.engine.call(self.operation, Arguments(b"{}"))

    async def fails(self, kind: type[FriendliError]) -> Any:
        """Makes a call that fails, and returns its error."""
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


# --- good ------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_good_reply_ends_the_call() -> None:
    loop = Loop(replying(GOOD, after=2.0))
    assert await loop.call() == {"good": True}
    assert loop.sent_at == [0.0]
    assert loop.transport.exchanges[0].ends == ["finish"]
    assert loop.runtime.calls == set()


# --- statuses --------------------------------------------------------------------------------------------------------

ALWAYS: Final = (408, 429, 503)
WHERE_REPEATABLE: Final = (500, 502, 504)
NEVER: Final = (301, 304, 307, 400, 401, 403, 404, 405, 409, 410, 413, 422, 425, 499, 501, 505, 520, 599)


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("status", [*ALWAYS, *WHERE_REPEATABLE, *NEVER])
@in_virtual_time
async def test_what_statuses_are_retried(status: int, repeatable: bool) -> None:
    loop = Loop(replying(status=status), replying(GOOD), repeatable=repeatable)
    if status in ALWAYS or (status in WHERE_REPEATABLE and repeatable):
        assert await loop.call() == {"good": True}
        assert len(loop.sent_at) == 2
    else:
        error = await loop.fails(APIStatusError)
        assert error.status_code == status
        assert statuses(error) == [status]
    assert loop.runtime.calls == set()
    assert all(exchange.ends for exchange in loop.transport.exchanges)


@in_virtual_time
async def test_there_are_as_many_attempts_as_the_policy_says() -> None:
    loop = Loop(*(replying(status=503) for _ in range(9)), retry=RetryPolicy(max_attempts=5, initial=0.0))
    assert statuses(await loop.fails(APIStatusError)) == [503] * 5
    loop = Loop(replying(status=503), retry=None)
    assert statuses(await loop.fails(APIStatusError)) == [503]


@in_virtual_time
async def test_waits_grow_within_the_bounds_of_the_policy_and_are_noted() -> None:
    policy = RetryPolicy(max_attempts=6, initial=1.0, multiplier=3.0, max_wait=5.0)
    loop = Loop(*(replying(status=503) for _ in range(6)), retry=policy)
    error = await loop.fails(APIStatusError)
    waits = [later - earlier for earlier, later in zip(loop.sent_at, loop.sent_at[1:], strict=False)]
    for wait, bound in zip(waits, (1.0, 3.0, 5.0, 5.0, 5.0), strict=True):
        assert 0 <= wait <= bound
    assert [attempt.wait for attempt in error.meta.attempts] == pytest.approx([*waits, 0.0], abs=1e-5)
    assert sum(waits) > 0


# --- Retry-After -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_retry_after_is_obeyed_to_the_second() -> None:
    loop = Loop(replying(status=429, retry_after="7"), replying(status=503, retry_after="60"), replying(GOOD))
    await loop.call()
    assert loop.sent_at == [0.0, 7.0, 67.0]


@in_virtual_time
async def test_retry_after_is_never_undercut_and_not_exceeded_by_much() -> None:
    loop = Loop(replying(status=429, retry_after="7"), replying(GOOD), retry=RetryPolicy(initial=0.5))
    await loop.call()
    assert 7.0 <= loop.sent_at[1] <= 7.5


@in_virtual_time
async def test_a_retry_after_that_is_too_long_raises_at_once() -> None:
    loop = Loop(replying(status=429, retry_after="61"))
    error = await loop.fails(RateLimitError)
    assert (error.retry_after, now(), statuses(error)) == (61.0, 0.0, [429])


@in_virtual_time
async def test_a_wait_that_the_total_does_not_allow_is_not_begun() -> None:
    loop = Loop(replying(status=429, retry_after="7"), timeout=5)
    error = await loop.fails(RateLimitError)
    assert (error.retry_after, now(), statuses(error)) == (7.0, 0.0, [429])


# --- total -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_total_spans_attempts_and_waits() -> None:
    loop = Loop(replying(status=503, retry_after="1", after=4.0), hanging(), timeout=10)
    error = await loop.fails(APITimeoutError)
    assert (error.limit, error.seconds, error.sent, now()) == ("total", 10, True, 10.0)
    assert loop.sent_at == [0.0, 5.0]
    assert statuses(error) == [503, None]
    assert error.meta.timing.total == pytest.approx(10.0)


@in_virtual_time
async def test_the_total_ends_the_wait_for_what_recovers() -> None:
    async def recover(arguments: Arguments, error: APIStatusError) -> bool:
        await asyncio.sleep(FOREVER)
        return True

    loop = Loop(replying(status=404), recover=recover, timeout=10)
    error = await loop.fails(APITimeoutError)
    assert (error.limit, now(), statuses(error)) == ("total", 10.0, [404])


# --- no reply --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeatable", [True, False])
@in_virtual_time
async def test_what_was_never_sent_is_always_repeated(repeatable: bool) -> None:
    loop = Loop(failing(REFUSED), failing(REFUSED), replying(GOOD), repeatable=repeatable)
    assert await loop.call() == {"good": True}
    loop = Loop(*(failing(REFUSED) for _ in range(3)), repeatable=repeatable)
    error = await loop.fails(APIConnectionError)
    assert (error.sent, statuses(error)) == (False, [None] * 3)


@in_virtual_time
async def test_what_may_have_been_accepted_is_repeated_where_that_does_no_harm() -> None:
    loop = Loop(failing(LOST), replying(GOOD), repeatable=True)
    assert await loop.call() == {"good": True}
    loop = Loop(failing(LOST), repeatable=False)
    error = await loop.fails(APIConnectionError)
    assert (error.sent, statuses(error)) == (True, [None])


@in_virtual_time
async def test_an_error_says_sent_where_an_earlier_attempt_may_have_been_accepted() -> None:
    loop = Loop(failing(LOST), failing(REFUSED), failing(REFUSED))
    assert (await loop.fails(APIConnectionError)).sent is True
    loop = Loop(replying(status=500), failing(REFUSED), failing(REFUSED))
    assert (await loop.fails(APIConnectionError)).sent is True
    loop = Loop(replying(status=429), failing(REFUSED), failing(REFUSED))
    assert (await loop.fails(APIConnectionError)).sent is False


@pytest.mark.parametrize(("repeatable", "billed"), [(True, True), (True, False), (False, False)])
@in_virtual_time
async def test_a_read_timeout_is_repeated_only_where_nobody_pays(repeatable: bool, billed: bool) -> None:
    loop = Loop(hanging(), replying(GOOD), repeatable=repeatable, billed=billed, timeout=Timeouts(first_event=5))
    if repeatable and not billed:
        assert await loop.call() == {"good": True}
        assert loop.sent_at == [0.0, 5.0]
    else:
        error = await loop.fails(APITimeoutError)
        assert (error.limit, error.sent, now(), len(loop.sent_at)) == ("first_event", True, 5.0, 1)


@pytest.mark.parametrize("repeatable", [True, False])
@in_virtual_time
async def test_a_connect_timeout_is_always_repeated_and_a_pool_timeout_never(repeatable: bool) -> None:
    limits = Timeouts(connect=5, pool=3)
    loop = Loop(hanging("connect"), replying(GOOD), repeatable=repeatable, timeout=limits)
    assert await loop.call() == {"good": True}
    assert loop.sent_at == [0.0, 5.0]
    loop = Loop(hanging("pool"), repeatable=repeatable, timeout=limits)
    error = await loop.fails(APITimeoutError)
    assert (error.limit, error.sent, now(), len(loop.sent_at)) == ("pool", False, 8.0, 1)


@pytest.mark.parametrize(("repeatable", "billed", "again"), [(True, True, 0), (True, False, 1), (False, False, 0)])
@in_virtual_time
async def test_a_plain_reply_that_began_and_broke_off_is_repeated_only_where_nobody_pays(
    repeatable: bool, billed: bool, again: bool
) -> None:
    loop = Loop(replying(GOOD[:5], 1.0, LOST), replying(GOOD), repeatable=repeatable, billed=billed)
    if again:
        assert await loop.call() == {"good": True}
    else:
        assert statuses(await loop.fails(APIConnectionError)) == [200]
    assert loop.transport.exchanges[0].ends == ["abort"]


# --- limits under a blocked loop -------------------------------------------------------------------------------------


def block(seconds: float, reply: asyncio.Future[None], turns: int) -> None:
    """The program blocks the loop; afterwards the reply takes some turns from the socket to the call."""
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
async def test_a_limit_that_fires_while_the_reply_lies_there_looks_again(limits: Timeouts) -> None:
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
async def test_a_limit_that_looked_again_in_vain_fires() -> None:
    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        never = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1.0, block, 100.0, never, 10**6)
        await asyncio.shield(never)
        raise AssertionError

    error = await Loop(answer, timeout=Timeouts(first_event=5)).fails(APITimeoutError)
    assert error.limit == "first_event"


@in_virtual_time
async def test_an_idle_stream_looks_again_too() -> None:
    loop = Loop(replying(delta("a"), 4.0, delta("b", "stop")), timeout=Timeouts(idle=5))
    stream = await ask(loop.client())
    running = asyncio.get_running_loop()
    running.call_later(1.0, block, 100.0, running.create_future(), 0)
    assert [chunk.text async for chunk in stream] == ["a", "b"]
    assert stream.outcome == "done"


@in_virtual_time
async def test_an_idle_stream_fails_by_its_limit() -> None:
    loop = Loop(replying(delta("a"), 5.5, delta("b", "stop")), timeout=Timeouts(idle=5))
    stream = await ask(loop.client())
    await anext(stream)
    with pytest.raises(APITimeoutError) as raised:
        await anext(stream)
    assert (raised.value.limit, now()) == ("idle", 5.0)


# --- streams ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_stream_is_retried_until_its_first_event_and_never_after() -> None:
    good = replying(delta("a", "stop"))
    overloaded = b'data: {"error": {"message": "overloaded", "code": 503}}\n\n'
    for bad in (replying(status=503), replying(LOST), replying(overloaded), replying(b""), failing(REFUSED)):
        loop = Loop(bad, good)
        assert [chunk.text async for chunk in ask(loop.client())] == ["a"]
        assert len(loop.sent_at) == 2
    loop = Loop(replying(delta("a"), LOST), good)
    stream = await ask(loop.client())
    assert (await anext(stream)).text == "a"
    with pytest.raises(StreamInterruptedError):
        await anext(stream)
    assert len(loop.sent_at) == 1


# --- ends from outside -----------------------------------------------------------------------------------------------


async def later(loop: Loop, seconds: float) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(loop.call())
    await asyncio.sleep(seconds)
    return task


@in_virtual_time
async def test_a_client_that_is_closed_while_a_call_waits_ends_the_call() -> None:
    loop = Loop(replying(status=429, retry_after="30"), replying(GOOD))
    task = await later(loop, 3.0)
    await loop.runtime.close()
    with pytest.raises(APIConnectionError, match="the client was closed") as raised:
        await task
    assert (now(), loop.sent_at, statuses(raised.value), raised.value.sent) == (3.0, [0.0], [429], False)
    with pytest.raises(ConfigurationError, match="closed"):
        await loop.call()
    assert loop.runtime.calls == set()


@in_virtual_time
async def test_a_client_that_is_closed_in_an_attempt_ends_the_call_without_another() -> None:
    loop = Loop(hanging(), replying(GOOD))
    task = await later(loop, 3.0)
    await loop.runtime.close()
    with pytest.raises(APIConnectionError, match="the client was closed") as raised:
        await task
    assert (now(), len(loop.sent_at), raised.value.sent) == (3.0, 1, True)


@in_virtual_time
async def test_a_call_goes_on_between_its_attempts_while_the_client_is_drained() -> None:
    loop = Loop(replying(status=429, retry_after="30"), replying(GOOD, after=1.0))
    task = await later(loop, 3.0)
    drain = asyncio.ensure_future(loop.runtime.drain(None))
    await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="draining"):
        await loop.call()
    assert await task == {"good": True}
    assert await drain == 0
    assert now() == 31.0


@in_virtual_time
async def test_a_drain_whose_time_is_over_cuts_the_calls_that_wait() -> None:
    loop = Loop(replying(status=429, retry_after="30"))
    task = await later(loop, 3.0)
    assert await loop.runtime.drain(5.0) == 1
    with pytest.raises(APIConnectionError, match="drained"):
        await task
    assert (now(), loop.sent_at) == (8.0, [0.0])


@in_virtual_time
async def test_two_drains_at_once_both_end() -> None:
    loop = Loop(replying(GOOD, after=4.0))
    task = await later(loop, 1.0)
    assert await asyncio.gather(loop.runtime.drain(None), loop.runtime.drain(None), loop.runtime.drain(1.0)) == [
        0,
        0,
        1,
    ]
    with pytest.raises(APIConnectionError):
        await task
    loop = Loop(replying(GOOD, after=4.0))
    task = await later(loop, 1.0)
    assert await asyncio.gather(loop.runtime.drain(None), loop.runtime.drain(None)) == [0, 0]
    assert await task == {"good": True}


@in_virtual_time
async def test_an_interrupt_before_the_call_lets_nothing_be_sent() -> None:
    loop = Loop(replying(GOOD))
    call: Call[Any] = Call(loop.engine, loop.operation, Arguments(b"{}"), "json")
    call.interrupt(StreamInterruptedError("stop"))
    with pytest.raises(StreamInterruptedError, match="stop"):
        await call.run(call.read_reply)
    assert loop.sent_at == []
    assert loop.runtime.calls == set()


@pytest.mark.parametrize("answer", [hanging(), replying(status=503, retry_after="30"), replying(b"{", FOREVER)])
@in_virtual_time
async def test_an_interrupt_ends_an_attempt_or_a_wait_at_once(answer: Answer) -> None:
    loop = Loop(answer, replying(GOOD))
    call: Call[Any] = Call(loop.engine, loop.operation, Arguments(b"{}"), "json")
    task = asyncio.ensure_future(call.run(call.read_reply))
    await asyncio.sleep(2.0)
    call.interrupt(StreamInterruptedError("stop"))
    call.interrupt(StreamInterruptedError("too late"))
    with pytest.raises(StreamInterruptedError, match="stop"):
        await task
    assert (now(), len(loop.sent_at)) == (2.0, 1)
    assert all(exchange.ends for exchange in loop.transport.exchanges)


@pytest.mark.parametrize("answer", [hanging(), replying(status=503, retry_after="30"), replying(b"{", FOREVER)])
@in_virtual_time
async def test_a_cancellation_goes_through_and_leaves_nothing(answer: Answer) -> None:
    loop = Loop(answer, replying(GOOD))
    task = await later(loop, 2.0)
    task.cancel("mine")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (now(), len(loop.sent_at), loop.runtime.calls) == (2.0, 1, set())
    assert all(exchange.ends for exchange in loop.transport.exchanges)


@in_virtual_time
async def test_a_deadline_of_the_callers_is_the_callers() -> None:
    loop = Loop(hanging(), timeout=Timeouts(first_event=5))
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(2.0):
            await loop.call()
    assert not isinstance(raised.value, FriendliError)
    assert now() == 2.0


# --- mending ---------------------------------------------------------------------------------------------------------


class Mender:
    """A `recover` that answers from a list, and takes its time."""

    def __init__(self, *answers: bool, seconds: float = 0.0) -> None:
        self.asked: list[int | None] = []
        self._answers = list(answers)
        self._seconds = seconds

    async def __call__(self, arguments: Arguments, error: APIStatusError) -> bool:
        self.asked.append(error.status_code)
        await asyncio.sleep(self._seconds)
        return self._answers.pop(0)


@pytest.mark.parametrize("retry", [None, AT_ONCE])
@in_virtual_time
async def test_what_was_mended_is_tried_again_whatever_the_policy(retry: RetryPolicy | None) -> None:
    mender = Mender(True, seconds=3.0)
    loop = Loop(replying(status=404), replying(GOOD), recover=mender, retry=retry)
    assert await loop.call() == {"good": True}
    assert (mender.asked, loop.sent_at) == ([404], [0.0, 3.0])


@in_virtual_time
async def test_mending_is_tried_after_a_later_attempt_too() -> None:
    mender = Mender(False, True)
    loop = Loop(replying(status=429), replying(status=404), replying(GOOD), recover=mender)
    assert await loop.call() == {"good": True}
    assert mender.asked == [429, 404]


@in_virtual_time
async def test_a_call_is_mended_once() -> None:
    mender = Mender(True)
    loop = Loop(replying(status=404), replying(status=404), recover=mender)
    error = await loop.fails(APIStatusError)
    assert (mender.asked, statuses(error)) == ([404], [404, 404])


@in_virtual_time
async def test_mending_costs_no_attempt_of_the_policy_and_its_time_is_noted() -> None:
    mender = Mender(True, seconds=2.0)
    loop = Loop(*(replying(status=503) for _ in range(4)), recover=mender)
    error = await loop.fails(APIStatusError)
    assert statuses(error) == [503] * 4
    assert error.meta.attempts[0].wait == 2.0


@in_virtual_time
async def test_what_never_got_a_status_is_not_mended() -> None:
    mender = Mender()
    loop = Loop(failing(REFUSED), failing(LOST), replying(GOOD), recover=mender)
    assert await loop.call() == {"good": True}
    assert mender.asked == []


# --- on_retry --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_on_retry_is_told_each_wait_before_it() -> None:
    told: list[tuple[float, Attempt]] = []
    policy = RetryPolicy(initial=0.0, on_retry=lambda attempt: told.append((now(), attempt)))
    loop = Loop(replying(status=429, retry_after="7"), failing(REFUSED, after=1.0), replying(GOOD), retry=policy)
    await loop.call()
    assert [moment for moment, _ in told] == [0.0, 8.0]
    assert [(attempt.number, attempt.status, attempt.error, attempt.wait) for _, attempt in told] == [
        (1, 429, "RateLimitError", 7.0),
        (2, None, "APIConnectionError", 0.0),
    ]
    assert told[1][1].elapsed == 1.0


def test_an_on_retry_that_raises_is_logged_and_the_retry_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def fail(attempt: Attempt) -> None:
        raise LookupError("no good callback")

    async def main() -> None:
        loop = Loop(replying(status=503), replying(GOOD), retry=RetryPolicy(initial=0.0, on_retry=fail))
        assert await loop.call() == {"good": True}

    with caplog.at_level(logging.ERROR, logger="friendli_async"):
        virtually(main())
    assert "no good callback" in caplog.text


# --- the way to aiohttp ----------------------------------------------------------------------------------------------

OURS: Final = str(Path(friendli_async.__file__).parent)


@pytest.mark.parametrize("past_the_session", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
async def test_at_most_nine_frames_of_ours_lead_to_aiohttp(
    streamed: bool, past_the_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    async def reached(*args: Any, **kwargs: Any) -> None:
        frame = sys._getframe()
        while (behind := frame.f_back) is not None:
            frame = behind
            if frame.f_code.co_filename.startswith(OURS):
                found.append(frame.f_code.co_qualname)
        raise aiohttp.ClientConnectionError

    if past_the_session:
        monkeypatch.setattr(aiohttp.TCPConnector, "connect", reached)
    else:
        monkeypatch.setattr(aiohttp.ClientSession, "_request", reached)
    async with client_of("http://nowhere") as client:
        with pytest.raises(APIConnectionError):
            await (ask(client).__aenter__() if streamed else complete(client))
    assert 1 <= len(found) <= 9, found
    assert found[-1] == ("EventStream.__aenter__" if streamed else "Chat.complete")
