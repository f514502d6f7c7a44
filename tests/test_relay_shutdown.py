"""SIGTERM to uvicorn with open streams: each client gets a final event, and nothing but a warning is logged."""

import asyncio
from pathlib import Path

from support.asgi_servers import Browser, serving
from support.steps import burst

from friendli_async.testing import FriendliServer, chunk, gate, script, stall, tool_calls


async def test_sigterm_ends_every_open_stream_with_an_error_event(server: FriendliServer, tmp_path: Path) -> None:
    server.always(script(chunk("once"), stall()))
    async with serving("uvicorn", server.url, tmp_path / "log") as app:
        browsers = [await Browser.request(app.port, "/relay") for _ in range(50)]
        for browser in browsers:
            await asyncio.wait_for(browser.reader.readuntil(b"once"), 60)
        code = await app.terminate()
        rest = [await asyncio.wait_for(browser.reader.read(), 60) for browser in browsers]
        log = app.log
    for browser in browsers:
        browser.disconnect()
    assert sum(b"event: error\ndata: " in body and b"shutting_down" in body for body in rest) == 50
    assert sum(body.endswith(b"0\r\n\r\n") for body in rest) == 50  # the last chunk: no body was truncated
    assert code in {0, -15}  # uvicorn re-raises the signal after its shutdown
    lines = log.splitlines()
    assert len(lines) == 50
    assert {line.partition("StreamInterruptedError")[0] for line in lines} == {"/relay: after the first byte, "}
    await server.wait_for_connections(0)


async def test_sigterm_ends_a_run_whose_tool_is_running_with_an_error_event(
    server: FriendliServer, tmp_path: Path
) -> None:
    server.enqueue(tool_calls(("wait", {})))
    async with serving("uvicorn", server.url, tmp_path / "log") as app:
        browser = await Browser.request(app.port, "/run")
        await asyncio.wait_for(browser.reader.readuntil(b"ToolStarted"), 60)
        await app.terminate()
        rest = await asyncio.wait_for(browser.reader.read(), 60)
        log = app.log
    browser.disconnect()
    assert b"event: error\ndata: " in rest
    assert b"shutting_down" in rest
    [line] = log.splitlines()
    assert line.startswith("/run: after the first byte, StreamInterruptedError")
    assert len(server.requests) == 1


async def test_sigterm_disconnects_browsers_that_do_not_read(server: FriendliServer, tmp_path: Path) -> None:
    large = chunk("x" * 10_000_000, finish_reason="stop")  # more than socket buffers hold
    server.enqueue(script(burst(10**9, text="x" * 4096)), script(large))
    async with serving("uvicorn", server.url, tmp_path / "log") as app:
        browsers = []
        for _ in range(2):
            browsers.append(await Browser.request(app.port, "/relay"))
            await asyncio.wait_for(browsers[-1].reader.readuntil(b"xxxx"), 60)
        await app.terminate()
        log = app.log
    for browser in browsers:
        browser.disconnect()
    assert log.splitlines() == ["/relay: the browser stopped reading, and was disconnected"] * 2
    await server.wait_for_connections(0)


async def test_waiting_requests_are_503_after_sigterm(server: FriendliServer, tmp_path: Path) -> None:
    server.always(script(stall()))
    async with serving("uvicorn", server.url, tmp_path / "log") as app:
        browsers = [
            await Browser.request(app.port, "/relay"),
            await Browser.request(app.port, "/plain", b'{"q": "Hi"}'),
        ]
        await server.wait_for_requests(2)
        await app.terminate()
        answers = [await asyncio.wait_for(browser.reader.read(), 60) for browser in browsers]
    for browser, answer in zip(browsers, answers, strict=True):
        browser.disconnect()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"shutting_down"' in answer


async def test_stream_that_ends_within_the_grace_period_is_complete_after_sigterm(
    server: FriendliServer, tmp_path: Path
) -> None:
    resume = asyncio.Event()
    server.enqueue(script(chunk("once"), gate(resume), chunk("more", finish_reason="stop")))
    async with serving("uvicorn", server.url, tmp_path / "log", "support.patient_app:app") as app:
        browser = await Browser.request(app.port, "/relay")
        await asyncio.wait_for(browser.reader.readuntil(b"once"), 60)
        ending = asyncio.create_task(app.terminate())
        await wait_until_refused(app.port)
        resume.set()
        body = await asyncio.wait_for(browser.reader.read(), 60)
        await ending
        log = app.log
    browser.disconnect()
    assert b"more" in body
    assert b"event: error" not in body
    assert log == ""


async def wait_until_refused(port: int) -> None:
    """Waits until the server accepts no more connections, so the signal has arrived."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.02)
