"""Repeats a scenario and interrupts it before each callback of the event loop in turn."""

import asyncio
import gc
import json
import socket
import struct
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pytest
from support.clock import run_until, wait_until
from support.live_objects import live_objects
from support.recorder import Recorder
from support.sockets import FAST_RETRY, client_of, complete, completion, library_tasks, reply

from friendli_async import AsyncFriendli, FriendliError
from friendli_async.streams import EventStream

_MAX_CALLBACKS: Final = 2000
"""A scenario that takes more has not stopped."""
_PAIRS: Final = [
    ("call_started", "call_ended"),
    ("attempt_started", "attempt_ended"),
    ("run_started", "run_ended"),
    ("tool_call_started", "tool_call_ended"),
]


# --- the loop --------------------------------------------------------------------------------------------------------


class Steps:
    """Counts the callbacks that asyncio runs, and acts before one of them."""

    def __init__(self) -> None:
        self.count = 0
        self._actions: dict[int, Callable[[], object]] = {}

    def before(self, step: int, action: Callable[[], object]) -> None:
        """Calls `action` before the callback with this number, counted from 1."""
        self._actions[step] = action

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the callbacks that run in the block."""
        original = asyncio.Handle._run

        def run(handle: asyncio.Handle) -> None:
            self.count += 1
            if (action := self._actions.pop(self.count, None)) is not None:
                action()
            if not handle.cancelled():
                original(handle)
            del handle  # as asyncio does: an error's traceback may lead here, and the callback to its task

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.Handle, "_run", run)  # the only place that sees every callback
            yield


# --- the server ------------------------------------------------------------------------------------------------------

RESET: Final = b""
"""Resets the connection, in place of a piece."""
Pieces = Sequence[bytes]
Answer = Callable[[bytes, bytes], Pieces]
"""Returns the pieces of the reply to a request's head and body."""


class _Connection(asyncio.Protocol):
    def __init__(self, server: "StepServer") -> None:
        self._server = server
        self._received = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if end and (size := _body_size(head, rest)) is not None:
            self._received = rest[size:]
            self._send(deque(self._server.answer(head, rest[:size])))

    def _send(self, pieces: deque[bytes]) -> None:
        """Sends a piece every other turn of the loop, so that the client has to wait for each."""
        if pieces and self.transport is not None:
            if (piece := pieces.popleft()) is RESET:
                self.reset()
            else:
                self.transport.write(piece)
                loop = asyncio.get_running_loop()
                loop.call_soon(loop.call_soon, self._send, pieces)

    def reset(self) -> None:
        if self.transport is not None:
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


def _body_size(head: bytes, rest: bytes) -> int | None:
    """Returns the size of a request's body, or None if more of it is to come."""
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if fields.get(b"transfer-encoding") == b"chunked":
        size = rest.find(b"0\r\n\r\n") + 5
        return size if size >= 5 else None
    size = int(fields.get(b"content-length", 0))
    return size if len(rest) >= size else None


