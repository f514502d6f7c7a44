"""The steps of the embedded server's script language, and the exact bytes that they write."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, get_type_hints

import aiohttp
import pytest
from support.embedded_server import AUTH, BODY, CHAT, RawClient, post
from support.sockets import MESSAGES
from support.steps import burst, close_after, garbage, split

from friendli_async import AsyncFriendli, BadRequestError, InternalServerError, testing
from friendli_async.testing import FriendliServer, ReceivedRequest, Script, script
from friendli_async.testing.steps import Payload, Step


async def read_pieces(session: aiohttp.ClientSession) -> list[bytes]:
    """Returns what each read of the response body yields."""
    async with session.post(CHAT, json=BODY) as response:
        return [piece async for piece in response.content.iter_any()]


# --- scripts ---------------------------------------------------------------------------------------------------------


async def test_scripts_are_used_in_order_before_the_default_reply(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    server.enqueue(testing.status(503), testing.status(429))
    assert len(server.unused_replies) == 2
    assert [(await post(session))[0] for _ in range(3)] == [503, 429, 200]
    assert server.unused_replies == []


async def test_script_for_a_path_is_used_only_for_that_path(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    server.enqueue(testing.status(418), path="/a")
    server.enqueue(testing.status(500))
    assert [(await post(session, path))[0] for path in ("/b", "/c", "/a")] == [500, 404, 418]


async def test_always_is_used_until_it_is_reset(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.always(testing.status(418))
    server.enqueue(testing.status(500))
    statuses = [(await post(session))[0] for _ in range(3)]
    server.always(None)
    assert [*statuses, (await post(session))[0]] == [500, 418, 418, 200]


async def test_always_for_a_path_precedes_that_for_any(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.always(testing.status(418), path="/a")
    assert [(await post(session, path))[0] for path in ("/a", "/b")] == [418, 404]
    server.always(testing.status(500))
    server.enqueue(testing.status(429))
    assert [(await post(session, path))[0] for path in ("/a", "/a", "/b")] == [429, 418, 500]
    server.always(None, path="/a")
    assert (await post(session, "/a"))[0] == 500


def test_answer_can_be_evaluated_as_an_annotation() -> None:
    def answers(*many: testing.Answer, last: testing.Answer | None = None) -> None: ...

    assert get_type_hints(answers).keys() == {"many", "last", "return"}


async def test_script_can_be_a_function_of_the_request(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    def reverse(request: ReceivedRequest) -> Script:
        return testing.body(request.body[::-1])

    server.enqueue(reverse)
    _, body = await post(session)
    assert body[::-1] == server.requests[0].body


async def test_script_function_can_return_a_step_or_another_function(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.always(lambda request: testing.text("said") if request.json["model"] == "m" else testing.status(400))
    assert (await client.serverless.chat.complete(model="m", messages=MESSAGES)).text == "said"
    with pytest.raises(BadRequestError):
        await client.serverless.chat.complete(model="other", messages=MESSAGES)


async def test_exception_in_script_function_is_logged_and_named_in_a_500(
    server: FriendliServer, client: AsyncFriendli, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: ReceivedRequest) -> Script:
        raise LookupError(f"no {request.method}")

    def fail_the_test(request: ReceivedRequest) -> Script:
        pytest.fail("wrong request")

    server.enqueue(fail, fail_the_test)
    messages: list[str] = []
    for _ in range(2):
        with pytest.raises(InternalServerError) as caught:
            await client.serverless.chat.complete(model="m", messages=MESSAGES)
        messages.append(caught.value.message)
    assert messages[0].startswith("LookupError: no POST (raised by <function ")
    assert "<locals>.fail at " in messages[0]
    assert messages[1].startswith("Failed: wrong request (raised by <function ")
    assert server.reply_errors == messages
    assert [record.getMessage() for record in caplog.records] == messages
    assert "in fail\n" in caplog.text


@pytest.mark.parametrize("returned", [None, "Hello", [testing.text("a")]])
async def test_script_function_that_returns_no_reply_is_a_500(
    server: FriendliServer, client: AsyncFriendli, returned: Any
) -> None:
    server.always(lambda _: returned)
    with pytest.raises(InternalServerError, match="TypeError: the return value of a reply function must be a reply"):
        await client.serverless.chat.complete(model="m", messages=MESSAGES)


async def wait_and_answer(request: ReceivedRequest) -> Script:
    return testing.status(503)


NO_ANSWERS: list[tuple[Any, str]] = [
    ("Hello", r"a reply such as text\(\"Hello\"\) .*, not 'Hello' \(str\)$"),
    ([testing.text("a")], r"\(list\)$"),
    (None, "not None$"),
    (wait_and_answer, "must not be a coroutine function, as <function wait_and_answer"),
]


@pytest.mark.parametrize(("answer", "message"), NO_ANSWERS)
def test_enqueueing_anything_but_a_reply_is_a_type_error(answer: Any, message: str) -> None:
    server = FriendliServer()
    with pytest.raises(TypeError, match=message):
        server.enqueue(testing.text("a"), answer)
    assert server.unused_replies == []
    if answer is not None:
        with pytest.raises(TypeError, match=message):
            server.always(answer)


@pytest.mark.parametrize("path", ["v1/models", "http://localhost/v1/models", "/v1/models?limit=1"])
def test_path_that_no_request_can_have_is_rejected(path: str) -> None:
    server = FriendliServer()
    for accept in (server.enqueue, server.always):
        with pytest.raises(ValueError, match="path must start with / and have no query"):
            accept(testing.status(503), path=path)


untyped: Any = testing

WRONG_TYPES: list[Callable[..., object]] = [
    lambda: untyped.script("a"),
    lambda: untyped.script(untyped.text("a")),
    lambda: untyped.script(untyped.chunk("a"), status=None),
    lambda: untyped.text(["a", "b"]),
    lambda: untyped.body("text"),
    lambda: untyped.json_body(untyped.text("a")),
    lambda: untyped.json_body(untyped.status(503)),
    lambda: untyped.json_body(untyped.done()),
    lambda: untyped.event(b"data"),
    lambda: untyped.event(untyped.chunk("a")),
    lambda: untyped.raw("text"),
    lambda: untyped.FriendliServer(faults=["status=503"]),
]


@pytest.mark.parametrize("make", WRONG_TYPES)
def test_argument_of_wrong_type_raises_type_error_that_names_it(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r" must be .*, not "):
        make()


async def test_unused_replies_are_shown_with_their_path(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    def answer(request: ReceivedRequest) -> Script:
        return testing.status(503)

    server.enqueue(testing.text("Hel", "lo", finish_reason="length"), path="/v1/a")
    server.enqueue(testing.status(503), testing.cut(), answer)
    await post(session)
    written = "text('Hel', 'lo', finish_reason='length')"
    for reply, shown in zip(server.unused_replies, (written, "cut", "<function "), strict=True):
        assert shown in reply
        assert reply.endswith(" for /v1/a") == (shown == written)
    server.clear_replies()
    assert server.unused_replies == []


async def test_step_after_end_is_logged_as_an_error(
    server: FriendliServer, raw_client: RawClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(script(close_after(), testing.chunk("late")))
    raw_client.send()
    assert b"late" not in await raw_client.reader.read()
    assert "Cannot call write() after write_eof()" in caplog.text
    assert server.reply_errors == ["RuntimeError: Cannot call write() after write_eof() (raised by a step)"]


async def test_status_has_json_error_body_and_given_headers(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    server.enqueue(
        testing.status(
            429, retry_after=1, headers={"X-Request-ID": "mine", "content-type": "application/problem+json"}
        ),
        testing.status(503, message="busy", headers={"retry-after-ms": "20"}),
        testing.status(599),
        testing.status(418),
    )
    async with session.post(CHAT) as response:
        assert response.headers.getall("x-request-id") == ["mine"]
        assert response.headers.getall("Content-Type") == ["application/problem+json"]
        assert response.headers["Retry-After"] == "1"
    async with session.post(CHAT) as response:
        assert response.headers["retry-after-ms"] == "20"
        assert await response.json() == {"error": {"message": "busy", "type": "server_error", "code": None}}
    for kind in ("server_error", "api_error"):
        async with session.post(CHAT) as response:
            assert (await response.json())["error"]["type"] == kind


async def test_redirect_has_no_body(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.enqueue(testing.status(307, headers={"Location": "/elsewhere"}))
    async with session.post(CHAT, json=BODY, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"], await response.read()) == (307, "/elsewhere", b"")


async def test_text_is_streamed_if_requested(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    answer = testing.text("Hel", "lo", reasoning=["Hm."], prompt_tokens=3)
    server.enqueue(answer, answer, answer, testing.text(finish_reason="length"))
    _, whole = await post(session)
    _, streamed = await post(session, stream=True)
    _, counted = await post(session, stream=True, stream_options={"include_usage": True})
    reply = json.loads(whole)
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "reasoning_content": "Hm."}
    assert reply["usage"]["total_tokens"] == 6
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in streamed.splitlines()[:-3:2]]
    texts = [{"reasoning_content": "Hm."}, {"content": "Hel"}, {"content": "lo"}]
    assert deltas == [{"role": "assistant", "content": ""}, *texts, {}]
    assert streamed.endswith(b"\n\ndata: [DONE]\n\n")
    assert json.loads(counted.splitlines()[-4][6:])["usage"]["completion_tokens"] == 3
    assert json.loads((await post(session))[1])["choices"][0]["message"] == {"role": "assistant", "content": ""}


START = b'data: {"id":"chatcmpl-000001","object":"chat.completion.chunk","created":%d,"model":"m","choices":'


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            testing.chunk("Hi"),
            b'[{"index":0,"delta":{"content":"Hi"},"finish_reason":null,"logprobs":null}],"usage":null}',
        ),
        (
            testing.chunk("\ud83d"),
            b'[{"index":0,"delta":{"content":"\\ud83d"},"finish_reason":null,"logprobs":null}],"usage":null}',
        ),
        (
            testing.chunk(role="x", index=1),
            b'[{"index":1,"delta":{"role":"x"},"finish_reason":null,"logprobs":null}],"usage":null}',
        ),
        (testing.finish("null"), b'[{"index":0,"delta":{},"finish_reason":"null","logprobs":null}],"usage":null}'),
        (
            testing.usage(1, 2),
            b'[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}}',
        ),
    ],
)
async def test_chunk_is_a_complete_chat_completion_chunk(
    server: FriendliServer, session: aiohttp.ClientSession, step: Payload, expected: bytes
) -> None:
    server.enqueue(step)
    _, body = await post(session)
    assert body == START % server.requests[0].created + expected + b"\n\n"


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (testing.done(), b"data: [DONE]\n\n"),
        (testing.comment("ping"), b": ping\n\n"),
        (testing.raw(b"\xff\r"), b"\xff\r"),
        (testing.event("a\nb"), b"data: a\ndata: b\n\n"),
        (testing.event("a\rb\r\nc\n"), b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        (testing.event({"a": 1}, name="x"), b'event: x\ndata: {"a":1}\n\n'),
        (testing.event({"code": 429}, name="error"), b'event: error\ndata: {"code":429}\n\n'),
        (testing.event({"error": {"code": 429}}), b'data: {"error":{"code":429}}\n\n'),
        (
            testing.tool_status("STARTED", parameters={"expression": "2+3"}, result="None"),
            (
                b'event: tool_status\ndata: {"tool_call_id":"call_1","name":"math:calculator","status":"STARTED",'
                b'"parameters":[{"name":"expression","value":"2+3"}],"result":"None","files":null,"message":null,'
                b'"error":null,"usage":null,"timestamp":1700000000}\n\n'
            ),
        ),
    ],
)
async def test_steps_write_exact_bytes(
    server: FriendliServer, session: aiohttp.ClientSession, step: Payload, expected: bytes
) -> None:
    server.enqueue(script(step))
    assert (await post(session))[1] == expected


async def test_tool_status_carries_files_and_errors(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    file, error = {"name": "f", "url": "u"}, {"type": "t", "msg": "m"}
    server.enqueue(testing.tool_status("ERRORED", name="web:url", files=[file], error=error, message="x"))
    data = json.loads((await post(session))[1].splitlines()[1][6:])
    assert (data["name"], data["files"], data["error"], data["message"]) == ("web:url", [file], error, "x")


async def test_each_write_arrives_as_a_separate_read(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    steps = [testing.raw(b"%d" % number) for number in range(100)]
    server.enqueue(script(*steps), script(split(testing.raw(b"abcdefg"), 3)), split(testing.done()))
    assert await read_pieces(session) == [b"%d" % number for number in range(100)]
    assert await read_pieces(session) == [b"abc", b"def", b"g"]
    assert len(await read_pieces(session)) == 14


async def test_burst_groups_chunks_into_writes(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.enqueue(burst(25, text="x", events_per_write=10), script(burst(20_000), testing.done()))
    assert [piece.count(b'"content":"x"') for piece in await read_pieces(session)] == [10, 10, 5]
    _, body = await post(session)
    assert body.count(b"\n\n") == 20_001


async def test_gate_blocks_reply_until_opened(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    opened = asyncio.Event()
    server.enqueue(script(testing.raw(b"a"), testing.gate(opened), testing.raw(b"b")))
    async with session.post(CHAT, json=BODY) as response:
        assert await response.content.readany() == b"a"
        assert server.active_requests == 1
        opened.set()
        assert await response.content.readany() == b"b"


async def test_gate_is_opened_by_an_event_that_is_cleared_at_once(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    waiting = asyncio.Event()

    class Opened(asyncio.Event):
        async def wait(self) -> Literal[True]:
            waiting.set()
            return await super().wait()

    opened = Opened()
    server.enqueue(script(testing.gate(opened), testing.done()))
    async with asyncio.timeout(30):
        reply = asyncio.create_task(post(session))
        await waiting.wait()
        opened.set()
        opened.clear()
        assert await reply == (200, b"data: [DONE]\n\n")


@pytest.mark.parametrize("kind", [asyncio.Event, threading.Event])
@pytest.mark.parametrize("in_loop", [True, False])
async def test_gate_of_server_in_thread_is_opened_here(
    kind: type[asyncio.Event | threading.Event], in_loop: bool
) -> None:
    opened = kind()
    gate = testing.gate(opened) if in_loop else await asyncio.to_thread(testing.gate, opened)
    with FriendliServer() as remote:
        remote.enqueue(script(gate, testing.done()))
        async with aiohttp.ClientSession(remote.url, headers=AUTH) as session, asyncio.timeout(30):
            reply = asyncio.create_task(post(session))
            await remote.wait_for_requests()
            assert not reply.done()
            opened.set()
            assert await reply == (200, b"data: [DONE]\n\n")


async def test_delay_lasts_for_the_given_time(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.enqueue(script(testing.delay(0.02), testing.done()))
    started = time.monotonic()
    assert await post(session) == (200, b"data: [DONE]\n\n")
    assert time.monotonic() - started >= 0.02


async def test_server_pace_delays_events_but_not_plain_replies() -> None:
    async with FriendliServer(pace=0.01) as server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
        started = time.monotonic()
        _, body = await post(session, stream=True)
        assert time.monotonic() - started >= 0.01 * body.count(b"\n\n")
        assert json.loads((await post(session))[1])["object"] == "chat.completion"


def test_pace_adds_delays_to_streams_only() -> None:
    stream = script(testing.chunk("a"), testing.done())
    assert len(testing.pace(stream, 1.0).steps) == 4
    assert testing.pace(stream, 0.0) is stream
    assert testing.pace(plain := testing.json_body({}), 1.0) is plain


async def test_headers_are_not_sent_before_head_step(server: FriendliServer, raw_client: RawClient) -> None:
    opened = asyncio.Event()
    server.enqueue(script(testing.gate(opened), testing.head(), testing.stall(), status=201))
    raw_client.send()
    await server.wait_for_requests(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):  # the only way to see that nothing arrives
            await raw_client.reader.read(1)
    opened.set()
    assert (await raw_client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201")


async def test_end_of_script_ends_body_and_keeps_connection(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(script(testing.raw(b"a")), script(testing.raw(b"b")), script())
    for body in (b"1\r\na\r\n0\r\n\r\n", b"1\r\nb\r\n0\r\n\r\n", b"0\r\n\r\n"):
        raw_client.send()
        await raw_client.reader.readuntil(b"\r\n\r\n")
        assert await raw_client.reader.readexactly(len(body)) == body
    assert server.connections == 1
    await server.idle()
    assert all(request.completed for request in server.requests)


async def test_cut_closes_connection_without_ending_body(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(script(testing.raw(b"abc"), testing.cut()))
    raw_client.send()
    received = await raw_client.reader.read()
    assert received.endswith(b"3\r\nabc\r\n")
    assert not await server.requests[0].disconnected()
    assert server.requests[0].outcome == "broken"


async def test_drop_closes_connection_without_response(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(testing.cut())
    raw_client.send()
    assert await raw_client.reader.read() == b""
    assert server.requests[0].outcome == "broken"


async def read_into(received: bytearray, reader: asyncio.StreamReader) -> None:
    while piece := await reader.read(1 << 20):
        received += piece


@pytest.mark.parametrize("size", [0, 3, 20_000])
async def test_reset_resets_connection_after_written_data(
    server: FriendliServer, raw_client: RawClient, size: int
) -> None:
    before = [testing.raw(b"x" * size)] if size else []
    server.enqueue(script(*before, testing.reset()))
    raw_client.send()
    received = bytearray()
    with pytest.raises(ConnectionResetError):
        await read_into(received, raw_client.reader)
    assert received.count(b"x", received.find(b"\r\n\r\n") + 1) == size
    assert server.requests[0].outcome == "broken"


async def test_close_after_ends_body_and_closes_keep_alive_connection(
    server: FriendliServer, raw_client: RawClient
) -> None:
    server.enqueue(script(testing.done(), close_after()))
    raw_client.send()
    received = await raw_client.reader.read()
    assert b"connection: close" not in received.lower()
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await server.idle()
    assert server.requests[0].completed


async def test_garbage_replaces_the_chunk_size(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(script(testing.raw(b"a"), garbage(b"zz\r\n"), testing.cut()), script(garbage()))
    raw_client.send()
    assert (await raw_client.reader.read()).endswith(b"1\r\na\r\nzz\r\n")
    second = await RawClient.connect(server)
    second.send()
    await second.reader.readuntil(b"zz\r\nno chunk\r\n")
    second.abort()


async def test_declared_content_length_is_kept_for_truncated_bodies(
    server: FriendliServer, raw_client: RawClient
) -> None:
    short = script(testing.raw(b"{"), testing.cut(), content_type="application/json", headers={"Content-Length": "9"})
    server.enqueue(short)
    raw_client.send()
    head, _, body = (await raw_client.reader.read()).partition(b"\r\n\r\n")
    assert b"Content-Length: 9" in head
    assert b"Transfer-Encoding" not in head
    assert body == b"{"


@pytest.mark.parametrize(("before", "after"), [([], garbage()), ([testing.head()], garbage()), ([], testing.cut())])
async def test_step_after_client_disconnect_logs_no_error(
    server: FriendliServer, raw_client: RawClient, caplog: pytest.LogCaptureFixture, before: list[Step], after: Step
) -> None:
    class Hang(Step):
        """Disconnects the client, and swallows the cancellation so that the script goes on."""

        async def play(self, reply: Any) -> None:
            raw_client.abort()
            with pytest.raises(asyncio.CancelledError):
                await reply.silence()

    server.enqueue(script(*before, Hang(), after))
    raw_client.send()
    assert await (await server.wait_for_requests(1)).disconnected()
    assert caplog.text == ""


def test_scripts_are_comparable_and_hashable() -> None:
    one, same = (script(testing.chunk("a"), testing.delay(1), testing.reset()) for _ in range(2))
    assert one == same
    assert len({one, same, script(testing.chunk("b"))}) == 2
