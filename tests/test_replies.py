"""What replies carry: headers, meta, usage, partial results."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async import Attempt, ChatChunk, ChatCompletion, Meta, Partial, ToolCall, Usage
from friendli_async._core.lenient import decode
from friendli_async.audio import TranscriptionUsage
from friendli_async.chat import ParsedCompletion
from friendli_async.classification import ClassificationUsage
from friendli_async.replies import FunctionCall, Headers, PromptTokensDetails, Reply, TokenUsage, attach_meta, keep_raw
from friendli_async.responses import ResponseUsage

# --- Headers ---------------------------------------------------------------------------------------------------------


def test_header_lookup_is_case_insensitive() -> None:
    headers = Headers([("Content-Type", "a/b"), ("X-REQUEST-ID", "r1")])
    assert isinstance(headers, Mapping)
    assert headers["content-type"] == headers["CONTENT-TYPE"] == headers.get("Content-Type") == "a/b"
    assert "x-request-id" in headers
    assert "X-Request-Id" in headers
    assert list(headers) == ["content-type", "x-request-id"]
    assert len(headers) == 2
    assert dict(headers) == {"content-type": "a/b", "x-request-id": "r1"}


def test_missing_header_raises_key_error_or_returns_the_default() -> None:
    headers = Headers([("A", "b")])
    with pytest.raises(KeyError):
        headers["c"]
    assert headers.get("c") is None
    assert headers.get("c", "d") == "d"
    assert "c" not in headers
    assert 5 not in headers  # type: ignore[comparison-overlap]  # any object may be asked for


def test_repeated_headers_are_joined_in_order() -> None:
    headers = Headers([("Via", "a"), ("X", "1"), ("VIA", "b"), ("via", "c")])
    assert headers["via"] == "a, b, c"
    assert len(headers) == 2


def test_headers_are_immutable_and_compare_by_value() -> None:
    headers = Headers([("A", "b")])
    with pytest.raises(TypeError):
        headers["a"] = "c"  # type: ignore[index]  # the assignment must fail
    assert headers == Headers([("a", "b")])
    assert headers != Headers([("a", "c")])
    assert repr(headers) == "Headers({'a': 'b'})"


@given(st.lists(st.tuples(st.sampled_from(["A", "a", "b", "X-Y", "x-y"]), st.text(max_size=4)), max_size=6))
@deterministic
def test_headers_can_be_pickled_and_copied(items: list[tuple[str, str]]) -> None:
    headers = Headers(items)
    for again in (pickle.loads(pickle.dumps(headers)), copy.copy(headers), copy.deepcopy(headers)):
        assert again == headers
        assert list(again) == list(headers)
    assert {name.lower() for name, _ in items} == set(headers)


# --- meta ------------------------------------------------------------------------------------------------------------

META = Meta(
    status=200,
    headers=Headers([("X-Request-Id", "r1")]),
    attempts=(Attempt(status=503, cause="InternalServerError: busy", wait=0.25, elapsed=0.5), Attempt(status=200)),
    elapsed=1.5,
)
JSON = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"id":"c1"}'


def reply() -> ChatCompletion:
    return msgspec.json.decode(JSON, type=ChatCompletion)


def test_meta_is_not_a_field_of_the_reply() -> None:
    bare, answered = reply(), reply()
    attach_meta(answered, META)
    assert answered.meta is META
    assert answered == bare
    assert repr(answered) == repr(bare)
    assert msgspec.json.encode(answered) == msgspec.json.encode(bare)
    assert msgspec.to_builtins(answered) == msgspec.to_builtins(bare)
    assert msgspec.structs.asdict(answered) == msgspec.structs.asdict(bare)
    assert "meta" not in ChatCompletion.__struct_fields__
    assert not any("r1" in text for text in (repr(answered), str(answered)))


def test_reply_that_no_call_returned_has_no_meta() -> None:
    with pytest.raises(AttributeError, match=r"this ChatCompletion has no meta, .*with_meta\(\) adds one"):
        _ = reply().meta


def test_with_meta_returns_a_copy_that_has_it() -> None:
    bare = reply()
    attach_meta(bare, Meta(status=201))
    keep_raw(bare, JSON)
    answered = bare.with_meta(META)
    assert (answered, answered.meta, bare.meta.status) == (bare, META, 201)
    assert answered.raw == bare.raw
    parsed = ParsedCompletion(choices=(), value=5).with_meta(META)
    assert (type(parsed), parsed.value, parsed.meta.request_id) == (ParsedCompletion, 5, "r1")


def test_reply_and_meta_are_frozen() -> None:
    answered = reply()
    attach_meta(answered, META)
    with pytest.raises(AttributeError):
        answered.id = "c2"  # type: ignore[misc]  # the assignment must fail
    with pytest.raises(AttributeError):
        answered.meta = META  # type: ignore[misc]  # the assignment must fail
    with pytest.raises(AttributeError):
        META.status = 500  # type: ignore[misc]  # the assignment must fail


def test_meta_is_attached_per_instance() -> None:
    first, second = reply(), reply()
    attach_meta(first, META)
    attach_meta(second, Meta(status=201))
    assert (first.meta.status, second.meta.status) == (200, 201)


@pytest.mark.parametrize("value", [None, 5, {"a": 1}, ChatChunk(), Usage()])
def test_attach_meta_ignores_values_other_than_top_level_replies(value: object) -> None:
    attach_meta(value, META)
    assert not hasattr(value, "meta")


def test_request_id_header_lookup_is_case_insensitive() -> None:
    assert META.request_id == "r1"
    assert Meta().request_id is None
    assert Meta(headers=Headers([("x-REQUEST-id", "r2")])).request_id == "r2"


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_meta_and_replies_can_be_pickled_and_copied(again: object) -> None:
    assert callable(again)
    assert again(META) == META
    assert again(META).request_id == "r1"
    answered = reply()
    attach_meta(answered, META)
    copied = again(answered)
    assert copied == answered
    assert copied.text == "Hi"
    for name in ("meta", "raw"):
        with pytest.raises(AttributeError, match=f"this ChatCompletion has no {name}.* copied, unpickled, decoded or"):
            getattr(copied, name)


# --- usage, partial --------------------------------------------------------------------------------------------------


def test_fields_that_were_not_sent_are_omitted_from_encoding_and_repr() -> None:
    assert msgspec.json.encode(Usage(1, 2, 3)) == b'{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}'
    assert repr(Usage(1, 2, 3)) == "Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)"
    assert isinstance(reply(), Reply)


@pytest.mark.parametrize("absent", ["null", "missing"])
def test_null_or_missing_tool_call_fields_become_empty_strings(absent: str) -> None:
    sparse = '{"id":null,"type":null,"function":{"name":null,"arguments":null}}' if absent == "null" else "{}"
    data = b'{"choices":[{"index":0,"message":{"role":"assistant","tool_calls":[%s]}}]}' % sparse.encode()
    (call,) = decode(data, msgspec.json.Decoder(ChatCompletion)).message.tool_calls or ()
    assert call == ToolCall() == ToolCall("", "function", FunctionCall("", ""))


def test_tool_call_is_encoded_with_all_fields() -> None:
    encoded = msgspec.json.encode(ToolCall("c1", function=FunctionCall("now")))
    assert encoded == b'{"id":"c1","type":"function","function":{"name":"now","arguments":""}}'


def test_usage_tolerates_unknown_and_missing_fields() -> None:
    usage = msgspec.json.decode(b'{"total_tokens":3,"new":{"a":1},"prompt_tokens_details":{"x":1}}', type=Usage)
    assert (usage.total_tokens, usage.prompt_tokens, usage.completion_tokens) == (3, 0, 0)


def test_usages_of_several_calls_are_summed() -> None:
    cached = Usage(1, 2, 3, prompt_tokens_details=PromptTokensDetails(cached_tokens=1))
    assert sum([cached, Usage(10, 20, 30), cached], Usage()) == Usage(
        12, 24, 36, prompt_tokens_details=PromptTokensDetails(cached_tokens=2)
    )


@pytest.mark.parametrize("other", [None, 0, ResponseUsage()])
def test_usage_is_added_to_no_other_kind(other: Any) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        Usage(1, 2, 3) + other


@pytest.mark.parametrize(
    ("kind", "counts", "total"),
    [
        (Usage, {"prompt_tokens": 3, "completion_tokens": 4}, 7),
        (Usage, {"prompt_tokens": 3}, 3),
        (ClassificationUsage, {"prompt_tokens": 3}, 3),
        (TranscriptionUsage, {"input_tokens": 3, "output_tokens": 4}, 7),
        (ResponseUsage, {"input_tokens": 3, "output_tokens": 4, "total_tokens": None}, 7),
        (ResponseUsage, {"input_tokens": 3, "output_tokens": 4, "total_tokens": 9}, 9),
    ],
)
def test_total_tokens_that_the_server_omits_are_the_sum(
    kind: type[TokenUsage], counts: dict[str, int | None], total: int
) -> None:
    usage: Any = decode(msgspec.json.encode(counts), msgspec.json.Decoder(kind))
    assert usage.total_tokens == total
    assert pickle.loads(pickle.dumps(usage)) == copy.copy(usage) == usage


def test_partial_can_be_pickled_and_is_empty_by_default() -> None:
    partial = Partial(text="a", tool_calls=(ToolCall("c", "function", FunctionCall("f", "{")),), usage=Usage(1, 1, 2))
    assert pickle.loads(pickle.dumps(partial)) == partial
    assert (Partial().text, Partial().reasoning, Partial().tool_calls, Partial().usage) == ("", "", (), None)
