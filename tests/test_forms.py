"""Streamed request bodies: sources, retries, failures and cost."""

import asyncio
import gc
import io
import os
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import anyio
import pytest
from support.clock import Clock, run_loop_iterations
from support.memory import MIB, assert_peak_memory_below
from support.sockets import FAST_RETRY, Conversation, RawServer, assert_no_leaks, client_of, slots_in_use, with_timeout
from support.sockets import reply as http_reply

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    RateLimitError,
    RetryPolicy,
    Timeouts,
)
from friendli_async.testing import FriendliServer, Script, event, json_body, reset, script, status

DATA: Final = bytes(range(256)) * 4096  # 1 MiB, four chunks
ANSWER: Final = b'{"text": "ok"}'


def ok() -> Script:
    return json_body({"text": "ok"})


async def iterate(data: bytes = DATA, size: int = 100_000) -> AsyncIterator[bytes]:
    for position in range(0, len(data), size):
        yield data[position : position + size]


async def send(client: AsyncFriendli, file: Any, **options: Any) -> str:
    return (await with_timeout(client.container.audio.transcribe(file=file, **options))).text


def sent(server: FriendliServer, index: int = -1) -> bytes:
    return server.requests[index].form[-1].data


class Pipe(io.RawIOBase):
    """A file that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "speech.mp3"
    path.write_bytes(DATA)
    return path


# --- sources ---------------------------------------------------------------------------------------------------------


async def test_path_is_sent_with_name_type_and_length(path: Path) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        assert await send(client, path) == "ok"
        [request] = server.requests
        [part] = request.form
        assert (part.name, part.filename, part.content_type) == ("file", "speech.mp3", "audio/mpeg")
        assert part.data == DATA
        assert int(request.headers["Content-Length"]) == len(request.body)
        assert "Transfer-Encoding" not in request.headers


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_are_copied_when_the_call_is_made(kind: Any) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(script(event({"type": "transcript.text.done", "text": "ok"})))
        content = bytearray(b"OggS" + DATA)
        stream = client.container.audio.stream(file=kind(content))
        content[:] = b"0" * len(content)
        assert (await with_timeout(stream.result())).text == "ok"
        assert sent(server) == b"OggS" + DATA
        assert server.requests[0].form[-1].filename == "audio.ogg"


async def test_open_file_is_sent_from_its_position_and_left_open(path: Path) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        with path.open("rb") as file:
            file.seek(300_000)
            assert await send(client, file) == "ok"
            assert not file.closed
        assert sent(server) == DATA[300_000:]
        assert server.requests[0].form[-1].filename == "speech.mp3"
        assert "Content-Length" in server.requests[0].headers


@pytest.mark.parametrize("source", [iterate, lambda: Pipe(DATA)], ids=["iterator", "pipe"])
async def test_source_of_unknown_length_uses_chunked_encoding(source: Any) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        assert await send(client, source(), filename="a.wav") == "ok"
        assert sent(server) == DATA
        assert server.requests[0].headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in server.requests[0].headers


async def test_asynchronous_file_is_sent(path: Path) -> None:
    async with FriendliServer() as server, client_of(server.url) as client, await anyio.open_file(path, "rb") as file:
        server.enqueue(ok())
        assert await send(client, file, filename="a.wav") == "ok"
        assert sent(server) == DATA


async def test_file_with_coroutine_methods_is_sent() -> None:
    class AsyncFile:  # like those of aiofiles
        def __init__(self) -> None:
            self._lines = iter(io.BytesIO(DATA))

        async def read(self, size: int = -1) -> bytes:
            raise AssertionError("its pieces are iterated over")

        async def seekable(self) -> bool:
            return True

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if (line := next(self._lines, None)) is None:
                raise StopAsyncIteration
            return line

    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        assert await send(client, AsyncFile(), filename="a.wav") == "ok"
        assert sent(server) == DATA


async def test_empty_file_is_sent() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        assert await send(client, io.BytesIO()) == "ok"
        assert sent(server) == b""


async def test_quotes_and_newlines_in_filename_are_escaped() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        await send(client, b"x", filename='a"; name="model"\r\nX-Evil: 1\r\n\r\n.wav')
        [part] = server.requests[0].form
        assert part.filename == "a%22; name=%22model%22%0D%0AX-Evil: 1%0D%0A%0D%0A.wav"
        assert part.data == b"x"


async def test_content_that_looks_like_a_form_is_not_parsed() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok(), ok())
        await send(client, b"x")
        inner = server.requests[0].body
        await send(client, inner)
        assert sent(server) == inner


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"speech.mp3"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("speech.mp3", r"pathlib\.Path"),
        (5, "file: Expected bytes"),
        (None, "file: Expected bytes"),
        (io.StringIO("x"), "binary mode"),
        (BytesPath(), "file: Expected bytes"),
    ],
    ids=["str", "int", "none", "text file", "path of bytes"],
)
async def test_invalid_file_argument_is_rejected_before_sending(file: Any, message: str) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match=message):
            await send(client, file)
        with pytest.raises(ValueError, match=message):
            client.container.audio.stream(file=file)
        assert server.connections == 0


@pytest.mark.parametrize("content_type", ["audio/wav\r\nX-Evil: 1", "söund/wav"])
async def test_invalid_content_type_is_rejected(content_type: str) -> None:
    async with client_of("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match="content_type"):
            await send(client, b"x", content_type=content_type)


# --- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "path", "open file"])
async def test_rereadable_source_is_resent_completely(path: Path, kind: str) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=FAST_RETRY) as client:
        server.enqueue(status(503), script(reset()), ok())
        with path.open("rb") as file:
            assert await send(client, {"bytes": DATA, "path": path, "open file": file}[kind]) == "ok"
        assert [sent(server, index) == DATA for index in range(3)] == [True] * 3


@pytest.mark.parametrize("source", [iterate, lambda: Pipe(DATA)], ids=["iterator", "pipe"])
async def test_single_use_source_is_sent_once(source: Any) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=FAST_RETRY) as client:
        server.enqueue(status(429), ok())
        with pytest.raises(RateLimitError) as caught:
            await send(client, source())
        assert len(server.requests) == 1
        assert caught.value.meta is not None
        assert len(caught.value.meta.attempts) == 1


async def test_single_use_source_is_retried_after_connect_failure() -> None:
    async with FriendliServer() as server:
        unused_url = server.url
    retries: list[str | None] = []
    policy = RetryPolicy(max_attempts=3, initial=0.0, on_retry=lambda attempt: retries.append(attempt.cause))
    async with client_of(unused_url, retry=policy) as client:
        with pytest.raises(APIConnectionError) as caught:
            await send(client, iterate())
    assert not caught.value.sent
    assert len(retries) == 2


async def test_redirect_resends_the_form_unless_its_source_is_consumed() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(status(307, headers={"Location": "/elsewhere"}), ok())
        assert await send(client, DATA) == "ok"
        assert server.requests[1].path == "/elsewhere"
        assert sent(server) == DATA
        server.enqueue(status(307, headers={"Location": "/elsewhere"}))
        with pytest.raises(APIStatusError) as caught:
            await send(client, iterate())
        assert caught.value.status_code == 307


async def test_stale_connection_is_replaced_for_rereadable_source() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok(), script(reset()), ok())
        assert await send(client, b"1") == "ok"
        assert await send(client, DATA) == "ok"
        assert sent(server) == DATA
        assert len(server.requests) == 3


async def test_stale_connection_is_not_replaced_for_a_consumed_source() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok(), script(reset()), ok())
        assert await send(client, b"1") == "ok"
        with pytest.raises(APIConnectionError) as caught:
            await send(client, iterate())
        assert caught.value.sent
        assert len(server.requests) == 2


# --- failures --------------------------------------------------------------------------------------------------------


async def test_missing_file_raises_file_not_found_and_nothing_is_sent(tmp_path: Path) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=FAST_RETRY) as client:
        with pytest.raises(FileNotFoundError):
            await send(client, tmp_path / "no.wav")
        stream = client.container.audio.stream(file=tmp_path / "no.wav")
        with pytest.raises(FileNotFoundError):
            await with_timeout(stream.result())
        assert stream.outcome == "failed"
        assert server.connections == 0
        with pytest.raises(ValueError, match="not a regular file"):
            await send(client, tmp_path)


class Failed(BaseException):
    """No Exception, as pytest's own."""


