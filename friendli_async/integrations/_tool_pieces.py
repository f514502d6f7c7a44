"""Pieces of streamed tool calls, told apart, for libraries that only add them up."""

from __future__ import annotations

import msgspec

from friendli_async.chat.replies import ToolCallDelta

__all__ = ["ToolPiece", "ToolPieces"]


class ToolPiece(msgspec.Struct, frozen=True):
    """What a chunk adds to one call: ``id`` and ``name`` come once, however often the server repeats them."""

    index: int
    """Which call, counted from 0 in the order in which they began."""
    id: str | None
    name: str | None
    arguments: str | None


class ToolPieces:
    """Says of each piece of choice 0 which call it belongs to, as the stream's own result does.

    By its index, where the server gives one; a piece with another name and another id begins another call, since
    servers reuse indexes. Else by its id, and without one it belongs to the last call.
    """

    def __init__(self) -> None:
        self._ids: list[str | None] = []
        self._names: list[str | None] = []
        self._by_key: dict[int | str, int] = {}

    def add(self, delta: ToolCallDelta) -> ToolPiece:
        """Places a piece."""
        name = delta.function.name if delta.function is not None else None
        arguments = delta.function.arguments if delta.function is not None else None
        key = delta.index if delta.index is not None else delta.id
        index = len(self._ids) - 1 if key is None else self._by_key.get(key, -1)
        begun = self._ids[index] if index >= 0 else None
        if index < 0 or (delta.index is not None and name and delta.id and begun and delta.id != begun):
            index = len(self._ids)
            self._ids.append(None)
            self._names.append(None)
            if key is not None:
                self._by_key[key] = index
        new_id = delta.id if delta.id and not self._ids[index] else None
        new_name = name if name and not self._names[index] else None
        self._ids[index] = self._ids[index] or new_id
        self._names[index] = self._names[index] or new_name
        return ToolPiece(index, new_id, new_name, arguments)
