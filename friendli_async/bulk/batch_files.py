"""OpenAI's batch files: the requests of an input file, and the answers in an output file.

An input line is ``{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}``, of which only the body is
required; or a prompt, ``"..."`` or ``{"prompt": "...", ...}``; or ``{"messages": [...], ...}``. The latter two objects
may include parameters of the call. An output line is ``{"id": ..., "custom_id": ..., "response": {"status_code",
"request_id", "body"}, "error": ...}``. Its ``id`` is a digest of the request: it shows what is done and what changed.

The format: https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec

from friendli_async._hints import shortened
from friendli_async._json import encode_json, json_or_none
from friendli_async.bulk.errors import (
    REJECTION_STATUSES,
    CheckpointError,
    DuplicateKeyError,
    RowsError,
    is_final_status,
    is_unsent,
)
from friendli_async.bulk.journal import Journal, decode_line
from friendli_async.bulk.outcomes import Outcome
from friendli_async.bulk.rows import decode_row, read_lines
from friendli_async.chat.inputs import PARAMETERS as CHAT_PARAMETERS
from friendli_async.chat.inputs import ChatOptions
from friendli_async.client import AsyncFriendli, DeploymentName
from friendli_async.completions import CompletionsOptions
from friendli_async.completions import arguments_of as completions_arguments
from friendli_async.embeddings import PARAMETERS as EMBEDDINGS_PARAMETERS
from friendli_async.embeddings import EmbeddingsOptions
from friendli_async.errors import APIStatusError, FriendliError
from friendli_async.replies import Reply, kept_raw

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"
_EMBEDDINGS: Final = "/v1/embeddings"
_request_encoder: Final = msgspec.json.Encoder(order="deterministic")
_ID_PREFIX: Final = "batch_req_"
_DIGEST_SIZE: Final = 16
_MAX_NAMED: Final = 10
"""Invalid lines that are named: usually all are wrong in the same way."""
_ID_PATTERN: Final = re.compile(f"{_ID_PREFIX}[0-9a-f]{{{2 * _DIGEST_SIZE}}}")


class _Method(NamedTuple):
    """The client method that sends the requests of a URL."""

    group: str
    name: str
    signature: AbstractSet[str]
    options: type
    encode: Callable[[str, Mapping[str, object], Mapping[str, object]], object]
    """Raises what the method would raise before sending."""


_METHODS: Final = {
    _CHAT: _Method("chat", "complete", {"model", "messages"}, ChatOptions, CHAT_PARAMETERS.encode),
    _COMPLETIONS: _Method(
        "completions", "complete", {"model", "prompt", "tokens"}, CompletionsOptions, completions_arguments
    ),
    _EMBEDDINGS: _Method("embeddings", "create", {"model"}, EmbeddingsOptions, EMBEDDINGS_PARAMETERS.encode),
}


class BatchRow(msgspec.Struct, frozen=True):
    """One request of a batch."""

    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def id(self) -> str:
        """The ``id`` of its output line: a digest of the request."""
        request = encode_json([self.custom_id, self.url, self.body], _request_encoder)
        return _ID_PREFIX + blake2b(request, digest_size=_DIGEST_SIZE).hexdigest()

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of the client method; unknown parameters go into ``extra_body``."""
        method = _METHODS[self.url]
        known = method.signature | method.options.__annotations__.keys() - {"extra_body", "extra_query"}
        given = {name: value for name, value in self.body.items() if name in known}
        extra = {name: value for name, value in self.body.items() if name not in known}
        return {**given, "extra_body": extra}

    async def send(self, client: AsyncFriendli, deployment: DeploymentName) -> Reply:
        """Sends the request."""
        method = _METHODS[self.url]
        group = getattr(getattr(client, deployment), method.group)
        call: Callable[..., Awaitable[Reply]] = getattr(group, method.name)
        return await call(**self.arguments())