async def failing(error: BaseException) -> AsyncIterator[bytes]:
    yield DATA
    raise error


@pytest.mark.parametrize(
    "error",
    [ValueError("mine"), OSError(5, "mine"), RuntimeError("mine"), TimeoutError("mine"), Failed("mine")],
    ids=repr,
)
async def test_source_error_propagates_unchanged_and_leaks_nothing(error: BaseException) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=FAST_RETRY) as client:
        with pytest.raises(type(error)) as caught:
            await send(client, failing(error))
        assert caught.value is error
        await assert_no_leaks(client, server)
        server.enqueue(ok())
        assert await send(client, b"x") == "ok"


@pytest.mark.parametrize("can_seek", [True, False])
async def test_file_whose_read_raises_stop_iteration_ends_the_call(can_seek: bool) -> None:
    class Pieces(Pipe):
        def __init__(self) -> None:
            self._pieces = iter([DATA[:10]])

        def read(self, size: int = -1) -> bytes:
            return next(self._pieces)

        def seekable(self) -> bool:
            return can_seek

        def tell(self) -> int:
            return 0

        def seek(self, offset: int, whence: int = 0) -> int:
            return len(DATA)

    async with FriendliServer() as server, client_of(server.url, retry=FAST_RETRY) as client:
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await send(client, Pieces())
        await assert_no_leaks(client, server)


