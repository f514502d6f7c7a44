"""The event loop of a test: a manual clock, iterations, and eager tasks."""

import asyncio
import sys
from collections.abc import Callable
from typing import Final

import pytest

_HELD_SECONDS: Final = 60.0
"""How long the clock stays stopped. Then it runs again, so that the timeouts of a hanging test fire."""


class Clock:
    """A replacement for a loop's `time`, which advances only by `advance`.

    Every timeout and delay of the library, aiohttp and the embedded server is a timer of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real: Callable[[], float] = loop.time
        self._shown = self._real()
        self._runs_from = self._shown + _HELD_SECONDS

    def __call__(self) -> float:
        return self._shown + max(0.0, self._real() - self._runs_from)

    def advance(self, seconds: float) -> None:
        """Advances the clock: timers that are due fire in the next iteration of the loop."""
        self._shown += seconds


def begin_tasks_eagerly(loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Makes a loop, by default the running one, begin each task inside the code that creates it."""
    loop = loop or asyncio.get_running_loop()
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks are new in Python 3.12")
    elif not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop 0.23 cannot make eager tasks on Python 3.13")
    else:
        loop.set_task_factory(asyncio.eager_task_factory)


async def run_loop_iterations(count: int = 10) -> None:
    """Runs iterations of the loop without advancing the clock."""
    for _ in range(count):
        await asyncio.sleep(0)


async def run_until(condition: Callable[[], bool]) -> None:
    """Runs the loop until the condition holds or a thousand iterations have passed, which fire no timer of seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Runs the loop until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await run_loop_iterations(1)
