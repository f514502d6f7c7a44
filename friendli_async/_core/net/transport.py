"""The connection pool: one per event loop. What aiohttp raises is translated here."""

from __future__ import annotations

import asyncio
import os
import re
import ssl as ssl_module
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, Protocol, TypeAlias

import aiohttp
from yarl import URL

from friendli_async._core.body.forms import Form, Sending, readable
from friendli_async._core.held import Held, forget
from friendli_async._core.net.clock import expired
from friendli_async._core.net.dialing import (
    Connector,
    Delivery,
    PooledProtocol,
    WarmedUp,
    dialing,
    keepalive_socket,
    parsed_url,
    proxies,
    proxy_finder,
    same_origin,
)
from friendli_async._core.net.exchange import BROKEN, AiohttpExchange, Exchange, describe
from friendli_async._core.net.guard import Guard, close_soon, guarded
from friendli_async._core.net.slots import Slots
from friendli_async._core.protocol import Request
from friendli_async._core.secret import Secret
from friendli_async.errors import APIConnectionError, ConfigurationError, StreamInterruptedError
from friendli_async.replies import LoopGauges

__all__ = ["AiohttpTransport", "Session", "Transport"]

Session: TypeAlias = aiohttp.ClientSession
"""A session that a user may pass in."""

_MAX_REDIRECTS: Final = 5
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_NO_BODY_TYPE: Final = ("Content-Type",)

_SSL_NOISE: Final = re.compile(r"\[SSL[^\]]*\] ?| ?\(_ssl\.c:\d+\)")

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
    ) -> None:
        self.session = session
        self.slots = slots
        self.owned = alive is not None
        self.alive: set[PooledProtocol] = set() if alive is None else alive  # the connector's own, empty as yet
        self.loop = asyncio.get_running_loop()
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


