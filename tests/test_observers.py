"""Observers: the events of each outcome of a call, their order, and what they never contain."""

import asyncio
import gc
import logging
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from types import FrameType
from typing import Any, Final, cast
from unittest.mock import Mock

import msgspec
import pytest
from support.clock import Clock, run_loop_iterations, wait_until
from support.recorder import Collecting, Recorder, RunRecorder
from support.sockets import (
    FAST_RETRY,
    MESSAGES,
    STREAM_HEAD,
    Conversation,
    RawServer,
    assert_no_leaks,
    chunked,
    client_of,
    complete,
    delta,
    open_stream,
    opened_stream,
    read,
    with_timeout,
)

import friendli_async
from friendli_async import (
    APIConnectionError,
    AsyncFriendli,
    AttemptEnded,
    BadRequestError,
    CallContent,
    CallEnded,
    CallEvent,
    CallStarted,
    ChatCompletion,
    ChatStream,
    ConfigurationError,
    Connected,
    FirstEvent,
    FriendliError,
    InternalServerError,
    Meta,
    ObservedRunEvent,
    Observer,
    RateLimitError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
    ToolCallEvent,
    Usage,
    UsageLimit,
)
from friendli_async._core.observers import METHODS, Observers
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
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
from friendli_async.testing import (
    event as sse_event,
)

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("collect_garbage")]

Call = Callable[[AsyncFriendli], Awaitable[object]]

OPENED: Final = ["call", "attempt 1", "connected", "first event", "200 ok"]
OVERLOADED: Final = {"message": "overloaded", "type": "overloaded_error", "code": 503}


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


@pytest.fixture
def client_options(seen: Recorder) -> dict[str, Any]:
    return {"observers": [seen], "retry": FAST_RETRY}


# --- non-streamed calls ----------------------------------------------------------------------------------------------


