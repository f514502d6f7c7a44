"""Sends requests: over the pool of the running loop, past dead connections, through redirects and proxies."""

from __future__ import annotations

import asyncio
import ssl as ssl_module
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Final, Protocol, TypeAlias

import aiohttp
from yarl import URL

from friendli_async._core.body.forms import Form, Sending, readable
from friendli_async._core.held import Held, forget
from friendli_async._core.net.dialing import DialContext, WarmedUp, dialing
from friendli_async._core.net.exchange import AiohttpExchange, Exchange
from friendli_async._core.net.failures import BROKEN, failed_connecting, translated
from friendli_async._core.net.guard import Guard, close_soon, guarded
from friendli_async._core.net.pool import Pool
from friendli_async._core.net.posting import NO_TIMEOUT
from friendli_async._core.net.proxies import Proxy, proxies, proxy_finder
from friendli_async._core.protocol import Request
from friendli_async._core.secret import Secret
from friendli_async.errors import ConfigurationError
from friendli_async.replies import LoopGauges

__all__ = ["AiohttpTransport", "Session", "Transport"]

Session: TypeAlias = aiohttp.ClientSession
"""A session that a user may pass in."""

_MAX_REDIRECTS: Final = 5
_NO_BODY_TYPE: Final = ("Content-Type",)

_Pools: TypeAlias = dict[asyncio.AbstractEventLoop, tuple[Pool, Guard]]


