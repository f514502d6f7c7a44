"""The embedded server's messages: content blocks, as one document or as events. A script sends an `error` event."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, takewhile
from typing import Any, Final, cast

from friendli_async.testing.received import ReceivedRequest, section
from friendli_async.testing.schema import Error
from friendli_async.testing.script import Script, json_body, script
from friendli_async.testing.steps import Step, event
from friendli_async.testing.turns import Body, Prompt, Turn, split_arguments, text_of, tokenize

_Block = dict[str, Any]

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def answer_messages(request: ReceivedRequest) -> Script:
    """Answer a validated messages request."""
    body = request.json_object
    prompt = _prompt_of(body)
    turn = prompt.answer().within(body.get("max_tokens"))
    message: _Block = {
        "id": f"msg-{request.number:06d}",
        "type": "message",
        "role": "assistant",
        "model": request.identity.model,
        "content": _blocks(turn, request.number),
        "stop_reason": _STOP_REASONS[turn.finish_reason],
        "stop_sequence": None,
        "usage": {"input_tokens": prompt.tokens, "output_tokens": turn.tokens, "cache_read_input_tokens": 0},
    }
    return script(*_events(message)) if body.get("stream") else json_body(message)


def refuse_messages(errors: Sequence[Error]) -> Script:
    """Reply 422 with the errors that `validate` found, in the format of this operation."""
    lines = [f"{'.'.join(map(str, cast('list[object]', error['loc'])))}: {error['msg']}" for error in errors]
    error = {"type": "invalid_request_error", "message": "; ".join(lines)}
    return json_body({"type": "error", "error": error, "request_id": None}, status=422)


def _prompt_of(body: Body) -> Prompt:
    messages: Sequence[Body] = body["messages"]
    choice = section(body, "tool_choice")
    asked = (_results(message["content"]) for message in reversed(messages) if message["role"] == "user")
    answered = [*takewhile(bool, asked)][::-1]
    return Prompt(
        messages=messages,
        results=[*chain.from_iterable(answered)],
        functions=[(tool["name"], tool.get("input_schema")) for tool in body.get("tools") or ()],
        tool_choice="required" if choice.get("type") == "any" else choice.get("type"),
        tool_name=choice.get("name"),
        parallel=not choice.get("disable_parallel_tool_use"),
        schema=section(section(body, "output_config"), "format").get("schema"),
        reasons=section(body, "thinking").get("type") in {"enabled", "adaptive"},
    )


def _results(content: object) -> list[str]:
    """Return the results of tools in a user message."""
    blocks = cast("Sequence[Body]", content) if isinstance(content, list) else ()
    return [text_of(block.get("content")) for block in blocks if block["type"] == "tool_result"]


def _blocks(turn: Turn, number: int) -> list[_Block]:
    blocks: list[_Block] = []
    if turn.reasoning:
        signature = f"signed-{len(turn.reasoning)}"
        blocks.append({"type": "thinking", "thinking": "".join(turn.reasoning), "signature": signature})
    if not turn.calls:
        return [*blocks, {"type": "text", "text": "".join(turn.content)}]
    for at, call in enumerate(turn.calls):
        identity = {"id": f"toolu_{number:06d}_{at}", "name": call.name}
        blocks.append({"type": "tool_use", **identity, "input": json.loads(call.arguments)})
    return blocks


# --- events ----------------------------------------------------------------------------------------------------------


def _events(message: _Block) -> Iterator[Step]:
    def named(kind: str, **fields: object) -> Step:
        return event({"type": kind, **fields}, name=kind)

    started: _Block = {**message, "content": [], "stop_reason": None}
    yield named("message_start", message={**started, "usage": {**message["usage"], "output_tokens": 0}})
    for index, block in enumerate(message["content"]):
        start, deltas = _start_and_deltas(block)
        yield named("content_block_start", index=index, content_block=start)
        for delta in deltas:
            yield named("content_block_delta", index=index, delta=delta)
        yield named("content_block_stop", index=index)
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield named("message_delta", delta=ending, usage=message["usage"])
    yield named("message_stop")


def _start_and_deltas(block: _Block) -> tuple[_Block, list[_Block]]:
    kind = block["type"]
    if kind == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in tokenize(block["text"])]
    if kind == "thinking":
        pieces = [{"type": "thinking_delta", "thinking": piece} for piece in tokenize(block["thinking"])]
        signature = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [*pieces, signature]
    arguments = split_arguments(json.dumps(block["input"]))
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in arguments]
