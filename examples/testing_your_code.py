"""Tests of a program that streams, against a server that fails on demand. Try `pytest testing_your_code.py`."""

import asyncio

from friendli_async import AsyncFriendli, StreamInterruptedError
from friendli_async.testing import FriendliServer, chunk, cut, script, status, text

pytest_plugins = ["friendli_async.testing.fixtures"]  # in a project: in its conftest.py


async def told(question: str, server_url: str) -> str:
    """The code under test: the answer, or what had come of it and a note."""
    async with AsyncFriendli("test-token", server_url=server_url) as client:
        stream = client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": question}])
        try:
            return (await stream.result()).text
        except StreamInterruptedError as error:
            return f"{error.partial.text if error.partial else ''} (cut off)"


def test_a_refusal_is_repeated(friendli_server: FriendliServer) -> None:
    friendli_server.enqueue(status(429, retry_after=0), text("Be", "cause."))
    assert asyncio.run(told("Why?", friendli_server.url)) == "Because."
    assert [request.status for request in friendli_server.requests] == [429, 200]


def test_a_broken_stream_says_so(friendli_server: FriendliServer) -> None:
    friendli_server.enqueue(script(chunk("Be"), cut()))
    assert asyncio.run(told("Why?", friendli_server.url)) == "Be (cut off)"
