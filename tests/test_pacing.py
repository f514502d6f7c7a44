"""Pacing: rate-limit holds and retry budget of a client, in virtual time over a scripted transport."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.clock import Clock, run_loop_iterations, wait_until
from support.recorder import Recorder
from support.virtual import Answer, FakeTransport, in_virtual_time, now, response, run_in_virtual_time
from tenacity import RetryCallState

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    ConfigurationError,
    FriendliError,
    InternalServerError,
    Pacing,
    RateLimitError,
    RetryPolicy,
)
from friendli_async._core import retry
from friendli_async._core.body.arguments import Arguments
from friendli_async._core.engine import Engine
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.pacing import Hold, LimitScope, Pace
from friendli_async._core.protocol import Deployment, Operation
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async.testing import FriendliServer, json_body, status, text

GOOD: Final = b'{"good": true}'
NO_BACKOFF: Final = RetryPolicy(initial=0.0, max_wait=0.0)
OPERATION: Final[Operation[Any]] = Operation(name="x.y", method="POST", path="/x", reply=Any)


class ScriptedTransport(FakeTransport):
    """Sends the given answers, then only successful ones."""

    async def send(self, request: Any, dial: DialContext) -> Any:
        if not self._answers:
            self._answers.append(response(GOOD))
        return await super().send(request, dial)


class PacedClient:
    """Makes calls through the runtime of a client."""

    def __init__(self, *answers: Answer, **settings: Any) -> None:
        self.transport = ScriptedTransport(*answers)
        self.runtime = Runtime(self.transport, 10)
        self.settings = Settings.from_options({"token": "t", "retry": NO_BACKOFF, **settings})

    async def call(self, model: str | None = "m", deployment: str = "/serverless", **options: Any) -> Any:
        engine = Engine(self.runtime, self.settings.with_changes(options), Deployment(deployment))
        return await engine.call(OPERATION, Arguments(b"{}", model=model))

    async def call_expecting(self, kind: type[FriendliError], **options: Any) -> Any:
        with pytest.raises(kind) as raised:
            await self.call(**options)
        return raised.value

    async def make_rejected_call(self, seconds: float = 10.0, code: int = 429, **options: Any) -> None:
        """Makes one call that the server rejects, without retries."""
        self.transport._answers.insert(0, response(status=code, retry_after=str(seconds)))
        await self.call_expecting(APIStatusError, retry=RetryPolicy(max_attempts=1), **options)
        self.transport.sent_at.clear()

    @property
    def sent_at(self) -> list[float]:
        return self.transport.sent_at


# --- Retry-After holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 503])
@in_virtual_time
async def test_retry_after_delays_new_calls(code: int) -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0, code)
    await asyncio.sleep(3.0)
    await asyncio.gather(*(client.call() for _ in range(5)))
    assert client.sent_at == [10.0] * 5


@in_virtual_time
async def test_retry_after_of_another_status_delays_nothing() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0, 500)
    await client.call()
    assert client.sent_at == [0.0]


@pytest.mark.parametrize(
    "other",
    [{"model": "n"}, {"model": None}, {"deployment": "/dedicated"}, {"server_url": "https://other.test"}],
    ids=["model", "no model", "deployment", "server"],
)
@in_virtual_time
async def test_calls_in_another_scope_are_not_delayed(other: dict[str, Any]) -> None:
    client = PacedClient()
    await client.make_rejected_call()
    await client.call(**other)
    assert client.sent_at == [0.0]


class UnhashableToken:
    """A token callback that cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]  # makes it unhashable

    def __call__(self) -> str:
        return "v"

    def token(self) -> str:
        return "v"


UNHASHABLE: Final = UnhashableToken()


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ({}, {"team": "b"}, False),
        ({"team": "a"}, {"team": "b"}, False),
        ({"team": "a"}, {"team": "a"}, True),
        ({}, {"token": "u"}, False),
        ({}, {"token": "Bearer t"}, True),
        ({"team": "a"}, {"team": "a", "token": "u"}, False),
        ({}, {"headers": {"X-Friendli-Team": "b"}}, False),
        ({"team": "b"}, {"headers": {"x-friendli-team": "b"}}, True),
        ({}, {"headers": {"authorization": "Bearer u"}}, False),
        ({"token": "u"}, {"headers": {"Authorization": "Bearer u"}}, True),
        ({"token": lambda: "t"}, {"token": lambda: "t"}, False),
        ({"token": UNHASHABLE}, {"token": UNHASHABLE}, True),
        ({"token": UNHASHABLE.token}, {"token": UNHASHABLE.token}, True),
        ({"token": UNHASHABLE}, {"token": UnhashableToken()}, False),
    ],
)
@in_virtual_time
async def test_only_calls_with_the_same_team_and_token_are_delayed(
    one: dict[str, Any], other: dict[str, Any], shared: bool
) -> None:
    client = PacedClient()
    await client.make_rejected_call(**one)
    await client.call(**other)
    assert client.sent_at == [10.0 if shared else 0.0]
    await client.call(**one)
    assert client.sent_at[-1] == 10.0


