"""Keeping, re-raising and discarding errors, and calling methods, without reference cycles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar
from weakref import ref

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class Held(Generic[E]):
    """Holds a caught error until ``raise held.take()``.

    A frame that raises an error from a local variable becomes part of the error's traceback: the frame references the
    error, and the error the frame, along with its stream and request. Only the garbage collector breaks this cycle,
    and until it runs, a dropped stream would keep its connection.
    """

    def __init__(self, error: E) -> None:
        self._error: E | None = error

    @property
    def error(self) -> E:
        """The error, for inspection. The frame that raises it must not store it in a local variable."""
        assert self._error is not None, "taken"
        return self._error

    def take(self) -> E:
        """Returns the error, and releases it."""
        error, self._error = self.error, None
        return error


def weak_method(method: Callable[P, T]) -> Callable[P, T | None]:
    """Returns a function that calls a method as long as its object exists, without a reference to it.

    For what the client or its connections hold: through the object, they may reach functions of the user, which may
    refer to the stream or run that is to be closed once nobody refers to it. Every stream makes one: the standard
    library's ``WeakMethod`` takes several times as long.
    """
    bound: Any = method
    reference: Callable[[], Any] = ref(bound.__self__)
    function: Callable[..., T] = bound.__func__

    def call(*arguments: P.args, **named: P.kwargs) -> T | None:
        owner = reference()
        return None if owner is None else function(owner, *arguments, **named)

    return call


def clear_tracebacks(error: BaseException) -> None:
    """Removes the tracebacks of an error that is not propagated further, and of its causes and contexts.

    Anything that still references the error (aiohttp stores it on the broken connection) would otherwise keep all
    frames of the call alive, on CPython 3.12 and later up to the user's own; they hold the request headers and the
    stream.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        current.__traceback__ = None
        current = current.__cause__ or current.__context__


def reject_stop_iteration(error: BaseException) -> None:
    """Rejects a StopAsyncIteration from a user callback: ``async for`` would mistake it for a regular end.

    A token callable that runs out of tokens may raise one. PEP 479 does the same for generators.

    Raises:
        RuntimeError: The error is a StopAsyncIteration.
    """
    if isinstance(error, StopAsyncIteration):
        raise RuntimeError("a callback raised StopAsyncIteration") from error
