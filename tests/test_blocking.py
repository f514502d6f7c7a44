"""The client in synchronous code, whose calls run in one background event loop."""

import asyncio
import contextvars
import ctypes
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any, Final, Self

import anyio
import pytest
from support.clock import begin_tasks_eagerly, run_loop_iterations
from support.programs import WARNINGS_ARE_ERRORS
from support.sockets import MESSAGES

from friendli_async import APIStatusError, AsyncFriendli, ChatChunk, ChatCompletion, StreamInterruptedError, blocking
from friendli_async.blocking import iterate, run
from friendli_async.bulk import run_all
from friendli_async.testing import FriendliServer, chunk, cut, script, stall, status, text, tool_calls
from friendli_async.tools import ToolFinished, tool

pytestmark = pytest.mark.compatibility  # depends on threads, forks and the end of an interpreter


@pytest.fixture
def client(remote: FriendliServer) -> Iterator[AsyncFriendli]:
    opened = AsyncFriendli("test-token", server_url=remote.url, retry=None)
    yield opened
    run(opened.aclose())


def ask(client: AsyncFriendli) -> ChatCompletion:
    return run(client.serverless.chat.complete(model="m", messages=MESSAGES))


def test_call_returns_its_reply(client: AsyncFriendli) -> None:
    assert ask(client).text == "You said: Hi"


def test_any_awaitable_is_awaited(client: AsyncFriendli) -> None:
    stream = run(client.serverless.chat.stream(model="m", messages=MESSAGES))
    assert run(stream.result()).text == "You said: Hi"


def test_error_of_a_call_is_raised(remote: FriendliServer, client: AsyncFriendli) -> None:
    remote.enqueue(status(404, message="no such model"))
    with pytest.raises(APIStatusError, match="no such model"):
        ask(client)


def stream_of(client: AsyncFriendli) -> list[ChatChunk]:
    return list(iterate(client.serverless.chat.stream(model="m", messages=MESSAGES)))


@pytest.mark.parametrize("call", [ask, stream_of])
def test_error_of_a_call_is_in_no_cycle(
    remote: FriendliServer, client: AsyncFriendli, call: Callable[[AsyncFriendli], object]
) -> None:
    remote.enqueue(status(404))
    gc.disable()
    try:
        raised: list[weakref.ref[APIStatusError]] = []
        try:
            call(client)
        except APIStatusError as error:
            raised.append(weakref.ref(error))
        run(asyncio.sleep(0))  # the background thread has let go of it
        assert [error() for error in raised] == [None]
    finally:
        gc.enable()


def test_threads_share_one_loop_and_its_connections(remote: FriendliServer, client: AsyncFriendli) -> None:
    gathered = threading.Barrier(4)

    def work(_: int) -> tuple[str, object]:
        gathered.wait()
        return ask(client).text, run(current_loop())

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(work, range(4)))) == 1
    ask(client)
    assert remote.connections <= 4


async def current_loop() -> object:
    return asyncio.get_running_loop()


def test_context_variables_of_the_caller_are_seen() -> None:
    variable = contextvars.ContextVar[str]("variable")
    variable.set("mine")

    async def read() -> str:
        return variable.get()

    assert run(read()) == "mine"


async def test_client_also_serves_the_loop_of_the_caller(client: AsyncFriendli) -> None:
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert reply.text == (await asyncio.to_thread(ask, client)).text == "You said: Hi"


# --- iteration -------------------------------------------------------------------------------------------------------


def test_stream_is_iterated(client: AsyncFriendli) -> None:
    stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
    assert "".join(chunk.text for chunk in iterate(stream)) == "You said: Hi"
    assert (stream.outcome, run(stream.result()).text) == ("done", "You said: Hi")


def test_run_is_iterated(remote: FriendliServer, client: AsyncFriendli) -> None:
    @tool
    def add(a: int, b: int) -> int:
        return a + b

    remote.enqueue(tool_calls(("add", {"a": 1, "b": 2})), text("3"))
    agent = client.serverless.chat.run(model="m", messages=MESSAGES, tools=[add])
    assert [event.content for event in iterate(agent) if isinstance(event, ToolFinished)] == ["3"]
    assert run(agent.result()).reply.text == "3"


def test_list_is_iterated(client: AsyncFriendli) -> None:
    assert list(iterate(client.dedicated.endpoint.list())) == []


def test_batch_is_iterated(client: AsyncFriendli) -> None:
    async def answer(row: str) -> str:
        return f"{row}!"

    outcomes = iterate(run_all(["a", "b"], answer, ordered=True))
    assert [outcome.result() for outcome in outcomes] == ["a!", "b!"]


