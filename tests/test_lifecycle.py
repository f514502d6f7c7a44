"""Client lifecycle: event loops, threads, forks, closing, copies and pickling."""

import asyncio
import concurrent.futures
import contextlib
import copy
import functools
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from support.clock import run_loop_iterations, wait_until
from support.recorder import Recorder, RunRecorder
from support.sockets import (
    MESSAGES,
    TOKEN,
    Conversation,
    RawServer,
    assert_no_leaks,
    client_of,
    client_sockets,
    complete,
    open_stream,
    opened_stream,
    read,
    transport_of,
    with_timeout,
)

import friendli_async
from friendli_async import (
    AsyncFriendli,
    ConfigurationError,
    FriendliError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.net import pool as pool_module
from friendli_async._core.net.guard import _closing_tasks, close_soon
from friendli_async._core.observers import Observer
from friendli_async.bulk import run_all
from friendli_async.testing import FriendliServer, chunk, raw, script, stall, status, text, tool_calls
from friendli_async.tools import tool

T = TypeVar("T")

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("collect_garbage")]


# --- event loops and threads -----------------------------------------------------------------------------------------


def test_client_works_across_asyncio_runs(remote: FriendliServer) -> None:
    client = client_of(remote.url)

    async def main() -> str:
        assert await read(open_stream(client))
        return (await complete(client)).text

    assert len({asyncio.run(main()) for _ in range(3)}) == 1
    assert len(transport_of(client)._pools) == 1  # those of closed loops are given up
    asyncio.run(client.aclose())


def test_client_works_in_concurrent_event_loops(remote: FriendliServer) -> None:
    client = client_of(remote.url)
    barrier = threading.Barrier(4, timeout=60)
    texts: list[str] = []

    async def main() -> None:
        for _ in range(5):
            barrier.wait()
            texts.append(await read(open_stream(client)))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 20
    assert len(set(texts)) == 1
    asyncio.run(client.aclose())


def test_connection_limit_is_per_event_loop(remote: FriendliServer) -> None:
    client = client_of(remote.url, max_connections=1, timeout=Timeouts(pool=20))
    remote.enqueue(script(chunk("a"), stall()))
    opened, finished = threading.Event(), threading.Event()

    async def hold() -> None:
        async with open_stream(client):
            opened.set()
            await asyncio.to_thread(finished.wait, 60)

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    assert opened.wait(60)
    assert asyncio.run(complete(client)).text
    finished.set()
    thread.join(60)


def test_aclose_interrupts_streams_of_other_event_loops(remote: FriendliServer) -> None:
    client = client_of(remote.url)
    remote.enqueue(script(chunk("a"), stall()))
    reading = threading.Event()
    caught: list[BaseException] = []

    async def main() -> None:
        async with open_stream(client) as stream:
            await anext(stream)
            reading.set()
            try:
                await with_timeout(anext(stream))
            except BaseException as error:
                caught.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert reading.wait(60)
    asyncio.run(client.aclose())
    thread.join(60)
    assert [type(error) for error in caught] == [StreamInterruptedError]


