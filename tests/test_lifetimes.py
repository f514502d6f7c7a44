"""Ended streams are released without garbage collection: connection closed, slot free, no object left."""

import asyncio
import gc
import gzip
import socket
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
from support.clock import run_loop_iterations, wait_until
from support.live_objects import live_objects
from support.sockets import (
    DONE,
    LAST_CHUNK,
    MESSAGES,
    STREAM_HEAD,
    Conversation,
    RawServer,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    reply,
    slots_in_use,
    sse,
    start_run,
    with_timeout,
)

from friendli_async import (
    APITimeoutError,
    AsyncFriendli,
    ChatStream,
    ConfigurationError,
    FriendliError,
    RetryPolicy,
    Timeouts,
)
from friendli_async._core.observers import Observer
from friendli_async.asgi import SSEResponse
from friendli_async.chat import ParsedChatStream
from friendli_async.chat.run import Run
from friendli_async.testing import FriendliServer, raw, script
from friendli_async.tools import tool

pytestmark = pytest.mark.compatibility

OVERLOAD = STREAM_HEAD + chunked(sse({"error": {"message": "overloaded", "code": 503}})) + LAST_CHUNK
REDIRECT = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
UNAVAILABLE = reply(b"", status="503 Service Unavailable")
STREAM_START = STREAM_HEAD + chunked(delta("a"))
GZIP_HEAD = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
RESET, HANG, CLOSE = "reset", "hang", "close"

HISTORIES: dict[str, tuple[bytes | str, ...]] = {
    "no failure": (),
    "503": (UNAVAILABLE,),
    "503 twice": (UNAVAILABLE, UNAVAILABLE),
    "reset": (RESET,),
    "closed": (CLOSE,),
    "overload in the stream": (OVERLOAD,),
    "redirect": (REDIRECT,),
    "reset, then 503, then a redirect": (RESET, UNAVAILABLE, REDIRECT),
    "refused connection": (),
    "dead pooled connection": (reply(completion("first")), CLOSE),
    "compressed": (),
    "compressed after 503": (UNAVAILABLE,),
}
"""What the server does before it starts the stream, which then stays open."""


class ScriptedServer(RawServer):
    """Answers requests in the order of a script, on any connection; a stream that it starts stays open."""

    def __init__(self, *script: bytes | str, listens_immediately: bool = True) -> None:
        super().__init__(self._talk_by_script)
        self.script = list(script)
        self.ended = 0
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listens_immediately = listens_immediately
        self._start_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._listens_immediately:
            await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._start_task is not None:
            await self._start_task
        await super().__aexit__(kind, error, traceback)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    def start_listening(self, _: object) -> None:
        """Starts to listen; until now, connections were refused."""
        self._listener.listen()
        self._start_task = asyncio.get_running_loop().create_task(self._listen())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    async def _talk_by_script(self, conversation: Conversation) -> None:
        while await conversation.request():
            response = self.script.pop(0)
            if response == RESET:
                conversation.reset()
                return
            if response == CLOSE:
                return
            if isinstance(response, bytes):
                await conversation.send(response)
                if b"event-stream" not in response or response.endswith(LAST_CHUNK):
                    continue
            await conversation.wait_disconnected()
            self.ended += 1
            return


class IgnoringObserver(Observer):
    """Receives all events and ignores them."""


