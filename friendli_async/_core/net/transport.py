"""Sends requests over the running loop's pool; handles dead connections, redirects and proxies."""

from __future__ import annotations

import asyncio
import ssl as ssl_module
import threading
import weakref
from contextlib import suppress
from functools import lru_cache, partial
from typing import Final, Protocol, TypeAlias, cast

import aiohttp
from yarl import URL

from friendli_async._core.body.forms import Form, FormUpload, as_payload, is_sendable
from friendli_async._core.held import Held, clear_tracebacks
from friendli_async._core.loops import call_in_loop, running_loop
from friendli_async._core.net.dialing import DialContext, WarmedUp, current_dial
from friendli_async._core.net.exchange import AiohttpExchange, Exchange
from friendli_async._core.net.failures import BROKEN, bracketed, failed_connecting, translate
from friendli_async._core.net.guard import Guard, close_soon, start_guard
from friendli_async._core.net.pool import Pool
from friendli_async._core.net.posting import NO_TIMEOUT
from friendli_async._core.net.proxies import Proxy, environment_proxies, proxy_finder
from friendli_async._core.protocol import Request, RequestHeaders
from friendli_async._core.secret import Secret
from friendli_async.errors import ConfigurationError
from friendli_async.replies import LoopGauges

Session: TypeAlias = aiohttp.ClientSession
"""A session that users may pass in."""

_MAX_REDIRECTS: Final = 5

_Pools: TypeAlias = dict[asyncio.AbstractEventLoop, tuple[Pool, Guard]]


class Transport(Protocol):
    """What the call loop needs from the network. ``AiohttpTransport`` implements it; a test may substitute its own."""

    closed: bool
    """Whether new calls are rejected."""

    async def send(self, request: Request, dial: DialContext) -> Exchange:
        """Sends a request and waits for the reply's status and headers.

        Raises:
            APIConnectionError: There was no reply; ``sent`` is whether the server may have accepted the request.
            ConfigurationError: The client is closed, or the session that was passed in is, or belongs to another loop.
        """
        ...

    async def warm(self, url: str, dial: DialContext) -> None:
        """Opens a connection for a URL and leaves it in the pool, unless it is full. Raises what ``send`` raises."""
        ...

    def gauges(self) -> dict[asyncio.AbstractEventLoop, LoopGauges]:
        """Returns the connection counts of each running loop."""
        ...

    def abort(self, reason: str) -> None:
        """Ends every exchange in flight, in all loops."""
        ...

    async def close(self) -> None:
        """Closes every loop's pool: this loop's before it returns, the others in their own loops."""
        ...

    def abandon_after_fork(self) -> None:
        """In a forked child, abandons what the parent has open; the child starts with no pools."""
        ...

    def discard(self) -> None:
        """Gives up what is open in loops that no longer run."""
        ...


