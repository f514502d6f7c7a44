"""The embedded server's audio, images, endpoints, billing and files: stored state and request validation."""

import base64
import hashlib
from typing import Any, Final

import aiohttp
import pytest
from support.api_client import Client

from friendli_async.testing import FriendliServer
from friendli_async.testing.forms import form_values, parse_form
from friendli_async.testing.schema import validate

ENDPOINT: Final = "/dedicated/beta/endpoint"
SPEC: Final = {
    "projectId": "p",
    "name": "mine",
    "instanceOptionId": "i",
    "advanced": {"tokenizer_skip_special_tokens": True, "tokenizer_add_special_tokens": False},
}


@pytest.fixture
def client(session: aiohttp.ClientSession) -> Client:
    return Client(session)


def audio_form(**fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(fields)
    form.add_field("file", b"RIFF" * 100, filename="a.wav", content_type="audio/wav")
    return form


def encode_form(*parts: str) -> bytes:
    return "".join(f"--b\r\n{part}\r\n" for part in parts).encode() + b"--b--\r\n"


# --- audio and images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/serverless", "/dedicated", ""])
async def test_transcription_accepts_a_form(client: Client, prefix: str) -> None:
    path = f"{prefix}/v1/audio/transcriptions"
    fields = {"model": "m", "language": "en", "temperature": "0.5", "chunking_strategy": '"auto"'}
    async with client.session.post(path, data=audio_form(**fields, stream="false")) as response:
        whole = await response.json()
    assert validate("ServerlessAudioTranscriptionSuccess", whole) == []
    assert whole["text"] == "This is a.wav, 400 bytes long."
    *deltas, done, (_, last) = await client.events(path, audio_form(**fields, stream="true"))
    assert "".join(data["delta"] for _, data in deltas) == whole["text"]
    assert done[1] == {"type": "transcript.text.done", **whole}
    assert last == "[DONE]"


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({}, ["body", "model"]),
        ({"model": "m", "stream": "yes"}, ["body", "stream"]),
        ({"model": "m", "temperature": "hot"}, ["body", "temperature"]),
        ({"model": "m", "chunking_strategy": '{"type": "other"}'}, ["body", "chunking_strategy", "type"]),
        ({"model": "m", "chunking_strategy": "[]"}, ["body", "chunking_strategy"]),
    ],
)
async def test_form_fields_are_validated(client: Client, fields: dict[str, str], loc: list[str]) -> None:
    async with client.session.post("/serverless/v1/audio/transcriptions", data=audio_form(**fields)) as response:
        assert response.status == 422
        assert (await response.json())["detail"][0]["loc"] == loc


@pytest.mark.parametrize(
    ("content_type", "data", "status"),
    [
        ("application/json", b"{}", 400),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=b", b"--b\r\nx", 400),
        ("multipart/form-data; boundary=b", encode_form("no headers"), 422),
        ("multipart/form-data; boundary=b", encode_form("Content-Type: x/y\r\n\r\nno name"), 422),
        ("multipart/form-data; boundary=b", encode_form('Content-Disposition: form-data; name="file"\r\n\r\nx'), 422),
        (
            "multipart/form-data; boundary=b",
            encode_form('Content-Disposition: form-data; name="chunking_strategy"\r\n\r\nauto'),
            400,
        ),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 422),
    ],
)
async def test_invalid_form_is_rejected(client: Client, content_type: str, data: bytes, status: int) -> None:
    headers = {"Content-Type": content_type}
    async with client.session.post("/v1/audio/transcriptions", data=data, headers=headers) as response:
        assert response.status == status


def test_form_parts_keep_bytes_names_and_types() -> None:
    head = 'Content-Disposition: form-data; name="file"; filename="a b.wav"\r\ncontent-type: audio/wav\r\n\r\n'
    body = b"--b\r\n" + head.encode() + b"\x00\r\n--\r\nb\xff\r\n--b--"
    [part] = parse_form('multipart/form-data; boundary="b"', body)
    assert (part.name, part.filename, part.content_type) == ("file", "a b.wav", "audio/wav")
    assert part.data == b"\x00\r\n--\r\nb\xff"
    assert part.text.endswith("�")
    values = form_values("ContainerAudioTranscriptionBody", [part])
    assert values == {"file": {"fileName": "a b.wav", "content": "", "Content-Type": "audio/wav"}}


