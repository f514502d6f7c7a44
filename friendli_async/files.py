"""Files: kept by Friendli, to be named in calls, as the tool ``file:text`` does.

Wire: ``/beta/file``. An upload has three steps: announce name, size and digest; send the content, as a form, to the
place that the reply names (another host, which needs to know neither token nor team; none if the content is there
already); complete. Friendli's SDK has withdrawn these operations (0.15.0 is the last release that has them), so whether
the service still answers is Friendli's to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, cast

import msgspec

from friendli_async._core.body.arguments import Arguments, ForeignArguments, check_values, encode_json, path_parameters
from friendli_async._core.body.content_types import UNKNOWN
from friendli_async._core.body.forms import Form, Part
from friendli_async._core.body.sources import Content, OpenFileSource, Source, in_thread, opened, source_of
from friendli_async._core.resource import ANYTHING, Resource, operation
from friendli_async._pydantic import PydanticField
from friendli_async.errors import APIConnectionError, ResponseDecodeError
from friendli_async.replies import Reply

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Content", "DownloadURL", "FileInfo", "FileUpload", "Files", "Progress", "UploadedFile"]

Progress = Callable[[int, int | None], object]
"""Called with (bytes so far, bytes in all, None where unknown), from 0 on; from 0 again where an attempt is repeated.
What it raises ends the transfer."""

# --- what comes out --------------------------------------------------------------------------------------------------


class FileUpload(Reply, frozen=True, kw_only=True, rename="camel"):
    """An upload that has been announced: where its content goes."""

    file_id: str
    upload_url: str | None = None
    """Where to send the content; None where it is there already."""
    aws: Mapping[str, Any] | None = None
    """Fields of the form that go before the content."""


class FileInfo(Reply, frozen=True, kw_only=True, rename="camel"):
    """What is known of a file."""

    id: str
    status: Literal["UPLOADING", "UPLOADED", "FAILED", "DELETED"] | str  # open
    name: str | None = None
    size: int | None = None
    """Bytes."""
    digest: str | None = None
    """``sha256:`` and the digest in hexadecimal."""
    project_id: str | None = None
    creator_id: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None


class DownloadURL(Reply, frozen=True, kw_only=True, rename="camel"):
    """Where a file's content is."""

    download_url: str
    """Good for a while, without a token: whoever has it can read the file."""
    file_id: str | None = None
    s3_uri: str | None = msgspec.field(name="s3Uri", default=None)