async def test_source_error_is_freed_without_gc() -> None:
    alive: weakref.WeakSet[BaseException] = weakref.WeakSet()

    class MineError(ValueError):
        def __init__(self) -> None:
            alive.add(self)

    async def fail() -> AsyncIterator[bytes]:
        yield DATA
        raise MineError

    gc.disable()
    try:
        async with FriendliServer() as server, client_of(server.url) as client:
            with suppress(ValueError):
                await send(client, fail())
            await assert_no_leaks(client, server)
            assert list(alive) == []
    finally:
        gc.enable()


async def test_iterator_of_non_bytes_is_an_error() -> None:
    async def texts() -> AsyncIterator[Any]:
        yield "text"

    async with FriendliServer() as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match="yielded str, not bytes"):
            await send(client, texts())
        await assert_no_leaks(client, server)


async def test_file_changed_between_attempts_is_an_error(path: Path) -> None:
    def change(_: object) -> None:
        path.write_bytes(DATA[::-1] + b"more")

    async with FriendliServer() as server:
        policy = RetryPolicy(initial=0.0, on_retry=change)
        async with client_of(server.url, retry=policy) as client:
            server.enqueue(status(503), ok())
            with pytest.raises(ValueError, match="has changed"):
                await send(client, path)
            assert len(server.requests) == 1


async def test_open_file_that_shrinks_is_an_error(path: Path) -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) if self.tell() < 500_000 else b""

    async with FriendliServer() as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match="truncated"):
            await send(client, Shrinking(DATA))
        await assert_no_leaks(client, server)


async def test_open_file_that_grows_is_sent_with_the_length_that_was_announced() -> None:
    class Growing(io.BytesIO):
        def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
            return super().seek(*((len(DATA), os.SEEK_SET) if whence == os.SEEK_END else (offset, whence)))

    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        await send(client, Growing(DATA + b"more"))
        assert sent(server) == DATA


