"""MCP tools: sessions of both major SDK versions, and a real server."""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.sockets import start_run, with_timeout

from friendli_async import AsyncFriendli
from friendli_async.errors import ToolError
from friendli_async.integrations.mcp import MCPTool, mcp_tools
from friendli_async.testing import FriendliServer, tool_calls
from friendli_async.tools import ToolFinished, ToolStarted

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def text_block(text: str) -> SimpleNamespace:
    return SimpleNamespace(type="text", text=text)


class OldSession:
    """Mimics `ClientSession` of SDK 1.x: camel case, `list_tools(cursor)`."""

    def __init__(self, *pages: list[str], result: Any = None) -> None:
        self.pages = pages
        self.calls: list[tuple[str, Any]] = []
        self.cursors: list[str | None] = []
        self.result = result or SimpleNamespace(content=[text_block("done")], structuredContent=None, isError=False)

    async def list_tools(self, cursor: str | None = None) -> Any:
        self.cursors.append(cursor)
        number = int(cursor or 0)
        names = self.pages[number]
        tools = [SimpleNamespace(name=name, description=f"Does {name}.", inputSchema=SCHEMA) for name in names]
        more = number + 1 < len(self.pages)
        return SimpleNamespace(tools=tools, nextCursor=str(number + 1) if more else None)

    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        self.calls.append((name, arguments))
        return self.result


class NewClient(OldSession):
    """Mimics `Client` of SDK 2.x: snake case, `list_tools(*, cursor)`."""

    async def list_tools(self, *, cursor: str | None = None, meta: Any = None) -> Any:  # type: ignore[override]  # as in the SDK
        page = await super().list_tools(cursor)
        tools = [SimpleNamespace(name=t.name, description=None, input_schema=t.inputSchema) for t in page.tools]
        return SimpleNamespace(tools=tools, next_cursor=page.nextCursor)


class NewSession(NewClient):
    """Mimics `ClientSession` of SDK 2.x: `list_tools(*, params)`."""

    async def list_tools(self, *, params: Any = None) -> Any:  # type: ignore[override]  # as in the SDK
        return await super().list_tools(cursor=None if params is None else params.cursor)


@pytest.mark.parametrize("session", [OldSession, NewClient, NewSession])
async def test_tools_of_all_pages_are_listed(session: type[OldSession]) -> None:
    pytest.importorskip("mcp.types")
    opened = session(["add", "sub"], [], ["mul"])
    tools = await mcp_tools(opened)
    assert [tool.name for tool in tools] == ["add", "sub", "mul"]
    assert opened.cursors == [None, "1", "2"]
    assert all(tool.parameters == SCHEMA for tool in tools)
    assert tools[0].description == ("Does add." if session is OldSession else None)
    assert repr(tools[0]) == "<MCP tool add>"


@pytest.mark.parametrize("names", [["add"], []], ids=["tools", "empty pages"])
async def test_endless_pages_are_rejected(names: list[str]) -> None:
    class Endless(OldSession):
        async def list_tools(self, cursor: str | None = None) -> Any:
            page = await super().list_tools()
            return SimpleNamespace(tools=page.tools, nextCursor=str(len(self.cursors)))

    with pytest.raises(ValueError, match="does not end"):
        await with_timeout(mcp_tools(Endless(names)))


async def test_colliding_tool_names_are_made_unique(client: AsyncFriendli, server: FriendliServer) -> None:
    long = "x" * 64
    session = OldSession(["a.b", "a/b", "a_b_2", f"{long}1", f"{long}2"])
    tools = await mcp_tools(session)
    assert [tool.name for tool in tools] == ["a_b", "a_b_2", "a_b_2_2", long, f"{long[:62]}_2"]
    server.enqueue(tool_calls(("a_b_2", {"a": 1})))
    await start_run(client, *tools).result()
    assert session.calls == [("a/b", {"a": 1})]


async def test_names_are_sanitized_and_calls_use_the_servers_names(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    session = OldSession(["files.read/all"])
    [tool] = await mcp_tools(session, prefix="disk_")
    assert tool.name == "disk_files_read_all"
    server.enqueue(tool_calls((tool.name, {"a": 1})))
    await start_run(client, tool).result()
    assert session.calls == [("files.read/all", {"a": 1})]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (SimpleNamespace(content=[text_block("a"), text_block("b")], structured_content={"x": 1}), "a\nb"),
        (SimpleNamespace(content=[], structured_content={"x": [1, "é"]}, is_error=False), '{"x":[1,"é"]}'),
        (SimpleNamespace(content=[], structuredContent={"x": 1}, isError=False), '{"x":1}'),
        (SimpleNamespace(content=[], structuredContent=None, isError=False), ""),
        (
            SimpleNamespace(content=[SimpleNamespace(type="image", data="AAAA", mimeType="image/png")], isError=False),
            "[image of type image/png, which cannot be shown]",
        ),
        (
            SimpleNamespace(
                content=[
                    SimpleNamespace(type="resource", resource=SimpleNamespace(text="inside", mime_type="a/b")),
                    SimpleNamespace(type="resource", resource=SimpleNamespace(uri="x:", blob="AA", mime_type="a/b")),
                    SimpleNamespace(type="resource_link", name="page", uri="file:///page"),
                ],
                is_error=False,
            ),
            "inside\n[resource of type a/b, which cannot be shown]\n[page: file:///page]",
        ),
    ],
)  # fmt: skip
async def test_result_is_rendered_as_text(result: Any, text: str) -> None:
    [tool] = await mcp_tools(OldSession(["add"], result=result))
    assert await tool.run("") == await tool.run("null") == text


