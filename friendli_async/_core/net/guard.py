"""What closes a pool when nobody else does: asyncio finalizes the generators that were begun in a loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

__all__ = ["close_soon", "guarded"]

_closing: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive


def guarded(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """Returns a generator that calls ``close`` when it is closed, begun in the running loop.

    It is closed by the client, by the loop's shutdown, or by asyncio's hook for generators once the client is gone.
    What it closes does not know it, so no cycle delays that.
    """
    guard = _close_at_end(close)
    with suppress(StopIteration):  # how an awaitable returns
        guard.__anext__().send(None)
    return guard


def close_soon(guard: AsyncGenerator[None, None]) -> None:
    """Closes a guard of the running loop, which need not wait for it."""
    task = asyncio.get_running_loop().create_task(guard.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _close_at_end(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await close()
