"""Misbehaving peers: stray bytes, endless headers, trailing data, messages outside the format; and a blocked loop."""

import asyncio
import gzip
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Awaitable
from typing import Any

import aiohttp
import msgspec
import pytest
from support.clock import Clock, run_loop_iterations, wait_until
from support.sockets import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Conversation,
    RawServer,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    read,
    read_into,
    reply,
    serve_bytes,
    slots_in_use,
    with_timeout,
)

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    FriendliError,
    ResponseDecodeError,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async.chat import resource as chat_module
from friendli_async.chat.inputs import COMPLETE
from friendli_async.testing import FriendliServer, chunk, script, stall

pytestmark = pytest.mark.compatibility

WHOLE_STREAM = STREAM_HEAD + chunked(delta("streamed", "stop") + DONE) + LAST_CHUNK
STRAY = reply(completion("unsolicited"))


# --- unsolicited data ------------------------------------------------------------------------------------------------


def _idle_connections(client: AsyncFriendli) -> int:
    return client.gauges().idle


@pytest.mark.parametrize("stray", [STRAY, b"\r\n", b"x", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""])
@pytest.mark.parametrize("streamed", [False, True])
async def test_data_on_an_idle_connection_closes_it_and_is_discarded(streamed: bool, stray: bytes) -> None:
    send_stray = asyncio.Event()

    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        number = conversation.number
        if number == 1:
            await conversation.send(WHOLE_STREAM if streamed else reply(completion("first")))
            await send_stray.wait()
            if not stray:
                return  # closes the connection
            await conversation.send(stray)
            await conversation.wait_disconnected()
            return
        await conversation.send(reply(completion("second")))
        await conversation.request()
        await conversation.send(reply(completion("third")))

    async with RawServer(talk) as server, client_of(server.url) as client:
        first = await read(open_stream(client)) if streamed else (await with_timeout(complete(client))).text
        assert first == ("streamed" if streamed else "first")
        await wait_until(lambda: _idle_connections(client) == 1)
        send_stray.set()
        await wait_until(lambda: _idle_connections(client) == 0)
        assert (await with_timeout(complete(client))).text == "second"
        assert (await with_timeout(complete(client))).text == "third"
        assert server.connections == 2


@pytest.mark.parametrize("stray", [STRAY, b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"x", b""])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_data_received_while_the_loop_is_blocked_is_discarded(
    monkeypatch: pytest.MonkeyPatch, stray: bytes, cancelled: bool
) -> None:
    """Before anything is sent, so that it does not matter that the operation must not be repeated."""
    monkeypatch.setattr(chat_module, "COMPLETE", msgspec.structs.replace(COMPLETE, repeatable=False))

    def serve() -> None:
        for response in (reply(completion("first")), reply(completion("second"))):
            connection = listener.accept()[0]
            with connection:
                connection.recv(65536)
                connection.sendall(response)
                if b"first" in response:
                    send_stray.wait()
                    if stray:
                        connection.sendall(stray)
                    else:
                        connection.shutdown(socket.SHUT_WR)
                    stray_sent.set()
                while connection.recv(65536):  # a request on this connection is a fault
                    late_requests.append(stray)

    send_stray, stray_sent = threading.Event(), threading.Event()
    late_requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve)
        serving.start()
        async with client_of(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            assert (await with_timeout(complete(client))).text == "first"
            send_stray.set()
            assert stray_sent.wait(30)  # blocks the loop
            if cancelled:
                call = asyncio.ensure_future(complete(client))
                await run_loop_iterations(1)
                call.cancel()
                await asyncio.wait([call])
                assert slots_in_use(client) == 0
            assert (await with_timeout(complete(client))).text == "second"
        serving.join(30)
    assert late_requests == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_second_response_in_the_same_segment_is_discarded(streamed: bool) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        if conversation.number == 1:
            await conversation.send((WHOLE_STREAM if streamed else reply(completion("first"))) + STRAY)
            await conversation.wait_disconnected()
            return
        await conversation.send(reply(completion("second")))
        await conversation.wait_disconnected()

    async with RawServer(talk) as server, client_of(server.url) as client:
        first = await read(open_stream(client)) if streamed else (await with_timeout(complete(client))).text
        assert first == ("streamed" if streamed else "first")
        assert (await with_timeout(complete(client))).text == "second"
        assert server.connections == 2


# --- endless data ----------------------------------------------------------------------------------------------------


async def _error_and_peak_memory(call: Awaitable[object]) -> tuple[FriendliError, int]:
    tracemalloc.start()
    try:
        with pytest.raises(FriendliError) as caught:
            await with_timeout(call, 60)
        return caught.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def _send_endlessly(conversation: Conversation, head: bytes, chunk: bytes) -> None:
    await conversation.request()
    await conversation.send(head)
    while True:
        await conversation.send(chunk)


@pytest.mark.parametrize("streamed", [False, True])
async def test_endless_headers_are_an_error_within_bounded_memory(streamed: bool) -> None:
    headers = b"".join(b"X-%d: y\r\n" % number for number in range(1000))
    async with (
        RawServer(lambda conversation: _send_endlessly(conversation, b"HTTP/1.1 200 OK\r\n", headers)) as server,
        client_of(server.url) as client,
    ):
        error, peak = await _error_and_peak_memory(read(open_stream(client)) if streamed else complete(client))
        assert isinstance(error, APIConnectionError)
        assert peak < 16 * 1024 * 1024
        assert slots_in_use(client) == 0


def _compressed_head(encoding: str) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Encoding: " + encoding.encode() + b"\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("encoding", "body", "trailing"),
    [
        ("gzip", gzip.compress(completion()), b"\xff" * 65536),
        ("gzip", gzip.compress(completion()), b"\0" * 65536),
        ("gzip", gzip.compress(completion()), gzip.compress(b"") * 1000),
        ("gzip", gzip.compress(completion()), completion()),
        ("deflate", zlib.compress(completion()), b"\xff" * 65536),
        ("deflate", zlib.compress(completion()), zlib.compress(completion())),
    ],
    ids=["bytes", "zeros", "empty members", "plain text", "deflate", "two deflates"],
)
async def test_endless_data_after_compressed_body_is_an_error_within_bounded_memory(
    encoding: str, body: bytes, trailing: bytes
) -> None:
    async with (
        RawServer(
            lambda conversation: _send_endlessly(conversation, _compressed_head(encoding) + body, trailing)
        ) as server,
        client_of(server.url) as client,
    ):
        error, peak = await _error_and_peak_memory(complete(client))
        assert isinstance(error, ResponseDecodeError)
        assert "compressed reply is corrupt" in str(error)
        assert peak < 24 * 1024 * 1024
        assert slots_in_use(client) == 0


