"""uvicorn's SIGTERM with streams open: each browser is told, the process ends by itself, and says nothing."""

import asyncio
from pathlib import Path

from support.asgi_servers import Browser, serving

from friendli_async.testing import FriendliServer, chunk, gate, script, stall


async def test_each_browser_gets_a_last_event_at_sigterm(server: FriendliServer, tmp_path: Path) -> None:
    server.always(script(chunk("once"), stall()))
    async with serving("uvicorn", server.url, tmp_path / "log") as app:
        browsers = [await Browser.asking(app.port, "/relay") for _ in range(50)]
        for browser in browsers:
            await asyncio.wait_for(browser.reader.readuntil(b"once"), 60)
        code = await app.terminated()
        rest = [await asyncio.wait_for(browser.reader.read(), 60) for browser in browsers]
        said = app.said
    for browser in browsers:
        browser.go_away()
    assert sum(b"event: error\ndata: " in body and b"stream_interrupted" in body for body in rest) == 50
    assert sum(body.endswith(b"0\r\n\r\n") for body in rest) == 50  # the end of a chunked body: none was cut
    assert code in {0, -15}  # uvicorn raises the signal once more, when all is over
    assert said == ""
    await server.wait_for_connections(0)


async def test_streams_that_end_in_time_are_whole_at_sigterm(server: FriendliServer, tmp_path: Path) -> None:
    go_on = asyncio.Event()
    server.enqueue(script(chunk("once"), gate(go_on), chunk("more", finish_reason="stop")))
    async with serving("uvicorn", server.url, tmp_path / "log", "support.patient_app:app") as app:
        browser = await Browser.asking(app.port, "/relay")
        await asyncio.wait_for(browser.reader.readuntil(b"once"), 60)
        ending = asyncio.create_task(app.terminated())
        await refused(app.port)
        go_on.set()
        body = await asyncio.wait_for(browser.reader.read(), 60)
        await ending
        said = app.said
    browser.go_away()
    assert b"more" in body
    assert b"event: error" not in body
    assert said == ""


async def refused(port: int) -> None:
    """Returns when the server takes no more connections: the signal has arrived."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.02)
