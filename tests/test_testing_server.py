"""The embedded server: lifecycle, request validation, recorded requests, and its pytest plugin."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from support.clock import run_loop_iterations
from support.embedded_server import AUTH, BODY, CHAT, RawClient, post
from support.steps import endless

from friendli_async import testing
from friendli_async.testing import FriendliServer, script

# --- lifecycle -------------------------------------------------------------------------------------------------------


async def test_server_that_is_not_running_has_no_url() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        _ = FriendliServer().url


async def test_running_server_cannot_be_started_again(server: FriendliServer) -> None:
    with pytest.raises(RuntimeError, match="already running"):
        await server.__aenter__()
    assert server.url.startswith("http://127.0.0.1:")


async def test_starting_server_has_no_url_yet() -> None:
    server = FriendliServer()
    starting = asyncio.create_task(server.__aenter__())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url
    await (await starting).aclose()


async def test_stopped_server_can_be_started_again() -> None:
    server = FriendliServer()
    for _ in range(2):
        async with server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
            assert (await post(session))[0] == 200
    assert len(server.requests) == 2


async def test_port_in_use_raises_os_error_and_leaves_server_stopped(server: FriendliServer) -> None:
    other = FriendliServer(port=int(server.url.rpartition(":")[2]))
    with pytest.raises(OSError, match="address already in use"):
        await other.__aenter__()
    with pytest.raises(RuntimeError, match="not running"):
        _ = other.url


async def test_ipv6_address_is_bracketed_in_url() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with FriendliServer(host="::1") as server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
        assert server.url.startswith("http://[::1]:")
        assert (await post(session))[0] == 200


async def test_close_aborts_open_replies_and_idle_connections() -> None:
    async with asyncio.timeout(60):
        async with FriendliServer() as server:
            clients = [await RawClient.connect(server) for _ in range(4)]
            server.enqueue(testing.stall(), script(testing.head(), testing.stall()), endless())
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


@pytest.mark.parametrize("turns", range(5))
async def test_connection_that_is_being_accepted_when_the_server_stops_is_closed(turns: int) -> None:
    async with FriendliServer() as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        peer = socket.create_connection((host, int(port)))
        await run_loop_iterations(turns)
    with peer, suppress(ConnectionResetError):
        peer.settimeout(30)
        assert peer.recv(1) == b""
    assert server.open_connections == 0


def test_threaded_server_serves_several_loops() -> None:
    async def call() -> int:
        async with aiohttp.ClientSession(server.url, headers=AUTH) as session:
            status, _ = await post(session)
        await server.wait_for_connections(0)
        return status

    with FriendliServer() as server:
        assert [asyncio.run(call()), asyncio.run(call())] == [200, 200]
        with pytest.raises(OSError, match="address already in use"):
            FriendliServer(port=int(server.url.rpartition(":")[2])).__enter__()
    assert server.connections == 2
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


async def test_waiter_of_closed_loop_does_not_affect_others(server: FriendliServer) -> None:
    def wait_and_close_loop() -> None:
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(server.wait_for_requests(1))
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # the test abandons the task on purpose

    await asyncio.to_thread(wait_and_close_loop)
    async with aiohttp.ClientSession(server.url, headers=AUTH) as session:
        assert (await post(session))[0] == 200
    assert (await server.wait_for_requests(1)).status == 200


def test_command_prints_settings_and_stops_on_signal() -> None:
    end, returned, log = asyncio.run(_run_command())
    assert (end, returned) == (b"data: [DONE]\n\n", 0)
    assert log.startswith(b"POST /serverless/v1/chat/completions 200 completed ")
    assert log.count(b"\n") == 1


async def _run_command() -> tuple[bytes, int | None, bytes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "friendli_async.cli", "serve", "--token", "t", "--pace", "0.001"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines = [(await process.stdout.readline()).decode() for _ in range(5)]
        url = lines[0].split()[2]  # nothing follows it: programs and people copy it
        async with aiohttp.ClientSession(url, headers={"Authorization": "Bearer t"}) as session:
            status, body = await post(session, stream=True)
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert lines[2:] == [
        f"  export FRIENDLI_SERVER_URL={url}\n",
        f"  export FRIENDLI_CONTAINER_URL={url}\n",
        "  export FRIENDLI_TOKEN=t\n",
    ]
    assert status == 200
    return body[-14:], process.returncode, errors


@pytest.mark.parametrize(
    "command", [["friendli_async.cli", "serve"], ["friendli_async.testing"]], ids=["serve", "module"]
)
def test_command_reports_port_in_use_in_one_line(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", *command, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    reason = os.strerror(errno.EADDRINUSE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"friendli-async serve: cannot listen on 127.0.0.1:{port}: {reason}\n"


# --- request validation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic test-token"}])
async def test_missing_or_wrong_token_is_a_401_with_json_error(server: FriendliServer, headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession(server.url, headers=headers) as session, session.post(CHAT, json=BODY) as response:
        assert response.status == 401
        assert (await response.json())["error"]["message"] == "the token is missing or wrong"


async def test_container_paths_and_tokenless_server_need_no_token(server: FriendliServer) -> None:
    async with aiohttp.ClientSession(server.url) as session:
        assert (await post(session, "/v1/chat/completions"))[0] == 200
        server.token = None
        assert (await post(session))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/nowhere", 404), ("GET", "/", 404), ("GET", CHAT, 405), ("PUT", CHAT, 405)]
)
async def test_unknown_path_or_method_gets_json_error(
    session: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with session.request(method, path) as response:
        assert response.status == status
        assert response.headers.get("Allow") == ("POST" if status == 405 else None)
        assert path in (await response.json())["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"n": NaN}', b"\xff", b"[" * 100_000])
async def test_body_that_is_not_json_is_a_400(
    server: FriendliServer, session: aiohttp.ClientSession, body: bytes
) -> None:
    async with session.post(CHAT, data=body) as response:
        assert response.status == 400
        assert "not JSON" in (await response.json())["error"]["message"]
    assert server.requests[0].json is None
    assert server.requests[0].json_object == {}


async def test_schema_violation_is_a_422_with_location(session: aiohttp.ClientSession) -> None:
    status, body = await post(session, messages=[{"role": "user"}], temperature="hot")
    assert status == 422
    assert json.loads(body) == {
        "detail": [
            {"loc": ["body", "messages", 0, "content"], "msg": "Field required", "type": "missing"},
            {"loc": ["body", "temperature"], "msg": "Input should be a valid number", "type": "float_type"},
        ]
    }


async def test_oversized_body_is_a_413(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("friendli_async.testing.server._MAX_BODY", 10)
    async with FriendliServer() as server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
        assert (await post(session))[0] == 413
        assert server.requests == []


async def test_body_that_cannot_be_decompressed_is_a_400(raw_client: RawClient) -> None:
    raw_client.send(b"no gzip", headers="Content-Encoding: gzip\r\n")
    assert (await raw_client.reader.readline()).startswith(b"HTTP/1.1 400")


async def test_incomplete_request_is_not_recorded(server: FriendliServer, raw_client: RawClient) -> None:
    raw_client.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{".encode())
    await server.wait_until(lambda: server.active_requests == 1)
    raw_client.abort()
    await server.wait_for_connections(0)
    await server.idle()
    assert server.requests == []


# --- recorded requests -----------------------------------------------------------------------------------------------


async def test_received_request_is_recorded(server: FriendliServer, session: aiohttp.ClientSession) -> None:
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
    assert not await request.disconnected()  # waits until the server is done, too
    assert request.completed


async def test_connections_are_counted_and_numbered(server: FriendliServer) -> None:
    for _ in range(2):
        async with aiohttp.ClientSession(server.url, headers=AUTH) as session:
            await post(session)
            await post(session)
            assert server.open_connections == 1
        await server.wait_for_connections(0)
    assert [request.connection for request in server.requests] == [1, 1, 2, 2]
    assert server.connections == 2


async def test_client_disconnect_is_detected_only_once_it_happens(
    server: FriendliServer, raw_client: RawClient
) -> None:
    server.enqueue(script(testing.chunk("Hel"), testing.stall()))
    raw_client.send()
    request = await server.wait_for_requests(1)
    await raw_client.reader.readuntil(b"Hel")
    with pytest.raises(TimeoutError, match=r"waited 0 s; the reply to request 1, POST /.*, is still in progress"):
        await request.disconnected(timeout=0)
    with pytest.raises(TimeoutError, match="waited 0 s; requests received: 1, in progress: 1; open connections: 1"):
        await server.idle(timeout=0)
    assert (request.outcome, request.completed) == ("open", False)
    await raw_client.close()
    assert await request.disconnected()
    await server.idle()
    assert (request.outcome, request.completed) == ("disconnected", False)


async def test_client_reset_during_write_is_detected(server: FriendliServer, raw_client: RawClient) -> None:
    server.enqueue(endless())
    raw_client.send()
    await raw_client.reader.readexactly(1_000_000)
    raw_client.abort()
    assert await server.requests[0].disconnected()


async def test_wait_for_requests_and_connections_times_out(server: FriendliServer) -> None:
    state = "waited 0 s; requests received: 0, in progress: 0; open connections: 0"
    with pytest.raises(TimeoutError, match=state):
        await server.wait_for_requests(1, timeout=0)
    with pytest.raises(TimeoutError, match=state):
        await server.wait_for_connections(1, timeout=0)


# --- the plugin and the package -------------------------------------------------------------------------------------


PLUGIN_TEST = """
import asyncio

