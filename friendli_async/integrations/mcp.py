"""Tools of an MCP server, for ``chat.run``.

    from mcp import Client, StdioServerParameters
    from friendli_async.integrations.mcp import mcp_tools

    async with Client(StdioServerParameters(command="uvx", args=["some-server"])) as session:
        run = client.serverless.chat.run(model="...", messages=[...], tools=await mcp_tools(session))

It goes by the form of a session, not by its class, so sessions of the SDK's 1.x and of its 2.x do, and nothing of the
SDK is imported here. ``pip install 'friendli_async[mcp]'`` brings the SDK.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol, cast

import msgspec

from friendli_async.errors import ToolError

__all__ = ["MCPSession", "MCPTool", "mcp_tools"]

_NO_NAME: Final = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME: Final = 64
_MAX_TOOLS: Final = 1000


class MCPSession(Protocol):
    """What is needed of a session: ``ClientSession`` and ``Client`` of the SDK have it."""

    async def list_tools(self) -> Any:
        """Lists the tools, page by page."""
        ...

    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Calls a tool."""
        ...


class MCPTool:
    """A tool of an MCP server.

    Attributes:
        name: What the model calls it.
        description: What the server says of it.
        parameters: JSON schema of its arguments.
    """

    def __init__(
        self, session: MCPSession, server_name: str, name: str, description: str | None, parameters: Mapping[str, Any]
    ) -> None:
        self._session = session
        self._server_name = server_name
        self.name: str = name
        self.description: str | None = description
        self.parameters: Mapping[str, Any] = parameters

    def __repr__(self) -> str:
        return f"<MCP tool {self.name}>"

    async def run(self, arguments: str) -> str:
        """Calls the tool. Being cancelled cancels it on the server, too.

        Args:
            arguments: A JSON object as text; "" is an empty one. The server checks it.

        Returns:
            The text of the result; where it has none, its structured content as JSON. Images and sounds are named only.

        Raises:
            ToolError: The server says that it went wrong, or the arguments are no JSON object.
            Exception: What the session raises.
        """
        try:
            given: object = msgspec.json.decode(arguments.strip() or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ToolError(f"the arguments are not JSON: {error}", kind="arguments") from None
        if not isinstance(given, dict):
            raise ToolError("the arguments are not a JSON object", kind="arguments")
        result = await self._session.call_tool(self._server_name, cast("dict[str, Any]", given))
        text = _text(result)
        if _either(result, "is_error", "isError"):
            raise ToolError(text or "the tool failed")
        return text


async def mcp_tools(session: MCPSession, *, prefix: str = "") -> list[MCPTool]:
    """The tools of an MCP server, ready for ``chat.run``; all pages of them.

    Args:
        session: An open session. It has to stay open while the tools are used, and be left in the task that entered it.
        prefix: Stands before each name, to tell the tools of several servers apart.

    Returns:
        The tools. What the API does not take in a name is ``_`` in it; of two that become one, the second ends in
        ``_2``.

    Raises:
        ValueError: The server lists for ever.
        Exception: What the session raises.
    """
    found: list[MCPTool] = []
    names: set[str] = set()
    seen: set[str] = set()
    cursor: str | None = None
    while True:
        page = await session.list_tools() if cursor is None else await _list_more(session, cursor)
        for tool in page.tools:
            name = _free_name(f"{prefix}{tool.name}", names)
            names.add(name)
            schema = _either(tool, "input_schema", "inputSchema")
            found.append(MCPTool(session, tool.name, name, tool.description, schema or {"type": "object"}))
        cursor = _either(page, "next_cursor", "nextCursor")
        if not cursor:
            return found
        if cursor in seen:
            raise ValueError(f"the MCP server gives the same page of tools again and again (cursor {cursor!r})")
        seen.add(cursor)
        if max(len(found), len(seen)) > _MAX_TOOLS:
            raise ValueError(f"the MCP server lists for ever: {len(found)} tools, {len(seen)} pages, and there is more")


def _free_name(wanted: str, taken: Collection[str]) -> str:
    """A name that the API takes, and no other tool has: what is replaced, or cut off, may be what told two apart."""
    whole = _NO_NAME.sub("_", wanted)
    endings = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    return next(name for end in endings if (name := whole[: _MAX_NAME - len(end)] + end) not in taken)


async def _list_more(session: Any, cursor: str) -> Any:
    """A further page. A ``ClientSession`` of 2.x takes the cursor inside an object, everything else as it is."""
    if "params" in (known := inspect.signature(session.list_tools).parameters) and "cursor" not in known:
        # Whoever has such a session has loaded its types.
        return await session.list_tools(params=sys.modules["mcp.types"].PaginatedRequestParams(cursor=cursor))
    return await session.list_tools(cursor=cursor)


def _either(thing: Any, new: str, old: str) -> Any:
    """A field under the name that it has in 2.x or, where it has none, in 1.x."""
    return getattr(thing, new) if hasattr(thing, new) else getattr(thing, old, None)


def _text(result: Any) -> str:
    texts = [_block_text(block) for block in getattr(result, "content", None) or ()]
    if texts:
        return "\n".join(texts)
    structured = _either(result, "structured_content", "structuredContent")
    return "" if structured is None else json.dumps(structured, ensure_ascii=False, separators=(",", ":"))


def _block_text(block: Any) -> str:
    """A block of a result as text: a model is told of what it cannot be given."""
    if block.type == "text":
        return str(block.text)
    if block.type == "resource" and hasattr(block.resource, "text"):
        return str(block.resource.text)
    if block.type == "resource_link":
        return f"[{block.name}: {block.uri}]"
    kind = _either(getattr(block, "resource", block), "mime_type", "mimeType")
    return f"[{block.type} of type {kind}, which cannot be shown]"
