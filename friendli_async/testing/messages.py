"""The embedded server's messages: content blocks, as one document or as the seven kinds of events.

It repeats the last user message. With `thinking` it sends a thinking block first. It uses tools that the last user
message mentions, or a `tool_choice` requires, and after a tool result it repeats the result. Only a
script sends an `error` event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from friendli_async.testing.chat import mentions, reply_to, split_arguments, tokenize
from friendli_async.testing.received import ReceivedRequest, section
from friendli_async.testing.route import deployed
from friendli_async.testing.sample import sample
from friendli_async.testing.schema import Error
from friendli_async.testing.script import Script, json_body, script
from friendli_async.testing.steps import Step, event

__all__ = ["ROUTES", "Block", "Body", "answer_messages", "refuse_messages"]

Body = Mapping[str, Any]
Block = dict[str, Any]

_MAX_TOKENS: Final = 4096


def answer_messages(request: ReceivedRequest) -> Script:
    """Answer a validated messages request.

    Args:
        request: The request.

    Returns:
        An event stream, or one JSON document.
    """
    body = request.json_object
    blocks, stop = _blocks(request)
    input_tokens = sum(len(tokenize(_text(message["content"]))) for message in body["messages"])
    output_tokens = sum(len(tokenize(block.get("text") or block.get("thinking") or "x")) for block in blocks)
    message: Block = {
        "id": f"msg-{request.number:06d}",
        "type": "message",
        "role": "assistant",
        "model": request.identity.model,
        "content": blocks,
        **stop,
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens, "cache_read_input_tokens": 0},
    }
    return script(*_events(message)) if body.get("stream") else json_body(message)


def refuse_messages(errors: Sequence[Error]) -> Script:
    """Reply 422 in the format of this operation.

    Args:
        errors: What `validate` found.
    """
    lines = [f"{'.'.join(map(str, cast('list[object]', error['loc'])))}: {error['msg']}" for error in errors]
    error = {"type": "invalid_request_error", "message": "; ".join(lines)}
    return json_body({"type": "error", "error": error, "request_id": None}, status=422)


def _blocks(request: ReceivedRequest) -> tuple[list[Block], Block]:
    body = request.json_object
    text = _answer(body)
    uses = _tool_uses(request, text)
    blocks: list[Block] = []
    if section(body, "thinking").get("type") in {"enabled", "adaptive"}:
        thought = f"The last message has {len(tokenize(text))} words. I repeat it."
        blocks.append({"type": "thinking", "thinking": thought, "signature": f"signed-{len(thought)}"})
    if uses:
        return [*blocks, *uses], {"stop_reason": "tool_use", "stop_sequence": None}
    stop: Block = {"stop_reason": "end_turn", "stop_sequence": None}
    for sequence in body.get("stop_sequences") or ():
        if sequence and sequence in text:
            text = text.partition(sequence)[0]
            stop = {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    pieces = tokenize(text)
    limit = _MAX_TOKENS if body.get("max_tokens") is None else max(0, int(body["max_tokens"]))
    if len(pieces) > limit:
        stop = {"stop_reason": "max_tokens", "stop_sequence": None}
    return [*blocks, {"type": "text", "text": "".join(pieces[:limit])}], stop


def _answer(body: Body) -> str:
    schema: Body | None = section(section(body, "output_config"), "format").get("schema")
    last: object = body["messages"][-1]["content"] if body["messages"] else ""
    if results := _tool_results(last):
        text = f"The tool says: {_text(results[-1].get('content'))}"
    else:
        text = reply_to(_prompt(body))
    return json.dumps(sample(schema, text)) if schema is not None else text


def _prompt(body: Body) -> str:
    return next((_text(each["content"]) for each in reversed(body["messages"]) if each["role"] == "user"), "")


def _tool_results(content: object) -> list[Block]:
    blocks = cast("list[Block]", content) if isinstance(content, list) else []
    return [block for block in blocks if block["type"] == "tool_result"]


def _tool_uses(request: ReceivedRequest, text: str) -> list[Block]:
    body = request.json_object
    if body["messages"] and _tool_results(body["messages"][-1]["content"]):
        return []
    choice = section(body, "tool_choice")
    tools: list[Block] = list(body.get("tools") or ())
    if choice.get("type") == "tool":
        tools = [tool for tool in tools if tool["name"] == choice.get("name")]
    elif choice.get("type") == "none":
        return []
    elif choice.get("type") != "any":
        tools = [tool for tool in tools if mentions(_prompt(body), tool["name"])]
    if choice.get("disable_parallel_tool_use"):
        tools = tools[:1]
    return [
        {
            "type": "tool_use",
            "id": f"toolu_{request.number:06d}_{number}",
            "name": tool["name"],
            "input": sample(tool.get("input_schema") or {"type": "object"}, text),
        }
        for number, tool in enumerate(tools)
    ]


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = cast("Sequence[Body]", content or ())
    return " ".join(str(part["text"]) for part in parts if part.get("type") == "text")


# --- events ----------------------------------------------------------------------------------------------------------


def _events(message: Block) -> Iterator[Step]:
    def named(kind: str, **fields: object) -> Step:
        return event({"type": kind, **fields}, name=kind)

    started: Block = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    yield named("message_start", message={**started, "usage": {**message["usage"], "output_tokens": 0}})
    for index, block in enumerate(message["content"]):
        start, deltas = _start_and_deltas(block)
        yield named("content_block_start", index=index, content_block=start)
        for delta in deltas:
            yield named("content_block_delta", index=index, delta=delta)
        yield named("content_block_stop", index=index)
    ending = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    yield named("message_delta", delta=ending, usage=message["usage"])
    yield named("message_stop")


def _start_and_deltas(block: Block) -> tuple[Block, list[Block]]:
    kind = block["type"]
    if kind == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in tokenize(block["text"])]
    if kind == "thinking":
        pieces = [{"type": "thinking_delta", "thinking": piece} for piece in tokenize(block["thinking"])]
        signature = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [*pieces, signature]
    arguments = split_arguments(json.dumps(block["input"]))
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in arguments]


ROUTES: Final = deployed(
    "/v1/messages",
    answer_messages,
    body="{}MessagesBody",
    reply="{}MessagesSuccess",
    events="MessagesStream",
    refuse=refuse_messages,
)
"""Messages, for every deployment."""
