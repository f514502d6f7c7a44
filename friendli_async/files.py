"""Files: stored by Friendli and referenced by id in calls, as for the tool ``file:text``.

Wire: ``/beta/file``. An upload has three steps: announce name, size and digest; send the content as a form to the URL
in the reply (on another host, which gets neither token nor team; there is no URL if the content is already stored);
complete. Friendli's SDK has removed these operations (0.15.0 is the last release with them), so the service may no
longer support them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Unpack, cast

import msgspec

from friendli_async._callables import check_plain
from friendli_async._core.body.arguments import (
    Arguments,
    ExtraOptions,
    ExtraQuery,
    ForeignArguments,
    Parameters,
    path_arguments,
)
from friendli_async._core.body.content_types import OCTET_STREAM
from friendli_async._core.body.forms import Form, Part
from friendli_async._core.body.json_values import encode_body
from friendli_async._core.body.sources import Content, OpenFileSource, Source, in_thread, open_in_thread, source_of
from friendli_async._core.loops import running_loop
from friendli_async._core.resource import ANYTHING, Resource, operation
from friendli_async._core.settings import hostname
from friendli_async._lazy import LazyModule
from friendli_async._pydantic import PydanticField
from friendli_async.errors import APIConnectionError, ArgumentError, ResponseDecodeError
from friendli_async.replies import Reply

if TYPE_CHECKING:
    import pathlib
else:
    pathlib = LazyModule("pathlib")

__all__ = ["Content", "DownloadURL", "FileInfo", "FileUpload", "Files", "Progress", "UploadedFile"]

Progress = Callable[[int, int | None], object]
"""Called with (bytes so far, total bytes or None if unknown). Starts at 0, and again at 0 when an attempt is retried;
at the total if the server has the content already. An exception that it raises ends the transfer."""

# --- replies ---------------------------------------------------------------------------------------------------------


class FileUpload(Reply, frozen=True, kw_only=True, rename="camel"):
    """An announced upload, with the destination of its content."""

    file_id: str
    upload_url: str | None = None
    """Where to send the content; None if it is already stored."""
    aws: Mapping[str, Any] | None = None
    """Form fields to send before the content."""


class FileInfo(Reply, frozen=True, kw_only=True, rename="camel"):
    """Metadata of a file."""

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
    """The location of a file's content."""

    download_url: str
    """A temporary URL that needs no token: anyone who has it can read the file."""
    file_id: str | None = None
    s3_uri: str | None = None


