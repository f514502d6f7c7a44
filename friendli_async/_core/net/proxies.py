"""Proxies: the client's own or the environment's, and the hosts that they apply to."""

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
from friendli_async._core.settings import check_proxy, strip_quotes
from friendli_async.errors import ConfigurationError


def environment_proxies() -> dict[str, Secret]:
    """Returns the environment's proxies. Imports ``urllib.request``, which takes 9 ms, only if there may be any."""
    if sys.platform not in {"darwin", "win32"} and not any(name.lower().endswith("_proxy") for name in os.environ):
        return {}
    from urllib.request import getproxies

    return {scheme: Secret(url) for scheme, url in getproxies().items()}


class Proxy(NamedTuple):
    """A proxy and the headers for it. Its URL holds no credentials, since aiohttp's frames and errors show the URL."""

    url: str | None = None
    headers: Mapping[str, Secret] = {}


def proxy_finder(proxy: Secret | None, environment: Mapping[str, Secret]) -> Callable[[str, str, int], Proxy]:
    """Returns a function of scheme, host and port. The environment is read once: reading it per call costs 1 ms."""
    if proxy is not None or not environment:
        always = Proxy() if proxy is None else _split_credentials(proxy)
        return lambda scheme, host, port: always

    @lru_cache(maxsize=64)
    def find(scheme: str, host: str, port: int) -> Proxy:
        name = scheme if environment.get(scheme) else "all"
        found = strip_quotes(environment.get(name) or "")
        if not found or _is_bypassed(host, port, strip_quotes(environment.get("no") or "")):
            return Proxy()
        if "://" not in found:
            found = Secret(f"http://{found}")
        try:
            check_proxy(found)
        except ConfigurationError:
            variable = f"{name}_proxy".upper()
            raise ConfigurationError(
                f"the proxy from the environment is not an http or https URL; pass proxy=, or unset {variable}"
            ) from None
        return _split_credentials(found)

    return find


def _split_credentials(proxy: Secret) -> Proxy:
    """Moves the credentials of a proxy's URL to a header."""
    before, at, address = map(Secret, proxy.rpartition("@"))
    if not at:
        return Proxy(str(proxy))
    scheme, _, credentials = map(Secret, before.partition("://"))
    user, _, password = map(Secret, credentials.partition(":"))
    encoded = Secret(b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())
    return Proxy(f"{scheme}://{address}", {"Proxy-Authorization": Secret(f"Basic {encoded}")})


def _is_bypassed(host: str, port: int, rules: str) -> bool:
    """Whether NO_PROXY matches a host, by any of the rules of curl, Go and requests.

    The standard library knows only the simplest rules: no networks, no brackets, ``*`` only on its own.
    """
    host = host.lower().rstrip(".")
    for rule in re.split(r"[\s,]+", rules.lower()):
        found = re.fullmatch(r"\[([^]]*)](?::(\d+))?|([^:]*)(?::(\d+))?", rule)
        name, wanted = (found[1] or found[3] or "", found[2] or found[4]) if found is not None else (rule, None)
        if (wanted is None or int(wanted) == port) and _matches(name, host):
            return True
    return False


def _matches(rule: str, host: str) -> bool:
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
    return bool(name) and f".{host}".endswith(f".{name}")
