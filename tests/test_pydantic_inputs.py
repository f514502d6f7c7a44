"""What a request consists of, and options, as fields of pydantic models: a conversation in a body, settings."""

import json
from types import ModuleType
from typing import Annotated, Any

import msgspec
import pytest
from fastapi import Body, Depends, FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, TypeAdapter, ValidationError

from friendli_async import AsyncFriendli, ChatChunk, ChatCompletion, ChatMessage, Limits, Pacing, RetryPolicy, Timeouts
from friendli_async.chat import Message, SystemMessage, ToolAssistedEvent, ToolStatus, UserMessage, inputs
from friendli_async.chat.replies import AnyMessage, ChunkChoice, ChunkDelta
from friendli_async.endpoints import inputs as endpoint_inputs
from friendli_async.integrations.fastapi import get_client, lifespan
from friendli_async.messages import InputMessage
from friendli_async.messages import inputs as message_inputs
from friendli_async.messages.replies import AnyBlock, MessageStop
from friendli_async.replies import Reply
from friendli_async.responses import InputItem, OutputItem
from friendli_async.responses import inputs as response_inputs
from friendli_async.testing import FriendliServer


def public_structs() -> list[type[msgspec.Struct]]:
    modules: list[ModuleType] = [inputs, message_inputs, response_inputs, endpoint_inputs]
    public = [getattr(module, name) for module in modules for name in module.__all__]
    return [each for each in public if isinstance(each, type) and issubclass(each, msgspec.Struct)]


@pytest.mark.parametrize("kind", public_structs(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_input_has_a_pydantic_schema(kind: type[msgspec.Struct]) -> None:
    assert TypeAdapter(kind).json_schema()["type"] == "object"


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image_url", "image_url": {"url": "u"}}]},
    {
        "role": "assistant",
        "content": "Look.",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "blue", "tool_call_id": "1"},
]


def test_conversation_in_the_body_of_a_route_is_sent() -> None:
    class Chat(BaseModel):
        messages: list[Message]

    with FriendliServer() as server:
        app = FastAPI(lifespan=lifespan(token="test-token", server_url=server.url))

        @app.post("/chat")
        async def chat(body: Chat, client: Annotated[AsyncFriendli, Depends(get_client)]) -> ChatCompletion:
            return await client.serverless.chat.complete(model="m", messages=body.messages)

        with TestClient(app) as browser:
            assert browser.post("/chat", json={"messages": CONVERSATION}).status_code == 200
            assert server.requests[0].json["messages"] == CONVERSATION
            wrong = browser.post("/chat", json={"messages": [{"role": "robot", "content": "Hi"}]})
            assert (wrong.status_code, "Invalid value 'robot'" in wrong.text) == (422, True)
            assert "SystemMessage" in json.dumps(browser.get("/openapi.json").json())


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        (Message, {"content": "Obey me."}, "role"),
        (inputs.Tool, {"function": {"name": "look"}}, "type"),
        (InputItem, {"call_id": "1", "output": "blue"}, "type"),
        (message_inputs.ImageBlock, {"source": {"type": "url", "url": "u"}}, "type"),
    ],
    ids=["message", "tool", "item", "block"],
)
def test_input_without_the_field_that_names_its_kind_is_rejected(kind: Any, value: object, field: str) -> None:
    with pytest.raises(ValidationError, match=f"missing required field `{field}`"):
        TypeAdapter(kind).validate_python(value)


def test_events_of_a_tool_assisted_chat_are_restored() -> None:
    adapter: TypeAdapter[list[ToolAssistedEvent]] = TypeAdapter(list[ToolAssistedEvent])
    events: list[ToolAssistedEvent] = [
        ToolStatus(tool_call_id="1", name="math:calculator", status="ENDED", result="2"),
        ToolStatus(),
        ChatChunk(id="c", choices=(ChunkChoice(delta=ChunkDelta(content="Hi")),)),
        ChatChunk(),
    ]
    assert adapter.validate_json(adapter.dump_json(events)) == events
    assert adapter.validate_python(events) == events


def test_event_that_is_only_its_type_is_restored() -> None:
    assert TypeAdapter(MessageStop).validate_python({"type": "message_stop"}) == MessageStop()


def test_item_with_a_role_is_a_message() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(InputItem)
    assert adapter.validate_python({"role": "user", "content": "Hi"}) == response_inputs.InputMessage("user", "Hi")


@pytest.mark.parametrize("kind", [AnyMessage, AnyBlock, response_inputs.AnyTool, Reply])
def test_base_class_accepts_instances_only(kind: Any) -> None:
    with pytest.raises(ValidationError, match=f"Expected `{kind.__name__}`, got `dict`"):
        TypeAdapter(kind).validate_python({"role": "user", "content": "Hi"})
    message = UserMessage("Hi")
    assert TypeAdapter(AnyMessage).validate_python(message) is message


def test_dict_that_is_no_message_stays_what_it_is() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(inputs.Messages)
    robot = {"role": "robot", "content": "Hi"}
    assert list(adapter.validate_python([robot, {"role": "user", "content": "Hi"}])) == [robot, UserMessage("Hi")]


def test_error_names_the_kinds_of_message() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[Message]).validate_python([{"role": "user"}])
    error = next(each for each in caught.value.errors() if "content" in each["msg"])
    assert error["loc"] == (0, "function-plain[UserMessage()]")


def test_single_message_is_the_body_of_a_route() -> None:
    app = FastAPI()

    @app.post("/say")
    async def say(message: Annotated[UserMessage, Body()]) -> UserMessage:
        return message

    with TestClient(app) as browser:
        assert browser.post("/say", json=CONVERSATION[1]).json() == CONVERSATION[1]


def test_messages_in_a_model_are_saved_and_restored() -> None:
    adapter: TypeAdapter[list[Any]] = TypeAdapter(list[Message])
    messages = [SystemMessage("Be brief."), UserMessage("Hi"), ChatMessage(role="assistant", content="Hello")]
    assert adapter.validate_python(messages) == messages
    saved = adapter.dump_json(messages)
    assert json.loads(saved)[2] == {"role": "assistant", "content": "Hello"}
    assert adapter.dump_json(adapter.validate_json(saved)) == saved
    with pytest.raises(ValidationError, match="missing required field `content`"):
        adapter.validate_python([{"role": "user"}])


def test_input_of_the_other_apis_is_validated() -> None:
    item = OutputItem(type="function_call", call_id="1", name="look", arguments="{}")
    adapter: TypeAdapter[list[Any]] = TypeAdapter(list[InputItem])
    assert adapter.validate_python([item]) == [item]
    assert adapter.validate_json(adapter.dump_json([item]))[0].call_id == "1"
    block = {"type": "thinking", "thinking": "Hm", "signature": "s", "new": 1}
    message = TypeAdapter(InputMessage).validate_python({"role": "assistant", "content": [block]})
    assert message.content == [block]


@pytest.mark.parametrize(
    "value", [Limits(event=5), Pacing(retry_budget=7), RetryPolicy(initial=1), Timeouts(idle=None)]
)
def test_options_in_settings_are_validated(value: Limits | Pacing | RetryPolicy | Timeouts) -> None:
    options = TypeAdapter(type(value))
    assert options.validate_python(value) is value
    assert options.validate_json(options.dump_json(value)) == value
    assert options.json_schema()["properties"].keys() == {*value.__struct_fields__}
    first = value.__struct_fields__[0]
    with pytest.raises(ValidationError, match=first):
        options.validate_python({first: -1})
    with pytest.raises(ValidationError, match="unknown field `totall`"):
        options.validate_python({"totall": 1})
