"""The response itself: opens a stream, a run or a generator, and relays it, or a view of it, until its end.

When the browser disconnects, ``run_until_disconnect`` cancels the relay. The cancelled read closes the stream; if none
was waiting, ``SSEResponse.__call__`` does. A generator is closed in the task that ran it (``_relay``).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import closing
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast, runtime_checkable

from friendli_async._callables import check_plain
from friendli_async._core.settings import check_header
from friendli_async._core.work import Work
from friendli_async.asgi.disconnect import (
    Receive,
    Send,
    abort_connection,
    run_until_disconnect,
    send_closed_request,
    wait_for_disconnect,
)
from friendli_async.asgi.errors import error_body, log_error, logged_path
from friendli_async.asgi.events import Conversion, Encoded, EncodedEvents, WholeEvents, error_event, sse_bytes
from friendli_async.asgi.generated import Generated
from friendli_async.asgi.sender import EventSender
from friendli_async.chat.run import Run
from friendli_async.errors import FriendliError
from friendli_async.options import is_number
from friendli_async.streams import EventStream
from friendli_async.streams.views import ValueView, View

__all__ = ["SSEResponse", "Servable"]

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

_logger: Final = logging.getLogger("friendli_async")

_EVENT_STREAM: Final = "text/event-stream"
_FAILED: Final = error_event(error_body(FriendliError()))  # of none in particular


@runtime_checkable
class Servable(Protocol[E_co]):
    """What a response can serve: a stream (``EventStream``), a run (``chat.run``), or a view of structured output.

    These views are ``snapshots()`` and ``items()`` of ``parse_stream``. An async generator is accepted, too, and
    nothing else.
    """

    def __anext__(self) -> Awaitable[E_co]: ...

    def aclose(self) -> Awaitable[None]:
        """Stops the model."""
        ...


class SSEResponse:
    """Relays a stream or a run to a browser: an ASGI app for one request.

    The stream is opened before the response starts, so an error while opening is raised, for the framework to map to a
    status (but see ``answer_after``). After that the status is 200, and an error becomes the last event of the
    response, ``event: error``, with ``error_body`` as its data; a truncated event before it is dropped. If upstream
    reported the error in an event of its own, that event is relayed as well, unless there is ``encode``; the service's
    token is masked in it. The error is logged as a warning (logger ``friendli_async``). Another exception, which your
    own code raises in ``encode``, ``on_error`` or a tool, also ends the response with an error event, and is then
    raised, for the server to log.

    The stream is closed when the browser disconnects or stops reading, when the task is cancelled, and when an error
    is raised; a run also cancels its tools. A HEAD request is answered without opening it. Nothing else may receive
    from the request meanwhile. A drain of the client waits for the response; when the drain times out, the client is
    closed, or the stream reaches a timeout, a browser that then does not read is disconnected after a second.

    Args:
        stream: A stream (``chat.stream(...)``) or a run (``chat.run(...)``), open or not. With ``encode``, events may
            have been read from it: the rest is sent. The response owns it and closes it. Or a view of structured
            output, ``snapshots()`` or ``items()`` of ``chat.parse_stream(...)``: an answer that does not match its type
            then ends with an error event, too. Or an async generator of yours, which is open once it has yielded its
            first event.
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
            for a run, where it chooses which parts of the tool calls a browser sees, and for a view. Without it, a
            generator yields what to send.
        end: Sent after the last event of a stream that did not fail, see ``Encoded``: how a browser tells its end from
            a broken connection. Without ``encode``, upstream's own last event does this (``data: [DONE]`` of chat),
            unless the stream is stopped.
        headers: Further headers; they override the default ones.
        background: A function, plain or a coroutine function, called once the response is over, even if the browser
            has disconnected, but not if an exception is raised: the stream could not be opened, or code of your own
            failed.

    Raises:
        TypeError: Not a stream, a run, such a view or an async generator; ``encode`` is no function, or missing for a
            run or a view; ``on_error`` or ``background`` is no function; ``headers`` is no mapping; or ``end`` cannot
            be sent.
        ValueError: A number of seconds is not greater than 0, or a header is invalid.
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
        "_view",
        "background",
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
        background: Callable[[], object] | None = None,
    ) -> None:
        _check_source(stream, encode)
        check_plain(on_error, "on_error", "the error")
        if background is not None and not callable(background):
            raise TypeError(f"background must be a function, not {type(background).__name__}")
        for name, seconds in (("heartbeat", heartbeat), ("answer_after", answer_after), ("send_timeout", send_timeout)):
            if seconds is not None and not (is_number(seconds) and seconds > 0):
                raise ValueError(f"{name} must be a number of seconds greater than 0, or None, not {seconds!r}")
        if headers is not None and not isinstance(cast("object", headers), Mapping):
            raise TypeError(f"headers must be a mapping of names to values, not {type(headers).__name__}")
        for name, value in (headers or {}).items():
            check_header(name, value, "headers")
        self.raw_headers: list[tuple[bytes, bytes]] = _raw_headers(headers or {})
        """The further headers, in ASGI's form."""
        self.background: Any = background  # a Starlette BackgroundTask, if FastAPI sets it
        self._view = stream if isinstance(stream, ValueView) else None
        source: Any = stream if self._view is None else self._view._stream  # pyright: ignore[reportPrivateUsage] - its own
        is_generator = isinstance(stream, AsyncGenerator)
        self._stream: EventStream[Any] | Run | Generated[Any] = Generated(source) if is_generator else source
        self._heartbeat = heartbeat
        self._answer_after = answer_after
        self._send_timeout = send_timeout
        self._on_error = on_error
        self._encode: Callable[[Any], Encoded] | None = encode
        self._end = sse_bytes(end, "end must be")
        self._used = False

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "an SSEResponse cannot be serialized: it is an ASGI app, which a FastAPI route cannot return; return a "
            "friendli_async.integrations.fastapi.FriendliResponse, which takes the same arguments"
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Sends the response to an HTTP request, by the protocol of ASGI.

        Raises:
            FriendliError: The stream could not be opened; nothing was sent.
            RuntimeError: The response was used before; nothing is left of the stream, or it is read in another way;
                or the scope is not an HTTP request.
        """
        if scope["type"] != "http":
            raise RuntimeError(f"an SSEResponse answers HTTP requests, not {scope['type']}")
        if self._used:
            raise RuntimeError("an SSEResponse answers one request: its stream can be read once")
        self._used = True
        try:
            if scope["method"] == "HEAD":
                await send(self._head(_EVENT_STREAM))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                sender = EventSender(send, self._heartbeat, self._send_timeout)
                relay = self._relay(scope, receive, sender)
                await run_until_disconnect(wait_for_disconnect(receive), relay)
                if not sender.answered:
                    await send_closed_request(send)
        finally:
            await self._stream.aclose()
        if self.background is not None:
            done = self.background()
            if inspect.isawaitable(done):
                await done

    async def _relay(self, scope: MutableMapping[str, Any], receive: Receive, sender: EventSender) -> None:
        """Relays until the end, or until the browser has stopped reading."""
        # An eager task has begun inside the frames of asyncio that refer to it, which an exception would keep.
        await asyncio.sleep(0)
        with closing(Work(sender.hurry)) as work, work.making_calls():
            try:
                await sender.run(self._send_events(scope, sender, work), _FAILED)
            finally:
                if isinstance(self._stream, Generated):  # a timeout or a task group in it ends in the task it began in
                    await self._stream.aclose()
        if sender.gave_up:
            _logger.warning("%s: the browser stopped reading, and was disconnected", logged_path(scope))
            abort_connection(receive)

    async def _send_events(self, scope: MutableMapping[str, Any], sender: EventSender, work: Work) -> None:
        if self._answer_after is not None:
            sender.answer_after(self._answer_after, self._head(_EVENT_STREAM))
        try:
            content_type, items, conversion = await self._open(sender, work)
            if not sender.answered:
                await sender.answer(self._head(content_type))
            async for item in items:
                if data := conversion.feed(item):
                    await sender.send(data)
            self._stream._check_complete()  # pyright: ignore[reportPrivateUsage] - nothing public
            if data := conversion.finish() + self._end:
                await sender.send(data)
        except FriendliError as error:
            if not sender.answered:
                raise
            log_error(logging.WARNING, scope, "after the first byte", error)
            if event := error_event(error_body(error) if self._on_error is None else self._on_error(error)):
                await sender.send(event)

    async def _open(self, sender: EventSender, work: Work) -> tuple[str, AsyncIterator[Any], Conversion]:
        """Opens the stream; returns its content type, what to read from it, and what to make of that."""
        stream = await self._stream.__aenter__()
        stream._begin_response(work, sender.hurry)  # pyright: ignore[reportPrivateUsage] - nothing public
        if self._encode is not None:
            return _EVENT_STREAM, self._view or stream, EncodedEvents(self._encode, "encode must return")
        if isinstance(stream, Generated):
            return _EVENT_STREAM, stream, EncodedEvents(lambda event: event, "without encode, the generator must yield")
        assert isinstance(stream, EventStream), "a run has encode"
        content_type = stream.meta.headers.get("content-type", "")
        # Any other type is a mistake of upstream's. As HTML, a browser would execute what the model wrote; of several
        # types, it takes the last.
        is_single = content_type.isascii() and "," not in content_type
        is_correct = is_single and content_type.lower().startswith(_EVENT_STREAM)
        events = WholeEvents(stream._masked)  # pyright: ignore[reportPrivateUsage] - nothing public
        return content_type if is_correct else _EVENT_STREAM, stream.raw(), events

    def _head(self, content_type: str) -> MutableMapping[str, Any]:
        headers = _raw_headers({"content-type": content_type, "cache-control": "no-cache", "x-accel-buffering": "no"})
        overridden = {name for name, _ in self.raw_headers}
        headers = [header for header in headers if header[0] not in overridden] + self.raw_headers
        return {"type": "http.response.start", "status": 200, "headers": headers}


def _check_source(stream: object, encode: object) -> None:
    """Raises TypeError for what cannot be served, and for an ``encode`` that is no function, or that is missing."""
    check_plain(encode, "encode", "an event")
    if isinstance(stream, Run) and encode is None:
        raise TypeError("encode is required for a run: it chooses what a browser sees of each event, such as the text")
    if isinstance(stream, ValueView) and encode is None:
        raise TypeError("encode is required for snapshots() and items(): it returns what to send for each")
    if isinstance(stream, EventStream | Run | ValueView | AsyncGenerator):
        return
    given, advice = type(stream).__name__, ""
    if inspect.iscoroutine(stream):
        given = f"the coroutine {stream.__qualname__}()"
        advice = ": await it, or call stream() instead if it is complete()"
    elif isinstance(stream, View):
        advice = ": pass the stream itself, with encode=lambda chunk: chunk.text or None"
    elif inspect.isasyncgenfunction(stream):
        advice = ": call it"
    raise TypeError(
        f"a response takes a stream, chat.stream(...), a run, chat.run(...), or an async generator, not {given}{advice}"
    )


def _raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
