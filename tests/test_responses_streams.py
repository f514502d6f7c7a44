"""Streamed responses: the fifteen kinds of events, how they are accumulated, and the three final events."""

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import pytest
from support.responses import CALL_ITEM, DATA, KINDS, WHOLE, ending, named

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    BadRequestError,
    InternalServerError,
    RateLimitError,
    ResponseDecodeError,
    RetryPolicy,
    StreamInterruptedError,
)
from friendli_async._core.text import join_text
from friendli_async.replies import (
    CompletionTokensDetails,
    FunctionCall,
    PromptTokensDetails,
    ToolCall,
    UnknownEvent,
    Usage,
)
from friendli_async.responses import (
    ContentPart,
    ContentPartAdded,
    ContentPartDone,
    FunctionCallArgumentsDelta,
    InputTokensDetails,
    OutputItem,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    OutputTokensDetails,
    ReasoningTextDelta,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseStream,
    ResponseUsage,
    items,
)
from friendli_async.responses.collector import ResponseCollector
from friendli_async.testing import (
    FriendliServer,
    done,
    event,
    json_body,
    raw,
    script,
)
from friendli_async.testing.schema import schemas
from friendli_async.testing.steps import Payload

CODES: Final[list[str]] = schemas()["ResponsesError"]["properties"]["code"]["enum"]


def ask(client: AsyncFriendli) -> ResponseStream:
    return client.serverless.responses.stream(model="m", input="hi")


async def events_of(client: AsyncFriendli, server: FriendliServer, *steps: Payload) -> list[ResponseEvent]:
    server.enqueue(script(*steps))
    return [each async for each in ask(client)]


# --- events ----------------------------------------------------------------------------------------------------------


def test_sample_events_cover_all_fifteen_kinds() -> None:
    assert len(KINDS) == 15


