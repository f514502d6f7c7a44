"""The exception hierarchy: its shape, pickling and copying, and how error bodies are parsed."""

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
    UsageLimitError,
)
from friendli_async._core.events.plain_reply import decode_reply, not_a_stream
from friendli_async._core.status_errors import status_error
from friendli_async._hints import Explained
from friendli_async.errors import status_class
from friendli_async.replies import FunctionCall, Headers, ReplyHead

# --- hierarchy -------------------------------------------------------------------------------------------------------

PARENTS: dict[type[BaseException], tuple[type, ...]] = {
    FriendliError: (Explained, Exception),
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
    UsageLimitError: (FriendliError,),
}


def subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_exception_hierarchy_is_complete_and_exported() -> None:
    own = {kind for kind in subclasses(FriendliError) if kind.__module__.startswith("friendli_async.")}
    # `friendli_async.bulk` defines and exports its own errors.
    assert {kind for kind in own if ".bulk." not in kind.__module__} == set(PARENTS)
    for kind, parents in PARENTS.items():
        assert kind.__bases__ == parents
        assert getattr(friendli_async, kind.__name__) is kind
    assert SDKError is APIStatusError


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


def full_error(kind: type[FriendliError]) -> tuple[FriendliError, dict[str, Any]]:
    """Returns an error with every field of its class set, and those fields."""
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
    if issubclass(kind, UsageLimitError):
        fields |= {"usage": Usage(1, 2, 3)}
    if issubclass(kind, ToolError):
        fields |= {"kind": "timeout", "call": ToolCall("a")}
    if issubclass(kind, TurnLimitError):
        fields |= {"turns": 8}
    return kind("what happened", **fields), fields


def pickle_copier(protocol: int) -> Callable[[FriendliError], FriendliError]:
    def copy_by_pickle(error: FriendliError) -> FriendliError:
        loaded: FriendliError = pickle.loads(pickle.dumps(error, protocol))
        return loaded

    return copy_by_pickle


COPIERS: dict[str, Callable[[FriendliError], FriendliError]] = {
    **{f"pickle {protocol}": pickle_copier(protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "copy of pickle": lambda error: copy.copy(pickle_copier(pickle.HIGHEST_PROTOCOL)(error)),
}


@pytest.mark.compatibility
@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("kind", PARENTS, ids=lambda kind: kind.__name__)
def test_error_with_all_fields_survives_pickling_and_copying(kind: type[FriendliError], copier: str) -> None:
    error, fields = full_error(kind)
    copied = COPIERS[copier](error)
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
def test_bare_error_survives_pickling_and_copying(kind: type[FriendliError]) -> None:
    bare = kind()
    for copier in COPIERS.values():
        copied = copier(bare)
        assert (type(copied), str(copied), copied.meta, copied.partial) == (kind, str(bare), None, None)
        assert vars(copied) == vars(bare)


def test_copy_has_no_traceback_or_context() -> None:
    try:
        raise APIConnectionError("gone")
    except APIConnectionError as error:
        copied = copy.copy(error)
    assert copied.__traceback__ is None
    assert copied.__context__ is None


@pytest.mark.parametrize("kind", PARENTS, ids=lambda kind: kind.__name__)
def test_error_message_is_in_str_and_repr(kind: type[FriendliError]) -> None:
    error, _ = full_error(kind)
    assert "what happened" in str(error)
    assert "what happened" in repr(error)
    assert kind.__name__ in traceback.format_exception_only(error)[0]


def test_status_error_str_has_status_and_request_id() -> None:
    assert str(RateLimitError("slow down", status_code=429, request_id="r1")) == "429 slow down (request id r1)"
    assert str(RateLimitError("slow down", status_code=429)) == "429 slow down"
    assert RateLimitError("slow down").message == "slow down"


@pytest.mark.parametrize("status", [0, 200, 201, 299])
def test_status_error_str_omits_a_status_of_success(status: int) -> None:
    assert str(APIStatusError("overloaded", status_code=status, request_id="r1")) == "overloaded (request id r1)"
    assert str(APIStatusError("overloaded", status_code=status)) == "overloaded"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("500 Internal Server Error", "500 Internal Server Error"),
        ("500: out of memory", "500: out of memory"),
        ("500", "500"),
        ("HTTP 500 Internal Server Error", "HTTP 500 Internal Server Error"),
        ("500 tokens are too many", "500 500 tokens are too many"),
        ("5000 Euro", "500 5000 Euro"),
    ],
)
def test_status_error_str_does_not_repeat_a_status_in_the_message(message: str, text: str) -> None:
    error = InternalServerError(message, status_code=500)
    assert str(error) == text
    assert error.message == message


