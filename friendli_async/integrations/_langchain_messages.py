"""Conversion of LangChain's messages to chat requests, and of chat replies to LangChain's messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, convert_to_openai_messages
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.content import InvalidToolCall
from langchain_core.messages.tool import ToolCall as LangChainCall
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from friendli_async._json import arguments_json, decode_json
from friendli_async.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChunkDelta,
    FunctionCallDelta,
    ToolCallDelta,
)
from friendli_async.chat.replies import REASONING_EXTRAS, ChunkChoice, reasoning_of
from friendli_async.errors import ArgumentError
from friendli_async.replies import CALL_EXTRAS, ToolCall, Usage, given_fields, token_details

PROVIDER: Final = "friendli"

_arguments_decoder: Final = msgspec.json.Decoder(dict[str, Any])

_REASONING: Final = {"reasoning", "thinking"}  # types of blocks, and the names of the fields with their texts
_CALL_EXTRAS: Final = "tool_call_extras"  # in ``additional_kwargs``: a list for each id, which several calls may have
_CALLS: Final = {"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "function_call"}


# --- requests --------------------------------------------------------------------------------------------------------


def wire_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Converts a conversation to the messages of a chat request.

    Raises:
        ValueError: Content that the API cannot represent, named by its path in ``messages``; nothing is dropped
            silently.
    """
    return [wire for index, message in enumerate(messages) for wire in _wire(message, f"messages[{index}]")]


def _wire(message: BaseMessage, path: str) -> Iterator[dict[str, Any]]:
    try:
        converted = convert_to_openai_messages([_with_media(message)])
    except ValueError as error:  # a block or a message that OpenAI's format cannot represent, either
        raise ArgumentError(str(error), path) from None
    for sent in converted:
        role: str = sent["role"]
        if role == "developer":  # OpenAI's newer name
            sent["role"] = "system"
        content = sent.get("content")
        parts = cast("list[dict[str, Any]]", content) if isinstance(content, list) else []
        if isinstance(message, AIMessage) and role == "assistant":
            _complete_assistant(sent, message, parts, f"{path}.content")
        elif parts and role == "user":
            sent["content"] = [_user_part(part, f"{path}.content[{index}]") for index, part in enumerate(parts)]
        elif parts:
            sent["content"] = "\n".join(_text(part, f"{path}.content[{index}]") for index, part in enumerate(parts))
        yield sent


def _with_media(message: BaseMessage) -> BaseMessage:
    """Converts audio and video, only some of which OpenAI's format covers, to the API's format."""
    if isinstance(message.content, str) or not isinstance(message, HumanMessage):
        return message
    parts = [part if isinstance(part, str) else _media_part(cast("dict[str, Any]", part)) for part in message.content]
    return message.model_copy(update={"content": parts})


def _media_part(part: dict[str, Any]) -> dict[str, Any]:
    match part:
        case {"type": "video" | "audio" as kind, "url": str(url)}:
            return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
        case {"type": "video" | "audio" as kind, "base64": str(data), "mime_type": str(media_type)}:
            return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{media_type};base64,{data}"}}
        case _:
            return part


def _complete_assistant(sent: dict[str, Any], message: AIMessage, parts: Sequence[dict[str, Any]], path: str) -> None:
    """Fills in an assistant message: text, reasoning, and tool calls; calls with invalid JSON are sent unchanged."""
    if parts:
        kept = [part for part in parts if part["type"] not in _CALLS and part["type"] not in _REASONING]
        sent["content"] = "".join(_text(part, path) for part in kept)
    extra = cast("dict[str, Any]", message.additional_kwargs)
    sent.pop("refusal", None)  # a request has no field for it
    sent["content"] = "\n\n".join(filter(None, (sent.get("content"), extra.get("refusal")))) or None
    reasoning_texts = map(_reasoning_text, (part for part in parts if part["type"] in _REASONING))
    if reasoning := extra.get("reasoning_content") or "".join(reasoning_texts):
        sent["reasoning_content"] = reasoning
    sent.update({name: extra[name] for name in REASONING_EXTRAS if extra.get(name)})
    for call in message.invalid_tool_calls:
        function = {"name": call["name"] or "", "arguments": call["args"] or ""}
        sent.setdefault("tool_calls", []).append({"type": "function", "id": call["id"] or "", "function": function})
    given: dict[str, list[dict[str, Any]]] = extra.get(_CALL_EXTRAS, {})
    unsent = {name: [*extras] for name, extras in given.items()}
    for call in sent.get("tool_calls", ()):
        if extras := unsent.get(call["id"] or ""):
            call.update(extras.pop(0))


def _reasoning_text(part: Mapping[str, Any]) -> str:
    """Returns the text of a reasoning block; of OpenAI's blocks, which have none, their summaries, if any."""
    text: str | None = part.get(part["type"])
    return text or "".join(summary.get("text", "") for summary in part.get("summary") or ())


def _text(part: Mapping[str, Any], path: str) -> str:
    if part["type"] != "text":
        raise ArgumentError(f"a part of type {part['type']!r} is not supported here; only text is", path)
    return cast("str", part["text"])


def _user_part(part: dict[str, Any], path: str) -> dict[str, Any]:
    """Converts a part of a user message from OpenAI's format to the API's."""
    match part:
        case {"type": "text"}:
            return {"type": "text", "text": part["text"]}
        case {"type": "image_url" | "audio_url" | "video_url" as kind}:
            given: object = part[kind]
            return {"type": kind, kind: {"url": given} if isinstance(given, str) else given}
        case _:
            raise ArgumentError(
                f"a part of type {part.get('type')!r} is not supported: the API takes text, images, audio and video",
                path,
            )