async def test_team_of_a_tool_assisted_call_has_its_own_hold() -> None:
    async with (
        FriendliServer() as server,
        AsyncFriendli(server.token, server_url=server.url, retry=None, timeout=30) as client,
    ):
        server.enqueue(status(429, retry_after=3600), text("good"))
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        ask: Any = client.serverless.tool_assisted_chat_completion
        with pytest.raises(RateLimitError):
            await ask(tool_assisted_completion_request_body=body, x_friendli_team="a")
        assert await ask(tool_assisted_completion_request_body=body, x_friendli_team="b")
        with pytest.raises(RateLimitError, match="not sent"):
            await ask(tool_assisted_completion_request_body=body, x_friendli_team="a")


@in_virtual_time
async def test_recorded_holds_do_not_contain_the_token() -> None:
    client = PacedClient()
    await client.make_rejected_call(token="flp_secret", headers={"x": "y"})
    await client.make_rejected_call(headers={"Authorization": "Bearer flp_secret"})
    assert client.runtime.pace.holds
    for scope in client.runtime.pace.holds:
        assert "flp_secret" not in f"{scope} {scope!r}"


@in_virtual_time
async def test_calls_without_a_model_share_the_hold_of_their_deployment() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0, model=None)
    await client.call(model=None)
    assert client.sent_at == [10.0]


@in_virtual_time
async def test_copies_of_a_client_share_holds() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0, headers={"x": "y"})
    await client.call(timeout=60)
    assert client.sent_at == [10.0]


@pytest.mark.parametrize("pacing", [None, Pacing(None)], ids=["None", "Pacing(None)"])
@in_virtual_time
async def test_disabled_pacing_neither_applies_nor_records_holds(pacing: Pacing | None) -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0)
    await client.call(pacing=pacing)
    assert client.sent_at == [0.0]
    client = PacedClient(pacing=pacing)
    await client.make_rejected_call(10.0)
    await client.call(pacing=Pacing())
    assert client.sent_at == [0.0]


@in_virtual_time
async def test_delayed_calls_are_spread_by_jitter() -> None:
    client = PacedClient(retry=RetryPolicy(initial=0.5))
    await client.make_rejected_call(10.0)
    await asyncio.gather(*(client.call() for _ in range(50)))
    assert all(10.0 <= at <= 10.5 for at in client.sent_at)
    assert len(set(client.sent_at)) > 25


@in_virtual_time
async def test_jitter_after_a_hold_is_capped_by_max_wait() -> None:
    client = PacedClient(retry=RetryPolicy(initial=5.0, max_wait=0.5))
    await client.make_rejected_call(10.0)
    await asyncio.gather(*(client.call() for _ in range(50)))
    assert all(10.0 <= at <= 10.5 for at in client.sent_at)


@in_virtual_time
async def test_jitter_after_a_hold_takes_at_most_half_of_the_time_left() -> None:
    client = PacedClient(retry=RetryPolicy(initial=30.0))
    await client.make_rejected_call(10.0)
    await asyncio.gather(*(client.call(timeout=12) for _ in range(50)))
    assert all(10.0 <= at <= 11.0 for at in client.sent_at)


@in_virtual_time
async def test_calls_fail_at_once_while_the_server_names_a_wait_beyond_max_retry_after() -> None:
    client = PacedClient()
    await client.make_rejected_call(3600.0)
    for at in (0.0, 10.0, 59.0):
        await asyncio.sleep(at - now())
        error = await client.call_expecting(RateLimitError)
        assert (error.retry_after, now(), error.meta.attempts) == (3600.0 - at, at, ())
        assert str(error).startswith(f"429 not sent: a rate limit asks to wait for {3600 - at:.1f} s more")
    assert client.sent_at == []


