"""Timeouts: each one is raised under its own name, and only when it should be."""

import asyncio
import functools
import json
from typing import Any

import aiohttp
import pytest
from support.clock import Clock, run_loop_iterations, wait_until
from support.sockets import (
    DONE,
    FAST_RETRY,
    STREAM_HEAD,
    Conversation,
    RawServer,
    assert_no_leaks,
    chunked,
    client_of,
    complete,
    delta,
    open_stream,
    read,
    slots_in_use,
    unresponsive_port,
    with_timeout,
)
from support.steps import endless
from support.virtual import NEVER_ENDS, FakeTransport, now, response, run_in_virtual_time

from friendli_async import (
    APIConnectionError,
    APITimeoutError,
    ChatStream,
    RateLimitError,
    Timeouts,
)
from friendli_async._core.net import pool as pool_module
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async.testing import FriendliServer, chunk, done, finish, gate, head, raw, reset, script, stall, text

pytestmark = pytest.mark.compatibility


def limits_of(error: APITimeoutError) -> tuple[str, float, bool]:
    assert isinstance(error, TimeoutError)
    assert isinstance(error, APIConnectionError)
    assert error.limit in str(error)
    assert f"{error.seconds:g} s" in str(error)
    return error.limit, error.seconds, error.sent


# --- connect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
async def test_connect_timeout(streamed: bool) -> None:
    with unresponsive_port() as port:
        async with client_of(f"http://127.0.0.1:{port}", timeout=Timeouts(connect=0.1)) as client:
            with pytest.raises(APITimeoutError) as caught:
                await with_timeout(open_stream(client).result() if streamed else complete(client))
            assert limits_of(caught.value) == ("connect", 0.1, False)
            assert str(caught.value) == f"no connection within 0.1 s (connect: connecting to 127.0.0.1:{port})"
            assert slots_in_use(client) == 0


async def test_timeout_while_connecting_names_the_proxy() -> None:
    with unresponsive_port() as port:
        proxy = f"http://user:password@127.0.0.1:{port}"
        async with client_of("https://api.invalid", timeout=Timeouts(connect=0.1), proxy=proxy) as client:
            with pytest.raises(APITimeoutError) as caught:
                await with_timeout(complete(client))
            expected = f"(connect: connecting to the proxy 127.0.0.1:{port}) (server api.invalid:443)"
            assert str(caught.value).endswith(expected)


@pytest.mark.parametrize(
    ("through_proxy", "answer", "waits_for"),
    [
        (False, b"", "TLS handshake with {}"),
        (True, b"", "waiting for the proxy {}"),
        (True, b"HTTP/1.1 200 OK\r\n\r\n", "TLS handshake with api.invalid:443"),
    ],
    ids=["TLS", "proxy", "TLS through the proxy"],
)
async def test_timeout_after_the_tcp_connect_says_what_it_waited_for(
    through_proxy: bool, answer: bytes, waits_for: str
) -> None:
    async def be_silent(conversation: Conversation) -> None:
        if answer:
            await conversation.request()
            await conversation.send(answer)
        await asyncio.Event().wait()

    async with RawServer(be_silent) as silent:
        address = silent.url.removeprefix("http://")
        url, proxy = ("https://api.invalid", silent.url) if through_proxy else (f"https://{address}", None)
        async with client_of(url, timeout=Timeouts(connect=0.5), proxy=proxy, retry=None) as client:
            with pytest.raises(APITimeoutError) as caught:
                await with_timeout(complete(client))
    assert limits_of(caught.value) == ("connect", 0.5, False)
    assert caught.value.args[0].endswith(f"(connect: {waits_for.format(address)})")


async def test_timeout_while_the_name_is_resolved_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*arguments: object, **options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hang)
    async with client_of("https://api.invalid", timeout=Timeouts(connect=0.1), retry=None) as client:
        with pytest.raises(APITimeoutError) as caught:
            await with_timeout(complete(client))
    assert str(caught.value).endswith("(connect: resolving the name of api.invalid:443)")


async def test_total_that_expires_while_connecting_says_so() -> None:
    with unresponsive_port() as port:
        async with client_of(f"http://127.0.0.1:{port}", timeout=0.1) as client:
            with pytest.raises(APITimeoutError) as caught:
                await with_timeout(complete(client))
            assert limits_of(caught.value) == ("total", 0.1, False)
            assert str(caught.value).endswith(f"(total: connecting to 127.0.0.1:{port})")


