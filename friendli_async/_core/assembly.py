"""Streams whose events add up to a reply, and the views of their text."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar, cast

from friendli_async._core.events.stream import EventStream
from friendli_async.replies import attach_meta

__all__ = ["AssembledStream"]

E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")
R_co = TypeVar("R_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)


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
