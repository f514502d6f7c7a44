"""A background event loop in a daemon thread, for blocking calls: one client serves them and the caller's own loops.

It is started by the first blocking call, shared by all of them, and stopped at interpreter exit.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["end", "run"]

T = TypeVar("T")

_GRACE: Final = 5.0  # seconds to wait for the loop at interpreter exit


class _Background:
    """The loop and its thread."""

    def __init__(self) -> None:
        # With a factory, it does not become the current loop of the caller's thread.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = self._runner.get_loop()
        self.thread = threading.Thread(target=self._main, name="friendli-async", daemon=True)
        self.thread.start()

    def _main(self) -> None:
        with self._runner:  # on exit, cancels the calls in flight and closes the loop's connections
            self.loop.run_forever()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_GRACE)


_lock = threading.RLock()  # reentrant: the garbage collector may close a stream while it is held
_background: _Background | None = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the background loop, in the caller's context, and waits for it.

    Interrupting the caller (Ctrl-C) cancels the coroutine.

    Raises:
        RuntimeError: Called from the background loop itself, where it would deadlock.
    """
    global _background  # noqa: PLW0603  # one loop for all models: a second one would need its own connection pool
    with _lock:
        background = _background = _background or _Background()
    if threading.current_thread() is background.thread:
        work.close()
        raise RuntimeError("blocking call in the event loop that runs blocking calls: await the async method instead")
    future = asyncio.run_coroutine_threadsafe(work, background.loop)
    try:
        return future.result()
    finally:
        future.cancel()  # a no-op once it is done


def end(work: Coroutine[Any, Any, object]) -> None:
    """Runs cleanup; may be called by the garbage collector, in the loop's own thread, or at interpreter exit."""
    background = _background
    if background is None or background.loop.is_closed():
        work.close()
    elif threading.current_thread() is background.thread:
        background.loop.create_task(work)  # safe without a reference: nothing it awaits can be collected first
    else:
        run(work)


@atexit.register
def _end() -> None:
    if _background is not None:
        _background.end()


def _after_fork() -> None:
    global _background, _lock  # the thread exists only in the parent, and may have held the lock
    _background, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