from friendli_async import ChatChunk, ToolStatus
from friendli_async.testing import chunk, done, finish, gate, script, text

ASK = [{"role": "user", "content": "What is 6 * 7?"}]


async def test_all_deployments(friendli_client, friendli_server):
    friendli_server.enqueue(text("Hel", "lo"))
    for group in (friendli_client.serverless, friendli_client.dedicated, friendli_client.container):
        await group.chat.complete(model="m", messages=ASK)
    async with friendli_client.serverless.chat.stream(model="m", messages=ASK) as stream:
        assert "".join([piece.text async for piece in stream]) == "You said: What is 6 * 7?"
    assert len(friendli_server.requests) == 4


async def test_each_test_has_its_own_server(friendli_client, friendli_server):
    assert friendli_server.requests == []
    tools = [{"type": "math:calculator"}]
    stream = friendli_client.serverless.tool_assisted_chat.stream(model="m", messages=ASK, tools=tools)
    seen = [event async for event in stream]
    assert [event.status for event in seen if isinstance(event, ToolStatus)] == ["STARTED", "ENDED"]
    assert "".join(event.text for event in seen if isinstance(event, ChatChunk)).endswith("42.")


async def test_gate_opened_by_the_test(friendli_client, friendli_server):
    opened = asyncio.Event()
    friendli_server.enqueue(script(chunk("a"), gate(opened), chunk("b"), finish(), done()))
    async with friendli_client.serverless.chat.stream(model="m", messages=ASK) as stream:
        assert (await anext(stream)).text == "a"
        opened.set()
        assert "".join([piece.text async for piece in stream]) == "b"
