"""The fast path that bypasses aiohttp's session, and when requests fall back to the session."""

import asyncio
import copy
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from support.sockets import (
    DONE,
    FAST_RETRY,
    LAST_CHUNK,
    MESSAGES,
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
    reply,
    serve_bytes,
    slots_in_use,
    transport_of,
    with_timeout,
)
from yarl import URL

from friendli_async import APIConnectionError, APIStatusError, AsyncFriendli
from friendli_async._core.net import pool, posting
from friendli_async._core.net.dialing import Connector
from friendli_async._core.net.exchange import AiohttpExchange
from friendli_async._core.net.posting import CAN_POST, Poster, can_post
from friendli_async._core.protocol import RequestHeaders

pytestmark = pytest.mark.compatibility

needs_posting = pytest.mark.skipif(not CAN_POST, reason="aiohttp's classes have other signatures")
ANSWER = STREAM_HEAD + chunked(delta("Hi") + delta("", "stop") + DONE) + LAST_CHUNK


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[URL]:
    """The URLs of requests that bypassed the session."""
    seen: list[URL] = []
    post = Poster.post

    async def recording_post(self: Poster, method: str, url: URL, headers: Any, body: bytes) -> aiohttp.ClientResponse:
        seen.append(url)
        return await post(self, method, url, headers, body)

    monkeypatch.setattr(Poster, "post", recording_post)
    return seen


def recording_server() -> RawServer:
    """Returns a server that records requests and answers streams and plain calls."""

    async def talk(conversation: Conversation) -> None:
        while request := await conversation.request():
            server.requests.append(request)
            await conversation.send(ANSWER if b'"stream":true' in request else reply(completion()))

    server = RawServer(talk)
    return server


# --- equivalence with the session ------------------------------------------------------------------------------------


