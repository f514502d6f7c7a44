"""A stream as the response of any ASGI app: Starlette, FastAPI, Litestar, Quart, or none. It needs no framework.

    async def app(scope, receive, send):
        stream = client.serverless.chat.stream(model="m", messages=[...])
        await SSEResponse(stream)(scope, receive, send)

What comes from upstream goes on as it is, bytes for bytes. A browser that goes away stops the model at once, whether it
was reading or not; one that reads slowly slows upstream down, since nothing is read before what came before has gone.

``error_status`` and ``error_body`` say what to tell a browser of an error, here and in ``integrations.fastapi``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar

import msgspec

from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    FriendliError,
    StreamInterruptedError,
)
from friendli_async.streams import EventStream

__all__ = ["SSEResponse", "error_body", "error_status"]

E = TypeVar("E")

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PING: Final = b": ping\n\n"
_EVENT_STREAM: Final = "text/event-stream"
_BLANK_LINES: Final = (b"\n\n", b"\n\r\n", b"\r\r")
_OVERLAP: Final = 2  # bytes of a blank line that may stand at the end of one piece, the rest at the begin of the next
_LEFT: Final = 499
"""The status of a browser that left before it was answered: it reaches nobody but the log. nginx calls it so."""
_PASSED_ON: Final = frozenset({400, 404, 409, 413, 422, 429, 503})
"""Statuses that mean the same to the browser as they do to us."""


class SSEResponse:
    """Relays a stream to a browser: an ASGI app for one request.

    The stream is opened before anything is answered, so an error of opening is raised from here, for the framework to
    make a status of. After that the status is 200, and an error becomes the last event of the response,
    ``event: error``, with ``error_body`` as its data; an event that was cut in the middle is left out. An error that
    upstream has told in an event of its own has been relayed by then, and is told once more.

    The stream is closed when the browser goes, when the task is cancelled, and when an error is raised. A HEAD request
    is answered without opening it. Nothing else may receive from the request meanwhile.

    Args:
        stream: The stream: open already, or not. A response owns it, and closes it.
        heartbeat: Seconds without a byte from upstream after which a comment, ``: ping``, is sent, so that proxies keep
            the connection; only between two events. None is never.
        on_error: Called with the error that ended the stream, to log it, or to say something else about it. Bytes are
            sent as they are (an event of your own), a dict is the JSON data of ``event: error``, None says nothing:
            the response just ends.
        encode: Called with each event; what it returns is sent instead of upstream's bytes. Bytes are sent as they are;
            a str becomes the data of an event, whatever lines it has; for None nothing is sent.
        headers: More headers to send; they win over those that it sends by itself.

    Raises:
        ValueError: The heartbeat is not a positive number.
    """

    def __init__(
        self,
        stream: EventStream[E],
        *,
        heartbeat: float | None = 15.0,
        on_error: Callable[[FriendliError], bytes | dict[str, Any] | None] | None = None,
        encode: Callable[[E], str | bytes | None] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if heartbeat is not None and not heartbeat > 0:
            raise ValueError("heartbeat: seconds, more than 0, or None")
        self.raw_headers: list[tuple[bytes, bytes]] = _raw_headers(headers or {})
        """More headers to send, as ASGI has them."""
        self._stream: EventStream[Any] = stream
        self._heartbeat = heartbeat
        self._on_error = on_error
        self._encode: Callable[[Any], str | bytes | None] | None = encode
        self._used = False
        self._started = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Answers the request.

        Args:
            scope: ASGI's, of an HTTP request.
            receive: ASGI's.
            send: ASGI's.

        Raises:
            FriendliError: The stream could not be opened; nothing has been answered.
            RuntimeError: The response has been used before, or this is no HTTP request.
        """
        if scope["type"] != "http":
            raise RuntimeError(f"an SSEResponse answers HTTP requests, not {scope['type']}")
        if self._used:
            raise RuntimeError("an SSEResponse answers one request: its stream can be read once")
        self._used = True
        try:
            if scope["method"] == "HEAD":
                await self._start(send, _EVENT_STREAM)
                await send(_body(b""))
            elif not await finished_before(_gone(receive), self._answer(send)) and not self._started:
                await _answer_nobody(send)
        finally:
            await self._stream.aclose()

    async def _answer(self, send: _Send) -> None:
        stream = await self._stream
        relayed = stream.meta.headers.get("content-type", _EVENT_STREAM) if self._encode is None else _EVENT_STREAM
        await self._start(send, relayed)
        out = _Outlet(send, self._heartbeat)
        try:
            pieces = _whole_events(stream.raw()) if self._encode is None else _encoded(stream, self._encode)
            async with aclosing(pieces):
                async for data in pieces:
                    await out.put(data)
        except FriendliError as error:
            if said := self._said(error):
                await out.put(said)
        finally:
            await out.close()
        await send(_body(b""))

    async def _start(self, send: _Send, content_type: str) -> None:
        headers = _raw_headers({"content-type": content_type, "cache-control": "no-cache", "x-accel-buffering": "no"})
        given = {name for name, _ in self.raw_headers}
        headers = [header for header in headers if header[0] not in given] + self.raw_headers
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _said(self, error: FriendliError) -> bytes:
        said = error_body(error) if self._on_error is None else self._on_error(error)
        if said is None or isinstance(said, bytes):
            return said or b""
        return b"event: error\ndata: " + msgspec.json.encode(said) + b"\n\n"


