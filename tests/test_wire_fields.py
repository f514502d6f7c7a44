"""No field with words, the identity of a reply or costs is lost: plain, streamed, saved, or sent with the next call."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from support.losses import losses
from support.messages import HI, STOP, block_delta, block_start, block_stop, start, text_delta

from friendli_async import AsyncFriendli, ChatCompletion
from friendli_async._core.events.reader import EventReader
from friendli_async.audio import Transcription, _TranscriptCollector
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.replies import Logprobs
from friendli_async.completions import TextCompletion, _TextCompletionCollector
from friendli_async.messages import Message
from friendli_async.messages.collector import MessagesCollector
from friendli_async.replies import CompletionTokensDetails, ReplyHead, Usage, usage_of
from friendli_async.responses import OutputItemDone, Response
from friendli_async.responses.collector import ResponseCollector
from friendli_async.testing import FriendliServer, done, event, json_body, script
from friendli_async.tools import tool

JSON = dict[str, Any]


class Case(NamedTuple):
    """A reply in both its forms."""

    kind: Any
    collector: Any
    reply: JSON
    events: Sequence[JSON]


# --- the forms of a reply --------------------------------------------------------------------------------------------

CITED: Final[JSON] = {"type": "char_location", "cited_text": "Oslo", "document_index": 0}
FOUND: Final[JSON] = {"type": "web_search_result_location", "cited_text": "a city", "url": "https://example.com"}
CALLED: Final[JSON] = {
    "type": "tool_use",
    "id": "tu_1",
    "name": "weather",
    "input": {},
    "caller": {"type": "code_execution_20250825", "tool_id": "srv_1"},
    "toolset_name": "city",
}
MESSAGE: Final[JSON] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "secret"},
        {"type": "text", "text": "Oslo, a city", "citations": [CITED, FOUND]},
        CALLED,
    ],
    "stop_reason": "refusal",
    "stop_details": {"type": "refusal", "category": "bio", "explanation": "no"},
    "container": {"id": "c_1", "expires_at": "2026-01-01T00:00:00Z"},
    "usage": {
        "input_tokens": 5,
        "output_tokens": 7,
        "cache_creation_input_tokens": 6,
        "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 2},
        "output_tokens_details": {"thinking_tokens": 3},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        "service_tier": "priority",
        "inference_geo": "eu",
        "speed": "fast",
    },
}
_TOTALS: Final = ("output_tokens", "output_tokens_details", "server_tool_use")
MESSAGE_EVENTS: Final = [
    start(usage={**MESSAGE["usage"], **dict.fromkeys(_TOTALS[1:]), "output_tokens": 1}),
    block_start({"type": "thinking", "thinking": "", "signature": ""}),
    block_delta({"type": "thinking_delta", "thinking": "hm"}),
    block_delta({"type": "signature_delta", "signature": "s"}),
    block_stop(),
    block_start({"type": "redacted_thinking", "data": "secret"}, 1),
    block_start({"type": "text", "text": "", "citations": []}, 2),
    text_delta("Oslo, ", 2),
    block_delta({"type": "citations_delta", "citation": CITED}, 2),
    text_delta("a city", 2),
    block_delta({"type": "citations_delta", "citation": FOUND}, 2),
    block_start(CALLED, 3),
    {
        "type": "message_delta",
        "delta": {name: MESSAGE[name] for name in ("stop_reason", "stop_details", "container")},
        "usage": {name: MESSAGE["usage"][name] for name in _TOTALS},
    },
    STOP,
]


URL: Final[JSON] = {"type": "url_citation", "url": "https://example.com", "start_index": 0, "end_index": 4}
FILE: Final[JSON] = {"type": "file_citation", "file_id": "f_1", "filename": "a.txt", "index": 4}
LOGPROBS: Final[list[JSON]] = [
    {"token": token, "logprob": -0.5, "bytes": [1], "top_logprobs": [{"token": token, "logprob": -0.5, "bytes": [1]}]}
    for token in ("Os", "lo")
]
SEARCH: Final[JSON] = {
    "type": "web_search_call",
    "id": "ws_1",
    "status": "completed",
    "action": {"type": "search", "query": "capital of Norway"},
}
REASONING: Final[JSON] = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "secret"}
TEXT: Final[JSON] = {"type": "output_text", "text": "Oslo", "annotations": [URL, FILE], "logprobs": LOGPROBS}
ANSWER: Final[JSON] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "phase": "final_answer",
    "content": [TEXT],
}
FUNCTION: Final[JSON] = {
    "type": "function_call",
    "call_id": "call_1",
    "name": "weather",
    "arguments": "{}",
    "namespace": "city",
    "caller": {"type": "program", "caller_id": "p_1"},
}
RESPONSE: Final[JSON] = {
    "id": "resp_1",
    "object": "response",
    "model": "m",
    "status": "completed",
    "service_tier": "priority",
    "output": [REASONING, SEARCH, ANSWER, FUNCTION],
    "usage": {
        "input_tokens": 5,
        "output_tokens": 7,
        "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 3},
        "output_tokens_details": {"reasoning_tokens": 4, "tool_output_tokens": 1},
    },
}
WHOLE_ITEMS: Final[list[JSON]] = [
    {"type": "response.output_item.done", "output_index": index, "item": item}
    for index, item in enumerate(RESPONSE["output"])
]
COMPLETED: Final[JSON] = {"type": "response.completed", "response": RESPONSE}
ENDED: Final[JSON] = {"type": "response.completed", "response": {**RESPONSE, "output": []}}

URL_OF_CHAT: Final[JSON] = {"type": "url_citation", "url_citation": {"url": "https://example.com", "title": "a"}}
SIGNED: Final[JSON] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "now", "arguments": "{}"},
    "extra_content": {"google": {"thought_signature": "s"}},
    "provider_specific_fields": {"thought_signature": "s"},
}
COMPLETION: Final[JSON] = {
    "id": "c_1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp_1",
    "service_tier": "priority",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Oslo",
                "reasoning_content": "hm, so",
                "thinking_blocks": [
                    {"type": "thinking", "thinking": "hm, ", "signature": "s"},
                    {"type": "thinking", "thinking": "so", "signature": "t"},
                    {"type": "redacted_thinking", "data": "secret"},
                ],
                "refusal": "no",
                "annotations": [URL_OF_CHAT, {**URL_OF_CHAT, "x": 1}],
                "tool_calls": [SIGNED],
            },
            "finish_reason": "stop",
            "logprobs": {"content": LOGPROBS, "refusal": LOGPROBS[:1]},
        }
    ],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "reasoning_tokens": 4,
        "cost": 0.25,
        "prompt_tokens_details": {
            "cached_tokens": 2,
            "cache_write_tokens": 1,
            "audio_tokens": 3,
            "image_tokens": 4,
            "text_tokens": 5,
        },
        "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 1, "text_tokens": 2},
    },
}
ENVELOPE: Final = {name: COMPLETION[name] for name in ("id", "created", "model", "system_fingerprint", "service_tier")}


def chunk(delta: object, **fields: object) -> JSON:
    return {**ENVELOPE, "choices": [{"index": 0, "delta": delta, **fields}]}


CHUNKS: Final = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "hm", "thinking_blocks": [{"type": "thinking", "thinking": "hm"}]}),
    chunk({"reasoning_content": ", ", "thinking_blocks": [{"type": "thinking", "thinking": ", "}]}),
    chunk({"content": "", "thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "s"}]}),
    chunk({"reasoning_content": "so", "thinking_blocks": [{"type": "thinking", "thinking": "so", "signature": "t"}]}),
    chunk({"thinking_blocks": [{"type": "redacted_thinking", "data": "secret"}]}),
    chunk({"content": "Os", "annotations": [URL_OF_CHAT]}, logprobs={"content": LOGPROBS[:1]}),
    chunk({"content": "lo", "annotations": [{**URL_OF_CHAT, "x": 1}]}, logprobs={"content": LOGPROBS[1:]}),
    chunk({"refusal": "no"}, logprobs={"refusal": LOGPROBS[:1]}),
    chunk({"tool_calls": [{**SIGNED, "index": 0, "function": {"name": "now", "arguments": ""}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
    chunk({}, finish_reason="stop"),
    {**ENVELOPE, "choices": [], "usage": COMPLETION["usage"]},
]
TEXT_COMPLETION: Final[JSON] = {
    **ENVELOPE,
    "object": "text_completion",
    "choices": [{"index": 0, "text": "Oslo", "finish_reason": "stop"}],
}

TRANSCRIPT: Final[JSON] = {"text": "Oslo", "logprobs": LOGPROBS, "usage": {"type": "duration", "seconds": 3.0}}
DONE: Final[JSON] = {"type": "transcript.text.done", "text": "Oslo", "usage": TRANSCRIPT["usage"]}
SPOKEN: Final = [{"type": "transcript.text.delta", "delta": each["token"], "logprobs": [each]} for each in LOGPROBS]

CASES: Final = {
    "audio": Case(Transcription, _TranscriptCollector, TRANSCRIPT, [*SPOKEN, DONE]),
    "audio, whole": Case(Transcription, _TranscriptCollector, TRANSCRIPT, [{**DONE, "logprobs": LOGPROBS}]),
    "chat": Case(ChatCompletion, ChatCollector, COMPLETION, CHUNKS),
    "chat, whole": Case(
        ChatCompletion,
        ChatCollector,
        COMPLETION,
        [{**ENVELOPE, "choices": COMPLETION["choices"], "usage": COMPLETION["usage"]}],
    ),
    "chat, in pieces and then whole": Case(
        ChatCompletion,
        ChatCollector,
        COMPLETION,
        [*CHUNKS[:-2], {**ENVELOPE, "choices": [{**COMPLETION["choices"][0], "logprobs": None}]}, CHUNKS[-1]],
    ),
    "completions": Case(TextCompletion, _TextCompletionCollector, TEXT_COMPLETION, [TEXT_COMPLETION]),
    "messages": Case(Message, MessagesCollector, MESSAGE, MESSAGE_EVENTS),
    "responses": Case(Response, ResponseCollector, RESPONSE, [*WHOLE_ITEMS, COMPLETED]),
    "responses, with an end without items": Case(Response, ResponseCollector, RESPONSE, [*WHOLE_ITEMS, ENDED]),
}


def as_sent(reply: Any) -> Any:
    """Returns a reply as JSON, with items of unknown types as the server has sent them."""
    fields = msgspec.json.decode(msgspec.json.encode(reply))
    return {
        **fields,
        **({"output": [item.get("data", item) for item in fields["output"]]} if "output" in fields else {}),
    }


def assembled(case: Case) -> Any:
    collector = case.collector()
    reader: EventReader[Any] = EventReader(collector, 1 << 20, ReplyHead(200))
    reader.feed(b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in case.events))
    assert reader.failure is None
    return collector.result()


@pytest.mark.parametrize("name", CASES)
def test_every_field_is_in_the_reply_however_it_comes_and_is_saved(name: str) -> None:
    case = CASES[name]
    reply = msgspec.json.decode(json.dumps(case.reply), type=case.kind)
    encoded = msgspec.json.encode(reply)
    assert list(losses(case.reply, as_sent(reply))) == []
    assert msgspec.json.decode(encoded, type=case.kind) == reply
    assert pickle.loads(pickle.dumps(reply)) == copy.deepcopy(reply) == reply
    assert list(losses(case.reply, as_sent(assembled(case)))) == []


# --- the next call ---------------------------------------------------------------------------------------------------


async def test_answer_of_a_chat_is_sent_back_with_its_signatures(server: FriendliServer, client: AsyncFriendli) -> None:
    case = CASES["chat"]
    for reply in (msgspec.convert(case.reply, ChatCompletion), assembled(case)):
        await client.serverless.chat.complete(model="m", messages=[*HI, reply.message])
    answer = COMPLETION["choices"][0]["message"]
    for request in server.requests:
        sent = request.json["messages"][1]
        assert (sent["thinking_blocks"], sent["tool_calls"]) == (answer["thinking_blocks"], [SIGNED])


@pytest.mark.parametrize("call_id", ["call_1", ""])
async def test_run_sends_a_call_back_with_its_signature(
    server: FriendliServer, client: AsyncFriendli, call_id: str
) -> None:
    @tool
    def now() -> str:
        """The time."""
        return "noon"

    called = chunk({"tool_calls": [{**SIGNED, "id": call_id, "index": 0}]}, finish_reason="tool_calls")
    server.enqueue(script(event(called), done()))
    await client.serverless.chat.run(model="m", messages=HI, tools=[now]).result()
    (sent,) = server.requests[1].json["messages"][1]["tool_calls"]
    assert sent == {**SIGNED, "id": sent["id"]}


async def test_message_is_sent_back_with_all_of_its_content(server: FriendliServer, client: AsyncFriendli) -> None:
    case = CASES["messages"]
    for message in (msgspec.convert(case.reply, Message), assembled(case), case.reply):
        await client.serverless.messages.create(model="m", max_tokens=9, messages=[*HI, message])
    for request in server.requests:
        assert request.json["messages"][1] == {"role": "assistant", "content": MESSAGE["content"]}


async def test_output_is_sent_back_with_all_of_its_content(server: FriendliServer, client: AsyncFriendli) -> None:
    case = CASES["responses"]
    replies = msgspec.convert(case.reply, Response), assembled(case)
    server.enqueue(*[json_body(RESPONSE)] * 3)
    for output in (replies[0].output, replies[1].output, msgspec.to_builtins(replies[1].output)):
        await client.serverless.responses.create(model="m", input=output)
    message = {"type": "message", "role": "assistant", "phase": "final_answer"}
    text = {"type": "output_text", "text": "Oslo", "annotations": [URL, FILE]}
    whole, again, saved = (request.json["input"] for request in server.requests)
    assert whole == again == [REASONING, SEARCH, {**message, "content": [text]}, FUNCTION]
    assert saved == [REASONING, SEARCH, ANSWER, FUNCTION]


async def test_parts_of_unknown_types_are_sent_back_as_they_came(server: FriendliServer, client: AsyncFriendli) -> None:
    part: JSON = {"type": "new_kind", "text": 3, "half": "\ud800"}
    message = msgspec.convert({"role": "assistant", "content": [part]}, Message)
    server.enqueue(*[json_body(MESSAGE)] * 3)
    for each in (message, message.as_input(), msgspec.to_builtins(message)):
        await client.serverless.messages.create(model="m", messages=[*HI, each])
    output = msgspec.convert({"output": [part]}, Response).output
    server.enqueue(*[json_body(RESPONSE)] * 3)
    for items in (output, [output[0].as_input()], msgspec.to_builtins(output)):
        await client.serverless.responses.create(model="m", input=items)
    sent = [request.json["messages"][1]["content"] for request in server.requests[:3]]
    assert [*sent, *(request.json["input"] for request in server.requests[3:])] == [[part]] * 6
    both: list[Any] = [*output, {"type": "message", "role": "user"}]
    for invalid in ([part], both):
        with pytest.raises(ValueError, match=r"input\[[01]\]"):
            await client.serverless.responses.create(model="m", input=invalid)


# --- plain replies alone ---------------------------------------------------------------------------------------------


def test_times_of_a_transcript_are_in_the_reply() -> None:
    times = {"language": "no", "duration": 3.5, "segments": [{"start": 0, "text": "Oslo"}], "words": [{"word": "Oslo"}]}
    reply = msgspec.convert({"text": "Oslo", **times}, Transcription)
    assert list(losses(times, as_sent(reply))) == []


# --- odd servers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("citation", [None, "Oslo", [], 3])
def test_citation_that_is_no_object_costs_no_text(citation: object) -> None:
    delta = block_delta({"type": "citations_delta", "citation": citation})
    case = Case(Message, MessagesCollector, {}, [start(), block_start(CITED | {"type": "text", "text": ""}), delta])
    assert assembled(case._replace(events=[*case.events, text_delta("a"), STOP])).text == "a"


TEXT_START: Final = block_start({"type": "text", "text": ""})
ODD_CITATIONS: Final[dict[str, tuple[list[JSON], list[JSON]]]] = {
    "without a start": (
        [block_delta({"citation": CITED}), text_delta("a")],
        [{"type": "text", "text": "a", "citations": (CITED,)}],
    ),
    "without a start or a text": (
        [block_delta({"type": "citations_delta", "citation": CITED})],
        [{"type": "text", "text": "", "citations": (CITED,)}],
    ),
    "of a text in thinking": (
        [block_start({"type": "thinking", "thinking": "hm"}), text_delta("a"), block_delta({"citation": CITED})],
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a", "citations": (CITED,)}],
    ),
    "also in the start": (
        [block_start({"type": "text", "text": "a", "citations": [CITED]}), block_delta({"citation": FOUND})],
        [{"type": "text", "text": "a", "citations": (CITED, FOUND)}],
    ),
    "before a block that reuses the index": (
        [TEXT_START, block_delta({"citation": CITED}), TEXT_START, text_delta("a")],
        [{"type": "text", "text": "", "citations": (CITED,)}, {"type": "text", "text": "a"}],
    ),
}


@pytest.mark.parametrize(("events", "blocks"), ODD_CITATIONS.values(), ids=ODD_CITATIONS)
def test_citations_are_those_of_the_text_that_they_are_sent_with(events: list[JSON], blocks: list[JSON]) -> None:
    content = assembled(Case(Message, MessagesCollector, {}, [start(), *events, STOP])).content
    assert msgspec.to_builtins(content) == tuple(blocks)


@pytest.mark.parametrize("fields", [{"content": 3}, {"id": 5}, {"arguments": {"a": 1}}, {"data": 3}], ids=str)
def test_item_of_an_unknown_type_is_kept_as_it_is(fields: JSON) -> None:
    item = {"type": "shell_call", **fields}
    (kept,) = msgspec.convert({"output": [copy.deepcopy(item)]}, Response).output
    assert (kept.type, kept.data, kept.as_input()) == ("shell_call", item, item)


@pytest.mark.parametrize("type", ["message", "reasoning", "function_call", "custom_tool_call", "", [1], None], ids=str)
def test_item_of_a_known_type_or_none_has_no_data(type: object) -> None:
    (item,) = msgspec.convert({"output": [{"type": type, "role": "developer"}]}, Response).output
    assert (item.data, item.role, item.as_input().get("role")) == (None, "developer", "developer")


@pytest.mark.parametrize("item", [3, "text", None, [], [SEARCH, SEARCH]], ids=str)
def test_item_that_is_no_object_is_an_error(item: object) -> None:
    with pytest.raises(ValueError, match="Expected `object`, got"):
        msgspec.convert({"output": [SEARCH, item]}, Response)


def test_error_of_an_item_says_where_in_the_item_its_fault_is() -> None:
    item = {"type": "message", "content": [3]}
    for kind, fields in (
        (Response, {"output": [SEARCH, item]}),
        (OutputItemDone, {"type": "response.output_item.done", "item": item}),
    ):
        with pytest.raises(msgspec.ValidationError, match=r"Expected `object`, got `int` - at `\$.content\[0\]`$"):
            msgspec.convert(fields, kind)


@pytest.mark.parametrize("given", [{"content": LOGPROBS}, {"refusal": LOGPROBS}], ids=str)
def test_log_probabilities_of_a_stream_are_those_of_a_plain_reply(given: JSON) -> None:
    (choice,) = assembled(Case(ChatCompletion, ChatCollector, {}, [chunk({"content": "a"}, logprobs=given)])).choices
    assert choice.logprobs == msgspec.convert(given, Logprobs)


THOUGHT: Final[JSON] = {"type": "thinking", "thinking": "a"}
SUMMARY: Final[JSON] = {"index": 0, "type": "reasoning.summary", "summary": "a"}
THOUGHTS: Final[dict[str, tuple[list[JSON], list[JSON]]]] = {
    "in pieces": ([THOUGHT, {**THOUGHT, "signature": "s"}], [{**THOUGHT, "thinking": "aa", "signature": "s"}]),
    "after a signed one": ([{**THOUGHT, "signature": "s"}, THOUGHT], [{**THOUGHT, "signature": "s"}, THOUGHT]),
    "before another type": ([THOUGHT, {"type": "redacted_thinking"}], [THOUGHT, {"type": "redacted_thinking"}]),
    "with an index, in pieces": ([SUMMARY, SUMMARY], [{**SUMMARY, "summary": "aa"}]),
    "with an index, before another": ([SUMMARY, {**SUMMARY, "index": 1}], [SUMMARY, {**SUMMARY, "index": 1}]),
    "with an index that another type has": ([SUMMARY, {**THOUGHT, "index": 0}], [SUMMARY, {**THOUGHT, "index": 0}]),
}


@pytest.mark.parametrize("field", ["thinking_blocks", "reasoning_details"])
@pytest.mark.parametrize(("pieces", "merged"), THOUGHTS.values(), ids=THOUGHTS)
def test_only_pieces_of_one_thought_are_merged(field: str, pieces: list[JSON], merged: list[JSON]) -> None:
    case = Case(ChatCompletion, ChatCollector, {}, [chunk({field: [piece]}) for piece in pieces])
    assert list(getattr(assembled(case).message, field)) == merged


@pytest.mark.parametrize("begun", [None, 3, "Oslo", {"a": 1}, [FOUND]])
@pytest.mark.parametrize("text", ["a", ""])
def test_citations_in_a_block_of_a_future_type_are_those_of_its_text(begun: object, text: str) -> None:
    block = {"type": "future", "x": 1, "citations": begun}
    cite = block_delta({"type": "citations_delta", "citation": CITED})
    events = [start(), block_start(block), text_delta(text), cite, STOP]
    future, *texts = assembled(Case(Message, MessagesCollector, {}, events)).content
    cited = [{"type": "text", "text": text, "citations": (CITED,)}]
    assert (future, msgspec.to_builtins(texts)) == (block, cited)


@pytest.mark.parametrize("data", [{"a": 1}, "a", 3])
def test_field_data_of_an_item_of_a_known_type_says_nothing(data: object) -> None:
    response = msgspec.convert({"output": [{**ANSWER, "data": data}]}, Response)
    assert response.output == msgspec.convert({"output": [ANSWER]}, Response).output


@pytest.mark.parametrize("fields", [{"content": 3}, {"status": {}}, {"data": "a"}])
def test_item_of_an_unknown_type_stays_as_it_came(fields: JSON) -> None:
    item = {**SEARCH, **fields}
    (kept,) = msgspec.convert({"output": [item]}, Response).output
    assert (kept.type, kept.data, kept.as_input()) == (SEARCH["type"], item, item)


@pytest.mark.parametrize("tier", ["standard", ""])
def test_message_without_counts_has_no_usage_although_it_has_a_tier(tier: str) -> None:
    usage = {"service_tier": tier, "server_tool_use": None}
    case = Case(Message, MessagesCollector, {}, [start(usage=usage), text_delta("a"), STOP])
    assert assembled(case).usage is None


@pytest.mark.parametrize("details", [{}, {"web_search_requests": 0}, None], ids=str)
def test_details_without_counts_replace_none_of_a_message(details: JSON | None) -> None:
    end = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7, "server_tool_use": details}}
    case = Case(Message, MessagesCollector, {}, [start(usage=MESSAGE["usage"]), text_delta("a"), end, STOP])
    assert assembled(case).usage == msgspec.convert(MESSAGE, Message).usage


# --- usage -----------------------------------------------------------------------------------------------------------


def test_costs_of_several_calls_are_summed_and_one_in_another_form_costs_no_tokens() -> None:
    usage = msgspec.convert(COMPLETION["usage"], Usage)
    assert (usage + usage + Usage(1, 1)).cost == 0.5
    case = CASES["chat"]
    chunks = [*case.events[:-1], {**case.events[-1], "usage": {**COMPLETION["usage"], "cost": {"total_cost": 0.25}}}]
    assert assembled(case._replace(events=chunks)).usage == msgspec.structs.replace(usage, cost=None)


def test_costs_that_a_later_usage_of_the_stream_does_not_repeat_are_kept() -> None:
    case = CASES["chat"]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    again = {**case.events[-1], "usage": {name: COMPLETION["usage"][name] for name in names}}
    usage = assembled(case._replace(events=[*case.events, again])).usage
    assert usage == msgspec.convert(COMPLETION["usage"], Usage)


def test_usage_of_a_message_has_its_details_in_the_form_of_a_chat() -> None:
    usage = usage_of(msgspec.convert(MESSAGE, Message))
    counts = {
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "total_tokens": 18,
        "prompt_tokens_details": {"cache_write_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert usage == msgspec.convert(counts, Usage)


@pytest.mark.parametrize(("kind", "name"), [(Response, "reasoning_tokens"), (Message, "thinking_tokens")])
def test_tokens_of_reasoning_that_are_counted_as_none_are_0_in_the_form_of_a_chat(kind: Any, name: str) -> None:
    usage = {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {name: 0}}
    counted = usage_of(msgspec.convert({"output": [], "content": [], "usage": usage}, kind))
    assert counted is not None
    assert counted.completion_tokens_details == CompletionTokensDetails(0)
