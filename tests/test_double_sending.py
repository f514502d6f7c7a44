"""What goes out twice, and what an error says of it: the requests are counted at the socket."""

import asyncio
import gc

import pytest
from support.sockets import Conversation, RawServer, ask, client_of, complete, completion, reply, within

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    AsyncFriendli,
    ConfigurationError,
    RetryPolicy,
    StreamInterruptedError,
)
from friendli_async.testing import FriendliServer, Step, comment, cut, end, reset, script, status, text

pytestmark = pytest.mark.compatibility

QUICK = RetryPolicy(initial=0.0, max_attempts=3)


class Counting(RawServer):
    """Answers what `answers` holds, one by one; None closes the connection without a byte."""

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
async def test_an_accepted_request_stays_sent_however_the_later_attempts_fail(
    policy: RetryPolicy | None, warm: bool
) -> None:
    async with (
        Counting(*([reply(completion())] if warm else []), closing=True) as server,
        client_of(server.url, retry=policy) as client,
    ):
        if warm:
            await complete(client)
        with pytest.raises(APIConnectionError) as caught:
            await within(complete(client))
        assert len(server.requests) == 1 + warm
        assert caught.value.sent is True


async def test_closing_the_client_after_an_accepted_attempt_does_not_claim_that_nothing_was_sent() -> None:
    async with Counting(reply(b"{}", status="500 Internal Server Error")) as server:
        closed: list[asyncio.Task[None]] = []
        policy = RetryPolicy(initial=0.0, on_retry=lambda _: closed.append(asyncio.ensure_future(client.aclose())))
        client = client_of(server.url, retry=policy)
        with pytest.raises((APIConnectionError, APIStatusError)) as caught:
            await within(complete(client))
        await asyncio.gather(*closed)
        assert not isinstance(caught.value, ConfigurationError)
        assert getattr(caught.value, "sent", True) is True


@pytest.mark.parametrize(
    "bytes_of_a_reply",
    [b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["half a head", "early hints", "continue"],
)
async def test_a_pooled_connection_that_began_to_answer_is_not_replaced(bytes_of_a_reply: bytes) -> None:
    async def talk(conversation: Conversation) -> None:
        server.requests.append(await conversation.request())
        await conversation.send(reply(completion()))
        server.requests.append(await conversation.request())
        await conversation.send(bytes_of_a_reply)

    async with RawServer(talk) as server, client_of(server.url, retry=None) as client:
        await complete(client)
        with pytest.raises(APIConnectionError) as caught:
            await within(complete(client))
        assert (len(server.requests), server.connections) == (2, 1)
        assert caught.value.sent is True


async def test_one_replacement_is_for_the_whole_call_and_what_follows_uses_fresh_connections() -> None:
    whole = reply(completion())
    async with Counting() as server, client_of(server.url, retry=QUICK) as client:
        server.answers = [whole] * 4
        await asyncio.gather(*[complete(client) for _ in range(4)])
        idle = server.connections
        assert idle == 4
        with pytest.raises(APIConnectionError) as caught:
            await within(complete(client))
        assert caught.value.meta is not None
        assert len(caught.value.meta.attempts) == 3
        assert len(server.requests) == 4 + 3 + 1  # three attempts, and the one replacement
        assert server.connections == idle + 3


async def test_a_plain_reply_that_began_and_broke_off_is_not_asked_for_again() -> None:
    async def talk(conversation: Conversation) -> None:
        server.requests.append(await conversation.request())
        await conversation.send(reply(completion())[:-10])

    async with RawServer(talk) as server, client_of(server.url, retry=QUICK) as client:
        with pytest.raises(APIConnectionError):
            await within(complete(client))
        assert len(server.requests) == 1


async def test_failing_calls_leave_no_cycles_that_hold_their_requests(server: FriendliServer) -> None:
    server.always(status(400))
    async with client_of(server.url, retry=None) as client:

        async def failing() -> None:
            with pytest.raises(APIStatusError):
                await complete(client)

        def calls_and_errors() -> set[int]:
            return {id(thing) for thing in gc.get_objects() if type(thing).__name__ in {"Call", "BadRequestError"}}

        await failing()
        gc.collect()
        gc.disable()
        try:
            before = calls_and_errors()
            for _ in range(5):
                await failing()
            left = calls_and_errors() - before
        finally:
            gc.enable()
    assert left == set()


async def test_a_stream_of_another_loop_is_refused_before_anything_happens(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    async with ask(client) as stream:
        caught: list[str] = []

        def elsewhere() -> None:
            for attempt in (stream.aclose, stream.__anext__):
                while stream._open.reader.ready:
                    stream._open.reader.ready.popleft()
                try:
                    asyncio.run(_await(attempt()))
                except RuntimeError as error:
                    caught.append(str(error))

        await asyncio.to_thread(elsewhere)
        assert ["another event loop" in text for text in caught] == [True, True]
        assert stream.outcome == "open"


async def _await(awaitable: object) -> None:
    await awaitable  # type: ignore[misc]  # a coroutine of either method


async def test_awaiting_the_plain_form_of_the_seed_operation_twice_is_refused(
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


@pytest.mark.parametrize("url", ["http://a..b", "http://" + "x" * 64 + ".example", "http://xn--"], ids=str)
async def test_a_host_name_that_is_none_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        async with client_of(url, retry=None) as client:
            await within(complete(client))


async def test_a_host_name_beyond_ascii_goes_out_as_it_is_on_the_wire() -> None:
    client = client_of("http://bücher.invalid/v")
    assert "http://xn--bcher-kva.invalid/v" in repr(client)
    await client.aclose()


@pytest.mark.parametrize("proxy", ["http://", "http://x y", "ftp://h", "http://h:0"], ids=str)
def test_a_proxy_that_is_none_is_a_configuration_error(proxy: str) -> None:
    with pytest.raises(ConfigurationError):
        AsyncFriendli("t", proxy=proxy)


async def test_headers_that_are_no_text_can_be_printed() -> None:
    answer = reply(b"{}", status="400 Bad Request").replace(b"\r\n\r\n", b"\r\nx-request-id: \xff\xe9\r\n\r\n", 1)
    async with Counting(answer) as server, client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await within(complete(client))
        assert str(caught.value).encode()


@pytest.mark.parametrize("ending", [reset(), cut(), end()], ids=["reset", "cut", "end"])
async def test_a_stream_cut_before_its_first_event_is_truncated_and_is_tried_again_where_that_is_on(
    server: FriendliServer, ending: Step
) -> None:
    broken = script(comment("ping"), ending)
    async with client_of(server.url) as once, client_of(server.url, retry=QUICK) as again:
        server.enqueue(broken, broken, text("whole"))
        stream = ask(once)
        with pytest.raises(StreamInterruptedError) as caught:
            await within(stream)
        assert (stream.outcome, caught.value.sent) == ("truncated", True)
        assert (await within(ask(again).result())).text == "whole"
    assert len(server.requests) == 3