async def test_connect_timeout_applies_to_user_session() -> None:
    with unresponsive_port() as port:
        async with (
            aiohttp.ClientSession() as session,
            client_of(f"http://127.0.0.1:{port}", timeout=Timeouts(connect=0.1), session=session) as client,
        ):
            with pytest.raises(APITimeoutError) as caught:
                await with_timeout(complete(client))
            assert (caught.value.limit, caught.value.seconds) == ("connect", 0.1)
            assert f"127.0.0.1:{port}" in str(caught.value)


async def test_timeout_while_a_dead_connection_is_replaced_is_marked_sent(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*arguments: object) -> None:
        await asyncio.Event().wait()

    server.enqueue(text("a"), script(reset()))
    async with client_of(server.url, timeout=Timeouts(connect=0.1)) as client:
        await complete(client)
        monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", hang)
        with pytest.raises(APITimeoutError) as caught:
            await with_timeout(complete(client))
        assert limits_of(caught.value) == ("connect", 0.1, True)


async def test_total_that_expires_while_the_token_is_fetched_says_so(server: FriendliServer) -> None:
    async def token() -> str:
        await asyncio.Event().wait()
        return "never"

    async with client_of(server.url, timeout=0.05) as client:
        with pytest.raises(APITimeoutError) as caught:
            await with_timeout(complete(client.with_options(token=token)))
    assert str(caught.value) == "the call did not finish within 0.05 s (total: waiting for the token)"


async def test_total_that_expires_after_the_token_was_fetched_does_not_blame_it(server: FriendliServer) -> None:
    async with client_of(server.url, timeout=0.3) as client:
        await complete(client.with_options(timeout=None))  # leaves a connection in the pool
        server.enqueue(script(stall()))
        with pytest.raises(APITimeoutError) as caught:
            await with_timeout(complete(client.with_options(token=lambda: server.token or "")))
    assert caught.value.args[0] == "the call did not finish within 0.3 s (total)"


@pytest.mark.parametrize(
    ("limit", "answer", "rest"),
    [
        ("first_event", stall(), ""),
        ("first_event", script(head(), stall()), "the status has arrived, but no event"),
        ("idle", script(chunk("a"), stall()), ""),
    ],
    ids=["no status", "status", "open stream"],
)
@pytest.mark.parametrize(("late", "blocked"), [(0.1, ""), (10.0, "the event loop was blocked meanwhile")])
async def test_timeout_says_if_the_loop_was_blocked(
    server: FriendliServer, clock: Clock, limit: str, answer: Any, rest: str, late: float, blocked: str
) -> None:
    server.enqueue(answer)
    timeouts = Timeouts(**{"first_event": None, "idle": None, limit: 20.0})
    async with client_of(server.url, timeout=timeouts, retry=None) as client:
        call = asyncio.create_task(_text(open_stream(client)))
        await server.wait_for_requests(1)
        await run_loop_iterations(100)
        clock.advance(20 + late)  # the timer fires late
        with pytest.raises(APITimeoutError) as caught:
            await call
    details = "; ".join(filter(None, (rest, blocked)))
    assert caught.value.args[0].endswith(f"within 20 s ({limit}{details and f': {details}'})")


# --- after every finish reason ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["idle", "total"])
@pytest.mark.parametrize("finished", [True, False])
def test_timeout_after_every_finish_reason_ends_stream_as_done(limit: str, finished: bool) -> None:
    async def main() -> tuple[str, str | None, float]:
        choice: dict[str, Any] = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop" if finished else None}
        event = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
        client = client_of("http://nowhere")
        timeouts = Timeouts(**{"idle": None, limit: 7.0})
        settings = Settings.from_options({"token": "t", "timeout": timeouts, "retry": None})
        transport = FakeTransport(response(event, NEVER_ENDS))
        client._build(Runtime(transport, 10), settings, owner=True)
        stream = open_stream(client)
        try:
            assert [chunk.text async for chunk in stream] == ["a"]
        except APITimeoutError as error:
            return stream.outcome, error.limit, now()
        assert (await stream.result()).text == "a"
        assert transport.exchanges[0].ends[:1] == ["abort"]
        return stream.outcome, None, now()

    assert run_in_virtual_time(main()) == (("done", None, 7.0) if finished else ("failed", limit, 7.0))


