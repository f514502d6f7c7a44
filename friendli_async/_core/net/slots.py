"""Connection slots, handed out first come, first served."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Final

from friendli_async.errors import ConfigurationError

_LONG_WAIT: Final = 5.0
_SECONDS_BETWEEN_LOGS: Final = 60.0
_logger: Final = logging.getLogger("friendli_async")


class Slots:
    """A limited number of connection slots in one event loop.

    Args:
        limit: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.in_use: int = 0
        self._closed = False
        self._next_log = 0.0  # in the loop's time
        # In order of arrival. A waiter that gives up is removed at once, wherever it is.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a slot."""
        return len(self._waiting)

    def take(self) -> bool:
        """Takes a slot if one is free, and returns whether it did.

        While calls wait, none is free: ``release`` passes each slot on to one of them.
        """
        if self._closed or self.in_use >= self.limit:
            return False
        self.in_use += 1
        return True

    async def acquire(self) -> None:
        """Waits for a slot, after ``take`` has failed.

        Raises:
            ConfigurationError: The client is closed, or was closed meanwhile.
        """
        if self._closed:
            raise ConfigurationError("the client is closed", draining=True)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting[waiter] = None
        timer = loop.call_later(_LONG_WAIT, self._log_long_wait, loop)
        try:
            await waiter
        except BaseException:
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release()  # the slot was granted just before the cancellation: pass it on
            raise
        finally:
            timer.cancel()
            del waiter  # it keeps the error that ``close`` sets, whose traceback has this frame: a cycle

    def _log_long_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Logs that calls wait, while they do: by default they wait without a limit, so streams left open hang them."""
        if loop.time() < self._next_log:
            return
        self._next_log = loop.time() + _SECONDS_BETWEEN_LOGS
        message = "calls have waited %g s for a connection: %d of %d in use (max_connections), %d calls waiting"
        _logger.warning(message, _LONG_WAIT, self.in_use, self.limit, self.waiting)

    def release(self) -> None:
        """Gives a slot back, or to the call that has waited longest."""
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)
                return
        self.in_use -= 1

    def close(self) -> None:
        """Raises ConfigurationError in every waiting call."""
        self._closed = True
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(
                    ConfigurationError("the client was closed while the call waited for a connection", draining=True)
                )
