"""How connections are made: over which proxy, with which sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib import request as urllib_request

from yarl import URL

from friendli_async.errors import ConfigurationError


def keepalive_socket(address: Any) -> socket.socket:
    """A socket that notices a peer which vanished without a word (NAT tables forget long waits)."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def proxy_finder(proxy: str | None, environment: dict[str, str]) -> Callable[[str, str, int], str | None]:
    """Tells the proxy for a scheme, host and port. The environment is read once: doing it per call costs 1 ms."""
    if proxy is not None or not environment:
        return lambda scheme, host, port: proxy
    bypassed: Callable[..., object] = urllib_request.proxy_bypass_environment  # type: ignore[attr-defined]  # public, but not in typeshed

    @lru_cache(maxsize=64)
    def find(scheme: str, host: str, port: int) -> str | None:
        if bypassed(f"{host}:{port}", environment):
            return None
        found = environment.get(scheme) or environment.get("all")
        if found is not None and "://" not in found:
            found = f"http://{found}"
        if found is not None and not found.lower().startswith(("http://", "https://")):
            raise ConfigurationError("the environment's proxy is not an http or https one; pass proxy=, or unset it")
        return found

    return find


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
