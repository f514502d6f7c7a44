"""How connections are made and watched: sockets, and what aiohttp's connector and protocol do not tell.

Private parts of aiohttp that are used here, and why no public way serves, stand in ``_core/__init__.py``.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler

from friendli_async._core.net.framing import CAN_BYPASS, between_chunks

if TYPE_CHECKING:
    from friendli_async._core.body.forms import Sending
    from friendli_async._core.net.clock import CallClock
    from friendli_async._core.net.exchange import AiohttpExchange

__all__ = ["Connector", "DialContext", "PooledProtocol", "WarmedUp", "dialing", "keepalive_socket"]

_TURNS_TO_READ: Final = 8


class DialContext(msgspec.Struct, eq=False):
    """How one attempt's request got on its way: told by the connector, read by the transport and the call."""

    clock: CallClock
    """The call's clock: its phases begin here."""
    fresh: bool = False
    """Whether only a new connection serves."""
    warming: bool = False
    """Whether only the connection is wanted: it goes back to the pool, and nothing is sent."""
    connected: bool = False
    """Whether there was a connection."""
    reused: bool = False
    """Whether it came from the pool."""
    protocol: PooledProtocol | None = None
    """The connection, where it is ours."""
    queued: float = 0.0
    """Seconds that it waited for a place."""
    connecting: float = 0.0
    """Seconds that it took to get a connection."""
    address: str = ""
    """Host and port of the server."""
    proxy: str | None = None
    """Host and port of the proxy that it goes through."""
    sending: Sending | None = None
    """The body, where it is a form."""
    on_connect: Callable[[], None] | None = None
    """Called when there is a connection, before anything is sent."""

    def begin(self, address: str, proxy: str | None) -> None:
        """It sets out, or once more: over another connection, or to where a redirect leads."""
        self.address, self.proxy, self.protocol = address, proxy, None
        self.connected = self.reused = False

    def moved(self) -> None:
        """A piece of the body is on its way: the wait for the reply begins when the last one is."""
        if self.connected:
            self.clock.phase("first_event")

    @property
    def source_error(self) -> Exception | None:
        """What was wrong with the source of the body."""
        return None if self.sending is None else self.sending.error


dialing: ContextVar[DialContext] = ContextVar("friendli_async_delivery")
"""The delivery that the running request belongs to: aiohttp hands its connector nothing that would name it."""


class WarmedUp(Exception):  # noqa: N818  # no error, but the way to end a request of aiohttp's
    """A connection was opened for the pool: ends a request of aiohttp's before anything is sent."""


class PooledProtocol(ResponseHandler):
    """A connection of ours. It tells its reader when something has come, and closes if that is while it is idle."""

    # Slots: in the instance's dict they would cost it the keys that all instances share.
    __slots__ = ("alive", "between_chunks", "exchange", "heard", "idle", "was_paused")

    def __init__(self, loop: Any, alive: set[PooledProtocol]) -> None:
        super().__init__(loop)
        self.heard: bool = False
        """Whether the peer has said anything since the connection was handed out."""
        self.idle: bool = False
        """Whether it lies in the pool."""
        self.exchange: AiohttpExchange | None = None
        """The exchange whose reply it receives, and which wants to be told."""
        self.between_chunks: bool = False
        """Whether aiohttp's parser is known to stand between two chunks of that reply."""
        self.was_paused: bool = False
        """Whether its reading has been paused since it was handed out."""
        self.alive: set[PooledProtocol] = alive

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.alive.add(self)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if self.between_chunks and exchange is not None and exchange.take_chunks(data):
            return
        if self.idle and data:
            self._refuse()  # nobody has asked: it would be taken for the reply to the next request
            return
        self.heard = True
        ResponseHandler.data_received(self, data)
        exchange = self.exchange
        if exchange is not None:
            self.between_chunks = CAN_BYPASS and between_chunks(self, exchange.content, data)
            exchange.notify_readable()
        if self.idle and self.should_close:
            self._refuse()  # there was more than the reply, in the same piece as its end

    def _refuse(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def pause_reading(self) -> None:
        self.was_paused = True
        super().pause_reading()

    def resume_reading(self, *args: Any, **kwargs: Any) -> None:
        """Called after every read. aiohttp 3.14 then runs its parser on nothing, even where nothing was paused.

        Once something was, it has to: a pause at the end of a chunk holds back bytes of the read after the next.
        """
        if self.was_paused:
            super().resume_reading(*args, **kwargs)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.alive.discard(self)
        super().connection_lost(exc)
        if self.exchange is not None:
            self.exchange.notify_readable()


class Connector(aiohttp.TCPConnector):
    """Tells when a connection is there, and whether it came from the pool."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        dial = dialing.get()
        clock = dial.clock
        began = clock.now()
        try:
            connection = await super().connect(req, traces, timeout)
        finally:
            dial.connecting += clock.now() - began
        dial.connected = True
        protocol = connection.protocol
        if isinstance(protocol, PooledProtocol):
            protocol.heard = protocol.idle = protocol.between_chunks = protocol.was_paused = False
            dial.protocol = protocol
        try:
            if dial.warming:
                raise WarmedUp
            if dial.on_connect is not None:
                dial.on_connect()
        except BaseException:  # KeyboardInterrupt, say, of an observer
            connection.release()
            raise
        clock.phase("first_event")
        return connection

    async def _get(self, key: Any, traces: Any) -> Any:
        dial = dialing.get()
        connection = None if dial.fresh else await self._quiet_one(key, traces)
        dial.reused = connection is not None
        if connection is None:
            dial.clock.phase("connect")
        return connection

    async def _quiet_one(self, key: Any, traces: Any) -> Any:
        """A connection of the pool over which nothing has come since it was given back; None if there is none."""
        while (connection := await super()._get(key, traces)) is not None:
            try:
                if await _is_quiet(connection.protocol):
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
        return None

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        try:
            super()._release(key, protocol, should_close=should_close)
        except RuntimeError:  # its loop was closed under it, so that nothing of it can be closed any more
            return
        if isinstance(protocol, PooledProtocol):
            protocol.idle = True

    def __del__(self, *args: object, **kwargs: object) -> None:
        """Nothing: the pool closes it, where its loop can. Aiohttp's would complain that nobody did."""


async def _is_quiet(protocol: Any) -> bool:
    """Whether nothing has come over an idle connection, and it has not ended.

    A program that blocks the loop keeps it from reading, and so from closing what something has come over; the next
    request would get that for its reply. So the loop reads first, where there is anything. That need not be the peer's
    own words: TLS has its own.
    """
    for _ in range(_TURNS_TO_READ):
        transport = protocol.transport
        if transport is None or transport.is_closing():
            return False
        if not _has_come(transport.get_extra_info("socket")):
            return True
        await asyncio.sleep(0)
    return False


def _has_come(connection: Any) -> bool:
    if not hasattr(select, "poll"):  # Windows, where select() takes any number of them
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def keepalive_socket(address: Any) -> socket.socket:
    """A socket that notices a peer which vanished without a word (NAT tables forget long waits)."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
