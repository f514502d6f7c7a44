"""Assigns the deltas of streamed tool calls to their calls, for libraries that merely concatenate what they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.replies import ChatChunk, ToolCallDelta

__all__ = ["ToolPiece", "ToolPieces"]


class ToolPiece(msgspec.Struct, frozen=True):
    """A delta of one call. ``id`` and ``name`` come once (a name maybe in pieces), even if the server repeats them."""

    index: int
    """Index of the call, in the order in which the calls began."""
    id: str | None
    name: str | None
    arguments: str | None


class ToolPieces:
    """Assigns each delta of choice 0 to its call, as the stream's result does, and drops repeated ids and names."""

    def __init__(self) -> None:
        self._choice = ChatCollector().begin(0, ChatChunk())
        self._seen: list[tuple[str | None, str | None]] = []  # id and name already passed on, by call

    def add(self, deltas: Sequence[ToolCallDelta]) -> list[ToolPiece]:
        """Assigns the deltas of a chunk to their calls."""
        return [self._piece(delta, self._choice.add_call(delta, position)) for position, delta in enumerate(deltas)]

    def _piece(self, delta: ToolCallDelta, call: Any) -> ToolPiece:
        index = self._choice.calls.index(call)
        known_id, known_name = self._seen[index] if index < len(self._seen) else (None, None)
        self._seen[index : index + 1] = [(call.id, call.name)]
        new_id, new_name = None if known_id else call.id or None, (call.name or "")[len(known_name or "") :] or None
        arguments = None if delta.function is None else delta.function.arguments
        return ToolPiece(index, new_id, new_name, arguments)
