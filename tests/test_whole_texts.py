"""Events that carry a complete text, after deltas of the same text or instead of them."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async import AsyncFriendli
from friendli_async._core.text import missing_suffix
from friendli_async.chat import ChatMessage
from friendli_async.replies import FunctionCall, ToolCall
from friendli_async.testing import FriendliServer, Step, done, event, script

WHOLE = "such as it is"
CUTS = [(), (WHOLE,), ("such", " as"), ("such", " as it", " is")]


def chat(choice: dict[str, Any]) -> Step:
    return event({"id": "c", "choices": [{"index": 0, **choice}]})


async def read_both_ways(stream: Any) -> tuple[str, str, Any]:
    """Returns a stream's text by its events, by its result, and the result."""
    pieces = [piece async for piece in stream.text()]
    assert stream.outcome == "done"
    result = await stream.result()
    return "".join(pieces), result.text, result


@given(st.text(max_size=20), st.integers(0, 20), st.text(max_size=5))
@deterministic
def test_missing_suffix_is_the_remaining_text_or_empty(text: str, cut: int, other: str) -> None:
    assert missing_suffix(text, (text[:cut],)) == text[cut:]
    assert missing_suffix(text, (text, other + "!")) == ""
    assert missing_suffix(None, ()) == ""


@pytest.mark.parametrize("pieces", CUTS)
async def test_complete_message_in_chat_chunk_is_not_duplicated(
    server: FriendliServer, client: AsyncFriendli, pieces: tuple[str, ...]
) -> None:
    steps = [chat({"delta": {"role": "assistant", "content": piece}}) for piece in pieces]
    last = chat({"message": {"role": "assistant", "content": WHOLE}, "finish_reason": "stop"})
    server.enqueue(script(*steps, last, done()))
    stream = client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}])
    seen, text, result = await read_both_ways(stream)
    assert seen == text == WHOLE
    assert result.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
@pytest.mark.parametrize("pieces", [("such", " as it", " is"), ("such as", " it", " is")])
async def test_text_in_messages_is_joined_if_they_do_not_repeat_it(
    server: FriendliServer, client: AsyncFriendli, pieces: tuple[str, ...], field: str
) -> None:
    steps = [chat({"message": {"role": "assistant", field: piece}}) for piece in pieces]
    for _ in range(2):
        server.enqueue(script(*steps, chat({"message": {}, "finish_reason": "stop"}), done()))
    streams = [client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}]) for _ in range(2)]
    view = streams[0].text() if field == "content" else streams[0].reasoning()
    result = await streams[1].result()
    assert "".join([piece async for piece in view]) == WHOLE
    assert (result.text, result.reasoning) == ((WHOLE, "") if field == "content" else ("", WHOLE))


async def test_text_in_messages_that_repeat_it_is_not_duplicated(server: FriendliServer, client: AsyncFriendli) -> None:
    texts = ("such", "such as it", "such as it", WHOLE, WHOLE)
    server.enqueue(script(*(chat({"message": {"content": text}}) for text in texts), done()))
    stream = client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}])
    seen, text, _ = await read_both_ways(stream)
    assert seen == text == WHOLE


@pytest.mark.parametrize(
    ("delta", "message", "last"),
    [("such", WHOLE[:7], WHOLE), (WHOLE, "another", WHOLE), ("such", "such", WHOLE)],
)
async def test_message_after_one_beside_a_delta_adds_what_the_delta_lacks(
    server: FriendliServer, client: AsyncFriendli, delta: str, message: str, last: str
) -> None:
    first = chat({"delta": {"content": delta}, "message": {"content": message}})
    server.enqueue(script(first, chat({"message": {"content": last}, "finish_reason": "stop"}), done()))
    stream = client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert (await stream.result()).text == WHOLE


@pytest.mark.parametrize("field", ["delta", "message"])
async def test_completion_chunk_in_chat_format_keeps_its_text(
    server: FriendliServer, client: AsyncFriendli, field: str
) -> None:
    steps = [event({"choices": [{"index": 0, field: {"content": piece}}]}) for piece in ("such as", " it is")]
    server.enqueue(script(*steps, event({"choices": [{"index": 0, "finish_reason": "stop"}]}), done()))
    seen, text, _ = await read_both_ways(client.serverless.completions.stream(model="m", prompt="Hi"))
    assert seen == text == WHOLE


