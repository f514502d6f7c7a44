"""Work: calls that belong together, such as the turns of a run, which a client that is drained lets finish.

A context variable has the innermost scope that the running code is a part of, and each scope knows the one around it. A
call that begins (``Runtime.begin``) opens all work around it: until it is closed, it is in the ``works`` of the call's
client. A client that is drained waits for its ``works``, and makes new calls only within them (``Runtime.check``).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from friendli_async.errors import FriendliError


class Scope:
    """What a task, and the tasks that it starts, are a part of, by their context. It may be a part of another.

    By itself, it only shows whether code would wait for its own end (``is_current``), as a row of a bulk run would.

    Attributes:
        outer: What it is a part of; None for nothing.
    """

    def __init__(self) -> None:
        self.outer: Scope | None = None

    def begin(self, works: set[Work], loop: asyncio.AbstractEventLoop) -> None:
        """Opens the work around it: a call of the client that has these ``works`` has begun in it."""
        if self.outer is not None:
            self.outer.begin(works, loop)

    def is_current(self) -> bool:
        """Whether the calling context is a part of it, and would wait for itself."""
        return self in current_lineage()

    @contextmanager
    def making_calls(self) -> Generator[None, None, None]:
        """Makes the calls that begin in this context a part of it, and of what it is itself a part of."""
        if not self.is_current():  # else it is entered within itself, and would be its own outer
            self.outer = current_scope.get()
        token = current_scope.set(self)
        try:
            yield
        finally:
            with suppress(ValueError):  # if its loop was closed, it ends in another context
                current_scope.reset(token)


class Work(Scope):
    """Several calls, such as the turns of a run. Only the first is a new one for a client that is being drained.

    Args:
        interrupt: Ends the work with an error; called in its loop. Not needed if it consists of nothing but calls.

    Attributes:
        is_between_calls: Whether none of its calls is in flight, so that it counts itself as what a drain has aborted.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, interrupt: Callable[[FriendliError], None] | None = None) -> None:
        super().__init__()
        self.interrupt = interrupt
        self.is_between_calls = False
        self._ended = False
        self._open_in: list[set[Work]] = []  # the ``works`` of the clients that it makes calls of

    def begin(self, works: set[Work], loop: asyncio.AbstractEventLoop) -> None:
        """Opens it, and the work around it; see ``Scope.begin``."""
        super().begin(works, loop)
        if not self._ended and self not in works:
            if not self._open_in:  # else a part of it may run another event loop, in a thread
                self.loop = loop
            self._open_in.append(works)
            works.add(self)

    def include(self, other: Work) -> None:
        """Makes other work, some of whose calls may have begun, a part of this."""
        for works in other._open_in:
            self.begin(works, other.loop)

    def is_of(self, works: set[Work]) -> bool:
        """Whether it began with a call of this client. A tool may call other clients, too."""
        return self._open_in[0] is works

    def close(self) -> None:
        """Ends the work: no more calls of it will begin."""
        self._ended = True
        self.interrupt = None  # timers that were set meanwhile keep their context, and thus this work and what it ends
        for works in self._open_in:
            works.discard(self)


current_scope: Final[ContextVar[Scope | None]] = ContextVar("friendli_async_scope", default=None)


def current_lineage() -> set[Scope]:
    """Returns what the calling context is a part of."""
    scope, lineage = current_scope.get(), set[Scope]()
    while scope is not None:
        lineage.add(scope)
        scope = scope.outer
    return lineage
