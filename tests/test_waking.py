"""Calls to an endpoint that sleeps: they say so, or wake it, wait and go on."""

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from friendli_async import APIStatusError, APITimeoutError, AsyncFriendli, ConfigurationError, NotFoundError
from friendli_async.testing import FriendliServer, json_body, status, text

STATUS_PATH: Final = "/dedicated/beta/endpoint/ep_1/status"
WAKE_PATH: Final = "/dedicated/beta/endpoint/ep_1/wake"
CHAT_PATH: Final = "/dedicated/v1/chat/completions"
ASKED: Final[dict[str, Any]] = {"model": "ep_1:route", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


@pytest.fixture
async def client(server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    async with AsyncFriendli("test-token", server_url=server.url, retry=None) as client:
        yield client


def state(name: str) -> Any:
    return json_body({"status": name})


def paths(server: FriendliServer) -> list[str]:
    return [request.path for request in server.requests]


@pytest.mark.parametrize("code", [400, 404, 409, 503])
async def test_a_call_to_a_sleeping_endpoint_says_so(client: AsyncFriendli, server: FriendliServer, code: int) -> None:
    server.enqueue(status(code, message="not now"), state("SLEEPING"))
    with pytest.raises(APIStatusError, match=r"ep_1 is SLEEPING .*wake=True.*: not now") as raised:
        await client.dedicated.chat.complete(**ASKED)
    assert raised.value.status_code == code
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_with_wake_the_endpoint_is_woken_and_the_call_goes_on(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(status(503), state("SLEEPING"), state("AWAKING"), state("RUNNING"), text("hello"))
    reply = await client.with_options(wake=True).dedicated.chat.complete(**ASKED)
    assert reply.text == "hello"
    assert [attempt.status for attempt in reply.meta.attempts] == [503, 200]
    assert paths(server) == [CHAT_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, CHAT_PATH]


async def test_a_stream_wakes_too(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503), state("SLEEPING"), state("AWAKING"), state("RUNNING"), text("hel", "lo"))
    async with client.with_options(wake=True).dedicated.chat.stream(**ASKED) as stream:
        assert [piece async for piece in stream.text()] == ["hel", "lo"]


async def test_the_waiting_ends_with_the_total(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503))
    server.always(state("SLEEPING"))
    with pytest.raises(APITimeoutError) as raised:
        await client.with_options(wake=True, timeout=0.2).dedicated.chat.complete(**ASKED)
    assert (raised.value.limit, raised.value.seconds) == ("total", 0.2)


@pytest.mark.parametrize("wake", [True, False])
async def test_other_errors_stay_what_they_are(client: AsyncFriendli, server: FriendliServer, wake: bool) -> None:
    using = client.with_options(wake=wake).dedicated.chat
    server.enqueue(status(404, message="gone"), state("RUNNING"), status(404, message="gone"), status(404))
    for _ in range(2):
        with pytest.raises(NotFoundError, match=r"^404 gone"):
            await using.complete(**ASKED)
    server.enqueue(status(401))
    with pytest.raises(APIStatusError):
        await using.complete(**ASKED)
    assert paths(server).count(STATUS_PATH) == 2


async def test_serverless_and_management_wake_nothing(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(status(503))
    waking = client.with_options(wake=True)
    for call in (waking.serverless.chat.complete(**ASKED), waking.dedicated.endpoint.get_status("ep_1")):
        with pytest.raises(APIStatusError):
            await call
    assert len(server.requests) == 2


def test_wake_is_true_or_false() -> None:
    with pytest.raises(ConfigurationError, match="wake"):
        AsyncFriendli("t").with_options(wake="yes")  # type: ignore[typeddict-item]  # that is what is tested