async def numbers(left: list[str]) -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
    finally:
        left.append("left")


def take_by_break(items: Iterable[Any]) -> Any:
    for item in items:
        return item
    return None


def take_and_close(items: Any) -> Any:
    with closing(items):
        return next(items)


@pytest.mark.parametrize("take", [take_by_break, take_and_close])
def test_leaving_closes_the_stream(remote: FriendliServer, client: AsyncFriendli, take: Any) -> None:
    remote.enqueue(script(chunk("Hi"), stall()))
    stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
    assert take(iterate(stream)).text == "Hi"
    assert stream.outcome == "cancelled"
    assert client.gauges().open_streams == 0
    run(remote.requests[0].disconnected())


@pytest.mark.parametrize("take", [take_by_break, take_and_close])
def test_leaving_closes_an_async_generator(take: Any) -> None:
    left: list[str] = []
    gc.collect()  # a collection that has ended in this thread makes no difference
    assert take(iterate(numbers(left))) == 1
    assert left == ["left"]


class Endless:
    """An async iterator that cannot be closed."""

    def __init__(self, on_next: Callable[[], object] = int) -> None:
        self._on_next = on_next

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        self._on_next()
        return 1


def test_iterator_that_cannot_be_closed_is_left() -> None:
    assert take_and_close(iterate(Endless())) == 1


@pytest.mark.parametrize("take", [list, take_and_close])
def test_iteration_that_has_ended_leaves_no_task(take: Callable[[Any], Any]) -> None:
    before = set(blocking._iterating)
    take(iterate(numbers([])))
    run(asyncio.sleep(0))
    assert blocking._iterating <= before


@pytest.mark.parametrize(
    "error", [ValueError("cannot clean up"), asyncio.CancelledError()], ids=["failed", "cancelled"]
)
def test_error_of_an_async_generator_that_is_left_is_raised_but_no_cancellation(error: BaseException) -> None:
    async def failing() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise error

    with pytest.raises(ValueError, match="cannot clean up") if isinstance(error, ValueError) else nullcontext():
        assert take_and_close(iterate(failing())) == 1


async def cancelled_call() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def cancelled_step() -> AsyncIterator[int]:
    await cancelled_call()
    yield 1


def cancel_soon() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.get_loop().call_soon(task.cancel)


async def cancelled_between_steps() -> AsyncIterator[int]:
    cancel_soon()
    yield 1


async def cancelled_between_steps_but_going_on() -> AsyncIterator[int]:
    cancel_soon()
    try:
        yield 1
    except asyncio.CancelledError:
        yield 2


def second_of(source: AsyncIterable[int]) -> None:
    items = iterate(source)
    next(items)
    run(run_loop_iterations(9))
    next(items)


CANCELLED_CALLS: Final[dict[str, Callable[[], object]]] = {
    "call": lambda: run(cancelled_call()),
    "step": lambda: next(iterate(cancelled_step())),
    "between two steps": lambda: second_of(cancelled_between_steps()),
    "between two steps, in vain": lambda: second_of(cancelled_between_steps_but_going_on()),
    "between two steps of another iterator": lambda: second_of(Endless(cancel_soon)),
}


@pytest.mark.parametrize("call", CANCELLED_CALLS.values(), ids=CANCELLED_CALLS)
def test_cancellation_in_the_loop_is_an_error_of_the_call(call: Callable[[], object]) -> None:
    with pytest.raises(futures.CancelledError):  # not asyncio's, which is no Exception
        call()


@contextmanager
def context_variable() -> Generator[None]:
    before = LEVEL.set(1)
    try:
        yield
    finally:
        LEVEL.reset(before)


LEVEL: Final = contextvars.ContextVar("LEVEL", default=0)


@pytest.mark.parametrize("take", [list, take_and_close])
@pytest.mark.parametrize("enter", [anyio.CancelScope, context_variable])
def test_async_generator_leaves_what_it_has_entered(enter: Callable[[], Any], take: Callable[[Any], Any]) -> None:
    async def within() -> AsyncIterator[int]:
        with enter():
            yield 1
            yield 2

    assert take(iterate(within())) in ([1, 2], 1)


def test_async_generator_sees_the_context_variables_of_the_first_step() -> None:
    async def levels() -> AsyncIterator[int]:
        while True:
            yield LEVEL.get()

    items = iterate(levels())
    with context_variable():
        assert next(items) == 1
    assert next(items) == 1


def test_timeout_of_an_async_generator_ends_a_step() -> None:
    async def limited() -> AsyncIterator[int]:
        async with asyncio.timeout(None) as limit:
            yield 1
            limit.reschedule(0)
            await asyncio.Event().wait()

    items = iterate(limited())
    assert next(items) == 1
    with pytest.raises(TimeoutError):
        next(items)


