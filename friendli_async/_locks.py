"""Locks for what all threads of a process share, and a forked child inherits."""

from __future__ import annotations

import os
from threading import RLock


def lock_over_forks() -> RLock:
    """Returns a reentrant lock that is held while the process forks.

    So the child inherits neither a lock that nobody releases, nor a half-done change of what the lock protects.
    """
    lock = RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
