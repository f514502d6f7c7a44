"""Calls to an endpoint that sleeps: they say so, or wake it, wait and go on."""

from typing import Any, Final

import pytest
from support.sockets import QUICK, client_of
from support.virtual import Answer, FakeTransport, now, replying, virtually

from friendli_async import (
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    BadRequestError,
    ConfigurationError,
    FriendliError,
    NotFoundError,
    PermissionDeniedError,
)
from friendli_async._core.runtime import ChangeSignal, Runtime
from friendli_async._core.settings import Settings
from friendli_async.testing import FriendliServer, json_body, status, text

STATUS_PATH: Final = "/dedicated/beta/endpoint/ep_1/status"
WAKE_PATH: Final = "/dedicated/beta/endpoint/ep_1/wake"
CHAT_PATH: Final = "/dedicated/v1/chat/completions"
ASKED: Final[dict[str, Any]] = {"model": "ep_1:route", "messages": [{"role": "user", "content": "Hi"}]}


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


def waking(*answers: Answer) -> tuple[type[BaseException], str, float]:
    """Calls a sleeping endpoint without any limit, in virtual time: the error, its words, and how long it took."""

    async def main() -> tuple[type[BaseException], str, float]:
        runtime = Runtime(FakeTransport(replying(status=503), replying(SLEEPING), *answers), ChangeSignal(), 10)
        client = client_of("http://nowhere")
        client._build(runtime, Settings.from_options({"token": "t", "timeout": None, "wake": True}), owner=True)
        with pytest.raises(FriendliError) as raised:
            await client.dedicated.chat.complete(**ASKED)
        assert raised.value.meta is not None
        return type(raised.value), str(raised.value), now()

    return virtually(main())


SLEEPING: Final = b'{"status": "SLEEPING"}'
AWAKING: Final = b'{"status": "AWAKING"}'


def test_an_endpoint_that_falls_asleep_again_is_not_waited_for_without_end() -> None:
    kind, words, seconds = waking(*(replying(body) for body in (AWAKING, AWAKING, SLEEPING)))
    assert (kind, seconds) == (APIStatusError, 5.0)
    assert "ep_1 is SLEEPING and will not be RUNNING" in words


@pytest.mark.parametrize("state", ["UNKNOWN", "DREAMING", "SLEEPING", "AWAKING"])
def test_an_endpoint_that_never_comes_up_is_waited_for_half_an_hour(state: str) -> None:
    looks = (replying(b'{"status": "%s"}' % state.encode()) for _ in range(400))
    kind, words, seconds = waking(replying(AWAKING), *looks)
    assert (kind, seconds) == (APITimeoutError, 1800.0)
    assert "ep_1 was not RUNNING within 1800 s" in words


@pytest.mark.parametrize("wake", [True, False])
async def test_other_errors_stay_what_they_are(client: AsyncFriendli, server: FriendliServer, wake: bool) -> None:
    using = client.with_options(wake=wake).dedicated.chat
    server.enqueue(status(404, message="gone"), state("TERMINATED"), status(404, message="gone"), status(404))
    for _ in range(2):
        with pytest.raises(NotFoundError, match=r"^404 gone"):
            await using.complete(**ASKED)
    server.enqueue(status(401))
    with pytest.raises(APIStatusError):
        await using.complete(**ASKED)
    assert paths(server).count(STATUS_PATH) == 2


COMING: Final = ("AWAKING", "INITIALIZING", "UPDATING")


@pytest.mark.parametrize("name", COMING)
async def test_an_endpoint_that_comes_up_by_itself_is_waited_for_and_not_woken(
    client: AsyncFriendli, server: FriendliServer, name: str
) -> None:
    server.enqueue(status(404), state(name), state("RUNNING"), text("hello"))
    reply = await client.with_options(wake=True).dedicated.chat.complete(**ASKED)
    assert reply.text == "hello"
    assert paths(server) == [CHAT_PATH, STATUS_PATH, STATUS_PATH, CHAT_PATH]


@pytest.mark.parametrize("name", COMING)
async def test_without_wake_a_call_says_that_the_endpoint_is_not_up_yet(
    client: AsyncFriendli, server: FriendliServer, name: str
) -> None:
    server.enqueue(status(404, message="not now"), state(name))
    with pytest.raises(NotFoundError, match=rf"ep_1 is {name} \(.*wake=True\) waits for it\): not now"):
        await client.dedicated.chat.complete(**ASKED)
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_an_endpoint_that_runs_by_the_time_of_the_look_is_asked_once_more(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    using = client.with_options(wake=True).dedicated.chat
    server.enqueue(status(404), state("RUNNING"), text("hello"))
    assert (await using.complete(**ASKED)).text == "hello"
    server.enqueue(status(404), state("RUNNING"), status(404, message="gone"))
    with pytest.raises(NotFoundError, match="gone") as raised:
        await using.complete(**ASKED)
    assert raised.value.meta is not None
    assert [attempt.status for attempt in raised.value.meta.attempts] == [404, 404]
    assert paths(server) == [CHAT_PATH, STATUS_PATH, CHAT_PATH] * 2


async def test_without_wake_an_endpoint_that_runs_is_not_asked_again(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(status(404, message="gone"), state("RUNNING"))
    with pytest.raises(NotFoundError, match=r"^404 gone"):
        await client.dedicated.chat.complete(**ASKED)
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_a_running_endpoint_that_names_a_time_is_not_asked_before_it(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(status(503, retry_after=5), state("RUNNING"))
    with pytest.raises(APIStatusError) as raised:
        await client.with_options(wake=True).dedicated.chat.complete(**ASKED)
    assert raised.value.retry_after == 5
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_the_endpoint_is_looked_at_after_a_later_attempt_too(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    using = client.with_options(wake=True, retry=QUICK).dedicated.chat
    server.enqueue(status(429), status(404), state("SLEEPING"), state("AWAKING"), state("RUNNING"), text("hello"))
    reply = await using.complete(**ASKED)
    assert [attempt.status for attempt in reply.meta.attempts] == [429, 404, 200]
    assert paths(server) == [CHAT_PATH, CHAT_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, CHAT_PATH]


@pytest.mark.parametrize("refusal", [400, 409])
async def test_an_endpoint_that_another_call_has_woken_is_waited_for(
    client: AsyncFriendli, server: FriendliServer, refusal: int
) -> None:
    server.enqueue(status(503), state("SLEEPING"), status(refusal), state("AWAKING"), state("RUNNING"), text("hello"))
    reply = await client.with_options(wake=True).dedicated.chat.complete(**ASKED)
    assert reply.text == "hello"
    assert paths(server) == [CHAT_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, STATUS_PATH, CHAT_PATH]


async def test_a_wake_that_is_refused_while_the_endpoint_sleeps_on_is_raised(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(status(503), state("SLEEPING"), status(400, message="not yours"), state("SLEEPING"))
    with pytest.raises(BadRequestError, match="not yours"):
        await client.with_options(wake=True).dedicated.chat.complete(**ASKED)
    server.enqueue(status(503), state("SLEEPING"), status(403, message="forbidden"))
    with pytest.raises(PermissionDeniedError, match="forbidden"):
        await client.with_options(wake=True).dedicated.chat.complete(**ASKED)


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
