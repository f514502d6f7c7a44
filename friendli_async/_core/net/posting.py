"""Sends what most calls send, JSON of moderate size, over a connector of ours: past aiohttp's session.

The session looks for redirects, cookies, credentials, traces, middlewares and time limits of its own; its request makes
headers of headers, and a task that writes the body. A call of ours has none of the former and needs none of the latter:
they are half of what a plain call costs. What is left of it stands here: the connector gives a connection, head and
body are written at once, and aiohttp's response reads the reply. All else goes through the session.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict, CIMultiDictProxy

if TYPE_CHECKING:
    import ssl as ssl_module

    from yarl import URL

__all__ = ["CAN_POST", "NO_TIMEOUT", "Poster", "can_post"]

NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
"""None of aiohttp's own time limits: the call has its own."""

# What a transport takes without asking to wait. Of a larger body a part may be unsent when the reply comes early, and
# the task that aiohttp sends it with keeps the connection out of the pool until it is sent.
_LARGEST: Final = 64 * 1024
_DESTINATIONS: Final = 64
_NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())
_breaks = re.compile(r"[\r\n\0]").search
_REPLY: Final = frozenset(
    {"method", "url", "writer", "continue100", "timer", "request_info", "traces", "loop", "session"}
)


def can_post(session: type, request: type, response: type, protocol: type) -> bool:
    """Whether aiohttp's classes take what they are given here, and its session's request is its own."""
    asked: Any = getattr(session, "_request", None)
    return (
        isinstance(asked, FunctionType)  # not what a tracer has put in its place
        and asked.__code__.co_filename == sys.modules[aiohttp.ClientSession.__module__].__file__
        and {"method", "url", "loop", "session", "ssl"} <= _parameters(request, "__init__")
        and _parameters(response, "__init__") - {"self", "stream_writer"} == _REPLY
        and {"read_until_eof", "auto_decompress"} <= _parameters(protocol, "set_response_params")
    )


def _parameters(owner: type, method: str) -> frozenset[str]:
    code: Any = getattr(getattr(owner, method, None), "__code__", None)
    return frozenset() if code is None else frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


CAN_POST: Final = can_post(aiohttp.ClientSession, aiohttp.ClientRequest, aiohttp.ClientResponse, ResponseHandler)
"""Whether they do with the aiohttp that is installed; where they do not, all goes through the session."""

_untouched: Final[object] = getattr(aiohttp.ClientSession, "_request", None)
# aiohttp 3.14 asks the writer for what it has sent, which nobody here wants to know.
_WRITER: Final[dict[str, Any]] = (
    {"stream_writer": SimpleNamespace(output_size=0)}
    if "stream_writer" in _parameters(aiohttp.ClientResponse, "__init__")
    else {}
)


class Poster:
    """Sends requests over the connector of the running loop.

    Args:
        session: A session of ours: without cookies, credentials, traces and middlewares.
        ssl: As for the session.
    """

    def __init__(self, session: aiohttp.ClientSession, ssl: ssl_module.SSLContext | bool) -> None:
        self._session = session
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._destinations: dict[URL, aiohttp.ClientRequest] = {}

    def takes(self, body: object) -> TypeGuard[bytes]:
        """Whether it can send such a body, and nobody wants to see it pass the session: a tracer, a test's mock."""
        return (
            isinstance(body, bytes)
            and len(body) <= _LARGEST
            and aiohttp.ClientSession._request is _untouched  # pyright: ignore[reportPrivateUsage]
            and not self._session.trace_configs
        )

    async def post(self, method: str, url: URL, headers: Mapping[str, str], body: bytes) -> aiohttp.ClientResponse:
        """Sends a request and waits for the reply's status and headers. Raises what ``session.request`` raises.

        Args:
            method: A method whose reply may have a body.
            url: An http or https URL without credentials.
            headers: All headers, but for those that frame the message.
            body: What is sent.
        """
        connector = self._session.connector
        if connector is None or connector.closed:
            raise RuntimeError("Session is closed")
        connection: Any = await connector.connect(self._destination(url), [], NO_TIMEOUT)
        response = self._response(method, url)
        try:
            transport = connection.transport
            if transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
            connection.protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            transport.write(_head(method, url, headers, len(body)) + body)
            return await response.start(connection)
        except BaseException:
            response.close()
            connection.close()
            raise

    def _destination(self, url: URL) -> aiohttp.ClientRequest:
        """What the connector wants to know: where to. Nothing else of it is used, so that it serves all requests."""
        known = self._destinations.get(url)
        if known is None:
            if len(self._destinations) >= _DESTINATIONS:
                self._destinations.clear()
            known = aiohttp.ClientRequest("POST", url, loop=self._loop, session=self._session, ssl=self._ssl)
            self._destinations[url] = known
        return known

    def _response(self, method: str, url: URL) -> aiohttp.ClientResponse:
        unused: Any = None
        return aiohttp.ClientResponse(
            method,
            url,
            writer=None,
            continue100=None,
            timer=unused,
            request_info=aiohttp.RequestInfo(url, method, _NO_HEADERS, url),  # errors quote it: without the token
            traces=[],
            loop=self._loop,
            session=self._session,
            **_WRITER,
        )


def _head(method: str, url: URL, headers: Mapping[str, str], size: int) -> bytes:
    """The request line and the headers (RFC 9112 3 and 5). There is a token among them: no local variable holds them.

    Raises:
        ValueError: A header has a line end, or NUL, in it.
    """
    if _breaks("".join(headers.values())):
        raise ValueError("a header has a line end in it")
    return "".join(
        [
            f"{method} {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n",
            *[f"{name}: {value}\r\n" for name, value in headers.items()],
            f"Content-Length: {size}\r\n\r\n",
        ]
    ).encode()
