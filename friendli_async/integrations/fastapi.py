"""FastAPI and Starlette: streaming responses, calls cancelled when the browser disconnects, one client per app.

    app = FastAPI(lifespan=lifespan())
    install_error_handlers(app)


    @app.post("/chat")
    async def chat(client: Annotated[AsyncFriendli, Depends(get_client)]) -> FriendliResponse:
        return FriendliResponse(client.serverless.chat.stream(model="m", messages=[...]))

Replies work as return types: ``-> ChatCompletion`` is serialized as JSON, and appears in the generated OpenAPI docs.
Importing this module also lets FastAPI serialize replies in routes without a return type.

Extra: ``pip install 'friendli_async[fastapi]'``. Everything but the generated docs works with Starlette alone.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, Unpack, cast, overload

from friendli_async import AsyncFriendli, Limits, Observer, Pacing, RetryPolicy, Timeouts, UsageLimit
from friendli_async._core.settings import unknown_option
from friendli_async._hints import shortened
from friendli_async._json import encode_json, replace_surrogates
from friendli_async._lazy import LazyModule
from friendli_async._pydantic import PydanticField, as_json
from friendli_async.asgi import SSEResponse, drain_on_shutdown, error_body, error_status
from friendli_async.asgi.disconnect import run_until_disconnect
from friendli_async.asgi.errors import log_error, retry_headers
from friendli_async.errors import ArgumentError, FriendliError, UnknownArgumentError
from friendli_async.options import check_seconds

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, HTTPConnection, Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as _missing:
    raise ImportError("this needs FastAPI, or Starlette: pip install 'friendli_async[fastapi]'") from _missing


class _StreamType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return type(instance).__module__.startswith("friendli_async.") and isinstance(instance, AsyncIterable)


class _Stream(metaclass=_StreamType):
    """Whatever in this library is iterated: a stream, a view of one, a run. Naming the classes would import them."""


def _reject_stream(stream: object) -> object:
    raise TypeError(f"a route cannot return {shortened(stream)}: return FriendliResponse(stream), or what it yields")


with suppress(ImportError):  # Starlette alone
    from fastapi.encoders import encoders_by_class_tuples

    # Without a return type, FastAPI serializes by this table. It has no function for registering.
    encoders_by_class_tuples[as_json] = (PydanticField,)
    encoders_by_class_tuples[_reject_stream] = (_Stream,)

if TYPE_CHECKING:
    from friendli_async._core.net import transport
else:
    transport = LazyModule("friendli_async._core.net.transport")

__all__ = ["ClientDisconnected", "FriendliResponse", "LifespanOptions", "client_of", "get_client"]
__all__ += ["install_error_handlers", "lifespan", "while_connected"]

T = TypeVar("T")

_STATE: Final = "friendli"
_MAX_BUFFERED: Final = 64  # websocket messages
_MAX_CLOSE_REASON: Final = 123  # bytes, RFC 6455 section 5.5


# --- responses -------------------------------------------------------------------------------------------------------


class FriendliResponse(SSEResponse, Response):
    """A stream or a run as a response: ``friendli_async.asgi.SSEResponse`` as a Starlette response, with cookies.

    It takes the arguments of ``SSEResponse``; ``background`` may be Starlette's ``BackgroundTask``.
    """

    media_type = "text/event-stream"
    status_code: int = 200


# --- calls -----------------------------------------------------------------------------------------------------------


class ClientDisconnected(HTTPException, ClientDisconnect):
    """The browser has disconnected. Ends the request without a response or a traceback in the log."""

    def __init__(self) -> None:
        super().__init__(499, "the client disconnected")


async def while_connected(connection: Request | WebSocket, awaitable: Awaitable[T]) -> T:
    """Awaits a call, and cancels it if the browser disconnects. FastAPI on its own lets the handler run on.

    A request body that arrives in the meantime is kept: ``await request.json()`` works before and after. So are
    messages that arrive over a websocket, for its next ``receive``, 64 at most; with a full buffer a disconnect is
    noticed only by the next ``receive``. Nothing else may receive from the connection at the same time.

    Args:
        connection: The request or websocket to watch.
        awaitable: A call, a stream to open, or any coroutine. It is cancelled and awaited when the browser
            disconnects, or when this coroutine is cancelled.

    Returns:
        The result of ``awaitable``.

    Raises:
        ClientDisconnected: The browser of a request has disconnected. FastAPI ends the request with it.
        WebSocketDisconnect: The websocket was closed, as from ``websocket.receive_text()``.
        TypeError: ``awaitable`` is none, such as a coroutine function that was not called.
        Exception: Whatever ``awaitable`` raises, also after its cancellation: an error of its cleanup is not lost.
    """
    if not isawaitable(awaitable):
        raise TypeError(f"while_connected takes a call, a stream or any other awaitable, not {shortened(awaitable)}")
    if isinstance(connection, WebSocket):
        disconnected = _wait_websocket_disconnected(connection)
    else:
        disconnected = _wait_request_disconnected(connection)
    if results := await run_until_disconnect(disconnected, awaitable):
        return results[0]
    if isinstance(connection, WebSocket):
        while (message := await connection.receive())["type"] != "websocket.disconnect":
            pass  # nobody is left to answer the earlier messages
        raise WebSocketDisconnect(message["code"], message.get("reason"))
    raise ClientDisconnected


async def _wait_request_disconnected(request: Request) -> None:
    receive = _BufferedReceive.of(request)
    while not receive.has_disconnected:
        message = await receive.fetch()
        if message["type"] == "http.request" and not message.get("more_body"):
            with suppress(RuntimeError):  # already consumed by request.stream()
                await request.body()  # at once, from the buffer: request.is_disconnected() discards what it receives


async def _wait_websocket_disconnected(websocket: WebSocket) -> None:
    receive = _BufferedReceive.of(websocket)
    while not receive.has_disconnected:
        if len(receive.buffer) >= _MAX_BUFFERED:
            await asyncio.get_running_loop().create_future()
        await receive.fetch()


class _BufferedReceive:
    """Replaces the ``receive`` of a request or websocket, and buffers what arrives while nothing else receives."""

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        self._receive = receive
        self.buffer: deque[MutableMapping[str, Any]] = deque()

    @classmethod
    def of(cls, connection: Request | WebSocket) -> _BufferedReceive:
        receive = connection._receive  # pyright: ignore[reportPrivateUsage] - no public way to push a message back
        if not isinstance(receive, cls):
            receive = connection._receive = cls(receive)  # pyright: ignore[reportPrivateUsage] - the same
        return receive

    async def __call__(self) -> MutableMapping[str, Any]:
        return self.buffer.popleft() if self.buffer else await self._receive()

    @property
    def has_disconnected(self) -> bool:
        return bool(self.buffer) and self.buffer[-1]["type"].endswith(".disconnect")

    async def fetch(self) -> MutableMapping[str, Any]:
        """Receives a message, and buffers it."""
        message = await self._receive()
        self.buffer.append(message)
        return message


# --- client lifespan -------------------------------------------------------------------------------------------------


class LifespanOptions(TypedDict, total=False):
    """The keyword arguments of ``AsyncFriendli``."""

    token: str | Callable[[], str | Awaitable[str]] | None
    team: str | None
    server_url: str | None
    container_url: str | None
    timeout: Timeouts | float | None
    retry: RetryPolicy | None
    limits: Limits
    pacing: Pacing | None
    max_connections: int
    headers: Mapping[str, str | None] | None
    observers: Sequence[Observer]
    usage_limit: UsageLimit | None
    proxy: str | None
    ssl: ssl_module.SSLContext | bool | None
    session: transport.Session | None


@overload
def lifespan(
    *, drain: float | None = 5.0, **options: Unpack[LifespanOptions]
) -> Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any]]]: ...
@overload
def lifespan(app: Starlette, /) -> AbstractAsyncContextManager[Mapping[str, Any]]: ...
def lifespan(app: Starlette | None = None, /, *, drain: float | None = 5.0, **options: Unpack[LifespanOptions]) -> Any:
    """Creates one client for the app: ``FastAPI(lifespan=lifespan())``. ``get_client`` passes it to the routes.

    On SIGTERM and SIGINT the client is drained, as by ``asgi.drain_on_shutdown``: open calls, streams and runs may
    finish within ``drain`` seconds, then they are interrupted, and each browser gets an ``event: error``.

    Inside your own lifespan:

        @asynccontextmanager
        async def mine(app):
            async with lifespan()(app) as state:
                yield {**state, "database": ...}

    Args:
        app: The app. Starlette passes it in ``FastAPI(lifespan=lifespan)``, which has the default options.
        drain: Seconds for open calls, streams and runs to finish; None is no limit. The shutdown timeouts of the
            server, and of whatever kills it, have to be longer.
        options: Keyword arguments of ``AsyncFriendli``, which checks their values when the app starts.

    Returns:
        The lifespan, or the context manager for ``app``.

    Raises:
        ConfigurationError: ``drain`` is not a number of seconds.
        TypeError: ``app`` is no app, or an unknown keyword.
    """
    known = ["drain", *LifespanOptions.__annotations__]
    if unknowns := [name for name in options if name not in known]:
        options = LifespanOptions()  # the values may be secrets: keep them out of tracebacks
        raise unknown_option("lifespan", unknowns[0], known)
    drain = check_seconds("drain", drain)
    if app is not None and not isinstance(cast("object", app), Starlette):
        raise TypeError(f"lifespan takes keywords, as AsyncFriendli does, or the app, not {type(app).__name__}")

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncGenerator[Mapping[str, Any]]:
        async with AsyncFriendli(**options) as client:
            setattr(app.state, _STATE, client)
            async with drain_on_shutdown(client, drain):
                yield {_STATE: client}

    return running if app is None else running(app)


def client_of(connection: HTTPConnection) -> AsyncFriendli:
    """Returns the app's client. As a dependency of FastAPI, use ``get_client``.

    Args:
        connection: The request or websocket.

    Returns:
        The client created by ``lifespan``, also in an app that is mounted in another one.

    Raises:
        RuntimeError: The app does not use ``lifespan``, or its lifespan has not run.
    """
    state = cast("Mapping[str, object]", connection.scope.get("state") or {})
    client: object = state.get(_STATE) or getattr(connection.app.state, _STATE, None)
    if not isinstance(client, AsyncFriendli):
        raise RuntimeError(
            "the app has no client: create the app with lifespan=friendli_async.integrations.fastapi.lifespan(), and "
            "let its lifespan run: in a test, use `with TestClient(app)`"
        )
    return client


async def get_client(connection: HTTPConnection) -> AsyncFriendli:
    """Returns the app's client, as a dependency: ``client: Annotated[AsyncFriendli, Depends(get_client)]``.

    The same as ``client_of``, but FastAPI calls it in the event loop. Plain functions are called in a thread of its
    pool: they cost more, and wait for a free thread if 40 handlers or dependencies are blocking theirs.
    """
    return client_of(connection)


# --- errors ----------------------------------------------------------------------------------------------------------


def install_error_handlers(app: Starlette) -> None:
    """Maps errors of this library, which would be 500 otherwise, to error responses in the format of OpenAI's API.

    Statuses and messages are those of ``asgi.error_status`` and ``asgi.error_body``; 429 and 503 pass on upstream's
    ``Retry-After``. A value or keyword rejected before anything was sent (``ArgumentError``, ``UnknownArgumentError``)
    is 422, with its path or name as ``param``. An open websocket is closed with code 1011. ``WebSocketDisconnect``,
    which servers log with a traceback, ends the handler silently. Each error is logged (logger ``friendli_async``),
    because servers do not log them: statuses of 500 and above as warnings, the others, which may be the browser's
    fault, at the level INFO.

    Args:
        app: The app. Handlers added later for the same classes replace these.
    """
    handler = cast("Any", _handle_error)  # Starlette has no type for a handler of both requests and websockets
    for kind in (FriendliError, ArgumentError, UnknownArgumentError):
        app.add_exception_handler(kind, handler)
    app.exception_handlers.setdefault(WebSocketDisconnect, cast("Any", _ignore))


async def _ignore(connection: HTTPConnection, error: Exception) -> None:
    """Ends the handler of a websocket whose browser has disconnected."""


async def _handle_error(connection: HTTPConnection, error: Exception) -> Response | None:
    status, body, headers = _answer_to(error)
    log_error(logging.WARNING if status >= 500 else logging.INFO, connection.scope, str(status), error)
    if isinstance(connection, WebSocket):
        reason = replace_surrogates(str(body["error"]["message"])).encode()[:_MAX_CLOSE_REASON].decode(errors="ignore")
        with suppress(RuntimeError):  # already closed
            await connection.close(1011, reason)
        return None
    return Response(encode_json(body), status, headers, "application/json")


def _answer_to(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Returns the status, body and headers of the response to an error."""
    if isinstance(error, FriendliError):
        return error_status(error), error_body(error), retry_headers(error)
    assert isinstance(error, ArgumentError | UnknownArgumentError)
    param = error.path if isinstance(error, ArgumentError) else error.name
    body = {"message": str(error), "type": "invalid_request_error", "param": param or None, "code": None}
    return 422, {"error": body}, {}
