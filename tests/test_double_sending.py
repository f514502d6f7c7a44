"""Repeated requests, counted at the socket, and whether errors report them as sent."""

import asyncio
import gc

import pytest
from support.sockets import Conversation, RawServer, client_of, complete, completion, open_stream, reply, with_timeout

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    AsyncFriendli,
    ConfigurationError,
    RetryPolicy,
    StreamInterruptedError,
)
from friendli_async.testing import FriendliServer, Step, comment, cut, reset, script, status, text

pytestmark = pytest.mark.compatibility

QUICK = RetryPolicy(initial=0.0, max_attempts=3)


class Counting(RawServer):
    """Records requests and sends `answers` one by one; None closes the connection without a byte."""

    def __init__(self, *answers: bytes | None, closing: bool = False) -> None:
        self.answers = list(answers)
        self.closing = closing
        super().__init__(self.converse)

    async def converse(self, conversation: Conversation) -> None:
        while request := await conversation.request():
            self.requests.append(request)
            answer = self.answers.pop(0) if self.answers else None
            if answer is None:
                if self.closing:
                    self._server.close()
                return
            await conversation.send(answer)


@pytest.mark.parametrize("policy", [QUICK, None], ids=["retries", "no retries"])
@pytest.mark.parametrize("warm", [True, False], ids=["pooled", "fresh"])
async def test_accepted_request_stays_sent_regardless_of_later_failures(policy: RetryPolicy | None, warm: bool) -> None:
    async with (
        Counting(*([reply(completion())] if warm else []), closing=True) as server,
        client_of(server.url, retry=policy) as client,
    ):
        if warm:
            await complete(client)
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
        assert len(server.requests) == 1 + warm
        assert caught.value.sent is True