@pytest.mark.parametrize("waits", [("2", "10"), ("10", "2")])
@in_virtual_time
async def test_longest_of_several_holds_counts(waits: tuple[str, str]) -> None:
    client = PacedClient(*(response(status=429, retry_after=wait, after=1.0) for wait in waits))
    once = RetryPolicy(max_attempts=1)
    await asyncio.gather(*(client.call_expecting(RateLimitError, retry=once) for _ in waits))
    client.sent_at.clear()
    await client.call()
    assert client.sent_at == [11.0]


@in_virtual_time
async def test_server_is_asked_again_after_max_retry_after() -> None:
    client = PacedClient()
    await client.make_rejected_call(3600.0)
    await asyncio.sleep(60.0)
    await client.make_rejected_call(1800.0)
    assert (await client.call_expecting(RateLimitError)).retry_after == 1800.0
    await asyncio.sleep(60.0)
    await asyncio.gather(client.call(), client.call())
    assert client.sent_at == [120.0, 120.0]


@in_virtual_time
async def test_call_waits_once_the_rest_of_a_long_retry_after_fits_and_then_for_all_of_it() -> None:
    client = PacedClient()
    await client.make_rejected_call(70.0)
    assert (await client.call_expecting(RateLimitError)).retry_after == 70.0
    await asyncio.sleep(15.0)
    await client.call()
    assert client.sent_at == [70.0]


@in_virtual_time
async def test_call_waits_as_long_as_its_own_max_retry_after() -> None:
    client = PacedClient()
    await client.make_rejected_call(100.0)
    await client.call(retry=RetryPolicy(initial=0.0, max_retry_after=100))
    assert client.sent_at == [100.0]


@given(st.floats(0.1, 300), st.lists(st.floats(0, 400), min_size=1, max_size=20), st.floats(0.1, 100))
@in_virtual_time
async def test_no_call_waits_longer_than_max_retry_after(seconds: float, starts: list[float], longest: float) -> None:
    client = PacedClient(retry=RetryPolicy(initial=0.0, max_retry_after=longest))
    client.transport._answers.append(response(status=429, retry_after=str(seconds)))
    once = RetryPolicy(max_attempts=1, max_retry_after=longest)
    await client.call_expecting(RateLimitError, retry=once)
    loop = asyncio.get_running_loop()

    async def call(at: float) -> tuple[float, float, RateLimitError | None]:
        await asyncio.sleep(at)
        began, error = loop.time(), None
        try:
            await client.call()
        except RateLimitError as failure:
            error = failure
        return began, loop.time() - began, error

    for began, waited, error in await asyncio.gather(*map(call, starts)):
        if error is None:
            assert waited <= longest + 1e-6
        else:
            assert (waited, began < longest) == (0.0, True)
            assert error.retry_after == pytest.approx(seconds - began)


@in_virtual_time
async def test_hold_counts_as_queued_time() -> None:
    client = PacedClient(response(status=400))
    await client.make_rejected_call(10.0)
    client.transport._answers.append(response(status=400))
    error = await client.call_expecting(APIStatusError)
    assert error.status_code == 400
    assert error.meta.timing.queued == pytest.approx(10.0)
    assert error.meta.timing.total == pytest.approx(10.0)


@in_virtual_time
async def test_unusable_token_after_a_hold_has_meta_of_the_wait() -> None:
    tokens = iter(["t", "", ""])
    client = PacedClient(token=lambda: next(tokens))
    await client.make_rejected_call(10.0)
    error = await client.call_expecting(ConfigurationError)
    assert error.meta is not None
    assert error.meta.attempts == ()
    assert error.meta.timing.queued == pytest.approx(10.0)
    error = await client.call_expecting(ConfigurationError)
    assert error.meta is None, "it did not wait"
    assert client.sent_at == []


# --- what shows of a hold --------------------------------------------------------------------------------------------


@in_virtual_time
async def test_gauge_counts_the_calls_that_a_hold_pauses() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0)
    client.transport._answers.extend(response(GOOD, after=5.0) for _ in range(4))
    calls = [asyncio.create_task(client.call()) for _ in range(3)]
    other = asyncio.create_task(client.call(model="n"))
    await asyncio.sleep(1.0)
    assert (client.runtime.gauges().held, client.runtime.gauges().calls_in_flight) == (3, 4)
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    assert client.runtime.gauges().held == 2
    await asyncio.sleep(10.0)
    assert (client.runtime.gauges().held, client.runtime.gauges().calls_in_flight) == (0, 2)
    await asyncio.gather(other, *calls[1:])


