"""How connections are made and watched: sockets, proxies, and what aiohttp's connector and protocol do not tell.

Private parts of aiohttp that are used here, and why no public way serves, stand in ``_core/__init__.py``.
"""

from __future__ import annotations

import os
import socket
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from friendli_async._core.net.framing import CAN_BYPASS
from friendli_async._core.secret import Secret
from friendli_async.errors import ConfigurationError

if TYPE_CHECKING:
    from friendli_async._core.body.forms import Sending
    from friendli_async._core.net.clock import CallClock
    from friendli_async._core.net.exchange import AiohttpExchange

__all__ = [
    "Connector",
    "Delivery",
    "PooledProtocol",
    "Proxy",
    "dialing",
    "keepalive_socket",
    "parsed_url",
    "proxies",
    "proxy_finder",
    "same_origin",
]


class Delivery:
    """How one attempt's request got on its way: told by the connector, read by the transport and the call.

    Args:
        clock: The call's clock: its phases begin here.
        fresh: Whether only a new connection serves.

    Attributes:
        connected: Whether there was a connection.
        reused: Whether it came from the pool.
        warming: Whether only the connection is wanted: it goes back to the pool, and nothing is sent.
        queued: Seconds that it waited for a place.
        connecting: Seconds that it took to get a connection.
        on_connect: Called when there is a connection, before anything is sent.
    """

    __slots__ = (
        "clock",
        "connected",
        "connecting",
        "fresh",
        "on_connect",
        "protocol",
        "queued",
        "reused",
        "sending",
        "warming",
    )

    def __init__(self, clock: CallClock, *, fresh: bool = False, warming: bool = False) -> None:
        self.clock: CallClock = clock
        self.fresh: bool = fresh
        self.warming: bool = warming
        self.connected: bool = False
        self.reused: bool = False
        self.queued: float = 0.0
        self.connecting: float = 0.0
        self.protocol: PooledProtocol | None = None
        self.sending: Sending | None = None
        self.on_connect: Callable[[], None] | None = None

    def moved(self) -> None:
        """A piece of the body is on its way: the wait for the reply begins when the last one is."""
        if self.connected:
            self.clock.phase("first_event")

    @property
    def source_error(self) -> Exception | None:
        """What was wrong with the source of the body."""
        return None if self.sending is None else self.sending.error


dialing: ContextVar[Delivery] = ContextVar("friendli_async_delivery")
"""The delivery that the running request belongs to: aiohttp hands its connector nothing that would name it."""


class WarmedUp(Exception):  # noqa: N818  # no error, but the way to end a request of aiohttp's
    """A connection was opened for the pool: ends a request of aiohttp's before anything is sent."""


