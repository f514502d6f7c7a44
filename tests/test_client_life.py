"""Random lives of a client, over real sockets and in virtual time: whatever happens in them, it adds up."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import deterministic
from support.interruptions import RESET, Pieces, StepServer, json_reply
from support.recorder import Recorder
from support.sockets import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    library_tasks,
    open_stream,
    reply,
)
from support.virtual import VirtualLoop

from friendli_async import ConfigurationError, FriendliError, Pacing, RetryPolicy, Timeouts

BUDGET: Final = 2
CONNECTIONS: Final = 2
TURNS_TO_SETTLE: Final = 160
CHAT: Final = [STREAM_HEAD, *map(chunked, (delta("a"), delta("b"), delta(finish="stop"), DONE)), LAST_CHUNK]
REPLIES: Final[dict[str, Pieces]] = {
    "503": json_reply({"message": "overloaded"}, "503 Service Unavailable"),
    "429": [reply(b"{}", status="429 Too Many Requests", headers="Retry-After: 2\r\n")],
    "400": json_reply({"message": "bad"}, "400 Bad Request"),
    "reset": [RESET],
    "head, then reset": [STREAM_HEAD, RESET],
    "event, then reset": [*CHAT[:2], RESET],
    "nothing": [],
    "event, then nothing": CHAT[:2],
    "events, but no end of the body": CHAT[:-1],
}
USES: Final = ["call", "iterate", "leave", "leave block", "drop", "read slowly"]
GRAMMAR: Final = re.compile("S(H)*(BC*F?E)*X")
LETTERS: Final = {
    "call_started": "S",
    "call_held": "H",
    "attempt_started": "B",
    "connected": "C",
    "first_event": "F",
    "attempt_ended": "E",
    "call_ended": "X",
}

Command = tuple[str, Any]
COMMANDS: Final = st.one_of(
    st.tuples(st.just("use"), st.lists(st.sampled_from(USES), min_size=1, max_size=4)),
    st.tuples(st.just("reply"), st.sampled_from(sorted(REPLIES))),
    st.tuples(st.just("turns"), st.integers(0, 20)),
    st.tuples(st.just("sleep"), st.sampled_from([0.1, 1.0, 7.0])),
    st.tuples(st.just("cancel"), st.lists(st.integers(0, 3), min_size=1, max_size=2)),
    st.tuples(st.just("end"), st.sampled_from(["reset", "reset", "reset", "reset", "drain", "close"])),  # mostly late
)


def take_cancellation(task: asyncio.Task[None]) -> None:
    """Takes the error from a cancelled task, as one that waits for it would: it refers to a stream that was left."""
    with suppress(asyncio.CancelledError):
        task.exception()


class Life:
    """A client, its server, and the tasks that use it."""

    def __init__(self, server: StepServer, url: str) -> None:
        self.server = server
        server.otherwise = lambda head, body: CHAT if b'"stream":true' in body else [reply(completion("ab"))]
        self.recorder = Recorder()
        self.client = client_of(
            url,
            observers=[self.recorder],
            retry=RetryPolicy(initial=0.5),
            pacing=Pacing(retry_budget=BUDGET),
            timeout=Timeouts(first_event=6, idle=3),
            max_connections=CONNECTIONS,
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.cancelled: set[asyncio.Task[None]] = set()
        self.refused: set[asyncio.Task[None]] = set()
        self.ends: list[asyncio.Task[Any]] = []
        """Of drains and closes."""

    async def use(self, how: str) -> None:
        if how == "call":
            assert (await complete(self.client)).text == "ab"
            return
        stream, texts = open_stream(self.client), list[str]()
        if how == "leave block":
            async with stream:
                await anext(stream)
            assert stream.outcome != "open"
            return
        async for event in stream:
            texts.append(event.text)
            if how in {"leave", "drop"}:
                break
            await asyncio.sleep(2.0 if how == "read slowly" else 0.0)
        else:
            assert ("".join(texts), stream.outcome) == ("ab", "done")
        if how == "leave":
            await stream.aclose()

    async def do(self, command: Command) -> None:
        match command:
            case "use", ways:
                tasks = [asyncio.get_running_loop().create_task(self.use(how)) for how in ways]
                self.tasks += tasks
                for task in tasks:
                    task.add_done_callback(take_cancellation)
                if self.ends:
                    self.refused.update(tasks)
            case "reply", name:
                self.server.replies.append(REPLIES[name])
            case "turns", count:
                await self.settle(count)
            case "sleep", seconds:
                await asyncio.sleep(seconds)
                if any(end.done() for end in self.ends):
                    self.check_quiet()
            case "cancel", [number, *others]:
                self.cancel(number)
                for other in others:  # just after the first one has left its connection, maybe to one of the last
                    asyncio.get_running_loop().call_soon(self.cancel, -1 - other)
                await self.settle(2)
            case "end", "reset":
                self.server.reset()
            case _, how:
                end = self.client.drain(1.0) if how == "drain" else self.client.aclose()
                self.ends.append(asyncio.get_running_loop().create_task(end))
                await asyncio.sleep(0)  # it has begun
        self.check_gauges()

    def cancel(self, number: int) -> None:
        if running := [task for task in self.tasks if not task.done()]:
            task = running[number % len(running)]
            task.cancel()
            self.cancelled.add(task)

    async def settle(self, turns: int = TURNS_TO_SETTLE) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
            self.check_gauges()

    def check_gauges(self) -> None:
        now, told = self.client.gauges(), Counter(self.recorder.methods)
        assert now.in_use <= CONNECTIONS
        assert not now.waiting or now.in_use == CONNECTIONS
        assert now.waiting <= sum(not task.done() for task in self.tasks)
        assert now.calls_in_flight + now.open_streams <= told["call_started"] - told["call_ended"]

    def check_quiet(self) -> None:
        now = self.client.gauges()
        assert now.in_use == now.waiting == now.open_streams == now.calls_in_flight == now.held == 0
        assert len(self.server.connections) == now.idle <= CONNECTIONS

    def check_tasks(self) -> None:
        """Checks how each task has ended: by its cancellation, as refused, with an error of ours, or well."""
        for task in self.tasks:
            assert task.cancelled() == (task in self.cancelled)
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, ConfigurationError if task in self.refused else FriendliError), repr(error)

    def check_reports(self) -> None:
        """Checks what the observer was told of each call, and of the retries of all."""
        calls: dict[int, str] = {}
        waits = successes = 0
        for method, event in zip(self.recorder.methods, self.recorder.events, strict=True):
            calls[event.call_id] = calls.get(event.call_id, "") + LETTERS[method]
            if method == "attempt_ended":
                if getattr(event, "wait", None) is not None:
                    waits += 1
                    assert event.operation == "chat.stream" or getattr(event, "status", None) != 200, "paid for twice"
                successes += getattr(event, "error", None) is None
        for told in calls.values():
            assert GRAMMAR.fullmatch(told)
            assert "B" not in told.partition("F")[2]  # no retry once there was content
        assert 10 * waits - successes <= 10 * BUDGET


async def live(commands: Sequence[Command]) -> None:
    loop, server, reported = asyncio.get_running_loop(), StepServer(), list[Any]()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    life = Life(server, await server.start())
    for command in commands:
        await life.do(command)
    async with asyncio.timeout(300):
        await asyncio.wait([*life.tasks, *life.ends, loop.create_task(asyncio.sleep(1.0))])
    life.check_tasks()
    await life.settle()
    life.check_quiet()
    await life.client.aclose()
    await life.settle()
    assert server.connections == set()
    life.check_reports()
    assert library_tasks() == []
    assert reported == []
    await server.stop()


@settings(deterministic)
@given(st.lists(COMMANDS, min_size=10, max_size=30))
def test_whatever_happens_in_the_life_of_a_client_adds_up(commands: list[Command]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(live(commands))