@in_virtual_time
async def test_observers_learn_of_a_hold_when_it_starts() -> None:
    client, seen = PacedClient(), Recorder()
    await client.make_rejected_call(10.0, 503)
    task = asyncio.create_task(client.call(observers=[seen]))
    await asyncio.sleep(1.0)
    assert seen.reported == ["call", "held 10 s, 503"]
    await task
    assert seen.reported == ["call", "held 10 s, 503", "attempt 1", "200 ok", "done"]


@in_virtual_time
async def test_call_that_cannot_wait_is_not_reported_as_held() -> None:
    client, seen = PacedClient(), Recorder()
    await client.make_rejected_call(3600.0)
    await client.call_expecting(RateLimitError, observers=[seen])
    assert seen.reported == ["call", "failed RateLimitError"]


@in_virtual_time
async def test_hold_is_logged_once_per_call(caplog: pytest.LogCaptureFixture) -> None:
    client = PacedClient(token="flp_secret")
    await client.make_rejected_call(10.0)
    (scope,) = client.runtime.pace.holds
    with caplog.at_level(logging.INFO, "friendli_async"):
        task = asyncio.create_task(client.call())
        await asyncio.sleep(9.0)
        client.runtime.pace.holds[scope] = Hold(now() + 10.0, 10.0, 10.0, 429, "busy")
        await task
    assert client.sent_at == [19.0]
    held = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert held == ["POST /serverless/x: rate limit: waiting 10.00 s after another call's 429"]


@in_virtual_time
async def test_call_that_a_hold_keeps_from_being_sent_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    client = PacedClient(token="flp_secret")
    await client.make_rejected_call(120.0)
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "friendli_async"):
        await client.call_expecting(RateLimitError)
        await client.call_expecting(RateLimitError, retry=RetryPolicy(max_retry_after=600), timeout=5)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"POST /serverless/x: rate limit: not sent, 120.00 s more after another call's 429 exceed {limit}")
        for limit in ("max_retry_after", "total")
    ]


@pytest.mark.parametrize(("seconds", "lines"), [("4", 0), ("60", 2), ("3600", 1)])
@in_virtual_time
async def test_long_hold_is_logged_once_as_a_warning(
    caplog: pytest.LogCaptureFixture, seconds: str, lines: int
) -> None:
    client = PacedClient(*[response(status=429, retry_after=seconds)] * 12)
    with caplog.at_level(logging.WARNING, "friendli_async"):
        await asyncio.gather(
            *(client.call_expecting(RateLimitError, retry=RetryPolicy(max_attempts=2)) for _ in range(6))
        )
    assert caplog.messages == [f"POST /serverless/x: rate limit: a 429 asks to wait for {seconds} s"] * lines


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, "max_retry_after"),
        ({"timeout": 40, "retry": RetryPolicy(max_retry_after=90)}, "total"),
        ({"retry": RetryPolicy(max_attempts=1)}, None),
    ],
    ids=["max_retry_after", "total", "one attempt"],
)
@in_virtual_time
async def test_error_says_that_its_retry_after_is_too_long(options: dict[str, Any], limit: str | None) -> None:
    client = PacedClient(response(status=429, retry_after="90"))
    error = await client.call_expecting(RateLimitError, **options)
    said = f"; not retried: the server asks to wait for 90.0 s, longer than {limit} allows"
    assert str(error) == f"{error.message}{said if limit else ''}"


# --- calls that cannot wait ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"timeout": 5}, "total"),
        ({"retry": RetryPolicy(max_retry_after=9)}, "max_retry_after"),
        ({"timeout": 5, "retry": RetryPolicy(max_retry_after=9)}, "max_retry_after"),
    ],
    ids=["total", "max_retry_after", "both"],
)
@pytest.mark.parametrize(("code", "kind"), [(429, RateLimitError), (503, InternalServerError)])
@in_virtual_time
async def test_call_that_cannot_wait_raises_the_servers_error_immediately(
    options: dict[str, Any], bound: str, code: int, kind: type[APIStatusError]
) -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0, code)
    error = await client.call_expecting(kind, **options)
    assert (error.status_code, error.retry_after, now(), client.sent_at) == (code, 10.0, 0.0, [])
    assert bound in str(error)
    assert error.meta.attempts == ()
    assert client.runtime.calls == set()


