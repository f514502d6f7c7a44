"""How connections are opened and watched: sockets, and what aiohttp's connector and protocol do not report.

``_core/__init__.py`` lists the private parts of aiohttp used here, and why no public API will do.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler

from friendli_async._core.net.clock import TURNS_TO_READ
from friendli_async._core.net.framing import CAN_BYPASS, between_chunks

if TYPE_CHECKING:
    from friendli_async._core.body.forms import FormUpload
    from friendli_async._core.net.clock import CallClock
    from friendli_async._core.net.exchange import AiohttpExchange


class DialContext(msgspec.Struct, eq=False):
    """How one attempt's request was sent: written by the connector, read by the transport and the call."""

    clock: CallClock
    """The call's clock: its phases begin as the request proceeds."""
    replaced: bool = False
    """Whether the call has replaced a dead pooled connection: from then on, its requests get new ones."""
    warming: bool = False
    """Whether to open a connection for the pool without sending anything."""
    connected: bool = False
    """Whether a connection was obtained."""
    reused: bool = False
    """Whether the connection came from the pool."""
    protocol: PooledProtocol | None = None
    """The connection, if it belongs to our own session."""
    queued: float = 0.0
    """Seconds spent waiting for a connection slot."""
    connecting: float = 0.0
    """Seconds spent getting a connection."""
    address: str = ""
    """Host and port of the server."""
    proxy: str | None = None
    """Host and port of the proxy, if there is one."""
    tunnelled: bool = False
    """Whether the proxy, if there is one, cannot read or answer the request: the URL is https."""
    at_proxy: bool = False
    """Whether there is a TCP connection to the proxy."""
    upload: FormUpload | None = None
    """The body, if it is a form."""
    before_sending: Callable[[], None] | None = None
    """Called each time the request is about to be sent: once there is a connection, or, as a session that was passed in
    does not report that, a connection slot. What it raises ends the attempt."""

    def begin(self, address: str, proxy: str | None, *, tunnelled: bool) -> None:
        """Resets the context for the first send or another one: over a new connection, or to a redirect's target."""
        self.address, self.proxy, self.tunnelled, self.protocol = address, proxy, tunnelled, None
        self.connected = self.reused = self.at_proxy = False

    @property
    def peer(self) -> str:
        """What the TCP connection is to, for messages."""
        return self.address if self.proxy is None else f"the proxy {self.proxy}"

    @property
    def progress(self) -> str:
        """What the request waits for before there is a connection, for the message of a timeout."""
        return f"connecting to {self.peer}"

    def begin_handshake(self) -> None:
        """Tells the clock that a TCP connection is open: to the proxy, or to the server, maybe through the proxy."""
        if not self.tunnelled:
            return
        if self.proxy is not None and not self.at_proxy:
            self.at_proxy = True
            self.clock.describe(f"waiting for the proxy {self.proxy}")
        else:
            self.clock.describe(f"TLS handshake with {self.address}")

    @property
    def source_error(self) -> BaseException | None:
        """The error raised by the source of the body, if any."""
        return None if self.upload is None else self.upload.error


current_dial: ContextVar[DialContext] = ContextVar("friendli_async_dial")
"""The context of the running request: aiohttp passes its connector nothing that identifies it."""


class WarmedUp(Exception):  # noqa: N818  # not an error: it ends aiohttp's request
    """Ends aiohttp's request before anything is sent: a connection was opened for the pool, or the pool is full."""


