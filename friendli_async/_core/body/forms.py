"""multipart/form-data bodies (RFC 7578), encoded while they are sent: no file is ever in memory as a whole."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Callable, Iterable
from typing import BinaryIO, Final

import msgspec

from friendli_async._core.body.sources import BytesSource, Source
from friendli_async.errors import ArgumentError

# aiohttp warns about larger bodies: it would write them in one go, which blocks the loop.
_MAX_SINGLE_WRITE: Final = 1024 * 1024


class Part(msgspec.Struct, frozen=True):
    """One part of a form."""

    name: str
    content: Source
    filename: str | None = None
    """Makes this a file part."""
    content_type: str | None = None

    def __post_init__(self) -> None:
        if self.content_type is not None and not (self.content_type.isascii() and self.content_type.isprintable()):
            raise ArgumentError(f"{self.content_type!r} is not a valid header value", "content_type")

    @classmethod
    def text(cls, name: str, value: str, content_type: str | None = None) -> Part:
        """Returns a text part.

        Raises:
            ValueError: The text has lone surrogates, which UTF-8 cannot encode.
        """
        try:
            return cls(name, BytesSource(value.encode()), None, content_type)
        except UnicodeEncodeError:
            raise ArgumentError("lone surrogates cannot be sent in a form", name) from None


class Form:
    """A form. It can be sent more than once, unless a part's source can be read only once.

    Args:
        parts: The parts, in the order in which they are sent.
        progress: Called for each file with (bytes sent, total bytes), before its first piece and after each one.
    """

    def __init__(self, parts: Iterable[Part], progress: Callable[[int, int | None], object] | None = None) -> None:
        self._parts = tuple(parts)
        self._boundary = os.urandom(16).hex()
        self._progress = progress
        self._begun = False

    def __repr__(self) -> str:
        return "Form(...)"

    @property
    def is_used_up(self) -> bool:
        """Whether it cannot be sent again: the first attempt has begun to read a source that can be read only once."""
        return self._begun and any(part.content.is_one_shot for part in self._parts)

    async def headers(self) -> dict[str, str]:
        """Returns the Content-Type and, if the length is known in advance, the Content-Length.

        Raises:
            OSError: A file does not exist, or cannot be read.
            ValueError: A file has changed since it was last checked.
        """
        headers = {"Content-Type": f"multipart/form-data; boundary={self._boundary}"}
        length = len(self._end())
        for part in self._parts:
            size = await part.content.size()
            if size is None:
                return headers  # it will be sent chunked
            length += len(self._head(part)) + size + 2
        return {**headers, "Content-Length": str(length)}

    async def pieces(self) -> AsyncIterator[bytes]:
        """Encodes the form piece by piece.

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
        disposition = f'form-data; name="{_escape(part.name)}"'
        if part.filename is not None:
            disposition += f'; filename="{_escape(part.filename)}"'
        lines = [f"--{self._boundary}", f"Content-Disposition: {disposition}"]
        if part.content_type is not None:
            lines.append(f"Content-Type: {part.content_type}")
        return "\r\n".join([*lines, "\r\n"]).encode("utf-8", "replace")

    def _end(self) -> bytes:
        return f"--{self._boundary}--\r\n".encode()


def _escape(name: str) -> str:
    """Escapes a name as browsers do (HTML 4.10.21.8); unescaped, it could end its line or its quotes."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def is_sendable(body: bytes | Form | None) -> bool:
    """Whether a body can be sent (again): a form may have a source that can be read only once."""
    return not (isinstance(body, Form) and body.is_used_up)


def as_payload(body: bytes | Form | None) -> bytes | BinaryIO | None:
    """Returns a body other than a form for aiohttp: a large one as a file, which is written in pieces."""
    assert not isinstance(body, Form), "a form is sent by FormUpload"
    return io.BytesIO(body) if body is not None and len(body) > _MAX_SINGLE_WRITE else body


class FormUpload:
    """One attempt to send a form. It keeps the error of a source, since HTTP libraries report a different one.

    ``on_piece`` is called after each piece, until ``stop``.
    """

    def __init__(self, form: Form, on_piece: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._pieces = form.pieces()
        self._on_piece: Callable[[], object] | None = on_piece

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._pieces)
        except (StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            import asyncio  # already loaded here; a bare import of the library does not load it

            if isinstance(error, asyncio.CancelledError):  # of the task that sends
                raise
            self.error = error
            # Not the error itself: if it is no Exception, such as pytest's Failed, the task that sends may end without
            # the request learning of it.
            raise RuntimeError("the source of the body failed") from None
        if self._on_piece is not None:
            self._on_piece()
        return piece

    def stop(self) -> None:
        """Stops calling ``on_piece``."""
        self._on_piece = None