# --- replies ---------------------------------------------------------------------------------------------------------


def answers_of(reply: ChatCompletion, model: str) -> list[ChatGeneration]:
    """Converts the choices of a reply."""
    usage = _usage_metadata(reply.usage)
    return [
        ChatGeneration(message=_message(choice, usage), generation_info=_info(choice, reply, model) | _logprobs(choice))
        for choice in reply.choices
    ]


def _message(choice: ChatChoice, usage: UsageMetadata | None) -> AIMessage:
    calls, invalid = _split_calls(choice.message.tool_calls or ())
    return AIMessage(
        content=choice.message.content or "",
        additional_kwargs=_reasoning(choice.message) | _extras(choice.message),
        response_metadata={"model_provider": PROVIDER},
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=usage,
    )


def _info(choice: ChatChoice, reply: ChatCompletion, model: str) -> dict[str, Any]:
    info: dict[str, Any] = {"model_name": reply.model or model}
    if choice.finish_reason is not None:
        info["finish_reason"] = choice.finish_reason
    if reply.id is not None:
        info["id"] = reply.id
    if reply.meta.request_id is not None:
        info["request_id"] = reply.meta.request_id
    return info


def _logprobs(choice: ChatChoice | ChunkChoice) -> dict[str, Any]:
    """Returns log probabilities in OpenAI's format, as a list because LangChain concatenates those of chunks."""
    if choice.logprobs is None:
        return {}
    return {"logprobs": {"content": [msgspec.to_builtins(token) for token in choice.logprobs.content or ()]}}


def _split_calls(calls: Sequence[ToolCall]) -> tuple[list[LangChainCall], list[InvalidToolCall]]:
    """Splits calls into those whose arguments are a JSON object and the invalid ones, with the error."""
    valid: list[LangChainCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        name, text = call.function.name, call.function.arguments
        try:
            arguments = decode_json(arguments_json(text), _arguments_decoder)
        except (ValueError, RecursionError) as error:
            invalid.append(
                {"type": "invalid_tool_call", "name": name, "args": text, "id": call.id, "error": str(error)}
            )
        else:
            valid.append({"type": "tool_call", "name": name, "args": arguments, "id": call.id})
    return valid, invalid


def _reasoning(message: ChatMessage | ChunkDelta) -> dict[str, Any]:
    """Returns the reasoning under the key that LangChain looks for in ``additional_kwargs``."""
    reasoning = reasoning_of(message)
    return {"reasoning_content": reasoning} if reasoning else {}


def _extras(message: ChatMessage) -> dict[str, Any]:
    """Returns what else of a message is kept in ``additional_kwargs``: most of it goes back with the message."""
    extras: dict[str, Any] = {
        name: list(items) for name, items in given_fields(message, (*REASONING_EXTRAS, "annotations")).items()
    }
    if message.refusal:
        extras["refusal"] = message.refusal
    calls: dict[str, list[dict[str, Any]]] = {}
    for call in message.tool_calls or ():
        calls.setdefault(call.id, []).append(given_fields(call, CALL_EXTRAS))
    return {**extras, _CALL_EXTRAS: calls} if any(map(any, calls.values())) else extras


def _usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    """Converts token usage to LangChain's names."""
    if usage is None:
        return None
    metadata = UsageMetadata(
        input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
    )
    cached, reasoning = token_details(usage)
    if cached is not None:
        metadata["input_token_details"] = InputTokenDetails(cache_read=cached)
    if reasoning is not None:
        metadata["output_token_details"] = OutputTokenDetails(reasoning=reasoning)
    return metadata


def read_chunk(chunk: ChatChunk) -> ChatGenerationChunk | None:
    """Converts what a stream's chunk adds to choice 0; None if it adds nothing.

    Fields that must occur only once come with the last chunk.
    """
    choice = next((choice for choice in chunk.choices if choice.index == 0), None)
    if choice is None:
        return None
    calls = [_call_chunk(delta) for delta in choice.delta.tool_calls or ()]
    content, reasoning = choice.delta.content or "", _reasoning(choice.delta)
    if not (content or reasoning or calls or choice.logprobs):
        return None
    message = AIMessageChunk(
        content=content,
        additional_kwargs=reasoning,
        tool_call_chunks=calls,
        response_metadata={"model_provider": PROVIDER},
    )
    return ChatGenerationChunk(message=message, generation_info=_logprobs(choice) or None)


def _call_chunk(delta: ToolCallDelta) -> ToolCallChunk:
    function = delta.function or FunctionCallDelta()
    return tool_call_chunk(name=function.name, args=function.arguments, id=delta.id, index=delta.index)


def last_chunk(reply: ChatCompletion, model: str) -> ChatGenerationChunk:
    """Returns the last chunk: finish reason, metadata, usage, and what LangChain would merge wrongly from pieces."""
    message = AIMessageChunk(
        content="",
        additional_kwargs=_extras(reply.message),
        chunk_position="last",
        response_metadata={"model_provider": PROVIDER},
        usage_metadata=_usage_metadata(reply.usage),
    )
    return ChatGenerationChunk(message=message, generation_info=_info(reply.choices[0], reply, model))
