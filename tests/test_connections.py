"""Connections: reuse, replacement of dead ones, redirects, cookies and keepalive."""

import asyncio
import errno
import gc
import gzip
import logging
import random
import socket
import sys
from typing import Any
from unittest.mock import MagicMock

import aiohttp
import pytest
from support.clock import Clock, run_loop_iterations, wait_until
from support.sockets import (
    DONE,
    FAST_RETRY,
    LAST_CHUNK,
    STREAM_HEAD,
    TOKEN,
    UNFRAMED_HEAD,
    Conversation,
    RawServer,
    assert_no_leaks,
    chunked,
    client_of,
    client_sockets,
    complete,
    completion,
    delta,
    open_stream,
    read,
    reply,
    slots_in_use,
    transport_of,
    with_timeout,
)
from support.steps import burst, close_after, endless

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    ConfigurationError,
    FriendliError,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.net import exchange
from friendli_async._core.net.dialing import PooledProtocol
from friendli_async._core.net.slots import Slots
from friendli_async.chat import resource as chat_module
from friendli_async.chat.inputs import COMPLETE
from friendli_async.testing import FriendliServer, body, chunk, cut, done, finish, gate, script, stall, status, text

pytestmark = pytest.mark.compatibility


@pytest.fixture
def client_options() -> dict[str, Any]:
    return {"max_connections": 1}


# --- reuse -----------------------------------------------------------------------------------------------------------


async def test_calls_that_are_cancelled_while_connecting_leave_no_connection(server: FriendliServer) -> None:
    async with client_of(server.url) as client:
        for turns in [*range(12), *range(12)]:
            call = asyncio.ensure_future(complete(client))
            await run_loop_iterations(turns)
            call.cancel()
            await asyncio.wait({call})
        [(pool, _)] = transport_of(client)._pools.values()
        await wait_until(lambda: len(pool.connections) == client.gauges().idle)
        assert client.gauges().in_use == 0


@pytest.mark.parametrize("bare", [True, False])
async def test_ten_streams_in_a_row_use_one_connection(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, bare: bool
) -> None:
    """The clock is stopped, so the result does not depend on how long a stream waits for the previous one to end."""
    for _ in range(10):
        server.enqueue(script(chunk("a"), finish(), done()))
        if bare:
            assert await read(open_stream(client)) == "a"
        else:
            async with open_stream(client) as stream:
                assert await read(stream) == "a"
    assert server.connections == 1
    await assert_no_leaks(client, server, connections=1)


async def test_ten_streams_in_a_row_use_one_connection_despite_free_slots(server: FriendliServer, clock: Clock) -> None:
    async with client_of(server.url) as client:
        for _ in range(10):
            server.enqueue(script(chunk("a"), finish(), done()))
            assert await read(open_stream(client)) == "a"
        assert server.connections == 1