class UploadedFile(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file."""

    id: str
    """The id to use in calls, as in ``{"type": "file:text", "files": [id]}``."""
    name: str
    size: int
    """Bytes."""
    digest: str
    """``sha256:`` and the digest in hexadecimal."""


# --- operations ------------------------------------------------------------------------------------------------------


_UPLOAD: Final = Parameters(ExtraOptions, {"name": str, "size": int, "digest": str, "project_id": str})

_INIT: Final = operation("file.init_upload", "POST /beta/file", FileUpload | None)
_COMPLETE: Final = operation("file.complete_upload", "PATCH /beta/file/{file_id}", ANYTHING)
_INFO: Final = operation("file.get_info", "GET /beta/file/{file_id}", FileInfo)
_DOWNLOAD_URL: Final = operation("file.get_download_url", "GET /beta/file/{file_id}/download_url", DownloadURL)
# The server supplies the URLs of these two; the path here is only a label for logs.
_SEND: Final = operation("file.upload", "POST (upload)", ANYTHING, repeatable=True)
_FETCH: Final = operation("file.download", "GET (download)", ANYTHING)


def _is_folder(path: pathlib.Path) -> bool:
    """Whether a path is that of a folder. Raises an error if no file can have it: its name is too long, say."""
    try:
        os.lstat(path)  # is_dir() hides the errors
    except FileNotFoundError:
        return False
    except ValueError as error:  # a null character
        raise ArgumentError(str(error), "to") from None
    return path.is_dir()


def _check_url(url: str, what: str) -> str:
    """Validates a URL from the server, and returns it without its fragment.

    Raises:
        ResponseDecodeError: It is not a usable http or https URL.
    """
    if not re.fullmatch(r"[\x21-\x7e]+", url) or re.search("//[^/?#]*@", url) or not hostname(url):
        # The URL is a credential, so the message does not quote it.
        raise ResponseDecodeError(f"the server's {what} is not an http or https URL")
    return url.partition("#")[0]


# --- reading and writing ---------------------------------------------------------------------------------------------


class _FileSink:
    """Writes a response body to a file.

    Attributes:
        size: The announced length of the body, or None. If there is one, the HTTP layer detects truncation.
    """

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self.size: int | None = None
        self._written = 0
        self._digest: Any = None

    async def begin(self, size: int | None) -> None:
        """Discards the data of an earlier attempt."""
        from hashlib import sha256

        self._digest = None if size else sha256()
        await in_thread(self._file.seek, 0)
        await in_thread(self._file.truncate)
        self.size = size
        self._written = 0
        self._report()

    async def write(self, data: bytes) -> None:
        """Writes the next bytes."""
        await in_thread(self._write_chunk, data)
        self._written += len(data)
        self._report()

    def _write_chunk(self, data: bytes) -> None:
        self._file.write(data)
        if self._digest is not None:
            self._digest.update(data)

    def check(self, info: FileInfo) -> None:
        """Compares the received data with the file's metadata.

        Raises:
            APIConnectionError: Size or digest differs.
        """
        if info.size is not None and info.size != self._written:
            raise APIConnectionError(
                f"the download was truncated: {self._written} of {info.size} bytes received", sent=True
            )
        digest = f"sha256:{self._digest.hexdigest()}"
        if info.digest is not None and info.digest.startswith("sha256:") and info.digest.lower() != digest:
            raise APIConnectionError("the downloaded content does not match the digest of the uploaded file", sent=True)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._written, self.size)


# --- the resource ----------------------------------------------------------------------------------------------------


class Files(Resource):
    """Files: ``client.file``.

    The single steps also accept ``extra_query``; ``upload`` and ``download`` combine them, and do not.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its name, or an invalid id. Nothing was sent.
        FriendliError: A call failed; see ``friendli_async.errors``.
    """

    async def upload(
        self, content: Content, *, project_id: str, name: str | None = None, progress: Progress | None = None
    ) -> UploadedFile:
        """Uploads a file in all three steps: announces its digest, sends it, and completes the upload.

        Memory use is bounded regardless of the file size. A file is read twice: for its digest and to be sent. An async
        iterator or a non-seekable file is copied to a temporary file.

        Args:
            content: A path, bytes, an open binary file, or an async iterator of bytes.
            project_id: The project that will own the file.
            name: Its name. Default: the name of the path or open file, else its digest.
            progress: Called with (bytes sent, total bytes) while the content is being sent.

        Returns:
            Its id, name, size and digest. Content that the server already has is not sent again.

        Raises:
            TypeError: ``progress`` is not a plain function.
            ValueError: An invalid value, or a file that changed while being read.
            OSError: The file cannot be read.
        """
        check_plain(progress, "progress", "two numbers of bytes")
        source = source_of(content, "content")
        # Validate the arguments before the content is read.
        _UPLOAD.check({"name": "" if name is None else name, "project_id": project_id})
        if not source.is_one_shot:
            size, digest = await self._measure(source, None)
            return await self._upload(source, size, digest, project_id, name or source.name, progress)
        from tempfile import TemporaryFile

        file = await open_in_thread(lambda: cast("BinaryIO", TemporaryFile()), lambda copy: copy.close())  # noqa: SIM115  # closed below
        with file:
            size, digest = await self._measure(source, file)
            await in_thread(file.seek, 0)
            copied = OpenFileSource(file, "content")
            return await self._upload(copied, size, digest, project_id, name or source.name, progress)

    async def _measure(self, source: Source, copy: BinaryIO | None) -> tuple[int, str]:
        """Returns the size and digest of a source in one pass, and writes the data to ``copy`` if given."""
        from hashlib import sha256

        from friendli_async._core.net.clock import CallClock

        digest, size = sha256(), 0

        def consume(piece: bytes) -> None:
            digest.update(piece)
            if copy is not None:
                copy.write(piece)

        # The total timeout also limits the wait for a silent pipe.
        with CallClock(self._engine.settings.timeout, running_loop()):
            async for piece in source.pieces():
                await in_thread(consume, piece)
                size += len(piece)
        return size, f"sha256:{digest.hexdigest()}"

    async def _upload(
        self, source: Source, size: int, digest: str, project_id: str, name: str | None, progress: Progress | None
    ) -> UploadedFile:
        name = name or digest
        announced = await self.init_upload(name=name, size=size, digest=digest, project_id=project_id)
        if announced is None:
            raise ResponseDecodeError("the server accepted the upload but returned no file id or upload URL")
        if announced.upload_url is not None:
            fields = {key: value for key, value in (announced.aws or {}).items() if value is not None}
            parts = [Part.text(key, str(value)) for key, value in fields.items()]
            form = Form([*parts, Part("file", source, "upload", OCTET_STREAM)], progress)
            url = _check_url(announced.upload_url, "upload URL")
            await self._engine.receive(_SEND, ForeignArguments(form, url=url))
        elif progress is not None:
            progress(size, size)
        await self.complete_upload(announced.file_id)
        return UploadedFile(id=announced.file_id, name=name, size=size, digest=digest)

    async def download(
        self, file_id: str, to: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> pathlib.Path:
        """Downloads a file's content.

        The content is written to a temporary file in the same folder, which replaces the destination once complete.

        Args:
            file_id: The file's id.
            to: The destination path. An existing file is replaced.
            progress: Called with (bytes received, total bytes) while the content is being received.

        Returns:
            The path.

        Raises:
            TypeError: ``to`` is no path, or ``progress`` is not a plain function. Nothing was sent.
            ValueError: The path is that of a folder, or has a null character. Nothing was sent.
            APIConnectionError: The download was interrupted, or, if its length was not announced, does not match the
                uploaded file.
            OSError: The file cannot be written. If it cannot be created, nothing was sent.
        """
        check_plain(progress, "progress", "two numbers of bytes")
        destination = pathlib.Path(to)
        if not destination.name or await in_thread(_is_folder, destination):
            raise ArgumentError(f"{os.fspath(to)!r} is a folder, not a file", "to")
        unfinished = destination.with_name(f".{os.urandom(8).hex()}.part")

        def discard(file: BinaryIO) -> None:
            file.close()
            unfinished.unlink(missing_ok=True)

        file = await open_in_thread(lambda: cast("BinaryIO", open(unfinished, "xb")), discard)  # noqa: SIM115  # closed below
        try:
            with file:
                found = await self.get_download_url(file_id)
                url = _check_url(found.download_url, "download URL")
                sink = _FileSink(file, progress)
                await self._engine.receive(_FETCH, ForeignArguments(url=url), sink)
            if not sink.size:  # also 0, which a server may announce for what it does not have
                sink.check(await self.get_info(file_id))
            await in_thread(os.replace, unfinished, destination)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return destination

    async def init_upload(
        self, *, name: str, size: int, digest: str, project_id: str, **options: Unpack[ExtraOptions]
    ) -> FileUpload | None:
        """Announces a file: the first step of an upload.

        Args:
            name: Its name.
            size: Its size in bytes.
            digest: ``sha256:`` and its digest in hexadecimal.
            project_id: The project that will own the file.
            options: See ``ExtraOptions``.

        Returns:
            Its id and the destination of its content; None if the server sends an empty reply (202).
        """
        required = {"name": name, "size": size, "digest": digest, "project_id": project_id}
        given, extra, query = _UPLOAD.checked_parts("init_upload", required, options)
        given["projectId"] = given.pop("project_id")
        return await self._engine.call(_INIT, Arguments(encode_body({**given, **extra}), query))

    async def complete_upload(self, file_id: str, **options: Unpack[ExtraQuery]) -> None:
        """Confirms that the content of a file has been sent: the last step of an upload."""
        await self._engine.call(_COMPLETE, path_arguments("complete_upload", options, file_id=file_id))

    async def get_info(self, file_id: str, **options: Unpack[ExtraQuery]) -> FileInfo:
        """Returns the metadata of a file: its name, size, digest, ``status`` and so on."""
        return await self._engine.call(_INFO, path_arguments("get_info", options, file_id=file_id))

    async def get_download_url(self, file_id: str, **options: Unpack[ExtraQuery]) -> DownloadURL:
        """Returns the URL from which to download a file's content, without a token."""
        return await self._engine.call(_DOWNLOAD_URL, path_arguments("get_download_url", options, file_id=file_id))