@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("kind", [APIConnectionError, APITimeoutError, StreamInterruptedError])
def test_connection_error_str_names_the_server_once(kind: type[APIConnectionError], copier: str) -> None:
    error = kind("no reply", meta=Meta(server="api.example:443"))
    assert str(COPIERS[copier](error)) == "no reply (server api.example:443)"
    assert error.args == ("no reply",)
    named = "could not connect: api.example:443 [Connection refused]"
    assert str(kind(named, meta=Meta(server="api.example:443"))) == named
    assert str(kind(named, meta=Meta())) == named


def test_timeout_error_is_a_builtin_timeout_error_without_errno() -> None:
    error = APITimeoutError("no event for 1.5 s", limit="idle", seconds=1.5, sent=True)
    with pytest.raises(TimeoutError, match="no event") as caught:
        raise error
    assert caught.value.errno is None


@pytest.mark.parametrize("kind", [APIConnectionError, APITimeoutError, StreamInterruptedError])
def test_error_that_a_task_queue_has_rebuilt_may_have_been_sent(kind: type[APIConnectionError]) -> None:
    error = kind("broke", sent=True)
    assert kind(*error.args).sent is True  # all that Celery and taskiq keep of it in JSON


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429])
def test_error_that_a_task_queue_has_rebuilt_has_the_status_of_its_class(status: int) -> None:
    error = status_class(status)("no", status_code=status)
    assert str(type(error)(*error.args)) == str(error) == f"{status} no"
    assert type(error)("no", status_code=503).status_code == 503


def test_error_fields_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        APIStatusError("no", 429)  # type: ignore[call-arg]  # the tested mistake


@pytest.mark.parametrize("kind", [ToolError, TurnLimitError])
def test_errors_do_not_share_their_lists(kind: type[ToolError | TurnLimitError]) -> None:
    error = kind()
    error.messages.append({"role": "user", "content": "Hi"})
    assert copy.copy(error).messages == error.messages != kind().messages == []


@pytest.mark.parametrize("kind", PARENTS, ids=lambda kind: kind.__name__)
def test_errors_do_not_hold_requests_or_clients(kind: type[FriendliError]) -> None:
    names = set(vars(full_error(kind)[0])) | set(vars(kind()))
    assert not names & {"request", "response", "headers", "token", "authorization", "session", "client"}
    for name, value in vars(full_error(kind)[0]).items():
        plain = isinstance(value, str | float | int | list | Meta | Partial | ToolCall | Usage | None)
        assert plain, name


def test_error_repr_omits_meta_and_partial() -> None:
    error, _ = full_error(RateLimitError)
    assert repr(error) == "RateLimitError('what happened')"


# --- error bodies ----------------------------------------------------------------------------------------------------


def test_error_of_a_status_has_its_headers_and_body() -> None:
    body = b'{"detail":"no"}'
    error = status_error(ReplyHead(422, Headers([("X-Request-Id", "r1"), ("Retry-After", "3")])), body)
    assert type(error) is UnprocessableEntityError
    assert (error.status_code, error.request_id, error.retry_after) == (422, "r1", 3.0)
    assert error.body == body.decode()


