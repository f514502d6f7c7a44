"""Proxies: the client's own or the environment's, and for which hosts."""

from __future__ import annotations

import os
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote

from friendli_async._core.secret import Secret
from friendli_async._core.settings import check_proxy, unquoted
from friendli_async.errors import ConfigurationError

__all__ = ["Proxy", "proxies", "proxy_finder"]


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

    @lru_cache(maxsize=64)
    def find(scheme: str, host: str, port: int) -> Proxy:
        found = unquoted(environment.get(scheme) or environment.get("all") or "")
        if not found or _bypassed(host, port, environment.get("no", "")):
            return Proxy()
        if "://" not in found:
            found = Secret(f"http://{found}")
        try:
            check_proxy(found)
        except ConfigurationError:
            raise ConfigurationError(
                "the environment's proxy is not an http or https URL; pass proxy=, or unset it"
            ) from None
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


def _bypassed(host: str, port: int, rules: str) -> bool:
    """Whether NO_PROXY names a host, in any of the ways that curl, Go and requests know.

    The standard library knows but the plainest names: no networks, no brackets, ``*`` only alone.
    """
    host = host.lower().rstrip(".")
    for rule in re.split(r"[\s,]+", rules.lower()):
        found = re.fullmatch(r"\[([^]]*)](?::(\d+))?|([^:]*)(?::(\d+))?", rule)
        name, wanted = (found[1] or found[3] or "", found[2] or found[4]) if found is not None else (rule, None)
        if (wanted is None or int(wanted) == port) and _names(name, host):
            return True
    return False


def _names(rule: str, host: str) -> bool:
    if rule == "*":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        with suppress(ValueError):  # the rule is a name
            return address in ip_network(rule, strict=False)
        return False
    name = rule.removeprefix("*").strip(".")
    with suppress(UnicodeError):
        name = name.encode("idna").decode()
    return bool(name) and f".{host}".endswith(f".{name}")
