"""Bodies that are read while they are sent: where the bytes come from, how often, what it costs, what goes wrong."""

import asyncio
import io
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.clock import Clock, turns
from support.sockets import QUICK, Conversation, RawServer, client_of, nothing_left, places_in_use, within
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

DATA: Final = bytes(range(256)) * 4096  # 1 MiB, four pieces
ANSWER: Final = b'{"text": "ok"}'


def ok() -> Script:
    return json_body({"text": "ok"})


async def iterated(data: bytes = DATA, size: int = 100_000) -> AsyncIterator[bytes]:
    for position in range(0, len(data), size):
        yield data[position : position + size]


async def send(client: AsyncFriendli, file: Any, **options: Any) -> str:
    return (await within(client.container.audio.transcribe(file=file, **options))).text


def sent(server: FriendliServer, index: int = -1) -> bytes:
    return server.requests[index].form[-1].data


class Pipe(io.RawIOBase):
    """A file that cannot be rewound."""

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


async def test_path_is_sent_whole_with_its_name_type_and_length(path: Path) -> None:
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
async def test_bytes_of_every_kind_are_sent_as_they_were_when_the_call_was_made(kind: Any) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(script(event({"type": "transcript.text.done", "text": "ok"})))
        mine = bytearray(b"OggS" + DATA)
        stream = client.container.audio.stream(file=kind(mine))
        mine[:] = b"0" * len(mine)
        assert (await within(stream.result())).text == "ok"
        assert sent(server) == b"OggS" + DATA
        assert server.requests[0].form[-1].filename == "audio.ogg"


async def test_open_file_is_sent_from_where_it_stands_and_left_open(path: Path) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        with path.open("rb") as file:
            file.seek(300_000)
            assert await send(client, file) == "ok"
            assert not file.closed
        assert sent(server) == DATA[300_000:]
        assert server.requests[0].form[-1].filename == "speech.mp3"
        assert "Content-Length" in server.requests[0].headers


@pytest.mark.parametrize("source", [iterated, lambda: Pipe(DATA)], ids=["iterator", "pipe"])
async def test_source_of_unknown_length_is_sent_in_chunks(source: Any) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        assert await send(client, source(), filename="a.wav") == "ok"
        assert sent(server) == DATA
        assert server.requests[0].headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in server.requests[0].headers


async def test_empty_file_is_a_file() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        assert await send(client, io.BytesIO()) == "ok"
        assert sent(server) == b""


async def test_name_that_would_end_its_line_or_quotes_is_escaped() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok())
        await send(client, b"x", filename='a"; name="model"\r\nX-Evil: 1\r\n\r\n.wav')
        [part] = server.requests[0].form
        assert part.filename == "a%22; name=%22model%22%0D%0AX-Evil: 1%0D%0A%0D%0A.wav"
        assert part.data == b"x"


async def test_content_that_looks_like_a_form_stays_content() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok(), ok())
        await send(client, b"x")
        inner = server.requests[0].body
        await send(client, inner)
        assert sent(server) == inner


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("speech.mp3", r"pathlib\.Path"),
        (5, "file: Expected bytes"),
        (None, "file: Expected bytes"),
        (io.StringIO("x"), "binary mode"),
    ],
    ids=["str", "int", "none", "text file"],
)
async def test_what_is_no_file_is_refused_before_anything_is_sent(file: Any, message: str) -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match=message):
            await send(client, file)
        with pytest.raises(ValueError, match=message):
            client.container.audio.stream(file=file)
        assert server.connections == 0


@pytest.mark.parametrize("content_type", ["audio/wav\r\nX-Evil: 1", "söund/wav"])
async def test_content_type_that_cannot_be_sent_is_refused(content_type: str) -> None:
    async with client_of("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match="content_type"):
            await send(client, b"x", content_type=content_type)


# --- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "path", "open file"])
async def test_source_that_can_be_read_again_is_sent_again_whole(path: Path, kind: str) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=QUICK) as client:
        server.enqueue(status(503), script(reset()), ok())
        with path.open("rb") as file:
            assert await send(client, {"bytes": DATA, "path": path, "open file": file}[kind]) == "ok"
        assert [sent(server, index) == DATA for index in range(3)] == [True] * 3


@pytest.mark.parametrize("source", [iterated, lambda: Pipe(DATA)], ids=["iterator", "pipe"])
async def test_source_that_can_be_read_once_is_sent_once(source: Any) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=QUICK) as client:
        server.enqueue(status(429), ok())
        with pytest.raises(RateLimitError) as caught:
            await send(client, source())
        assert len(server.requests) == 1
        assert caught.value.meta is not None
        assert len(caught.value.meta.attempts) == 1


async def test_source_that_can_be_read_once_survives_a_failure_to_connect() -> None:
    async with FriendliServer() as server:
        free = server.url
    waits: list[str | None] = []
    policy = RetryPolicy(max_attempts=3, initial=0.0, on_retry=lambda attempt: waits.append(attempt.cause))
    async with client_of(free, retry=policy) as client:
        with pytest.raises(APIConnectionError) as caught:
            await send(client, iterated())
    assert not caught.value.sent
    assert len(waits) == 2


async def test_redirect_sends_the_form_again_unless_it_is_gone() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(status(307, headers={"Location": "/elsewhere"}), ok())
        assert await send(client, DATA) == "ok"
        assert server.requests[1].path == "/elsewhere"
        assert sent(server) == DATA
        server.enqueue(status(307, headers={"Location": "/elsewhere"}))
        with pytest.raises(APIStatusError) as caught:
            await send(client, iterated())
        assert caught.value.status_code == 307


