"""Steps of scripts that only the tests of the library itself need: floods, split writes, and broken framing."""

from __future__ import annotations

from friendli_async.testing import Step, chunk
from friendli_async.testing.reply import ReplyWriter, _let_client_read
from friendli_async.testing.steps import Payload, _Call


def split(payload: Payload, size: int = 1) -> Step:
    """Writes the bytes of a step in pieces of this size, each in a separate write."""

    async def write(reply: ReplyWriter) -> None:
        data = payload.encode(reply.identity)
        for start in range(0, len(data), size):
            await reply.write(data[start : start + size])

    return _Call(f"split({payload!r}, {size})", write)


def burst(count: int, *, text: str = "token ", events_per_write: int = 100) -> Step:
    """Writes many identical chunks, encoded once."""
    payload = chunk(text)

    async def write(reply: ReplyWriter) -> None:
        one = payload.encode(reply.identity)
        for left in range(count, 0, -events_per_write):
            await reply.write(one * min(left, events_per_write))

    return _Call(f"burst({count})", write)


def endless(data: bytes = b"x" * 65536) -> Step:
    """Writes the same bytes repeatedly until the client disconnects."""

    async def write(reply: ReplyWriter) -> None:
        # Bounded by the connection: once the client has disconnected, a write fails or this task is cancelled.
        while True:
            await reply.write(data)

    return _Call(f"endless({len(data)} bytes)", write)


def garbage(data: bytes = b"zz\r\nno chunk\r\n") -> Step:
    """Writes bytes that bypass the framing of the body, so that they replace the size of a chunk."""

    async def write(reply: ReplyWriter) -> None:
        await reply.send_head()
        reply._transport().write(data)
        await _let_client_read()

    return _Call(f"garbage({data!r})", write)


def close_after() -> Step:
    """Ends the body properly and closes the connection immediately, despite keep-alive headers.

    The client's pool then contains a connection that is about to close. To make its next request fail reliably, instead
    of racing with the close, enqueue ``cut()`` for it.
    """

    async def close(reply: ReplyWriter) -> None:
        await reply.end()
        reply._transport().close()

    return _Call("close_after", close)
