"""Media: images, audio and video as parts of a chat message, from any source.

    from friendli_async import media

    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, await media.image(path)]}]

URLs are passed on for the server to fetch. Other sources are read in worker threads and embedded in the message as a
data URL (RFC 2397). They are held in memory in full, so their size is limited.
"""

from __future__ import annotations

import re
from typing import Final

from friendli_async._core.body import content_types
from friendli_async._core.body.sources import Content, in_thread, read_whole, source_of
from friendli_async.chat.inputs import AudioContent, ImageContent, Media, VideoContent
from friendli_async.errors import ArgumentError

__all__ = ["Content", "audio", "image", "video"]

_MAX_BYTES: Final = 32 * 1024 * 1024
"""Default limit for the size of embedded media, in bytes."""


async def image(source: str | Content, *, content_type: str | None = None, max_bytes: int = _MAX_BYTES) -> ImageContent:
    """Makes an image part of a message.

    Args:
        source: Its URL (http, https, data), path, bytes, an open binary file, or an async iterator of bytes.
        content_type: As ``image/png``. Default: guessed from the name, else from the leading bytes.
        max_bytes: Maximum number of bytes to embed.

    Returns:
        The part, for the ``content`` of a user message.

    Raises:
        ValueError: It is not recognized as an image, is larger than ``max_bytes``, or is not a supported source.
        OSError: It cannot be read.
    """
    return ImageContent(Media(await _to_url(source, "image", content_type, max_bytes)))


async def audio(source: str | Content, *, content_type: str | None = None, max_bytes: int = _MAX_BYTES) -> AudioContent:
    """Makes an audio part of a message, as ``image`` does of an image; ``content_type`` is such as ``audio/mpeg``."""
    return AudioContent(Media(await _to_url(source, "audio", content_type, max_bytes)))


async def video(source: str | Content, *, content_type: str | None = None, max_bytes: int = _MAX_BYTES) -> VideoContent:
    """Makes a video part of a message, as ``image`` does of an image; ``content_type`` is such as ``video/mp4``."""
    return VideoContent(Media(await _to_url(source, "video", content_type, max_bytes)))


async def encoded(content: Content, label: str) -> str:
    """Reads all of the content and encodes it as base64.

    Args:
        content: A path, bytes, an open binary file, or an async iterator of bytes.
        label: Its name in error messages.

    Raises:
        ValueError: It is larger than 32 MiB, or is not a supported source.
        OSError: It cannot be read.
    """
    return await _encode_base64(await read_whole(source_of(content, label), _MAX_BYTES, label))


async def _encode_base64(data: bytes) -> str:
    from base64 import b64encode

    return (await in_thread(b64encode, data)).decode()


async def _to_url(given: str | Content, family: str, content_type: str | None, max_bytes: int) -> str:
    if isinstance(given, str):
        if given.lower().startswith(("http://", "https://", "data:")):
            return given
        raise ArgumentError(
            f"{given[:80]!r} is not an http, https or data URL; for a path pass pathlib.Path(...)", family
        )
    if content_type and not re.fullmatch(r"[!-.0-~]+/[ -~]+", f"{content_type}"):
        raise ArgumentError(f"Expected a type such as image/png, got {content_type!r}", "content_type")
    source = source_of(given, family)
    data = await read_whole(source, max_bytes, family)
    kind = content_type or _content_type(source.name, data, family)
    return f"data:{kind};base64,{await _encode_base64(data)}"


def _content_type(name: str | None, data: bytes, family: str) -> str:
    for candidate in (name, content_types.suffix_of(data[:32])):
        kind = content_types.by_name(candidate) if candidate else ""
        if kind.startswith(f"{family}/"):
            return kind
    raise ArgumentError(
        "unknown content type: neither the file name nor the first bytes identify it; pass content_type=", family
    )
