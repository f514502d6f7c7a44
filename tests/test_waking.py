"""Calls to a sleeping endpoint: the error names its state, or `wake=True` wakes it, waits and retries."""

import asyncio
from itertools import groupby
from typing import Any, Final

import pytest
from support.sockets import FAST_RETRY, client_of, completion
from support.virtual import Answer, FakeTransport, hanging, in_virtual_time, now, response, run_in_virtual_time

from friendli_async import (
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    BadRequestError,
    ConfigurationError,
    FriendliError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
)
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async.testing import FriendliServer, json_body, status, text

STATUS_PATH: Final = "/dedicated/beta/endpoint/ep_1/status"
WAKE_PATH: Final = "/dedicated/beta/endpoint/ep_1/wake"
AUDIO_PATH: Final = "/dedicated/v1/audio/transcriptions"
CHAT_PATH: Final = "/dedicated/v1/chat/completions"
REQUEST: Final[dict[str, Any]] = {"model": "ep_1:route", "messages": [{"role": "user", "content": "Hi"}]}


def state(name: str) -> Any:
    return json_body({"status": name})


def paths(server: FriendliServer) -> list[str]:
    return [request.path for request in server.requests]


@pytest.mark.parametrize("code", [400, 404, 409, 503])
async def test_error_names_sleeping_endpoint(client: AsyncFriendli, server: FriendliServer, code: int) -> None:
    server.enqueue(status(code, message="not now"), state("SLEEPING"))
    with pytest.raises(APIStatusError, match=r"ep_1 is SLEEPING .*wake=True.*: not now") as raised:
        await client.dedicated.chat.complete(**REQUEST)
    assert (raised.value.status_code, raised.value.message) == (code, "not now")  # which a browser may see
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_wake_wakes_endpoint_and_retries_call(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503), state("SLEEPING"), state("AWAKING"), state("RUNNING"), text("hello"))
    reply = await client.with_options(wake=True).dedicated.chat.complete(**REQUEST)
    assert reply.text == "hello"
    assert [attempt.status for attempt in reply.meta.attempts] == [503, 200]
    assert paths(server) == [CHAT_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, CHAT_PATH]


async def test_wake_wakes_endpoint_of_a_transcription(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503), state("SLEEPING"), state("AWAKING"), state("RUNNING"), json_body({"text": "hello"}))
    audio = client.with_options(wake=True).dedicated.audio
    assert (await audio.transcribe(model="ep_1:route", file=b"RIFF")).text == "hello"
    assert paths(server) == [AUDIO_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, AUDIO_PATH]


async def test_error_of_a_transcription_names_sleeping_endpoint(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503, message="not now"), state("SLEEPING"))
    with pytest.raises(APIStatusError, match=r"ep_1 is SLEEPING .*wake=True.*: not now"):
        async with client.dedicated.audio.stream(model="ep_1", file=b"RIFF"):
            pass


async def test_endpoint_named_in_extra_body_is_woken(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503), state("SLEEPING"), state("AWAKING"), state("RUNNING"), text("hello"))
    chat = client.with_options(wake=True).dedicated.chat
    assert (await chat.complete(**{**REQUEST, "model": "other"}, extra_body={"model": "ep_1"})).text == "hello"
    assert paths(server) == [CHAT_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, CHAT_PATH]


@pytest.mark.parametrize("model", ["", ":route", ".", "..", "\ud800"])
async def test_error_of_a_call_to_an_invalid_endpoint_is_unchanged(
    client: AsyncFriendli, server: FriendliServer, model: str
) -> None:
    server.enqueue(status(404, message="no such endpoint"))
    with pytest.raises(NotFoundError, match=r"^404 no such endpoint"):
        await client.with_options(wake=True).dedicated.chat.complete(**{**REQUEST, "model": model})
    assert paths(server) == [CHAT_PATH]


async def test_wake_applies_to_streams(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503), state("SLEEPING"), state("AWAKING"), state("RUNNING"), text("hel", "lo"))
    async with client.with_options(wake=True).dedicated.chat.stream(**REQUEST) as stream:
        assert [piece async for piece in stream.text()] == ["hel", "lo"]


@in_virtual_time
async def test_total_timeout_limits_the_wait_and_the_error_reports_it() -> None:
    transport = FakeTransport(*(response(status=503), *(response(AWAKING) for _ in range(9))))
    client = client_of("http://nowhere")
    settings = Settings.from_options({"token": "t", "timeout": 12, "wake": True})
    client._build(Runtime(transport, 10), settings, owner=True)
    with pytest.raises(APITimeoutError) as raised:
        await client.dedicated.chat.complete(**REQUEST)
    assert (raised.value.limit, raised.value.seconds, now()) == ("total", 12.0, 12.0)
    assert raised.value.meta is not None
    assert [attempt.wait for attempt in raised.value.meta.attempts] == [12.0]
    assert not raised.value.sent  # the server rejected the only attempt


