"""What closes a pool when nobody else does: its loop's end, or the end of the client that nobody holds any more."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress

__all__ = ["Guard", "close_soon", "guarded"]

Close = Callable[[], Coroutine[None, None, None]]
Guard = AsyncGenerator[None, None]

_closing: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive


def guarded(close: Close) -> Guard:
    """Returns a generator that calls ``close`` when it is closed, begun in the running loop.

    asyncio closes the generators that were begun in a loop when the loop shuts down, and waits for them. What it closes
    does not know it, so no cycle delays that. A loop that minds no generators (nest_asyncio's) would have the garbage
    collector end it, which cannot wait: there it does nothing.
    """
    guard = _close_at_end(close) if sys.get_asyncgen_hooks().finalizer is not None else _do_nothing()
    with suppress(StopIteration):  # how an awaitable returns
        guard.__anext__().send(None)
    return guard


def close_soon(close: Close, guard: Guard) -> None:
    """Closes in the running loop, and then ends the guard; nobody need wait for it.

    The guard is held until then: if the loop shuts down in between, it is found and waited for.
    """

    def ended(task: asyncio.Task[None]) -> None:
        _closing.discard(task)
        with suppress(StopIteration, RuntimeError):  # there is nothing left to wait for; or its loop closes it just now
            guard.aclose().send(None)

    task = asyncio.get_running_loop().create_task(close())
    _closing.add(task)
    task.add_done_callback(ended)


async def _close_at_end(close: Close) -> Guard:
    try:
        yield
    finally:
        await close()


async def _do_nothing() -> Guard:
    yield