# --- input -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchInput:
    """An input file of requests, read line by line on each iteration.

    Args:
        path: The file.
        deployment: The deployment that the requests are sent to.
        model: The model of every request, or None; overrides the line's.
        options: Parameters of every request that generates text; they override the line's.
        system: A system message for every line that is only a prompt, or None.
    """

    path: Path
    _: KW_ONLY
    deployment: DeploymentName
    model: str | None
    options: Mapping[str, object]
    system: str | None

    def check(self) -> int:
        """Reads and checks the whole file.

        Returns:
            The number of requests.

        Raises:
            RowsError: A line is not a request, has the ``custom_id`` of another, or would be rejected by the client
                before sending. If there are several such lines, it names the first ten.
            OSError: The file cannot be read.
        """
        lines: dict[str, int] = {}
        invalid: list[RowsError] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                try:
                    self._check_line(number, line, lines)
                except RowsError as error:
                    invalid.append(error)
                if len(invalid) == _MAX_NAMED:
                    break
        if invalid:
            raise invalid[0] if len(invalid) == 1 else _all_of(invalid)
        return len(lines)

    def _check_line(self, number: int, line: bytes, lines: dict[str, int]) -> None:
        """Checks a line, and adds its ``custom_id`` to those of the lines before."""
        row = self._parse_line(number, line)
        first = lines.setdefault(row.custom_id, number)
        if first != number:
            raise DuplicateKeyError(
                f"{self.path} line {number}: custom_id {shortened(row.custom_id)} is already used in line {first}"
            )
        try:
            self._check_row(row)
        except (TypeError, ValueError) as error:
            raise RowsError(f"{self.path} line {number}: {error}") from None

    async def __aiter__(self) -> AsyncIterator[BatchRow]:
        async for number, line in read_lines(self.path):
            yield self._parse_line(number, line)

    def _parse_line(self, number: int, line: bytes) -> BatchRow:
        value = decode_row(line, self.path, number)
        try:
            return self._parse_row(value, number)
        except RowsError as error:
            raise RowsError(f"{self.path} line {number}: {error}") from None

    def _parse_row(self, value: Any, number: int) -> BatchRow:
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, dict):
            raise RowsError("expected a request object or a prompt string")
        line = cast("dict[str, Any]", value)
        custom_id = line.get("custom_id", f"line-{number}")
        if not isinstance(custom_id, str) or not custom_id:
            raise RowsError(f"custom_id must be a non-empty string, not {shortened(custom_id)}")
        if "body" in line:
            if str(line.get("method", "POST")).upper() != "POST":
                raise RowsError(f"method must be POST, not {shortened(line['method'])}")
            if not isinstance(line["body"], dict):
                raise RowsError("body must be an object")
            body = dict(cast("dict[str, Any]", line["body"]))
        elif "method" in line or "url" in line:
            raise RowsError("body is missing")
        else:
            body = self._prompt_body({name: value for name, value in line.items() if name != "custom_id"})
        url = _url_of(line.get("url"), body)
        self._apply_settings(body, url)
        return BatchRow(custom_id, url, body)

    def _prompt_body(self, line: dict[str, Any]) -> dict[str, Any]:
        if "messages" in line:
            return line
        prompt = line.pop("prompt", None)
        if not isinstance(prompt, str):
            raise RowsError("expected a request with a body, messages, or a prompt that is a string")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"messages": [*system, {"role": "user", "content": prompt}], **line}

    def _apply_settings(self, body: dict[str, Any], url: str) -> None:
        """Applies the model and options of the whole batch to one body."""
        if body.pop("stream", None):
            raise RowsError("a batch cannot stream: remove `stream` from the body")
        if self.model is not None:
            body["model"] = self.model
        if url != _EMBEDDINGS:
            body.update(self.options)
        elif self.deployment != "dedicated":
            raise RowsError(f"{_EMBEDDINGS} is served by dedicated endpoints only (--deployment dedicated)")
        if "model" not in body and self.deployment != "container":
            raise RowsError("no model: set it in the body, or pass -m MODEL")

    def _check_row(self, row: BatchRow) -> None:
        """Raises what the client method would raise before sending."""
        given, method = row.arguments(), _METHODS[row.url]
        required = {name: value for name, value in given.items() if name in method.signature}
        options = {name: value for name, value in given.items() if name not in required}
        if row.url == _CHAT and "messages" not in required:
            raise RowsError("messages is missing")
        method.encode(method.name, required, options)


def _all_of(invalid: list[RowsError]) -> RowsError:
    named = [str(error) for error in invalid]
    rest = ["any lines after these were not checked"] if len(named) == _MAX_NAMED else []
    return RowsError("\n".join(["several lines are invalid", *named, *rest]))


def _url_of(url: object, body: Mapping[str, Any]) -> str:
    """Returns the URL of a request, inferred from the body if the line has none."""
    if url is None:
        if "messages" in body:
            return _CHAT
        return _EMBEDDINGS if "input" in body else _COMPLETIONS
    if not isinstance(url, str) or url not in _METHODS:
        raise RowsError(f"url must be one of {', '.join(_METHODS)}, not {shortened(url)}")
    return url


# --- output ----------------------------------------------------------------------------------------------------------


class FailedBeforeError(FriendliError):
    """A request failed in an earlier run and is not sent again."""


class _Error(msgspec.Struct, omit_defaults=True):
    code: str | None = None
    message: str | None = None
    sent: bool = True


class _Status(msgspec.Struct):
    status_code: int


