"""Whether a callback is a plain function: a coroutine that it returned would never be awaited."""

from __future__ import annotations

import functools
from inspect import iscoroutinefunction


def is_async(function: object) -> bool:
    """Whether a callable is a coroutine function, a partial of one, or an object whose ``__call__`` is one."""
    while isinstance(function, functools.partial):
        function = function.func
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004  # no callability test


def check_plain(function: object, name: str, of: str) -> None:
    """Checks an optional callback, a function ``of`` something, that is called without being awaited.

    Raises:
        TypeError: It is not callable, or a coroutine function.
    """
    if function is None:
        return
    if not callable(function):
        raise TypeError(f"{name} must be a function of {of}, not {type(function).__name__}")
    if is_async(function):
        raise TypeError(f"{name} must be a plain function of {of}, not a coroutine function")
