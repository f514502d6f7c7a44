"""An answer with signatures, as gateways send it for models that demand them back in the next turn."""

from typing import Any, Final

from friendli_async.testing import Script, done, event, json_body, script

__all__ = ["REFUSAL", "SIGNED_ANSWER", "refused_answer", "signed_answer"]

SIGNED_ANSWER: Final[dict[str, Any]] = {
    "reasoning_content": "hm, so",
    "reasoning_details": [{"type": "reasoning.text", "text": "hm, so", "format": "f", "signature": "s", "index": 0}],
    "thinking_blocks": [
        {"type": "thinking", "thinking": "hm, so", "signature": "s"},
        {"type": "redacted_thinking", "data": "secret"},
    ],
    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://example.com", "title": "a"}}],
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "now", "arguments": "{}"},
            "extra_content": {"google": {"thought_signature": "s"}},
            "provider_specific_fields": {"thought_signature": "s"},
        }
    ],
}
"""The fields of the message besides its role."""

_DETAIL: Final = {"type": "reasoning.text", "format": "f", "index": 0}
_DELTAS: Final[list[dict[str, Any]]] = [
    {
        "reasoning_content": "hm, ",
        "reasoning_details": [{**_DETAIL, "text": "hm, "}],
        "thinking_blocks": [{"type": "thinking", "thinking": "hm, "}],
    },
    {
        "reasoning_content": "so",
        "reasoning_details": [{**_DETAIL, "text": "so", "signature": "s"}],
        "thinking_blocks": [{"type": "thinking", "thinking": "so", "signature": "s"}],
    },
    {"thinking_blocks": SIGNED_ANSWER["thinking_blocks"][1:], "annotations": SIGNED_ANSWER["annotations"]},
    {"tool_calls": [{**SIGNED_ANSWER["tool_calls"][0], "index": 0}]},
]


REFUSAL: Final = "I cannot help with that."


def signed_answer(*, streamed: bool) -> Script:
    """Returns the answer as a reply, or as the events of a stream."""
    return _answer(SIGNED_ANSWER, _DELTAS if streamed else None, "tool_calls")


def refused_answer(*, streamed: bool) -> Script:
    """Returns an answer without content, but with a refusal, in the same forms."""
    pieces = [{"refusal": REFUSAL[:9]}, {"refusal": REFUSAL[9:]}]
    return _answer({"content": None, "refusal": REFUSAL}, pieces if streamed else None, "stop")


def _answer(message: dict[str, Any], deltas: list[dict[str, Any]] | None, reason: str) -> Script:
    if deltas is None:
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
        return json_body({"choices": [choice]})
    chunks: list[dict[str, Any]] = [{"index": 0, "delta": delta} for delta in deltas]
    chunks.append({"index": 0, "delta": {}, "finish_reason": reason})
    return script(*[event({"choices": [each]}) for each in chunks], done())