"""

ANYIO_TEST = """
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_call(friendli_client):
    reply = await friendli_client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert reply.text == "You said: Hi"
"""


SYNCHRONOUS_TEST = """
import asyncio, threading

from anyio.from_thread import start_blocking_portal
from friendli_async import AsyncFriendli
from friendli_async.testing import chunk, done, finish, gate, script, status, text

ASK = [{"role": "user", "content": "Hello there"}]


def test_app_in_a_thread(friendli_server):  # as Starlette's TestClient runs it
    friendli_server.enqueue(status(429, retry_after=0), text("Hel", "lo"))

    async def app():
        return (await client.serverless.chat.complete(model="m", messages=ASK)).text

    client = AsyncFriendli("test-token", server_url=friendli_server.url)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
        assert [portal.call(app), portal.call(app)] == ["Hello", "You said: Hello there"]
    assert [request.status for request in friendli_server.requests] == [429, 200, 200]


def test_several_runs_on_one_server(friendli_server):
    async def call():
        async with AsyncFriendli("test-token", server_url=friendli_server.url) as client:
            return (await client.serverless.chat.complete(model="m", messages=ASK)).text

    assert [asyncio.run(call()), asyncio.run(call())] == ["You said: Hello there"] * 2


def test_gate_opened_by_another_thread(friendli_server):
    opened = threading.Event()
    friendli_server.enqueue(script(gate(opened), chunk("late"), finish(), done()))

    async def call():
        async with AsyncFriendli("test-token", server_url=friendli_server.url) as client:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(client.serverless.chat.stream(model="m", messages=ASK).result())
                await friendli_server.wait_for_requests(1)
                opened.set()
            return reading.result().text

    assert asyncio.run(call()) == "late"