class PooledProtocol(ResponseHandler):
    """A connection of our own. It wakes its reader when data arrives, and closes if data arrives while it is idle."""

    # With slots, instance dicts keep sharing their keys.
    __slots__ = (
        "awaits_head",
        "between_chunks",
        "closing",
        "connections",
        "exchange",
        "has_ended",
        "has_received",
        "head_end",
        "idle",
        "is_lost",
        "was_paused",
    )

    def __init__(self, loop: Any, connections: set[PooledProtocol]) -> None:
        super().__init__(loop)
        self.has_received: bool = False
        """Whether the peer has sent anything since the connection was handed out."""
        self.has_ended: bool = False
        """Whether the peer has ended the connection properly: not by a reset."""
        self.awaits_head: bool = False
        """Whether the head of the final reply (not 1xx) is still to come."""
        self.head_end: bytes = b""
        """The last bytes of a read that ended within a head: the blank line may begin with them."""
        self.idle: bool = False
        """Whether it is idle in the pool."""
        self.exchange: AiohttpExchange | None = None
        """The exchange that receives the reply and is notified of new data."""
        self.between_chunks: bool = False
        """Whether aiohttp's parser is known to be between two chunks of that reply."""
        self.was_paused: bool = False
        """Whether reading has been paused since the connection was handed out."""
        self.is_lost: bool = False
        """Whether the connection is lost, so that no more data arrives."""
        self.closing: asyncio.Transport | None = None
        """The transport after ``close``, which has to send what it has buffered before it is closed."""
        self.connections: set[PooledProtocol] = connections
        """The open connections of the pool, to which it belongs."""

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if self.between_chunks and exchange is not None and exchange.take_chunks(data):
            return
        if self.idle and data:
            self.abort_connection()  # unsolicited: the next request would take it for its reply
            return
        self.has_received = True
        if not self.awaits_head or (data := self._feed_head(data)):
            ResponseHandler.data_received(self, data)
        exchange = self.exchange
        if exchange is not None:
            self.between_chunks = CAN_BYPASS and between_chunks(self, exchange.content, data)
            exchange.notify_readable()
        if self.idle and self.should_close:
            self.abort_connection()  # the read that ended the reply held more data

    def _feed_head(self, data: bytes) -> bytes:
        """Passes a reply's head to aiohttp's parser by itself, and returns what follows it.

        When the parser finds an error, in data after the reply or in a chunk's framing, it drops a head that it has
        read in the same call.
        """
        start = len(self.head_end)  # these bytes have been passed
        data = self.head_end + data
        position = 0
        while (end := data.find(b"\n\r\n", position) + 3) > 2 or (end := data.find(b"\n\n", position) + 2) > 1:
            ResponseHandler.data_received(self, data[start:end])
            start = position = end
            if self._buffer:  # the heads that it has read
                if self._buffer[-1][0][0].code >= 200:  # final, not 1xx
                    self.awaits_head = False
                    self.head_end = b""
                    return data[end:]
            elif self.exception() is not None:
                return b""
        self.head_end = data[position:][-2:]
        return data[start:]

    def close(self) -> None:
        self.idle = False
        self.closing = self.transport
        super().close()

    def abort_connection(self) -> None:
        """Closes the connection at once, also if it is already closing but still sending."""
        self.idle = False
        transport = self.transport or self.closing
        if transport is not None:
            abort_transport(transport)

    def pause_reading(self) -> None:
        self.was_paused = True
        if not self.is_lost:
            super().pause_reading()

    def resume_reading(self, *args: Any, **kwargs: Any) -> None:
        """Skips aiohttp's work after each read unless it is needed: from 3.14 on, it runs the parser on empty input.

        It is needed at every read from the first pause on: a paused parser may keep bytes of later reads until it is
        run again.
        """
        if self.was_paused:
            super().resume_reading(*args, **kwargs)

    def eof_received(self) -> None:
        self.has_ended = True
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.connections.discard(self)
        self.is_lost = True
        drained, content = self._drain_waiter, self._payload
        if self.was_paused and content is not None:
            # What arrived while the parser was paused, which aiohttp drops from 3.14 on: TLS reads on in a pause, so
            # the connection may end before the reader goes on.
            self.force_close()
            ResponseHandler.data_received(self, b"")
        self.closing = None
        if exc is not None and content is not None and not (self.has_ended or content.is_eof() or content.exception()):
            # For a body without a length: aiohttp takes it for complete however the connection was lost.
            content.set_exception(aiohttp.ClientOSError(*exc.args))
        super().connection_lost(exc)
        if drained is not None and drained.done() and not drained.cancelled():
            drained.exception()  # or asyncio logs that it was never retrieved, if the upload was cancelled
        if self.exchange is not None:
            self.exchange.notify_readable()


