"""The relay examples under uvicorn, driven by the `openai` package and by a real browser."""

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import openai
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.asgi_servers import AppProcess, Browser, serving
from support.sockets import MESSAGES

from friendli_async import AsyncFriendli
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
    event,
    json_body,
    raw,
    script,
    stall,
    status,
    text,
    usage,
)

ASK: Final[Any] = MESSAGES  # dicts, which openai has types for
EXAMPLES: Final = Path(__file__).parent.parent / "examples"
CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --- openai ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def proxy(server: FriendliServer, tmp_path: Path) -> AsyncIterator[AppProcess]:
    async with serving("uvicorn", server.url, tmp_path / "log", "openai_compatible_proxy:app", EXAMPLES) as running:
        yield running


async def test_chunks_and_replies_become_those_of_the_openai_package(server: FriendliServer) -> None:
    """As docs/building-on-it.md converts them: with all that the package itself reads from the same bytes."""
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    likely = {"token": "a", "logprob": -0.1, "bytes": [97]}
    logprobs = {"content": [{**likely, "top_logprobs": [likely]}]}
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": {"role": "assistant", "content": "a"}, "logprobs": logprobs},
        {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "tool_calls"},
    ]
    events = [event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}) for choice in choices]
    answer = script(*events, usage(3, 5), done())
    server.enqueue(answer, answer)
    url = f"{server.url}/serverless/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="test-token", max_retries=0) as openai_client:
        theirs = [
            each async for each in await openai_client.chat.completions.create(model="m", messages=ASK, stream=True)
        ]
    async with AsyncFriendli("test-token", server_url=server.url) as client:
        stream = client.serverless.chat.stream(model="m", messages=ASK)
        fields = [msgspec.json.decode(msgspec.json.encode(each)) async for each in stream]
        reply = msgspec.json.decode(msgspec.json.encode(await stream.result()))
    ours = [ChatCompletionChunk.construct(**each) for each in fields]
    assert [each.choices for each in ours] == [each.choices for each in theirs]
    assert ours[-1].usage == theirs[-1].usage
    message = ChatCompletion.construct(**reply).choices[0].message
    assert (message.content, message.tool_calls and message.tool_calls[0].id) == ("a", "a")


