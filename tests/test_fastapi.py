"""examples/fastapi_app.py under uvicorn: a browser that goes away stops the upstream call, whatever it waits for."""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl

from friendli_async.testing import FriendliServer, burst, chunk, finish, head, script, stall, status, text

EXAMPLES: Final = Path(__file__).parent.parent / "examples"


class Uvicorn(uvicorn.Server):
    """uvicorn in the test's own loop; tells when it listens."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_level="critical", lifespan="on"))
        self.listening = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


class Browser:
    """A connection that asks for one page."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def go_away(self) -> None:
        self.writer.transport.abort()

    async def page(self) -> tuple[int, bytes]:
        """Status and raw body, to the end."""
        head, _, body = (await asyncio.wait_for(self.reader.read(), 30)).partition(b"\r\n\r\n")
        return int(head.split()[1]), body


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("fastapi_app", "fastapi_disconnect"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLES / "fastapi_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def app(example: ModuleType, server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Uvicorn]:
    monkeypatch.setenv("FRIENDLI_TOKEN", "test-token")
    monkeypatch.setenv("FRIENDLI_SERVER_URL", server.url)
    running = Uvicorn(example.app)
    serving = asyncio.create_task(running.serve())
    await asyncio.wait_for(running.listening.wait(), 30)
    yield running
    running.should_exit = True
    await asyncio.wait_for(serving, 30)
    assert server.open_connections == 0  # the lifespan closed the client


@asynccontextmanager
async def browsing(app: Uvicorn, path: str, limit: int = 65536) -> AsyncIterator[Browser]:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port, limit=limit)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    browser = Browser(reader, writer)
    try:
        yield browser
    finally:
        browser.go_away()


async def stopped(server: FriendliServer) -> bool:
    """Whether the upstream call was broken off by the client, and its connection closed."""
    upstream = await server.wait_for_requests(1, timeout=30)
    gone = await upstream.disconnected(timeout=30)
    await server.wait_for_connections(0, timeout=30)
    return gone


async def test_both_routes_answer(app: Uvicorn, server: FriendliServer) -> None:
    server.enqueue(text("Hel", "lo"), text("Hel", "lo"))
    async with browsing(app, "/stream?q=Hi") as browser:
        code, body = await browser.page()
    assert code == 200
    assert b"Hel" in body
    assert b"lo" in body
    async with browsing(app, "/plain?q=Hi") as browser:
        code, body = await browser.page()
    assert (code, body) == (200, b'"Hello"')
    assert [request.json_object["messages"][0]["content"] for request in server.requests] == ["Hi", "Hi"]
    assert all([not await request.disconnected() for request in server.requests])
    assert server.connections == 1  # one client for both, which uses its connection again


async def test_stream_is_stopped_when_the_browser_goes_away_while_the_model_thinks(
    app: Uvicorn, server: FriendliServer
) -> None:
    server.enqueue(script(chunk("once"), stall()))
    async with browsing(app, "/stream?q=Hi") as browser:
        await asyncio.wait_for(browser.reader.readuntil(b"once"), 30)
        browser.go_away()
        assert await stopped(server)


async def test_stream_is_stopped_when_the_browser_goes_away_before_the_first_token(
    app: Uvicorn, server: FriendliServer
) -> None:
    server.enqueue(script(head(), stall()))
    async with browsing(app, "/stream?q=Hi") as browser:
        await server.wait_for_requests(1)
        browser.go_away()
        assert await stopped(server)


async def test_stream_is_stopped_when_a_browser_that_does_not_read_goes_away(
    app: Uvicorn, server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parked = asyncio.Event()
    pause = FlowControl.pause_writing

    def noted(control: FlowControl) -> None:
        pause(control)
        parked.set()

    monkeypatch.setattr(FlowControl, "pause_writing", noted)
    server.enqueue(script(burst(10**9, text="x" * 4096), finish()))
    async with browsing(app, "/stream?q=Hi", limit=1024) as browser:
        await asyncio.wait_for(parked.wait(), 60)  # the handler stands in its send()
        assert server.requests[0].outcome == "open"
        browser.go_away()
        assert await stopped(server)


async def test_plain_call_is_stopped_when_the_browser_goes_away(app: Uvicorn, server: FriendliServer) -> None:
    server.enqueue(script(stall()))
    async with browsing(app, "/plain?q=Hi") as browser:
        await server.wait_for_requests(1)
        browser.go_away()
        assert await stopped(server)


async def test_app_goes_on_after_browsers_went_away(app: Uvicorn, server: FriendliServer) -> None:
    for path in ("/stream?q=Hi", "/plain?q=Hi") * 5:
        server.enqueue(script(stall()))
        before = len(server.requests)
        async with browsing(app, path) as browser:
            upstream = await server.wait_for_requests(before + 1)
            browser.go_away()
            assert await upstream.disconnected(timeout=30)
    server.enqueue(text("still here"))
    async with browsing(app, "/plain?q=Hi") as browser:
        assert await browser.page() == (200, b'"still here"')


async def test_error_of_opening_comes_before_any_byte_of_the_stream(app: Uvicorn, server: FriendliServer) -> None:
    server.enqueue(status(401), status(401))
    for path in ("/stream?q=Hi", "/plain?q=Hi"):
        async with browsing(app, path) as browser:
            code, _ = await browser.page()
        assert code == 500  # an app maps errors to statuses of its own with an exception handler