def test_timeout_of_an_async_generator_between_two_steps_is_raised_by_the_next() -> None:
    limits: list[asyncio.Timeout] = []
    left: list[bool] = []

    async def limited() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                yield 1
        finally:
            left.append(True)

    async def expire() -> None:
        limits[0].reschedule(0)
        await run_loop_iterations(9)

    items = iterate(limited())
    assert next(items) == 1
    run(expire())
    assert left == [True]
    with pytest.raises(TimeoutError):
        next(items)


def test_error_in_a_task_group_of_an_async_generator_between_two_steps_is_raised_by_the_next() -> None:
    async def grouped() -> AsyncIterator[int]:
        async def fail() -> None:
            raise ValueError("child")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            yield 1

    with pytest.raises(ExceptionGroup) as caught:  # and not BaseExceptionGroup, with a GeneratorExit
        second_of(grouped())
    assert [repr(error) for error in caught.value.exceptions] == ["ValueError('child')"]


@pytest.mark.parametrize("last", [[], ["too late"], ["too late", "really"]], ids=["none", "one", "two"])
def test_timeout_that_an_async_generator_handles_between_two_steps_is_no_error(last: list[str]) -> None:
    expired = threading.Event()

    async def bounded() -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(0.01):
                yield "first"
        except TimeoutError:
            asyncio.get_running_loop().call_soon(expired.set)
            for item in last:
                yield item

    items = iterate(bounded())
    assert next(items) == "first"
    assert expired.wait(10)
    assert list(items) == last


def test_async_generator_that_ends_when_it_is_cancelled_between_two_steps_is_cancelled() -> None:
    async def ending() -> AsyncIterator[int]:
        cancel_soon()
        with suppress(asyncio.CancelledError):
            yield 1

    with pytest.raises(futures.CancelledError):
        second_of(ending())


@pytest.mark.parametrize("make", [cancelled_between_steps, lambda: Endless(cancel_soon)], ids=["generator", "iterator"])
def test_cancelled_iteration_leaves_no_cycle(make: Callable[[], AsyncIterator[int]]) -> None:
    source = make()
    gone = weakref.ref(source)
    gc.disable()
    try:
        items = iterate(source)
        next(items)
        run(run_loop_iterations(9))
        del source
        with suppress(futures.CancelledError):
            next(items)
        run(run_loop_iterations(9))
        assert gone() is None
    finally:
        gc.enable()


class Failing:
    """An iterator whose reads fail before they are awaited."""

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[int]:
        raise ValueError("no more")


def test_error_of_an_iterator_without_coroutines_is_raised() -> None:
    with pytest.raises(ValueError, match="no more"):
        list(iterate(Failing()))


def test_garbage_collection_of_an_iterator_does_not_wait_for_its_end() -> None:
    left: list[bool] = []
    lock = threading.Lock()  # such as that of a logging handler, in which a collection begins

    async def guarded() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            left.append(lock.acquire(timeout=30))

    source = guarded()  # else it would be closed with its last reference
    cycle: list[Any] = [iterate(source)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    with lock:
        gc.collect()
    run(asyncio.sleep(0))
    assert left == [True]


def test_iterator_that_was_not_begun_opens_nothing(remote: FriendliServer, client: AsyncFriendli) -> None:
    iterate(client.serverless.chat.stream(model="m", messages=MESSAGES)).close()
    assert remote.requests == []


def test_interrupted_stream_is_no_end_of_the_loop(remote: FriendliServer, client: AsyncFriendli) -> None:
    remote.enqueue(script(chunk("half"), cut()))
    texts: list[str] = []
    with pytest.raises(StreamInterruptedError) as caught:
        texts.extend(iterate(client.serverless.chat.stream(model="m", messages=MESSAGES).text()))
    assert texts == ["half"]
    assert caught.value.partial is not None
    assert caught.value.partial.text == "half"


def test_second_loop_over_an_interrupted_stream_is_no_empty_answer(
    remote: FriendliServer, client: AsyncFriendli
) -> None:
    remote.enqueue(script(chunk("half"), cut()))
    stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
    for _ in range(3):  # leaving a loop closes what it reads
        with pytest.raises(StreamInterruptedError):
            list(iterate(stream))


# --- the background loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [lambda: run(asyncio.sleep(0)), lambda: run(asyncio.Future[None]()), lambda: next(iterate(Endless()))],
    ids=["run", "run an awaitable", "iterate"],
)
def test_blocking_call_in_the_background_loop_is_an_error(
    call: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    async def nested() -> None:
        call()

    with pytest.raises(RuntimeError, match="await the async method instead"):
        run(nested())
    run(run_loop_iterations(3))
    assert caplog.records == []


def test_iterator_dropped_in_the_background_loop_closes_its_source() -> None:
    left: list[str] = []
    source = numbers(left)  # else it would be closed with its last reference
    held = [iterate(source)]
    next(held[0])

    async def drop() -> None:
        held.clear()
        assert left == []

    run(drop())
    run(asyncio.sleep(0))
    assert left == ["left"]


class Interrupt(BaseException):
    """As Dramatiq raises in the thread of a task: asyncio's ``except OSError`` would take a TimeoutError."""


def interrupted_thread(target: Callable[[], None], began: threading.Event) -> threading.Thread:
    """Starts a thread, and raises Interrupt in it once it has begun."""
    thread = threading.Thread(target=target)
    thread.start()
    assert began.wait(60)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Interrupt))
    return thread