async def test_large_stream_returns_its_connection_to_the_pool(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    for _ in range(3):
        server.enqueue(script(burst(5000), finish(), done()))
        async with open_stream(client) as stream:
            assert len(await read(stream)) == 5000 * len("token ")
    assert server.connections == 1


async def test_mixed_calls_share_one_connection(server: FriendliServer, client: AsyncFriendli, clock: Clock) -> None:
    server.enqueue(text("a"), text("b"), status(400), text("c"))
    assert (await complete(client)).text == "a"
    assert await read(open_stream(client)) == "b"
    with pytest.raises(FriendliError):
        await complete(client)
    assert await read(open_stream(client)) == "c"
    assert server.connections == 1


async def test_server_that_keeps_sending_after_the_sentinel_is_disconnected(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(chunk("a"), finish(), done(), endless(b": still here\n\n" * 1000)), text("next"))
    async with open_stream(client) as stream:
        assert await read(stream) == "a"
        assert server.requests[0].outcome == "open", "the stream ended before its connection"
    assert stream.outcome == "done"
    clock.advance(1)
    assert await server.requests[0].disconnected()
    assert (await with_timeout(complete(client))).text == "next"
    await assert_no_leaks(client, server, connections=1)


async def test_server_that_stalls_after_the_sentinel_is_disconnected(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(chunk("a"), finish(), done(), stall()))
    assert await read(open_stream(client)) == "a"
    assert server.requests[0].outcome == "open", "the stream ended before its connection"
    clock.advance(1)
    assert await server.requests[0].disconnected()
    await assert_no_leaks(client, server)


async def test_next_call_waits_only_briefly_for_a_body_to_end(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_FINISH_SECONDS", 3600.0)
    server.enqueue(script(chunk("a"), finish(), done(), stall()), text("next"))
    async with client_of(server.url) as client:
        assert await read(open_stream(client)) == "a"
        assert (await with_timeout(complete(client))).text == "next"
        assert server.connections == 2


@pytest.mark.parametrize("is_own", [True, False], ids=["compressed", "session"])
async def test_connection_lost_after_the_sentinel_gives_its_slot_back_at_once(
    is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_FINISH_SECONDS", 3600.0)
    go = asyncio.Event()

    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        if is_own:
            head = UNFRAMED_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
            await conversation.send(head + gzip.compress(delta("a", "stop") + DONE))
        else:
            await conversation.send(STREAM_HEAD + chunked(delta("a", "stop") + DONE))
        await go.wait()
        conversation.reset()

    async with (
        RawServer(talk) as server,
        aiohttp.ClientSession() as session,
        client_of(server.url, session=None if is_own else session) as client,
    ):
        assert await read(open_stream(client)) == "a"
        assert slots_in_use(client) == 1
        go.set()
        await wait_until(lambda: not slots_in_use(client))


async def test_body_may_end_shortly_after_the_sentinel(clock: Clock) -> None:
    go = asyncio.Event()

    async def talk(conversation: Conversation) -> None:
        while await conversation.request():
            await conversation.send(STREAM_HEAD + chunked(delta("a", "stop")) + chunked(DONE))
            await go.wait()
            await conversation.send(LAST_CHUNK)

    async with RawServer(talk) as server, client_of(server.url, max_connections=1) as client:
        stream = open_stream(client)
        assert await read(stream) == "a"
        assert stream.outcome == "done"
        go.set()
        assert await read(open_stream(client)) == "a"
        assert server.connections == 1


async def test_comment_after_the_sentinel_keeps_the_connection(clock: Clock) -> None:
    go, end = asyncio.Event(), asyncio.Event()

    async def talk(conversation: Conversation) -> None:
        while await conversation.request():
            for piece in (STREAM_HEAD, chunked(delta("a")), chunked(delta(None, "stop")), chunked(DONE)):
                await conversation.send(piece)
                await run_loop_iterations(20)
            await go.wait()
            await conversation.send(chunked(b": bye\n\n"))
            await end.wait()
            await conversation.send(LAST_CHUNK)

    async with RawServer(talk) as server, client_of(server.url) as client:
        assert await read(open_stream(client)) == "a"
        second = asyncio.ensure_future(read(open_stream(client)))
        await run_loop_iterations(50)  # it waits for the connection
        go.set()
        await run_loop_iterations(50)  # the comment has arrived, without effect
        end.set()
        assert await with_timeout(second) == "a"
        assert server.connections == 1


async def test_closed_slots_grant_none_and_keep_their_count() -> None:
    slots = Slots(1)
    assert slots.take()
    cancelled, waiting = asyncio.ensure_future(slots.acquire()), asyncio.ensure_future(slots.acquire())
    await asyncio.sleep(0)
    cancelled.cancel("mine")
    with pytest.raises(asyncio.CancelledError, match="mine"):
        await cancelled
    slots.close()
    with pytest.raises(ConfigurationError, match="closed while the call waited"):
        await waiting
    assert (slots.in_use, slots.waiting) == (1, 0)
    slots.release()
    assert (slots.in_use, slots.take()) == (0, False)
    with pytest.raises(ConfigurationError, match="the client is closed"):
        await with_timeout(slots.acquire())


@pytest.mark.parametrize("is_granted_first", [True, False])
async def test_slot_granted_in_the_turn_in_which_its_waiter_is_cancelled_is_passed_on(is_granted_first: bool) -> None:
    slots = Slots(1)
    assert slots.take()
    cancelled, waiting = asyncio.ensure_future(slots.acquire()), asyncio.ensure_future(slots.acquire())
    await asyncio.sleep(0)
    if is_granted_first:
        slots.release()
    cancelled.cancel()
    if not is_granted_first:
        slots.release()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await with_timeout(waiting)
    assert slots.in_use == 1


def test_slot_granted_to_a_waiter_of_a_closed_loop_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append(repr(found.exc_value)))
    loop = asyncio.new_event_loop()
    waiting: list[asyncio.Task[None]] = []

    async def wait_in_line() -> None:
        slots = Slots(1)
        assert slots.take()
        waiting.extend(asyncio.ensure_future(slots.acquire()) for _ in range(3))
        await asyncio.sleep(0)
        slots.release()  # grants the slot to the first, whose loop stops before it resumes
        loop.stop()

    waiting.append(loop.create_task(wait_in_line()))
    loop.run_forever()
    loop.close()
    for task in waiting:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the loop was not shut down, on purpose
    del task
    waiting.clear()
    gc.collect()
    assert unraisable == []


async def test_long_wait_for_a_connection_is_logged_once_while_it_lasts(
    server: FriendliServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "friendli_async")
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1) as client:
        async with open_stream(client):
            waiting = [asyncio.ensure_future(complete(client)) for _ in range(3)]
            await wait_until(lambda: client.gauges().waiting == 3)
            clock.advance(4.9)
            await run_loop_iterations()
            assert caplog.messages == []
            clock.advance(0.1)
            await run_loop_iterations()
            expected = "calls have waited 5 s for a connection: 1 of 1 in use (max_connections), 3 calls waiting"
            assert caplog.messages == [expected]
            assert caplog.records[0].levelname == "WARNING"  # shown by default: the program may be about to hang
        await asyncio.gather(*waiting)
        assert caplog.messages == [expected]


async def test_call_that_soon_gets_its_connection_is_not_logged(
    server: FriendliServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1, timeout=None) as client:
        async with open_stream(client):
            waiting = asyncio.ensure_future(complete(client))
            await wait_until(lambda: client.gauges().waiting == 1)
        await waiting
        clock.advance(5)
        await run_loop_iterations()
    assert caplog.messages == []


@pytest.mark.parametrize(("seconds", "logged"), [(59.0, 1), (61.0, 2)])
async def test_long_waits_are_logged_at_most_once_a_minute(
    server: FriendliServer, clock: Clock, caplog: pytest.LogCaptureFixture, seconds: float, logged: int
) -> None:
    caplog.set_level(logging.INFO, "friendli_async")
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1, timeout=None) as client, open_stream(client):
        for pause in (5.0, seconds):
            waiting = asyncio.ensure_future(complete(client))
            await wait_until(lambda: client.gauges().waiting == 1)
            clock.advance(pause)
            await run_loop_iterations()
            waiting.cancel()
            await asyncio.wait([waiting])
        assert len(caplog.messages) == logged


