"""The pre-encoded bytes of the benchmark server: one realistic chat."""

import itertools
import json
from typing import Final

MODEL: Final = "meta-llama-3.1-8b-instruct"

_WORDS: Final = [
    "The",
    "answer",
    "is",
    "forty two",
    ":",
    "each",
    "step",
    "follows",
    ".\n",
    "Größe",
    "大",
    "`code`",
    '"quoted"',
]
_CHUNK: Final = {
    "id": "chatcmpl-6f1c2e0a9b7d4c35",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": MODEL,
}
_USAGE: Final = {"prompt_tokens": 42, "completion_tokens": 64, "total_tokens": 106}

DONE: Final = b"data: [DONE]\n\n"


def _frame(data: dict[str, object]) -> bytes:
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return b"data: " + text.encode() + b"\n\n"


def token_frame(text: str, finish_reason: str | None = None) -> bytes:
    """Return one chat chunk as a server-sent event, about 250 bytes with a one-word text."""
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
        "logprobs": None,
    }
    return _frame(_CHUNK | {"choices": [choice], "usage": None})


def chat_frames(events: int) -> list[bytes]:
    """Return the frames of a whole chat of `events` chunks; the last two finish it and carry its usage."""
    words = [token_frame(" " + word) for word in _WORDS]
    frames = list(itertools.islice(itertools.cycle(words), events - 2))
    return [*frames, token_frame("", "stop"), _frame(_CHUNK | {"choices": [], "usage": _USAGE}), DONE]


def timed_event() -> bytes:
    """Return a format for an event of constant length whose text is two timestamps: `% (written, due)`."""
    return token_frame("@").replace(b"@", b"%017.6f %017.6f")


def plain_reply() -> bytes:
    """Return a whole chat completion of one paragraph."""
    message = {"role": "assistant", "content": " ".join(_WORDS * 12)}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    reply = _CHUNK | {"object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return json.dumps(reply, separators=(",", ":"), ensure_ascii=False).encode()
