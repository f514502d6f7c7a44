"""What code needs of event loops that may run in any thread, or not at all. Importing it does not load asyncio."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection
    from typing import Any


def running_loop() -> asyncio.AbstractEventLoop:
    """Returns the running loop.

    Raises:
        RuntimeError: There is none: the caller runs in trio, or in no event loop.
    """
    import asyncio  # already loaded if a stream is open; importing the library alone does not need it

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        message = "no running event loop: friendli_async needs one of asyncio's, and does not work with trio"
        raise RuntimeError(message) from None


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Calls a function in a loop: now if the loop is running here, else soon, in its thread; not if it is closed."""
    try:
        here = running_loop() is loop
    except (RuntimeError, ImportError):  # ImportError: Python is shutting down
        here = False
    if here:
        function(*arguments)
        return
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(function, *arguments)


class CallOnce:
    """Calls a function once: when it is called, or when a loop that is closed, now or before its turn, discards it."""

    __slots__ = ("_call",)

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call: Callable[[], object] | None = partial(function, *arguments)

    def __call__(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            self()


def call_once_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Calls a function in the next turn of a loop, which may run in another thread, or once the loop is closed."""
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(CallOnce(function, *arguments))


def is_current(task: asyncio.Task[Any] | None) -> bool:
    """Whether the code runs in this task, and may await. It does not if the task is destroyed, maybe after its loop."""
    import asyncio  # see running_loop

    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop is running
        return False


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Completes a future, unless it is None or done."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def wait_done(futures: Collection[asyncio.Future[Any]], *, any_of_them: bool = False) -> None:
    """Waits until all futures (or any of them) are done: ``asyncio.wait``, but without a cycle.

    Since Python 3.14, the traceback of the CancelledError that ``asyncio.wait`` raises has the waiting task, and the
    task has the error.
    """
    import asyncio  # see running_loop

    return_when = asyncio.FIRST_COMPLETED if any_of_them else asyncio.ALL_COMPLETED
    try:
        await asyncio.wait(futures, return_when=return_when)
    except asyncio.CancelledError as error:
        error.__traceback__ = None
        raise


async def wait_ended(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Waits until all tasks have ended, also those added meanwhile; not for the current task.

    A cancellation of this wait is raised once they have ended.
    """
    import asyncio  # see running_loop

    cancelled = False
    with _shield():
        while pending := [task for task in tasks if not task.done() and task is not asyncio.current_task()]:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError:
                cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def _shield() -> AbstractContextManager[object]:
    """Returns a scope in which anyio does not redeliver a cancellation, which would make a wait a busy loop.

    A scope of anyio surrounds it only if its backend is loaded, which ``import anyio`` alone does not do. Loading it
    here could fail: while a run ends, its connections may have all the files that the process may open.
    """
    if "anyio._backends._asyncio" not in sys.modules:  # there is no public way to tell
        return nullcontext()
    from anyio import CancelScope

    return CancelScope(shield=True)
