"""The browser's end of a request: work that ends when it has disconnected, and a connection that nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from friendli_async._core.loops import wait_done, wait_ended

E = TypeVar("E")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for a client that disconnected before the response: only logs and middleware see it."""


async def run_until_disconnect(disconnect: Awaitable[object], work: Awaitable[E]) -> list[E]:
    """Runs the work; if the browser disconnects first, cancels the work and waits for it.

    Args:
        disconnect: Returns when the browser has disconnected.
        work: What to do for the browser. Its exceptions propagate, also one that ends it instead of the cancellation.

    Returns:
        The result of the work, in a list that is empty if the browser has disconnected.
    """
    watcher, task = asyncio.ensure_future(disconnect), asyncio.ensure_future(work)
    try:
        await wait_done((watcher, task), any_of_them=True)
        if task.done():
            return [task.result()]
        watcher.result()
        task.cancel()
        await wait_ended((task,))
        if not task.cancelled():
            task.result()
        return []
    finally:
        for each in (watcher, task):
            each.cancel()
        try:
            await wait_ended((watcher, task))
        finally:
            # The traceback of a raised error has this frame, and a task has the error: a reference cycle.
            del watcher, task, each


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the browser has disconnected; discards the rest of the request body."""
    while (await receive())["type"] != "http.disconnect":
        pass


def abort_connection(receive: Receive) -> None:
    """Closes the connection to a browser that does not read, as far as the server allows it.

    ASGI cannot do this. uvicorn would wait, even at its shutdown, until the browser has read what is buffered.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if callable(abort := getattr(transport, "abort", None)):
        abort()


async def send_closed_request(send: Send) -> None:
    """Sends a response although the browser has disconnected: middleware requires one."""
    with suppress(Exception):  # the connection is closed, which each server reports differently
        await send({"type": "http.response.start", "status": _CLIENT_CLOSED_REQUEST, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