async def test_successful_call(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(text("hello"))
    await complete(client)
    assert seen.reported == ["call", "attempt 1", "connected", "200 ok", "done"]


async def test_call_that_succeeds_after_retries(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(503), status(429), text("hello"))
    await complete(client)
    first = ["attempt 1", "connected", "503 InternalServerError, wait 0"]
    second = ["attempt 2", "connected", "429 RateLimitError, wait 0"]
    assert seen.reported == ["call", *first, *second, "attempt 3", "connected", "200 ok", "done"]
    assert [event.attempt for event in seen.events] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    reused = [event.reused for event in seen.events if isinstance(event, Connected)]
    assert reused == [False, True, True]


async def test_dead_pooled_connection_is_replaced_within_the_attempt(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(text("one"), cut(), text("two"))
    await complete(client.with_options(observers=[]))
    assert (await complete(client)).text == "two"
    assert seen.reported == ["call", "attempt 1", "connected", "connected", "200 ok", "done"]
    assert [event.reused for event in seen.events if isinstance(event, Connected)] == [True, False]


async def test_call_that_fails_in_every_attempt(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.always(status(503))
    with pytest.raises(InternalServerError):
        await complete(client)
    waited = "503 InternalServerError, wait 0"
    assert seen.reported == [
        *("call", "attempt 1", "connected", waited, "attempt 2", "connected", waited),
        *("attempt 3", "connected", "503 InternalServerError", "failed InternalServerError"),
    ]


async def test_call_with_non_retryable_status(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(400))
    with pytest.raises(BadRequestError):
        await complete(client)
    assert seen.reported == ["call", "attempt 1", "connected", "400 BadRequestError", "failed BadRequestError"]


async def test_failed_response_with_good_status(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    usage = {"input_tokens": 1, "output_tokens": 2}
    failed = {"status": "failed", "output": [], "error": {"code": "server_error", "message": "no"}, "usage": usage}
    server.enqueue(json_body(failed))
    with pytest.raises(InternalServerError):
        await client.serverless.responses.create(model="m", input="Hi")
    assert seen.reported == ["call", "attempt 1", "connected", "200 InternalServerError", "failed InternalServerError"]
    [ended] = [each for each in seen.events if isinstance(each, CallEnded)]
    assert ended.usage == Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)


async def test_call_with_refused_connection_has_no_request_id(seen: Recorder, refused_port: int) -> None:
    async with client_of(f"http://127.0.0.1:{refused_port}", observers=[seen]) as client:
        with pytest.raises(APIConnectionError):
            await complete(client)
    assert seen.reported == ["call", "attempt 1", "None APIConnectionError", "failed APIConnectionError"]
    assert seen.end.request_id is None


async def test_calls_that_fail_before_sending(seen: Recorder, server: FriendliServer) -> None:
    def token() -> str:
        raise LookupError("no token today")

    async with AsyncFriendli(server_url=server.url, observers=[seen]) as client:
        with pytest.raises(ConfigurationError):
            await complete(client)
        with pytest.raises(LookupError):
            await complete(client.with_options(token=token))
    with pytest.raises(ConfigurationError, match="closed"):
        await complete(client)
    assert seen.reported == [
        *("call", "attempt 1", "None ConfigurationError", "failed ConfigurationError"),
        *("call", "attempt 1", "None LookupError", "failed LookupError"),
        *("call", "failed ConfigurationError"),
    ]
    assert server.requests == []


async def test_attempt_failing_before_send_does_not_repeat_previous_attempt_ended(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    tokens = iter(["good"])
    server.enqueue(status(429))
    with pytest.raises(ConfigurationError):
        await complete(client.with_options(token=lambda: next(tokens, "b\nad")))
    assert seen.reported == [
        *("call", "attempt 1", "connected", "429 RateLimitError, wait 0"),
        *("attempt 2", "None ConfigurationError", "failed ConfigurationError"),
    ]


async def test_call_cancelled_while_waiting_for_reply(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(stall())
    task = asyncio.ensure_future(complete(client))
    await server.wait_for_requests()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen.reported == ["call", "attempt 1", "connected", "None CancelledError", "cancelled CancelledError"]


async def test_call_cancelled_between_attempts(server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(429, retry_after=30))
    async with client_of(server.url, observers=[seen], retry=RetryPolicy(initial=0)) as client:
        task = asyncio.ensure_future(complete(client))
        await wait_until(lambda: "attempt_ended" in seen.methods)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen.reported == [
        *("call", "attempt 1", "connected", "429 RateLimitError, wait 30", "cancelled CancelledError"),
    ]


async def test_call_cancelled_while_queued_for_a_connection(server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1) as client, open_stream(client):
        task = asyncio.ensure_future(complete(client.with_options(observers=[seen])))
        await wait_until(lambda: client.gauges().waiting == 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await wait_until(lambda: loop.time() > began)  # uvloop's clock has a resolution of 1 ms
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen.reported == ["call", "attempt 1", "None CancelledError", "cancelled CancelledError"]
    assert seen.end.timing.queued > 0


async def test_call_whose_client_is_closed(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(stall())
    task = asyncio.ensure_future(complete(client))
    await server.wait_for_requests()
    await client.aclose()
    with pytest.raises(APIConnectionError):
        await with_timeout(task)
    assert seen.reported == ["call", "attempt 1", "connected", "None APIConnectionError", "failed APIConnectionError"]


async def test_wait_is_the_delay_before_the_next_attempt(server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(429, headers={"retry-after-ms": "2"}), status(429, retry_after=3600))
    async with client_of(server.url, observers=[seen], retry=RetryPolicy(initial=0)) as client:
        with pytest.raises(RateLimitError) as raised:
            await complete(client)
    assert raised.value.meta is not None
    waits = [event.wait for event in seen.events if isinstance(event, AttemptEnded)]
    assert waits == [0.002, None]
    assert [attempt.wait for attempt in raised.value.meta.attempts] == [0.002, 0.0]


async def test_failed_wake_reports_end_of_the_preceding_attempt(
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


async def test_stream_read_to_its_end(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(script(chunk("hel"), chunk("lo"), finish("stop"), usage(3, 2), done()))
    stream = open_stream(client)
    assert seen.reported == []  # the call starts with the first use
    async with stream:
        assert seen.reported == OPENED
        assert await read(stream) == "hello"
        assert seen.reported == [*OPENED, "done"]
    assert seen.reported == [*OPENED, "done"]
    assert seen.end.usage == stream.usage
    assert seen.end.usage is not None
    assert seen.end.usage.completion_tokens == 2
    assert seen.end.finish_reasons == ("stop",)
    assert seen.end.timing == stream.timing
    first = next(event for event in seen.events if isinstance(event, FirstEvent))
    assert first.seconds == pytest.approx(stream.timing.first_event, abs=1.0)


async def test_stream_with_several_attempts(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(status(503), script(sse_event({"error": OVERLOADED})), script(chunk("a"), finish(), done()))
    assert await read(open_stream(client)) == "a"
    assert seen.reported == [
        *("call", "attempt 1", "connected", "503 InternalServerError, wait 0"),
        *("attempt 2", "connected", "200 InternalServerError, wait 0"),
        *("attempt 3", "connected", "first event", "200 ok", "done"),
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


async def cancel_read(stream: ChatStream) -> None:
    await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await wait_until(lambda: stream._waiting)
    task.cancel()
    await asyncio.wait([task])


async def close_during_read(stream: ChatStream) -> None:
    await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await wait_until(lambda: stream._waiting)
    await stream.aclose()
    with pytest.raises(StreamInterruptedError):
        await task


STALLED: Final = script(chunk("a"), stall())
ENDS: Final[dict[str, tuple[Any, Callable[[ChatStream], Awaitable[object]], dict[str, Any], str]]] = {
    "left early": (STALLED, leave, {}, "cancelled StreamInterruptedError"),
    "dropped": (STALLED, drop, {}, "cancelled StreamInterruptedError"),
    "closed": (STALLED, close, {}, "cancelled StreamInterruptedError"),
    "closed during a read": (STALLED, close_during_read, {}, "cancelled StreamInterruptedError"),
    "read cancelled": (STALLED, cancel_read, {}, "cancelled StreamInterruptedError"),
    "truncated": (script(chunk("a"), cut()), read, {}, "truncated StreamInterruptedError"),
    "no terminal event": (script(chunk("a")), read, {}, "truncated StreamInterruptedError"),
    "error event": (script(chunk("a"), sse_event({"error": OVERLOADED})), read, {}, "failed InternalServerError"),
    "malformed event": (script(chunk("a"), raw(b"data: {\n\n")), read, {}, "failed ResponseDecodeError"),
    "idle timeout": (STALLED, read, {"timeout": Timeouts(idle=0.05)}, "failed APITimeoutError"),
}


@pytest.mark.parametrize("name", ENDS)
async def test_opened_stream_ends_exactly_once(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, name: str
) -> None:
    answer, use, options, expected = ENDS[name]
    server.enqueue(answer)
    with suppress(FriendliError):
        await with_timeout(use(open_stream(client.with_options(**options))))
    gc.collect()
    await run_loop_iterations(1)
    assert seen.reported == [*OPENED, expected]
    assert seen.end.timing.events == 1
    await assert_no_leaks(client, server, connections=None)
    assert seen.reported == [*OPENED, expected]


@pytest.mark.parametrize("hold", [lambda stream: stream, lambda stream: stream.tee(2)], ids=["stream", "branches"])
async def test_observer_is_not_called_again_while_it_runs_if_the_garbage_collector_closes_a_stream(
    client: AsyncFriendli, server: FriendliServer, hold: Callable[[ChatStream], Any]
) -> None:
    observer = Collecting()
    client = client.with_options(observers=[observer])
    server.enqueue(STALLED, text("a"))
    held = hold(open_stream(client))
    await anext(held[0] if isinstance(held, tuple) else held)
    cycle: list[object] = [held]
    cycle.append(cycle)
    del held, cycle
    await complete(client)
    assert observer.ends == ["outside", "outside"]
    assert not client.gauges().in_use


async def test_interrupted_opening_is_logged_with_its_reason_but_not_with_words_of_the_server(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(script(raw(b"<p>private: words</p>")), script(head(), cut()), text("a"))
    with caplog.at_level("INFO", "friendli_async"):
        await read(open_stream(client.with_options(retry=RetryPolicy(initial=0))))
    silent, broken = (message.partition("StreamInterruptedError: ")[2] for message in caplog.messages)
    assert silent == "the stream ended before any content came"
    assert broken.startswith("the connection broke while the reply was being read: the server closed the connection")


async def test_stream_ended_by_total_timeout(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, clock: Clock
) -> None:
    server.enqueue(STALLED)
    stream = await open_stream(client.with_options(timeout=Timeouts(total=5)))
    clock.advance(5.0)
    with pytest.raises(FriendliError):
        await read(stream)
    assert seen.reported == [*OPENED, "failed APITimeoutError"]


async def test_error_does_not_end_a_stream_twice(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(script(chunk("a"), cut()))
    async with open_stream(client) as stream:
        for _ in range(3):
            with pytest.raises(StreamInterruptedError):
                await stream.result()
        await stream.aclose()
    assert seen.reported == [*OPENED, "truncated StreamInterruptedError"]


async def test_stream_cancelled_while_opening(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    server.enqueue(script(head(), stall()))
    task = asyncio.ensure_future(anext(open_stream(client)))
    await server.wait_for_requests()
    await wait_until(lambda: client.gauges().in_use == 1)
    await run_loop_iterations(50)
    task.cancel()
    await asyncio.wait([task])
    assert seen.reported == ["call", "attempt 1", "connected", "200 CancelledError", "cancelled CancelledError"]


async def test_stream_outliving_its_event_loop_ends_when_dropped(remote: FriendliServer) -> None:
    seen = Recorder()
    client = client_of(remote.url, observers=[seen])
    remote.enqueue(script(chunk("a"), stall()))

    def run_in_own_loop() -> None:
        stream = asyncio.run(opened_stream(client))
        del stream
        gc.collect()

    await asyncio.to_thread(run_in_own_loop)
    assert seen.reported == [*OPENED, "cancelled StreamInterruptedError"]


async def read_branch(client: AsyncFriendli) -> object:
    (branch,) = open_stream(client).tee(1)
    await anext(branch)
    return branch


@pytest.mark.parametrize("open_one", [opened_stream, read_branch])
async def test_observer_is_not_called_while_a_stream_is_dropped(
    client: AsyncFriendli,
    server: FriendliServer,
    seen: Recorder,
    open_one: Callable[[AsyncFriendli], Awaitable[object]],
) -> None:
    server.enqueue(STALLED)
    held = [await open_one(client)]
    held.clear()  # maybe within an observer, which holds a lock
    assert seen.reported == OPENED
    await run_loop_iterations()
    assert seen.reported == [*OPENED, "cancelled StreamInterruptedError"]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the loop is not shut down, on purpose
async def test_stream_dropped_before_its_event_loop_is_closed_without_another_turn_ends_once(
    remote: FriendliServer,
) -> None:
    seen = Recorder()
    client = client_of(remote.url, observers=[seen])
    remote.enqueue(script(chunk("a"), stall()))

    def run_in_own_loop() -> None:
        with closing(asyncio.new_event_loop()) as loop:
            stream = loop.run_until_complete(opened_stream(client))
            del stream
            gc.collect()
            assert seen.reported == OPENED

    await asyncio.to_thread(run_in_own_loop)
    assert seen.reported == [*OPENED, "cancelled StreamInterruptedError"]


async def test_unused_stream_emits_no_events(client: AsyncFriendli, seen: Recorder) -> None:
    stream = open_stream(client)
    await stream.aclose()
    assert seen.reported == []


# --- event fields ----------------------------------------------------------------------------------------------------


async def test_events_of_one_call_share_a_unique_call_id(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(status(503), status(429))
    await asyncio.gather(*(complete(client) for _ in range(5)), *(read(open_stream(client)) for _ in range(5)))
    by_call: dict[int, list[CallEvent]] = {}
    for event in seen.events:
        by_call.setdefault(event.call_id, []).append(event)
    assert len(by_call) == 10
    for events in by_call.values():
        assert [isinstance(event, CallEnded) for event in events].count(True) == 1
        assert isinstance(events[-1], CallEnded)
        assert len({event.operation for event in events}) == 1


async def test_log_and_metadata_have_the_call_of_the_events(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(status(503), status(400))
    caplog.set_level("DEBUG", "friendli_async")
    with pytest.raises(BadRequestError) as caught:
        await read(open_stream(client.with_options(retry=RetryPolicy(initial=0))))
    await complete(client.with_options(observers=[]))
    meta, address = caught.value.meta, server.url.removeprefix("http://")
    assert meta is not None
    assert (meta.call_id, meta.operation, meta.deployment) == (seen.end.call_id, "chat.stream", "serverless")
    assert (meta.server, meta.model) == (address, "m")
    records = [vars(record) for record in caplog.records if record.name == "friendli_async"]
    failed = {"call_id": meta.call_id, "operation": "chat.stream", "deployment": "serverless", "server": address}
    for record, number in zip(records[:3], (1, 1, 2), strict=True):  # attempt, retry, attempt
        assert {name: record[f"friendli_{name}"] for name in failed} == failed
        assert (record["friendli_attempt"], record["friendli_model"]) == (number, "m")
        assert record["funcName"] != "_log"
    assert records[2]["friendli_request_id"] == meta.request_id
    assert records[3]["friendli_call_id"] != meta.call_id  # also of a call without observers


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
    "stream": (
        lambda c: read(c.serverless.chat.stream(model="m", messages=MESSAGES)),
        ("chat.stream", "serverless", "m", "acme"),
    ),
    "container stream": (
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
    "form": (
        lambda c: c.serverless.audio.transcribe(model="whisper", file=b"RIFF"),
        ("audio.transcribe", "serverless", "whisper", "acme"),
    ),
    "form stream": (
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
    "without a team": (lambda c: c.serverless.model.list(), ("model.list", "serverless", None, None)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_events_have_operation_deployment_model_and_team(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, name: str
) -> None:
    call, expected = CALLS[name]
    if name == "management":
        server.enqueue(json_body({"status": "RUNNING"}))
    await call(client.with_options(team="acme"))
    assert seen.methods[0] == "call_started"
    fields = {(event.operation, event.deployment, event.model, event.team) for event in seen.events}
    assert fields == {expected}
    assert server.requests[0].headers.get("X-Friendli-Team") == expected[3]
    if name == "management":
        ended = seen.events[-1]
        assert isinstance(ended, CallEnded)
        assert ended.finish_reasons == (), "the status of an endpoint is none"


@pytest.mark.parametrize("call", [complete, lambda client: read(open_stream(client))], ids=["plain", "stream"])
async def test_end_of_a_call_has_the_request_id_of_the_last_response(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, call: Call
) -> None:
    server.enqueue(status(503), text("a"), status(400))
    await call(client)
    with suppress(BadRequestError):
        await call(client)
    received = [request.request_id for request in server.requests]
    assert [event.request_id for event in seen.events if isinstance(event, CallEnded)] == received[1:]


async def test_events_contain_no_token_header_or_body(server: FriendliServer, seen: Recorder) -> None:
    secrets = ("hush-token", "hush-header", "hush-prompt", "hush-reply", "hush-error", "hush-query", "hush-id")
    server.enqueue(
        status(429, message="hush-error", headers={"x-request-id": "hush-id"}),
        text("hush-reply"),
        script(chunk("hush-reply"), sse_event({"error": {"message": "hush-error", "code": 400}})),
        status(422, message="hush-error"),
    )
    async with AsyncFriendli(
        "hush-token",
        server_url=server.url,
        headers={"X-Own": "hush-header"},
        observers=[seen],
        retry=FAST_RETRY,
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
        shown = repr(event) + repr(msgspec.to_builtins(event))
        assert [word for word in secrets if word in shown] == []


# --- observer objects ------------------------------------------------------------------------------------------------


class FailingObserver(Recorder):
    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self._error = error

    def _keep(self, method: str, event: CallEvent) -> None:
        super()._keep(method, event)
        raise self._error("no good observer")


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_failing_observer_is_logged_once_per_method_and_still_called(
    server: FriendliServer, seen: Recorder, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    failing = FailingObserver(error)
    server.enqueue(status(503), text("hello"))
    async with client_of(server.url, observers=[failing, seen], retry=FAST_RETRY) as client:
        with caplog.at_level(logging.ERROR, logger="friendli_async"):
            assert (await complete(client)).text == "hello"
            assert await read(open_stream(client))
    assert failing.reported == seen.reported
    assert len(failing.reported) > 10
    assert len(caplog.records) == len(set(failing.methods))
    assert "no good observer" in caplog.text


async def test_each_observer_is_logged_once_per_class_of_exception(
    server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Observer):
        def call_ended(self, event: CallEnded) -> None:
            raise KeyError if event.error is None else ValueError

    async with client_of(server.url, observers=[Failing(), Failing()]) as client:
        with caplog.at_level(logging.ERROR, logger="friendli_async"):
            await complete(client)
            for _ in range(2):
                server.enqueue(status(400))
                with pytest.raises(BadRequestError):
                    await complete(client)
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info is not None]
    assert logged == [KeyError, KeyError, ValueError, ValueError]


class ProgramExit(BaseException):
    """Propagates as KeyboardInterrupt and SystemExit do."""


@pytest.mark.parametrize("kind", [ProgramExit, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "method", ["call_started", "attempt_started", "connected", "first_event", "attempt_ended", "call_ended"]
)
def test_base_exception_in_observer_leaves_nothing_open(
    remote: FriendliServer, method: str, streamed: bool, kind: type[BaseException]
) -> None:
    told: list[str] = []

    def end(event: CallEvent) -> None:
        told.append(method)
        raise kind

    observer: Any = type("Observer", (), {method: staticmethod(end)})()
    remote.always(script(chunk("a"), stall()) if method in {"first_event", "attempt_ended"} and streamed else text("a"))
    with asyncio.Runner() as runner:
        client = client_of(remote.url, max_connections=1, retry=FAST_RETRY)
        observed = client.with_options(observers=[observer])
        if streamed or method != "first_event":
            with pytest.raises(kind):
                runner.run(with_timeout(read(open_stream(observed)) if streamed else complete(observed)))
        assert told.count("call_ended") == (method == "call_ended")
        remote.always(text("next"))

        async def call_again() -> None:
            # A complete stream releases its connection at the end of the response body.
            await wait_until(lambda: client.gauges().in_use == client.gauges().calls_in_flight == 0)
            assert (await with_timeout(complete(client))).text == "next"
            await client.aclose()

        runner.run(call_again())


@pytest.mark.parametrize("method", ["call_started", "attempt_started", "connected", "attempt_ended"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_base_exception_in_observer_ends_what_other_observers_were_told_of(
    server: FriendliServer, seen: Recorder, streamed: bool, method: str
) -> None:
    def end(event: CallEvent) -> None:
        raise ProgramExit

    exits: Any = type("Observer", (), {method: staticmethod(end)})()
    async with client_of(server.url, observers=[seen, exits]) as client:
        with pytest.raises(ProgramExit):
            await (open_stream(client) if streamed else complete(client))
    assert (seen.end.outcome, seen.end.error) == ("cancelled", "ProgramExit")
    assert seen.methods.count("attempt_started") == seen.methods.count("attempt_ended")


async def test_base_exception_at_the_end_of_an_unread_stream_closes_its_connection(server: FriendliServer) -> None:
    class Exits:
        def call_ended(self, event: CallEnded) -> None:
            raise ProgramExit

    server.enqueue(script(chunk("a"), stall()))
    client = client_of(server.url, observers=[Exits()])
    stream = await open_stream(client)
    with pytest.raises(ProgramExit):
        await client.drain(0)
    assert stream.outcome == "cancelled"
    await assert_no_leaks(client, server)
    await client.aclose()


async def test_observer_may_define_any_subset_of_methods(server: FriendliServer) -> None:
    class OnlyEnds:
        def __init__(self) -> None:
            self.outcomes: list[str] = []

        def call_ended(self, event: CallEnded) -> None:
            self.outcomes.append(event.outcome)

    ends, silent = OnlyEnds(), object()
    async with client_of(server.url, observers=[ends, silent]) as client:
        await complete(client)
        await read(open_stream(client))
    assert ends.outcomes == ["done", "done"]


def test_every_event_is_exported_and_recorded() -> None:
    bases = (CallEvent, ObservedRunEvent, ToolCallEvent)
    assert {event.__name__ for base in bases for event in base.__subclasses__()} - {*friendli_async.__all__} == set()
    methods = {name for name in vars(Observer) if not name.startswith("_")}
    assert methods - {*vars(Recorder), *vars(RunRecorder)} == set()


async def test_base_observer_methods_do_nothing(server: FriendliServer) -> None:
    async with client_of(server.url, observers=[Observer()]) as client:
        assert (await complete(client)).text


async def test_nothing_is_reported_without_observers(server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from friendli_async._core import call, observers

    called: list[object] = []
    monkeypatch.setattr(observers.Observers, "report", lambda *args, **kwargs: called.append(args))
    monkeypatch.setattr(call, "CallReporter", lambda *args, **kwargs: called.append(args))
    server.enqueue(status(503))
    async with client_of(server.url, retry=FAST_RETRY) as client:
        await complete(client)
        await read(open_stream(client))
        await complete(client.with_options(observers=[]))
    assert called == []


async def test_with_options_replaces_observers(client: AsyncFriendli, server: FriendliServer, seen: Recorder) -> None:
    other = Recorder()
    await complete(client.with_options(observers=[other]))
    assert (seen.reported, len(other.reported)) == ([], 5)
    await complete(client.with_options(observers=[]))
    await complete(client.with_options(timeout=30))
    assert (len(seen.reported), len(other.reported)) == (5, 5)
    both = client.with_options(observers=[seen, other])
    await complete(both)
    assert (len(seen.reported), len(other.reported)) == (10, 10)


class AsyncObserver:
    """Has a coroutine method, which would never be awaited."""

    async def call_ended(self, event: CallEvent) -> None:
        raise AssertionError("never awaited")


@pytest.mark.parametrize("bad", ["name", 7, Recorder, [Recorder], [AsyncObserver()], [print], [lambda event: None]])
def test_invalid_observers_are_rejected(bad: Any) -> None:
    with pytest.raises((ConfigurationError, TypeError)):
        AsyncFriendli("token", observers=bad)


# --- parameters and content ------------------------------------------------------------------------------------------


class ContentRecorder(Recorder):
    """Also records the content of calls."""

    def call_content(self, event: CallContent) -> None:
        self._keep("call_content", event)


async def test_call_started_has_server_address_and_parameters(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(text("hello"))
    await client.serverless.chat.complete(
        model="m", messages=MESSAGES, temperature=0.5, stop=["a", "b"], extra_body={"top_k": {"odd": 1}}
    )
    [started] = [event for event in seen.events if isinstance(event, CallStarted)]
    assert (started.server_address, started.server_port) == ("127.0.0.1", int(server.url.rpartition(":")[2]))
    assert started.parameters == {"temperature": 0.5, "stop": ("a", "b")}


async def test_call_started_has_parameters_beside_a_lone_surrogate(client: AsyncFriendli, seen: Recorder) -> None:
    messages: list[Any] = [{"role": "user", "content": "half \ud83d"}]
    await client.serverless.chat.complete(model="m", messages=messages, temperature=0.5)
    [started] = [event for event in seen.events if isinstance(event, CallStarted)]
    assert started.parameters == {"temperature": 0.5}


@pytest.mark.parametrize("streamed", [True, False])
async def test_call_ended_has_response_id_model_and_status(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder, streamed: bool
) -> None:
    server.enqueue(text("hello"))
    reply = await (open_stream(client).result() if streamed else complete(client))
    assert (seen.end.status, seen.end.response_id, seen.end.response_model) == (200, reply.id, reply.model)


async def test_call_ended_has_status_of_error_event(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    server.enqueue(script(chunk("a"), sse_event({"error": OVERLOADED})))
    with pytest.raises(InternalServerError):
        await read(open_stream(client))
    assert (seen.end.status, seen.end.error) == (503, "InternalServerError")


async def test_content_is_sent_only_to_observers_with_call_content(
    client: AsyncFriendli, server: FriendliServer, seen: Recorder
) -> None:
    content_recorder = ContentRecorder()
    server.enqueue(text("hello"), text("hello"), script(chunk("hel"), cut()), status(400))
    watched = client.with_options(observers=[seen, content_recorder])
    await complete(watched)
    await read(open_stream(watched))
    with pytest.raises(StreamInterruptedError):
        await read(open_stream(watched))
    with pytest.raises(BadRequestError):
        await complete(watched)
    contents = [event for event in content_recorder.events if isinstance(event, CallContent)]
    assert [getattr(event.reply, "text", None) for event in contents] == ["hello", "hello", "hel", None]
    assert [type(event.reply).__name__ for event in contents] == [
        "ChatCompletion",
        "ChatCompletion",
        "Partial",
        "NoneType",
    ]
    assert all(msgspec.json.decode(event.request or b"")["messages"] == MESSAGES for event in contents)
    assert not [event for event in seen.events if isinstance(event, CallContent)]
    assert "hello" not in repr(contents)


@pytest.mark.parametrize("streamed", [True, False])
async def test_reply_has_meta_when_an_observer_receives_it(client: AsyncFriendli, streamed: bool) -> None:
    found: list[tuple[int, Meta]] = []

    class Archive(Observer):
        def call_content(self, event: CallContent) -> None:
            assert isinstance(event.reply, ChatCompletion)
            found.append((event.call_id, event.reply.meta))

    watched = client.with_options(observers=[Archive()])
    reply = await (open_stream(watched).result() if streamed else complete(watched))
    assert found == [(reply.meta.call_id, reply.meta)]


async def calls_to_read(observers: list[Observer]) -> Counter[str]:
    """Returns the functions of the package that reading 20 events calls, each event in a read of its own."""
    wanted: asyncio.Queue[None] = asyncio.Queue()
    called: Counter[str] = Counter()

    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD + chunked(delta("first")))
        while True:
            await wanted.get()
            await conversation.send(chunked(delta("next")))

    def profile(frame: FrameType, kind: str, _argument: object) -> None:
        if kind == "call" and frame.f_globals["__name__"].startswith("friendli_async"):
            called[frame.f_code.co_qualname] += 1

    async with RawServer(talk) as server, client_of(server.url, observers=observers) as client:
        stream = await open_stream(client)
        await anext(stream)
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            for _ in range(20):
                wanted.put_nowait(None)
                await anext(stream)
        finally:
            sys.setprofile(before)
        await stream.aclose()
    return called


async def test_an_observer_adds_no_call_to_a_read() -> None:
    alone = await calls_to_read([])
    assert alone.total() >= 20
    assert await calls_to_read([Recorder()]) == alone


def test_events_are_made_only_for_methods_that_do_something() -> None:
    class Ends(Observer):
        def call_ended(self, event: CallEnded) -> None: ...

    class Starts:
        def call_started(self, event: CallStarted) -> None: ...

    observers = Observers([Ends(), cast("Observer", Starts()), Observer()])
    assert {method for method in METHODS if observers.wants(method)} == {"call_ended", "call_started"}
    assert Observers([Mock(Observer)]).wants("first_event")


async def test_events_that_nobody_receives_are_not_passed_on(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends(Observer):
        def call_ended(self, event: CallEnded) -> None: ...

    reported: list[str] = []

    def report(_: Observers, method: str, *__: object, **___: object) -> None:
        reported.append(method)

    monkeypatch.setattr(Observers, "report", report)
    limit = UsageLimit(max_calls=9)
    for observers in ([Ends()], []):
        async with client_of(server.url, observers=observers, usage_limit=limit) as client:
            await read(open_stream(client))
            await client.serverless.chat.run(model="m", messages=MESSAGES, tools=[]).result()
    assert reported == ["call_ended"] * 2
