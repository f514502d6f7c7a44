"""Runs an asynchronous context manager in a separate thread with its own event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager

__all__ = ["BackgroundLoop"]


class BackgroundLoop:
    """Keeps a context manager entered in another thread.

    Args:
        context: The context manager, entered once.
    """

    def __init__(self, context: AbstractAsyncContextManager[object]) -> None:
        self._context = context
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="friendli-testing", daemon=True)

    def start(self) -> None:
        """Start the thread, and wait until the context manager is entered.

        Raises:
            Exception: Entering the context manager failed.
        """
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """Exit the context manager, and wait for the thread to end."""
        loop, stopped = self._ready.result()
        loop.call_soon_threadsafe(stopped.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._hold())

    async def _hold(self) -> None:
        stopped = asyncio.Event()
        try:
            await self._context.__aenter__()
        except Exception as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result((asyncio.get_running_loop(), stopped))
        try:
            await stopped.wait()
        finally:
            await self._context.__aexit__(None, None, None)
