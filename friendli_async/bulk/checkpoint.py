"""The checkpoint of ``run_all``: a file that records finished rows.

A line is ``{"key": ..., "hash": ..., "attempts": ..., "type": ..., "reply": ...}``, where ``type`` is that of the reply
(see ``reply_codec``). The line of a row that failed has an ``error`` instead of these two. A retryable error (see
``errors.is_final``) is recorded for information only: the next run sends its row again. If several other lines have the
same key, the last one counts. ``hash`` is a digest of the row: if the content has changed, the row is sent again.
Memory holds the key and offset of each line; a reply is read from the file when its row is reached.
"""

from __future__ import annotations

import json
import logging
from hashlib import blake2b
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from friendli_async._core.body.json_values import json_hook, normalize
from friendli_async._hints import shortened
from friendli_async._json import encode_json
from friendli_async.bulk.errors import CheckpointInUseError, DuplicateKeyError, RowsError, is_final
from friendli_async.bulk.journal import Journal, decode_line
from friendli_async.bulk.outcomes import Outcome
from friendli_async.bulk.reply_codec import ReplyCodec
from friendli_async.errors import APIStatusError, status_class

Row = TypeVar("Row")
R = TypeVar("R")

_logger: Final = logging.getLogger("friendli_async")
_SEEN: Final = -1
"""The offset of a row that was taken in this run: another row with its key is a duplicate."""
_INTEGER_KEYS: Final = range(-(1 << 63), 1 << 64)  # what msgspec encodes as an integer


class _Error(msgspec.Struct, omit_defaults=True):
    """An error in the file."""

    type: str
    message: str
    final: bool
    status: int = 0
    code: str | None = None
    kind: str | None = None
    request_id: str | None = None
    body: str = ""


class _Head(msgspec.Struct):
    """The fields of a line that are decoded when the file is opened."""

    key: str | int
    hash: str
    attempts: int
    error: _Error | None = None

    @property
    def is_retryable(self) -> bool:
        """Whether the line records a retryable error: the row is not finished."""
        return self.error is not None and not self.error.final


class _Line(_Head, omit_defaults=True):
    type: str | None = None
    reply: msgspec.Raw = msgspec.Raw()


_head_decoder: Final = msgspec.json.Decoder(_Head)
_line_decoder: Final = msgspec.json.Decoder(_Line)
_row_encoder: Final = msgspec.json.Encoder(enc_hook=json_hook, order="deterministic")


class Lines(Generic[Row, R]):
    """Encodes outcomes as lines, and decodes them. The codec encodes and restores the replies."""

    start: Final = b'{"key":'
    """The bytes that every line starts with."""

    def __init__(self, codec: ReplyCodec[R] | None = None) -> None:
        self._codec: ReplyCodec[R] = ReplyCodec() if codec is None else codec

    def write(self, outcome: Outcome[Row, R], digest: str) -> tuple[bytes, str | None]:
        """Encodes an outcome as a line. Returns it, and the name of the type of the reply.

        Raises:
            CheckpointError: The reply cannot be encoded.
        """
        line = _Line(key=outcome.key, hash=digest, attempts=outcome.attempts)
        if outcome.error is not None:
            line.error = _error_record(outcome.error)
        else:
            line.type, data = self._codec.encode(outcome.key, outcome.reply)
            line.reply = msgspec.Raw(data)
        return encode_json(line) + b"\n", line.type

    def check(self, outcome: Outcome[Row, R], line: bytes, name: str | None) -> None:
        """Checks that the reply of a written line can be restored; ``name`` is that of its type.

        Raises:
            CheckpointError: It cannot.
        """
        if outcome.error is None:
            self._codec.check(outcome.reply, name, lambda: self._decode_reply(outcome.key, line))

    def head(self, line: bytes) -> _Head | None:
        """Decodes the head of a line. Returns None if the line is invalid."""
        return decode_line(line, _head_decoder)

    def outcome(self, line: bytes, row: Row, digest: str) -> Outcome[Row, R] | None:
        """Decodes the outcome of a finished row. Returns None if the row has changed.

        Raises:
            CheckpointError: The reply cannot be decoded.
        """
        head = self.head(line)
        if head is None or head.hash != digest:
            return None
        error = None if head.error is None else _restore_error(head.error)
        reply = None if error is not None else self._decode_reply(head.key, line)
        return Outcome(key=head.key, row=row, reply=reply, error=error, attempts=head.attempts, resumed=True)

    def _decode_reply(self, key: str | int, text: bytes) -> R:
        try:
            line = _line_decoder.decode(text)
            name, data = line.type, bytes(line.reply)
        except msgspec.DecodeError:  # lone surrogates, as in `decode_line`
            value = json.loads(text)
            name, data = value.get("type"), encode_json(value["reply"])
        return self._codec.decode(key, name, data)


