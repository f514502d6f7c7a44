"""The connection pool: one per event loop. What aiohttp raises is translated here."""

from __future__ import annotations

import asyncio
import atexit
import os
import ssl as ssl_module
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import aiohttp
from yarl import URL

from friendli_async._core.body.forms import Form, Sending, readable
from friendli_async._core.held import Held, forget
from friendli_async._core.net.dialing import (
    Connector,
    Delivery,
    PooledProtocol,
    Proxy,
    WarmedUp,
    dialing,
    keepalive_socket,
    parsed_url,
    proxies,
    proxy_finder,
    same_origin,
)
from friendli_async._core.net.exchange import AiohttpExchange, Exchange
from friendli_async._core.net.failures import BROKEN, failed_connecting, translated
from friendli_async._core.net.guard import Guard, close_soon, guarded
from friendli_async._core.net.posting import CAN_POST, NO_TIMEOUT, Poster
from friendli_async._core.net.slots import Slots
from friendli_async._core.protocol import Request
from friendli_async._core.secret import Secret
from friendli_async.errors import ConfigurationError, StreamInterruptedError
from friendli_async.replies import LoopGauges

__all__ = ["AiohttpTransport", "Session", "Transport"]

Session: TypeAlias = aiohttp.ClientSession
"""A session that a user may pass in."""

_MAX_REDIRECTS: Final = 5
_NO_BODY_TYPE: Final = ("Content-Type",)

_abandoned: Final[list[object]] = []  # pools of a parent process: kept, so that nothing finalizes them


class Transport(Protocol):
    """What the call loop needs of the network. ``AiohttpTransport`` is the real one; a test may be another."""

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        ...

    async def send(self, request: Request, delivery: Delivery) -> Exchange:
        """Sends a request and waits for the reply's status and headers.

        Raises:
            APIConnectionError: There was no reply; ``sent`` says whether the request can have been accepted.
            ConfigurationError: The client is closed, or the session that was passed in is.
        """
        ...

    async def warm(self, url: str, delivery: Delivery) -> None:
        """Opens a connection to where a URL leads, and leaves it in the pool. Raises what ``send`` raises."""
        ...

    def gauges(self) -> list[LoopGauges]:
        """The connections of each loop that is running."""
        ...

    def abort(self, reason: str) -> None:
        """Ends every exchange under way, in all loops."""
        ...

    def shut(self) -> None:
        """Lets no call begin any more, and turns away who waits for a place in this loop: nothing was sent."""
        ...

    async def close(self) -> None:
        """Closes every loop's pool; this loop's has closed when it returns, the others' are told to."""
        ...