class _Outlet:
    """Sends whole events, and pings where none came for a while. A timer, no task per piece: few streams need one."""

    def __init__(self, send: _Send, heartbeat: float | None) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._sending = False
        self._ping: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if heartbeat is not None:
            self._timer = self._loop.call_later(heartbeat, self._tick, heartbeat)

    async def put(self, data: bytes) -> None:
        """Sends what ends where an event does; returns when the server has taken it."""
        if self._ping is not None:
            await self._end_ping()
        self._sending = True
        await self._send(_body(data, more=True))
        self._sending = False
        self._last = self._loop.time()

    async def close(self) -> None:
        """Sends no more pings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ping is not None:
            self._ping.cancel()
            await self._end_ping()

    def _tick(self, heartbeat: float) -> None:
        now = self._loop.time()
        quiet = now - self._last >= heartbeat
        if quiet and not self._sending and self._ping is None:
            self._ping = self._loop.create_task(self._send_ping())
        due = now + heartbeat if quiet else self._last + heartbeat
        self._timer = self._loop.call_at(due, self._tick, heartbeat)

    async def _send_ping(self) -> None:
        await self._send(_body(_PING, more=True))
        self._ping = None

    async def _end_ping(self) -> None:
        ping, self._ping = self._ping, None
        if ping is not None:
            await asyncio.wait({ping})
            if not ping.cancelled():
                ping.result()  # a connection that broke


async def finished_before(gone: Awaitable[object], work: Awaitable[None]) -> bool:
    """Does the work unless the browser goes first: then the work is cancelled, and waited for.

    Args:
        gone: Returns when the browser has gone.
        work: What is done for it. What it raises is raised here.

    Returns:
        Whether the work was done.
    """
    watch, task = asyncio.ensure_future(gone), asyncio.ensure_future(work)
    try:
        await asyncio.wait((watch, task), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            watch.result()
            return False
        task.result()
        return True
    finally:
        # An error raised from here has this frame in its traceback, and the task has the error: a circle.
        pending = [each for each in (watch, task) if not each.done()]
        for each in pending:
            each.cancel()
        if pending:
            await asyncio.wait(pending)
        for each in (watch, task):
            if not each.cancelled():
                each.exception()  # it has been seen
        del watch, task, pending, each


async def _gone(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # what is left of the request's body


async def _answer_nobody(send: _Send) -> None:
    """Answers a browser that did not wait for it: middleware insists on an answer."""
    with suppress(Exception):  # the connection is closed, which each server says in its own way
        await send({"type": "http.response.start", "status": _LEFT, "headers": []})
        await send(_body(b""))


async def _whole_events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Cuts bytes where an event ends, so that a comment or an error may stand between any two pieces.

    A browser cannot use a part of an event anyway. A byte is looked at once, however the pieces fall.
    """
    held: list[bytes] = []  # of an event that is not whole
    last = b""  # the last bytes of it
    async for piece in pieces:
        place = _end_of_events(last + piece) - len(last)
        rest = piece
        if place > 0:
            yield b"".join((*held, piece[:place]))
            held, last, rest = [], b"", piece[place:]
        held.append(rest)
        last = (last + rest)[-_OVERLAP:]
    if whole := b"".join(held):
        yield whole + (b"\n" if whole.endswith(b"\n") else b"\n\n")  # the blank line that it lacks


