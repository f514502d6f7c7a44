"""A JSON and SSE client for the embedded server, independent of this library."""

import json
from typing import Any

import aiohttp


class Client:
    """Makes requests, and parses JSON and events."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def call(self, method: str, path: str, body: object = ..., **query: Any) -> tuple[int, Any]:
        options: dict[str, Any] = {} if body is ... else {"json": body}
        async with self.session.request(method, path, params=query, **options) as response:
            data = await response.read()
        return response.status, json.loads(data) if data else None

    async def call_ok(self, method: str, path: str, body: object = ..., **query: Any) -> Any:
        status, reply = await self.call(method, path, body, **query)
        assert status == 200, reply
        return reply

    async def events(self, path: str, body: dict[str, Any] | aiohttp.FormData) -> list[tuple[str | None, Any]]:
        options: dict[str, Any] = (
            {"data": body} if isinstance(body, aiohttp.FormData) else {"json": {**body, "stream": True}}
        )
        async with self.session.post(path, **options) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            return [_event(block) for block in (await response.text()).split("\n\n") if block]


def _event(block: str) -> tuple[str | None, Any]:
    lines = block.split("\n")
    name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
    data = "\n".join(line.removeprefix("data: ") for line in lines)
    return name, data if data == "[DONE]" else json.loads(data)
