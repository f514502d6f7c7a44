"""A stream's text, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from friendli_async._core.events.stream import EventStream

__all__ = ["TextView"]


class TextView:
    """The text of a stream, piece by piece. A view: it reads the stream's events, and stopping it stops the stream."""

    def __init__(self, stream: EventStream[Any], pick: Callable[[Any], str]) -> None:
        self._stream = stream
        self._pick = pick
        self._held = ""  # half of a character that two tokens share

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while True:
            try:
                text = self._pick(await self._stream.__anext__())
            except StopAsyncIteration:
                if not self._held:
                    raise
                text, self._held = self._held, ""
                return text
            if not text:
                continue
            if self._held or "\ud800" <= text[-1] <= "\udbff":
                text = self._whole(text)
            if text:
                return text

    def _whole(self, text: str) -> str:
        text = (self._held + text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        self._held = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return text.removesuffix(self._held)

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Closes the stream."""
        await self._stream.aclose()