def test_cancelled_aclose_still_interrupts_streams_of_other_event_loops(remote: FriendliServer) -> None:
    client = client_of(remote.url)
    remote.enqueue(text("here"), script(chunk("a"), stall()))
    reading, interrupted = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with open_stream(client) as stream:
            await anext(stream)
            reading.set()
            with pytest.raises(StreamInterruptedError):
                await with_timeout(anext(stream))
            interrupted.set()

    async def main() -> None:
        await complete(client)  # so that this loop's pool is closed first
        thread.start()
        assert await asyncio.to_thread(reading.wait, 60)
        closing = asyncio.ensure_future(client.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:  # keeps the frames of its traceback alive
            await closing
        assert await asyncio.to_thread(interrupted.wait, 60), "the stream of the other loop is still open"
        del caught

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    asyncio.run(main())
    thread.join(60)


def run_without_shutdown(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in an event loop that is then closed, and leaves open what is open in it."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return loop.run_until_complete(coroutine)


def collect_pending_task(loop_errors: list[str]) -> None:
    """Collects the task of a loop that was closed, of which asyncio must say only that."""
    gc.collect()
    assert {message.partition("\n")[0] for message in loop_errors} == {"Task was destroyed but it is pending!"}
    loop_errors.clear()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # from asyncio and aiohttp, for what the loop left open
@pytest.mark.parametrize("bypass_session", [True, False])
def test_call_is_cancelled_if_its_event_loop_is_closed(
    remote: FriendliServer, monkeypatch: pytest.MonkeyPatch, loop_errors: list[str], bypass_session: bool
) -> None:
    monkeypatch.setattr(pool_module, "CAN_POST", bypass_session)
    recorder = Recorder()
    client = client_of(remote.url, observers=[recorder], retry=RetryPolicy(initial=0))
    remote.enqueue(stall())

    async def main(client: AsyncFriendli) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(complete(client))
        await wait_until(lambda: bool(remote.requests))
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main(client))
    assert client.gauges().calls_in_flight == 1
    loop.close()
    assert client.gauges().calls_in_flight == 0
    asyncio.run(client.aclose())
    del task, loop, client
    gc.collect()
    assert recorder.reported[-2:] == ["None GeneratorExit", "cancelled GeneratorExit"]
    assert [message.partition("\n")[0] for message in loop_errors] == ["Task was destroyed but it is pending!"]
    loop_errors.clear()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_run_is_cancelled_if_its_event_loop_is_closed(remote: FriendliServer, loop_errors: list[str]) -> None:
    recorder = RunRecorder()
    client = client_of(remote.url, observers=[recorder])
    remote.enqueue(tool_calls(("wait", {})))

    @tool
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def main(client: AsyncFriendli) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(client.serverless.chat.run(model="m", messages=MESSAGES, tools=[wait]).result())
        await wait_until(lambda: "wait started" in recorder.reported)
        return task

    task = run_without_shutdown(main(client))
    asyncio.run(client.aclose())
    del task, client
    collect_pending_task(loop_errors)
    assert recorder.end.outcome == "cancelled"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("ending", ["the stream is dropped", "the client is used in another loop"])
def test_server_is_told_of_a_stream_whose_event_loop_was_closed_without_a_shutdown(
    remote: FriendliServer, ending: str
) -> None:
    client = client_of(remote.url)  # it is kept, and with it the connection
    remote.enqueue(script(chunk("a"), stall()))

    stream = run_without_shutdown(opened_stream(client))
    if ending == "the stream is dropped":
        del stream
        gc.collect()
    else:
        asyncio.run(complete(client))
    assert asyncio.run(remote.requests[0].disconnected())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_server_is_told_of_a_call_that_waited_for_its_reply_when_its_event_loop_was_closed(
    remote: FriendliServer, loop_errors: list[str]
) -> None:
    client = client_of(remote.url)
    remote.enqueue(stall())

    async def main(client: AsyncFriendli) -> asyncio.Task[Any]:
        waiting = asyncio.ensure_future(complete(client))
        await wait_until(lambda: bool(remote.requests))
        return waiting

    waiting = run_without_shutdown(main(client))
    asyncio.run(complete(client))
    assert asyncio.run(with_timeout(remote.requests[0].disconnected()))
    del waiting, client
    collect_pending_task(loop_errors)


@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_call_that_a_closed_event_loop_left_in_flight_is_collected_once_the_client_is_used_in_another(
    remote: FriendliServer, loop_errors: list[str], calls: int
) -> None:
    client = client_of(remote.url)

    async def main() -> weakref.ref[asyncio.Task[Any]]:
        await asyncio.gather(*(complete(client) for _ in range(calls)))  # at once
        remote.enqueue(stall())
        task = asyncio.ensure_future(complete(client))
        await wait_until(lambda: len(remote.requests) > calls)
        return weakref.ref(task)

    left = run_without_shutdown(main())
    asyncio.run(complete(client))
    collect_pending_task(loop_errors)
    assert left() is None


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_compressed_stream_that_was_read_when_its_event_loop_was_closed_does_not_fail_the_next_call(
    remote: FriendliServer, loop_errors: list[str]
) -> None:
    client = client_of(remote.url)
    compressor = zlib.compressobj(wbits=31)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    data = compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH)
    headers = {"Content-Encoding": "gzip"}
    remote.enqueue(script(raw(data), stall(), headers=headers, content_type="text/event-stream"))

    async def main() -> asyncio.Task[Any]:
        stream = await open_stream(client)
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await run_loop_iterations()
        return reading

    reading = run_without_shutdown(main())
    assert asyncio.run(complete(client)).text
    assert asyncio.run(remote.requests[0].disconnected())
    del reading
    collect_pending_task(loop_errors)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_call_that_waited_for_a_finished_connection_when_its_event_loop_was_closed_does_not_fail_the_next_call(
    remote: FriendliServer, loop_errors: list[str]
) -> None:
    client = client_of(remote.url)
    remote.enqueue(script(chunk("a"), raw(b"data: [DONE]\n\n"), stall()))  # its body does not end

    async def main(client: AsyncFriendli) -> asyncio.Task[Any]:
        await read(open_stream(client))
        waiting = asyncio.ensure_future(complete(client))
        await run_loop_iterations()
        return waiting

    waiting = run_without_shutdown(main(client))
    assert asyncio.run(complete(client)).text
    del waiting, client
    collect_pending_task(loop_errors)


