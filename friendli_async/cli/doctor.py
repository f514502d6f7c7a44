"""Finds out what is wrong between here and the server.

Looks, in this order, at the versions, the token, the proxy, the name of the server, a connection,
TLS, and one tiny stream; each line says what was found. No token is shown.

Exit status: 0 all is well, 1 something is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from friendli_async._version import __version__
from friendli_async.cli import connection
from friendli_async.client import AsyncFriendli
from friendli_async.errors import APIStatusError, ConfigurationError, FriendliError
from friendli_async.options import Timeouts

__all__ = ["add_arguments", "run"]

_SECONDS: Final = 10.0
"""So long may each look take; the stream thrice as long."""
_URLS: Final = {
    "container": ("FRIENDLI_CONTAINER_URL", "http://localhost:8000"),
    "server": ("FRIENDLI_SERVER_URL", "https://api.friendli.ai"),
}


class _Finding(msgspec.Struct, frozen=True):
    """What was found of one thing."""

    name: str
    good: bool
    words: str
    seconds: float | None = None


class _UnwellError(Exception):
    """Something is wrong; the words say what."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    connection.add_model(parser)
    connection.add_deployment(parser)
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; gives its exit status."""
    return connection.run("doctor", lambda: _examine(arguments))


async def _examine(arguments: argparse.Namespace) -> int:
    patient = _Patient(arguments)
    looks: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("versions", patient.versions),
        ("token", patient.token),
        ("proxy", patient.proxy),
        ("name", patient.name),
        ("connection", patient.connection),
        ("TLS", patient.tls),
        ("stream", patient.stream),
    ]
    findings: list[_Finding] = []
    for name, look in looks:
        finding = await _found(name, look)
        findings.append(finding)
        if not arguments.json:
            took = "" if finding.seconds is None else f" ({finding.seconds * 1000:.0f} ms)"
            print(f"{'ok  ' if finding.good else 'FAIL'}  {name:<10}  {finding.words}{took}", flush=True)
    good = all(finding.good for finding in findings)
    if arguments.json:
        print(json.dumps({"good": good, "findings": msgspec.to_builtins(findings)}, indent=2))
    return 0 if good else connection.FAILED


async def _found(name: str, look: Callable[[], Awaitable[str]]) -> _Finding:
    began = time.monotonic()
    limit = _SECONDS * (3 if name == "stream" else 1)
    try:
        async with asyncio.timeout(limit):
            words = await look()
    except TimeoutError:
        return _Finding(name, False, f"nothing within {limit:g} s")
    except (_UnwellError, OSError, FriendliError) as error:
        return _Finding(name, False, str(error) or type(error).__name__)
    waits = name in {"name", "connection", "TLS"}
    return _Finding(name, True, words, time.monotonic() - began if waits else None)


class _Patient:
    """What is looked at."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._variable, default = _URLS["container" if arguments.deployment == "container" else "server"]
        self._url = urlsplit(os.environ.get(self._variable) or default)
        self._secure = self._url.scheme == "https"
        self._host = self._url.hostname or ""
        self._port = self._url.port or (443 if self._secure else 80)

    async def versions(self) -> str:
        """Of everything that has a say."""
        names = ("aiohttp", "msgspec", "tenacity", "anyio")
        parts = [f"friendli_async {__version__}", f"Python {platform.python_version()}", platform.platform(terse=True)]
        return ", ".join(parts + [f"{name} {version(name)}" for name in names])

    async def token(self) -> str:
        """Where it comes from, and whether it can be used."""
        token = os.environ.get("FRIENDLI_TOKEN", "")
        if not token:
            if self._arguments.deployment == "container":
                return "none; a container needs none"
            raise _UnwellError("none: set FRIENDLI_TOKEN")
        async with AsyncFriendli():  # says what cannot be used of the settings
            team = os.environ.get("FRIENDLI_TEAM")
            return f"FRIENDLI_TOKEN, {len(token)} characters" + (f", team {team}" if team else "")

    async def proxy(self) -> str:
        """Whether there is one in between."""
        found = self._proxy()
        return "none" if found is None else f"{found[0]}:{found[1]}, from the environment"

    def _proxy(self) -> tuple[str, int] | None:
        proxies = getproxies()
        url = proxies.get(self._url.scheme) or proxies.get("all")
        if not url or proxy_bypass(self._host):
            return None
        parts = urlsplit(url if "//" in url else f"http://{url}")
        return (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))

    def _peer(self) -> tuple[str, int]:
        return self._proxy() or (self._host, self._port)

    async def name(self) -> str:
        """The addresses of the server, or of the proxy."""
        host, port = self._peer()
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _UnwellError(f"{host} cannot be resolved: {error.strerror or error}") from None
        return f"{host} is {', '.join(dict.fromkeys(str(address[4][0]) for address in found))}"

    async def connection(self) -> str:
        """Whether there is one to be had."""
        host, port = self._peer()
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            raise _UnwellError(f"{host}:{port} does not answer: {error.strerror or error}") from None
        writer.close()
        return f"{host}:{port}"

    async def tls(self) -> str:
        """Whether the certificate is trusted; until when it holds."""
        if not self._secure:
            return f"none: {self._variable} is an http URL"
        if self._proxy() is not None:
            return "through the proxy: the stream will tell"
        try:
            _, writer = await asyncio.open_connection(self._host, self._port, ssl=ssl.create_default_context())
        except ssl.SSLError as error:
            raise _UnwellError(f"refused: {error.reason or error}; SSL_CERT_FILE names further authorities") from None
        certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
        used = writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
        return f"{used}, certificate until {certificate.get('notAfter', '?')}"

    async def stream(self) -> str:
        """One answer of one token: through everything at once."""
        async with AsyncFriendli(timeout=Timeouts(total=3 * _SECONDS), retry=None) as client:
            chat: Any = getattr(client, self._arguments.deployment).chat
            model = await self._model(client)
            given = {} if model is None else {"model": model}
            message = {"role": "user", "content": "Say OK."}
            stream = chat.stream(messages=[message], max_tokens=1, **given)
            try:
                reply = await stream.result()
            except APIStatusError as error:
                raise _UnwellError(_advice(error)) from None
            timing = reply.meta.timing
            first = (timing.first_event or 0.0) * 1000
            return (
                f"{model or 'the model'} answered {reply.text!r}: connected after {timing.connecting * 1000:.0f} ms, "
                f"first event after {first:.0f} ms, all after {timing.total * 1000:.0f} ms"
            )

    async def _model(self, client: AsyncFriendli) -> str | None:
        if self._arguments.model or self._arguments.deployment == "container":
            return str(self._arguments.model) if self._arguments.model else None
        if self._arguments.deployment == "dedicated":
            raise ConfigurationError("which endpoint? pass -m ENDPOINT_ID")
        catalogue = (await client.serverless.model.list()).data
        if not catalogue:
            raise _UnwellError("the catalogue is empty")
        return catalogue[0].id


def _advice(error: APIStatusError) -> str:
    if error.status_code == 401:
        return f"{error}: the token is not known there; is it of another account, or expired?"
    if error.status_code == 403:
        return f"{error}: the token may not do that; is FRIENDLI_TEAM right?"
    if error.status_code == 404:
        return f"{error}: no such model, or a base URL with a path too much"
    return str(error)
