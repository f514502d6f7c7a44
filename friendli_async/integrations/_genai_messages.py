"""What was asked and answered, in the form that the conventions for generative AI have for messages.

Source: gen-ai-input-messages.json and gen-ai-output-messages.json of semantic-conventions-genai, v0.1.0. Messages have
a role and parts; a part of a kind that the conventions do not name keeps its own fields, which they allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from friendli_async.replies import Partial

__all__ = ["input_messages", "output_messages", "system_instructions"]

_Json = dict[str, Any]

_TEXT_TYPES = frozenset({"text", "input_text", "output_text", "refusal"})


def system_instructions(body: Mapping[str, Any]) -> list[_Json]:
    """What the model is told apart from the conversation (``system`` of messages, ``instructions`` of responses)."""
    said = body.get("system") or body.get("instructions")
    return _parts(said) if said else []


def input_messages(body: Mapping[str, Any]) -> list[_Json]:
    """The messages of a request's body, of whatever API."""
    return [_message(item) for item in _listed(body.get("messages", body.get("input", body.get("prompt"))))]


def output_messages(reply: object, finish_reasons: Sequence[str]) -> list[_Json]:
    """The messages of a reply, or what had come of one."""
    if isinstance(reply, Partial):
        return [_answer(_partial_parts(reply), _at(finish_reasons, 0))]
    said: Any = msgspec.to_builtins(reply)
    if not isinstance(said, dict):
        return []
    body = cast("_Json", said)
    choices: list[_Json] = body.get("choices") or []
    if choices:
        return [_answer(_choice_parts(choice), _at(finish_reasons, place)) for place, choice in enumerate(choices)]
    parts = [part for item in body.get("content") or body.get("output") or () for part in _item_parts(item)]
    return [_answer(parts, _at(finish_reasons, 0))] if parts else []


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # JSON


def _at(finish_reasons: Sequence[str], place: int) -> str:
    return finish_reasons[place] if place < len(finish_reasons) else "error"


def _answer(parts: list[_Json], finish_reason: str) -> _Json:
    return {"role": "assistant", "parts": parts, "finish_reason": finish_reason}


def _message(item: Any) -> _Json:
    if not isinstance(item, dict):
        return {"role": "user", "parts": _parts(item)}
    message = cast("_Json", item)
    kind = message.get("type")
    if message.get("role") == "tool" or kind == "function_call_output":
        result = message.get("content", message.get("output"))
        called = message.get("tool_call_id", message.get("call_id"))
        return {"role": "tool", "parts": [{"type": "tool_call_response", "id": called, "response": result}]}
    role = message.get("role", "assistant" if kind in {"function_call", "reasoning"} else "user")
    return {"role": role, "parts": _item_parts(message) if "role" not in message else _choice_parts(message)}


def _choice_parts(choice: Mapping[str, Any]) -> list[_Json]:
    """The parts of a message of a chat, of a choice with one, or of a choice with text."""
    said: Mapping[str, Any] = choice.get("message") or choice
    thought = said.get("reasoning_content") or said.get("reasoning")
    parts: list[_Json] = [{"type": "reasoning", "content": thought}] if isinstance(thought, str) else []
    parts += _parts(said.get("content", said.get("text")))
    for call in said.get("tool_calls") or ():
        function: _Json = call.get("function") or {}
        parts.append(_call(call.get("id"), function.get("name"), function.get("arguments")))
    return parts


def _call(number: object, name: object, arguments: object) -> _Json:
    return {"type": "tool_call", "id": number, "name": name, "arguments": arguments}


def _partial_parts(partial: Partial) -> list[_Json]:
    parts: list[_Json] = [{"type": "reasoning", "content": partial.reasoning}] if partial.reasoning else []
    parts += [{"type": "text", "content": partial.text}] if partial.text else []
    return parts + [_call(call.id, call.function.name, call.function.arguments) for call in partial.tool_calls]


def _item_parts(item: Any) -> list[_Json]:
    """The parts of a block of a message, or of an item of a response."""
    match item:
        case {"type": "thinking", "thinking": thought}:
            return [{"type": "reasoning", "content": thought}]
        case {"type": "reasoning"}:
            texts = [part.get("text") for part in item.get("content") or item.get("summary") or ()]
            return [{"type": "reasoning", "content": "".join(text for text in texts if isinstance(text, str))}]
        case {"type": "tool_use"}:
            return [_call(item.get("id"), item.get("name"), item.get("input"))]
        case {"type": "tool_result"}:
            return [{"type": "tool_call_response", "id": item.get("tool_use_id"), "response": item.get("content")}]
        case {"type": "function_call"}:
            return [_call(item.get("call_id"), item.get("name"), item.get("arguments"))]
        case {"type": "message", "content": content}:
            return _parts(content)
        case _:
            return _parts([item])


def _parts(content: Any) -> list[_Json]:
    if content is None:
        return []
    if isinstance(content, list):
        return [part for item in _listed(content) for part in _content_part(item)]
    return [{"type": "text", "content": content if isinstance(content, str) else str(content)}]


def _content_part(item: Any) -> list[_Json]:
    match item:
        case {"type": str(kind), "text": text} if kind in _TEXT_TYPES:
            return [{"type": "text", "content": text}]
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return [_medium("image", url)]
        case {"type": "video_url", "video_url": {"url": str(url)}}:
            return [_medium("video", url)]
        case {"type": "audio_url", "audio_url": {"url": str(url)}}:
            return [_medium("audio", url)]
        case {"type": "thinking" | "tool_use" | "tool_result"}:
            return _item_parts(item)
        case {"type": str()}:
            return [dict(item)]
        case _:
            return [{"type": "text", "content": str(item)}]


def _medium(modality: str, url: str) -> _Json:
    if url.startswith("data:"):
        kind, _, content = url.removeprefix("data:").partition(";base64,")
        return {"type": "blob", "modality": modality, "mime_type": kind or None, "content": content}
    return {"type": "uri", "modality": modality, "uri": url}
