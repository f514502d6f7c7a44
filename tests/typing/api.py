# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Static types of the public calls. Checked by mypy and pyright in strict mode; never run.

A `type: ignore` marks a call that the checkers must reject; if they accept it, they report the comment as unused.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal, assert_type

import aiohttp

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    Attempt,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatStream,
    EventStream,
    FriendliError,
    Limits,
    Meta,
    Partial,
    RateLimitError,
    ResponseDecodeError,
    RetryPolicy,
    SDKError,
    StreamInterruptedError,
    Timeouts,
    ToolAssistedStream,
    ToolCall,
    ToolStatus,
    Usage,
    __version__,
    chat,
    responses,
)
from friendli_async._core.pages import Pages
from friendli_async.billing import CostBucket, CostPage, UsageBucket, UsagePage
from friendli_async.chat import (
    AssistantMessage,
    Chat,
    ChatOptions,
    ContainerChat,
    Conversation,
    Function,
    ImageContent,
    Media,
    Message,
    SystemMessage,
    TextContent,
    Tool,
    ToolMessage,
    UserMessage,
)
from friendli_async.chat.render import ChatRender, RenderedChat
from friendli_async.chat.tool_assisted import ToolAssistedCall, ToolAssistedChat, ToolStatusError, ToolStatusFile
from friendli_async.classification import Classification, ClassificationList, TextClassification
from friendli_async.client import Container, Dedicated, Serverless
from friendli_async.completions import (
    Completions,
    CompletionsOptions,
    ContainerCompletions,
    TextCompletion,
    TextCompletionChunk,
    TextCompletionStream,
)
from friendli_async.embeddings import Embedding, EmbeddingList
from friendli_async.endpoints import (
    AcceleratorRequirement,
    AdvancedConfig,
    AutoscalingPolicy,
    EndpointPage,
    Endpoints,
    EndpointSpec,
    EndpointStatus,
    EndpointUpdateOptions,
    EndpointVersion,
    ListedEndpoint,
    SimplescaleConfig,
    WandbArtifactEndpoint,
)
from friendli_async.models import Model, ModelList
from friendli_async.replies import Headers
from friendli_async.streams import Branch
from friendli_async.testing import FriendliServer, ReceivedRequest
from friendli_async.tokens import ContainerTokens, Detokenization, Tokenization, Tokens


async def token_callable() -> str:
    return "token"


def on_retry(attempt: Attempt) -> None:
    assert_type(attempt.status, int | None)
    assert_type(attempt.cause, str | None)
    assert_type(attempt.wait, float)
    assert_type(attempt.elapsed, float)


async def creates_clients(session: aiohttp.ClientSession) -> None:
    AsyncFriendli()
    AsyncFriendli("token", team="team", server_url="https://host", container_url="http://localhost:8000")
    AsyncFriendli(lambda: "token", timeout=30, retry=None, headers={"X-A": "1"})
    AsyncFriendli(token_callable, timeout=None, proxy="http://proxy:3128", ssl=False, max_connections=10)
    AsyncFriendli(session=session, limits=Limits(event=1024, reply=1024, error=1024))
    AsyncFriendli(timeout=Timeouts(connect=1, pool=None, first_event=5.0, idle=None, total=60))
    policy = RetryPolicy(
        max_attempts=5, initial=0.1, multiplier=1.5, max_wait=5, max_retry_after=10, statuses={429}, on_retry=on_retry
    )
    AsyncFriendli(retry=policy)
    AsyncFriendli(5)  # type: ignore[arg-type]  # a token is a string
    AsyncFriendli("token", "team")  # type: ignore[call-arg]  # settings are keyword-only
    AsyncFriendli(retries=3)  # type: ignore[call-arg]  # unknown
    async with AsyncFriendli() as client:
        assert_type(client, AsyncFriendli)
        assert_type(client.serverless, Serverless)
        assert_type(client.dedicated, Dedicated)
        assert_type(client.container, Container)
        assert_type(client.serverless.chat, Chat)
        assert_type(client.dedicated.chat, Chat)
        assert_type(client.container.chat, ContainerChat)
        assert_type(client.serverless.tool_assisted_chat, ToolAssistedChat)
        assert_type(client.with_options(token=token_callable, team=None, timeout=5, retry=None), AsyncFriendli)
        assert_type(client.with_options(headers={"X-A": None}, limits=Limits()), AsyncFriendli)
        assert_type(client.with_options(headers=None), AsyncFriendli)
        client.with_options(model="m")  # type: ignore[call-arg]  # unknown
        client.serverless.chat = client.dedicated.chat  # type: ignore[misc]  # final
    assert_type(await client.aclose(), None)
    version: str = __version__
    assert version


