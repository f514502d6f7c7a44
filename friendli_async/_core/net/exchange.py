"""One request and its reply under way."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp

from friendli_async._core.held import forget
from friendli_async._core.net.compression import inflater
from friendli_async._core.net.dialing import PooledProtocol
from friendli_async._core.net.failures import BROKEN, describe
from friendli_async._core.net.framing import whole_chunks
from friendli_async.errors import APIConnectionError, FriendliError, ResponseDecodeError
from friendli_async.replies import Headers

if TYPE_CHECKING:
    from friendli_async._core.net.pool import Pool

__all__ = ["AiohttpExchange", "Exchange"]

# How long a body may take to end after its last event: a connection is worth so much, and a place no more.
_DRAIN_SECONDS: Final = 0.5
# How long the next call waits for that: less than it takes to open another connection.
_REUSE_SECONDS: Final = 0.02
_CLOSED: Final = "the connection was closed, or the framing is broken"


class Exchange(Protocol):
    """What the call loop and an open stream need of a reply under way. ``AiohttpExchange`` is the real one."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Headers:
        """The reply's headers."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it belongs to."""
        ...

    streaming: bool
    on_wake: Callable[[], None] | None

    def take(self) -> bytes | None:
        """What has come since the last time; None if nothing has; b"" at the end of the body. Raises as ``read``."""
        ...

    def arrival(self) -> Awaitable[None]:
        """Done once there may be something to take."""
        ...

    async def read(self) -> bytes:
        """Returns the next bytes of the body; b"" at its end.

        Raises:
            FriendliError: It broke; or what ``wake`` was called with.
        """
        ...

    async def read_all(self, limit: int) -> bytes:
        """Returns the whole body, of at most ``limit`` bytes, and finishes."""
        ...

    async def read_some(self, limit: int, seconds: float, begun: bytes = b"") -> bytes:
        """Returns what comes of a body within bounds, and finishes; never raises for what is wrong with it."""
        ...

    def abort_with(self, error: FriendliError) -> None:
        """Aborts; whoever is reading, or reads next, gets the error."""
        ...

    def abort(self) -> None:
        """Closes the connection at once."""
        ...

    def finish(self) -> None:
        """Gives the connection back once the body has ended."""
        ...


