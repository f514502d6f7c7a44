"""Fault specifications, the access log and the command line of the embedded server."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    InternalServerError,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async.cli import serve
from friendli_async.cli.__main__ import main
from friendli_async.errors import APIConnectionError, APITimeoutError
from friendli_async.testing import FriendliServer, status
from friendli_async.testing.faults import HELP, parse, parse_pace

ASK: Final[dict[str, Any]] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def client_of(server: FriendliServer, **options: Any) -> AsyncFriendli:
    return AsyncFriendli(server.token, server_url=server.url, retry=None, pacing=None, **options)


async def outcomes(faults: str, calls: int, **options: Any) -> list[Any]:
    """Returns what each of `calls` plain calls results in: the text, or the error."""
    found: list[Any] = []
    async with FriendliServer(faults=faults) as server, client_of(server, **options) as client:
        for _ in range(calls):
            try:
                reply = await client.serverless.chat.complete(**ASK)
                found.append(reply.text)
            except APIStatusError as error:
                found.append((error.status_code, error.retry_after, error.message))
            except APIConnectionError as error:
                found.append(type(error))
    return found


async def test_then_ok_ends_the_faults() -> None:
    first, second, third = await outcomes("status=429;retry_after=1;message=slow down,then=ok", 3)
    assert first == (429, 1.0, "slow down")
    assert isinstance(second, str)
    assert second == third


async def test_times_and_then_repeat() -> None:
    found = await outcomes("ok;times=2,status=503,then=repeat", 7)
    assert [isinstance(outcome, str) for outcome in found] == [True, True, False, True, True, False, True]


@pytest.mark.parametrize("fault", ["cut=0", "cut=1", "reset=0", "reset=1"])
async def test_plain_replies_are_cut_or_reset(fault: str) -> None:
    first, second = await outcomes(fault, 2)
    assert issubclass(first, APIConnectionError)
    assert isinstance(second, str)


@pytest.mark.parametrize("fault", ["stall=0", "stall=1"])
async def test_plain_replies_stall(fault: str) -> None:
    assert await outcomes(fault, 1, timeout=Timeouts(first_event=0.05)) == [APITimeoutError]


@pytest.mark.parametrize("fault", ["cut=3", "reset=3"])
async def test_streams_are_cut_or_reset_after_given_number_of_events(fault: str) -> None:
    async with FriendliServer(faults=fault) as server, client_of(server) as client:
        async with client.serverless.chat.stream(**ASK) as stream:
            for _ in range(3):
                await anext(stream)
            with pytest.raises(StreamInterruptedError):
                await anext(stream)
        assert (await client.serverless.chat.stream(**ASK).result()).text


async def test_fault_can_be_limited_to_a_path() -> None:
    faults = "status=503;path=/serverless/v1/completions"
    async with FriendliServer(faults=faults) as server, client_of(server) as client:
        assert (await client.serverless.chat.complete(**ASK)).text
        with pytest.raises(InternalServerError):
            await client.serverless.completions.complete(model="m", prompt="a")


async def test_delay_precedes_the_reply() -> None:
    assert await outcomes("delay=30", 1, timeout=0.05) == [APITimeoutError]


async def test_scripts_take_precedence_over_faults() -> None:
    async with FriendliServer(faults="status=503") as server, client_of(server) as client:
        server.enqueue(status(418))
        with pytest.raises(APIStatusError, match="418"):
            await client.serverless.chat.complete(**ASK)
        with pytest.raises(InternalServerError):
            await client.serverless.chat.complete(**ASK)


INVALID: Final = {
    "": "'': expected ok, status",
    "status=429,,then=ok": "'': expected ok, status",
    "status=42": "'status=42': status must be a whole number from 400 to 599",
    "ok, status=x": "'status=x': status must be a whole number",
    "status=429; wait=1": "'status=429; wait=1': expected ok, status, retry_after, message, cut, reset, stall, delay, "
    "times, path, not 'wait=1'",
    "retry_after=1": "'retry_after=1': retry_after and message need a status",
    "then=ok": "no fault before then=",
    "then=ok,status=503": "'then=ok': then= must be the last item",
    "status=503,then=never": "then= must be ok or repeat, not 'never'",
    "ok=1": "expected ok, status",
    "delay": "delay must be a number of seconds",
    "delay=nan": "delay must be a number of seconds",
    "delay=-1": "delay must be a number of seconds",
    "times=0": "times must be a whole number from 1",
    "path=v1": "path must be a path that starts with /",
    "cut=": "cut must be a whole number",
    "cut=-1": "cut must be a whole number",
    "cut=" + "9" * 5000: "cut must be a whole number",
    "cut=٣": "cut must be a whole number",
}


@pytest.mark.parametrize(("text", "message"), INVALID.items(), ids=[text[:30] for text in INVALID])
def test_invalid_spec_is_reported_with_its_item(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        parse(text)
    assert len(str(raised.value)) < 300


@given(st.text(alphabet="okstau=;, 0123456789cdelyrpn/th", max_size=40) | st.text(max_size=20))
def test_any_text_parses_or_raises_fault_error(text: str) -> None:
    try:
        found = bool(parse(text).items)
    except ValueError as error:
        found = str(error).startswith(("'", '"', "then= must", "no fault"))
    assert found


def test_help_mentions_every_setting() -> None:
    for name in ("ok", "status", "retry_after", "message", "cut", "reset", "stall", "delay", "times", "path", "then"):
        assert name in HELP


@pytest.mark.parametrize(("text", "seconds"), [("0.02", 0.02), ("20ms", 0.02), ("50/s", 0.02), ("1s", 1.0), ("0", 0.0)])
def test_pace_is_parsed_as_seconds_milliseconds_or_rate(text: str, seconds: float) -> None:
    assert parse_pace(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1", "0/s", "nan", "/s", "ms", "1 min", "1e-320/s"])
def test_invalid_pace_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a pace"):
        parse_pace(text)


# --- the access log and the command line -----------------------------------------------------------------------------


async def test_access_log_has_every_request_and_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    log = serve._log
    async with FriendliServer("secret", faults="cut=0", access_log=log) as server, client_of(server) as client:
        with pytest.raises(APIConnectionError):
            await client.serverless.chat.complete(**ASK)
        await client.serverless.chat.complete(**ASK, extra_query={"key": "secret"})
        await server.idle()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["POST", "/serverless/v1/chat/completions", "200", outcome] for outcome in ("broken", "completed")
    ]
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize("argument", ["--fault=status=1", "--pace=fast", "--port=65536"])
def test_invalid_command_line_option_is_named(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["serve", argument])
    assert raised.value.code == 2
    stderr = capsys.readouterr().err
    assert argument.partition("=")[0] in stderr
    assert any(reason in stderr for reason in ("status must be", "expected a pace", "0 to 65535"))


def test_command_line_help_explains_faults() -> None:
    command = [sys.executable, "-m", "friendli_async.cli", "serve", "--help"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert "--fault 'status=429;retry_after=1,then=ok'" in done.stdout
