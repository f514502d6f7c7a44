"""Misbehaving peers: stray bytes, endless headers, trailing data, invalid certificates, failing proxies."""

import asyncio
import gzip
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import pytest
from support.clock import Clock, run_loop_iterations, wait_until
from support.sockets import (
    DONE,
    FAST_RETRY,
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
from friendli_async.testing import FriendliServer

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
    monkeypatch.setattr(chat_module, "COMPLETE", msgspec.structs.replace(chat_module.COMPLETE, repeatable=False))

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
            assert stray_sent.wait(5)  # blocks the loop
            if cancelled:
                call = asyncio.ensure_future(complete(client))
                await run_loop_iterations(1)
                call.cancel()
                await asyncio.wait([call])
                assert slots_in_use(client) == 0
            assert (await with_timeout(complete(client))).text == "second"
        serving.join(5)
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


# --- certificates ----------------------------------------------------------------------------------------------------


def _certificate(folder: Path, *, name: str, days: str) -> ssl.SSLContext:
    """Returns a server TLS context with a self-signed certificate for a name."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", days]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class TLSServer(RawServer):
    """A server that speaks TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(self._answer)
        self._context = context

    async def _answer(self, conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(reply(completion("by tls")))

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._server.close()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        return self

    @property
    def url(self) -> str:
        return super().url.replace("http://127.0.0.1", "https://localhost")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("name", "days", "trusted", "reason"),
    [
        ("localhost", "10", False, "self-signed certificate"),
        ("elsewhere.example", "10", True, "mismatch"),
        ("localhost", "-1", True, "expired"),
    ],
)
async def test_invalid_certificate_is_a_connection_error_and_is_not_retried(
    tmp_path: Path, name: str, days: str, trusted: bool, reason: str, streamed: bool
) -> None:
    server_tls = _expired(tmp_path) if days == "-1" else _certificate(tmp_path, name=name, days=days)
    tls = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem") if trusted else None)
    async with TLSServer(server_tls) as server, client_of(server.url, retry=FAST_RETRY, ssl=tls) as client:
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(read(open_stream(client)) if streamed else complete(client))
    error = caught.value
    assert not error.sent
    assert reason in str(error)
    assert "certificate" in str(error)
    assert error.meta is not None
    assert len(error.meta.attempts) == 1
    assert server.connections == 0


@pytest.mark.parametrize(("variable", "file_name"), [("SSL_CERT_FILE", "missing.pem"), ("SSL_CERT_DIR", "missing")])
async def test_unreadable_ca_path_is_named_in_the_certificate_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, file_name: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / file_name))
    async with (
        TLSServer(_certificate(tmp_path, name="localhost", days="10")) as server,
        client_of(server.url) as client,
    ):
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
    assert f"({variable} names {tmp_path / file_name}, which cannot be read)" in str(caught.value)


def _expired(folder: Path) -> ssl.SSLContext:
    """Returns a TLS context with an expired certificate; only `openssl ca` accepts dates in the past."""
    (folder / "index").write_text("")
    (folder / "serial").write_text("01")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "x509_extensions=v3\nunique_subject=no\n[p]\ncommonName=supplied\n"
        "[v3]\nsubjectAltName=DNS:localhost\nbasicConstraints=CA:TRUE\n"
    )

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem")
    openssl("req", "-new", *key, "-out", "r.csr", "-subj", "/CN=localhost")
    files = ("-config", "ca.cnf", "-selfsign", "-keyfile", "key.pem", "-in", "r.csr", "-out", "certificate.pem")
    dates = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z")
    openssl("ca", "-batch", *files, "-notext", *dates)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


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
    assert "400" not in str(caught.value)
    assert "TransferEncodingError" not in str(caught.value)


# --- duplicate headers -----------------------------------------------------------------------------------------------


async def test_duplicate_headers_use_longest_delay_and_first_id() -> None:
    headers = "Retry-After: 3\r\nRetry-After: 5\r\nX-Request-Id: one\r\nX-Request-Id: two\r\n"
    response = reply(b"{}", status="429 Too Many Requests", headers=headers)
    async with serve_bytes(response) as server, client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await with_timeout(complete(client))
    assert caught.value.retry_after == 5, "the longer delay wins"
    assert caught.value.request_id == "one"
    assert caught.value.meta is not None
    assert caught.value.meta.request_id == "one"


# --- custom connectors -----------------------------------------------------------------------------------------------


class ProxyError(Exception):
    """An error as raised by a SOCKS connector."""


class CustomConnector(aiohttp.TCPConnector):
    """A connector that raises its own kind of error."""

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        raise ProxyError("the socks server says no")


@pytest.mark.parametrize("streamed", [False, True])
async def test_error_of_a_custom_connector_is_a_connection_error(streamed: bool) -> None:
    async with (
        aiohttp.ClientSession(connector=CustomConnector()) as session,
        client_of("http://api.invalid", session=session) as client,
    ):
        with pytest.raises(APIConnectionError, match="the socks server says no"):
            await with_timeout(read(open_stream(client)) if streamed else complete(client))
        assert slots_in_use(client) == 0


# --- slots, proxies, a blocked loop ----------------------------------------------------------------------------------


async def test_cancelled_or_timed_out_calls_leave_the_pool_queue(server: FriendliServer) -> None:
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


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden", "405 Method Not Allowed"])
async def test_permanent_tunnel_failure_is_not_retried_and_names_the_proxy(status: str) -> None:
    response = reply(b"no", status=status, kind="text/plain")
    async with (
        serve_bytes(response) as proxy,
        client_of("https://api.invalid", proxy=proxy.url, retry=FAST_RETRY) as client,
    ):
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
        assert proxy.url.removeprefix("http://") in str(caught.value)
    assert status in str(caught.value)
    assert not caught.value.sent
    assert proxy.connections == 1


async def test_temporary_tunnel_failure_is_retried() -> None:
    response = reply(b"no", status="503 Service Unavailable", kind="text/plain")
    async with (
        serve_bytes(response) as proxy,
        client_of("https://api.invalid", proxy=proxy.url, retry=FAST_RETRY) as client,
    ):
        with pytest.raises(APIConnectionError):
            await with_timeout(complete(client))
        assert proxy.connections == 3


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


async def test_connection_error_without_message_names_its_class() -> None:
    async with (
        aiohttp.ClientSession(connector=ResettingConnector()) as session,
        client_of("https://api.invalid", session=session) as client,
    ):
        with pytest.raises(APIConnectionError, match=r"could not connect: .*\[ConnectionResetError\]") as caught:
            await with_timeout(complete(client))
    assert "None" not in str(caught.value)
