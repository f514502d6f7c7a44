"""Everyday requests go past aiohttp's session: nobody can tell, and who wants to see them there does."""

import asyncio
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from support.sockets import (
    DONE,
    LAST_CHUNK,
    MESSAGES,
    QUICK,
    STREAM_HEAD,
    Conversation,
    RawServer,
    ask,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    places_in_use,
    read,
    reply,
    saying,
    within,
)
from yarl import URL

from friendli_async import APIConnectionError, AsyncFriendli
from friendli_async._core.net import pool, posting
from friendli_async._core.net.dialing import Connector
from friendli_async._core.net.posting import CAN_POST, Poster, can_post

pytestmark = pytest.mark.compatibility

needs_posting = pytest.mark.skipif(not CAN_POST, reason="aiohttp's classes take something else")
ANSWER = STREAM_HEAD + chunked(delta("Hi") + delta("", "stop") + DONE) + LAST_CHUNK


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[URL]:
    """Where to requests went past the session."""
    seen: list[URL] = []
    post = Poster.post

    async def seeing(self: Poster, method: str, url: URL, headers: Any, body: bytes) -> aiohttp.ClientResponse:
        seen.append(url)
        return await post(self, method, url, headers, body)

    monkeypatch.setattr(Poster, "post", seeing)
    return seen


def answering() -> RawServer:
    """A server that keeps the requests and answers them all, streams and plain calls."""

    async def talk(conversation: Conversation) -> None:
        while request := await conversation.request():
            server.requests.append(request)
            await conversation.send(ANSWER if b'"stream":true' in request else reply(completion()))

    server = RawServer(talk)
    return server