async def completes(client: AsyncFriendli) -> None:
    reply = await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert_type(reply, ChatCompletion)
    assert_type(reply.text, str)
    assert_type(reply.reasoning, str)
    assert_type(reply.message, ChatMessage)
    assert_type(reply.choices[0].message, ChatMessage)
    assert_type(reply.choices[0].message.content, str | None)
    assert_type(reply.choices[0].message.tool_calls, tuple[ToolCall, ...] | None)
    assert_type(reply.choices[0].index, int)
    assert_type(reply.id, str | None)
    assert_type(reply.usage, Usage | None)
    assert_type(reply.meta, Meta)
    assert_type(reply.meta.status, int | None)
    assert_type(reply.meta.headers, Headers)
    assert_type(reply.meta.request_id, str | None)
    assert_type(reply.meta.attempts, tuple[Attempt, ...])
    assert_type(reply.meta.elapsed, float)
    if reply.usage is not None:
        assert_type(reply.usage.total_tokens, int)
    reply.id = "x"  # type: ignore[misc]  # frozen
    dedicated = await client.dedicated.chat.complete(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert_type(dedicated, ChatCompletion)
    assert_type(await client.container.chat.complete(messages=[reply.message]), ChatCompletion)
    assert_type(await client.container.chat.complete(model="adapter", messages=[reply.message]), ChatCompletion)
    await client.serverless.chat.complete(messages=[])  # type: ignore[call-arg]  # no model
    await client.serverless.chat.complete(model="m")  # type: ignore[call-arg]  # no messages
    await client.serverless.chat.complete(model=None, messages=[])  # type: ignore[arg-type]  # only containers accept None


async def streams(client: AsyncFriendli) -> None:
    stream = client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert_type(stream, ChatStream)
    events: EventStream[ChatChunk] = stream
    async with stream as opened:
        assert_type(opened, ChatStream)
        async for chunk in opened:
            assert_type(chunk, ChatChunk)
            assert_type(chunk.text, str)
            assert_type(chunk.reasoning, str)
            assert_type(chunk.choices[0].delta.content, str | None)
            assert_type(chunk.choices[0].delta.reasoning_content, str | None)
            assert_type(chunk.usage, Usage | None)
    assert_type(await stream, ChatStream)
    assert_type(await stream.result(), ChatCompletion)
    assert_type(stream.usage, Usage | None)
    assert_type(stream.meta, Meta)
    assert_type(stream.outcome, Literal["open", "done", "stopped", "truncated", "failed", "cancelled"])
    assert_type(await stream.aclose(), None)
    assert_type(await stream.stop(), None)
    assert_type(stream.stop_when(lambda text: text.endswith("x")), ChatStream)
    assert_type(stream.stop_when(event=lambda event: event.usage is not None), ChatStream)
    async for data in stream.raw():
        assert_type(data, bytes)
    for branch in stream.tee(2, buffer=8, slow="drop"):
        assert_type(branch, Branch[ChatChunk])
        assert_type(branch.dropped, int)
        async with branch as entered:
            async for chunk in entered:
                assert_type(chunk, ChatChunk)
            async for text in entered.text():
                assert_type(text, str)
    async for text in stream.text():
        assert_type(text, str)
    async with stream.reasoning() as view:
        async for text in view:
            assert_type(text, str)
    assert_type(client.dedicated.chat.stream(model="m", messages=[]), ChatStream)
    assert_type(client.container.chat.stream(messages=[]), ChatStream)
    async for chunk in events:
        assert_type(chunk, ChatChunk)
    iterator: AsyncIterator[ChatChunk] = aiter(client.container.chat.stream(messages=[]))
    assert_type(await anext(iterator), ChatChunk)
    iter(client.container.chat.stream(messages=[]))  # type: ignore[call-overload]  # only async iteration


async def accepts_dicts_and_structs(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    await chat.complete(
        model="m",
        messages=[
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": "https://host/cat.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        stream_options={"include_usage": False},
        logit_bias={"5": -100},
        chat_template_kwargs={"enable_thinking": False},
        stop="\n",
        seed=7,
        reasoning_effort="high",
        extra_body={"vendor": {"x": [1, None]}},
        extra_query={"trace": True},
    )
    structs: list[Message] = [
        SystemMessage("Be brief."),
        UserMessage([TextContent("What is it?"), ImageContent(Media("https://host/cat.png"))]),
        AssistantMessage("A cat."),
        ToolMessage("4", "1"),
    ]
    reply = await chat.complete(model="m", messages=structs, tools=[Tool(Function("f"))], seed=(1, 2), stop=("a", "b"))
    answer: Sequence[ChatMessage] = [reply.message]
    await chat.complete(model="m", messages=answer)
    await chat.complete(model="m", messages=[*structs, reply.message, {"role": "user", "content": "And?"}])
    dicts = [{"role": "user", "content": "Hi"}]
    await chat.complete(model="m", messages=dicts, reasoning_effort="of tomorrow", temperature=1, top_p=None)
    options: ChatOptions = {"temperature": 0.5, "max_tokens": 10}
    await chat.complete(model="m", messages=dicts, **options)
    await chat.complete(model="m", messages=dicts, temperatur=1)  # type: ignore[call-arg]  # misspelled
    await chat.complete(model="m", messages=dicts, temperature="hot")  # type: ignore[arg-type]  # rejected
    await chat.complete(model="m", messages=dicts, max_tokens=1.5)  # type: ignore[arg-type]  # rejected
    await chat.complete(model="m", messages=dicts, stream=True)  # type: ignore[call-arg]  # use stream()
    await chat.complete(model="m", messages=dicts, timeout=5)  # type: ignore[call-arg]  # a setting, not an option
    await chat.complete(model="m", messages={"role": "user"})  # type: ignore[arg-type]  # must be a list


async def calls_with_tools(client: AsyncFriendli) -> None:
    chat = client.serverless.tool_assisted_chat
    dicts = [{"role": "user", "content": "Hi"}]
    assert_type(await chat.complete(model="m", messages=dicts, tools=[{"type": "web:url"}]), ChatCompletion)
    stream = chat.stream(
        model="m",
        messages=[{"role": "user", "content": "2+2?"}],
        tools=[{"type": "math:calculator"}, {"type": "file:text", "files": ["id"]}, Tool(Function("f"))],
        resume_generation=True,
    )
    assert_type(stream, ToolAssistedStream)
    async for event in stream:
        match event:
            case ChatChunk():
                assert_type(event.text, str)
            case ToolStatus(name=name, status=status):
                fields: list[str] = [name, status]
                assert_type(fields, list[str])
                assert_type(event.error, ToolStatusError | None)
                assert_type(event.files, tuple[ToolStatusFile, ...] | None)
                assert_type(event.timestamp, float | None)
    assert_type(await stream.result(), ChatCompletion)
    async for text in chat.stream(model="m", messages=dicts).text():
        assert_type(text, str)
    await chat.complete(model="m", messages=dicts, min_tokens=1)  # type: ignore[call-arg]  # only plain chat has it

    call = client.serverless.tool_assisted_chat_completion(
        tool_assisted_completion_request_body={
            "model": "meta-llama-3.1-8b-instruct",
            "max_tokens": 200,
            "messages": [{"role": "user", "content": "Hello!"}],
            "tools": [{"type": "math:calculator"}, {"type": "web:url"}],
        },
        x_friendli_team=None,
        retries=None,
        server_url=None,
    )
    assert_type(call, ToolAssistedCall)
    assert_type(await call, ToolAssistedStream | ChatCompletion)
    async for event in call:
        assert_type(event, ChatChunk | ToolStatus)
    async with call as opened:
        assert_type(opened, ToolAssistedStream)
    client.serverless.tool_assisted_chat_completion({})  # type: ignore[call-arg]  # keyword-only


async def catches(client: AsyncFriendli) -> None:
    try:
        await client.serverless.chat.stream(model="m", messages=[]).result()
    except RateLimitError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.status_code, int)
    except SDKError as error:
        assert_type(error, APIStatusError)
        assert_type(error.code, str | None)
        assert_type(error.type, str | None)
        assert_type(error.message, str)
        assert_type(error.body, str)
        assert_type(error.request_id, str | None)
    except APITimeoutError as error:
        assert_type(error.limit, Literal["connect", "pool", "first_event", "idle", "total"])
        assert_type(error.seconds, float)
        timeout: TimeoutError = error
        raise timeout from None
    except StreamInterruptedError as error:
        assert_type(error.partial, Partial | None)
        if error.partial is not None:
            assert_type(error.partial.text, str)
            assert_type(error.partial.tool_calls, tuple[ToolCall, ...])
    except APIConnectionError as error:
        assert_type(error.sent, bool)
    except ResponseDecodeError as error:
        assert_type(error.excerpt, str)
    except FriendliError as error:
        assert_type(error.meta, Meta | None)


async def tests_with_embedded_server() -> None:
    async with FriendliServer() as server:
        assert_type(server.url, str)
        assert_type(server.requests, list[ReceivedRequest])
        assert_type(server.requests[0].json, Any)
        assert_type(await server.wait_for_requests(1), ReceivedRequest)
        assert_type(await server.requests[0].disconnected(), bool)


# --- completions, tokens, rendering, embeddings, classification, models ----------------------------------------------


async def completes_text(client: AsyncFriendli) -> None:
    completions = client.serverless.completions
    assert_type(completions, Completions)
    assert_type(client.dedicated.completions, Completions)
    assert_type(client.container.completions, ContainerCompletions)
    options: CompletionsOptions = {"max_tokens": 5, "seed": [1, 2], "stop_tokens": [{"tokens": [1]}], "n": None}
    reply = await completions.complete(model="m", prompt="Hi", **options)
    assert_type(reply, TextCompletion)
    assert_type(reply.text, str)
    assert_type(reply.usage, Usage | None)
    assert_type(reply.choices[0].tokens, tuple[int, ...] | None)
    assert_type(reply.meta, Meta)
    async with completions.stream(model="m", tokens=(1, 2), response_format={"type": "text"}) as stream:
        assert_type(stream, TextCompletionStream)
        async for chunk in stream:
            assert_type(chunk, TextCompletionChunk)
            assert_type(chunk.text, str)
            assert_type(chunk.choices[0].token, int | None)
    assert_type(await stream.result(), TextCompletion)
    assert_type(stream.usage, Usage | None)
    async for text in client.container.completions.stream(prompt=["a", "b"]).text():
        assert_type(text, str)
    await client.container.completions.complete(prompt="Hi")
    await completions.complete(prompt="Hi")  # type: ignore[call-arg]  # no model
    await completions.complete(model="m", prompt=5)  # type: ignore[arg-type]  # rejected
    completions.stream(model="m", prompt="Hi", max_token=5)  # type: ignore[call-arg]  # rejected


async def uses_text_operations(client: AsyncFriendli) -> None:
    assert_type(client.serverless.token, Tokens)
    assert_type(client.container.token, ContainerTokens)
    assert_type(await client.serverless.token.tokenize(model="m", prompt="Hi"), Tokenization)
    assert_type((await client.dedicated.token.tokenize(model="m", prompt="Hi")).tokens, tuple[int, ...])
    assert_type(await client.container.token.detokenize(tokens=[1]), Detokenization)
    await client.dedicated.token.detokenize(tokens=[1])  # type: ignore[call-arg]  # no model

    assert_type(client.dedicated.chat_render, ChatRender)
    rendered = await client.serverless.chat_render.render(
        model="m", messages=[{"role": "user", "content": "Hi"}], chat_template_kwargs={"a": 1}
    )
    assert_type(rendered, RenderedChat)
    assert_type(rendered.text, str)
    client.container.chat_render  # type: ignore[attr-defined]  # noqa: B018  # containers have no rendering

    embeddings = await client.dedicated.embeddings.create(model="m", input=["a"], encoding_format="float")
    assert_type(embeddings, EmbeddingList)
    assert_type(embeddings.data, tuple[Embedding, ...])
    assert_type(embeddings.data[0].embedding, tuple[float, ...] | str)
    await client.dedicated.embeddings.create(model="m", inputs=["a"])  # type: ignore[call-arg]  # rejected
    assert_type(client.dedicated.text_classification, TextClassification)
    classes = await client.container.text_classification.classify(input="Hi")
    assert_type(classes, ClassificationList)
    assert_type(classes.data, tuple[Classification, ...])
    assert_type(classes.data[0].label, str)

    models = await client.serverless.model.list()
    assert_type(models, ModelList)
    assert_type(models.data, tuple[Model, ...])
    assert_type(models.data[0].context_length, int | None)


# --- endpoints, cost, usage ------------------------------------------------------------------------------------------


async def manages_endpoints(client: AsyncFriendli) -> None:
    endpoint = client.dedicated.endpoint
    assert_type(endpoint, Endpoints)
    advanced = {"tokenizer_skip_special_tokens": True, "tokenizer_add_special_tokens": True}
    created = await endpoint.create(
        project_id="p",
        name="n",
        instance_option_id="i",
        advanced=advanced,
        autoscaling_policy={"maxReplica": 2},
        simplescale=SimplescaleConfig(replicas=2),
    )
    assert_type(created, EndpointStatus)
    assert_type(created.created_at, datetime | None)
    config = AdvancedConfig(tokenizer_skip_special_tokens=True, tokenizer_add_special_tokens=True, max_token_count=1)
    options: EndpointUpdateOptions = {"advanced": config, "name": None, "autoscaling_policy": AutoscalingPolicy()}
    assert_type(await endpoint.update("ep_1", **options), EndpointSpec)
    artifact = await endpoint.wandb_artifact_create(
        wandb_artifact_version_name="e/p/a:v1", accelerator=AcceleratorRequirement("H100", 1)
    )
    assert_type(artifact, WandbArtifactEndpoint)
    assert_type(artifact.endpoint_id, str)
    assert_type(await endpoint.get_spec("ep_1"), EndpointSpec)
    assert_type(await endpoint.get_status(endpoint_id="ep_1"), EndpointStatus)
    for change in (endpoint.restart, endpoint.sleep, endpoint.terminate, endpoint.wake):
        assert_type(await change("ep_1"), EndpointStatus)
    assert_type(await endpoint.wait("ep_1", until="SLEEPING", timeout=None), EndpointStatus)
    await endpoint.delete("ep_1")
    await endpoint.create(name="n")  # type: ignore[call-arg]  # rejected
    await endpoint.update("ep_1", nam="n")  # type: ignore[call-arg]  # rejected
    await endpoint.wait("ep_1", until=5)  # type: ignore[arg-type]  # rejected


async def lists_endpoints(client: AsyncFriendli) -> None:
    listed = client.dedicated.endpoint.list(project_id="p", limit=20, cursor=None)
    assert_type(listed, Pages[ListedEndpoint, EndpointPage])
    async for endpoint in listed:
        assert_type(endpoint, ListedEndpoint)
        assert_type(endpoint.id, str)
    async for page in listed.pages():
        assert_type(page, EndpointPage)
        assert_type(page.meta, Meta)
    page = await listed
    assert_type(page.data, dict[str, EndpointStatus])
    assert_type(page.next_cursor, str | None)
    async for version in client.dedicated.endpoint.get_version_history("ep_1", limit=1):
        assert_type(version, EndpointVersion)
        assert_type(version.num_gpu, int | None)
    client.dedicated.endpoint.list(limit="20")  # type: ignore[arg-type]  # rejected


async def reads_cost_and_usage(client: AsyncFriendli, start: datetime, end: datetime) -> None:
    costs = client.cost.get(start_time=start, end_time=end, bucket_width="1d", group_by="line_item", limit=7)
    assert_type(costs, Pages[CostBucket, CostPage])
    async for bucket in costs:
        assert_type(bucket.start_time, datetime)
        assert_type(bucket.results[0].total, str)
    usage = client.usage.get(
        start_time=start, end_time=end, bucket_width="5m", group_by=["model"], product_types=("model_apis",)
    )
    assert_type(usage, Pages[UsageBucket, UsagePage])
    assert_type((await usage).data[0].results[0].gpu_usage, dict[str, int] | None)
    client.cost.get(start_time=start)  # type: ignore[call-arg]  # rejected
    client.usage.get(start_time="2026-01-01", end_time=end)  # type: ignore[arg-type]  # rejected


async def continues_conversation(client: AsyncFriendli) -> None:
    """A conversation accepts reply messages, and the fields of a complete tool call are strings."""
    chat = client.serverless.chat
    conversation: list[Message] = [SystemMessage("Be brief."), UserMessage("What time is it?")]
    reply = await chat.complete(model="m", messages=conversation)
    conversation.append(reply.message)
    for call in reply.message.tool_calls or ():
        assert_type(call.id, str)
        assert_type(call.type, str)
        assert_type(call.function.name, str)
        assert_type(call.function.arguments, str)
        conversation.append(ToolMessage("12:30", call.id))
    await chat.complete(model="m", messages=conversation)
    conversation.append(reply)  # type: ignore[arg-type]  # must be reply.message
    first = [{"role": "user", "content": "What time is it?"}]
    mixed: Conversation = [*first, reply.message]
    mixed.append(ToolMessage("12:30", "call_1"))
    mixed.append({"role": "user", "content": "And in Rome?"})
    await chat.complete(model="m", messages=mixed)
    async with chat.stream(model="m", messages=mixed) as stream:
        async for chunk in stream:
            for choice in chunk.choices:
                for delta in choice.delta.tool_calls or ():
                    assert_type(delta.id, str | None)  # any field of a delta may be missing


def rejects_names_that_do_not_exist() -> tuple[object, ...]:
    """The packages that import some names on first access reject all others."""
    return (
        chat.ParsedCompletion,
        responses.ParsedResponse,
        chat.ChatCompletions,  # type: ignore[attr-defined]  # does not exist
        responses.ParsedResponses,  # type: ignore[attr-defined]  # does not exist
    )
