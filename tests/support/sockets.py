"""Shared by tests of streams and connections: calls, checks for leaks, and a server of exact bytes."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import struct
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import http_parser
from support.clock import run_until

from friendli_async import AsyncFriendli, ChatCompletion, ChatStream, RetryPolicy
from friendli_async._core.net.transport import AiohttpTransport
from friendli_async.testing import FriendliServer
from friendli_async.tools import Run

T = TypeVar("T")

TOKEN = "test-token"
MESSAGES = [{"role": "user", "content": "Hi"}]
FAST_RETRY = RetryPolicy(initial=0.0, max_wait=0.0)
"""The default policy without its waits."""
IS_PURE_PARSER = http_parser.HttpResponseParser is http_parser.HttpResponseParserPy
"""Whether aiohttp parses in Python: it reports less as broken, and waits longer for the end of a line."""


def client_of(url: str, **options: Any) -> AsyncFriendli:
    """Returns a client of a server on loopback, by default without retries."""
    return AsyncFriendli(TOKEN, **{"server_url": url, "container_url": url, "retry": None, **options})


def open_stream(client: AsyncFriendli, **options: Any) -> ChatStream:
    return client.serverless.chat.stream(model="m", messages=MESSAGES, **options)


async def opened_stream(client: AsyncFriendli) -> ChatStream:
    """Returns a stream that is open: a coroutine, as an event loop requires."""
    return await open_stream(client)


async def complete(client: AsyncFriendli, **options: Any) -> ChatCompletion:
    return await client.serverless.chat.complete(model="m", messages=MESSAGES, **options)


def start_run(client: AsyncFriendli, *tools: Any, **options: Any) -> Run:
    return client.serverless.chat.run(model="m", messages=MESSAGES, tools=tools, **options)


async def with_timeout(awaitable: Awaitable[T], seconds: float = 30.0) -> T:
    """Awaits with a timeout that only guards against hangs."""
    async with asyncio.timeout(seconds):  # not wait_for, which may swallow a cancellation in 3.11
        return await awaitable


async def read(stream: ChatStream, seconds: float = 30.0) -> str:
    """Reads to the end with a timeout, and returns the text."""
    async with asyncio.timeout(seconds):
        return "".join([chunk.text async for chunk in stream])


async def read_into(seen: list[str], source: AsyncIterable[Any]) -> None:
    """Reads to the end, and appends the text of each event; also keeps those before an error."""
    async with asyncio.timeout(30):
        async for event in source:
            seen.append(event if isinstance(event, str) else event.text)  # noqa: PERF401  # a comprehension would lose them on an error


# --- leaks -----------------------------------------------------------------------------------------------------------


def transport_of(client: AsyncFriendli) -> AiohttpTransport:
    """Returns the client's connection pools, for which there is no public API."""
    transport = client._runtime.transport
    assert isinstance(transport, AiohttpTransport)
    return transport


def slots_in_use(client: AsyncFriendli) -> int:
    """Returns the connection slots in use."""
    return sum(pool.slots.in_use for pool, _ in transport_of(client)._pools.values())


async def assert_no_leaks(client: AsyncFriendli, server: FriendliServer, connections: int | None = 0) -> None:
    """Waits until the server has that many connections, then checks that no slot and no task has leaked.

    Pass None if the end of the body may or may not have arrived: if so, its connection stays in the pool for 15 s.
    """
    if connections is not None:
        await server.wait_for_connections(connections, timeout=30)
    await server.idle(timeout=30)
    await run_until(lambda: not slots_in_use(client))  # the client reads the end of a body after the server writes it
    assert slots_in_use(client) == 0
    assert library_tasks() == []


def library_tasks() -> list[str]:
    """Returns the unfinished tasks of this loop that belong to neither the test nor the embedded server."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    names = [str(task.get_coro()) for task in others]
    return [name for name in names if "RequestHandler." not in name and "testing" not in name]


def client_sockets(url: str) -> Iterator[socket.socket]:
    """Yields duplicates of this process's sockets that are connected to the server, and closes them."""
    port = int(url.rpartition(":")[2])
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue  # a duplicate of anything else would leak, and block the engine
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with found, contextlib.suppress(OSError):
            if found.family == socket.AF_INET and found.getpeername()[1] == port:
                yield found


@contextlib.contextmanager
def unresponsive_port() -> Iterator[int]:
    """A loopback port that never answers a SYN, because its accept queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


# --- exact bytes -----------------------------------------------------------------------------------------------------

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
UNFRAMED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"


def sse(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(text: str | None = None, finish: str | None = None) -> bytes:
    content = {} if text is None else {"content": text}
    return sse({"choices": [{"index": 0, "delta": content, "finish_reason": finish}]})


def chunked(data: bytes) -> bytes:
    """Frames data as one chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def reply(data: bytes, *, status: str = "200 OK", kind: str = "application/json", headers: str = "") -> bytes:
    """Returns a complete HTTP response."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def completion(text: str = "whole") -> bytes:
    """Returns the response body of a plain call."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


class Conversation:
    """One accepted connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        """Counted from 1."""
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """Reads the next request, head and body; b"" once the client has disconnected."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return head + await self._reader.readexactly(int(value))
        return head

    async def request_head(self) -> bytes:
        """Reads the head of the next request, and leaves its body unread."""
        return await self._reader.readuntil(b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def wait_disconnected(self) -> None:
        """Waits until the client has closed or reset the connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class RawServer:
    """A server on a loopback port whose connections are scripted byte by byte.

    Args:
        talk: Called with each connection, which is closed when it returns.
    """

    def __init__(self, talk: Callable[[Conversation], Awaitable[None]]) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._talk = talk
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        conversation = Conversation(number, reader, writer)
        try:
            with contextlib.suppress(ConnectionError):
                await self._talk(conversation)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def serve_bytes(*pieces: bytes, hang: bool = False) -> RawServer:
    """Returns a server that answers the first request of each connection with these pieces, one write each.

    Args:
        pieces: The bytes to send.
        hang: Whether it then keeps the connection open, without sending, until the client disconnects.
    """

    async def talk(conversation: Conversation) -> None:
        server.requests.append(await conversation.request())
        for piece in pieces:
            await conversation.send(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if hang:
            await conversation.wait_disconnected()

    server = RawServer(talk)
    return server


BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""A server's answer to a TLS handshake that it reads as HTTP."""


def serve_handshake(data: bytes) -> RawServer:
    """Returns a server that answers a TLS handshake with these bytes.

    A server of aiohttp with its parser in Python waits for more instead if the random bytes of the handshake contain
    the end of a line.
    """

    async def talk(conversation: Conversation) -> None:
        await conversation._reader.read(100)
        await conversation.send(data)
        await conversation.wait_disconnected()

    return RawServer(talk)