def test_client_is_usable_after_a_stream_outlives_its_event_loop(remote: FriendliServer) -> None:
    client = client_of(remote.url)
    remote.enqueue(script(chunk("a"), stall()))

    stream = asyncio.run(opened_stream(client))
    del stream
    gc.collect()
    assert asyncio.run(complete(client)).text


SCRIPTS = {
    "unclosed session": """
client = make()
async def main():
    await call(client)
asyncio.run(main())
""",
    "several runs, never closed": """
client = make()
for _ in range(3):
    asyncio.run(call(client))
""",
    "unclosed stream": """
client = make()
async def main():
    global stream
    stream = await client.serverless.chat.stream(model="m", messages=MESSAGES)
asyncio.run(main())
""",
    "stream and client abandoned by break": """
async def main():
    client = make()
    async for _ in client.serverless.chat.stream(model="m", messages=MESSAGES):
        break
asyncio.run(main())
""",
    "client dropped without close": """
async def main():
    client = make()
    await call(client)
    del client
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
asyncio.run(main())
""",
    "one client per call": """
async def main():
    for _ in range(5):
        await call(make())
asyncio.run(main())
""",
    "unused client": "client = make()",
    "closed twice": """
async def main():
    async with make() as client:
        await call(client)
        await client.aclose()
    await client.aclose()
asyncio.run(main())
""",
    "closed in another run": """
client = make()
asyncio.run(call(client))
asyncio.run(client.aclose())
""",
    "closed elsewhere while its loop is stopped": """
import warnings
warnings.simplefilter("ignore", ResourceWarning)  # for the loop itself, and its sockets, which the program leaves open
client = make()
loop = asyncio.new_event_loop()
loop.run_until_complete(call_to_the_end(client))
asyncio.run(client.aclose())
""",
    "dropped while its loop is stopped": """
import warnings
warnings.simplefilter("ignore", ResourceWarning)
client = make()
loop = asyncio.new_event_loop()
loop.run_until_complete(call_to_the_end(client))
del client
""",
    "closed elsewhere while its loop is stopped, and closed there when it runs again": """
client = make()
loop = asyncio.new_event_loop()
loop.run_until_complete(call(client))
[(pool, _)] = client._runtime.transport._pools.values()
asyncio.run(client.aclose())
assert pool.connections
async def closed():
    async with asyncio.timeout(30):
        while pool.connections:
            await asyncio.sleep(0)
loop.run_until_complete(closed())
loop.close()
del pool, _
""",
    "used in another loop after its own was closed without a shutdown": """
import warnings
warnings.simplefilter("ignore", ResourceWarning)  # for the sockets of the loop
client = make()
loop = asyncio.new_event_loop()
loop.run_until_complete(call_to_the_end(client))
loop.close()
asyncio.run(call(client))
gc.collect()
asyncio.run(client.aclose())
""",
    "cancelled by Ctrl-C": """
import signal
async def main():
    client = make()
    async with client.serverless.chat.stream(model="m", messages=MESSAGES) as stream:
        await anext(stream)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
else:
    raise SystemExit("not interrupted")
""",
    "task still reading at the end of the run": """
async def main():
    client = make()
    started = asyncio.Event()
    async def reader():
        async for _ in client.serverless.chat.stream(model="m", messages=MESSAGES):
            started.set()
            await asyncio.Event().wait()
    task = asyncio.create_task(reader())
    await started.wait()
asyncio.run(main())
""",
    "exception with an open stream": """
async def main():
    stream = await make().serverless.chat.stream(model="m", messages=MESSAGES)
    raise KeyError("mine")
try:
    asyncio.run(main())
except KeyError:
    pass
""",
    "fork": """
client = make()
asyncio.run(call(client))
wait(fork(lambda: use_and_close(client)))
use_and_close(client)
""",
    "fork of an unused client, used by two children": """
client = make()
for _ in range(2):
    wait(fork(lambda: use_and_close(client)))
asyncio.run(client.aclose())
""",
    "fork with idle connections, which stay with the parent": """
client = make()
async def main():
    await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert client.gauges().idle == 1
    sockets = [p.transport.get_extra_info("socket") for pool, _ in client._runtime.transport._pools.values()
               for p in pool.connections]
    assert len(sockets) == 1
    await asyncio.to_thread(wait, fork(lambda: use_and_close(client)))
    await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert client.gauges().idle == 1
    assert sockets[0].fileno() >= 0, "the parent's connection was closed"
    await client.aclose()
asyncio.run(main())
""",
    "forks during an open stream, whose children use, close and drop the client": """
client = make()
async def main():
    stream = await client.serverless.chat.stream(model="m", messages=MESSAGES)
    def drop():
        global client
        nonlocal stream
        del client, stream
        gc.collect()
    uses = [lambda: asyncio.run(call(client)), lambda: asyncio.run(client.aclose()), drop, lambda: None]
    for pid in [fork(use) for use in uses]:
        await asyncio.to_thread(wait, pid)
    assert stream.outcome == "open"
    assert "".join([event.text async for event in stream])
    await client.aclose()
asyncio.run(main())
""",
    "fork during a call in flight, which the child does not count": """
client = make()
def use():
    assert client.gauges().calls_in_flight == 0
    assert asyncio.run(client.drain(30)) == 0
async def main():
    await client.warm_up(1)
    in_flight = asyncio.ensure_future(client.serverless.chat.complete(model="m", messages=MESSAGES))
    while not client.gauges().in_use:
        await asyncio.sleep(0)
    await asyncio.to_thread(wait, fork(use))
    assert (await in_flight).text
    await client.aclose()
asyncio.run(main())
""",
    "fork whose child exits without using the client": """
def drop():
    global client
    del client
    gc.collect()
with asyncio.Runner() as runner:
    client = make()
    runner.run(call(client))
    wait(fork(drop))
    runner.run(asyncio.wait_for(call(client), 30))
    runner.run(client.aclose())
""",
    "fork during an open stream, which the parent ends while the child lives": """
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n\\r\\n"
ended = asyncio.Event()
async def answer(reader, writer):
    writer.write(HEAD + b'data: {"choices":[{"delta":{"content":"a"}}]}\\n\\n')
    try:
        await reader.read()
    except ConnectionError:
        pass
    ended.set()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    async with server, AsyncFriendli("t", server_url=url) as client:
        stream = await client.serverless.chat.stream(model="m", messages=MESSAGES)
        child_end, parent_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(parent_end)
            os.read(child_end, 1)
            os._exit(0)
        await stream.aclose()
        await asyncio.wait_for(ended.wait(), 30)
        os.close(child_end)
        os.close(parent_end)
        wait(pid)
asyncio.run(main())
""",
    "new client after a fork": """
asyncio.run(call(make()))
wait(fork(lambda: asyncio.run(call(make()))))
""",
}
PROGRAM = """
import asyncio, gc, json, logging, os, sys, tempfile
from friendli_async import AsyncFriendli, ConfigurationError
MESSAGES = [{"role": "user", "content": "Hi there, how are you?"}]
# Debug mode also logs callbacks that take over 0.1 s, as any callback may on a busy machine.
# A function of this module would keep what the scripts leave in it alive until nothing can be printed any more.
logging.getLogger("asyncio").addFilter(eval("lambda record: not record.msg.startswith('Executing %s took')", {}))
AsyncFriendli("x")  # imports aiohttp once, before the forks
def make():
    return AsyncFriendli("test-token", server_url=sys.argv[1])
async def call(client):
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert reply.text
    async with client.serverless.chat.stream(model="m", messages=MESSAGES) as stream:
        assert [event async for event in stream]
def use_and_close(client):
    asyncio.run(call(client))
    asyncio.run(client.aclose())
def fork(use):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio._set_running_loop(None)  # the child must not run in the parent's loop
            use()
            code = 0
        finally:
            os._exit(code)
    return pid
def wait(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
async def call_to_the_end(client):  # of the bodies, too: only a running loop can receive that
    await call(client)
    [(pool, _)] = client._runtime.transport._pools.values()
    async with asyncio.timeout(30):
        while pool.finishing:
            await asyncio.sleep(0)

results = {}
for name, script in json.load(sys.stdin).items():
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
            output.close()
            break
        results[name] = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
        output.seek(0)
        results[name].append(output.read().decode())
else:
    script = "json.dump(results, sys.stdout)"
exec(script)
"""
"""Runs each script up to interpreter shutdown, in a fork of a process that has already imported everything."""


