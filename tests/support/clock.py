"""The clock of the event loop, held: time passes when the test says so, not while the machine is busy."""

import asyncio
from collections.abc import Callable
from typing import Final

_HELD_SECONDS: Final = 60.0
"""So long at most is the clock held. Time then runs again, and the backstops of a test that hangs can end it."""


class Clock:
    """What a loop's `time` is replaced by: it stands still, and moves by `leap`.

    Every time limit and pause of the library, of aiohttp and of the embedded server is a timer of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real: Callable[[], float] = loop.time
        self._shown = self._real()
        self._runs_from = self._shown + _HELD_SECONDS

    def __call__(self) -> float:
        return self._shown + max(0.0, self._real() - self._runs_from)

    def leap(self, seconds: float) -> None:
        """Lets that much time pass at once: the timers that are due fire in the next turn of the loop."""
        self._shown += seconds


async def turns(count: int = 10) -> None:
    """Lets the loop turn, without letting time pass: what is ready to happen happens."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Turns the loop until it is so."""
    async with asyncio.timeout(30):
        while not condition():
            await turns(1)
