"""An append-only file of lines that stays valid if its process dies at any moment.

- A line is one ``write`` on a descriptor in append mode: after ``kill -9`` it is complete or absent. A partial last
  line, left by a system crash or a full disk, is truncated when the file is next opened.
- Written lines reach the disk about once a second, by ``fdatasync`` in a thread, and when the file is closed.
- One process at a time: the file is locked while it is open.

This module does not use asyncio.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec

from friendli_async._json import decode_json
from friendli_async.bulk.errors import CheckpointError, CheckpointInUseError

T = TypeVar("T")

_logger: Final = logging.getLogger("friendli_async")
_SYNC_SECONDS: Final = 1.0
_BUFFER_SIZE: Final = 1 << 20
_LOCKED: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_LOCKING_UNSUPPORTED: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # two numbers on macOS
_sync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)  # macOS and Windows have no fdatasync


class Journal:
    """One file, open for appending.

    Args:
        path: The file; created if missing.
        start: The bytes that each line starts with, by which a partial line is recognized.
    """

    def __init__(self, path: Path, start: bytes) -> None:
        self._file = -1
        self._reader: BinaryIO | None = None
        self._closing = threading.Event()
        self.path: Path = path.absolute()  # the working directory may change during the run
        self._start = start
        self._size = 0
        self._failure: str | None = None
        self._unsynced = False
        self._lifecycle_lock = threading.Lock()  # `close` waits for an `open` in another thread
        self._syncer = threading.Thread(
            target=self._sync_periodically,
            args=(weakref.ref(self), self._closing),
            name="friendli_async-checkpoint",
            daemon=True,
        )

    # --- opening ---

    def open(self, load_line: Callable[[int, bytes], bool]) -> None:
        """Opens and locks the file, reads all of it, and repairs its end.

        Args:
            load_line: Called with the offset and the bytes of each line; returns whether the line is valid.

        Raises:
            CheckpointInUseError: Another run has the file open.
            CheckpointError: The file cannot be opened, or has an invalid line. Nothing was changed.
        """
        with self._lifecycle_lock:
            if self._closing.is_set():
                return
            try:
                self._open()
                self._read_through(load_line)
            except OSError as error:
                self._release()
                raise CheckpointError(f"{self.path} cannot be used: {error.strerror or error}") from error
            except BaseException:
                self._release()
                raise
            self._syncer.start()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise CheckpointError(f"{self.path} is not a regular file, so no run could resume from it")
        self._lock()
        _sync_folder(self.path.parent)
        self._reader = self.path.open("rb", buffering=_BUFFER_SIZE)

    def _lock(self) -> None:
        try:
            _try_lock(self._file)
        except OSError as error:
            if error.errno in _LOCKED:
                raise CheckpointInUseError(f"{self.path} is in use by another run") from error
            if error.errno not in _LOCKING_UNSUPPORTED:
                raise
            _logger.warning(
                "%s is on a file system without file locks; make sure that no other run writes to it", self.path
            )

    def _read_through(self, load_line: Callable[[int, bytes], bool]) -> None:
        assert self._reader is not None
        for number, line in enumerate(self._reader, 1):
            if not line.endswith(b"\n"):
                self._repair_tail(line, load_line)
                return  # not on to the newline that this may have written
            if not load_line(self._size, line):
                raise CheckpointError(
                    f"{self.path} line {number} is not in the expected format; nothing was changed. Use another file, "
                    "or remove the line: its row will be sent again"
                )
            self._size += len(line)

    def _repair_tail(self, tail: bytes, load_line: Callable[[int, bytes], bool]) -> None:
        """Completes a last line that only lacks its newline, and truncates any other partial line."""
        written = tail.rstrip(b"\0")  # zeros were allocated, but not written before a power failure
        if written[: len(self._start)] != self._start[: len(written)]:
            raise CheckpointError(
                f"{self.path} ends with a line that is not in the expected format; nothing was changed"
            )
        if load_line(self._size, tail):
            self._size += len(tail)
            self.append(b"\n")
        else:
            _logger.info("%s: the last line is incomplete and is removed", self.path)
            os.ftruncate(self._file, self._size)

    # --- writing and reading ---

    def append(self, line: bytes) -> None:
        """Writes a line.

        Raises:
            CheckpointError: The line was not written, not even in part. Later lines fail, too.
        """
        if self._failure is not None:
            raise CheckpointError(self._failure)
        if self._file < 0:
            raise CheckpointError(f"{self.path} is closed")
        try:
            written = os.write(self._file, line)
            while written < len(line):  # a write may be short: a signal, the last block of a disk
                written += os.write(self._file, line[written:])
        except OSError as error:
            self._failure = f"{self.path} cannot be written: {error.strerror or error}"
            with contextlib.suppress(OSError):  # if this fails, too, the next run truncates it
                os.ftruncate(self._file, self._size)
            raise CheckpointError(self._failure) from error
        self._size += len(line)
        self._unsynced = True

    def line_at(self, offset: int) -> bytes:
        """Returns the line that begins at an offset."""
        assert self._reader is not None
        self._reader.seek(offset)
        return self._reader.readline()

    # --- durability ---

    @staticmethod
    def _sync_periodically(journal: weakref.ref[Journal], closing: threading.Event) -> None:
        while not closing.wait(_SYNC_SECONDS):
            still_open = journal()
            if still_open is not None:
                still_open._sync_now()
            del still_open  # else it would be kept while this waits

    def _sync_now(self) -> None:
        if not self._unsynced:
            return
        self._unsynced = False  # cleared first: lines written during the sync wait for the next one
        try:
            _sync(self._file)
            if not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                self._failure = f"{self.path} was replaced by another file while a run was writing to it"
        except FileNotFoundError:
            self._failure = f"{self.path} was removed while a run was writing to it"
        except OSError as error:
            self._failure = f"{self.path} cannot be written: {error.strerror or error}"

    # --- closing ---

    def close(self) -> None:
        """Makes written lines durable and releases the file. May be called twice, and before ``open``.

        Raises:
            CheckpointError: Some lines were not written, or may not have reached the disk.
        """
        self._closing.set()
        with self._lifecycle_lock:
            if self._syncer.is_alive():
                self._syncer.join()
            self._sync_now()
            self._release()
        if self._failure is not None:
            raise CheckpointError(self._failure)

    def __del__(self) -> None:
        self._closing.set()  # unless its run was left in a loop that has been closed, it is closed already
        self._release()

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._file >= 0:
            os.close(self._file)  # also releases the lock
            self._file = -1


def decode_line(line: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    """Decodes a line. Returns None if it is invalid."""
    try:
        decoded: T = decode_json(line, decoder)
    except (ValueError, RecursionError):
        return None
    return decoded


if sys.platform == "win32":
    import msvcrt

    _LOCK_OFFSET: Final = 1 << 62  # a lock on Windows blocks reads, too, so it is taken on a byte that never exists

    def _try_lock(file: int) -> None:
        os.lseek(file, _LOCK_OFFSET, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _sync_folder(folder: Path) -> None:
        """Does nothing: Windows cannot sync a folder."""

else:
    import fcntl

    def _try_lock(file: int) -> None:
        # Not lockf: its locks do not exclude the same process, and closing any descriptor of the file releases them.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _sync_folder(folder: Path) -> None:
        """Makes the directory entry of a new file durable."""
        with contextlib.suppress(OSError):  # it may be unreadable, and some network file systems reject this
            opened = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)
