"""Status codes: which error a status raises, its fields, the attempts in the metadata, and what is logged."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from aioresponses import aioresponses
from support.sockets import FAST_RETRY
from yarl import URL

import friendli_async as f

BASE: Final = "http://api.test"
CHAT: Final = f"{BASE}/serverless/v1/chat/completions"
TOOLS: Final = f"{BASE}/serverless/tools/v1/chat/completions"
MESSAGES: Final = [{"role": "user", "content": "a secret question"}]
REPLY: Final[dict[str, Any]] = {
    "id": "c",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a secret answer"}, "finish_reason": "stop"}],
}


@pytest.fixture
async def client() -> AsyncIterator[f.AsyncFriendli]:
    async with f.AsyncFriendli("secret-token", server_url=BASE, retry=FAST_RETRY) as client:
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


@pytest.mark.parametrize("status", [200, 201, 202, 206])
async def test_success_status_returns_the_reply(client: f.AsyncFriendli, mock: aioresponses, status: int) -> None:
    mock.post(CHAT, status=status, payload=REPLY)
    reply = await complete(client)
    assert reply.text == "a secret answer"
    assert reply.meta.status == status


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


# --- attempts --------------------------------------------------------------------------------------------------------


async def test_meta_of_a_success_lists_all_attempts(client: f.AsyncFriendli, mock: aioresponses) -> None:
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
    assert all(attempt.elapsed >= 0 for attempt in meta.attempts)
    assert meta.elapsed >= sum(attempt.elapsed for attempt in meta.attempts) - 1e-6
    assert (meta.status, meta.request_id) == (200, "third")


@pytest.mark.parametrize(
    ("retries", "attempts"), [(None, 2), (f.RetryPolicy(max_attempts=4, initial=0), 4)], ids=["None", "own"]
)
async def test_tool_assisted_chat_completion_uses_its_own_policy_or_that_of_the_client(
    client: f.AsyncFriendli, mock: aioresponses, retries: f.RetryPolicy | None, attempts: int
) -> None:
    mock.post(TOOLS, status=503, repeat=True)
    configured = client.with_options(retry=f.RetryPolicy(max_attempts=2, initial=0))
    with pytest.raises(f.SDKError):
        await configured.serverless.tool_assisted_chat_completion(
            tool_assisted_completion_request_body={"model": "m", "messages": MESSAGES}, retries=retries
        )
    assert len(calls(mock, TOOLS)) == attempts


# --- the log ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


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
