"""Sending one reply: the only part that uses aiohttp's response and its socket."""

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

# `struct linger` is two ints, two shorts on Windows: enabled with zero seconds, so that closing sends RST.
_LINGER_ZERO: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class ReplyWriter:
    """Writes one reply step by step, and can break its connection.

    The status line and the headers are sent with the first write, or before by `send_head`. What writes raises
    ConnectionError once the client has disconnected.

    Args:
        request: The request to answer.
        status: HTTP status.
        headers: Headers of the reply. Without `Content-Length` the body is chunked.
        identity: The fields that all chunks of this reply share.
    """

    def __init__(self, request: web.BaseRequest, status: int, headers: CIMultiDict[str], identity: Identity) -> None:
        self.identity = identity
        self.response: web.StreamResponse = web.StreamResponse(status=status, headers=headers)
        self.ended: bool = False
        """Whether the reply was sent completely."""
        self.hung_up: bool = False
        """Whether this side broke the connection."""
        self._request = request
        self._writer: AbstractStreamWriter | None = None

    async def send_head(self) -> None:
        """Send the status line and the headers, if that has not been done."""
        if self._writer is None:
            self._writer = await self.response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        """Write a part of the body in one write, then let a reader in the same event loop receive it.

        Args:
            data: Bytes of the body; if empty, only the head is sent.
        """
        await self.send_head()
        if data:
            await self.response.write(data)
        await _let_client_read()

    async def end(self) -> None:
        """End the body properly. Does nothing if it has ended already."""
        if not self.ended:
            await self.send_head()
            await self.response.write_eof()
            self.ended = True

    async def silence(self) -> None:
        """Do nothing until the connection is lost, which cancels this task."""
        await asyncio.Event().wait()

    async def cut(self) -> None:
        """Close the connection (FIN) after the bytes written, without ending the body."""
        transport = self._transport()
        self.hung_up = True
        transport.close()
        await self.silence()

    async def reset(self) -> None:
        """Break the connection (RST) once the kernel has all bytes written."""
        transport = self._transport()
        if self._writer is not None:
            transport.set_write_buffer_limits(0)
            await self._writer.drain()
        self.hung_up = True
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        transport.abort()
        await self.silence()

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client disconnected")
        return transport


async def _let_client_read() -> None:
    # The loop polls the sockets between two iterations. After the first one the callback of the reader is scheduled
    # behind this task, after the second one it has run: a client in this loop reads every write separately.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
