"""Waiting for a condition that other tasks of the event loop make true."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

__all__ = ["Signal"]


class Signal:
    """Wakes all waiters whenever something changed; each looks whether its condition holds now.

    Waiters may run in other event loops and threads than the one that notifies.
    """

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all waiters."""
        for waiter in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # its loop was closed under it: nobody waits any more
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    async def until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until a condition holds.

        Args:
            condition: Looked at now and after each `notify`.
            timeout: How long to wait at most, in seconds.

        Raises:
            TimeoutError: The condition did not hold in time.
        """
        async with asyncio.timeout(timeout):
            while True:
                waiter = asyncio.get_running_loop().create_future()
                # Before the look, so that a change between the look and the wait is not missed.
                self._waiters.add(waiter)
                try:
                    if condition():
                        return
                    await waiter
                finally:
                    self._waiters.discard(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