@pytest.mark.parametrize("size", [1, 7, 40, 1_000_000])
async def test_gzip_members_are_concatenated_at_any_split(size: int) -> None:
    text = completion("two members")
    body = gzip.compress(text[:20]) + gzip.compress(b"") + gzip.compress(text[20:]) + b"\0" * 512
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    async with serve_bytes(_compressed_head("gzip"), *pieces) as server, client_of(server.url) as client:
        assert (await with_timeout(complete(client))).text == "two members"


# --- messages outside the event-stream format ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"error": {"message": "no credits left"}}', "no credits left"),
        (b"upstream connect error\n", "upstream connect error"),
        (b"<html><h1>Bad gateway</h1></html>", "Bad gateway"),
        (b"<!DOCTYPE html>\n<html>\n<title>502 Bad\nGateway</title>\n</html>\n", "502 Bad Gateway"),
        (b'{\n  "error": {\n    "message": "no credits"\n  }\n}\n', "no credits"),
        (b'[{"error": {"message": "no credits", "status": "RESOURCE_EXHAUSTED"}}]', "429 no credits"),
        (b'{"error": "first"}\n{"done": true}\n', "first"),
        (b'{"detail": "Not authenticated"}', "Not authenticated"),
        (b'"just words"', "just words"),
        (b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>", "Reduce your rate"),
        (b"Traceback (most recent call last):\n  File x\nValueError: boom\n", "ValueError: boom"),
        (b"error: quota exceeded\n", "error: quota exceeded"),
        (b"HTTP/1.1 500 Internal\r\n\r\n", "HTTP/1.1 500 Internal"),
        (b'Data: {"choices": []}\n\n', "Data: "),
    ],
)
@pytest.mark.parametrize("started", [False, True])
async def test_non_event_data_becomes_the_error_message(data: bytes, message: str, started: bool) -> None:
    content = [chunked(delta("a"))] if started else []
    async with (
        serve_bytes(STREAM_HEAD, *content, chunked(data) + LAST_CHUNK) as server,
        client_of(server.url) as client,
    ):
        with pytest.raises(FriendliError) as caught:
            await read(open_stream(client))
    assert message in str(caught.value)


