"""SSEResponse as an ASGI app, called with a fake receive and send."""

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import pickle
import re
import signal
import weakref
from collections.abc import AsyncGenerator, Callable, MutableMapping
from typing import Any, Final

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import Clock, begin_tasks_eagerly, run_loop_iterations
from support.sockets import TOKEN, Conversation, RawServer, client_of, complete, open_stream, reply, serve_bytes
from support.steps import burst
from support.virtual import in_virtual_time

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    AuthenticationError,
    ChatChunk,
    ChatStream,
    ConfigurationError,
    FriendliError,
    InternalServerError,
    Meta,
    OutputCutOffError,
    OutputInvalidError,
    Pacing,
    RateLimitError,
    ResponseDecodeError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
    ToolError,
    TurnLimitError,
    UsageLimitError,
)
from friendli_async._core.events.sse import SSEDecoder
from friendli_async.asgi import SSEResponse, drain_on_shutdown, error_body, error_status
from friendli_async.asgi.disconnect import run_until_disconnect
from friendli_async.asgi.errors import log_error
from friendli_async.asgi.events import WholeEvents
from friendli_async.asgi.sender import EventSender
from friendli_async.asgi.shutdown import _Drain
from friendli_async.bulk import CheckpointError
from friendli_async.chat import ParsedChatStream
from friendli_async.streams import BranchOverrunError
from friendli_async.testing import (
    FriendliServer,
    Script,
    Step,
    chunk,
    cut,
    done,
    finish,
    gate,
    head,
    raw,
    script,
    stall,
    status,
    text,
    tool_calls,
    usage,
)
from friendli_async.testing import (
    event as sse_event,
)
from friendli_async.tools import Run, RunEvent, ToolStarted, tool

EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}'
HTTP: dict[str, Any] = {"type": "http", "method": "GET", "path": "/"}


class Server:
    """An ASGI server's side of one request."""

    def __init__(self) -> None:
        self.sent: list[MutableMapping[str, Any]] = []
        self.disconnected = asyncio.Event()
        self.accepting = asyncio.Event()
        self.accepting.set()
        self.send_blocked = asyncio.Event()
        self._is_sending = False
        self._news = asyncio.Event()
        self._body = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive(self) -> MutableMapping[str, Any]:
        if self._body:
            return self._body.pop()
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        assert not self._is_sending, "the messages of a response have an order"
        self._is_sending = True
        try:
            await self._accept(message)
        finally:
            self._is_sending = False

    async def _accept(self, message: MutableMapping[str, Any]) -> None:
        if not self.accepting.is_set():
            self.send_blocked.set()
            await self.accepting.wait()
        assert message.get("body") != b"" or not message["more_body"], "an empty piece may end a chunked body"
        assert message["type"] != "http.response.start" or "headers" in message, "middleware reads them"
        self.sent.append(message)
        self._news.set()

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent if message["type"] == "http.response.body")

    @property
    def ended(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._news.clear()
                await self._news.wait()


async def relay(client: AsyncFriendli, **options: Any) -> Server:
    browser = Server()
    await SSEResponse(open_stream(client), **options)(HTTP, browser.receive, browser.send)
    return browser


def last_event(body: bytes) -> tuple[bytes, Any]:
    """Returns the body before the last event, which must be an error, and the data of that event."""
    before, _, data = body.rpartition(b"event: error\ndata: ")
    assert data.endswith(b"\n\n")
    return before, json.loads(data)


# --- what is sent ----------------------------------------------------------------------------------------------------


async def test_bytes_are_relayed_unchanged(server: FriendliServer, client: AsyncFriendli) -> None:
    body = b": a comment\r\n\r\nid: 7\r\ndata:" + json.dumps({"choices": [], "odd": 1}).encode() + b"\r\n\r\n"
    server.enqueue(script(raw(body), chunk("Hi", finish_reason="stop"), raw(b"data: [DONE]\n\n")))
    browser = await relay(client)
    assert browser.sent[0]["status"] == 200
    assert dict(browser.sent[0]["headers"]) == {
        b"content-type": b"text/event-stream",
        b"cache-control": b"no-cache",
        b"x-accel-buffering": b"no",
    }
    assert browser.body.startswith(body)
    assert browser.body.endswith(b"data: [DONE]\n\n")
    assert browser.ended


async def test_custom_headers_take_precedence(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(text("Hi"))
    browser = await relay(client, headers={"Cache-Control": "no-store", "X-Id": "7"})
    headers = browser.sent[0]["headers"]
    assert dict(headers)[b"cache-control"] == b"no-store"
    assert dict(headers)[b"x-id"] == b"7"
    assert len(headers) == 4


async def test_encode_replaces_the_bytes(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a\nb\r\nc\rd"), chunk("x"), chunk("skip"), chunk("z", finish_reason="stop")))
    encoded = {"x": b"event: x\ndata: 1\n\n", "skip": None}
    browser = await relay(client, encode=lambda event: encoded.get(event.text, event.text))
    assert browser.body == b"data: a\ndata: b\ndata: c\ndata: d\n\nevent: x\ndata: 1\n\ndata: z\n\n"
    assert browser.ended


def halves(*texts: str) -> list[Step]:
    return [raw(b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text.encode()) for text in texts]


async def test_character_split_between_two_texts_is_sent_whole(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*halves("a", r"b\ud83d"), usage(1, 2), *halves(r"\ude00c", r"\ud83d", r"\ude00"), finish()))
    browser = await relay(client, encode=lambda chunk: chunk.text or None)
    assert browser.body == "data: a\n\ndata: b\n\ndata: 😀c\n\ndata: 😀\n\n".encode()


async def test_half_a_character_is_replaced_in_text_and_escaped_in_json(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.always(script(*halves(r"\ude00a", r"\ud83d"), finish()))
    as_text = await relay(client, encode=lambda chunk: chunk.text or None, end="[DONE]")
    assert as_text.body == "data: �a\n\ndata: �\n\ndata: [DONE]\n\n".encode()
    as_json = await relay(client, encode=lambda chunk: {"text": chunk.text} if chunk.text else None)
    assert as_json.body == b'data: {"text":"\\ude00a"}\n\ndata: {"text":"\\ud83d"}\n\n'


async def test_empty_text_is_sent_as_an_event(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), finish()))
    browser = await relay(client, encode=lambda chunk: chunk.text)
    assert browser.body == b"data: a\n\ndata: \n\n"


@pytest.mark.parametrize(
    ("upstream", "sent"),
    [
        ("text/event-stream; charset=utf-8", b"text/event-stream; charset=utf-8"),
        ("Text/Event-Stream", b"Text/Event-Stream"),
        ("text/event-stream; charset=\u201cutf-8\u201d", b"text/event-stream"),
        ("application/json", b"text/event-stream"),
        ("text/html", b"text/event-stream"),  # a browser would execute what the model wrote
        ("text/event-stream\r\nContent-Type: text/html", b"text/event-stream"),  # the last one counts
        ("", b"text/event-stream"),  # no header
    ],
)
async def test_content_type_is_that_of_events_even_if_upstream_sends_another(upstream: str, sent: bytes) -> None:
    body = EVENT + b"\n\ndata: [DONE]\n\n"
    response = reply(body, kind=upstream).replace(b"Content-Type: \r\n", b"")
    async with serve_bytes(response) as upstream_server, client_of(upstream_server.url) as client:
        browser = await relay(client)
    assert dict(browser.sent[0]["headers"])[b"content-type"] == sent
    assert browser.body == body


async def test_head_is_answered_without_a_call(server: FriendliServer, client: AsyncFriendli) -> None:
    browser, stream = Server(), open_stream(client)
    await SSEResponse(stream)({**HTTP, "method": "HEAD"}, browser.receive, browser.send)
    assert [browser.sent[0]["status"], browser.body, browser.ended] == [200, b"", True]
    assert server.requests == []
    assert stream.outcome == "cancelled"


async def test_open_stream_is_relayed_from_its_first_event(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(text("Hel", "lo"))
    browser, stream = Server(), await open_stream(client)
    await SSEResponse(stream)(HTTP, browser.receive, browser.send)
    assert browser.body.count(b'"Hel"') == browser.body.count(b'"lo"') == 1
    assert stream.outcome == "done"
    assert (await stream.result()).text == "Hello"


async def test_response_answers_one_http_request(server: FriendliServer, client: AsyncFriendli) -> None:
    browser = Server()
    response = SSEResponse(open_stream(client))
    with pytest.raises(RuntimeError, match="HTTP requests, not websocket"):
        await response({"type": "websocket"}, browser.receive, browser.send)
    await response(HTTP, browser.receive, browser.send)
    with pytest.raises(RuntimeError, match="answers one request"):
        await response(HTTP, browser.receive, browser.send)
    assert browser.ended


@pytest.mark.parametrize("name", ["heartbeat", "answer_after", "send_timeout"])
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "15"])
async def test_invalid_seconds_are_rejected(client: AsyncFriendli, name: str, seconds: Any) -> None:
    options: dict[str, Any] = {name: seconds}
    with pytest.raises(ValueError, match=name):
        SSEResponse(open_stream(client), **options)


@pytest.mark.parametrize("name", ["encode", "on_error", "background"])
async def test_callback_that_is_no_function_is_rejected(client: AsyncFriendli, name: str) -> None:
    callback: dict[str, Any] = {name: {"text": "x"}}
    with pytest.raises(TypeError, match=rf"{name} must be a function( of .*)?, not dict"):
        SSEResponse(open_stream(client), **callback)


