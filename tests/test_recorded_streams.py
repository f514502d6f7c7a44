"""Streams recorded from vLLM 0.32, each beside the plain reply to the same request: both must give the same answer.

And streams of other servers, each beside what it says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from support.sockets import LAST_CHUNK, MESSAGES, STREAM_HEAD, chunked, client_of, reply, serve_bytes

from friendli_async import APIStatusError, AsyncFriendli, InternalServerError
from friendli_async.messages import Message, MessageUsage
from friendli_async.replies import PromptTokensDetails, Usage, usage_of

pytestmark = pytest.mark.compatibility

_DATA: Final = Path(__file__).parent / "data"


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_DATA / name).read_text(encoding="utf-8").splitlines()]


SAMPLES: Final = _read("recorded_streams.jsonl")
ODD_STREAMS: Final = _read("odd_streams.jsonl")
ENGINE_DIED: Final = (
    'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
    '"type": "InternalServerError", "param": null, "code": 500}}\n\n'
)


def _stream(client: AsyncFriendli, path: str, n: int) -> Any:
    container = client.container
    match path:
        case "/v1/chat/completions":
            return container.chat.stream(messages=MESSAGES, n=n)
        case "/v1/completions":
            return container.completions.stream(prompt="a", n=n)
        case "/v1/messages":
            return container.messages.stream(model="m", messages=MESSAGES, max_tokens=9)
        case _:
            return container.responses.stream(input="a")


def _call(client: AsyncFriendli, path: str) -> Any:
    container = client.container
    match path:
        case "/v1/chat/completions":
            return container.chat.complete(messages=MESSAGES)
        case "/v1/completions":
            return container.completions.complete(prompt="a")
        case "/v1/messages":
            return container.messages.create(model="m", messages=MESSAGES, max_tokens=9)
        case _:
            return container.responses.create(input="a")


def _bodies(events: str, split: str) -> list[bytes]:
    data = events.encode()
    pieces = [data] if split == "whole" else [piece + b"\n\n" for piece in data.split(b"\n\n") if piece]
    return [chunked(piece) for piece in pieces]


def _answer(reply: Any) -> dict[str, Any]:
    """Returns all of a reply that must not depend on how it was sent."""
    fields: dict[str, Any] = msgspec.to_builtins(reply)
    if "output" in fields:  # vLLM gives the items of a plain reply other states
        return {**fields, "output": [{**item, "status": None} for item in fields["output"]]}
    for choice in fields.get("choices", ()):
        if "message" in choice:  # vLLM sends null or "" for a content that is empty
            choice["message"]["content"] = choice["message"].get("content") or ""
    return fields


@pytest.mark.parametrize("split", ["whole", "events"])
@pytest.mark.parametrize("sample", SAMPLES, ids=[sample["name"] for sample in SAMPLES])
async def test_recorded_stream_gives_the_answer_of_the_plain_reply(sample: dict[str, Any], split: str) -> None:
    body = reply(json.dumps(sample["reply"]).encode())
    async with serve_bytes(body) as server, client_of(server.url) as client:
        expected = await _call(client, sample["path"])
    assert expected.raw == sample["reply"]
    pieces = (STREAM_HEAD, *_bodies(sample["events"], split), LAST_CHUNK)
    async with serve_bytes(*pieces) as server, client_of(server.url) as client:
        stream = _stream(client, sample["path"], len(sample["reply"].get("choices", "1")))
        result = await stream.result()
    assert stream.outcome == "done"
    assert _answer(result) == _answer(expected)


def _sample(name: str) -> dict[str, Any]:
    return next(sample for sample in SAMPLES if sample["name"] == name)


async def test_cached_prompt_tokens_of_a_recorded_message_are_counted() -> None:
    sample = _sample("messages tool call, cached prompt")
    pieces = (STREAM_HEAD, *_bodies(sample["events"], "whole"), LAST_CHUNK)
    async with serve_bytes(*pieces) as server, client_of(server.url) as client:
        stream = _stream(client, sample["path"], 1)
        usage = usage_of(await stream.result())
    assert (stream.usage.input_tokens, stream.usage.cache_read_input_tokens) == (69, 128)
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.total_tokens) == (197, 128, 210)


def test_message_tokens_written_to_a_cache_are_counted() -> None:
    usage = usage_of(Message(content=(), usage=MessageUsage(64, 2, 0, 256)))
    assert usage == Usage(320, 2, 322, PromptTokensDetails(0, 256))


@pytest.mark.parametrize("after", ["", "data: [DONE]\n\n"], ids=["then the end", "then the sentinel"])
@pytest.mark.parametrize(("name", "events"), [("chat stop string", 2), ("completions echo", 1)])
async def test_recorded_failure_of_the_engine_is_raised_with_the_text_before_it(
    name: str, events: int, after: str
) -> None:
    sample = _sample(name)
    before = [f"{event}\n\n" for event in sample["events"].split("\n\n")[:events]]
    body = chunked("".join([*before, ENGINE_DIED, after]).encode())
    async with serve_bytes(STREAM_HEAD, body, LAST_CHUNK) as server, client_of(server.url) as client:
        stream = _stream(client, sample["path"], 1)
        with pytest.raises(InternalServerError, match="EngineCore encountered an issue") as caught:
            await stream.result()
    assert stream.outcome == "failed"
    assert caught.value.partial is not None
    assert caught.value.partial.text
    assert (caught.value.status_code, caught.value.type) == (500, "InternalServerError")


def _said(answer: Any, error: APIStatusError | None) -> dict[str, Any]:
    calls = [[call.id, call.function.name, call.function.arguments] for call in answer.tool_calls]
    said = {"text": answer.text, "calls": calls} if calls else {"text": answer.text}
    if error is None:
        return {**said, "finish_reason": answer.choices[0].finish_reason}
    names = {"class": type(error).__name__, "message": error.message, "code": error.code, "type": error.type}
    return {**said, "error": names}


@pytest.mark.parametrize("split", ["whole", "events"])
@pytest.mark.parametrize("sample", ODD_STREAMS, ids=[sample["made_by"] for sample in ODD_STREAMS])
async def test_odd_stream_gives_all_that_the_server_said(sample: dict[str, Any], split: str) -> None:
    pieces = (STREAM_HEAD, *_bodies(sample["events"], split), LAST_CHUNK)
    async with serve_bytes(*pieces) as server, client_of(server.url) as client:
        stream, error = _stream(client, "/v1/chat/completions", 1), None
        try:
            answer = await stream.result()
        except APIStatusError as caught:
            answer, error = caught.partial, caught
    assert _said(answer, error) == {"text": "", **sample["says"]}
