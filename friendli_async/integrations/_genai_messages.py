"""Prompts and completions in the message format of OpenTelemetry's semantic conventions for generative AI.

Source: gen-ai-input-messages.json and gen-ai-output-messages.json of semantic-conventions-genai, v0.1.0. Messages have
a role and parts; a part of a type that the conventions do not define keeps its own fields, which they allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from friendli_async._json import as_object
from friendli_async.replies import Partial

_Json = dict[str, Any]

_TEXT_TYPES = frozenset({"text", "input_text", "output_text", "refusal"})
_MODEL_ITEMS = frozenset({"function_call", "custom_tool_call", "reasoning"})
"""Types of items of responses that a model generates, besides messages, which have a role."""
_UNREADABLE = frozenset({"data", "encrypted_content", "result"})
"""Fields of other parts in which is encrypted reasoning, or a generated image: up to megabytes that nobody can read."""


def system_instructions(body: Mapping[str, Any]) -> list[_Json]:
    """Returns the instructions outside the conversation (``system`` of messages, ``instructions`` of responses)."""
    return _parts(body.get("system") or body.get("instructions") or None)


def input_messages(body: Mapping[str, Any]) -> list[_Json]:
    """Returns the messages of a request body, of any of the APIs."""
    given: object = body.get("messages", body.get("input", body.get("prompt")))
    if given is None:
        return []
    return [_message(item) for item in (cast("list[object]", given) if isinstance(given, list) else [given])]


def output_messages(reply: object, finish_reasons: Sequence[str]) -> list[_Json]:
    """Returns the messages of a complete or partial reply."""
    if isinstance(reply, Partial):
        calls = msgspec.to_builtins(reply.tool_calls)
        message = {"reasoning": reply.reasoning or None, "content": reply.text or None, "tool_calls": calls}
        return [_answer(_message_parts(message), finish_reasons)]
    if choices := _builtins_of(reply, "choices"):
        parts_of_choices = [_message_parts(choice.get("message") or choice) for choice in choices]
        return [_answer(parts, finish_reasons, index) for index, parts in enumerate(parts_of_choices)]
    parts = _parts(_builtins_of(reply, "content") or _builtins_of(reply, "output"))
    return [_answer(parts, finish_reasons)] if parts else []


def _builtins_of(reply: object, name: str) -> list[_Json]:
    """Returns a field of a reply as JSON. Other fields, such as vectors and images, are not converted."""
    if name not in getattr(type(reply), "__struct_fields__", ()):  # `content` is a method of some replies
        return []
    return cast("list[_Json]", msgspec.to_builtins(getattr(reply, name) or ()))


def _answer(parts: list[_Json], finish_reasons: Sequence[str], index: int = 0) -> _Json:
    finish_reason = finish_reasons[index] if index < len(finish_reasons) else "error"
    return {"role": "assistant", "parts": parts, "finish_reason": finish_reason}


def _message(item: Any) -> _Json:
    if not isinstance(item, dict):
        return {"role": "user", "parts": _parts(item)}
    message = cast("_Json", item)
    kind = message.get("type")
    if message.get("role") == "tool" or kind in {"function_call_output", "custom_tool_call_output"}:
        result = message.get("content", message.get("output"))
        call_id = message.get("tool_call_id", message.get("call_id"))
        return {"role": "tool", "parts": [{"type": "tool_call_response", "id": call_id, "response": result}]}
    if "role" in message:
        return {"role": message["role"], "parts": _message_parts(message)}
    return {"role": "assistant" if kind in _MODEL_ITEMS else "user", "parts": _parts(message)}


def _message_parts(message: Mapping[str, Any]) -> list[_Json]:
    """Returns the parts of a message with a role, or of a text completion's choice."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    parts: list[_Json] = [{"type": "reasoning", "content": reasoning}] if isinstance(reasoning, str) else []
    parts += _parts(message.get("content", message.get("text")))
    for call in message.get("tool_calls") or ():
        function: _Json = call.get("function") or call.get("custom") or {}
        arguments = function.get("arguments", function.get("input"))
        parts.append(_tool_call(call.get("id"), function.get("name"), arguments))
    return parts


def _parts(content: Any) -> list[_Json]:
    """Returns the parts of a content: text, one typed object, or a list of these."""
    match content:
        case None:
            return []
        case list() | tuple():  # replies have tuples
            return [part for item in cast("Sequence[Any]", content) for part in _parts(item)]
        case {"type": "message", "content": inner}:
            return _parts(inner)
        case {"type": str()}:
            return [_part(content)]
        case _:
            return [{"type": "text", "content": str(content)}]


def _part(item: Any) -> _Json:
    """Returns the part for a content part of a chat, a content block of messages, or an item of responses."""
    match item:
        case {"type": str(kind), "text": text} if kind in _TEXT_TYPES:
            return {"type": "text", "content": text}
        case {"type": "image_url" | "video_url" | "audio_url" as kind} if url := as_object(item.get(kind)).get("url"):
            return _media_part(kind.removesuffix("_url"), str(url))
        case {"type": "thinking", "thinking": text}:
            return {"type": "reasoning", "content": text}
        case {"type": "reasoning"}:
            texts = [part.get("text") for part in item.get("content") or item.get("summary") or ()]
            return {"type": "reasoning", "content": "".join(text for text in texts if isinstance(text, str))}
        case {"type": "tool_use"}:
            return _tool_call(item.get("id"), item.get("name"), item.get("input"))
        case {"type": "tool_result"}:
            return {"type": "tool_call_response", "id": item.get("tool_use_id"), "response": item.get("content")}
        case {"type": "function_call" | "custom_tool_call"}:
            arguments = item.get("arguments", item.get("input"))
            return _tool_call(item.get("call_id"), item.get("name"), arguments)
        case {"type": kind, "data": {"type": inner} as whole} if inner == kind:  # an ``OutputItem`` of an unknown type
            return _part(whole)
        case _:
            return {name: value for name, value in item.items() if name not in _UNREADABLE}


def _tool_call(call_id: object, name: object, arguments: object) -> _Json:
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}


def _media_part(modality: str, url: str) -> _Json:
    if url.startswith("data:"):
        media_type, _, content = url.removeprefix("data:").partition(";base64,")
        return {"type": "blob", "modality": modality, "mime_type": media_type or None, "content": content}
    return {"type": "uri", "modality": modality, "uri": url}
