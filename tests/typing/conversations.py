# pyright: strict
# ruff: noqa: C408, RUF005  # written as users write it
"""The ways in which users write conversations. Checked by mypy and pyright in strict mode, and run by the tests."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict, assert_type

from friendli_async import AsyncFriendli, ChatCompletion, ChatMessage, ToolCall, messages, responses
from friendli_async.chat import (
    AssistantMessage,
    Chat,
    ChatOptions,
    Conversation,
    Function,
    ImageContent,
    Media,
    Message,
    Messages,
    SystemMessage,
    TextContent,
    Tool,
    ToolMessage,
    UserMessage,
)
from friendli_async.messages import InputMessage, TextBlock, ToolResultBlock, ToolUseBlock

# --- chat ------------------------------------------------------------------------------------------------------------


class TypedTurn(TypedDict):
    role: Literal["user", "assistant", "system"]
    content: str


class StoredTurn(TypedDict):
    role: str
    content: str | None
    tool_calls: NotRequired[list[dict[str, Any]]]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def user_struct(content: str) -> Message:
    return UserMessage(content=content)


def user_mapping(content: str) -> Mapping[str, object]:
    return {"role": "user", "content": content}


def user_from_dict_call(content: str) -> dict[str, Any]:
    return dict(role="user", content=content)


def history(pairs: Iterable[tuple[str, str]]) -> Conversation:
    messages: Conversation = []
    for question, answer in pairs:
        messages.append({"role": "user", "content": question})
        messages.append(AssistantMessage(content=answer))
    return messages


def history_by_comprehension(pairs: Iterable[tuple[str, str]]) -> Messages:
    return [turn for question, answer in pairs for turn in (user(question), {"role": "assistant", "content": answer})]


async def complete_conversation(chat: Chat, conversation: Messages) -> str:
    return (await chat.complete(model="m", messages=conversation)).text


async def complete_dicts(chat: Chat, conversation: Sequence[Mapping[str, object]]) -> str:
    return (await chat.complete(model="m", messages=conversation)).text


def to_stored_turn(reply: ChatCompletion) -> dict[str, object]:
    message = reply.message
    return {"role": message.role, "content": message.content, "tool_calls": message.tool_calls or []}


@dataclass
class Bot:
    chat: Chat
    messages: Conversation = field(default_factory=list[Any])
    system: str = "Be brief."

    async def say(self, content: str) -> str:
        self.messages.append({"role": "user", "content": content})
        await self.chat.complete(model="m", messages=[{"role": "system", "content": self.system}, *self.messages])
        reply = await self.chat.complete(model="m", messages=[SystemMessage(content=self.system), *self.messages])
        self.messages.append(reply.message)
        return reply.text

    async def stream(self, content: str) -> AsyncIterator[str]:
        self.messages.append({"role": "user", "content": content})
        async with self.chat.stream(model="m", messages=self.messages) as stream:
            async for piece in stream.text():
                yield piece
            self.messages.append((await stream.result()).message)


async def dicts_of_several_types(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    inferred = [{"role": "user", "content": "Hi"}]
    reply = await chat.complete(model="m", messages=inferred)
    inferred.append({"role": "assistant", "content": reply.text})
    await chat.complete(model="m", messages=inferred)
    texts: list[dict[str, str]] = [user("Hi")]
    objects: list[dict[str, object]] = [{"role": "user", "content": "Hi"}]
    objects.append({"role": "assistant", "content": reply.message.content})
    objects.append(to_stored_turn(reply))
    anything: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    typed: list[TypedTurn] = [{"role": "user", "content": "Hi"}]
    kept: list[StoredTurn] = [{"role": "user", "content": "Hi"}]
    mappings: list[Mapping[str, Any]] = [user("Hi")]
    await chat.complete(model="m", messages=texts)
    await chat.complete(model="m", messages=objects)
    await chat.complete(model="m", messages=anything)
    await chat.complete(model="m", messages=typed)
    await chat.complete(model="m", messages=kept)
    await chat.complete(model="m", messages=mappings)
    await complete_dicts(chat, texts)
    await complete_conversation(chat, texts)


async def messages_from_functions(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    questions = ["one", "two"]
    mixed: Messages = [user("a"), user_struct("b"), user_mapping("c"), user_from_dict_call("d")]
    await chat.complete(model="m", messages=mixed)
    await chat.complete(model="m", messages=[user("a"), user_struct("b"), user_mapping("c"), user_from_dict_call("d")])
    await chat.complete(model="m", messages=history([("a", "b")]))
    await chat.complete(model="m", messages=history_by_comprehension([("a", "b")]))
    await chat.complete(model="m", messages=[user(question) for question in questions])
    await chat.complete(model="m", messages=[{"role": "user", "content": question} for question in questions])
    await chat.complete(model="m", messages=[UserMessage(content=question) for question in questions])
    await chat.complete(model="m", messages=[dict(role="user", content=question) for question in questions])
    await chat.complete(model="m", messages=[dict(role="user", content="Hi")])
    await chat.complete(model="m", messages=tuple(user(question) for question in questions))
    await chat.complete(model="m", messages=list(map(user, questions)))
    system = {"role": "system", "content": "Be brief."}
    await chat.complete(model="m", messages=[system, {"role": "user", "content": "Hi"}])
    await chat.complete(model="m", messages=[system] + [user(question) for question in questions])


async def unannotated_structs(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    structs = [SystemMessage(content="Be brief."), UserMessage(content="Hi")]
    reply = await chat.complete(model="m", messages=structs)
    await chat.complete(model="m", messages=[*structs, reply.message])
    both = [UserMessage(content="Hi"), reply.message, UserMessage(content="And now?")]
    await chat.complete(model="m", messages=both)
    parts = [TextContent(text="What is it?"), ImageContent(image_url=Media("https://example.com/a.png"))]
    await chat.complete(model="m", messages=[UserMessage(content=parts)])
    await chat.complete(model="m", messages=[UserMessage(content=[{"type": "text", "text": "Hi"}])])
    await chat.complete(model="m", messages=[{"role": "user", "content": [TextContent(text="Hi")]}])
    await chat.complete(model="m", messages=[UserMessage(content=(TextContent(text="Hi"),))])


async def replies_in_conversations(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    conversation: Conversation = [{"role": "user", "content": "Hi"}]
    reply = await chat.complete(model="m", messages=conversation)
    conversation.append(reply.message)
    conversation += [reply.choices[0].message]
    conversation.extend([{"role": "user", "content": "Hi"}, UserMessage(content="Hi")])
    conversation.insert(0, {"role": "system", "content": "Be brief."})
    conversation[0] = SystemMessage(content="Be brief.")
    conversation = conversation[:1] + conversation[-10:]
    copy = list(conversation)
    copy.append(reply.message)
    await complete_conversation(chat, copy)
    await complete_conversation(chat, conversation + [user("Hi")])
    await complete_conversation(chat, [message for message in conversation if not isinstance(message, SystemMessage)])
    structs: list[Message] = [UserMessage(content="Hi")]
    structs.append(reply.message)
    await chat.complete(model="m", messages=structs)
    either: list[Message | dict[str, object]] = [{"role": "user", "content": "Hi"}]
    either.append(reply.message)
    await chat.complete(model="m", messages=either)
    few: list[dict[str, Any] | ChatMessage] = [{"role": "user", "content": "Hi"}, reply.message]
    await chat.complete(model="m", messages=few)
    bot = Bot(chat)
    await bot.say("Hi")
    async for piece in bot.stream("Hi"):
        assert_type(piece, str)
    await bot.say("And now?")


async def tool_calls(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    functions: dict[str, Callable[..., object]] = {"f": dict[str, object]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    conversation: Conversation = [{"role": "user", "content": "Hi"}]
    reply = await chat.complete(model="m", messages=conversation, tools=tools, tool_choice="required")
    calls: tuple[ToolCall, ...] = reply.message.tool_calls or ()
    conversation.append(reply.message)
    for call in calls:
        assert_type(call.id, str)
        assert_type(call.function.arguments, str)
        arguments: dict[str, Any] = json.loads(call.function.arguments)
        conversation.append(
            {
                "role": "tool",
                "tool_call_id": call.id,
                "content": json.dumps(functions[call.function.name](**arguments)),
            }
        )
        conversation.append(ToolMessage(content="5", tool_call_id=call.id))
    await chat.complete(
        model="m", messages=conversation, tools=[Tool(function=Function(name="f", parameters={"type": "object"}))]
    )
    results = [ToolMessage(content="5", tool_call_id=call.id) for call in calls]
    asked = user("Hi")
    await chat.complete(model="m", messages=[asked, AssistantMessage(tool_calls=calls), *results])
    await chat.complete(model="m", messages=[asked, AssistantMessage(content="", tool_calls=list(calls)), *results])
    await chat.complete(model="m", messages=[asked, AssistantMessage(tool_calls=reply.message.tool_calls), *results])
    await chat.complete(model="m", messages=[asked, {"role": "assistant", "tool_calls": calls}, *results])
    call_dicts = [
        {"id": c.id, "type": "function", "function": {"name": c.function.name, "arguments": c.function.arguments}}
        for c in calls
    ]
    await chat.complete(model="m", messages=[asked, AssistantMessage(tool_calls=call_dicts), *results])
    await chat.complete(model="m", messages=[asked, {"role": "assistant", "tool_calls": call_dicts}, *results])


async def reused_options(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    options: ChatOptions = {"temperature": 0.5, "max_tokens": 5}
    await chat.complete(model="m", messages=[user("Hi")], **options)
    constructed = ChatOptions(temperature=0, seed=1, stop=None)
    async with chat.stream(model="m", messages=[user("Hi")], **constructed) as stream:
        async for event in stream:
            assert_type(event.choices[0].delta.content if event.choices else "", str | None)


# --- messages --------------------------------------------------------------------------------------------------------


async def ways_to_write_messages(client: AsyncFriendli) -> None:
    api = client.serverless.messages
    dicts: list[dict[str, object]] = [{"role": "user", "content": "Hi"}]
    reply = await api.create(model="m", max_tokens=5, messages=dicts)
    dicts.append({"role": "assistant", "content": reply.content})
    dicts.append({"role": "user", "content": "And now?"})
    dicts.append({"role": "assistant", "content": reply.text})
    await api.create(model="m", max_tokens=5, messages=dicts)
    structs = [InputMessage("user", "Hi"), reply, InputMessage("user", "And now?")]
    await api.create(model="m", max_tokens=5, messages=structs)
    await api.create(model="m", max_tokens=5, messages=[user("Hi"), reply, dict(role="user", content="And now?")])
    either: list[InputMessage | messages.Message | Mapping[str, object]] = [user("Hi")]
    either.append(reply)
    await api.create(model="m", max_tokens=5, messages=either)
    texts: list[TextBlock] = [TextBlock("Hi")]
    await api.create(model="m", max_tokens=5, messages=[InputMessage("user", texts)])
    async with api.stream(model="m", max_tokens=5, messages=[user("Hi")]) as stream:
        await stream.result()


async def tool_uses(client: AsyncFriendli) -> None:
    api = client.serverless.messages
    tools: list[dict[str, object]] = [{"name": "f", "input_schema": {"type": "object"}}]
    reply = await api.create(
        model="m", max_tokens=50, messages=[user("Hi")], tools=tools, tool_choice={"type": "any"}, system="Be brief."
    )
    uses = [block for block in reply.content if isinstance(block, ToolUseBlock)]
    assert uses
    assert_type(uses[0].id, str)
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "5"} for use in uses]
    await api.create(model="m", max_tokens=5, messages=[user("Hi"), reply, {"role": "user", "content": results}])
    structs = [ToolResultBlock(use.id, "5") for use in uses]
    await api.create(model="m", max_tokens=5, messages=[user("Hi"), reply, InputMessage("user", structs)])
    blocks = [*structs, TextBlock("And now?")]
    await api.create(model="m", max_tokens=5, messages=[user("Hi"), reply, InputMessage("user", blocks)])
    conversation: messages.Conversation = [user("Hi"), reply]
    conversation.append(reply)
    conversation += [InputMessage("user", structs), {"role": "user", "content": results}]
    await api.create(model="m", max_tokens=5, messages=conversation)
    nested = [ToolResultBlock(use.id, [{"type": "text", "text": "5"}]) for use in uses]
    turns: list[dict[str, object]] = [{"role": "assistant", "content": reply.content}]
    turns.append({"role": "user", "content": nested})
    await api.create(model="m", max_tokens=5, messages=[user("Hi"), *turns])


# --- responses -------------------------------------------------------------------------------------------------------


async def ways_to_write_response_input(client: AsyncFriendli) -> None:
    api = client.serverless.responses
    dicts: list[dict[str, object]] = [{"role": "user", "content": "Hi"}]
    reply = await api.create(model="m", input=dicts)
    dicts.append({"role": "assistant", "content": reply.text})
    dicts.append(dict(role="user", content="And now?"))
    await api.create(model="m", input=dicts)
    await api.create(model="m", input=[user("Hi")])
    await api.create(model="m", input=[*reply.output, {"role": "user", "content": "And now?"}])
    structs = [responses.InputMessage("user", "Hi"), *reply.output, responses.InputMessage("user", "And now?")]
    await api.create(model="m", input=structs)
    conversation: responses.Conversation = [{"role": "user", "content": "Hi"}]
    conversation += reply.output
    conversation.extend(responses.FunctionToolCallOutput(call.id, call.function.arguments) for call in reply.tool_calls)
    await api.create(model="m", input=conversation)
    parts = [responses.InputText("What is it?"), responses.InputImage("https://example.com/a.png")]
    await api.create(model="m", input=[responses.InputMessage("user", parts)])
    texts: list[responses.InputText] = [responses.InputText("Hi")]
    await api.create(model="m", input=[responses.InputMessage("user", texts)])
    kept: responses.Input = [*dicts, *reply.output]
    async with api.stream(model="m", input=kept) as stream:
        await stream.result()


async def function_calls(client: AsyncFriendli) -> None:
    api = client.serverless.responses
    tools = [responses.FunctionTool(name="f", parameters={"type": "object"}), responses.CustomTool(name="g")]
    items: list[responses.InputItem | Mapping[str, object]] = [user("Hi")]
    reply = await api.create(model="m", input=items, tools=tools, tool_choice="required")
    items.extend(reply.output)
    assert reply.tool_calls
    for call in reply.tool_calls:
        assert_type(call.id, str)
        items.append({"type": "function_call_output", "call_id": call.id, "output": call.function.arguments})
        items.append(responses.FunctionToolCallOutput(call_id=call.id, output="5"))
    await api.create(model="m", input=items, tools=tools)


# --- tool-assisted chat ----------------------------------------------------------------------------------------------


async def tool_assisted(client: AsyncFriendli) -> None:
    api = client.serverless.tool_assisted_chat
    reply = await api.complete(model="m", messages=[user("Hi")], tools=[{"type": "web:search"}])
    conversation = [user("Hi"), {"role": "assistant", "content": reply.text}]
    await api.complete(model="m", messages=conversation)
    await api.complete(model="m", messages=[user("Hi"), reply.message, dict(role="user", content="And now?")])
    async with api.stream(model="m", messages=conversation, tools=[{"type": "math:calculator"}]) as stream:
        assert_type((await stream.result()).text, str)
