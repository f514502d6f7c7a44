"""multipart/form-data bodies (RFC 7578), encoded while they are sent: no file is ever in memory as a whole."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Callable, Iterable
from typing import BinaryIO, Final

import msgspec

from friendli_async._core.body.sources import BytesSource, Source
from friendli_async.errors import ArgumentError

__all__ = ["Form", "Part", "Sending", "readable"]

# aiohttp warns of larger ones: it would write them in one go, which blocks the loop.
_ONE_GO: Final = 1024 * 1024


class Part(msgspec.Struct, frozen=True):
    """One part of a form."""

    name: str
    content: Source
    filename: str | None = None
    """Makes the part a file's."""
    content_type: str | None = None

    def __post_init__(self) -> None:
        if self.content_type is not None and not (self.content_type.isascii() and self.content_type.isprintable()):
            raise ArgumentError(f"content_type: {self.content_type!r} cannot be sent")

    @classmethod
    def text(cls, name: str, value: str, content_type: str | None = None) -> Part:
        """A part that holds text.

        Raises:
            ValueError: The text has lone surrogates, which UTF-8 has no form for.
        """
        try:
            return cls(name, BytesSource(value.encode()), None, content_type)
        except UnicodeEncodeError:
            raise ArgumentError(f"{name}: lone surrogates cannot be sent in a form") from None


class Form:
    """A form, ready to be sent: more than once, unless a part's source can be read only once.

    Args:
        parts: The parts, in the order in which they are sent.
        progress: Called with (bytes sent, bytes in all) of the files, before the first piece and after each.
    """

    def __init__(self, parts: Iterable[Part], progress: Callable[[int, int | None], object] | None = None) -> None:
        self._parts = tuple(parts)
        self._boundary = os.urandom(16).hex()
        self._progress = progress
        self._begun = False

    def __repr__(self) -> str:
        return "Form(...)"

    @property
    def sendable(self) -> bool:
        """Whether it can be sent now: what can be read only once is gone when it has been begun."""
        return not (self._begun and any(part.content.once for part in self._parts))

    async def headers(self) -> dict[str, str]:
        """Its Content-Type, and its Content-Length where that is known before the end.

        Raises:
            OSError: A file is not there, or cannot be read.
            ValueError: A file has changed since it was last looked at.
        """
        headers = {"Content-Type": f"multipart/form-data; boundary={self._boundary}"}
        length = len(self._end())
        for part in self._parts:
            size = await part.content.size()
            if size is None:
                return headers  # it will be sent in chunks
            length += len(self._head(part)) + size + 2
        return {**headers, "Content-Length": str(length)}

    async def pieces(self) -> AsyncIterator[bytes]:
        """Encodes it, piece by piece.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file has changed while it was being sent.
        """
        self._begun = True
        for part in self._parts:
            yield self._head(part)
            report = self._progress if part.filename is not None else None
            total = await part.content.size() if report is not None else None
            sent = 0
            if report is not None:
                report(sent, total)
            async for piece in part.content.pieces():
                yield piece
                sent += len(piece)
                if report is not None:
                    report(sent, total)
            yield b"\r\n"
        yield self._end()

    def _head(self, part: Part) -> bytes:
        disposition = f'form-data; name="{_quoted(part.name)}"'
        if part.filename is not None:
            disposition += f'; filename="{_quoted(part.filename)}"'
        lines = [f"--{self._boundary}", f"Content-Disposition: {disposition}"]
        if part.content_type is not None:
            lines.append(f"Content-Type: {part.content_type}")
        return "\r\n".join([*lines, "\r\n"]).encode("utf-8", "replace")

    def _end(self) -> bytes:
        return f"--{self._boundary}--\r\n".encode()


def _quoted(name: str) -> str:
    """A name as browsers write it (HTML 4.10.21.8); without this it could end its line, or its quotes."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def readable(body: bytes | Form | None) -> bytes | BinaryIO | None:
    """A body that is no form, as something that is written in pieces where it is large."""
    assert not isinstance(body, Form), "a form is sent by Sending"
    return io.BytesIO(body) if body is not None and len(body) > _ONE_GO else body


class Sending:
    """One attempt to send a form. It remembers what was wrong with a source: HTTP libraries report something else.

    Args:
        form: The form.
        moved: Called after each piece, until ``stop``.
    """

    def __init__(self, form: Form, moved: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._pieces = form.pieces()
        self._moved: Callable[[], object] | None = moved

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise
        if self._moved is not None:
            self._moved()
        return piece

    def stop(self) -> None:
        """Calls ``moved`` no more."""
        self._moved = None
