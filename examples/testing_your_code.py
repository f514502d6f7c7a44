"""Tests of streaming code, against a server that fails on demand: `pytest testing_your_code.py`."""

import asyncio

from friendli_async import AsyncFriendli, StreamInterruptedError
from friendli_async.testing import FriendliServer, chunk, cut, script, status, text

pytest_plugins = ["friendli_async.testing.fixtures"]  # in a project, this belongs in conftest.py


async def answer(question: str, server_url: str) -> str:
    """The code under test: returns the answer, marked if it is incomplete."""
    async with AsyncFriendli("test-token", server_url=server_url) as client:
        stream = client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": question}])
        try:
            return (await stream.result()).text
        except StreamInterruptedError as error:
            return f"{error.partial.text if error.partial else ''} (incomplete)"


def test_rate_limit_is_retried(friendli_server: FriendliServer) -> None:
    friendli_server.enqueue(status(429, retry_after=0), text("Be", "cause."))
    assert asyncio.run(answer("Why?", friendli_server.url)) == "Because."
    assert [request.status for request in friendli_server.requests] == [429, 200]


def test_interrupted_stream_is_marked(friendli_server: FriendliServer) -> None:
    friendli_server.enqueue(script(chunk("Be"), cut()))
    assert asyncio.run(answer("Why?", friendli_server.url)) == "Be (incomplete)"
