"""Every kind of stream, with the bytes of one complete answer, for tests of what they have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from support import messages, responses
from support.sockets import DONE, MESSAGES, delta, open_stream, sse

from friendli_async import AsyncFriendli
from friendli_async.streams import AssembledStream

AnyStream = AssembledStream[Any, Any, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of stream, and its events for the answer "Hello there" in two chunks."""

    open: Callable[[AsyncFriendli], AnyStream]
    first_events: tuple[bytes, ...]
    """The events up to the first chunk of text, one per item."""
    remaining_events: tuple[bytes, ...]
    """The remaining events, including the end."""
    finish_reason: Callable[[Any], object]
    """Returns the finish reason of a result; `incomplete_reason` if it is incomplete."""
    incomplete_reason: object = None

    @property
    def body(self) -> bytes:
        return b"".join(self.first_events + self.remaining_events)


def _named(event: Mapping[str, object]) -> bytes:
    return f"event: {event['type']}\n".encode() + sse(event)


def _completion(text: str, finish: str | None = None) -> bytes:
    return sse({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def _transcript(kind: str, **fields: object) -> bytes:
    return sse({"type": f"transcript.text.{kind}", **fields})


def _tool(status: str) -> bytes:
    fields = {"tool_call_id": "c", "name": "math:calculator", "status": status, "parameters": [], "timestamp": 1.0}
    return b"event: tool_status\n" + sse(fields)


_USAGE: Final = sse({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
_CHAT_BEGUN: Final = (sse({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}), delta("Hello "))
_CHAT_REST: Final = (delta("there"), delta(finish="stop"), _USAGE, DONE)
_SAID: Final = {"type": "message", "id": "msg_1", "role": "assistant"}
_WHOLE: Final = {**_SAID, "status": "completed", "content": [{"type": "output_text", "text": "Hello there"}]}
_RESPONSE: Final[list[dict[str, Any]]] = [
    {"type": "response.created", "response": responses.BEGUN},
    {"type": "response.output_item.added", "output_index": 0, "item": {**_SAID, "content": []}},
    {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "delta": "Hello "},
    {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "delta": "there"},
    {"type": "response.completed", "response": {**responses.WHOLE, "output": [_WHOLE]}},
]
_MESSAGE: Final = [
    messages.start(),
    messages.block_start(messages.TEXT),
    messages.text_delta("Hello "),
    messages.text_delta("there"),
    messages.block_stop(),
    messages.message_delta(),
    messages.STOP,
]


def _of_choice(result: Any) -> object:
    return result.choices[0].finish_reason


KINDS: Final[dict[str, Kind]] = {
    "chat": Kind(open_stream, _CHAT_BEGUN, _CHAT_REST, _of_choice),
    "chat of a container": Kind(
        lambda client: client.container.chat.stream(messages=MESSAGES), _CHAT_BEGUN, _CHAT_REST, _of_choice
    ),
    "tool-assisted chat": Kind(
        lambda client: client.serverless.tool_assisted_chat.stream(model="m", messages=MESSAGES),
        (_tool("STARTED"), _tool("ENDED"), *_CHAT_BEGUN),
        _CHAT_REST,
        _of_choice,
    ),
    "completions": Kind(
        lambda client: client.serverless.completions.stream(model="m", prompt="p"),
        (_completion("Hello "),),
        (_completion("there"), _completion("", "stop"), _USAGE, DONE),
        _of_choice,
    ),
    "messages": Kind(
        messages.open_stream,
        tuple(map(_named, _MESSAGE[:3])),
        tuple(map(_named, _MESSAGE[3:])),
        lambda result: result.stop_reason,
    ),
    "responses": Kind(
        lambda client: client.serverless.responses.stream(model="m", input="Hi"),
        tuple(map(_named, _RESPONSE[:3])),
        tuple(map(_named, _RESPONSE[3:])),
        lambda result: result.status,
        "in_progress",
    ),
    "audio": Kind(
        lambda client: client.container.audio.stream(file=b"RIFF"),
        (_transcript("delta", delta="Hello "),),
        (_transcript("delta", delta="there"), _transcript("done", text="Hello there"), DONE),
        lambda _: None,
    ),
}
