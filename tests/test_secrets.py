"""The token shows nowhere: not in errors, their tracebacks and pickles, not in logs, not in anything's repr."""

import copy
import io
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from support.sockets import (
    QUICK,
    ask,
    client_of,
    complete,
    deaf_port,
    within,
)

from friendli_async import (
    AsyncFriendli,
    ConfigurationError,
    FriendliError,
    Timeouts,
)
from friendli_async.testing import FriendliServer, body, chunk, cut, drop, script, stall, status, text

SECRET = "flp_verysecrettoken0123456789"


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


FAILURES: dict[str, Any] = {
    "401": status(401),
    "429": status(429),
    "500": status(500),
    "no reply": drop(),
    "no reply in time": stall(),
    "cut": script(chunk("a"), cut()),
    "no stream": body(b"<html>"),
    "bad event": script(chunk("a"), body(b"").steps[0], stall()),
    "redirect": status(307, headers={"Location": "http://elsewhere.invalid/"}),
    "echo": lambda request: body(request.headers["X-Public"].encode(), status=400, content_type="text/plain"),
}


async def _failure(call: Awaitable[object]) -> FriendliError:
    """The error of a call; the traceback begins here, in a frame that knows no secret."""
    try:
        await within(call)
    except FriendliError as error:
        return error
    raise AssertionError("it did not fail")


def _texts_of(error: BaseException) -> str:
    """Everything that a log, a crash reporter or a debugger would print of an error."""
    detailed = io.StringIO()
    traceback.TracebackException.from_exception(error, capture_locals=True).print(file=detailed)
    return "".join(
        [
            str(error),
            repr(error),
            repr(vars(error)),
            "".join(traceback.format_exception(error)),
            detailed.getvalue(),
            repr(pickle.dumps(error)),
            repr(copy.deepcopy(error)),
        ]
    )


@pytest.mark.parametrize("how", ["token", "callable", "header"])
@pytest.mark.parametrize("name", FAILURES)
async def test_the_token_shows_nowhere(
    server: FriendliServer, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server.always(FAILURES[name])
    options: dict[str, Any] = {
        "headers": {"X-Public": "public"},
        "retry": QUICK,
        "timeout": Timeouts(first_event=0.2, idle=0.1),
    }
    token: Any = SECRET
    if how == "callable":

        def token() -> str:
            return SECRET

    if how == "header":
        token = None
        options["headers"] = {**options["headers"], "Authorization": f"Bearer {SECRET}"}
    async with AsyncFriendli(token, server_url=server.url, **options) as client:
        stream = ask(client)
        error = await _failure(stream.result())
        assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
        shown = [_texts_of(error), repr(client), str(client), repr(vars(client)), repr(stream)]
        shown += [repr(vars(stream)), repr(client.serverless), repr(vars(client.serverless)), repr(stream._opening)]
        shown += [repr(client.with_options(token=SECRET + "2")), repr(vars(client.serverless.chat))]
        shown += [repr(vars(client.serverless.chat._engine)) if how != "header" else ""]
        shown += [f"{record.getMessage()} {record.__dict__}" for record in caplog.records if "friendli" in record.name]
    assert not [text for text in shown if SECRET in text]
    assert any(record.name == "friendli_async" for record in caplog.records)


async def test_dead_hosts_show_no_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with deaf_port() as port:
        options: dict[str, Any] = {"timeout": Timeouts(connect=0.05), "retry": QUICK}
        async with AsyncFriendli(SECRET, server_url=f"http://127.0.0.1:{port}", **options) as client:
            error = await _failure(complete(client))
    assert SECRET not in _texts_of(error)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("token", [SECRET + "\r\nX: y", SECRET + "\n", SECRET + "é", SECRET + "\x00"])
async def test_an_unusable_token_is_refused_and_not_shown(
    server: FriendliServer, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError) as caught:
        AsyncFriendli(token, server_url=server.url)
    async with AsyncFriendli(lambda: token, server_url=server.url) as client:
        with pytest.raises(ConfigurationError) as later:
            await complete(client)
    for error in (caught.value, later.value):
        assert SECRET not in "".join(traceback.format_exception(error)) + repr(error) + repr(pickle.dumps(error))
    assert SECRET not in caplog.text
    assert server.connections == 0


async def test_the_log_tells_of_attempts_and_retries_and_of_nothing_private(
    server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "friendli_async")
    server.enqueue(status(503, message="private words"), text("ok"))
    async with client_of(server.url, retry=QUICK, headers={"X-Private": "h-private"}) as client:
        await client.serverless.chat.complete(
            model="m", messages=[{"role": "user", "content": "b-private"}], extra_query={"q": "q-private"}
        )
    records = [(record.levelname, record.getMessage()) for record in caplog.records if "friendli" in record.name]
    assert [level for level, _ in records] == ["DEBUG", "INFO", "DEBUG"]
    assert "503" in records[0][1]
    assert "/serverless/v1/chat/completions" in records[0][1]
    assert "private" not in str(records)
