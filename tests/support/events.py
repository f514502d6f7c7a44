"""Decoding of single events as the core does it, without a stream."""

from typing import Any

from friendli_async._core.events.decoding import Dialect
from friendli_async.chat import ChatChunk
from friendli_async.chat.collector import ChatCollector
from friendli_async.replies import ReplyHead


def decode_event(data: bytes, name: str | None = None, *, dialect: Dialect[Any] = ChatCollector.dialect) -> Any:
    """Returns what one event is decoded to, by default of a chat: a `Decoded` with a payload of any type."""
    return dialect.decode(name, data, ReplyHead(200))


def decoded(data: bytes) -> ChatChunk | None:
    """Decodes a chat event that is neither an error nor the end; None if it is ignored."""
    payload: ChatChunk | None
    payload, error, is_end, _ = decode_event(data)
    assert error is None
    assert not is_end
    return payload
