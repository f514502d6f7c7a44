"""Content types by file name or by leading bytes. Pure."""

from __future__ import annotations

from typing import Final

OCTET_STREAM: Final = "application/octet-stream"

# The common types: the same on every platform, and found without reading the system's tables, which the standard
# library does. Some it does not know, or names differently.
_BY_SUFFIX: Final[dict[str, str]] = {
    ".aac": "audio/aac",
    ".avif": "image/avif",
    ".flac": "audio/flac",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".m4a": "audio/mp4",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".png": "image/png",
    ".wav": "audio/x-wav",
    ".weba": "audio/webm",
    ".webm": "video/webm",
    ".webp": "image/webp",
}
# File signatures (offset, bytes), and the suffix for each.
_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"GIF8", ".gif"),
    (8, b"WEBP", ".webp"),
    (8, b"WAVE", ".wav"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (0, b"\xff\xfb", ".mp3"),
    (0, b"\xff\xf3", ".mp3"),
    (4, b"ftypM4A", ".m4a"),
    (4, b"ftypavif", ".avif"),
    (4, b"ftypqt", ".mov"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1aE\xdf\xa3", ".webm"),
)


def by_name(name: str) -> str:
    """Returns the content type for a file name's suffix, or ``application/octet-stream`` if it is unknown."""
    known = _BY_SUFFIX.get(name[name.rfind(".") :].lower())
    if known is not None:
        return known
    import mimetypes

    return mimetypes.guess_type(name)[0] or OCTET_STREAM


def suffix_of(head: bytes) -> str:
    """Returns the suffix, such as ``.png``, of a file that starts with these bytes; "" if it is unknown."""
    for offset, mark, suffix in _SIGNATURES:
        if head.startswith(mark, offset):
            return suffix
    return ""
