"""Callbacks that are called without being awaited: a coroutine function is rejected when it is passed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sockets import open_stream

from friendli_async import AsyncFriendli, RetryPolicy
from friendli_async.asgi import SSEResponse
from friendli_async.bulk import run_all
from friendli_async.testing import FriendliServer, text


async def never_awaited(*arguments: object) -> None:
    """A coroutine function."""


class Callback:
    """An object that is called like a coroutine function."""

    async def __call__(self, *arguments: object) -> None:
        """Would never be awaited."""


ASYNC: dict[str, Callable[..., Any]] = {
    "a coroutine function": never_awaited,
    "a partial of one": functools.partial(never_awaited, 1),
    "an object": Callback(),
    "a bound method": Callback().__call__,
    "a partial of an object": functools.partial(Callback(), 1),
}


async def pass_callback(use: Callable[[Any], object], callback: object) -> None:
    """Passes a callback to a function, and awaits it if that is a coroutine function."""
    if inspect.isawaitable(used := use(callback)):
        await used


def users(client: AsyncFriendli) -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Yields each public function that takes a plain callback, with its name."""
    yield "on_retry", lambda callback: RetryPolicy(on_retry=callback)
    yield "stop_when", lambda callback: open_stream(client).stop_when(callback)
    yield "encode", lambda callback: SSEResponse(open_stream(client), encode=callback)
    yield "on_error", lambda callback: SSEResponse(open_stream(client), on_error=callback)
    yield "key", lambda callback: run_all([1], never_awaited, key=callback)
    yield "on_progress", lambda callback: run_all([1], never_awaited, on_progress=callback)
    yield "progress", lambda callback: client.file.upload(b"data", project_id="p", progress=callback)
    yield "progress", lambda callback: client.file.download("id", Path("file"), progress=callback)
    yield "access_log", lambda callback: FriendliServer(access_log=callback)
    yield "enqueue", lambda callback: FriendliServer().enqueue(text("a"), callback)


@pytest.mark.parametrize("callback", ASYNC.values(), ids=list(ASYNC))
async def test_coroutine_function_as_plain_callback_is_rejected_before_anything_is_sent(
    server: FriendliServer, client: AsyncFriendli, callback: Callable[..., Any]
) -> None:
    for name, use in users(client):
        with pytest.raises((TypeError, ValueError), match="coroutine function") as caught:
            await pass_callback(use, callback)
        assert name in str(caught.value) or name == "enqueue"
    assert not server.requests


@pytest.mark.parametrize("callback", [7, "x"])
async def test_other_values_as_callback_are_rejected_before_anything_is_sent(
    server: FriendliServer, client: AsyncFriendli, callback: object
) -> None:
    for _, use in users(client):
        with pytest.raises((TypeError, ValueError)):
            await pass_callback(use, callback)
    assert not server.requests