class StepServer:
    """A server without tasks, so that few callbacks of the loop are its own, and a reply takes as many each time."""

    def __init__(self) -> None:
        self.connections: set[_Connection] = set()
        self.reset_script()

    def reset_script(self) -> None:
        """Makes it answer each request with a completion."""
        self.replies: deque[Pieces] = deque()
        """Replies to the next requests; then `otherwise` answers."""
        self.otherwise: Answer = lambda head, body: [reply(completion("next"))]

    async def start(self) -> str:
        """Starts it; returns its URL."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def answer(self, head: bytes, body: bytes) -> Pieces:
        return self.replies.popleft() if self.replies else self.otherwise(head, body)

    def reset(self) -> None:
        """Resets all connections."""
        for connection in tuple(self.connections):
            connection.reset()

    async def stop(self) -> None:
        self._server.close()
        for connection in tuple(self.connections):
            connection.transport.abort()
        await wait_until(lambda: not self.connections)


# --- scenarios and interruptions -------------------------------------------------------------------------------------


class RunAndCallRecorder(Recorder):
    """Records the events of runs, too."""

    def run_started(self, event: Any) -> None:
        self._keep("run_started", event)

    def tool_call_started(self, event: Any) -> None:
        self._keep("tool_call_started", event)

    def tool_call_ended(self, event: Any) -> None:
        self._keep("tool_call_ended", event)

    def run_ended(self, event: Any) -> None:
        self._keep("run_ended", event)


@dataclass
class Stage:
    """What a scenario plays on, and what an interruption can reach."""

    client: AsyncFriendli
    server: StepServer
    recorder: RunAndCallRecorder
    task: Any = None
    """The task of the scenario."""
    stream: Any = None
    """Its stream or run, if it shows it."""
    browser: Any = None
    scope: asyncio.Timeout | None = None
    """A timeout around the scenario, which has not been set."""
    interrupted: bool = False
    """Whether the task has been cancelled."""
    others: list[asyncio.Task[Any]] = field(default_factory=list)

    def start(self, coroutine: Any) -> None:
        """Runs something in another task."""
        self.others.append(asyncio.get_running_loop().create_task(coroutine))


@dataclass(frozen=True)
class Scenario:
    """Uses a client, and ends by itself."""

    play: Callable[[Stage], Awaitable[object]]
    prepare: Callable[[Stage], Awaitable[object]] | None = None
    """Called before the steps are counted."""
    check: Callable[[Stage], Awaitable[object]] | None = None
    """Called once the scenario has ended."""
    max_connections: int = 8


@dataclass(frozen=True)
class Interruption:
    """Something that happens at one step of a scenario."""

    act: Callable[[Stage], object]
    errors: tuple[type[BaseException], ...] = ()
    """What the scenario may raise, unless it is cancelled."""
    cancels: bool = False
    """Whether it must end as cancelled if `interrupted`."""
    repeated: int = 1
    """At how many steps it happens, one after the other."""
    client_remains: bool = True


async def assert_interruptible(scenario: Scenario, interruption: Interruption) -> None:
    """Plays the scenario once to count its steps, then once for each step, interrupted there."""
    gc.collect()
    gc.freeze()  # only objects of the scenario are searched
    gc.disable()  # what it would collect must go without it
    try:
        steps = await _play(scenario, None, 0)
        assert steps < _MAX_CALLBACKS
        for step in range(1, steps + 2):
            try:
                await _play(scenario, interruption, step)
            except BaseException as error:
                error.add_note(f"interrupted before step {step} of {steps}")
                raise
    finally:
        gc.enable()


async def _play(scenario: Scenario, interruption: Interruption | None, step: int) -> int:
    """Plays the scenario and checks its end; returns the number of its steps."""
    loop, server = asyncio.get_running_loop(), StepServer()
    reported: list[Any] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    recorder, url = RunAndCallRecorder(), await server.start()
    async with client_of(
        url, observers=[recorder], retry=FAST_RETRY, max_connections=scenario.max_connections
    ) as client:
        stage = Stage(client, server, recorder)
        try:
            return await _play_on(stage, scenario, interruption, step)
        finally:
            await server.stop()
            assert reported == []


async def _play_on(stage: Stage, scenario: Scenario, interruption: Interruption | None, step: int) -> int:
    steps = Steps()
    if scenario.prepare is not None:
        await scenario.prepare(stage)
        stage.recorder.methods.clear()
    if interruption is not None:
        for number in range(interruption.repeated):
            steps.before(step + number, partial(interruption.act, stage))
    stage.task = asyncio.get_running_loop().create_task(_scoped(scenario, stage))
    with steps.counted():
        await asyncio.wait({stage.task}, timeout=30)
    assert stage.task.done()
    await wait_until(lambda: all(task.done() for task in stage.others))
    assert [task for task in stage.others if task.cancelled() or task.exception() is not None] == []
    _check_end(stage, interruption)
    if scenario.check is not None:
        await scenario.check(stage)
    stage.task = stage.scope = stage.stream = stage.browser = None
    stage.others.clear()
    await _check_nothing_left(stage)
    if interruption is None or interruption.client_remains:
        stage.server.reset_script()
        assert (await complete(stage.client)).text == "next"
    return steps.count


async def _scoped(scenario: Scenario, stage: Stage) -> None:
    try:
        async with asyncio.timeout(None) as stage.scope:
            await scenario.play(stage)
    except TimeoutError as error:
        if isinstance(error, FriendliError) or stage.scope is None or not stage.scope.expired():
            raise
    else:
        assert not stage.scope.expired()
    await asyncio.sleep(0)  # a cancellation that was left behind would be raised here


def _check_end(stage: Stage, interruption: Interruption | None) -> None:
    """Checks how the scenario has ended."""
    task, stream = stage.task, stage.stream
    if isinstance(stream, EventStream) and stream._open is not None:
        assert stream.outcome != "open"
    if interruption is None:
        assert task.exception() is None
    elif interruption.cancels and stage.interrupted:
        assert task.cancelled()
    elif not task.cancelled() and (error := task.exception()) is not None:
        assert isinstance(error, interruption.errors)
    if task.cancelled():
        assert interruption is not None
        assert interruption.cancels
        assert stage.interrupted
        with suppress(asyncio.CancelledError):
            task.result()  # takes the error from the task, which would keep it
    else:
        assert task.cancelling() == 0


async def _check_nothing_left(stage: Stage) -> None:
    client, server = stage.client, stage.server
    await wait_until(lambda: _is_idle(client, server))
    await run_until(lambda: library_tasks() == [])
    assert library_tasks() == []
    assert _timers() == []
    told = Counter(stage.recorder.methods)
    assert [(begin, told[begin], told[end]) for begin, end in _PAIRS if told[begin] != told[end]] == []
    assert live_objects() == {}


def _is_idle(client: AsyncFriendli, server: StepServer) -> bool:
    """Whether all connections are idle in the pool, and the server has seen all others close."""
    now = client.gauges()
    busy = now.in_use or now.waiting or now.open_streams or now.calls_in_flight or now.held
    return not busy and len(server.connections) == now.idle


def _timers() -> list[str]:
    """Returns the pending timers of the loop, except that of aiohttp's pool."""
    scheduled: Any = asyncio.get_running_loop()
    shown = [repr(timer) for timer in scheduled._scheduled if not timer.cancelled()]  # no public API
    return [timer for timer in shown if "_weakref_handle" not in timer]


def json_reply(value: object, status: str = "200 OK") -> Pieces:
    """Returns a reply in two pieces."""
    whole = reply(json.dumps(value).encode(), status=status)
    head, end, body = whole.partition(b"\r\n\r\n")
    return [head + end, body]