async def test_completed_stream_survives_closing_the_client(server: FriendliServer) -> None:
    async with client_of(server.url) as client:
        stream = open_stream(client)
        streamed = await read(stream)
    assert stream.outcome == "done"
    assert (await stream.result()).text == streamed


# --- concurrency -----------------------------------------------------------------------------------------------------


async def test_two_hundred_streams_cancelled_at_any_point_leak_nothing(server: FriendliServer) -> None:
    """Each is cancelled after a random number of loop turns: queued, connecting, waiting or reading."""
    server.always(script(*[chunk(str(number)) for number in range(20)], stall()))
    turns = random.Random(7)
    async with client_of(server.url, max_connections=40, timeout=Timeouts(pool=None)) as client:

        async def consume() -> None:
            async with open_stream(client) as stream:
                await read(stream)

        async def cancel_later(task: asyncio.Task[None], count: int) -> None:
            await run_loop_iterations(count)
            task.cancel()

        tasks = [asyncio.create_task(consume()) for _ in range(200)]
        await asyncio.gather(*[cancel_later(task, turns.randrange(400)) for task in tasks])
        results = await with_timeout(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        await assert_no_leaks(client, server)


async def test_expired_timeout_leaks_nothing(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, timeout=Timeouts(idle=0.05)) as client:
        stream = open_stream(client)
        with pytest.raises(APITimeoutError):
            await read(stream)
        assert await server.requests[0].disconnected()
        await assert_no_leaks(client, server)


@pytest.mark.parametrize("count", [200, 1000], ids=["two hundred", "a thousand"])
async def test_concurrent_streams_all_complete(server: FriendliServer, count: int) -> None:
    arrived = 0

    def answer(request: Any) -> Any:
        nonlocal arrived
        arrived += 1
        return text(str(arrived), "!")(request)

    server.always(answer)
    async with client_of(server.url) as client:
        texts = await with_timeout(asyncio.gather(*[read(open_stream(client), 90) for _ in range(count)]), 90)
        assert sorted(texts) == sorted(f"{number}!" for number in range(1, count + 1))
        assert len(server.requests) == count
        await with_timeout(client.aclose())
        await assert_no_leaks(client, server)


async def test_connections_to_several_servers_never_exceed_max_connections(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    async with FriendliServer() as other:
        for at in (server, other, server):
            await complete(client.with_options(server_url=at.url))
            assert client.gauges().idle == client.gauges().max_connections == 1
        await other.wait_for_connections(0)


async def test_connection_that_makes_room_for_one_to_another_server_is_idle(server: FriendliServer) -> None:
    proceed = asyncio.Event()
    async with FriendliServer() as other, client_of(server.url, max_connections=8) as client:
        server.enqueue(*[script(chunk("a"), gate(proceed), chunk("b"), finish(), done())] * 7)
        streams = [open_stream(client) for _ in range(7)]
        for stream in streams:
            await anext(stream)
        await complete(client)
        await complete(client.with_options(server_url=other.url))
        proceed.set()
        assert [(await stream.result()).text for stream in streams] == ["ab"] * 7


# --- dead pooled connections -----------------------------------------------------------------------------------------


async def _warm(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(text("warm"))
    await complete(client)
    await server.idle()
    await run_loop_iterations(5)
    assert server.connections == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_dead_pooled_connection_is_replaced_transparently_without_retries(
    server: FriendliServer, client: AsyncFriendli, streamed: bool
) -> None:
    await _warm(client, server)
    server.enqueue(cut(), text("ok"))
    result = await with_timeout(open_stream(client).result() if streamed else complete(client))
    assert result.text == "ok"
    assert len(result.meta.attempts) == 1
    assert [request.connection for request in server.requests] == [1, 1, 2]


async def test_reset_pooled_connection_is_replaced() -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(reply(completion()))
        if conversation.number == 1:
            await conversation.request()
            conversation.reset()

    async with RawServer(talk) as server, client_of(server.url) as client:
        assert (await with_timeout(complete(client))).text == "whole"
        assert (await with_timeout(complete(client))).text == "whole"
        assert server.connections == 2


@pytest.mark.parametrize("size", [0, 20, None], ids=["nothing", "a part", "all"])
@pytest.mark.parametrize("is_compressed", [False, True])
async def test_reset_does_not_complete_a_body_without_length(size: int | None, is_compressed: bool) -> None:
    body = b'{"id": "1", "status": "UPLOADED"}'
    data, encoding = (gzip.compress(body), "Content-Encoding: gzip\r\n") if is_compressed else (body, "")

    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        if conversation.number > 1:
            await conversation.send(reply(body))
            return
        await conversation.send(f"HTTP/1.0 200 OK\r\n{encoding}\r\n".encode() + data[:size])
        conversation.reset()

    async with RawServer(talk) as server, client_of(server.url, retry=FAST_RETRY) as client:
        meta = (await with_timeout(client.file.get_info("1"))).meta
        assert [attempt.error for attempt in meta.attempts] == ["APIConnectionError", None]


@pytest.mark.parametrize("has_ended", [True, False])
async def test_reset_after_the_end_of_a_connection_is_no_error_of_the_body(has_ended: bool) -> None:
    protocol = PooledProtocol(asyncio.get_running_loop(), set())
    protocol.connection_made(MagicMock())
    protocol.set_response_params(read_until_eof=True)
    protocol.data_received(b"HTTP/1.0 200 OK\r\n\r\nbody")
    _, body = await protocol.read()
    if has_ended:  # over TLS; then a server may reset the connection as it gets the client's own end
        protocol.eof_received()
    protocol.connection_lost(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert (body.exception() is None) == has_ended


async def test_stream_without_length_says_that_it_was_reset() -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(UNFRAMED_HEAD + delta("a"))
        conversation.reset()

    async with RawServer(talk) as server, client_of(server.url) as client:
        stream = open_stream(client)
        with pytest.raises(StreamInterruptedError, match="Connection reset by peer"):
            await with_timeout(stream.result())
        assert stream.partial.text == "a"


async def test_dead_pooled_connection_is_replaced_only_once(server: FriendliServer, client: AsyncFriendli) -> None:
    await _warm(client, server)
    server.enqueue(cut(), cut(), text("never"))
    with pytest.raises(APIConnectionError) as caught:
        await with_timeout(complete(client))
    assert caught.value.sent
    assert caught.value.meta is not None
    assert len(caught.value.meta.attempts) == 1
    assert len(server.requests) == 3
    assert slots_in_use(client) == 0


async def test_new_connection_of_a_later_attempt_takes_the_place_of_an_idle_one(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    await _warm(client, server)
    server.enqueue(cut(), status(503), text("ok"))
    assert (await with_timeout(complete(client.with_options(retry=FAST_RETRY)))).text == "ok"
    assert [request.connection for request in server.requests] == [1, 1, 2, 3]
    assert client.gauges().idle == 1


async def test_dead_fresh_connection_is_not_replaced(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(cut(), text("never"))
    with pytest.raises(APIConnectionError) as caught:
        await with_timeout(complete(client))
    assert caught.value.sent
    assert len(server.requests) == 1


async def test_replacement_is_a_fresh_connection_not_a_pooled_one(server: FriendliServer) -> None:
    """All ten connections in the pool may be dead, so the replacement must not be the next of them."""
    async with client_of(server.url) as client:
        await asyncio.gather(*[complete(client) for _ in range(10)])
        assert server.connections == 10
        await server.idle()
        await run_loop_iterations(5)
        server.enqueue(cut(), text("ok"))
        assert (await with_timeout(complete(client))).text == "ok"
        assert server.connections == 11


async def test_dead_pooled_connection_is_not_replaced_if_not_repeatable(
    server: FriendliServer, client: AsyncFriendli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    await _warm(client, server)
    once = msgspec.structs.replace(COMPLETE, repeatable=False)
    monkeypatch.setattr(chat_module, "COMPLETE", once)
    server.enqueue(cut(), text("never"))
    with pytest.raises(APIConnectionError) as caught:
        await with_timeout(complete(client))
    assert caught.value.sent
    assert len(server.requests) == 2


async def test_connection_lost_during_the_reply_is_not_replaced(server: FriendliServer, client: AsyncFriendli) -> None:
    await _warm(client, server)
    server.enqueue(script(chunk("a"), close_after()), text("never"))
    with pytest.raises(StreamInterruptedError):
        await with_timeout(read(open_stream(client)))
    assert len(server.requests) == 2


async def test_connection_of_user_session_is_not_replaced(server: FriendliServer) -> None:
    async with aiohttp.ClientSession() as session, client_of(server.url, session=session) as client:
        await _warm(client, server)
        server.enqueue(cut(), text("never"))
        with pytest.raises(APIConnectionError):
            await with_timeout(complete(client))


async def test_server_that_closes_after_every_stream_fails_no_call(server: FriendliServer) -> None:
    """llama.cpp advertises keep-alive, and closes the connection nevertheless."""
    server.always(script(chunk("a"), finish(), done(), close_after()))
    async with client_of(server.url) as client:
        for _ in range(150):
            stream = open_stream(client)
            assert await read(stream) == "a"
            assert len(stream.meta.attempts) == 1


async def test_refused_connection_is_marked_not_sent(refused_port: int) -> None:
    async with client_of(f"http://127.0.0.1:{refused_port}") as client:
        with pytest.raises(APIConnectionError) as caught:
            await complete(client)
        assert not caught.value.sent
        assert slots_in_use(client) == 0


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02garbage\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nA" * 9999]
)
async def test_non_http_response_raises_connection_error(data: bytes) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(data)

    async with RawServer(talk) as server, client_of(server.url) as client:
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
        assert TOKEN not in str(caught.value)
        assert slots_in_use(client) == 0


# --- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [307, 308])
@pytest.mark.parametrize("location", ["{url}/elsewhere?x=1", "/elsewhere?x=1", "../../../elsewhere?x=1"])
async def test_redirect_to_same_origin_keeps_method_body_and_token(
    server: FriendliServer, client: AsyncFriendli, code: int, location: str
) -> None:
    server.enqueue(status(code, headers={"Location": location.format(url=server.url)}), text("ok"))
    async with client.with_options(team="t") as copy:
        assert await with_timeout(read(open_stream(copy))) == "ok"
    first, second = server.requests
    assert (second.method, second.path, second.query) == ("POST", "/elsewhere", {"x": ["1"]})
    assert second.body == first.body != b""
    assert {**second.headers} == {**first.headers}
    assert second.headers["Authorization"] == f"Bearer {TOKEN}"


async def test_five_redirects_are_followed(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(*[status(307, headers={"Location": f"/{number}"}) for number in range(5)], text("ok"))
    assert (await with_timeout(complete(client))).text == "ok"
    await assert_no_leaks(client, server, connections=server.open_connections)


async def test_sixth_redirect_is_an_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.always(status(308, headers={"Location": "/round"}))
    with pytest.raises(APIStatusError) as caught:
        await with_timeout(complete(client))
    assert caught.value.status_code == 308
    assert len(server.requests) == 6
    assert slots_in_use(client) == 0


@pytest.mark.parametrize("code", [301, 302, 303, 300, 304, 305])
async def test_other_redirect_statuses_are_errors(server: FriendliServer, client: AsyncFriendli, code: int) -> None:
    server.enqueue(status(code, headers={"Location": "/elsewhere"}))
    with pytest.raises(APIStatusError) as caught:
        await with_timeout(complete(client))
    assert caught.value.status_code == code
    assert len(server.requests) == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_redirect_to_another_origin_or_user_is_an_error_and_not_followed(
    server: FriendliServer, client: AsyncFriendli, streamed: bool
) -> None:
    async with FriendliServer() as other:
        elsewhere = (other.url, other.url.replace("http:", ""), server.url.replace("127.0.0.1", "localhost"))
        as_somebody_else = [server.url.replace("//", f"//{user}@") for user in ("name", ":password")]
        for target in (*elsewhere, *as_somebody_else):
            server.enqueue(status(307, headers={"Location": f"{target}/elsewhere"}))
            with pytest.raises(APIStatusError) as caught:
                await with_timeout(open_stream(client).result() if streamed else complete(client))
            assert caught.value.status_code == 307
        assert other.connections == 0
        assert len(server.requests) == 5


@pytest.mark.parametrize("location", ["http://[broken", "javascript:alert(1)", "file:///etc/passwd", "http://:bad"])
async def test_redirect_to_invalid_url_is_an_error(
    server: FriendliServer, client: AsyncFriendli, location: str
) -> None:
    server.enqueue(status(307, headers={"Location": location}))
    with pytest.raises(FriendliError):
        await with_timeout(complete(client))
    assert len(server.requests) == 1
    assert slots_in_use(client) == 0


async def test_redirect_without_location_is_an_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(307))
    with pytest.raises(APIStatusError):
        await with_timeout(complete(client))


# --- cookies, keepalive ----------------------------------------------------------------------------------------------


async def test_cookies_are_not_stored(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(body(completion(), headers={"Set-Cookie": "a=b; Path=/"}, content_type="application/json"))
    await complete(client)
    server.enqueue(text("x"))
    await complete(client)
    assert "Cookie" not in server.requests[1].headers


async def test_tcp_keepalive_is_enabled(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with open_stream(client):
        enabled = [each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for each in client_sockets(server.url)]
        seconds = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) for each in client_sockets(server.url)]
    assert enabled == [1]
    assert seconds[0] <= 120
