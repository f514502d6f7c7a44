"""Events of a stream, decoded as the machine does it, without a stream."""

from typing import Any

from friendli_async._core.events.decoding import Decoded, Dialect
from friendli_async.chat import ChatChunk, ChatCollector
from friendli_async.replies import Headers


def decode_event(
    data: bytes, name: str | None = None, *, dialect: Dialect[Any] = ChatCollector.dialect, status: int = 200
) -> Decoded[Any]:
    """What one event turns out to be; of a chat, unless told otherwise."""
    return dialect.decode(name, data, status, Headers())


def decoded(data: bytes) -> ChatChunk | None:
    """The chunk that an event of a chat is; None where it says nothing. It is no error, and not the end."""
    payload, error, is_end = decode_event(data)
    assert error is None
    assert not is_end
    return payload
