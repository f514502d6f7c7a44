"""Waiting for a condition that other tasks make true."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

__all__ = ["Signal"]


class Signal:
    """Wakes all waiters on every change; each one then checks its condition.

    Waiters may run in other event loops and threads than the notifier.
    """

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all waiters."""
        for waiter in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody is waiting any more
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    async def until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until a condition is true.

        Args:
            condition: Checked now and after each `notify`.
            timeout: Maximum time to wait, in seconds.

        Raises:
            TimeoutError: The condition did not become true in time.
        """
        async with asyncio.timeout(timeout):
            while True:
                waiter = asyncio.get_running_loop().create_future()
                # Registered before the check, so that a change between check and wait is not missed.
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