async def test_error_event_fails_an_unfinished_stream() -> None:
    error_event = b'{"error": {"message": "no credits left", "code": 402}}\n\n'
    for end in (DONE, b""):
        body = chunked(delta("a") + error_event + end) + LAST_CHUNK
        async with serve_bytes(STREAM_HEAD, body) as server, client_of(server.url) as client:
            seen: list[str] = []
            with pytest.raises(APIStatusError, match="402 no credits left") as caught:
                await read_into(seen, open_stream(client))
            assert seen == ["a"]
            assert caught.value.partial is not None
            assert caught.value.partial.text == "a"
    body = chunked(delta("a", "stop") + error_event + DONE) + LAST_CHUNK
    async with serve_bytes(STREAM_HEAD, body) as server, client_of(server.url) as client:
        assert await read(open_stream(client)) == "a", "the finish reason came before the error"


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("text/html", b"<html><title>Sign in</title></html>", "text/html instead of an event stream: 'Sign in'"),
        ("application/json", b'{"detail": "no such path"}', "no such path"),
        ("application/x-ndjson", b'{"error": "busy"}\n{}\n', "busy"),
        ("image/png", b"\x89PNG\r\n", "image/png instead of an event stream"),
    ],
)
async def test_other_content_type_than_event_stream_is_reported(kind: str, body: bytes, message: str) -> None:
    async with serve_bytes(reply(body, kind=kind)) as server, client_of(server.url) as client:
        with pytest.raises(FriendliError) as caught:
            await read(open_stream(client))
    assert message in str(caught.value)


@pytest.mark.parametrize("broken", [b"zz\r\nnonsense\r\n", b"", b"5\r\nab", b"5\r\nabcdefgh\r\n"])
async def test_framing_error_message_has_no_status(broken: bytes) -> None:
    async with serve_bytes(STREAM_HEAD, chunked(delta("a")), broken) as server, client_of(server.url) as client:
        with pytest.raises(StreamInterruptedError) as caught:
            await read(open_stream(client))
        message = str(caught.value).replace(server.url, "")  # whose port may be 40012
    assert "400" not in message
    assert "TransferEncodingError" not in message


# --- slots, a blocked loop -------------------------------------------------------------------------------------------


async def test_cancelled_or_timed_out_calls_leave_the_pool_queue(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1) as client, open_stream(client):
        waiting = [asyncio.create_task(complete(client)) for _ in range(100)]
        await run_loop_iterations(5)
        assert client.gauges().waiting == 100
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert client.gauges().waiting == 0
        impatient = client.with_options(timeout=Timeouts(pool=0.001))
        with pytest.raises(APITimeoutError):
            await with_timeout(complete(impatient))
        assert client.gauges().waiting == 0


@pytest.mark.parametrize("limit", ["first_event", "total"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_buffered_response_is_read_after_loop_was_blocked_past_timeout(
    clock: Clock, remote: FriendliServer, limit: str, streamed: bool
) -> None:
    limits: dict[str, float] = {limit: 10}
    async with client_of(remote.url, timeout=Timeouts(**limits)) as client:
        call = asyncio.create_task(read(open_stream(client)) if streamed else complete(client))
        await wait_until(lambda: bool(remote.requests))
        while remote.requests[0].outcome == "open":
            time.sleep(0.001)  # noqa: ASYNC251  # blocks the loop on purpose
        clock.advance(20)
        assert await with_timeout(call)


async def test_buffered_event_is_read_after_loop_was_blocked_past_idle_timeout(clock: Clock) -> None:
    go = asyncio.Event()

    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD + chunked(delta("a")))
        await go.wait()
        await conversation.send(chunked(delta("b", "stop") + DONE) + LAST_CHUNK)
        await conversation.wait_disconnected()

    async with (
        RawServer(talk) as server,
        client_of(server.url, timeout=Timeouts(idle=10)) as client,
        open_stream(client) as stream,
    ):
        assert (await anext(stream)).text == "a"
        reading = asyncio.create_task(anext(stream))
        await run_loop_iterations(3)
        go.set()
        await run_loop_iterations(2)
        clock.advance(20)  # as if the loop had been blocked for 20 s
        assert (await with_timeout(reading)).text == "b"


async def test_calls_wait_for_a_connection_without_limit_by_default(server: FriendliServer, clock: Clock) -> None:
    async with client_of(server.url, max_connections=1) as client:
        async with open_stream(client):
            waiting = [asyncio.create_task(complete(client)) for _ in range(20)]
            await run_loop_iterations(5)
            clock.advance(3600)
            await run_loop_iterations(20)
            assert client.gauges().waiting == 20
        assert all(reply.text for reply in await with_timeout(asyncio.gather(*waiting)))


class ResettingConnector(aiohttp.TCPConnector):
    """Fails as asyncio does if the peer disconnects during the handshake: with an error without a message."""

    async def connect(self, req: Any, *args: Any, **kwargs: Any) -> Any:
        raise aiohttp.ClientConnectorError(req.connection_key, ConnectionResetError())


async def test_connection_error_without_message_says_what_happened() -> None:
    async with (
        aiohttp.ClientSession(connector=ResettingConnector()) as session,
        client_of("https://api.invalid", session=session) as client,
    ):
        with pytest.raises(APIConnectionError, match=r"could not connect: .*closed in the TLS handshake\]") as caught:
            await with_timeout(complete(client))
    assert "None" not in str(caught.value)
