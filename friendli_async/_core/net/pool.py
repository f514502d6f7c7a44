"""The per-loop part of a client: a session, its connection slots, the exchanges in flight."""

from __future__ import annotations

import asyncio
import os
import ssl as ssl_module
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from friendli_async._core.held import weak_method
from friendli_async._core.loops import wait_done
from friendli_async._core.net.dialing import Connector, PooledProtocol, keepalive_socket, pooled_protocol
from friendli_async._core.net.posting import CAN_POST, Poster
from friendli_async._core.net.slots import Slots
from friendli_async.errors import StreamInterruptedError
from friendli_async.replies import LoopGauges

if TYPE_CHECKING:
    from friendli_async._core.net.exchange import AiohttpExchange

_abandoned: Final[list[object]] = []  # what a parent process had open: kept, so that nothing finalizes it


class Pool:
    """The part of a client that belongs to the running loop.

    Args:
        session: A session passed in by the user, which is never closed; None creates one.
        ssl: As for aiohttp.
        max_connections: Number of connection slots.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession | None,
        ssl: ssl_module.SSLContext | bool,
        max_connections: int,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.slots: Slots = Slots(max_connections)
        self.owned: bool = session is None
        self.connections: set[PooledProtocol] = set()
        self.session: aiohttp.ClientSession = self._own_session() if session is None else session
        self.poster: Poster | None = Poster(self.session, ssl) if self.owned and CAN_POST else None
        self.exchanges: set[AiohttpExchange] = set()
        self.finishing: deque[AiohttpExchange] = deque(maxlen=64)  # the latest: nobody waits for older ones
        self._closed: asyncio.Future[None] | None = None

    def _own_session(self) -> aiohttp.ClientSession:
        # No limit in aiohttp: our slots are first come, first served, and have a timeout of their own.
        connector = Connector(limit=0, socket_factory=keepalive_socket)
        connector.make_room = weak_method(self._make_room)
        factory: Any = partial(pooled_protocol, self.loop, self.connections)
        connector._factory = factory  # pyright: ignore[reportPrivateUsage]  # no public API
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        if hasattr(session, "_retry_connection"):
            # aiohttp would send GET, PUT and DELETE again by itself, also over a new connection.
            session._retry_connection = False  # pyright: ignore[reportPrivateUsage]  # no public API
        return session

    def gauges(self) -> LoopGauges:
        """Returns the connection counts."""
        return LoopGauges(
            in_use=self.slots.in_use,
            idle=self._idle(),
            waiting=self.slots.waiting,
            open_streams=sum(exchange.streaming for exchange in list(self.exchanges)),
        )

    def _idle(self) -> int:
        return sum(protocol.idle for protocol in list(self.connections))

    def is_full(self) -> bool:
        """Whether a connection opened in a slot that was just taken would be one too many, with those that are idle."""
        return self.slots.in_use + self._idle() > self.slots.limit

    def _make_room(self) -> None:
        """Closes an idle connection if the one to be opened is one too many: idle ones may be to another server."""
        if self.is_full():  # then some are idle, as no more slots than the limit are in use
            next(protocol for protocol in self.connections if protocol.idle).abort_connection()

    async def wait_for_reusable(self) -> None:
        """Waits briefly for the last stream's connection if none is idle: that costs less than opening another."""
        if not any(protocol.idle for protocol in self.connections):
            await self.finishing.pop().wait_finished()

    def abort(self, reason: str) -> None:
        """Ends every exchange in flight, because the client is drained or closed."""
        for exchange in tuple(self.exchanges):
            exchange.abort_with(StreamInterruptedError(reason, draining=True))

    async def close(self, reason: str) -> None:
        """Ends everything in flight, wakes all waiters, and closes the session if it is ours. Idempotent."""
        if self._closed is not None:
            if not self._closed.done():  # else at once: see ``guard.close_soon``
                await wait_done((self._closed,))
            return
        self._closed = self.loop.create_future()
        try:
            self.slots.close()
            self.abort(reason)
            if self.owned:
                for protocol in tuple(self.connections):
                    protocol.abort_connection()  # aiohttp would wait until a peer has read what is still being sent
                await self.session.close()
                await asyncio.sleep(0)  # lets the loop run the closed sockets' last callbacks
        finally:
            self._closed.set_result(None)

    def discard(self) -> None:
        """Gives up what is open if the loop is closed: nothing can read it any more.

        Detaches the session if the loop no longer runs and cannot close it, so that aiohttp does not warn.
        """
        if self.loop.is_closed():
            for exchange in tuple(self.exchanges):
                exchange.abort()
            for protocol in tuple(self.connections):  # also those of calls that wait for a reply
                protocol.abort_connection()
        if self.owned and not self.loop.is_running():
            self.session.detach()

    def abandon(self, guard: object) -> None:
        """In a forked child, lets go of the parent's sockets without sending on them: the parent still uses them."""
        for protocol in self.connections:
            transport = protocol.transport
            connection = None if transport is None else transport.get_extra_info("socket")
            if connection is not None and (descriptor := connection.fileno()) >= 0:
                devnull = os.open(os.devnull, os.O_RDWR)
                os.dup2(devnull, descriptor)  # not closed: the descriptor could be reused, then closed again
                os.close(devnull)
        _abandoned.append((self, guard))
