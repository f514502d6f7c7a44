"""An async generator of the service, with the interface of the streams that a response reads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Self, TypeVar

from friendli_async._core.work import Work

E = TypeVar("E")


class Generated(Generic[E]):
    """An async generator with the interface of a stream.

    Opening it runs it up to its first event, so that an error before that is raised while there is no response yet.

    Args:
        events: The generator.

    Raises:
        RuntimeError: On opening: it has ended before, so the response would be empty, and look complete.
    """

    def __init__(self, events: AsyncGenerator[E, Any]) -> None:
        self._events = events
        self._first: list[E] = []

    async def __aenter__(self) -> Self:
        if getattr(self._events, "ag_frame", self) is None:
            raise RuntimeError("the generator has ended before the response started: it was finished, or closed")
        async for event in self._events:
            self._first.append(event)
            break
        return self

    def _begin_response(self, work: Work, on_abort: Callable[[], None]) -> None:
        """Does nothing: the calls of the generator begin in the context of the response, and are part of its work."""

    def _check_complete(self) -> None:
        """Does nothing: the generator itself raises what ended it early."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        return self._first.pop() if self._first else await self._events.__anext__()

    async def aclose(self) -> None:
        """Closes the generator."""
        await self._events.aclose()
