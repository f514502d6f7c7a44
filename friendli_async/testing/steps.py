"""The steps of a scripted reply: what it writes, when, and how it ends or breaks.

The status line and the headers go out just before the first step that writes, so whatever stands in front of that step
happens before any byte of the reply. Every write is followed by two turns of the event loop: a client in the same loop
reads each piece on its own.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from friendli_async.testing.frames import DONE, Identity, sse_event, to_json, token_counts
from friendli_async.testing.reply import ReplyWriter

__all__ = [
    "Payload",
    "Step",
    "burst",
    "chunk",
    "close_after",
    "comment",
    "cut",
    "delay",
    "done",
    "drop",
    "end",
    "endless",
    "error_data",
    "error_event",
    "event",
    "finish",
    "garbage",
    "gate",
    "head",
    "raw",
    "reset",
    "slow_headers",
    "split",
    "stall",
    "tool_status",
    "usage",
]

_POLL: Final = 0.005  # seconds between two looks at an event of threading


class Step(ABC):
    """One thing that a scripted reply does. The functions of this module make them."""

    @abstractmethod
    async def play(self, reply: ReplyWriter) -> None:
        """Do it.

        Args:
            reply: The reply on its way out.
        """


class Payload(Step):
    """A step that writes bytes of the body."""

    @abstractmethod
    def encode(self, identity: Identity) -> bytes:
        """Give the bytes.

        Args:
            identity: What the chunks of this reply share.
        """

    async def play(self, reply: ReplyWriter) -> None:
        """Write the bytes in one write.

        Args:
            reply: The reply on its way out.
        """
        await reply.write(self.encode(reply.identity))


# --- steps that write ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Raw(Payload):
    data: bytes

    def encode(self, identity: Identity) -> bytes:
        return self.data


@dataclass(frozen=True)
class _Chunk(Payload):
    choices: bytes
    usage: bytes = b"null"

    def encode(self, identity: Identity) -> bytes:
        return identity.chunk(self.choices, self.usage)


def raw(data: bytes) -> Payload:
    """Write these bytes of the body in one write.

    Args:
        data: The exact bytes.
    """
    return _Raw(data)


def chunk(
    text: str | None = None,
    *,
    role: str | None = None,
    reasoning: str | None = None,
    tool_calls: Sequence[Mapping[str, object]] | None = None,
    finish_reason: str | None = None,
    logprobs: Mapping[str, object] | None = None,
    index: int = 0,
) -> Payload:
    """Write one `chat.completion.chunk` with one choice.

    Args:
        text: The `content` of the delta.
        role: The `role` of the delta.
        reasoning: The `reasoning_content` of the delta.
        tool_calls: The `tool_calls` of the delta.
        finish_reason: Why the choice ended.
        logprobs: The log probabilities of the choice.
        index: Index of the choice.
    """
    given = {"role": role, "content": text, "reasoning_content": reasoning, "tool_calls": tool_calls}
    delta = {name: value for name, value in given.items() if value is not None}
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    return _Chunk(to_json([choice]))


def finish(reason: str | None = "stop", *, index: int = 0) -> Payload:
    """Write the last chunk of a choice: an empty delta with a finish reason.

    Args:
        reason: Why the choice ended. Some servers send the string `"null"` where they mean none.
        index: Index of the choice.
    """
    return chunk(finish_reason=reason, index=index)


def usage(prompt: int, completion: int) -> Payload:
    """Write the chunk that has no choices but the token counts.

    Args:
        prompt: Tokens of the request.
        completion: Tokens of the reply.
    """
    return _Chunk(b"[]", to_json(token_counts(prompt, completion)))


def done() -> Payload:
    """Write the sentinel that ends a stream of events, `data: [DONE]`."""
    return _Raw(DONE)


def comment(text: str = "ping") -> Payload:
    """Write a comment, as servers do to keep a connection alive.

    Args:
        text: One line.
    """
    return _Raw(b": " + text.encode() + b"\n\n")


def event(data: object, *, name: str | None = None) -> Payload:
    """Write one server-sent event.

    Args:
        data: Text as it is (its lines become `data:` lines), anything else as JSON.
        name: The `event:` line; without one there is no such line.
    """
    return _Raw(sse_event(data.encode() if isinstance(data, str) else to_json(data), name))


def error_event(error: object) -> Payload:
    """Write an error as `event: error` with the data given.

    Args:
        error: The data, JSON or text.
    """
    return event(error, name="error")


def error_data(error: object) -> Payload:
    """Write an error as an unnamed event whose data is `{"error": ...}`.

    Args:
        error: What stands under the key: an object with `message`, `type` and `code`, or text.
    """
    return event({"error": error})


def tool_status(
    status: str,
    *,
    name: str = "math:calculator",
    tool_call_id: str = "call_1",
    parameters: Mapping[str, str] | None = None,
    result: str | None = None,
    files: Iterable[Mapping[str, str]] | None = None,
    message: str | None = None,
    error: Mapping[str, str] | None = None,
    timestamp: float = 1_700_000_000,
) -> Payload:
    """Write a `tool_status` event of tool-assisted chat.

    Args:
        status: `STARTED`, `UPDATING`, `ENDED` or `ERRORED`.
        name: The built-in tool.
        tool_call_id: Id of the call, the same in all its events.
        parameters: What the tool was called with.
        result: Its result. The API sends the string `"None"` with `STARTED`, JSON text twice encoded with `ENDED`.
        files: The files it made, each with `name` and `url`.
        message: What it is doing.
        error: Why it failed: `type` and `msg`.
        timestamp: Unix time in seconds.
    """
    data = {
        "tool_call_id": tool_call_id,
        "name": name,
        "status": status,
        "parameters": [{"name": key, "value": value} for key, value in (parameters or {}).items()],
        "result": result,
        "files": None if files is None else list(files),
        "message": message,
        "error": error,
        "usage": None,
        "timestamp": timestamp,
    }
    return event(data, name="tool_status")


@dataclass(frozen=True)
class _Split(Step):
    payload: Payload
    size: int

    async def play(self, reply: ReplyWriter) -> None:
        data = self.payload.encode(reply.identity)
        for start in range(0, len(data), self.size):
            await reply.write(data[start : start + self.size])


def split(payload: Payload, size: int = 1) -> Step:
    """Write the bytes of a step in small pieces, each in a write of its own.

    Args:
        payload: A step that writes.
        size: Bytes of each piece.

    Raises:
        ValueError: The size is not positive.
    """
    return _Split(payload, _positive(size, "size"))


@dataclass(frozen=True)
class _Burst(Step):
    count: int
    choices: bytes
    events_per_write: int

    async def play(self, reply: ReplyWriter) -> None:
        one = reply.identity.chunk(self.choices)
        for left in range(self.count, 0, -self.events_per_write):
            await reply.write(one * min(left, self.events_per_write))


def burst(count: int, *, text: str = "token ", events_per_write: int = 100) -> Step:
    """Write many equal chunks, encoded once.

    Args:
        count: Number of chunks.
        text: The text of each.
        events_per_write: Chunks in one write.

    Raises:
        ValueError: `events_per_write` is not positive.
    """
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None, "logprobs": None}
    return _Burst(count, to_json([delta]), _positive(events_per_write, "events_per_write"))


@dataclass(frozen=True)
class _Endless(Step):
    data: bytes

    async def play(self, reply: ReplyWriter) -> None:
        # Bounded by the connection: a write fails, or this task is cancelled, once the client has gone.
        while True:
            await reply.write(self.data)


def endless(data: bytes = b"x" * 65536) -> Step:
    """Write the same bytes again and again until the client goes away.

    Args:
        data: The bytes of one write.

    Raises:
        ValueError: There are none.
    """
    _positive(len(data), "length of data")
    return _Endless(data)


def _positive(number: int, name: str) -> int:
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number


# --- steps in time ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Delay(Step):
    seconds: float

    async def play(self, reply: ReplyWriter) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class _Gate(Step):
    event: asyncio.Event | threading.Event
    loop: asyncio.AbstractEventLoop | None
    """Where the test runs, if that is in a loop."""

    async def play(self, reply: ReplyWriter) -> None:
        if isinstance(self.event, threading.Event):
            while not self.event.is_set():  # noqa: ASYNC110 -- a thread that waits for it could not be cancelled
                await asyncio.sleep(_POLL)
        elif self.loop is None or self.loop is asyncio.get_running_loop():
            await self.event.wait()
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.event.wait(), self.loop))


@dataclass(frozen=True)
class _Call(Step):
    """A step that is one method of the reply."""

    method: Callable[[ReplyWriter], Any]
    name: str

    async def play(self, reply: ReplyWriter) -> None:
        await self.method(reply)


@dataclass(frozen=True)
class _SlowHeaders(Step):
    seconds: float

    async def play(self, reply: ReplyWriter) -> None:
        await asyncio.sleep(self.seconds)
        await reply.send_head()


def delay(seconds: float) -> Step:
    """Pause.

    Args:
        seconds: How long.
    """
    return _Delay(seconds)


def gate(event: asyncio.Event | threading.Event) -> Step:
    """Wait until a test sets an event: order without sleeping.

    Args:
        event: What the test sets: an event of asyncio if the test is a coroutine, one of threading if it is not.
    """
    return _Gate(event, _running_loop())


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def stall() -> Step:
    """Be silent until the client goes away."""
    return _Call(ReplyWriter.silence, "stall")


def head() -> Step:
    """Send the status line and the headers now, before the first byte of the body."""
    return _Call(ReplyWriter.send_head, "head")


def slow_headers(seconds: float) -> Step:
    """Hold back the status line and the headers.

    Args:
        seconds: How long.
    """
    return _SlowHeaders(seconds)


# --- steps that end or break the reply -------------------------------------------------------------------------------


def end() -> Step:
    """End the body properly here; without a finish reason and sentinel before it, a reply cut short in good form."""
    return _Call(ReplyWriter.end, "end")


def close_after() -> Step:
    """End the body properly and close the connection at once, although the headers promised to keep it.

    The client's pool then holds a connection that is about to die. To make its next request fail for sure, rather
    than race with the close, enqueue `drop()` for it instead.
    """
    return _Call(ReplyWriter.end_and_close, "close_after")


def cut() -> Step:
    """Close the connection in the middle: FIN, with the body not ended."""
    return _Call(ReplyWriter.cut, "cut")


def drop() -> Step:
    """Close the connection without a byte of a reply, as a server does to a connection that was idle too long."""
    return _Call(ReplyWriter.cut, "drop")


def reset() -> Step:
    """Break the connection with a TCP reset, once the kernel has what was written.

    As with every reset, what the client has not read by then may be lost; pieces that fit its buffers are not.
    """
    return _Call(ReplyWriter.reset, "reset")


@dataclass(frozen=True)
class _Garbage(Step):
    data: bytes

    async def play(self, reply: ReplyWriter) -> None:
        await reply.write_unframed(self.data)


def garbage(data: bytes = b"zz\r\nno chunk\r\n") -> Step:
    """Write bytes past the body's framing, so that they stand where the size of a chunk belongs.

    Args:
        data: What the socket gets.
    """
    return _Garbage(data)
