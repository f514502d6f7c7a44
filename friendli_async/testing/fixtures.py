"""A pytest plugin: `pytest_plugins = ["friendli_async.testing.fixtures"]` in a conftest.py.

`friendli_server` works in all tests, also synchronous ones (Starlette's `TestClient`, `asyncio.run`).
`friendli_client` is for coroutines: it needs pytest-asyncio, or anyio's plugin if pytest-asyncio is not installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from friendli_async import AsyncFriendli
from friendli_async.testing.server import FriendliServer

__all__ = ["friendli_client", "friendli_server"]


def _async_fixture() -> Callable[..., Any]:
    try:
        import pytest_asyncio
    except ImportError:
        return pytest.fixture
    return pytest_asyncio.fixture


@pytest.fixture
def friendli_server() -> Iterator[FriendliServer]:
    """Return a fresh embedded server on a free loopback port, stopped after the test.

    It runs in a separate thread, so that it answers while the test blocks; a client may receive several writes at once.
    """
    with FriendliServer() as server:
        yield server


@_async_fixture()
async def friendli_client(friendli_server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    """Return a client of that server, for all three deployments, closed after the test."""
    url = friendli_server.url
    async with AsyncFriendli(friendli_server.token, server_url=url, container_url=url) as client:
        yield client
