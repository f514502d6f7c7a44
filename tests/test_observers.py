"""Observers: what they are told of a call, in which order, however it ends; and what they are never told."""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec
import pytest
from support.clock import Clock, turns, until
from support.recorder import Recorder
from support.sockets import MESSAGES, QUICK, ask, client_of, complete, nothing_left, read, within

from friendli_async import (
    APIConnectionError,
    AsyncFriendli,
    AttemptEnded,
    BadRequestError,
    CallContent,
    CallEnded,
    CallEvent,
    CallStarted,
    ChatStream,
    ConfigurationError,
    Connected,
    FirstEvent,
    FriendliError,
    InternalServerError,
    Observer,
    RateLimitError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
    error_data,
    finish,
    head,
    json_body,
    raw,
    script,
    stall,
    status,
    text,
    usage,
)
from friendli_async.testing import drop as connection_drop

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("garbage_is_collected")]

OPENED: Final = ["call", "attempt 1", "connected", "first event", "200 good"]
OVERLOADED: Final = {"message": "overloaded", "type": "overloaded_error", "code": 503}


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


@pytest.fixture
def client_options(seen: Recorder) -> dict[str, Any]:
    return {"observers": [seen], "retry": QUICK}


# --- plain calls -----------------------------------------------------------------------------------------------------