async def test_complete_chat_message_has_reasoning_and_tool_calls(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("f", "g")]
    message = {"role": "assistant", "content": None, "reasoning_content": "because", "tool_calls": calls}
    server.enqueue(script(chat({"message": message, "finish_reason": "tool_calls"}), done()))
    result = await client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}]).result()
    assert result.message == ChatMessage(
        role="assistant",
        reasoning_content="because",
        tool_calls=tuple(ToolCall(function=FunctionCall(name, "{}")) for name in ("f", "g")),
    )


async def test_chat_chunk_in_completion_format_keeps_its_text(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chat({"text": "such as"}), chat({"text": " it is", "finish_reason": "stop"}), done()))
    stream = client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}])
    seen, text, _ = await read_both_ways(stream)
    assert seen == text == WHOLE


@pytest.mark.parametrize("where", ["message_start", "content_block_start"])
async def test_content_in_message_or_block_start_is_text(
    server: FriendliServer, client: AsyncFriendli, where: str
) -> None:
    block = {"type": "text", "text": "such as"}
    head = {"id": "m", "content": [] if where == "content_block_start" else [block]}
    steps = [event({"type": "message_start", "message": head}, name="message_start")]
    if where != "message_start":
        steps.append(event({"type": "content_block_start", "index": 0, "content_block": block}))
    delta = {"type": "text_delta", "text": " it is"}
    steps.append(event({"type": "content_block_delta", "index": 0, "delta": delta}))
    server.enqueue(script(*steps, event({"type": "message_stop"})))
    stream = client.serverless.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
    pieces = [piece async for piece in stream.text()]
    result = await stream.result()
    assert result.text == WHOLE
    assert len(result.content) == 1
    assert "".join(pieces) == WHOLE


@pytest.mark.parametrize(
    ("starts", "text"),
    [
        ([{"type": "text", "text": "such as"}], WHOLE),
        ([{"type": "", "text": "such as"}], WHOLE),
        ([{"text": "such as"}], WHOLE),
        ([{"type": "x", "text": "such as"}], " it is"),  # the text of an unknown block stays in it
        ([{"type": "x", "text": ""}], " it is"),
    ],
)
async def test_text_of_a_block_start_is_the_same_in_the_view_and_the_result(
    server: FriendliServer, client: AsyncFriendli, starts: list[dict[str, Any]], text: str
) -> None:
    steps = [event({"type": "content_block_start", "index": 0, "content_block": start}) for start in starts]
    steps.append(event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " it is"}}))
    server.enqueue(script(*steps, event({"type": "message_stop"})))
    stream = client.serverless.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
    seen, result, message = await read_both_ways(stream)
    assert seen == result == text
    unknown = [block for block in message.content if isinstance(block, dict)]
    assert unknown == [start for start in starts if start.get("type") == "x"]