@pytest.mark.parametrize("verb", ["generations", "edits"])
async def test_images_are_pngs_by_url_or_base64(client: Client, verb: str) -> None:
    body = {"model": "m", "prompt": "red", "num_inference_steps": 4, "seed": 7}
    body |= {"image": {"image": "aGk="}} if verb == "edits" else {}
    [by_url] = (await client.call_ok("POST", f"/dedicated/v1/images/{verb}", body))["data"]
    assert (by_url["seed"], by_url["response_format"]) == (7, "url")
    async with client.session.get(by_url["url"]) as response:
        image = await response.read()
        assert response.content_type == "image/png"
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    [inline] = (await client.call_ok("POST", f"/dedicated/v1/images/{verb}", {**body, "response_format": "png"}))[
        "data"
    ]
    in_container = await client.call_ok("POST", f"/v1/images/{verb}", body)
    assert base64.b64decode(inline["b64_json"]) == base64.b64decode(in_container["image"]) == image


# --- endpoints -------------------------------------------------------------------------------------------------------


async def poll_statuses(client: Client, name: str, count: int) -> list[str]:
    return [(await client.call_ok("GET", f"{ENDPOINT}/{name}/status"))["status"] for _ in range(count)]


async def test_endpoint_lifecycle(client: Client) -> None:
    created = await client.call_ok("POST", ENDPOINT, SPEC)
    assert (created["status"], created["phase"]) == ("INITIALIZING", "REQUESTING_VIRTUAL_MACHINE")
    [name] = (await client.call_ok("GET", ENDPOINT))["data"]
    endpoint_path = f"{ENDPOINT}/{name}"
    assert await poll_statuses(client, name, 4) == ["INITIALIZING", "INITIALIZING", "RUNNING", "RUNNING"]
    assert (await client.call_ok("PUT", f"{endpoint_path}/sleep"))["status"] == "SLEEPING"
    assert await poll_statuses(client, name, 1) == ["SLEEPING"]
    assert (await client.call_ok("PUT", f"{endpoint_path}/wake"))["status"] == "AWAKING"
    assert (await client.call_ok("PUT", f"{endpoint_path}/wake"))["status"] == "AWAKING"
    assert await poll_statuses(client, name, 1) == ["RUNNING"]
    assert (await client.call_ok("PUT", f"{endpoint_path}/wake"))["status"] == "RUNNING"
    restarted = await client.call_ok("PUT", f"{endpoint_path}/restart")
    assert (restarted["status"], restarted["updatedAt"] is None) == ("INITIALIZING", False)
    assert await poll_statuses(client, name, 3) == ["INITIALIZING", "INITIALIZING", "RUNNING"]
    assert (await client.call_ok("PUT", f"{endpoint_path}/terminate"))["status"] == "TERMINATING"
    assert await poll_statuses(client, name, 1) == ["TERMINATED"]
    assert await client.call_ok("DELETE", endpoint_path) is None
    for method, path in (("DELETE", endpoint_path), ("GET", endpoint_path), ("GET", f"{endpoint_path}/status")):
        assert (await client.call(method, path))[0] == 404


async def test_update_creates_a_version(client: Client) -> None:
    await client.call_ok("POST", ENDPOINT, {**SPEC, "autoscalingPolicy": {"maxReplica": 3}})
    endpoint_path = f"{ENDPOINT}/endpoint-1"
    spec = await client.call_ok("GET", endpoint_path)
    assert validate("DedicatedEndpointSpec", spec) == []
    assert (spec["name"], spec["autoscalingMax"], spec["tokenizerAddSpecialTokens"]) == ("mine", 3, False)
    assert (await client.call_ok("PUT", endpoint_path, {"name": "early"}))["name"] == "early"
    assert await poll_statuses(client, "endpoint-1", 3) == ["INITIALIZING", "INITIALIZING", "RUNNING"]
    changed = await client.call_ok("PUT", endpoint_path, {"name": "other", "simplescale": {"replicas": 2}})
    assert (changed["name"], changed["desiredReplicaCnt"]) == ("other", 2)
    assert await poll_statuses(client, "endpoint-1", 2) == ["UPDATING", "RUNNING"]
    history = await client.call_ok("GET", f"{endpoint_path}/version", limit=2)
    assert {version: item["name"] for version, item in history["data"].items()} == {"3": "other", "2": "early"}
    rest = await client.call_ok("GET", f"{endpoint_path}/version", cursor=history["nextCursor"])
    assert ([*rest["data"]], rest["nextCursor"]) == (["1"], None)


