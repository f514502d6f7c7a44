"""The embedded server's responses: output items, as one document or as numbered events.

Truncated by `max_output_tokens` it is `incomplete`. Only a script sends a `failed` response.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any, cast

from friendli_async.testing.received import ReceivedRequest, section
from friendli_async.testing.script import Script, json_body, script
from friendli_async.testing.steps import event
from friendli_async.testing.turns import Body, Prompt, Turn, json_schema_of, split_arguments, text_of, tokenize

_Item = dict[str, Any]


def answer_responses(request: ReceivedRequest) -> Script:
    """Answer a validated responses request."""
    body = request.json_object
    prompt = _prompt_of(body)
    turn = prompt.answer().within(body.get("max_output_tokens"))
    truncated = turn.finish_reason == "length"
    response: _Item = {
        "id": f"resp-{request.number:06d}",
        "object": "response",
        "created_at": request.created,
        "model": request.identity.model,
        "status": "incomplete" if truncated else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if truncated else None,
        "error": None,
        "output": _items(turn, f"{request.number:06d}"),
        "usage": {
            "input_tokens": prompt.tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": turn.tokens,
            "output_tokens_details": {"reasoning_tokens": len(turn.reasoning)},
            "total_tokens": prompt.tokens + turn.tokens,
        },
    }
    if not body.get("stream"):
        return json_body(response)
    events = enumerate(_events(response))
    return script(*(event({**data, "sequence_number": number}, name=data["type"]) for number, data in events))


def _prompt_of(body: Body) -> Prompt:
    given: object = body["input"]
    items = cast("list[_Item]", given) if isinstance(given, list) else [{"role": "user", "content": given}]
    recent = takewhile(lambda item: item.get("role") != "user", reversed(items))
    results = [text_of(item["output"]) for item in recent if str(item.get("type")).endswith("_output")]
    functions: list[_Item] = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
    choice: object = body.get("tool_choice")
    wanted = section(section(body, "text"), "format")
    return Prompt(
        messages=items,
        results=results[::-1],
        functions=[(function["name"], function["parameters"]) for function in functions],
        tool_choice=choice,
        tool_name=cast("_Item", choice).get("name") if isinstance(choice, dict) else None,
        parallel=bool(body.get("parallel_tool_calls")),
        schema=json_schema_of(wanted, wanted.get("schema")),
        reasons=bool(section(body, "reasoning").get("effort")),
    )


def _items(turn: Turn, number: str) -> list[_Item]:
    items: list[_Item] = []
    done = {"status": "completed"}
    if turn.reasoning:
        thought = {"type": "reasoning_text", "text": "".join(turn.reasoning)}
        items.append({"type": "reasoning", "id": f"rs-{number}", "summary": [], "content": [thought], **done})
    for at, call in enumerate(turn.calls):
        identity = {"type": "function_call", "id": f"fc-{number}-{at}", "call_id": f"call_{number}_{at}"}
        items.append({**identity, "name": call.name, "arguments": call.arguments, **done})
    if not turn.calls:
        part = {"type": "output_text", "text": "".join(turn.content)}
        status = "incomplete" if turn.finish_reason == "length" else "completed"
        message = {"type": "message", "id": f"msg-{number}", "role": "assistant"}
        items.append({**message, "status": status, "content": [part]})
    return items


# --- events ----------------------------------------------------------------------------------------------------------


def _events(response: _Item) -> Iterator[_Item]:
    initial: _Item = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": initial}
    yield {"type": "response.in_progress", "response": initial}
    for index, item in enumerate(response["output"]):
        parts = _call_events if item["type"] == "function_call" else _part_events
        empty: _Item = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        started = {**item, **empty, "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": started}
        for data in parts(item):
            yield {**data, "item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def _call_events(item: _Item) -> Iterator[_Item]:
    kind = "response.function_call_arguments"
    for piece in split_arguments(item["arguments"]):
        yield {"type": f"{kind}.delta", "delta": piece}
    yield {"type": f"{kind}.done", "arguments": item["arguments"], "name": item["name"]}


def _part_events(item: _Item) -> Iterator[_Item]:
    for index, part in enumerate(item["content"]):
        kind = f"response.{part['type']}"
        yield {"type": "response.content_part.added", "content_index": index, "part": {**part, "text": ""}}
        for piece in tokenize(part["text"]):
            yield {"type": f"{kind}.delta", "content_index": index, "delta": piece}
        yield {"type": f"{kind}.done", "content_index": index, "text": part["text"]}
        yield {"type": "response.content_part.done", "content_index": index, "part": part}