class AiohttpTransport:
    """Sends requests over one pool per event loop.

    Args:
        max_connections: Places per loop.
        proxy: Proxy URL; None takes the environment's, read now.
        ssl: TLS context, or False for no verification; None is the default verification.
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
        self._ssl = _default_tls() if ssl is None and session is None else True if ssl is None else ssl
        self._session = session
        self._changed = changed
        self._pools: dict[asyncio.AbstractEventLoop, tuple[_Pool, Guard]] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        _transports.add(self)
        environment = {} if session is not None else proxies()
        self._proxy_for = proxy_finder(None if proxy is None else Secret(proxy), environment)

    async def send(self, request: Request, delivery: Delivery) -> Exchange:
        """Sends a request; redirects to the same origin are followed. See ``Transport``."""
        pool = await self._place(delivery)
        try:
            url, hops = parsed_url(request.url), 0
            while True:
                response = await self._request(pool, request, url, delivery)
                target = response.headers.get("Location") if response.status in {307, 308} else None
                there = same_origin(url, target) if target is not None and request.sendable else None
                if there is None or hops == _MAX_REDIRECTS:
                    return AiohttpExchange(pool, response)
                response.close()
                url, hops = there, hops + 1
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

    async def _request(self, pool: _Pool, request: Request, url: URL, delivery: Delivery) -> aiohttp.ClientResponse:
        """One request; a pooled connection of ours that proves dead is replaced by a fresh one, once a call."""
        while True:
            try:
                return await self._sent(pool, request, url, delivery)
            except (*BROKEN, ValueError) as error:
                problem = (
                    None if self._stale(error, request, delivery) else Held(self._translated(error, delivery, pool))
                )
                forget(error)
            except Exception as error:
                if pool.owned:
                    raise
                problem = Held(self._translated(error, delivery, pool))  # a foreign connector may raise anything
                forget(error)
            if problem is not None:
                raise problem.take()  # outside the except block: what aiohttp raised holds the request's headers
            delivery.fresh = True

    def _stale(self, error: Exception, request: Request, delivery: Delivery) -> bool:
        """Whether a pooled connection died before any byte of a reply, so that the request may go out once more."""
        refused = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError)
        died = isinstance(error, aiohttp.ClientConnectionError) and not refused
        silent = delivery.reused and delivery.protocol is not None and not delivery.protocol.heard
        may_repeat = request.repeatable and request.sendable and delivery.source_error is None
        return died and silent and may_repeat and not delivery.fresh and not self.closed

    async def _sent(self, pool: _Pool, request: Request, url: URL, delivery: Delivery) -> aiohttp.ClientResponse:
        clock = delivery.clock
        timeout = _NO_TIMEOUT
        if not pool.owned:  # a foreign connector tells nothing, so aiohttp has to mind the connecting
            timeout = aiohttp.ClientTimeout(total=None, connect=clock.timeouts.connect, sock_read=None)
            clock.phase("first_event")
        delivery.connected = delivery.reused = False
        delivery.protocol = None
        body = request.body
        if isinstance(body, Form):
            delivery.sending = Sending(body, delivery.moved)
        proxy = self._proxy_for(url.scheme, url.host or "", url.port or 0)
        tunnelled = url.scheme == "https"
        token = dialing.set(delivery)
        try:
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
        finally:
            clock.sent = clock.sent or delivery.connected or not pool.owned
            with suppress(ValueError):  # a loop that was closed under the call ends it in another context
                dialing.reset(token)
            if delivery.sending is not None:
                delivery.sending.stop()

    def _translated(self, error: Exception, delivery: Delivery, pool: _Pool) -> Exception:
        """Says what happened in our terms. The request is not quoted: its headers hold the token."""
        if delivery.source_error is not None:
            return delivery.source_error
        sent = delivery.fresh and not delivery.warming  # to the connection that proved dead
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return expired("connect", delivery.clock.timeouts.connect or 0.0, sent=sent)
        if isinstance(error, aiohttp.InvalidURL):
            return ConfigurationError("the URL is not valid")
        if isinstance(error, RuntimeError) and pool.session.closed:
            return ConfigurationError("the client is closed" if pool.owned else "the session passed in is closed")
        if isinstance(error, ssl_module.CertificateError | aiohttp.ClientConnectorCertificateError):
            return _hopeless(
                APIConnectionError(f"the server's certificate is refused: {_certificate(error)}", sent=sent)
            )
        if isinstance(error, aiohttp.ClientHttpProxyError):
            refusal = APIConnectionError(
                f"the proxy {_proxy_name(error)} refused: {error.status} {error.message}", sent=sent
            )
            return _hopeless(refusal) if error.status == 407 else refusal
        if isinstance(error, ValueError):  # a host name that is none, credentials of the session beside the token
            return ConfigurationError(f"the request cannot be made: {type(error).__name__}: {error}")
        if isinstance(error, aiohttp.ClientConnectorError):
            return APIConnectionError(f"could not connect: {_reason(error)}", sent=sent)
        return APIConnectionError(f"no reply: {describe(error)}", sent=delivery.clock.sent)

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
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=_NO_TIMEOUT, auto_decompress=False
            )
            pool = _Pool(session, slots, self._changed, alive)
        guard = guarded(partial(pool.close, "the event loop of the client was shut down"))
        with self._lock:
            if self.closed:  # by another thread, in this instant
                raise ConfigurationError("the client is closed")
            for loop in [loop for loop in self._pools if loop.is_closed()]:
                del self._pools[loop]
            self._pools[pool.loop] = pool, guard
        return pool

    def leave_the_parent(self) -> None:
        """In a forked child: what the parent had open stays the parent's, and the child begins anew."""
        held, self._pools = list(self._pools.values()), {}
        self._lock = threading.Lock()  # another thread of the parent may have held it
        for pool, guard in held:
            pool.abandon()
            _abandoned.append(guard)
        self._pid = os.getpid()

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
                self._close_soon(pool, guard)

    def _close_soon(self, pool: _Pool, guard: Guard) -> None:
        with suppress(RuntimeError):  # that loop has closed, and its pool with it
            pool.loop.call_soon_threadsafe(close_soon, partial(pool.close, "the client was closed"), guard)

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # the loops are closed, their pools with them, and this module's names are gone
            return
        if self._pid == os.getpid():
            for pool, guard in self._pools.values():
                self._close_soon(pool, guard)


def _default_tls() -> ssl_module.SSLContext | bool:
    """The default verification. aiohttp reads these variables when it is imported, which ``load_dotenv`` is after."""
    variables = tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    return _tls_of(variables) if any(variables) else True


@lru_cache(maxsize=4)
def _tls_of(variables: tuple[str | None, ...]) -> ssl_module.SSLContext:
    context = ssl_module.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context


def _hopeless(error: APIConnectionError) -> APIConnectionError:
    """Marks an error that another try would only bring again."""
    error.hopeless = True
    return error


def _certificate(error: BaseException) -> str:
    """Why a certificate was refused, in words: ``certificate has expired``."""
    cause: object = getattr(error, "certificate_error", error)
    words = getattr(cause, "verify_message", None)
    return str(words) if words else describe(error)


def _proxy_name(error: aiohttp.ClientHttpProxyError) -> str:
    url = error.request_info.real_url
    return f"{url.host}:{url.port}"


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """Where to, and why not. Aiohttp's own words quote the TLS context, and end with the system's, if it has any."""
    cause = error.os_error
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        why = f"the name could not be resolved: {cause.strerror or cause}"
    elif isinstance(cause, ssl_module.SSLError):
        why = f"TLS: {_SSL_NOISE.sub('', cause.strerror or str(cause))}"
    elif cause.errno and "call failed" in str(cause):  # asyncio's words, which tell the address once more
        why = os.strerror(cause.errno)
    else:
        why = cause.strerror or f"{type(cause).__name__}: {cause}".removesuffix(": ")
    proxy = "the proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
    host = f"[{error.host}]" if ":" in error.host else error.host
    return f"{proxy}{host}:{error.port} [{why}]"