UNKNOWN_BODIES = [
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
UNKNOWN_BODIES += [
    b'{"error":{}}',
    b'{"detail":[]}',
    b'{"detail":[null,[1],{"loc":5}]}',
    b'{"message":{"a":[1]}}',
    b"\xff\xfe\x00",
    b"{cut",
]
UNKNOWN_BODIES += [
    b'{"error":{"message":"\\ud800"}}',
    b'{"error":{"code":NaN,"status":Infinity}}',
    b'{"error":{"code":' + b"9" * 5000 + b"}}",
]
UNKNOWN_BODIES += [
    b'[{"error":{"message":"in a list"}}]',
    b"<html><title>502 Bad Gateway</title></html>",
    b"<html>",
    b"\0" * 100,
]


@pytest.mark.parametrize("body", UNKNOWN_BODIES, ids=range(len(UNKNOWN_BODIES)))
@pytest.mark.parametrize("status", [400, 418, 500, 599, 302])
def test_unknown_error_body_gives_error_class_of_status(status: int, body: bytes) -> None:
    error = status_error(ReplyHead(status), body)
    assert error.status_code == status
    assert type(error) is {400: BadRequestError, 500: InternalServerError, 599: InternalServerError}.get(
        status, APIStatusError
    )
    assert error.message
    assert str(status) in str(error)
    assert error.body == body.decode("utf-8", "replace")


@given(
    JSON.map(lambda value: json.dumps({"error": value}).encode()) | JSON.map(lambda value: json.dumps(value).encode())
)
@deterministic
def test_any_json_is_parsed_as_error_body(body: bytes) -> None:
    assert type(status_error(ReplyHead(429), body)) is RateLimitError
    assert isinstance(decode_event(body, "error").error, APIStatusError)


@pytest.mark.parametrize(
    "shape", ['{"error":{"code":%s}}', '{"error":%s}', '{"detail":[{"msg":%s}]}', '{"message":%s}', "%s"]
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deeply_nested_error_body_gives_error_class_of_status(shape: str, opening: str, closing: str) -> None:
    for depth in (10, *range(800, 1010, 2), 20_000):
        body = (shape % (opening * depth + "1" + closing * depth)).encode()
        assert type(status_error(ReplyHead(500), body)) is InternalServerError
        assert isinstance(decode_event(body, "error").error, APIStatusError)


COMPLETION = msgspec.json.Decoder(ChatCompletion)


def embedded_error(data: bytes, *headers: tuple[str, str]) -> APIStatusError | None:
    """Returns the error that is raised for a response with status 200, if any."""
    try:
        decode_reply(data, COMPLETION, ReplyHead(200, Headers(headers)))
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
        ({"error": {"message": "m", "code": "rate-limit-exceeded"}}, RateLimitError, 429),
        ({"error": {"message": "m", "status": "UNAUTHENTICATED"}}, AuthenticationError, 401),
        ({"error": {"message": "m", "type": "UnauthorizedError"}}, AuthenticationError, 401),
        ({"choices": [{"error": {"message": "m", "code": 502}}]}, InternalServerError, 502),
        ({"response": {"error": {"message": "m", "code": 429}}}, RateLimitError, 429),
        ({"code": 8, "message": "m", "details": []}, RateLimitError, 429),
        ({"code": 14, "message": "m", "details": []}, InternalServerError, 503),
        ({"code": 16, "message": "m", "details": []}, AuthenticationError, 401),
        *(
            ({"code": code, "message": "m", "details": []}, kind, status)
            for code, kind, status in (
                *((3, BadRequestError, 400), (4, InternalServerError, 504), (5, NotFoundError, 404)),
                *((6, ConflictError, 409), (7, PermissionDeniedError, 403), (13, InternalServerError, 500)),
            )
        ),
        ({"code": 7, "message": "m"}, APIStatusError, 200),  # not a code of gRPC
        ({"__type": "com.amazon.coral#ThrottlingException", "message": "m"}, RateLimitError, 429),
        ({"__type": "TooManyRequestsException", "message": "m"}, RateLimitError, 429),
        ({"statusCode": 404, "message": "m"}, NotFoundError, 404),
        ({"status": 429, "error": "Too Many Requests", "message": "m"}, RateLimitError, 429),
        ({"error": "Too Many Requests", "message": "m"}, RateLimitError, 429),
        ({"type": "about:blank", "title": "m", "status": 503}, InternalServerError, 503),
        ({"errcode": 503, "errmsg": "m"}, InternalServerError, 503),
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
def test_error_in_successful_response_raises_its_class(data: object, expected: type, status: int) -> None:
    error = embedded_error(json.dumps(data).encode(), ("x-request-id", "r"))
    assert error is not None
    assert type(error) is expected
    assert (error.status_code, error.message, error.request_id) == (status, "m", "r")
    event_error = decode_event(json.dumps(data).encode()).error
    assert event_error is not None
    assert (type(event_error), event_error.status_code, event_error.message, event_error.body) == (
        expected,
        status,
        "m",
        error.body,
    )


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (400, "invalid_request_error INVALID_ARGUMENT FAILED_PRECONDITION OUT_OF_RANGE ValidationException BadRequest"),
        (400, "BadArgument"),
        (400, "context_length_exceeded exceed_context_size_error"),
        (401, "authentication_error UNAUTHENTICATED invalid_api_key invalid_token ExpiredTokenException Unauthorized"),
        (402, "billing_error insufficient_credits payment_required"),
        (403, "permission_error PERMISSION_DENIED AccessDeniedException Forbidden"),
        (404, "not_found_error NOT_FOUND model_not_found ResourceNotFoundException"),
        (408, "RequestTimeout"),
        (409, "ABORTED ALREADY_EXISTS ConflictException"),
        (413, "request_too_large PayloadTooLarge"),
        (422, "UnprocessableEntityError validation_error"),
        (429, "rate_limit_error RateLimited insufficient_quota quota_exceeded RESOURCE_EXHAUSTED too_many_requests"),
        (429, "ThrottlingException rate_limit_exceeded"),
        (500, "api_error INTERNAL InternalServerError InternalServerException InternalFailure server_error"),
        (501, "UNIMPLEMENTED"),
        (502, "bad_gateway"),
        (503, "overloaded_error UNAVAILABLE ServiceUnavailableException server_overloaded"),
        (504, "timeout_error DEADLINE_EXCEEDED gateway_timeout"),
    ],
)
def test_name_of_an_error_gives_its_status(status: int, names: str) -> None:
    for name in names.split():
        error = embedded_error(json.dumps({"error": {"type": name, "message": "m"}}).encode())
        assert error is not None
        assert error.status_code == status, name


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("ERROR", "overloaded", 503),
        ("error", "429 Too Many Requests", 429),
        ("failed", "503", 503),
        ("error", "4096 tokens are the most", 200),
        (None, "Internal Server Error", 200),
    ],
)
def test_text_of_an_event_is_the_name_of_an_error_only_if_the_event_is_one(
    name: str | None, data: str, status: int
) -> None:
    in_reply = embedded_error(f"event: {name}\ndata: {data}".encode() if name else f"data: {data}".encode())
    for error in (in_reply, decode_event(data.encode(), name).error):
        assert error is not None
        assert (error.status_code, error.message) == (status, data)


