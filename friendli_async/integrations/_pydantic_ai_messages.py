"""Conversion of Pydantic AI's messages to chat requests, and of chat replies to its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    CachePoint,
    FinishReason,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    RetryPromptPart,  # pyright: ignore[reportDeprecated]  # hand-written histories still have it
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
    VideoUrl,
)
from pydantic_ai.models import download_item
from pydantic_ai.usage import RequestUsage

from friendli_async.chat import ChatChoice, ChatMessage, ToolCallDelta
from friendli_async.chat.replies import REASONING_EXTRAS, reasoning_of
from friendli_async.replies import CALL_EXTRAS, ToolCall, Usage, given_fields, token_details

PROVIDER: Final = "friendli"

FINISH_REASONS: Final[dict[str | None, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_call",
    "content_filter": "content_filter",
}

_Wire = dict[str, Any]


# --- requests --------------------------------------------------------------------------------------------------------


async def wire_messages(messages: Sequence[ModelMessage], instructions: Sequence[str]) -> list[_Wire]:
    """Converts a conversation to the messages of a chat request; instructions follow its system prompts.

    Raises:
        UserError: Content that the API cannot represent.
    """
    sent: list[_Wire] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            sent.extend(_response(message))
        else:
            sent.extend(await _request(message))
    end = next((index for index, wire in enumerate(sent) if wire["role"] != "system"), len(sent))
    sent[end:end] = [{"role": "system", "content": text} for text in instructions]
    return sent


async def _request(message: ModelRequest) -> list[_Wire]:
    files: list[UserContent] = []
    sent = [await _request_part(part, files) for part in message.parts]
    if files:  # non-text tool results: the API accepts only text in tool messages
        sent.append({"role": "user", "content": [await _content(item) for item in files]})
    return sent


async def _request_part(part: ModelRequestPart, files: list[UserContent]) -> _Wire:
    match part:
        case SystemPromptPart():
            return {"role": "system", "content": part.content}
        case UserPromptPart(content=str(text)):
            return {"role": "user", "content": text}
        case UserPromptPart():
            shown = [item for item in part.content if not isinstance(item, CachePoint)]  # a hint for other APIs
            return {"role": "user", "content": [await _content(item) for item in shown]}
        case ToolReturnPart():
            text, returned = part.model_response_str_and_user_content()
            files.extend(returned)
            return {"role": "tool", "tool_call_id": part.tool_call_id, "content": text}
        case RetryPromptPart(tool_name=None):  # pyright: ignore[reportDeprecated]  # as above
            return {"role": "user", "content": part.model_response()}
        case RetryPromptPart():  # pyright: ignore[reportDeprecated]  # as above
            return {"role": "tool", "tool_call_id": part.tool_call_id, "content": part.model_response()}
        case _:
            raise UserError(
                f"a part of kind {part.part_kind!r} must be prepared first: "
                "run the model in an Agent, or by pydantic_ai.direct"
            )


async def _content(item: UserContent) -> _Wire:
    match item:
        case str() | TextContent():
            return {"type": "text", "text": item if isinstance(item, str) else item.content}
        case ImageUrl() | AudioUrl() | VideoUrl():
            kind = item.kind.replace("-", "_")
            url = (await download_item(item, "base64_uri"))["data"] if item.force_download else item.url
            return {"type": kind, kind: {"url": url}}
        case BinaryContent() if item.is_image or item.is_audio or item.is_video:
            kind = f"{item.media_type.partition('/')[0]}_url"
            return {"type": kind, kind: {"url": item.data_uri}}
        case _:
            name = getattr(item, "media_type", None) or getattr(item, "kind", type(item).__name__)
            raise UserError(f"{name} cannot be sent: Friendli's chat takes text, images, audio and video")


def _response(message: ModelResponse) -> Iterator[_Wire]:
    """Converts a model's response. Provider-specific parts (built-in tools, generated files) are left out."""
    texts = [part.content for part in message.parts if isinstance(part, TextPart)]
    reasoning = [part.content for part in message.parts if isinstance(part, ThinkingPart) and part.content]
    calls = [
        {
            "id": part.tool_call_id,
            "type": "function",
            "function": {"name": part.tool_name, "arguments": part.args_as_json_str()},
            **_sent_details(part, CALL_EXTRAS),
        }
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    details: _Wire = {}
    for part in message.parts:
        if isinstance(part, ThinkingPart):
            details |= _sent_details(part, REASONING_EXTRAS)
    if not (texts or reasoning or calls or details):
        return
    sent: _Wire = {"role": "assistant", "content": "".join(texts) or None}
    if reasoning:
        sent["reasoning_content"] = "".join(reasoning)
    if calls:
        sent["tool_calls"] = calls
    yield sent | details


def _sent_details(part: ThinkingPart | ToolCallPart, names: Sequence[str]) -> _Wire:
    """Returns the details of a part that go back with it; not those of another provider."""
    details = (part.provider_name == PROVIDER and part.provider_details) or {}
    return {name: details[name] for name in names if name in details}


# --- replies ---------------------------------------------------------------------------------------------------------


def parts_of(message: ChatMessage) -> list[ModelResponsePart]:
    """Converts an answer to its parts."""
    parts: list[ModelResponsePart] = []
    details = details_of(message, REASONING_EXTRAS)
    if (reasoning := reasoning_of(message)) or details:
        parts.append(ThinkingPart(reasoning, provider_name=PROVIDER, provider_details=details))
    if message.content:
        parts.append(TextPart(message.content))
    for call in message.tool_calls or ():
        part = ToolCallPart(call.function.name, call.function.arguments)  # which has an id of its own
        part.tool_call_id = call.id or part.tool_call_id
        part.provider_details = details_of(call, CALL_EXTRAS)
        part.provider_name = PROVIDER if part.provider_details else None
        parts.append(part)
    return parts


def ending_of(choice: ChatChoice) -> tuple[FinishReason | None, dict[str, Any]]:
    """Returns the finish reason of a response and its provider's details. A refusal is what a content filter is."""
    if choice.message.refusal:
        return "content_filter", {"refusal": choice.message.refusal}
    return FINISH_REASONS.get(choice.finish_reason), {"finish_reason": choice.finish_reason}


def details_of(value: ChatMessage | ToolCall | ToolCallDelta, names: Sequence[str]) -> dict[str, Any] | None:
    """Returns the named fields as the ``provider_details`` of a part, in which they go back; None if there are none."""
    return msgspec.to_builtins(given_fields(value, names)) or None


def request_usage(usage: Usage | None) -> RequestUsage:
    """Converts token usage to Pydantic AI's names."""
    if usage is None:
        return RequestUsage(unmeasured_requests=1)
    cached, reasoning = token_details(usage)
    return RequestUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=cached or 0,
        details={"reasoning_tokens": reasoning} if reasoning else {},
    )