class _Response(_Status):
    request_id: str | None
    body: msgspec.Raw


class _Line(msgspec.Struct):
    """An output line. It is read without what `_Response` adds, the body in particular."""

    id: str
    custom_id: str
    response: _Status | None = None
    error: _Error | None = None

    @property
    def state(self) -> bytes:
        status = self.response.status_code if self.response is not None else 0
        if 200 <= status < 300 and self.error is None:
            return _DONE
        if is_final_status(status):
            return _INVALID
        unsent = self.error is not None and not self.error.sent
        return _REJECTED if unsent or status in REJECTION_STATUSES else _FAILED


_DONE: Final = b"d"
_INVALID: Final = b"i"
_REJECTED: Final = b"r"
_FAILED: Final = b"f"
_line_decoder: Final = msgspec.json.Decoder(_Line)


class BatchOutput:
    """An output file of answers, and the ledger of the run that writes it.

    Args:
        path: The file.
        retry_failed: Whether to send requests again that failed with a retryable error. Those that failed for a reason
            unrelated to the row, such as an invalid token or an outage, are always sent again.
        changed: Called with the ``custom_id`` of each finished request whose content has changed.
    """

    def __init__(self, path: Path, *, retry_failed: bool, changed: Callable[[str], object]) -> None:
        self.unwritten: int = 0
        """The number of answers that could not be written."""
        self._journal = Journal(path, b'{"id":"' + _ID_PREFIX.encode())
        self._retry_failed = retry_failed
        self._changed = changed
        self._states: dict[str, bytes] = {}
        """By custom_id: the digest in its id, and the state of its last line. Compact: there may be millions."""

    def open(self) -> None:
        """Reads which requests are finished; see ``Journal.open`` for errors."""
        self._journal.open(self._load_line)

    def _load_line(self, offset: int, line: bytes) -> bool:
        read = decode_line(line, _line_decoder)
        if read is None or not _ID_PATTERN.fullmatch(read.id):
            return False
        self._states[read.custom_id] = bytes.fromhex(read.id.removeprefix(_ID_PREFIX)) + read.state
        return True

    def find(self, key: str | int, row: BatchRow) -> Outcome[BatchRow, Reply] | None:
        """Returns the outcome of a request that is not to be sent again, or None."""
        known = self._states.get(row.custom_id)
        if known is None:
            return None
        digest, state = known[:_DIGEST_SIZE], known[_DIGEST_SIZE:]
        if digest != bytes.fromhex(row.id.removeprefix(_ID_PREFIX)):
            self._changed(row.custom_id)
            return None
        if state == _DONE:
            return Outcome(key=key, row=row, resumed=True)
        if state == _REJECTED or (state == _FAILED and self._retry_failed):
            return None
        return Outcome(key=key, row=row, error=FailedBeforeError("failed in an earlier run"), resumed=True)

    def keep(self, outcome: Outcome[BatchRow, Reply]) -> None:
        """Writes the answer to a request.

        Raises:
            CheckpointError: The answer was not written.
        """
        row = outcome.row
        response = error = None
        if outcome.error is not None:
            error = _Error(type(outcome.error).__name__, str(outcome.error), sent=not is_unsent(outcome.error))
            if isinstance(outcome.error, APIStatusError):
                failed = outcome.error
                response = _Response(failed.status_code, failed.request_id, _error_body(failed))
        else:
            reply = outcome.result()
            response = _Response(reply.meta.status or 200, reply.meta.request_id, _reply_body(reply))
        line = _Line(row.id, row.custom_id, response, error)
        try:
            self._journal.append(encode_json(line) + b"\n")
        except CheckpointError:
            self.unwritten += 1
            raise

    def close(self) -> None:
        """Makes written answers durable; see ``Journal.close``."""
        self._journal.close()


def _reply_body(reply: Reply) -> msgspec.Raw:
    """Returns the reply as the server sent it, if this is one line of JSON as msgspec reads it back."""
    data = kept_raw(reply)
    assert data is not None, "the calls of a batch are no streams"
    with suppress(ValueError):  # not UTF-8, a byte order mark, or NaN
        msgspec.json.decode(data.decode(), type=msgspec.Raw)
        if b"\n" not in data and b"\r" not in data:  # which ends a line, too, in Python's text mode
            return msgspec.Raw(data)
    return msgspec.Raw(encode_json(reply.raw))


def _error_body(error: APIStatusError) -> msgspec.Raw:
    """Returns the server's error body if it is JSON; otherwise one built from the error."""
    body = json_or_none(error.body)
    if body is None:
        body = {"error": {"message": error.message, "type": error.type, "code": error.code}}
    return msgspec.Raw(encode_json(body))