class _Pool:
    """What one event loop has of the client: a session, its places, the exchanges under way."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        slots: Slots,
        changed: Callable[[], None],
        alive: set[PooledProtocol] | None,
        poster: Poster | None = None,
    ) -> None:
        self.session = session
        self.slots = slots
        self.owned = alive is not None
        self.poster = poster
        self.alive: set[PooledProtocol] = set() if alive is None else alive  # the connector's own, empty as yet
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.exchanges: set[AiohttpExchange] = set()
        self.draining: deque[AiohttpExchange] = deque(maxlen=64)  # the latest: older ones have ended, or will not
        self.exchange_ended = changed
        self._closed: asyncio.Future[None] | None = None

    def gauges(self) -> LoopGauges:
        idle = sum(1 for protocol in tuple(self.alive) if protocol.idle)
        streams = sum(1 for exchange in tuple(self.exchanges) if exchange.streaming)
        return LoopGauges(in_use=self.slots.in_use, idle=idle, waiting=self.slots.waiting, open_streams=streams)

    def abort(self, reason: str) -> None:
        for exchange in tuple(self.exchanges):
            exchange.wake(StreamInterruptedError(reason))

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

    def abandon(self) -> None:
        """In a forked child: lets go of the parent's sockets without a word on the wire, which is the parent's."""
        for protocol in self.alive:
            transport = protocol.transport
            connection = None if transport is None else transport.get_extra_info("socket")
            if connection is not None and (number := connection.fileno()) >= 0:
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, number)  # not closed: the number would be another file's, and closed once more
                os.close(nowhere)
        _abandoned.append(self)


_Pools: TypeAlias = dict[asyncio.AbstractEventLoop, tuple[_Pool, Guard]]
_transports: Final[weakref.WeakSet[AiohttpTransport]] = weakref.WeakSet()


def _after_fork() -> None:
    """A child lets go of what it has inherited, also where it never uses it.

    At the child's exit aiohttp would take the sockets out of the poll that both processes share, and the parent would
    hear no more of them.
    """
    for transport in list(_transports):
        transport.leave_the_parent()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    """Loops that were closed without being shut down, or not at all (nest_asyncio's), have left their pools open."""
    for transport in list(_transports):
        transport.discard()


class AiohttpTransport:
    """Sends requests over one pool per event loop.

    Args:
        max_connections: Places per loop.
        proxy: Proxy URL; None takes the environment's, read now.
        ssl: TLS context, or False for no verification; None is aiohttp's own verification.
        session: A session to use as it is, instead of one of ours. It is never closed.
        changed: Called when an exchange has ended, in its loop.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        proxy: str | None,
        ssl: ssl_module.SSLContext | bool | None,
        session: aiohttp.ClientSession | None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.closed = False
        self._max_connections = max_connections
        self._ssl = True if ssl is None else ssl
        self._session = session
        self._changed = changed
        self._pools: _Pools = {}
        # Not by a ``__del__``: the finalizer holds the pools, so that they are no part of a cycle that the client is
        # in. The garbage collector would finalize aiohttp's connector with it, in any order, and that one complains.
        weakref.finalize(self, _close_all, self._pools).atexit = False
        self._lock = threading.Lock()
        self._pid = os.getpid()
        _transports.add(self)
        environment = {} if session is not None else proxies()
        self._proxy_for = proxy_finder(None if proxy is None else Secret(proxy), environment)

    async def send(self, request: Request, delivery: Delivery) -> Exchange:
        """Sends a request; redirects to the same origin are followed. See ``Transport``.

        A pooled connection of ours that proves dead is replaced by a fresh one, once a call.
        """
        pool = await self._place(delivery)
        try:
            url, hops = parsed_url(request.url), 0
            while True:
                problem: Held[Exception] | None = None
                try:
                    response = await self._sent(pool, request, url, delivery)
                except Exception as error:
                    if pool.owned and not isinstance(error, (*BROKEN, ValueError)):
                        raise  # a foreign connector may raise anything
                    if not self._stale(error, request, delivery):
                        problem = Held(self._translated(error, delivery, pool))
                    forget(error)
                else:
                    there = _redirection(response, url) if request.sendable and hops < _MAX_REDIRECTS else None
                    if there is None:
                        return AiohttpExchange(pool, response)
                    response.close()
                    url, hops = there, hops + 1
                    continue
                if problem is not None:
                    raise problem.take()  # outside the except block: what aiohttp raised holds the request's headers
                delivery.fresh = True
        except BaseException:
            pool.slots.release()
            self._changed()
            raise

    async def warm(self, url: str, delivery: Delivery) -> None:
        """Opens a connection and leaves it in the pool; see ``Transport``."""
        pool = await self._place(delivery)
        try:
            if not pool.owned:
                raise ConfigurationError(
                    "the session is not the client's, so its connections are not the client's to open"
                )
            await self._sent(pool, Request(method="GET", url=url, path="", headers={}), parsed_url(url), delivery)
            return  # what is asked for ends with WarmedUp
        except WarmedUp:
            return
        except (*BROKEN, ValueError) as error:
            problem = Held(self._translated(error, delivery, pool))
            forget(error)
        finally:
            pool.slots.release()
        raise problem.take()

    async def _place(self, delivery: Delivery) -> _Pool:
        """The running loop's pool, with a place in it."""
        held = self._pools.get(asyncio.get_running_loop())
        pool = held[0] if held is not None and not self.closed and self._pid == os.getpid() else self._new_pool()
        if pool.draining and not any(protocol.idle for protocol in pool.alive):
            # A moment for the last stream's connection to come back costs less than to open another.
            await pool.draining.pop().drained()
        if not pool.slots.take():
            slots, clock = pool.slots, delivery.clock
            clock.phase("pool", lambda: f"{slots.in_use} of {slots.limit} connections in use")
            began = clock.now()
            try:
                await slots.acquire()
            finally:
                delivery.queued = clock.now() - began
        return pool

    def _stale(self, error: Exception, request: Request, delivery: Delivery) -> bool:
        """Whether a pooled connection died before any byte of a reply, so that the request may go out once more."""
        refused = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError)
        died = isinstance(error, aiohttp.ClientConnectionError) and not refused
        silent = delivery.reused and delivery.protocol is not None and not delivery.protocol.heard
        may_repeat = request.repeatable and request.sendable and delivery.source_error is None
        return died and silent and may_repeat and not delivery.fresh and not self.closed

    async def _sent(self, pool: _Pool, request: Request, url: URL, delivery: Delivery) -> aiohttp.ClientResponse:
        clock = delivery.clock
        if not pool.owned:  # a foreign connector tells nothing
            clock.phase("first_event")
        body, poster = request.body, pool.poster
        proxy = self._proxy_for(url.scheme, url.host or "", url.port or 0)
        delivery.begin(url.authority, None if proxy.url is None else parsed_url(proxy.url).authority)
        token = dialing.set(delivery)
        try:
            if poster is not None and poster.takes(body) and proxy.url is None:
                response = await poster.post(request.method, url, request.headers, body)
            else:
                response = await self._through_session(pool, request, url, delivery, proxy)
            delivery.connected = True
            return response
        except BaseException as error:
            delivery.connected |= not pool.owned and not failed_connecting(error, pool.session.connector)
            raise
        finally:
            clock.sent = clock.sent or delivery.connected
            with suppress(ValueError):  # a loop that was closed under the call ends it in another context
                dialing.reset(token)
            if delivery.sending is not None:
                delivery.sending.stop()

    async def _through_session(
        self, pool: _Pool, request: Request, url: URL, delivery: Delivery, proxy: Proxy
    ) -> aiohttp.ClientResponse:
        timeout = NO_TIMEOUT
        if not pool.owned:  # so aiohttp has to mind the connecting
            timeout = aiohttp.ClientTimeout(total=None, connect=delivery.clock.timeouts.connect, sock_read=None)
        body = request.body
        if isinstance(body, Form):
            delivery.sending = Sending(body, delivery.moved)
        tunnelled = url.scheme == "https"
        return await pool.session.request(
            request.method,
            url,
            headers=request.headers if tunnelled or not proxy.headers else {**request.headers, **proxy.headers},
            data=delivery.sending or readable(body),
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=False,
            skip_auto_headers=_NO_BODY_TYPE if body is None else None,
            timeout=timeout,
            proxy=proxy.url,
            proxy_headers=proxy.headers if tunnelled and proxy.headers else None,
            ssl=self._ssl,
        )

    def _translated(self, error: Exception, delivery: Delivery, pool: _Pool) -> Exception:
        return translated(error, delivery, owned=pool.owned, closed=pool.session.closed)

    def _new_pool(self) -> _Pool:
        """The running loop's pool, made on first use."""
        if self.closed:
            raise ConfigurationError("the client is closed")
        if self._pid != os.getpid():
            self.leave_the_parent()
        slots = Slots(self._max_connections)
        if self._session is not None:
            pool = _Pool(self._session, slots, self._changed, None)
        else:
            alive: set[PooledProtocol] = set()
            # No limit of aiohttp's: the places are ours, in order, and with a time limit of their own.
            connector = Connector(limit=0, socket_factory=keepalive_socket)
            factory: Any = partial(PooledProtocol, asyncio.get_running_loop(), alive)
            connector._factory = factory  # pyright: ignore[reportPrivateUsage]  # there is no public way
            # Not decompressed by aiohttp: ``compression`` does it in steps, so that our size limits hold.
            session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=NO_TIMEOUT, auto_decompress=False
            )
            pool = _Pool(session, slots, self._changed, alive, Poster(session, self._ssl) if CAN_POST else None)
        guard = guarded(partial(pool.close, "the event loop of the client was shut down"))
        with self._lock:
            if self.closed:  # by another thread, in this instant
                raise ConfigurationError("the client is closed")
            for loop in [loop for loop in self._pools if loop.is_closed()]:
                self._pools.pop(loop)[0].discard()
            self._pools[pool.loop] = pool, guard
        return pool

    def leave_the_parent(self) -> None:
        """In a forked child: what the parent had open stays the parent's, and the child begins anew."""
        held = list(self._pools.values())
        self._pools.clear()
        self._lock = threading.Lock()  # another thread of the parent may have held it
        for pool, guard in held:
            pool.abandon()
            _abandoned.append(guard)
        self._pid = os.getpid()

    def discard(self) -> None:
        """Gives up the pools whose loops run no more."""
        for pool, _ in tuple(self._pools.values()):
            pool.discard()

    def gauges(self) -> list[LoopGauges]:
        """The connections of each loop; see ``Transport``."""
        return [pool.gauges() for pool, _ in tuple(self._pools.values()) if not pool.loop.is_closed()]

    def abort(self, reason: str) -> None:
        """Ends every exchange under way; see ``Transport``."""
        for pool, _ in tuple(self._pools.values()):
            if pool.loop is asyncio.get_running_loop():
                pool.abort(reason)
            else:
                with suppress(RuntimeError):  # that loop has closed
                    pool.loop.call_soon_threadsafe(pool.abort, reason)

    def shut(self) -> None:
        """Lets no call begin any more; see ``Transport``."""
        self.closed = True
        held = self._pools.get(asyncio.get_running_loop())
        if held is not None:
            held[0].slots.close()

    async def close(self) -> None:
        """Closes every loop's pool; see ``Transport``."""
        self.shut()
        with self._lock:
            held = list(self._pools.values())
            self._pools.clear()
        here = asyncio.get_running_loop()
        for pool, guard in held:
            if pool.loop is here:
                await pool.close("the client was closed")
                await guard.aclose()
            else:
                _close_soon(pool, guard)


def _close_all(pools: _Pools) -> None:
    """Closes the pools of a client that is gone, each in its loop."""
    for pool, guard in pools.values():
        if pool.pid == os.getpid():
            _close_soon(pool, guard)


def _close_soon(pool: _Pool, guard: Guard) -> None:
    try:
        pool.loop.call_soon_threadsafe(close_soon, partial(pool.close, "the client was closed"), guard)
    except RuntimeError:  # that loop has closed, and its pool with it, unless it was not shut down
        pool.discard()


def _redirection(response: aiohttp.ClientResponse, url: URL) -> URL | None:
    """Where a reply sends the same request to, at the same origin; None if it does not."""
    target = response.headers.get("Location") if response.status in {307, 308} else None
    return None if target is None else same_origin(url, target)