# --- first_event -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silence", "has_status"),
    [(stall(), False), (script(head(), stall()), True), (script(raw(b"data: {"), stall()), True)],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_first_event_timeout_regardless_of_headers_and_partial_data(
    server: FriendliServer, clock: Clock, silence: Any, has_status: bool, streamed: bool
) -> None:
    server.enqueue(silence)
    async with client_of(server.url, timeout=Timeouts(first_event=20, idle=2)) as client:
        call = asyncio.create_task(_open(open_stream(client)) if streamed else complete(client))
        await server.wait_for_requests(1)
        await run_loop_iterations()
        clock.advance(19)
        await run_loop_iterations()
        assert not call.done()
        clock.advance(1)
        with pytest.raises(APITimeoutError) as caught:
            await call
        assert limits_of(caught.value) == ("first_event", 20, True)
        missing = f": the status has arrived, but {'no event' if streamed else 'not the whole reply'}"
        assert caught.value.args[0] == f"no reply within 20 s (first_event{missing if has_status else ''})"
        await assert_no_leaks(client, server)


async def test_first_event_timeout_applies_to_user_session(server: FriendliServer, clock: Clock) -> None:
    server.enqueue(stall())
    async with (
        aiohttp.ClientSession() as session,
        client_of(server.url, session=session, timeout=Timeouts(first_event=20)) as client,
    ):
        call = asyncio.create_task(complete(client))
        await server.wait_for_requests(1)
        await run_loop_iterations()
        clock.advance(20)
        await wait_until(call.done)
        with pytest.raises(APITimeoutError) as caught:
            await call
        assert limits_of(caught.value) == ("first_event", 20, True)


async def test_comments_and_pings_do_not_count_as_first_event(clock: Clock) -> None:
    async def ping(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD)
        while True:
            await conversation.send(chunked(b": ping\n\nevent: ping\ndata: {}\n\n"))
            await run_loop_iterations()
            clock.advance(2)

    async with RawServer(ping) as pinging, client_of(pinging.url, timeout=Timeouts(first_event=15)) as client:
        with pytest.raises(APITimeoutError) as caught:
            await open_stream(client).__aenter__()
        assert limits_of(caught.value) == ("first_event", 15, True)


async def test_first_event_timeout_covers_whole_plain_reply(clock: Clock) -> None:
    async def trickle(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await conversation.send(b" ")
            await run_loop_iterations()
            clock.advance(2)

    async with RawServer(trickle) as trickling, client_of(trickling.url, timeout=Timeouts(first_event=15)) as client:
        with pytest.raises(APITimeoutError) as caught:
            await complete(client)
        assert limits_of(caught.value) == ("first_event", 15, True)


async def test_first_event_timeout_of_billed_call_is_not_retried(server: FriendliServer, clock: Clock) -> None:
    server.always(stall())
    async with client_of(server.url, timeout=Timeouts(first_event=20), retry=FAST_RETRY) as client:
        for number, call in enumerate((complete(client), open_stream(client).result()), 1):
            calling = asyncio.create_task(call)
            await server.wait_for_requests(number)
            clock.advance(20)
            with pytest.raises(APITimeoutError):
                await calling
    assert len(server.requests) == 2


async def test_first_event_timeout_is_per_attempt(server: FriendliServer, clock: Clock) -> None:
    """The first two attempts each use up most of the limit; the third succeeds."""
    gates = [asyncio.Event(), asyncio.Event()]
    server.enqueue(*[script(gate(opened), raw(b"{}"), status=503) for opened in gates], text("ok"))
    async with client_of(server.url, timeout=Timeouts(first_event=40), retry=FAST_RETRY) as client:
        reading = asyncio.create_task(_text(open_stream(client)))
        for number, opened in enumerate(gates, 1):
            await server.wait_for_requests(number)
            clock.advance(30)
            await run_loop_iterations()
            opened.set()
        assert await reading == "ok"
    assert len(server.requests) == 3


async def test_first_event_timeout_excludes_wait_for_connection_slot(server: FriendliServer, clock: Clock) -> None:
    release = asyncio.Event()
    server.enqueue(script(chunk("a"), gate(release), finish(), done()), text("b"))
    timeout = Timeouts(first_event=30, pool=None, idle=None)
    async with client_of(server.url, max_connections=1, timeout=timeout) as client:
        async with open_stream(client) as first:
            await anext(first)
            second = asyncio.create_task(_text(open_stream(client)))
            await run_loop_iterations()
            clock.advance(45)
            await run_loop_iterations()
            release.set()
            assert await _text(first) == ""
        assert await second == "b"


async def _text(stream: ChatStream) -> str:
    """Reads to the end, without the time bound of `read`, which advancing the clock would exceed."""
    return "".join([chunk.text async for chunk in stream])


async def _open(stream: ChatStream) -> ChatStream:
    return await stream


# --- idle ------------------------------------------------------------------------------------------------------------


async def test_idle_timeout_between_events(server: FriendliServer, clock: Clock) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    async with client_of(server.url, timeout=Timeouts(first_event=5, idle=20)) as client:
        stream = open_stream(client)
        assert [(await anext(stream)).text, (await anext(stream)).text] == ["a", "b"]
        result = asyncio.create_task(stream.result())
        await run_loop_iterations()
        clock.advance(19)
        await run_loop_iterations()
        assert not result.done()
        clock.advance(1)
        with pytest.raises(APITimeoutError) as caught:
            await result
        assert limits_of(caught.value) == ("idle", 20, True)
        assert stream.outcome == "failed"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "ab"
        assert caught.value.meta == stream.meta
        await assert_no_leaks(client, server)


@pytest.mark.parametrize("noise", [b": ping\n\n", b"event: ping\ndata: {}\n\n", b"\n\n", b"id: 1\n\n", b"data: {"])
@pytest.mark.parametrize("in_bytes", [False, True])
async def test_data_without_events_does_not_extend_idle_timeout(clock: Clock, noise: bytes, in_bytes: bool) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD + chunked(delta("a")))
        for _ in range(20):
            await conversation.send(chunked(noise))
            await run_loop_iterations()
            clock.advance(2)

    async with RawServer(talk) as server, client_of(server.url, timeout=Timeouts(idle=15)) as client:
        stream = await open_stream(client)
        started = clock()
        with pytest.raises(APITimeoutError) as caught:
            async for _ in stream.raw() if in_bytes else stream:
                pass
        assert limits_of(caught.value) == ("idle", 15, True)
        assert clock() - started < 20