def _end_of_events(data: bytes) -> int:
    """Where the last blank line ends; -1 where there is none."""
    return max((place + len(line) for line in _BLANK_LINES if (place := data.rfind(line)) >= 0), default=-1)


async def _encoded(stream: EventStream[E], encode: Callable[[E], str | bytes | None]) -> AsyncGenerator[bytes]:
    async for event in stream:
        said = encode(event)
        if isinstance(said, str):
            yield b"".join(b"data: %b\n" % line.encode() for line in _lines(said)) + b"\n"
        elif said:
            yield said


def _lines(text: str) -> list[str]:
    """The lines of the standard: other than `splitlines`, which knows more ends of a line than it does."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _body(data: bytes, *, more: bool = False) -> MutableMapping[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


# --- what a browser is told of an error ------------------------------------------------------------------------------


def error_status(error: FriendliError) -> int:
    """The HTTP status for a browser whose call failed so.

    Args:
        error: What the call raised.

    Returns:
        400, 404, 409, 413, 422, 429 and 503 as upstream said them; 504 for a time limit, and for upstream's 408 and
        504; 503 while the client is being drained; 500 where it is not set up rightly; 502 for all else, a token that
        upstream refused (401, 403) too.
    """
    if isinstance(error, APIStatusError):
        if error.status_code in _PASSED_ON:
            return error.status_code
        return 504 if error.status_code in {408, 504} else 502
    if isinstance(error, APITimeoutError):
        return 504
    if isinstance(error, ConfigurationError):
        return 503 if _is_draining(error) else 500
    return 502


def error_body(error: FriendliError) -> dict[str, Any]:
    """What a browser is told of an error, in the shape that OpenAI's API gives it.

    Upstream's own words are passed on where its status is; never those about the service's token or its set-up, nor
    the address of what could not be reached.

    Args:
        error: What the call raised.

    Returns:
        ``{"error": {"message": ..., "type": ..., "param": None, "code": ...}}``.
    """
    message, kind, code = _told(error)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _told(error: FriendliError) -> tuple[str, str, str | None]:
    match error:
        case APIStatusError() if error.status_code in _PASSED_ON:
            return error.message, error.type or _type_of(error.status_code), error.code
        case APIStatusError(status_code=401 | 403):
            return "the model's server refused this service", "upstream_error", None
        case APIStatusError():
            return "the model's server failed", "upstream_error", None
        case APITimeoutError():
            return "the model took too long", "timeout_error", f"{error.limit}_timeout"
        case StreamInterruptedError():
            return "the answer broke off before it was complete", "upstream_error", "stream_interrupted"
        case APIConnectionError():
            return "the model's server could not be reached", "upstream_error", "connection_error"
        case ConfigurationError():
            if _is_draining(error):
                return "the service is being shut down; try again", "service_unavailable", "draining"
            return "the service is not set up rightly", "server_error", None
        case _:
            return "the model's server gave an answer that cannot be read", "upstream_error", None


def _type_of(status: int) -> str:
    return {429: "rate_limit_error", 503: "service_unavailable"}.get(status, "invalid_request_error")


def _is_draining(error: ConfigurationError) -> bool:
    return str(error).startswith("draining")


def retry_headers(error: FriendliError) -> Iterable[tuple[str, str]]:
    """``Retry-After`` where upstream gave one, whole seconds, never less than it asked for."""
    wait = getattr(error, "retry_after", None)
    if wait is not None and error_status(error) in {429, 503}:
        yield "Retry-After", str(-int(-wait // 1))
