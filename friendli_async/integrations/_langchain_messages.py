"""LangChain's messages as chat takes them, and what chat answers as LangChain's messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, convert_to_openai_messages
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.content import InvalidToolCall
from langchain_core.messages.tool import ToolCall as LangChainCall
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from friendli_async.chat import ChatChoice, ChatChunk, ChatCompletion, ChatMessage, ChunkDelta, Logprobs
from friendli_async.chat.replies import reasoning_of
from friendli_async.errors import ArgumentError
from friendli_async.integrations._tool_pieces import ToolPieces
from friendli_async.replies import ToolCall, Usage

__all__ = ["PROVIDER", "ChunkReader", "answers_of", "usage_metadata", "wire_messages"]

PROVIDER: Final = "friendli"

_REASONING: Final = {"reasoning": "reasoning", "thinking": "thinking"}  # a block's type, and where its text is
_CALLS: Final = {"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "function_call"}
_ROLES: Final = {"developer": "system"}  # OpenAI's newer word


# --- what goes out ---------------------------------------------------------------------------------------------------


def wire_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """A conversation for ``chat``.

    Raises:
        ValueError: Something that the API has no place for, by its place in ``messages``: nothing is left out in
            silence.
    """
    return [wire for place, message in enumerate(messages) for wire in _wire(message, f"messages[{place}]")]


def _wire(message: BaseMessage, place: str) -> Iterator[dict[str, Any]]:
    for sent in convert_to_openai_messages([_with_media(message)]):
        role: str = sent["role"]
        sent["role"] = _ROLES.get(role, role)
        content = sent.get("content")
        parts = cast("list[dict[str, Any]]", content) if isinstance(content, list) else []
        if isinstance(message, AIMessage) and role == "assistant":
            _assistant(sent, message, parts, f"{place}.content")
        elif parts and role == "user":
            sent["content"] = [_part(part, f"{place}.content[{at}]") for at, part in enumerate(parts)]
        elif parts:
            sent["content"] = "\n".join(_text(part, f"{place}.content[{at}]") for at, part in enumerate(parts))
        yield sent


def _with_media(message: BaseMessage) -> BaseMessage:
    """The message with sounds and films in the API's form, of which OpenAI's has some only."""
    if isinstance(message.content, str) or not isinstance(message, HumanMessage):
        return message
    parts = [part if isinstance(part, str) else _medium(cast("dict[str, Any]", part)) for part in message.content]
    return message.model_copy(update={"content": parts})


def _medium(part: dict[str, Any]) -> dict[str, Any]:
    match part:
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(kind)}}:
            return {"type": "audio_url", "audio_url": {"url": f"data:audio/{kind};base64,{data}"}}
        case {"type": "video" | "audio" as kind, "url": str(url)}:
            return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
        case {"type": "video" | "audio" as kind, "base64": str(data), "mime_type": str(media_type)}:
            return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{media_type};base64,{data}"}}
        case _:
            return part


def _assistant(sent: dict[str, Any], message: AIMessage, parts: Sequence[dict[str, Any]], place: str) -> None:
    """Completes what a model said: its text, its reasoning, its calls, those that are not JSON as they were."""
    if parts:
        kept = [part for part in parts if part["type"] not in _CALLS and part["type"] not in _REASONING]
        sent["content"] = "".join(_text(part, place) for part in kept)
    sent["content"] = sent.get("content") or None
    extra = cast("dict[str, Any]", message.additional_kwargs)
    thoughts = [part[_REASONING[part["type"]]] for part in parts if part["type"] in _REASONING]
    if reasoning := extra.get("reasoning_content") or "".join(thoughts):
        sent["reasoning_content"] = reasoning
    if details := extra.get("reasoning_details"):
        sent["reasoning_details"] = details
    for call in message.invalid_tool_calls:
        function = {"name": call["name"] or "", "arguments": call["args"] or ""}
        sent.setdefault("tool_calls", []).append({"type": "function", "id": call["id"] or "", "function": function})


def _text(part: Mapping[str, Any], place: str) -> str:
    if part["type"] != "text":
        raise ArgumentError(f"{place}: a part of type {part['type']!r} cannot be sent here; only text can")
    return cast("str", part["text"])


def _part(part: dict[str, Any], place: str) -> dict[str, Any]:
    """A part of a user's message: OpenAI's forms of LangChain's blocks, in the API's own form."""
    match part:
        case {"type": "text"}:
            return {"type": "text", "text": part["text"]}
        case {"type": "image_url" | "audio_url" | "video_url" as kind}:
            given: object = part[kind]
            return {"type": kind, kind: {"url": given} if isinstance(given, str) else given}
        case _:
            raise ArgumentError(
                f"{place}: a part of type {part.get('type')!r} cannot be sent: the API takes text, images, audio, video"
            )


# --- what comes back -------------------------------------------------------------------------------------------------


def answers_of(reply: ChatCompletion, model: str) -> list[ChatGeneration]:
    """The choices of a reply."""
    usage = usage_metadata(reply.usage)
    return [
        ChatGeneration(message=_message(choice, usage), generation_info=_info(choice, reply, model))
        for choice in reply.choices
    ]


def _message(choice: ChatChoice, usage: UsageMetadata | None) -> AIMessage:
    calls, faulty = _calls(choice.message.tool_calls or ())
    return AIMessage(
        content=choice.message.content or "",
        additional_kwargs=_thoughts(choice.message),
        response_metadata={"model_provider": PROVIDER},
        tool_calls=calls,
        invalid_tool_calls=faulty,
        usage_metadata=usage,
    )


def _info(choice: ChatChoice | None, reply: ChatCompletion, model: str, *, logprobs: bool = True) -> dict[str, Any]:
    info: dict[str, Any] = {"model_name": reply.model or model}
    if choice is not None and choice.finish_reason is not None:
        info["finish_reason"] = choice.finish_reason
    if reply.id is not None:
        info["id"] = reply.id
    if reply.meta.request_id is not None:
        info["request_id"] = reply.meta.request_id
    if logprobs and choice is not None and choice.logprobs is not None:
        info["logprobs"] = _logprobs(choice.logprobs)
    return info


def _logprobs(logprobs: Logprobs) -> dict[str, Any]:
    """As OpenAI's; a list, since LangChain adds up those of chunks."""
    return {"content": [msgspec.to_builtins(token) for token in logprobs.content or ()]}