@in_virtual_time
async def test_successive_holds_last_as_long_as_all_attempts_could_wait() -> None:
    client = PacedClient(retry=RetryPolicy(max_attempts=2, initial=0.0, max_retry_after=30))
    await client.make_rejected_call()
    (scope,) = client.runtime.pace.holds

    async def refresh() -> None:
        while True:
            client.runtime.pace.holds[scope] = Hold(now() + 10.0, 10.0, 10.0, 429, "busy")
            await asyncio.sleep(9.0)

    refreshing = asyncio.create_task(refresh())
    await asyncio.sleep(0)
    error = await client.call_expecting(RateLimitError)
    assert 50.0 <= now() <= 60.0
    assert error.meta.timing.queued == pytest.approx(now())
    assert f"after {now():.1f} s of waiting, longer than max_attempts times max_retry_after allows" in str(error)
    assert client.sent_at == []
    refreshing.cancel()


@in_virtual_time
async def test_total_timeout_includes_the_hold() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0)
    client.transport._answers.append(response(GOOD, after=100.0))
    error = await client.call_expecting(APITimeoutError, timeout=12)
    assert (error.limit, now(), client.sent_at) == ("total", 12.0, [10.0])


# --- cancelling and closing ------------------------------------------------------------------------------------------


@in_virtual_time
async def test_delayed_call_can_be_cancelled() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0)
    task = asyncio.create_task(client.call())
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (now(), client.sent_at, client.runtime.calls) == (1.0, [], set())


@pytest.mark.parametrize("end", [Runtime.close, lambda runtime: runtime.drain(0.5)], ids=["close", "drain"])
@in_virtual_time
async def test_closing_the_client_aborts_delayed_calls(end: Callable[[Runtime], Awaitable[Any]]) -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0)
    task = asyncio.create_task(client.call())
    await asyncio.sleep(1.0)
    await end(client.runtime)
    with pytest.raises(APIConnectionError, match="the client was") as raised:
        await task
    assert not raised.value.sent
    assert (now() <= 1.5, client.sent_at) == (True, [])


@in_virtual_time
async def test_drain_waits_for_delayed_calls() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0)
    task = asyncio.create_task(client.call())
    await asyncio.sleep(1.0)
    assert await client.runtime.drain(60) == 0
    assert (await task, client.sent_at) == ({"good": True}, [10.0])


# --- properties ------------------------------------------------------------------------------------------------------


@given(st.floats(0.5, 59), st.lists(st.floats(0, 70), min_size=1, max_size=20), st.floats(0, 1))
@example(2.0, [64.9, 0.7, 0.2, 28.4], 0.0)  # two calls wake up the least float before the end of the hold
def test_no_new_call_is_sent_before_the_hold_ends(seconds: float, starts: list[float], initial: float) -> None:
    async def main() -> list[float]:
        client = PacedClient(retry=RetryPolicy(initial=initial))
        await client.make_rejected_call(seconds)

        async def call(at: float) -> None:
            await asyncio.sleep(at)
            await client.call()

        await asyncio.gather(*map(call, starts))
        return client.sent_at

    sent_at = run_in_virtual_time(main())
    assert len(sent_at) == len(starts)
    assert min(sent_at) >= round(seconds, 6)


def test_expired_holds_are_removed_on_the_next_rejection() -> None:
    pace, busy = Pace(), RateLimitError("busy", status_code=429, retry_after=1.0)
    for number in range(1000):
        pace.start_hold(LimitScope("http://x", f"model-{number}"), busy, RetryPolicy(), number * 2.0)
    assert len(pace.holds) == 1


def test_hold_is_not_extended_by_a_loop_with_another_clock() -> None:
    pace, busy = Pace(), RateLimitError("busy", status_code=429, retry_after=5.0)
    pace.start_hold(LimitScope("http://x", "m"), busy, RetryPolicy(), 1e9)
    hold = pace.active_hold(LimitScope("http://x", "m"), 0.0)
    assert hold is not None
    assert hold.remaining(0.0) == 5.0


def test_shorter_retry_after_does_not_shorten_a_longer_hold() -> None:
    pace = Pace()
    for seconds in (10.0, 1.0):
        error = RateLimitError("busy", status_code=429, retry_after=seconds)
        pace.start_hold(LimitScope("http://x", "m"), error, RetryPolicy(), 0.0)
    assert pace.active_hold(LimitScope("http://x", "m"), 9.0) is not None


