"""What has ended is gone at once, without a garbage collection: connection closed, place free, no object left."""

import asyncio
import gc
import gzip
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
from support.clock import turns, until
from support.sockets import (
    LAST_CHUNK,
    MESSAGES,
    STREAM_HEAD,
    Conversation,
    RawServer,
    ask,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    places_in_use,
    reply,
    sse,
    within,
)

from friendli_async import AsyncFriendli, RetryPolicy
from friendli_async._core.observers import Observer
from friendli_async.asgi import SSEResponse
from friendli_async.chat import ParsedChatStream
from friendli_async.chat.run import Run
from friendli_async.tools import tool

pytestmark = pytest.mark.compatibility

OVERLOAD = STREAM_HEAD + chunked(sse({"error": {"message": "overloaded", "code": 503}})) + LAST_CHUNK
REDIRECT = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
UNAVAILABLE = reply(b"", status="503 Service Unavailable")
BEGINNING = STREAM_HEAD + chunked(delta("a"))
COMPRESSED = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
RESET, HANG, CLOSE = "reset", "hang", "close"

HISTORIES: dict[str, tuple[bytes | str, ...]] = {
    "at once": (),
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
"""What the server does before it begins the stream, which then stays open."""

MACHINERY = {"AiohttpExchange", "Call", "ChatStream", "EventReader", "OpenStream", "ReadClock", "StreamOpening"}
MACHINERY |= {"Branch", "Fanout", "ItemView", "MessageStream", "ParsedChatStream", "RawView", "ResponseStream", "Run"}
MACHINERY |= {"SSEResponse", "SnapshotView", "TextCompletionStream", "TextView", "ToolAssistedStream", "ToolCallView"}
MACHINERY |= {"ToolCalls", "TranscriptionStream", "_Cutter", "_EventSender"}


class Scripted(RawServer):
    """Answers one request after the other, on whatever connection, by a script; each stream it begins stays open."""

    def __init__(self, *script: bytes | str, opens_at_once: bool = True) -> None:
        super().__init__(self._talk_by_script)
        self.script = list(script)
        self.ended = 0
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._opens_at_once = opens_at_once
        self._opening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._opens_at_once:
            await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opening is not None:
            await self._opening
        await super().__aexit__(kind, error, traceback)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    def open_now(self, _: object) -> None:
        """Listens from now on: connections were refused so far."""
        self._listener.listen()
        self._opening = asyncio.get_running_loop().create_task(self._listen())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    async def _talk_by_script(self, conversation: Conversation) -> None:
        while await conversation.request():
            said = self.script.pop(0)
            if said == RESET:
                conversation.reset()
                return
            if said == CLOSE:
                return
            if isinstance(said, bytes):
                await conversation.send(said)
                if b"event-stream" not in said or said.endswith(LAST_CHUNK):
                    continue
            await conversation.gone()
            self.ended += 1
            return


class Silent(Observer):
    """Is told everything, and says nothing."""


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Switches the garbage collector off: nothing may wait for it.

    What is there by now is not looked at again: a look at all objects would cost more than the test.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()


def alive() -> Counter[str]:
    """The machine's objects that are alive."""
    return Counter(kind for thing in gc.get_objects() if (kind := type(thing).__name__) in MACHINERY)


@pytest.fixture
def observers(request: pytest.FixtureRequest) -> list[Observer]:
    return [Silent()] if request.param == "observed" else []


# --- ways to end -----------------------------------------------------------------------------------------------------

Ending = Callable[[AsyncFriendli], Awaitable[object]]
"""Opens a stream, reads its first event and ends it; what it returns is kept while the tests look."""


async def leave_a_bare_loop(client: AsyncFriendli) -> None:
    async for _ in ask(client):
        break


async def leave_a_view(client: AsyncFriendli) -> None:
    async for _ in ask(client).text():
        break


async def delete_it(client: AsyncFriendli) -> None:
    stream = ask(client)
    await anext(stream)
    del stream


async def await_it_and_drop_it(client: AsyncFriendli) -> None:
    await ask(client)


async def finish_a_task(client: AsyncFriendli) -> object:
    async def once() -> str:
        stream = ask(client)
        return (await anext(stream)).text

    task = asyncio.create_task(once())
    await task
    return task


async def _cancelled(work: Awaitable[None], reached: asyncio.Event) -> object:
    task = asyncio.ensure_future(work)
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    return task


async def cancel_a_task_that_reads(client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def read() -> None:
        stream = ask(client)
        async for _ in stream:
            reached.set()

    return await _cancelled(read(), reached)


async def cancel_a_task_that_works(client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def work() -> None:
        async for _ in ask(client):
            reached.set()
            await asyncio.Event().wait()

    return await _cancelled(work(), reached)


async def cancel_a_task_that_works_in_a_block(client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def work() -> None:
        async with ask(client) as stream:
            async for _ in stream:
                reached.set()
                await asyncio.Event().wait()

    return await _cancelled(work(), reached)


async def close_it(client: AsyncFriendli) -> object:
    stream = ask(client)
    await anext(stream)
    await stream.aclose()
    return None


async def raise_in_the_loop(client: AsyncFriendli) -> object:
    kept: list[object] = []
    try:
        async for _ in ask(client):
            raise ValueError("the user's own")
    except ValueError as error:
        kept.append(error)
    return kept


async def raise_in_a_block(client: AsyncFriendli) -> object:
    kept: list[object] = []
    try:
        async with ask(client):
            raise ValueError("the user's own")
    except ValueError as error:
        kept.append(error)
    return kept


ENDINGS: list[Ending] = [
    leave_a_bare_loop,
    leave_a_view,
    delete_it,
    await_it_and_drop_it,
    finish_a_task,
    cancel_a_task_that_reads,
    cancel_a_task_that_works,
    cancel_a_task_that_works_in_a_block,
    close_it,
    raise_in_the_loop,
    raise_in_a_block,
]


@pytest.mark.parametrize("observers", ["unobserved", "observed"], indirect=True)
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
@pytest.mark.parametrize("history", HISTORIES)
async def test_a_stream_that_has_ended_is_gone_whatever_its_attempts_were(
    history: str, ending: Ending, observers: list[Observer]
) -> None:
    before = alive()
    beginning = COMPRESSED + chunked(gzip.compress(delta("a"))[:-8]) if "compressed" in history else BEGINNING
    server = Scripted(
        *HISTORIES[history], beginning, reply(completion("next")), opens_at_once=history != "refused connection"
    )
    retry = RetryPolicy(max_attempts=4, initial=0.0, max_wait=0.0)
    if history == "refused connection":
        retry = RetryPolicy(initial=0.0, max_wait=0.0, on_retry=server.open_now)
    async with server, client_of(server.url, retry=retry, max_connections=1, observers=observers) as client:
        if history == "dead pooled connection":
            assert (await within(complete(client))).text == "first"
        kept = await within(ending(client))
        assert places_in_use(client) == 0
        await until(lambda: server.ended == 1)
        assert (await within(complete(client))).text == "next"
        if kept is None or (isinstance(kept, asyncio.Task) and not kept.cancelled()):
            await turns(20)
            assert alive() - before == Counter()


# --- ways to hold one ------------------------------------------------------------------------------------------------


def chat_delta(**said: object) -> bytes:
    return sse({"choices": [{"index": 0, "delta": said, "finish_reason": None}]})


def tagged(*events: dict[str, object]) -> bytes:
    return b"".join(f"event: {event['type']}\n".encode() + sse(event) for event in events)


def call_delta(index: int, arguments: str) -> dict[str, object]:
    return {"index": index, "id": f"call-{index}", "function": {"name": "wait", "arguments": arguments}}


TEXT = delta("a")
THOUGHT = chat_delta(reasoning_content="hm")
CALLS = chat_delta(tool_calls=[call_delta(0, "{}")]) + chat_delta(tool_calls=[call_delta(1, "")])
ITEMS = delta('{"rows": [[1], [2], [')
RESPONSE = tagged(
    {"type": "response.created", "response": {"id": "r", "output": []}},
    {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": "a"},
)
MESSAGE = tagged(
    {"type": "message_start", "message": {"id": "m", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
)
COMPLETION = sse({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
TRANSCRIPT = tagged({"type": "transcript.text.delta", "delta": "a"})


class Table(msgspec.Struct):
    rows: list[list[int]]


def parsed(client: AsyncFriendli) -> ParsedChatStream[Table]:
    return client.serverless.chat.parse_stream(Table, model="m", messages=MESSAGES)


@tool
async def wait() -> str:
    """Waits for ever."""
    await asyncio.Event().wait()
    return ""


def run_of(client: AsyncFriendli) -> Run:
    return client.serverless.chat.run(model="m", messages=MESSAGES, tools=[wait])


Held = Callable[[AsyncFriendli], Any]
"""Makes what is iterated over."""

HELD: dict[str, tuple[bytes, Held]] = {
    "text": (TEXT, lambda client: ask(client).text()),
    "reasoning": (THOUGHT, lambda client: ask(client).reasoning()),
    "tool calls": (CALLS, lambda client: ask(client).tool_calls()),
    "bytes": (TEXT, lambda client: ask(client).raw()),
    "until something": (TEXT, lambda client: ask(client).stop_when(lambda text: "never" in text)),
    "text until something": (TEXT, lambda client: ask(client).stop_when(event=lambda event: False).text()),
    "a branch": (TEXT, lambda client: ask(client).tee(2)[0]),
    "a branch's text": (TEXT, lambda client: ask(client).tee(2)[1].text()),
    "a value": (ITEMS, parsed),
    "a value's states": (ITEMS, lambda client: parsed(client).snapshots()),
    "a value's items": (ITEMS, lambda client: parsed(client).items("rows", of=list[int])),
    "a run": (TEXT, run_of),
    "a run with tools": (CALLS, run_of),
    "responses": (RESPONSE, lambda client: client.serverless.responses.stream(model="m", input="Hi")),
    "responses' text": (RESPONSE, lambda client: client.serverless.responses.stream(model="m", input="Hi").text()),
    "messages": (MESSAGE, lambda client: client.serverless.messages.stream(model="m", messages=MESSAGES)),
    "messages' text": (MESSAGE, lambda client: client.serverless.messages.stream(model="m", messages=MESSAGES).text()),
    "completions": (COMPLETION, lambda client: client.serverless.completions.stream(model="m", prompt="Hi").text()),
    "tool-assisted": (
        TEXT,
        lambda client: client.serverless.tool_assisted_chat.stream(model="m", messages=MESSAGES, tools=[]),
    ),
    "a tool-assisted call": (
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


async def break_off(held: Held, client: AsyncFriendli) -> None:
    async for _ in held(client):
        break


async def take_one_and_drop_it(held: Held, client: AsyncFriendli) -> None:
    reading = aiter(held(client))
    await anext(reading)
    del reading


async def have_a_task_take_one(held: Held, client: AsyncFriendli) -> object:
    task = asyncio.create_task(take_one_and_drop_it(held, client))
    await task
    return task


async def cancel_what_reads(held: Held, client: AsyncFriendli) -> object:
    reached = asyncio.Event()

    async def read() -> None:
        async for _ in held(client):
            reached.set()

    return await _cancelled(read(), reached)


LEAVING = [break_off, take_one_and_drop_it, have_a_task_take_one, cancel_what_reads]


@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
@pytest.mark.parametrize("history", ["503 twice", "overload in the stream"])
@pytest.mark.parametrize("held", HELD)
async def test_a_stream_is_gone_however_it_was_held(held: str, history: str, leave: Any) -> None:
    before = alive()
    events, hold = HELD[held]
    beginning = STREAM_HEAD + chunked(events)
    server = Scripted(*HISTORIES[history], beginning, reply(completion("next")))
    retry = RetryPolicy(max_attempts=4, initial=0.0, max_wait=0.0)
    async with server, client_of(server.url, retry=retry, max_connections=1) as client:
        kept = await within(leave(hold, client))
        await turns(3)  # a run's task ends in the loop's next turns
        assert places_in_use(client) == 0
        await until(lambda: server.ended == 1)
        assert (await within(complete(client))).text == "next"
        if kept is None or not kept.cancelled():
            await turns(20)
            assert alive() - before == Counter()


# --- ways to relay one -----------------------------------------------------------------------------------------------

RESPONSES: dict[str, Callable[[AsyncFriendli], SSEResponse]] = {
    "bytes": lambda client: SSEResponse(ask(client)),
    "encoded": lambda client: SSEResponse(ask(client), encode=lambda chunk: chunk.text),
    "pings": lambda client: SSEResponse(ask(client), heartbeat=0.001),
    "messages": lambda client: SSEResponse(client.serverless.messages.stream(model="m", messages=MESSAGES)),
}


class Browser:
    """Asks for a response, and takes what comes until it leaves."""

    def __init__(self, *, broken: bool = False) -> None:
        self.reached = asyncio.Event()
        self.left = asyncio.Event()
        self._broken = broken

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message.get("body"):
            self.reached.set()
            if self._broken:
                raise OSError("the connection is closed")

    def ask(self, response: SSEResponse) -> Awaitable[None]:
        return response({"type": "http", "method": "GET"}, self.receive, self.send)


async def leave_as_a_browser(response: SSEResponse) -> None:
    browser = Browser()
    task = asyncio.ensure_future(browser.ask(response))
    await browser.reached.wait()
    browser.left.set()
    await task


async def cancel_the_servers_task(response: SSEResponse) -> None:
    browser = Browser()
    await _cancelled(browser.ask(response), browser.reached)


async def break_the_connection(response: SSEResponse) -> None:
    with pytest.raises(OSError, match="the connection is closed"):
        await Browser(broken=True).ask(response)


async def drop_it_unused(response: SSEResponse) -> None:
    await response._stream


RELAYED = [leave_as_a_browser, cancel_the_servers_task, break_the_connection, drop_it_unused]


@pytest.mark.parametrize("end", RELAYED, ids=lambda end: end.__name__)
@pytest.mark.parametrize("history", ["503 twice", "overload in the stream"])
@pytest.mark.parametrize("made", RESPONSES)
async def test_a_response_is_gone_however_its_browser_was(made: str, history: str, end: Any) -> None:
    before = alive()
    beginning = STREAM_HEAD + chunked(MESSAGE if made == "messages" else TEXT)
    server = Scripted(*HISTORIES[history], beginning, reply(completion("next")))
    retry = RetryPolicy(max_attempts=4, initial=0.0, max_wait=0.0)
    async with server, client_of(server.url, retry=retry, max_connections=1) as client:
        await within(end(RESPONSES[made](client)))
        assert places_in_use(client) == 0
        await until(lambda: server.ended == 1)
        assert (await within(complete(client))).text == "next"
        await turns(20)
        assert alive() - before == Counter()