class AiohttpTransport:
    """Sends requests over one pool per event loop.

    Args:
        max_connections: Connection slots per loop.
        proxy: Proxy URL; None uses the environment's, read now.
        ssl: TLS context, or False for no verification; None uses aiohttp's own verification.
        session: A session to use as it is, instead of one of our own. It is never closed.

    Raises:
        ConfigurationError: ``ssl`` or ``session`` is something else.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        proxy: Secret | None,
        ssl: ssl_module.SSLContext | bool | None,
        session: aiohttp.ClientSession | None,
    ) -> None:
        if session is not None and not isinstance(cast("object", session), aiohttp.ClientSession):
            raise ConfigurationError(f"session must be an aiohttp.ClientSession, not {type(session).__name__}")
        if ssl is not None and not isinstance(cast("object", ssl), ssl_module.SSLContext | bool | aiohttp.Fingerprint):
            raise ConfigurationError(f"ssl must be an ssl.SSLContext or False, not {ssl!r}")
        self.closed = False
        self._max_connections = max_connections
        self._ssl = True if ssl is None else ssl
        self._session = session
        self._pools: _Pools = {}
        # Not ``__del__``: the finalizer holds the pools, so that they are in no cycle with the client, or aiohttp's
        # session, finalized with it, would warn that it is unclosed. At exit no loop runs: ``runtime`` discards them.
        weakref.finalize(self, _close_all, self._pools).atexit = False
        self._lock = threading.Lock()
        self._proxy_for = proxy_finder(proxy, environment_proxies() if session is None else {})

    async def send(self, request: Request, dial: DialContext) -> Exchange:
        """Sends a request and waits for the reply's status and headers. Redirects to the same origin are followed.

        A dead pooled connection of our own is replaced by a new one, once per call.

        Raises:
            APIConnectionError: There was no reply; ``sent`` is whether the server may have accepted the request.
            ConfigurationError: The client is closed, or the session that was passed in is, or belongs to another loop.
        """
        pool = await self._acquire_slot(dial)
        try:
            if dial.before_sending is not None and not pool.owned:
                dial.before_sending()
            if dial.warming and pool.is_full():
                raise WarmedUp
            url, hops = _parse_url(request.url), 0
            while True:
                failure: Held[BaseException] | None = None
                try:
                    response = await self._send_once(pool, request, url, dial)
                except Exception as error:
                    if pool.owned and not isinstance(error, (*BROKEN, ValueError)):
                        raise  # no failure of the connection; that of a foreign connector may be any exception
                    if not self._is_stale(error, request, dial):
                        failure = Held(translate(error, dial, owned=pool.owned, closed=pool.session.closed))
                        dial.upload = None  # it keeps the error that is raised below, whose traceback has this frame
                    clear_tracebacks(error)
                else:
                    target = _redirect_target(response, url)
                    if target is None or hops == _MAX_REDIRECTS or not is_sendable(request.body):
                        return AiohttpExchange(pool, response)
                    response.close()
                    url, hops = target, hops + 1
                    continue
                if failure is not None:
                    raise failure.take()  # outside the except block: aiohttp's error holds the request's headers
                dial.replaced = True  # the pooled connection was dead
        except BaseException:
            pool.slots.release()
            raise

    async def warm(self, url: str, dial: DialContext) -> None:
        """Opens a connection for a URL and leaves it in the pool, unless it is full. Raises what ``send`` raises."""
        if self._session is not None:
            raise ConfigurationError("warm_up() cannot open connections of a session that was passed in")
        with suppress(WarmedUp):
            await self.send(Request(method="GET", url=url, headers=RequestHeaders()), dial)

    async def _acquire_slot(self, dial: DialContext) -> Pool:
        """Returns the running loop's pool, with a connection slot taken, which the exchange gives back at its end."""
        entry = self._pools.get(asyncio.get_running_loop())
        pool = self._new_pool() if entry is None else entry[0]
        if pool.finishing:
            await pool.wait_for_reusable()
        if not pool.slots.take():
            slots, clock = pool.slots, dial.clock
            clock.begin_phase("pool", f"{slots.in_use} of {slots.limit} connections in use")
            began = clock.now()
            try:
                await slots.acquire()
            finally:
                dial.queued = clock.now() - began
        return pool

    def _is_stale(self, error: Exception, request: Request, dial: DialContext) -> bool:
        """Whether a pooled connection died before any byte of the reply, so that the request may be sent again."""
        died = isinstance(error, aiohttp.ClientConnectionError)
        silent = dial.reused and dial.protocol is not None and not dial.protocol.has_received
        may_repeat = request.repeatable and is_sendable(request.body) and dial.source_error is None
        return died and silent and may_repeat and not self.closed

    async def _send_once(self, pool: Pool, request: Request, url: URL, dial: DialContext) -> aiohttp.ClientResponse:
        clock = dial.clock
        if not pool.owned:  # a foreign connector reports no progress
            clock.begin_phase("first_event")
        body, poster = request.body, pool.poster
        proxy = self._proxy_for(url.scheme, url.raw_host or "", url.port or 0)
        proxy_address = None if proxy.url is None else _address(_parse_url(proxy.url))
        dial.begin(_address(url), proxy_address, tunnelled=url.scheme == "https")
        token = current_dial.set(dial)
        try:
            if poster is not None and poster.can_send(body) and proxy.url is None:
                response = await poster.post(request.method, url, request.headers, body)
            else:
                response = await self._send_through_session(pool, request, url, dial, proxy)
            dial.connected = True
            return response
        except BaseException as error:
            dial.connected |= not pool.owned and not failed_connecting(error, pool.session.connector)
            raise
        finally:
            clock.sent = clock.sent or dial.connected
            with suppress(ValueError):  # if its loop was closed, the call ends in another context
                current_dial.reset(token)
            if dial.upload is not None:
                dial.upload.stop()

    async def _send_through_session(
        self, pool: Pool, request: Request, url: URL, dial: DialContext, proxy: Proxy
    ) -> aiohttp.ClientResponse:
        timeout = NO_TIMEOUT
        if not pool.owned:  # aiohttp has to enforce the connect limit
            timeout = aiohttp.ClientTimeout(total=None, connect=dial.clock.timeouts.connect, sock_read=None)
        body = request.body
        if isinstance(body, Form):
            # Each piece restarts the limit: the wait for the reply begins after the last one.
            dial.upload = FormUpload(body, partial(dial.clock.begin_phase, "first_event"))
        return await pool.session.request(
            request.method,
            url,
            # A copy: other requests share them, and a tracer that has replaced the session's method may add its own.
            headers={**request.headers, **({} if dial.tunnelled else proxy.headers)},
            data=dial.upload or as_payload(body),
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=False,  # ``compression`` does so in steps, so that our size limits hold
            skip_auto_headers=("Content-Type",) if body is None else None,
            timeout=timeout,
            proxy=proxy.url,
            proxy_headers=proxy.headers if dial.tunnelled and proxy.headers else None,
            ssl=self._ssl,
        )

    def _new_pool(self) -> Pool:
        """Creates the running loop's pool."""
        loop = asyncio.get_running_loop()
        if getattr(self._session, "_loop", loop) is not loop:
            raise ConfigurationError(
                "the session passed in belongs to another event loop: a client that uses one serves only its loop"
            )
        with self._lock:
            if self.closed:  # meanwhile, by another thread
                raise ConfigurationError("the client is closed", draining=True)
            for closed in [each for each in self._pools if each.is_closed()]:
                self._pools.pop(closed)[0].discard()
            pool = Pool(self._session, self._ssl, self._max_connections)
            guard = start_guard(partial(pool.close, "the event loop of the client was shut down"))
            self._pools[pool.loop] = pool, guard
        return pool

    def abandon_after_fork(self) -> None:
        """In a forked child, abandons what the parent has open; the child starts with no pools."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        while self._pools:
            _, (pool, guard) = self._pools.popitem()
            pool.abandon(guard)

    def discard(self) -> None:
        """Gives up the pools of loops that no longer run."""
        for pool, _ in list(self._pools.values()):
            pool.discard()

    def gauges(self) -> dict[asyncio.AbstractEventLoop, LoopGauges]:
        """Returns the connection counts of each loop that has not closed."""
        pools = [pool for pool, _ in list(self._pools.values())]
        return {pool.loop: pool.gauges() for pool in pools if not pool.loop.is_closed()}

    def abort(self, reason: str) -> None:
        """Ends every exchange in flight, in all loops."""
        for pool, _ in list(self._pools.values()):
            call_in_loop(pool.loop, pool.abort, reason)

    async def close(self) -> None:
        """Closes every loop's pool: this loop's before it returns, the others in their own loops."""
        with self._lock:
            here = self._pools.pop(running_loop(), None)
            _close_all(self._pools)  # first, since the rest may be cancelled
            self._pools.clear()
        if here is not None:
            pool, guard = here
            await pool.close("the client was closed")
            await guard.aclose()


def _close_all(pools: _Pools) -> None:
    """Closes pools, each in its own loop."""
    for pool, guard in pools.values():
        with suppress(RuntimeError):  # the loop is closed; its guard has closed the pool, unless it was never shut down
            pool.loop.call_soon_threadsafe(close_soon, partial(pool.close, "the client was closed"), guard)
        pool.discard()  # a loop that does not run may never run again


@lru_cache(maxsize=256)
def _parse_url(text: str) -> URL:
    """Returns a URL for text that is already encoded."""
    return URL(text, encoded=True)


@lru_cache(maxsize=256)
def _address(url: URL) -> str:
    """Returns host and port. ``authority`` has no brackets around an IPv6 address."""
    return f"{bracketed(url.host or '')}:{url.port}"


def _redirect_target(response: aiohttp.ClientResponse, url: URL) -> URL | None:
    """Returns the URL to which a 307 or 308 redirects; None if there is none, or it has another origin."""
    location = response.headers.get("Location") if response.status in {307, 308} else None
    if location is None:
        return None
    try:
        target = url.join(URL(location))
        return target if target.origin() == url.origin() and target.user is None and target.password is None else None
    except ValueError:
        return None