@pytest.mark.parametrize("policy", [None, QUICK], ids=["no retries", "retries"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("reply_start", [None, b"HTTP/1.1 200 OK\r\nContent-"], ids=["silent", "partial head"])
async def test_each_attempt_without_body_sends_one_request(
    method: str, policy: RetryPolicy | None, reply_start: bytes | None
) -> None:
    async def talk(conversation: Conversation) -> None:
        server.requests.append(await conversation.request())
        if reply_start is not None:
            await conversation.send(reply_start)

    async with RawServer(talk) as server, client_of(server.url, retry=policy) as client:
        endpoint = client.dedicated.endpoint
        call = {"GET": endpoint.get_status, "PUT": endpoint.restart, "DELETE": endpoint.delete}[method]
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(call("endpoint-id"))
        assert caught.value.meta is not None
        assert len(server.requests) == len(caught.value.meta.attempts) == (1 if policy is None else 3)
        assert all(request.startswith(method.encode()) for request in server.requests)


@pytest.mark.parametrize("policy", [None, QUICK], ids=["no retries", "retries"])
async def test_dead_pooled_connection_of_a_get_is_replaced_once(policy: RetryPolicy | None) -> None:
    async with (
        Counting(reply(completion()), None, reply(b'{"status": "RUNNING"}')) as server,
        client_of(server.url, retry=policy) as client,
    ):
        await complete(client)
        status = await with_timeout(client.dedicated.endpoint.get_status("endpoint-id"))
        assert len(status.meta.attempts) == 1
        assert (len(server.requests), server.connections) == (3, 2)


async def test_closing_the_client_after_an_accepted_attempt_stays_sent() -> None:
    async with Counting(reply(b"{}", status="500 Internal Server Error")) as server:
        closed: list[asyncio.Task[None]] = []
        policy = RetryPolicy(initial=0.0, on_retry=lambda _: closed.append(asyncio.ensure_future(client.aclose())))
        client = client_of(server.url, retry=policy)
        with pytest.raises((APIConnectionError, APIStatusError)) as caught:
            await with_timeout(complete(client))
        await asyncio.gather(*closed)
        assert not isinstance(caught.value, ConfigurationError)
        assert getattr(caught.value, "sent", True) is True


@pytest.mark.parametrize(
    "reply_start",
    [b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["partial head", "early hints", "continue"],
)
async def test_pooled_connection_that_started_a_reply_is_not_replaced(reply_start: bytes) -> None:
    async def talk(conversation: Conversation) -> None:
        server.requests.append(await conversation.request())
        await conversation.send(reply(completion()))
        server.requests.append(await conversation.request())
        await conversation.send(reply_start)

    async with RawServer(talk) as server, client_of(server.url, retry=None) as client:
        await complete(client)
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
        assert (len(server.requests), server.connections) == (2, 1)
        assert caught.value.sent is True


async def test_call_gets_one_replacement_and_then_fresh_connections() -> None:
    whole = reply(completion())
    async with Counting() as server, client_of(server.url, retry=QUICK) as client:
        server.answers = [whole] * 4
        await asyncio.gather(*[complete(client) for _ in range(4)])
        idle = server.connections
        assert idle == 4
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
        assert caught.value.meta is not None
        assert len(caught.value.meta.attempts) == 3
        assert len(server.requests) == 4 + 3 + 1  # three attempts, and the one replacement
        assert server.connections == idle + 3


async def test_truncated_plain_reply_is_not_retried() -> None:
    async def talk(conversation: Conversation) -> None:
        server.requests.append(await conversation.request())
        await conversation.send(reply(completion())[:-10])

    async with RawServer(talk) as server, client_of(server.url, retry=QUICK) as client:
        with pytest.raises(APIConnectionError):
            await with_timeout(complete(client))
        assert len(server.requests) == 1


async def test_failed_calls_leave_no_reference_cycles(server: FriendliServer) -> None:
    server.always(status(400))
    async with client_of(server.url, retry=None) as client:

        async def failing() -> None:
            with pytest.raises(APIStatusError):
                await complete(client)

        def calls_and_errors() -> set[int]:
            return {id(each) for each in gc.get_objects() if type(each).__name__ in {"Call", "BadRequestError"}}

        await failing()
        gc.collect()
        gc.disable()
        try:
            before = calls_and_errors()
            for _ in range(5):
                await failing()
            leaked = calls_and_errors() - before
        finally:
            gc.enable()
    assert leaked == set()


async def test_stream_of_another_event_loop_is_rejected_unchanged(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    async with open_stream(client) as stream:
        caught: list[str] = []

        def elsewhere() -> None:
            for attempt in (stream.aclose, stream.__anext__):
                assert stream._open is not None
                stream._open.reader.ready.clear()
                try:
                    asyncio.run(_await(attempt()))
                except RuntimeError as error:
                    caught.append(str(error))

        await asyncio.to_thread(elsewhere)
        assert ["another event loop" in text for text in caught] == [True, True]
        assert stream.outcome == "open"


async def _await(awaitable: object) -> None:
    await awaitable  # type: ignore[misc]  # a coroutine of either method


async def test_awaiting_a_plain_tool_assisted_completion_twice_is_rejected(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    call = client.serverless.tool_assisted_chat_completion(
        tool_assisted_completion_request_body={
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": False,
        }
    )
    await call
    with pytest.raises(RuntimeError, match="already"):
        await call
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url", ["http://a..b", "http://" + "x" * 64 + ".example", "http://xn--", "http://bücher.example"], ids=str
)
async def test_invalid_host_name_raises_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        async with client_of(url, retry=None) as client:
            await with_timeout(complete(client))


@pytest.mark.parametrize("proxy", ["http://", "http://x y", "ftp://h", "http://h:0"], ids=str)
def test_invalid_proxy_raises_configuration_error(proxy: str) -> None:
    with pytest.raises(ConfigurationError):
        AsyncFriendli("t", proxy=proxy)


async def test_error_with_non_utf8_headers_can_be_printed() -> None:
    answer = reply(b"{}", status="400 Bad Request").replace(b"\r\n\r\n", b"\r\nx-request-id: \xff\xe9\r\n\r\n", 1)
    async with Counting(answer) as server, client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await with_timeout(complete(client))
        assert str(caught.value).encode()


@pytest.mark.parametrize("ending", [[reset()], [cut()], []], ids=["reset", "cut", "end"])
async def test_stream_cut_before_its_first_event_is_truncated_or_retried(
    server: FriendliServer, ending: list[Step]
) -> None:
    broken = script(comment("ping"), *ending)
    async with client_of(server.url) as without_retry, client_of(server.url, retry=QUICK) as with_retry:
        server.enqueue(broken, broken, text("whole"))
        stream = open_stream(without_retry)
        with pytest.raises(StreamInterruptedError) as caught:
            await with_timeout(stream)
        assert (stream.outcome, caught.value.sent) == ("truncated", True)
        assert (await with_timeout(open_stream(with_retry).result())).text == "whole"
    assert len(server.requests) == 3
