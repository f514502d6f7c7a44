"""Requests to the embedded server without this library's client."""

import asyncio
import json
from typing import Any, Final

import aiohttp

from friendli_async.testing import FriendliServer

CHAT = "/serverless/v1/chat/completions"
TOOLS = "/serverless/tools/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello there"}]}
AUTH = {"Authorization": "Bearer test-token"}


BUILT_IN: Final[list[dict[str, Any]]] = [
    {"type": "math:calculator"},
    {"type": "math:statistics"},
    {"type": "math:calendar"},
    {"type": "web:search"},
    {"type": "web:url"},
    {"type": "code:python-interpreter"},
    {"type": "linkup:search"},
    {"type": "file:text", "files": ["f1", "f2"]},
]


def function(name: str = "f", **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


async def post(session: aiohttp.ClientSession, path: str = CHAT, **options: Any) -> tuple[int, bytes]:
    async with session.post(path, json={**BODY, **options}) as response:
        return response.status, await response.read()


class RawClient:
    """A client that sends a request and exposes the raw streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, server: FriendliServer) -> "RawClient":
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host.strip("[]"), int(port)))

    def send(self, body: bytes = json.dumps(BODY).encode(), *, path: str = CHAT, headers: str = "") -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer test-token\r\n{headers}"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    def abort(self) -> None:
        self.writer.transport.abort()
