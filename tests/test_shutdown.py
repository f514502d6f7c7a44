"""Gauges of a client, graceful shutdown, and warming up connections."""

import asyncio
import contextlib
import copy
import gc
import json
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import anyio
import pytest
from support.clock import Clock, run_loop_iterations, wait_until
from support.recorder import Recorder
from support.sockets import (
    DONE,
    MESSAGES,
    TOKEN,
    Conversation,
    RawServer,
    assert_no_leaks,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    read,
    read_into,
    reply,
    transport_of,
    unresponsive_port,
    with_timeout,
)
from support.virtual import FakeTransport, now, run_in_virtual_time

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    ChatStream,
    ConfigurationError,
    Gauges,
    InternalServerError,
    LoopGauges,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.net.dialing import PooledProtocol
from friendli_async._core.net.exchange import AiohttpExchange
from friendli_async._core.runtime import Runtime
from friendli_async._core.work import Scope, Work
from friendli_async.testing import FriendliServer, chunk, done, finish, gate, head, raw, script, stall, status, text

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("collect_garbage")]


def counts(gauges: LoopGauges) -> tuple[int, int, int, int]:
    return gauges.in_use, gauges.idle, gauges.waiting, gauges.open_streams


async def cancel_all(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# --- gauges ----------------------------------------------------------------------------------------------------------


async def test_gauges_of_an_unused_client_are_zero(client: AsyncFriendli) -> None:
    assert client.gauges() == Gauges(max_connections=1000)


async def test_gauges_track_streams_and_calls(server: FriendliServer) -> None:
    released = asyncio.Event()
    server.enqueue(script(chunk("a"), gate(released), finish(), done()), text("hello"))
    async with client_of(server.url, max_connections=1) as client:
        stream = await open_stream(client)
        opened = client.gauges()
        assert (counts(opened), opened.calls_in_flight, opened.max_connections) == ((1, 0, 0, 1), 0, 1)
        task = asyncio.ensure_future(complete(client))
        await wait_until(lambda: client.gauges().waiting == 1)
        waiting = client.gauges()
        assert (counts(waiting), waiting.calls_in_flight) == ((1, 0, 1, 1), 1)
        assert client.with_options(timeout=5).gauges() == waiting
        released.set()
        assert await read(stream) == "a"
        await with_timeout(task)
        await wait_until(lambda: client.gauges().in_use == 0)
        after = client.gauges()
        assert (counts(after), after.calls_in_flight) == ((0, 1, 0, 0), 0)
    assert client.gauges() == Gauges(max_connections=1)


async def test_call_waiting_for_a_retry_is_in_flight_without_a_connection(server: FriendliServer) -> None:
    server.enqueue(status(429, retry_after=30))
    async with client_of(server.url, retry=RetryPolicy(initial=0)) as client:
        task = asyncio.ensure_future(complete(client))
        await server.wait_for_requests()
        await wait_until(lambda: client.gauges().in_use == 0)
        gauges = client.gauges()
        assert (counts(gauges), gauges.calls_in_flight) == ((0, 1, 0, 0), 1)
        assert gauges.loops == (LoopGauges(idle=1, calls_in_flight=1),)
        await cancel_all(task)
        assert client.gauges().calls_in_flight == 0


async def test_gauges_do_not_count_idle_connections_of_a_user_session(server: FriendliServer) -> None:
    async with aiohttp.ClientSession() as session, client_of(server.url, session=session) as client:
        server.enqueue(script(chunk("a"), stall()))
        async with open_stream(client):
            assert counts(client.gauges()) == (1, 0, 0, 1)
        await complete(client)
        await wait_until(lambda: client.gauges().in_use == 0)
        assert counts(client.gauges()) == (0, 0, 0, 0)


class StreamInThread:
    """An event loop in its own thread, with one open stream of the client."""

    def __init__(self, client: AsyncFriendli, use: Callable[[ChatStream], Any]) -> None:
        self.opened = threading.Event()
        self.leave = threading.Event()
        self.errors: list[BaseException] = []
        self._client = client
        self._use = use
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self.opened.wait(60)

    async def _main(self) -> None:
        try:
            async with open_stream(self._client) as stream:
                self.opened.set()
                await self._use(stream)
                await asyncio.to_thread(self.leave.wait, 60)
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.opened.set()

    def join(self) -> list[BaseException]:
        self.leave.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.errors


def test_gauges_cover_each_event_loop_and_their_total(remote: FriendliServer) -> None:
    remote.always(script(chunk("a"), stall()))
    client = client_of(remote.url)

    async def check_gauges() -> None:
        async with open_stream(client):
            gauges = client.gauges()
            assert sorted(map(counts, gauges.loops)) == [(1, 0, 0, 1)] * 3
            assert counts(gauges) == (3, 0, 0, 3)

    async def do_nothing(stream: ChatStream) -> None:
        pass

    threads = [StreamInThread(client, do_nothing) for _ in range(2)]
    try:
        asyncio.run(check_gauges())
        assert len(client.gauges().loops) == 2  # an event loop that has ended is not listed
    finally:
        thread_errors = [thread.join() for thread in threads]
    assert thread_errors == [[], []]
    assert client.gauges().loops == ()


class InFlight:
    """A call in flight."""

    held = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def interrupt(self, error: APIConnectionError) -> None:
        """Is not called."""


def test_gauges_can_be_read_while_other_threads_begin_and_end_calls() -> None:
    """Only a free-threaded Python can fail this."""
    runtime = AsyncFriendli(TOKEN)._runtime
    ended = threading.Event()

    def begin_and_end() -> None:
        while not ended.is_set():
            call = InFlight(loop)
            runtime.begin(call)
            runtime.end(call)

    loop = asyncio.new_event_loop()
    threads = [threading.Thread(target=begin_and_end) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        in_flight = {runtime.gauges().calls_in_flight for _ in range(3000)}
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
        loop.close()
    assert in_flight <= {0, 1, 2}


# --- drain -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["5", -1, float("nan"), True])
async def test_drain_rejects_what_is_no_number_of_seconds(client: AsyncFriendli, seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout must be a number of seconds"):
        await client.drain(seconds)
    await complete(client)  # it is not draining


async def test_drain_returns_immediately_if_nothing_is_open(client: AsyncFriendli) -> None:
    assert await client.drain() == 0
    assert await client.drain(0.001) == 0


class PendingCall:
    """A call in its own event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.held = False

    def interrupt(self, error: APIConnectionError) -> None:
        raise AssertionError("the event loop is closed")


@pytest.mark.parametrize("seconds", [0.0, 2.5])
def test_drain_does_not_wait_for_calls_of_a_closed_event_loop(seconds: float) -> None:
    async def main() -> float:
        call = PendingCall()
        runtime = Runtime(FakeTransport(), 10)
        runtime.begin(call)
        assert runtime.gauges().loops == (LoopGauges(), LoopGauges(calls_in_flight=1))  # one has no pool
        assert runtime.gauges().calls_in_flight == 1
        asyncio.get_running_loop().call_later(seconds, call.loop.close)
        if not seconds:
            call.loop.close()
        assert await runtime.drain(None) == 0
        assert runtime.gauges() == Gauges(max_connections=10, loops=(LoopGauges(),))
        return now()

    assert seconds <= run_in_virtual_time(main()) <= seconds + 0.1


async def test_drain_lets_open_streams_finish_and_rejects_new_calls(server: FriendliServer) -> None:
    released = asyncio.Event()
    server.enqueue(script(chunk("a"), gate(released), chunk("b"), finish(), done()))
    async with client_of(server.url) as client:
        stream = await open_stream(client)
        drain = asyncio.ensure_future(client.drain())
        await run_loop_iterations()
        for rejected in (complete(client), complete(client.with_options(timeout=5)), open_stream(client).result()):
            with pytest.raises(ConfigurationError, match=r"^draining") as caught:
                await rejected
            assert copy.copy(caught.value).draining
        with pytest.raises(ConfigurationError, match=r"^draining"):
            await client.warm_up(1)
        assert not drain.done()
        released.set()
        assert await read(stream) == "ab"
        assert await with_timeout(drain) == 0
        assert stream.outcome == "done"
        assert len(server.requests) == 1
        assert not client._runtime.transport.closed  # closing is up to the caller
        await assert_no_leaks(client, server, connections=1)


async def test_drain_waits_for_active_and_queued_calls(server: FriendliServer) -> None:
    released = asyncio.Event()
    server.enqueue(script(gate(released), chunk("a"), finish(), done()), text("second"))
    async with client_of(server.url, max_connections=1) as client:
        first = asyncio.ensure_future(read(open_stream(client)))
        await server.wait_for_requests()
        second = asyncio.ensure_future(complete(client))
        await wait_until(lambda: client.gauges().waiting == 1)
        drain = asyncio.ensure_future(client.drain())
        await run_loop_iterations()
        released.set()
        assert await with_timeout(drain) == 0
        assert await first == "a"
        assert (await second).text == "second"


async def test_drain_timeout_aborts_open_calls_and_returns_their_number(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()), script(chunk("a"), stall()), stall(), script(head(), stall()))
    async with client_of(server.url) as client:
        reading, parked = await open_stream(client), await open_stream(client)
        assert (await anext(reading)).text == "a"
        tasks = [asyncio.ensure_future(anext(reading)), asyncio.ensure_future(complete(client))]
        await server.wait_for_requests(3)
        tasks.append(asyncio.ensure_future(open_stream(client).result()))
        await server.wait_for_requests(4)
        await run_loop_iterations(50)
        gauges = client.gauges()
        assert (gauges.in_use, gauges.open_streams, gauges.calls_in_flight) == (4, 2, 2)
        assert await with_timeout(client.drain(0.01)) == 4  # a stream that is being opened counts once
        caught = [(await asyncio.wait({task}), task.exception())[1] for task in tasks]
        assert [type(error) for error in caught] == [StreamInterruptedError, APIConnectionError, StreamInterruptedError]
        assert all("drained" in str(error) for error in caught)
        assert (await anext(parked)).text == "a"  # already received
        with pytest.raises(StreamInterruptedError, match="drained"):
            await anext(parked)
        await assert_no_leaks(client, server)


async def test_drain_returns_after_its_calls_have_raised_their_errors(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()), stall(), script(head(), stall()))
    raised: list[type[BaseException]] = []

    async def record(call: Awaitable[object]) -> None:
        try:
            await asyncio.wait_for(call, 60)
        except BaseException as error:
            raised.append(type(error))
            raise

    async with client_of(server.url, max_connections=3) as client:
        reading = await open_stream(client)
        await anext(reading)
        calls = (anext(reading), complete(client), open_stream(client).result(), complete(client))
        tasks = [asyncio.ensure_future(record(call)) for call in calls]
        await wait_until(lambda: client.gauges().waiting == 1)
        await server.wait_for_requests(3)
        assert await with_timeout(client.drain(0.01)) == 4
        await cancel_all(*tasks)
    assert Counter(raised) == {StreamInterruptedError: 2, APIConnectionError: 2}


async def test_drain_returns_although_a_call_ignores_that_it_was_interrupted(server: FriendliServer) -> None:
    released = asyncio.Event()

    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await released.wait()
        await released.wait()
        return TOKEN

    async with client_of(server.url) as client:
        call = asyncio.ensure_future(complete(client.with_options(token=stubborn)))
        await wait_until(lambda: client.gauges().calls_in_flight == 1)
        assert await with_timeout(client.drain(0.01)) == 1
        assert not call.done()
        released.set()
        await with_timeout(call)


async def test_finished_stream_is_not_open_even_if_its_body_continues(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(chunk("a"), finish(), done(), stall()))
    assert await read(open_stream(client)) == "a"
    assert counts(client.gauges()) == (1, 0, 0, 0)
    assert await with_timeout(client.drain(0.001)) == 0


async def test_draining_a_copy_drains_the_original_client(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = await open_stream(client)
    assert await with_timeout(client.with_options(timeout=5).drain(0.01)) == 1
    with pytest.raises(StreamInterruptedError):
        await read(stream)
    with pytest.raises(ConfigurationError, match="draining"):
        await complete(client)


async def test_cancelled_drain_aborts_nothing(client: AsyncFriendli, server: FriendliServer) -> None:
    released = asyncio.Event()
    server.enqueue(script(chunk("a"), gate(released), finish(), done()))
    stream = await open_stream(client)
    drain = asyncio.ensure_future(client.drain())
    await run_loop_iterations()
    await cancel_all(drain)
    released.set()
    assert await read(stream) == "a"
    assert await with_timeout(client.drain()) == 0


async def test_drain_returns_when_the_last_stream_is_closed(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with open_stream(client):
        drain = asyncio.ensure_future(client.drain())
        await run_loop_iterations()
        assert not drain.done()
    assert await with_timeout(drain) == 0


def test_drain_waits_for_streams_of_other_event_loops(remote: FriendliServer) -> None:
    released = threading.Event()
    remote.always(script(chunk("a"), gate(released), finish(), done()))
    client = client_of(remote.url)
    threads = [StreamInThread(client, read) for _ in range(2)]

    async def drain() -> int:
        waiting = asyncio.ensure_future(client.drain())
        await run_loop_iterations()
        assert not waiting.done()
        released.set()
        return await with_timeout(waiting)

    try:
        assert asyncio.run(drain()) == 0
    finally:
        released.set()
        thread_errors = [thread.join() for thread in threads]
    assert thread_errors == [[], []]


def test_drain_timeout_aborts_streams_of_other_event_loops(remote: FriendliServer) -> None:
    remote.always(script(chunk("a"), stall()))
    client = client_of(remote.url)
    threads = [StreamInThread(client, read) for _ in range(2)]
    try:
        assert asyncio.run(with_timeout(client.drain(0.01))) == 2
    finally:
        thread_errors = [thread.join() for thread in threads]
    assert [type(error) for errors in thread_errors for error in errors] == [StreamInterruptedError] * 2


# --- warm-up ---------------------------------------------------------------------------------------------------------


async def test_warm_up_sends_nothing_and_later_calls_use_its_connections() -> None:
    requests: list[bytes] = []

    async def handler(conversation: Conversation) -> None:
        while request := await conversation.request():
            requests.append(request)
            await conversation.send(reply(completion()))

    async with RawServer(handler) as server, client_of(server.url) as client:
        await client.warm_up(3)
        await wait_until(lambda: server.connections == 3)
        assert counts(client.gauges()) == (0, 3, 0, 0)
        await run_loop_iterations(50)
        assert requests == []
        await asyncio.gather(*(complete(client) for _ in range(3)))
        assert server.connections == 3
        assert len(requests) == 3
        await client.warm_up(2)  # in addition to the existing ones
        await wait_until(lambda: server.connections == 5)
        assert client.gauges().idle == 5
        assert (await complete(client)).meta.timing.connecting < 1


async def test_warm_ups_never_open_more_than_max_connections_in_all(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=4) as client:
        await client.warm_up(2)
        async with open_stream(client):
            await client.warm_up(2)
            assert counts(client.gauges()) == (1, 3, 0, 1)
            await asyncio.gather(client.warm_up(4), client.warm_up(1))
            assert counts(client.gauges()) == (1, 3, 0, 1)
        await asyncio.gather(client.warm_up(3), client.warm_up(3))
        assert counts(client.gauges()) == (0, 4, 0, 0)
        await server.wait_for_connections(4)


async def test_connection_that_was_closed_just_now_is_not_counted_as_idle(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url) as client:
        async with open_stream(client) as stream:
            await anext(stream)
        assert counts(client.gauges()) == (0, 0, 0, 0)


@pytest.mark.parametrize("end", [PooledProtocol.close, PooledProtocol.abort_connection])
async def test_connection_that_was_closed_in_the_pool_is_not_counted_as_idle(
    server: FriendliServer, end: Callable[[PooledProtocol], None]
) -> None:
    async with client_of(server.url) as client:
        await client.warm_up(1)
        [(pool, _)] = transport_of(client)._pools.values()
        [protocol] = pool.connections
        end(protocol)  # aiohttp closes those that were idle for 15 s
        assert counts(client.gauges()) == (0, 0, 0, 0)


async def test_warm_connection_is_reported_as_reused(server: FriendliServer) -> None:
    seen = Recorder()
    async with client_of(server.url, observers=[seen]) as client:
        await client.warm_up(1)
        assert seen.reported == []  # a warm-up is not a call
        await complete(client)
    assert [event.reused for event in seen.events if hasattr(event, "reused")] == [True]


@pytest.mark.parametrize("deployment", ["serverless", "dedicated", "container"])
async def test_warm_up_connects_to_the_given_deployment(server: FriendliServer, deployment: Any) -> None:
    elsewhere = "http://127.0.0.1:1"
    urls: dict[str, Any] = {"server_url": server.url, "container_url": elsewhere}
    if deployment == "container":
        urls = {"server_url": elsewhere, "container_url": server.url}
    async with AsyncFriendli("token", **urls) as client:
        await client.warm_up(2, deployment)
        await server.wait_for_connections(2)
        with pytest.raises(APIConnectionError):
            await client.warm_up(1, "container" if deployment != "container" else "serverless")
        with pytest.raises(ConfigurationError, match="'elsewhere'"):
            await client.warm_up(1, "elsewhere")  # type: ignore[arg-type]  # invalid on purpose
    assert server.requests == []


async def test_warm_up_needs_no_token(server: FriendliServer) -> None:
    async with AsyncFriendli(server_url=server.url) as client:
        await client.warm_up(1)
        await server.wait_for_connections(1)
        assert client.gauges().idle == 1


async def test_warm_up_of_an_unreachable_server_raises_and_leaks_nothing(refused_port: int) -> None:
    async with client_of(f"http://127.0.0.1:{refused_port}") as client:
        with pytest.raises(APIConnectionError, match="could not connect") as raised:
            await client.warm_up(3)
        assert raised.value.sent is False
        assert counts(client.gauges()) == (0, 0, 0, 0)


async def test_warm_up_obeys_the_connect_timeout() -> None:
    with unresponsive_port() as port:
        async with client_of(f"http://127.0.0.1:{port}", timeout=Timeouts(connect=0.05)) as client:
            with pytest.raises(APITimeoutError) as raised:
                await with_timeout(client.warm_up(2))
            assert (raised.value.limit, raised.value.sent) == ("connect", False)
            assert counts(client.gauges()) == (0, 0, 0, 0)


async def test_warm_up_ends_with_the_cancel_scope_around_it(server: FriendliServer) -> None:
    async def warm_up() -> None:
        with scope:
            await client.warm_up(2)

    scope = anyio.CancelScope()
    with unresponsive_port() as port:
        url = f"http://127.0.0.1:{port}"
        async with client_of(url, container_url=server.url, max_connections=2) as client:
            await client.container.chat.complete(messages=MESSAGES)
            await wait_until(lambda: client.gauges().idle == 1)
            warming = asyncio.create_task(warm_up())
            await run_loop_iterations(10)  # the second connection would be one too many, so only the first is pending
            assert counts(client.gauges()) == (1, 1, 0, 0)
            scope.cancel()
            await with_timeout(asyncio.wait([warming]))
            assert not warming.cancelled()
            assert scope.cancelled_caught
            assert counts(client.gauges()) == (0, 1, 0, 0)


@pytest.mark.parametrize("number", [0, -1, 3, 1.0, True, None, "2"])
async def test_warm_up_validates_the_number_of_connections(server: FriendliServer, number: Any) -> None:
    async with client_of(server.url, max_connections=2) as client:
        with pytest.raises(ConfigurationError, match=r"1 to 2 connections"):
            await client.warm_up(number)
    assert server.open_connections == 0


async def test_warm_up_is_rejected_with_a_user_session(server: FriendliServer) -> None:
    async with aiohttp.ClientSession() as session, client_of(server.url, session=session) as client:
        with pytest.raises(ConfigurationError, match="session"):
            await client.warm_up(1)
        assert counts(client.gauges()) == (0, 0, 0, 0)


async def test_warm_up_is_rejected_once_the_client_is_closed(server: FriendliServer) -> None:
    client = client_of(server.url)
    await client.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        await client.warm_up(1)


async def test_drain_waits_for_a_concurrent_warm_up() -> None:
    with unresponsive_port() as port:
        async with client_of(f"http://127.0.0.1:{port}", timeout=Timeouts(connect=0.05)) as client:
            warming = asyncio.ensure_future(client.warm_up(1))
            await wait_until(lambda: client.gauges().in_use == 1)
            assert await with_timeout(client.drain()) == 0
            with pytest.raises(APITimeoutError):
                await warming


# --- closing ---------------------------------------------------------------------------------------------------------


async def upload(client: AsyncFriendli, kind: str, size: int) -> None:
    if kind == "form":
        await client.serverless.audio.transcribe(model="m", file=b"x" * size)
    elif kind == "stream":
        await client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "x" * size}])
    else:
        await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "x" * size}])


@pytest.mark.parametrize("kind", ["chat", "stream", "form"])
async def test_closing_does_not_wait_for_a_server_that_does_not_read_the_upload(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    closed = asyncio.Event()

    async def talk(conversation: Conversation) -> None:
        await conversation.request_head()
        await conversation.send(reply(b"{}", status="413 Content Too Large"))
        await closed.wait()

    async with RawServer(talk) as server:
        async with client_of(server.url) as client:
            with pytest.raises(APIStatusError):
                await with_timeout(upload(client, kind, 32 * 1024 * 1024))  # more than the kernel buffers
            await with_timeout(client.aclose())
        closed.set()
    gc.collect()
    assert caplog.records == []


# --- streams that nobody reads ---------------------------------------------------------------------------------------


async def test_closing_the_client_ends_an_unread_stream_which_delivers_what_arrived(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    seen = Recorder()
    client = client_of(server.url, observers=[seen])
    stream = await open_stream(client)
    await client.aclose()
    assert (stream.outcome, seen.end.outcome) == ("cancelled", "cancelled")
    assert seen.end.error == "StreamInterruptedError"
    await assert_no_leaks(client, server)
    assert await read_until_interrupted(stream) == ["a"]
    with pytest.raises(StreamInterruptedError, match="the client was closed"):
        await anext(stream)
    with pytest.raises(StreamInterruptedError, match="the client was closed") as caught:
        await stream.result()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
    assert seen.reported.count("cancelled StreamInterruptedError") == 1


async def receive_more(stream: ChatStream, released: asyncio.Event, size: int) -> None:
    """Lets the server send the rest of `size` bytes, and waits until they have arrived; nobody reads them."""
    assert stream._open is not None
    exchange = stream._open.exchange
    assert isinstance(exchange, AiohttpExchange)
    released.set()
    await wait_until(lambda: exchange.content.total_bytes == size)


async def read_texts(stream: ChatStream) -> AsyncIterator[str]:
    async for event in stream:
        yield event.text


async def read_branch(stream: ChatStream) -> AsyncIterator[str]:
    async for event in stream.tee(1, buffer=1)[0]:
        yield event.text


async def read_bytes(stream: ChatStream) -> AsyncIterator[str]:
    async for data in stream.raw():
        for event in data.splitlines():
            if event:
                yield json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"].get("content", "")


READERS = {"events": read_texts, "branch": read_branch, "raw": read_bytes}


@pytest.fixture(params=["own", "session", "gzip"])
async def connection(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, aiohttp.ClientSession | None]]:
    async with aiohttp.ClientSession() as session:
        yield request.param, session if request.param == "session" else None


class LateEvents:
    """A stream of which the first event has been sent, and more arrive when nobody reads."""

    def __init__(self, server: FriendliServer, connection: tuple[str, aiohttp.ClientSession | None], *late: bytes):
        kind, self._session = connection
        self._server = server
        compressor = zlib.compressobj(wbits=31)
        pieces: list[bytes] = [delta("a"), *late]
        if kind == "gzip":
            pieces = [compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
        self._size = len(b"".join(pieces))
        self._released = asyncio.Event()
        headers = {"Content-Encoding": "gzip"} if kind == "gzip" else {}
        first, *rest = map(raw, pieces)
        server.enqueue(script(first, gate(self._released), *rest, stall(), headers=headers))

    def client(self, **options: Any) -> AsyncFriendli:
        return client_of(self._server.url, session=self._session, **options)

    async def arrive(self, stream: ChatStream) -> None:
        await receive_more(stream, self._released, self._size)


@pytest.mark.parametrize("reads", READERS.values(), ids=READERS)
@pytest.mark.parametrize("begun", [False, True])
async def test_unread_events_that_arrived_after_the_opening_are_delivered_after_the_client_was_closed(
    server: FriendliServer,
    connection: tuple[str, aiohttp.ClientSession | None],
    reads: Callable[[ChatStream], AsyncIterator[str]],
    begun: bool,
) -> None:
    late = LateEvents(server, connection, delta("b"), delta("c"))
    client = late.client()
    stream = await open_stream(client)
    texts = reads(stream)
    got = [await anext(texts)] if begun else []
    await late.arrive(stream)
    await client.aclose()
    assert stream.outcome == "cancelled"
    with pytest.raises(StreamInterruptedError, match="the client was closed") as caught:
        await read_into(got, texts)
    assert got == ["a", "b", "c"]
    assert caught.value.partial is not None
    assert caught.value.partial.text == "abc"
    assert stream.timing.events == 3
    with pytest.raises(StreamInterruptedError):
        await stream.result()


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(("first", "late"), [("", "b"), ("a", "b"), ("", "")])
async def test_first_text_that_arrived_while_nobody_read_is_timed(
    server: FriendliServer, stopped: bool, first: str, late: str
) -> None:
    released = asyncio.Event()
    server.enqueue(script(raw(delta(first)), gate(released), raw(delta(late)), stall()))
    client = client_of(server.url)
    stream = await open_stream(client)
    await receive_more(stream, released, len(delta(first) + delta(late)))
    before = stream.timing.first_text
    assert (before is None) is (not first)
    await (stream.stop() if stopped else client.aclose())
    assert (stream.timing.first_text is None) is (not first + late)
    if first:
        assert stream.timing.first_text == before
    await client.aclose()


async def test_stop_condition_is_not_called_for_events_that_nobody_read_when_the_client_was_closed(
    server: FriendliServer,
) -> None:
    late = LateEvents(server, ("own", None), delta("b"))
    client = late.client()
    texts: list[str] = []
    stream = await open_stream(client).stop_when(texts.append)
    assert (await anext(stream)).text == "a"
    await late.arrive(stream)
    await client.aclose()
    assert (texts, stream.outcome) == (["a"], "cancelled")


async def test_unread_events_that_have_arrived_are_delivered_after_the_total_timeout(
    server: FriendliServer, connection: tuple[str, aiohttp.ClientSession | None], clock: Clock
) -> None:
    late = LateEvents(server, connection, delta("b"), delta("c"))
    async with late.client(timeout=20) as client:
        stream = await open_stream(client)
        await late.arrive(stream)
        clock.advance(21)
        await wait_until(lambda: stream.outcome != "open")
        got: list[str] = []
        with pytest.raises(APITimeoutError, match="total") as caught:
            await read_into(got, read_texts(stream))
    assert (stream.outcome, got) == ("failed", ["a", "b", "c"])
    assert caught.value.partial is not None
    assert caught.value.partial.text == "abc"


@pytest.mark.parametrize("reads", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (delta(finish="stop"), "done"),
        (delta() + DONE, "done"),
        (b'data: {"error": {"message": "busy", "code": 503}}\n\n', "failed"),
    ],
    ids=["finish reason", "sentinel", "error"],
)
async def test_end_that_arrived_while_nobody_read_is_that_of_the_stream_after_the_client_was_closed(
    server: FriendliServer,
    connection: tuple[str, aiohttp.ClientSession | None],
    reads: Callable[[ChatStream], AsyncIterator[str]],
    last: bytes,
    outcome: str,
) -> None:
    late = LateEvents(server, connection, delta("b"), last)
    client = late.client()
    stream = await open_stream(client)
    await late.arrive(stream)
    await client.aclose()
    assert stream.outcome == outcome
    got: list[str] = []
    if reads is read_bytes:  # the sentinel and the error are no events
        assert last in b"".join([data async for data in filtered(stream.raw())])
    elif outcome == "failed":
        with pytest.raises(InternalServerError, match="busy"):
            await read_into(got, reads(stream))
        assert got == ["a", "b"]
    else:
        await read_into(got, reads(stream))
        assert (await stream.result()).text == "".join(got) == "ab"


async def filtered(source: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yields what a source delivers before its error, if it raises one of the stream."""
    with contextlib.suppress(InternalServerError):
        async for data in source:
            yield data


async def test_result_of_a_stopped_stream_has_what_arrived_on_any_connection(
    server: FriendliServer, connection: tuple[str, aiohttp.ClientSession | None]
) -> None:
    late = LateEvents(server, connection, delta("b"), delta("c"))
    async with late.client() as client:
        stream = await open_stream(client)
        await late.arrive(stream)
        await stream.stop()
        assert [event async for event in stream] == []
        assert (await stream.result()).text == "abc"


async def read_what_arrives_in_the_moment_of_the_close(
    server: FriendliServer, reads: Callable[[ChatStream], AsyncIterator[str]], data: bytes
) -> list[str]:
    """Returns the texts of a stream of "a" and ``data``, which arrives in the turn in which its client closes."""
    client = LateEvents(server, ("own", None)).client()
    stream = await open_stream(client)
    got: list[str] = []
    reading = asyncio.ensure_future(read_into(got, reads(stream)))
    await wait_until(lambda: bool(got))
    await run_loop_iterations()
    assert stream._open is not None
    exchange = stream._open.exchange
    assert isinstance(exchange, AiohttpExchange)
    assert exchange.take_chunks(chunked(data))  # the reader is woken, but has not run
    await client.aclose()
    with pytest.raises(StreamInterruptedError, match="the client was closed"):
        await with_timeout(reading)
    return got


@pytest.mark.parametrize("reads", READERS.values(), ids=READERS)
async def test_events_that_arrive_in_the_moment_of_the_close_reach_the_waiting_reader(
    server: FriendliServer, reads: Callable[[ChatStream], AsyncIterator[str]]
) -> None:
    assert await read_what_arrives_in_the_moment_of_the_close(server, reads, delta("b")) == ["a", "b"]


@pytest.mark.parametrize("reads", [read_texts, read_branch])
async def test_comment_that_arrives_in_the_moment_of_the_close_does_not_hide_it(
    server: FriendliServer, reads: Callable[[ChatStream], AsyncIterator[str]]
) -> None:
    assert await read_what_arrives_in_the_moment_of_the_close(server, reads, b": comment\n\n") == ["a"]


async def read_until_interrupted(stream: ChatStream) -> list[str]:
    """Returns the texts that a stream delivers before its error."""
    texts: list[str] = []
    while True:
        try:
            texts.append((await anext(stream)).text)
        except StreamInterruptedError:
            return texts


async def test_closing_the_client_ends_a_complete_unread_stream_as_done(server: FriendliServer) -> None:
    server.enqueue(script(raw(delta("a") + delta(finish="stop")), stall()))
    seen = Recorder()
    client = client_of(server.url, observers=[seen])
    stream = await open_stream(client)
    await client.aclose()
    assert (stream.outcome, seen.end.outcome) == ("done", "done")
    assert await read(stream) == "a"
    assert (await stream.result()).text == "a"


async def test_closing_the_client_ends_an_unread_stream_whose_bytes_can_still_be_relayed(
    server: FriendliServer,
) -> None:
    server.enqueue(script(raw(delta("a")), stall()))
    client = client_of(server.url)
    stream = await open_stream(client)
    await client.aclose()
    reads = stream.raw()
    assert await anext(reads) == delta("a")
    for _ in range(2):
        with pytest.raises(StreamInterruptedError, match="the client was closed"):
            await anext(reads)


async def test_closing_the_client_ends_an_unread_stream_that_still_obeys_its_stop_conditions(
    server: FriendliServer,
) -> None:
    server.enqueue(script(raw(delta("a") + delta("b") + delta("c")), stall()))
    client = client_of(server.url)
    stream = (await open_stream(client)).stop_when(lambda text: "b" in text)
    await client.aclose()
    assert await read_until_interrupted(stream) == ["a", "b"]


@pytest.mark.parametrize("read_mode", ["raw", "stop_when", "events"])
async def test_unread_stream_that_is_closed_after_its_client_delivers_nothing(
    server: FriendliServer, read_mode: str
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    client = client_of(server.url)
    stream = await open_stream(client)
    if read_mode == "stop_when":
        stream.stop_when(lambda text: "b" in text)
    await client.aclose()
    await stream.aclose()
    source: AsyncIterable[Any] = stream.raw() if read_mode == "raw" else stream
    assert [each async for each in source] == []


async def test_branches_of_a_closed_client_deliver_what_arrived(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    client = client_of(server.url)
    stream = await open_stream(client)
    branches = stream.tee(2, buffer=1)
    await client.aclose()
    for branch in branches:
        assert (await anext(branch)).text == "a"
        with pytest.raises(StreamInterruptedError, match="the client was closed"):
            await anext(branch)


def test_end_of_the_loop_ends_an_unread_stream(remote: FriendliServer) -> None:
    remote.enqueue(script(chunk("a"), stall()))
    seen = Recorder()
    client = client_of(remote.url, observers=[seen])
    stream = asyncio.run(open_stream(client)._ensure_open())
    assert (stream.outcome, seen.end.outcome) == ("cancelled", "cancelled")


async def test_stream_that_has_arrived_ends_as_usual_after_its_client_was_closed(server: FriendliServer) -> None:
    server.enqueue(script(raw(delta("a") + delta(finish="stop") + DONE), stall()))
    client = client_of(server.url)
    stream = await open_stream(client)
    await client.aclose()
    assert (stream.outcome, await read(stream), stream.outcome) == ("open", "a", "done")


async def test_stream_whose_body_has_ended_says_so_after_its_client_was_closed(server: FriendliServer) -> None:
    server.enqueue(script(raw(delta("a")), raw(delta("b"))))
    client = client_of(server.url)
    stream = await open_stream(client)
    opened = stream._open
    assert opened is not None
    assert isinstance(opened.exchange, AiohttpExchange)
    await wait_until(opened.exchange.content.is_eof)
    await client.aclose()
    with pytest.raises(StreamInterruptedError, match="the stream ended before it was complete") as caught:
        await read(stream)
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"


async def test_open_stream_is_no_cycle_once_it_has_ended(server: FriendliServer) -> None:
    opened = asyncio.Event()
    server.always(script(chunk("a"), gate(opened), finish(), done()))
    gc.disable()
    try:
        async with client_of(server.url) as client:
            stream = await open_stream(client)
            exchange = stream._open and stream._open.exchange
            assert exchange is not None
            assert exchange.on_abort is not None
            opened.set()
            assert await read(stream) == "a"
            assert exchange.on_abort is None
    finally:
        gc.enable()


# --- work of several calls -------------------------------------------------------------------------------------------


class PausedWork(Work):
    """Work between whose check and beginning another thread drains the client."""

    runtime: Runtime

    def begin(self, works: set[Work], loop: asyncio.AbstractEventLoop) -> None:
        self.drained = threading.Event()
        threading.Thread(target=self.drain).start()
        assert not self.drained.wait(0.2)  # the drain has seen nothing open
        super().begin(works, loop)

    def drain(self) -> None:
        asyncio.run(self.runtime.drain(None))
        self.drained.set()


async def test_drain_in_another_thread_waits_for_work_that_has_just_begun() -> None:
    work = PausedWork()
    work.runtime = runtime = Runtime(FakeTransport(), 10)
    runtime.begin_work(work)
    await wait_until(lambda: is_draining(runtime))
    assert not work.drained.is_set()
    work.close()
    await wait_until(work.drained.is_set)
    with pytest.raises(ConfigurationError, match="draining"):
        runtime.begin_work(Work())


def is_draining(runtime: Runtime) -> bool:
    try:
        runtime.check()
    except ConfigurationError:
        return True
    return False


def test_work_is_a_part_of_what_it_began_in_but_not_of_itself() -> None:
    outer, inner = Work(), Work()
    with outer.making_calls(), inner.making_calls(), outer.making_calls(), outer.making_calls():
        assert (outer.outer, inner.outer) == (None, outer)


async def test_work_begins_with_what_it_is_a_part_of() -> None:
    outer, between, inner, works = Work(), Scope(), Work(), set[Work]()
    with outer.making_calls(), between.making_calls(), inner.making_calls():
        inner.begin(works, asyncio.get_running_loop())
    assert works == {outer, inner}