class UploadedFile(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """A file that has been uploaded."""

    id: str
    """What calls name it by, as in ``{"type": "file:text", "files": [id]}``."""
    name: str
    size: int
    """Bytes."""
    digest: str
    """``sha256:`` and the digest in hexadecimal."""


# --- operations ------------------------------------------------------------------------------------------------------


class _InitBody(msgspec.Struct):
    name: str
    size: int
    digest: str
    project_id: str


_INIT: Final = operation("file.init_upload", "POST /beta/file", cast("type[FileUpload | None]", FileUpload | None))
_COMPLETE: Final = operation("file.complete_upload", "PATCH /beta/file/{file_id}", ANYTHING)
_INFO: Final = operation("file.get_info", "GET /beta/file/{file_id}", FileInfo, repeatable=True)
_DOWNLOAD_URL: Final = operation(
    "file.get_download_url", "GET /beta/file/{file_id}/download_url", DownloadURL, repeatable=True
)
# Their URLs are the server's to say; what stands for the path is for the log.
_SEND: Final = operation("file.upload", "POST (upload)", ANYTHING, repeatable=True)
_FETCH: Final = operation("file.download", "GET (download)", ANYTHING, repeatable=True)


def _target(url: str, what: str) -> str:
    """Checks a URL of the server's."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ResponseDecodeError(f"the server's {what} is not an http or https URL")  # not repeated: it is a key
    return url.partition("#")[0]


# --- reading and writing ---------------------------------------------------------------------------------------------


class _FileSink:
    """Writes a reply to a file.

    Attributes:
        size: How long the reply said that it is: then HTTP notices that it was cut.
    """

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self.size: int | None = None
        self._written = 0
        self._digest: Any = None

    async def begin(self, size: int | None) -> None:
        """Drops what an earlier attempt has left."""
        from hashlib import sha256

        self._digest = sha256() if size is None else None
        await in_thread(self._file.seek, 0)
        await in_thread(self._file.truncate)
        self.size = size
        self._written = 0
        self._report()

    async def write(self, data: bytes) -> None:
        """Writes the next bytes."""
        await in_thread(self._take, data)
        self._written += len(data)
        self._report()

    def _take(self, data: bytes) -> None:
        self._file.write(data)
        if self._digest is not None:
            self._digest.update(data)

    def check(self, info: FileInfo) -> None:
        """Compares what has come with what is known of the file.

        Raises:
            APIConnectionError: It is not the same.
        """
        if info.size is not None and info.size != self._written:
            raise APIConnectionError(f"the download was cut: {self._written} of {info.size} bytes came", sent=True)
        digest = f"sha256:{self._digest.hexdigest()}"
        if info.digest is not None and info.digest.startswith("sha256:") and info.digest.lower() != digest:
            raise APIConnectionError("the download is not what was uploaded: its digest is another", sent=True)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._written, self.size)


# --- the resource ----------------------------------------------------------------------------------------------------


class Files(Resource):
    """Files: ``client.file``.

    Raises:
        ValueError: A bad value, with its name; an id that is none. Nothing was sent.
        FriendliError: What went wrong with a call; see ``friendli_async.errors``.
    """

    async def upload(
        self, content: Content, *, project_id: str, name: str | None = None, progress: Progress | None = None
    ) -> UploadedFile:
        """Uploads a file: the whole protocol, announced by its digest, sent, completed.

        Memory stays bounded, whatever the file's size: a file is read twice, for its digest and to be sent; an async
        iterator, or a file that cannot be rewound, is copied to a temporary file.

        Args:
            content: A path, bytes, an open binary file, or an async iterator of bytes.
            project_id: The project that it shall belong to.
            name: Its name. Default: the path's or the open file's, else its digest.
            progress: Called with (bytes sent, bytes in all) while the content is being sent.

        Returns:
            Its id, name, size and digest. A content that the server has already is not sent again.

        Raises:
            ValueError: A bad value, or a file that changed while it was being read.
            OSError: It cannot be read.
        """
        source = source_of(content, "content")
        _check(name="" if name is None else name, size=0, digest="", project_id=project_id)
        if not source.once:
            measured = await self._measured(source, None)
            return await self._upload(source, *measured, project_id, name or source.name, progress)
        from tempfile import TemporaryFile

        file = await opened(lambda: cast("BinaryIO", TemporaryFile()), lambda copy: copy.close())  # noqa: SIM115  # below
        with file:
            size, digest = await self._measured(source, file)
            await in_thread(file.seek, 0)
            copied = OpenFileSource(file, "content")
            return await self._upload(copied, size, digest, project_id, name or source.name, progress)

    async def _measured(self, source: Source, copy: BinaryIO | None) -> tuple[int, str]:
        """Size and digest of a source, in one reading; what can be read only once is copied on the way."""
        import asyncio
        from hashlib import sha256

        from friendli_async._core.net.clock import CallClock

        digest, size = sha256(), 0

        def take(piece: bytes) -> None:
            digest.update(piece)
            if copy is not None:
                copy.write(piece)

        with CallClock(self._engine.settings.timeouts, asyncio.get_running_loop()):  # ``total`` ends a silent pipe
            async for piece in source.pieces():
                await in_thread(take, piece)
                size += len(piece)
        return size, f"sha256:{digest.hexdigest()}"

    async def _upload(
        self, source: Source, size: int, digest: str, project_id: str, name: str | None, progress: Progress | None
    ) -> UploadedFile:
        name = name or digest
        announced = await self.init_upload(name=name, size=size, digest=digest, project_id=project_id)
        if announced is None:
            raise ResponseDecodeError("the server took the announcement without saying where the content goes")
        if announced.upload_url is not None:
            fields = {key: value for key, value in (announced.aws or {}).items() if value is not None}
            parts = [Part.text(key, str(value)) for key, value in fields.items()]
            form = Form([*parts, Part("file", source, "upload", UNKNOWN)], progress)
            url = _target(announced.upload_url, "upload URL")
            await self._engine.receive(_SEND, ForeignArguments(form, url=url))
        elif progress is not None:
            progress(size, size)
        await self.complete_upload(announced.file_id)
        return UploadedFile(id=announced.file_id, name=name, size=size, digest=digest)

    async def download(self, file_id: str, to: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
        """Downloads a file's content.

        It is written beside its place, and put there when it is complete; what stood there before is replaced.

        Args:
            file_id: The file's id.
            to: Where to write it: a path.
            progress: Called with (bytes received, bytes in all) while it is being received.

        Returns:
            The path.

        Raises:
            APIConnectionError: It broke off, or is not what was uploaded.
            OSError: It cannot be written.
        """
        from pathlib import Path

        place = Path(to)
        found = await self.get_download_url(file_id)
        url = _target(found.download_url, "download URL")
        unfinished = place.with_name(f".{place.name[:100]}.{os.urandom(8).hex()}.part")

        def drop(file: BinaryIO) -> None:
            file.close()
            unfinished.unlink(missing_ok=True)

        file = await opened(lambda: cast("BinaryIO", open(unfinished, "xb")), drop)  # noqa: SIM115  # closed below
        try:
            with file:
                sink = _FileSink(file, progress)
                await self._engine.receive(_FETCH, ForeignArguments(url=url), sink)
            if sink.size is None:
                sink.check(await self.get_info(file_id))
            await in_thread(os.replace, unfinished, place)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return place

    async def init_upload(self, *, name: str, size: int, digest: str, project_id: str) -> FileUpload | None:
        """Announces a file: the first step of an upload.

        Args:
            name: Its name.
            size: Its size, bytes.
            digest: ``sha256:`` and its digest in hexadecimal.
            project_id: The project that it shall belong to.

        Returns:
            Its id and where its content goes; None where the server answers with nothing (202).
        """
        body = _check(name=name, size=size, digest=digest, project_id=project_id)
        return await self._engine.call(_INIT, Arguments(encode_json(body)))

    async def complete_upload(self, file_id: str) -> None:
        """Says that a file's content has been sent: the last step of an upload.

        Args:
            file_id: The file's id.
        """
        await self._engine.call(_COMPLETE, Arguments(path=path_parameters(file_id=file_id)))

    async def get_info(self, file_id: str) -> FileInfo:
        """Tells what is known of a file.

        Args:
            file_id: The file's id.

        Returns:
            Its name, size, digest, ``status`` and so on.
        """
        return await self._engine.call(_INFO, Arguments(path=path_parameters(file_id=file_id)))

    async def get_download_url(self, file_id: str) -> DownloadURL:
        """Tells where a file's content can be fetched, without a token.

        Args:
            file_id: The file's id.

        Returns:
            The URL.
        """
        return await self._engine.call(_DOWNLOAD_URL, Arguments(path=path_parameters(file_id=file_id)))


def _check(*, name: object, size: object, digest: object, project_id: object) -> dict[str, object]:
    check_values({"name": name, "size": size, "digest": digest, "project_id": project_id}, _InitBody)
    return {"name": name, "size": size, "digest": digest, "projectId": project_id}