@pytest.mark.parametrize("read", ["text", None])
async def test_file_that_returns_anything_but_bytes_is_an_error(read: Any) -> None:
    class Odd(Pipe):
        def read(self, size: int = -1) -> Any:
            return read

    async with FriendliServer() as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match=f"file: the open file returned {type(read).__name__}, not bytes"):
            await send(client, Odd(b""))
        await assert_no_leaks(client, server)


async def test_early_response_is_returned_and_sending_stops() -> None:
    head_seen = asyncio.Event()
    produced = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal produced
        while True:
            produced += 1
            yield bytes(65536)

    async def talk(conversation: Conversation) -> None:
        await conversation.request()  # the headers only: there is no Content-Length
        head_seen.set()
        await conversation.send(http_reply(b'{"message": "too large"}', status="413 Too Large"))
        await conversation.wait_disconnected()

    async with RawServer(talk) as server, client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await send(client, endless())
        assert caught.value.status_code == 413
        assert slots_in_use(client) == 0
        assert head_seen.is_set()
        before = produced
        for _ in range(50):
            await asyncio.sleep(0)
        assert produced <= before + 1


async def test_cancelled_call_stops_sending_and_closes_the_source() -> None:
    started, closed = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 1000
            started.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with FriendliServer() as server, client_of(server.url) as client:
        call = asyncio.ensure_future(client.container.audio.transcribe(file=slow()))
        await with_timeout(started.wait())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await with_timeout(closed.wait())
        await assert_no_leaks(client, server)


# --- cost ------------------------------------------------------------------------------------------------------------


async def test_file_is_read_outside_the_event_loop_thread() -> None:
    threads: set[int] = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        assert await send(client, Watched(DATA)) == "ok"
        assert threads
        assert threading.get_ident() not in threads


async def test_memory_is_bounded_for_large_files(tmp_path: Path) -> None:
    path = tmp_path / "large.wav"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 64 * 1024 * 1024)
    received = 0

    async def talk(conversation: Conversation) -> None:
        nonlocal received
        while received < 64 * 1024 * 1024:
            received += len(await conversation._reader.read(65536))
        await conversation.send(http_reply(ANSWER))

    async with RawServer(talk) as server, client_of(server.url) as client:
        await assert_bounded_memory(client, path)
        assert received > 64 * 1024 * 1024


async def assert_bounded_memory(client: AsyncFriendli, path: Path) -> None:
    with assert_peak_memory_below(8 * MIB):
        assert (await with_timeout(client.container.audio.transcribe(file=path), 60)).text == "ok"


@pytest.mark.parametrize("own_session", [True, False])
async def test_first_event_timeout_starts_after_the_last_sent_chunk(
    server: FriendliServer, clock: Clock, own_session: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            clock.advance(30)
            await run_loop_iterations()
            yield b"x"

    stalling = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"x"
        stalling.set()
        await asyncio.Event().wait()

    async with (
        nullcontext() if own_session else aiohttp.ClientSession() as session,
        client_of(server.url, timeout=Timeouts(first_event=100), session=session) as client,
    ):
        server.enqueue(ok())
        assert (await client.container.audio.transcribe(file=chunks())).text == "ok"  # 120 s in total

        sending = asyncio.create_task(client.container.audio.transcribe(file=stalled()))
        await stalling.wait()
        await run_loop_iterations()
        clock.advance(100)
        with pytest.raises(APITimeoutError) as caught:
            await sending
        assert caught.value.limit == "first_event"


async def test_large_json_body_is_sent_without_warning_and_retried() -> None:
    text = "x" * 3_000_000
    async with FriendliServer() as server, client_of(server.url, retry=FAST_RETRY) as client:
        server.enqueue(status(500), json_body({"image": ""}))
        reply = await with_timeout(client.container.image.edit(image={"image": text}, prompt="p"))
        assert reply.meta.attempts[0].status == 500
        assert [len(request.body) > 3_000_000 for request in server.requests] == [True, True]