def abort_transport(transport: asyncio.Transport) -> None:
    """Closes a connection at once; if its loop was closed, and left it open, its socket is shut down.

    Otherwise the server would send on until the socket is collected.
    """
    try:
        transport.abort()  # close() would flush first and, over TLS, shut down gracefully
    except RuntimeError:  # without its loop it cannot
        connection = transport.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def pooled_protocol(loop: Any, connections: set[PooledProtocol]) -> PooledProtocol:
    """Returns the protocol of a connection of the running request. aiohttp asks for it once it is open, before TLS."""
    current_dial.get().begin_handshake()
    return PooledProtocol(loop, connections)


class Connector(aiohttp.TCPConnector):
    """Reports when a connection is available, and whether it came from the pool.

    Attributes:
        make_room: Called before a connection is opened.
    """

    make_room: Callable[[], object]

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        dial = current_dial.get()
        clock = dial.clock
        began = clock.now()
        try:
            connection: Any = await super().connect(req, traces, timeout)
        finally:
            dial.connecting += clock.now() - began
        dial.connected = True
        protocol: PooledProtocol = connection.protocol  # from the connector's factory
        dial.protocol = protocol
        protocol.has_received = protocol.idle = protocol.between_chunks = protocol.was_paused = False
        protocol.awaits_head = True
        if not dial.reused and protocol.transport is not None:  # None: it has been lost meanwhile
            # Not in ``connection_made``: if connecting is cancelled after that, uvloop does not report the loss.
            protocol.connections.add(protocol)
        try:
            if dial.warming:
                raise WarmedUp
            if dial.before_sending is not None:
                dial.before_sending()
        except BaseException:  # such as an observer's KeyboardInterrupt
            dial.connected = False  # so that nothing counts as sent
            connection.release()
            raise
        clock.begin_phase("first_event")
        return connection

    async def _get(self, key: Any, traces: Any) -> Any:
        dial = current_dial.get()
        connection = None if dial.replaced or dial.warming else await self._get_quiet(key, traces)
        dial.reused = connection is not None
        if connection is None:
            self.make_room()
            dial.clock.begin_phase("connect", f"resolving the name of {dial.peer}")
        return connection

    async def _get_quiet(self, key: Any, traces: Any) -> Any:
        """Returns a pooled connection that has received nothing since it was released, or None."""
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
        except RuntimeError:  # the loop was closed meanwhile, so the connection cannot be closed
            return
        protocol.idle = protocol.transport is not None  # else it has been closed

    def __del__(self, *args: object, **kwargs: object) -> None:
        """Does nothing: the pool closes the connector if its loop still can. aiohttp would warn that nobody did."""


async def _is_quiet(protocol: Any) -> bool:
    """Whether an idle connection is still open and has received nothing.

    While a program blocks the loop, the loop cannot read, so it does not close a connection that receives data; the
    next request would take that data for its reply. So if data is pending, the loop gets to read it first. It need not
    come from the server itself: TLS sends records of its own.
    """
    for _ in range(TURNS_TO_READ):
        transport = protocol.transport
        if transport is None or transport.is_closing():
            return False
        if not _has_pending_data(transport.get_extra_info("socket")):
            return True
        await asyncio.sleep(0)
    return False


def _has_pending_data(connection: Any) -> bool:
    if not hasattr(select, "poll"):  # Windows, where select() accepts any descriptor
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def keepalive_socket(address: Any) -> socket.socket:
    """Returns a socket with TCP keep-alive, to notice a peer lost silently (NAT tables drop idle connections).

    It is for the running request, and shows that the name of its server, or proxy, has been resolved.
    """
    dial = current_dial.get()
    dial.clock.describe(dial.progress)
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