async def test_events_reset_idle_timeout(clock: Clock) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD)
        for number in range(10):
            await conversation.send(chunked(delta("a")))
            await wait_until(functools.partial(is_seen, number))
            await run_loop_iterations()
            clock.advance(4)
        await conversation.send(chunked(DONE))

    def is_seen(number: int) -> bool:
        return len(seen) > number

    seen: list[str] = []
    async with RawServer(talk) as server, client_of(server.url, timeout=Timeouts(idle=15)) as client:
        async for event in open_stream(client):
            seen.append(event.text)  # noqa: PERF401  # the server reads its length meanwhile
    assert seen == ["a"] * 10


async def test_slow_consumer_does_not_cause_idle_timeout(server: FriendliServer, clock: Clock) -> None:
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}  # so that the reader has waited for the second event
    server.enqueue(script(chunk("a"), gate(gates["a"]), chunk("b"), gate(gates["b"]), chunk("c"), finish(), done()))
    async with client_of(server.url, timeout=Timeouts(idle=25)) as client, open_stream(client) as stream:
        seen: list[str] = []
        async for piece in stream.text():
            seen.append(piece)
            clock.advance(35)
            await run_loop_iterations()
            if piece in gates:
                gates[piece].set()
        assert seen == ["a", "b", "c"]
    assert stream.outcome == "done"


# --- total -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [25, Timeouts(total=25)])
@pytest.mark.parametrize("answer", [stall(), script(head(), stall()), script(chunk("a"), stall())])
async def test_total_timeout_fires_at_every_stage(
    server: FriendliServer, clock: Clock, timeout: Any, answer: Any
) -> None:
    server.enqueue(answer)
    async with client_of(server.url, timeout=timeout) as client:
        result = asyncio.create_task(open_stream(client).result())
        await server.wait_for_requests(1)
        await run_loop_iterations()
        clock.advance(24)
        await run_loop_iterations()
        assert not result.done()
        clock.advance(1)
        with pytest.raises(APITimeoutError) as caught:
            await result
        assert limits_of(caught.value) == ("total", 25, True)
        await assert_no_leaks(client, server)


async def test_total_timeout_fires_on_endless_stream(server: FriendliServer, clock: Clock) -> None:
    server.enqueue(script(endless(delta("a"))))
    async with client_of(server.url, timeout=20) as client:
        stream = await open_stream(client)

        async def consume() -> None:
            async for _ in stream:
                clock.advance(0.5)

        with pytest.raises(APITimeoutError) as caught:
            await consume()
        assert limits_of(caught.value) == ("total", 20, True)
        assert stream.outcome == "failed"
        assert caught.value.partial is not None
        assert set(caught.value.partial.text) == {"a"}


