"""Sends what most calls send, JSON of moderate size, directly over our connector, bypassing aiohttp's session.

The session checks for redirects, cookies, credentials, traces, middlewares and timeouts of its own; its request
rebuilds the headers and starts a task that writes the body. Our calls never have the former and do not need the latter,
which are half the cost of a plain call. What remains is here: the connector provides a connection, head and body are
written at once, and aiohttp's response reads the reply. Everything else goes through the session.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeGuard

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict, CIMultiDictProxy

if TYPE_CHECKING:
    import ssl as ssl_module

    from yarl import URL

    from friendli_async._core.protocol import RequestHeaders

NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
"""Disables aiohttp's own timeouts: the call has its own."""

# A transport buffers this much without pausing the writer. Part of a larger body may be unsent when the reply comes
# early, and aiohttp's task that sends it keeps the connection out of the pool until it is sent.
_MAX_BODY: Final = 64 * 1024
_MAX_DESTINATIONS: Final = 64
_NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())
_RESPONSE_PARAMETERS: Final = frozenset(
    {"method", "url", "writer", "continue100", "timer", "request_info", "traces", "loop", "session"}
)


def can_post(session: type, request: type, response: type, protocol: type) -> bool:
    """Whether aiohttp's classes accept the arguments passed here, and ``ClientSession._request`` is its own."""
    session_request: Any = getattr(session, "_request", None)
    return (
        isinstance(session_request, FunctionType)  # not patched by a tracer
        and session_request.__code__.co_filename == sys.modules[aiohttp.ClientSession.__module__].__file__
        and {"method", "url", "loop", "session", "ssl"} <= _parameters(request, "__init__")
        and _parameters(response, "__init__") - {"self", "stream_writer"} == _RESPONSE_PARAMETERS
        and {"read_until_eof", "auto_decompress"} <= _parameters(protocol, "set_response_params")
    )


def _parameters(owner: type, method: str) -> frozenset[str]:
    code: Any = getattr(getattr(owner, method, None), "__code__", None)
    return frozenset() if code is None else frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


CAN_POST: Final = can_post(aiohttp.ClientSession, aiohttp.ClientRequest, aiohttp.ClientResponse, ResponseHandler)
"""Whether the installed aiohttp allows it; otherwise everything goes through the session."""

_original_request: Final[object] = getattr(aiohttp.ClientSession, "_request", None)
# aiohttp 3.14 reads from the writer how much it has sent, which nothing uses here.
_WRITER_ARGUMENT: Final[dict[str, Any]] = (
    {"stream_writer": SimpleNamespace(output_size=0)}
    if "stream_writer" in _parameters(aiohttp.ClientResponse, "__init__")
    else {}
)


class _Destination(NamedTuple):
    """What all requests with one method to one URL have in common."""

    line: str
    """The request line and the header Host (RFC 9112 3)."""
    request: aiohttp.ClientRequest
    """Tells the connector the destination. Nothing else of it is used."""
    new_response: Callable[[], aiohttp.ClientResponse]


class Poster:
    """Sends requests over the connector of the running loop.

    Args:
        session: A session of our own: without cookies, credentials, traces and middlewares.
        ssl: As for the session.
    """

    def __init__(self, session: aiohttp.ClientSession, ssl: ssl_module.SSLContext | bool) -> None:
        self._session = session
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._destinations: dict[tuple[str, URL], _Destination] = {}

    def can_send(self, body: object) -> TypeGuard[bytes]:
        """Whether it can send this body, and no tracer or test mock watches the session's requests."""
        return (
            isinstance(body, bytes)
            and len(body) <= _MAX_BODY
            and aiohttp.ClientSession._request is _original_request  # pyright: ignore[reportPrivateUsage]
            and not self._session.trace_configs
        )

    async def post(self, method: str, url: URL, headers: RequestHeaders, body: bytes) -> aiohttp.ClientResponse:
        """Sends a request and waits for the reply's status and headers. Raises what ``session.request`` raises.

        Args:
            method: A method whose reply may have a body.
            url: An http or https URL without credentials.
            headers: All headers except those that frame the message.
            body: The body to send.
        """
        connector = self._session.connector
        if connector is None:
            raise RuntimeError("Session is closed")
        destination = self._destinations.get((method, url)) or self._new_destination(method, url)
        connection: Any = await connector.connect(destination.request, [], NO_TIMEOUT)
        response = destination.new_response()
        try:
            transport = connection.transport
            if transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
            connection.protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            transport.write(_head(destination.line, headers, len(body)) + body)
            return await response.start(connection)
        except BaseException:
            response.close()
            connection.close()
            raise

    def _new_destination(self, method: str, url: URL) -> _Destination:
        if len(self._destinations) >= _MAX_DESTINATIONS:
            self._destinations.clear()
        unused: Any = None
        destination = _Destination(
            line=f"{method} {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n",
            request=aiohttp.ClientRequest(method, url, loop=self._loop, session=self._session, ssl=self._ssl),
            new_response=partial(
                aiohttp.ClientResponse,
                method,
                url,
                writer=None,
                continue100=None,
                timer=unused,
                # Errors quote it, so it omits the token.
                request_info=aiohttp.RequestInfo(url, method, _NO_HEADERS, url),
                traces=[],
                loop=self._loop,
                session=self._session,
                **_WRITER_ARGUMENT,
            ),
        )
        self._destinations[method, url] = destination
        return destination


def _head(line: str, headers: RequestHeaders, size: int) -> bytes:
    """Returns the head of a request (RFC 9112). It includes the token, so no local variable holds it."""
    return "".join((line, headers.lines, f"Content-Length: {size}\r\n\r\n")).encode()
