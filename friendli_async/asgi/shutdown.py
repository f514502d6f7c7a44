"""The drain of a client when its server shuts down: at the signal, or at the end of the app's lifespan."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Final, Protocol, runtime_checkable

from friendli_async.options import check_seconds

__all__ = ["Drainable", "drain_on_shutdown"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_Handler = Callable[[int, FrameType | None], Any]


@runtime_checkable
class Drainable(Protocol):
    """What can be drained: ``AsyncFriendli``."""

    async def drain(self, timeout: float | None = None, /) -> int:
        """Lets the open calls finish; returns how many were aborted."""
        ...


@asynccontextmanager
async def drain_on_shutdown(client: Drainable, seconds: float | None = 5.0) -> AsyncGenerator[None]:
    """Drains a client when the server shuts down, for the lifespan of any app.

        async with AsyncFriendli() as client, drain_on_shutdown(client):
            yield

    On SIGTERM and SIGINT the client rejects new calls; open calls, streams and runs may finish within ``seconds``, then
    they are interrupted, and each browser that reads an ``SSEResponse`` gets an ``event: error``. Many servers wait for
    all responses before they end the lifespan. Therefore the signal itself starts the drain, and is then passed on to
    the server's own handler, if it has one in this process. Otherwise (other servers, a thread) the drain starts when
    the block ends.

    Args:
        client: The client.
        seconds: Seconds for open calls, streams and runs to finish; None is no limit. The shutdown timeouts of the
            server, and of whatever kills it, have to be longer.

    Raises:
        ConfigurationError: ``seconds`` is not a number of seconds.
        TypeError: ``client`` cannot be drained.
    """
    if not callable(getattr(client, "drain", None)):  # a wrapper may pass attributes on
        raise TypeError(f"client must be an AsyncFriendli, not {type(client).__name__}")
    shutdown = _Drain(client, check_seconds("seconds", seconds))
    with shutdown.on_signals():
        yield
        await shutdown.start()


class _Drain:
    """Drains a client once, on a signal or at shutdown, whichever comes first."""

    def __init__(self, client: Drainable, seconds: float | None) -> None:
        self._client = client
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[int] | None = None

    def start(self) -> asyncio.Task[int]:
        """Starts the drain, unless it has been started; returns its task."""
        if self._task is None:
            self._task = self._loop.create_task(self._client.drain(self._seconds))
        return self._task

    @contextmanager
    def on_signals(self) -> Generator[None]:
        """Starts the drain on a signal for which the server has a handler in this thread, and then calls that one."""
        installed: dict[signal.Signals, tuple[_Handler, _Handler]] = {}
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                previous = signal.getsignal(number)
                if callable(previous):
                    installed[number] = (partial(self._on_signal, previous), previous)
                    signal.signal(number, installed[number][0])
        try:
            yield
        finally:
            for number, (handler, previous) in installed.items():
                if signal.getsignal(number) is handler:
                    signal.signal(number, previous)

    def _on_signal(self, previous: _Handler, number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.start)
        previous(number, frame)
