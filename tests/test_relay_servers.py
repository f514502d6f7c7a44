"""Under real servers, in processes of their own: a browser that leaves stops the model, whatever it was doing.

How long that took is printed (`-s`): a table of the servers and the ways of leaving, in milliseconds.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from support.asgi_servers import COMMANDS, AppProcess, Browser, serving

from friendli_async.testing import (
    FriendliServer,
    ReceivedRequest,
    Step,
    burst,
    chunk,
    head,
    script,
    stall,
    status,
    text,
)
from friendli_async.testing.reply import ReplyWriter

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLOOD: Final = script(burst(10**9, text="x" * 4096))


class CountedFlood(Step):
    """Events without end; counts the writes that the other side has taken."""

    def __init__(self) -> None:
        self.writes = 0

    async def play(self, reply: ReplyWriter) -> None:
        while True:
            await reply.write(chunk("x" * 40_000).encode(reply.identity))
            self.writes += 1

    async def standstill(self) -> int:
        """How many writes it was when nobody took any more of them, for a while."""
        async with asyncio.timeout(60):
            writes = -1
            while writes != self.writes or not writes:
                writes = self.writes
                await asyncio.sleep(0.4)
        return writes


@pytest.fixture(scope="module")
def took() -> Iterator[dict[tuple[str, str], float]]:
    """Milliseconds from the browser's leaving to the end upstream."""
    table: dict[tuple[str, str], float] = {}
    yield table
    ways = sorted({way for _, way in table})
    print("\n|  | " + " | ".join(ways) + " |")
    for name in COMMANDS:
        print(f"| {name} | " + " | ".join(f"{table.get((name, way), float('nan')):.0f}" for way in ways) + " |")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(COMMANDS))
async def app(
    request: pytest.FixtureRequest, upstream: FriendliServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AppProcess]:
    """One process of each server, for all tests; it logs nothing but what goes wrong, and nothing does."""
    log: Path = tmp_path_factory.mktemp(request.param) / "log"
    async with serving(request.param, upstream.url, log) as running:
        yield running
    assert "Traceback" not in running.said, running.said


async def leave(
    app: AppProcess, way: str, went: float, call: ReceivedRequest, took: dict[tuple[str, str], float]
) -> None:
    assert await call.disconnected(timeout=60)
    took[app.name, way] = (time.perf_counter() - went) * 1e3


@pytest.mark.parametrize("path", ["/relay", "/wrapped/relay", "/bare/"])
async def test_stream_is_relayed_as_it_came(app: AppProcess, upstream: FriendliServer, path: str) -> None:
    upstream.enqueue(text("Hel", "lo"))
    browser = await Browser.asking(app.port, path)
    told, body = await browser.page()
    assert told.split()[1] == "200"
    assert "content-type: text/event-stream" in told.lower()
    assert "x-accel-buffering: no" in told.lower()
    assert "content-length" not in told.lower()
    assert body.count(b"Hel") == body.count(b"[DONE]") == 1
    browser.go_away()


@pytest.mark.parametrize("path", ["/relay", "/wrapped/relay", "/bare/"])
async def test_slow_stream_stops_when_the_browser_leaves(
    app: AppProcess, upstream: FriendliServer, took: dict[tuple[str, str], float], path: str
) -> None:
    upstream.enqueue(script(chunk("once"), stall()))
    browser = await Browser.asking(app.port, path)
    await asyncio.wait_for(browser.reader.readuntil(b"once"), 60)
    call, went = upstream.requests[-1], time.perf_counter()
    browser.go_away()
    await leave(app, f"slow {path}", went, call, took)
    assert call.outcome == "disconnected"


async def test_stream_that_has_not_begun_stops_when_the_browser_leaves(
    app: AppProcess, upstream: FriendliServer, took: dict[tuple[str, str], float]
) -> None:
    upstream.enqueue(script(head(), stall()))
    before = len(upstream.requests)
    browser = await Browser.asking(app.port, "/relay")
    call = await upstream.wait_for_requests(before + 1)
    went = time.perf_counter()
    browser.go_away()
    await leave(app, "before the first event", went, call, took)
    assert call.outcome == "disconnected"


async def test_flood_stops_when_the_browser_leaves(
    app: AppProcess, upstream: FriendliServer, took: dict[tuple[str, str], float]
) -> None:
    upstream.enqueue(FLOOD)
    browser = await Browser.asking(app.port, "/relay")
    for _ in range(100):
        await asyncio.wait_for(browser.reader.readuntil(b"xxxx"), 60)
    call, went = upstream.requests[-1], time.perf_counter()
    browser.go_away()
    await leave(app, "flood", went, call, took)
    assert call.outcome == "disconnected"


async def test_browser_that_does_not_read_holds_upstream_back_and_stops_it_by_leaving(
    app: AppProcess, upstream: FriendliServer, took: dict[tuple[str, str], float]
) -> None:
    flood = CountedFlood()
    upstream.enqueue(flood)
    browser = await Browser.asking(app.port, "/relay")
    await asyncio.wait_for(browser.reader.readuntil(b"xxxx"), 60)
    assert await flood.standstill() < 2_000  # 80 MB would be a buffer, not a socket's
    call, went = upstream.requests[-1], time.perf_counter()
    browser.go_away()
    await leave(app, "not reading", went, call, took)
    assert call.outcome == "disconnected"


@pytest.mark.parametrize("path", ["/plain", "/wrapped/plain"])
async def test_plain_call_stops_when_the_browser_leaves(
    app: AppProcess, upstream: FriendliServer, took: dict[tuple[str, str], float], path: str
) -> None:
    upstream.enqueue(script(stall()))
    before = len(upstream.requests)
    browser = await Browser.asking(app.port, path, b'{"q": "Hi"}')
    call = await upstream.wait_for_requests(before + 1)
    went = time.perf_counter()
    browser.go_away()
    await leave(app, f"post {path}", went, call, took)
    assert call.outcome == "disconnected"


async def test_websocket_stops_the_stream_when_the_browser_leaves(
    app: AppProcess, upstream: FriendliServer, took: dict[tuple[str, str], float]
) -> None:
    upstream.enqueue(script(chunk("once"), stall()))
    async with ClientSession() as session, session.ws_connect(f"{app.url}/socket") as socket:
        assert await socket.receive_str(timeout=60) == "once"
        call, went = upstream.requests[-1], time.perf_counter()
        connection = socket._conn
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        await leave(app, "websocket", went, call, took)
    assert call.outcome == "disconnected"


@pytest.mark.parametrize("path", ["/relay", "/wrapped/relay"])
async def test_error_of_opening_is_a_status(app: AppProcess, upstream: FriendliServer, path: str) -> None:
    upstream.enqueue(status(429, retry_after=1))
    browser = await Browser.asking(app.port, path)
    told, body = await browser.page()
    assert told.split()[1] == "429"
    assert "retry-after: 1" in told.lower()
    assert body.startswith(b'{"error":')
    browser.go_away()
