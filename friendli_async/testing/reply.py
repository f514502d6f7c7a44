"""One reply on its way out: the only part that touches aiohttp's response and the socket under it."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from friendli_async.testing.frames import Identity

__all__ = ["ReplyWriter"]

# `struct linger` is two ints everywhere but on Windows: switched on, zero seconds, so that closing sends RST.
_LINGER_ZERO: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class ReplyWriter:
    """Writes one reply step by step, down to breaking its connection.

    The status line and the headers go out with the first write, or earlier by `send_head`.

    Args:
        request: The request that is answered.
        status: HTTP status.
        headers: Headers of the reply. Without `Content-Length` the body is chunked.
        identity: What the chunks of this reply share.
    """

    def __init__(self, request: web.BaseRequest, status: int, headers: CIMultiDict[str], identity: Identity) -> None:
        self.identity = identity
        self.response: web.StreamResponse = web.StreamResponse(status=status, headers=headers)
        self.ended: bool = False
        """Whether the reply was sent to its end."""
        self.hung_up: bool = False
        """Whether this side broke the connection."""
        self._request = request
        self._writer: AbstractStreamWriter | None = None

    async def send_head(self) -> AbstractStreamWriter:
        """Send the status line and the headers, if they are not out yet.

        Returns:
            The writer of the body.
        """
        if self._writer is None:
            self._writer = await self.response.prepare(self._request)
            assert self._writer is not None
        return self._writer

    async def write(self, data: bytes) -> None:
        """Write a piece of the body in one write, then let a reader in the same event loop see it.

        Args:
            data: Bytes of the body; none only sends the head.

        Raises:
            ConnectionError: The client has gone.
        """
        await self.send_head()
        if data:
            await self.response.write(data)
        await _let_the_peer_read()

    async def write_unframed(self, data: bytes) -> None:
        """Write bytes to the socket as they are, past the framing of the body.

        Args:
            data: What the socket gets.

        Raises:
            ConnectionError: The client has gone.
        """
        await self.send_head()
        self._transport().write(data)
        await _let_the_peer_read()

    async def end(self) -> None:
        """End the body properly. Does nothing when it has ended already.

        Raises:
            ConnectionError: The client has gone.
        """
        if not self.ended:
            await self.send_head()
            await self.response.write_eof()
            self.ended = True

    async def silence(self) -> None:
        """Do nothing until the connection is gone, which cancels this task."""
        await asyncio.Event().wait()

    async def cut(self) -> None:
        """Close the connection (FIN) after what was written, without ending the body."""
        transport = self._transport()
        self.hung_up = True
        transport.close()
        await self.silence()

    async def reset(self) -> None:
        """Break the connection (RST) once the kernel has all that was written."""
        transport = self._transport()
        if self._writer is not None:
            transport.set_write_buffer_limits(0)
            await self._writer.drain()
        self.hung_up = True
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        transport.abort()
        await self.silence()

    async def end_and_close(self) -> None:
        """End the body properly and close the connection, which the headers promised to keep."""
        await self.end()
        self._transport().close()

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        return transport


async def _let_the_peer_read() -> None:
    # The loop polls the sockets between two turns. After the first turn the reader's callback is queued behind this
    # task, after the second it has run: so every write is a read of its own to a client in this loop.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
