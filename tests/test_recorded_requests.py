"""Compares the request of every operation with recorded requests of the official SDK (`data/requests_*.jsonl`).

`support.recorded` makes the calls and lists the intentional differences.
"""

import copy
import json
from typing import Any, Final

import pytest
from support.recorded import (
    ANSWERS,
    DIFFERENCES,
    LINES,
    RECORDED,
    SEED,
    Difference,
    Recorded,
    adapted,
    assert_same_json,
    assert_sent,
    label,
    make,
    rejection,
    streams,
)

from friendli_async import AsyncFriendli, RetryPolicy
from friendli_async.testing import FriendliServer, text

DEPLOYMENTS: Final = ("serverless", "dedicated", "container")
METHODS: Final = ("complete", "stream")


@pytest.mark.parametrize("line", [line for line in LINES if rejection(line) is None], ids=label)
async def test_requests_match_the_official_sdk_except_for_listed_differences(
    server: FriendliServer, client: AsyncFriendli, line: Recorded
) -> None:
    server.always(ANSWERS[line["recording"]])
    await make(client, line)
    [received] = server.requests
    assert_sent(received, adapted(line))


@pytest.mark.parametrize("line", [line for line in LINES if rejection(line) is not None], ids=label)
async def test_calls_that_the_official_sdk_completes_or_sends_empty_are_rejected(
    server: FriendliServer, client: AsyncFriendli, line: Recorded
) -> None:
    difference = rejection(line)
    assert difference is not None
    assert difference.error is not None
    with pytest.raises(difference.error, match=difference.message):
        await make(client, line)
    assert server.requests == []


async def test_call_rejected_for_a_missing_constant_is_sent_once_it_is_given(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.always(ANSWERS["chat"])
    lines = [line for line in LINES if "consts_left_out" in line["variant"]]
    assert lines
    for line in lines:
        completed = copy.deepcopy(line)
        for name in ("tools", "tool_choice"):
            completed["call_kwargs"][name] = line["json_body"][name]
        await make(client, completed)
        assert_same_json(server.requests[-1].json, adapted(line)["json_body"])


async def test_tool_assisted_chat_completion_accepts_team_retries_and_url_per_call(server: FriendliServer) -> None:
    server.always(text("ok"))
    async with AsyncFriendli("test-token", team="config", server_url="http://127.0.0.1:9", retry=None) as client:
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
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


# --- the list of differences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.name)
def test_every_listed_difference_applies_to_a_recording(difference: Difference) -> None:
    assert difference.reason

    def changes(line: Recorded) -> bool:
        if difference.error is not None:
            return bool(difference.adapt(line))
        changed = copy.deepcopy(line)
        difference.adapt(changed)
        return rejection(line) is None and json.dumps(changed) != json.dumps(line)  # as text, since 1 == 1.0

    assert any(changes(line) for line in LINES), "stale entry: no recorded request has this difference"


# --- the recordings --------------------------------------------------------------------------------------------------


def operations(recording: str) -> set[str]:
    return {line["operation"] for line in RECORDED[recording]}


@pytest.mark.parametrize(
    ("recording", "count"),
    [("chat", 85), ("text", 56), ("messages", 44), ("responses", 39), ("media", 49), ("endpoints", 25), ("billing", 6)],
)
def test_recording_is_complete_and_its_labels_are_unique(recording: str, count: int) -> None:
    assert len({label(line) for line in RECORDED[recording]}) == len(RECORDED[recording]) == count


def test_recordings_cover_every_chat_operation_and_all_three_wire_forms() -> None:
    chats = {f"{deployment}.chat.{method}" for deployment in DEPLOYMENTS for method in METHODS}
    assert operations("chat") == chats | {f"serverless.tool_assisted_chat.{method}" for method in METHODS} | {SEED}
    lines = [line for line in RECORDED["chat"] if "tool_assisted" in line["operation"]]
    assert {line["sdk_version"].split()[0] for line in lines} == {"0.1.2", "0.3.0", "0.14.0"}


def test_recordings_cover_every_text_operation_group() -> None:
    groups = {operation.split(".")[1] for operation in operations("text")}
    assert groups == {"completions", "token", "chat_render", "embeddings", "text_classification", "model"}
    assert {operation.split(".")[0] for operation in operations("text")} == set(DEPLOYMENTS)


def test_recordings_cover_messages_of_every_deployment_plain_and_streamed() -> None:
    assert operations("messages") == {
        f"{deployment}.messages.{method}" for deployment in DEPLOYMENTS for method in ("messages", "stream")
    }


def test_recordings_cover_responses_of_every_deployment_plain_and_streamed() -> None:
    covered = {(line["operation"].split(".")[0], streams(line)) for line in RECORDED["responses"]}
    assert covered == {(deployment, kind) for deployment in DEPLOYMENTS for kind in (False, True)}


def test_recordings_cover_audio_images_and_files() -> None:
    audio = {f"{deployment}.audio.{method}" for deployment in DEPLOYMENTS for method in ("transcribe", "stream")}
    images = {
        f"{deployment}.image.{method}" for deployment in ("dedicated", "container") for method in ("generate", "edit")
    }
    files = {f"file.{method}" for method in ("init_upload", "complete_upload", "get_info", "get_download_url")}
    assert operations("media") == audio | images | files


def test_recordings_cover_every_management_operation() -> None:
    methods = ["create", "delete", "get_spec", "get_status", "get_version_history", "list", "restart", "sleep"]
    methods += ["terminate", "update", "wake", "wandb_artifact_create"]
    assert operations("endpoints") == {f"dedicated.endpoint.{method}" for method in methods}
    assert operations("billing") == {"cost.get_cost", "usage.get_usage"}
