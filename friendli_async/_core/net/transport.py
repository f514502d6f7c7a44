"""The connection pool. The only module that knows aiohttp: what it raises is translated here."""

from __future__ import annotations

import asyncio
import os
import ssl as ssl_module
import threading
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Final
from urllib import request as urllib_request

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from friendli_async._core.body.forms import Form, Sending, readable
from friendli_async._core.net.clock import Call, PhaseClock, expired
from friendli_async._core.net.compression import inflater
from friendli_async._core.net.dialing import keepalive_socket, parsed_url, proxy_finder, same_origin
from friendli_async._core.net.guard import close_soon, guarded
from friendli_async._core.net.slots import Slots
from friendli_async._core.protocol import Request
from friendli_async.errors import (
    APIConnectionError,
    ConfigurationError,
    FriendliError,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async.replies import Headers

__all__ = ["Exchange", "Transport"]

_DRAIN_SECONDS: Final = 0.5
_REUSE_SECONDS: Final = 0.02
_MAX_REDIRECTS: Final = 5
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_NO_BODY_TYPE: Final = ("Content-Type",)
# What can be raised where a connection breaks; RuntimeError is aiohttp's "Connection closed.".
# the parser's own errors come through where it is not the C one.
_BROKEN: Final = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)


class _Dial:
    """What the connector finds out about one attempt's connection, for the code that asked for it."""

    __slots__ = ("clock", "connected", "fresh", "protocol", "reused", "sending")

    def __init__(self, clock: PhaseClock, *, fresh: bool = False) -> None:
        self.clock = clock
        self.fresh = fresh
        self.connected = False
        self.reused = False
        self.protocol: object = None
        self.sending: Sending | None = None

    def moved(self) -> None:
        """A piece of the body is on its way: the wait for the reply begins when the last one is."""
        if self.connected:
            self.clock.phase("first_event")

    @property
    def source_error(self) -> Exception | None:
        """What was wrong with the source of the body."""
        return None if self.sending is None else self.sending.error


_dial: ContextVar[_Dial] = ContextVar("friendli_async_dial")


class _Protocol(ResponseHandler):
    """Knows whether the peer has said anything since the connection was handed out."""

    heard = False

    def data_received(self, data: bytes) -> None:
        self.heard = True
        super().data_received(data)


class _Connector(aiohttp.TCPConnector):
    """Tells when a connection is there, and whether it came from the pool."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        dial = _dial.get()
        dial.connected = True
        dial.protocol = connection.protocol
        if isinstance(connection.protocol, _Protocol):
            connection.protocol.heard = False
        dial.clock.phase("first_event")
        return connection

    async def _get(self, key: Any, traces: Any) -> Any:
        dial = _dial.get()
        connection = None if dial.fresh else await super()._get(key, traces)
        dial.reused = connection is not None
        if connection is None:
            dial.clock.phase("connect")
        return connection


class _Pool:
    """What one event loop has of the client: a session, its places, the exchanges under way."""

    def __init__(self, session: aiohttp.ClientSession, slots: Slots, *, owned: bool) -> None:
        self.session = session
        self.slots = slots
        self.owned = owned
        self.loop = asyncio.get_running_loop()
        self.exchanges: set[Exchange] = set()
        self.draining: deque[Exchange] = deque(maxlen=64)

    async def drained(self) -> None:
        """Gives the last stream's connection a moment to come back, which costs less than to open another."""
        if self.draining:
            await self.draining.pop().drained()

    async def close(self, reason: str) -> None:
        """Ends everything under way, waking whoever waits, and closes the session if it is ours."""
        self.slots.close()
        for exchange in tuple(self.exchanges):
            exchange.wake(StreamInterruptedError(reason))
        if self.owned:
            await self.session.close()
            await asyncio.sleep(0)  # lets the loop run the closed sockets' last callbacks


