"""Status codes and retries: which error a status raises, its fields, the number of attempts, and the waits."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import pytest
from aioresponses import aioresponses
from yarl import URL

import friendli_async as f
from friendli_async._core import call as engine_module
from friendli_async.replies import Attempt

BASE: Final = "http://api.test"
CHAT: Final = f"{BASE}/serverless/v1/chat/completions"
TOOLS: Final = f"{BASE}/serverless/tools/v1/chat/completions"
MESSAGES: Final = [{"role": "user", "content": "a secret question"}]
REPLY: Final[dict[str, Any]] = {
    "id": "c",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a secret answer"}, "finish_reason": "stop"}],
}
STREAMED: Final = 'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
RETRIED: Final = [408, 429, 500, 502, 503, 504]
NOT_RETRIED: Final = [
    400,
    401,
    402,
    403,
    404,
    405,
    409,
    410,
    413,
    418,
    422,
    425,
    451,
    499,
    501,
    505,
    507,
    520,
    529,
    599,
]


@dataclass
class FakeSleep:
    """Replaces `asyncio.sleep` in the engine: records the durations, and takes no time."""

    durations: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.durations.append(seconds)


@pytest.fixture
def fake_sleep(monkeypatch: pytest.MonkeyPatch) -> FakeSleep:
    fake_sleep = FakeSleep()
    names = {name: getattr(asyncio, name) for name in dir(asyncio)}
    monkeypatch.setattr(engine_module, "asyncio", SimpleNamespace(**{**names, "sleep": fake_sleep}))
    return fake_sleep


@pytest.fixture
async def client(fake_sleep: FakeSleep) -> AsyncIterator[f.AsyncFriendli]:
    async with f.AsyncFriendli("secret-token", server_url=BASE) as client:
        yield client


@pytest.fixture
def mock(mock_http: aioresponses) -> aioresponses:
    return mock_http


def calls(mock: aioresponses, url: str = CHAT) -> list[Any]:
    return mock.requests.get(("POST", URL(url)), [])


async def complete(client: f.AsyncFriendli, **options: Any) -> f.ChatCompletion:
    return await client.serverless.chat.complete(model="m", messages=MESSAGES, **options)


async def failure(client: f.AsyncFriendli) -> f.APIStatusError:
    with pytest.raises(f.APIStatusError) as raised:
        await complete(client)
    return raised.value


# --- error classes ---------------------------------------------------------------------------------------------------

CLASSES: Final = {
    **dict.fromkeys(
        [300, 301, 302, 303, 304, 305, 307, 308, 402, 405, 408, 410, 413, 418, 425, 451, 499], f.APIStatusError
    ),
    400: f.BadRequestError,
    401: f.AuthenticationError,
    403: f.PermissionDeniedError,
    404: f.NotFoundError,
    409: f.ConflictError,
    422: f.UnprocessableEntityError,
    429: f.RateLimitError,
    **dict.fromkeys([500, 501, 502, 503, 504, 505, 507, 520, 529, 599], f.InternalServerError),
}


@pytest.mark.parametrize("status", CLASSES)
async def test_status_raises_its_error_class(client: f.AsyncFriendli, mock: aioresponses, status: int) -> None:
    mock.post(CHAT, status=status, payload={"error": {"message": "no"}}, repeat=True)
    error = await failure(client)
    assert type(error) is CLASSES[status]
    assert error.status_code == status
    assert error.meta is not None
    assert error.meta.status == status
    assert error.message == "no"
    assert str(status) in str(error)


@pytest.mark.parametrize("status", CLASSES)
async def test_opening_a_stream_raises_the_error_class_of_the_status(
    client: f.AsyncFriendli, mock: aioresponses, status: int
) -> None:
    mock.post(CHAT, status=status, payload={"error": {"message": "no"}}, repeat=True)
    stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
    with pytest.raises(CLASSES[status]) as raised:
        await stream
    assert type(raised.value) is CLASSES[status]
    assert raised.value.meta == stream.meta
    assert stream.outcome == "failed"


@pytest.mark.parametrize("status", [200, 201, 202, 206])
async def test_success_status_returns_the_reply(client: f.AsyncFriendli, mock: aioresponses, status: int) -> None:
    mock.post(CHAT, status=status, payload=REPLY)
    reply = await complete(client)
    assert reply.text == "a secret answer"
    assert reply.meta.status == status


async def test_sdk_error_is_an_alias_of_api_status_error(client: f.AsyncFriendli, mock: aioresponses) -> None:
    mock.post(CHAT, status=404)
    with pytest.raises(f.SDKError) as raised:
        await complete(client)
    assert f.SDKError is f.APIStatusError
    assert type(raised.value) is f.NotFoundError


# --- error fields ----------------------------------------------------------------------------------------------------


async def test_error_fields_are_read_from_the_body(client: f.AsyncFriendli, mock: aioresponses) -> None:
    body = {"type": "error", "error": {"type": "t", "code": 400, "message": "m"}, "request_id": "of the body"}
    mock.post(CHAT, status=418, payload=body)
    error = await failure(client)
    assert (error.message, error.code, error.type, error.request_id) == ("m", "400", "t", "of the body")
    assert (error.retry_after, error.partial, json.loads(error.body)) == (None, None, body)


async def test_error_body_is_read_by_its_content_type(client: f.AsyncFriendli, mock: aioresponses) -> None:
    mock.post(CHAT, status=418, body="<title>Bad Gateway</title>\nmore", content_type="text/html")
    error = await failure(client)
    assert (error.message, error.body) == ("Bad Gateway", "<title>Bad Gateway</title>\nmore")


async def test_request_id_header_takes_precedence_and_is_shown(client: f.AsyncFriendli, mock: aioresponses) -> None:
    mock.post(CHAT, status=403, payload={"request_id": "of the body"}, headers={"X-Request-Id": "req-7"})
    error = await failure(client)
    assert error.request_id == "req-7"
    assert "req-7" in str(error)
    assert error.meta is not None
    assert error.meta.request_id == "req-7"
    assert error.meta.headers["x-request-id"] == "req-7"


# --- Retry-After -----------------------------------------------------------------------------------------------------


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


WAITS: Final = {
    "seconds": ({"Retry-After": "2"}, 2.0),
    "fraction": ({"Retry-After": "1.5"}, 1.5),
    "zero": ({"Retry-After": "0"}, 0.0),
    "milliseconds": ({"retry-after-ms": "250"}, 0.25),
    "milliseconds override seconds": ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
    "invalid milliseconds, then seconds": ({"retry-after-ms": "soon", "Retry-After": "3"}, 3.0),
    "date in the past": ({"Retry-After": http_date(-60)}, 0.0),
    "maximum": ({"Retry-After": "60"}, 60.0),
}


@pytest.mark.parametrize(("headers", "retry_after"), WAITS.values(), ids=WAITS)
async def test_retry_after_is_the_minimum_wait(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep, headers: dict[str, str], retry_after: float
) -> None:
    mock.post(CHAT, status=429, headers=headers)
    mock.post(CHAT, payload=REPLY)
    reply = await complete(client)
    [wait] = fake_sleep.durations
    assert retry_after <= wait <= retry_after + f.RetryPolicy().initial
    assert [attempt.wait for attempt in reply.meta.attempts] == [wait, 0.0]


async def test_retry_after_date_is_honored(client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep) -> None:
    mock.post(CHAT, status=503, headers={"Retry-After": http_date(10)})
    mock.post(CHAT, payload=REPLY)
    await complete(client)
    assert 8.0 <= fake_sleep.durations[0] <= 10.5  # dates have a resolution of one second


@pytest.mark.parametrize("value", ["soon", "", "-1", "inf", "nan", "1e999", "12 34", "Wed, 99 Foo 2020"])
async def test_invalid_retry_after_is_ignored(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep, value: str
) -> None:
    mock.post(CHAT, status=429, headers={"Retry-After": value})
    mock.post(CHAT, payload=REPLY)
    await complete(client)
    [wait] = fake_sleep.durations
    assert 0 <= wait <= f.RetryPolicy().initial


@pytest.mark.parametrize(
    ("header", "retry_after"),
    [({"Retry-After": "61"}, 61.0), ({"Retry-After": "3600"}, 3600.0), ({"retry-after-ms": "60500"}, 60.5)],
)
async def test_retry_after_beyond_the_maximum_raises_immediately(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep, header: dict[str, str], retry_after: float
) -> None:
    mock.post(CHAT, status=429, headers=header, repeat=True)
    error = await failure(client)
    assert isinstance(error, f.RateLimitError)
    assert error.retry_after == retry_after
    assert fake_sleep.durations == []
    assert len(calls(mock)) == 1


async def test_policy_sets_the_maximum_retry_after(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep
) -> None:
    patient = client.with_options(retry=f.RetryPolicy(max_retry_after=7200))
    mock.post(CHAT, status=429, headers={"Retry-After": "3600"})
    mock.post(CHAT, payload=REPLY)
    await complete(patient)
    assert 3600 <= fake_sleep.durations[0] <= 3600.5


async def test_retry_after_beyond_the_total_timeout_raises_immediately(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep
) -> None:
    mock.post(CHAT, status=503, headers={"Retry-After": "30"}, repeat=True)
    error = await failure(client.with_options(timeout=20))
    assert error.retry_after == 30
    assert fake_sleep.durations == []
    assert len(calls(mock)) == 1


# --- attempts and waits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [*RETRIED, *NOT_RETRIED])
@pytest.mark.parametrize("streamed", [False, True], ids=["complete", "stream"])
async def test_number_of_attempts_depends_on_the_status(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep, status: int, streamed: bool
) -> None:
    mock.post(CHAT, status=status, repeat=True)
    call = client.serverless.chat.stream(model="m", messages=MESSAGES) if streamed else complete(client)
    with pytest.raises(f.APIStatusError) as raised:
        await call
    attempts = 3 if status in RETRIED else 1
    assert len(calls(mock)) == attempts
    assert len(fake_sleep.durations) == attempts - 1
    meta = raised.value.meta
    assert meta is not None
    assert [attempt.status for attempt in meta.attempts] == [status] * attempts


@pytest.mark.parametrize("status", RETRIED)
async def test_stream_is_retried_transparently_before_its_first_event(
    client: f.AsyncFriendli, mock: aioresponses, status: int
) -> None:
    mock.post(CHAT, status=status)
    mock.post(CHAT, body=STREAMED, content_type="text/event-stream")
    async with client.serverless.chat.stream(model="m", messages=MESSAGES) as stream:
        assert [chunk.text async for chunk in stream] == ["Hi"]
    assert [attempt.status for attempt in stream.meta.attempts] == [status, 200]


@pytest.mark.parametrize("status", RETRIED)
async def test_no_policy_means_one_attempt(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep, status: int
) -> None:
    mock.post(CHAT, status=status, headers={"Retry-After": "0"}, repeat=True)
    await failure(client.with_options(retry=None))
    async with f.AsyncFriendli("t", server_url=BASE, retry=None) as other:
        await failure(other)
    assert len(calls(mock)) == 2
    assert fake_sleep.durations == []


@pytest.mark.parametrize("statuses", [set(), {429}, {500, 503}, set(RETRIED)], ids=str)
async def test_statuses_option_restricts_what_is_retried(
    client: f.AsyncFriendli, mock: aioresponses, statuses: set[int]
) -> None:
    narrow = client.with_options(retry=f.RetryPolicy(max_attempts=2, statuses=statuses))
    tried: set[int] = set()
    for status in RETRIED:
        mock.post(CHAT, status=status)
        mock.post(CHAT, status=418)
        error = await failure(narrow)
        tried |= {status} if error.status_code == 418 else set()
        mock.clear()
    assert tried == statuses


async def test_meta_of_a_success_lists_all_attempts(
    client: f.AsyncFriendli, mock: aioresponses, fake_sleep: FakeSleep
) -> None:
    mock.post(CHAT, status=500, headers={"X-Request-Id": "first"})
    mock.post(CHAT, status=429, payload={"error": {"message": "slow down"}})
    mock.post(CHAT, payload=REPLY, headers={"X-Request-Id": "third"})
    meta = (await complete(client)).meta
    assert [attempt.status for attempt in meta.attempts] == [500, 429, 200]
    causes = [attempt.cause for attempt in meta.attempts]
    assert str(causes[0]).startswith("InternalServerError: ")
    assert "RateLimitError" in str(causes[1])
    assert "slow down" in str(causes[1])
    assert causes[2] is None
    assert [attempt.wait for attempt in meta.attempts] == [*fake_sleep.durations, 0.0]
    assert all(attempt.elapsed >= 0 for attempt in meta.attempts)
    assert meta.elapsed >= sum(attempt.elapsed for attempt in meta.attempts) - 1e-6
    assert (meta.status, meta.request_id) == (200, "third")


async def test_later_non_retryable_status_ends_the_retries(client: f.AsyncFriendli, mock: aioresponses) -> None:
    mock.post(CHAT, status=503)
    mock.post(CHAT, status=401)
    mock.post(CHAT, payload=REPLY)
    error = await failure(client)
    assert isinstance(error, f.AuthenticationError)
    assert error.meta is not None
    assert [attempt.status for attempt in error.meta.attempts] == [503, 401]
    assert len(calls(mock)) == 2


@pytest.mark.parametrize(("retries", "attempts"), [(None, 2), (f.RetryPolicy(max_attempts=4), 4)], ids=["None", "own"])
async def test_tool_assisted_chat_completion_uses_its_own_policy_or_that_of_the_client(
    client: f.AsyncFriendli, mock: aioresponses, retries: f.RetryPolicy | None, attempts: int
) -> None:
    mock.post(TOOLS, status=503, repeat=True)
    configured = client.with_options(retry=f.RetryPolicy(max_attempts=2))
    with pytest.raises(f.SDKError):
        await configured.serverless.tool_assisted_chat_completion(
            tool_assisted_completion_request_body={"model": "m", "messages": MESSAGES}, retries=retries
        )
    assert len(calls(mock, TOOLS)) == attempts


# --- on_retry and the log --------------------------------------------------------------------------------------------


async def test_on_retry_is_not_called_without_a_retry(client: f.AsyncFriendli, mock: aioresponses) -> None:
    reported: list[Attempt] = []
    configured = client.with_options(retry=f.RetryPolicy(on_retry=reported.append))
    mock.post(CHAT, payload=REPLY)
    await complete(configured)
    mock.post(CHAT, status=400)
    await failure(configured)
    mock.post(CHAT, status=429, headers={"Retry-After": "3600"})
    await failure(configured)
    assert reported == []


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (aiohttp.ServerDisconnectedError(), "APIConnectionError: could not connect: the server closed the connection"),
        (aiohttp.ConnectionTimeoutError(), "APITimeoutError: no connection within 5 s (connect: connecting to "),
    ],
    ids=["connection", "timeout"],
)
async def test_log_says_why_there_was_no_reply(
    client: f.AsyncFriendli,
    mock: aioresponses,
    log: pytest.LogCaptureFixture,
    fake_sleep: FakeSleep,
    raised: Exception,
    reason: str,
) -> None:
    mock.post(CHAT, exception=raised)
    mock.post(CHAT, payload=REPLY)
    await complete(client)
    first, retry, _ = (record.getMessage() for record in log.records if record.name == "friendli_async")
    assert f"no reply, {reason}" in first
    assert f" after {reason}" in retry


async def test_nothing_is_logged_at_warning_level(
    client: f.AsyncFriendli, mock: aioresponses, caplog: pytest.LogCaptureFixture
) -> None:
    mock.post(CHAT, status=503)
    mock.post(CHAT, payload=REPLY)
    with caplog.at_level(logging.WARNING):
        await complete(client)
    assert caplog.records == []


@pytest.mark.parametrize("status", [200, 401, 503])
async def test_log_and_errors_never_contain_headers_query_bodies_or_the_token(
    client: f.AsyncFriendli, mock: aioresponses, log: pytest.LogCaptureFixture, status: int
) -> None:
    configured = client.with_options(team="secret-team", headers={"X-Secret": "secret-header"})
    url = f"{CHAT}?key=secret-query"
    mock.post(url, status=status, payload=REPLY, headers={"X-Reply": "secret-reply"}, repeat=True)
    shown = [repr(configured), repr(configured.serverless.chat)]
    try:
        await complete(configured, extra_query={"key": "secret-query"}, extra_body={"more": "secret-body"})
    except f.APIStatusError as error:
        shown += [str(error), repr(error), repr(error.meta.attempts if error.meta else None)]
    assert calls(mock, url)
    text = log.text + "".join(f"{record.args}{record.exc_text}" for record in log.records) + "".join(shown)
    assert "secret" not in text
    assert "friendli_async" in log.text
