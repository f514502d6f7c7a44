"""What endpoint management and billing send, beside recorded requests of the official SDK.

The recordings are `data/requests_endpoints.jsonl` and `data/requests_billing.jsonl`. Each call is made through this
library, and what arrives is compared: method, path, query, four headers, and the JSON by value. `DIFFERENCES` lists
where the two differ on purpose.
"""

import copy
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from friendli_async import AsyncFriendli
from friendli_async.testing import FriendliServer, json_body

Recorded = dict[str, Any]

DATA: Final = Path(__file__).parent / "data"
LINES: Final[list[Recorded]] = [
    json.loads(line)
    for name in ("requests_endpoints.jsonl", "requests_billing.jsonl")
    for line in (DATA / name).read_text().splitlines()
]
HEADERS: Final = ("accept", "content-type", "authorization", "x-friendli-team")
# A reply to all of them: status, set-up, list, page of buckets, new endpoint.
REPLY: Final = {"status": "RUNNING", "name": "n", "data": {}, "endpointId": "ep_1"}
BUCKETS: Final = {"data": [], "has_more": False}


@dataclass(frozen=True)
class Difference:
    """One deliberate difference: `adapt` changes a recorded request, in place, into what we send."""

    name: str
    reason: str
    adapt: Callable[[Recorded], None]


def _no_query_defaults(line: Recorded) -> None:
    for name in ("limit", "project_id"):
        if name not in line["call_kwargs"]:
            line["query"].pop(name, None)


def _no_body_defaults(line: Recorded) -> None:
    given, sent = line["call_kwargs"], line["json_body"] or {}
    for ours, wire, defaults in (
        ("advanced", "advanced", ("max_token_count",)),
        ("autoscaling_policy", "autoscalingPolicy", ("minReplica", "maxReplica", "cooldownPeriod")),
    ):
        for name in defaults:
            if given.get(ours) is not None and name not in given[ours]:
                del sent[wire][name]


def _cursor_as_text(line: Recorded) -> None:
    if "cursor" in line["query"]:
        line["query"]["cursor"] = [text.removeprefix("b'").removesuffix("'") for text in line["query"]["cursor"]]


DIFFERENCES: Final = [
    Difference(
        "no query defaults unasked",
        "What the caller leaves out is left to the server: how long a page is, and which project (an empty one at "
        "that).",
        _no_query_defaults,
    ),
    Difference(
        "no body defaults unasked",
        "What the caller leaves out of a configuration is left to the server, whose defaults can change.",
        _no_body_defaults,
    ),
    Difference(
        "cursors are text",
        "The official SDK takes bytes and sends Python's notation of them; a cursor goes back as it came.",
        _cursor_as_text,
    ),
]


def adapted(line: Recorded) -> Recorded:
    """The request that we are to send."""
    expected = copy.deepcopy(line)
    for difference in DIFFERENCES:
        difference.adapt(expected)
    return expected


def value(recorded: object) -> object:
    """A recorded argument as our methods take it."""
    match recorded:
        case {"$datetime": str(text)}:
            return datetime.fromisoformat(text)
        case {"$bytes": str(text)}:
            return text
        case _:
            return recorded


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


async def make(server: FriendliServer, line: Recorded) -> None:
    """Makes the recorded call our way, and reads its reply."""
    kwargs = {name: value(recorded) for name, recorded in line["call_kwargs"].items()}
    team: Any = kwargs.pop("x_friendli_team", None)
    async with AsyncFriendli("test-token", team=team, server_url=server.url, retry=None) as client:
        group, _, method = line["operation"].rpartition(".")
        if group == "dedicated.endpoint":
            server.always(json_body(REPLY))
            called = getattr(client.dedicated.endpoint, method)(**kwargs)
        else:
            server.always(json_body(BUCKETS))
            called = {"cost": client.cost, "usage": client.usage}[group].get(**kwargs)
        await called


def label(line: Recorded) -> str:
    return f"{line['operation']}-{line['variant']}"


@pytest.mark.parametrize("line", LINES, ids=label)
async def test_sends_what_the_official_sdk_sends_but_for_the_listed_differences(
    server: FriendliServer, line: Recorded
) -> None:
    await make(server, line)
    [received] = server.requests
    expected = adapted(line)
    assert (received.method, received.path) == (expected["method"], expected["path"])
    assert {name: list(values) for name, values in received.query.items()} == expected["query"]
    assert {name: received.headers[name] for name in HEADERS if name in received.headers} == expected["headers"]
    # As text, a boolean is not a number; whole numbers are written alike in these recordings.
    assert json.dumps(received.json, sort_keys=True) == json.dumps(expected["json_body"], sort_keys=True)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.name)
def test_every_listed_difference_is_one(difference: Difference) -> None:
    assert difference.reason

    def changes(line: Recorded) -> bool:
        changed = copy.deepcopy(line)
        difference.adapt(changed)
        return changed != line

    assert any(changes(line) for line in LINES), "a stale entry: no recorded request differs so"


def test_recordings_cover_every_operation() -> None:
    assert len({label(line) for line in LINES}) == len(LINES) == 31
    verbs = ("create", "delete", "get_spec", "get_status", "get_version_history", "list", "restart", "sleep")
    verbs += ("terminate", "update", "wake", "wandb_artifact_create")
    endpoint = {f"dedicated.endpoint.{verb}" for verb in verbs}
    assert {line["operation"] for line in LINES} == endpoint | {"cost.get_cost", "usage.get_usage"}