class Transport(Protocol):
    """What the call loop needs of the network. ``AiohttpTransport`` is the real one; a test may be another."""

    closed: bool
    """Whether calls may begin no more."""

    async def send(self, request: Request, dial: DialContext) -> Exchange:
        """Sends a request and waits for the reply's status and headers.

        Raises:
            APIConnectionError: There was no reply; ``sent`` says whether the request can have been accepted.
            ConfigurationError: The client is closed, or the session that was passed in is.
        """
        ...

    async def warm(self, url: str, dial: DialContext) -> None:
        """Opens a connection to where a URL leads, and leaves it in the pool. Raises what ``send`` raises."""
        ...

    def gauges(self) -> list[LoopGauges]:
        """The connections of each loop that is running."""
        ...

    def abort(self, reason: str) -> None:
        """Ends every exchange under way, in all loops."""
        ...

    async def close(self) -> None:
        """Closes every loop's pool; this loop's has closed when it returns, the others' are told to."""
        ...

    def leave_the_parent(self) -> None:
        """In a forked child: what the parent had open stays the parent's, and the child begins anew."""
        ...

    def discard(self) -> None:
        """Gives up what is open in loops that run no more."""
        ...


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
        environment = {} if session is not None else proxies()
        self._proxy_for = proxy_finder(None if proxy is None else Secret(proxy), environment)

    async def send(self, request: Request, dial: DialContext) -> Exchange:
        """Sends a request, and waits for the reply's status and headers; redirects to the same origin are followed.

        A pooled connection of ours that proves dead is replaced by a fresh one, once a call.

        Raises:
            APIConnectionError: There was no reply; ``sent`` says whether the request can have been accepted.
            ConfigurationError: The client is closed, or the session that was passed in is.
        """
        pool = await self._place(dial)
        try:
            url, hops = _parsed(request.url), 0
            while True:
                problem: Held[Exception] | None = None
                response: aiohttp.ClientResponse | None = None
                try:
                    response = await self._sent(pool, request, url, dial)
                except Exception as error:
                    if pool.owned and not isinstance(error, (*BROKEN, ValueError)):
                        raise  # a foreign connector may raise anything
                    if not self._stale(error, request, dial):
                        problem = Held(translated(error, dial, owned=pool.owned, closed=pool.session.closed))
                    forget(error)
                if problem is not None:
                    raise problem.take()  # outside the except block: what aiohttp raised holds the request's headers
                if response is None:
                    dial.fresh = True
                    continue
                there = _redirection(response, url) if request.sendable and hops < _MAX_REDIRECTS else None
                if there is None:
                    return AiohttpExchange(pool, response)
                response.close()
                url, hops = there, hops + 1
        except BaseException:
            pool.slots.release()
            self._changed()
            raise

    async def warm(self, url: str, dial: DialContext) -> None:
        """Opens a connection to where a URL leads, and leaves it in the pool. Raises what ``send`` raises."""
        if self._session is not None:
            raise ConfigurationError("the session is not the client's, so its connections are not the client's to open")
        with suppress(WarmedUp):
            await self.send(Request(method="GET", url=url, path="", headers={}), dial)

    async def _place(self, dial: DialContext) -> Pool:
        """The running loop's pool, with a place in it."""
        held = self._pools.get(asyncio.get_running_loop())
        pool = held[0] if held is not None and not self.closed else self._new_pool()
        if pool.draining and not any(protocol.idle for protocol in pool.alive):
            # A moment for the last stream's connection to come back costs less than to open another.
            await pool.draining.pop().drained()
        if not pool.slots.take():
            slots, clock = pool.slots, dial.clock
            clock.phase("pool", lambda: f"{slots.in_use} of {slots.limit} connections in use")
            began = clock.now()
            try:
                await slots.acquire()
            finally:
                dial.queued = clock.now() - began
        return pool

    def _stale(self, error: Exception, request: Request, dial: DialContext) -> bool:
        """Whether a pooled connection died before any byte of a reply, so that the request may go out once more."""
        refused = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError)
        died = isinstance(error, aiohttp.ClientConnectionError) and not refused
        silent = dial.reused and dial.protocol is not None and not dial.protocol.heard
        may_repeat = request.repeatable and request.sendable and dial.source_error is None
        return died and silent and may_repeat and not dial.fresh and not self.closed

    async def _sent(self, pool: Pool, request: Request, url: URL, dial: DialContext) -> aiohttp.ClientResponse:
        clock = dial.clock
        if not pool.owned:  # a foreign connector tells nothing
            clock.phase("first_event")
        body, poster = request.body, pool.poster
        proxy = self._proxy_for(url.scheme, url.host or "", url.port or 0)
        dial.begin(url.authority, None if proxy.url is None else _parsed(proxy.url).authority)
        token = dialing.set(dial)
        try:
            if poster is not None and poster.takes(body) and proxy.url is None:
                response = await poster.post(request.method, url, request.headers, body)
            else:
                response = await self._through_session(pool, request, url, dial, proxy)
            dial.connected = True
            return response
        except BaseException as error:
            dial.connected |= not pool.owned and not failed_connecting(error, pool.session.connector)
            raise
        finally:
            clock.sent = clock.sent or dial.connected
            with suppress(ValueError):  # a loop that was closed under the call ends it in another context
                dialing.reset(token)
            if dial.sending is not None:
                dial.sending.stop()

    async def _through_session(
        self, pool: Pool, request: Request, url: URL, dial: DialContext, proxy: Proxy
    ) -> aiohttp.ClientResponse:
        timeout = NO_TIMEOUT
        if not pool.owned:  # so aiohttp has to mind the connecting
            timeout = aiohttp.ClientTimeout(total=None, connect=dial.clock.timeouts.connect, sock_read=None)
        body = request.body
        if isinstance(body, Form):
            dial.sending = Sending(body, dial.moved)
        tunnelled = url.scheme == "https"
        return await pool.session.request(
            request.method,
            url,
            headers=request.headers if tunnelled or not proxy.headers else {**request.headers, **proxy.headers},
            data=dial.sending or readable(body),
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=False,
            skip_auto_headers=_NO_BODY_TYPE if body is None else None,
            timeout=timeout,
            proxy=proxy.url,
            proxy_headers=proxy.headers if tunnelled and proxy.headers else None,
            ssl=self._ssl,
        )

    def _new_pool(self) -> Pool:
        """The running loop's pool, made on first use."""
        with self._lock:
            if self.closed:
                raise ConfigurationError("the client is closed")
            for loop in [loop for loop in self._pools if loop.is_closed()]:
                self._pools.pop(loop)[0].discard()
            pool = Pool(self._session, self._ssl, self._max_connections, self._changed)
            guard = guarded(partial(pool.close, "the event loop of the client was shut down"))
            self._pools[pool.loop] = pool, guard
        return pool

    def leave_the_parent(self) -> None:
        """In a forked child: what the parent had open stays the parent's, and the child begins anew."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        while self._pools:
            _, (pool, guard) = self._pools.popitem()
            pool.abandon(guard)

    def discard(self) -> None:
        """Gives up the pools whose loops run no more."""
        for pool, _ in tuple(self._pools.values()):
            pool.discard()

    def gauges(self) -> list[LoopGauges]:
        """The connections of each loop that has not closed."""
        return [pool.gauges() for pool, _ in tuple(self._pools.values()) if not pool.loop.is_closed()]

    def abort(self, reason: str) -> None:
        """Ends every exchange under way, in all loops."""
        for pool, _ in tuple(self._pools.values()):
            if pool.loop is asyncio.get_running_loop():
                pool.abort(reason)
            else:
                with suppress(RuntimeError):  # that loop has closed
                    pool.loop.call_soon_threadsafe(pool.abort, reason)

    async def close(self) -> None:
        """Closes every loop's pool; this loop's has closed when it returns, the others' are told to."""
        with self._lock:
            here = self._pools.pop(asyncio.get_running_loop(), None)
            _close_all(self._pools)  # first: who awaits the rest may be cancelled
            self._pools.clear()
        if here is not None:
            pool, guard = here
            await pool.close("the client was closed")
            await guard.aclose()


def _close_all(pools: _Pools) -> None:
    """Has pools closed, each in its loop."""
    for pool, guard in pools.values():
        try:
            pool.loop.call_soon_threadsafe(close_soon, partial(pool.close, "the client was closed"), guard)
        except RuntimeError:  # that loop has closed, and its pool with it, unless it was not shut down
            pool.discard()


@lru_cache(maxsize=256)
def _parsed(text: str) -> URL:
    """A URL that is encoded already."""
    return URL(text, encoded=True)


def _redirection(response: aiohttp.ClientResponse, url: URL) -> URL | None:
    """Where a reply sends the same request to; None if to another origin, or nowhere."""
    target = response.headers.get("Location") if response.status in {307, 308} else None
    if target is None:
        return None
    try:
        there = url.join(URL(target))
        return there if there.origin() == url.origin() and there.user is None and there.password is None else None
    except ValueError:
        return None
