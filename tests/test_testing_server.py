"""The embedded server: its life, its checks, what it keeps, and every step of its script language, byte by byte."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from friendli_async import testing
from friendli_async.testing import FriendliServer, ReceivedRequest, Script, script
from friendli_async.testing.steps import Payload, Step

CHAT = "/serverless/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello there"}]}
AUTH = {"Authorization": "Bearer test-token"}


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


@pytest.fixture
async def session(server: FriendliServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, headers=AUTH) as opened:
        yield opened


async def post(session: aiohttp.ClientSession, path: str = CHAT, **options: Any) -> tuple[int, bytes]:
    async with session.post(path, json={**BODY, **options}) as response:
        return response.status, await response.read()


async def pieces(session: aiohttp.ClientSession) -> list[bytes]:
    """Give what each read of the body of a reply gives."""
    async with session.post(CHAT, json=BODY) as response:
        return [piece async for piece in response.content.iter_any()]


class RawClient:
    """A client without an opinion: sends a request, reads the bytes that come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, server: FriendliServer) -> "RawClient":
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host.strip("[]"), int(port)))

    def send(self, body: bytes = json.dumps(BODY).encode(), *, path: str = CHAT, headers: str = "") -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer test-token\r\n{headers}"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    def abort(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def raw_client(server: FriendliServer) -> AsyncIterator[RawClient]:
    client = await RawClient.connect(server)
    yield client
    client.abort()


# --- life ------------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_running_has_no_url() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        _ = FriendliServer().url


async def test_a_running_server_cannot_be_started_again(server: FriendliServer) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        await server.__aenter__()
    assert server.url.startswith("http://127.0.0.1:")


async def test_a_stopped_server_can_be_started_again() -> None:
    server = FriendliServer()
    for _ in range(2):
        async with server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
            assert (await post(session))[0] == 200
    assert len(server.requests) == 2


async def test_a_taken_port_is_an_os_error_and_leaves_nothing_open(server: FriendliServer) -> None:
    other = FriendliServer(port=int(server.url.rpartition(":")[2]))
    with pytest.raises(OSError, match="address already in use"):
        await other.__aenter__()
    with pytest.raises(RuntimeError, match="not running"):
        _ = other.url


async def test_an_ipv6_address_stands_in_brackets() -> None:
    async with FriendliServer(host="::1") as server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
        assert server.url.startswith("http://[::1]:")
        assert (await post(session))[0] == 200


async def test_closing_breaks_stalled_and_endless_replies_and_idle_connections() -> None:
    async with asyncio.timeout(10):
        async with FriendliServer() as server:
            clients = [await RawClient.connect(server) for _ in range(4)]
            server.enqueue(testing.stall(), script(testing.head(), testing.stall()), testing.endless())
            for count, client in enumerate(clients[:3], start=1):
                client.send()
                await server.wait_for_requests(count)
            await server.wait_for_connections(4)
            assert server.active_requests == 3
        assert server.open_connections == 0
        assert [request.outcome for request in server.requests] == ["broken"] * 3
        assert not any([await request.disconnected() for request in server.requests])
        for client in clients:
            client.abort()
    await server.aclose()


def test_a_server_in_a_thread_of_its_own_serves_several_loops() -> None:
    async def call() -> int:
        async with aiohttp.ClientSession(server.url, headers=AUTH) as session:
            status, _ = await post(session)
        await server.wait_for_connections(0, timeout=10)
        return status

    with FriendliServer() as server:
        assert [asyncio.run(call()), asyncio.run(call())] == [200, 200]
        with pytest.raises(OSError, match="address already in use"):
            FriendliServer(port=int(server.url.rpartition(":")[2])).__enter__()
    assert server.connections == 2
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


async def test_a_waiter_whose_loop_was_closed_does_not_disturb_the_others(server: FriendliServer) -> None:
    def wait_and_die() -> None:
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(server.wait_for_requests(1))
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # the point of this test is to leave it

    await asyncio.to_thread(wait_and_die)
    async with aiohttp.ClientSession(server.url, headers=AUTH) as session:
        assert (await post(session))[0] == 200
    assert (await server.wait_for_requests(1)).status == 200