@pytest.mark.parametrize("flag", ["is_error", "isError"])
async def test_tool_error_is_sent_to_the_model(client: AsyncFriendli, server: FriendliServer, flag: str) -> None:
    result = SimpleNamespace(content=[text_block("no such file")], **{flag: True})
    [tool] = await mcp_tools(OldSession(["read"], result=result))
    server.enqueue(tool_calls(("read", {"a": 1})))
    run = start_run(client, tool)
    [finished] = [event async for event in run if isinstance(event, ToolFinished)]
    assert (finished.content, finished.problem) == ("Error: no such file", "failed")


@pytest.mark.parametrize(("arguments", "message"), [("[1]", "not a JSON object"), ('{"a":', "not valid JSON")])
async def test_arguments_that_are_not_an_object_are_not_sent(arguments: str, message: str) -> None:
    session = OldSession(["add"])
    [tool] = await mcp_tools(session)
    with pytest.raises(ToolError, match=message) as caught:
        await tool.run(arguments)
    assert caught.value.kind == "arguments"
    assert session.calls == []


async def test_lone_surrogate_in_arguments_is_replaced_because_the_sdk_cannot_send_it() -> None:
    session = OldSession(["add"])
    [tool] = await mcp_tools(session)
    await tool.run(r'{"text": "half \ud83d"}')
    assert session.calls == [("add", {"text": "half �"})]


def test_sdk_is_not_imported() -> None:
    code = "import sys, friendli_async.integrations.mcp; assert not {'mcp', 'mcp_types'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- a real server ---------------------------------------------------------------------------------------------------

SERVER = """
import anyio
from mcp.server.mcpserver import MCPServer

server = MCPServer("demo", log_level="CRITICAL")

@server.tool()
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b

@server.tool()
async def wait() -> str:
    "Waits."
    await anyio.sleep_forever()
    return "never"

@server.tool()
def boom() -> str:
    "Fails."
    raise ValueError("nope")

@server.tool()
def echo(text: str) -> str:
    "Repeats a text."
    return text

server.run("stdio")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER, encoding="utf-8")
    return path


async def test_model_calls_tools_of_real_server(client: AsyncFriendli, server: FriendliServer, program: Path) -> None:
    mcp = pytest.importorskip("mcp")
    if not hasattr(mcp, "Client"):
        pytest.skip("the SDK 1.x has no Client")
    async with mcp.Client(mcp.StdioServerParameters(command=sys.executable, args=[str(program)])) as session:
        tools = await mcp_tools(session)
        assert [tool.name for tool in tools] == ["add", "wait", "boom", "echo"]
        assert [tool.name for tool in await mcp_tools(session.session)] == ["add", "wait", "boom", "echo"]
        assert tools[0].parameters["required"] == ["a", "b"]

        good = [("add", {"a": 1, "b": 2}), ("add", {"a": 30, "b": 4})]
        server.enqueue(tool_calls(*good, ("boom", {}), ("add", {"a": "x"})))
        result = await with_timeout(start_run(client, *tools).result())
        messages: Any = result.messages
        contents = [message["content"] for message in messages if message["role"] == "tool"]
        assert contents[:2] == ["3", "34"]
        assert all(text.startswith("Error: ") for text in contents[2:])
        assert result.reply.text.startswith("The tool says: 3, 34, Error: ")

        assert await with_timeout(tools[3].run(r'{"text": "half \ud83d"}')) == "half �"

        await _leave_run_during_tool_call(client, server, tools)
        assert await with_timeout(tools[0].run('{"a": 5, "b": 2}')) == "7"  # the session still works


async def _leave_run_during_tool_call(client: AsyncFriendli, server: FriendliServer, tools: list[MCPTool]) -> None:
    server.enqueue(tool_calls(("wait", {})))
    async with start_run(client, *tools) as run:
        async with asyncio.timeout(30):
            async for event in run:
                if isinstance(event, ToolStarted):
                    break
    assert run.turns == 0