# --- retry budget ----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_exhausted_budget_stops_retries_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "friendli_async")
    failing = [response(status=503) for _ in range(20)]
    client = PacedClient(*failing, pacing=Pacing(retry_budget=3))
    causes = []
    for _ in range(3):
        error = await client.call_expecting(InternalServerError)
        causes.append((len(error.meta.attempts), error.meta.attempts[-1].cause))
    assert [attempts for attempts, _ in causes] == [3, 2, 1]
    assert "retry budget" not in causes[0][1]
    assert all(cause.endswith("; the retry budget is exhausted") for _, cause in causes[1:])
    budget = [message for message in caplog.messages if "budget" in message]
    assert budget == ["POST /serverless/x: not retried after 503: the retry budget is exhausted"] * 2


@in_virtual_time
async def test_ten_successes_restore_one_retry() -> None:
    client = PacedClient(response(status=503), pacing=Pacing(retry_budget=1))
    await client.call()  # one retry and one success: the budget is 0.1
    for number in range(9):
        client.transport._answers.append(response(status=503))
        error = await client.call_expecting(InternalServerError)
        assert len(error.meta.attempts) == 1, number
        await client.call()
    client.transport._answers.append(response(status=503))
    assert await client.call() == {"good": True}


@in_virtual_time
async def test_successes_do_not_fill_the_budget_beyond_its_size() -> None:
    client = PacedClient(pacing=Pacing(retry_budget=1))
    for _ in range(100):
        await client.call()
    client.transport._answers.extend(response(status=503) for _ in range(3))
    error = await client.call_expecting(InternalServerError)
    assert len(error.meta.attempts) == 2


@pytest.mark.parametrize("pacing", [None, Pacing(None)], ids=["None", "Pacing(None)"])
@in_virtual_time
async def test_successes_without_pacing_do_not_refund_the_budget(pacing: Pacing | None) -> None:
    client = PacedClient(response(status=503), pacing=Pacing(retry_budget=1))
    await client.call()  # a retry, and a success: 0.1
    for _ in range(20):
        await client.call(pacing=pacing)
    client.transport._answers.append(response(status=503))
    assert len((await client.call_expecting(InternalServerError)).meta.attempts) == 1


@pytest.mark.parametrize("pacing", [None, Pacing(retry_budget=None)], ids=["off", "no budget"])
@in_virtual_time
async def test_every_call_retries_without_a_budget(pacing: Pacing | None) -> None:
    client = PacedClient(*(response(status=503) for _ in range(600)), pacing=pacing)
    for _ in range(200):
        assert len((await client.call_expecting(InternalServerError)).meta.attempts) == 3


def test_invalid_pacing_is_rejected_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"Pacing\.retry_budget"):
        Pacing(retry_budget=0)
    with pytest.raises(ConfigurationError, match=r"Pacing\.obey"):
        Pacing("never")  # type: ignore[arg-type]  # deliberately invalid
    with pytest.raises(ConfigurationError, match="pacing must be Pacing or None"):
        AsyncFriendli("t", pacing=5)  # type: ignore[arg-type]  # deliberately invalid


# --- reset headers of a 429 ------------------------------------------------------------------------------------------


@in_virtual_time
async def test_429_without_retry_after_waits_for_reset_of_exhausted_limit() -> None:
    headers: dict[str, Any] = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "7s"}
    headers |= {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "50s"}
    client = PacedClient(response(status=429, **headers))
    await client.call()
    assert client.sent_at == [0.0, 7.0]


@in_virtual_time
async def test_reset_is_bounded_and_retry_after_takes_precedence() -> None:
    client = PacedClient(response(status=429, x_ratelimit_reset="3600"))
    error = await client.call_expecting(RateLimitError)
    assert (error.retry_after, now(), error.meta.rate_limit.reset_requests) == (3600.0, 0.0, 3600.0)
    client = PacedClient(response(status=429, retry_after="2", x_ratelimit_reset="9"))
    await client.call()
    assert client.sent_at == [0.0, 2.0]


@in_virtual_time
async def test_reset_of_a_limit_that_is_not_exhausted_is_ignored() -> None:
    limit = response(status=429, x_ratelimit_remaining_requests="3", x_ratelimit_reset_requests="50s")
    client = PacedClient(limit)
    await client.call()
    assert client.sent_at == [0.0, 0.0]