def test_the_module_runs_alone_says_how_to_reach_it_and_stops_on_a_signal() -> None:
    asyncio.run(_run_alone())


async def _run_alone() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "friendli_async.testing", "--token", "t", "--pace", "0.001"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines = [(await process.stdout.readline()).decode() for _ in range(4)]
        url = lines[0].split()[2].removesuffix(".")
        async with aiohttp.ClientSession(url, headers={"Authorization": "Bearer t"}) as session:
            status, body = await post(session, stream=True)
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert lines[1:] == [
        f"  export FRIENDLI_SERVER_URL={url}\n",
        f"  export FRIENDLI_CONTAINER_URL={url}\n",
        "  export FRIENDLI_TOKEN=t\n",
    ]
    assert (status, body[-14:], process.returncode, errors) == (200, b"data: [DONE]\n\n", 0, b"")


# --- checks of the request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic test-token"}])
async def test_a_missing_or_wrong_token_is_401_with_a_json_error(
    server: FriendliServer, headers: dict[str, str]
) -> None:
    async with aiohttp.ClientSession(server.url, headers=headers) as session, session.post(CHAT, json=BODY) as response:
        assert response.status == 401
        assert (await response.json())["error"]["type"] == "authentication_error"


async def test_the_container_and_a_server_without_a_token_ask_for_none(server: FriendliServer) -> None:
    async with aiohttp.ClientSession(server.url) as session:
        assert (await post(session, "/v1/chat/completions"))[0] == 200
        server.token = None
        assert (await post(session))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/nowhere", 404), ("GET", "/", 404), ("GET", CHAT, 405), ("PUT", CHAT, 405)]
)
async def test_an_unknown_path_or_method_has_a_json_error(
    session: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with session.request(method, path) as response:
        assert response.status == status
        assert response.headers.get("Allow") == ("POST" if status == 405 else None)
        assert path in (await response.json())["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"n": NaN}', b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_json_is_400(
    server: FriendliServer, session: aiohttp.ClientSession, body: bytes
) -> None:
    async with session.post(CHAT, data=body) as response:
        assert response.status == 400
        assert "not JSON" in (await response.json())["error"]["message"]
    assert server.requests[0].json is None
    assert server.requests[0].json_object == {}


async def test_a_body_that_breaks_the_schema_is_422_and_says_where(session: aiohttp.ClientSession) -> None:
    status, body = await post(session, messages=[{"role": "user"}], temperature="hot")
    assert status == 422
    assert json.loads(body) == {
        "detail": [
            {"loc": ["body", "messages", 0, "content"], "msg": "Field required", "type": "missing"},
            {"loc": ["body", "temperature"], "msg": "Input should be a valid number", "type": "float_type"},
        ]
    }


async def test_a_body_that_is_too_big_is_413(
    server: FriendliServer, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("friendli_async.testing.server._MAX_BODY", 10)
    assert (await post(session))[0] == 413
    assert server.requests == []


async def test_a_body_that_cannot_be_decompressed_is_400(raw_client: RawClient) -> None:
    raw_client.send(b"no gzip", headers="Content-Encoding: gzip\r\n")
    assert (await raw_client.reader.readline()).startswith(b"HTTP/1.1 400")


async def test_half_a_request_is_forgotten(server: FriendliServer, raw_client: RawClient) -> None:
    raw_client.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{".encode())
    while not server.active_requests:
        await asyncio.sleep(0)
    raw_client.abort()
    await server.wait_for_connections(0)
    await server.idle()
    assert server.requests == []


# --- what it keeps ---------------------------------------------------------------------------------------------------


async def test_a_received_request_is_kept_whole(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    async with session.post(CHAT + "?a=1&a=2&b=", json=BODY, headers={"X-Friendli-Team": "team"}) as response:
        await response.read()
        request_id = response.headers["x-request-id"]
    (request,) = server.requests
    assert (request.method, request.path, request.query) == ("POST", CHAT, {"a": ["1", "2"], "b": [""]})
    assert request.headers["x-friendli-team"] == "team"
    assert request.json == request.json_object == BODY == json.loads(request.body)
    assert request.peer[0] == "127.0.0.1"
    assert (request.connection, request.number, request.status, request.request_id) == (1, 1, 200, request_id)
    assert request.started_at <= asyncio.get_running_loop().time()
    assert abs(request.created - time.time()) < 60
    assert request.completed
    assert not await request.disconnected()


async def test_connections_are_counted_and_numbered(server: FriendliServer) -> None:
    for _ in range(2):
        async with aiohttp.ClientSession(server.url, headers=AUTH) as session:
            await post(session)
            await post(session)
            assert server.open_connections == 1
        await server.wait_for_connections(0)
    assert [request.connection for request in server.requests] == [1, 1, 2, 2]
    assert server.connections == 2


async def test_a_client_that_goes_away_is_noticed_and_one_that_stays_is_not(
    server: FriendliServer, raw_client: RawClient
) -> None:
    server.enqueue(script(testing.chunk("Hel"), testing.stall()))
    raw_client.send()
    request = await server.wait_for_requests(1)
    await raw_client.reader.readuntil(b"Hel")
    with pytest.raises(TimeoutError):
        await request.disconnected(timeout=0)
    with pytest.raises(TimeoutError):
        await server.idle(timeout=0)
    assert (request.outcome, request.completed) == ("open", False)
    await raw_client.close()
    assert await request.disconnected()
    await server.idle()
    assert (request.outcome, request.completed) == ("disconnected", False)


async def test_a_client_that_resets_under_a_writing_server_is_noticed(
    server: FriendliServer, raw_client: RawClient
) -> None:
    server.enqueue(testing.endless())
    raw_client.send()
    await raw_client.reader.readexactly(1_000_000)
    raw_client.abort()
    assert await server.requests[0].disconnected()


async def test_waiting_for_what_does_not_come_times_out(server: FriendliServer) -> None:
    with pytest.raises(TimeoutError):
        await server.wait_for_requests(1, timeout=0)
    with pytest.raises(TimeoutError):
        await server.wait_for_connections(1, timeout=0)


# --- scripts ---------------------------------------------------------------------------------------------------------


async def test_scripts_answer_in_order_then_the_default_answers(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    server.enqueue(testing.status(503), testing.status(429))
    assert server.enqueued == 2
    assert [(await post(session))[0] for _ in range(3)] == [503, 429, 200]
    assert server.enqueued == 0


async def test_a_script_for_a_path_waits_for_that_path(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.enqueue(testing.status(418), path="/a")
    server.enqueue(testing.status(500))
    assert [(await post(session, path))[0] for path in ("/b", "/c", "/a")] == [500, 404, 418]


async def test_always_answers_until_it_is_taken_back(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.always(testing.status(418))
    server.enqueue(testing.status(500))
    statuses = [(await post(session))[0] for _ in range(3)]
    server.always(None)
    assert [*statuses, (await post(session))[0]] == [500, 418, 418, 200]


async def test_a_function_makes_the_script_from_the_request(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    def reverse(request: ReceivedRequest) -> Script:
        return testing.body(request.body[::-1])

    server.enqueue(reverse)
    _, body = await post(session)
    assert body[::-1] == server.requests[0].body


async def test_a_function_that_fails_is_a_500(
    server: FriendliServer, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: ReceivedRequest) -> Script:
        raise LookupError(request.path)

    server.enqueue(fail)
    assert (await post(session))[0] == 500
    assert "LookupError" in caplog.text


async def test_a_step_after_the_end_fails_loudly(
    server: FriendliServer, raw_client: RawClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(script(testing.end(), testing.chunk("late")))
    raw_client.send()
    assert b"late" not in await raw_client.reader.read()
    assert "Cannot call write() after write_eof()" in caplog.text


async def test_status_has_a_json_error_body_and_the_headers_asked_for(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    server.enqueue(
        testing.status(
            429, retry_after=1, headers={"X-Request-ID": "mine", "content-type": "application/problem+json"}
        ),
        testing.status(503, retry_after_ms=20, message="busy"),
        testing.status(599),
        testing.status(418),
    )
    async with session.post(CHAT) as response:
        assert response.headers.getall("x-request-id") == ["mine"]
        assert response.headers.getall("Content-Type") == ["application/problem+json"]
        assert response.headers["Retry-After"] == "1"
    async with session.post(CHAT) as response:
        assert response.headers["retry-after-ms"] == "20"
        assert await response.json() == {"error": {"message": "busy", "type": "overloaded_error", "code": None}}
    for kind in ("server_error", "api_error"):
        async with session.post(CHAT) as response:
            assert (await response.json())["error"]["type"] == kind


async def test_a_redirect_has_no_body(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    server.enqueue(testing.status(307, headers={"Location": "/elsewhere"}))
    async with session.post(CHAT, json=BODY, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"], await response.read()) == (307, "/elsewhere", b"")


async def test_text_is_streamed_or_whole_as_the_request_asks(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    answer = testing.text("Hel", "lo", reasoning=["Hm."], prompt_tokens=3)
    server.enqueue(answer, answer, answer, testing.text(finish_reason="length"))
    _, whole = await post(session)
    _, streamed = await post(session, stream=True)
    _, counted = await post(session, stream=True, stream_options={"include_usage": True})
    reply = json.loads(whole)
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "reasoning_content": "Hm."}
    assert reply["usage"]["total_tokens"] == 6
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in streamed.splitlines()[:-3:2]]
    assert deltas == [{"role": "assistant"}, {"reasoning_content": "Hm."}, {"content": "Hel"}, {"content": "lo"}, {}]
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
async def test_a_chunk_is_a_whole_chat_completion_chunk(
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
        (testing.event({"a": 1}, name="x"), b'event: x\ndata: {"a":1}\n\n'),
        (testing.error_event({"code": 429}), b'event: error\ndata: {"code":429}\n\n'),
        (testing.error_data({"code": 429}), b'data: {"error":{"code":429}}\n\n'),
        (
            testing.tool_status("STARTED", parameters={"expression": "2+3"}, result="None"),
            b'event: tool_status\ndata: {"tool_call_id":"call_1","name":"math:calculator","status":"STARTED",'
            b'"parameters":[{"name":"expression","value":"2+3"}],"result":"None","files":null,"message":null,'
            b'"error":null,"usage":null,"timestamp":1700000000}\n\n',
        ),
    ],
)
async def test_a_step_writes_exactly_these_bytes(
    server: FriendliServer, session: aiohttp.ClientSession, step: Payload, expected: bytes
) -> None:
    server.enqueue(script(step))
    assert (await post(session))[1] == expected


async def test_tool_status_carries_files_and_errors(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    file, error = {"name": "f", "url": "u"}, {"type": "t", "msg": "m"}
    server.enqueue(testing.tool_status("ERRORED", name="web:url", files=[file], error=error, message="x"))
    data = json.loads((await post(session))[1].splitlines()[1][6:])
    assert (data["name"], data["files"], data["error"], data["message"]) == ("web:url", [file], error, "x")


async def test_every_write_is_a_read_of_its_own(server: FriendliServer, session: aiohttp.ClientSession) -> None:
    steps = [testing.raw(b"%d" % number) for number in range(100)]
    server.enqueue(script(*steps), script(testing.split(testing.raw(b"abcdefg"), 3)), testing.split(testing.done()))
    assert await pieces(session) == [b"%d" % number for number in range(100)]
    assert await pieces(session) == [b"abc", b"def", b"g"]
    assert len(await pieces(session)) == 14


async def test_a_burst_is_so_many_chunks_in_so_many_writes(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    server.enqueue(testing.burst(25, text="x", events_per_write=10), script(testing.burst(20_000), testing.done()))
    assert [piece.count(b'"content":"x"') for piece in await pieces(session)] == [10, 10, 5]
    _, body = await post(session)
    assert body.count(b"\n\n") == 20_001


@pytest.mark.parametrize(
    "make",
    [
        lambda: testing.split(testing.done(), 0),
        lambda: testing.burst(1, events_per_write=0),
        lambda: testing.endless(b""),
    ],
)
def test_a_size_that_would_never_end_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make()


async def test_a_gate_holds_the_reply_back_until_the_test_opens_it(
    server: FriendliServer, session: aiohttp.ClientSession
) -> None:
    opened = asyncio.Event()
    server.enqueue(script(testing.raw(b"a"), testing.gate(opened), testing.raw(b"b")))
    async with session.post(CHAT, json=BODY) as response:
        assert await response.content.readany() == b"a"
        assert server.active_requests == 1
        opened.set()
        assert await response.content.readany() == b"b"


@pytest.mark.parametrize("step", [testing.delay(0.02), testing.slow_headers(0.02)])
async def test_a_pause_lasts_as_long_as_it_says(
    server: FriendliServer, session: aiohttp.ClientSession, step: Step
) -> None:
    server.enqueue(script(step, testing.done()))
    started = time.monotonic()
    assert await post(session) == (200, b"data: [DONE]\n\n")
    assert time.monotonic() - started >= 0.02


async def test_a_paced_server_pauses_before_each_event_but_not_in_a_plain_reply() -> None:
    async with FriendliServer(pace=0.01) as server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
        started = time.monotonic()
        _, body = await post(session, stream=True)
        assert time.monotonic() - started >= 0.01 * body.count(b"\n\n")
        assert json.loads((await post(session))[1])["object"] == "chat.completion"


def test_pace_puts_a_pause_before_each_step_of_a_stream_only() -> None:
    stream = script(testing.chunk("a"), testing.done())
    assert len(testing.pace(stream, 1.0).steps) == 4
    assert testing.pace(stream, 0.0) is stream
    assert testing.pace(plain := testing.json_body({}), 1.0) is plain


async def test_head_sends_the_headers_before_the_body_and_without_it_nothing_goes_out(
    server: FriendliServer, raw_client: RawClient
) -> None:
    opened = asyncio.Event()
    server.enqueue(script(testing.gate(opened), testing.head(), testing.stall(), status=201))
    raw_client.send()
    await server.wait_for_requests(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):  # the only way to see that nothing comes
            await raw_client.reader.read(1)
    opened.set()
    assert (await raw_client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201")


async def test_a_script_that_runs_out_ends_its_body_and_keeps_the_connection(
    server: FriendliServer, raw_client: RawClient
) -> None:
    server.enqueue(script(testing.raw(b"a")), script(testing.raw(b"b"), testing.end()), script())
    for body in (b"1\r\na\r\n0\r\n\r\n", b"1\r\nb\r\n0\r\n\r\n", b"0\r\n\r\n"):
        raw_client.send()
        await raw_client.reader.readuntil(b"\r\n\r\n")
        assert await raw_client.reader.readexactly(len(body)) == body
    assert server.connections == 1
    assert all(request.completed for request in server.requests)


async def test_cut_closes_without_ending_the_body(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(script(testing.raw(b"abc"), testing.cut()))
    raw_client.send()
    received = await raw_client.reader.read()
    assert received.endswith(b"3\r\nabc\r\n")
    assert not await server.requests[0].disconnected()
    assert server.requests[0].outcome == "broken"


async def test_drop_closes_without_a_byte(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(testing.drop())
    raw_client.send()
    assert await raw_client.reader.read() == b""
    assert server.requests[0].outcome == "broken"


@pytest.mark.parametrize("size", [0, 3, 20_000])
async def test_reset_breaks_the_connection_after_what_was_written(
    server: FriendliServer, raw_client: RawClient, size: int
) -> None:
    before = [testing.raw(b"x" * size)] if size else []
    server.enqueue(script(*before, testing.reset()))
    raw_client.send()
    received = bytearray()
    with pytest.raises(ConnectionResetError):
        while piece := await raw_client.reader.read(1 << 20):
            received += piece
    assert received.count(b"x", received.find(b"\r\n\r\n") + 1) == size
    assert server.requests[0].outcome == "broken"


async def test_close_after_ends_the_body_and_closes_although_it_promised_to_keep(
    server: FriendliServer, raw_client: RawClient
) -> None:
    server.enqueue(script(testing.done(), testing.close_after()))
    raw_client.send()
    received = await raw_client.reader.read()
    assert b"connection: close" not in received.lower()
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert server.requests[0].completed


async def test_garbage_stands_where_the_size_of_a_chunk_belongs(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(script(testing.raw(b"a"), testing.garbage(b"zz\r\n"), testing.cut()), script(testing.garbage()))
    raw_client.send()
    assert (await raw_client.reader.read()).endswith(b"1\r\na\r\nzz\r\n")
    second = await RawClient.connect(server)
    second.send()
    await second.reader.readuntil(b"zz\r\nno chunk\r\n")
    second.abort()


async def test_a_declared_length_is_kept_so_that_a_body_can_fall_short(
    server: FriendliServer, raw_client: RawClient
) -> None:
    short = script(testing.raw(b"{"), testing.cut(), content_type="application/json", headers={"Content-Length": "9"})
    server.enqueue(short)
    raw_client.send()
    head, _, body = (await raw_client.reader.read()).partition(b"\r\n\r\n")
    assert b"Content-Length: 9" in head
    assert b"Transfer-Encoding" not in head
    assert body == b"{"


@pytest.mark.parametrize(
    ("before", "after"), [([], testing.garbage()), ([testing.head()], testing.garbage()), ([], testing.cut())]
)
async def test_a_step_that_comes_after_the_client_has_gone_is_no_error_of_the_server(
    server: FriendliServer, raw_client: RawClient, caplog: pytest.LogCaptureFixture, before: list[Step], after: Step
) -> None:
    class Hang(Step):
        """Lets the client go, and keeps the cancellation from stopping the script."""

        async def play(self, reply: Any) -> None:
            raw_client.abort()
            with pytest.raises(asyncio.CancelledError):
                await reply.silence()

    server.enqueue(script(*before, Hang(), after))
    raw_client.send()
    assert await (await server.wait_for_requests(1)).disconnected()
    assert caplog.text == ""


def test_scripts_are_values_that_compare_and_hash() -> None:
    one, same = (script(testing.chunk("a"), testing.delay(1), testing.reset()) for _ in range(2))
    assert one == same
    assert len({one, same, script(testing.chunk("b"))}) == 2


PLUGIN_TEST = """
from friendli_async import ChatChunk, ToolStatus
from friendli_async.testing import text

ASK = [{"role": "user", "content": "What is 6 * 7?"}]


async def test_all_deployments(friendli_client, friendli_server):
    friendli_server.enqueue(text("Hel", "lo"))
    for group in (friendli_client.serverless, friendli_client.dedicated, friendli_client.container):
        await group.chat.complete(model="m", messages=ASK)
    async with friendli_client.serverless.chat.stream(model="m", messages=ASK) as stream:
        assert "".join([piece.text async for piece in stream]) == "You said: What is 6 * 7?"
    assert len(friendli_server.requests) == 4


async def test_each_test_has_a_server_of_its_own(friendli_client, friendli_server):
    assert friendli_server.requests == []
    tools = [{"type": "math:calculator"}]
    seen = [
        event async for event in friendli_client.serverless.tool_assisted_chat.stream(model="m", messages=ASK, tools=tools)
    ]
    assert [event.status for event in seen if isinstance(event, ToolStatus)] == ["STARTED", "ENDED"]
    assert "".join(event.text for event in seen if isinstance(event, ChatChunk)).endswith("42.")
"""


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_pytest_plugin_gives_a_server_and_a_client_of_it(tmp_path: Path, mode: str) -> None:
    mark = "" if mode == "auto" else "import pytest\npytestmark = pytest.mark.asyncio\n"
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["friendli_async.testing.fixtures"]\n')
    (tmp_path / "test_plugin.py").write_text(mark + PLUGIN_TEST)
    settings = [
        "-o",
        f"asyncio_mode={mode}",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *settings, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "2 passed" in run.stdout, run.stdout + run.stderr
    assert run.returncode == 0


def test_the_public_names_are_sorted_and_there() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    assert all(hasattr(testing, name) for name in testing.__all__)
