"""What one event loop has of a client: a session, its places, the exchanges under way."""

from __future__ import annotations

import asyncio
import os
import ssl as ssl_module
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from friendli_async._core.net.dialing import Connector, PooledProtocol, keepalive_socket
from friendli_async._core.net.posting import CAN_POST, NO_TIMEOUT, Poster
from friendli_async._core.net.slots import Slots
from friendli_async.errors import StreamInterruptedError
from friendli_async.replies import LoopGauges

if TYPE_CHECKING:
    from friendli_async._core.net.exchange import AiohttpExchange

__all__ = ["Pool"]

_abandoned: Final[list[object]] = []  # what a parent process had: kept, so that nothing finalizes it


class Pool:
    """The part of a client that belongs to the running loop.

    Args:
        session: The user's own, which is never closed; None makes one.
        ssl: As for aiohttp.
        max_connections: How many places there are.
        exchange_ended: Called when an exchange has ended.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession | None,
        ssl: ssl_module.SSLContext | bool,
        max_connections: int,
        exchange_ended: Callable[[], None],
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.slots: Slots = Slots(max_connections)
        self.owned: bool = session is None
        self.alive: set[PooledProtocol] = set()
        self.session: aiohttp.ClientSession = self._own_session() if session is None else session
        self.poster: Poster | None = Poster(self.session, ssl) if self.owned and CAN_POST else None
        self.exchanges: set[AiohttpExchange] = set()
        self.draining: deque[AiohttpExchange] = deque(maxlen=64)  # the latest: older ones have ended, or will not
        self.exchange_ended = exchange_ended
        self._closed: asyncio.Future[None] | None = None

    def _own_session(self) -> aiohttp.ClientSession:
        # No limit of aiohttp's: the places are ours, in order, and with a time limit of their own.
        connector = Connector(limit=0, socket_factory=keepalive_socket)
        factory: Any = partial(PooledProtocol, self.loop, self.alive)
        connector._factory = factory  # pyright: ignore[reportPrivateUsage]  # there is no public way
        # Not decompressed by aiohttp: ``compression`` does it in steps, so that our size limits hold.
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=NO_TIMEOUT, auto_decompress=False
        )

    def gauges(self) -> LoopGauges:
        """Its connections."""
        return LoopGauges(
            in_use=self.slots.in_use,
            idle=sum(protocol.idle for protocol in tuple(self.alive)),
            waiting=self.slots.waiting,
            open_streams=sum(exchange.streaming for exchange in tuple(self.exchanges)),
        )

    def abort(self, reason: str) -> None:
        """Ends every exchange under way."""
        for exchange in tuple(self.exchanges):
            exchange.abort_with(StreamInterruptedError(reason))

    async def close(self, reason: str) -> None:
        """Ends everything under way, waking whoever waits, and closes the session if it is ours. Once is enough."""
        if self._closed is not None:
            await asyncio.wait([self._closed])
            return
        self._closed = self.loop.create_future()
        try:
            self.slots.close()
            self.abort(reason)
            if self.owned:
                await self.session.close()
                await asyncio.sleep(0)  # lets the loop run the closed sockets' last callbacks
        finally:
            self._closed.set_result(None)

    def discard(self) -> None:
        """Where the loop runs no more, and so can close nothing: has aiohttp's session not complain of that."""
        if self.owned and not self.loop.is_running():
            self.session.detach()

    def abandon(self, guard: object) -> None:
        """In a forked child: lets go of the parent's sockets without a word on the wire, which is the parent's."""
        for protocol in self.alive:
            transport = protocol.transport
            connection = None if transport is None else transport.get_extra_info("socket")
            if connection is not None and (number := connection.fileno()) >= 0:
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, number)  # not closed: the number would be another file's, and closed once more
                os.close(nowhere)
        _abandoned.append((self, guard))
