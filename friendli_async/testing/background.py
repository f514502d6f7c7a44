"""Runs an asynchronous context manager in a thread of its own, with its own event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager

__all__ = ["BackgroundLoop"]


class BackgroundLoop:
    """Keeps a context entered in another thread.

    Args:
        context: What to enter there, once.
    """

    def __init__(self, context: AbstractAsyncContextManager[object]) -> None:
        self._context = context
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="friendli-testing", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until the context is entered.

        Raises:
            Exception: Whatever entering it raises.
        """
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """Leave the context and wait for the thread to end."""
        loop, stopped = self._ready.result()
        loop.call_soon_threadsafe(stopped.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._stay())

    async def _stay(self) -> None:
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
