"""A call that is closed or cancelled before it is answered ends the same way in every phase."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import pytest
from support.clock import run_loop_iterations
from support.recorder import Recorder
from support.sockets import (
    assert_no_leaks,
    client_of,
    complete,
    delta,
    open_stream,
    slots_in_use,
    unresponsive_port,
    with_timeout,
)
from support.virtual import NEVER_ENDS, Answer, FakeTransport, hanging, in_virtual_time, response, run_in_virtual_time

from friendli_async import (
    APIConnectionError,
    AsyncFriendli,
    ChatStream,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.observers import CallEnded
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async.testing import FriendliServer, Script, Step, chunk, comment, head, raw, script, stall, status, text

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("collect_garbage")]

Closer = Callable[[AsyncFriendli, ChatStream], Awaitable[object]]
CLOSERS: Final[dict[str, Closer]] = {
    "the stream": lambda client, stream: stream.aclose(),
    "the client": lambda client, stream: client.aclose(),
    "drained": lambda client, stream: client.drain(0.01),
}
each_closer = pytest.mark.parametrize("closer", CLOSERS.values(), ids=CLOSERS)


def outcome_of(recorder: Recorder) -> tuple[str, str]:
    ends = [event for event in recorder.events if isinstance(event, CallEnded)]
    assert len(ends) == 1
    return ends[0].outcome, str(ends[0].error)


async def assert_cancelled(
    opening: asyncio.Task[Any], stream: ChatStream, recorder: Recorder
) -> StreamInterruptedError:
    with pytest.raises(StreamInterruptedError) as raised:
        await with_timeout(opening)
    assert type(raised.value) is StreamInterruptedError
    assert stream.outcome == "cancelled"
    assert outcome_of(recorder) == ("cancelled", "StreamInterruptedError")
    assert raised.value.meta is not None
    with pytest.raises(StreamInterruptedError):
        await stream.result()
    await stream.aclose()
    assert [chunk async for chunk in stream] == [], "closed on purpose"
    return raised.value


# --- without sockets -------------------------------------------------------------------------------------------------

PHASES: Final[dict[str, tuple[Answer, bool]]] = {
    "queued": (hanging("pool"), False),
    "dialing": (hanging("connect"), False),
    "sent": (hanging(), True),
    "status": (response(NEVER_ENDS), True),
    "first bytes": (response(b'data: {"cho', NEVER_ENDS), True),
    "before the next attempt": (response(status=429, retry_after="30"), False),
}


def virtual_client(transport: FakeTransport, recorder: Recorder, token: str = "t") -> AsyncFriendli:
    client = client_of("http://nowhere")
    settings = Settings.from_options({"token": token, "observers": [recorder], "retry": RetryPolicy()})
    client._build(Runtime(transport, 10), settings, owner=True)
    return client


def test_read_after_a_cancelled_opening_says_so_and_knows_the_attempts_before() -> None:
    async def main() -> StreamInterruptedError:
        rejected = response(status=503, retry_after="1")
        begun = response(NEVER_ENDS, x_request_id="r-1", x_echo="token-of-the-test")
        client = virtual_client(FakeTransport(rejected, begun), Recorder(), token="token-of-the-test")
        stream = open_stream(client)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 10)
        assert stream.meta.elapsed == 10
        with pytest.raises(StreamInterruptedError, match=r"^the opening of the stream was cancelled$") as raised:
            await anext(stream)
        assert (raised.value.meta, raised.value.sent) == (stream.meta, True)
        with pytest.raises(StreamInterruptedError):  # another read must not find it empty
            await anext(stream)
        return raised.value

    error = run_in_virtual_time(main())
    assert error.meta is not None
    assert [attempt.status for attempt in error.meta.attempts] == [503]
    assert error.meta.request_id == "r-1"
    assert "token-of-the-test" not in repr(error.meta.headers)


async def test_read_after_an_opening_that_an_exception_of_the_user_ended_names_it() -> None:
    def token() -> str:
        raise LookupError("no token today")

    async with client_of("http://nowhere") as client:
        stream = open_stream(client.with_options(token=token))
        with pytest.raises(LookupError):
            await anext(stream)
        with pytest.raises(
            StreamInterruptedError, match=r"^the opening of the stream failed with LookupError$"
        ) as raised:
            await stream.result()
    assert raised.value.sent is False


@pytest.mark.parametrize(
    ("end", "outcome"), [(ChatStream.stop, "stopped"), (ChatStream.aclose, "cancelled")], ids=["stop", "aclose"]
)
@pytest.mark.parametrize("phase", PHASES)
@in_virtual_time
async def test_cancelling_the_opening_of_an_ended_stream_keeps_its_outcome(
    phase: str, end: Callable[[ChatStream], Awaitable[None]], outcome: str
) -> None:
    recorder = Recorder()
    client = virtual_client(FakeTransport(PHASES[phase][0]), recorder)
    stream = open_stream(client)
    opening = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(2.0)
    await end(stream)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert stream.outcome == outcome
    assert outcome_of(recorder)[0] == outcome
    assert [chunk async for chunk in stream] == []  # ended on purpose: no error about the cancellation
    with pytest.raises(StreamInterruptedError):
        await stream.result()


@pytest.mark.parametrize("ends", [("client", "stop"), ("stop", "client"), ("aclose", "stop")], ids=str)
def test_first_of_two_ends_of_an_opening_is_its_outcome_for_the_stream_and_its_observers(
    ends: tuple[str, str],
) -> None:
    recorder = Recorder()

    async def main() -> str:
        client = virtual_client(FakeTransport(hanging()), recorder)
        stream = open_stream(client)
        opening = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(2.0)
        closers = {"client": client.aclose, "stop": stream.stop, "aclose": stream.aclose}
        await asyncio.gather(*(closers[end]() for end in ends))  # all in one turn of the loop
        await asyncio.wait([opening])
        opening.exception()
        return stream.outcome

    expected = "stopped" if ends[0] == "stop" else "cancelled"
    assert (run_in_virtual_time(main()), outcome_of(recorder)[0]) == (expected, expected)


@pytest.mark.parametrize("closer", [CLOSERS["the stream"], CLOSERS["the client"]], ids=["the stream", "the client"])
@in_virtual_time
async def test_close_in_the_loop_turn_of_the_first_event_cancels_the_stream(closer: Closer) -> None:
    recorder = Recorder()
    transport = FakeTransport(response(2.0, delta("a"), NEVER_ENDS))
    client = virtual_client(transport, recorder)
    stream = open_stream(client)
    opening = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(2.0)  # begun before the timer of the first event
    await closer(client, stream)
    error = await assert_cancelled(opening, stream, recorder)
    assert error.draining is (closer is CLOSERS["the client"])
    assert all(exchange.ends for exchange in transport.exchanges)


@pytest.mark.parametrize("told", ["first_event", "attempt_ended"])
async def test_observer_of_the_first_event_can_close_the_stream(told: str) -> None:
    class Closing(Recorder):
        def closes(self, event: object) -> None:
            with pytest.raises(StopIteration):  # ``aclose`` does not wait: in an eager task it runs at once, too
                stream.aclose().send(None)

    recorder = Recorder()
    closing = Closing()
    setattr(closing, told, closing.closes)
    async with FriendliServer() as server, client_of(server.url, observers=[closing, recorder]) as client:
        server.enqueue(script(chunk("a"), stall()))
        stream = open_stream(client)
        await assert_cancelled(asyncio.ensure_future(anext(stream)), stream, recorder)
        await assert_no_leaks(client, server)


@pytest.mark.parametrize("streamed", [True, False])
async def test_client_closed_by_its_token_callable_ends_the_call(streamed: bool) -> None:
    async def token() -> str:
        await client.aclose()
        return "t"

    client = AsyncFriendli(token, server_url="http://127.0.0.1:1", retry=None)
    stream = open_stream(client)
    with pytest.raises(APIConnectionError, match="the client was closed") as raised:
        await (stream if streamed else complete(client))
    assert type(raised.value) is (StreamInterruptedError if streamed else APIConnectionError)
    assert not streamed or stream.outcome == "cancelled"


# --- with sockets ----------------------------------------------------------------------------------------------------

ClientAndServer = tuple[AsyncFriendli, FriendliServer | None]


@asynccontextmanager
async def served(recorder: Recorder, answer: Script | Step, **options: Any) -> AsyncIterator[ClientAndServer]:
    options = {"max_connections": 1, "observers": [recorder], **options}
    async with FriendliServer() as server, client_of(server.url, **options) as client:
        server.enqueue(answer, text("next"))
        yield client, server
        await assert_no_leaks(client, server, connections=None if "retry" in options else 0)
        assert len(server.requests) == 1
        is_open = not (client._runtime.transport.closed or client._runtime._draining)
        if is_open and "retry" not in options:  # its Retry-After holds the next call back
            assert (await with_timeout(complete(client))).text == "next"


@asynccontextmanager
async def queued(recorder: Recorder) -> AsyncIterator[ClientAndServer]:
    async with (
        served(recorder, script(chunk("a"), stall())) as (client, server),
        open_stream(client.with_options(observers=[])),
    ):
        yield client, server


@asynccontextmanager
async def dialing(recorder: Recorder) -> AsyncIterator[ClientAndServer]:
    with unresponsive_port() as port:
        options: dict[str, Any] = {"timeout": Timeouts(connect=None), "observers": [recorder]}
        async with client_of(f"http://127.0.0.1:{port}", **options) as client:
            yield client, None
            assert slots_in_use(client) == 0


SOCKET_PHASES: Final[dict[str, Callable[[Recorder], AbstractAsyncContextManager[ClientAndServer]]]] = {
    "queued": queued,
    "dialing": dialing,
    "sent": lambda recorder: served(recorder, stall()),
    "status": lambda recorder: served(recorder, script(head(), stall())),
    "pings": lambda recorder: served(recorder, script(comment(), comment(), stall())),
    "first bytes": lambda recorder: served(recorder, script(head(), raw(b'data: {"cho'), stall())),
    "an error's body": lambda recorder: served(recorder, script(raw(b'{"error": '), stall(), status=500)),
    "before the next attempt": lambda recorder: served(recorder, status(503, retry_after=30), retry=RetryPolicy()),
}
each_phase = pytest.mark.parametrize("phase", SOCKET_PHASES)


async def reach(phase: str, server: FriendliServer | None, opening: asyncio.Future[Any]) -> None:
    """Waits until the phase has begun."""
    if server is not None:
        await server.wait_for_requests()
        if "attempt" in phase:
            await server.idle()
    await run_loop_iterations(50)
    assert not opening.done()


@each_closer
@each_phase
async def test_close_in_any_phase_cancels_the_stream_over_sockets(phase: str, closer: Closer) -> None:
    recorder = Recorder()
    async with SOCKET_PHASES[phase](recorder) as (client, server):
        stream = open_stream(client)
        opening = asyncio.create_task(stream.__aenter__())
        await reach(phase, server, opening)
        await closer(client, stream)
        error = await assert_cancelled(opening, stream, recorder)
        assert error.draining is (closer is not CLOSERS["the stream"])


@pytest.mark.parametrize("streamed", [True, False])
@each_phase
async def test_cancelling_the_task_in_any_phase_cancels_the_call(phase: str, streamed: bool) -> None:
    recorder = Recorder()
    async with SOCKET_PHASES[phase](recorder) as (client, server):
        stream = open_stream(client)
        call = asyncio.create_task(stream.__aenter__() if streamed else complete(client))
        await reach(phase, server, call)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert outcome_of(recorder)[0] == "cancelled"
        assert not streamed or stream.outcome == "cancelled"


@pytest.mark.parametrize("streamed", [True, False])
@each_phase
async def test_closing_the_client_in_any_phase_ends_the_call(phase: str, streamed: bool) -> None:
    recorder = Recorder()
    async with SOCKET_PHASES[phase](recorder) as (client, server):
        call = asyncio.create_task(open_stream(client).result() if streamed else complete(client))
        await reach(phase, server, call)
        await client.aclose()
        with pytest.raises(APIConnectionError, match="the client was closed") as raised:
            await with_timeout(call)
    assert type(raised.value) is (StreamInterruptedError if streamed else APIConnectionError)
    assert raised.value.sent == (phase not in {"queued", "dialing", "before the next attempt"})
    assert outcome_of(recorder) == ("cancelled" if streamed else "failed", type(raised.value).__name__)