"""


def run_with_plugin(
    directory: Path, test: str, *options: str, conftest: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Runs a user's test file with the plugin in a subprocess."""
    (directory / "conftest.py").write_text(f'{conftest}pytest_plugins = ["friendli_async.testing.fixtures"]\n')
    (directory / "test_plugin.py").write_text(test)
    (directory / "pytest.ini").touch()  # else pytest reads the settings of any folder above
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        [*command, str(directory)],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the other plugins take seconds to load
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_pytest_plugin_provides_server_and_client(tmp_path: Path, mode: str) -> None:
    mark = "" if mode == "auto" else "import pytest\npytestmark = pytest.mark.asyncio\n"
    settings = ["-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"]
    run = run_with_plugin(tmp_path, mark + PLUGIN_TEST, "-p", "pytest_asyncio.plugin", *settings)
    assert "3 passed" in run.stdout, run.stdout + run.stderr
    assert run.returncode == 0


@pytest.mark.parametrize("test", [SYNCHRONOUS_TEST, ANYIO_TEST], ids=["synchronous", "anyio"])
def test_pytest_plugin_works_without_pytest_asyncio(tmp_path: Path, test: str) -> None:
    hide_plugin = 'import sys\nsys.modules["pytest_asyncio"] = None\n'
    run = run_with_plugin(tmp_path, test, "-p", "anyio", conftest=hide_plugin)
    assert run.returncode == 0, run.stdout + run.stderr


LEFTOVER_TEST = """
import urllib.error, urllib.request

from friendli_async.testing import status, text


def test_passes(friendli_server):
    friendli_server.enqueue(text("never used"), status(503))


def test_raises(friendli_server):
    friendli_server.enqueue(lambda request: {}["missing"])
    try:
        urllib.request.urlopen(friendli_server.url)
    except urllib.error.HTTPError as error:
        error.close()


def test_clears(friendli_server):
    test_raises(friendli_server)
    friendli_server.enqueue(text("never used"))
    friendli_server.clear_replies()
"""


def test_pytest_plugin_reports_unused_and_failed_replies(tmp_path: Path) -> None:
    hide_plugin = 'import sys\nsys.modules["pytest_asyncio"] = None\n'
    run = run_with_plugin(tmp_path, LEFTOVER_TEST, conftest=hide_plugin)
    assert "3 passed, 2 errors" in run.stdout, run.stdout + run.stderr
    assert "enqueued replies that were not used: 2 (requests received: 0):" in run.stdout
    assert "  text('never used')" in run.stdout
    assert "scripted status 503" in run.stdout
    assert "  KeyError: 'missing' (raised by <function test_raises.<locals>.<lambda> at " in run.stdout
    assert "friendli_check_replies = false" in run.stdout


def test_pytest_plugin_check_of_replies_can_be_disabled(tmp_path: Path) -> None:
    hide_plugin = 'import sys\nsys.modules["pytest_asyncio"] = None\n'
    run = run_with_plugin(tmp_path, LEFTOVER_TEST, "-o", "friendli_check_replies=false", conftest=hide_plugin)
    assert (run.returncode, "3 passed" in run.stdout) == (0, True), run.stdout + run.stderr


def test_public_names_exist_and_include_every_step() -> None:
    assert testing.steps.__all__ == sorted(testing.steps.__all__)
    assert {*testing.steps.__all__} < {*testing.__all__}
    assert all(hasattr(testing, name) for name in testing.__all__)