class Exchange:
    """One request and its reply under way: holds a place in the pool until it is finished or aborted."""

    __slots__ = (
        "_closed",
        "_content",
        "_drain",
        "_gone",
        "_inflate",
        "_pool",
        "_response",
        "headers",
        "loop",
        "status",
    )

    def __init__(self, pool: _Pool, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = Headers(response.headers.items())
        self.loop = pool.loop
        self._pool: _Pool | None = pool
        self._response = response
        self._content = response.content
        self._inflate = inflater(response.headers.get("Content-Encoding", ""))
        self._drain: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None
        self._closed = _closed_future(response)
        if self._closed is not None:
            self._closed.add_done_callback(self._connection_closed)
        pool.exchanges.add(self)

    async def read(self) -> bytes:
        """Returns the next bytes of the body, decompressed; b"" at its end.

        Raises:
            APIConnectionError: The connection broke, or the body's framing did.
            ResponseDecodeError: The compression is broken, or one that was not asked for.
            FriendliError: What ``wake`` was called with.
        """
        inflate = self._inflate
        if inflate is None:
            return await self._read_raw()
        while True:
            data = await self._read_raw() if inflate.hungry else b""
            if not data and inflate.hungry:
                if not inflate.finished:
                    raise APIConnectionError("the compressed reply was cut off", sent=True)
                return b""
            if plain := inflate.step(data):
                return plain

    async def _read_raw(self) -> bytes:
        try:
            return await self._content.readany()
        except FriendliError:  # what wake() set; a time limit's error is an OSError, too
            raise
        except _BROKEN as error:
            reason = _describe(error)
        # The reader raises at once what happened last; the bytes that came before it are still there.
        rest = self._content._read_nowait(-1)  # pyright: ignore[reportPrivateUsage]  # no public way to them
        if rest:
            return rest
        raise APIConnectionError(f"the connection broke while the reply was being read: {reason}", sent=True)

    async def read_all(self, limit: int) -> bytes:
        """Returns the whole body and finishes the exchange.

        Raises:
            ResponseDecodeError: It is larger than ``limit`` bytes.
        """
        first = await self.read()
        pieces = [first]
        size = len(first)
        while size <= limit and (piece := await self.read() if first else b""):
            pieces.append(piece)
            size += len(piece)
        if size > limit:
            raise ResponseDecodeError(f"the reply is larger than the limit of {limit} bytes (Limits.reply)")
        self.finish()
        return first if len(pieces) == 1 else b"".join(pieces)

    async def read_some(self, limit: int, seconds: float) -> bytes:
        """Returns what comes of an error's body within ``limit`` bytes and ``seconds``, and finishes the exchange.

        Never raises for what is wrong with it.
        """
        body = b""
        try:
            async with asyncio.timeout(seconds):
                while len(body) < limit:
                    piece = await self.read()
                    if not piece:
                        self.finish()
                        return body
                    body += piece
        except (TimeoutError, FriendliError):
            pass
        self.abort()
        return body[:limit]

    def wake(self, error: FriendliError) -> None:
        """Aborts; whoever is reading, or reads next, gets the error."""
        if (
            not self._content.is_eof()
        ):  # at its end there is nobody to wake, and the content may be aiohttp's shared one
            self._content.set_exception(error)
        self.abort()

    def abort(self) -> None:
        """Closes the connection at once, and synchronously. In the loop's thread only."""
        if self._pool is None:
            return
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # close() alone would first flush, and over TLS say goodbye
        self._response.close()
        self._let_go()

    def finish(self) -> None:
        """Gives the connection back, to be used again, as soon as the body has ended; soon, or it is closed.

        Nobody waits for that: what the server still says is ignored.
        """
        if self._pool is None or self._drain is not None:
            return
        if self._content.is_eof():
            self._response.release()
            self._let_go()
        elif self._content.exception() is not None:
            self.abort()
        else:
            self._drain = self.loop.call_later(_DRAIN_SECONDS, self.abort)
            self._content.on_eof(self._let_go)
            self._pool.draining.append(self)

    async def drained(self) -> None:
        """Waits a moment for the end of a body that was finished just now."""
        if self._pool is None or self._drain is None:
            return
        left = self._drain.when() - _DRAIN_SECONDS + _REUSE_SECONDS - self.loop.time()
        if left > 0:
            self._gone = self.loop.create_future()
            timer = self.loop.call_later(left, _release, self._gone)
            try:
                await self._gone
            finally:
                timer.cancel()

    def _let_go(self) -> None:
        pool, self._pool = self._pool, None
        if self._drain is not None:
            self._drain.cancel()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if pool is not None and self in pool.draining:
            pool.draining.remove(self)
        if self._closed is not None:
            self._closed.remove_done_callback(self._connection_closed)
        if pool is not None:
            pool.exchanges.discard(self)
            pool.slots.release()

    def _connection_closed(self, closed: asyncio.Future[None]) -> None:
        """Wakes the reader of a dead connection: after garbage in chunked framing aiohttp does not."""
        content = self._content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection was closed, or the framing is broken"))


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _closed_future(response: aiohttp.ClientResponse) -> asyncio.Future[None] | None:
    """The future that is done once the connection is closed; None where it is back in the pool already."""
    connection = response.connection
    closed = connection.protocol.closed if connection is not None and connection.protocol is not None else None
    if closed is not None:
        closed.remove_done_callback(_retrieve)  # from the connection's earlier exchange
        closed.add_done_callback(_retrieve)
    return closed


def _retrieve(closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()  # or asyncio complains that nobody asked


class Transport:
    """Sends requests over one pool per event loop.

    Args:
        max_connections: Places per loop.
        proxy: Proxy URL; None takes the environment's, read now.
        ssl: TLS context, or False for no verification; None is the default verification.
        session: A session to use as it is, instead of one of ours. It is never closed.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        proxy: str | None,
        ssl: ssl_module.SSLContext | bool | None,
        session: aiohttp.ClientSession | None,
    ) -> None:
        self.closed = False
        self._max_connections = max_connections
        self._ssl = True if ssl is None else ssl
        self._session = session
        self._pools: dict[asyncio.AbstractEventLoop, tuple[_Pool, AsyncGenerator[None, None]]] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.calls: set[Call] = set()
        """Calls that are being opened or wait for their next attempt."""
        self._proxy_for = proxy_finder(proxy, {} if session is not None else urllib_request.getproxies())

    async def send(self, request: Request, clock: PhaseClock) -> Exchange:
        """Sends a request and waits for the reply's status and headers; redirects to the same origin are followed.

        Args:
            request: What to send.
            clock: Told the phases as they begin; its limits end them.

        Raises:
            APIConnectionError: There was no reply; ``sent`` says whether the request can have been accepted.
            ConfigurationError: The client is closed, or the session that was passed in is.
        """
        pool = self._pool()
        slots = pool.slots
        await pool.drained()
        if not slots.free:
            clock.phase("pool", lambda: f"{slots.in_use} of {slots.limit} connections in use")
        await slots.acquire()
        try:
            response = await self._followed(pool, request, clock)
        except BaseException:
            pool.slots.release()
            raise
        return Exchange(pool, response)

    async def _followed(self, pool: _Pool, request: Request, clock: PhaseClock) -> aiohttp.ClientResponse:
        url = parsed_url(request.url)
        for _ in range(_MAX_REDIRECTS):
            response = await self._request(pool, request, url, clock)
            target = response.headers.get("Location") if response.status in {307, 308} else None
            if target is None or not request.sendable:
                return response
            there = same_origin(url, target)
            if there is None:
                return response
            response.close()
            url = there
        return await self._request(pool, request, url, clock)

    async def _request(self, pool: _Pool, request: Request, url: URL, clock: PhaseClock) -> aiohttp.ClientResponse:
        """One request; a pooled connection of ours that proves dead is replaced by a fresh one, once a call."""
        dial = _Dial(clock, fresh=clock.replaced)
        problem: Exception | None = None
        try:
            return await self._sent(pool, request, url, dial)
        except (*_BROKEN, ValueError) as error:
            if not self._stale(error, request, dial):
                problem = self._translated(error, dial, pool)
        if problem is None:
            clock.replaced = True
            dial = _Dial(clock, fresh=True)
            try:
                return await self._sent(pool, request, url, dial)
            except (*_BROKEN, ValueError) as error:
                problem = self._translated(error, dial, pool)
        try:
            raise problem  # outside the except block: what aiohttp raised holds the request's headers
        finally:
            del problem  # or the error's own traceback would hold it, and the request with it

    def _stale(self, error: Exception, request: Request, dial: _Dial) -> bool:
        """Whether a pooled connection died before any byte of a reply, so that the request may go out once more."""
        refused = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError)
        died = isinstance(error, aiohttp.ClientConnectionError) and not refused
        silent = dial.reused and isinstance(dial.protocol, _Protocol) and not dial.protocol.heard
        may_repeat = request.repeatable and request.sendable and dial.source_error is None
        return died and silent and may_repeat and not dial.clock.replaced and not self.closed

    async def _sent(self, pool: _Pool, request: Request, url: URL, dial: _Dial) -> aiohttp.ClientResponse:
        clock = dial.clock
        timeout = _NO_TIMEOUT
        if not pool.owned:  # a foreign connector tells nothing, so aiohttp has to mind the connecting
            timeout = aiohttp.ClientTimeout(total=None, connect=clock.timeouts.connect, sock_read=None)
            clock.phase("first_event")
        if isinstance(request.body, Form):
            dial.sending = Sending(request.body, dial.moved)
        token = _dial.set(dial)
        try:
            return await pool.session.request(
                request.method,
                url,
                headers=request.headers,
                data=dial.sending or readable(request.body),
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                skip_auto_headers=_NO_BODY_TYPE if request.body is None else None,
                timeout=timeout,
                proxy=self._proxy_for(url.scheme, url.host or "", url.port or 0),
                ssl=self._ssl,
            )
        finally:
            clock.sent = clock.sent or dial.connected or not pool.owned
            with suppress(ValueError):  # a loop that was closed under the call ends it in another context
                _dial.reset(token)
            if dial.sending is not None:
                dial.sending.stop()

    def _translated(self, error: Exception, dial: _Dial, pool: _Pool) -> Exception:
        """Says what happened in our terms. The request is not quoted: its headers hold the token."""
        if dial.source_error is not None:
            return dial.source_error
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            seconds = dial.clock.timeouts.connect or 0.0
            return expired("connect", seconds, sent=dial.clock.replaced)
        if isinstance(error, aiohttp.InvalidURL):
            return ConfigurationError("the URL is not valid")
        if isinstance(error, RuntimeError) and pool.session.closed:
            return ConfigurationError("the client is closed" if pool.owned else "the session passed in is closed")
        if isinstance(error, ValueError):  # a host name that is none, credentials of the session beside the token
            return ConfigurationError(f"the request cannot be made: {type(error).__name__}: {error}")
        if isinstance(error, aiohttp.ClientConnectorError):
            return APIConnectionError(f"could not connect: {_describe(error)}", sent=dial.clock.replaced)
        return APIConnectionError(f"no reply: {_describe(error)}", sent=dial.clock.sent)

    def _pool(self) -> _Pool:
        """The running loop's pool, made on first use."""
        if self.closed:
            raise ConfigurationError("the client is closed")
        held = self._pools.get(asyncio.get_running_loop())
        return held[0] if held is not None and self._pid == os.getpid() else self._new_pool()

    def _new_pool(self) -> _Pool:
        if self._pid != os.getpid():
            raise ConfigurationError(
                "the process was forked after this client was made: make a new client in the child"
            )
        slots = Slots(self._max_connections)
        if self._session is not None:
            pool = _Pool(self._session, slots, owned=False)
        else:
            connector = _Connector(limit=0, socket_factory=keepalive_socket)
            factory: Any = partial(_Protocol, loop=asyncio.get_running_loop())
            connector._factory = factory  # pyright: ignore[reportPrivateUsage]  # there is no public way
            session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=_NO_TIMEOUT, auto_decompress=False
            )
            pool = _Pool(session, slots, owned=True)
        guard = guarded(partial(pool.close, "the client was closed, or its event loop was shut down"))
        with self._lock:
            if self.closed:  # by another thread, in this instant
                raise ConfigurationError("the client is closed")
            for loop in [loop for loop in self._pools if loop.is_closed()]:
                del self._pools[loop]
            self._pools[pool.loop] = pool, guard
        return pool

    async def close(self) -> None:
        """Closes every loop's pool; this loop's has closed when it returns, the others' are told to."""
        self.closed = True
        with self._lock:
            held = list(self._pools.values())
            self._pools.clear()
        here = asyncio.get_running_loop()
        for pool, _ in held:
            if pool.loop is here:
                pool.slots.close()  # first: who waits in line has sent nothing, and is told so
        for call in tuple(self.calls):
            closed = APIConnectionError("the client was closed")
            if call.loop is here:
                call.interrupt(closed)
            else:
                with suppress(RuntimeError):  # that loop has closed
                    call.loop.call_soon_threadsafe(call.interrupt, closed)
        for pool, guard in held:
            if pool.loop is here:
                await guard.aclose()
            else:
                with suppress(RuntimeError):  # that loop has closed, and its pool with it
                    pool.loop.call_soon_threadsafe(close_soon, guard)


def _describe(error: BaseException) -> str:
    """Names an error of aiohttp without its request (``ClientResponseError`` quotes it) and without our types."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{type(error).__name__}: {error.message}"[:200]
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    text = str(error)
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
