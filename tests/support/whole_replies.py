"""A reply and a stream of each kind with all fields, and which of these hold content that the user pays for."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from friendli_async._core.events.reader import Collector
from friendli_async.audio import Transcription, _TranscriptCollector
from friendli_async.chat import ChatCompletion
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.tool_assisted import _ToolAssistedCollector
from friendli_async.classification import ClassificationList
from friendli_async.completions import TextCompletion, _TextCompletionCollector
from friendli_async.embeddings import EmbeddingList
from friendli_async.endpoints.replies import EndpointPage, EndpointSpec, EndpointStatus
from friendli_async.files import DownloadURL, FileInfo
from friendli_async.images import GeneratedImages
from friendli_async.messages import Message
from friendli_async.messages.collector import MessagesCollector
from friendli_async.models import ModelList
from friendli_async.responses import Response
from friendli_async.responses.collector import ResponseCollector
from friendli_async.tokens import Detokenization, Tokenization

JSON = dict[str, Any]
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Whole:
    """A valid reply.

    Args:
        kind: Its type.
        value: Its JSON.
        content: Extracts the paid content from the decoded reply.
        content_paths: The paths of the paid content in the JSON, including the containers on the way.
    """

    kind: type
    value: JSON
    content: Callable[[Any], object]
    content_paths: tuple[Path, ...]


@dataclass(frozen=True)
class Streamed:
    """The events of a valid stream: name, JSON, and the paths of the paid content in it."""

    collector: Callable[[], Collector[Any, Any, Any]]
    events: tuple[tuple[str | None, JSON, tuple[Path, ...]], ...]
    content: Callable[[Any], object]


def paths(value: object, begun: Path = ()) -> Iterator[Path]:
    """Yields the paths of all values in a JSON value."""
    if begun:
        yield begun
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inside in items:
        yield from paths(inside, (*begun, name))


def metadata_paths(value: object, paid: tuple[Path, ...]) -> list[Path]:
    """Returns the paths of values that are neither paid content nor contain any."""
    return [path for path in paths(value) if not any(each[: len(path)] == path for each in paid)]


MISSING: Final = object()


def with_value(value: Any, path: Path, replacement: object) -> Any:
    """Returns a JSON value with the value at a path replaced or removed."""
    whole = copy.deepcopy(value)
    holder = whole
    for name in path[:-1]:
        holder = holder[name]
    if replacement is MISSING:
        del holder[path[-1]]
    else:
        holder[path[-1]] = replacement
    return whole


def _calls(reply: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in reply or ()]


def _of_chat(reply: Any) -> object:
    return reply.text, reply.reasoning, _calls(reply.message.tool_calls)


def _of_message(reply: Any) -> object:
    tools = [(block.name, block.input) for block in reply.content if hasattr(block, "input")]
    return reply.text, reply.reasoning, tools


USAGE: Final[JSON] = {
    "prompt_tokens": 1,
    "completion_tokens": 2,
    "total_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
COUNTED: Final[JSON] = {
    "input_tokens": 1,
    "output_tokens": 2,
    "total_tokens": 3,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 1},
}
HEARD: Final[JSON] = {
    "type": "tokens",
    "input_tokens": 1,
    "output_tokens": 2,
    "total_tokens": 3,
    "input_token_details": {"audio_tokens": 1, "text_tokens": 0},
    "input_audio_length_ms": 5,
    "processed_audio_length_ms": 5,
}
TOKEN: Final[JSON] = {"token": "p", "logprob": -0.1, "bytes": [1]}
HEAD: Final[JSON] = {"id": "c", "object": "x", "created": 1, "model": "m", "system_fingerprint": "f"}
STATUS: Final[JSON] = {"status": "RUNNING", "createdAt": "2026-01-01T00:00:00Z", "errorCode": "X", "phase": "P"}

_FUNCTION: Final[JSON] = {"name": "f", "arguments": '{"a":1}'}
_MESSAGE: Final[JSON] = {
    "role": "assistant",
    "content": "paid",
    "reasoning_content": "why",
    "tool_calls": [{"id": "t", "type": "function", "index": 0, "function": _FUNCTION}],
}
_ANSWER: Final[JSON] = {
    "index": 0,
    "message": _MESSAGE,
    "finish_reason": "stop",
    "seed": 1,
    "logprobs": {"content": [{**TOKEN, "top_logprobs": [TOKEN]}]},
}
_IN_CALL: Final[Path] = ("message", "tool_calls", 0, "function")

REPLIES: Final[dict[str, Whole]] = {
    "chat": Whole(
        ChatCompletion,
        {**HEAD, "choices": [_ANSWER], "usage": USAGE},
        _of_chat,
        (
            ("choices", 0, "message", "content"),
            ("choices", 0, "message", "reasoning_content"),
            ("choices", 0, *_IN_CALL, "name"),
            ("choices", 0, *_IN_CALL, "arguments"),
        ),
    ),
    "completion": Whole(
        TextCompletion,
        {
            **HEAD,
            "choices": [
                {
                    "index": 0,
                    "text": "paid",
                    "finish_reason": "stop",
                    "seed": 1,
                    "tokens": [1, 2],
                    "logprobs": {"tokens": ["a"], "token_logprobs": [-0.1], "text_offset": [0]},
                }
            ],
            "usage": USAGE,
        },
        lambda reply: reply.text,
        (("choices", 0, "text"),),
    ),
    "message": Whole(
        Message,
        {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [
                {"type": "text", "text": "paid", "citations": None},
                {"type": "thinking", "thinking": "why", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            ],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 0},
        },
        _of_message,
        (
            ("content", 0, "text"),
            ("content", 1, "thinking"),
            ("content", 2, "input", "a"),
            ("content", 2, "name"),
        ),
    ),
    "response": Whole(
        Response,
        {
            "id": "r",
            "object": "response",
            "created_at": 1,
            "model": "m",
            "status": "completed",
            "output": [
                {
                    "type": "message",
                    "id": "i",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "paid"}],
                },
                {"type": "function_call", "id": "j", "call_id": "k", "status": "completed", **_FUNCTION},
            ],
            "incomplete_details": {"reason": "x"},
            "usage": COUNTED,
        },
        lambda reply: (reply.text, _calls(reply.tool_calls)),
        (("output", 0, "content", 0, "text"), ("output", 1, "arguments"), ("output", 1, "name")),
    ),
    "transcription": Whole(Transcription, {"text": "paid", "usage": HEARD}, lambda reply: reply.text, (("text",),)),
    "embeddings": Whole(
        EmbeddingList,
        {**HEAD, "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1.5]}], "usage": USAGE},
        lambda reply: [each.embedding for each in reply.data],
        (("data", 0, "embedding", 0), ("data", 0, "embedding", 1)),
    ),
    "classification": Whole(
        ClassificationList,
        {"object": "list", "data": [{"label": "paid", "index": 0, "num_classes": 2, "probs": [0.5]}], "usage": USAGE},
        lambda reply: [each.label for each in reply.data],
        (("data", 0, "label"),),
    ),
    "images": Whole(
        GeneratedImages,
        {"data": [{"seed": 1, "response_format": "url", "url": "http://paid", "b64_json": "cGFpZA=="}]},
        lambda reply: [(each.url, each.b64_json) for each in reply.data],
        (("data", 0, "url"), ("data", 0, "b64_json")),
    ),
    "tokens": Whole(
        Tokenization, {"tokens": [1, 2], "x": 1}, lambda reply: reply.tokens, (("tokens", 0), ("tokens", 1))
    ),
    "text": Whole(Detokenization, {"text": "paid", "x": 1}, lambda reply: reply.text, (("text",),)),
    "models": Whole(
        ModelList,
        {
            "data": [
                {
                    "id": "paid",
                    "name": "n",
                    "created": 1,
                    "context_length": 5,
                    "pricing": {"input": "0.1", "audio_minute": "1"},
                    "functionality": {"tool_call": True},
                    "description": "d",
                    "reasoning": True,
                    "reasoning_options": [{"type": "effort", "values": ["low"], "min": 1}],
                    "input_modalities": ["text"],
                    "default_params": {"temperature": 0.5, "top_k": 1},
                    "interleaved": False,
                    "discount_to_user": 0.1,
                }
            ]
        },
        lambda reply: [model.id for model in reply.data],
        (("data", 0, "id"),),
    ),
    "endpoints": Whole(
        EndpointPage,
        {"data": {"paid": STATUS}, "nextCursor": "n"},
        lambda reply: {key: each.status for key, each in reply.data.items()},
        (("data", "paid", "status"),),
    ),
    "status": Whole(EndpointStatus, STATUS, lambda reply: reply.status, (("status",),)),
    "spec": Whole(
        EndpointSpec,
        {"name": "paid", "gpuType": "H", "numGpu": 1, "autoscalingMin": 1, "tokenizerSkipSpecialTokens": True},
        lambda reply: reply.name,
        (("name",),),
    ),
    "file": Whole(
        FileInfo,
        {
            "id": "paid",
            "status": "UPLOADED",
            "name": "n",
            "size": 5,
            "digest": "d",
            "createdAt": "2026-01-01T00:00:00Z",
        },
        lambda reply: (reply.id, reply.status),
        (("id",), ("status",)),
    ),
    "download": Whole(
        DownloadURL,
        {"downloadUrl": "http://paid", "fileId": "f"},
        lambda reply: reply.download_url,
        (("downloadUrl",),),
    ),
}
"""By kind of reply."""


def _chunk(choice: JSON | None, **fields: object) -> JSON:
    return {**HEAD, "choices": [] if choice is None else [{"index": 0, **choice}], **fields}


_CALL: Final[JSON] = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
_CONTINUED: Final[JSON] = {"index": 0, "function": {"arguments": ":1}"}}
_DELTA: Final[Path] = ("choices", 0, "delta")
# A different index means a different answer, so indices have tests of their own.
_INDEX: Final[Path] = ("choices", 0, "index")
_CALL_INDEX: Final[Path] = (*_DELTA, "tool_calls", 0, "index")
_CHAT: Final = (
    (
        None,
        _chunk({"delta": {"role": "assistant", "content": "pa"}, "finish_reason": None}),
        ((*_DELTA, "content"), _INDEX),
    ),
    (
        None,
        _chunk(
            {
                "delta": {"content": "id", "reasoning_content": "why", "tool_calls": [_CALL]},
                "logprobs": {"content": [{**TOKEN, "top_logprobs": [TOKEN]}]},
            }
        ),
        (
            (*_DELTA, "content"),
            (*_DELTA, "reasoning_content"),
            (*_DELTA, "tool_calls", 0, "function", "name"),
            (*_DELTA, "tool_calls", 0, "function", "arguments"),
            _INDEX,
            _CALL_INDEX,
        ),
    ),
    (
        None,
        _chunk({"delta": {"tool_calls": [_CONTINUED]}, "finish_reason": "stop"}),
        ((*_DELTA, "tool_calls", 0, "function", "arguments"), _INDEX, _CALL_INDEX),
    ),
    (None, _chunk(None, usage=USAGE), (("choices",),)),
)
_TOOL: Final[JSON] = {
    "tool_call_id": "t",
    "name": "math:calculator",
    "status": "STARTED",
    "parameters": [{"name": "x", "value": "1"}],
    "result": "None",
    "files": [{"name": "f", "url": "u"}],
    "message": "m",
    "usage": USAGE,
    "timestamp": 1.5,
}
_PART: Final[JSON] = {"item_id": "i", "output_index": 0, "content_index": 0}
_ITEM: Final[JSON] = {
    "type": "message",
    "id": "i",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "paid"}],
}
_MADE: Final[JSON] = {"id": "r", "object": "response", "created_at": 1, "model": "m"}


def _named(event: JSON, *paid: Path) -> tuple[str, JSON, tuple[Path, ...]]:
    return event["type"], event, paid


STREAMS: Final[dict[str, Streamed]] = {
    "chat": Streamed(ChatCollector, _CHAT, _of_chat),
    "tool-assisted": Streamed(_ToolAssistedCollector, (("tool_status", _TOOL, ()), *_CHAT), _of_chat),
    "completions": Streamed(
        _TextCompletionCollector,
        (
            (
                None,
                _chunk({"text": "pa", "token": 5, "logprobs": {"tokens": ["a"]}, "finish_reason": None}),
                (("choices", 0, "text"), _INDEX),
            ),
            (None, _chunk({"text": "id", "finish_reason": "stop"}), (("choices", 0, "text"), _INDEX)),
            (None, _chunk(None, usage=USAGE), (("choices",),)),
        ),
        lambda reply: reply.text,
    ),
    "messages": Streamed(
        MessagesCollector,
        (
            _named({"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 1}}}, ("message",)),
            _named(
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                ("content_block", "text"),
            ),
            _named(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "paid"}},
                ("delta", "text"),
            ),
            _named({"type": "content_block_stop", "index": 0}),
            _named({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}),
            _named({"type": "message_stop"}),
        ),
        _of_message,
    ),
    "responses": Streamed(
        ResponseCollector,
        (
            _named({"type": "response.created", "sequence_number": 0, "response": _MADE}, ("response",)),
            _named({"type": "response.output_text.delta", "sequence_number": 1, **_PART, "delta": "pa"}, ("delta",)),
            _named({"type": "response.output_text.delta", "sequence_number": 2, **_PART, "delta": "id"}, ("delta",)),
            _named(
                {
                    "type": "response.completed",
                    "sequence_number": 3,
                    "response": {**_MADE, "status": "completed", "output": [_ITEM], "usage": COUNTED},
                },
                ("response", "output", 0, "content", 0, "text"),
            ),
        ),
        lambda reply: reply.text,
    ),
    "audio": Streamed(
        _TranscriptCollector,
        (
            (None, {"type": "transcript.text.delta", "delta": "paid"}, (("delta",), ("type",))),
            (None, {"type": "transcript.text.done", "text": "paid", "usage": HEARD}, (("text",), ("type",))),
        ),
        lambda reply: reply.text,
    ),
}
"""By kind of stream."""
