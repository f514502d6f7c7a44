"""What the chat operations send, beside recorded requests of the official SDK (`data/requests_chat.jsonl`).

Each line holds a call and the request that it made. The call is made through this library, and what arrives is
compared: method, path, query, four headers, and the JSON by value. `DIFFERENCES` lists where the two differ on purpose.
"""

import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from friendli_async import AsyncFriendli, RetryPolicy
from friendli_async.testing import FriendliServer, text

Recorded = dict[str, Any]

DATA: Final = Path(__file__).parent / "data" / "requests_chat.jsonl"
LINES: Final[list[Recorded]] = [json.loads(line) for line in DATA.read_text().splitlines()]
SEED: Final = "serverless.tool_assisted_chat_completion"
BODY: Final = "tool_assisted_completion_request_body"
HEADERS: Final = ("accept", "content-type", "authorization", "x-friendli-team")

VERBS: Final = ("complete", "stream")
# Fields of tool-assisted chat before 0.14.0: its last form has no parameter for the first, no null for the second.
WITHDRAWN: Final = ("min_tokens", "response_format", "timeout_microseconds")
NOT_NULLABLE: Final = ("resume_generation",)


def given(line: Recorded) -> dict[str, Any]:
    """What the caller put into the body."""
    kwargs: dict[str, Any] = line["call_kwargs"]
    return kwargs.get(BODY, {}) if line["operation"] == SEED else kwargs


def streams(line: Recorded) -> bool:
    """Whether this call is a stream with us: the SDK's later form tells by the body, the seed operation by default."""
    if line["operation"] == SEED:
        return given(line).get("stream") is not False
    return line["operation"].endswith(".stream") or given(line).get("stream") is True


def assert_same_json(sent: object, expected: object) -> None:
    """Numbers are equal by value, but a boolean only to a boolean: in Python, True == 1."""
    assert sent == expected
    assert list(_booleans(sent)) == list(_booleans(expected))


