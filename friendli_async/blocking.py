"""The client in synchronous code: scripts, threads, and workers such as Celery's.

A background event loop in a daemon thread runs all blocking calls of the process, so one client serves them and the
program's own loops. It is started by the first call, and stopped at interpreter exit. After a fork, the child starts
its own.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, cast

from friendli_async._core.loops import wait_done

__all__ = ["iterate", "run"]

T = TypeVar("T")

_GRACE: Final = 5.0  # seconds to wait for the loop at interpreter exit
# An exception that another thread has raised here, such as Dramatiq's time limit, is noticed only between two waits.
_INTERRUPT_SECONDS: Final = 1.0
_END: Final = object()


def run(work: Awaitable[T]) -> T:
    """Runs an awaitable in the background loop, in the caller's context, and waits for its result.

    An exception that is raised in the waiting thread, by a signal (Ctrl-C) or by another thread, cancels it. An event
    loop that runs in the caller's thread is blocked meanwhile: there, await instead.

    Args:
        work: A call of the client, such as ``client.serverless.chat.complete(...)``, or a coroutine of your own.

    Returns:
        What it returns.

    Raises:
        RuntimeError: Called from the background loop itself, where it would deadlock, or after it has ended.
        Exception: Whatever ``work`` raises; a TypeError if it cannot be awaited.
    """
    pending = threading.Lock()  # an Event would take a fifth of a call
    pending.acquire()
    waiting = _wait(work)
    try:
        background = _started()
        if threading.current_thread() is background.thread:
            raise RuntimeError(
                "blocking call in the event loop that runs blocking calls: await the async method instead"
            )
        if background.is_ending:
            raise RuntimeError("blocking call at interpreter exit: its event loop has ended")
        future = asyncio.run_coroutine_threadsafe(waiting, background.loop)
    except RuntimeError:
        waiting.close()  # these will not be awaited, and so would warn
        if isinstance(work, Coroutine):
            work.close()
        raise
    try:
        future.add_done_callback(lambda _: pending.release())
        while not pending.acquire(timeout=_INTERRUPT_SECONDS):
            pass
        return future.result()
    finally:
        future.cancel()  # a no-op once it is done
        del future  # it has the error, whose traceback has this frame


def iterate(source: AsyncIterable[T]) -> Generator[T]:
    """Iterates over a stream, a view of one, a run, or any other async iterable, in the background loop.

    Leaving the loop closes it: at once if nothing else holds the iterator, else with its ``close()``. If the garbage
    collector finds the iterator, it is closed soon afterwards.

    Args:
        source: What ``async for`` takes.

    Yields:
        Its items.
    """
    iterator = aiter(source)
    steps = _Steps(iterator)
    try:
        while (item := run(steps.next())) is not _END:
            yield cast("T", item)
    except BaseException:  # also GeneratorExit: the loop was left
        if hasattr(iterator, "aclose"):
            _end(steps.close)
        raise


async def _wait(work: Awaitable[T]) -> T:
    return await work


class _Steps(Generic[T]):
    """The steps of an iteration, each of which is a task of its own in the background loop."""

    def __init__(self, iterator: AsyncIterator[T]) -> None:
        self._iterator = iterator
        self._running: asyncio.Task[Any] | None = None

    async def next(self) -> T | object:
        self._running = asyncio.current_task()
        try:
            return await anext(self._iterator, _END)
        finally:
            self._running = None

    async def close(self) -> None:
        iterator: Any = self._iterator
        step = self._running
        if step is not None:
            # An async generator, which the iterator may be or wrap, cannot be closed before the step has ended, which
            # may take a cancelled one several turns of the loop.
            if not step.cancelling():  # the caller was interrupted before it waited
                step.cancel()
            await wait_done((step,))
        await iterator.aclose()


def _end(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Closes an iterator; may be called by the garbage collector, in the loop's own thread, or at interpreter exit."""
    background = _background
    if background is None or background.is_ending:
        return  # the loop closes what is open when it ends
    if threading.current_thread() is background.thread:
        background.loop.create_task(close())  # safe without a reference: nothing it awaits is collected first
    elif threading.get_ident() == _collecting:  # do not wait: this thread may hold a lock that the loop needs
        asyncio.run_coroutine_threadsafe(close(), background.loop)
    else:
        run(close())


class _Background:
    """The loop and its thread."""

    def __init__(self) -> None:
        # With a factory, it does not become the current loop of the caller's thread.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.is_ending = False
        self.loop = self._runner.get_loop()
        # Whatever a policy sets: an exit in an eager task would end `run_forever` before the caller has its future.
        self.loop.set_task_factory(None)
        self.thread = threading.Thread(target=self._main, name="friendli-async", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:  # too many threads, or, since Python 3.12, the interpreter exits
            self._runner.close()
            raise

    def _main(self) -> None:
        with self._runner:  # on exit, cancels the calls in flight and closes the loop's connections
            while not self.is_ending:
                with suppress(SystemExit, KeyboardInterrupt):  # raised by one call, whose caller gets it
                    self.loop.run_forever()

    def end(self) -> None:
        self.is_ending = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_GRACE)


_lock = threading.RLock()  # reentrant: the garbage collector may close a stream while it is held
_background: _Background | None = None
_collecting: int | None = None
"""The thread in which the garbage collector runs."""


def _note_collection(phase: str, _: object) -> None:
    global _collecting  # noqa: PLW0603  # the interpreter has one collection at a time
    _collecting = threading.get_ident() if phase == "start" else None


gc.callbacks.append(_note_collection)


def _started() -> _Background:
    global _background  # noqa: PLW0603  # one loop for all calls: a second one would need its own connection pool
    with _lock:
        _background = _background or _Background()
        return _background


@atexit.register
def _stop() -> None:
    if _background is not None:
        _background.end()


def _after_fork() -> None:
    global _background, _lock  # the thread exists only in the parent, and may have held the lock
    _background, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
