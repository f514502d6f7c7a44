"""One event loop in a thread, for blocking calls: the same client serves them and the caller's own loops.

It is started by the first blocking call, shared by all of them, and ended with the interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

__all__ = ["end", "run"]

T = TypeVar("T")

_GRACE: Final = 5.0  # seconds for the loop to end with the interpreter


class _Background:
    """The loop, its thread, and the way to end it."""

    def __init__(self) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self.thread = threading.Thread(target=self._main, args=(started,), name="friendli-async", daemon=True)
        self.thread.start()
        self.loop, self._stop = started.result()

    @staticmethod
    def _main(started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        async def serve() -> None:
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

        asyncio.run(serve())  # which ends what is under way, and the connections with their loop

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(_GRACE)


_lock = threading.RLock()  # the collector may end a stream while it is held
_background: _Background | None = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the background loop, in the caller's context, and waits for it.

    Interrupting the caller (Ctrl-C) cancels it.

    Raises:
        RuntimeError: Called in the background loop itself, which would wait for itself.
    """
    global _background  # noqa: PLW0603  # one loop for all models; a second one would be a second set of connections
    with _lock:
        background = _background = _background or _Background()
    if threading.current_thread() is background.thread:
        work.close()
        raise RuntimeError("a blocking call in the loop that serves blocking calls: await the async method instead")
    future = asyncio.run_coroutine_threadsafe(work, background.loop)
    try:
        return future.result()
    finally:
        future.cancel()  # nothing, once it is done


def end(work: Coroutine[Any, Any, object]) -> None:
    """The same for what ends something: it is called by the collector, too, maybe in the loop's thread or at exit."""
    background = _background
    if background is None or background.loop.is_closed():
        work.close()
    elif threading.current_thread() is background.thread:
        background.loop.create_task(work)  # it awaits nothing that could be collected before it ends
    else:
        run(work)


@atexit.register
def _end() -> None:
    if _background is not None:
        _background.end()


def _after_fork() -> None:
    global _background, _lock  # the thread has stayed with the parent, maybe holding the lock
    _background, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
