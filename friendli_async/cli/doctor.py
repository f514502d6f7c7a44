"""Diagnoses the connection to the server.

Checks, in this order, versions, token, proxy, the server's name in DNS, a TCP connection, TLS, and a
stream of one token; prints one line for each. The token is never shown.

Exit status: 0 all checks passed, 1 some failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from friendli_async._core.net.failures import why_untrusted
from friendli_async._core.net.proxies import environment_proxies, proxy_finder
from friendli_async._core.settings import API_URL, CONTAINER_URL, strip_quotes
from friendli_async._version import __version__
from friendli_async.cli import FAILED, connection
from friendli_async.client import AsyncFriendli
from friendli_async.errors import APIStatusError, ConfigurationError, FriendliError
from friendli_async.options import Timeouts

_SECONDS: Final = 10.0
"""Timeout of each check; the first event of the stream may take three times as long."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ADVICE: Final = {
    401: ": the token was rejected; has it expired, or does it belong to another account?",
    403: ": the token lacks permission; check FRIENDLI_TEAM",
    404: ": no such model, or the base URL has an extra path",
}
"""Added to the errors of the stream."""


class _Finding(msgspec.Struct, frozen=True):
    """The result of a check. The field names are those of the JSON output."""

    name: str
    good: bool
    words: str
    seconds: float | None = None