async def test_dead_pooled_connection_is_replaced_for_what_can_be_sent_again() -> None:
    async with FriendliServer() as server, client_of(server.url) as client:
        server.enqueue(ok(), script(reset()), ok())
        assert await send(client, b"1") == "ok"
        assert await send(client, DATA) == "ok"
        assert sent(server) == DATA
        assert len(server.requests) == 3


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_missing_file_is_its_own_error_and_nothing_is_sent(tmp_path: Path) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=QUICK) as client:
        with pytest.raises(FileNotFoundError):
            await send(client, tmp_path / "no.wav")
        stream = client.container.audio.stream(file=tmp_path / "no.wav")
        with pytest.raises(FileNotFoundError):
            await within(stream.result())
        assert stream.outcome == "failed"
        assert server.connections == 0
        with pytest.raises(ValueError, match="not a regular file"):
            await send(client, tmp_path)


async def failing(error: Exception) -> AsyncIterator[bytes]:
    yield DATA
    raise error


@pytest.mark.parametrize(
    "error", [ValueError("mine"), OSError(5, "mine"), RuntimeError("mine"), TimeoutError("mine")], ids=repr
)
async def test_error_of_a_source_is_raised_as_it_is_and_leaves_nothing(error: Exception) -> None:
    async with FriendliServer() as server, client_of(server.url, retry=QUICK) as client:
        with pytest.raises(type(error)) as caught:
            await send(client, failing(error))
        assert caught.value is error
        await nothing_left(client, server)
        server.enqueue(ok())
        assert await send(client, b"x") == "ok"


async def test_iterator_of_something_else_than_bytes_is_an_error() -> None:
    async def texts() -> AsyncIterator[Any]:
        yield "text"

    async with FriendliServer() as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match="gave str, not bytes"):
            await send(client, texts())
        await nothing_left(client, server)


async def test_file_that_changes_between_attempts_is_an_error_not_a_mixture(path: Path) -> None:
    def change(_: object) -> None:
        path.write_bytes(DATA[::-1] + b"more")

    async with FriendliServer() as server:
        policy = RetryPolicy(initial=0.0, on_retry=change)
        async with client_of(server.url, retry=policy) as client:
            server.enqueue(status(503), ok())
            with pytest.raises(ValueError, match="has changed"):
                await send(client, path)
            assert len(server.requests) == 1


async def test_open_file_that_becomes_shorter_is_an_error(path: Path) -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) if self.tell() < 500_000 else b""

    async with FriendliServer() as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match="shorter"):
            await send(client, Shrinking(DATA))
        await nothing_left(client, server)


async def test_answer_that_comes_before_the_whole_body_counts_and_the_sending_stops() -> None:
    head_seen = asyncio.Event()
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(65536)

    async def talk(conversation: Conversation) -> None:
        await conversation.request()  # the head only: there is no length
        head_seen.set()
        await conversation.send(http_reply(b'{"message": "too large"}', status="413 Too Large"))
        await conversation.gone()

    async with RawServer(talk) as server, client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await send(client, endless())
        assert caught.value.status_code == 413
        assert places_in_use(client) == 0
        assert head_seen.is_set()
        before = taken
        for _ in range(50):
            await asyncio.sleep(0)
        assert taken <= before + 1


async def test_cancelled_call_stops_the_sending_and_closes_the_source() -> None:
    begun, closed = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 1000
            begun.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with FriendliServer() as server, client_of(server.url) as client:
        call = asyncio.ensure_future(client.container.audio.transcribe(file=slow()))
        await within(begun.wait())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await within(closed.wait())
        await nothing_left(client, server)


# --- cost ------------------------------------------------------------------------------------------------------------


async def test_file_is_read_outside_of_the_loops_thread() -> None:
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


async def test_memory_stays_bounded_however_large_the_file_is(tmp_path: Path) -> None:
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
        await send_nothing_large(client, path)
        assert received > 64 * 1024 * 1024


async def send_nothing_large(client: AsyncFriendli, path: Path) -> None:
    tracemalloc.start()
    try:
        assert (await within(client.container.audio.transcribe(file=path), 60)).text == "ok"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


async def test_wait_for_the_reply_is_counted_from_the_last_piece_sent(server: FriendliServer, clock: Clock) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            clock.leap(30)
            await turns()
            yield b"x"

    stalling = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"x"
        stalling.set()
        await asyncio.Event().wait()

    async with client_of(server.url, timeout=Timeouts(first_event=100)) as client:
        server.enqueue(ok())
        assert (await client.container.audio.transcribe(file=pieces())).text == "ok"  # 120 s in all

        sending = asyncio.create_task(client.container.audio.transcribe(file=stalled()))
        await stalling.wait()
        await turns()
        clock.leap(100)
        with pytest.raises(APITimeoutError) as caught:
            await sending
        assert caught.value.limit == "first_event"


async def test_large_json_body_is_sent_without_a_warning_and_again_after_a_failure() -> None:
    text = "x" * 3_000_000
    async with FriendliServer() as server, client_of(server.url, retry=QUICK) as client:
        server.enqueue(status(500), json_body({"image": ""}))
        reply = await within(client.container.image.edit(image={"image": text}, prompt="p"))
        assert reply.meta.attempts[0].status == 500
        assert [len(request.body) > 3_000_000 for request in server.requests] == [True, True]
