"""What messages send, beside recorded requests of the official SDK (`data/requests_messages.jsonl`).

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

from friendli_async import AsyncFriendli
from friendli_async.testing import FriendliServer, event, json_body, script

Recorded = dict[str, Any]

DATA: Final = Path(__file__).parent / "data" / "requests_messages.jsonl"
LINES: Final[list[Recorded]] = [json.loads(line) for line in DATA.read_text().splitlines()]
HEADERS: Final = ("accept", "content-type", "authorization", "x-friendli-team")


def streams(line: Recorded) -> bool:
    """Whether this call is a stream with us: the SDK's later form tells by the body."""
    return line["operation"].endswith(".stream") or line["call_kwargs"].get("stream") is True


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
    """One deliberate difference: `adapt` changes a recorded request, in place, into what we send."""

    name: str
    reason: str
    adapt: Callable[[Recorded], object]


def _no_false(line: Recorded) -> None:
    if line["json_body"].get("stream") is False:
        del line["json_body"]["stream"]


def _accept(line: Recorded) -> None:
    line["headers"]["accept"] = "text/event-stream" if streams(line) else "application/json"


def _whole_blocks(line: Recorded) -> None:
    if "compat_blocks" in line["variant"]:
        line["json_body"]["messages"] = line["call_kwargs"]["messages"]


def _no_null_model(line: Recorded) -> None:
    if line["json_body"].get("model", ...) is None:
        del line["json_body"]["model"]


DIFFERENCES: Final = [
    Difference(
        "no stream: false",
        "create() leaves out what is the server's default; stream is no parameter of its own.",
        _no_false,
    ),
    Difference(
        "plain Accept",
        "We accept what we can read: an event stream for a stream, JSON for a plain call. The SDK's quality values ask "
        "for JSON even where it streams.",
        _accept,
    ),
    Difference(
        "blocks are sent whole",
        "What the caller passes is sent as it is; the SDK cuts documents, search results and the like down to their "
        "type.",
        _whole_blocks,
    ),
    Difference(
        "no null for a container's model",
        "An engine that serves one model takes no model for it, so None leaves it out.",
        _no_null_model,
    ),
]


def adapted(line: Recorded) -> Recorded:
    """The request that we are to send."""
    expected = copy.deepcopy(line)
    for difference in DIFFERENCES:
        difference.adapt(expected)
    return expected


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


@pytest.fixture
async def client(server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    async with AsyncFriendli("test-token", server_url=server.url, container_url=server.url, retry=None) as client:
        yield client


async def make(client: AsyncFriendli, line: Recorded) -> None:
    """Makes the recorded call our way, and reads its reply."""
    kwargs = dict(line["call_kwargs"])
    team, streamed = kwargs.pop("x_friendli_team", None), kwargs.pop("stream", None)
    if kwargs.pop("accept_header_override", None):
        assert streamed is True  # what the override asked for is what a stream of ours sends by itself
    if "additional_properties" in kwargs:
        kwargs["extra_body"] = kwargs.pop("additional_properties")
    deployment, group, _ = line["operation"].split(".")
    using = client if team is None else client.with_options(team=team)
    resource = getattr(getattr(using, deployment), group)
    if streams(line):
        assert [each async for each in resource.stream(**kwargs)]
    else:
        assert (await resource.create(**kwargs)).text == "ok"


def label(line: Recorded) -> str:
    return f"{line['operation']}-{line['variant']}-{line['sdk_version'].split()[0]}"


@pytest.mark.parametrize("line", LINES, ids=label)
async def test_messages_send_what_the_official_sdk_sends_but_for_the_listed_differences(
    server: FriendliServer, client: AsyncFriendli, line: Recorded
) -> None:
    whole = json_body({"content": [{"type": "text", "text": "ok"}]})
    server.enqueue(script(event({"type": "message_stop"}, name="message_stop")) if streams(line) else whole)
    await make(client, line)
    [received] = server.requests
    expected = adapted(line)
    assert received.method == expected["method"]
    assert received.path == expected["path"]
    assert {name: list(values) for name, values in received.query.items()} == expected["query"]
    headers = {name: received.headers[name] for name in HEADERS if name in received.headers}
    assert headers == expected["headers"]
    assert_same_json(received.json, expected["json_body"])


# --- the table itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.name)
def test_every_listed_difference_of_messages_is_one(difference: Difference) -> None:
    assert difference.reason

    def changes(line: Recorded) -> bool:
        changed = copy.deepcopy(line)
        difference.adapt(changed)
        return changed != line

    assert any(changes(line) for line in LINES), "a stale entry: no recorded request differs so"


def test_recordings_cover_messages_of_every_deployment_in_both_forms() -> None:
    assert len({label(line) for line in LINES}) == len(LINES) == 44
    places = ("serverless", "dedicated", "container")
    assert {line["operation"] for line in LINES} == {
        f"{place}.messages.{verb}" for place in places for verb in ("messages", "stream")
    }