# --- heartbeat -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
async def test_ping_is_sent_if_upstream_is_idle(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, end: bytes
) -> None:
    resume = asyncio.Event()
    first = EVENT + end
    server.enqueue(script(raw(first), gate(resume), chunk("x", finish_reason="stop")))
    browser = Server()
    task = asyncio.create_task(SSEResponse(open_stream(client), heartbeat=15)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: browser.body == first)
    clock.advance(14.9)
    await run_loop_iterations()
    assert browser.body == first
    clock.advance(0.2)
    await browser.until(lambda: browser.body == first + b": ping\n\n")
    clock.advance(15.1)
    await browser.until(lambda: browser.body == first + b": ping\n\n" * 2)
    resume.set()
    await asyncio.wait_for(task, 30)
    assert b'"x"' in browser.body
    assert browser.ended


async def test_ping_is_due_after_the_last_event_and_not_after_the_last_check(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    resume = asyncio.Event()
    event = EVENT + b"\n\n"
    server.enqueue(script(raw(event), gate(resume), raw(event), stall()))
    browser = Server()
    task = asyncio.create_task(SSEResponse(open_stream(client), heartbeat=15)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: browser.body == event)
    clock.advance(10)
    resume.set()
    await browser.until(lambda: browser.body == event * 2)
    for seconds in (5.1, 9.8):  # checked 15 s after the first event
        clock.advance(seconds)
        await run_loop_iterations(20)
    assert browser.body == event * 2
    clock.advance(0.2)
    await run_loop_iterations(20)
    assert browser.body == event * 2 + b": ping\n\n"
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)


@pytest.mark.parametrize("fragment", [b'data: {"id"', b"data: {}\n", b"data: {}\r\n", b"event: x\n"])
async def test_partial_event_is_held_back_while_pings_are_sent(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, fragment: bytes
) -> None:
    whole = EVENT + b"\n\n"
    server.enqueue(script(raw(whole + fragment), stall()))
    browser = Server()
    task = asyncio.create_task(SSEResponse(open_stream(client), heartbeat=15)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: browser.body == whole)
    for pings in range(1, 4):
        clock.advance(15.1)
        await run_loop_iterations(20)
        assert browser.body == whole + b": ping\n\n" * pings
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)


async def test_no_ping_without_heartbeat_or_while_browser_is_not_reading(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    for heartbeat in (None, 15.0):
        server.enqueue(script(chunk("once"), stall()))
        browser = Server()
        response = SSEResponse(open_stream(client), heartbeat=heartbeat)
        task = asyncio.create_task(response(HTTP, browser.receive, browser.send))
        if heartbeat is None:
            await browser.until(lambda browser=browser: b"once" in browser.body)  # type: ignore[misc] # a bound default
        else:
            browser.accepting.clear()
            await asyncio.wait_for(browser.send_blocked.wait(), 30)
        clock.advance(60)
        await run_loop_iterations()
        assert b"ping" not in browser.body
        browser.disconnected.set()
        await asyncio.wait_for(task, 30)


@pytest.mark.compatibility
async def test_pings_go_on_with_eager_tasks(server: FriendliServer, client: AsyncFriendli, clock: Clock) -> None:
    begin_tasks_eagerly()
    server.enqueue(script(chunk("once"), stall()))
    browser = Server()
    stream = open_stream(client.with_options(timeout=Timeouts(idle=None)))
    task = asyncio.create_task(SSEResponse(stream)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"once" in browser.body)
    for pings in range(1, 8):  # beyond send_timeout
        clock.advance(15.1)
        await browser.until(lambda pings=pings: browser.body.count(b": ping\n\n") == pings)  # type: ignore[misc] # a bound default
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)
    assert browser.body.count(b": ping\n\n") == 7


async def test_ping_on_a_broken_connection_ends_the_response(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(chunk("once"), stall()))
    browser = Server()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body") == b": ping\n\n":
            raise OSError("gone")
        await browser.send(message)

    task = asyncio.create_task(SSEResponse(open_stream(client))(HTTP, browser.receive, send))
    await browser.until(lambda: b"once" in browser.body)
    clock.advance(15.1)
    with pytest.raises(OSError, match="gone"):
        await asyncio.wait_for(task, 30)
    assert await server.requests[0].disconnected()


