"""Whatever interrupts a call, at whichever step of the event loop: it ends, is told of rightly, and leaves nothing."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, MutableMapping
from pathlib import Path
from typing import Any, Final

import pytest
from support.interruptions import RESET, Interruption, Pieces, Scenario, Stage, assert_interruptible, json_reply
from support.sockets import (
    DONE,
    LAST_CHUNK,
    MESSAGES,
    STREAM_HEAD,
    chunked,
    complete,
    completion,
    delta,
    open_stream,
    reply,
    sse,
)

from friendli_async import APIConnectionError, AsyncFriendli, ConfigurationError, FriendliError, OutputCutOffError
from friendli_async.asgi import SSEResponse
from friendli_async.bulk import run_all
from friendli_async.tools import tool

CHAT: Final = [
    STREAM_HEAD,
    *map(chunked, (delta("Hello "), delta("there"), delta(finish="stop"), DONE)),
    LAST_CHUNK,
]
JSON: Final = [STREAM_HEAD, *map(chunked, (delta('{"a": [1'), delta(", 2]}"), delta(finish="stop"), DONE)), LAST_CHUNK]
REJECTION: Final = json_reply({"message": "overloaded"}, "503 Service Unavailable")


def tool_call(index: int) -> bytes:
    function = {"name": "look_up", "arguments": f'{{"number": {index}}}'}
    call = {"index": index, "id": f"call_{index}", "type": "function", "function": function}
    return chunked(sse({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}))


TOOL_CALLS: Final = [
    STREAM_HEAD,
    *map(tool_call, range(2)),
    *map(chunked, (delta(finish="tool_calls"), DONE)),
    LAST_CHUNK,
]


pytestmark = pytest.mark.compatibility


@pytest.fixture(autouse=True)
async def requires_callbacks_in_python() -> None:
    if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        pytest.skip("uvloop's callbacks cannot be counted")


# --- interruptions ---------------------------------------------------------------------------------------------------


def cancel(stage: Stage) -> None:
    stage.interrupted |= stage.task.cancel()


def expire(stage: Stage) -> None:
    if stage.scope is not None:
        with contextlib.suppress(RuntimeError):  # it has been left
            stage.scope.reschedule(0)


def close_stream(stage: Stage) -> None:
    if stage.stream is not None:
        stage.start(stage.stream.aclose())


def close_stream_and_cancel(stage: Stage) -> None:
    close_stream(stage)
    cancel(stage)


def close_client(stage: Stage) -> None:
    stage.start(stage.client.aclose())


def close_client_and_cancel(stage: Stage) -> None:
    close_client(stage)
    cancel(stage)


_CLOSED: Final = (APIConnectionError, ConfigurationError)
CANCELLED: Final = Interruption(cancel, cancels=True, repeated=8)
INTERRUPTIONS: Final = {
    "cancelled again and again": CANCELLED,
    "timed out": Interruption(expire),
    "client closed": Interruption(close_client, _CLOSED, client_remains=False),
    "client closed, and cancelled": Interruption(close_client_and_cancel, cancels=True, client_remains=False),
    "client drained": Interruption(lambda stage: stage.start(stage.client.drain(0)), _CLOSED, client_remains=False),
    "connections reset": Interruption(lambda stage: stage.server.reset(), (APIConnectionError, OutputCutOffError)),
    "stream closed": Interruption(close_stream, (APIConnectionError,)),
    "stream closed, and cancelled": Interruption(close_stream_and_cancel, cancels=True),
}
OF_CALLS: Final = ["cancelled again and again", "timed out", "client closed", "connections reset"]
OF_STREAMS: Final = ["cancelled again and again", "connections reset", "stream closed"]


# --- plain calls -----------------------------------------------------------------------------------------------------


async def call(stage: Stage) -> None:
    assert (await complete(stage.client)).text == "next"


async def call_rejected_once(stage: Stage) -> None:
    stage.server.replies.append(REJECTION)
    await call(stage)


async def call_over_dying_connection(stage: Stage) -> None:
    stage.server.replies.append([RESET])
    await call(stage)


async def call_behind_another(stage: Stage) -> None:
    async def other() -> None:
        with contextlib.suppress(FriendliError):
            await complete(stage.client)

    stage.start(other())
    await asyncio.sleep(0)
    await call(stage)


async def call_with_token_function(stage: Stage) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return "token"

    assert (await complete(stage.client.with_options(token=token))).text == "next"


async def transcribe(stage: Stage) -> None:
    stage.server.otherwise = lambda head, body: json_reply({"text": "hello"})
    await stage.client.container.audio.transcribe(file=b"RIFF" * 100)


async def ask_again(stage: Stage) -> None:
    stage.server.otherwise = lambda head, body: [reply(completion("[1]" if b"assistant" in body else "one"))]
    reply_ = await stage.client.serverless.chat.parse(list[int], model="m", messages=MESSAGES, reask=1)
    assert reply_.value == [1]


async def wake_endpoint(stage: Stage) -> None:
    states = iter(["SLEEPING", "AWAKING"])

    def answer(head: bytes, body: bytes) -> Pieces:
        if b"/status " in head or b"/wake " in head:
            return json_reply({"status": next(states, "RUNNING")})
        return [reply(completion("next"))]

    stage.server.otherwise = answer
    stage.server.replies.append(REJECTION)
    dedicated = stage.client.with_options(wake=True).dedicated
    assert (await dedicated.chat.complete(model="endpoint", messages=MESSAGES)).text == "next"


PLAIN: Final = {
    "over a new connection": Scenario(call_with_token_function),
    "over a pooled connection": Scenario(call, call),
    "over a pooled connection that dies": Scenario(call_over_dying_connection, call),
    "rejected once": Scenario(call_rejected_once),
    "that waits for a connection": Scenario(call_behind_another, max_connections=1),
    "with a form": Scenario(transcribe),
    "that asks again": Scenario(ask_again),
    "to a sleeping endpoint": Scenario(wake_endpoint),
}


@pytest.mark.parametrize("interruption", OF_CALLS)
@pytest.mark.parametrize("scenario", PLAIN)
async def test_plain_call_can_be_interrupted_at_each_step(scenario: str, interruption: str) -> None:
    await assert_interruptible(PLAIN[scenario], INTERRUPTIONS[interruption])


# --- streams ---------------------------------------------------------------------------------------------------------


def streamed(read: Callable[[Any], Coroutine[Any, Any, object]], *replies: list[bytes]) -> Scenario:
    """A stream that is shown to the interruption, and read by a function."""

    async def play(stage: Stage) -> None:
        stage.server.otherwise = lambda head, body: CHAT
        stage.server.replies.extend(replies)
        stage.stream = open_stream(stage.client)
        await read(stage.stream)

    return Scenario(play)


async def read_all(source: Any) -> None:
    async for _ in source:
        pass


async def read_text_in_block(stream: Any) -> None:
    async with stream:
        await read_all(stream.text())


async def stop_early(stream: Any) -> None:
    async for _ in stream:
        await stream.stop()
    await stream.result()


async def read_branches(stage: Stage) -> None:
    stage.server.otherwise = lambda head, body: CHAT
    stage.stream = open_stream(stage.client)
    branch, other = stage.stream.tee(2, buffer=2)
    stage.start(read_whatever_comes(other))
    del other
    await read_all(branch)


async def read_whatever_comes(source: Any) -> None:
    with contextlib.suppress(FriendliError):
        await read_all(source)


async def read_temporary(stage: Stage) -> None:
    stage.server.otherwise = lambda head, body: CHAT
    async for _ in open_stream(stage.client):
        pass


async def read_snapshots(stage: Stage) -> None:
    stage.server.otherwise = lambda head, body: JSON
    stage.stream = stage.client.serverless.chat.parse_stream(dict[str, list[int]], model="m", messages=MESSAGES)
    await read_all(stage.stream.snapshots())
    await stage.stream.result()


STREAMS: Final = {
    "iterated": streamed(read_all),
    "rejected once": streamed(read_all, list(REJECTION)),
    "read as text in a block": streamed(read_text_in_block),
    "read as bytes": streamed(lambda stream: read_all(stream.raw())),
    "read by branches": Scenario(read_branches),
    "stopped": streamed(stop_early),
    "held by nobody": Scenario(read_temporary),
    "of structured output": Scenario(read_snapshots),
}


@pytest.mark.parametrize("interruption", OF_STREAMS)
@pytest.mark.parametrize("scenario", STREAMS)
async def test_stream_can_be_interrupted_at_each_step(scenario: str, interruption: str) -> None:
    await assert_interruptible(STREAMS[scenario], INTERRUPTIONS[interruption])


@pytest.mark.parametrize("interruption", sorted(set(INTERRUPTIONS) - set(OF_STREAMS)))
async def test_iteration_can_be_interrupted_in_further_ways_at_each_step(interruption: str) -> None:
    await assert_interruptible(STREAMS["iterated"], INTERRUPTIONS[interruption])


# --- runs ------------------------------------------------------------------------------------------------------------


@tool
async def look_up(number: int) -> str:
    """Looks something up, and takes its time, also to end."""
    try:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        raise
    return f"no. {number}"


async def approve(call: object) -> bool:
    await asyncio.sleep(0)
    return True


def run_of(client: AsyncFriendli, **options: Any) -> Any:
    return client.serverless.chat.run(model="m", messages=MESSAGES, tools=[look_up], **options)


def with_tool_calls(stage: Stage) -> None:
    stage.server.otherwise = lambda head, body: CHAT if b'"tool_call_id"' in body else TOOL_CALLS


async def run_approved_tools(stage: Stage) -> None:
    with_tool_calls(stage)
    stage.stream = run_of(stage.client, before_tool=approve)
    async with stage.stream as run:
        assert (await run.result()).turns == 2


@pytest.mark.parametrize("interruption", ["cancelled again and again", "client closed", "stream closed"])
async def test_run_can_be_interrupted_at_each_step(interruption: str) -> None:
    await assert_interruptible(Scenario(run_approved_tools), INTERRUPTIONS[interruption])


# --- responses -------------------------------------------------------------------------------------------------------


class Browser:
    """The ASGI server's side of a request."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.fails = False
        self.sent: list[MutableMapping[str, Any]] = []

    async def receive(self) -> MutableMapping[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise OSError("the connection is broken")
        self.sent.append(message)


async def respond(stage: Stage, source: Any, **options: Any) -> None:
    stage.stream, stage.browser = source, Browser()
    response = SSEResponse(source, **options)
    await response({"type": "http", "method": "GET", "path": "/"}, stage.browser.receive, stage.browser.send)


async def respond_with_stream(stage: Stage) -> None:
    stage.server.otherwise = lambda head, body: CHAT
    await respond(stage, open_stream(stage.client), heartbeat=1e-6, answer_after=1e-6)  # as many pings as can be


async def respond_with_run(stage: Stage) -> None:
    with_tool_calls(stage)
    await respond(stage, run_of(stage.client), encode=lambda event: type(event).__name__)


async def check_response(stage: Stage) -> None:
    """Checks that what was sent is a response, and that no event is incomplete."""
    sent = [] if stage.browser is None else stage.browser.sent
    assert [message["type"] for message in sent[:1]] in ([], ["http.response.start"])
    assert {message["type"] for message in sent[1:]} <= {"http.response.body"}
    assert all(message["more_body"] for message in sent[1:-1])
    assert all(message["body"].endswith(b"\n\n") or not message["body"] for message in sent[1:])


def disconnect(stage: Stage) -> None:
    if stage.browser is not None:
        stage.browser.gone.set()


def break_browser(stage: Stage) -> None:
    if stage.browser is not None:
        stage.browser.fails = True


RESPONSES: Final = {
    "with a stream": Scenario(respond_with_stream, check=check_response),
    "with a run": Scenario(respond_with_run, check=check_response),
}
OF_RESPONSES: Final = {
    "cancelled": CANCELLED,
    "browser gone": Interruption(disconnect),
    "browser broken": Interruption(break_browser, (OSError,)),
    "client closed": INTERRUPTIONS["client closed"],
}


@pytest.mark.parametrize(
    ("scenario", "interruption"),
    [*itertools.product(["with a stream"], OF_RESPONSES), ("with a run", "cancelled"), ("with a run", "browser gone")],
)
async def test_response_can_be_interrupted_at_each_step(scenario: str, interruption: str) -> None:
    await assert_interruptible(RESPONSES[scenario], OF_RESPONSES[interruption])


# --- bulk runs -------------------------------------------------------------------------------------------------------


class Rows:
    """Two rows with a checkpoint, which is a new one each time that the scenario is prepared."""

    def __init__(self, folder: Path) -> None:
        self._checkpoints = (folder / str(number) for number in itertools.count())

    async def prepare(self, stage: Stage) -> None:
        self._checkpoint = next(self._checkpoints)
        self.sent: list[int] = []
        self.delivered: list[object] = []

    async def play(self, stage: Stage) -> None:
        async def send(row: int) -> object:
            self.sent.append(row)
            return await complete(stage.client)

        async for outcome in run_all(range(2), send, concurrency=2, checkpoint=self._checkpoint):
            assert outcome.error is None
            self.delivered.append(outcome.key)

    async def check_continuation(self, stage: Stage) -> None:
        """Checks that another run delivers all rows, and sends none of those again that were delivered."""
        recorded, self.delivered = set(self.delivered), []
        self.sent.clear()
        await self.play(stage)
        assert sorted(map(str, self.delivered)) == ["0", "1"]
        assert recorded.isdisjoint(self.sent)


async def test_bulk_run_can_be_cancelled_at_each_step_and_continued(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    await assert_interruptible(Scenario(rows.play, rows.prepare, rows.check_continuation), CANCELLED)
