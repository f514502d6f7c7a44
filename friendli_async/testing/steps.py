"""The steps of a scripted reply: what it writes, when, and how it ends or breaks."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import msgspec

from friendli_async._json import encode_json
from friendli_async.testing.arguments import check_type, describe
from friendli_async.testing.frames import DONE, Identity, sse_event, token_counts
from friendli_async.testing.reply import ReplyWriter

__all__ = ["Step", "chunk", "comment", "cut", "delay", "done", "event", "finish", "gate", "head", "raw", "reset"]
__all__ += ["stall", "tool_status", "usage"]

_POLL: Final = 0.005  # seconds between two checks of an event of another thread


class Step(ABC):
    """One step of a scripted reply. Created by the functions of this module."""

    @abstractmethod
    async def play(self, reply: ReplyWriter) -> None:
        """Play the step.

        Args:
            reply: The reply to write to.
        """


class Payload(Step):
    """A step that writes bytes of the body."""

    @abstractmethod
    def encode(self, identity: Identity) -> bytes:
        """Return the bytes.

        Args:
            identity: The fields that all chunks of this reply share.
        """

    async def play(self, reply: ReplyWriter) -> None:
        """Write the bytes in one write.

        Args:
            reply: The reply to write to.
        """
        await reply.write(self.encode(reply.identity))


@dataclass(frozen=True)
class _Call(Step):
    """A step that calls a function with the reply."""

    name: str
    """The step in repr(), and in comparisons."""
    function: Callable[[ReplyWriter], Awaitable[object]] = field(repr=False, compare=False)

    async def play(self, reply: ReplyWriter) -> None:
        await self.function(reply)


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
        choices, usage = msgspec.Raw(self.choices), msgspec.Raw(self.usage)
        return b"data: %b\n\n" % encode_json(identity.completion("chat.completion.chunk", choices, usage))


def raw(data: bytes) -> Payload:
    """Write bytes of the body in one write.

    Args:
        data: The exact bytes.
    """
    check_type(data, bytes, "the data of raw()", "bytes")
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
    values = {"role": role, "content": text, "reasoning_content": reasoning, "tool_calls": tool_calls}
    delta = {name: value for name, value in values.items() if value is not None}
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    return _Chunk(encode_json([choice]))


def finish(reason: str | None = "stop", *, index: int = 0) -> Payload:
    """Write the last chunk of a choice: an empty delta with a finish reason.

    Args:
        reason: Why the choice ended. Some servers send the string `"null"` instead of null.
        index: Index of the choice.
    """
    return chunk(finish_reason=reason, index=index)


def usage(prompt: int, completion: int) -> Payload:
    """Write the chunk with the token counts, which has no choices.

    Args:
        prompt: Tokens of the request.
        completion: Tokens of the reply.
    """
    return _Chunk(b"[]", encode_json(token_counts(prompt, completion)))


def done() -> Payload:
    """Write the sentinel that ends an event stream, `data: [DONE]`."""
    return _Raw(DONE)


def comment(text: str = "ping") -> Payload:
    """Write a comment, as servers do for keep-alive.

    Args:
        text: One line.
    """
    return _Raw(b": " + text.encode() + b"\n\n")


def event(data: object, *, name: str | None = None) -> Payload:
    """Write one server-sent event.

    Args:
        data: Text unchanged (each line becomes a `data:` line), anything else as JSON. An error in the stream is
            `{"error": {"message": ..., "code": ...}}`.
        name: The `event:` field; omitted if `None`.
    """
    if isinstance(data, bytes | Step):
        raise TypeError(f"the data of an event must be text or a JSON value, not {describe(data)}; raw() writes bytes")
    return _Raw(sse_event(data.encode() if isinstance(data, str) else encode_json(data), name))


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
        tool_call_id: ID of the call, the same in all its events.
        parameters: The parameters of the call.
        result: Its result. The API sends the string `"None"` with `STARTED`, JSON encoded twice with `ENDED`.
        files: The files it created, each with `name` and `url`.
        message: Its progress message.
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


# --- steps that wait -------------------------------------------------------------------------------------------------


def delay(seconds: float) -> Step:
    """Pause.

    Args:
        seconds: How long.
    """
    return _Call(f"delay({seconds})", lambda _: asyncio.sleep(seconds))


def gate(event: asyncio.Event | threading.Event) -> Step:
    """Wait until a test sets an event: synchronization without sleeping.

    Args:
        event: The event: of asyncio if the test is a coroutine, of threading if it is not, or if another thread sets
            it. Unless it is one of asyncio in the server's own loop, it must stay set: it is looked at every few
            milliseconds.
    """
    loop: asyncio.AbstractEventLoop | None = None
    with suppress(RuntimeError):  # the test is no coroutine
        loop = asyncio.get_running_loop()

    async def wait(_: ReplyWriter) -> None:
        if isinstance(event, asyncio.Event) and loop is asyncio.get_running_loop():
            await event.wait()  # it may be cleared again at once
            return
        while not event.is_set():  # noqa: ASYNC110 -- set in another thread, it would wake no task here
            await asyncio.sleep(_POLL)

    return _Call(f"gate({event!r})", wait)


def stall() -> Step:
    """Send nothing until the client disconnects."""
    return _Call("stall", ReplyWriter.silence)


def head() -> Step:
    """Send the status line and the headers now, before the first byte of the body."""
    return _Call("head", ReplyWriter.send_head)


# --- steps that end or break the reply -------------------------------------------------------------------------------


def cut() -> Step:
    """Close the connection (FIN) without ending the body; as the first step, without any reply."""
    return _Call("cut", ReplyWriter.cut)


def reset() -> Step:
    """Break the connection with a TCP reset, once the kernel has all bytes written.

    As with every reset, bytes that the client has not read by then may be lost, unless they fit its buffers.
    """
    return _Call("reset", ReplyWriter.reset)