def test_text_in_json_is_an_error_in_place_of_events_as_in_place_of_a_reply() -> None:
    data = b'"no workers"'
    for error in (embedded_error(data), not_a_stream(data, COMPLETION, ReplyHead(200))):
        assert isinstance(error, APIStatusError)
        assert error.message == "no workers"


def test_words_under_a_neutral_name_beside_an_error_code_are_its_message() -> None:
    data = b'{"errcode":503,"note":"quota exceeded"}'
    for error in (embedded_error(data), decode_event(data).error):
        assert isinstance(error, InternalServerError)
        assert (error.status_code, error.message) == (503, "note: quota exceeded")


@pytest.mark.parametrize(
    "data", [b"{}", b'{"error":null}', b'{"choices":[]}', b"[5]", b"", b"{cut", b'{"error":false}', b'""', b"[]"]
)
def test_successful_response_without_error_raises_none(data: bytes) -> None:
    assert embedded_error(data) is None


@pytest.mark.parametrize("data", [b"The answer is caf\xc3", b"\x00\x01binary stuff\xff", b"abc \xff\xfe\xfd"])
def test_undecodable_event_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(ResponseDecodeError):
        decode_event(data)


@pytest.mark.parametrize("data", [b'{"error":{}}', b'"error"', b'{"error":true}', b'{"object":"error"}'])
def test_error_without_message_shows_its_payload(data: bytes) -> None:
    for error in (embedded_error(data), decode_event(data).error):
        assert error is not None
        assert error.status_code == 200
        assert error.message in {data.decode(), "error"}
        assert error.body == data.decode()


@pytest.mark.parametrize("data", [b"boom", b"{}", b"", b'{"message":"boom"}', b'"boom"'])
@pytest.mark.parametrize("name", ["error", "Error", "stream_error", "exception", "fatal"])
def test_event_named_error_is_an_error_whatever_its_data(name: str, data: bytes) -> None:
    error = decode_event(data, name).error
    assert error is not None
    assert error.status_code == 200
    assert "boom" in error.message or b"boom" not in data
    assert len(error.body) <= 200
