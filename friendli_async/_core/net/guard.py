"""Closes a pool that nobody else closes: when its loop shuts down, or when the last reference to its client goes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress

Close = Callable[[], Coroutine[None, None, None]]
Guard = AsyncGenerator[None, None]

_closing_tasks: set[asyncio.Task[None]] = set()  # the loop holds tasks only weakly


def start_guard(close: Close) -> Guard:
    """Returns an async generator, started in the running loop, that calls ``close`` when it is closed.

    When a loop shuts down, asyncio closes the async generators that were started in it, and waits for them. The objects
    that ``close`` ends hold no reference to the generator, so no cycle delays that. A loop without async generator
    hooks (nest_asyncio's) would leave it to the garbage collector, which cannot wait: there the generator is not
    started, and closing it does nothing.
    """
    guard = _close_at_end(close)
    if sys.get_asyncgen_hooks().finalizer is not None:
        with suppress(StopIteration):  # how send() reports that a coroutine returned
            guard.__anext__().send(None)
    return guard


def close_soon(close: Close, guard: Guard) -> None:
    """Closes in the running loop, then ends the guard. Nobody has to wait for it.

    The guard is kept until then: if the loop shuts down meanwhile, it finds the guard and waits for it.
    """

    def ended(task: asyncio.Task[None]) -> None:
        _closing_tasks.discard(task)
        with suppress(StopIteration, RuntimeError):  # the guard has ended, or its loop is closing it
            guard.aclose().send(None)

    task = asyncio.get_running_loop().create_task(close())
    _closing_tasks.add(task)
    task.add_done_callback(ended)


async def _close_at_end(close: Close) -> Guard:
    try:
        yield
    finally:
        await close()
