"""The embedded server's responses: output items, as one document or as numbered events.

It repeats the last user message, after some reasoning if `reasoning.effort` is set. It calls functions that the last
user message mentions, or a `tool_choice` requires. Truncated by `max_output_tokens` it is
`incomplete`. Only a script sends a `failed` response.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from friendli_async.testing.chat import mentions, reply_to, split_arguments, tokenize
from friendli_async.testing.received import ReceivedRequest, section
from friendli_async.testing.route import deployed
from friendli_async.testing.sample import sample
from friendli_async.testing.script import Script, json_body, script
from friendli_async.testing.steps import event

__all__ = ["ROUTES", "Body", "Item", "answer_responses"]

Body = Mapping[str, Any]
Item = dict[str, Any]

_MAX_TOKENS: Final = 4096


def answer_responses(request: ReceivedRequest) -> Script:
    """Answer a validated responses request.

    Args:
        request: The request.

    Returns:
        An event stream, or one JSON document.
    """
    body = request.json_object
    items, truncated = _items(request)
    input_tokens = len(tokenize(_last_user_text(body)))
    reasoning = sum(len(_tokens(item)) for item in items if item["type"] == "reasoning")
    output_tokens = sum(len(_tokens(item)) for item in items)
    response: Item = {
        "id": f"resp-{request.number:06d}",
        "object": "response",
        "created_at": request.created,
        "model": request.identity.model,
        "status": "incomplete" if truncated else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if truncated else None,
        "error": None,
        "output": items,
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": input_tokens + output_tokens,
        },
    }
    if not body.get("stream"):
        return json_body(response)
    return script(*(event({**data, "sequence_number": at}, name=data["type"]) for at, data in _numbered(response)))


def _items(request: ReceivedRequest) -> tuple[list[Item], bool]:
    body = request.json_object
    number = f"{request.number:06d}"
    items: list[Item] = []
    if section(body, "reasoning").get("effort"):
        thought = {"type": "reasoning_text", "text": "I repeat the last message."}
        items.append(
            {"type": "reasoning", "id": f"rs-{number}", "summary": [], "content": [thought], "status": "completed"}
        )
    calls = _calls(body)
    for at, (name, arguments) in enumerate(calls):
        call = {"type": "function_call", "id": f"fc-{number}-{at}", "call_id": f"call_{number}_{at}"}
        items.append({**call, "name": name, "arguments": arguments, "status": "completed"})
    if calls:
        return items, False
    pieces = tokenize(_answer(body))
    limit = _MAX_TOKENS if body.get("max_output_tokens") is None else max(0, int(body["max_output_tokens"]))
    truncated = len(pieces) > limit
    message = {"type": "message", "id": f"msg-{number}", "role": "assistant"}
    part = {"type": "output_text", "text": "".join(pieces[:limit])}
    return [*items, {**message, "status": "incomplete" if truncated else "completed", "content": [part]}], truncated


def _tokens(item: Item) -> tuple[str, ...]:
    if item["type"] == "function_call":
        return tokenize(item["arguments"])
    return tuple(token for part in item["content"] for token in tokenize(part["text"]))


def _answer(body: Body) -> str:
    text = reply_to(_last_user_text(body))
    last = _last_item(body)
    if last.get("type", "").endswith("_output"):
        text = f"The tool says: {_text_of(last['output'])}"
    wanted = section(section(body, "text"), "format")
    if wanted.get("type") == "json_object":
        return json.dumps({"answer": text})
    return json.dumps(sample(wanted["schema"], text)) if wanted.get("type") == "json_schema" else text


def _last_user_text(body: Body) -> str:
    given: object = body["input"]
    if isinstance(given, str):
        return given
    for item in reversed(cast("list[Item]", given)):
        if item.get("role") == "user":
            return _text_of(item["content"])
    return ""


def _last_item(body: Body) -> Item:
    given: object = body["input"]
    return cast("list[Item]", given)[-1] if isinstance(given, list) and given else {}


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in cast("Sequence[Item]", content) if "text" in part)


def _calls(body: Body) -> list[tuple[str, str]]:
    tools: list[Item] = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
    choice: object = body.get("tool_choice")
    if _last_item(body).get("type", "").endswith("_output"):
        return []
    text = _last_user_text(body)
    if isinstance(choice, dict):
        tools = [tool for tool in tools if tool["name"] == cast("Item", choice).get("name")]
    elif choice == "none":
        return []
    elif choice != "required":
        tools = [tool for tool in tools if mentions(text, tool["name"])]
    if not body.get("parallel_tool_calls"):
        tools = tools[:1]
    return [(tool["name"], json.dumps(sample(tool["parameters"], text))) for tool in tools]


# --- events ----------------------------------------------------------------------------------------------------------


def _numbered(response: Item) -> Iterator[tuple[int, Item]]:
    return enumerate(_events(response))


def _events(response: Item) -> Iterator[Item]:
    initial: Item = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": initial}
    yield {"type": "response.in_progress", "response": initial}
    for index, item in enumerate(response["output"]):
        parts = _call_events if item["type"] == "function_call" else _part_events
        empty: Item = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        started = {**item, **empty, "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": started}
        for data in parts(item):
            yield {**data, "item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def _call_events(item: Item) -> Iterator[Item]:
    kind = "response.function_call_arguments"
    for piece in split_arguments(item["arguments"]):
        yield {"type": f"{kind}.delta", "delta": piece}
    yield {"type": f"{kind}.done", "arguments": item["arguments"], "name": item["name"]}


def _part_events(item: Item) -> Iterator[Item]:
    for index, part in enumerate(item["content"]):
        kind = f"response.{part['type']}"
        yield {"type": "response.content_part.added", "content_index": index, "part": {**part, "text": ""}}
        for piece in tokenize(part["text"]):
            yield {"type": f"{kind}.delta", "content_index": index, "delta": piece}
        yield {"type": f"{kind}.done", "content_index": index, "text": part["text"]}
        yield {"type": "response.content_part.done", "content_index": index, "part": part}


ROUTES: Final = deployed(
    "/v1/responses", answer_responses, body="{}ResponsesBody", reply="{}ResponsesSuccess", events="ResponsesStream"
)
"""Responses, for every deployment."""
