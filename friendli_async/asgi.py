"""A stream or a run as the response of any ASGI app: Starlette, FastAPI, Litestar, Quart, or none.

It needs no framework. In a FastAPI or Starlette route, return ``integrations.fastapi.FriendliResponse``.

    async def app(scope, receive, send):
        stream = client.serverless.chat.stream(model="m", messages=[...])
        await SSEResponse(stream)(scope, receive, send)

Bytes from upstream are relayed unchanged. A browser that disconnects stops the model at once, whether it was reading or
not. A browser that reads slowly applies backpressure upstream: the next piece is read once the previous one was sent.
One that stops reading is disconnected after a while.

``error_status`` and ``error_body`` map an error to a response for the browser, here and in ``integrations.fastapi``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing, closing, suppress
from math import inf
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast
from urllib.parse import quote

from friendli_async._core.error_json import is_object, json_or_none
from friendli_async._core.events.sse import DONE, SSEDecoder
from friendli_async._core.loops import wait_ended
from friendli_async._core.runtime import Work
from friendli_async._core.text import split_surrogate
from friendli_async._json import encode_json, replace_surrogates
from friendli_async.chat.run import Run
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    FriendliError,
    StreamInterruptedError,
    ToolError,
    TurnLimitError,
)
from friendli_async.streams import EventStream
from friendli_async.streams.views import View

__all__ = ["Encoded", "SSEResponse", "Servable", "error_body", "error_status"]

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

Encoded = str | bytes | dict[str, Any] | None
"""What to send for an event: a str as the data of an SSE event (it may have several lines), a dict as JSON data, bytes
unchanged (whole SSE events of your own), None for nothing. Half a character that ends a str is sent with the next."""

_logger: Final = logging.getLogger("friendli_async")

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PING: Final = b": ping\n\n"
_EVENT_STREAM: Final = "text/event-stream"
_BLANK_LINES: Final = (b"\n\n", b"\n\r\n", b"\r\r")
_OVERLAP: Final = 2  # bytes of a blank line that may end one piece while the rest begins the next
_FAILED: Final = (
    b'event: error\ndata: {"error":{"message":"the service failed","type":"server_error","param":null,"code":null}}\n\n'
)
_LAST_SECONDS: Final = 1.0
"""``send_timeout`` once the stream was ended from outside: long enough for a browser that reads to get the error."""
_LONGEST_CHECK: Final = 3600.0  # seconds between two checks of a sender
_CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for a client that disconnected before the response: only logs and middleware see it."""
_PASSED_THROUGH: Final = frozenset({400, 404, 409, 413, 422, 429, 503})
"""Statuses that mean the same to the browser as to this service."""


class Servable(Protocol[E_co]):
    """What a response can serve: a stream (``EventStream``) or a run (``chat.run``). Only these two are accepted."""

    async def __anext__(self) -> E_co: ...

    async def aclose(self) -> None:
        """Stops the model."""
        ...


