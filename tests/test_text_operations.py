"""Tokens, rendering, embeddings, classification, models: decoding, argument validation and retries."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pytest
from support.sockets import MESSAGES

from friendli_async import (
    AsyncFriendli,
    InternalServerError,
    ResponseDecodeError,
    RetryPolicy,
)
from friendli_async.chat import Function as FunctionTool
from friendli_async.chat import Messages, SystemMessage, Tool
from friendli_async.chat.render import RenderedChat
from friendli_async.chat.replies import ChatMessage
from friendli_async.classification import Classification, ClassificationList, ClassificationUsage
from friendli_async.embeddings import Embedding, EmbeddingList
from friendli_async.models import Model, ModelFunctionality, ModelList, ModelPricing, ModelReasoningOption
from friendli_async.replies import Reply, Usage
from friendli_async.testing import FriendliServer, json_body, reset, status
from friendli_async.tokens import Detokenization, Tokenization


@dataclass(frozen=True)
class Operation:
    """An operation: its attribute path on the client, arguments of a call, and the smallest valid reply."""

    name: str
    arguments: dict[str, Any]
    smallest: dict[str, Any]
    path: str
    read: type[Reply]


OPERATIONS: Final = [
    Operation(f"{where}.{method}", {**model, **arguments}, smallest, f"{prefix}{path}", read)
    for method, deployments, arguments, smallest, path, read in (
        ("token.tokenize", "sdc", {"prompt": "Hi"}, {"tokens": [1]}, "/v1/tokenize", Tokenization),
        ("token.detokenize", "sdc", {"tokens": [1, 2]}, {"text": "Hi"}, "/v1/detokenize", Detokenization),
        ("chat_render.render", "sd", {"messages": MESSAGES}, {"text": "<|user|>"}, "/v1/chat/render", RenderedChat),
        ("embeddings.create", "d", {"input": "Hi"}, {"data": []}, "/v1/embeddings", EmbeddingList),
        ("text_classification.classify", "dc", {"input": "Hi"}, {"data": []}, "/classify", ClassificationList),
        ("model.list", "s", {}, {"data": []}, "/v1/models", ModelList),
    )
    for letter, where, prefix, model in (
        ("s", "serverless", "/serverless", {} if method == "model.list" else {"model": "m"}),
        ("d", "dedicated", "/dedicated", {"model": "m"}),
        ("c", "container", "", {}),
    )
    if letter in deployments
]
every_operation: Final = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)


@pytest.fixture
def client_options() -> dict[str, Any]:
    return {"retry": RetryPolicy(max_attempts=2, initial=0.0)}


def resolve(client: AsyncFriendli, name: str) -> Any:
    found: Any = client
    for part in name.split("."):
        found = getattr(found, part)
    return found


def reencode(reply: object) -> object:
    """Returns the JSON value that a relayed reply is encoded as."""
    return msgspec.json.decode(msgspec.json.encode(reply))


async def call(client: AsyncFriendli, operation: Operation, **options: Any) -> Any:
    return await resolve(client, operation.name)(**{**operation.arguments, **options})


# --- all operations --------------------------------------------------------------------------------------------------


@every_operation
async def test_smallest_reply_is_decoded_and_has_meta(
    client: AsyncFriendli, server: FriendliServer, operation: Operation
) -> None:
    server.enqueue(json_body({**operation.smallest, "added later": {"a": [1]}}))
    reply = await call(client, operation)
    assert type(reply) is operation.read
    assert reply == msgspec.convert(operation.smallest, operation.read)
    assert reencode(reply) == operation.smallest
    assert reply.meta.status == 200
    [received] = server.requests
    assert received.path == operation.path
    assert received.json == (operation.arguments or None)


@every_operation
async def test_request_is_retried_even_if_it_may_have_been_processed(
    client: AsyncFriendli, server: FriendliServer, operation: Operation
) -> None:
    server.enqueue(
        status(500), json_body(operation.smallest), reset(), json_body(operation.smallest), status(500), status(502)
    )
    assert len((await call(client, operation)).meta.attempts) == 2
    assert (await call(client, operation)).meta.status == 200
    with pytest.raises(InternalServerError):
        await call(client, operation)
    assert len(server.requests) == 6


@every_operation
async def test_team_header_is_sent_where_the_operation_accepts_it(
    client: AsyncFriendli, server: FriendliServer, operation: Operation
) -> None:
    server.enqueue(json_body(operation.smallest))
    await call(client.with_options(team="t1"), operation)
    [received] = server.requests
    accepted = operation.path.startswith(("/serverless", "/dedicated")) and operation.name != "serverless.model.list"
    assert received.headers.get("X-Friendli-Team") == ("t1" if accepted else None)


@every_operation
async def test_extra_body_and_query_are_sent(
    client: AsyncFriendli, server: FriendliServer, operation: Operation
) -> None:
    server.enqueue(json_body(operation.smallest))
    extra: dict[str, Any] = {"extra_query": {"a": ["1", "2"], "b": True}}
    if operation.arguments:
        extra["extra_body"] = {"later": {"x": None}}
    await call(client, operation, **extra)
    [received] = server.requests
    assert {name: list(values) for name, values in received.query.items()} == {"a": ["1", "2"], "b": ["true"]}
    assert received.json == ({**operation.arguments, "later": {"x": None}} if operation.arguments else None)


INVALID: Final[list[tuple[str, dict[str, Any], str]]] = [
    ("serverless.token.tokenize", {"model": 3}, r"^model: Expected `str`, got `int`"),
    ("serverless.token.tokenize", {"model": None}, r"^model: "),
    ("container.token.tokenize", {"prompt": ["Hi"]}, r"^prompt: Expected `str`"),
    ("dedicated.token.detokenize", {"tokens": [1, "2"]}, r"^tokens\[1\]: Expected `int`"),
    ("container.token.detokenize", {"tokens": "12"}, r"^tokens: "),
    ("container.token.detokenize", {"tokens": [1.5]}, r"^tokens\[0\]: "),
    ("container.token.detokenize", {"tokens": [True]}, r"^tokens\[0\]: "),
    ("serverless.chat_render.render", {"messages": [*MESSAGES, {"role": "usr"}]}, r"^messages\[1\].role: "),
    ("serverless.chat_render.render", {"messages": "Hi"}, r"^messages: "),
    ("dedicated.chat_render.render", {"tools": [{"type": "function"}]}, r"^tools\[0\]: .*`function`"),
    ("dedicated.chat_render.render", {"tools": [{"function": {"name": "f"}}]}, r"^tools\[0\]: .*`type`"),
    ("dedicated.chat_render.render", {"chat_template_kwargs": [1]}, r"^chat_template_kwargs: "),
    ("dedicated.embeddings.create", {"input": 5}, r"^input: "),
    ("dedicated.embeddings.create", {"input": ["a", None]}, r"^input\[1\]: "),
    ("dedicated.embeddings.create", {"tokens": ["a"]}, r"^tokens\[0\]: "),
    ("dedicated.embeddings.create", {"encoding_format": 5}, r"^encoding_format: "),
    ("dedicated.text_classification.classify", {"input": {"a": 1}}, r"^input: "),
    ("container.text_classification.classify", {"tokens": 5}, r"^tokens: "),
    ("container.text_classification.classify", {"extra_body": {"a": float("nan")}}, r"^a: nan is not valid JSON"),
    ("serverless.model.list", {"extra_query": [1]}, r"^extra_query: "),
    ("serverless.model.list", {"extra_query": {"a": b"x"}}, r"^extra_query\['a'\]: "),
]


@pytest.mark.parametrize(
    ("name", "options", "message"), INVALID, ids=[f"{each[0]}-{i}" for i, each in enumerate(INVALID)]
)
async def test_invalid_value_is_rejected_with_its_path_before_sending(
    client: AsyncFriendli, server: FriendliServer, name: str, options: dict[str, Any], message: str
) -> None:
    [operation] = [each for each in OPERATIONS if each.name == name]
    with pytest.raises(ValueError, match=message):
        await call(client, operation, **options)
    assert server.requests == []


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.arguments], ids=lambda each: each.name)
async def test_parameters_are_keyword_only_and_required(
    client: AsyncFriendli, server: FriendliServer, operation: Operation
) -> None:
    method = resolve(client, operation.name)
    required = {name for name in operation.arguments if name != "input"}  # the schema does not require input
    for name in required:
        with pytest.raises(TypeError, match=name):
            await method(**{key: value for key, value in operation.arguments.items() if key != name})
    with pytest.raises(TypeError, match="positional"):
        await method("m")
    assert server.requests == []


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_container_model_is_optional_and_none_is_omitted(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(json_body({"tokens": [1], "text": "Hi", "data": []}))
    for model in ("adapter", None):
        sent = {} if model is None else {"model": model}
        await client.container.token.tokenize(model=model, prompt="Hi")
        assert server.requests[-1].json == {**sent, "prompt": "Hi"}
        await client.container.token.detokenize(model=model, tokens=(1, 2))
        assert server.requests[-1].json == {**sent, "tokens": [1, 2]}
        await client.container.text_classification.classify(model=model, input=("a", "b"))
        assert server.requests[-1].json == {**sent, "input": ["a", "b"]}


# --- rendering -------------------------------------------------------------------------------------------------------


async def test_render_accepts_chat_messages_and_tools(client: AsyncFriendli, server: FriendliServer) -> None:
    messages: Messages = [SystemMessage(content="Be brief"), *MESSAGES, ChatMessage(content="Hello")]
    tool = Tool(FunctionTool(name="f", parameters={"type": "object"}))
    reply = await client.serverless.chat_render.render(
        model="m", messages=messages, tools=[tool], chat_template_kwargs={"thinking": False}
    )
    assert isinstance(reply.text, str)
    assert "Be brief" in reply.text
    assert server.requests[-1].json == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "chat_template_kwargs": {"thinking": False},
    }
    await client.dedicated.chat_render.render(model="m", messages=MESSAGES, tools=None, chat_template_kwargs=None)
    assert server.requests[-1].json == {
        "model": "m",
        "messages": MESSAGES,
        "tools": None,
        "chat_template_kwargs": None,
    }


# --- embeddings ------------------------------------------------------------------------------------------------------


async def test_embeddings_are_decoded_from_numbers_or_base64(client: AsyncFriendli, server: FriendliServer) -> None:
    head = {"id": "e1", "object": "list", "created": 1700000000, "model": "m"}
    counts = {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2}
    vectors: list[object] = [[0.5, -1, 2e-3], "AAAAPw=="]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    server.enqueue(json_body({**head, "data": data, "usage": counts}))
    reply = await client.dedicated.embeddings.create(model="m", input=["a", "b"])
    assert reply == EmbeddingList(
        data=(
            Embedding(embedding=(0.5, -1.0, 0.002), index=0, object="embedding"),
            Embedding(embedding="AAAAPw==", index=1, object="embedding"),
        ),
        id="e1",
        object="list",
        created=1700000000,
        model="m",
        usage=Usage(2, 0, 2),
    )
    assert [list(each.vector) for each in reply.data] == [[0.5, -1.0, 0.002], [0.5]]
    assert reencode(reply) == {**head, "data": data, "usage": counts}
    server.enqueue(json_body({"data": [{"index": 0}]}))
    with pytest.raises(ResponseDecodeError):
        await client.dedicated.embeddings.create(model="m", tokens=[1])


@pytest.mark.parametrize("text", ["not base64", "AAAA"])
def test_vector_of_an_invalid_text_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|multiple"):
        _ = Embedding(embedding=text).vector


# --- classification --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["dedicated", "container"])
async def test_classification_is_decoded(client: AsyncFriendli, server: FriendliServer, where: str) -> None:
    classify = getattr(client, where).text_classification.classify
    item = {"label": "POSITIVE", "index": 1, "num_classes": 2, "probs": [0.25, 0.75]}
    wire = {"data": [item], "object": "list", "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    server.enqueue(json_body(wire))
    reply = await classify(model="m", input=["good", "bad"])
    assert reply == ClassificationList(
        data=(Classification(label="POSITIVE", index=1, num_classes=2, probs=(0.25, 0.75)),),
        object="list",
        usage=ClassificationUsage(3, 3),
    )
    assert reencode(reply) == wire
    server.enqueue(json_body({"data": [{"index": 0}]}))
    with pytest.raises(ResponseDecodeError):
        await classify(model="m", input=None, tokens=[1])
    assert server.requests[-1].json == {"model": "m", "input": None, "tokens": [1]}


# --- the model list --------------------------------------------------------------------------------------------------

FULL: Final[dict[str, Any]] = {
    "id": "m1",
    "name": "Model One",
    "created": 1700000000,
    "context_length": 131072,
    "max_completion_tokens": 8192,
    "pricing": {"input": "0.0000001", "output": "0.4", "prompt": "0.0000001", "completion": "0.4"},
    "functionality": {
        "tool_call": True,
        "parallel_tool_call": False,
        "structured_output": True,
        "tool_choice": True,
        "system_messages": True,
    },
    "description": "A model.",
    "deprecation_date": "2027-01-01",
    "reasoning": True,
    "reasoning_options": [
        {"type": "budget_tokens", "min": 1, "max": 9},
        {"type": "effort", "values": ["low", "high", "later"]},
        {"type": "toggle"},
        {"type": "added later"},
    ],
    "input_modalities": ["text", "smell"],
    "output_modalities": ["text"],
    "interleaved": "reasoning_content",
    "base_model": "m0",
    "mode": "chat",
    "default_params": {"repetition_penalty": 1.0, "temperature": 0.5, "top_p": 1.0, "min_p": 0.0, "top_k": 0},
}


async def test_model_list_is_decoded_with_unknown_values(client: AsyncFriendli, server: FriendliServer) -> None:
    absent = dict.fromkeys(FULL, None) | {"id": "m2", "interleaved": False}
    server.enqueue(json_body({"data": [FULL, absent]}))
    reply = await client.serverless.model.list()
    first, second = reply.data
    assert reencode(first) == FULL
    assert first.pricing == ModelPricing(input="0.0000001", output="0.4", prompt="0.0000001", completion="0.4")
    assert first.functionality == ModelFunctionality(True, False, True, True, True)
    assert first.reasoning_options is not None
    assert first.reasoning_options[:2] == (
        ModelReasoningOption("budget_tokens", min=1, max=9),
        ModelReasoningOption("effort", values=("low", "high", "later")),
    )
    assert second == Model("m2", interleaved=False)
    [received] = server.requests
    assert (received.method, received.body) == ("GET", b"")
    assert "Content-Type" not in received.headers
