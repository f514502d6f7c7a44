"""Sources of a file's bytes: memory, a path, an open file, an async iterator. They are read in bounded pieces.

Files are read in worker threads. A file given by path is closed between two reads, so nothing stays open wherever
reading stops.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, BinaryIO, Final, TypeVar, TypeVarTuple, Unpack, cast

from friendli_async._callables import is_async
from friendli_async.errors import ArgumentError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Content = bytes | bytearray | memoryview | os.PathLike[str] | BinaryIO | AsyncIterable[bytes]
"""What a file may be passed as: its bytes, its path, an open binary file (read from its current position), or an async
iterator of bytes (which can be read only once), such as a file of aiofiles or anyio."""

PIECE: Final = 256 * 1024
"""Maximum number of bytes that are read, and held, at a time."""


async def in_thread(function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
    """Calls a blocking function in a worker thread."""
    from anyio import to_thread  # only calls with files need it

    return await to_thread.run_sync(function, *arguments)


async def open_in_thread(function: Callable[[], T], undo: Callable[[T], object]) -> T:
    """Opens something in a worker thread.

    Args:
        function: Opens it.
        undo: Closes it again if the caller was cancelled: a thread cannot be cancelled, and finishes what it does.
    """
    lock = threading.Lock()
    made: list[T] = []
    is_wanted = True

    def work() -> T:
        found = function()
        with lock:
            if is_wanted:
                made.append(found)
                return found
        undo(found)
        return found

    try:
        return await in_thread(work)
    except BaseException:
        with lock:
            is_wanted = False
        for found in made:
            undo(found)
        raise


async def in_daemon_thread(function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
    """Calls a function that may block forever, such as reading a pipe, in a daemon thread.

    The caller can be cancelled in any way, and the thread does not keep the process from exiting.
    """
    import asyncio  # already loaded here; a bare import of the library does not load it
    from concurrent.futures import Future

    outcome: Future[T] = Future()

    def work() -> None:
        if not outcome.set_running_or_notify_cancel():
            return
        try:
            outcome.set_result(function(*arguments))
        except StopIteration:  # an asyncio future cannot hold one: the caller would wait forever
            outcome.set_exception(RuntimeError("the file raised StopIteration"))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="friendli_async pipe", daemon=True).start()
    return await asyncio.wrap_future(outcome)


class BytesSource:
    """Bytes in memory."""

    name = None
    is_one_shot = False

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def size(self) -> int:
        """Returns the number of bytes."""
        return len(self.data)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Splits the data, so that no buffer holds another full copy."""
        for position in range(0, len(self.data), PIECE):
            yield self.data[position : position + PIECE]


class PathSource:
    """A file given by its path. It must not change while it is in use: a change is an error, never mixed content."""

    is_one_shot = False

    def __init__(self, path: str, label: str) -> None:
        self.name: str | None = os.path.basename(path)
        self._path = path
        self._label = label
        self._seen: tuple[int, ...] | None = None

    async def size(self) -> int:
        """Returns the size."""
        return await in_thread(self._stat)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Reads the file, opening it again for each piece."""
        size = await self.size()
        position = 0
        while position < size:
            piece = await in_thread(self._read, position)
            position += len(piece)
            yield piece

    def _stat(self) -> int:
        size = self._check_unchanged(os.stat(self._path))
        if not size:
            with open(self._path, "rb", buffering=0) as file:
                _check_empty(file, self._label)
        return size

    def _read(self, position: int) -> bytes:
        with open(self._path, "rb", buffering=0) as file:
            self._check_unchanged(os.fstat(file.fileno()))
            file.seek(position)
            piece = file.read(PIECE)
        if not piece:
            raise ArgumentError(f"{self._path} has changed while it was being read", self._label)
        return piece

    def _check_unchanged(self, found: os.stat_result) -> int:
        if not stat.S_ISREG(found.st_mode):
            raise ArgumentError(f"{self._path} is not a regular file", self._label)
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._seen is None:
            self._seen = identity
        if identity != self._seen:
            raise ArgumentError(f"{self._path} has changed while it was being read", self._label)
        return found.st_size


class OpenFileSource:
    """An open binary file, read from its current position to its end. It is not closed."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        name: object = getattr(file, "name", None)
        self.name = os.path.basename(name) or None if isinstance(name, str) else None
        self.is_one_shot = not file.seekable()
        self._file = file
        self._label = label
        self._start = 0 if self.is_one_shot else file.tell()
        self._size: int | None = None

    async def size(self) -> int | None:
        """Returns the number of bytes from the initial position to the end; None for a pipe."""
        if self._size is None and not self.is_one_shot:
            self._size = await in_thread(self._measure)
        return self._size

    async def pieces(self) -> AsyncIterator[bytes]:
        """Reads the file, each piece from its own position."""
        size = await self.size()
        position = 0
        while size is None or position < size:
            most = PIECE if size is None else min(PIECE, size - position)
            piece = await (in_daemon_thread if self.is_one_shot else in_thread)(self._read, position, most)
            if not piece and size is None:
                return
            if not piece:
                raise ArgumentError("the open file was truncated while it was being read", self._label)
            position += len(piece)
            yield piece

    def _measure(self) -> int:
        size = max(self._file.seek(0, os.SEEK_END) - self._start, 0)
        if not size:
            self._file.seek(self._start)
            _check_empty(self._file, self._label)
        return size

    def _read(self, position: int, most: int) -> bytes:
        if not self.is_one_shot:
            self._file.seek(self._start + position)
        piece = cast("object", self._file.read(most))
        if not isinstance(piece, bytes):
            raise ArgumentError(f"the open file returned {type(piece).__name__}, not bytes", self._label)
        return piece