def _booleans(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _booleans(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _booleans(item)
    else:
        yield isinstance(value, bool)


# --- deliberate differences ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One deliberate difference: `adapt` changes a recorded request, in place, into what we send.

    With `error`, we refuse the call before anything is sent: `adapt` then says which calls, by changing nothing but
    returning True.
    """

    name: str
    reason: str
    adapt: Callable[[Recorded], object]
    error: type[Exception] | None = None
    message: str = ""


def _no_false(line: Recorded) -> None:
    if line["operation"] != SEED and not line["json_body"].get("stream"):
        line["json_body"].pop("stream", None)


def _asks_for_usage(line: Recorded) -> None:
    if streams(line) and "stream_options" not in given(line):
        line["json_body"]["stream_options"] = {"include_usage": True}


def _seed_streams(line: Recorded) -> None:
    if line["operation"] == SEED and streams(line):
        line["json_body"]["stream"] = True


def _accept(line: Recorded) -> None:
    line["headers"]["accept"] = "text/event-stream" if streams(line) else "application/json"


def _no_sdk_defaults(line: Recorded) -> None:
    if line["sdk_version"].startswith(("0.1.2", "0.3.0")):
        for name in ("min_tokens", "n", "top_k", "temperature", "top_p"):
            if name not in given(line):
                line["json_body"].pop(name, None)


def _no_null(line: Recorded) -> None:
    if line["operation"] != SEED:
        for name in NOT_NULLABLE:
            if line["json_body"].get(name, ...) is None:
                del line["json_body"][name]


def _last_path(line: Recorded) -> None:
    if line["operation"] == SEED:
        line["path"] = f"/serverless{line['path']}"


DIFFERENCES: Final = [
    Difference(
        "no body",
        "A chat without a conversation cannot be answered, so the body is a required argument; the first SDK sent an "
        "empty request.",
        lambda line: line["operation"] == SEED and not given(line),
        TypeError,
        BODY,
    ),
    Difference(
        "constants are the caller's",
        "What the caller passes is sent as it is, never completed: a tool_choice without its type is refused instead.",
        lambda line: "consts_left_out" in line["variant"],
        ValueError,
        "type",
    ),
    Difference(
        "no stream: false",
        "complete() leaves out what is the server's default; stream is no parameter of its own.",
        _no_false,
    ),
    Difference(
        "streams ask for their usage",
        "A stream's reply has usage like a plain one's, unless the caller says otherwise by stream_options.",
        _asks_for_usage,
    ),
    Difference(
        "the seed operation streams",
        "It streams unless its body says false; its SDK left the choice to the server.",
        _seed_streams,
    ),
    Difference(
        "plain Accept",
        "We accept what we can read: an event stream for a stream, JSON for a plain call. The SDK's quality values ask "
        "for JSON even where it streams.",
        _accept,
    ),
    Difference(
        "no defaults unasked",
        "Options that the caller leaves out are left to the server. Releases 0.1.2 and 0.3.0 sent some of theirs.",
        _no_sdk_defaults,
    ),
    Difference(
        "no null where the last form has none",
        "In the body of 0.14.0 these fields cannot be null, so our parameters cannot be None either.",
        _no_null,
    ),
    Difference(
        "last path of tool-assisted chat",
        "The path without /serverless belonged to a host that is gone; the last releases used the one we use.",
        _last_path,
    ),
]


def refusal(line: Recorded) -> Difference | None:
    return next((each for each in DIFFERENCES if each.error is not None and each.adapt(line)), None)


def adapted(line: Recorded) -> Recorded:
    """The request that we are to send."""
    expected = copy.deepcopy(line)
    for difference in DIFFERENCES:
        if difference.error is None:
            difference.adapt(expected)
    return expected


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        running.always(text("ok"))
        yield running


@pytest.fixture
async def client(server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    async with AsyncFriendli("test-token", server_url=server.url, container_url=server.url, retry=None) as client:
        yield client


async def make(client: AsyncFriendli, line: Recorded) -> None:
    """Makes the recorded call our way, and reads its reply."""
    kwargs = dict(line["call_kwargs"])
    if line["operation"] == SEED:
        assert streams(line)
        assert [event async for event in client.serverless.tool_assisted_chat_completion(**kwargs)]
        return
    team, streamed = kwargs.pop("x_friendli_team", None), kwargs.pop("stream", None)
    if kwargs.pop("accept_header_override", None):
        assert streamed is True  # what the override asked for is what a stream of ours sends by itself
    if "tool_assisted" in line["operation"]:
        moved = {name: kwargs.pop(name) for name in WITHDRAWN if name in kwargs}
        kwargs = {key: value for key, value in kwargs.items() if key not in NOT_NULLABLE or value is not None}
        kwargs |= {"extra_body": moved} if moved else {}
    deployment, group, _ = line["operation"].split(".")
    using = client if team is None else client.with_options(team=team)
    resource = getattr(getattr(using, deployment), group)
    if streams(line):
        assert [event async for event in resource.stream(**kwargs)]
    else:
        assert (await resource.complete(**kwargs)).text == "ok"


def label(line: Recorded) -> str:
    return f"{line['operation']}-{line['variant']}-{line['sdk_version'].split()[0]}"


@pytest.mark.parametrize("line", [line for line in LINES if refusal(line) is None], ids=label)
async def test_sends_what_the_official_sdk_sends_but_for_the_listed_differences(
    server: FriendliServer, client: AsyncFriendli, line: Recorded
) -> None:
    await make(client, line)
    [received] = server.requests
    expected = adapted(line)
    assert received.method == expected["method"]
    assert received.path == expected["path"]
    assert {name: list(values) for name, values in received.query.items()} == expected["query"]
    headers = {name: received.headers[name] for name in HEADERS if name in received.headers}
    assert headers == expected["headers"]
    assert_same_json(received.json, expected["json_body"])


@pytest.mark.parametrize("line", [line for line in LINES if refusal(line) is not None], ids=label)
async def test_refuses_calls_that_the_official_sdk_completes_or_sends_empty(
    server: FriendliServer, client: AsyncFriendli, line: Recorded
) -> None:
    difference = refusal(line)
    assert difference is not None
    assert difference.error is not None
    with pytest.raises(difference.error, match=difference.message):
        await make(client, line)
    assert server.requests == []


async def test_what_is_refused_for_a_missing_constant_is_sent_once_it_is_there(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    lines = [line for line in LINES if "consts_left_out" in line["variant"]]
    assert lines
    for line in lines:
        completed = copy.deepcopy(line)
        for name in ("tools", "tool_choice"):
            completed["call_kwargs"][name] = line["json_body"][name]
        await make(client, completed)
        assert_same_json(server.requests[-1].json, adapted(line)["json_body"])


async def test_seed_operation_sends_its_own_team_retries_and_url(server: FriendliServer) -> None:
    async with AsyncFriendli("test-token", team="config", server_url="http://127.0.0.1:9", retry=None) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        reply = await client.serverless.tool_assisted_chat_completion(
            tool_assisted_completion_request_body=body,
            x_friendli_team="of the call",
            retries=RetryPolicy(max_attempts=1),
            server_url=f"{server.url}/prefix/",
        )
    assert reply.meta.status == 200
    [received] = server.requests
    assert received.headers["x-friendli-team"] == "of the call"
    assert received.path == "/prefix/serverless/tools/v1/chat/completions"
    assert received.json == body


# --- the table itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.name)
def test_every_listed_difference_is_one(difference: Difference) -> None:
    assert difference.reason

    def changes(line: Recorded) -> bool:
        if difference.error is not None:
            return bool(difference.adapt(line))
        changed = copy.deepcopy(line)
        difference.adapt(changed)
        return refusal(line) is None and changed != line

    assert any(changes(line) for line in LINES), "a stale entry: no recorded request differs so"


def test_recordings_cover_every_chat_operation_and_all_three_wire_forms() -> None:
    assert len({label(line) for line in LINES}) == len(LINES) == 85
    operations = {line["operation"] for line in LINES}
    chats = {f"{place}.chat.{verb}" for place in ("serverless", "dedicated", "container") for verb in VERBS}
    assert operations == chats | {f"serverless.tool_assisted_chat.{verb}" for verb in VERBS} | {SEED}
    releases = {line["sdk_version"].split()[0] for line in LINES if "tool_assisted" in line["operation"]}
    assert releases == {"0.1.2", "0.3.0", "0.14.0"}
