"""Errors on their way from where they are caught to where they are raised, without reference cycles."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Held", "forget", "refuse_stop_iteration"]

E = TypeVar("E", bound=BaseException)


class Held(Generic[E]):
    """Holds a caught error until it is raised, as ``raise held.take()``.

    A frame that keeps an error in a local variable while it raises it is part of the error's traceback: the frame holds
    the error, and the error the frame, with the stream and the request that the frame knows. Only the garbage collector
    ends that, and until it comes a dropped stream would keep its connection.
    """

    __slots__ = ("_error",)

    def __init__(self, error: E) -> None:
        self._error: E | None = error

    @property
    def error(self) -> E:
        """The error, to look at; no local variable may keep it where it is raised."""
        assert self._error is not None, "taken"
        return self._error

    def take(self) -> E:
        """The error, which is held no more."""
        error, self._error = self.error, None
        return error


def forget(error: BaseException) -> None:
    """Takes the tracebacks off an error that is not raised any further, and off those that led to it.

    Whoever still keeps the error (aiohttp keeps it on the connection that broke) would keep all frames of the call with
    it, from CPython 3.12 on up to the user's own; in these stand the request's headers, and the stream.
    """
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__


def refuse_stop_iteration(error: BaseException) -> None:
    """Says, of what the caller's own code raised, that it is no end: ``async for`` would take it for a good one.

    A token callable that is out of tokens, for instance. It is what PEP 479 does in generators.

    Raises:
        RuntimeError: It is a StopAsyncIteration.
    """
    if isinstance(error, StopAsyncIteration):
        raise RuntimeError("what the client was given to call raised StopAsyncIteration") from error
