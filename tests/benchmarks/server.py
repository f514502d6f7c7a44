"""One loopback HTTP server for every benchmark: `python -m tests.benchmarks.server` prints its port.

It runs in a separate process and sends pre-encoded bytes, so that the measured process contains only a client. The
first segment of the path selects the reply; the rest, which clients append to their base URL, is ignored:

    /bulk-N/...       N events, as many as fit into each write of 64 KiB
    /paced-N/...      N events, one per write, each 1 ms after the previous one: one event per read
    /step-N/...       N events, one per write, each triggered by `GET /next/`: many streams in lockstep
    /many/...         one event; after `GET /go/` 20 per second, one per write, until the client disconnects
    /plain/...        a JSON reply
    /event-B/...      a stream whose first event has B bytes of text
    /endless-event/   an event that never ends          (stopped at 128 MiB)
    /endless-error/   a status 500 whose body never ends (stopped at 128 MiB)
    /bomb/            a JSON reply of 128 MiB, compressed to 128 KiB
"""

import asyncio
import functools
import gzip
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from . import wire

_WRITE: Final = 64 * 1024
_PACE: Final = 0.001
_PERIOD: Final = 1 / 20
_MIB: Final = 1024 * 1024
_ENDLESS: Final = 128 * _MIB
"""Bytes after which an endless body stops: a client without limits must not exhaust the machine's memory."""

_ID: Final = b"X-Request-Id: 0b9f3c52-6d0e-4f0a-9a39-51d6b8a2f6b1\r\n"
"""Servers send one, and observers are told of it."""
_STREAM: Final = _ID + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"


@functools.cache
def _bulk_writes(events: int) -> tuple[bytes, ...]:
    writes: list[bytes] = []
    size = _WRITE
    for frame in wire.chat_frames(events):
        if size + len(frame) > _WRITE:
            writes.append(b"")
            size = 0
        writes[-1] += frame
        size += len(frame)
    return tuple(writes)


_frames = functools.cache(wire.chat_frames)


@functools.cache
def _plain() -> bytes:
    body = wire.plain_reply()
    head = b"HTTP/1.1 200 OK\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (_ID, len(body)) + body


@functools.cache
def _bomb() -> bytes:
    body = gzip.compress(b'{"id":"' + b"A" * _ENDLESS + b'"}', compresslevel=6)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Crowd:
    """Many streams paced together by a thread that bypasses asyncio, which sustains 40,000 events/s."""

    def __init__(self) -> None:
        """Start without streams."""
        self._joined: list[int] = []
        event = wire.timed_event()
        self._event = b"%x\r\n%b\r\n" % (len(event % (0, 0)), event)

    def join(self, writer: asyncio.StreamWriter) -> None:
        """Add a stream whose head and first event are sent; its socket stays open until a write fails."""
        self._joined.append(os.dup(writer.get_extra_info("socket").fileno()))

    def go(self) -> None:
        """Start pacing all streams that have joined."""
        threading.Thread(target=self._pace, args=(self._joined,), daemon=True).start()
        self._joined = []

    def _pace(self, files: list[int]) -> None:
        """Write one event per period to each file, evenly spread over the period, until all are closed."""
        start = time.monotonic() + _PERIOD
        wheel = deque((start + number * _PERIOD / len(files), file) for number, file in enumerate(files))
        while wheel:
            due, file = wheel.popleft()
            now = time.monotonic()
            if now < due:
                time.sleep(due - now)
                now = time.monotonic()
            try:
                os.write(file, self._event % (now, due))
            except OSError:  # the client has disconnected
                os.close(file)
            else:
                wheel.append((due + _PERIOD, file))


class Steps:
    """Lockstep for many streams: all wait for the same next round."""

    def __init__(self) -> None:
        """Start without a round."""
        self._round = asyncio.Event()

    def next(self) -> None:
        """Let every stream send one event."""
        self._round.set()
        self._round = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the start of the next round."""
        await self._round.wait()


async def _body(mode: str, size: int, steps: Steps) -> AsyncIterator[bytes]:
    if mode == "bulk":
        for write in _bulk_writes(size):
            yield write
    elif mode == "paced":
        for frame in _frames(size):
            yield frame
            await asyncio.sleep(_PACE)
    elif mode == "step":
        frames = _frames(size)
        for frame in frames[:-1]:
            yield frame
            if frame is not frames[-2]:
                await steps.wait()
        yield frames[-1]
    elif mode == "event":
        yield wire.token_frame("x" * size)
        yield wire.token_frame("", "stop") + wire.DONE
    else:
        yield b'data: {"id":"'
        for _ in range(_ENDLESS // _WRITE):
            yield b"x" * _WRITE


async def _reply(writer: asyncio.StreamWriter, segment: str, steps: Steps, crowd: Crowd) -> None:
    mode, _, number = segment.rpartition("-")
    if segment == "plain":
        writer.write(_plain())
    elif segment == "bomb":
        writer.write(_bomb())
    elif segment == "next":
        steps.next()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    elif segment == "go":
        crowd.go()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    elif segment == "many":
        writer.write(b"HTTP/1.1 200 OK\r\n" + _STREAM + b"\r\n" + _chunk(wire.token_frame("")))
        await writer.drain()
        crowd.join(writer)
    else:
        status = b"500 Internal Server Error" if segment == "endless-error" else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\r\n" + _STREAM + b"\r\n")
        async for data in _body(mode, int(number) if number.isdigit() else 0, steps):
            writer.write(_chunk(data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, steps: Steps, crowd: Crowd) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            _, target, *_ = head.split(" ", 2)
            length = next((line[15:] for line in head.lower().splitlines() if line.startswith("content-length:")), "0")
            await reader.readexactly(int(length))
            await _reply(writer, target.split("/")[1], steps, crowd)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has disconnected, as every client eventually does
    finally:
        writer.close()


async def _main() -> None:
    steps, crowd = Steps(), Crowd()
    server = await asyncio.start_server(lambda r, w: _serve(r, w, steps, crowd), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the parent process exits
    server.close()


if __name__ == "__main__":
    asyncio.run(_main())