class PooledProtocol(ResponseHandler):
    """A connection of ours. It tells its reader when something has come, and closes if that is while it is idle."""

    # Slots: in the instance's dict they would cost it the keys that all instances share.
    __slots__ = ("alive", "between_chunks", "exchange", "heard", "idle", "was_paused")

    def __init__(self, loop: Any, alive: set[PooledProtocol]) -> None:
        super().__init__(loop)
        self.heard: bool = False
        """Whether the peer has said anything since the connection was handed out."""
        self.idle: bool = False
        """Whether it lies in the pool."""
        self.exchange: AiohttpExchange | None = None
        """The exchange whose reply it receives, and which wants to be told."""
        self.between_chunks: bool = False
        """Whether aiohttp's parser is known to stand between two chunks of that reply."""
        self.was_paused: bool = False
        """Whether its reading has been paused since it was handed out."""
        self.alive: set[PooledProtocol] = alive

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.alive.add(self)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if self.between_chunks and exchange is not None and exchange.take_over(data):
            return
        if self.idle and data:
            self._refuse()  # nobody has asked: it would be taken for the reply to the next request
            return
        self.heard = True
        ResponseHandler.data_received(self, data)
        exchange = self.exchange
        if exchange is not None:
            self.between_chunks = CAN_BYPASS and exchange.stands_between_chunks(self, data)
            exchange.rouse()
        if self.idle and self.should_close:
            self._refuse()  # there was more than the reply, in the same piece as its end

    def _refuse(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def pause_reading(self) -> None:
        self.was_paused = True
        super().pause_reading()

    def resume_reading(self, *args: Any, **kwargs: Any) -> None:
        """Called after every read. aiohttp 3.14 then runs its parser on nothing, even where nothing was paused.

        Once something was, it has to: a pause at the end of a chunk holds back bytes of the read after the next.
        """
        if self.was_paused:
            super().resume_reading(*args, **kwargs)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.alive.discard(self)
        super().connection_lost(exc)
        if self.exchange is not None:
            self.exchange.rouse()


class Connector(aiohttp.TCPConnector):
    """Tells when a connection is there, and whether it came from the pool."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        delivery = dialing.get()
        clock = delivery.clock
        began = clock.now()
        try:
            connection = await super().connect(req, traces, timeout)
        finally:
            delivery.connecting += clock.now() - began
        delivery.connected = True
        protocol = connection.protocol
        if isinstance(protocol, PooledProtocol):
            protocol.heard = protocol.idle = protocol.between_chunks = protocol.was_paused = False
            delivery.protocol = protocol
        if delivery.warming:
            connection.release()
            raise WarmedUp
        if delivery.on_connect is not None:
            delivery.on_connect()
        clock.phase("first_event")
        return connection

    async def _get(self, key: Any, traces: Any) -> Any:
        delivery = dialing.get()
        connection = None if delivery.fresh else await super()._get(key, traces)
        delivery.reused = connection is not None
        if connection is None:
            delivery.clock.phase("connect")
        return connection

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        if isinstance(protocol, PooledProtocol):
            protocol.idle = True


def keepalive_socket(address: Any) -> socket.socket:
    """A socket that notices a peer which vanished without a word (NAT tables forget long waits)."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def proxies() -> dict[str, Secret]:
    """The environment's proxies. What reads them takes 9 ms to load, so it is loaded where there may be any."""
    if sys.platform not in {"darwin", "win32"} and not any(name.lower().endswith("_proxy") for name in os.environ):
        return {}
    from urllib.request import getproxies

    return {scheme: Secret(url) for scheme, url in getproxies().items()}


class Proxy(NamedTuple):
    """A proxy, and what it is told: its credentials are not in its URL, which frames and errors of aiohttp's show."""

    url: str | None = None
    headers: Mapping[str, Secret] = {}


def proxy_finder(proxy: Secret | None, environment: Mapping[str, Secret]) -> Callable[[str, str, int], Proxy]:
    """Tells the proxy for a scheme, host and port. The environment is read once: doing it per call costs 1 ms."""
    if proxy is not None or not environment:
        always = Proxy() if proxy is None else _told(proxy)
        return lambda scheme, host, port: always
    from urllib import request as urllib_request

    bypassed: Callable[..., object] = urllib_request.proxy_bypass_environment  # type: ignore[attr-defined]  # public, but not in typeshed

    @lru_cache(maxsize=64)
    def find(scheme: str, host: str, port: int) -> Proxy:
        if bypassed(f"{host}:{port}", environment) or _in_networks(host, environment.get("no", "")):
            return Proxy()
        found = environment.get(scheme) or environment.get("all")
        if found is None:
            return Proxy()
        if "://" not in found:
            found = Secret(f"http://{found}")
        if not found.lower().startswith(("http://", "https://")):
            raise ConfigurationError("the environment's proxy is not an http or https one; pass proxy=, or unset it")
        return _told(found)

    return find


def _told(proxy: Secret) -> Proxy:
    """Takes the credentials out of a proxy's URL."""
    before, at, behind = (Secret(part) for part in proxy.rpartition("@"))
    if not at:
        return Proxy(str(proxy))
    scheme, _, credentials = (Secret(part) for part in before.partition("://"))
    user, _, password = (Secret(part) for part in credentials.partition(":"))
    encoded = Secret(b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())
    return Proxy(f"{scheme}://{behind}", {"Proxy-Authorization": Secret(f"Basic {encoded}")})


def _in_networks(host: str, rules: str) -> bool:
    """Whether NO_PROXY names a network that the host, an address, is in; the standard library knows names only."""
    for rule in rules.split(","):
        with suppress(ValueError):  # a name, in either place
            if "/" in rule and ip_address(host) in ip_network(rule.strip(), strict=False):
                return True
    return False


@lru_cache(maxsize=256)
def parsed_url(text: str) -> URL:
    """A URL that is encoded already."""
    return URL(text, encoded=True)


def same_origin(url: URL, target: str) -> URL | None:
    """Where a redirect leads; None if that is another origin, or nowhere."""
    try:
        there = url.join(URL(target))
        return there if there.origin() == url.origin() and there.user is None and there.password is None else None
    except ValueError:
        return None