async def test_openai_package_works_with_the_proxy(proxy: AppProcess, server: FriendliServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as openai_client:
        server.enqueue(text("Hel", "lo"), text("Hel", "lo"))
        reply = await openai_client.chat.completions.create(model="m", messages=ASK, max_completion_tokens=5)
        assert reply.choices[0].message.content == "Hello"
        assert reply.usage is not None
        stream = await openai_client.chat.completions.create(model="m", messages=ASK, stream=True, seed=7)
        contents = [each.choices[0].delta.content async for each in stream]
        assert "".join(content or "" for content in contents) == "Hello"
        assert server.requests[0].json_object == {"model": "m", "messages": MESSAGES, "max_tokens": 5}
        assert server.requests[1].json_object["seed"] == 7
        server.enqueue(json_body({"data": [{"id": "a"}, {"id": "b"}]}))
        assert [model.id async for model in openai_client.models.list()] == ["a", "b"]
        await assert_errors_are_mapped(openai_client, server)
    assert "Traceback" not in proxy.log


async def test_proxy_sends_the_usage_of_a_stream_only_if_asked(proxy: AppProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as openai_client:
        chat = openai_client.chat.completions
        plain = [each async for each in await chat.create(model="m", messages=ASK, stream=True)]
        assert all(each.choices and each.usage is None for each in plain)
        options: Any = {"include_usage": True}
        asked = await chat.create(model="m", messages=ASK, stream=True, stream_options=options)
        *_, last = [each async for each in asked]
        assert not last.choices
        assert last.usage is not None


async def assert_errors_are_mapped(openai_client: openai.AsyncOpenAI, server: FriendliServer) -> None:
    server.enqueue(status(400, message="too long"), status(401))
    with pytest.raises(openai.BadRequestError, match="too long"):
        await openai_client.chat.completions.create(model="m", messages=ASK)
    with pytest.raises(openai.InternalServerError, match="not authorized to use the model"):  # 502
        await openai_client.chat.completions.create(model="m", messages=ASK, stream=True)
    with pytest.raises(openai.UnprocessableEntityError, match="messages"):
        await openai_client.chat.completions.create(model="m", messages=[{"role": "nobody", "content": "x"}])  # type: ignore[list-item,misc] # invalid on purpose
    server.enqueue(script(chunk("Once"), cut()))
    stream = await openai_client.chat.completions.create(model="m", messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="interrupted before"):
        async for _ in stream:
            pass


# --- fastapi_app.py --------------------------------------------------------------------------------------------------


async def test_fastapi_example_serves_all_routes(server: FriendliServer, tmp_path: Path) -> None:
    server.enqueue(*[text("Hel", "lo")] * 3)
    async with serving("uvicorn", server.url, tmp_path / "log", "fastapi_app:app", EXAMPLES) as app:
        for path in ("/stream?q=Hi", "/plain?q=Hi"):
            browser = await Browser.request(app.port, path)
            head, body = await browser.page()
            assert head.split()[1] == "200"
            assert b"lo" in body
            browser.disconnect()
        async with ClientSession() as session, session.ws_connect(f"{app.url}/socket?q=Hi") as socket:
            assert [await socket.receive_str(), await socket.receive_str()] == ["Hel", "lo"]
    assert [request.json_object["messages"][0]["content"] for request in server.requests] == ["Hi"] * 3
    assert server.connections == 1


# --- a browser -------------------------------------------------------------------------------------------------------


class Page:
    """A page in a browser, driven by its DevTools protocol."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._sent = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": parameters})
        while True:
            response = await self._socket.receive_json(timeout=60)
            if response.get("id") == self._sent:
                result: dict[str, Any] = response["result"]
                return result

    async def run(self, script: str) -> Any:
        """Returns the value of a script, awaiting it if it is a promise."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def shows(self, element: str, text_part: str) -> None:
        """Waits until the text of the element contains `text_part`."""
        found = f"document.getElementById({element!r})?.textContent.includes({text_part!r})"
        await self.run(
            f"new Promise(done => {{ const poll = () => {found} ? done(1) : setTimeout(poll, 20); poll() }})"
        )


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=800,500"]
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *options,
        "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path / 'profile'}",
        "about:blank",
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    try:
        async with ClientSession() as session, asyncio.timeout(120):
            port_file = tmp_path / "profile" / "DevToolsActivePort"
            while not port_file.exists() or not port_file.read_text().strip():
                assert process.returncode is None, "chromium did not start"
                await asyncio.sleep(0.05)  # chromium has no readiness notification but this file
            port = port_file.read_text().split()[0]
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                [target] = [each for each in json.loads(await response.text()) if each["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_browser_page_displays_the_stream_and_its_stop_button_cancels_it(
    page: Page, server: FriendliServer, tmp_path: Path
) -> None:
    server.enqueue(
        script(chunk("Because of "), chunk("Rayleigh"), stall()),
        text("All of it."),
        status(400, message="no such model"),
    )
    async with serving("uvicorn", server.url, tmp_path / "log", "app:app", EXAMPLES / "browser_chat") as app:
        await page.call("Page.navigate", url=app.url)
        await page.shows("ask", "Ask")
        await page.run("new Promise(done => document.readyState === 'complete' ? done() : onload = done)")
        await page.run("document.getElementById('ask').click()")
        await page.shows("answer", "Because of Rayleigh")
        assert server.requests[0].outcome == "open"
        picture = base64.b64decode((await page.call("Page.captureScreenshot"))["data"])
        (tmp_path / "page.png").write_bytes(picture)
        await page.run("document.getElementById('stop').click()")
        await page.shows("state", "stopped")
        assert await server.requests[0].disconnected()
        await page.run("document.getElementById('ask').click()")
        await page.shows("state", "done")
        assert await page.run("document.getElementById('answer').textContent") == "All of it."
        await page.run("document.getElementById('ask').click()")
        await page.shows("state", "no such model")
        log = app.log
    assert "Traceback" not in log


async def test_browser_page_reads_crlf_and_never_shows_an_incomplete_answer_as_done(
    page: Page, server: FriendliServer, tmp_path: Path
) -> None:
    lines = b'data: {"choices":[{"index":0,"delta":{"content":"Half"},"finish_reason":%b}]}\r\n\r\n'
    replies = {
        "done": (raw(lines % b'"stop"'), raw(b"data: [DONE]\r\n\r\n")),
        "cut off": (raw(lines % b'"length"'), raw(b"data: [DONE]\r\n\r\n")),
        "incomplete": (raw(lines % b"null"), raw(b"data: [DONE]\r\n\r\n")),
        "interrupted before": (raw(lines % b"null"), cut()),
        # An event of the server's own, which is relayed unchanged: its form may be any.
        "was interrupted": (raw(lines % b"null"), event({"message": "overloaded"}, name="error")),
    }
    server.enqueue(*(script(*steps) for steps in replies.values()))
    async with serving("uvicorn", server.url, tmp_path / "log", "app:app", EXAMPLES / "browser_chat") as app:
        await page.call("Page.navigate", url=app.url)
        await page.shows("ask", "Ask")
        await page.run("new Promise(done => document.readyState === 'complete' ? done() : onload = done)")
        for state in replies:
            await page.run("document.getElementById('ask').click()")
            await page.shows("state", state)
            assert await page.run("document.getElementById('answer').textContent") == "Half"