class AiohttpExchange:
    """One request and its reply under way: holds a place in the pool until it is finished or aborted.

    The reply's bytes are taken, without waiting, by ``take``; where there are none yet, ``arrival`` is done when there
    are. Of a connection of ours the protocol itself tells when something has come, so that no coroutine of aiohttp's
    is between the socket and the reader; of a foreign session's, and of compressed replies, a read of aiohttp's is
    awaited.

    Attributes:
        status: The HTTP status.
        headers: The reply's headers.
        loop: The loop that it belongs to.
        streaming: Whether it is the body of an open stream: from its first event to its end.
        on_wake: Called by ``wake``, for those who wait for something else than bytes.
        content: What aiohttp's parser puts the body into.
    """

    __slots__ = (
        "_arrived",
        "_awaited",
        "_closed",
        "_drain",
        "_inflate",
        "_piece",
        "_pool",
        "_protocol",
        "_response",
        "_waiter",
        "_woken",
        "content",
        "headers",
        "loop",
        "on_wake",
        "status",
        "streaming",
    )

    def __init__(self, pool: Pool, response: aiohttp.ClientResponse) -> None:
        self.status: int = response.status
        self.headers: Headers = Headers(response.headers.items())
        self.loop: asyncio.AbstractEventLoop = pool.loop
        self.streaming: bool = False
        self.on_wake: Callable[[], None] | None = None
        self.content: aiohttp.StreamReader = response.content
        self._pool: Pool | None = pool
        self._response = response
        self._inflate = inflater(", ".join(response.headers.getall("Content-Encoding", ())))
        self._arrived = True  # something may have come since the last look
        self._piece: bytes | None = None
        self._waiter: asyncio.Future[None] | None = None  # for something to come; for the end, once finished
        self._woken: FriendliError | None = None
        self._drain: asyncio.TimerHandle | None = None
        connection = response.connection
        protocol = None if connection is None else connection.protocol
        self._protocol = protocol if isinstance(protocol, PooledProtocol) and self._inflate is None else None
        # Where the whole reply came in one piece, the connection is back in the pool already.
        whole = connection is None and self._inflate is None and self.content.is_eof()
        self._awaited = self._protocol is None and not whole
        self._closed: asyncio.Future[None] | None = None
        if self._protocol is not None:
            self._protocol.exchange = self
        elif protocol is not None:
            self._watch(protocol.closed)
        pool.exchanges.add(self)

    def _watch(self, closed: asyncio.Future[None] | None) -> None:
        """Has the reader woken when the connection closes: after garbage in chunked framing aiohttp does not."""
        if closed is not None:
            closed.remove_done_callback(_retrieve)  # from the connection's earlier exchange
            closed.add_done_callback(_retrieve)
            closed.add_done_callback(self._connection_closed)
        self._closed = closed

    # --- reading -------------------------------------------------------------------------------------------------

    def take(self) -> bytes | None:
        """What has come since the last time; None if nothing has; b"" at the end of the body.

        Raises:
            APIConnectionError: The connection broke, or the body's framing did.
            FriendliError: What ``wake`` was called with.
        """
        piece = self._piece
        if piece is not None:
            self._piece = None
            return piece
        if not self._arrived:
            return None
        if self._woken is not None:
            raise copy.copy(self._woken)
        if self._awaited:
            return None
        protocol, content = self._protocol, self.content
        self._arrived = protocol is None or not protocol.connected  # an end that has been told of is not told of again
        try:
            data = content.read_nowait(-1)
        except BROKEN as error:
            reason = describe(error)
            forget(error)
        else:
            if content.is_eof():  # nothing will tell of that once more
                self._arrived = True
                return data
            if data:
                return data
            if protocol is not None and protocol.connected:
                return None
            reason = _CLOSED
        self._arrived = True
        return self._rest(reason)

    def arrival(self) -> Awaitable[None]:
        """Done once there may be something to take. One waits at a time."""
        if self._awaited:
            return self._arrival()
        self._waiter = waiter = self.loop.create_future()
        return waiter

    def notify_readable(self) -> None:
        """Something has come, or gone wrong."""
        self._arrived = True
        if self._drain is not None:
            if self._protocol is not None and not self._protocol.connected:
                self.abort()  # the end that it was waited for does not come any more
        elif self._waiter is not None:
            _release(self._waiter)
            self._waiter = None

    def take_chunks(self, data: bytes) -> bool:
        """Takes a read past aiohttp's parser, which stands between chunks: one of whole chunks, that is waited for.

        So there is one such read at most that nobody has taken; what comes after it goes to aiohttp's buffer, whose
        flow control holds.
        """
        waiter = self._waiter
        if waiter is None or self._drain is not None or (body := whole_chunks(data)) is None:
            return False
        self._piece = body
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)
        return True

    async def read(self) -> bytes:
        """Returns the next bytes of the body, decompressed; b"" at its end.

        Raises:
            APIConnectionError: The connection broke, or the body's framing did.
            ResponseDecodeError: The compression is broken, or one that was not asked for.
            FriendliError: What ``wake`` was called with.
        """
        while (data := self.take()) is None:
            await self.arrival()
        return data

    async def _arrival(self) -> None:
        """Awaits the next bytes of aiohttp's reader, and has them decompressed."""
        inflate = self._inflate
        if inflate is None:
            self._piece = await self._read_raw()
            return
        while True:
            data = b""
            if not inflate.needs_input:
                await asyncio.sleep(0)  # there may be much in little: others have their turn, and the limits
            elif not (data := await self._read_raw()):
                if not inflate.finished:
                    raise APIConnectionError("the compressed reply was cut off", sent=True)
                self._piece = b""
                return
            if plain := inflate.step(data):
                self._piece = plain
                return

    async def _read_raw(self) -> bytes:
        try:
            return await self.content.readany()
        except BROKEN as error:
            reason = describe(error)
            forget(error)
        if self._woken is not None:
            raise copy.copy(self._woken)
        return self._rest(reason)

    def _rest(self, reason: str) -> bytes:
        """Aiohttp's reader raises at once what happened last; the bytes that came before it are still there."""
        rest = self.content._read_nowait(-1)  # pyright: ignore[reportPrivateUsage]  # no public way to them
        if rest:
            return rest
        raise APIConnectionError(f"the connection broke while the reply was being read: {reason}", sent=True)

    async def read_all(self, limit: int) -> bytes:
        """Returns the whole body and finishes the exchange.

        Raises:
            ResponseDecodeError: It is larger than ``limit`` bytes.
        """
        pieces: list[bytes] = []
        size = 0
        while size <= limit and (piece := await self.read()):
            pieces.append(piece)
            size += len(piece)
        if size > limit:
            raise ResponseDecodeError(f"the reply is larger than the limit of {limit} bytes (Limits.reply)")
        self.finish()
        return b"".join(pieces)

    async def read_some(self, limit: int, seconds: float, begun: bytes = b"") -> bytes:
        """Returns what comes of an error's body within ``limit`` bytes and ``seconds``, and finishes the exchange.

        Never raises for what is wrong with it.

        Args:
            limit: The most bytes to return.
            seconds: The longest to wait for them: the status is known, and must not wait for the rest of a body.
            begun: What has been read of it already.
        """
        body = begun
        with suppress(TimeoutError, FriendliError):
            async with asyncio.timeout(seconds):
                while len(body) < limit:
                    piece = await self.read()
                    if not piece:
                        self.finish()
                        return body
                    body += piece
        if not body and self._inflate is not None:
            body = self._inflate.unread  # its words, where only the header says that they are compressed
        self.abort()
        return body[:limit]

    # --- ending --------------------------------------------------------------------------------------------------

    def abort_with(self, error: FriendliError) -> None:
        """Aborts; whoever is reading, or reads next, gets the error."""
        if not self.content.is_eof():  # else nobody waits, and what has come may still be taken
            self._woken = error
            self._piece = None
            if self._awaited:
                self.content.set_exception(aiohttp.ClientPayloadError("the exchange was ended"))
            self.notify_readable()
            if self.on_wake is not None:
                self.on_wake()
        self.abort()

    def abort(self) -> None:
        """Closes the connection at once, and synchronously. In the loop's thread only."""
        if self._pool is None:
            return
        self._arrived = True  # the connection's end, of which the protocol does not tell this exchange any more
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            with suppress(RuntimeError):  # its loop is closed, and can close nothing any more
                connection.transport.abort()  # close() alone would first flush, and over TLS say goodbye
        self._response.close()
        self._let_go()

    def finish(self) -> None:
        """Gives the connection back, to be used again, as soon as the body has ended; soon, or it is closed.

        Nobody waits for that: what the server still says is ignored.
        """
        if self._pool is None or self._drain is not None:
            return
        self.streaming = False
        if self.content.is_eof():
            self._response.release()
            self._let_go()
        elif self.content.exception() is not None:
            self.abort()
        else:
            self._drain = self.loop.call_later(_DRAIN_SECONDS, self.abort)
            self.content.on_eof(self._let_go)
            self._pool.draining.append(self)

    async def drained(self) -> None:
        """Waits a moment for the end of a body that was finished just now."""
        if self._pool is None or self._drain is None:
            return
        left = self._drain.when() - _DRAIN_SECONDS + _REUSE_SECONDS - self.loop.time()
        if left > 0:
            self._waiter = self.loop.create_future()
            timer = self.loop.call_later(left, _release, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()

    def _let_go(self) -> None:
        pool, self._pool = self._pool, None
        if self._drain is not None:
            self._drain.cancel()
            _release(self._waiter)
        if self._closed is not None:
            self._closed.remove_done_callback(self._connection_closed)
        if self._protocol is not None and self._protocol.exchange is self:
            self._protocol.exchange = None
        if pool is not None:
            if self in pool.draining:
                pool.draining.remove(self)
            pool.exchanges.discard(self)
            pool.slots.release()
            pool.exchange_ended()

    def _connection_closed(self, closed: asyncio.Future[None]) -> None:
        content = self.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError(_CLOSED))


def _release(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _retrieve(closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()  # or asyncio complains that nobody asked