CONTROL = """
class Left:
    def __del__(self):
        print("late")
left = Left()
"""
"""Prints when the interpreter clears the module: what the client's objects print then must be seen too."""


def run_scripts(scripts: dict[str, str], server: FriendliServer, *options: str) -> dict[str, list[object]]:
    """Runs scripts in `PROGRAM`, with options of Python; returns the exit status and the output of each."""
    stdin = json.dumps({**scripts, "control": CONTROL})
    code, output, errors = run_program(PROGRAM, server, *options, stdin=stdin)
    assert (code, errors) == (0, "")
    results: dict[str, list[object]] = json.loads(output)
    assert results.pop("control") == [0, "late\n"]
    return results


def test_programs_exit_without_warnings(remote: FriendliServer) -> None:
    assert run_scripts(SCRIPTS, remote, "-X", "dev", "-W", "error") == {name: [0, ""] for name in SCRIPTS}


SHUTDOWN_PROGRAM = """
import asyncio, sys
from friendli_async import AsyncFriendli

class Kept:
    pass

async def main():
    kept.stream = await kept.client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}])
    await anext(kept.stream)

kept = Kept()
kept.itself = kept  # a cycle in a module is cleared last, when module globals are already gone
kept.unused = AsyncFriendli("t")
kept.client = AsyncFriendli("t", server_url=sys.argv[1])
asyncio.run(main())
sys.modules["kept"] = kept
del kept.unused, kept.client
"""