class SSEResponse:
    """Relays a stream or a run to a browser: an ASGI app for one request.

    The stream is opened before the response starts, so an error while opening is raised, for the framework to map to
    a status (but see ``answer_after``). After that the status is 200, and an error becomes the last event of the
    response, ``event: error``, with ``error_body`` as its data; a truncated event before it is dropped. If upstream
    reported the error in an event of its own, that event is relayed as well, unless there is ``encode``. The error is
    logged as a warning (logger ``friendli_async``). An exception that your own code raises, in ``encode``, ``on_error``
    or a tool, also ends the response with an error event, and is then raised, for the server to log.

    The stream is closed when the browser disconnects or stops reading, when the task is cancelled, and when an error
    is raised; a run also cancels its tools. A HEAD request is answered without opening it. Nothing else may receive
    from the request meanwhile. A drain of the client waits for the response; when the drain times out, the client is
    closed, or the stream reaches a timeout, a browser that then does not read is disconnected after a second.

    Args:
        stream: A stream (``chat.stream(...)``) or a run (``chat.run(...)``), open or not. The response owns it and
            closes it.
        heartbeat: Seconds without a byte from upstream after which a comment, ``: ping``, is sent between two events,
            so that proxies keep the connection open. None disables it.
        answer_after: Seconds to wait for the stream to open. Then the status 200, the headers and a ``: ping`` are
            sent, heartbeats follow, and an error while opening becomes an ``event: error`` as well. None waits until
            it is open, so nothing is sent before the model's first event.
        send_timeout: Seconds that the server may take to accept one piece. A browser that has not read for so long is
            disconnected, with a warning in the log. None waits forever.
        on_error: Called with the error that ended the stream, to replace the error event. Bytes are sent unchanged (an
            event of your own), a dict is the JSON data of ``event: error``, and None sends nothing: the response just
            ends.
        encode: Called with each event; what it returns is sent instead of upstream's bytes, see ``Encoded``. Required
            for a run: you choose which parts of the tool calls a browser sees.
        end: Sent after the last event of a stream that did not fail, see ``Encoded``: how a browser tells its end from
            a broken connection. Without ``encode``, upstream's own last event does this (``data: [DONE]`` of chat).
        headers: Further headers; they override the default ones.

    Raises:
        TypeError: Not a stream or a run; a run without ``encode``; or ``end`` cannot be sent.
        ValueError: A number of seconds is not greater than 0.
    """

    # Without a __dict__: FastAPI serializes whatever it does not know, by its attributes.
    __slots__ = (
        "__weakref__",
        "_answer_after",
        "_encode",
        "_end",
        "_heartbeat",
        "_on_error",
        "_send_timeout",
        "_stream",
        "_used",
        "raw_headers",
    )

    def __init__(
        self,
        stream: Servable[E],
        *,
        heartbeat: float | None = 15.0,
        answer_after: float | None = None,
        send_timeout: float | None = 60.0,
        on_error: Callable[[FriendliError], bytes | dict[str, Any] | None] | None = None,
        encode: Callable[[E], Encoded] | None = None,
        end: Encoded = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        _check_source(stream, encode)
        for name, seconds in (("heartbeat", heartbeat), ("answer_after", answer_after), ("send_timeout", send_timeout)):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} must be a number of seconds greater than 0, or None, not {seconds!r}")
        self.raw_headers: list[tuple[bytes, bytes]] = _raw_headers(headers or {})
        """The further headers, in ASGI's form."""
        self._stream = cast("EventStream[Any] | Run", stream)
        self._heartbeat = heartbeat
        self._answer_after = answer_after
        self._send_timeout = send_timeout
        self._on_error = on_error
        self._encode: Callable[[Any], Encoded] | None = encode
        self._end = _sse_bytes(end, "end must be")
        self._used = False

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "an SSEResponse cannot be serialized: it is an ASGI app, which a FastAPI route cannot return; return a "
            "friendli_async.integrations.fastapi.FriendliResponse, which takes the same arguments"
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Sends the response.

        Args:
            scope: The ASGI scope of an HTTP request.
            receive: The ASGI receive callable.
            send: The ASGI send callable.

        Raises:
            FriendliError: The stream could not be opened; nothing was sent.
            RuntimeError: The response was used before, or the scope is not an HTTP request.
        """
        if scope["type"] != "http":
            raise RuntimeError(f"an SSEResponse answers HTTP requests, not {scope['type']}")
        if self._used:
            raise RuntimeError("an SSEResponse answers one request: its stream can be read once")
        self._used = True
        try:
            if scope["method"] == "HEAD":
                await send(self._head(_EVENT_STREAM))
                await send(_body(b""))
                return
            sender = _EventSender(send, self._heartbeat, self._send_timeout)
            completed = await run_until_disconnect(
                _wait_for_disconnect(receive), self._relay_while_read(scope, receive, sender)
            )
            if not completed and not sender.answered:
                await _send_closed_request(send)
        finally:
            await self._stream.aclose()

    async def _relay_while_read(self, scope: MutableMapping[str, Any], receive: _Receive, sender: _EventSender) -> None:
        """Relays until the end, or until the browser has stopped reading."""
        try:
            with closing(Work(lambda error: sender.hurry())) as work, work.making_calls():
                async with asyncio.timeout(None) as sender.patience:
                    await self._relay(scope, sender)
        except TimeoutError:
            if not sender.gave_up:
                raise
            _logger.warning("%s: the browser stopped reading, and was disconnected", _path(scope))
            _abort_connection(receive)

    async def _relay(self, scope: MutableMapping[str, Any], sender: _EventSender) -> None:
        try:
            await self._send_events(scope, sender)
            await sender.send(_body(b""))
        except Exception:  # raised by the user's code, or by the server because the connection is broken
            if sender.answered:
                with suppress(Exception):
                    await sender.send(_body(_FAILED, more=True))
                    await sender.send(_body(b""))
            raise
        finally:
            await sender.close()

    async def _send_events(self, scope: MutableMapping[str, Any], sender: _EventSender) -> None:
        if self._answer_after is not None:
            sender.answer_after(self._answer_after, self._head(_EVENT_STREAM))
        try:
            content_type, pieces = await self._open(sender)
            if not sender.answered:
                await sender.answer(self._head(content_type))
            async with aclosing(pieces):
                async for data in pieces:
                    await sender.send(_body(data, more=True))
            if self._end:
                await sender.send(_body(self._end, more=True))
        except FriendliError as error:
            if not sender.answered:
                raise
            # As text: log handlers keep their arguments, and the error's traceback holds the stream.
            _logger.warning("%s: after the first byte, %s: %s", _path(scope), type(error).__name__, str(error))
            if payload := self._error_event(error):
                await sender.send(_body(payload, more=True))

    async def _open(self, sender: _EventSender) -> tuple[str, AsyncGenerator[bytes]]:
        """Opens the stream; returns its content type and what to send."""
        stream = await self._stream.__aenter__()
        opened = stream._open if isinstance(stream, EventStream) else None  # pyright: ignore[reportPrivateUsage] - nothing public
        if opened is not None:
            opened.on_abort = sender.hurry
        if self._encode is not None:
            return _EVENT_STREAM, _encoded_events(stream, self._encode)
        assert isinstance(stream, EventStream), "a run has encode"
        return stream.meta.headers.get("content-type", _EVENT_STREAM), _whole_events(stream.raw())

    def _head(self, content_type: str) -> MutableMapping[str, Any]:
        headers = _raw_headers({"content-type": content_type, "cache-control": "no-cache", "x-accel-buffering": "no"})
        overridden = {name for name, _ in self.raw_headers}
        headers = [header for header in headers if header[0] not in overridden] + self.raw_headers
        return {"type": "http.response.start", "status": 200, "headers": headers}

    def _error_event(self, error: FriendliError) -> bytes:
        payload = error_body(error) if self._on_error is None else self._on_error(error)
        if payload is None or isinstance(payload, bytes):
            return payload or b""
        return b"event: error\ndata: " + encode_json(payload) + b"\n\n"


def _check_source(stream: object, encode: object) -> None:
    """Raises TypeError for anything but a stream or a run, and for a run without ``encode``."""
    if isinstance(stream, Run) and encode is None:
        raise TypeError("encode is required for a run: it chooses what a browser sees of each event, such as the text")
    if isinstance(stream, EventStream | Run):
        return
    given, advice = type(stream).__name__, ""
    if inspect.iscoroutine(stream):
        given = f"the coroutine {stream.__qualname__}()"
        advice = ": await it, or call stream() instead if it is complete()"
    elif isinstance(stream, View):
        advice = ": pass the stream itself, with encode=lambda chunk: chunk.text or None"
    raise TypeError(f"a response takes a stream, chat.stream(...), or a run, chat.run(...), not {given}{advice}")


class _EventSender:
    """Sends messages, and pings when idle. It uses a timer, not a task per piece, since pings are rare.

    Attributes:
        answered: Whether the response has been started.
        gave_up: Whether the browser has stopped reading.
        patience: Cancels the relay then.
    """

    def __init__(self, send: _Send, heartbeat: float | None, send_timeout: float | None) -> None:
        self.answered = False
        self.gave_up = False
        self.patience: asyncio.Timeout | None = None
        self._send = send
        self._heartbeat = inf if heartbeat is None else heartbeat
        self._send_timeout = inf if send_timeout is None else send_timeout
        self._loop = asyncio.get_running_loop()
        self._last = 0.0  # when the last message, or its ping, was passed to the server
        self._sending = False
        self._ping: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Sends data that ends at an event boundary; returns once the server has accepted it."""
        self._sending = True
        if self._ping is not None:
            await self._finish_ping()
        self._last = self._loop.time()
        await self._send(message)
        self._sending = False

    async def answer(self, head: MutableMapping[str, Any]) -> None:
        """Starts the response."""
        self._begin()
        await self.send(head)

    def answer_after(self, seconds: float, head: MutableMapping[str, Any]) -> None:
        """Starts the response and sends a ping after a number of seconds, unless it is answered or closed before."""
        self._timer = self._loop.call_later(seconds, self._answer_early, head)

    def _answer_early(self, head: MutableMapping[str, Any]) -> None:
        self._begin()
        self._send_apart(head, _body(_PING, more=True))  # a server may hold back the head until there is a body

    def _begin(self) -> None:
        self.answered = True
        self._check_after(_LONGEST_CHECK)

    def hurry(self) -> None:
        """Gives up on a browser that does not read from now on: the stream was ended from outside."""
        self._send_timeout = min(self._send_timeout, _LAST_SECONDS)
        if self.answered and self._timer is not None:
            self._check_after(_LAST_SECONDS)

    async def close(self) -> None:
        """Stops the pings."""
        self.patience = None  # it refers to the task, whose error may refer to the stream, which refers to this
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ping is not None:
            self._ping.cancel()
            await self._finish_ping()

    def _check_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = min(seconds, self._heartbeat, self._send_timeout)
        self._timer = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        waited = now - self._last
        is_sending = self._sending or self._ping is not None
        if is_sending and waited >= self._send_timeout:
            patience, self.patience = self.patience, None
            if patience is not None:
                self.gave_up = True
                patience.reschedule(now)
            return
        if not is_sending and waited >= self._heartbeat:
            self._send_apart(_body(_PING, more=True))
            waited, is_sending = 0.0, True
        limit = self._send_timeout if is_sending else self._heartbeat
        self._check_after(min(limit - waited, _LONGEST_CHECK))

    def _send_apart(self, *messages: MutableMapping[str, Any]) -> None:
        self._last = self._loop.time()
        self._ping = self._loop.create_task(self._send_all(messages))

    async def _send_all(self, messages: Iterable[MutableMapping[str, Any]]) -> None:
        for message in messages:
            await self._send(message)
        self._ping = None

    async def _finish_ping(self) -> None:
        if (ping := self._ping) is not None:
            await asyncio.wait({ping})
            self._ping = None
            if not ping.cancelled():
                ping.result()  # raises if the connection is broken


