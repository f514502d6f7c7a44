"""One request in flight and its reply."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp

from friendli_async._core.held import clear_tracebacks
from friendli_async._core.loops import wake
from friendli_async._core.net.clock import TimeLimit
from friendli_async._core.net.compression import inflater
from friendli_async._core.net.dialing import PooledProtocol, abort_transport
from friendli_async._core.net.failures import BROKEN, describe
from friendli_async._core.net.framing import whole_chunks
from friendli_async.errors import APIConnectionError, FriendliError, ResponseDecodeError
from friendli_async.replies import Headers, ReplyHead

if TYPE_CHECKING:
    from friendli_async._core.net.pool import Pool

# How long a finished body may take to end, so that its connection can be reused.
_FINISH_SECONDS: Final = 0.5
# How long the next call waits for that: less than it takes to open a new connection.
_REUSE_SECONDS: Final = 0.02
# The events of a read are decoded together, at four times its size. Beyond this they leave the CPU's cache, and the
# allocator gets and returns their memory with each read: a fifth of the time of an event in large reads.
_MAX_READ: Final = 32 * 1024
# The status is known by then: reading the error message must not hold up the caller, or the connection, for long.
_ERROR_BODY_SECONDS: Final = 5.0
_CLOSED: Final = "the connection was closed, or the framing is broken"


class Exchange(Protocol):
    """What the call loop and an open stream need from a request in flight. ``AiohttpExchange`` implements it."""

    head: ReplyHead
    streaming: bool
    on_abort: Callable[[FriendliError], None] | None

    def take(self) -> bytes | None:
        """Returns new data; None if there is none yet; b"" at the end of the body. Raises what ``read`` raises."""
        ...

    def wait_readable(self) -> Awaitable[None]:
        """Returns an awaitable that completes once there may be something to take."""
        ...

    async def read(self) -> bytes:
        """Returns the next bytes of the body; b"" at its end.

        Raises:
            FriendliError: The connection broke, or ``abort_with`` was called with this error.
        """
        ...

    async def read_all(self, limit: int) -> bytes:
        """Returns the whole body, of at most ``limit`` bytes, and finishes the exchange."""
        ...

    async def read_some(self, limit: int, seconds: float | None = None) -> bytes:
        """Returns what arrives of the body within ``limit`` bytes and at most 5 ``seconds``, and ends the exchange.

        Never raises for a broken body.
        """
        ...

    def take_arrived(self) -> bytes:
        """Returns more of what has arrived and was not taken; b"" if nothing is left. ``on_abort`` may call it, too."""
        ...

    def abort_with(self, error: FriendliError) -> None:
        """Aborts the exchange, unless its body has ended. A pending read, or the next one, raises the error."""
        ...

    def abort(self) -> None:
        """Closes the connection at once."""
        ...

    def finish(self) -> None:
        """Returns the connection to the pool once the body has ended."""
        ...


class AiohttpExchange:
    """One request in flight and its reply. It holds a connection slot until it is finished or aborted.

    ``take`` returns the reply's bytes without waiting; if there are none yet, ``wait_readable`` completes when there
    are. The protocol of our own connections notifies the exchange directly, so no coroutine of aiohttp sits between the
    socket and the reader. A foreign session's connections and compressed replies are read by awaiting aiohttp's reader.

    Attributes:
        head: The reply's status and headers.
        loop: The event loop that the exchange belongs to.
        streaming: Whether this is the body of an open stream, from its first event to its end.
        on_abort: Called by ``abort_with`` with its error: nobody may be reading.
        content: The buffer that aiohttp's parser fills.
    """

    def __init__(self, pool: Pool, response: aiohttp.ClientResponse) -> None:
        self.head: ReplyHead = ReplyHead(response.status, Headers(response.headers.items()))
        self.loop: asyncio.AbstractEventLoop = pool.loop
        self.streaming: bool = False
        self.on_abort: Callable[[FriendliError], None] | None = None
        self.content: aiohttp.StreamReader = response.content
        self._pool: Pool | None = pool  # until ``_detach``
        self._response = response
        self._inflate = inflater(", ".join(response.headers.getall("Content-Encoding", ())))
        self._readable = True  # data may have arrived since the last take
        self._pending: bytes | None = None  # to be taken next: not, or no longer, in aiohttp's buffer
        self._waiter: asyncio.Future[None] | None = None  # waits for data; once finished, for the body's end
        self._abort_error: FriendliError | None = None
        self._finish_timer: asyncio.TimerHandle | None = None  # since ``finish``, unless the body had ended
        connection = response.connection
        protocol = None if connection is None else connection.protocol
        self._protocol = protocol if isinstance(protocol, PooledProtocol) and self._inflate is None else None
        # The common plain call: the whole reply arrived in one read, so its connection is already back in the pool.
        whole = connection is None and self._inflate is None and self.content.is_eof()
        self._uses_readany = self._protocol is None and not whole
        self._closed: asyncio.Future[None] | None = None  # of a connection that does not notify this
        if self._protocol is not None:
            self._protocol.exchange = self
        elif protocol is not None:
            self._watch_close(protocol.closed)
        pool.exchanges.add(self)

    def _watch_close(self, closed: asyncio.Future[None] | None) -> None:
        """Wakes the reader when the connection closes, which aiohttp does not do after garbage in chunked framing."""
        if closed is not None:
            closed.remove_done_callback(_retrieve_exception)  # added by the connection's previous exchange
            closed.add_done_callback(_retrieve_exception)
            closed.add_done_callback(self._connection_closed)
        self._closed = closed

    # --- reading -------------------------------------------------------------------------------------------------

    def take(self) -> bytes | None:
        """Returns new data; None if there is none yet; b"" at the end of the body.

        Raises:
            APIConnectionError: The connection or the body's framing broke.
            FriendliError: ``abort_with`` was called with this error.
        """
        piece = self._pending
        if piece is not None:
            self._pending = None
            return piece
        if not self._readable:
            return None
        if self._abort_error is not None:
            raise copy.copy(self._abort_error)
        if self._uses_readany:
            return None
        protocol, content = self._protocol, self.content
        # False until the protocol notifies it again. It does not once it has lost the connection.
        self._readable = protocol is None or not protocol.connected
        try:
            data = content.read_nowait(_MAX_READ)
        except BROKEN as error:
            reason = describe(error)
            clear_tracebacks(error)
        else:
            if len(data) == _MAX_READ or content.is_eof():
                self._readable = True  # more may be left, or only the end: neither is notified again
                return data
            if data:
                return data
            if protocol is not None and protocol.connected:
                return None
            reason = _CLOSED
        self._readable = True
        return self._take_rest(reason)

    def wait_readable(self) -> Awaitable[None]:
        """Returns an awaitable that completes once there may be something to take. Only one may wait at a time."""
        if self._uses_readany:
            return self._await_data()
        self._waiter = waiter = self.loop.create_future()
        return waiter

    def notify_readable(self) -> None:
        """Wakes the reader: data has arrived, or the connection has failed."""
        self._readable = True
        if self._finish_timer is not None:
            if self._protocol is not None and not self._protocol.connected:
                self.abort()  # the awaited end of the body will not come
        elif self._waiter is not None:
            wake(self._waiter)
            self._waiter = None

    def take_chunks(self, data: bytes) -> bool:
        """Takes a read without aiohttp's parser, if it consists of whole chunks and a reader is waiting.

        Returns whether it did. The parser must be between chunks. At most one such read is pending; later data goes to
        aiohttp's buffer and flow control.
        """
        waiter = self._waiter
        if waiter is None or self._finish_timer is not None or (body := whole_chunks(data)) is None:
            return False
        self._pending = body
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)
        return True

    async def read(self) -> bytes:
        """Returns the next bytes of the body, decompressed; b"" at its end.

        Raises:
            APIConnectionError: The connection or the body's framing broke.
            ResponseDecodeError: The compression is broken, or was not requested.
            FriendliError: ``abort_with`` was called with this error.
        """
        while (data := self.take()) is None:
            await self.wait_readable()
        return data

    async def _await_data(self) -> None:
        """Awaits the next bytes from aiohttp's reader and decompresses them."""
        inflate = self._inflate
        if inflate is None:
            self._pending = await self._read_raw()
            return
        while True:
            data = b""
            if not inflate.needs_input:
                await asyncio.sleep(0)  # little input may expand to much: let other tasks and timers run
            elif not (data := await self._read_raw()):
                if not inflate.finished:
                    raise APIConnectionError("the compressed reply was truncated", sent=True)
                self._pending = b""
                return
            if plain := inflate.step(data):
                self._pending = plain
                return

    async def _read_raw(self) -> bytes:
        try:
            return await self.content.readany()
        except BROKEN as error:
            reason = describe(error)
            clear_tracebacks(error)
        if self._abort_error is not None:
            raise copy.copy(self._abort_error)
        return self._take_rest(reason)

    def _take_rest(self, reason: str) -> bytes:
        """Returns the bytes that arrived before an error: aiohttp's reader raises the error, but still holds them."""
        rest = self.content._read_nowait(-1)  # pyright: ignore[reportPrivateUsage]  # no public API
        if rest:
            return rest
        raise APIConnectionError(f"the connection broke while the reply was being read: {reason}", sent=True)

    def take_arrived(self) -> bytes:
        """Returns more of what has arrived and was not taken; b"" if nothing is left.

        Unlike ``take``, it serves all connections, and neither raises what ended the exchange nor reports its end.

        Raises:
            ResponseDecodeError: The compression is broken, or was not requested.
        """
        piece, self._pending = self._pending, None
        if piece:
            return piece
        data = self.content._read_nowait(-1)  # pyright: ignore[reportPrivateUsage]  # the public way raises
        inflate = self._inflate
        if inflate is None:
            return data
        while data or not inflate.needs_input:
            if plain := inflate.step(data):
                return plain
            data = b""
        return b""

    async def read_all(self, limit: int) -> bytes:
        """Returns the whole body and finishes the exchange.

        Raises:
            ResponseDecodeError: The body is larger than ``limit`` bytes.
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

    async def read_some(self, limit: int, seconds: float | None = None) -> bytes:
        """Returns what arrives of an error's body within ``limit`` bytes and at most 5 ``seconds``; ends the exchange.

        Never raises for a broken body.
        """
        body = bytearray()  # a large one, in pieces, would take quadratic time as bytes
        seconds = _ERROR_BODY_SECONDS if seconds is None else min(seconds, _ERROR_BODY_SECONDS)
        with suppress(TimeoutError, FriendliError), TimeLimit(seconds):
            while len(body) < limit:
                piece = await self.read()
                if not piece:
                    self.finish()
                    return bytes(body)
                body += piece
        self.abort()
        return bytes(body[:limit])

    # --- ending --------------------------------------------------------------------------------------------------

    def abort_with(self, error: FriendliError) -> None:
        """Aborts the exchange, unless its body has ended. A pending read, or the next one, raises the error."""
        if self.content.is_eof():  # nobody waits, and what has arrived can still be taken
            self._detach()  # aiohttp has released the connection; releasing it again would discard those bytes
            return
        self._abort_error = error
        if self._uses_readany:
            self.content.set_exception(aiohttp.ClientPayloadError("the exchange was ended"))
        self.notify_readable()
        self.abort()
        try:
            if self.on_abort is not None:  # last: it runs observers, which may raise anything
                self.on_abort(error)
        finally:
            self._pending = None  # not earlier: ``on_abort`` may take it. From now on, ``take`` raises the error.

    def abort(self) -> None:
        """Closes the connection at once, synchronously. Call it in the loop's thread only."""
        if self._pool is None:
            return
        self._readable = True  # the protocol will not notify this exchange of the disconnect
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            abort_transport(connection.transport)
        if self.loop.is_closed():
            with suppress(RuntimeError):  # a reader that waits in aiohttp cannot be woken: ``close`` would fail
                self.content.set_exception(aiohttp.ClientPayloadError(_CLOSED))
        self._response.close()
        self._detach()

    def finish(self) -> None:
        """Returns the connection to the pool as soon as the body has ended, or closes it after 0.5 s.

        The caller does not wait for that: what the server still sends is ignored.
        """
        if self._pool is None or self._finish_timer is not None:
            return
        self.streaming = False
        if self.content.is_eof():
            if self._response.connection is not None:  # aiohttp keeps one that the reply (101) has upgraded
                self._response.release()
            self._detach()
        elif self.content.exception() is not None:
            self.abort()
        else:
            self._finish_timer = self.loop.call_later(_FINISH_SECONDS, self.abort)
            self.content.on_eof(self._detach)
            self._pool.finishing.append(self)

    async def wait_finished(self) -> None:
        """Waits briefly for the body of an exchange that was finished just now to end."""
        assert self._finish_timer is not None, "set by ``finish``"
        left = self._finish_timer.when() - _FINISH_SECONDS + _REUSE_SECONDS - self.loop.time()
        if left > 0:
            self._waiter = self.loop.create_future()
            timer = self.loop.call_later(left, wake, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()

    def _detach(self) -> None:
        """Gives the slot back and leaves the pool. Every exchange ends here, once."""
        pool, self._pool = self._pool, None
        if self._finish_timer is not None:
            self._finish_timer.cancel()
            if not self.loop.is_closed():
                wake(self._waiter)
        if self._closed is not None:
            self._closed.remove_done_callback(self._connection_closed)
        if self._protocol is not None and self._protocol.exchange is self:
            self._protocol.exchange = None
        if pool is not None:
            if self in pool.finishing:
                pool.finishing.remove(self)
            pool.exchanges.discard(self)
            pool.slots.release()

    def _connection_closed(self, closed: asyncio.Future[None]) -> None:
        content = self.content
        if self._finish_timer is not None:
            self.abort()  # the awaited end of the body will not come
        elif not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError(_CLOSED))


def _retrieve_exception(closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()  # or asyncio logs that it was never retrieved