class Checkpoint(Generic[Row, R]):
    """A ledger in a file. The codec encodes and restores the replies."""

    def __init__(self, path: Path, codec: ReplyCodec[R]) -> None:
        self._lines = Lines[Row, R](codec)
        self._journal = Journal(path, Lines.start)
        self._offsets: dict[str | int, int] = {}
        self._hashes: dict[str | int, str] = {}  # hashes of the rows in flight, as of when they were taken

    def open(self) -> None:
        """Reads which rows are finished; see ``Journal.open`` for errors."""
        try:
            self._journal.open(self._load_line)
        except CheckpointInUseError as error:
            error.add_note("A run of this program that was left is closed by `await run.aclose()`")
            raise

    def _load_line(self, offset: int, line: bytes) -> bool:
        head = self._lines.head(line)
        if head is None:
            return False
        if not head.is_retryable:
            self._offsets[head.key] = offset
        return True

    def find(self, key: str | int, row: Row) -> Outcome[Row, R] | None:
        """Returns the outcome of a finished row, or None.

        Raises:
            DuplicateKeyError: An earlier row has the same key.
            RowsError: The row cannot be hashed.
        """
        offset = self._offsets.get(key)
        if offset == _SEEN:
            raise DuplicateKeyError(f"two rows have the key {shortened(key)}")
        digest = row_hash(key, row)
        self._offsets[key] = _SEEN
        if offset is not None:
            done = self._lines.outcome(self._journal.line_at(offset), row, digest)
            if done is not None:
                return done
            _logger.warning("row %s has changed since it completed; sending it again", shortened(key))
        self._hashes[key] = digest
        return None

    def keep(self, outcome: Outcome[Row, R]) -> None:
        """Writes an outcome.

        Raises:
            CheckpointError: The outcome was not written, or its reply cannot be restored.
        """
        line, name = self._lines.write(outcome, self._hashes.pop(outcome.key))
        self._journal.append(line)
        self._lines.check(outcome, line, name)

    def close(self) -> None:
        """Makes written outcomes durable; see ``Journal.close``."""
        self._journal.close()


def plain_key(key: object) -> str | int:
    """Returns a key as what is read back from the file: a plain str or int, also for those of numpy and of enums.

    Raises:
        RowsError: The key is invalid.
    """
    plain = normalize(key)
    if type(plain) is str or (type(plain) is int and plain in _INTEGER_KEYS):
        return plain
    raise RowsError(f"a key must be a str or a 64-bit int, not {shortened(key)}")


def row_hash(key: str | int, row: object) -> str:
    """Returns a digest of a row's content, independent of the order of its keys.

    Raises:
        RowsError: The row is neither JSON nor a dataclass, a struct or a pydantic model of JSON values.
    """
    try:
        try:
            data = encode_json(row, _row_encoder)
        except TypeError:  # in sorted dicts, msgspec accepts no keys but text
            plain = msgspec.to_builtins(row, enc_hook=json_hook, order=_row_encoder.order, str_keys=True)
            data = encode_json(plain, _row_encoder)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowsError(
            f"row {shortened(key)} cannot be compared with the checkpoint: {error}. Rows are JSON values, or structs, "
            "dataclasses or pydantic models of them"
        ) from error
    return blake2b(data, digest_size=16).hexdigest()


def _error_record(error: Exception) -> _Error:
    record = _Error(type=type(error).__name__, message=str(error), final=is_final(error))
    if isinstance(error, APIStatusError):
        record.status, record.message, record.body = error.status_code, error.message, error.body
        record.code, record.kind, record.request_id = error.code, error.type, error.request_id
    return record


def _restore_error(record: _Error) -> Exception:
    """Restores a recorded error; always a status error, since only those are final."""
    return status_class(record.status)(
        record.message,
        status_code=record.status,
        code=record.code,
        type=record.kind,
        body=record.body,
        request_id=record.request_id,
    )