def _check_empty(file: BinaryIO | io.RawIOBase, label: str) -> None:
    """Rejects a file that only looks empty, such as those in /proc, and /dev/zero."""
    if file.read(1):
        raise ArgumentError("the file reports a size of 0 but is not empty; read it and pass the bytes", label)


class IteratorSource:
    """Pieces from an async iterator."""

    name = None
    is_one_shot = True

    def __init__(self, pieces: AsyncIterable[bytes], label: str) -> None:
        self._pieces = pieces
        self._label = label

    async def size(self) -> None:
        """Returns None: the size is known only at the end."""
        return

    async def pieces(self) -> AsyncIterator[bytes]:
        """Passes the pieces on."""
        async for piece in self._pieces:
            if not isinstance(cast("object", piece), bytes | bytearray | memoryview):
                raise ArgumentError(f"the iterator yielded {type(piece).__name__}, not bytes", self._label)
            yield bytes(piece)


Source = BytesSource | PathSource | OpenFileSource | IteratorSource
"""Bytes that can be read piece by piece.

``name`` is the file's name without folders, or None. ``is_one_shot``: whether they can be read only once. ``size()``
returns how many there are, or None if that is known only at the end; ``pieces()`` reads them from the beginning. Both
raise OSError, or ValueError if the file is not a regular file or has changed.
"""


def source_of(content: object, label: str) -> Source:
    """Returns a source for what a caller passed (see ``Content``) as the parameter ``label``.

    Raises:
        ValueError: The type is not supported.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        return BytesSource(bytes(cast("bytes", content)))
    if isinstance(content, os.PathLike):
        path: object = os.fspath(cast("os.PathLike[str]", content))
        if isinstance(path, str):
            return PathSource(path, label)
    if isinstance(content, io.TextIOBase):
        raise ArgumentError("the file is open in text mode; open it in binary mode", label)
    given = cast("Any", content)
    read = getattr(given, "read", None)
    if callable(read) and callable(getattr(given, "seekable", None)) and not is_async(read):
        return OpenFileSource(given, label)
    if isinstance(given, AsyncIterable):
        return IteratorSource(cast("AsyncIterable[bytes]", given), label)
    kind, hint = type(given).__name__, ""
    if isinstance(given, str):
        hint = "; for a path pass pathlib.Path(...)"
    elif isinstance(given, tuple):  # as other clients take it
        hint = "; pass only the bytes or the file; audio takes filename=..."
    elif hasattr(given, "file"):  # an UploadFile of Starlette
        hint = "; pass its .file"
    raise ArgumentError(f"Expected bytes, a path, an open binary file or an async iterator, got `{kind}`{hint}", label)


async def read_whole(source: Source, limit: int, label: str) -> bytes:
    """Reads all of a source into memory; ``label`` is how errors name it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than ``limit`` bytes.
    """
    size = await source.size()
    if size is not None and size > limit:
        raise ArgumentError(f"{size} bytes exceed the limit of {limit} bytes", label)
    whole = bytearray()
    async for piece in source.pieces():
        whole += piece
        if len(whole) > limit:
            raise ArgumentError(f"the content exceeds the limit of {limit} bytes", label)
    return bytes(whole)