def _calls(calls: Sequence[ToolCall]) -> tuple[list[LangChainCall], list[InvalidToolCall]]:
    """The calls with arguments that are an object, and the others with what is wrong with them."""
    good: list[LangChainCall] = []
    faulty: list[InvalidToolCall] = []
    for call in calls:
        name, text = call.function.name, call.function.arguments
        try:
            arguments = msgspec.json.decode(text or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            faulty.append({"type": "invalid_tool_call", "name": name, "args": text, "id": call.id, "error": str(error)})
        else:
            good.append({"type": "tool_call", "name": name, "args": arguments, "id": call.id})
    return good, faulty


def _thoughts(said: ChatMessage | ChunkDelta) -> dict[str, Any]:
    """Reasoning, where LangChain looks for it."""
    thoughts: dict[str, Any] = {}
    if reasoning := reasoning_of(said):
        thoughts["reasoning_content"] = reasoning
    if said.reasoning_details:
        thoughts["reasoning_details"] = list(said.reasoning_details)
    return thoughts


def usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    """The tokens of a call, in LangChain's names."""
    if usage is None:
        return None
    taken, given = usage.prompt_tokens, usage.completion_tokens
    metadata = UsageMetadata(input_tokens=taken, output_tokens=given, total_tokens=usage.total_tokens or taken + given)
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    if prompt is not None and prompt.cached_tokens is not None:
        metadata["input_token_details"] = InputTokenDetails(cache_read=prompt.cached_tokens)
    if completion is not None and completion.reasoning_tokens is not None:
        metadata["output_token_details"] = OutputTokenDetails(reasoning=completion.reasoning_tokens)
    return metadata


class ChunkReader:
    """Makes LangChain's chunks of a stream's. What may be said once only comes with the last one."""

    def __init__(self) -> None:
        self._pieces = ToolPieces()

    def read(self, chunk: ChatChunk) -> ChatGenerationChunk | None:
        """What a chunk adds to choice 0; None where that is nothing."""
        choice = next((choice for choice in chunk.choices if choice.index == 0), None)
        if choice is None:
            return None
        calls = [
            tool_call_chunk(name=piece.name, args=piece.arguments, id=piece.id, index=piece.index)
            for piece in map(self._pieces.add, choice.delta.tool_calls or ())
        ]
        content, thoughts = choice.delta.content or "", _thoughts(choice.delta)
        if not (content or thoughts or calls or choice.logprobs):
            return None
        message = AIMessageChunk(
            content=content,
            additional_kwargs=thoughts,
            tool_call_chunks=calls,
            response_metadata={"model_provider": PROVIDER},
        )
        info = None if choice.logprobs is None else {"logprobs": _logprobs(choice.logprobs)}
        return ChatGenerationChunk(message=message, generation_info=info)

    def last(self, reply: ChatCompletion, model: str) -> ChatGenerationChunk:
        """The last chunk: why it ended, what it cost."""
        choice = next((choice for choice in reply.choices if choice.index == 0), None)
        message = AIMessageChunk(
            content="",
            chunk_position="last",
            response_metadata={"model_provider": PROVIDER},
            usage_metadata=usage_metadata(reply.usage),
        )
        return ChatGenerationChunk(message=message, generation_info=_info(choice, reply, model, logprobs=False))
