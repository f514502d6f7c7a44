"""A file that only grows, line by line, and that a process may leave at any moment without harm.

- A line is one ``write`` on a descriptor in append mode: ``kill -9`` leaves it whole, or not there at all. What a crash
  of the machine, or a full disk, may leave of the last line is cut when the file is next opened.
- What is written reaches the disk about once a second, by ``fdatasync`` in a thread, and when the file is closed.
- One process at a time: the file is locked as long as it is open.

Nothing here knows asyncio.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec

from friendli_async.bulk.errors import CheckpointError, CheckpointInUseError

__all__: list[str] = []

T = TypeVar("T")

_log: Final = logging.getLogger("friendli_async")
_SYNC_SECONDS: Final = 1.0
_BUFFER: Final = 1 << 20
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_sync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)  # macOS and Windows have no fdatasync


class Journal:
    """One file, open for appending.

    Args:
        path: The file; it is made where there is none.
        start: The bytes that each of its lines starts with, by which the rest of a torn one is known.
    """

    def __init__(self, path: Path, start: bytes) -> None:
        self.path = path
        self._start = start
        self._file = -1
        self._size = 0
        self._reader: BinaryIO | None = None
        self._broken: str | None = None
        self._unsynced = False
        self._closing = threading.Event()
        self._guard = threading.Lock()  # `close` waits for an `open` that is going on in another thread
        self._syncer = threading.Thread(target=self._keep_synced, name="friendli_async-checkpoint", daemon=True)

    # --- opening ---

    def open(self, take: Callable[[int, bytes], bool]) -> None:
        """Opens and locks the file, reads it through, and mends its end.

        Args:
            take: Called with each line's offset and the line; says whether it is one of ours.

        Raises:
            CheckpointInUseError: Somebody else has it open.
            CheckpointError: It cannot be opened, or holds what is not ours. Nothing was changed.
        """
        with self._guard:
            if self._closing.is_set():
                return
            try:
                self._open()
                self._read_through(take)
            except OSError as error:
                self._release()
                raise CheckpointError(f"{self.path} cannot be used: {error.strerror or error}") from error
            except BaseException:
                self._release()
                raise
            self._syncer.start()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        existed = self.path.exists()
        self._file = os.open(self.path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise CheckpointError(f"{self.path} is no regular file: it is read again to resume")
        _lock(self._file, self.path)
        if not existed:
            _sync_folder(self.path.parent)
        self._reader = self.path.open("rb", buffering=_BUFFER)

    def _read_through(self, take: Callable[[int, bytes], bool]) -> None:
        tail = b""
        for number, (offset, line) in enumerate(self._lines(), 1):
            if not line.endswith(b"\n"):
                tail = line
                break
            if not take(offset, line):
                raise CheckpointError(
                    f"{self.path} line {number} is no line of such a file; nothing was changed. Give another file, or "
                    "remove the line: its row is sent again"
                )
            self._size = offset + len(line)
        if tail:
            self._mend(tail, take)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        assert self._reader is not None
        offset = 0
        for line in self._reader:
            yield offset, line
            offset += len(line)

    def _mend(self, tail: bytes, take: Callable[[int, bytes], bool]) -> None:
        """Completes a last line that only lacks its end, and cuts one that lacks more."""
        written = tail.rstrip(b"\0")  # what was allocated and not written when the power went
        if written[: len(self._start)] != self._start[: len(written)]:
            raise CheckpointError(f"{self.path} ends with what is no line of such a file; nothing was changed")
        if written == tail and _is_json(tail) and take(self._size, tail):
            self._size += len(tail)
            self.append(b"\n")
        else:
            _log.info("%s: its last line was not written to its end, and is cut off", self.path)
            os.ftruncate(self._file, self._size)

    # --- writing and reading ---

    def append(self, line: bytes) -> None:
        """Writes a line.

        Raises:
            CheckpointError: It is not written, not even in part. So is no later one.
        """
        if self._broken is not None:
            raise CheckpointError(self._broken)
        if self._file < 0:
            raise CheckpointError(f"{self.path} is closed")
        rest = memoryview(line)
        try:
            while rest:  # a write may be short: a signal, the last block of a disk
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._broken = f"{self.path} cannot be written: {error.strerror or error}"
            with contextlib.suppress(OSError):  # where it fails, too, the next run cuts it
                os.ftruncate(self._file, self._size)
            raise CheckpointError(self._broken) from error
        self._size += len(line)
        self._unsynced = True

    def line_at(self, offset: int) -> bytes:
        """The line that begins at an offset."""
        assert self._reader is not None
        self._reader.seek(offset)
        return self._reader.readline()

    # --- durability ---

    def _keep_synced(self) -> None:
        while not self._closing.wait(_SYNC_SECONDS):
            self._sync_now()

    def _sync_now(self) -> None:
        if not self._unsynced:
            return
        self._unsynced = False  # before: what is written during the sync waits for the next
        try:
            _sync(self._file)
            if not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                self._broken = f"{self.path} was replaced by another file while a run was writing to it"
        except FileNotFoundError:
            self._broken = f"{self.path} was removed while a run was writing to it"
        except OSError as error:
            self._broken = f"{self.path} cannot be written: {error.strerror or error}"

    # --- closing ---

    def close(self) -> None:
        """Makes what was written durable and gives the file free. May be called twice, and before ``open``.

        Raises:
            CheckpointError: What was written may not have reached the disk.
        """
        self._closing.set()
        with self._guard:
            if self._file < 0:
                return
            if self._syncer.is_alive():
                self._syncer.join()
            self._sync_now()
            self._release()
        if self._broken is not None:
            raise CheckpointError(self._broken)

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._file >= 0:
            os.close(self._file)  # and with it the lock
            self._file = -1


def read_line(line: bytes, decoder: msgspec.json.Decoder[T], kind: type[T]) -> T | None:
    """What a line says; None where it is no such line.

    Text with lone surrogates, which a model's tokens may have, is JSON that msgspec refuses: it is read the slow way.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            return msgspec.convert(json.loads(line), kind)
        except (ValueError, RecursionError):
            return None


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _lock(file: int, path: Path) -> None:
    try:
        _lock_now(file)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise CheckpointInUseError(f"{path} is in use by another run") from error
        _log.warning("%s is on a file system without locks: nothing keeps another run from writing to it", path)


if sys.platform == "win32":
    import msvcrt

    _FAR: Final = 1 << 62  # a lock of Windows keeps others from reading, too: so of a byte that is never there

    def _lock_now(file: int) -> None:
        os.lseek(file, _FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _sync_folder(folder: Path) -> None:
        """Windows has no such thing."""

else:
    import fcntl

    def _lock_now(file: int) -> None:
        # flock and not lockf: that one's locks do not exclude the same process, and go with any descriptor of the file.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _sync_folder(folder: Path) -> None:
        """Makes the name of a new file durable."""
        opened = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems refuse it
                os.fsync(opened)
        finally:
            os.close(opened)