async def test_piece_is_sent_after_the_ping_before_it(clock: Clock) -> None:
    resume, browser = asyncio.Event(), Server()

    async def events() -> AsyncGenerator[str, None]:
        yield "once"
        await resume.wait()
        yield "twice"

    task = asyncio.create_task(SSEResponse(events())(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"once" in browser.body)
    browser.accepting.clear()
    clock.advance(15.1)
    await asyncio.wait_for(browser.send_blocked.wait(), 30)
    resume.set()
    await run_loop_iterations()
    browser.accepting.set()
    await asyncio.wait_for(task, 30)
    assert browser.body == b"data: once\n\n: ping\n\ndata: twice\n\n"


async def test_nothing_is_sent_before_the_answer_if_the_work_is_ended_from_outside(clock: Clock) -> None:
    browser = Server()
    sender = EventSender(browser.send, 15.0, None)

    async def work() -> None:
        sender.hurry()
        clock.advance(1.1)
        await run_loop_iterations(100)
        assert browser.sent == []

    await sender.run(work(), b"")


# --- answering before the stream is open -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "encode", "run"])
async def test_answer_and_pings_are_sent_while_the_stream_is_being_opened(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, kind: str
) -> None:
    resume = asyncio.Event()
    server.enqueue(script(head(), gate(resume), chunk("Hi"), finish()))
    browser = Server()
    source: Any = open_run(client) if kind == "run" else open_stream(client)
    response = SSEResponse(source, answer_after=5, encode=None if kind == "raw" else shown, end="end")
    task = asyncio.create_task(response(HTTP, browser.receive, browser.send))
    await server.wait_for_requests(1)
    clock.advance(4.9)
    await run_loop_iterations()
    assert browser.sent == []
    clock.advance(0.2)
    await browser.until(lambda: browser.body == b": ping\n\n")
    assert browser.sent[0]["status"] == 200
    assert dict(browser.sent[0]["headers"])[b"content-type"] == b"text/event-stream"
    clock.advance(15.1)
    await browser.until(lambda: browser.body == b": ping\n\n" * 2)
    resume.set()
    await asyncio.wait_for(task, 30)
    assert b'"Hi"' in browser.body
    assert browser.body.endswith(b"data: end\n\n")
    assert [message["type"] for message in browser.sent].count("http.response.start") == 1
    assert browser.ended


async def test_stream_that_opens_in_time_is_answered_as_without_answer_after(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(status(429), text("Hi"))
    with pytest.raises(RateLimitError):
        await relay(client, answer_after=5)
    early, resume = Server(), asyncio.Event()
    server.enqueue(script(chunk("once"), gate(resume), finish()))
    response = SSEResponse(open_stream(client), answer_after=5, heartbeat=None, encode=shown)
    browser = await relay(client, answer_after=5)
    assert b"ping" not in browser.body
    task = asyncio.create_task(response(HTTP, early.receive, early.send))
    await early.until(lambda: b"once" in early.body)
    clock.advance(6)
    await run_loop_iterations()
    resume.set()
    await asyncio.wait_for(task, 30)
    assert early.body == b'data: {"text":"once"}\n\n'


async def test_error_that_arrived_while_the_program_blocked_the_loop_is_raised_although_an_answer_is_due(
    clock: Clock,
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def reject(conversation: Conversation) -> None:
        await conversation.request()
        asked.set()
        await go.wait()
        await conversation.send(reply(b"{}", status="429 Too Many Requests"))

    browser = Server()
    async with RawServer(reject) as server, client_of(server.url, retry=None) as client:
        response = SSEResponse(open_stream(client), answer_after=5)
        task = asyncio.create_task(response(HTTP, browser.receive, browser.send))
        await asyncio.wait_for(asked.wait(), 30)
        go.set()
        await run_loop_iterations(1)
        clock.advance(6)  # as if the loop had been blocked for 6 s
        with pytest.raises(RateLimitError):
            await asyncio.wait_for(task, 30)
    assert browser.sent == []


@pytest.mark.parametrize("kind", ["raw", "run"])
async def test_error_of_opening_after_the_answer_is_an_error_event(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    resume = asyncio.Event()
    server.enqueue(script(gate(resume), sse_event({"error": {"message": "too long", "code": 400}})))
    browser = Server()
    source: Any = open_run(client) if kind == "run" else open_stream(client)
    response = SSEResponse(source, answer_after=5, encode=shown if kind == "run" else None)
    task = asyncio.create_task(response(HTTP, browser.receive, browser.send))
    await server.wait_for_requests(1)
    clock.advance(5.1)
    await browser.until(lambda: b"ping" in browser.body)
    resume.set()
    await asyncio.wait_for(task, 30)
    before, data = last_event(browser.body)
    assert before == b": ping\n\n"
    assert data["error"]["message"] == "too long"
    assert browser.ended
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["/"]


@pytest.mark.parametrize("answered", [False, True])
async def test_exception_of_a_token_callable_propagates_and_ends_the_answer(
    server: FriendliServer, clock: Clock, answered: bool
) -> None:
    asked, resume = asyncio.Event(), asyncio.Event()

    async def token() -> str:
        asked.set()
        await resume.wait()
        raise LookupError("no token")

    async with AsyncFriendli(token=token, server_url=server.url) as client:
        browser = Server()
        response = SSEResponse(open_stream(client), answer_after=5)
        task = asyncio.create_task(response(HTTP, browser.receive, browser.send))
        await asyncio.wait_for(asked.wait(), 30)
        if answered:
            clock.advance(5.1)
            await browser.until(lambda: b"ping" in browser.body)
        resume.set()
        with pytest.raises(LookupError, match="no token"):
            await asyncio.wait_for(task, 30)
    assert browser.ended is answered
    if answered:
        assert last_event(browser.body)[1]["error"]["type"] == "server_error"
    else:
        assert browser.sent == []


async def test_disconnect_after_an_early_answer_aborts_the_opening(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(head(), stall()))
    browser, stream = Server(), open_stream(client)
    task = asyncio.create_task(SSEResponse(stream, answer_after=5)(HTTP, browser.receive, browser.send))
    call = await server.wait_for_requests(1)
    clock.advance(5.1)
    await browser.until(lambda: b"ping" in browser.body)
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)
    assert await call.disconnected()
    assert stream.outcome == "cancelled"
    assert browser.body == b": ping\n\n"


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_error_while_opening_is_raised_before_anything_is_sent(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(status(429, retry_after=3))
    browser, stream = Server(), open_stream(client)
    with pytest.raises(RateLimitError):
        await SSEResponse(stream)(HTTP, browser.receive, browser.send)
    assert browser.sent == []
    assert stream.outcome == "failed"


@pytest.mark.parametrize("fragment", [b"", b'data: {"id"', b"data: {}\n"])
async def test_broken_stream_ends_with_an_error_event(
    server: FriendliServer, client: AsyncFriendli, fragment: bytes
) -> None:
    server.enqueue(script(chunk("Once"), raw(fragment), cut()) if fragment else script(chunk("Once"), cut()))
    browser = await relay(client)
    before, data = last_event(browser.body)
    assert b"Once" in before
    assert before.endswith(b"}\n\n")  # the partial event is not sent
    assert data["error"]["code"] == "stream_interrupted"
    assert set(data["error"]) == {"message", "type", "param", "code"}
    assert browser.ended


async def test_upstream_error_event_is_relayed_as_last_event(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("Once"), sse_event({"error": {"message": "overloaded", "code": 503}})))
    before, data = last_event((await relay(client)).body)
    assert b'"overloaded"' in before
    assert data["error"]["type"] == "service_unavailable"


async def test_token_that_an_upstream_error_quotes_is_not_relayed(server: FriendliServer) -> None:
    token = "flp_0123456789abcdef"
    server.enqueue(script(chunk("Once"), sse_event({"error": {"message": f"{token} was revoked", "code": 400}})))
    async with AsyncFriendli(token, server_url=server.url) as client:
        body = (await relay(client)).body
    assert b"Once" in body
    assert body.count(b"*** was revoked") == 2
    assert token.encode() not in body


async def test_lone_surrogates_of_an_upstream_error_are_replaced(
    server: FriendliServer, client: AsyncFriendli, caplog: pytest.LogCaptureFixture
) -> None:
    error = {"message": "bad \ud83d", "type": "t\ud83d", "code": "c\ud83d", "status": 400}
    server.enqueue(script(chunk("Once"), sse_event({"error": error})))
    _, data = last_event((await relay(client)).body)
    assert data["error"] == {"message": "bad �", "type": "t�", "param": None, "code": "c�"}
    assert "bad �" in caplog.text


@pytest.mark.parametrize(
    ("returned", "sent"),
    [
        (b"event: sorry\ndata: x\n\n", b"event: sorry\ndata: x\n\n"),
        ({"why": "broken"}, b'event: error\ndata: {"why":"broken"}\n\n'),
        ({"why": "\ud83d"}, b'event: error\ndata: {"why":"\\ud83d"}\n\n'),
        (None, b""),
    ],
)
async def test_on_error_replaces_the_error_event(
    server: FriendliServer, client: AsyncFriendli, returned: bytes | dict[str, Any] | None, sent: bytes
) -> None:
    errors: list[FriendliError] = []

    def on_error(error: FriendliError) -> bytes | dict[str, Any] | None:
        errors.append(error)
        return returned

    server.enqueue(script(chunk("Once"), cut()))
    browser = await relay(client, on_error=on_error)
    assert [type(error) for error in errors] == [StreamInterruptedError]
    assert errors[0].partial is not None
    assert errors[0].partial.text == "Once"
    assert browser.body.partition(b"}\n\n")[2] == sent
    assert browser.ended


async def test_exception_in_on_error_or_encode_ends_the_response_and_propagates(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    def fails(_: object) -> bytes:
        raise TimeoutError("mine")  # not to be taken for a browser that has stopped reading

    cases: list[tuple[Script, dict[str, Any]]] = [
        (script(chunk("Once"), cut()), {"on_error": fails}),
        (script(chunk("Once"), stall()), {"encode": fails}),
    ]
    for answer, options in cases:
        server.enqueue(answer)
        browser = Server()
        with pytest.raises(TimeoutError, match="mine"):
            await SSEResponse(open_stream(client), **options)(HTTP, browser.receive, browser.send)
        assert last_event(browser.body)[1]["error"]["message"] == "the service failed"
        assert browser.ended
    assert await server.requests[1].disconnected()


async def test_encode_that_returns_another_type_is_a_type_error(server: FriendliServer, client: AsyncFriendli) -> None:
    browser = Server()
    with pytest.raises(TypeError, match="encode must return str, bytes, dict or None, not int"):
        await SSEResponse(open_stream(client), encode=lambda _: 7)(HTTP, browser.receive, browser.send)  # type: ignore[arg-type, return-value] # what is tested
    assert last_event(browser.body)[1]["error"]["type"] == "server_error"
    assert browser.ended


@pytest.mark.parametrize("returned", ["sorry", 7])
async def test_on_error_that_returns_another_type_is_a_type_error(
    server: FriendliServer, client: AsyncFriendli, returned: Any
) -> None:
    server.enqueue(script(chunk("Once"), cut()))
    browser = Server()
    with pytest.raises(TypeError, match=f"on_error must return bytes, dict or None, not {type(returned).__name__}"):
        await SSEResponse(open_stream(client), on_error=lambda _: returned)(HTTP, browser.receive, browser.send)
    assert last_event(browser.body)[1]["error"]["message"] == "the service failed"
    assert browser.ended


@pytest.mark.parametrize("on_error", [None, lambda _: None], ids=["default", "on_error"])
async def test_error_after_the_first_byte_is_logged(
    server: FriendliServer, client: AsyncFriendli, caplog: pytest.LogCaptureFixture, on_error: Any
) -> None:
    server.enqueue(script(chunk("a secret"), cut()))
    browser = Server()
    response = SSEResponse(open_stream(client), on_error=on_error)
    await response({**HTTP, "path": "/chat\nforged\ud83d"}, browser.receive, browser.send)
    [record] = [record for record in caplog.records if record.name == "friendli_async"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("/chat%0Aforged%3F: after the first byte, StreamInterruptedError: the conn")
    assert "secret" not in record.getMessage()


async def test_logged_error_says_that_the_retry_budget_is_exhausted(
    server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(status(500), status(500))
    async with client_of(server.url, retry=RetryPolicy(initial=0), pacing=Pacing(retry_budget=1)) as client:
        with pytest.raises(InternalServerError) as caught:
            await complete(client)
    log_error(logging.WARNING, HTTP, "502", caught.value)
    assert re.search(r"2 attempts in \d\.\d\d s, the retry budget is exhausted, call \d+\]$", caplog.messages[-1])


async def test_logged_error_says_which_call_failed_and_after_how_many_attempts(
    server: FriendliServer, client: AsyncFriendli, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(status(503), script(chunk("a"), cut()))
    retrying = client.with_options(retry=RetryPolicy(initial=0))
    forged = retrying.serverless.chat.stream(model="m\nWARNING forged", messages=[{"role": "user", "content": "Hi"}])
    await SSEResponse(forged)(HTTP, Server().receive, Server().send)
    [record] = [record for record in caplog.records if record.name == "friendli_async"]
    where, which = server.url.removeprefix("http://"), "serverless chat.stream of m WARNING forged"
    call_id = vars(record)["friendli_call_id"]
    text = re.escape(f" (server {where}) [{which}, 2 attempts in ")
    expected = rf"{text}\d+\.\d\d s, request id req-000002, call {call_id}\]"
    assert re.search(f"{expected}$", record.getMessage())
    busy = InternalServerError("busy", meta=Meta(operation="chat.stream", server=where))
    log_error(logging.WARNING, HTTP, "503", busy)
    assert f"InternalServerError: busy [chat.stream at {where}, " in caplog.messages[-1]


async def test_complete_stream_and_disconnected_browser_are_not_logged(
    server: FriendliServer, client: AsyncFriendli, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(text("Hi"), script(chunk("once"), stall()))
    await relay(client)
    browser = Server()
    task = asyncio.create_task(SSEResponse(open_stream(client))(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"once" in browser.body)
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)
    assert [record for record in caplog.records if record.name == "friendli_async"] == []


# --- generators ------------------------------------------------------------------------------------------------------


async def two_answers(client: AsyncFriendli) -> AsyncGenerator[dict[str, str], None]:
    for number in "12":
        async with open_stream(client) as stream:
            async for piece in stream.text():
                yield {number: piece}


async def test_generator_is_served(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(text("Hi"), text("you"))
    browser = await serve(two_answers(client), end="[DONE]")
    assert dict(browser.sent[0]["headers"])[b"content-type"] == b"text/event-stream"
    assert browser.body == b'data: {"1":"Hi"}\n\ndata: {"2":"you"}\n\ndata: [DONE]\n\n'
    server.enqueue(text("Hi"), text("you"))
    browser = await serve(two_answers(client), encode=lambda event: "".join(event.values()))
    assert browser.body == b"data: Hi\n\ndata: you\n\n"


async def test_generator_without_an_event_is_an_empty_response() -> None:
    async def nothing() -> AsyncGenerator[str, None]:
        no_pieces: list[str] = []
        for piece in no_pieces:
            yield piece

    browser = await serve(nothing(), end="[DONE]")
    assert (browser.sent[0]["status"], browser.body) == (200, b"data: [DONE]\n\n")


@pytest.mark.parametrize("how", ["finished", "closed"])
async def test_generator_that_has_ended_before_is_no_empty_response(how: str) -> None:
    async def nothing() -> AsyncGenerator[str, None]:
        for _ in range(0):
            yield ""

    events = nothing()
    if how == "closed":
        await events.aclose()
    else:
        assert [event async for event in events] == []
    with pytest.raises(RuntimeError, match=r"^the generator has ended before the response started"):
        await serve(events)


async def test_error_of_a_generator_before_its_first_event_becomes_a_status(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(status(429, retry_after=100))
    browser = Server()
    with pytest.raises(RateLimitError):
        await SSEResponse(two_answers(client))(HTTP, browser.receive, browser.send)
    assert not browser.sent


async def test_error_of_a_generator_after_its_first_event_is_the_last_event(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(text("Hi"), script(chunk("half"), cut()))
    browser = await serve(two_answers(client), end="[DONE]")
    before, error = last_event(browser.body)
    assert before == b'data: {"1":"Hi"}\n\ndata: {"2":"half"}\n\n'
    assert error["error"]["type"] == "upstream_error"


async def test_value_of_a_generator_that_cannot_be_sent_is_an_error() -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        yield 7

    with pytest.raises(
        TypeError, match=r"^without encode, the generator must yield str, bytes, dict or None, not int$"
    ):
        await serve(numbers())


@pytest.mark.parametrize("reads", [True, False], ids=["between two events", "while it is sent to"])
async def test_generator_ends_in_its_own_task_when_the_browser_disconnects(
    server: FriendliServer, client: AsyncFriendli, reads: bool
) -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def events() -> AsyncGenerator[str, None]:
        tasks.append(asyncio.current_task())
        try:
            async for piece in open_stream(client).text():
                yield piece
        finally:
            tasks.append(asyncio.current_task())

    server.enqueue(script(chunk("once"), stall()))
    browser = Server()
    if not reads:
        browser.accepting.clear()
    task = asyncio.create_task(SSEResponse(events())(HTTP, browser.receive, browser.send))
    async with asyncio.timeout(30):
        await (browser.until(lambda: b"once" in browser.body) if reads else browser.send_blocked.wait())
        browser.disconnected.set()
        await server.requests[0].disconnected()
        browser.accepting.set()
        await task
    assert tasks[0] is tasks[1] is not None


async def test_drain_waits_for_a_generator_and_lets_it_make_its_next_calls(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(text("Hi"), text("you"))
    began, drained = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[dict[str, str], None]:
        async for event in two_answers(client):
            yield event
            began.set()
            await drained.wait()

    browser = Server()
    task = asyncio.create_task(SSEResponse(events())(HTTP, browser.receive, browser.send))
    await asyncio.wait_for(began.wait(), 30)
    draining = asyncio.create_task(client.drain(30))
    await run_loop_iterations(10)
    assert not draining.done()
    drained.set()
    async with asyncio.timeout(30):
        await task
        assert await draining == 0
    assert browser.body == b'data: {"1":"Hi"}\n\ndata: {"2":"you"}\n\n'


async def test_generator_that_does_something_else_does_not_delay_a_drain_further(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(text("Hi"))

    async def events() -> AsyncGenerator[str, None]:
        async for piece in open_stream(client).text():
            yield piece
        await asyncio.Event().wait()

    browser = Server()
    task = asyncio.create_task(SSEResponse(events())(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"Hi" in browser.body)
    async with asyncio.timeout(30):
        assert await client.drain(0.01) == 0  # no call was cut
        browser.disconnected.set()
        await task


# --- what is accepted ------------------------------------------------------------------------------------------------


async def test_other_objects_are_rejected_by_the_constructor(client: AsyncFriendli) -> None:
    given: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    forgotten = client.serverless.chat.complete(**given)
    cases: list[tuple[Any, str]] = [
        (client.serverless.chat.stream(**given).text(), r"not TextView: pass the stream itself, with encode="),
        (forgotten, r"not the coroutine .*complete\(\): await it"),
        (
            "text",
            r"takes a stream, chat\.stream\(\.\.\.\), a run, chat\.run\(\.\.\.\), or an async generator, not str$",
        ),
        (two_answers, "not function: call it$"),
        (client.serverless.chat.run(tools=[], **given), "encode is required for a run"),
        (client.serverless.chat.parse_stream(Any, **given).snapshots(), "encode is required for snapshots"),
    ]
    for wrong, reason in cases:
        with pytest.raises(TypeError, match=reason):
            SSEResponse(wrong)
    forgotten.close()
    with pytest.raises(TypeError, match="end must be str, bytes, dict or None, not list"):
        SSEResponse(open_stream(client), end=[])  # type: ignore[arg-type] # what is tested


@pytest.mark.parametrize(
    ("end", "sent"),
    [
        ("[DONE]", b"data: [DONE]\n\n"),
        ({"done": True}, b'data: {"done":true}\n\n'),
        (b"event: end\n\n", b"event: end\n\n"),
    ],
)
async def test_end_is_sent_after_a_complete_stream_only(
    server: FriendliServer, client: AsyncFriendli, end: Any, sent: bytes
) -> None:
    server.enqueue(text("Hi"), script(chunk("Once"), cut()))
    complete = await relay(client, encode=lambda chunk: chunk.text or None, end=end)
    broken = await relay(client, encode=lambda chunk: chunk.text or None, end=end)
    assert complete.body == b"data: Hi\n\n" + sent
    assert sent not in broken.body
    assert last_event(broken.body)[0] == b"data: Once\n\n"


# --- sources that have been used -------------------------------------------------------------------------------------


async def use(source: Any, how: str) -> None:
    match how:
        case "left":
            async with source:
                pass
        case "iterated":
            assert [event async for event in source]
        case "relayed":
            await serve(source, encode=lambda event: "x")
        case "tee":
            source.tee(2)
        case "raw":
            assert [piece async for piece in source.raw()]
        case "stopped":
            await (await source).stop()
        case _:
            assert await source.result()


async def serve(source: Any, browser: Server | None = None, **options: Any) -> Server:
    browser = browser or Server()
    await SSEResponse(source, **options)(HTTP, browser.receive, browser.send)
    return browser


@pytest.mark.parametrize("how", ["left", "iterated", "relayed", "tee", "raw", "stopped", "result"])
@pytest.mark.parametrize("encode", [None, lambda event: "x"], ids=["relay", "encode"])
async def test_stream_of_which_nothing_is_left_is_rejected_before_the_answer(
    server: FriendliServer, client: AsyncFriendli, how: str, encode: Any
) -> None:
    server.enqueue(text("Hi"))
    stream, browser = open_stream(client), Server()
    await use(stream, how)
    with pytest.raises(RuntimeError, match=r"already|has ended"):
        await serve(stream, browser, encode=encode, end="[DONE]")
    assert browser.sent == []  # not an empty answer that looks complete


@pytest.mark.parametrize("how", ["left", "iterated", "relayed", "result"])
async def test_run_of_which_nothing_is_left_is_rejected_before_the_answer(
    server: FriendliServer, client: AsyncFriendli, how: str
) -> None:
    server.enqueue(text("Hi"))
    run, browser = open_run(client), Server()
    await use(run, how)
    with pytest.raises(RuntimeError, match="has ended"):
        await serve(run, browser, encode=shown, end="[DONE]")
    assert browser.sent == []


@pytest.mark.parametrize("kind", ["stream", "run"])
async def test_source_that_a_cancelled_read_has_closed_raises_before_the_answer(
    server: FriendliServer, client: AsyncFriendli, kind: str
) -> None:
    server.enqueue(script(chunk("once"), stall()))
    source: Any = open_run(client) if kind == "run" else open_stream(client)
    await anext(source)
    task = asyncio.create_task(anext(source))
    await run_loop_iterations()
    task.cancel()
    await asyncio.wait({task})
    browser = Server()
    with pytest.raises(StreamInterruptedError) as caught:
        await serve(source, browser, encode=shown, end="[DONE]")
    assert error_status(caught.value) == 502
    assert browser.sent == []


@pytest.mark.parametrize("kind", ["relay", "encode", "run"])
async def test_source_that_is_closed_while_its_browser_reads_ends_with_an_error_event(
    server: FriendliServer, client: AsyncFriendli, kind: str
) -> None:
    server.enqueue(script(chunk("once"), stall()))
    source: Any = open_run(client) if kind == "run" else open_stream(client)
    browser = StuckBrowser()
    task = await serve_stuck(browser, source, encode=None if kind == "relay" else shown, end="[DONE]")
    await source.aclose()
    browser.accepting.set()
    await asyncio.wait_for(task, 30)
    before, error = last_event(browser.body)
    assert b'"once"' in before
    assert b"[DONE]" not in before  # the answer is not complete
    assert error["error"]["code"] == "stream_interrupted"


@pytest.mark.parametrize("kind", ["stream", "run"])
async def test_rest_of_a_source_is_served_after_its_first_event(
    server: FriendliServer, client: AsyncFriendli, kind: str
) -> None:
    server.enqueue(script(chunk("once"), chunk("twice", finish_reason="stop")))
    source: Any = open_run(client) if kind == "run" else open_stream(client)
    assert (await anext(source)).text == "once"
    browser = await serve(source, encode=shown, end="[DONE]")
    assert browser.body == b'data: {"text":"twice"}\n\ndata: [DONE]\n\n'


async def test_events_that_arrived_before_the_client_was_closed_are_sent_before_the_error(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("once"), stall()))
    stream = await open_stream(client)
    await client.aclose()
    browser = await serve(stream)
    before, error = last_event(browser.body)
    assert b'"once"' in before
    assert error["error"]["code"] == "shutting_down"


# --- views of structured output --------------------------------------------------------------------------------------


def parse_stream(client: AsyncFriendli) -> ParsedChatStream[dict[str, list[int]]]:
    messages = [{"role": "user", "content": "Hi"}]
    return client.serverless.chat.parse_stream(dict[str, list[int]], model="m", messages=messages)


VIEWS: dict[str, Callable[[AsyncFriendli], Any]] = {
    "snapshots": lambda client: parse_stream(client).snapshots(),
    "items": lambda client: parse_stream(client).items("n", of=int),
}


@pytest.mark.parametrize(
    ("view", "sent"),
    [("snapshots", b'data: {"n": [1]}\n\ndata: {"n": [1, 2]}\n\n'), ("items", b"data: 1\n\ndata: 2\n\n")],
)
async def test_view_of_a_value_is_served_as_encode_shows_it(
    server: FriendliServer, client: AsyncFriendli, view: str, sent: bytes
) -> None:
    server.enqueue(text('{"n": [1,', " 2]", "}"))
    browser = await serve(VIEWS[view](client), encode=json.dumps, end="[DONE]")
    assert browser.body == sent + b"data: [DONE]\n\n"


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (text('{"n": [1,', ' "2"]}'), "output_invalid"),
        (text('{"n": [1,', " so far"), "output_invalid"),
        (script(chunk('{"n": [1,'), finish("length"), done()), "output_cut_off"),
        (script(chunk('{"n": [1,'), cut()), "output_cut_off"),
    ],
    ids=["type", "JSON", "length", "cut"],
)
async def test_view_of_an_invalid_answer_ends_with_an_error_event(
    server: FriendliServer, client: AsyncFriendli, view: str, answer: Any, code: str
) -> None:
    server.enqueue(answer)
    browser = await serve(VIEWS[view](client), encode=json.dumps, end="[DONE]")
    before, error = last_event(browser.body)
    assert before.startswith(b"data: ")
    assert b"[DONE]" not in before
    assert error["error"]["code"] == code


@pytest.mark.parametrize("view", VIEWS)
async def test_view_of_a_stream_that_stops_itself_ends_like_the_stream(
    server: FriendliServer, client: AsyncFriendli, view: str
) -> None:
    server.enqueue(script(chunk('{"n": [1,'), chunk(" 2, "), stall()))
    stream = parse_stream(client).stop_when(lambda text: "2" in text)
    source = stream.snapshots() if view == "snapshots" else stream.items("n", of=int)
    browser = await serve(source, encode=json.dumps, end="[DONE]")
    assert browser.body.endswith(b"\n\ndata: [DONE]\n\n")
    assert b"event: error" not in browser.body
    assert stream.outcome == "stopped"
    with pytest.raises(OutputCutOffError, match="the stream was stopped"):
        await stream.result()


@pytest.mark.parametrize("view", VIEWS)
async def test_disconnect_of_the_browser_of_a_view_stops_the_model(
    server: FriendliServer, client: AsyncFriendli, view: str
) -> None:
    server.enqueue(script(chunk('{"n": [1,'), stall()))
    browser = Server()
    task = asyncio.create_task(serve(VIEWS[view](client), browser, encode=json.dumps))
    await browser.until(lambda: b"1" in browser.body)
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)
    assert await server.requests[0].disconnected()


async def test_view_is_closed_by_a_drain_that_times_out(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk('{"n": [1,'), stall()))
    browser = Server()
    task = asyncio.create_task(serve(VIEWS["snapshots"](client), browser, encode=json.dumps))
    await browser.until(lambda: b"1" in browser.body)
    assert await client.drain(0.01) == 1
    await asyncio.wait_for(task, 30)
    assert last_event(browser.body)[1]["error"]["code"] == "shutting_down"


# --- runs ------------------------------------------------------------------------------------------------------------


def shown(event: RunEvent) -> dict[str, Any] | None:
    match event:
        case ChatChunk(text=str(part)) if part:
            return {"text": part}
        case ToolStarted():
            return {"tool": event.call.function.name}
        case _:
            return None


def open_run(client: AsyncFriendli, *tools: Any, **options: Any) -> Run:
    messages = [{"role": "user", "content": "Hi"}]
    return client.serverless.chat.run(model="m", messages=messages, tools=tools, **options)


async def test_run_is_served_with_its_tools(server: FriendliServer, client: AsyncFriendli) -> None:
    @tool
    async def weather(city: str) -> str:
        """Returns the weather."""
        return f"internal data on {city}"

    server.enqueue(tool_calls(("weather", {"city": "Rome"})), text("Sun", "ny"))
    browser = Server()
    await SSEResponse(open_run(client, weather), encode=shown, end="[DONE]")(HTTP, browser.receive, browser.send)
    assert browser.body == (
        b'data: {"tool":"weather"}\n\ndata: {"text":"Sun"}\n\ndata: {"text":"ny"}\n\ndata: [DONE]\n\n'
    )
    assert browser.ended


async def test_disconnect_cancels_the_tools_of_a_run(server: FriendliServer, client: AsyncFriendli) -> None:
    steps: list[str] = []
    started = asyncio.Event()

    @tool
    async def endless() -> str:
        """Never returns."""
        try:
            steps.append("started")
            started.set()
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            steps.append("ended")
        return ""

    server.enqueue(tool_calls(("endless", {})))
    browser, run = Server(), open_run(client, endless)
    task = asyncio.create_task(SSEResponse(run, encode=shown)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"endless" in browser.body)
    await asyncio.wait_for(started.wait(), 30)
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)
    assert steps == ["started", "ended"]
    assert "closed" in repr(run)
    assert b"error" not in browser.body


async def test_ping_is_sent_while_a_tool_runs(server: FriendliServer, client: AsyncFriendli, clock: Clock) -> None:
    release = asyncio.Event()

    @tool
    async def slow() -> str:
        """Waits."""
        await release.wait()
        return ""

    server.enqueue(tool_calls(("slow", {})), text("Hi"))
    browser = Server()
    task = asyncio.create_task(SSEResponse(open_run(client, slow), encode=shown)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"slow" in browser.body)
    clock.advance(15.1)
    await browser.until(lambda: browser.body.endswith(b": ping\n\n"))
    release.set()
    await asyncio.wait_for(task, 30)
    assert browser.body.endswith(b'data: {"text":"Hi"}\n\n')


@pytest.mark.compatibility
@pytest.mark.parametrize("eager", [False, True])
async def test_broken_connection_is_not_pinged_again_while_a_tool_ends(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, eager: bool
) -> None:
    if eager:
        begin_tasks_eagerly()
    release, cancelled, pings = asyncio.Event(), asyncio.Event(), [0]

    @tool
    async def slow() -> str:
        """Waits."""
        try:
            return str(await asyncio.get_running_loop().create_future())
        finally:
            cancelled.set()
            await release.wait()

    browser = Server()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body") == b": ping\n\n":
            pings[0] += 1
            raise OSError("gone")
        await browser.send(message)

    server.enqueue(tool_calls(("slow", {})))
    task = asyncio.create_task(SSEResponse(open_run(client, slow), encode=shown)(HTTP, browser.receive, send))
    await browser.until(lambda: b"slow" in browser.body)
    clock.advance(15.1)
    await asyncio.wait_for(cancelled.wait(), 30)
    for _ in range(3):
        clock.advance(15.1)
        await run_loop_iterations(5)
    release.set()
    with pytest.raises(OSError, match="gone"):
        await asyncio.wait_for(task, 30)
    assert pings == [1]


async def test_run_that_cannot_be_opened_raises_before_anything_is_sent(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(status(429))
    browser = Server()
    with pytest.raises(RateLimitError):
        await SSEResponse(open_run(client), encode=shown)(HTTP, browser.receive, browser.send)
    assert browser.sent == []


async def test_error_of_a_run_is_the_last_event(server: FriendliServer, client: AsyncFriendli) -> None:
    @tool
    async def ask() -> str:
        """Returns nothing."""
        return ""

    server.always(tool_calls(("ask", {})))
    errors: list[FriendliError] = []
    browser = Server()
    run = open_run(client, ask, max_turns=1)
    await SSEResponse(run, encode=shown, on_error=errors.append)(HTTP, browser.receive, browser.send)
    assert [type(error) for error in errors] == [TurnLimitError]
    assert browser.ended


# --- disconnects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [False, True], ids=["opening", "open"])
async def test_browser_disconnect_closes_upstream(server: FriendliServer, client: AsyncFriendli, opened: bool) -> None:
    server.enqueue(script(chunk("once") if opened else head(), stall()))
    browser, stream = Server(), open_stream(client)

    async def send(message: MutableMapping[str, Any]) -> None:
        await browser.send(message)
        if browser.ended:
            raise OSError("disconnected")  # as of some servers

    task = asyncio.create_task(SSEResponse(stream)(HTTP, browser.receive, send))
    call = await server.wait_for_requests(1)
    if opened:
        await browser.until(lambda: b"once" in browser.body)
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)
    assert await call.disconnected()
    assert stream.outcome == "cancelled"
    assert b"error" not in browser.body
    statuses = [message["status"] for message in browser.sent if message["type"] == "http.response.start"]
    assert statuses == [200 if opened else 499]  # some middleware fails without a response
    assert browser.ended is not opened


async def test_slow_browser_applies_backpressure_to_upstream(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(burst(10**9, text="x" * 4096)))
    browser, stream = Server(), open_stream(client)
    task = asyncio.create_task(SSEResponse(stream)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: len(browser.sent) > 3)
    browser.accepting.clear()
    await asyncio.wait_for(browser.send_blocked.wait(), 30)
    read = stream.timing.bytes
    await run_loop_iterations()
    assert stream.timing.bytes == read  # nothing more is read from the socket
    browser.disconnected.set()
    await asyncio.wait_for(task, 30)
    assert await server.requests[0].disconnected()


async def test_cancelling_the_server_task_closes_upstream(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("once"), stall()))
    browser, stream = Server(), open_stream(client)
    task = asyncio.create_task(SSEResponse(stream)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"once" in browser.body)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await server.requests[0].disconnected()
    assert not browser.ended


@pytest.mark.parametrize("cancel", ["asyncio", "anyio"])
async def test_cancellation_is_raised_once_the_work_has_ended(cancel: str) -> None:
    started, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
            ended.set()

    async def serve() -> None:
        try:
            await run_until_disconnect(asyncio.Event().wait(), work())
        finally:
            assert ended.is_set()

    async def serve_in(scope: anyio.CancelScope) -> None:
        with scope:
            await serve()

    scope = anyio.CancelScope()
    serving = asyncio.create_task(serve() if cancel == "asyncio" else serve_in(scope))
    await asyncio.wait_for(started.wait(), 30)
    for _ in range(3):
        serving.cancel() if cancel == "asyncio" else scope.cancel()
        await run_loop_iterations(5)
    may_end.set()
    await asyncio.wait([serving], timeout=30)
    assert serving.cancelled() is (cancel == "asyncio")
    assert scope.cancelled_caught is (cancel == "anyio")
    assert ended.is_set()


@pytest.mark.parametrize("turns", range(4))
async def test_failed_ping_makes_no_reference_cycle_if_the_response_is_cancelled_meanwhile(turns: int) -> None:
    failed = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            failed.set()
            raise OSError("the connection is broken")

    async def work(sender: EventSender) -> None:
        await sender.answer({"type": "http.response.start"})
        await asyncio.Event().wait()

    sender = EventSender(send, heartbeat=1e-6, send_timeout=None)
    serving = asyncio.create_task(sender.run(work(sender), b""))
    await failed.wait()
    await run_loop_iterations(turns)
    serving.cancel()
    await asyncio.wait([serving])
    with contextlib.suppress(asyncio.CancelledError, OSError):
        serving.result()
    del serving
    gc.disable()
    try:
        seen = weakref.ref(sender)
        del sender
        assert seen() is None
    finally:
        gc.enable()


@in_virtual_time
async def test_ping_is_sent_when_the_time_since_the_last_message_is_rounded_down() -> None:
    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body"))

    async def work() -> None:
        await sender.answer({"type": "http.response.start"})
        await asyncio.sleep(0.1)
        await run_loop_iterations()

    loop: Any = asyncio.get_running_loop()
    loop.now = 26251.834
    assert loop.now + 0.1 - loop.now < 0.1  # by less than this clock can advance
    sent: list[object] = []
    sender = EventSender(send, heartbeat=0.1, send_timeout=None)
    await sender.run(work(), b"")
    assert sent == [None, b": ping\n\n", b""]


async def test_failure_to_receive_is_raised() -> None:
    async def receive() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_until_disconnect(receive(), asyncio.Event().wait())


async def test_exception_of_the_work_after_a_disconnect_is_raised() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_until_disconnect(run_loop_iterations(3), work())


async def test_exception_of_the_work_after_a_cancellation_is_logged(loop_errors: list[str]) -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError("in the cleanup")

    serving = asyncio.create_task(run_until_disconnect(asyncio.Event().wait(), work()))
    await run_loop_iterations(3)
    serving.cancel()
    await asyncio.wait([serving], timeout=30)
    assert serving.cancelled()
    gc.collect()
    [message] = loop_errors
    assert message.endswith("ZeroDivisionError: in the cleanup")
    loop_errors.clear()


async def test_send_failure_closes_upstream(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("once"), stall()))
    browser, errors = Server(), [OSError("still gone"), OSError("gone")]

    async def send(message: MutableMapping[str, Any]) -> None:
        raise errors.pop()

    with pytest.raises(OSError, match=r"^gone"):
        await SSEResponse(open_stream(client))(HTTP, browser.receive, send)
    assert await server.requests[0].disconnected()


# --- browsers that stop reading --------------------------------------------------------------------------------------


class StuckBrowser(Server):
    """Reads only the start of the response, until `accepting` is set."""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await super().send(message)
        if message["type"] == "http.response.start":
            self.accepting.clear()


async def serve_stuck(browser: StuckBrowser, source: Any, **options: Any) -> asyncio.Task[None]:
    """Serves the browser; returns once a send is blocked."""
    task = asyncio.create_task(SSEResponse(source, **options)(HTTP, browser.receive, browser.send))
    await asyncio.wait_for(browser.send_blocked.wait(), 30)
    return task


@pytest.mark.parametrize("heartbeat", [None, 15.0, 90.0])
async def test_browser_that_stops_reading_is_disconnected_after_the_send_timeout(
    server: FriendliServer,
    client: AsyncFriendli,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    heartbeat: float | None,
) -> None:
    server.enqueue(script(burst(10**9, text="x" * 4096)))
    browser, stream = StuckBrowser(), open_stream(client)
    task = await serve_stuck(browser, stream, heartbeat=heartbeat)
    for seconds in (15, 15, 15, 14.9):
        clock.advance(seconds)
        await run_loop_iterations()
        assert not task.done()
    clock.advance(0.2)
    await asyncio.wait_for(task, 30)
    assert await server.requests[0].disconnected()
    assert stream.outcome == "cancelled"
    assert not browser.ended
    assert [record.getMessage() for record in caplog.records] == [
        "/: the browser stopped reading, and was disconnected"
    ]


async def test_ping_that_is_not_read_ends_at_the_send_timeout(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(chunk("once"), stall()))
    browser = Server()
    stream = open_stream(client.with_options(timeout=Timeouts(idle=None)))
    task = asyncio.create_task(SSEResponse(stream)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: b"once" in browser.body)
    browser.accepting.clear()
    clock.advance(15.1)
    await asyncio.wait_for(browser.send_blocked.wait(), 30)
    for seconds in (15, 15, 15, 14.9):
        clock.advance(seconds)
        await run_loop_iterations()
        assert not task.done()
    clock.advance(0.2)
    await asyncio.wait_for(task, 30)
    assert await server.requests[0].disconnected()


async def test_browser_that_reads_in_time_is_not_disconnected(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    resume = asyncio.Event()
    server.enqueue(script(chunk("once"), gate(resume), finish()))
    browser = StuckBrowser()
    task = await serve_stuck(browser, open_stream(client))
    for _ in range(4):
        clock.advance(14)
        await run_loop_iterations()
    browser.accepting.set()
    await browser.until(lambda: b"once" in browser.body)
    clock.advance(14)
    await run_loop_iterations()
    assert not task.done()
    resume.set()
    await asyncio.wait_for(task, 30)
    assert browser.ended


async def test_browser_that_reads_after_the_program_blocked_the_loop_is_not_disconnected(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    resume = asyncio.Event()
    server.enqueue(script(chunk("once"), gate(resume), finish()))
    browser = StuckBrowser()
    task = await serve_stuck(browser, open_stream(client))
    asyncio.get_running_loop().call_soon(browser.accepting.set)  # the loop's next turn notices that it reads
    clock.advance(61)
    await browser.until(lambda: b"once" in browser.body)
    resume.set()
    await asyncio.wait_for(task, 30)
    assert browser.ended


async def opened(source: Any, kind: str) -> Any:
    """Opens a source before its response, if its kind says so."""
    return await source.__aenter__() if "opened" in kind else source


@pytest.mark.parametrize("kind", ["open", "complete", "run", "complete, opened before", "run, opened before"])
@pytest.mark.parametrize("how", ["drain", "close"])
async def test_shutdown_ends_the_response_to_a_browser_that_does_not_read(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, kind: str, how: str
) -> None:
    server.enqueue(text("Hi") if "complete" in kind else script(burst(10**9, text="x" * 4096)))
    source: Any = open_run(client) if "run" in kind else open_stream(client)
    source, browser = await opened(source, kind), StuckBrowser()
    task = await serve_stuck(browser, source, send_timeout=None, encode=shown if "run" in kind else None)
    await shut_down(client, how)
    clock.advance(0.9)
    await run_loop_iterations()
    assert not task.done()
    clock.advance(0.2)
    await asyncio.wait_for(task, 30)
    assert not browser.ended


async def test_shutdown_lets_a_browser_read_the_error(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(burst(10**9, text="x" * 4096)))
    browser = StuckBrowser()
    task = await serve_stuck(browser, open_stream(client))
    await client.drain(0)
    clock.advance(0.9)
    await run_loop_iterations()
    browser.accepting.set()
    await asyncio.wait_for(task, 30)
    assert last_event(browser.body)[1]["error"]["code"] == "shutting_down"
    assert browser.ended


async def test_signal_drains_the_client_of_any_app_and_reaches_the_handler_of_the_server(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    received: list[int] = []
    server.enqueue(script(chunk("half"), stall()))
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    drains: list[float | None] = []

    class Counted:
        async def drain(self, timeout: float | None = None, /) -> int:
            drains.append(timeout)
            return await client.drain(timeout)

    try:
        async with drain_on_shutdown(Counted(), 0):
            browser = Server()
            response = asyncio.create_task(SSEResponse(open_stream(client))(HTTP, browser.receive, browser.send))
            await browser.until(lambda: b"half" in browser.body)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(response, 30)  # before the block ends: servers wait for their responses first
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert drains == [0]
    assert last_event(browser.body)[1]["error"]["code"] == "shutting_down"
    assert browser.ended


async def test_signal_handler_that_replaces_that_of_the_drain_stays(client: AsyncFriendli) -> None:
    def later(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        async with drain_on_shutdown(client, 0):
            signal.signal(signal.SIGTERM, later)
        assert signal.getsignal(signal.SIGTERM) is later
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signal_after_the_loop_was_closed_reaches_the_handler_of_the_server() -> None:
    async def drain_of_this_loop() -> _Drain:
        return _Drain(AsyncFriendli(token="t"), 0)

    received: list[int] = []
    asyncio.run(drain_of_this_loop())._on_signal(lambda number, _: received.append(number), signal.SIGTERM, None)
    assert received == [signal.SIGTERM]


async def test_without_a_signal_the_end_of_the_block_drains_the_client(client: AsyncFriendli) -> None:
    class Wrapper:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

    wrapper: Any = Wrapper()
    async with drain_on_shutdown(wrapper):
        pass
    with pytest.raises(ConfigurationError, match="drain"):
        await open_stream(client)


@pytest.mark.parametrize("seconds", ["5", -1])
async def test_invalid_seconds_of_a_drain_are_rejected_at_the_start_of_the_app(
    client: AsyncFriendli, seconds: Any
) -> None:
    with pytest.raises(ConfigurationError, match="seconds must be a number of seconds"):
        async with drain_on_shutdown(client, seconds):
            pytest.fail("the app has started")


@pytest.mark.parametrize("kind", ["stream", "run", "stream, opened before", "run, opened before"])
async def test_drain_waits_until_the_browser_has_read_a_complete_answer(
    server: FriendliServer, client: AsyncFriendli, clock: Clock, kind: str
) -> None:
    server.enqueue(text("Hi"))
    source: Any = open_run(client) if "run" in kind else open_stream(client)
    source, browser = await opened(source, kind), StuckBrowser()
    task = await serve_stuck(browser, source, encode=shown if "run" in kind else None, end="[DONE]")
    draining = asyncio.create_task(client.drain(30))
    for _ in range(10):
        clock.advance(0.1)
        await run_loop_iterations()
    assert not draining.done()
    browser.accepting.set()
    await asyncio.wait_for(task, 30)
    clock.advance(0.1)
    assert await asyncio.wait_for(draining, 30) == 0
    assert browser.ended


async def test_total_timeout_ends_the_response_to_a_browser_that_does_not_read(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(burst(10**9, text="x" * 4096)))
    browser = StuckBrowser()
    stream = open_stream(client.with_options(timeout=Timeouts(total=8)))
    task = await serve_stuck(browser, stream, send_timeout=None)
    clock.advance(8.1)
    assert await server.requests[0].disconnected()
    clock.advance(1.1)
    await asyncio.wait_for(task, 30)
    assert stream.outcome == "failed"


def task_count() -> int:
    """Returns the number of tasks, without those of the embedded server's connections."""
    return sum("RequestHandler" not in repr(task) for task in asyncio.all_tasks())


async def test_thousand_browser_disconnects_leak_nothing(server: FriendliServer, client: AsyncFriendli) -> None:
    tasks = task_count()
    server.always(script(chunk("once"), stall()))
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            browsers = [Server() for _ in range(50)]
            running = [
                asyncio.create_task(SSEResponse(open_stream(client))(HTTP, browser.receive, browser.send))
                for browser in browsers
            ]
            for browser in browsers:
                await browser.until(lambda browser=browser: b"once" in browser.body)  # type: ignore[misc] # a bound default
                browser.disconnected.set()
            await asyncio.wait_for(asyncio.gather(*running), 60)
            del running
        leaked = [each for each in gc.get_objects() if isinstance(each, SSEResponse | ChatStream)]
    finally:
        gc.enable()
    assert leaked == []
    assert len(server.requests) == 1000
    assert client.gauges().open_streams == client.gauges().in_use == 0
    await server.wait_for_connections(0)
    await server.idle()
    assert task_count() == tasks


async def test_errors_leave_no_reference_cycle(server: FriendliServer, client: AsyncFriendli) -> None:
    gc.collect()
    gc.disable()
    try:
        for answer in (status(429), script(chunk("x"), cut())) * 5:
            server.enqueue(answer)
            try:
                await relay(client)
            except RateLimitError:
                continue
        leaked = [each for each in gc.get_objects() if isinstance(each, SSEResponse | ChatStream)]
    finally:
        gc.enable()
    assert leaked == []


@pytest.mark.compatibility
async def test_error_before_anything_is_sent_leaves_no_reference_cycle_with_eager_tasks(client: AsyncFriendli) -> None:
    begin_tasks_eagerly()
    await client.aclose()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ConfigurationError):
            await relay(client)
        leaked = [each for each in gc.get_objects() if isinstance(each, SSEResponse | ChatStream)]
    finally:
        gc.enable()
    assert leaked == []


# --- error status and message ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RateLimitError("slow down", status_code=429), 429),
        (APIStatusError("too long", status_code=413), 413),
        (APIStatusError("conflict", status_code=409), 409),
        (APIStatusError("no such field", status_code=422), 422),
        (AuthenticationError("bad token flp_secret", status_code=401), 502),
        (InternalServerError("stack of flp_secret", status_code=500), 502),
        (InternalServerError("overloaded", status_code=503), 503),
        (InternalServerError("gateway flp_secret", status_code=504), 504),
        (APITimeoutError("idle flp_secret", limit="idle"), 504),
        (APIConnectionError("could not connect to flp_secret"), 502),
        (StreamInterruptedError("flp_secret"), 502),
        (ResponseDecodeError("flp_secret"), 502),
        (ConfigurationError("flp_secret", draining=True), 503),
        (APIConnectionError("flp_secret", draining=True), 503),
        (StreamInterruptedError("flp_secret", draining=True), 503),
        (ToolError("flp_secret"), 500),
        (TurnLimitError("flp_secret"), 500),
        (UsageLimitError("flp_secret"), 500),
        (ConfigurationError("draining flp_secret, in the text only"), 500),
        (ConfigurationError("no token flp_secret"), 500),
        (FriendliError("flp_secret"), 500),
        (CheckpointError("flp_secret cannot be written"), 500),
        (BranchOverrunError("flp_secret"), 500),
    ],
)
def test_errors_map_to_status_and_message_without_secrets(error: FriendliError, code: int) -> None:
    assert error_status(error) == code
    error.meta = Meta(server="internal.flp_secret.example:8000")
    body = error_body(error)["error"]
    assert body["message"]
    assert "flp_secret" not in json.dumps(body)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (APITimeoutError("t", limit="connect"), "the model did not answer in time", "connect_timeout"),
        (OutputCutOffError("t"), "the model's answer was cut off", "output_cut_off"),
        (OutputInvalidError("t"), "the model's answer does not have the required form", "output_invalid"),
        (ResponseDecodeError("t"), "the model's server sent an invalid response", None),
        (CheckpointError("t"), "the service failed", None),
        (APIConnectionError("t", meta=Meta()), "the model's server could not be reached", "connection_error"),
        (
            APIConnectionError("t", meta=Meta(status=200)),
            "the reply broke off before it was complete",
            "reply_interrupted",
        ),
    ],
    ids=["timeout", "cut off", "invalid", "decode", "checkpoint", "no reply", "half a reply"],
)
def test_message_for_a_browser_names_what_failed(error: FriendliError, message: str, code: str | None) -> None:
    body = error_body(error)["error"]
    assert (body["message"], body["code"]) == (message, code)


@pytest.mark.parametrize(
    ("status_code", "kind"),
    [(429, "rate_limit_error"), (503, "service_unavailable"), (400, "invalid_request_error")],
)
def test_body_has_a_type_where_upstream_has_none(status_code: int, kind: str) -> None:
    assert error_body(APIStatusError("t", status_code=status_code))["error"]["type"] == kind
    assert error_body(APIStatusError("t", status_code=status_code, type="theirs"))["error"]["type"] == "theirs"


@pytest.mark.parametrize("status_code", [400, 413, 422])
def test_browser_sees_the_message_of_an_error_in_its_request(status_code: int) -> None:
    assert error_body(APIStatusError("too many words", status_code=status_code))["error"]["message"] == "too many words"


@pytest.mark.parametrize("status_code", [404, 409, 429, 503])
def test_browser_does_not_see_what_upstream_says_of_the_service(status_code: int) -> None:
    error = APIStatusError("endpoint dep-1 of team acme", status_code=status_code, code="c")
    body = error_body(error)["error"]
    assert (error_status(error), body["code"]) == (status_code, "c")
    assert body["message"]
    assert "acme" not in str(body)


async def test_browser_does_not_see_the_error_of_another_call(server: FriendliServer) -> None:
    server.enqueue(status(429, retry_after=3600, message="alice has used up her requests"))
    async with client_of(server.url) as client:
        with pytest.raises(APIStatusError):
            await complete(client)
        with pytest.raises(APIStatusError, match="alice") as caught:  # for the log
            await complete(client)
    assert len(server.requests) == 1
    assert "alice" not in str(error_body(caught.value))


QUOTING: Final = f"<html><title>Not {TOKEN}</title></html>"
CUT: Final = f"<html><title>{'x' * (201 - len(TOKEN))}{TOKEN}</title></html>"
"""It quotes the token so that the message, of 200 characters, lacks its last one."""


@pytest.mark.parametrize("page", [b"", QUOTING.encode(), CUT.encode()], ids=["empty", "page", "cut"])
async def test_browsers_do_not_see_the_proxy_that_answered(page: bytes) -> None:
    async with serve_bytes(reply(page, status="404 X", kind="text/html")) as proxy:
        where = proxy.url.removeprefix("http://")
        async with client_of("http://api.invalid", proxy=proxy.url) as client:
            with pytest.raises(APIStatusError) as caught:
                await complete(client)
    assert (where in str(caught.value), TOKEN[:-1] in str(caught.value)) == (True, False)
    assert (error_status(caught.value), where in str(error_body(caught.value))) == (404, False)


async def test_draining_client_is_reported_as_503(server: FriendliServer, client: AsyncFriendli) -> None:
    await client.drain(0)
    browser = Server()
    with pytest.raises(ConfigurationError) as caught:
        await SSEResponse(open_stream(client))(HTTP, browser.receive, browser.send)
    assert error_status(caught.value) == 503
    assert error_body(caught.value)["error"]["code"] == "shutting_down"


async def shut_down(client: AsyncFriendli, how: str) -> None:
    if how == "drain":
        await client.drain(0)
    else:
        await client.aclose()


@pytest.mark.parametrize("how", ["drain", "close"])
@pytest.mark.parametrize("opened", [False, True], ids=["opening", "open"])
async def test_stream_interrupted_by_shutdown_says_so(
    server: FriendliServer, client: AsyncFriendli, how: str, opened: bool
) -> None:
    server.enqueue(script(chunk("once"), stall()) if opened else script(head(), stall()))
    browser = Server()
    task = asyncio.create_task(SSEResponse(open_stream(client))(HTTP, browser.receive, browser.send))
    await server.wait_for_requests(1)
    if opened:
        await browser.until(lambda: b"once" in browser.body)
    await shut_down(client, how)
    if opened:
        await asyncio.wait_for(task, 30)
        assert last_event(browser.body)[1]["error"]["code"] == "shutting_down"
        return
    with pytest.raises(StreamInterruptedError) as caught:
        await asyncio.wait_for(task, 30)
    assert (error_status(caught.value), error_body(caught.value)["error"]["code"]) == (503, "shutting_down")


@pytest.mark.parametrize("how", ["drain", "close"])
@pytest.mark.parametrize("started", [False, True], ids=["waiting", "reading"])
async def test_plain_call_interrupted_by_shutdown_says_so(
    server: FriendliServer, client: AsyncFriendli, how: str, started: bool
) -> None:
    server.enqueue(script(head(), raw(b'{"choices"'), stall()) if started else script(stall()))
    call = client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "Hi"}])
    task = asyncio.create_task(call)
    await server.wait_for_requests(1)
    await run_loop_iterations()
    await shut_down(client, how)
    with pytest.raises(APIConnectionError) as caught:
        await asyncio.wait_for(task, 30)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert [copied.draining, error_status(copied), error_body(copied)["error"]["code"]] == [True, 503, "shutting_down"]


async def test_closed_client_is_reported_as_503(client: AsyncFriendli) -> None:
    await client.aclose()
    with pytest.raises(ConfigurationError) as caught:
        await open_stream(client)
    assert (error_status(caught.value), error_body(caught.value)["error"]["code"]) == (503, "shutting_down")


# --- splitting into events -------------------------------------------------------------------------------------------

LINE_ENDS: Final = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES: Final = st.lists(st.sampled_from([b"data: x", b"data: {}", b"data: [DONE]", b": c", b"id: 1", b""]), max_size=8)


def whole_events(pieces: list[bytes]) -> list[bytes]:
    events = WholeEvents()
    return [data for data in (*map(events.feed, pieces), events.finish()) if data]


@given(st.lists(st.tuples(LINES, LINE_ENDS), max_size=6), st.lists(st.integers(0, 80), max_size=8))
def test_splitting_preserves_whole_events_and_splits_at_blank_lines_only(
    blocks: list[tuple[list[bytes], bytes]], places: list[int]
) -> None:
    body = b"".join(line + end for lines, end in blocks for line in lines)
    cuts = sorted({min(place, len(body)) for place in places} | {0, len(body)})
    pieces = whole_events([body[begin:end] for begin, end in itertools.pairwise(cuts)])
    for piece in pieces[:-1] if pieces and pieces[-1] == b"\n" else pieces:  # maybe of the line end CR LF
        assert piece.endswith((b"\n\n", b"\n\r\n", b"\r\r", b"\n\r"))
    sent = b"".join(pieces)
    if sent.startswith(body):
        assert sent.removeprefix(body) in {b"", b"\n", b"\n\n"}
    else:
        assert body.startswith(sent)
        rest = re.split(rb"\r\n|\r|\n", body.removeprefix(sent))
        assert b"\n".join(line[6:] for line in rest if line.startswith(b"data: ")) not in {b"{}", b"[DONE]"}


@given(st.lists(st.tuples(st.sampled_from([b"data: x", b"event: y", b""]), LINE_ENDS), max_size=12), st.data())
def test_events_are_passed_on_as_soon_as_they_are_whole_and_a_ping_may_follow_each_piece(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    body = b"".join(line + end for line, end in lines)
    cuts = sorted({0, len(body), *data.draw(st.lists(st.integers(0, len(body)), max_size=8))})
    events, received, browser = WholeEvents(), SSEDecoder(), SSEDecoder()
    for begin, end in itertools.pairwise(cuts):
        whole = events.feed(body[begin:end])
        assert browser.feed(whole) == received.feed(body[begin:end])
        assert browser.feed(b": ping\n\n") == []


@pytest.mark.parametrize(
    "blank_line", [b"\n\n", b"\n\r", b"\n\r\n", b"\r\r", b"\r\r\n", b"\r\n\n", b"\r\n\r", b"\r\n\r\n"]
)
def test_bytes_of_a_blank_line_are_passed_on_verbatim_however_they_are_split(blank_line: bytes) -> None:
    body = (b"data: x" + blank_line) * 2
    for place in range(len(body) + 1):
        assert b"".join(whole_events([body[:place], body[place:]])) == body


def test_large_event_is_scanned_in_linear_time() -> None:
    [event] = whole_events([*[b"x" * 1024] * 8192, b"\n\n"])
    assert len(event) == 8192 * 1024 + 2


@pytest.mark.parametrize("end", [b"data: [DONE]\n", b"data: [DONE]", b'data: {"choices": [],\ndata: "odd": 1}\r\n'])
async def test_missing_blank_line_after_last_event_is_added(
    server: FriendliServer, client: AsyncFriendli, end: bytes
) -> None:
    server.enqueue(script(chunk("Once"), finish("stop"), raw(end)))
    browser = await relay(client)
    assert browser.body.endswith(b"\n\n" + end.removesuffix(b"\n") + b"\n\n")


@pytest.mark.parametrize("rest", [b'data: {"choi', b'data: {"choices": [],\n', b"data: [DO", b"event: x\n", b"data:\n"])
@pytest.mark.parametrize("stopped", [False, True])
async def test_event_truncated_by_the_end_of_the_stream_is_not_sent(
    server: FriendliServer, client: AsyncFriendli, rest: bytes, stopped: bool
) -> None:
    last = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    server.enqueue(script(chunk("Once"), raw(last + rest), stall() if stopped else cut()))
    browser, stream = Server(), open_stream(client)
    task = asyncio.create_task(SSEResponse(stream)(HTTP, browser.receive, browser.send))
    await browser.until(lambda: last in browser.body)
    if stopped:
        await stream.stop()
    await asyncio.wait_for(task, 30)
    assert browser.body.endswith(last)
    assert browser.ended