class _CheckFailedError(Exception):
    """A check has failed, for the reason in the message."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    connection.add_model(parser, ", else the first of the serverless catalogue")
    connection.add_deployment(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    return connection.run("doctor", lambda: _diagnose(arguments))


async def _diagnose(arguments: argparse.Namespace) -> int:
    server = _Server(arguments)
    checks: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("versions", server.versions),
        ("token", server.token),
        ("proxy", server.proxy),
        ("name", server.name),
        ("connection", server.connection),
        ("TLS", server.tls),
        ("stream", server.stream),
    ]
    findings: list[_Finding] = []
    for name, check in checks:
        finding = await _run_check(name, check)
        findings.append(finding)
        if not arguments.json:
            took = "" if finding.seconds is None else f" ({finding.seconds * 1000:.0f} ms)"
            line = f"{'ok  ' if finding.good else 'FAIL'}  {name:<10}  {finding.words}{took}"
            print(connection.printable(line, sys.stdout), flush=True)
    good = all(finding.good for finding in findings)
    if arguments.json:
        print(json.dumps({"good": good, "findings": msgspec.to_builtins(findings)}, indent=2))
    return 0 if good else FAILED


async def _run_check(name: str, check: Callable[[], Awaitable[str]]) -> _Finding:
    began = time.monotonic()
    limit = _SECONDS * (4 if name == "stream" else 1)  # its own timeouts are shorter, and say what was waited for
    try:
        async with asyncio.timeout(limit):
            text = await check()
    except (_CheckFailedError, FriendliError) as error:  # first: a timeout of the client is a TimeoutError, too
        return _Finding(name, False, str(error))
    except TimeoutError:
        return _Finding(name, False, f"timed out after {limit:g} s")
    is_timed = name in {"name", "connection", "TLS"}
    return _Finding(name, True, text, time.monotonic() - began if is_timed else None)


class _Server:
    """The checks of a server, as the environment configures it. Each returns what it has found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        if arguments.deployment == "container":
            self._variable, default = "FRIENDLI_CONTAINER_URL", CONTAINER_URL
        else:
            self._variable, default = "FRIENDLI_SERVER_URL", API_URL
        self._url = strip_quotes(os.environ.get(self._variable, "")) or default

    async def versions(self) -> str:
        """Returns the versions of this library, Python, the platform and the dependencies."""
        names = ("aiohttp", "msgspec", "tenacity", "anyio")
        parts = [f"friendli_async {__version__}", f"Python {platform.python_version()}", platform.platform(terse=True)]
        return ", ".join(parts + [f"{name} {_version_of(name)}" for name in names])

    async def token(self) -> str:
        """Returns the source of the token; fails if it is missing or unusable."""
        token = strip_quotes(os.environ.get("FRIENDLI_TOKEN", ""))
        if not token:
            if self._arguments.deployment == "container":
                return "not set; a container does not require one"
            raise _CheckFailedError("FRIENDLI_TOKEN is not set")
        async with AsyncFriendli(server_url=API_URL, container_url=CONTAINER_URL):  # validates the token and the team
            team = strip_quotes(os.environ.get("FRIENDLI_TEAM", ""))
            return f"FRIENDLI_TOKEN, {len(token)} characters" + (f", team {team}" if team else "")

    async def proxy(self) -> str:
        """Returns the proxy in use, if any."""
        found = self._proxy()
        return "none" if found is None else f"{found[0]}:{found[1]}, from the environment"

    def _proxy(self) -> tuple[str, int] | None:
        url = proxy_finder(None, environment_proxies())(*self._target()).url
        return None if url is None else _parse_url(url, "the proxy URL from the environment")[1:]

    def _target(self) -> tuple[str, str, int]:
        return _parse_url(self._url, self._variable)

    def _peer(self) -> tuple[str, int]:
        return self._proxy() or self._target()[1:]

    async def name(self) -> str:
        """Resolves the name of the server, or of the proxy."""
        host, port = self._peer()
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _CheckFailedError(f"{host} cannot be resolved: {_words_of(error)}") from None
        return f"{host} resolves to {', '.join(dict.fromkeys(str(address[4][0]) for address in found))}"

    async def connection(self) -> str:
        """Opens a TCP connection to the server, or to the proxy."""
        host, port = self._peer()
        writer = await _connect(host, port)
        writer.close()
        return f"{host}:{port}"

    async def tls(self) -> str:
        """Verifies the certificate; returns the TLS version and the expiry date."""
        scheme, host, port = self._target()
        if scheme != "https":
            return "not used: the URL is http"
        if self._proxy() is not None:
            return "not checked separately: the connection goes through the proxy"
        writer = await _connect(host, port, ssl.create_default_context())
        certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
        protocol = writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
        return f"{protocol}, certificate valid until {certificate.get('notAfter', '?')}"

    async def stream(self) -> str:
        """Streams an answer of one token, through all layers."""
        connection.check_token(self._arguments.deployment)
        async with AsyncFriendli(timeout=Timeouts(first_event=3 * _SECONDS, idle=_SECONDS), retry=None) as client:
            chat: Any = getattr(client, self._arguments.deployment).chat
            message = {"role": "user", "content": "Say OK."}
            try:
                model = await self._model(client)
                given = {} if model is None else {"model": model}
                reply = await chat.stream(messages=[message], max_tokens=1, **given).result()
            except APIStatusError as error:
                raise _CheckFailedError(f"{error}{_ADVICE.get(error.status_code, '')}") from None
            timing = reply.meta.timing
            first = (timing.first_event or 0.0) * 1000
            return (
                f"{model or 'the model'} answered {reply.text!r}: connected after {timing.connecting * 1000:.0f} ms, "
                f"first event after {first:.0f} ms, complete after {timing.total * 1000:.0f} ms"
            )

    async def _model(self, client: AsyncFriendli) -> str | None:
        if self._arguments.model or self._arguments.deployment == "container":
            return str(self._arguments.model) if self._arguments.model else None
        if self._arguments.deployment == "dedicated":
            raise ConfigurationError("no endpoint: pass -m ENDPOINT_ID")
        catalogue = (await client.serverless.model.list()).data
        if not catalogue:
            raise _CheckFailedError("the catalogue is empty")
        return catalogue[0].id


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a program packed into one file may contain a package without its metadata
        return "of unknown version"


def _parse_url(url: str, source: str) -> tuple[str, str, int]:
    """Returns scheme, host and port of a URL. The error does not quote it: it may contain a password."""
    with suppress(ValueError):  # of an invalid port, or a name that cannot be encoded
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as a look-up does
        if parts.hostname and parts.scheme in _DEFAULT_PORTS:
            return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]
    raise _CheckFailedError(f"{source} is not a valid http or https URL")


async def _connect(host: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.StreamWriter:
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=tls)
    except ssl.SSLError as error:
        reason = error.reason or error  # the check of the stream explains it
        if isinstance(error, ssl.CertificateError):
            reason = why_untrusted(error, "set SSL_CERT_FILE")
        raise _CheckFailedError(f"handshake failed: {reason}") from None
    except OSError as error:
        raise _CheckFailedError(f"could not connect to {host}:{port}: {_words_of(error)}") from None
    return writer


def _words_of(error: OSError) -> str:
    """Returns the system's words for an error. asyncio's own only repeat the address."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)
