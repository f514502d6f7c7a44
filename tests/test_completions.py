"""Completions: inputs, replies, streams and their dialects, and the replies of a real engine."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec
import pytest

from friendli_async import (
    AsyncFriendli,
    ResponseDecodeError,
    RetryPolicy,
    StreamInterruptedError,
    UnprocessableEntityError,
)
from friendli_async.completions import (
    TextCompletion,
    TextCompletionChoice,
    TextCompletionChunk,
    TextCompletionChunkChoice,
    TextCompletionLogprobs,
)
from friendli_async.demo.engine import LocalEngine
from friendli_async.replies import Usage
from friendli_async.testing import (
    FriendliServer,
    comment,
    done,
    event,
    json_body,
    raw,
    reset,
    script,
    status,
)

DEPLOYMENTS: Final = ["serverless", "dedicated", "container"]
each_deployment: Final = pytest.mark.parametrize("deployment", DEPLOYMENTS)

HEAD: Final = {"id": "c1", "object": "text_completion", "created": 1700000000, "model": "m"}
COUNTS: Final = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
REPLY: Final[dict[str, Any]] = {
    **HEAD,
    "choices": [
        {
            "index": 0,
            "text": " such as",
            "finish_reason": "length",
            "seed": 7,
            "tokens": [1778, 439],
            "logprobs": {
                "tokens": [" such", " as"],
                "token_logprobs": [None, -0.5],
                "top_logprobs": [None, {" as": -0.5, " like": -1.5}],
                "text_offset": [0, 5],
            },
        }
    ],
    "usage": COUNTS,
}


def chunk(text: str | None = None, **choice: Any) -> Any:
    """Returns an event with one choice."""
    given = {} if text is None else {"text": text}
    return event({**HEAD, "choices": [{"index": 0, **given, **choice}]})


USAGE: Final = event({**HEAD, "choices": [], "usage": COUNTS})
FINISH: Final = chunk("", finish_reason="stop")


@pytest.fixture
def client_options() -> dict[str, Any]:
    return {"retry": RetryPolicy(max_attempts=2, initial=0.0)}


def resource(client: AsyncFriendli, deployment: str = "serverless") -> Any:
    return getattr(client, deployment).completions


def both_methods(client: AsyncFriendli, **options: Any) -> Iterator[Callable[[], Awaitable[Any]]]:
    """Yields a call of each of the two methods."""
    yield lambda: resource(client).complete(**{"model": "m", **options})
    yield lambda: resource(client).stream(**{"model": "m", **options}).result()


# --- inputs ----------------------------------------------------------------------------------------------------------


async def test_exactly_one_of_prompt_and_tokens_is_required(client: AsyncFriendli, server: FriendliServer) -> None:
    for deployment in DEPLOYMENTS:
        completions = resource(client, deployment)
        for method in ("complete", "stream"):
            with pytest.raises(TypeError, match=rf"^{method}\(\) needs 'prompt' or 'tokens'$"):
                await getattr(completions, method)(model="m")
            with pytest.raises(TypeError, match=rf"^{method}\(\) needs 'prompt' or 'tokens'$"):
                await getattr(completions, method)(model="m", prompt=None, tokens=None)
            with pytest.raises(TypeError, match=rf"^{method}\(\) takes either 'prompt' or 'tokens', not both$"):
                await getattr(completions, method)(model="m", prompt="Hi", tokens=[1])
    assert server.requests == []


async def test_prompt_in_extra_body_is_passed_through(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body(REPLY))
    await client.container.completions.complete(extra_body={"prompt": [[1, 2], "Hi"]})
    assert server.requests[0].json == {"prompt": [[1, 2], "Hi"]}


async def test_model_is_required_except_for_containers(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(json_body(REPLY))
    for deployment in ("serverless", "dedicated"):
        with pytest.raises(TypeError, match="model"):
            await resource(client, deployment).complete(prompt="Hi")
        with pytest.raises(TypeError, match="model"):
            resource(client, deployment).stream(prompt="Hi")
    assert server.requests == []
    await client.container.completions.complete(prompt="Hi")
    await client.container.completions.complete(model=None, tokens=(1, 2))
    await client.container.completions.complete(model="adapter", prompt=("a", "b"))
    assert [request.json for request in server.requests] == [
        {"prompt": "Hi"},
        {"tokens": [1, 2]},
        {"model": "adapter", "prompt": ["a", "b"]},
    ]


INVALID: Final[list[tuple[dict[str, Any], str]]] = [
    ({"model": 5}, r"^model: Expected `str`"),
    ({"prompt": 5}, r"^prompt: "),
    ({"prompt": ["a", 5]}, r"^prompt\[1\]: "),
    ({"prompt": b"Hi"}, r"^prompt: "),
    ({"prompt": None, "tokens": "12"}, r"^tokens: "),
    ({"prompt": None, "tokens": [1, 2.5]}, r"^tokens\[1\]: "),
    ({"bad_word_tokens": [{"tokens": [1]}, [2]]}, r"^bad_word_tokens\[1\]: "),
    ({"stop_tokens": [{"tokens": ["a"]}]}, r"^stop_tokens\[0\].tokens\[0\]: "),
    ({"bad_words": "word"}, r"^bad_words: "),
    ({"embedding_to_replace": [0.5, "x"]}, r"^embedding_to_replace\[1\]: "),
    ({"logprobs": True}, r"^logprobs: "),
    ({"max_tokens": "5"}, r"^max_tokens: "),
    ({"seed": 1.5}, r"^seed: "),
    ({"temperature": float("inf")}, r"^temperature: inf is not valid JSON"),
    ({"response_format": {"type": "jsn"}}, r"^response_format.type: "),
    ({"response_format": {"type": "regex"}}, r"^response_format: .*`schema`"),
    ({"response_format": {"type": "json_schema", "json_schema": 5}}, r"^response_format.json_schema: "),
    ({"stream_options": {"include_usage": 1}}, r"^stream_options.include_usage: "),
    ({"extra_body": {"stream": True}}, r"^extra_body.stream: "),
]


@pytest.mark.parametrize(
    ("options", "message"), INVALID, ids=[f"{i}-{next(reversed(e[0]))}" for i, e in enumerate(INVALID)]
)
async def test_invalid_value_is_rejected_with_its_path_before_sending(
    client: AsyncFriendli, server: FriendliServer, options: dict[str, Any], message: str
) -> None:
    for run in both_methods(client, **{"prompt": "Hi", **options}):
        with pytest.raises(ValueError, match=message):
            await run()
    assert server.requests == []


async def test_unknown_nested_keys_are_sent_and_none_becomes_null(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(json_body(REPLY))
    sent = {"stop_tokens": [{"tokens": None, "later": 1}], "response_format": {"type": "text", "later": 1}, "n": None}
    await resource(client).complete(model="m", prompt="Hi", **sent)
    assert server.requests[0].json == {"model": "m", "prompt": "Hi", **sent}


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, None),
        ({"stream_options": {"include_usage": False}}, {"include_usage": False}),
        ({"extra_body": {"stream_options": {"later": 1}}}, {"later": 1}),
    ],
    ids=["omitted", "null", "false", "extra body"],
)
async def test_stream_requests_usage_by_default(
    client: AsyncFriendli, server: FriendliServer, options: dict[str, Any], sent: object
) -> None:
    server.enqueue(script(chunk("a"), FINISH, done()))
    await resource(client).stream(model="m", prompt="Hi", **options).result()
    assert server.requests[0].json == {"model": "m", "prompt": "Hi", "stream": True, "stream_options": sent}
    assert server.requests[0].headers["Accept"] == "text/event-stream"


# --- plain replies ---------------------------------------------------------------------------------------------------


@each_deployment
async def test_reply_is_decoded_completely(client: AsyncFriendli, server: FriendliServer, deployment: str) -> None:
    server.enqueue(json_body({**REPLY, "added later": 1}))
    reply = await resource(client, deployment).complete(model="m", prompt="Hi")
    assert type(reply) is TextCompletion
    assert reply.text == " such as"
    assert reply.usage == Usage(1, 2, 3)
    assert reply.choices[0].tokens == (1778, 439)
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.top_logprobs == (None, {" as": -0.5, " like": -1.5})
    assert msgspec.json.decode(msgspec.json.encode(reply)) == REPLY
    assert reply.meta.status == 200
    [received] = server.requests
    prefix = "" if deployment == "container" else f"/{deployment}"
    assert (received.method, received.path) == ("POST", f"{prefix}/v1/completions")


async def test_minimal_reply_and_unknown_finish_reason_are_decoded(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(json_body({"choices": [{"text": None, "finish_reason": "later"}]}))
    reply = await resource(client).complete(model="m", prompt="Hi")
    assert reply.choices == (TextCompletionChoice(0, "", "later"),)
    assert msgspec.json.encode(reply) == b'{"choices":[{"index":0,"text":"","finish_reason":"later"}]}'


async def test_call_and_stream_are_retried_even_if_possibly_accepted(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(status(502), json_body(REPLY), reset(), json_body(REPLY), status(500), script(chunk("a"), FINISH))
    for run in both_methods(client, prompt="Hi"):
        assert len((await run()).meta.attempts) == 2
        if len(server.requests) == 2:
            assert (await run()).text == " such as"
    assert len(server.requests) == 6


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_stream_yields_chunks_and_a_completion(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(comment(), chunk(" such", token=1778), chunk(" as", token=439), FINISH, USAGE, done()))
    async with client.serverless.completions.stream(model="m", prompt="Hi") as stream:
        chunks = [chunk async for chunk in stream]
    assert [chunk.text for chunk in chunks] == [" such", " as", "", ""]
    assert chunks[0] == TextCompletionChunk(
        (TextCompletionChunkChoice(0, " such", token=1778),), "c1", "text_completion", 1700000000, "m"
    )
    assert chunks[-1].choices == ()
    assert stream.outcome == "done"
    result = await stream.result()
    assert result == TextCompletion(
        choices=(TextCompletionChoice(0, " such as", "stop", tokens=(1778, 439)),),
        id="c1",
        object="text_completion",
        created=1700000000,
        model="m",
        usage=Usage(1, 2, 3),
    )
    assert stream.usage == result.usage
    assert result.meta is stream.meta
    assert await stream.result() is result


async def test_text_view_skips_empty_deltas(client: AsyncFriendli, server: FriendliServer) -> None:
    pair = raw(b'data: {"choices":[{"text":"\\ud83d"}]}\n\ndata: {"choices":[{"text":"\\udc4b"}]}\n\n')
    server.enqueue(script(chunk(""), chunk("a"), chunk("b", index=1), pair, FINISH, USAGE, done()))
    stream = client.serverless.completions.stream(model="m", prompt="Hi")
    assert stream.usage is None
    assert [text async for text in stream.text()] == ["a", "👋"]
    result = await stream.result()
    assert [choice.text for choice in result.choices] == ["a👋", "b"]


async def test_streamed_logprobs_are_joined(client: AsyncFriendli, server: FriendliServer) -> None:
    def one(token: str, logprob: float | None, offset: int) -> dict[str, object]:
        top = None if logprob is None else {token: logprob}
        return {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": [top], "text_offset": [offset]}

    steps = [chunk("a", logprobs=one("a", None, 0)), chunk("b", logprobs=one("b", -0.5, 1)), chunk("c", logprobs=None)]
    server.enqueue(script(*steps, FINISH, done()))
    result = await client.serverless.completions.stream(model="m", prompt="Hi", logprobs=1).result()
    assert result.choices[0].logprobs == TextCompletionLogprobs(
        tokens=("a", "b"), token_logprobs=(None, -0.5), top_logprobs=(None, {"b": -0.5}), text_offset=(0, 1)
    )


@pytest.mark.parametrize(
    ("options", "finish_reasons", "complete"),
    [
        ({"prompt": "Hi"}, ["stop"], True),
        ({"prompt": "Hi"}, ["later"], True),
        ({"prompt": "Hi"}, [None], False),
        ({"prompt": "Hi"}, ["null"], False),
        ({"prompt": "Hi", "n": 2}, ["stop"], False),
        ({"prompt": "Hi", "n": 2}, ["stop", "length"], True),
        ({"prompt": "Hi", "n": None}, ["stop"], True),
        ({"prompt": ["a", "b"]}, ["stop"], False),
        ({"prompt": ["a", "b"]}, ["stop", "stop"], True),
        ({"prompt": ("a", "b"), "n": 2}, ["stop", "stop", "stop"], False),
        ({"tokens": [1, 2, 3]}, ["stop"], True),
        ({"extra_body": {"prompt": ["a", "b"]}}, ["stop"], False),
        ({"extra_body": {"prompt": [[1, 2], "b"]}, "prompt": "a"}, ["stop"], False),
        ({"extra_body": {"prompt": [[1, 2], "b"]}, "prompt": "a"}, ["stop", "stop"], True),
        ({"extra_body": {"prompt": [1, 2, 3]}}, ["stop"], True),  # one prompt, as token ids
        ({"extra_body": {"prompt": "a"}, "prompt": ["a", "b"]}, ["stop"], True),
    ],
    ids=str,
)
async def test_stream_without_sentinel_is_complete_if_every_choice_finished(
    client: AsyncFriendli,
    server: FriendliServer,
    options: dict[str, Any],
    finish_reasons: list[str | None],
    complete: bool,
) -> None:
    server.enqueue(script(chunk("a"), *(chunk("", index=i, finish_reason=end) for i, end in enumerate(finish_reasons))))
    stream = resource(client).stream(model="m", **options)
    if complete:
        result = await stream.result()
        assert [choice.finish_reason for choice in result.choices] == finish_reasons
        assert stream.outcome == "done"
        return
    with pytest.raises(StreamInterruptedError) as raised:
        await stream.result()
    assert stream.outcome == "truncated"
    assert raised.value.partial is not None
    assert raised.value.partial.text == "a"


async def test_interrupted_stream_raises_with_partial(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk("b", index=1), USAGE, chunk("a"), reset()))
    stream = client.serverless.completions.stream(model="m", prompt="Hi", n=2)
    with pytest.raises(StreamInterruptedError) as raised:
        await stream.result()
    partial = raised.value.partial
    assert partial is not None
    assert (partial.text, partial.usage, partial.tool_calls) == ("a", Usage(1, 2, 3), ())
    server.enqueue(script(chunk("b", index=1), reset()))
    with pytest.raises(StreamInterruptedError) as raised:
        await client.serverless.completions.stream(model="m", prompt="Hi", n=2).result()
    assert raised.value.partial is not None
    assert raised.value.partial.text == ""


# --- events in other formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sentinel", [True, False])
@pytest.mark.parametrize("named", [True, False])
async def test_stream_in_the_format_of_2024_is_never_taken_for_a_complete_one(
    client: AsyncFriendli, server: FriendliServer, named: bool, sentinel: bool
) -> None:
    """Servers sent it before text completions had chunks; its texts are only in the fields of unknown events."""
    frames = [{"index": 0, "text": text, "token": token} for text, token in ((" such", 1778), (" as", 439))]
    steps = [
        event(frame, name="token_sampled") if named else event({"event": "token_sampled", **frame}) for frame in frames
    ]
    server.enqueue(script(*steps, *([done()] if sentinel else [])))
    stream = client.dedicated.completions.stream(model="m", prompt="Hi")
    with pytest.raises(StreamInterruptedError) as raised:
        await stream.result()
    assert stream.outcome == "truncated"
    assert raised.value.partial is not None
    assert raised.value.partial.text == ""


async def test_event_key_of_a_chunk_is_ignored(client: AsyncFriendli, server: FriendliServer) -> None:
    choice = {"index": 0, "text": '"event"', "logprobs": {"tokens": ["event"]}}
    with_event_key = event({**HEAD, "event": "token_sampled", "choices": [{"index": 0, "text": "b"}]})
    server.enqueue(script(event({**HEAD, "choices": [choice]}), with_event_key, chunk("c"), FINISH, done()))
    result = await client.dedicated.completions.stream(model="m", prompt="Hi").result()
    assert result.text == '"event"bc'
    server.enqueue(script(chunk("a"), event({"choices": 5})))
    with pytest.raises(ResponseDecodeError):
        await client.dedicated.completions.stream(model="m", prompt="Hi").result()


# --- the embedded server ---------------------------------------------------------------------------------------------


@each_deployment
async def test_embedded_server_replies_equally_plain_and_streamed(client: AsyncFriendli, deployment: str) -> None:
    for options in ({"prompt": "Hello there"}, {"prompt": ["a b c", "d"], "n": 2}, {"tokens": [72, 105]}):
        arguments = {"model": "m", "logprobs": 2, **options}
        plain = await resource(client, deployment).complete(**arguments)
        streamed = await resource(client, deployment).stream(**arguments).result()
        assert plain.text
        assert plain.usage == streamed.usage is not None
        assert [(each.text, each.finish_reason, each.logprobs) for each in streamed.choices] == [
            (each.text, each.finish_reason, each.logprobs) for each in plain.choices
        ]


async def test_embedded_server_rejects_schema_violations(client: AsyncFriendli) -> None:
    with pytest.raises(UnprocessableEntityError, match="max_tokens"):
        await client.serverless.completions.complete(model="m", prompt="Hi", extra_body={"max_tokens": "x"})


# --- a real engine ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def local(engine: LocalEngine) -> AsyncIterator[AsyncFriendli]:
    async with AsyncFriendli(container_url=engine.url) as client:
        yield client


@pytest.mark.engine
async def test_engine_completes_a_prompt_equally_plain_and_streamed(local: AsyncFriendli) -> None:
    arguments: dict[str, Any] = {"prompt": "The sea is", "max_tokens": 20, "temperature": 0.0}
    plain = await local.container.completions.complete(**arguments, extra_body={"ignore_eos": True})
    async with local.container.completions.stream(**arguments, extra_body={"ignore_eos": True}) as stream:
        pieces = [chunk.text async for chunk in stream]
    result = await stream.result()
    assert stream.outcome == "done"
    assert len([piece for piece in pieces if piece]) > 5
    assert "".join(pieces) == result.text == plain.text != ""
    assert result.choices[0].finish_reason == plain.choices[0].finish_reason == "length"
    assert result.usage is not None
    assert plain.usage is not None
    assert result.usage.completion_tokens == plain.usage.completion_tokens == 20


@pytest.mark.engine
async def test_engine_completes_several_prompts_in_one_stream(local: AsyncFriendli) -> None:
    arguments: dict[str, Any] = {"prompt": ["The sea is", "Once"], "max_tokens": 6, "temperature": 0.0}
    plain = await local.container.completions.complete(**arguments)
    result = await local.container.completions.stream(**arguments).result()
    assert len(plain.choices) == 2
    assert [choice.text for choice in result.choices] == [choice.text for choice in plain.choices]


@pytest.mark.engine
async def test_logprobs_in_the_dialect_of_the_engine_are_decoded(local: AsyncFriendli) -> None:
    result = await local.container.completions.stream(prompt="The sea", max_tokens=4, logprobs=2).result()
    logprobs = result.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(each.token for each in logprobs.content) == result.text
    assert all(len(each.top_logprobs or ()) == 2 for each in logprobs.content)
    assert json.loads(msgspec.json.encode(logprobs))["content"]