async def test_state_that_only_explains_an_error_is_asked_for_after_the_last_attempt(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(*[status(503, message="overloaded")] * 3, state("SLEEPING"))
    with pytest.raises(InternalServerError, match=r"^503 endpoint ep_1 is SLEEPING .*: overloaded"):
        await client.with_options(retry=FAST_RETRY).dedicated.chat.complete(**REQUEST)
    assert paths(server) == [CHAT_PATH] * 3 + [STATUS_PATH]


async def test_endpoint_to_be_woken_is_asked_for_its_state_after_each_attempt(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.always(status(503, message="overloaded"))
    with pytest.raises(InternalServerError, match=r"^503 overloaded"):
        await client.with_options(retry=FAST_RETRY, wake=True).dedicated.chat.complete(**REQUEST)
    # It is a call as any other, with retries of its own.
    assert [len(list(group)) for path, group in groupby(paths(server)) if path == CHAT_PATH] == [1, 1, 1]


@pytest.mark.parametrize(("total", "seconds"), [(None, 5.0), (3, 3.0)], ids=["no total", "total"])
@in_virtual_time
async def test_error_does_not_wait_for_the_state_of_the_endpoint(total: float | None, seconds: float) -> None:
    transport = FakeTransport(response(b"{}", status=400), hanging())
    client = client_of("http://nowhere")
    client._build(Runtime(transport, 10), Settings.from_options({"token": "t", "timeout": total}), owner=True)
    with pytest.raises(BadRequestError):
        await client.dedicated.chat.complete(**REQUEST)
    assert (now(), len(transport.requests)) == (seconds, 2)


@in_virtual_time
async def test_drain_lets_a_call_wake_its_endpoint() -> None:
    answers = [response(status=503, after=1.0), response(SLEEPING), response(AWAKING), response(RUNNING)]
    runtime = Runtime(FakeTransport(*answers, response(completion())), 10)
    client = client_of("http://nowhere")
    client._build(runtime, Settings.from_options({"token": "t", "wake": True}), owner=True)
    calling = asyncio.ensure_future(client.dedicated.chat.complete(**REQUEST))
    await asyncio.sleep(0.5)
    assert await client.drain() == 0
    assert len((await calling).meta.attempts) == 2


def call_sleeping_endpoint(*answers: Answer) -> tuple[type[BaseException], str, float]:
    """Calls a sleeping endpoint without a timeout, in virtual time: the error, its message, and the seconds passed."""

    async def main() -> tuple[type[BaseException], str, float]:
        runtime = Runtime(FakeTransport(response(status=503), response(SLEEPING), *answers), 10)
        client = client_of("http://nowhere")
        client._build(runtime, Settings.from_options({"token": "t", "timeout": None, "wake": True}), owner=True)
        with pytest.raises(FriendliError) as raised:
            await client.dedicated.chat.complete(**REQUEST)
        assert raised.value.meta is not None
        return type(raised.value), str(raised.value), now()

    return run_in_virtual_time(main())


SLEEPING: Final = b'{"status": "SLEEPING"}'
AWAKING: Final = b'{"status": "AWAKING"}'
RUNNING: Final = b'{"status": "RUNNING"}'


def test_wait_gives_up_if_endpoint_falls_asleep_again() -> None:
    kind, message, seconds = call_sleeping_endpoint(*(response(body) for body in (AWAKING, AWAKING, SLEEPING)))
    assert (kind, seconds) == (APIStatusError, 5.0)
    assert "ep_1 is SLEEPING and will not be RUNNING" in message


@pytest.mark.parametrize("state", ["UNKNOWN", "DREAMING", "SLEEPING", "AWAKING"])
def test_wait_gives_up_after_half_an_hour(state: str) -> None:
    polls = (response(b'{"status": "%s"}' % state.encode()) for _ in range(400))
    kind, message, seconds = call_sleeping_endpoint(response(AWAKING), *polls)
    assert (kind, seconds) == (APITimeoutError, 1800.0)
    assert "ep_1 was not RUNNING within 1800 s" in message


@pytest.mark.parametrize("wake", [True, False])
async def test_other_errors_are_unchanged(client: AsyncFriendli, server: FriendliServer, wake: bool) -> None:
    chat = client.with_options(wake=wake).dedicated.chat
    server.enqueue(status(404, message="gone"), state("TERMINATED"), status(404, message="gone"), status(404))
    for _ in range(2):
        with pytest.raises(NotFoundError, match=r"^404 gone"):
            await chat.complete(**REQUEST)
    server.enqueue(status(401))
    with pytest.raises(APIStatusError):
        await chat.complete(**REQUEST)
    assert paths(server).count(STATUS_PATH) == 2


STARTING: Final = ("AWAKING", "INITIALIZING", "UPDATING")


@pytest.mark.parametrize("name", STARTING)
async def test_starting_endpoint_is_waited_for_without_waking(
    client: AsyncFriendli, server: FriendliServer, name: str
) -> None:
    server.enqueue(status(404), state(name), state("RUNNING"), text("hello"))
    reply = await client.with_options(wake=True).dedicated.chat.complete(**REQUEST)
    assert reply.text == "hello"
    assert paths(server) == [CHAT_PATH, STATUS_PATH, STATUS_PATH, CHAT_PATH]


@pytest.mark.parametrize("name", STARTING)
async def test_error_names_starting_endpoint(client: AsyncFriendli, server: FriendliServer, name: str) -> None:
    server.enqueue(status(404, message="not now"), state(name))
    with pytest.raises(NotFoundError, match=rf"ep_1 is {name} \(.*wake=True\) waits for it\): not now"):
        await client.dedicated.chat.complete(**REQUEST)
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_call_is_retried_once_if_endpoint_is_already_running(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    chat = client.with_options(wake=True).dedicated.chat
    server.enqueue(status(404), state("RUNNING"), text("hello"))
    assert (await chat.complete(**REQUEST)).text == "hello"
    server.enqueue(status(404), state("RUNNING"), status(404, message="gone"))
    with pytest.raises(NotFoundError, match="gone") as raised:
        await chat.complete(**REQUEST)
    assert raised.value.meta is not None
    assert [attempt.status for attempt in raised.value.meta.attempts] == [404, 404]
    assert paths(server) == [CHAT_PATH, STATUS_PATH, CHAT_PATH] * 2


async def test_call_to_running_endpoint_is_not_retried_without_wake(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(status(404, message="gone"), state("RUNNING"))
    with pytest.raises(NotFoundError, match=r"^404 gone"):
        await client.dedicated.chat.complete(**REQUEST)
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_call_is_not_retried_before_retry_after_of_running_endpoint(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(status(503, retry_after=5), state("RUNNING"))
    with pytest.raises(APIStatusError) as raised:
        await client.with_options(wake=True).dedicated.chat.complete(**REQUEST)
    assert raised.value.retry_after == 5
    assert paths(server) == [CHAT_PATH, STATUS_PATH]


async def test_endpoint_is_checked_after_later_attempts(client: AsyncFriendli, server: FriendliServer) -> None:
    chat = client.with_options(wake=True, retry=FAST_RETRY).dedicated.chat
    server.enqueue(status(429), status(404), state("SLEEPING"), state("AWAKING"), state("RUNNING"), text("hello"))
    reply = await chat.complete(**REQUEST)
    assert [attempt.status for attempt in reply.meta.attempts] == [429, 404, 200]
    assert paths(server) == [CHAT_PATH, CHAT_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, CHAT_PATH]


@pytest.mark.parametrize("wake_status", [400, 409])
async def test_endpoint_woken_by_another_call_is_waited_for(
    client: AsyncFriendli, server: FriendliServer, wake_status: int
) -> None:
    server.enqueue(
        status(503), state("SLEEPING"), status(wake_status), state("AWAKING"), state("RUNNING"), text("hello")
    )
    reply = await client.with_options(wake=True).dedicated.chat.complete(**REQUEST)
    assert reply.text == "hello"
    assert paths(server) == [CHAT_PATH, STATUS_PATH, WAKE_PATH, STATUS_PATH, STATUS_PATH, CHAT_PATH]


async def test_rejected_wake_is_raised_if_endpoint_still_sleeps(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503), state("SLEEPING"), status(400, message="not yours"), state("SLEEPING"))
    with pytest.raises(BadRequestError, match="not yours"):
        await client.with_options(wake=True).dedicated.chat.complete(**REQUEST)
    server.enqueue(status(503), state("SLEEPING"), status(403, message="forbidden"))
    with pytest.raises(PermissionDeniedError, match="forbidden"):
        await client.with_options(wake=True).dedicated.chat.complete(**REQUEST)


async def test_serverless_and_management_calls_do_not_wake(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(status(503))
    waking_client = client.with_options(wake=True)
    for call in (
        waking_client.serverless.chat.complete(**REQUEST),
        waking_client.dedicated.endpoint.get_status("ep_1"),
    ):
        with pytest.raises(APIStatusError):
            await call
    assert len(server.requests) == 2


def test_wake_must_be_a_bool() -> None:
    with pytest.raises(ConfigurationError, match="wake"):
        AsyncFriendli("t").with_options(wake="yes")  # type: ignore[arg-type]  # under test