async def test_total_timeout_disconnects_unread_stream(server: FriendliServer, clock: Clock) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, timeout=30) as client:
        stream = await open_stream(client)
        clock.advance(30)
        assert await server.requests[0].disconnected()
        assert (slots_in_use(client), stream.outcome) == (0, "failed")
        with pytest.raises(APITimeoutError) as caught:
            await read(stream)
        assert caught.value.limit == "total"


async def test_total_timeout_covers_wait_for_connection_slot(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1) as client, open_stream(client):
        with pytest.raises(APITimeoutError) as caught:
            await with_timeout(complete(client.with_options(timeout=0.1)))
        assert limits_of(caught.value) == ("total", 0.1, False)


@pytest.mark.parametrize("bypass_session", [False, True], ids=["session", "own"])
async def test_timeout_none_disables_every_timeout(
    server: FriendliServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, bypass_session: bool
) -> None:
    monkeypatch.setattr(pool_module, "CAN_POST", bypass_session)
    go = asyncio.Event()
    server.enqueue(script(gate(go), chunk("a"), finish(), done()))
    async with client_of(server.url, timeout=None) as client:
        task = asyncio.create_task(open_stream(client).result())
        await server.wait_for_requests(1)
        clock.advance(10_000)  # also past the defaults of an aiohttp session
        await run_loop_iterations()
        go.set()
        assert (await with_timeout(task)).text == "a"


# --- pool ------------------------------------------------------------------------------------------------------------


async def test_pool_timeout_reports_pool_usage(server: FriendliServer) -> None:
    server.always(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=2, timeout=Timeouts(pool=0.1), retry=FAST_RETRY) as client:
        async with open_stream(client), open_stream(client):
            with pytest.raises(APITimeoutError) as caught:
                await with_timeout(open_stream(client).result())
            assert limits_of(caught.value) == ("pool", 0.1, False)
            assert "2 of 2" in str(caught.value)
            assert caught.value.meta is not None
            assert len(caught.value.meta.attempts) == 1, "a pool timeout is never retried"
        await assert_no_leaks(client, server)
    assert len(server.requests) == 2


async def test_connection_slots_are_granted_in_fifo_order(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1) as client:
        order: list[int] = []

        async def call(number: int) -> None:
            await complete(client)
            order.append(number)

        async with open_stream(client):
            tasks = [asyncio.create_task(call(number)) for number in range(10)]
            await asyncio.sleep(0)
            tasks[3].cancel()
        await with_timeout(asyncio.gather(*tasks, return_exceptions=True))
        assert order == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert [request.outcome for request in server.requests[1:]] == ["completed"] * 9


async def test_new_call_does_not_overtake_waiting_calls(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1) as client:
        order: list[str] = []

        async def call(name: str) -> None:
            await complete(client)
            order.append(name)

        stream = await open_stream(client)
        early = asyncio.create_task(call("early"))
        await asyncio.sleep(0)
        await stream.aclose()
        await call("late")
        await with_timeout(early)
        assert order == ["early", "late"]


# --- stalled error responses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["first_event", "total"])
@pytest.mark.parametrize("begun", [b"", b'{"message": "slow down'])
@pytest.mark.parametrize("call", [complete, lambda client: read(open_stream(client))])
async def test_error_response_that_stalls_is_raised_when_a_limit_expires(
    server: FriendliServer, clock: Clock, call: Any, limit: str, begun: bytes
) -> None:
    server.always(script(raw(begun), stall(), status=429, content_type="application/json"))
    async with client_of(server.url, timeout=Timeouts(**{limit: 2.0}), retry=None) as client:
        failing = asyncio.ensure_future(call(client))
        await server.wait_for_requests(1)
        await run_loop_iterations(50)
        clock.advance(2)
        with pytest.raises(RateLimitError, match="slow down" if begun else "429"):
            await with_timeout(failing)
        assert slots_in_use(client) == 0


async def test_stalled_error_response_of_a_rejected_request_is_retried(server: FriendliServer, clock: Clock) -> None:
    server.enqueue(script(raw(b"{"), stall(), status=429, content_type="application/json"), text("hi"))
    async with client_of(server.url, timeout=Timeouts(first_event=2), retry=FAST_RETRY) as client:
        answer = asyncio.ensure_future(complete(client))
        await server.wait_for_requests(1)
        await run_loop_iterations(50)
        clock.advance(2)

        def is_repeated() -> bool:
            clock.advance(0.1)
            return len(server.requests) == 2

        await wait_until(is_repeated)
        assert (await with_timeout(answer)).text == "hi"