# --- the same as through the session ---------------------------------------------------------------------------------


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
async def test_the_bytes_are_those_that_the_session_sends(
    options: dict[str, Any], posted: list[URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def requests() -> None:
        async with client_of(f"{server.url}/prefix").with_options(**options) as client:
            await complete(client, extra_query={"a": "x y", "b": ["ä", "&"]})
            await complete(client, extra_body={"text": "é 大 \ud800"})
            assert await read(ask(client)) == "Hi"
            await client.container.chat.complete(messages=MESSAGES)
            await client._runtime.close()

    async with answering() as server:
        await within(requests())
        assert len(posted) == 4
        monkeypatch.setattr(Poster, "can_send", lambda self, body: False)
        await within(requests())
        assert len(posted) == 4
    first, second = server.requests[:4], server.requests[4:]
    assert first == second


@needs_posting
async def test_a_destination_serves_any_number_of_requests_and_few_are_kept(posted: list[URL]) -> None:
    async with answering() as server, client_of(server.url) as client:
        for number in range(posting._MAX_DESTINATIONS + 3):
            await complete(client, extra_query={"n": number})
        await complete(client, extra_query={"n": 0})
        poster = next(iter(client._runtime.transport._pools.values()))[0].poster
        assert len(poster._destinations) <= posting._MAX_DESTINATIONS
    assert server.connections == 1
    assert len(posted) == posting._MAX_DESTINATIONS + 4


# --- what goes through the session -----------------------------------------------------------------------------------


@needs_posting
async def test_a_body_that_a_transport_does_not_take_at_once_goes_through_the_session(posted: list[URL]) -> None:
    async with answering() as server, client_of(server.url) as client:
        long = [{"role": "user", "content": "x" * 64 * 1024}]
        answer = await client.serverless.chat.complete(model="m", messages=long)
        assert answer.text == "whole"
        assert posted == []
        await complete(client)
        assert len(posted) == 1


@needs_posting
async def test_a_tracer_of_sessions_sees_each_request(posted: list[URL], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    tracer = aiohttp.TraceConfig()

    async def begun(session: object, context: object, params: aiohttp.TraceRequestStartParams) -> None:
        seen.append(params.url.path)

    tracer.on_request_start.append(begun)
    made = aiohttp.ClientSession.__init__

    def make(self: aiohttp.ClientSession, *args: Any, **options: Any) -> None:  # as OpenTelemetry and Sentry do
        made(self, *args, **{**options, "trace_configs": [tracer]})

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", make)
    async with answering() as server, client_of(server.url) as client:
        await complete(client)
    assert seen == ["/serverless/v1/chat/completions"]
    assert posted == []


@needs_posting
async def test_what_stands_in_for_the_sessions_request_gets_each_of_them(
    posted: list[URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    own: Any = aiohttp.ClientSession._request

    async def request(self: aiohttp.ClientSession, method: str, url: URL, **options: Any) -> aiohttp.ClientResponse:
        seen.append(method)  # as aioresponses and Datadog do
        answer: aiohttp.ClientResponse = await own(self, method, url, **options)
        return answer

    async with answering() as server, client_of(server.url) as client:
        await complete(client)
        monkeypatch.setattr(aiohttp.ClientSession, "_request", request)
        await complete(client)
        await complete(client)
    assert seen == ["POST", "POST"]
    assert len(posted) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_without_it_all_goes_through_the_session(
    posted: list[URL], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(pool, "CAN_POST", False)
    async with answering() as server, client_of(server.url) as client:
        text = await read(ask(client)) if stream else (await complete(client)).text
    assert text == ("Hi" if stream else "whole")
    assert posted == []


# --- whether aiohttp's classes are those that this was written for ---------------------------------------------------


class _OtherRequest(aiohttp.ClientRequest):
    def __init__(self, options: object) -> None: ...


class _OtherResponse(aiohttp.ClientResponse):
    def __init__(self, method: str, url: URL, *, reader: object) -> None: ...


class _OtherProtocol(ResponseHandler):
    def set_response_params(self, **options: Any) -> None: ...


class _Traced:
    _request = SimpleNamespace(__code__=None)


async def _elsewhere(self: object) -> None: ...


class _Replaced:
    _request = _elsewhere


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
def test_other_classes_are_not_taken_for_those_that_are_known(other: dict[str, type]) -> None:
    known: dict[str, type] = {
        "session": aiohttp.ClientSession,
        "request": aiohttp.ClientRequest,
        "response": aiohttp.ClientResponse,
        "protocol": ResponseHandler,
    }
    assert can_post(**known)
    assert not can_post(**{**known, **other})


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb", "a\0b"])
def test_a_header_cannot_end_before_it_should(value: str) -> None:
    with pytest.raises(ValueError, match="line end"):
        posting._head("POST", URL("http://host/"), {"Authorization": "Bearer x", "X-Mine": value}, 2)


@needs_posting
async def test_a_connection_that_closes_before_the_write_is_replaced_if_it_came_from_the_pool(
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
    async with answering() as server, client_of(server.url) as client:
        await complete(client)
        close = True
        assert (await complete(client)).text == "whole"
        assert server.connections == 2
        assert places_in_use(client) == 0


@needs_posting
async def test_a_fresh_connection_that_closes_before_the_write_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Connector.connect

    async def closing(self: Connector, *args: Any, **options: Any) -> Any:
        connection = await connect(self, *args, **options)
        connection.transport.abort()
        return connection

    monkeypatch.setattr(Connector, "connect", closing)
    async with answering() as server, client_of(server.url) as client:
        with pytest.raises(APIConnectionError, match="closing"):
            await complete(client)
        assert server.requests == []
        assert places_in_use(client) == 0


@needs_posting
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"nonsense\r\n\r\n"])
async def test_a_reply_that_does_not_begin_leaves_nothing_behind(answer: bytes) -> None:
    async with saying(answer) as server, client_of(server.url) as client:
        with pytest.raises(APIConnectionError) as caught:
            await within(complete(client))
        assert caught.value.sent
        assert places_in_use(client) == 0
        pool = next(iter(client._runtime.transport._pools.values()))[0]
        assert not pool.session.connector._acquired


@needs_posting
async def test_a_cancelled_wait_for_the_reply_closes_the_connection() -> None:
    async with saying(hang=True) as server, client_of(server.url) as client:
        call = asyncio.create_task(complete(client))
        while not server.requests:  # noqa: ASYNC110  # the server tells nobody
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert places_in_use(client) == 0
        pool = next(iter(client._runtime.transport._pools.values()))[0]
        assert not pool.session.connector._acquired
        assert not pool.alive or all(one.transport is None or one.transport.is_closing() for one in pool.alive)


@needs_posting
async def test_a_status_is_retried_over_the_same_connection(posted: list[URL]) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(reply(b"{}", status="503 Service Unavailable"))
        await conversation.request()
        await conversation.send(reply(completion()))

    async with RawServer(talk) as server, AsyncFriendli("t", server_url=server.url, retry=QUICK) as client:
        answer = await within(complete(client))
    assert [attempt.status for attempt in answer.meta.attempts] == [503, 200]
    assert len(posted) == 2
    assert server.connections == 1
