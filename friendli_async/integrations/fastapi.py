"""FastAPI and Starlette: streams as responses, calls that stop with their browser, one client for the app.

    app = FastAPI(lifespan=lifespan())
    install_error_handlers(app)


    @app.post("/chat")
    async def chat(client: Annotated[AsyncFriendli, Depends(client_of)]) -> FriendliResponse:
        return FriendliResponse(client.serverless.chat.stream(model="m", messages=[...]))

Replies are return types as they are: ``-> ChatCompletion`` is answered as JSON, and documents itself.

Extra: ``pip install 'friendli_async[fastapi]'``. Starlette alone is enough for all of it but the documentation.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, Unpack, cast

from friendli_async import AsyncFriendli, Limits, Observer, Pacing, RetryPolicy, Timeouts
from friendli_async.asgi import SSEResponse, error_body, error_status, retry_headers, run_until_disconnect
from friendli_async.errors import ArgumentError, FriendliError
from friendli_async.streams import EventStream

try:
    from starlette.background import BackgroundTask
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, HTTPConnection, Request
    from starlette.responses import JSONResponse, Response
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as _missing:
    raise ImportError("this needs FastAPI, or Starlette: pip install 'friendli_async[fastapi]'") from _missing

if TYPE_CHECKING:
    import ssl as ssl_module

    import aiohttp
    from starlette.applications import Starlette

__all__ = ["ClientDisconnected", "FriendliResponse", "LifespanOptions", "client_of", "install_error_handlers"]
__all__ += ["lifespan", "while_connected"]

E = TypeVar("E")
T = TypeVar("T")

_STATE: Final = "friendli"
_HELD_MESSAGES: Final = 64
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_LONGEST_REASON: Final = 123  # bytes, RFC 6455 5.5

_Handler = Callable[[int, FrameType | None], Any]

_logger: Final = logging.getLogger("friendli_async")


# --- responses -------------------------------------------------------------------------------------------------------


class FriendliResponse(Response):
    """A stream as a response: ``friendli_async.asgi.SSEResponse`` with Starlette's headers, cookies, background.

    The background runs once the response is over, also for a browser that has left, and not where the stream could not
    be opened.

    Args:
        stream: The stream: open already, or not. The response owns it, and closes it.
        heartbeat: As ``SSEResponse`` has it.
        on_error: As ``SSEResponse`` has it.
        encode: As ``SSEResponse`` has it.
        headers: More headers to send.
        background: What to run afterwards.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: EventStream[E],
        *,
        heartbeat: float | None = 15.0,
        on_error: Callable[[FriendliError], bytes | dict[str, Any] | None] | None = None,
        encode: Callable[[E], str | bytes | None] | None = None,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        self._relay = SSEResponse(stream, heartbeat=heartbeat, on_error=on_error, encode=encode, headers=headers)
        self.status_code = 200
        self.background = background
        self.raw_headers: list[tuple[bytes, bytes]] = self._relay.raw_headers

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answers the request; see ``SSEResponse``."""
        self._relay.raw_headers = self.raw_headers
        await self._relay(scope, receive, send)
        if self.background is not None:
            await self.background()


# --- calls -----------------------------------------------------------------------------------------------------------


class ClientDisconnected(HTTPException, ClientDisconnect):
    """The browser has gone. Nobody will read an answer: it ends the request, without a traceback in the log."""

    def __init__(self) -> None:
        super().__init__(499, "the browser has gone")


async def while_connected(connection: Request | WebSocket, awaitable: Awaitable[T]) -> T:
    """Awaits a call as long as the browser is there. FastAPI by itself lets a handler run on when it has gone.

    The body of a request is read first, if it has not been: ``await request.json()`` works before and after. What comes
    over a websocket meanwhile is kept for its next ``receive``, 64 messages at most; beyond that a browser that goes is
    noticed by the next ``receive``. Nothing else may receive from the connection at the same time.

    Args:
        connection: Whose browser is waiting.
        awaitable: A call, a stream to be opened, or any coroutine. It is cancelled when the browser goes, and waited
            for; also when this is cancelled.

    Returns:
        What it returned.

    Raises:
        ClientDisconnected: The browser has gone, from a request. FastAPI takes it for the end of the request.
        WebSocketDisconnect: The browser has gone, from a websocket: as ``websocket.receive_text()`` says it.
        Exception: What it raised.
    """
    results: list[T] = []

    async def work() -> None:
        results.append(await awaitable)

    gone = _Messages.of(connection).gone() if isinstance(connection, WebSocket) else _request_gone(connection)
    if not await run_until_disconnect(gone, work()):
        if isinstance(connection, WebSocket):
            await connection.receive_text()  # what was kept begins with the end, or with messages before it
        raise ClientDisconnected
    return results[0]


async def _request_gone(request: Request) -> None:
    try:
        with suppress(RuntimeError):  # request.stream() has read it
            await request.body()
    except ClientDisconnect:
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Messages:
    """What came over a websocket while nobody received: in its place, for the next one who does."""

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        self._receive = receive
        self._kept: deque[MutableMapping[str, Any]] = deque()

    @classmethod
    def of(cls, websocket: WebSocket) -> _Messages:
        receive = websocket._receive  # pyright: ignore[reportPrivateUsage] - no public way to put one back
        if not isinstance(receive, cls):
            receive = websocket._receive = cls(receive)  # pyright: ignore[reportPrivateUsage] - the same
        return receive

    async def __call__(self) -> MutableMapping[str, Any]:
        return self._kept.popleft() if self._kept else await self._receive()

    async def gone(self) -> None:
        """Returns when the browser has gone; what it sent before is kept."""
        while not self._kept or self._kept[-1]["type"] != "websocket.disconnect":
            if len(self._kept) >= _HELD_MESSAGES:
                await asyncio.get_running_loop().create_future()
            self._kept.append(await self._receive())
        self._kept = deque([self._kept[-1]])  # nobody is there any more to be answered


# --- the client of an app --------------------------------------------------------------------------------------------


class LifespanOptions(TypedDict, total=False):
    """What ``AsyncFriendli`` takes."""

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
    proxy: str | None
    ssl: ssl_module.SSLContext | bool | None
    session: aiohttp.ClientSession | None


def lifespan(
    *, drain: float | None = 5.0, **options: Unpack[LifespanOptions]
) -> Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """One client for the app: ``FastAPI(lifespan=lifespan())``; ``client_of`` gives it to the routes.

    At SIGTERM and SIGINT the client makes no new calls; what is open may finish for ``drain`` seconds, then it is cut,
    and each browser gets its ``event: error``. uvicorn waits for all responses before it tells the app to shut down,
    for ever if it is not given ``timeout_graceful_shutdown``: so the signal itself is listened to, behind the server's
    own handler, where there is one in this process. Otherwise (other servers, a thread, Windows' ``TestClient``) the
    drain begins when the server shuts the app down.

    Inside a lifespan of your own:

        @asynccontextmanager
        async def mine(app):
            async with lifespan()(app) as state:
                yield {**state, "database": ...}

    Args:
        drain: Seconds that open streams have to finish in. Give the server, and whoever kills it, more. None is no
            limit.
        options: What ``AsyncFriendli`` takes.

    Returns:
        The lifespan.
    """

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncGenerator[Mapping[str, Any]]:
        async with AsyncFriendli(**options) as client:
            setattr(app.state, _STATE, client)
            draining = _Draining(client, drain)
            with draining.at_signals():
                yield {_STATE: client}
                await draining.done()

    return running


def client_of(connection: HTTPConnection) -> AsyncFriendli:
    """The app's client, as a dependency: ``client: Annotated[AsyncFriendli, Depends(client_of)]``.

    Args:
        connection: The request, or the websocket.

    Returns:
        The client that ``lifespan`` made, also in an app that is mounted in another.

    Raises:
        RuntimeError: The app has no such lifespan, or it was not run.
    """
    state = cast("Mapping[str, object]", connection.scope.get("state") or {})
    client: object = state.get(_STATE) or getattr(connection.app.state, _STATE, None)
    if not isinstance(client, AsyncFriendli):
        raise RuntimeError(
            "the app has no client: make it with lifespan=friendli_async.integrations.fastapi.lifespan()"
        )
    return client


class _Draining:
    """The end of a client: begun by a signal or by the shutdown, whichever comes first; done once."""

    def __init__(self, client: AsyncFriendli, seconds: float | None) -> None:
        self._client = client
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[int] | None = None

    def _begin(self) -> asyncio.Task[int]:
        if self._task is None:
            self._task = self._loop.create_task(self._client.drain(self._seconds))
        return self._task

    async def done(self) -> None:
        await self._begin()

    @contextmanager
    def at_signals(self) -> Generator[None]:
        """Begins at a signal, too, where a server has a handler in this thread; what that one does stays as it is."""
        ours: dict[signal.Signals, tuple[_Handler, _Handler]] = {}
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                servers = signal.getsignal(number)
                if callable(servers):
                    ours[number] = (partial(self._heard, servers), servers)
                    signal.signal(number, ours[number][0])
        try:
            yield
        finally:
            for number, (handler, servers) in ours.items():
                if signal.getsignal(number) is handler:
                    signal.signal(number, servers)

    def _heard(self, servers: _Handler, number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._begin)
        servers(number, frame)


# --- errors ----------------------------------------------------------------------------------------------------------


def install_error_handlers(app: Starlette) -> None:
    """Answers errors of this library, which would be 500 otherwise, by their meaning; bodies as OpenAI's API has them.

    The statuses and the words are those of ``asgi.error_status`` and ``asgi.error_body``; a 429 or 503 has upstream's
    ``Retry-After``. An ``ArgumentError``, a value that was refused before anything was sent, is 422. An open websocket
    is closed, code 1011; ``WebSocketDisconnect``, which servers log with a traceback, ends the handler of a browser
    that has gone in silence. What becomes a status of 500 and above is logged as a warning (logger ``friendli_async``),
    since no server does it.

    Args:
        app: The app. Handlers that it gets later for the same classes replace these.
    """
    app.add_exception_handler(
        FriendliError, cast("Any", _answer_error)
    )  # Starlette's types know no handler of both kinds
    app.exception_handlers.setdefault(WebSocketDisconnect, cast("Any", _let_go))
    app.add_exception_handler(ArgumentError, cast("Any", _answer_bad_input))


async def _let_go(connection: HTTPConnection, error: Exception) -> None:
    """The browser has gone: there is nobody to tell, and nothing to mend."""


async def _answer_error(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, FriendliError)
    status = error_status(error)
    if status >= 500:
        _logger.warning("%s: %d, %s: %s", connection.url.path, status, type(error).__name__, error)
    return await _said(connection, status, error_body(error), dict(retry_headers(error)))


async def _said(
    connection: HTTPConnection, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Response | None:
    if isinstance(connection, WebSocket):
        reason = str(body["error"]["message"]).encode()[:_LONGEST_REASON].decode(errors="ignore")
        with suppress(RuntimeError):  # it is closed already
            await connection.close(1011, reason)
        return None
    return JSONResponse(body, status, headers)


async def _answer_bad_input(connection: HTTPConnection, error: Exception) -> Response | None:
    told = {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}
    return await _said(connection, 422, {"error": told})
