"""Tools of an MCP server, for ``chat.run``.

    from mcp import Client, StdioServerParameters
    from friendli_async.integrations.mcp import mcp_tools

    async with Client(StdioServerParameters(command="uvx", args=["some-server"])) as session:
        run = client.serverless.chat.run(model="...", messages=[...], tools=await mcp_tools(session))

Sessions are duck-typed, so those of the SDK's 1.x and 2.x both work, and the SDK is not imported here.
``pip install 'friendli_async[mcp]'`` installs it.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol, cast, runtime_checkable

from friendli_async._json import arguments_json, decode_json, encode_json, without_surrogates
from friendli_async.errors import ToolError

__all__ = ["MCPSession", "MCPTool", "mcp_tools"]

_INVALID_CHARACTER: Final = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME: Final = 64
_MAX_TOOLS: Final = 1000


@runtime_checkable
class MCPSession(Protocol):
    """The methods required of a session; ``ClientSession`` and ``Client`` of the SDK have them."""

    async def list_tools(self) -> Any:
        """Lists the tools, page by page."""
        ...

    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Calls a tool."""
        ...


class MCPTool:
    """A tool of an MCP server.

    Attributes:
        name: Name by which the model calls it.
        description: The server's description.
        parameters: JSON schema of the arguments.
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
        """Calls the tool. Cancellation is passed on to the server.

        Args:
            arguments: A JSON object as text; "" and "null" are an empty one. The server validates it.

        Returns:
            The text of the result, or its structured content as JSON if it has none. Images and audio become
            placeholders.

        Raises:
            ToolError: The server reports an error, or the arguments are not a JSON object.
            Exception: Whatever the session raises.
        """
        try:
            given: object = without_surrogates(decode_json(arguments_json(arguments)))
        except (ValueError, RecursionError) as error:
            raise ToolError(f"the arguments are not valid JSON: {error}", kind="arguments") from None
        if not isinstance(given, dict):
            raise ToolError("the arguments are not a JSON object", kind="arguments")
        result = await self._session.call_tool(self._server_name, cast("dict[str, Any]", given))
        text = _text(result)
        if _either(result, "is_error", "isError"):
            raise ToolError(text or "the tool failed")
        return text


async def mcp_tools(session: MCPSession, *, prefix: str = "") -> list[MCPTool]:
    """Returns all tools of an MCP server, ready for ``chat.run``.

    Args:
        session: An open session. Must stay open while the tools are in use, and be exited by the task that entered it.
        prefix: Prepended to each name, to distinguish the tools of several servers.

    Returns:
        The tools. Characters that the API does not allow in a name become ``_``; a duplicate gets a suffix, ``_2``,
        ``_3``, ...

    Raises:
        TypeError: ``prefix`` is not text.
        ValueError: Another page follows after more than 1000 tools or pages.
        Exception: Whatever the session raises.
    """
    if not isinstance(cast("object", prefix), str):
        raise TypeError(f"prefix must be text, not {prefix!r}")
    found: list[MCPTool] = []
    names: set[str] = set()
    cursor: str | None = None
    for pages in itertools.count(1):
        page = await session.list_tools() if cursor is None else await _list_more(session, cursor)
        for tool in page.tools:
            name = _free_name(f"{prefix}{tool.name}", names)
            names.add(name)
            schema = _either(tool, "input_schema", "inputSchema")
            found.append(MCPTool(session, tool.name, name, tool.description, schema or {"type": "object"}))
        cursor = _either(page, "next_cursor", "nextCursor")
        if not cursor:
            break
        if max(len(found), pages) > _MAX_TOOLS:
            raise ValueError(f"the MCP server's list of tools does not end: {len(found)} tools in {pages} pages so far")
    return found


def _free_name(wanted: str, taken: Collection[str]) -> str:
    """Returns a valid, unused name: replacing and truncating may have removed what distinguished two names."""
    valid = _INVALID_CHARACTER.sub("_", wanted)
    suffixes = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    return next(name for suffix in suffixes if (name := valid[: _MAX_NAME - len(suffix)] + suffix) not in taken)


async def _list_more(session: Any, cursor: str) -> Any:
    """Fetches a further page. Only ``ClientSession`` of 2.x takes the cursor wrapped in an object."""
    parameters = inspect.signature(session.list_tools).parameters
    if "params" in parameters and "cursor" not in parameters:
        # mcp.types is loaded: such a session cannot exist without it.
        return await session.list_tools(params=sys.modules["mcp.types"].PaginatedRequestParams(cursor=cursor))
    return await session.list_tools(cursor=cursor)


def _either(value: Any, new: str, old: str) -> Any:
    """Returns a field by its name in 2.x, or by its name in 1.x if it has no such field."""
    return getattr(value, new) if hasattr(value, new) else getattr(value, old, None)


def _text(result: Any) -> str:
    texts = [_block_text(block) for block in getattr(result, "content", None) or ()]
    if texts:
        return "\n".join(texts)
    structured = _either(result, "structured_content", "structuredContent")
    return "" if structured is None else encode_json(structured).decode()


def _block_text(block: Any) -> str:
    """Returns the text of a content block, or a placeholder for what cannot be passed to the model."""
    if block.type == "text":
        return str(block.text)
    if block.type == "resource" and hasattr(block.resource, "text"):
        return str(block.resource.text)
    if block.type == "resource_link":
        return f"[{block.name}: {block.uri}]"
    kind = _either(getattr(block, "resource", block), "mime_type", "mimeType")
    return f"[{block.type} of type {kind}, which cannot be shown]"