async def test_endpoint_list_is_filtered_by_project_and_paginated(client: Client) -> None:
    for number in range(5):
        await client.call_ok("POST", ENDPOINT, {**SPEC, "projectId": f"p{number % 2}"})
    first = await client.call_ok("GET", ENDPOINT, limit=2, project_id="p0")
    assert validate("DedicatedEndpointListResponse", first) == []
    last = await client.call_ok("GET", ENDPOINT, limit=2, project_id="p0", cursor=first["nextCursor"])
    assert [*first["data"], *last["data"]] == ["endpoint-1", "endpoint-3", "endpoint-5"]
    assert last["nextCursor"] is None
    assert len((await client.call_ok("GET", ENDPOINT, project_id=""))["data"]) == 5


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": "x"}])
async def test_invalid_page_parameters_are_rejected(client: Client, query: dict[str, Any]) -> None:
    status, reply = await client.call("GET", ENDPOINT, **query)
    assert (status, reply["detail"][0]["loc"]) == (422, ["query", next(iter(query))])


async def test_endpoint_is_created_from_wandb_artifact(client: Client) -> None:
    path = "/dedicated/endpoint/wandb-artifact-create"
    body = {"wandbArtifactVersionName": "art:v1", "accelerator": {"type": "H100", "count": 2}}
    created = await client.call_ok("POST", path, body)
    spec = await client.call_ok("GET", f"{ENDPOINT}/{created['endpointId']}")
    assert (spec["name"], spec["gpuType"], spec["numGpu"], spec["projectId"]) == ("art:v1", "H100", 2, "project-1")


async def test_path_parameters_are_decoded_and_recorded(server: FriendliServer, client: Client) -> None:
    assert (await client.call("GET", f"{ENDPOINT}/a%2Fb%3Fc"))[0] == 404
    assert server.requests[0].path_parameters == {"endpoint_id": "a/b?c"}
    assert (await client.call("GET", f"{ENDPOINT}/"))[0] == 404
    assert (await client.call("PATCH", f"{ENDPOINT}/a"))[0] == 405


async def test_query_is_recorded_with_the_types_of_its_schema(server: FriendliServer, client: Client) -> None:
    await client.call_ok("GET", ENDPOINT, limit=2, project_id="p")
    assert server.requests[0].query == {"limit": ["2"], "project_id": ["p"]}
    assert server.requests[0].values == {"limit": 2, "project_id": "p"}


# --- cost and usage --------------------------------------------------------------------------------------------------

JANUARY: Final = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-11T12:00:00Z"}


async def test_cost_is_paginated_by_day(client: Client) -> None:
    first = await client.call_ok("GET", "/v1/team/cost", **JANUARY)
    assert validate("CostResponse", first) == []
    assert (len(first["data"]), first["has_more"]) == (7, True)
    last = await client.call_ok("GET", "/v1/team/cost", page=first["next_page"], group_by="line_item", **JANUARY)
    assert (len(last["data"]), last["has_more"], last["next_page"]) == (4, False, None)
    assert last["data"][-1]["start_time"] == "2026-01-11T00:00:00Z"
    assert last["data"][-1]["end_time"] == "2026-01-11T12:00:00Z"
    assert [result["line_item"] for result in last["data"][0]["results"]] == ["input_tokens", "output_tokens"]


