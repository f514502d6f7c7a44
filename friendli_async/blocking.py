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
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from friendli_async._core.loops import is_current, wait_done, wake

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
    waiting = _wait(work)
    try:
        future = asyncio.run_coroutine_threadsafe(waiting, _usable().loop)
    except RuntimeError:
        waiting.close()  # these will not be awaited, and so would warn
        if isinstance(work, Coroutine):
            work.close()
        raise
    try:
        return _result(future)
    finally:
        future.cancel()  # a no-op once it is done
        del future  # it has the error, whose traceback has this frame


def iterate(source: AsyncIterable[T]) -> Generator[T]:
    """Iterates over a stream, a view of one, a run, or any other async iterable, in the background loop.

    All steps are taken in one task, in the caller's context at the first of them. If a timeout that an async generator
    has entered expires between two steps, or its task group fails, the generator is resumed then, as by a cancellation;
    the next step raises its error, or returns what it yields.

    Leaving the loop closes it: at once if nothing else holds the iterator, else with its ``close()``. If the garbage
    collector finds the iterator, it is closed soon afterwards.

    Args:
        source: What ``async for`` takes.

    Yields:
        Its items.
    """
    steps = _Steps(aiter(source))
    try:
        while (item := steps.next()) is not _END:
            yield cast("T", item)
    except BaseException:  # also GeneratorExit: the loop was left
        try:
            _end(steps.close)
        except BaseException:  # maybe raised from outside, before the loop was asked to close it
            _end(steps.close, must_wait=False)
            raise
        raise


async def _wait(work: Awaitable[T]) -> T:
    return await work


def _result(future: Future[T]) -> T:
    """Waits for a future; an exception that is raised in the waiting thread ends only the wait."""
    pending = threading.Lock()  # an Event would take a fifth of a call
    pending.acquire()
    try:
        future.add_done_callback(lambda _: pending.release())
        while not pending.acquire(timeout=_INTERRUPT_SECONDS):
            pass
        return future.result()
    finally:
        del future  # it has the error, whose traceback has this frame


class _Steps:
    """An iteration in the background loop, which takes a step when it is asked to.

    One task takes all of them, as ``async for`` does: what an async generator has entered before a ``yield``, such as
    ``asyncio.timeout``, a task group or a context variable, is left in the same task and context.
    """

    def __init__(self, iterator: AsyncIterator[object]) -> None:
        self._iterator: Any = iterator
        self._task: asyncio.Task[None] | None = None
        self._step: Future[object] | None = None
        """The step to take, if one is asked for."""
        self._asked: asyncio.Future[None] | None = None
        """What the task waits for between two steps."""
        self._early: list[object] = []
        """The next item, or the end, if the generator has come to it between two steps."""
        self._is_closing = False

    def next(self) -> object:
        step: Future[object] = Future()
        try:
            _usable().loop.call_soon_threadsafe(self._ask, step)
            return _result(step)
        finally:
            step.cancel()  # a no-op once it is done
            del step  # it has the error, whose traceback has this frame

    def _ask(self, step: Future[object]) -> None:
        loop, task = asyncio.get_running_loop(), self._task
        if task is None:
            self._step, self._task = step, loop.create_task(self._take())
            _iterating.add(self._task)
            self._task.add_done_callback(_iterating.discard)
        elif task.get_loop() is not loop:
            step.set_exception(RuntimeError("an iteration that was begun before a fork goes on only in the parent"))
        elif task.done():  # between two steps: cancelled, or with an error, which `close` raises
            step.cancel()
        else:
            self._step = step
            wake(self._asked)

    async def _take(self) -> None:
        item: object = None
        try:
            try:
                while step := self._step or await self._next_step():
                    item = self._early.pop() if self._early else await _next_item(self._iterator)
                    self._step = None
                    if not step.set_running_or_notify_cancel():  # its caller was interrupted
                        return
                    step.set_result(item)
                    if item is _END:
                        return
                    item = None
            finally:
                if item is not _END and hasattr(self._iterator, "aclose") and is_current(self._task):
                    await self._iterator.aclose()
        except asyncio.CancelledError:
            if self._step is not None:
                self._step.cancel()
            raise
        except BaseException as error:
            step, self._step = self._step, None  # else the error would be in a cycle with this frame
            if step is None or not step.set_running_or_notify_cancel():
                raise  # out of `close`, or of the next step
            step.set_exception(error)
            del step  # as above

    async def _next_step(self) -> Future[object] | None:
        while self._step is None and not self._is_closing:
            self._asked = asyncio.get_running_loop().create_future()
            try:
                await self._asked
            except asyncio.CancelledError as error:
                await self._throw(error)
        return self._step

    async def _throw(self, error: asyncio.CancelledError) -> None:
        """Raises a cancellation in an async generator, which may have caused it, by a task group or a timeout.

        Raises:
            BaseException: What ends the generator; the cancellation if it comes from elsewhere, also if it is handled.
        """
        try:
            if not hasattr(self._iterator, "athrow"):
                raise error
            try:
                self._early = [await self._iterator.athrow(error)]
            except StopAsyncIteration:
                self._early = [_END]
            assert self._task is not None
            if self._task.cancelling():
                raise error
        finally:
            del error  # its traceback has this frame

    async def close(self) -> None:
        task = self._task
        if task is None or task.get_loop() is not asyncio.get_running_loop():  # not begun, or begun before a fork
            return
        if self._step is None:  # it waits for a step, or the iterator cleans up
            wake(self._asked)
        elif not self._is_closing:  # it was interrupted
            task.cancel()
        self._is_closing = True
        await wait_done((task,))
        self._task = None  # it has its error, whose traceback has frames with this object
        try:
            with suppress(asyncio.CancelledError):
                task.result()
        finally:
            del task  # as above


async def _next_item(iterator: AsyncIterator[object]) -> object:
    # Without a default for anext(), with which CPython 3.11 crashes if __anext__ is no coroutine and raises an error.
    try:
        return await anext(iterator)
    except StopAsyncIteration:
        return _END


def _end(close: Callable[[], Coroutine[Any, Any, None]], *, must_wait: bool = True) -> None:
    """Closes an iterator; may be called by the garbage collector, in the loop's own thread, or at interpreter exit."""
    background = _background
    if background is None or background.is_ending:
        return  # the loop closes what is open when it ends
    if threading.current_thread() is background.thread:
        background.loop.create_task(close())  # safe without a reference: nothing it awaits is collected first
    elif not must_wait or threading.get_ident() == _collecting:  # that thread may hold a lock that the loop needs
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
_iterating: Final[set[asyncio.Task[None]]] = set()
"""The tasks of iterations: a loop does not keep its tasks, and the garbage collector would end both at once."""
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


def _usable() -> _Background:
    """Returns what runs the loop, if this thread may wait for a call in it."""
    background = _started()
    if threading.current_thread() is background.thread:
        raise RuntimeError("blocking call in the event loop that runs blocking calls: await the async method instead")
    if background.is_ending:
        raise RuntimeError("blocking call at interpreter exit: its event loop has ended")
    return background


@atexit.register
def _stop() -> None:
    if _background is not None:
        _background.end()


def _after_fork() -> None:
    global _background, _lock  # the thread exists only in the parent, and may have held the lock
    _background, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