@in_virtual_time
async def test_reset_with_another_status_is_ignored() -> None:
    client = PacedClient(response(status=503, x_ratelimit_reset="50"))
    await client.call()
    assert client.sent_at == [0.0, 0.0]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_retry_state_is_released_without_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    refs: list[weakref.ref[Any]] = []

    class TrackedState(RetryCallState):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            refs.append(weakref.ref(self))

    monkeypatch.setattr(retry, "RetryCallState", TrackedState)
    gc.collect()
    gc.disable()
    try:
        busy = RateLimitError("busy", status_code=429)
        assert retry.wait_after(busy, RetryPolicy(max_attempts=2), 1, None) is not None
        assert retry.wait_after(busy, RetryPolicy(max_attempts=2), 2, None) is None
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


@in_virtual_time
async def test_error_of_a_delayed_call_is_released_without_gc() -> None:
    client = PacedClient()
    await client.make_rejected_call(10.0)
    gc.collect()
    gc.disable()
    try:

        class Marked:
            pass

        async def call() -> weakref.ref[Marked]:
            marked = Marked()
            with suppress(RateLimitError):
                await client.call(timeout=5)
            return weakref.ref(marked)

        assert (await call())() is None
    finally:
        gc.enable()


# --- real sockets ----------------------------------------------------------------------------------------------------


async def test_calls_wait_for_the_retry_after_of_another_call(clock: Clock) -> None:
    async with FriendliServer() as server, AsyncFriendli(server.token, server_url=server.url) as client:
        server.enqueue(status(429, retry_after=20), text("first"), text("second"), text("third"))
        chat = client.serverless.chat
        messages: Any = [{"role": "user", "content": "hi"}]
        first = asyncio.create_task(chat.complete(model="m", messages=messages))
        await server.wait_for_requests(1)
        await wait_until(lambda: bool(client._runtime.pace.holds))
        others = [asyncio.create_task(chat.complete(model="m", messages=messages)) for _ in range(2)]
        await run_loop_iterations()
        clock.advance(25)
        replies = await asyncio.gather(first, *others)
        assert {reply.text for reply in replies} == {"first", "second", "third"}
        waits = [request.started_at - server.requests[0].started_at for request in server.requests[1:]]
        assert len(waits) == 3
        assert min(waits) >= 20
        assert all(reply.meta.timing.queued >= 20 for reply in replies[1:])


def test_event_loops_of_other_threads_share_holds() -> None:
    async def ask() -> float:
        reply = await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "a"}])
        return reply.meta.timing.queued

    async def ask_later() -> float:
        loop: Any = asyncio.get_running_loop()
        loop.time = clock = Clock(loop)
        call = asyncio.create_task(ask())
        await run_loop_iterations()
        assert len(server.requests) == 1
        clock.advance(25)
        return await call

    def in_thread(main: Coroutine[Any, Any, float]) -> float:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, main).result()

    with FriendliServer() as server:
        client = AsyncFriendli(server.token, server_url=server.url, retry=RetryPolicy(max_attempts=1))
        server.enqueue(status(429, retry_after=20), text("good"))
        with pytest.raises(RateLimitError):
            in_thread(ask())
        assert in_thread(ask_later()) == pytest.approx(25)
        asyncio.run(client.aclose())


async def test_replies_and_errors_have_rate_limit() -> None:
    headers = {"x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0"}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    async with FriendliServer() as server, AsyncFriendli(server.token, server_url=server.url) as client:
        server.enqueue(json_body({"choices": [choice]}, headers=headers))
        server.enqueue(status(429, retry_after=60, headers=headers))
        call = client.with_options(retry=None).serverless.chat.complete
        reply = await call(model="m", messages=[{"role": "user", "content": "hi"}])
        limit = reply.meta.rate_limit
        assert limit is not None
        assert (limit.limit_requests, limit.remaining_requests) == (1, 0)
        with pytest.raises(RateLimitError) as raised:
            await call(model="m", messages=[{"role": "user", "content": "hi"}])
        assert raised.value.meta is not None
        assert raised.value.meta.rate_limit is not None
        assert raised.value.meta.rate_limit.remaining_requests == 0
        assert raised.value.retry_after == 60.0
        reset = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "90s"}
        server.enqueue(status(429, headers=reset))
        with pytest.raises(RateLimitError) as raised:
            await call(model="n", messages=[{"role": "user", "content": "hi"}])
        assert raised.value.retry_after == 90.0
