"""What audio, image and file operations send, beside recorded requests of the official SDK (`requests_media.jsonl`)."""

import copy
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from friendli_async import AsyncFriendli
from friendli_async.testing import FriendliServer, ReceivedRequest, Script, done, event, json_body, script

Recorded = dict[str, Any]

DATA: Final = Path(__file__).parent / "data" / "requests_media.jsonl"
LINES: Final[list[Recorded]] = [json.loads(line) for line in DATA.read_text().splitlines()]
HEADERS: Final = ("accept", "content-type", "authorization", "x-friendli-team")


def given(line: Recorded) -> dict[str, Any]:
    kwargs: dict[str, Any] = line["call_kwargs"]
    return kwargs


def streams(line: Recorded) -> bool:
    return line["operation"].endswith(".stream") or given(line).get("stream") is True


@dataclass(frozen=True)
class Difference:
    """One deliberate difference: `adapt` changes a recorded request, in place, into what we send."""

    name: str
    reason: str
    adapt: Callable[[Recorded], object]


def _no_false(line: Recorded) -> None:
    if "multipart" in line and not streams(line):
        line["multipart"] = [part for part in line["multipart"] if part["name"] != "stream"]


def _accept(line: Recorded) -> None:
    if "multipart" in line:
        line["headers"]["accept"] = "text/event-stream" if streams(line) else "application/json"


def _no_defaults(line: Recorded) -> None:
    for name in ("num_inference_steps", "guidance_scale"):
        if ".image." in line["operation"] and name not in given(line):
            line["json_body"].pop(name, None)


def _container_model(line: Recorded) -> None:
    if line["operation"].startswith("container.image") and given(line).get("model", ...) is None:
        del line["json_body"]["model"]


def _whole_id(line: Recorded) -> None:
    if "file_id" in given(line):
        suffix = "/download_url" if line["operation"].endswith("get_download_url") else ""
        line["path"] = f"/beta/file/{quote(given(line)['file_id'], safe='')}{suffix}"


DIFFERENCES: Final = [
    Difference("no stream: false", "What is the server's default is left out.", _no_false),
    Difference("plain Accept", "We accept what we can read, and nothing else.", _accept),
    Difference("no defaults unasked", "Options that the caller leaves out are left to the server.", _no_defaults),
    Difference("no model: null", "A container's model is left out where there is none, as in chat.", _container_model),
    Difference("ids are encoded", "An id with a slash or a question mark addresses the same file.", _whole_id),
]


def adapted(line: Recorded) -> Recorded:
    expected = copy.deepcopy(line)
    for difference in DIFFERENCES:
        difference.adapt(expected)
    return expected


def answer(request: ReceivedRequest) -> Script:
    """One reply that serves as any of the operations'."""
    if request.headers["Accept"] == "text/event-stream":
        return script(event({"type": "transcript.text.done", "text": "ok"}), done())
    everything = {"text": "ok", "data": [], "image": "QUJD", "fileId": "f", "id": "f", "status": "UPLOADED"}
    return json_body(everything | {"downloadUrl": "https://host/f"})


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        running.always(answer)
        yield running


@pytest.fixture
async def client(server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    async with AsyncFriendli("test-token", server_url=server.url, container_url=server.url, retry=None) as client:
        yield client


async def make(client: AsyncFriendli, line: Recorded) -> None:
    """Makes the recorded call our way, and reads its reply."""
    kwargs = dict(line["call_kwargs"])
    for name in ("stream", "accept_header_override"):
        kwargs.pop(name, None)
    team = kwargs.pop("x_friendli_team", None)
    file = kwargs.pop("file", None)
    if file is not None:
        kwargs["file"] = file["content"]["$bytes"].encode()
        kwargs["filename"] = file["file_name"]
        if "content_type" in file:
            kwargs["content_type"] = file["content_type"]
    *groups, method = line["operation"].split(".")
    resource: Any = client if team is None else client.with_options(team=team)
    for group in groups:
        resource = getattr(resource, group)
    if streams(line):
        assert (await resource.stream(**kwargs).result()).text == "ok"
    elif method == "complete_upload":
        assert await resource.complete_upload(**kwargs) is None
    else:
        assert (await getattr(resource, method)(**kwargs)).meta.status == 200


def label(line: Recorded) -> str:
    return f"{line['operation']}-{line['variant']}"


@pytest.mark.parametrize("line", LINES, ids=label)
async def test_sends_what_the_official_sdk_sends_but_for_the_listed_differences(
    server: FriendliServer, client: AsyncFriendli, line: Recorded
) -> None:
    await make(client, line)
    [received] = server.requests
    expected = adapted(line)
    assert received.method == expected["method"]
    assert received.raw_path == expected["path"]
    assert {name: list(values) for name, values in received.query.items()} == expected["query"]
    headers = {name: received.headers[name] for name in HEADERS if name in received.headers}
    headers |= {"content-type": headers["content-type"].partition(";")[0]} if "content-type" in headers else {}
    assert headers == expected["headers"]
    if "multipart" not in expected:
        assert received.json == expected["json_body"]
        return
    sent = [
        {"name": part.name, "filename": part.filename, "content_type": part.content_type, "text": part.text}
        for part in received.form
    ]
    for parts in (sent, expected["multipart"]):
        for part in parts:
            if part["content_type"] == "application/json":
                part["text"] = json.loads(part["text"])
    assert sent == expected["multipart"]
    assert int(received.headers["content-length"]) == len(received.body)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.name)
def test_every_listed_difference_is_one(difference: Difference) -> None:
    assert difference.reason

    def changes(line: Recorded) -> bool:
        changed = copy.deepcopy(line)
        difference.adapt(changed)
        return changed != line

    assert any(changes(line) for line in LINES), "a stale entry: no recorded request differs so"


def test_recordings_cover_audio_images_and_files() -> None:
    assert len({label(line) for line in LINES}) == len(LINES) == 49
    operations = {line["operation"] for line in LINES}
    audio = {f"{place}.audio.{verb}" for place in ("serverless", "dedicated", "container") for verb in AUDIO}
    images = {f"{place}.image.{verb}" for place in ("dedicated", "container") for verb in ("generate", "edit")}
    files = {f"file.{verb}" for verb in ("init_upload", "complete_upload", "get_info", "get_download_url")}
    assert operations == audio | images | files


AUDIO: Final = ("transcribe", "stream")
