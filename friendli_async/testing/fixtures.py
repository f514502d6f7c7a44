"""A pytest plugin: `pytest_plugins = ["friendli_async.testing.fixtures"]` in a conftest.py.

`friendli_server` works in all tests, also synchronous ones (Starlette's `TestClient`, `asyncio.run`).
`friendli_client` is for coroutines: it needs pytest-asyncio, or anyio's plugin if pytest-asyncio is not installed.

A test that leaves enqueued replies unused, or whose reply functions raise, gets an error at its end that lists them.
`friendli_server.clear_replies()` discards them for one test; the ini option `friendli_check_replies = false` disables
the check for all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import pytest

from friendli_async import AsyncFriendli
from friendli_async.testing.server import FriendliServer

__all__ = ["friendli_client", "friendli_server", "pytest_addoption"]

_CHECK: Final = "friendli_check_replies"


def _async_fixture() -> Callable[..., Any]:
    try:
        import pytest_asyncio
    except ImportError:
        return pytest.fixture
    return pytest_asyncio.fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option. Called by pytest.

    Args:
        parser: Where to add it.
    """
    parser.addini(
        _CHECK, "report replies of friendli_server that are unused or raised an error", type="bool", default=True
    )


@pytest.fixture
def friendli_server(pytestconfig: pytest.Config) -> Iterator[FriendliServer]:
    """Return a fresh embedded server on a free loopback port, stopped after the test.

    It runs in a separate thread, so that it answers while the test blocks; a client may receive several writes at once.
    Fails after the test if enqueued replies are left or reply functions raised, unless the option is off.
    """
    with FriendliServer() as server:
        yield server
    if pytestconfig.getini(_CHECK) and (problems := _problems(server)):
        pytest.fail(
            f"{problems}\nTo allow this, call friendli_server.clear_replies() in the test, or set the ini option"
            f" {_CHECK} = false.",
            pytrace=False,
        )


def _problems(server: FriendliServer) -> str:
    """Returns the lists of unused replies and of exceptions, if any."""
    lines: list[str] = []
    if unused := server.unused_replies:
        lines += [
            f"enqueued replies that were not used: {len(unused)} (requests received: {len(server.requests)}):",
            *(f"  {reply}" for reply in unused),
        ]
    if errors := server.reply_errors:
        lines += ["the reply functions or steps raised:", *(f"  {error}" for error in errors)]
    return "\n".join(lines)


@_async_fixture()
async def friendli_client(friendli_server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    """Return a client of that server, for all three deployments, closed after the test."""
    url = friendli_server.url
    async with AsyncFriendli(friendli_server.token, server_url=url, container_url=url) as client:
        yield client