def test_exception_raised_by_another_thread_cancels_the_call(
    remote: FriendliServer, client: AsyncFriendli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "_INTERRUPT_SECONDS", 0.01)
    remote.enqueue(script(chunk("a"), stall()))
    began = threading.Event()
    raised: list[str] = []

    def read() -> None:
        try:
            for _ in iterate(client.serverless.chat.stream(model="m", messages=MESSAGES).text()):
                began.set()
        except BaseException as error:
            raised.append(type(error).__name__)

    reader = interrupted_thread(read, began)
    assert run(remote.requests[0].disconnected())
    reader.join(60)
    assert raised == ["Interrupt"]


class Wrapper:
    """An iterator that passes on the items of an async generator."""

    def __init__(self, items: AsyncGenerator[int, None]) -> None:
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()


@pytest.mark.parametrize("has_item", [False, True], ids=["waiting", "about to yield"])
@pytest.mark.parametrize("wrap", [lambda items: items, Wrapper], ids=["bare", "wrapped"])
def test_exception_raised_by_another_thread_ends_an_async_generator_that_takes_its_time(
    monkeypatch: pytest.MonkeyPatch, wrap: Callable[[AsyncGenerator[int, None]], AsyncIterator[int]], has_item: bool
) -> None:
    monkeypatch.setattr(blocking, "_INTERRUPT_SECONDS", 0.01)
    began = threading.Event()
    interrupted = threading.Event()
    ended: list[str] = []

    def end(close: Callable[[], Any]) -> None:
        interrupted.set()
        leave(close)

    leave = blocking._end
    monkeypatch.setattr(blocking, "_end", end)

    async def slow() -> AsyncGenerator[int, None]:
        try:
            began.set()
            if has_item:
                interrupted.wait(60)
            else:
                await asyncio.Event().wait()
            yield 1
        finally:
            await run_loop_iterations(9)
            ended.append("generator")

    def read() -> None:
        try:
            list(iterate(wrap(slow())))
        except BaseException as error:
            ended.append(type(error).__name__)

    reader = interrupted_thread(read, began)
    reader.join(60)
    assert ended == ["generator", "Interrupt"]


@pytest.mark.parametrize(("fails", "raised"), [(False, "Interrupt"), (True, "ValueError")])
def test_exception_raised_by_another_thread_ends_an_async_generator_that_is_not_ended_by_a_cancellation(
    monkeypatch: pytest.MonkeyPatch, fails: bool, raised: str
) -> None:
    monkeypatch.setattr(blocking, "_INTERRUPT_SECONDS", 0.01)
    began = threading.Event()
    ended: list[str] = []

    async def stubborn() -> AsyncGenerator[str, None]:
        try:
            try:
                began.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                if fails:
                    raise ValueError from None
                yield str(error)
        finally:
            ended.append("generator")

    def read() -> None:
        try:
            list(iterate(stubborn()))
        except BaseException as error:
            ended.append(type(error).__name__)

    interrupted_thread(read, began).join(60)
    assert ended == ["generator", raised]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # those of the call that was interrupted
