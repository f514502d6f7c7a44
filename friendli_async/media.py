"""Media: images, sounds and films as parts of a chat message, from wherever they are.

    from friendli_async import media

    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, await media.image(path)]}]

URLs are passed on, for the server to fetch. Everything else is read, in worker threads, and becomes a data URL (RFC
2397) inside the message: in memory as a whole, so its size is limited.
"""

from __future__ import annotations

from typing import Final

from friendli_async._core.body import content_types
from friendli_async._core.body.sources import Content, in_thread, read_whole, source_of
from friendli_async.chat.inputs import AudioContent, ImageContent, Media, VideoContent
from friendli_async.errors import ArgumentError

__all__ = ["MAX_BYTES", "Content", "audio", "encoded", "image", "video"]

MAX_BYTES: Final = 32 * 1024 * 1024
"""The most bytes that are put into a message, unless a call says otherwise."""


async def image(source: str | Content, *, content_type: str | None = None, max_bytes: int = MAX_BYTES) -> ImageContent:
    """Makes an image a part of a message.

    Args:
        source: Its URL (http, https, data), path, bytes, an open binary file, or an async iterator of bytes.
        content_type: As ``image/png``. Default: guessed from the name, else from how the bytes begin.
        max_bytes: The most bytes to put into the message.

    Returns:
        The part, for the ``content`` of a user's message.

    Raises:
        ValueError: It is no image as far as one can tell, is larger than ``max_bytes``, or is nothing that can be read.
        OSError: It cannot be read.
    """
    return ImageContent(Media(await _url(source, "image", content_type, max_bytes)))


async def audio(source: str | Content, *, content_type: str | None = None, max_bytes: int = MAX_BYTES) -> AudioContent:
    """Makes a sound a part of a message.

    Args:
        source: Its URL (http, https, data), path, bytes, an open binary file, or an async iterator of bytes.
        content_type: As ``audio/mpeg``. Default: guessed from the name, else from how the bytes begin.
        max_bytes: The most bytes to put into the message.

    Returns:
        The part, for the ``content`` of a user's message.

    Raises:
        ValueError: It is no sound as far as one can tell, is larger than ``max_bytes``, or is nothing that can be read.
        OSError: It cannot be read.
    """
    return AudioContent(Media(await _url(source, "audio", content_type, max_bytes)))


async def video(source: str | Content, *, content_type: str | None = None, max_bytes: int = MAX_BYTES) -> VideoContent:
    """Makes a film a part of a message.

    Args:
        source: Its URL (http, https, data), path, bytes, an open binary file, or an async iterator of bytes.
        content_type: As ``video/mp4``. Default: guessed from the name, else from how the bytes begin.
        max_bytes: The most bytes to put into the message.

    Returns:
        The part, for the ``content`` of a user's message.

    Raises:
        ValueError: It is no film as far as one can tell, is larger than ``max_bytes``, or is nothing that can be read.
        OSError: It cannot be read.
    """
    return VideoContent(Media(await _url(source, "video", content_type, max_bytes)))


async def encoded(content: Content, label: str, max_bytes: int = MAX_BYTES) -> str:
    """Reads something whole and encodes it as base64.

    Args:
        content: A path, bytes, an open binary file, or an async iterator of bytes.
        label: How an error calls it.
        max_bytes: The most bytes to take.

    Raises:
        ValueError: It is larger than ``max_bytes``, or is nothing that can be read.
        OSError: It cannot be read.
    """
    return await _base64(await read_whole(source_of(content, label), max_bytes, label))


async def _base64(data: bytes) -> str:
    from base64 import b64encode

    return (await in_thread(b64encode, data)).decode()


async def _url(given: str | Content, family: str, content_type: str | None, max_bytes: int) -> str:
    if isinstance(given, str):
        if given.lower().startswith(("http://", "https://", "data:")):
            return given
        raise ArgumentError(
            f"{family}: {given[:80]!r} is not an http, https or data URL; for a path pass pathlib.Path(...)"
        )
    source = source_of(given, family)
    data = await read_whole(source, max_bytes, family)
    kind = content_type or _kind(source.name, data, family)
    return f"data:{kind};base64,{await _base64(data)}"


def _kind(name: str | None, data: bytes, family: str) -> str:
    for candidate in (name, content_types.suffix_of(data[:32])):
        kind = content_types.by_name(candidate) if candidate else ""
        if kind.startswith(f"{family}/"):
            return kind
    raise ArgumentError(f"{family}: neither its name nor its beginning says what it is; pass content_type=")