async def test_equal_blocks_of_an_unknown_type_without_an_index_are_all_in_the_result(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    block = {"type": "x", "y": 1}
    steps = [event({"type": "content_block_start", "content_block": block}), event({"type": "content_block_stop"})] * 2
    server.enqueue(script(*steps, event({"type": "message_stop"})))
    stream = client.serverless.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
    assert (await stream.result()).content == (block, block)


PART = {"item_id": "i", "output_index": 0, "content_index": 0}
FULL_ITEM = {"type": "message", "id": "i", "role": "assistant", "content": [{"type": "output_text", "text": WHOLE}]}
EMPTY_ITEM = {**FULL_ITEM, "content": []}


def response_event(kind: str, **fields: Any) -> Step:
    return event({"type": f"response.{kind}", **fields}, name=f"response.{kind}")


ENDS_WITH_TEXT: Final = [
    [response_event(kind, response={"id": "r", "output": [FULL_ITEM]})] for kind in ("completed", "incomplete")
]


@pytest.mark.parametrize("pieces", CUTS)
@pytest.mark.parametrize(
    "steps",
    [
        [
            response_event("output_text.done", text=WHOLE, **PART),
            response_event("completed", response={"id": "r", "output": []}),
        ],
        [
            response_event("output_text.done", text=WHOLE, **PART),
            response_event("completed", response={"id": "r", "output": [EMPTY_ITEM]}),
        ],
        [
            response_event("content_part.done", part={"type": "output_text", "text": WHOLE}, **PART),
            response_event("completed", response={"id": "r"}),
        ],
        [
            response_event("content_part.done", part={"type": "text", "text": WHOLE}, **PART),
            response_event("completed", response={"id": "r"}),
        ],
        *ENDS_WITH_TEXT,
        [
            response_event("output_text.done", text=WHOLE, **PART),
            response_event("output_item.done", item=EMPTY_ITEM, output_index=0),
            response_event("completed", response={"id": "r", "output": [EMPTY_ITEM]}),
        ],
    ],
)
async def test_complete_text_in_any_response_event_is_not_duplicated(
    server: FriendliServer, client: AsyncFriendli, pieces: tuple[str, ...], steps: list[Step]
) -> None:
    deltas = [response_event("output_text.delta", delta=piece, **PART) for piece in pieces]
    server.enqueue(script(response_event("created", response={"id": "r"}), *deltas, *steps))
    seen, text, _ = await read_both_ways(client.serverless.responses.stream(model="m", input="Hi"))
    assert text == WHOLE
    assert seen == (WHOLE if steps in ENDS_WITH_TEXT else "".join(pieces))


@pytest.mark.parametrize("pieces", CUTS)
async def test_complete_transcript_is_not_duplicated(
    server: FriendliServer, client: AsyncFriendli, pieces: tuple[str, ...]
) -> None:
    deltas = [event({"type": "transcript.text.delta", "delta": piece}) for piece in pieces]
    server.enqueue(script(*deltas, event({"type": "transcript.text.done", "text": WHOLE}), done()))
    seen, text, _ = await read_both_ways(client.serverless.audio.stream(model="m", file=b"RIFF"))
    assert seen == text == WHOLE


@pytest.mark.parametrize("in_final", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        *({"type": "output_text", "text": text} for text in (None, "", WHOLE)),
        *({"type": "x", "text": text} for text in (None, "")),
        {"type": "output_text"},
        {"type": ""},
    ],
)
async def test_streamed_response_text_is_in_the_result_despite_an_item_without_it(
    server: FriendliServer, client: AsyncFriendli, part: dict[str, Any], in_final: bool
) -> None:
    item = {"type": "message", "id": "i", "role": "assistant", "content": [part]}
    steps = [
        response_event("output_item.added", output_index=0, item={**item, "content": []}),
        response_event("output_text.delta", delta="such as ", **PART),
        response_event("output_text.delta", delta="it is", **PART),
        response_event("output_item.done", output_index=0, item=item),
        response_event("completed", response={"id": "r", "output": [item] if in_final else []}),
    ]
    server.enqueue(script(response_event("created", response={"id": "r"}), *steps))
    seen, text, _ = await read_both_ways(client.serverless.responses.stream(model="m", input="Hi"))
    assert seen == text == WHOLE


@pytest.mark.parametrize("kind", ["", "x", "thinking", "tool_use", "text", None])
async def test_streamed_message_text_is_in_the_result_whatever_the_type_of_its_block(
    server: FriendliServer, client: AsyncFriendli, kind: str | None
) -> None:
    block = {"type": kind, "id": "t", "name": "f"} if kind == "tool_use" else {"type": kind, "text": ""}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in ("such as ", "it is")
    ]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *deltas,
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ]
    server.enqueue(script(*(event(fields, name=fields["type"]) for fields in events)))
    stream = client.serverless.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
    seen, text, result = await read_both_ways(stream)
    assert seen == text == WHOLE
    assert [each.name for each in result.content if hasattr(each, "name")] == (["f"] if kind == "tool_use" else [])
