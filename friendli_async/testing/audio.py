"""The embedded server's transcriptions: a sentence about the file, whose audio is ignored."""

from __future__ import annotations

from typing import Final

from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script, json_body, script
from friendli_async.testing.steps import done, event
from friendli_async.testing.turns import tokenize

_BYTES_PER_MS: Final = 32  # 16 kHz, 16 bit, one channel


def transcribe(request: ReceivedRequest) -> Script:
    """Answer a validated transcription request."""
    file = next(part for part in request.form if part.name == "file")
    text = f"This is {file.filename}, {len(file.data)} bytes long."
    length = len(file.data) // _BYTES_PER_MS
    usage = {
        "type": "tokens",
        "input_tokens": length,
        "output_tokens": len(tokenize(text)),
        "total_tokens": length + len(tokenize(text)),
        "input_audio_length_ms": length,
        "processed_audio_length_ms": length,
        "input_token_details": {"audio_tokens": length, "text_tokens": 0},
    }
    if request.values.get("stream") is not True:
        return json_body({"text": text, "usage": usage})
    deltas = [event({"type": "transcript.text.delta", "delta": piece}) for piece in tokenize(text)]
    return script(*deltas, event({"type": "transcript.text.done", "text": text, "usage": usage}), done())
