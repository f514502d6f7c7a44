"""The embedded server: an aiohttp server on a loopback port that implements Friendli's API."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Final, Self

from aiohttp import web
from anyio.from_thread import start_blocking_portal
from multidict import CIMultiDict

from friendli_async._callables import check_plain
from friendli_async._core.loops import running_loop
from friendli_async._core.net.failures import bracketed
from friendli_async._hints import shortened
from friendli_async.testing.arguments import check_type
from friendli_async.testing.faults import Faults, parse
from friendli_async.testing.received import Outcome, ReceivedRequest
from friendli_async.testing.reply import ReplyWriter
from friendli_async.testing.routes import Router
from friendli_async.testing.script import Answer, Script, check_answer, pace, resolve, status
from friendli_async.testing.waiting import Signal

__all__ = ["FriendliServer"]

_MAX_BODY: Final = 256 * 1024 * 1024
_BACKLOG: Final = 4096  # a thousand streams may be opened at once
_MAX_ITERATIONS: Final = 1000

_logger: Final = logging.getLogger(__name__)


class FriendliServer:
    """A server on a loopback port that answers like Friendli's API, or follows a script.

    Without scripts it answers every operation, after checking the token, the query and the body, with text that depends
    only on the request, and with the endpoints and files created before. All received requests are in `requests`.

        async with FriendliServer() as server:
            server.enqueue(status(429, retry_after=0), text("Hel", "lo"))
            ...
            assert server.requests[0].json == {...}

    Its methods that wait raise TimeoutError after `timeout` seconds.

    Args:
        token: The token that requests must have; `container.*` needs none. `None` disables the check.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        pace: Pause before each event of an unscripted stream, in seconds, like the latency of a model.
        faults: Faults to inject into unscripted replies: `status=429;retry_after=1,then=ok` rejects the first request.
            `friendli-async serve --help` explains the format.
        access_log: Called with each request and its duration in seconds, when its reply is complete or broken.

    Raises:
        TypeError: The faults are not a text, or the access log is a coroutine function.
        ValueError: The faults have another format; the message says where.
    """

    def __init__(
        self,
        token: str | None = "test-token",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        pace: float = 0.0,
        faults: str | None = None,
        access_log: Callable[[ReceivedRequest, float], object] | None = None,
    ) -> None:
        if faults is not None:
            check_type(faults, str, "faults", "a text such as 'status=503;times=2,then=ok'")
        check_plain(access_log, "access_log", "a request and its duration")
        self.token = token
        self.requests: list[ReceivedRequest] = []
        """The requests received so far, including their bodies, in order of arrival."""
        self.connections: int = 0
        """The number of TCP connections accepted so far."""
        self._router = Router()
        self._host = host
        self._port = port
        self._pace = pace
        self._faults: Faults | None = None if faults is None else parse(faults)
        self._access_log = access_log
        self._runner: web.ServerRunner | None = None
        self._background = ExitStack()  # the thread in which it runs, if it has its own
        self._open: dict[web.RequestHandler, tuple[int, asyncio.Transport]] = {}
        self._queue: deque[tuple[Answer, str | None]] = deque()  # with the path, None for any
        self._reply_errors: list[str] = []
        self._always: dict[str | None, Answer] = {}  # by path; None for any
        self._received = 0
        self._active = 0
        self._signal = Signal()

    def __enter__(self) -> Self:
        """Run in a separate thread with its own event loop: for synchronous tests, or tests with several loops.

        All methods work from any thread and any loop. A client in another thread may receive several writes at once.

        Raises:
            RuntimeError: The server is running already.
            OSError: The port is in use.
        """
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(self))
            self._background = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop, and wait for the thread to end."""
        self._background.close()

    async def __aenter__(self) -> Self:
        """Start listening.

        Raises:
            RuntimeError: The server is running already, or no event loop of asyncio is running.
            OSError: The port is in use.
        """
        running_loop()
        if self._runner is not None:
            raise RuntimeError("this server is already running")
        listener = _Listener(self._handle, self._connected, self._disconnected)
        self._runner = runner = web.ServerRunner(listener, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=_BACKLOG).start()
        except OSError:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening and abort every connection, even during a reply. May be called twice."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        # asyncio loses a connection that it is accepting when the listener closes, which takes it three iterations.
        for _ in range(5):
            await asyncio.sleep(0)
        for site in runner.sites:
            await site.stop()
        for _, transport in list(self._open.values()):
            transport.abort()
        # An aborted connection is noticed in the next iteration of the loop, its tasks end a few iterations later.
        for _ in range(_MAX_ITERATIONS):
            if not (self._open or self._active):
                break
            await asyncio.sleep(0)
        await runner.cleanup()

    @property
    def url(self) -> str:
        """Its address, `http://HOST:PORT`: the client's `server_url` and `container_url`.

        Raises:
            RuntimeError: The server is not running.
        """
        addresses = [] if self._runner is None else self._runner.addresses
        if not addresses:
            raise RuntimeError("the server is not running: use `async with FriendliServer() as server`")
        host, port = addresses[0][:2]
        return f"http://{bracketed(host)}:{port}"

    # --- scripts ---

    def enqueue(self, *answers: Answer, path: str | None = None) -> None:
        """Answer the following requests with scripts, one each, in this order, without validating the requests.

        Args:
            answers: Scripts, single steps (a script of one), or functions from the request to a script.
            path: Answer only requests to this path; by default any.

        Raises:
            TypeError: An answer is none of these. Nothing is enqueued.
            ValueError: The path does not start with `/`, or contains a query.
        """
        for answer in answers:
            check_answer(answer, "an enqueued reply")
        _check_path(path)
        self._queue.extend((answer, path) for answer in answers)

    def always(self, answer: Answer | None, *, path: str | None = None) -> None:
        """Answer every request for which no script is enqueued with one script.

        Args:
            answer: The script; `None` restores the replies of the API, for the same path.
            path: Answer only requests to this path; by default any to which no other `always` applies.

        Raises:
            TypeError: It is not an answer.
            ValueError: The path does not start with `/`, or contains a query.
        """
        _check_path(path)
        if answer is None:
            self._always.pop(path, None)
        else:
            check_answer(answer, "the reply")
            self._always[path] = answer

    @property
    def unused_replies(self) -> list[str]:
        """A representation of each enqueued script that has not been used, with the path that it is for."""
        return [shortened(answer) + (f" for {path}" if path else "") for answer, path in self._queue]

    @property
    def reply_errors(self) -> list[str]:
        """The exceptions raised by reply functions or steps, as text.

        If a function raised, the reply was a 500 with this text as its error message, which a client may have retried.
        """
        return list(self._reply_errors)

    def clear_replies(self) -> None:
        """Forget the scripts that have not been used, and `reply_errors`."""
        self._queue.clear()
        self._reply_errors.clear()

    # --- state ---

    @property
    def open_connections(self) -> int:
        """The number of open TCP connections."""
        return len(self._open)

    @property
    def active_requests(self) -> int:
        """The number of requests being received or answered."""
        return self._active

    async def wait_until(self, condition: Callable[[], bool], *, timeout: float = 30.0) -> None:
        """Wait until a condition on this server is true: `lambda: server.active_requests == 2`.

        It is checked now, and whenever a connection or a request begins or ends.
        """
        await self._signal.until(condition, timeout, self._state)

    async def wait_for_requests(self, count: int = 1, *, timeout: float = 30.0) -> ReceivedRequest:
        """Wait until a number of requests, at least 1, have been received in total, and return the last one of them."""
        await self.wait_until(lambda: len(self.requests) >= count, timeout=timeout)
        return self.requests[count - 1]

    async def wait_for_connections(self, count: int = 0, *, timeout: float = 30.0) -> None:
        """Wait until exactly this many TCP connections are open."""
        await self.wait_until(lambda: len(self._open) == count, timeout=timeout)

    async def idle(self, *, timeout: float = 30.0) -> None:
        """Wait until no request is in progress."""
        await self.wait_until(lambda: not self._active, timeout=timeout)

    # --- internals ---

    def _state(self) -> str:
        """Return what is known when a wait times out."""
        received = f"requests received: {len(self.requests)}, in progress: {self._active}"
        return f"{received}; open connections: {len(self._open)}"

    def _connected(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self.connections += 1
        self._open[handler] = (self.connections, transport)
        self._signal.notify()

    def _disconnected(self, handler: web.RequestHandler) -> None:
        self._open.pop(handler, None)
        self._signal.notify()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._active += 1
        self._signal.notify()
        try:
            try:
                body = await request.read()
            except (ConnectionError, web.PayloadAccessError, web.RequestPayloadError):
                return web.Response(status=400)  # a truncated request, or one that cannot be decompressed
            received = self._record(request, body)
            return await self._reply(request, received, self._script_for(received))
        finally:
            self._active -= 1
            self._signal.notify()

    def _record(self, request: web.BaseRequest, body: bytes) -> ReceivedRequest:
        self._received += 1
        peername: tuple[str, int] = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        connection, _ = self._open.get(request.protocol, (0, None))
        received = ReceivedRequest(
            method=request.method,
            path=request.path,
            raw_path=request.rel_url.raw_path,
            query={name: request.query.getall(name) for name in request.query},
            headers=request.headers,
            body=body,
            connection=connection,
            peer=peername[:2],
            number=self._received,
            started_at=asyncio.get_running_loop().time(),
            created=int(time.time()),
        )
        self.requests.append(received)
        self._signal.notify()
        return received

    def _script_for(self, request: ReceivedRequest) -> Script:
        answer: Answer | None = None
        try:
            answer = self._answer_for(request)
            return resolve(answer, request)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # pytest.fail() raises one that is not an Exception
            message = self._record_error(error, "the server" if answer is None else shortened(answer))
            _logger.error("%s", message, exc_info=error)
            return status(500, message=message)

    def _record_error(self, error: BaseException, source: str) -> str:
        message = f"{type(error).__name__}: {error} (raised by {source})"
        self._reply_errors.append(message)
        return message

    def _answer_for(self, request: ReceivedRequest) -> Answer:
        for position, (answer, path) in enumerate(self._queue):
            if path is None or path == request.path:
                del self._queue[position]
                return answer
        for path in (request.path, None):
            if path in self._always:
                return self._always[path]
        return self._default_answer(request)

    def _default_answer(self, request: ReceivedRequest) -> Script:
        answer = partial(self._router.answer, request, self.token)
        return pace(answer() if self._faults is None else self._faults.answer(request, answer), self._pace)

    async def _reply(self, request: web.BaseRequest, received: ReceivedRequest, script: Script) -> web.StreamResponse:
        headers = CIMultiDict(script.headers)
        headers.setdefault("x-request-id", received.request_id)
        reply = ReplyWriter(request, script.status, headers, received.identity)
        received.status = script.status
        outcome: Outcome = "broken"  # unless the reply ends
        try:
            await script.play(reply)
        except (ConnectionError, asyncio.CancelledError) as error:
            # aiohttp cancels the task of a lost connection, whichever side closed it; writes to it fail.
            outcome = "broken" if reply.hung_up or self._runner is None else "disconnected"
            if isinstance(error, asyncio.CancelledError):
                raise
        except Exception as error:
            self._record_error(error, "a step")
            raise
        finally:
            received.settle("completed" if reply.ended else outcome)
            if self._access_log is not None:
                self._access_log(received, asyncio.get_running_loop().time() - received.started_at)
        return reply.response


class _Listener(web.Server):
    """aiohttp's low-level server, which reports connections, and cancels the task of a lost one."""

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        connected: Callable[[web.RequestHandler, asyncio.Transport], None],
        disconnected: Callable[[web.RequestHandler], None],
    ) -> None:
        factory = partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=_MAX_BODY)
        super().__init__(handle, request_factory=factory, handler_cancellation=True, access_log=None)
        self._connected = connected
        self._disconnected = disconnected

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._connected(handler, transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._disconnected(handler)


def _check_path(path: str | None) -> None:
    if path is not None and (not path.startswith("/") or "?" in path):
        raise ValueError(f"path must start with / and have no query, as in /v1/chat/completions, not {path!r}")
