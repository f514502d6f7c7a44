"""Locks for what all threads of a process share, and a forked child inherits."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import nullcontext
from threading import RLock
from typing import Any, TypeVar

T = TypeVar("T")


def lock_over_forks() -> RLock:
    """Returns a reentrant lock that is held while the process forks.

    So the child inherits neither a lock that nobody releases, nor a half-done change of what the lock protects.
    """
    lock = RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class cached_property(functools.cached_property[T]):  # noqa: N801  # a decorator, like the one that it replaces
    """As that of ``functools``, without the lock that it has before Python 3.12; threads may compute a value twice.

    The lock is one for all objects of a class: if a thread holds it while the process forks, the child would wait for
    it forever.
    """

    def __init__(self, func: Callable[[Any], T]) -> None:
        super().__init__(func)
        self.lock: nullcontext[None] = nullcontext()