def test_exception_from_outside_while_an_iteration_is_left_does_not_keep_its_source_open() -> None:
    entered = 0

    def raise_at(entry: int) -> Callable[[Any, str, Any], None]:
        def trace(frame: Any, event: str, argument: object) -> None:
            nonlocal entered
            # `iterate` resumes in its handler, and a lock of the standard library would never be released.
            module = frame.f_globals["__name__"]
            entered += module.startswith(("asyncio", blocking.__name__)) and frame.f_code is not iterate.__code__
            if entered == entry:  # CPython raises exceptions from outside where functions are entered
                raise Interrupt

        return trace

    was_interrupted, entry, previous = True, 0, sys.gettrace()
    while was_interrupted:
        entry, entered, left = entry + 1, 0, list[str]()
        items = iterate(numbers(left))
        next(items)
        sys.settrace(raise_at(entry))
        try:
            items.close()
            was_interrupted = False
        except Interrupt:
            pass
        finally:
            sys.settrace(previous)
        run(run_loop_iterations(9))
        assert (entry, left) == (entry, ["left"])
    assert entry > 5


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exit_of_a_coroutine_is_that_of_its_caller(client: AsyncFriendli, kind: type[BaseException]) -> None:
    async def leave() -> None:
        raise kind("mine")

    with pytest.raises(kind, match="mine"):
        run(leave())
    assert ask(client).text == "You said: Hi"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_exit_of_a_coroutine_is_that_of_its_caller_if_new_loops_have_eager_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    begin_tasks_eagerly(loop)
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: loop)
    monkeypatch.setattr(blocking, "_background", None)

    async def leave() -> None:
        raise SystemExit("mine")

    with pytest.raises(SystemExit, match="mine"):
        run(leave())
    assert run(asyncio.sleep(0, "the next")) == "the next"
    blocking._stop()


PROGRAM: Final = """
import os, signal, sys, threading
from friendli_async import AsyncFriendli
from friendli_async.blocking import iterate, run
client = AsyncFriendli("test-token", server_url=sys.argv[1])
MESSAGES = [{"role": "user", "content": "Hi"}]
def ask():
    return run(client.serverless.chat.complete(model="m", messages=MESSAGES)).text
"""
PROGRAMS: Final = {
    "that leaves its client open": "print(ask())",
    "that ends in the middle of a stream": """
pieces = iterate(client.serverless.chat.stream(model="m", messages=MESSAGES).text())
print(next(pieces) + ask().removeprefix("You "))
""",
    "that is interrupted until this cancels a call": """
cancelled = []
async def interrupted():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # may come before that waits: then again
    try:
        await client.serverless.chat.complete(model="m", messages=MESSAGES)
    except BaseException as error:
        cancelled.append(error)
        raise
while not cancelled:
    try:
        run(interrupted())
    except KeyboardInterrupt:
        ask()
print(ask())
""",
    "that forks": """
ask()
pieces = iterate(client.serverless.chat.stream(model="m", messages=MESSAGES).text())
next(pieces)
if (pid := os.fork()) == 0:
    signal.alarm(30)  # else it would outlive a failed test
    code = 1
    try:
        try:
            next(pieces)
        except RuntimeError as error:
            code = "in the parent" not in str(error)
        code = code or ask() != "You said: Hi"
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
print(ask())
""",
}
FORK_WARNING: Final = ("-W", "ignore:This process:DeprecationWarning")  # that it has threads, since Python 3.12


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_ends_without_warnings(remote: FriendliServer, name: str) -> None:
    assert printed_by(PROGRAM + PROGRAMS[name], remote) == "You said: Hi\n"


TOO_LATE: Final = """
import atexit
def call():
    try:
        ask()
    except RuntimeError as error:
        print(error)
atexit.register(call)  # before the library's own function, which so runs before it
"""


ENDED: Final = "blocking call at interpreter exit: its event loop has ended"


def test_call_after_the_loop_has_ended_is_an_error_without_warnings(remote: FriendliServer) -> None:
    assert printed_by(f"{TOO_LATE}{PROGRAM}ask()", remote) == f"{ENDED}\n"


def test_iterator_that_is_left_while_the_loop_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "_background", None)
    ending, left = threading.Event(), threading.Event()
    was_left: list[bool] = []

    async def open_to_the_end() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ending.set()
            was_left.append(left.wait(30))

    def leave() -> None:  # such as a daemon thread whose call is cancelled at interpreter exit
        ending.wait()
        other.close()
        left.set()

    held, other = iterate(open_to_the_end()), iterate(numbers([]))
    next(held)
    next(other)
    thread = threading.Thread(target=leave)
    thread.start()
    blocking._started().end()
    thread.join()
    assert was_left == [True]


def test_loop_whose_thread_cannot_start_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(blocking, "_background", None)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run(asyncio.sleep(0))
    gc.collect()  # without a warning


def printed_by(program: str, remote: FriendliServer) -> str:
    """Runs a program, which must end without warnings and errors."""
    command = [sys.executable, "-X", "dev", *WARNINGS_ARE_ERRORS, *FORK_WARNING, "-c", program, remote.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    printed = [line for line in done.stderr.splitlines() if " took " not in line]
    assert (done.returncode, printed) == (0, [])
    return done.stdout
