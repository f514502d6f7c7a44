"""Places for connections, given first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque

from friendli_async.errors import ConfigurationError

__all__ = ["Slots"]


class Slots:
    """A counted set of places in one event loop.

    Args:
        limit: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> bool:
        """Whether ``acquire`` would not wait."""
        return self.in_use < self.limit and not self._waiting

    async def acquire(self) -> None:
        """Takes a place, or waits for one.

        Raises:
            ConfigurationError: The client is closed, or was closed meanwhile.
        """
        if self._closed:
            raise ConfigurationError("the client is closed")
        if self.free:
            self.in_use += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.release()  # it was handed over in the instant of the cancellation: hand it on
            raise

    def release(self) -> None:
        """Gives a place back; the one who has waited longest gets it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.in_use -= 1

    def close(self) -> None:
        """Turns everybody away who waits."""
        self._closed = True
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(ConfigurationError("the client was closed while the call waited for a connection"))
