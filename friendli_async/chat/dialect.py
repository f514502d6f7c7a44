"""The dialect of chunks with choices: of chat, tool-assisted chat and completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from friendli_async._core.error_json import is_blank, looks_like_error
from friendli_async._core.events.decoding import (
    NOT_DECODED,
    ChunkDialect,
    has_answer,
    is_end_of_choice,
)
from friendli_async._core.lenient import correct_usage
from friendli_async.chat.replies import reasoning_of

E = TypeVar("E")


class ChoicesDialect(ChunkDialect[E], kw_only=True):
    """Chunks of choices, whose fast path looks into them."""

    def are_ordinary(self, events: Sequence[Any], payloads: Sequence[bytes]) -> bool:
        """Whether every chunk has content or usage, and neither an error nor a message."""
        if len(events) == 1 and _has_content(events[0]):  # as in nearly all reads of a live stream
            return True
        for chunk, payload in zip(events, payloads, strict=True):
            if not _has_content(chunk) and not _is_without_error(chunk, payload, self):
                return False
        return True


def _has_content(chunk: Any) -> bool:
    """Whether a chunk has a part of the answer or its end, no error, no message, and no usage without counts.

    Removes a blank error, which some servers send with every chunk.
    """
    if chunk.error is not None and is_blank(chunk.error):
        msgspec.structs.force_setattr(chunk, "error", None)
    is_suspect = chunk.error is not None or chunk.message is not None
    if is_suspect or (chunk.usage is not None and not chunk.usage.prompt_tokens):
        return False
    for choice in chunk.choices:
        if choice.text or (choice.finish_reason is not None and is_end_of_choice(choice.finish_reason)):
            return True
        if (delta := choice.delta) is None:  # of completions
            if choice.token is not None or choice.tokens:
                return True
        elif delta.content or delta.tool_calls or delta.refusal or reasoning_of(delta):
            return True
    return False


def _is_without_error(chunk: Any, payload: bytes, dialect: ChunkDialect[Any]) -> bool:
    """Whether a chunk without content, or with a usage without counts, is one without a message. Corrects its usage."""
    if chunk.error is not None or chunk.message is not None:
        return False
    try:
        _decode_own_fields(payload)
    except NOT_DECODED:
        pass
    else:
        return bool(chunk.choices or chunk.usage is not None)
    try:
        fields = msgspec.json.decode(payload)
    except NOT_DECODED:
        return False
    correct_usage(chunk, fields)
    is_chunk = chunk.choices or (chunk.usage is not None and not dialect.is_further(fields))
    return bool(is_chunk) and (has_answer(fields) or not looks_like_error(fields))


class _ReportedUsage(msgspec.Struct):
    prompt_tokens: float  # also 0, but sent by the server
    input_tokens: None = None  # other APIs' names, with counts that may replace zeros
    output_tokens: None = None


class _OwnFields(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of a chunk that cannot hold a message: the first chunk of most streams and the last have no others."""

    usage: _ReportedUsage | None = None
    choices: msgspec.Raw = msgspec.Raw()
    id: msgspec.Raw = msgspec.Raw()
    created: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    system_fingerprint: msgspec.Raw = msgspec.Raw()
    service_tier: msgspec.Raw = msgspec.Raw()
    object: Literal["chat.completion.chunk", "text_completion"] | None = None


_decode_own_fields: Final = msgspec.json.Decoder(_OwnFields).decode
