"""Waiting for a condition that other tasks make true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from friendli_async._core.loops import call_in_loop, wake


class Signal:
    """Wakes all waiters on every change; each one then checks its condition.

    Waiters may run in other event loops and threads than the notifier.
    """

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all waiters."""
        for waiter in tuple(self._waiters):
            call_in_loop(waiter.get_loop(), wake, waiter)

    async def until(self, condition: Callable[[], bool], timeout: float, state: Callable[[], str]) -> None:
        """Wait until a condition is true, which is checked now and after each `notify`.

        Raises:
            TimeoutError: It was not after `timeout` seconds. The message contains what `state` returns.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._until(condition)
        except TimeoutError:
            raise TimeoutError(f"waited {timeout:g} s; {state()}") from None

    async def _until(self, condition: Callable[[], bool]) -> None:
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
