"""Media parts of chat messages."""

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from friendli_async import AsyncFriendli, media
from friendli_async._core.body import content_types
from friendli_async.testing import FriendliServer

MAGIC_BYTES: Final = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/gif": b"GIF89a",
    "image/webp": b"RIFF\0\0\0\0WEBPVP8 ",
    "audio/x-wav": b"RIFF\0\0\0\0WAVEfmt ",
    "audio/mpeg": b"ID3\x03",
    "audio/flac": b"fLaC",
    "audio/ogg": b"OggS",
    "video/mp4": b"\0\0\0\x20ftypisom",
    "video/webm": b"\x1aE\xdf\xa3",
}


def url_of(part: Any) -> str:
    [field] = [name for name in part.__struct_fields__ if name.endswith("_url")]
    url: str = getattr(part, field).url
    return url


@pytest.mark.parametrize("kind", MAGIC_BYTES)
async def test_bytes_become_data_url_with_type_from_magic_bytes(kind: str) -> None:
    family = kind.partition("/")[0]
    data = MAGIC_BYTES[kind] + b"rest"
    url = url_of(await getattr(media, family)(data))
    assert url == f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def test_type_of_path_and_open_file_is_guessed_from_the_name(tmp_path: Path) -> None:
    path = tmp_path / "speech.MP3"
    path.write_bytes(b"no magic")
    coded = base64.b64encode(b"no magic").decode()
    assert url_of(await media.audio(path)) == f"data:audio/mpeg;base64,{coded}"
    with path.open("rb") as file:
        assert url_of(await media.audio(file)) == f"data:audio/mpeg;base64,{coded}"


async def test_async_iterator_and_explicit_type_are_accepted() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"AB"
        yield b"C"

    part = await media.video(chunks(), content_type="video/x-new")
    assert url_of(part) == "data:video/x-new;base64,QUJD"


@pytest.mark.parametrize("url", ["https://host/cat", "http://host/cat.png", "data:image/png;base64,QUJD"])
async def test_url_is_passed_through(url: str) -> None:
    assert url_of(await media.image(url)) == url


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cat.png", r"pathlib\.Path"),
        (b"no magic", "content_type="),
        (b"ID3 a sound", "content_type="),
        (5, "image: Expected bytes"),
        (io.StringIO(), "binary mode"),
    ],
    ids=["str", "unknown", "audio", "int", "text file"],
)
async def test_invalid_image_is_rejected(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await media.image(source)


async def test_source_over_max_bytes_is_rejected_without_further_reads(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(bytes(11))
    with pytest.raises(ValueError, match="11 bytes exceed the limit of 10 bytes"):
        await media.image(path, max_bytes=10)
    chunks_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal chunks_read
        while True:
            chunks_read += 1
            yield bytes(4)

    with pytest.raises(ValueError, match="the limit of 10 bytes"):
        await media.image(endless(), max_bytes=10)
    assert chunks_read == 3


async def test_parts_are_serialized_in_the_request() -> None:
    async with FriendliServer() as server, AsyncFriendli(server.token, server_url=server.url) as client:
        parts = [
            {"type": "text", "text": "What is this?"},
            await media.image(MAGIC_BYTES["image/png"]),
            await media.audio("https://host/a.mp3"),
            await media.video("https://host/a.mp4"),
        ]
        await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": parts}])
        content = server.requests[0].json_object["messages"][0]["content"]
        assert content[1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        assert content[2] == {"type": "audio_url", "audio_url": {"url": "https://host/a.mp3"}}
        assert content[3] == {"type": "video_url", "video_url": {"url": "https://host/a.mp4"}}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.wav", "audio/x-wav"),
        ("A.FLAC", "audio/flac"),
        ("a.b.webp", "image/webp"),
        ("a.pdf", "application/pdf"),
        ("a.zzz", "application/octet-stream"),
        ("noname", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_type_by_name_is_independent_of_the_platform(name: str, kind: str) -> None:
    assert content_types.by_name(name) == kind
