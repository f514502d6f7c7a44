"""A pytest plugin: `pytest_plugins = ["friendli_async.testing.fixtures"]` in a conftest.py. It needs pytest-asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from friendli_async import AsyncFriendli
from friendli_async.testing.server import FriendliServer


@pytest_asyncio.fixture
async def friendli_server() -> AsyncIterator[FriendliServer]:
    """Give a fresh embedded server on a free loopback port, stopped after the test."""
    async with FriendliServer() as server:
        yield server


@pytest_asyncio.fixture
async def friendli_client(friendli_server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    """Give a client of that server, for all three deployments, closed after the test."""
    url = friendli_server.url
    async with AsyncFriendli(friendli_server.token, server_url=url, container_url=url) as client:
        yield client
