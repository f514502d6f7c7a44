"""Places for connections, given first come, first served."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from friendli_async.errors import ConfigurationError

__all__ = ["Slots"]


class Slots:
    """A counted set of places in one event loop.

    Args:
        limit: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.in_use: int = 0
        self._closed = False
        # In the order of their coming; whoever gives up is taken out at once, wherever it stands.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    def take(self) -> bool:
        """Takes a place if one is free, and nobody has waited for it."""
        if self._closed or self._waiting or self.in_use >= self.limit:
            return False
        self.in_use += 1
        return True

    async def acquire(self) -> None:
        """Waits for a place, where ``take`` has got none.

        Raises:
            ConfigurationError: The client is closed, or was closed meanwhile.
        """
        if self._closed:
            raise ConfigurationError("the client is closed")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = None
        try:
            await place
        except BaseException:
            self._waiting.pop(place, None)
            if place.done() and not place.cancelled() and place.exception() is None:
                self.release()  # it was handed over in the instant of the cancellation: hand it on
            raise

    def release(self) -> None:
        """Gives a place back; the one who has waited longest gets it."""
        while self._waiting:
            place, _ = self._waiting.popitem(last=False)
            if not place.done() and not place.get_loop().is_closed():
                place.set_result(None)
                return
        self.in_use -= 1

    def close(self) -> None:
        """Turns everybody away who waits."""
        self._closed = True
        while self._waiting:
            place, _ = self._waiting.popitem(last=False)
            if not place.done():
                place.set_exception(ConfigurationError("the client was closed while the call waited for a connection"))
