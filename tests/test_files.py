"""Files: the upload protocol, downloads, and cleanup after both."""

import asyncio
import gc
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import anyio
import pytest
from support.clock import Clock, run_loop_iterations, wait_until
from support.memory import MIB, assert_peak_memory_below
from support.sockets import FAST_RETRY, TOKEN, Conversation, RawServer, assert_no_leaks, client_of, with_timeout
from support.sockets import reply as http_reply

import friendli_async
from friendli_async import (
    APIConnectionError,
    APITimeoutError,
    ArgumentError,
    AsyncFriendli,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    ResponseDecodeError,
    Timeouts,
    UnprocessableEntityError,
)
from friendli_async._core.body.sources import open_in_thread
from friendli_async.files import UploadedFile, _FileSink
from friendli_async.testing import FriendliServer, body, cut, head, json_body, raw, reset, script, status

DATA: Final = bytes(range(256)) * 4096  # 1 MiB, four chunks
DIGEST: Final = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


async def iterate(data: bytes = DATA) -> AsyncIterator[bytes]:
    for position in range(0, len(data), 100_000):
        yield data[position : position + 100_000]


def list_folder(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture
def client_options() -> dict[str, Any]:
    return {"retry": FAST_RETRY, "team": "team", "headers": {"X-Mine": "secret"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "report.txt"
    path.write_bytes(DATA)
    return path


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "bytes", "open file", "iterator", "pipe"])
async def test_upload_follows_the_whole_protocol(
    server: FriendliServer, client: AsyncFriendli, path: Path, kind: str
) -> None:
    read_end, write_end = os.pipe()
    with path.open("rb") as file, os.fdopen(read_end, "rb") as pipe:
        os.write(write_end, DATA[:1000])
        os.close(write_end)
        given: dict[str, Any] = {
            "path": path,
            "bytes": DATA,
            "open file": file,
            "iterator": iterate(),
            "pipe": pipe,
        }
        uploaded = await with_timeout(client.file.upload(given[kind], project_id="proj", name="mine.txt"))
    size, digest = len(DATA), DIGEST
    if kind == "pipe":
        size, digest = 1000, f"sha256:{hashlib.sha256(DATA[:1000]).hexdigest()}"
    assert uploaded == UploadedFile(id="file-1", name="mine.txt", size=size, digest=digest)
    assert [(request.method, request.path) for request in server.requests] == [
        ("POST", "/beta/file"),
        ("POST", "/uploads/file-1"),
        ("PATCH", "/beta/file/file-1"),
    ]
    expected = {"name": "mine.txt", "size": size, "digest": digest, "projectId": "proj"}
    assert server.requests[0].json == expected
    info = await client.file.get_info(uploaded.id)
    assert (info.status, info.size, info.digest, info.project_id) == ("UPLOADED", size, digest, "proj")
    assert info.created_at is not None
    assert info.created_at.tzinfo is UTC


async def test_content_is_a_form_with_fields_first_and_without_api_headers(
    server: FriendliServer, client: AsyncFriendli, path: Path
) -> None:
    await client.file.upload(path, project_id="proj")
    sent = server.requests[1]
    assert [(part.name, part.filename, part.content_type) for part in sent.form] == [
        ("key", None, None),
        ("policy", None, None),
        ("file", "upload", "application/octet-stream"),
    ]
    assert int(sent.headers["Content-Length"]) == len(sent.body)
    assert {name.lower() for name in sent.headers} == {
        *("host", "accept", "accept-encoding", "user-agent", "content-type", "content-length"),
    }
    for api_request in (server.requests[0], server.requests[2]):
        assert api_request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert api_request.headers["X-Friendli-Team"] == "team"
        assert api_request.headers["X-Mine"] == "secret"


async def test_existing_content_is_not_uploaded_again(server: FriendliServer, client: AsyncFriendli) -> None:
    seen: list[tuple[int, int | None]] = []
    first = await client.file.upload(DATA, project_id="proj")
    again = await client.file.upload(DATA, project_id="proj", progress=lambda *now: seen.append(now))
    assert first.id != again.id
    assert [request.path for request in server.requests[3:]] == ["/beta/file", f"/beta/file/{again.id}"]
    assert seen == [(len(DATA), len(DATA))]
    await client.file.upload(DATA, project_id="proj")
    assert len(server.requests) == 3 + 2 + 2


async def test_progress_is_reported_from_zero_for_each_attempt(server: FriendliServer, client: AsyncFriendli) -> None:
    seen: list[tuple[int, int | None]] = []
    server.enqueue(script(reset()), path="/uploads/file-1")
    await client.file.upload(DATA, project_id="proj", progress=lambda *now: seen.append(now))
    quarter = len(DATA) // 4
    once = [(quarter * number, len(DATA)) for number in range(5)]
    assert seen == once * 2


async def test_progress_callback_error_stops_the_upload(server: FriendliServer, client: AsyncFriendli) -> None:
    def stop(sent: int, total: int | None) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        await with_timeout(client.file.upload(DATA, project_id="proj", progress=stop))
    await assert_no_leaks(client, server, connections=server.open_connections)


@pytest.mark.parametrize(
    ("content", "options", "name"),
    [("path", {}, "report.txt"), ("bytes", {}, DIGEST), ("path", {"name": "x"}, "x"), ("bytes", {"name": "x"}, "x")],
    ids=["path", "bytes", "named path", "named bytes"],
)
async def test_default_and_given_file_names(
    server: FriendliServer, client: AsyncFriendli, path: Path, content: str, options: Any, name: str
) -> None:
    uploaded = await client.file.upload(path if content == "path" else DATA, project_id="proj", **options)
    assert uploaded.name == name
    assert (await client.file.get_info(uploaded.id)).name == name


async def test_empty_file_can_be_uploaded(server: FriendliServer, client: AsyncFriendli, tmp_path: Path) -> None:
    uploaded = await client.file.upload(b"", project_id="proj")
    assert uploaded.size == 0
    await client.file.download(uploaded.id, tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


async def test_upload_initiation_is_not_retried_after_send(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(reset()))
    with pytest.raises(APIConnectionError):
        await client.file.upload(b"x", project_id="proj")
    assert len(server.requests) == 1


async def test_rejected_upload_is_an_error_and_is_not_completed(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(403, message="the policy has expired"), path="/uploads/file-1")
    with pytest.raises(PermissionDeniedError, match="the policy has expired"):
        await client.file.upload(DATA, project_id="proj")
    assert [request.method for request in server.requests] == ["POST", "POST"]


async def test_upload_response_need_not_be_json(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(body(b"<PostResponse/>", status=201, content_type="application/xml"), path="/uploads/file-1")
    server.enqueue(body(b"", content_type="text/plain"), path="/beta/file/file-1")
    assert (await client.file.upload(DATA, project_id="proj")).id == "file-1"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "/relative",
        "",
        "http://user:key@host/",
        "http://host/a b",
        "http://[",
        "http://host:99999/",
        "http://h:0/",
    ],
)
async def test_invalid_target_url_is_rejected_without_quoting_it(
    server: FriendliServer, client: AsyncFriendli, url: str, tmp_path: Path
) -> None:
    server.enqueue(json_body({"fileId": "f", "uploadUrl": url}), json_body({"downloadUrl": url}))
    with pytest.raises(ResponseDecodeError, match="upload URL") as caught:
        await client.file.upload(DATA, project_id="proj")
    assert "key" not in str(caught.value)
    with pytest.raises(ResponseDecodeError, match="download URL"):
        await client.file.download("f", tmp_path / "f")
    assert len(server.requests) == 2
    assert list_folder(tmp_path) == []


async def test_empty_202_response_is_none_and_fails_an_upload(server: FriendliServer, client: AsyncFriendli) -> None:
    accepted = body(b"", status=202, content_type="text/plain")
    server.enqueue(accepted, accepted)
    assert await client.file.init_upload(name="n", size=1, digest=DIGEST, project_id="p") is None
    with pytest.raises(ResponseDecodeError, match="returned no file id or upload URL"):
        await client.file.upload(b"x", project_id="p")


async def test_file_changed_during_upload_is_an_error(
    server: FriendliServer, client: AsyncFriendli, path: Path
) -> None:
    def change(sent: int, total: int | None) -> None:
        if sent:
            path.write_bytes(b"other")

    with pytest.raises(ValueError, match="has changed"):
        await client.file.upload(path, project_id="proj", progress=change)
    assert [request.path for request in server.requests if request.method == "PATCH"] == []


async def test_temporary_copy_is_removed_after_success_and_failure(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[Any] = []
    original = tempfile.TemporaryFile

    def recording() -> Any:
        created.append(original(dir=tmp_path))
        return created[-1]

    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise RuntimeError("mine")

    monkeypatch.setattr(tempfile, "TemporaryFile", recording)
    await client.file.upload(iterate(), project_id="proj")
    with pytest.raises(RuntimeError, match="mine"):
        await client.file.upload(broken(), project_id="proj")
    assert [file.closed for file in created] == [True, True]
    assert list_folder(tmp_path) == []


async def _unread() -> AsyncIterator[bytes]:
    yield pytest.fail("the content was read")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"content": _unread(), "project_id": None}, "project_id: Expected `str`"),
        ({"content": "report.txt", "project_id": "p"}, r"content: .*pathlib\.Path"),
        ({"content": b"x", "project_id": None}, "project_id: Expected `str`"),
        ({"content": b"x", "project_id": "p", "name": 5}, "name: Expected `str`"),
        ({"content": io.StringIO("x"), "project_id": "p"}, "binary mode"),
    ],
    ids=["content that is read later", "str", "no project", "number as name", "text file"],
)
async def test_invalid_argument_is_rejected_before_sending(
    server: FriendliServer, client: AsyncFriendli, arguments: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        await client.file.upload(**arguments)
    with pytest.raises(ValueError, match="size: Expected `int`"):
        await client.file.init_upload(name="n", size="1", digest="d", project_id="p")  # type: ignore[arg-type]  # on purpose
    assert server.connections == 0


async def test_server_validation_errors_are_raised(server: FriendliServer, client: AsyncFriendli) -> None:
    detail = [{"loc": ["body", "digest"], "msg": "Input should be sha256", "type": "value_error"}]
    server.enqueue(json_body({"detail": detail}, status=422))
    with pytest.raises(UnprocessableEntityError, match="digest"):
        await client.file.init_upload(name="n", size=1, digest="md5:0", project_id="p")
    upload = await client.file.init_upload(name="n", size=1, digest=DIGEST, project_id="p")
    assert upload is not None
    assert upload.upload_url is not None
    assert upload.aws == {"key": "files/file-1", "policy": "size=1"}
    with pytest.raises(ConflictError):
        await client.file.complete_upload(upload.file_id)
    assert (await client.file.get_info(upload.file_id)).status == "UPLOADING"
    with pytest.raises(NotFoundError):
        await client.file.get_info("no such file")


# --- downloads -------------------------------------------------------------------------------------------------------


async def test_download_returns_uploaded_content_and_reports_progress(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path
) -> None:
    uploaded = await client.file.upload(DATA, project_id="proj")
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "here.bin"
    target.write_bytes(b"old")
    path = await with_timeout(client.file.download(uploaded.id, str(target), progress=lambda *now: seen.append(now)))
    assert path == target
    assert target.read_bytes() == DATA
    assert list_folder(tmp_path) == [target]
    assert (seen[0], seen[-1]) == ((0, len(DATA)), (len(DATA), len(DATA)))
    fetched = server.requests[-1]
    assert fetched.path == f"/downloads/{uploaded.id}"
    assert not {"authorization", "x-friendli-team", "x-mine"} & {name.lower() for name in fetched.headers}


async def test_interrupted_download_is_restarted(server: FriendliServer, client: AsyncFriendli, tmp_path: Path) -> None:
    uploaded = await client.file.upload(DATA, project_id="proj")
    longer = len(DATA) + 2  # what has been written of it must not stay behind the shorter content
    length = {"Content-Length": str(longer)}
    server.enqueue(script(raw(b"x" * (longer - 1)), cut(), headers=length), path=f"/downloads/{uploaded.id}")
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "here"
    await with_timeout(client.file.download(uploaded.id, target, progress=lambda *counts: seen.append(counts)))
    assert target.read_bytes() == DATA
    assert [size for written, size in seen if not written] == [longer, len(DATA)]
    assert seen[-1] == (len(DATA), len(DATA))


async def test_time_to_write_a_download_is_not_idle_time(
    client: AsyncFriendli, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = await client.file.upload(DATA, project_id="proj")
    writing, resume = threading.Event(), threading.Event()
    write = _FileSink._write_chunk

    def write_slowly(sink: _FileSink, data: bytes) -> None:
        writing.set()
        resume.wait(30)
        write(sink, data)

    monkeypatch.setattr(_FileSink, "_write_chunk", write_slowly)
    limited = client.with_options(timeout=Timeouts(idle=10))
    task = asyncio.create_task(limited.file.download(uploaded.id, tmp_path / "here"))
    await wait_until(writing.is_set)
    clock.advance(11)
    await run_loop_iterations(20)
    resume.set()
    assert (await with_timeout(task)).read_bytes() == DATA


@pytest.mark.parametrize("failure", ["break", "status", "progress"])
async def test_failed_download_leaves_existing_file_unchanged(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path, failure: str
) -> None:
    target = tmp_path / "here"
    target.write_bytes(b"old")
    url = f"{server.url}/somewhere"

    def progress(received: int, total: int | None) -> None:
        if failure == "progress" and received:
            raise RuntimeError("enough")

    server.enqueue(json_body({"downloadUrl": url}))
    broken = script(head(), raw(DATA[:1000]), cut())
    server.enqueue(*{"break": [broken] * 3, "status": [status(404)], "progress": [body(DATA)]}[failure])
    error = {"break": APIConnectionError, "status": NotFoundError, "progress": RuntimeError}[failure]
    with pytest.raises(error):
        await with_timeout(client.file.download("f", target, progress=progress))
    assert list_folder(tmp_path) == [target]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("name", [os.fsdecode("漢".encode() * 80), "x" * 255, ".hidden"])
async def test_download_accepts_every_valid_file_name(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path, name: str
) -> None:
    uploaded = await client.file.upload(b"x", project_id="proj")
    target = await client.file.download(uploaded.id, tmp_path / name)
    assert list_folder(tmp_path) == [target]
    assert (target.name, target.read_bytes()) == (name, b"x")


@pytest.mark.parametrize("to", ["/", ".", "", "folder"])
async def test_folder_as_a_download_target_is_rejected_before_sending(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^to: .* is a folder, not a file$"):
        await client.file.download("f", to)
    assert server.connections == 0


@pytest.mark.parametrize(
    ("name", "error"), [("a\0b", ArgumentError), ("a" * 256, OSError), ("absent/a", FileNotFoundError)]
)
async def test_file_that_cannot_be_created_is_reported_before_sending(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await client.file.download("f", tmp_path / name)
    assert server.requests == []
    assert list_folder(tmp_path) == []


async def test_compressed_download_reports_no_total(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path
) -> None:
    uploaded = await client.file.upload(DATA, project_id="proj")
    compressed = gzip.compress(DATA)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(compressed))}
    server.enqueue(script(head(), raw(compressed), headers=headers), path=f"/downloads/{uploaded.id}")
    seen: list[tuple[int, int | None]] = []
    await with_timeout(client.file.download(uploaded.id, tmp_path / "here", progress=lambda *now: seen.append(now)))
    assert (tmp_path / "here").read_bytes() == DATA
    assert seen[-1] == (len(DATA), None)


async def test_missing_target_folder_raises_file_not_found_error(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path
) -> None:
    uploaded = await client.file.upload(b"x", project_id="proj")
    with pytest.raises(FileNotFoundError):
        await client.file.download(uploaded.id, tmp_path / "no" / "where")


async def test_file_id_is_percent_encoded_and_empty_id_is_rejected(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(json_body({"downloadUrl": "https://host/", "fileId": "a/b", "s3Uri": "s3://bucket/a"}))
    found = await client.file.get_download_url("a/b?c")
    assert server.requests[0].raw_path == "/beta/file/a%2Fb%3Fc/download_url"
    assert (found.download_url, found.file_id, found.s3_uri) == ("https://host/", "a/b", "s3://bucket/a")
    for call in (client.file.get_info, client.file.complete_upload, client.file.get_download_url):
        with pytest.raises(ValueError, match="file_id"):
            await call("")


async def test_info_accepts_unknown_statuses_and_fields_but_not_missing_ones(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(
        json_body({"id": "f", "status": "SCANNING", "expiresAt": "2030-01-02T03:04:05Z", "new": 1}),
        json_body({}),
        json_body({}),
    )
    info = await client.file.get_info("f")
    assert info.status == "SCANNING"
    assert info.expires_at == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    with pytest.raises(ResponseDecodeError):
        await client.file.get_info("f")
    with pytest.raises(ResponseDecodeError):
        await client.file.get_download_url("f")


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_memory_of_upload_and_download_is_bounded(tmp_path: Path) -> None:
    size = 48 * 1024 * 1024
    large = tmp_path / "large"
    with large.open("wb") as file:
        os.truncate(file.fileno(), size)

    async def talk(conversation: Conversation) -> None:
        while (request := await conversation._reader.readuntil(b"\r\n\r\n")) is not None:
            if request.startswith(b"POST /beta"):
                await conversation._reader.readuntil(b"}")
                answer = f'{{"fileId": "f", "uploadUrl": "{server.url}/bucket"}}'
            elif request.startswith(b"POST /bucket"):
                length = int(request.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                while length > 0:
                    length -= len(await conversation._reader.read(65536))
                answer = ""
            elif request.startswith(b"GET /bucket"):
                await conversation.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                for _ in range(size // 65536):
                    await conversation.send(bytes(65536))
                continue
            else:
                answer = f'{{"downloadUrl": "{server.url}/bucket"}}'
            await conversation.send(http_reply(answer.encode()))

    async with RawServer(talk) as server, client_of(server.url) as client:
        with assert_peak_memory_below(12 * MIB):
            await with_timeout(client.file.upload(large, project_id="p"), 60)
            await with_timeout(client.file.download("f", tmp_path / "back"), 60)
    assert (tmp_path / "back").stat().st_size == size


# --- cleanup ---------------------------------------------------------------------------------------------------------


async def test_cancelled_download_leaves_no_file_and_closes_handles(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path
) -> None:
    target = tmp_path / "place"
    uploaded = await client.file.upload(b"x" * 1000, project_id="p")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for turn in range(60):
            task = asyncio.create_task(client.file.download(uploaded.id, target))
            await run_loop_iterations(turn)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
        opening = threading.Event()
        resume = threading.Event()

        def slow() -> BinaryIO:
            opening.set()
            resume.wait(30)
            return cast("BinaryIO", open(tmp_path / "slow", "xb"))

        def drop(file: BinaryIO) -> None:
            file.close()
            (tmp_path / "slow").unlink()
            opening.clear()

        open_task = asyncio.create_task(open_in_thread(slow, drop))
        await asyncio.to_thread(opening.wait, 30)
        open_task.cancel()
        await asyncio.wait([open_task])
        resume.set()
        await with_timeout(wait_until(lambda: not opening.is_set()))
        gc.collect()
    await wait_until(lambda: set(list_folder(tmp_path)) <= {target})


async def test_download_that_is_not_the_whole_file_is_detected(tmp_path: Path) -> None:
    whole = b"the whole content"
    content = {"cut": whole[:9], "changed": whole[::-1], "whole": whole, "undescribed": whole, "other": whole}
    of_known_length = {
        "part": http_reply(whole[:9], status="206 Partial Content"),
        "nothing": http_reply(b""),
    }

    async def talk(conversation: Conversation) -> None:
        while request := await conversation.request():
            path = request.split()[1].decode()
            name = path.split("/")[3] if "/file/" in path else path.strip("/")
            if path.endswith("/download_url"):
                await conversation.send(http_reply(json.dumps({"downloadUrl": f"{origin.url}/{name}"}).encode()))
            elif "/file/" in path:
                digest = f"sha256:{hashlib.sha256(whole).hexdigest()}"
                known = {"undescribed": {}, "other": {"digest": "md5:0"}}.get(
                    name, {"size": len(whole), "digest": digest}
                )
                info = {"id": name, "status": "UPLOADED", **known}
                await conversation.send(http_reply(json.dumps(info).encode()))
            elif name in of_known_length:
                await conversation.send(of_known_length[name])
            else:
                await conversation.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + content[name])
                return

    async with RawServer(talk) as origin, client_of(origin.url) as client:
        for name, message in (
            ("cut", "9 of 17 bytes"),
            ("changed", "digest"),
            ("part", "9 of 17 bytes"),
            ("nothing", "0 of 17 bytes"),
        ):
            with pytest.raises(APIConnectionError, match=message):
                await with_timeout(client.file.download(name, tmp_path / "place"))
            assert list_folder(tmp_path) == []
        for name in ("whole", "undescribed", "other"):
            assert (await with_timeout(client.file.download(name, tmp_path / "place"))).read_bytes() == whole


@pytest.mark.parametrize("path", ["/proc/self/status", "/dev/zero"])
@pytest.mark.parametrize("is_open", [False, True])
async def test_file_reporting_size_zero_is_rejected(client: AsyncFriendli, path: str, is_open: bool) -> None:
    rejected = pytest.raises((ValueError, OSError), match=r"empty|regular|Invalid")
    with await asyncio.to_thread(open, path, "rb", buffering=0) as file, rejected:
        await with_timeout(client.file.upload(cast("Any", file) if is_open else Path(path), project_id="p"))


@pytest.mark.parametrize("how", ["total", "scope", "cancel"])
async def test_silent_pipe_ends_with_timeout_scope_or_cancellation(server: FriendliServer, how: str) -> None:
    reading, writing = os.pipe()
    try:
        async with client_of(server.url, timeout=Timeouts(total=0.05 if how == "total" else None)) as client:
            with os.fdopen(os.dup(reading), "rb", buffering=0) as pipe:
                upload = client.file.upload(cast("Any", pipe), project_id="p")
                if how == "total":
                    with pytest.raises(APITimeoutError) as caught:
                        await with_timeout(upload)
                    assert (caught.value.limit, caught.value.sent) == ("total", False)
                elif how == "scope":
                    with anyio.move_on_after(0.01) as scope:
                        await with_timeout(upload)
                    assert scope.cancelled_caught
                else:
                    task = asyncio.create_task(upload)
                    await run_loop_iterations()
                    task.cancel()
                    await with_timeout(asyncio.wait([task]))
                    assert task.cancelled()
    finally:
        os.close(writing)
        os.close(reading)


def test_silent_pipe_does_not_block_process_exit(remote: FriendliServer) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from friendli_async import AsyncFriendli\n"
        "async def main():\n"
        "    pipe = os.fdopen(os.pipe()[0], 'rb', buffering=0)\n"
        "    async with AsyncFriendli('t', server_url=sys.argv[1], timeout=0.05) as client:\n"
        "        await client.file.upload(pipe, project_id='p')\n"
        "asyncio.run(main())\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program, remote.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(friendli_async.__file__).parents[1])},
    )
    assert "APITimeoutError" in completed.stderr
    assert completed.returncode == 1