async def test_usage_is_grouped_and_filtered(client: Client) -> None:
    query = [*JANUARY.items(), ("bucket_width", "6h"), ("limit", "1"), ("group_by", "model"), ("group_by", "user_id")]
    async with client.session.get("/v1/team/usage", params=[*query, ("models", "friendli-testing")]) as response:
        reply = await response.json()
    assert validate("UsageResponse", reply) == []
    assert reply["data"][0]["end_time"] == "2026-01-01T06:00:00Z"
    [result] = reply["data"][0]["results"]
    assert (result["model"], result["user_id"], result["product_type"]) == ("friendli-testing", "user-1", None)


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"start_time": "yesterday"}, "start_time"),
        ({"end_time": "2025-01-01T00:00:00"}, "end_time"),
        ({"limit": "36"}, "limit"),
        ({"limit": "0"}, "limit"),
        ({"page": "3"}, None),
        ({"bucket_width": "5m"}, "bucket_width"),
        ({"group_by": "model"}, "group_by"),
    ],
)
async def test_invalid_query_is_rejected(client: Client, changes: dict[str, str], loc: str | None) -> None:
    status, reply = await client.call("GET", "/v1/team/cost", **{**JANUARY, **changes})
    assert (status, reply["detail"][0]["loc"] if status == 422 else None) == (
        (200, None) if loc is None else (422, ["query", loc])
    )


async def test_cost_query_near_year_9999_works(client: Client) -> None:
    query = {"start_time": "9999-12-30T12:00:00Z", "end_time": "9999-12-31T23:00:00Z"}
    assert len((await client.call_ok("GET", "/v1/team/cost", **query))["data"]) == 2


# --- files -----------------------------------------------------------------------------------------------------------


def file_metadata(content: bytes, **changes: object) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"name": "a.txt", "size": len(content), "digest": digest, "projectId": "p", **changes}


async def upload(url: str, fields: dict[str, str], content: bytes | None) -> int:
    form = aiohttp.FormData(fields, default_to_multipart=True)
    if content is not None:
        form.add_field("file", content, filename="upload")
    async with aiohttp.ClientSession() as session, session.post(url, data=form) as response:
        return response.status


async def test_file_upload_and_download(client: Client) -> None:
    content = b"one\r\n\x00\xff" * 1000
    created = await client.call_ok("POST", "/beta/file", file_metadata(content))
    file_path = f"/beta/file/{created['fileId']}"
    assert (await client.call_ok("GET", file_path))["status"] == "UPLOADING"
    assert (await client.call("PATCH", file_path))[0] == 409
    assert (await client.call("GET", f"{file_path}/download_url"))[0] == 409
    assert (await client.call("GET", f"/downloads/{created['fileId']}"))[0] == 404
    assert await upload(created["uploadUrl"], created["aws"], content) == 204
    assert await client.call_ok("PATCH", file_path) is None
    info = await client.call_ok("GET", file_path)
    assert validate("FileInfo", info) == []
    assert info["status"] == "UPLOADED"
    download = await client.call_ok("GET", f"{file_path}/download_url")
    async with aiohttp.ClientSession() as session, session.get(download["downloadUrl"]) as response:
        assert await response.read() == content


async def test_known_content_need_not_be_uploaded_again(client: Client) -> None:
    first = await client.call_ok("POST", "/beta/file", file_metadata(b"x"))
    assert await upload(first["uploadUrl"], first["aws"], b"x") == 204
    second = await client.call_ok("POST", "/beta/file", file_metadata(b"x", name="b.txt"))
    assert second == {"fileId": "file-2", "uploadUrl": None, "aws": None}
    assert await client.call_ok("PATCH", "/beta/file/file-2") is None


async def test_upload_that_differs_from_its_metadata_is_rejected(client: Client) -> None:
    created = await client.call_ok("POST", "/beta/file", file_metadata(b"abc"))
    url, fields = created["uploadUrl"], created["aws"]
    assert await upload(url, {}, b"abc") == 403
    assert await upload(url, {**fields, "key": "files/other"}, b"abc") == 403
    assert await upload(url, fields, None) == 400
    assert await upload(url, fields, b"abcd") == 400
    assert await upload(url, fields, b"abd") == 400
    async with client.session.post(url, data=b"abc") as response:
        assert response.status == 400
    assert (await client.call("GET", "/beta/file/file-9"))[0] == 404
