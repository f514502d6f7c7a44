"""Streams whose events add up to a reply, and the views of their text."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from friendli_async._core.stream import EventStream
from friendli_async.replies import attach_meta

__all__ = ["AssembledStream", "TextView"]

E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")
R_co = TypeVar("R_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)


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


class Assembler(Protocol[R_co, U_co]):
    """What a Collector of such a stream has besides."""

    @property
    def usage(self) -> U_co | None: ...
    def result(self) -> R_co: ...


class AssembledStream(EventStream[E], Generic[E, R, U]):
    """A stream whose events add up to a reply, with a usage."""

    _result: R | None = None

    @property
    def usage(self) -> U | None:
        """The usage, once the server has told it (with the last events)."""
        assembler = self._assembler
        return assembler.usage if assembler is not None else None

    async def result(self) -> R:
        """Reads what is left and returns the whole reply, with ``meta``.

        Raises:
            FriendliError: The stream did not end well, or was closed early; ``partial`` is what had arrived.
        """
        if self._result is None:
            await self._exhaust()
            assembler = self._assembler
            assert assembler is not None
            self._result = assembler.result()
            attach_meta(self._result, self.meta)
        return self._result

    @property
    def _assembler(self) -> Assembler[R, U] | None:
        return cast("Assembler[R, U]", self._opened.reader.collector) if self._opened is not None else None