@needs_posting
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"team": "my-team"},
        {"headers": {"x-name": "Größe", "USER-AGENT": "mine", "Accept": "text/plain"}},
        {"headers": {"Authorization": "Basic abc"}},
        {"token": lambda: "asked-for"},
    ],
)
async def test_sent_bytes_equal_those_of_the_session(
    options: dict[str, Any], posted: list[URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def requests() -> None:
        async with client_of(f"{server.url}/prefix").with_options(**options) as client:
            await complete(client, extra_query={"a": "x y", "b": ["ä", "&"]})
            await complete(client, extra_body={"text": "é 大 \ud800"})
            assert await read(open_stream(client)) == "Hi"
            await client.container.chat.complete(messages=MESSAGES)
            await client._runtime.close()

    async with recording_server() as server:
        await with_timeout(requests())
        assert len(posted) == 4
        monkeypatch.setattr(Poster, "can_send", lambda self, body: False)
        await with_timeout(requests())
        assert len(posted) == 4
    first, second = server.requests[:4], server.requests[4:]
    assert first == second


@needs_posting
async def test_number_of_cached_destinations_is_limited(posted: list[URL]) -> None:
    async with recording_server() as server, client_of(server.url) as client:
        for number in range(posting._MAX_DESTINATIONS + 3):
            await complete(client, extra_query={"n": number})
        await complete(client, extra_query={"n": 0})
        poster = next(iter(transport_of(client)._pools.values()))[0].poster
        assert poster is not None
        assert len(poster._destinations) <= posting._MAX_DESTINATIONS
    assert server.connections == 1
    assert len(posted) == posting._MAX_DESTINATIONS + 4


# --- fallback to the session -----------------------------------------------------------------------------------------


@needs_posting
async def test_large_body_goes_through_the_session(posted: list[URL]) -> None:
    async with recording_server() as server, client_of(server.url) as client:
        long = [{"role": "user", "content": "x" * 64 * 1024}]
        answer = await client.serverless.chat.complete(model="m", messages=long)
        assert answer.text == "whole"
        assert posted == []
        await complete(client)
        assert len(posted) == 1


@needs_posting
async def test_session_trace_config_sees_each_request(posted: list[URL], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    tracer = aiohttp.TraceConfig()

    async def on_start(session: object, context: object, params: aiohttp.TraceRequestStartParams) -> None:
        seen.append(params.url.path)

    tracer.on_request_start.append(on_start)
    original_init = aiohttp.ClientSession.__init__

    def patched_init(self: aiohttp.ClientSession, *args: Any, **options: Any) -> None:  # as OpenTelemetry and Sentry do
        original_init(self, *args, **{**options, "trace_configs": [tracer]})

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", patched_init)
    async with recording_server() as server, client_of(server.url) as client:
        await complete(client)
    assert seen == ["/serverless/v1/chat/completions"]
    assert posted == []


@needs_posting
async def test_patched_session_request_receives_each_request(
    posted: list[URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original: Any = aiohttp.ClientSession._request

    async def patched(self: aiohttp.ClientSession, method: str, url: URL, **options: Any) -> aiohttp.ClientResponse:
        seen.append(method)  # as aioresponses and Datadog do
        answer: aiohttp.ClientResponse = await original(self, method, url, **options)
        return answer

    async with recording_server() as server, client_of(server.url) as client:
        await complete(client)
        monkeypatch.setattr(aiohttp.ClientSession, "_request", patched)
        await complete(client)
        await complete(client)
    assert seen == ["POST", "POST"]
    assert len(posted) == 1


@pytest.mark.parametrize("token", ["token-1234", lambda: "token-1234", None], ids=["token", "callable", "none"])
async def test_headers_that_a_patched_session_request_adds_are_sent_once(
    monkeypatch: pytest.MonkeyPatch, token: Any
) -> None:
    baggage = "user=alice"
    original: Any = aiohttp.ClientSession._request

    async def patched(self: aiohttp.ClientSession, method: str, url: URL, **options: Any) -> aiohttp.ClientResponse:
        options["headers"]["baggage"] = baggage  # in place, as Datadog does
        answer: aiohttp.ClientResponse = await original(self, method, url, **options)
        return answer

    async with recording_server() as server, AsyncFriendli(token, container_url=server.url) as client:
        with monkeypatch.context() as context:
            context.setattr(aiohttp.ClientSession, "_request", patched)
            await client.container.chat.complete(messages=MESSAGES)
        await client.container.chat.complete(messages=MESSAGES)
    assert [b"baggage: user=alice" in request for request in server.requests] == [True, False]


async def test_patched_session_request_can_copy_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Any = aiohttp.ClientSession._request
    kept: list[dict[str, str]] = []

    async def patched(self: aiohttp.ClientSession, method: str, url: URL, **options: Any) -> aiohttp.ClientResponse:
        kept.append(copy.deepcopy(options["headers"]))  # as vcrpy does, before it removes what it must not record
        answer: aiohttp.ClientResponse = await original(self, method, url, **options)
        return answer

    async with recording_server() as server, AsyncFriendli("token-1234", server_url=server.url) as client:
        monkeypatch.setattr(aiohttp.ClientSession, "_request", patched)
        await complete(client)
    assert kept[0]["Authorization"] == "Bearer token-1234"
    assert "token-1234" not in repr(kept)


@pytest.mark.parametrize("stream", [False, True])
async def test_all_requests_use_the_session_without_the_fast_path(
    posted: list[URL], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(pool, "CAN_POST", False)
    async with recording_server() as server, client_of(server.url) as client:
        text = await read(open_stream(client)) if stream else (await complete(client)).text
    assert text == ("Hi" if stream else "whole")
    assert posted == []


# --- compatibility check of aiohttp's classes ------------------------------------------------------------------------


class _OtherRequest(aiohttp.ClientRequest):
    def __init__(self, options: object) -> None: ...


class _OtherResponse(aiohttp.ClientResponse):
    def __init__(self, method: str, url: URL, *, reader: object) -> None: ...


class _OtherProtocol(ResponseHandler):
    def set_response_params(self, **options: Any) -> None: ...


class _Traced:
    _request = SimpleNamespace(__code__=None)


async def _replacement(self: object) -> None: ...


class _Replaced:
    _request = _replacement


@pytest.mark.parametrize(
    "other",
    [
        {"session": _Traced},
        {"session": _Replaced},
        {"session": object},
        {"request": _OtherRequest},
        {"response": _OtherResponse},
        {"protocol": _OtherProtocol},
        {"protocol": object},
    ],
)
def test_fast_path_is_disabled_for_unknown_classes(other: dict[str, type]) -> None:
    known: dict[str, type] = {
        "session": aiohttp.ClientSession,
        "request": aiohttp.ClientRequest,
        "response": aiohttp.ClientResponse,
        "protocol": ResponseHandler,
    }
    assert can_post(**known)
    assert not can_post(**{**known, **other})


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb", "a\0b"])
def test_header_value_with_line_break_is_rejected(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        posting._head("", RequestHeaders({"Authorization": "Bearer x", "X-Mine": value}), 2)


@needs_posting
async def test_pooled_connection_that_closes_before_the_write_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = Connector.connect
    close = False

    async def closing(self: Connector, *args: Any, **options: Any) -> Any:
        nonlocal close
        connection = await connect(self, *args, **options)
        if close:
            close = False
            connection.transport.abort()
        return connection

    monkeypatch.setattr(Connector, "connect", closing)
    async with recording_server() as server, client_of(server.url) as client:
        await complete(client)
        close = True
        assert (await complete(client)).text == "whole"
        assert server.connections == 2
        assert slots_in_use(client) == 0


@needs_posting
async def test_fresh_connection_that_closes_before_the_write_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Connector.connect

    async def closing(self: Connector, *args: Any, **options: Any) -> Any:
        connection = await connect(self, *args, **options)
        connection.transport.abort()
        return connection

    monkeypatch.setattr(Connector, "connect", closing)
    async with recording_server() as server, client_of(server.url) as client:
        with pytest.raises(APIConnectionError, match="closing"):
            await complete(client)
        assert server.requests == []
        assert slots_in_use(client) == 0


@needs_posting
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"nonsense\r\n\r\n"])
async def test_missing_response_head_leaves_nothing_open(answer: bytes) -> None:
    async with serve_bytes(answer) as server, client_of(server.url) as client:
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
        assert caught.value.sent
        assert slots_in_use(client) == 0
        pool = next(iter(transport_of(client)._pools.values()))[0]
        assert pool.session.connector is not None
        assert not pool.session.connector._acquired


async def test_connection_that_the_server_switches_to_another_protocol_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    kept: list[AiohttpExchange] = []  # or the garbage collector would close its connection
    finish = AiohttpExchange.finish

    def finish_and_keep(self: AiohttpExchange) -> None:
        kept.append(self)
        finish(self)

    monkeypatch.setattr(AiohttpExchange, "finish", finish_and_keep)
    async with serve_bytes(switched, hang=True) as server, client_of(server.url) as client:
        with pytest.raises(APIStatusError, match="101"):
            await with_timeout(complete(client))
        assert len(kept) == 1
        assert slots_in_use(client) == 0
        pool = next(iter(transport_of(client)._pools.values()))[0]
        assert pool.session.connector is not None
        assert not pool.session.connector._acquired


@needs_posting
async def test_cancelling_the_wait_for_a_reply_closes_the_connection() -> None:
    async with serve_bytes(hang=True) as server, client_of(server.url) as client:
        call = asyncio.create_task(complete(client))
        while not server.requests:  # noqa: ASYNC110  # the server has no event to wait for
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert slots_in_use(client) == 0
        pool = next(iter(transport_of(client)._pools.values()))[0]
        assert pool.session.connector is not None
        assert not pool.session.connector._acquired
        assert not pool.connections or all(
            one.transport is None or one.transport.is_closing() for one in pool.connections
        )


@needs_posting
async def test_error_status_is_retried_over_the_same_connection(posted: list[URL]) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(reply(b"{}", status="503 Service Unavailable"))
        await conversation.request()
        await conversation.send(reply(completion()))

    async with RawServer(talk) as server, AsyncFriendli("t", server_url=server.url, retry=FAST_RETRY) as client:
        answer = await with_timeout(complete(client))
    assert [attempt.status for attempt in answer.meta.attempts] == [503, 200]
    assert len(posted) == 2
    assert server.connections == 1
