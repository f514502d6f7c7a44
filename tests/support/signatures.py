"""An answer with signatures, as gateways send it for models that demand them back in the next turn."""

from typing import Any, Final

from friendli_async.testing import Script, done, event, json_body, script

__all__ = ["SIGNED_ANSWER", "signed_answer"]

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


def signed_answer(*, streamed: bool) -> Script:
    """Returns the answer as a reply, or as the events of a stream."""
    if not streamed:
        choice = {"index": 0, "message": {"role": "assistant", **SIGNED_ANSWER}, "finish_reason": "tool_calls"}
        return json_body({"choices": [choice]})
    chunks: list[dict[str, Any]] = [{"index": 0, "delta": delta} for delta in _DELTAS]
    chunks.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    return script(*[event({"choices": [each]}) for each in chunks], done())
