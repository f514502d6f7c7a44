"""Pieces of streamed tool calls, told apart, for libraries that only add them up."""

from __future__ import annotations

import msgspec

from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.replies import ChatChunk, ToolCallDelta

__all__ = ["ToolPiece", "ToolPieces"]


class ToolPiece(msgspec.Struct, frozen=True):
    """What a chunk adds to one call: ``id`` and ``name`` come once, however often the server repeats them."""

    index: int
    """Which call, counted from 0 in the order in which they began."""
    id: str | None
    name: str | None
    arguments: str | None


class ToolPieces:
    """Says of each piece of choice 0 which call it belongs to, and what is new in it, as the stream's result has it."""

    def __init__(self) -> None:
        self._choice = ChatCollector().begin(0, ChatChunk())
        self._told: list[tuple[str | None, str | None]] = []  # of each call, id and name

    def add(self, delta: ToolCallDelta) -> ToolPiece:
        """Places a piece."""
        call = self._choice.add_call(delta)
        index = (self._choice.calls or []).index(call)
        known_id, known_name = self._told[index] if index < len(self._told) else (None, None)
        self._told[index : index + 1] = [(call.id, call.name)]
        new_id, new_name = None if known_id else call.id or None, None if known_name else call.name or None
        arguments = None if delta.function is None else delta.function.arguments
        return ToolPiece(index, new_id, new_name, arguments)