async def test_a_plain_call(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(text("hello"))
    await complete(client)
    assert seen.told == ["call", "attempt 1", "connected", "200 good", "done"]


async def test_a_call_that_is_retried_and_then_good(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(status(503), status(429), text("hello"))
    await complete(client)
    first = ["attempt 1", "connected", "503 InternalServerError, wait 0"]
    second = ["attempt 2", "connected", "429 RateLimitError, wait 0"]
    assert seen.told == ["call", *first, *second, "attempt 3", "connected", "200 good", "done"]
    assert [event.attempt for event in seen.events] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    reused = [event.reused for event in seen.events if isinstance(event, Connected)]
    assert reused == [False, True, True]


async def test_a_dead_pooled_connection_is_replaced_within_the_attempt(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(text("one"), connection_drop(), text("two"))
    await complete(client.with_options(observers=[]))
    assert (await complete(client)).text == "two"
    assert seen.told == ["call", "attempt 1", "connected", "connected", "200 good", "done"]
    assert [event.reused for event in seen.events if isinstance(event, Connected)] == [True, False]


async def test_a_call_that_fails_in_every_attempt(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.always(status(503))
    with pytest.raises(InternalServerError):
        await complete(client)
    waited = "503 InternalServerError, wait 0"
    assert seen.told == [
        *("call", "attempt 1", "connected", waited, "attempt 2", "connected", waited),
        *("attempt 3", "connected", "503 InternalServerError", "failed InternalServerError"),
    ]


async def test_a_call_that_is_refused(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(400))
    with pytest.raises(BadRequestError):
        await complete(client)
    assert seen.told == ["call", "attempt 1", "connected", "400 BadRequestError", "failed BadRequestError"]


async def test_a_call_that_finds_nobody(seen: Recorder, unused_tcp_port: int) -> None:
    async with client_of(f"http://127.0.0.1:{unused_tcp_port}", observers=[seen]) as client:
        with pytest.raises(APIConnectionError):
            await complete(client)
    assert seen.told == ["call", "attempt 1", "None APIConnectionError", "failed APIConnectionError"]


async def test_calls_that_fail_before_anything_is_sent(seen: Recorder, server: FriendliServer) -> None:
    def token() -> str:
        raise LookupError("no token today")

    async with AsyncFriendli(server_url=server.url, observers=[seen]) as client:
        with pytest.raises(ConfigurationError):
            await complete(client)
        with pytest.raises(LookupError):
            await complete(client.with_options(token=token))
    with pytest.raises(ConfigurationError, match="closed"):
        await complete(client)
    assert seen.told == [
        *("call", "attempt 1", "None ConfigurationError", "failed ConfigurationError"),
        *("call", "attempt 1", "None LookupError", "failed LookupError"),
        *("call", "failed ConfigurationError"),
    ]
    assert server.requests == []


async def test_an_attempt_that_cannot_be_made_does_not_repeat_the_end_of_the_one_before(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    tokens = iter(["good"])
    server.enqueue(status(429))
    with pytest.raises(ConfigurationError):
        await complete(client.with_options(token=lambda: next(tokens, "bad\n")))
    assert seen.told == [
        *("call", "attempt 1", "connected", "429 RateLimitError, wait 0"),
        *("attempt 2", "None ConfigurationError", "failed ConfigurationError"),
    ]


async def test_a_call_that_is_cancelled_while_it_waits_for_its_reply(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(stall())
    task = asyncio.ensure_future(complete(client))
    await server.wait_for_requests()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen.told == ["call", "attempt 1", "connected", "None CancelledError", "cancelled CancelledError"]


async def test_a_call_that_is_cancelled_between_its_attempts(server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(429, retry_after=30))
    async with client_of(server.url, observers=[seen], retry=RetryPolicy(initial=0)) as client:
        task = asyncio.ensure_future(complete(client))
        await until(lambda: "attempt_ended" in seen.methods)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen.told == [
        *("call", "attempt 1", "connected", "429 RateLimitError, wait 30", "cancelled CancelledError"),
    ]


async def test_a_call_that_is_cancelled_in_the_queue_for_a_connection(server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1) as client, ask(client):
        task = asyncio.ensure_future(complete(client.with_options(observers=[seen])))
        await until(lambda: client.gauges().waiting == 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: loop.time() > began)  # uvloop counts in milliseconds
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen.told == ["call", "attempt 1", "None CancelledError", "cancelled CancelledError"]
    assert seen.end.timing.queued > 0


async def test_a_call_whose_client_is_closed(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(stall())
    task = asyncio.ensure_future(complete(client))
    await server.wait_for_requests()
    await client.aclose()
    with pytest.raises(APIConnectionError):
        await within(task)
    assert seen.told == ["call", "attempt 1", "connected", "None APIConnectionError", "failed APIConnectionError"]


async def test_wait_is_how_long_the_next_attempt_is_waited_for(server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(429, retry_after_ms=2), status(429, retry_after=3600))
    async with client_of(server.url, observers=[seen], retry=RetryPolicy(initial=0)) as client:
        with pytest.raises(RateLimitError) as raised:
            await complete(client)
    assert raised.value.meta is not None
    waits = [event.wait for event in seen.events if isinstance(event, AttemptEnded)]
    assert waits == [0.002, None]
    assert [attempt.wait for attempt in raised.value.meta.attempts] == [0.002, 0.0]


async def test_a_failed_waking_tells_of_the_end_of_the_attempt_before_it(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    asleep = json_body({"status": "SLEEPING"})
    server.enqueue(status(503), asleep, status(403))
    waking = client.with_options(wake=True, observers=[seen]).dedicated.chat
    with pytest.raises(FriendliError):
        await waking.complete(model="ep_1", messages=MESSAGES)
    outer = [event for event in seen.events if event.operation == "chat.complete"]
    assert [type(event).__name__ for event in outer] == [
        *("CallStarted", "AttemptStarted", "Connected", "AttemptEnded", "CallEnded"),
    ]
    ended = outer[3]
    assert isinstance(ended, AttemptEnded)
    assert (ended.status, ended.error, ended.wait) == (503, "InternalServerError", None)
    assert {event.operation for event in seen.events} == {"chat.complete", "endpoint.get_status", "endpoint.wake"}


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_read_to_its_end(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(script(chunk("hel"), chunk("lo"), finish("stop"), usage(3, 2), done()))
    stream = ask(client)
    assert seen.told == []  # it is a call once it is used
    async with stream:
        assert seen.told == OPENED
        assert await read(stream) == "hello"
        assert seen.told == [*OPENED, "done"]
    assert seen.told == [*OPENED, "done"]
    assert seen.end.usage == stream.usage
    assert seen.end.usage is not None
    assert seen.end.usage.completion_tokens == 2
    assert seen.end.finish_reasons == ("stop",)
    assert seen.end.timing == stream.timing
    first = next(event for event in seen.events if isinstance(event, FirstEvent))
    assert first.seconds == pytest.approx(stream.timing.first_event, abs=1.0)


async def test_a_stream_of_several_attempts(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(503), script(error_data(OVERLOADED)), script(chunk("a"), finish(), done()))
    assert await read(ask(client)) == "a"
    assert seen.told == [
        *("call", "attempt 1", "connected", "503 InternalServerError, wait 0"),
        *("attempt 2", "connected", "200 InternalServerError, wait 0"),
        *("attempt 3", "connected", "first event", "200 good", "done"),
    ]


async def leave(stream: ChatStream) -> None:
    async with stream:
        async for _ in stream:
            break


async def drop(stream: ChatStream) -> None:
    await anext(stream)


async def close(stream: ChatStream) -> None:
    await anext(stream)
    await stream.aclose()


async def be_cancelled(stream: ChatStream) -> None:
    await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await until(lambda: stream._waiting)
    task.cancel()
    await asyncio.wait([task])


async def close_while_it_is_read(stream: ChatStream) -> None:
    await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await until(lambda: stream._waiting)
    await stream.aclose()
    with pytest.raises(StreamInterruptedError):
        await task


BEGUN: Final = script(chunk("a"), stall())
ENDS: Final[dict[str, tuple[Any, Callable[[ChatStream], Awaitable[object]], dict[str, Any], str]]] = {
    "left early": (BEGUN, leave, {}, "cancelled StreamInterruptedError"),
    "dropped": (BEGUN, drop, {}, "cancelled StreamInterruptedError"),
    "closed": (BEGUN, close, {}, "cancelled StreamInterruptedError"),
    "closed while it is read": (BEGUN, close_while_it_is_read, {}, "cancelled StreamInterruptedError"),
    "a cancelled read": (BEGUN, be_cancelled, {}, "cancelled StreamInterruptedError"),
    "cut": (script(chunk("a"), cut()), read, {}, "truncated StreamInterruptedError"),
    "an end without a terminal event": (script(chunk("a")), read, {}, "truncated StreamInterruptedError"),
    "an error in it": (script(chunk("a"), error_data(OVERLOADED)), read, {}, "failed InternalServerError"),
    "not decodable": (script(chunk("a"), raw(b"data: {\n\n")), read, {}, "failed ResponseDecodeError"),
    "idle": (BEGUN, read, {"timeout": Timeouts(idle=0.05)}, "failed APITimeoutError"),
}


@pytest.mark.parametrize("name", ENDS)
async def test_a_stream_that_was_opened_ends_once_however_it_ends(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, name: str
) -> None:
    answer, use, options, expected = ENDS[name]
    server.enqueue(answer)
    with suppress(FriendliError):
        await within(use(ask(client.with_options(**options))))  # type: ignore[arg-type]  # one table of options for all cases
    gc.collect()
    assert seen.told == [*OPENED, expected]
    assert seen.end.timing.events == 1
    await nothing_left(client, server, connections=None)
    assert seen.told == [*OPENED, expected]


async def test_a_stream_that_its_total_ends(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, clock: Clock
) -> None:
    server.enqueue(BEGUN)
    stream = await ask(client.with_options(timeout=Timeouts(total=5)))
    clock.leap(5.0)
    with pytest.raises(FriendliError):
        await read(stream)
    assert seen.told == [*OPENED, "failed APITimeoutError"]


async def test_an_error_does_not_end_a_stream_twice(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(script(chunk("a"), cut()))
    async with ask(client) as stream:
        for _ in range(3):
            with pytest.raises(StreamInterruptedError):
                await stream.result()
        await stream.aclose()
    assert seen.told == [*OPENED, "truncated StreamInterruptedError"]


async def test_a_stream_that_is_cancelled_while_it_is_opened(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(script(head(), stall()))
    task = asyncio.ensure_future(anext(ask(client)))
    await server.wait_for_requests()
    await until(lambda: client.gauges().in_use == 1)
    await turns(50)
    task.cancel()
    await asyncio.wait([task])
    assert seen.told == ["call", "attempt 1", "connected", "200 CancelledError", "cancelled CancelledError"]


async def test_a_stream_that_is_closed_while_it_is_opened_is_cancelled_as_its_outcome_says(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(stall())
    stream = ask(client)
    task = asyncio.ensure_future(anext(stream))
    await server.wait_for_requests()
    await stream.aclose()
    await asyncio.wait([task])
    assert stream.outcome == "cancelled"
    assert seen.end.outcome == "cancelled"
    assert seen.told[:3] == ["call", "attempt 1", "connected"]


async def test_a_stream_that_outlives_its_loop_ends_when_it_is_dropped(remote: FriendliServer) -> None:
    seen = Recorder()
    client = client_of(remote.url, observers=[seen])
    remote.enqueue(script(chunk("a"), stall()))

    async def main() -> ChatStream:
        return await ask(client)

    def in_a_loop_of_its_own() -> None:
        stream = asyncio.run(main())
        del stream
        gc.collect()

    await asyncio.to_thread(in_a_loop_of_its_own)
    assert seen.told == [*OPENED, "cancelled StreamInterruptedError"]


async def test_a_stream_that_is_never_used_is_no_call(client: AsyncFriendli, seen: Recorder) -> None:
    stream = ask(client)
    await stream.aclose()
    assert seen.told == []


# --- what the events say ---------------------------------------------------------------------------------------------


async def test_all_events_of_a_call_have_one_id_and_those_of_others_another(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(status(503), status(429))
    await asyncio.gather(*(complete(client) for _ in range(5)), *(read(ask(client)) for _ in range(5)))
    by_call: dict[int, list[CallEvent]] = {}
    for event in seen.events:
        by_call.setdefault(event.call_id, []).append(event)
    assert len(by_call) == 10
    for events in by_call.values():
        assert [isinstance(event, CallEnded) for event in events].count(True) == 1
        assert isinstance(events[-1], CallEnded)
        assert len({event.operation for event in events}) == 1


CALLS: Final[
    dict[str, tuple[Callable[[AsyncFriendli], Awaitable[object]], tuple[str, str, str | None, str | None]]]
] = {
    "serverless": (
        lambda c: c.serverless.chat.complete(model="m", messages=MESSAGES),
        ("chat.complete", "serverless", "m", "acme"),
    ),
    "dedicated": (
        lambda c: c.dedicated.chat.complete(model="ep:route", messages=MESSAGES),
        ("chat.complete", "dedicated", "ep:route", "acme"),
    ),
    "container": (
        lambda c: c.container.chat.complete(messages=MESSAGES),
        ("chat.complete", "container", None, None),
    ),
    "a stream": (
        lambda c: read(c.serverless.chat.stream(model="m", messages=MESSAGES)),
        ("chat.stream", "serverless", "m", "acme"),
    ),
    "a stream of a container": (
        lambda c: read(c.container.chat.stream(model="adapter", messages=MESSAGES)),
        ("chat.stream", "container", "adapter", None),
    ),
    "messages": (
        lambda c: c.serverless.messages.stream(model="m", messages=MESSAGES, max_tokens=5).result(),
        ("messages.stream", "serverless", "m", "acme"),
    ),
    "responses": (
        lambda c: c.serverless.responses.create(model="m", input="Hi"),
        ("responses.create", "serverless", "m", "acme"),
    ),
    "completions": (
        lambda c: c.dedicated.completions.stream(model="ep", prompt="Hi").result(),
        ("completions.stream", "dedicated", "ep", "acme"),
    ),
    "a form": (
        lambda c: c.serverless.audio.transcribe(model="whisper", file=b"RIFF"),
        ("audio.transcribe", "serverless", "whisper", "acme"),
    ),
    "a form's stream": (
        lambda c: c.dedicated.audio.stream(model="ep", file=b"RIFF").result(),
        ("audio.stream", "dedicated", "ep", "acme"),
    ),
    "tool-assisted": (
        lambda c: c.serverless.tool_assisted_chat.stream(
            model="m", messages=MESSAGES, tools=[{"type": "math:calculator"}]
        ).result(),
        ("tool_assisted_chat.stream", "serverless", "m", "acme"),
    ),
    "management": (
        lambda c: c.dedicated.endpoint.get_status("ep_1"),
        ("endpoint.get_status", "dedicated", None, "acme"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_events_say_what_was_called_and_where(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, name: str
) -> None:
    call, expected = CALLS[name]
    if name == "management":
        server.enqueue(json_body({"status": "RUNNING"}))
    await call(client.with_options(team="acme"))
    assert seen.methods[0] == "call_started"
    facts = {(event.operation, event.deployment, event.model, event.team) for event in seen.events}
    assert facts == {expected}
    assert server.requests[0].headers.get("X-Friendli-Team") == expected[3]


async def test_no_event_holds_a_token_a_header_or_a_body(server: FriendliServer, seen: Recorder) -> None:
    words = ("hush-token", "hush-header", "hush-prompt", "hush-reply", "hush-error", "hush-query", "hush-id")
    server.enqueue(
        status(429, message="hush-error", headers={"x-request-id": "hush-id"}),
        text("hush-reply"),
        script(chunk("hush-reply"), error_data({"message": "hush-error", "code": 400})),
        status(422, message="hush-error"),
    )
    async with AsyncFriendli(
        "hush-token",
        server_url=server.url,
        headers={"X-Own": "hush-header"},
        observers=[seen],
        retry=QUICK,
    ) as client:
        messages = [{"role": "user", "content": "hush-prompt"}]
        query = {"q": "hush-query"}
        await client.serverless.chat.complete(model="m", messages=messages, extra_query=query)
        with pytest.raises(FriendliError):
            await read(client.serverless.chat.stream(model="m", messages=messages))
        with pytest.raises(FriendliError):
            await client.serverless.chat.complete(model="m", messages=messages)
    assert "hush-prompt" in str(server.requests[0].body)
    assert server.requests[0].headers["X-Own"] == "hush-header"
    assert len([event for event in seen.events if isinstance(event, CallEnded)]) == 3
    for event in seen.events:
        everything = repr(event) + repr(msgspec.to_builtins(event))
        assert [word for word in words if word in everything] == []


# --- who observes ----------------------------------------------------------------------------------------------------


class Failing(Recorder):
    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self._error = error

    def _keep(self, method: str, event: CallEvent) -> None:
        super()._keep(method, event)
        raise self._error("no good observer")


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_observer_that_raises_is_logged_once_and_goes_on_being_called(
    server: FriendliServer, seen: Recorder, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    failing = Failing(error)
    server.enqueue(status(503), text("hello"))
    async with client_of(server.url, observers=[failing, seen], retry=QUICK) as client:
        with caplog.at_level(logging.ERROR, logger="friendli_async"):
            assert (await complete(client)).text == "hello"
            assert await read(ask(client))
    assert failing.told == seen.told
    assert len(failing.told) > 10
    assert len(caplog.records) == 1
    assert "no good observer" in caplog.text


async def test_two_observers_that_raise_are_logged_once_each(
    server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(server.url, observers=[Failing(), Failing()]) as client:
        with caplog.at_level(logging.ERROR, logger="friendli_async"):
            await complete(client)
    assert len(caplog.records) == 2


class Ending(BaseException):
    """Ends the program, as KeyboardInterrupt and SystemExit do."""


@pytest.mark.parametrize("kind", [Ending, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "method", ["call_started", "attempt_started", "connected", "first_event", "attempt_ended", "call_ended"]
)
def test_an_observer_that_ends_the_program_leaves_nothing_open(
    remote: FriendliServer, method: str, streamed: bool, kind: type[BaseException]
) -> None:
    def end(event: CallEvent) -> None:
        raise kind

    observer: Any = type("Observer", (), {method: staticmethod(end)})()
    remote.always(script(chunk("a"), stall()) if method in {"first_event", "attempt_ended"} and streamed else text("a"))
    with asyncio.Runner() as runner:
        client = client_of(remote.url, max_connections=1, retry=QUICK)
        ending = client.with_options(observers=[observer])
        if streamed or method != "first_event":
            with pytest.raises(kind):
                runner.run(within(read(ask(ending)) if streamed else complete(ending)))
        remote.always(text("next"))

        async def go_on() -> None:
            # A stream that ended well gives its connection back when the body has.
            await until(lambda: client.gauges().in_use == client.gauges().calls_in_flight == 0)
            assert (await within(complete(client))).text == "next"
            await client.aclose()

        runner.run(go_on())


async def test_an_observer_needs_only_the_methods_that_it_wants(server: FriendliServer) -> None:
    class OnlyEnds:
        def __init__(self) -> None:
            self.outcomes: list[str] = []

        def call_ended(self, event: CallEnded) -> None:
            self.outcomes.append(event.outcome)

    ends, silent = OnlyEnds(), object()
    async with client_of(server.url, observers=[ends, silent]) as client:
        await complete(client)
        await read(ask(client))
    assert ends.outcomes == ["done", "done"]


async def test_the_methods_of_an_observer_do_nothing_by_themselves(server: FriendliServer) -> None:
    async with client_of(server.url, observers=[Observer()]) as client:
        assert (await complete(client)).text


async def test_without_observers_nothing_is_told(server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from friendli_async._core import call, observers

    called: list[object] = []
    monkeypatch.setattr(observers.Observers, "notify", lambda *args, **kwargs: called.append(args))
    monkeypatch.setattr(call, "CallReporter", lambda *args, **kwargs: called.append(args))
    server.enqueue(status(503))
    async with client_of(server.url, retry=QUICK) as client:
        await complete(client)
        await read(ask(client))
        await complete(client.with_options(observers=[]))
    assert called == []


async def test_with_options_replaces_the_observers(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    other = Recorder()
    await complete(client.with_options(observers=[other]))
    assert (seen.told, len(other.told)) == ([], 5)
    await complete(client.with_options(observers=[]))
    await complete(client.with_options(timeout=30))
    assert (len(seen.told), len(other.told)) == (5, 5)
    both = client.with_options(observers=[seen, other])
    await complete(both)
    assert (len(seen.told), len(other.told)) == (10, 10)


class Waiting:
    """What nobody would await."""

    async def call_ended(self, event: CallEvent) -> None:
        raise AssertionError("never awaited")


@pytest.mark.parametrize("bad", ["name", 7, Recorder, [Recorder], [Waiting()]])
def test_what_is_no_list_of_observers_is_refused(bad: Any) -> None:
    with pytest.raises((ConfigurationError, TypeError)):
        AsyncFriendli("token", observers=bad)


# --- what was asked and answered -------------------------------------------------------------------------------------


class Listener(Recorder):
    """An observer that asks for content."""

    def call_content(self, event: CallContent) -> None:
        self._keep("call_content", event)


async def test_the_begin_of_a_call_tells_where_it_goes_and_how_it_generates(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(text("hello"))
    await client.serverless.chat.complete(
        model="m", messages=MESSAGES, temperature=0.5, stop=["a", "b"], extra_body={"top_k": {"odd": 1}}
    )
    [begun] = [event for event in seen.events if isinstance(event, CallStarted)]
    assert (begun.server_address, begun.server_port) == ("127.0.0.1", int(server.url.rpartition(":")[2]))
    assert begun.parameters == {"temperature": 0.5, "stop": ("a", "b")}


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_end_of_a_call_tells_the_replys_id_model_and_status(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, streamed: bool
) -> None:
    server.enqueue(text("hello"))
    reply = await (ask(client).result() if streamed else complete(client))
    assert (seen.end.status, seen.end.response_id, seen.end.response_model) == (200, reply.id, reply.model)


async def test_an_error_in_a_stream_tells_its_own_status(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(script(chunk("a"), error_data(OVERLOADED)))
    with pytest.raises(InternalServerError):
        await read(ask(client))
    assert (seen.end.status, seen.end.error) == (503, "InternalServerError")


async def test_content_is_told_to_the_observer_that_asks_for_it_and_to_no_other(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    listener = Listener()
    server.enqueue(text("hello"), text("hello"), script(chunk("hel"), cut()), status(400))
    watched = client.with_options(observers=[seen, listener])
    await complete(watched)
    await read(ask(watched))
    with pytest.raises(StreamInterruptedError):
        await read(ask(watched))
    with pytest.raises(BadRequestError):
        await complete(watched)
    told = [event for event in listener.events if isinstance(event, CallContent)]
    assert [getattr(event.reply, "text", None) for event in told] == ["hello", "hello", "hel", None]
    assert all(msgspec.json.decode(event.request or b"")["messages"] == MESSAGES for event in told)
    assert not [event for event in seen.events if isinstance(event, CallContent)]
    assert "hello" not in repr(told)
