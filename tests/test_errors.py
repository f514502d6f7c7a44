"""The error tree: its shape, what its members carry through pickles and copies, and how error bodies become errors."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from strategies import JSON, deterministic
from support.events import decode_event

import friendli_async
from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    AuthenticationError,
    BadRequestError,
    BranchOverrunError,
    ChatCompletion,
    ConfigurationError,
    ConflictError,
    FriendliError,
    InternalServerError,
    Meta,
    NotFoundError,
    OutputCutOffError,
    OutputError,
    OutputInvalidError,
    Partial,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    SDKError,
    StreamInterruptedError,
    ToolCall,
    ToolError,
    TurnLimitError,
    UnprocessableEntityError,
    Usage,
)
from friendli_async._core.events.decoding import decode_reply
from friendli_async._core.status_errors import status_error
from friendli_async.errors import status_class
from friendli_async.replies import FunctionCall, Headers

# --- the tree --------------------------------------------------------------------------------------------------------

PARENTS: dict[type[BaseException], tuple[type[BaseException], ...]] = {
    FriendliError: (Exception,),
    ConfigurationError: (FriendliError, ValueError),
    APIConnectionError: (FriendliError,),
    APITimeoutError: (APIConnectionError, TimeoutError),
    StreamInterruptedError: (APIConnectionError,),
    APIStatusError: (FriendliError,),
    BadRequestError: (APIStatusError,),
    AuthenticationError: (APIStatusError,),
    PermissionDeniedError: (APIStatusError,),
    NotFoundError: (APIStatusError,),
    ConflictError: (APIStatusError,),
    UnprocessableEntityError: (APIStatusError,),
    RateLimitError: (APIStatusError,),
    InternalServerError: (APIStatusError,),
    ResponseDecodeError: (FriendliError,),
    OutputError: (ResponseDecodeError,),
    OutputCutOffError: (OutputError,),
    OutputInvalidError: (OutputError,),
    BranchOverrunError: (FriendliError,),
    ToolError: (FriendliError,),
    TurnLimitError: (FriendliError,),
}


def descendants(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(descendants(child) for child in kind.__subclasses__()))


def test_the_tree_is_the_promised_one_and_the_root_exports_all_of_it() -> None:
    # Jobs have errors of their own, which are where the jobs are.
    assert {kind for kind in descendants(FriendliError) if ".bulk." not in kind.__module__} == set(PARENTS)
    for kind, parents in PARENTS.items():
        assert kind.__bases__ == parents
        assert getattr(friendli_async, kind.__name__) is kind
    assert SDKError is APIStatusError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, APIStatusError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (408, APIStatusError),
        (409, ConflictError),
        (418, APIStatusError),
        (422, UnprocessableEntityError),
        (429, RateLimitError),
        (499, APIStatusError),
        (500, InternalServerError),
        (503, InternalServerError),
        (529, InternalServerError),
        (599, InternalServerError),
        (304, APIStatusError),
        (200, APIStatusError),
    ],
)
def test_each_status_has_its_class(status: int, kind: type[APIStatusError]) -> None:
    assert status_class(status) is kind


META = Meta(
    status=429,
    headers=Headers([("X-Request-Id", "r1"), ("Retry-After", "3")]),
    attempts=(Attempt(status=503, cause="InternalServerError: busy", wait=0.5, elapsed=0.1), Attempt(status=429)),
    elapsed=0.7,
)
PARTIAL = Partial(
    text="half a sen",
    reasoning="because",
    tool_calls=(ToolCall("c1", "function", FunctionCall("f", '{"a"')),),
    usage=Usage(1, 2, 3),
)
CARRIED: dict[str, Any] = {"meta": META, "partial": PARTIAL}
STATUS: dict[str, Any] = {
    "status_code": 429,
    "code": "c",
    "type": "t",
    "body": '{"a":1}',
    "retry_after": 3.0,
    "request_id": "r1",
}


def full(kind: type[FriendliError]) -> tuple[FriendliError, dict[str, Any]]:
    """An error of the class with everything that it can carry, and what that is."""
    fields: dict[str, Any] = dict(CARRIED)
    if issubclass(kind, APIStatusError):
        fields |= STATUS
    if issubclass(kind, APIConnectionError):
        fields |= {"sent": True}
    if issubclass(kind, APITimeoutError):
        fields |= {"limit": "idle", "seconds": 1.5}
    if issubclass(kind, ResponseDecodeError):
        fields |= {"excerpt": "<html>"}
    if issubclass(kind, ToolError | TurnLimitError):
        fields |= {"messages": [{"role": "user", "content": "Hi"}], "usage": Usage(1, 2, 3)}
    if issubclass(kind, ToolError):
        fields |= {"kind": "timeout", "call": ToolCall("a")}
    if issubclass(kind, TurnLimitError):
        fields |= {"turns": 8}
    return kind("what happened", **fields), fields


def again(protocol: int) -> Callable[[FriendliError], FriendliError]:
    def through_pickle(error: FriendliError) -> FriendliError:
        loaded: FriendliError = pickle.loads(pickle.dumps(error, protocol))
        return loaded

    return through_pickle


COPIES: dict[str, Callable[[FriendliError], FriendliError]] = {
    **{f"pickle {protocol}": again(protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "a copy of a pickle": lambda error: copy.copy(again(pickle.HIGHEST_PROTOCOL)(error)),
}


@pytest.mark.compatibility
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", PARENTS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_and_copying_with_all_that_it_carries(kind: type[FriendliError], way: str) -> None:
    error, fields = full(kind)
    copied = COPIES[way](error)
    assert copied is not error
    assert type(copied) is kind
    assert copied.args == error.args == ("what happened",)
    assert str(copied) == str(error)
    assert {name: getattr(copied, name) for name in fields} == fields
    assert vars(copied) == vars(error)
    assert copied.meta is not None
    assert copied.meta.request_id == "r1"


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", PARENTS, ids=lambda kind: kind.__name__)
def test_an_error_without_anything_survives_pickling_and_copying(kind: type[FriendliError]) -> None:
    bare = kind()
    for way in COPIES.values():
        copied = way(bare)
        assert (type(copied), str(copied), copied.meta, copied.partial) == (kind, str(bare), None, None)
        assert vars(copied) == vars(bare)


def test_a_copy_shares_no_traceback_with_its_original() -> None:
    try:
        raise APIConnectionError("gone")
    except APIConnectionError as error:
        copied = copy.copy(error)
    assert copied.__traceback__ is None
    assert copied.__context__ is None


@pytest.mark.parametrize("kind", PARENTS, ids=lambda kind: kind.__name__)
def test_every_error_shows_its_message(kind: type[FriendliError]) -> None:
    error, _ = full(kind)
    assert "what happened" in str(error)
    assert "what happened" in repr(error)
    assert kind.__name__ in traceback.format_exception_only(error)[0]


def test_a_status_error_shows_status_and_request_id() -> None:
    assert str(RateLimitError("slow down", status_code=429, request_id="r1")) == "429 slow down (request id r1)"
    assert str(RateLimitError("slow down", status_code=429)) == "429 slow down"
    assert RateLimitError("slow down").message == "slow down"


def test_a_timeout_is_caught_as_pythons_own_and_carries_no_errno() -> None:
    error = APITimeoutError("no event for 1.5 s", limit="idle", seconds=1.5, sent=True)
    with pytest.raises(TimeoutError, match="no event") as caught:
        raise error
    assert caught.value.errno is None


def test_whether_something_was_sent_has_the_safe_default() -> None:
    assert APIConnectionError("refused").sent is False
    assert APITimeoutError("slow").sent is False
    assert StreamInterruptedError("cut").sent is True


def test_errors_take_their_fields_by_keyword_only() -> None:
    with pytest.raises(TypeError):
        APIStatusError("no", 429)  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize("kind", PARENTS, ids=lambda kind: kind.__name__)
def test_no_error_has_a_place_for_a_request(kind: type[FriendliError]) -> None:
    names = set(vars(full(kind)[0])) | set(vars(kind()))
    assert not names & {"request", "response", "headers", "token", "authorization", "session", "client"}
    for name, value in vars(full(kind)[0]).items():
        plain = isinstance(value, str | float | int | list | Meta | Partial | ToolCall | Usage | None)
        assert plain, name


def test_the_repr_of_an_error_with_meta_shows_neither_meta_nor_partial() -> None:
    error, _ = full(RateLimitError)
    assert repr(error) == "RateLimitError('what happened')"


# --- errors from bodies ----------------------------------------------------------------------------------------------

Shape = tuple[bytes, str, str | None, str | None]
"""Body, and the message, code and type that it says."""

SHAPES: dict[str, Shape] = {
    "nested": (b'{"error":{"message":"no","code":"c","type":"t"}}', "no", "c", "t"),
    "numeric code": (b'{"error":{"message":"no","code":400,"type":null}}', "no", "400", None),
    "text": (b'{"error":"no"}', "no", None, None),
    "text beside code": (b'{"error":"no","code":7,"type":"t"}', "no", "7", "t"),
    "flat": (b'{"object":"error","message":"no","type":"t","code":1}', "no", "1", "t"),
    "anthropic": (b'{"type":"error","error":{"type":"t","message":"no"}}', "no", None, "t"),
    "detail text": (b'{"detail":"no"}', "no", None, None),
    "detail list": (
        b'{"detail":[{"loc":["body","n",0],"msg":"bad","type":"x"},{"msg":"worse"},"plain"]}',
        "body.n.0: bad; worse; plain",
        None,
        None,
    ),
    "wrong types": (b'{"error":{"message":5,"code":[1],"type":{"a":1}}}', "5", None, None),
    "plain text": (b"  no such thing\nsecond line", "no such thing", None, None),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_error_body_of_a_known_shape_gives_message_code_and_type(shape: str) -> None:
    body, message, code, kind = SHAPES[shape]
    error = status_error(422, Headers([("X-Request-Id", "r1"), ("Retry-After", "3")]), body)
    assert type(error) is UnprocessableEntityError
    assert (error.message, error.code, error.type) == (message, code, kind)
    assert (error.status_code, error.request_id, error.retry_after) == (422, "r1", 3.0)
    assert error.body == body.decode()


ODD_BODIES = [
    b"",
    b" ",
    b"null",
    b"[]",
    b"[1]",
    b"5",
    b'""',
    b"{}",
    b'{"error":null}',
    b'{"error":[]}',
    b'{"error":true}',
    b'{"a":1}',
]
ODD_BODIES += [
    b'{"error":{}}',
    b'{"detail":[]}',
    b'{"detail":[null,[1],{"loc":5}]}',
    b'{"message":{"a":[1]}}',
    b"\xff\xfe\x00",
    b"{cut",
]
ODD_BODIES += [
    b'{"error":{"message":"\\ud800"}}',
    b'{"error":{"code":NaN,"status":Infinity}}',
    b'{"error":{"code":' + b"9" * 5000 + b"}}",
]
ODD_BODIES += [
    b'[{"error":{"message":"in a list"}}]',
    b"<html><title>502 Bad Gateway</title></html>",
    b"<html>",
    b"\0" * 100,
]


@pytest.mark.parametrize("body", ODD_BODIES, ids=range(len(ODD_BODIES)))
@pytest.mark.parametrize("status", [400, 418, 500, 599, 302])
def test_an_error_body_of_no_known_shape_still_gives_the_error_of_its_status(status: int, body: bytes) -> None:
    error = status_error(status, Headers(), body)
    assert error.status_code == status
    assert type(error) is {400: BadRequestError, 500: InternalServerError, 599: InternalServerError}.get(
        status, APIStatusError
    )
    assert error.message
    assert str(status) in str(error)
    assert error.body == body.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html><body><h2>Upstream died</h2><p>x</p></body></html>", "Upstream died"),
        (b"<html><body><p>Denied by\n policy</p></body></html>", "Denied by policy"),
        (b"<html><head><title> </title></head><body><h1>Gone</h1></body></html>", "Gone"),
        (b"<?xml version='1.0'?><Error><Code>X</Code><Message>Access denied</Message></Error>", "Access denied"),
        (b"<s:Fault><faultcode>x</faultcode><faultstring>Too busy</faultstring></s:Fault>", "Too busy"),
        (b"<html><style>a{}</style><div>Blocked</div></html>", "Blocked"),
        (b'{"error":{"message":"first"}}\n{"error":{"message":"second"}}\n', "first"),
        (b'{"error":{"code":"E42"}}', "E42"),
        (b"<html></html>", "HTTP 503 Service Unavailable"),
    ],
)
def test_the_words_of_markup_and_of_lines_of_json_are_the_message(body: bytes, words: str) -> None:
    assert status_error(503, Headers(), body).message == words


def test_of_an_html_page_only_the_title_is_the_message() -> None:
    page = b"<!DOCTYPE html><html><head><TITLE>\n502 Bad Gateway </TITLE></head><body>lots of words</body></html>"
    assert status_error(502, Headers([("Content-Type", "text/html")]), page).message == "502 Bad Gateway"


@given(
    JSON.map(lambda value: json.dumps({"error": value}).encode()) | JSON.map(lambda value: json.dumps(value).encode())
)
@deterministic
def test_any_json_is_an_error_body_without_a_surprise(body: bytes) -> None:
    assert type(status_error(429, Headers(), body)) is RateLimitError
    assert isinstance(decode_event(body, "error").error, APIStatusError)


@pytest.mark.parametrize(
    "shape", ['{"error":{"code":%s}}', '{"error":%s}', '{"detail":[{"msg":%s}]}', '{"message":%s}', "%s"]
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_an_error_body_of_any_depth_gives_the_error_of_its_status(shape: str, opening: str, closing: str) -> None:
    for depth in (10, *range(800, 1010, 2), 20_000):
        body = (shape % (opening * depth + "1" + closing * depth)).encode()
        assert type(status_error(500, Headers(), body)) is InternalServerError
        assert isinstance(decode_event(body, "error").error, APIStatusError)


COMPLETION = msgspec.json.Decoder(ChatCompletion)


def embedded_error(data: bytes, *headers: tuple[str, str]) -> APIStatusError | None:
    """The error that a reply with a good status is."""
    try:
        decode_reply(data, COMPLETION, 200, Headers(headers))
    except APIStatusError as error:
        return error
    except ResponseDecodeError:
        pass
    return None


@pytest.mark.parametrize(
    ("data", "expected", "status"),
    [
        ({"error": {"message": "m", "code": 429}}, RateLimitError, 429),
        ({"error": {"message": "m", "code": "503"}}, InternalServerError, 503),
        ({"error": {"message": "m", "type": "invalid_request_error"}}, BadRequestError, 400),
        ({"error": {"message": "m", "type": "authentication_error"}}, AuthenticationError, 401),
        ({"error": {"message": "m", "type": "permission_error"}}, PermissionDeniedError, 403),
        ({"error": {"message": "m", "status": "RESOURCE_EXHAUSTED"}}, RateLimitError, 429),
        ({"error": {"message": "m", "status": 404}}, NotFoundError, 404),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, InternalServerError, 503),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, BadRequestError, 400),
        ({"error": "m", "status": 503}, InternalServerError, 503),
        ({"error": {"message": "m", "code": "rate_limit_exceeded", "type": "requests"}}, RateLimitError, 429),
        ({"error": {"message": "m", "code": 200}}, APIStatusError, 200),
        ({"error": {"message": "m", "code": True, "type": "brand_new"}}, APIStatusError, 200),
        ("m", APIStatusError, 200),
        ([{"error": {"message": "m", "code": 429}}], RateLimitError, 429),
        ({"message": "m"}, APIStatusError, 200),
        ({"detail": "m"}, APIStatusError, 200),
        ({"code": 429, "msg": "m"}, RateLimitError, 429),
        ({"error_code": 7, "error_msg": "m"}, APIStatusError, 200),
        ({"errors": ["m"]}, APIStatusError, 200),
        ({"title": "m", "status": 503}, InternalServerError, 503),
        ({"choices": [], "error": {"message": "m", "code": 429}}, RateLimitError, 429),
        ({"choices": None, "message": "m"}, APIStatusError, 200),
    ],
)
def test_an_error_in_a_good_reply_raises_the_class_that_it_names(data: object, expected: type, status: int) -> None:
    error = embedded_error(json.dumps(data).encode(), ("x-request-id", "r"))
    assert error is not None
    assert type(error) is expected
    assert (error.status_code, error.message, error.request_id) == (status, "m", "r")
    told = decode_event(json.dumps(data).encode()).error
    assert told is not None
    assert (type(told), told.status_code, told.message, told.body) == (expected, status, "m", error.body)


@pytest.mark.parametrize(
    "data", [b"{}", b'{"error":null}', b'{"choices":[]}', b"[5]", b"", b"{cut", b'{"error":false}', b'""', b"[]"]
)
def test_a_reply_without_an_error_has_none(data: bytes) -> None:
    assert embedded_error(data) is None


@pytest.mark.parametrize("data", [b"The answer is caf\xc3", b"\x00\x01binary stuff\xff", b"abc \xff\xfe\xfd"])
def test_broken_bytes_are_no_words_of_an_error(data: bytes) -> None:
    with pytest.raises(ResponseDecodeError):
        decode_event(data)


@pytest.mark.parametrize("data", [b'{"error":{}}', b'"error"', b'{"error":true}', b'{"object":"error"}'])
def test_an_error_without_words_is_shown_as_it_came(data: bytes) -> None:
    for error in (embedded_error(data), decode_event(data).error):
        assert error is not None
        assert error.status_code == 200
        assert error.message in {data.decode(), "error"}
        assert error.body == data.decode()


@pytest.mark.parametrize("data", [b"boom", b"{}", b"", b'{"message":"boom"}', b'"boom"'])
@pytest.mark.parametrize("name", ["error", "Error", "stream_error", "exception", "fatal"])
def test_an_event_that_is_called_error_is_one_whatever_it_holds(name: str, data: bytes) -> None:
    error = decode_event(data, name).error
    assert error is not None
    assert error.status_code == 200
    assert "boom" in error.message or b"boom" not in data
    assert len(error.body) <= 200