async def run_until_disconnect(disconnect: Awaitable[object], work: Awaitable[E]) -> list[E]:
    """Runs the work; if the browser disconnects first, cancels the work and waits for it.

    Args:
        disconnect: Returns when the browser has disconnected.
        work: What to do for the browser. Its exceptions propagate.

    Returns:
        The result of the work, in a list that is empty if the browser has disconnected.
    """
    watcher, task = asyncio.ensure_future(disconnect), asyncio.ensure_future(work)
    try:
        await asyncio.wait((watcher, task), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            watcher.result()
            return []
        return [task.result()]
    finally:
        for each in (watcher, task):
            each.cancel()
        try:
            await wait_ended((watcher, task))
        finally:
            for each in (watcher, task):
                if not each.cancelled():
                    each.exception()  # marks it as retrieved
            # The traceback of a raised error has this frame, and a task has the error: a reference cycle.
            del watcher, task, each


async def _wait_for_disconnect(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of the request body


def _abort_connection(receive: _Receive) -> None:
    """Closes the connection to a browser that does not read, as far as the server allows it.

    ASGI cannot do this. uvicorn would wait, even at its shutdown, until the browser has read what is buffered.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if callable(abort := getattr(transport, "abort", None)):
        abort()


async def _send_closed_request(send: _Send) -> None:
    """Sends a response although the browser has disconnected: middleware requires one."""
    with suppress(Exception):  # the connection is closed, which each server reports differently
        await send({"type": "http.response.start", "status": _CLIENT_CLOSED_REQUEST, "headers": []})
        await send(_body(b""))


async def _whole_events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Re-chunks bytes at event boundaries, so that a ping or an error event can be sent between any two chunks.

    A browser cannot use a partial event anyway; one at the end is dropped. Each byte is scanned once, however the
    pieces are split.
    """
    incomplete: list[bytes] = []  # pieces of an incomplete event
    last = b""  # its last bytes
    async for piece in pieces:
        end = _end_of_events(last + piece) - len(last)
        rest = piece
        if end > 0:
            yield b"".join((*incomplete, piece[:end]))
            incomplete, last, rest = [], b"", piece[end:]
        incomplete.append(rest)
        last = (last + rest)[-_OVERLAP:]
    rest = b"".join(incomplete)
    if _lacks_only_blank_line(rest):
        yield rest + (b"\n" if rest.endswith(b"\n") else b"\n\n")


def _lacks_only_blank_line(data: bytes) -> bool:
    """Whether the last bytes of a stream are a whole event, which ``[DONE]`` and JSON objects prove to be.

    The SSE standard discards an event that the end of the stream truncates.
    """
    decoder = SSEDecoder()
    events, last = decoder.feed(data), decoder.unfinished_data()
    return bool(events) if last is None else last.strip() == DONE or is_object(json_or_none(last))


def _end_of_events(data: bytes) -> int:
    """Returns the position after the last blank line, or -1 if there is none."""
    return max((start + len(line) for line in _BLANK_LINES if (start := data.rfind(line)) >= 0), default=-1)


async def _encoded_events(stream: AsyncIterator[E], encode: Callable[[E], Encoded]) -> AsyncGenerator[bytes]:
    held = ""  # half a character, which the next text completes
    async for event in stream:
        payload = encode(event)
        if isinstance(payload, str) and (held or payload):
            payload, held = split_surrogate(held, payload)
            payload = payload or None
        if data := _sse_bytes(payload, "encode must return"):
            yield data
    if held:
        yield _sse_bytes(held, "encode must return")


def _sse_bytes(payload: object, rule: str) -> bytes:
    """Returns what to send for a payload; see ``Encoded``.

    Raises:
        TypeError: It cannot be sent. ``rule`` begins the message.
    """
    if isinstance(payload, str):
        return b"".join(b"data: %b\n" % line.encode() for line in _split_lines(replace_surrogates(payload))) + b"\n"
    if payload is None or isinstance(payload, bytes):
        return payload or b""
    if isinstance(payload, dict):
        return b"data: %b\n\n" % encode_json(payload)
    raise TypeError(f"{rule} str, bytes, dict or None, not {type(payload).__name__}")


def _split_lines(text: str) -> list[str]:
    """Splits lines as the SSE standard does; `str.splitlines` accepts more line terminators."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _path(scope: Mapping[str, Any]) -> str:
    return quote(str(scope.get("path", "")))


def _raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _body(data: bytes, *, more: bool = False) -> MutableMapping[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


# --- error responses -------------------------------------------------------------------------------------------------


def error_status(error: FriendliError) -> int:
    """Returns the HTTP status to send to a browser for an error.

    Args:
        error: The error that the call raised.

    Returns:
        Upstream's status if it is 400, 404, 409, 413, 422, 429 or 503; 504 for a timeout and for upstream's 408 and
        504; 503 if the client was drained or closed; 500 if the client is misconfigured, and for a failed tool and
        the turn limit of a run; 502 for anything else, including a token that upstream rejected (401, 403).
    """
    return _answer(error)[0]


def error_body(error: FriendliError) -> dict[str, Any]:
    """Returns the JSON body to send to a browser for an error, in the format of OpenAI's API.

    Upstream's message is passed through whenever its status is. Messages about the service's token or configuration,
    and addresses that could not be reached, are never exposed.

    Args:
        error: The error that the call raised.

    Returns:
        ``{"error": {"message": ..., "type": ..., "param": None, "code": ...}}``.
    """
    _, message, kind, code = _answer(error)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _answer(error: FriendliError) -> tuple[int, str, str, str | None]:
    """Returns the status, message, type and code for a browser."""
    match error:
        case ConfigurationError(draining=True) | APIConnectionError(draining=True):
            return 503, "the service is shutting down; try again", "service_unavailable", "shutting_down"
        case APIStatusError(status_code=status) if status in _PASSED_THROUGH:
            return status, error.message, error.type or _error_type(status), error.code
        case APIStatusError(status_code=401 | 403):
            return 502, "this service is not authorized to use the model", "upstream_error", None
        case APIStatusError(status_code=status):
            return 504 if status in {408, 504} else 502, "the model's server failed", "upstream_error", None
        case APITimeoutError():
            return 504, "the model took too long", "timeout_error", f"{error.limit}_timeout"
        case StreamInterruptedError():
            return 502, "the answer was interrupted before it was complete", "upstream_error", "stream_interrupted"
        case APIConnectionError() if error.meta is not None and error.meta.status is not None:
            return 502, "the reply broke off before it was complete", "upstream_error", "reply_interrupted"
        case APIConnectionError():
            return 502, "the model's server could not be reached", "upstream_error", "connection_error"
        case ConfigurationError():
            return 500, "the service is misconfigured", "server_error", None
        case ToolError():
            return 500, "a tool failed", "server_error", "tool_error"
        case TurnLimitError():
            return 500, "the model called tools too often", "server_error", "turn_limit"
        case _:
            return 502, "the model's server sent an invalid response", "upstream_error", None


def _error_type(status: int) -> str:
    return {429: "rate_limit_error", 503: "service_unavailable"}.get(status, "invalid_request_error")


def retry_headers(error: FriendliError) -> Iterable[tuple[str, str]]:
    """Yields ``Retry-After`` for a 429 or 503 if upstream sent one, rounded up to whole seconds."""
    wait = getattr(error, "retry_after", None)
    if wait is not None and error_status(error) in {429, 503}:
        yield "Retry-After", str(-int(-wait // 1))
