"""The bytes of Friendli's replies: JSON, server-sent events, chat completion chunks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

DONE: Final = b"data: [DONE]\n\n"


def sse_event(data: bytes, name: str | None = None) -> bytes:
    """Encode data as one server-sent event, with a `data:` line for each line of the data, and its blank line."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return head + b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"


@dataclass(frozen=True)
class Identity:
    """The fields that all chunks of one reply share.

    Args:
        id: ID of the completion.
        model: Name of the model, from the request.
        created: Unix time in seconds.
    """

    id: str
    model: str
    created: int

    def completion(self, kind: str, choices: object, usage: object) -> dict[str, object]:
        """Build a `chat.completion` or, as `kind` says, a `chat.completion.chunk`."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, "usage": usage}


def token_counts(prompt: int, completion: int) -> dict[str, object]:
    """Build a `usage` object, including the total."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def timestamp(time: datetime | int) -> str:
    """Format a UTC time, or Unix time in seconds."""
    moment = datetime.fromtimestamp(time, UTC) if isinstance(time, int) else time
    return moment.isoformat().replace("+00:00", "Z")
