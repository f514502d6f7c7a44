"""Under real ASGI servers in separate processes: a browser that disconnects cancels the upstream request.

Prints the latencies with `-s`: a table of servers and scenarios, in milliseconds.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from support.asgi_servers import COMMANDS, AppProcess, Browser, serving
from support.steps import burst

from friendli_async.testing import (
    FriendliServer,
    ReceivedRequest,
    Step,
    chunk,
    finish,
    gate,
    head,
    script,
    stall,
    status,
    text,
)
from friendli_async.testing.reply import ReplyWriter

pytestmark = pytest.mark.asyncio(loop_scope="module")

Latencies: TypeAlias = dict[tuple[str, str], float]

FLOOD: Final = script(burst(10**9, text="x" * 4096))


class CountedFlood(Step):
    """Sends events endlessly and counts the writes that the peer has accepted."""

    def __init__(self) -> None:
        self.writes = 0

    async def play(self, reply: ReplyWriter) -> None:
        while True:
            await reply.write(chunk("x" * 40_000).encode(reply.identity))
            self.writes += 1

    async def wait_until_stalled(self) -> int:
        """Waits until no write has been accepted for a while; returns the number of writes."""
        async with asyncio.timeout(60):
            writes = -1
            while writes != self.writes or not writes:
                writes = self.writes
                await asyncio.sleep(0.4)
        return writes


@pytest.fixture(scope="module")
def latencies() -> Iterator[Latencies]:
    """Milliseconds from the disconnect of the browser to that of the upstream request."""
    table: Latencies = {}
    yield table
    scenarios = sorted({scenario for _, scenario in table})
    print("\n|  | " + " | ".join(scenarios) + " |")
    for name in COMMANDS:
        print(
            f"| {name} | "
            + " | ".join(f"{table.get((name, scenario), float('nan')):.0f}" for scenario in scenarios)
            + " |"
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(COMMANDS))
async def app(
    request: pytest.FixtureRequest, upstream: FriendliServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AppProcess]:
    """One process per server, shared by all tests; no traceback may be in its log."""
    log: Path = tmp_path_factory.mktemp(request.param) / "log"
    async with serving(request.param, upstream.url, log) as running:
        yield running
    assert "Traceback" not in running.log, running.log


async def assert_leaving_cancels(
    leave: Callable[[], None], app: AppProcess, scenario: str, call: ReceivedRequest, latencies: Latencies
) -> None:
    """Leaves the page as a browser does, which must cancel the upstream call, and records how long that took."""
    left_at = time.perf_counter()
    leave()
    assert await call.disconnected(timeout=60)
    latencies[app.name, scenario] = (time.perf_counter() - left_at) * 1e3
    assert call.outcome == "disconnected"


@pytest.mark.parametrize("path", ["/relay", "/wrapped/relay", "/bare/"])
async def test_stream_is_relayed_unchanged(app: AppProcess, upstream: FriendliServer, path: str) -> None:
    upstream.enqueue(text("Hel", "lo"))
    browser = await Browser.request(app.port, path)
    headers, body = await browser.page()
    assert headers.split()[1] == "200"
    assert "content-type: text/event-stream" in headers.lower()
    assert "x-accel-buffering: no" in headers.lower()
    assert "content-length" not in headers.lower()
    assert body.count(b"Hel") == body.count(b"[DONE]") == 1
    browser.disconnect()


@pytest.mark.parametrize("path", ["/relay", "/wrapped/relay", "/bare/"])
async def test_slow_stream_is_cancelled_when_the_browser_disconnects(
    app: AppProcess, upstream: FriendliServer, latencies: Latencies, path: str
) -> None:
    upstream.enqueue(script(chunk("once"), stall()))
    browser = await Browser.request(app.port, path)
    await asyncio.wait_for(browser.reader.readuntil(b"once"), 60)
    await assert_leaving_cancels(browser.disconnect, app, f"slow {path}", upstream.requests[-1], latencies)


async def test_stream_without_any_event_yet_is_cancelled_when_the_browser_disconnects(
    app: AppProcess, upstream: FriendliServer, latencies: Latencies
) -> None:
    upstream.enqueue(script(head(), stall()))
    before = len(upstream.requests)
    browser = await Browser.request(app.port, "/relay")
    call = await upstream.wait_for_requests(before + 1)
    await assert_leaving_cancels(browser.disconnect, app, "before the first event", call, latencies)


async def test_fast_stream_is_cancelled_when_the_browser_disconnects(
    app: AppProcess, upstream: FriendliServer, latencies: Latencies
) -> None:
    upstream.enqueue(FLOOD)
    browser = await Browser.request(app.port, "/relay")
    for _ in range(100):
        await asyncio.wait_for(browser.reader.readuntil(b"xxxx"), 60)
    await assert_leaving_cancels(browser.disconnect, app, "flood", upstream.requests[-1], latencies)


async def test_backpressure_reaches_upstream_and_disconnecting_cancels_the_stream(
    app: AppProcess, upstream: FriendliServer, latencies: Latencies
) -> None:
    flood = CountedFlood()
    upstream.enqueue(flood)
    browser = await Browser.request(app.port, "/relay")
    await asyncio.wait_for(browser.reader.readuntil(b"xxxx"), 60)
    assert await flood.wait_until_stalled() < 2_000  # 80 MB: more than socket buffers hold
    await assert_leaving_cancels(browser.disconnect, app, "not reading", upstream.requests[-1], latencies)


async def test_browser_that_stops_reading_is_disconnected(app: AppProcess, upstream: FriendliServer) -> None:
    upstream.enqueue(FLOOD)
    before = len(upstream.requests)
    browser = await Browser.request(app.port, "/impatient")
    call = await upstream.wait_for_requests(before + 1)
    assert await call.disconnected(timeout=60)
    assert call.outcome == "disconnected"
    browser.disconnect()


async def test_answer_is_sent_before_the_first_event(app: AppProcess, upstream: FriendliServer) -> None:
    resume = asyncio.Event()
    upstream.enqueue(script(gate(resume), chunk("Hi"), finish()))
    browser = await Browser.request(app.port, "/early")
    start = await asyncio.wait_for(browser.reader.readuntil(b": ping"), 60)
    assert start.split()[1] == b"200"
    resume.set()
    assert b"Hi" in await asyncio.wait_for(browser.reader.read(), 60)
    browser.disconnect()


@pytest.mark.parametrize("path", ["/plain", "/wrapped/plain"])
async def test_plain_call_is_cancelled_when_the_browser_disconnects(
    app: AppProcess, upstream: FriendliServer, latencies: Latencies, path: str
) -> None:
    upstream.enqueue(script(stall()))
    before = len(upstream.requests)
    browser = await Browser.request(app.port, path, b'{"q": "Hi"}')
    call = await upstream.wait_for_requests(before + 1)
    await assert_leaving_cancels(browser.disconnect, app, f"post {path}", call, latencies)


async def test_websocket_stream_is_cancelled_when_the_browser_disconnects(
    app: AppProcess, upstream: FriendliServer, latencies: Latencies
) -> None:
    upstream.enqueue(script(chunk("once"), stall()))
    async with ClientSession() as session, session.ws_connect(f"{app.url}/socket") as socket:
        assert await socket.receive_str(timeout=60) == "once"
        connection = socket._conn
        assert connection is not None
        assert connection.transport is not None
        await assert_leaving_cancels(connection.transport.abort, app, "websocket", upstream.requests[-1], latencies)


@pytest.mark.parametrize("path", ["/relay", "/wrapped/relay"])
async def test_error_from_opening_sets_the_response_status(
    app: AppProcess, upstream: FriendliServer, path: str
) -> None:
    upstream.enqueue(status(429, retry_after=1))
    browser = await Browser.request(app.port, path)
    headers, body = await browser.page()
    assert headers.split()[1] == "429"
    assert "retry-after: 1" in headers.lower()
    assert body.startswith(b'{"error":')
    browser.disconnect()