@pytest.fixture(autouse=True)
def gc_disabled() -> Iterator[None]:
    """Disables the garbage collector: nothing may depend on it.

    Existing objects are frozen, because iterating over all of them would cost more than the test.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def observers(request: pytest.FixtureRequest) -> list[Observer]:
    return [IgnoringObserver()] if request.param == "observed" else []


# --- ways to end a stream --------------------------------------------------------------------------------------------

Ending = Callable[[AsyncFriendli], Awaitable[object]]
"""Opens a stream, reads its first event and ends it; the test keeps the returned object alive."""


async def break_out_of_loop(client: AsyncFriendli) -> None:
    async for _ in open_stream(client):
        break


async def break_out_of_text_view(client: AsyncFriendli) -> None:
    async for _ in open_stream(client).text():
        break


async def delete_stream(client: AsyncFriendli) -> None:
    stream = open_stream(client)
    await anext(stream)
    del stream


async def await_stream_and_drop_it(client: AsyncFriendli) -> None:
    await open_stream(client)


async def finish_task(client: AsyncFriendli) -> object:
    async def once() -> str:
        stream = open_stream(client)
        return (await anext(stream)).text

    task = asyncio.create_task(once())
    await task
    return task


async def _cancel_once_reached(work: Awaitable[None], reached: asyncio.Event) -> object:
    task = asyncio.ensure_future(work)
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    return task


async def cancel_reading_task(client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def read() -> None:
        stream = open_stream(client)
        async for _ in stream:
            reached.set()

    return await _cancel_once_reached(read(), reached)


async def cancel_task_in_loop_body(client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def work() -> None:
        async for _ in open_stream(client):
            reached.set()
            await asyncio.Event().wait()

    return await _cancel_once_reached(work(), reached)


async def cancel_task_in_async_with(client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def work() -> None:
        async with open_stream(client) as stream:
            async for _ in stream:
                reached.set()
                await asyncio.Event().wait()

    return await _cancel_once_reached(work(), reached)


async def close_stream(client: AsyncFriendli) -> object:
    stream = open_stream(client)
    await anext(stream)
    await stream.aclose()
    return None


async def raise_in_loop_body(client: AsyncFriendli) -> object:
    kept: list[object] = []
    try:
        async for _ in open_stream(client):
            raise ValueError("the user's own")
    except ValueError as error:
        kept.append(error)
    return kept


async def raise_in_async_with(client: AsyncFriendli) -> object:
    kept: list[object] = []
    try:
        async with open_stream(client):
            raise ValueError("the user's own")
    except ValueError as error:
        kept.append(error)
    return kept


ENDINGS: list[Ending] = [
    break_out_of_loop,
    break_out_of_text_view,
    delete_stream,
    await_stream_and_drop_it,
    finish_task,
    cancel_reading_task,
    cancel_task_in_loop_body,
    cancel_task_in_async_with,
    close_stream,
    raise_in_loop_body,
    raise_in_async_with,
]


@pytest.mark.parametrize("observers", ["alone", "observed"], indirect=True)
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
@pytest.mark.parametrize("history", HISTORIES)
async def test_ended_stream_is_released_after_any_attempts(
    history: str, ending: Ending, observers: list[Observer]
) -> None:
    before = live_objects()
    stream = GZIP_HEAD + chunked(gzip.compress(delta("a"))[:-8]) if "compressed" in history else STREAM_START
    server = ScriptedServer(
        *HISTORIES[history], stream, reply(completion("next")), listens_immediately=history != "refused connection"
    )
    retry = RetryPolicy(max_attempts=4, initial=0.0, max_wait=0.0)
    if history == "refused connection":
        retry = RetryPolicy(initial=0.0, max_wait=0.0, on_retry=server.start_listening)
    async with server, client_of(server.url, retry=retry, max_connections=1, observers=observers) as client:
        if history == "dead pooled connection":
            assert (await with_timeout(complete(client))).text == "first"
        kept = await with_timeout(ending(client))
        assert slots_in_use(client) == 0
        await wait_until(lambda: server.ended == 1)
        assert (await with_timeout(complete(client))).text == "next"
        if kept is None or (isinstance(kept, asyncio.Task) and not kept.cancelled()):
            await run_loop_iterations(20)
            assert live_objects() - before == Counter()


# --- views and wrappers ----------------------------------------------------------------------------------------------


def chat_delta(**fields: object) -> bytes:
    return sse({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def named_events(*events: dict[str, object]) -> bytes:
    return b"".join(f"event: {event['type']}\n".encode() + sse(event) for event in events)


def call_delta(index: int, arguments: str) -> dict[str, object]:
    return {"index": index, "id": f"call-{index}", "function": {"name": "wait", "arguments": arguments}}


TEXT = delta("a")
REASONING = chat_delta(reasoning_content="hm")
TOOL_CALLS = chat_delta(tool_calls=[call_delta(0, "{}")]) + chat_delta(tool_calls=[call_delta(1, "")])
ITEMS = delta('{"rows": [[1], [2], [')
RESPONSE = named_events(
    {"type": "response.created", "response": {"id": "r", "output": []}},
    {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": "a"},
)
MESSAGE = named_events(
    {"type": "message_start", "message": {"id": "m", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
)
COMPLETION = sse({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
TRANSCRIPT = named_events({"type": "transcript.text.delta", "delta": "a"})


class Table(msgspec.Struct):
    rows: list[list[int]]


def parsed(client: AsyncFriendli) -> ParsedChatStream[Table]:
    return client.serverless.chat.parse_stream(Table, model="m", messages=MESSAGES)


@tool
async def wait() -> str:
    """Waits forever."""
    await asyncio.Event().wait()
    return ""


def run_of(client: AsyncFriendli) -> Run:
    return client.serverless.chat.run(model="m", messages=MESSAGES, tools=[wait])


Opener = Callable[[AsyncFriendli], Any]
"""Makes the object to iterate over."""

ITERABLES: dict[str, tuple[bytes, Opener]] = {
    "text": (TEXT, lambda client: open_stream(client).text()),
    "reasoning": (REASONING, lambda client: open_stream(client).reasoning()),
    "tool calls": (TOOL_CALLS, lambda client: open_stream(client).tool_calls()),
    "bytes": (TEXT, lambda client: open_stream(client).raw()),
    "stop_when": (TEXT, lambda client: open_stream(client).stop_when(lambda text: "never" in text)),
    "text with stop_when": (TEXT, lambda client: open_stream(client).stop_when(event=lambda event: False).text()),
    "branch": (TEXT, lambda client: open_stream(client).tee(2)[0]),
    "branch text": (TEXT, lambda client: open_stream(client).tee(2)[1].text()),
    "parse_stream": (ITEMS, parsed),
    "parse_stream snapshots": (ITEMS, lambda client: parsed(client).snapshots()),
    "parse_stream items": (ITEMS, lambda client: parsed(client).items("rows", of=list[int])),
    "run": (TEXT, run_of),
    "run with tools": (TOOL_CALLS, run_of),
    "responses": (RESPONSE, lambda client: client.serverless.responses.stream(model="m", input="Hi")),
    "responses text": (RESPONSE, lambda client: client.serverless.responses.stream(model="m", input="Hi").text()),
    "messages": (MESSAGE, lambda client: client.serverless.messages.stream(model="m", messages=MESSAGES)),
    "messages text": (MESSAGE, lambda client: client.serverless.messages.stream(model="m", messages=MESSAGES).text()),
    "completions": (COMPLETION, lambda client: client.serverless.completions.stream(model="m", prompt="Hi").text()),
    "tool-assisted": (
        TEXT,
        lambda client: client.serverless.tool_assisted_chat.stream(model="m", messages=MESSAGES, tools=[]),
    ),
    "tool-assisted call": (
        TEXT,
        lambda client: client.serverless.tool_assisted_chat_completion(
            tool_assisted_completion_request_body={"model": "m", "messages": MESSAGES}
        ),
    ),
    "transcription": (
        TRANSCRIPT,
        lambda client: client.serverless.audio.stream(model="m", file=b"RIFF").text(),
    ),
}


async def break_out(opener: Opener, client: AsyncFriendli) -> None:
    async for _ in opener(client):
        break


async def read_one_and_drop(opener: Opener, client: AsyncFriendli) -> None:
    reading = aiter(opener(client))
    await anext(reading)
    del reading


async def read_one_in_task(opener: Opener, client: AsyncFriendli) -> object:
    task = asyncio.create_task(read_one_and_drop(opener, client))
    await task
    return task


async def cancel_reader(opener: Opener, client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def read() -> None:
        async for _ in opener(client):
            reached.set()

    return await _cancel_once_reached(read(), reached)


LEAVING = [break_out, read_one_and_drop, read_one_in_task, cancel_reader]


@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
@pytest.mark.parametrize("history", ["503 twice", "overload in the stream"])
@pytest.mark.parametrize("name", ITERABLES)
async def test_ended_iterable_is_released(name: str, history: str, leave: Any) -> None:
    before = live_objects()
    events, opener = ITERABLES[name]
    stream = STREAM_HEAD + chunked(events)
    server = ScriptedServer(*HISTORIES[history], stream, reply(completion("next")))
    retry = RetryPolicy(max_attempts=4, initial=0.0, max_wait=0.0)
    async with server, client_of(server.url, retry=retry, max_connections=1) as client:
        kept = await with_timeout(leave(opener, client))
        await run_loop_iterations(3)  # a run's task ends in the next iterations of the event loop
        assert slots_in_use(client) == 0
        await wait_until(lambda: server.ended == 1)
        assert (await with_timeout(complete(client))).text == "next"
        if kept is None or not kept.cancelled():
            await run_loop_iterations(20)
            assert live_objects() - before == Counter()


def test_stream_that_is_dropped_after_its_loop_was_closed_is_released() -> None:
    streams: list[ChatStream] = []  # not the result of the task, which frames of asyncio may keep

    async def read_some() -> None:
        waits, has_read = asyncio.Event(), asyncio.Event()

        async def talk(conversation: Conversation) -> None:
            await conversation.request()
            await conversation.send(STREAM_START)
            await waits.wait()
            await conversation.send(chunked(delta("b")))
            await has_read.wait()
            await conversation.send(chunked(delta("c", "stop")) + chunked(DONE) + LAST_CHUNK)
            await conversation.wait_disconnected()

        async with RawServer(talk) as server:
            client = client_of(server.url)
            stream = await open_stream(client)
            await anext(stream)
            asyncio.get_running_loop().call_soon(waits.set)
            await anext(stream)
            has_read.set()
            await wait_until(lambda: client.gauges().idle == 1)  # the whole body has arrived
        streams.append(stream)

    before = live_objects()
    asyncio.run(read_some())
    assert streams[0].outcome == "open"  # what has arrived is still to be read
    streams.clear()
    assert live_objects() - before == Counter()


# --- errors ----------------------------------------------------------------------------------------------------------

FAILED = reply(b'{"error": {"message": "overloaded"}}')
"""An error with a good status, in place of a reply or of a stream."""

FAILING: dict[str, Callable[[AsyncFriendli], Awaitable[object]]] = {
    "a plain call": complete,
    "a stream that fails to open": lambda client: open_stream(client).__aenter__(),
    "a warm-up": lambda client: client.warm_up(2),
}


@pytest.mark.parametrize("failing", FAILING)
async def test_handled_error_is_freed(failing: str, refused_port: int) -> None:
    async def handle(client: AsyncFriendli) -> weakref.ref[FriendliError]:
        try:
            await FAILING[failing](client)
        except FriendliError as error:
            return weakref.ref(error)
        raise AssertionError("no error")

    async with ScriptedServer(FAILED) as server:
        url = f"http://127.0.0.1:{refused_port}" if failing == "a warm-up" else server.url
        async with client_of(url) as client:
            error = await with_timeout(handle(client))
            await run_loop_iterations(20)
            assert error() is None


async def test_error_of_a_warm_up_that_waits_for_a_connection_is_freed(server: FriendliServer) -> None:
    client = client_of(server.url, max_connections=1)
    stream = await open_stream(client)
    warming = asyncio.create_task(client.warm_up(1))
    await wait_until(lambda: client.gauges().waiting == 1)
    await client.aclose()
    await asyncio.wait([warming])
    error = weakref.ref(warming.exception() or stream)
    assert isinstance(error(), ConfigurationError)
    del warming
    assert error() is None


@pytest.mark.parametrize(
    "opening", [complete, lambda client: open_stream(client).__aenter__()], ids=["plain", "stream"]
)
async def test_call_is_released_if_its_task_fails_by_a_timeout(opening: Callable[[AsyncFriendli], Any]) -> None:
    async def fail(client: AsyncFriendli) -> None:
        call = asyncio.ensure_future(opening(client))
        await asyncio.wait([call])
        assert isinstance(call.exception(), APITimeoutError)

    before = live_objects()
    async with ScriptedServer(HANG) as server, client_of(server.url, timeout=0.2) as client:
        await with_timeout(fail(client))
        await run_loop_iterations(20)
        assert live_objects() - before == Counter()


DEDICATED: dict[str, Callable[[AsyncFriendli], Awaitable[object]]] = {
    "a plain call": lambda client: client.dedicated.chat.complete(model="ep_1", messages=MESSAGES),
    "a stream": lambda client: client.dedicated.chat.stream(model="ep_1", messages=MESSAGES).__aenter__(),
}


@pytest.mark.parametrize("ending", ["rejected", "failed", "timeout", "cancelled"])
@pytest.mark.parametrize("calling", DEDICATED)
async def test_call_is_released_if_its_endpoint_cannot_be_woken(calling: str, ending: str) -> None:
    async def fail(client: AsyncFriendli) -> None:
        call = asyncio.ensure_future(DEDICATED[calling](client))
        if ending == "cancelled":
            await wait_until(lambda: not server.script)
            call.cancel()
        await asyncio.wait([call])
        assert call.cancelled() or isinstance(call.exception(), FriendliError)

    before = live_objects()
    woken = {
        "rejected": (reply(b"", status="500 Internal Server Error"),),
        "failed": (reply(b'{"status": "AWAKING"}'), reply(b'{"status": "FAILED"}')),
    }
    server = ScriptedServer(UNAVAILABLE, reply(b'{"status": "SLEEPING"}'), *woken.get(ending, (HANG,)))
    timeout = Timeouts(total=0.5 if ending == "timeout" else None)
    async with server, client_of(server.url, timeout=timeout).with_options(wake=True) as client:
        await with_timeout(fail(client))
        await run_loop_iterations(20)
        assert live_objects() - before == Counter()
        await client._runtime.close()


@pytest.mark.parametrize(
    "ending", [break_out_of_loop, delete_stream, cancel_reading_task], ids=lambda each: each.__name__
)
async def test_ended_stream_is_released_after_its_endpoint_was_woken(ending: Ending) -> None:
    before = live_objects()
    server = ScriptedServer(UNAVAILABLE, reply(b'{"status": "RUNNING"}'), STREAM_START, reply(completion("next")))
    async with server, client_of(server.url, max_connections=1).with_options(wake=True) as client:
        client.serverless = client.dedicated  # type: ignore[assignment]  # where the endings open their streams
        kept = await with_timeout(ending(client))
        assert slots_in_use(client) == 0
        await wait_until(lambda: server.ended == 1)
        assert (await with_timeout(complete(client))).text == "next"
        if kept is None:
            await run_loop_iterations(20)
            assert live_objects() - before == Counter()
        await client._runtime.close()


# --- relayed streams -------------------------------------------------------------------------------------------------

RESPONSES: dict[str, Callable[[AsyncFriendli], SSEResponse]] = {
    "bytes": lambda client: SSEResponse(open_stream(client)),
    "encoded": lambda client: SSEResponse(open_stream(client), encode=lambda chunk: chunk.text),
    "pings": lambda client: SSEResponse(open_stream(client), heartbeat=0.001),
    "messages": lambda client: SSEResponse(client.serverless.messages.stream(model="m", messages=MESSAGES)),
}


class ASGIClient:
    """Requests a response and receives it until it disconnects."""

    def __init__(self, *, broken: bool = False) -> None:
        self.received = asyncio.Event()
        self.disconnected = asyncio.Event()
        self._broken = broken

    async def receive(self) -> dict[str, Any]:
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message.get("body"):
            self.received.set()
            if self._broken:
                raise OSError("the connection is closed")

    def request(self, response: SSEResponse) -> Awaitable[None]:
        return response({"type": "http", "method": "GET"}, self.receive, self.send)


async def disconnect_client(response: SSEResponse) -> None:
    client = ASGIClient()
    task = asyncio.ensure_future(client.request(response))
    await client.received.wait()
    client.disconnected.set()
    await task


async def cancel_server_task(response: SSEResponse) -> None:
    client = ASGIClient()
    await _cancel_once_reached(client.request(response), client.received)


async def break_connection(response: SSEResponse) -> None:
    with pytest.raises(OSError, match="the connection is closed"):
        await ASGIClient(broken=True).request(response)


async def drop_unused_response(response: SSEResponse) -> None:
    stream: Any = response._stream
    await stream


RELAYED = [disconnect_client, cancel_server_task, break_connection, drop_unused_response]


@pytest.mark.parametrize("end", RELAYED, ids=lambda end: end.__name__)
@pytest.mark.parametrize("history", ["503 twice", "overload in the stream"])
@pytest.mark.parametrize("name", RESPONSES)
async def test_relayed_response_is_released(name: str, history: str, end: Any) -> None:
    before = live_objects()
    stream = STREAM_HEAD + chunked(MESSAGE if name == "messages" else TEXT)
    server = ScriptedServer(*HISTORIES[history], stream, reply(completion("next")))
    retry = RetryPolicy(max_attempts=4, initial=0.0, max_wait=0.0)
    async with server, client_of(server.url, retry=retry, max_connections=1) as client:
        await with_timeout(end(RESPONSES[name](client)))
        assert slots_in_use(client) == 0
        await wait_until(lambda: server.ended == 1)
        assert (await with_timeout(complete(client))).text == "next"
        await run_loop_iterations(20)
        assert live_objects() - before == Counter()


@pytest.mark.parametrize("bad", [b"data: {\n\n", b"data: [1]\n\n", b'data: {"choices": 5}\n\n'])
@pytest.mark.parametrize("kind", ["stream", "run"])
async def test_stream_that_is_left_before_a_bad_event_of_the_same_read_is_freed(
    client: AsyncFriendli, server: FriendliServer, kind: str, bad: bytes
) -> None:
    server.enqueue(script(raw(delta("a") + bad)))
    source: Any = open_stream(client) if kind == "stream" else start_run(client)
    await anext(source)
    seen = weakref.ref(source)
    del source
    assert seen() is None
