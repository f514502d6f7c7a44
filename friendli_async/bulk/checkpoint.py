"""The checkpoint of ``run_all``: a file that says what is done.

A line is ``{"key": ..., "hash": ..., "attempts": ..., "type": ..., "reply": ...}``, or has an ``error`` instead of the
last two. Of several lines of one key the last counts. ``hash`` is of the row: one whose content has changed since is
sent again. An error worth another try (``errors.is_final``) is written for who reads the file; the next run sends its
row again. In memory there is a key and an offset for each line; a reply is read again when its turn comes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
import msgspec.inspect

from friendli_async.bulk.errors import CheckpointError, DuplicateKeyError, RowsError, is_final
from friendli_async.bulk.journal import Journal, read_line
from friendli_async.bulk.outcomes import Outcome
from friendli_async.errors import APIStatusError, status_class
from friendli_async.replies import Reply

__all__: list[str] = []

Row = TypeVar("Row")
R = TypeVar("R")

_log: Final = logging.getLogger("friendli_async")
_SEEN: Final = -1
"""The offset of a row that has come in this run: another with its key is one too many."""
_JSON_TYPES: Final = frozenset({dict, list, str, int, float, bool, type(None)})
_INTEGERS: Final = range(-(1 << 63), 1 << 64)  # what msgspec writes as an integer


class _Error(msgspec.Struct, omit_defaults=True):
    """An error, as it is written."""

    type: str
    message: str | None
    final: bool
    status: int | None = None
    code: str | None = None
    kind: str | None = None
    request_id: str | None = None
    body: str | None = None


class _Head(msgspec.Struct):
    """What of a line is looked at when the file is opened."""

    key: str | int
    hash: str
    attempts: int
    error: _Error | None = None

    @property
    def may_pass(self) -> bool:
        """Whether it tells of an error worth another try."""
        return self.error is not None and not self.error.final


class _Line(_Head, omit_defaults=True):
    type: str | None = None
    reply: msgspec.Raw = msgspec.Raw()


_heads: Final = msgspec.json.Decoder(_Head)
_lines: Final = msgspec.json.Decoder(_Line)
_encoder: Final = msgspec.json.Encoder()


class Lines(Generic[Row, R]):
    """Outcomes as lines, and back.

    Args:
        reply_type: What replies are decoded into when they are read again. Any: what they were, for JSON values and
            for replies of this library; others are refused, since they could not come back as they went.

    Raises:
        TypeError: msgspec cannot decode it.
    """

    start: Final = b'{"key":'
    """What every line starts with."""

    def __init__(self, reply_type: Any = Any) -> None:
        if isinstance(msgspec.inspect.type_info(reply_type), msgspec.inspect.CustomType):
            raise TypeError(f"reply_type must be a type that msgspec decodes, not {reply_type!r}")
        self._reply_type = reply_type

    def write(self, outcome: Outcome[Row, R], digest: str) -> bytes:
        """The line of an outcome.

        Raises:
            CheckpointError: The reply could not be read again.
        """
        line = _Line(key=outcome.key, hash=digest, attempts=outcome.attempts)
        if outcome.error is not None:
            line.error = _written(outcome.error)
        else:
            line.type = self._type_of(outcome.reply)
            line.reply = msgspec.Raw(_encoded(outcome.key, outcome.reply))
        return _encoder.encode(line) + b"\n"

    def _type_of(self, reply: object) -> str | None:
        if self._reply_type is not Any or type(reply) in _JSON_TYPES:
            return None
        name = type(reply).__name__
        if isinstance(reply, Reply) and _is_ours(type(reply)):
            return name
        raise CheckpointError(
            f"a reply of type {name} cannot be read again as what it was: give reply_type={name}, or let `call` "
            "return JSON or a reply of this library"
        )

    def head(self, line: bytes) -> _Head | None:
        """What a line is about; None where it is none of ours."""
        return read_line(line, _heads, _Head)

    def outcome(self, line: bytes, row: Row, digest: str) -> Outcome[Row, R] | None:
        """The outcome of a row; None where the row has changed since, or is worth another try.

        Raises:
            CheckpointError: The reply cannot be read.
        """
        head = self.head(line)
        if head is None or head.hash != digest or head.may_pass:
            return None
        if head.error is not None:
            error = _error_of(head.error)
            return Outcome(key=head.key, row=row, error=error, attempts=head.attempts, resumed=True)
        return Outcome(key=head.key, row=row, reply=self._reply(head.key, line), attempts=head.attempts, resumed=True)

    def _reply(self, key: str | int, text: bytes) -> R:
        try:
            try:
                line = _lines.decode(text)
                return cast("R", msgspec.json.decode(line.reply, type=self._kind(key, line.type)))
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:  # lone surrogates, as in `read_line`
                value = json.loads(text)
                return cast("R", msgspec.convert(value["reply"], self._kind(key, value.get("type"))))
        except msgspec.ValidationError as error:
            raise CheckpointError(f"the reply of row {key!r} cannot be read again: {error}") from error

    def _kind(self, key: str | int, name: str | None) -> Any:
        if name is None or self._reply_type is not Any:
            return self._reply_type
        kinds = {kind.__name__: kind for kind in _reply_types(Reply)}
        if name not in kinds:
            raise CheckpointError(f"the reply of row {key!r} is a {name}, which is not known here: give reply_type=")
        return kinds[name]


class Checkpoint(Generic[Row, R]):
    """A ledger in a file.

    Args:
        path: The file.
        reply_type: See ``Lines``.
    """

    def __init__(self, path: Path, reply_type: Any = Any) -> None:
        self._lines = Lines[Row, R](reply_type)
        self._journal = Journal(path, Lines.start)
        self._offsets: dict[str | int, int] = {}
        self._sent: dict[str | int, str] = {}  # hashes of the rows under way, as they were when they were taken

    def open(self) -> None:
        """Reads what is done; see ``Journal.open`` for what it raises."""
        self._journal.open(self._take)

    def _take(self, offset: int, line: bytes) -> bool:
        head = self._lines.head(line)
        if head is None:
            return False
        if head.may_pass:
            self._offsets.pop(head.key, None)
        else:
            self._offsets[head.key] = offset
        return True

    def find(self, key: str | int, row: Row) -> Outcome[Row, R] | None:
        """The outcome of a row that is done.

        Raises:
            DuplicateKeyError: An earlier row had this key.
            RowsError: The row cannot be written.
        """
        offset = self._offsets.get(key)
        if offset == _SEEN:
            raise DuplicateKeyError(f"two rows have the key {key!r}")
        digest = row_hash(key, row)
        self._offsets[key] = _SEEN
        if offset is not None:
            done = self._lines.outcome(self._journal.line_at(offset), row, digest)
            if done is not None:
                return done
            _log.warning("the row %r has changed since it was done, and is sent again", key)
        self._sent[key] = digest
        return None

    def keep(self, outcome: Outcome[Row, R]) -> None:
        """Writes an outcome.

        Raises:
            CheckpointError: It is not written.
        """
        self._journal.append(self._lines.write(outcome, self._sent.pop(outcome.key)))

    def close(self) -> None:
        """Makes what is written durable; see ``Journal.close``."""
        self._journal.close()


def check_key(key: object) -> None:
    """Checks that a key can be written, and read again as what it was.

    Raises:
        RowsError: It cannot.
    """
    if type(key) is int and key in _INTEGERS:
        return
    if type(key) is str:
        if key.isascii() or not any("\ud800" <= character <= "\udfff" for character in key):
            return
        raise RowsError(f"the key {key!r} has lone surrogates, which cannot be written")
    raise RowsError(f"a key must be a str or an int of 64 bits, not {key!r}")


def row_hash(key: str | int, row: object) -> str:
    """A digest of a row's content, whatever the order of its keys.

    Raises:
        RowsError: The row is not JSON, nor a dataclass, a struct or a pydantic model of such values.
    """
    try:
        try:
            data = msgspec.json.encode(row, enc_hook=_plain, order="deterministic")
        except UnicodeEncodeError:  # lone surrogates
            data = json.dumps(msgspec.to_builtins(row, enc_hook=_plain), sort_keys=True).encode("ascii")
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise RowsError(f"the row {key!r} cannot be compared with what was done before: {error}") from error
    return blake2b(data, digest_size=16).hexdigest()


def _plain(value: Any) -> object:
    """What msgspec does not know by itself: pydantic's models, without importing it."""
    dump: Any = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _encoded(key: str | int, reply: object) -> bytes:
    try:
        try:
            return msgspec.json.encode(reply)
        except UnicodeEncodeError:  # lone surrogates, which a model's tokens may have
            return json.dumps(msgspec.to_builtins(reply), separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"the reply of row {key!r} cannot be written: {error}") from error


def _written(error: Exception) -> _Error:
    written = _Error(type=type(error).__name__, message=_clean(str(error)), final=is_final(error))
    if isinstance(error, APIStatusError):
        written.status, written.message, written.body = error.status_code, _clean(error.message), _clean(error.body)
        written.code, written.kind = _clean(error.code), _clean(error.type)
        written.request_id = _clean(error.request_id)
    return written


def _clean(text: str | None) -> str | None:
    """A text without lone surrogates."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def _error_of(written: _Error) -> Exception:
    """The error that was written; only those of a status are final, and so come back."""
    status = written.status or 0
    return status_class(status)(
        written.message or "",
        status_code=status,
        code=written.code,
        type=written.kind,
        body=written.body or "",
        request_id=written.request_id,
    )


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("friendli_async.")


def _reply_types(kind: type[Reply]) -> Iterator[type[Reply]]:
    for inner in kind.__subclasses__():
        if _is_ours(inner):
            yield inner
        yield from _reply_types(inner)
