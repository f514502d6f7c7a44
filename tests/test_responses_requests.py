"""What the responses operations send, beside recorded requests of the official SDK (`data/requests_responses.jsonl`).

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

DATA: Final = Path(__file__).parent / "data" / "requests_responses.jsonl"
LINES: Final[list[Recorded]] = [json.loads(line) for line in DATA.read_text().splitlines()]
HEADERS: Final = ("accept", "content-type", "authorization", "x-friendli-team")
REPLY: Final = {"id": "r", "created_at": 1, "output": [], "object": "response", "status": "completed"}


def given(line: Recorded) -> dict[str, Any]:
    """What the caller gave, by our names."""
    kwargs: dict[str, Any] = dict(line["call_kwargs"])
    kwargs.pop("x_friendli_team", None)
    kwargs.pop("accept_header_override", None)  # it asks for what a stream of ours sends by itself
    names = {"input_": "input", "additional_properties": "extra_body"}
    return {names.get(name, name): value for name, value in kwargs.items()}


def streams(line: Recorded) -> bool:
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
    """One deliberate difference: `adapt` changes a recorded request, in place, into what we send."""

    name: str
    reason: str
    adapt: Callable[[Recorded], object]


def _no_false(line: Recorded) -> None:
    if not line["json_body"].get("stream"):
        line["json_body"].pop("stream", None)


def _accept(line: Recorded) -> None:
    line["headers"]["accept"] = "text/event-stream" if streams(line) else "application/json"


def _no_model(line: Recorded) -> None:
    if line["operation"].startswith("container.") and line["json_body"].get("model", ...) is None:
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
        "no model rather than null",
        "A container without an adapter is asked for no model at all: None is the parameter's default.",
        _no_model,
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


async def make(client: AsyncFriendli, line: Recorded) -> str:
    """Makes the recorded call our way; gives the id of what it answered."""
    team = line["call_kwargs"].get("x_friendli_team")
    using = client if team is None else client.with_options(team=team)
    resource = getattr(using, line["operation"].split(".")[0]).responses
    kwargs = {name: value for name, value in given(line).items() if name != "stream"}
    reply = await (resource.stream(**kwargs).result() if streams(line) else resource.create(**kwargs))
    identity: str = reply.id
    return identity


def label(line: Recorded) -> str:
    return f"{line['operation']}-{line['variant']}-{line['sdk_version'].split()[0]}"


@pytest.mark.parametrize("line", LINES, ids=label)
async def test_sends_what_the_official_sdk_sends_but_for_the_listed_differences(
    server: FriendliServer, client: AsyncFriendli, line: Recorded
) -> None:
    last = {"type": "response.completed", "response": REPLY, "sequence_number": 0}
    server.enqueue(script(event(last, name="response.completed")) if streams(line) else json_body(REPLY))
    assert await make(client, line) == "r"
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
def test_every_listed_difference_is_one(difference: Difference) -> None:
    assert difference.reason

    def changes(line: Recorded) -> bool:
        changed = copy.deepcopy(line)
        difference.adapt(changed)
        return changed != line

    assert any(changes(line) for line in LINES), "a stale entry: no recorded request differs so"


def test_recordings_cover_every_deployment_whole_and_streamed() -> None:
    assert len({label(line) for line in LINES}) == len(LINES) == 39
    places = {(line["operation"].split(".")[0], streams(line)) for line in LINES}
    assert places == {(place, kind) for place in ("serverless", "dedicated", "container") for kind in (False, True)}