def run_program(program: str, server: FriendliServer, *options: str, stdin: str = "") -> tuple[int, str, str]:
    """Runs a program with the server's URL as argument; returns its exit status, stdout and stderr."""
    result = subprocess.run(
        [sys.executable, *options, "-c", program, server.url],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # Debug mode would log what takes over 0.1 s.
        env={**os.environ, "PYTHONPATH": str(Path(friendli_async.__file__).parents[1]), "PYTHONASYNCIODEBUG": ""},
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("keeps_clients", [True, False])
def test_objects_alive_at_interpreter_shutdown_emit_no_warnings(remote: FriendliServer, keeps_clients: bool) -> None:
    remote.always(script(chunk("a"), stall()))
    program = SHUTDOWN_PROGRAM if not keeps_clients else SHUTDOWN_PROGRAM.replace("del kept.unused, kept.client", "")
    assert run_program(program, remote) == (0, "", "")


ENDINGS = {
    "loop closed without shutdown": "loop.run_until_complete(call()); loop.close()",
    "several closed loops": """
for _ in range(3):
    loop.run_until_complete(call())
    loop.close()
    loop = asyncio.new_event_loop()
""",
    "closed loop and dropped client": "loop.run_until_complete(call()); loop.close(); del client; gc.collect()",
    "loop never closed": "loop.run_until_complete(call()); loop.run_until_complete(call())",
    "loop without asyncgen hooks": "loop.run_until_complete(call(asyncgen_hooks=False))",
}
"""Ways for a program to end without closing its client."""

UNCLOSED_PROGRAM = """
import asyncio, gc, sys
from friendli_async import AsyncFriendli

client = AsyncFriendli("test-token", server_url=sys.argv[1])
loop = asyncio.new_event_loop()

async def call(asyncgen_hooks=True):
    if not asyncgen_hooks:  # as in a loop of nest_asyncio
        sys.set_asyncgen_hooks(None, None)
    await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "Hi"}])
    async for _ in client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}]):
        break

"""


def test_programs_that_close_nothing_exit_without_output(remote: FriendliServer) -> None:
    scripts = {name: UNCLOSED_PROGRAM + end for name, end in ENDINGS.items()}
    assert run_scripts(scripts, remote) == {name: [0, ""] for name in ENDINGS}


def test_connections_are_closed_when_asyncio_run_ends(remote: FriendliServer) -> None:
    client = client_of(remote.url)
    asyncio.run(complete(client))
    assert list(client_sockets(remote.url)) == []
    asyncio.run(remote.wait_for_connections(0, timeout=5))


async def test_garbage_collected_client_closes_its_connections(server: FriendliServer) -> None:
    client = client_of(server.url)
    await complete(client)
    reference = weakref.ref(client)
    del client
    gc.collect()
    assert reference() is None
    await server.wait_for_connections(0)


class Owner:
    """Holds a client in a reference cycle."""

    def __init__(self, client: AsyncFriendli) -> None:
        self.client = client
        self.itself = self


@pytest.mark.parametrize("how", ["idle connection", "open stream", "copy", "several", "observer"])
async def test_client_in_a_reference_cycle_is_closed_silently(
    server: FriendliServer, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    observer = Observer()
    owner = Owner(client_of(server.url, observers=[observer]))
    await asyncio.gather(*(complete(owner.client) for _ in range(4 if how == "several" else 1)))
    if how == "open stream":
        server.enqueue(script(chunk("a"), stall()))
        stream = open_stream(owner.client)
        assert (await anext(stream)).text == "a"
        vars(owner)["stream"] = stream
        del stream
    if how == "copy":
        owner.client = owner.client.with_options(team="t")
    if how == "observer":
        vars(observer)["owner"] = owner
    reference = weakref.ref(owner)
    del owner, observer
    gc.collect()
    assert reference() is None
    await server.wait_for_connections(0)
    assert (reports, capsys.readouterr().err) == ([], "")


async def test_unclosed_client_is_silent_without_asyncgen_hooks(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of nest_asyncio, which notebooks use, sets no such hooks."""
    hooks = sys.get_asyncgen_hooks()
    client = client_of(server.url)
    reports: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reports.append(str(unraisable.exc_value)))
    sys.set_asyncgen_hooks(None, None)
    try:
        await complete(client)
        pools: Any = client._runtime.transport
        [(pool, _)] = pools._pools.values()
        pools._pools.clear()
        del _
        gc.collect()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert reports == []
    await pool.close("the test is over")


async def test_guard_of_a_pool_that_was_closed_ends_without_waiting(server: FriendliServer) -> None:
    """While it waits, asyncio cannot end it, and logs an error if the loop shuts down in that turn."""
    client = client_of(server.url)
    await complete(client)
    [(pool, guard)] = transport_of(client)._pools.values()
    await pool.close("the test is over")
    with pytest.raises(StopIteration):
        guard.aclose().send(None)
    await guard.aclose()
    await client.aclose()


@pytest.mark.parametrize("turns", range(4))
def test_client_closed_while_the_loop_of_a_pool_shuts_down_leaves_no_connection(
    remote: FriendliServer, turns: int
) -> None:
    """As by another thread, some turns after the loop's last task has ended. asyncio logs no error."""

    async def main() -> None:
        await complete(client)
        [(pool, guard)] = transport_of(client)._pools.values()
        transport_of(client)._pools.clear()
        close_after(turns, functools.partial(pool.close, "the test is over"), guard)

    def close_after(left: int, close: Any, guard: Any) -> None:
        if left:
            asyncio.get_running_loop().call_soon(close_after, left - 1, close, guard)
        else:
            close_soon(close, guard)

    client = client_of(remote.url)
    asyncio.run(main())
    assert list(client_sockets(remote.url)) == []
    assert not _closing_tasks


async def test_stream_keeps_its_client_alive(server: FriendliServer) -> None:
    server.enqueue(text("a", "b"))
    client = client_of(server.url)
    stream = await open_stream(client)
    del client
    gc.collect()
    assert await read(stream) == "ab"


async def test_call_keeps_its_client_alive(server: FriendliServer) -> None:
    assert (await with_timeout(complete(client_of(server.url)))).text
    await server.wait_for_connections(0)


# --- closing ---------------------------------------------------------------------------------------------------------


async def test_aclose_is_idempotent_and_closed_client_rejects_calls(server: FriendliServer) -> None:
    client = client_of(server.url)
    await complete(client)
    await client.aclose()
    await client.aclose()
    await assert_no_leaks(client, server)
    with pytest.raises(ConfigurationError, match="closed"):
        await complete(client)
    with pytest.raises(ConfigurationError, match="closed"):
        await open_stream(client)
    with pytest.raises(ConfigurationError, match="the client is closed, and cannot be opened again: create another"):
        await client.__aenter__()
    with pytest.raises(ConfigurationError, match="closed"):
        await complete(client.with_options(timeout=1))
    assert "closed" in repr(client)
    assert len(server.requests) == 1


async def test_aclose_may_be_called_concurrently(server: FriendliServer) -> None:
    client = client_of(server.url)
    await complete(client)
    await with_timeout(asyncio.gather(client.aclose(), client.aclose(), client.aclose()))
    await assert_no_leaks(client, server)


async def test_aclose_closes_a_connection_over_which_a_cancelled_request_is_still_being_sent() -> None:
    async def read_the_head(conversation: Conversation) -> None:
        await conversation.request_head()
        await asyncio.Event().wait()

    def is_blocked() -> bool:
        pools: list[Any] = [pool for pool, _ in transport_of(client)._pools.values()]
        sockets = [each.transport for pool in pools for each in pool.connections]
        return any(each.get_write_buffer_size() for each in sockets)

    messages = [{"role": "user", "content": "x" * (16 << 20)}]
    async with RawServer(read_the_head) as server:
        client = client_of(server.url)
        calling = asyncio.ensure_future(client.serverless.chat.complete(model="m", messages=messages))
        await wait_until(is_blocked)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert len(list(client_sockets(server.url))) == 1
        await client.aclose()
        await run_loop_iterations()
        assert list(client_sockets(server.url)) == []


async def test_aclose_in_on_retry_stops_retries(server: FriendliServer) -> None:
    closing: list[asyncio.Task[None]] = []
    policy = RetryPolicy(initial=0.0, on_retry=lambda _: closing.append(asyncio.ensure_future(client.aclose())))
    client = client_of(server.url, retry=policy)
    server.always(status(503))
    with pytest.raises(FriendliError):
        await with_timeout(complete(client))
    await with_timeout(asyncio.gather(*closing))
    await assert_no_leaks(client, server)


# --- copies, sessions, pickling --------------------------------------------------------------------------------------


async def test_only_closing_the_original_client_closes_the_pool(server: FriendliServer) -> None:
    client = client_of(server.url)
    copied = client.with_options(timeout=5, headers={"X-A": "1"})
    async with copied:
        await complete(copied)
    await copied.aclose()
    await complete(client)
    await complete(copied)
    assert server.connections == 1
    assert server.requests[0].headers["X-A"] == "1"
    assert "X-A" not in server.requests[1].headers
    await client.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        await complete(copied)


async def test_copy_outlives_the_original_client(server: FriendliServer) -> None:
    copied = client_of(server.url).with_options(timeout=60)
    gc.collect()
    assert (await complete(copied)).text
    assert await read(open_stream(copied))


async def test_user_session_is_used_unchanged_and_never_closed(server: FriendliServer) -> None:
    async with aiohttp.ClientSession(headers={"X-Session": "yes"}) as session:
        client = client_of(server.url, session=session)
        assert (await complete(client)).text
        async with open_stream(client) as stream:
            assert await read(stream)
        server.enqueue(script(chunk("a"), stall()))
        stream = await open_stream(client)
        await client.aclose()
        assert not session.closed
        with pytest.raises(StreamInterruptedError):
            await with_timeout(stream.result())
        assert server.requests[0].headers["X-Session"] == "yes"
        async with session.post(server.url + "/serverless/v1/chat/completions", json={}) as again:
            assert again.status in {401, 422}
        del client
        gc.collect()
        await run_loop_iterations(3)
        assert not session.closed


def test_user_session_survives_a_client_that_is_dropped_between_runs_of_its_loop(remote: FriendliServer) -> None:
    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def get_status() -> int:
        async with session.get(remote.url) as answer:
            return answer.status

    with asyncio.Runner() as runner:
        session = runner.run(open_session())
        client = client_of(remote.url, session=session)
        assert runner.run(complete(client)).text
        del client
        gc.collect()
        assert runner.run(get_status()) == 404
        runner.run(session.close())


async def test_closed_user_session_is_rejected(server: FriendliServer) -> None:
    session = aiohttp.ClientSession()
    await session.close()
    async with client_of(server.url, session=session) as client:
        with pytest.raises(ConfigurationError, match="session"):
            await complete(client)


@pytest.mark.parametrize("streamed", [False, True])
def test_user_session_of_another_loop_is_rejected_before_any_io(remote: FriendliServer, streamed: bool) -> None:
    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def call() -> object:
        return await (open_stream(client).result() if streamed else complete(client))

    with asyncio.Runner() as home:
        session = home.run(open_session())
        client = client_of(remote.url, session=session)
        with pytest.raises(ConfigurationError, match="the session passed in belongs to another event loop"):
            run_in_thread(call)
        assert remote.requests == []
        home.run(call())
        with pytest.raises(ConfigurationError, match="another event loop"):
            run_in_thread(call)
        assert len(remote.requests) == 1
        home.run(client.aclose())
        home.run(session.close())


def run_in_thread(call: Callable[[], Coroutine[Any, Any, object]]) -> object:
    """Runs a coroutine in an event loop of its own, in another thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: asyncio.run(call())).result(30)


async def test_client_cannot_be_pickled_or_copied(server: FriendliServer, client: AsyncFriendli) -> None:
    await complete(client)
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        for each in (client, client.with_options(timeout=1)):
            with pytest.raises(TypeError):
                duplicate(each)


PARTS: dict[str, Callable[[AsyncFriendli], object]] = {
    "client": lambda client: client,
    "copy": lambda client: client.with_options(team="t"),
    "deployment": lambda client: client.serverless,
    "container": lambda client: client.container,
    "chat": lambda client: client.serverless.chat,
    "files": lambda client: client.file,
    "pages": lambda client: client.dedicated.endpoint.list(),
    "call": lambda client: client.serverless.tool_assisted_chat_completion(
        tool_assisted_completion_request_body={"model": "m", "messages": MESSAGES}
    ),
    "stream": open_stream,
    "text": lambda client: open_stream(client).text(),
    "reasoning": lambda client: open_stream(client).reasoning(),
    "tool calls": lambda client: open_stream(client).tool_calls(),
    "bytes": lambda client: open_stream(client).raw(),
    "branch": lambda client: open_stream(client).tee(2)[0],
    "run": lambda client: client.serverless.chat.run(model="m", messages=MESSAGES, tools=[]),
    "value stream": lambda client: client.serverless.chat.parse_stream(dict[str, int], model="m", messages=MESSAGES),
    "snapshots": lambda client: client.serverless.chat.parse_stream(
        dict[str, int], model="m", messages=MESSAGES
    ).snapshots(),
}


@pytest.mark.parametrize("part", PARTS)
async def test_parts_of_a_client_cannot_be_pickled_or_deep_copied(
    client: AsyncFriendli, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value: Any = PARTS[part](client)
    for duplicate in (pickle.dumps, copy.deepcopy, lambda value: copy.deepcopy({"inside": [value]})):
        with pytest.raises(TypeError, match=r"cannot be (pickled|copied)"):
            duplicate(value)
    assert TOKEN not in repr(value)
    del value
    gc.collect()
    assert capsys.readouterr().err == ""


async def test_stream_cannot_be_copied(client: AsyncFriendli) -> None:
    stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a stream cannot be copied or pickled: it holds a connection"):
            duplicate(stream)


BEGINNINGS: dict[str, Callable[[AsyncFriendli], Any]] = {
    "async with client": lambda client: client.__aenter__(),
    "aclose": lambda client: client.aclose(),
    "warm_up": lambda client: client.warm_up(2),
    "drain": lambda client: client.drain(1),
    "upload": lambda client: client.file.upload(b"abc", project_id="p"),
    "run": lambda client: client.serverless.chat.run(tools=[], model="m", messages=MESSAGES).__anext__(),
    "async with run": lambda client: client.serverless.chat.run(tools=[], model="m", messages=MESSAGES).__aenter__(),
    "complete": lambda client: client.serverless.chat.complete(model="m", messages=MESSAGES),
    "anext": lambda client: open_stream(client).__anext__(),
    "async with stream": lambda client: open_stream(client).__aenter__(),
    "result": lambda client: open_stream(client).result(),
    "text": lambda client: open_stream(client).text().__anext__(),
    "run_all": lambda client: run_all(["a"], lambda _: client.serverless.model.list()).__anext__(),
    "server": lambda client: FriendliServer().__aenter__(),
}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_use_in_trio_or_without_an_event_loop_says_what_is_missing(beginning: str) -> None:
    begun = BEGINNINGS[beginning](AsyncFriendli("t"))
    with pytest.raises(RuntimeError, match="no running event loop: friendli_async needs one of asyncio's"):
        begun.send(None)


async def test_stream_that_was_first_read_without_an_event_loop_can_be_read_later(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    stream = open_stream(client)
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        with pytest.raises(RuntimeError, match="no running event loop"):
            stream.__anext__().send(None)
    finally:
        asyncio._set_running_loop(loop)
    assert [chunk.text async for chunk in stream]


async def test_drain_without_an_event_loop_leaves_the_client_usable(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        with pytest.raises(RuntimeError, match="no running event loop"):
            client.drain(1).send(None)
    finally:
        asyncio._set_running_loop(loop)
    await client.serverless.chat.complete(model="m", messages=MESSAGES)