async def test_events_keep_type_sequence_number_and_all_wire_fields(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    received = await events_of(client, server, *map(named, DATA))
    assert [each.type for each in received] == [data["type"] for data in DATA]
    assert [json.loads(msgspec.json.encode(each)) for each in received] == DATA
    assert [each.sequence_number for each in received if not isinstance(each, UnknownEvent)] == list(range(len(DATA)))


async def test_event_whose_response_has_no_output_keeps_its_other_fields(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    final = {"type": "response.completed", "sequence_number": 7, "response": {"id": "r", "status": "completed"}}
    [received] = await events_of(client, server, named(final))
    assert isinstance(received, ResponseCompleted)
    assert (received.sequence_number, received.response.output) == (7, ())


async def test_incomplete_is_a_distinct_event(client: AsyncFriendli, server: FriendliServer) -> None:
    [received] = await events_of(client, server, ending("incomplete"))
    assert isinstance(received, ResponseIncomplete)
    assert (received.type, received.sequence_number) == ("response.incomplete", 99)


def _without_type(data: dict[str, Any]) -> Payload:
    return event({name: value for name, value in data.items() if name != "type"}, name=data["type"])


@pytest.mark.parametrize(
    "form",
    [event, _without_type, lambda data: event(data, name="message"), lambda data: event({**data, "added": [1]})],
    ids=["without-names", "named-only", "standard-name", "with-new-fields"],
)
async def test_event_is_identified_by_its_type_or_its_name(
    client: AsyncFriendli, server: FriendliServer, form: Callable[[dict[str, Any]], Payload]
) -> None:
    received = await events_of(client, server, *map(form, DATA))
    assert received == await events_of(client, server, *map(named, DATA))
    assert len(received) == len(DATA)


async def test_unknown_kinds_become_unknown_events(client: AsyncFriendli, server: FriendliServer) -> None:
    unknown = {"type": "response.audio.delta", "delta": "AAAA", "sequence_number": 3}
    bare = event({"x": 1}, name="response.smell.added")
    received = await events_of(client, server, named(unknown), bare, event({**unknown, "type": "odd"}), named(DATA[-1]))
    assert received[:3] == [
        UnknownEvent("response.audio.delta", unknown),
        UnknownEvent("response.smell.added", {"x": 1}),
        UnknownEvent("odd", {**unknown, "type": "odd"}),
    ]
    assert isinstance(received[3], ResponseCompleted)


async def test_events_without_content_are_ignored(client: AsyncFriendli, server: FriendliServer) -> None:
    empty = [event({"type": "ping"}, name="ping"), event({"type": "keepalive"}), event({}), event("hm", name="odd")]
    assert [each.type for each in await events_of(client, server, *empty, named(DATA[-1]))] == ["response.completed"]


@pytest.mark.parametrize("data", ["{", "[1]", '{"type": "response.output_text.delta", "delta": 5}'])
@pytest.mark.parametrize("name", [None, "response.output_text.delta"])
async def test_undecodable_event_ends_the_stream_with_a_partial_result(
    client: AsyncFriendli, server: FriendliServer, data: str, name: str | None
) -> None:
    server.enqueue(script(*map(named, DATA[:12]), event(data, name=name)))
    stream = ask(client)
    with pytest.raises(ResponseDecodeError) as caught:
        await stream.result()
    assert stream.outcome == "failed"
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hello"


async def test_surrogate_pair_split_across_deltas_is_joined(client: AsyncFriendli, server: FriendliServer) -> None:
    halves = [
        raw(b'data: {"type": "response.output_text.delta", "delta": "%s"}\n\n' % half)
        for half in (rb"a\ud83d", rb"\ude00b")
    ]
    server.enqueue(script(*halves, done()), script(*halves, done()))
    assert (await ask(client).result()).text == "a\U0001f600b"
    assert [text async for text in ask(client).text()] == ["a", "\U0001f600b"]


# --- accumulation ----------------------------------------------------------------------------------------------------


def test_pieces_are_not_joined_before_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[Iterable[str]] = []

    def recorded(pieces: Iterable[str]) -> str:
        joined.append(pieces)
        return join_text(pieces)

    monkeypatch.setattr(items, "join_text", recorded)
    collected = ResponseCollector()
    for each in (ReasoningTextDelta(delta="x"), FunctionCallArgumentsDelta(delta="{}")) * 10:
        collected.extend((each,))
        assert not collected.has_text
    assert not joined
    assert collected.result().reasoning == "x" * 10


PART: Final = ContentPart("output_text", "Hi")
ITEM: Final = OutputItem(content=(PART,))


@pytest.mark.parametrize(
    ("event", "has_text"),
    [
        (OutputTextDelta(delta="Hi"), True),
        (OutputTextDelta(delta=""), False),
        (OutputTextDone(text="Hi"), True),
        (ContentPartAdded(part=PART), True),
        (ContentPartDone(part=PART), True),
        (ContentPartDone(part=ContentPart("text", "Hi")), True),
        (ContentPartDone(part=ContentPart("output_text", "")), False),
        (ContentPartDone(part=ContentPart("reasoning_text", "Hm")), False),
        (OutputItemAdded(item=ITEM), True),
        (OutputItemDone(item=ITEM), True),
        (OutputItemAdded(item=OutputItem(type="function_call", arguments="{}")), False),
        (ResponseCompleted(response=Response(output=(ITEM,))), True),
        (ResponseIncomplete(response=Response(output=(ITEM,))), True),
        (ResponseFailed(response=Response(output=(ITEM,))), True),
        (ReasoningTextDelta(delta="Hm"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_text_has_arrived_with_the_first_event_that_has_some(event: ResponseEvent, has_text: bool) -> None:
    collected = ResponseCollector()
    collected.extend((ResponseCreated(response=Response(output=())), event))
    assert collected.has_text is has_text
    collected.extend((FunctionCallArgumentsDelta(delta=""),))
    assert collected.has_text is has_text


@pytest.mark.parametrize(
    ("events", "begun"),
    [
        ([ResponseCreated(response=Response(output=(ITEM,), status="in_progress"))], False),
        ([OutputItemAdded(item=OutputItem())], False),
        ([OutputItemAdded(item=OutputItem(type="reasoning", summary=(ContentPart("summary_text", ""),)))], False),
        ([OutputItemAdded(item=OutputItem(type="reasoning", summary=(ContentPart("summary_text", "Hm"),)))], True),
        ([OutputItemAdded(item=OutputItem(content=(ContentPart(), ContentPart("refusal", refusal="no"))))], True),
        ([OutputItemAdded(item=OutputItem(type="function_call"))], True),
        ([OutputItemAdded(item=OutputItem(id="a")), OutputItemAdded(item=OutputItem(id="b", content=(PART,)))], True),
        ([ResponseCompleted(response=Response(output=()))], True),
    ],
)
def test_response_has_begun_with_its_first_content_or_its_end(events: list[ResponseEvent], begun: bool) -> None:
    collected = ResponseCollector()
    assert collected.extend(events) == len(events)
    assert collected.begun is begun


@pytest.mark.parametrize(
    ("event", "reasons"),
    [
        (ResponseInProgress(response=Response(output=(), status="in_progress")), ()),
        (ResponseIncomplete(response=Response(output=(), status="incomplete")), ("incomplete",)),
        (ResponseCompleted(response=Response(output=(), status=None)), ()),
    ],
)
def test_finish_reason_is_the_status_of_the_final_event(event: ResponseEvent, reasons: tuple[str, ...]) -> None:
    collected = ResponseCollector()
    collected.extend((event,))
    assert collected.finish_reasons == reasons


def test_events_after_the_final_one_are_not_part_of_the_response() -> None:
    collected = ResponseCollector()
    final = ResponseCompleted(response=Response(output=()))
    assert collected.extend((ReasoningTextDelta(delta="Hm"), final, OutputTextDelta(delta="Hi"))) == 2
    assert not collected.has_text
    assert collected.result().text == ""


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        (ResponseInProgress(response=Response(output=(ITEM,))), "Hi you"),
        (ResponseCompleted(response=Response(output=(ITEM,))), "Hi"),
        (ResponseCompleted(response=Response(output=(OutputItem(type="reasoning"), ITEM))), "Hi"),
        (ResponseCompleted(response=Response(output=(OutputItem(type="reasoning", content=(PART,)),))), "Hi you"),
    ],
)
def test_text_of_the_final_event_prevails_if_it_has_any(final: ResponseEvent, expected: str) -> None:
    collected = ResponseCollector()
    collected.extend((OutputTextDelta(delta="Hi you"), final))
    assert collected.result().text == collected.partial().text == expected


async def test_text_of_a_response_in_progress_is_not_part_of_the_text(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    begun = {"type": "response.in_progress", "response": {**WHOLE, "status": "in_progress"}}
    server.enqueue(script(named(begun), *map(named, DATA)))
    assert "".join([text async for text in ask(client).text()]) == "Hello there!"


async def test_views_yield_what_is_only_in_the_final_event(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(script(named(DATA[-1])))
    assert [text async for text in ask(client).text()] == ["Hello there!"]
    assert [text async for text in ask(client).reasoning()] == ["think harder"]


# --- views and result ------------------------------------------------------------------------------------------------


async def test_text_and_reasoning_views_yield_deltas(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(*map(named, DATA)), script(*map(named, DATA)))
    assert [text async for text in ask(client).text()] == ["Hello", " there", "!"]
    assert [text async for text in ask(client).reasoning()] == ["think ", "harder"]


async def test_result_is_the_response_of_the_last_event_with_meta_and_usage(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(*map(named, DATA), headers={"x-request-id": "req_1"}))
    stream = ask(client)
    usage_at_first = stream.usage
    result = await stream.result()
    assert usage_at_first is None
    assert json.loads(msgspec.json.encode(result)) == WHOLE
    assert result is await stream.result()
    assert result.meta.request_id == "req_1"
    assert stream.usage == result.usage == ResponseUsage(5, 7, 12, InputTokensDetails(2), OutputTokensDetails(3))
    assert stream.outcome == "done"


def _only_deltas(data: dict[str, Any]) -> bool:
    return not data["type"].endswith(".done")


def _only_texts(data: dict[str, Any]) -> bool:
    return not data["type"].endswith((".delta", "output_item.done"))


def _only_items(data: dict[str, Any]) -> bool:
    return str(data["type"]).endswith(("output_item.done", "created"))


@pytest.mark.parametrize("kept", [_only_deltas, _only_texts, _only_items])
async def test_result_is_assembled_from_earlier_events_if_the_last_has_no_output(
    client: AsyncFriendli, server: FriendliServer, kept: Callable[[dict[str, Any]], bool]
) -> None:
    bare = {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}
    server.enqueue(script(*(named(data) for data in DATA[:-1] if kept(data)), named(bare)))
    result = await ask(client).result()
    assert (result.id, result.status) == ("resp_1", "completed")
    assert [item.type for item in result.output] == ["reasoning", "message", "function_call"]
    assert result.text == "Hello there!"
    assert result.reasoning == "think harder"
    assert result.tool_calls == (ToolCall("call_1", "function", FunctionCall("weather", '{"city": "Rome"}')),)


@pytest.mark.parametrize("kept", [_only_items, lambda _: True], ids=["items", "all"])
@pytest.mark.parametrize("missing", [(), ("output_index",), ("item_id",)], ids=["named", "no index", "no id"])
async def test_views_yield_once_what_is_in_items(
    client: AsyncFriendli, server: FriendliServer, kept: Callable[[dict[str, Any]], bool], missing: tuple[str, ...]
) -> None:
    bare = {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}
    events = [_without(data, *missing) for data in DATA[:-1] if kept(data)]
    if "item_id" in missing:
        events = [{**data, "item": _without(data["item"], "id")} if "item" in data else data for data in events]
    server.always(script(*map(named, [*events, bare])))
    assert "".join([piece async for piece in ask(client).text()]) == "Hello there!"
    assert "".join([piece async for piece in ask(client).reasoning()]) == "think harder"
    assert (await ask(client).result()).text == "Hello there!"


_TEXTS: Final = frozenset({"delta", "text", "arguments"})


@pytest.mark.parametrize("stage", ["delta", "done"])
async def test_null_text_costs_nothing_of_the_result(client: AsyncFriendli, server: FriendliServer, stage: str) -> None:
    """It stands before each delta, or in place of each repetition of what the deltas have brought."""
    bare = {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}
    events: list[dict[str, Any]] = []
    for data in DATA[:-1]:
        is_empty = data["type"].endswith(f".{stage}") and not _TEXTS.isdisjoint(data)
        empty = [data | dict.fromkeys(_TEXTS)] if is_empty else []
        events += empty if empty and stage == "done" else [*empty, data]
    server.enqueue(script(*map(named, [*events, bare])))
    result = await ask(client).result()
    assert (result.text, result.reasoning) == ("Hello there!", "think harder")
    assert result.tool_calls[0].function.arguments == CALL_ITEM["arguments"]


UNTYPED: Final[dict[str, dict[str, Any]]] = {
    "refusal": {"type": "message", "content": [{"type": "refusal", "refusal": "I cannot"}]},
    "reasoning_summary_text": {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I cannot"}]},
    "custom_tool_call_input": {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "I cannot"},
}
"""Items whose content is streamed in events without a class of their own, by these events' names."""


@pytest.mark.parametrize("last", ["item", "done", "delta"])
@pytest.mark.parametrize("name", UNTYPED)
async def test_content_of_untyped_events_is_in_the_result_as_in_a_plain_reply(
    client: AsyncFriendli, server: FriendliServer, name: str, last: str
) -> None:
    item = {**UNTYPED[name], "id": "i"}
    empty = {key: item[key] for key in ("type", "id", "call_id", "name") if key in item}
    where = {"item_id": "i", "output_index": 0, "content_index": 0, "summary_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.added", "item": empty, "output_index": 0},
        *({"type": f"response.{name}.delta", "delta": delta, **where} for delta in ("I ", "cannot")),
    ]
    if last in {"item", "done"}:
        events += [{"type": f"response.{name}.done", name.rpartition("_")[2]: "I cannot", **where}]
    if last == "item":
        events += [{"type": "response.output_item.done", "item": item, "output_index": 0}]
    events += [{"type": "response.completed", "response": {"id": "r", "status": "completed", "output": []}}]
    server.enqueue(script(*map(named, events)), json_body({"id": "r", "status": "completed", "output": [item]}))
    assert await ask(client).result() == await client.serverless.responses.create(model="m", input="hi")


async def test_refusal_that_comes_whole_in_its_part_is_in_the_result(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    part = {"type": "response.content_part.done", "part": {"type": "refusal", "refusal": "no"}, "item_id": "i"}
    bare = {"type": "response.completed", "response": {"id": "r", "status": "completed"}}
    server.enqueue(script(named(part), named(bare)))
    [item] = (await ask(client).result()).output
    assert item.content == (ContentPart("refusal", refusal="no"),)


def _without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in names}


# --- final events ----------------------------------------------------------------------------------------------------


async def test_incomplete_ends_the_stream_normally_and_sets_the_status(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(*map(named, DATA[:-1]), ending("incomplete", incomplete_details={"reason": "filtered"})))
    stream = ask(client)
    result = await stream.result()
    assert (stream.outcome, result.status) == ("done", "incomplete")
    assert result.incomplete_details is not None
    assert result.incomplete_details.reason == "filtered"


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("server_error", InternalServerError, 500),
        ("rate_limit_exceeded", RateLimitError, 429),
        ("invalid_prompt", BadRequestError, 400),
        *((code, BadRequestError, 400) for code in CODES if "image" in code),
        ("vector_store_timeout", InternalServerError, 504),
        ("image_generation_failed", APIStatusError, 200),
        ("out_of_luck", APIStatusError, 200),
    ],
)
async def test_failed_raises_the_error_class_for_its_code(
    client: AsyncFriendli, server: FriendliServer, code: str, kind: type[APIStatusError], status: int
) -> None:
    error = {"code": code, "message": "no\ud83d way"}
    server.enqueue(script(*map(named, DATA[:21]), ending("failed", output=[], error=error)))
    stream = ask(client)
    received = [await anext(stream) for _ in range(21)]
    with pytest.raises(kind) as caught:
        await anext(stream)
    assert type(caught.value) is kind
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.message == "no� way"  # lone surrogates cannot be logged or sent on
    assert stream.outcome == "failed"
    assert stream.meta.status == 200
    assert [each.type for each in received] == [data["type"] for data in DATA[:21]]
    partial = caught.value.partial
    assert partial is not None
    assert (partial.text, partial.reasoning) == ("Hello there!", "think harder")
    assert partial.tool_calls == (ToolCall("call_1", "function", FunctionCall("weather", '{"city": "Rome"}')),)
    assert partial.usage == Usage(5, 7, 12, PromptTokensDetails(2), CompletionTokensDetails(3))


@pytest.mark.parametrize("kind", ["completed", "incomplete"])
async def test_final_event_of_a_response_that_failed_raises(
    client: AsyncFriendli, server: FriendliServer, kind: str
) -> None:
    server.enqueue(script(*map(named, DATA[:21]), ending(kind, status="failed", error={"message": "no way"})))
    with pytest.raises(APIStatusError, match="no way") as caught:
        await ask(client).result()
    assert caught.value.status_code == 200


async def test_failed_with_a_text_in_place_of_the_response_has_it_for_its_message(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(named({"type": "response.failed", "response": "no slots left"})))
    with pytest.raises(APIStatusError, match="no slots left"):
        await ask(client).result()


async def test_failed_without_an_error_has_a_default_message(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(*map(event, DATA[:2]), ending("failed", error=None)))
    with pytest.raises(APIStatusError, match="the response failed"):
        await ask(client).result()


async def test_failed_is_raised_after_events_of_the_same_read(client: AsyncFriendli, server: FriendliServer) -> None:
    failed = {"type": "response.failed", "response": {**WHOLE, "error": {"code": "server_error", "message": "no"}}}
    server.enqueue(script(raw(b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in [*DATA[:2], failed]))))
    stream = ask(client)
    assert (await anext(stream)).type == "response.created"
    assert (await anext(stream)).type == "response.in_progress"
    with pytest.raises(InternalServerError):
        await anext(stream)


async def test_failure_has_the_delay_and_the_request_id_of_the_headers(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    failed = ending("failed", error={"code": "rate_limit_exceeded", "message": "later"})
    headers = {"retry-after": "7", "x-request-id": "req_9"}
    server.enqueue(script(named(DATA[0]), failed, headers=headers))
    with pytest.raises(RateLimitError, match="later") as caught:
        await ask(client).result()
    assert (caught.value.retry_after, caught.value.request_id) == (7.0, "req_9")


async def test_failure_before_the_first_event_is_retried(server: FriendliServer) -> None:
    server.enqueue(
        script(ending("failed", error={"code": "rate_limit_exceeded", "message": "later"})), script(*map(named, DATA))
    )
    policy = RetryPolicy(max_attempts=2, initial=0.0)
    async with AsyncFriendli(server.token, server_url=server.url, retry=policy) as client:
        result = await ask(client).result()
    assert result.text == "Hello there!"
    assert [attempt.status for attempt in result.meta.attempts] == [200, 200]


@pytest.mark.parametrize("count", range(1, len(DATA) - 1))
async def test_stream_without_a_final_event_is_interrupted(
    client: AsyncFriendli, server: FriendliServer, count: int
) -> None:
    server.enqueue(script(*map(named, DATA[:count])))
    stream = ask(client)
    with pytest.raises(StreamInterruptedError) as caught:
        await stream.result()
    assert stream.outcome == "truncated"
    received = "".join(data["delta"] for data in DATA[:count] if data["type"] == "response.output_text.delta")
    assert caught.value.partial is not None
    assert caught.value.partial.text == received
