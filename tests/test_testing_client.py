"""This library's client against the embedded server, as in a user's tests: calls every operation once."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from support.embedded_server import user
from support.operations import served_operations

from friendli_async import AsyncFriendli
from friendli_async.testing import FriendliServer

pytestmark = pytest.mark.compatibility

DEPLOYMENTS: Final = ("serverless", "dedicated", "container")
JANUARY: Final[dict[str, Any]] = {
    "start_time": datetime(2026, 1, 1, tzinfo=UTC),
    "end_time": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=10),
}
TEXT: Final = "one two three"


async def use_common_operations(deployment: Any) -> None:
    """Calls the operations that every deployment has, plain and streamed."""
    chat, echo = {"model": "m", "messages": [user(TEXT)]}, f"You said: {TEXT}"
    assert (await deployment.chat.complete(**chat)).text == echo
    assert (await deployment.chat.stream(**chat).result()).text == echo
    assert (await deployment.completions.complete(model="m", prompt=TEXT)).text == TEXT
    assert (await deployment.completions.stream(model="m", prompt=TEXT).result()).text == TEXT
    options: dict[str, Any]
    for options in ({}, {"thinking": {"type": "enabled", "budget_tokens": 9}}, {"max_tokens": 2}):
        message = await deployment.messages.create(**{**chat, "max_tokens": 99, **options})
        streamed = await deployment.messages.stream(**{**chat, "max_tokens": 99, **options}).result()
        assert (streamed.content, streamed.stop_reason) == (message.content, message.stop_reason)
        assert echo.startswith(message.text)
    for options in ({}, {"reasoning": {"effort": "low"}}, {"max_output_tokens": 2}):
        response = await deployment.responses.create(model="m", input=TEXT, **options)
        streamed = await deployment.responses.stream(model="m", input=TEXT, **options).result()
        assert (streamed.status, [part.text for part in streamed.output[-1].content or ()]) == (
            response.status,
            [part.text for part in response.output[-1].content or ()],
        )
        assert echo.startswith(response.text)
    tokens = (await deployment.token.tokenize(model="m", prompt=TEXT)).tokens
    assert (await deployment.token.detokenize(model="m", tokens=tokens)).text == TEXT
    transcription = await deployment.audio.transcribe(model="m", file=b"RIFF")
    assert (await deployment.audio.stream(model="m", file=b"RIFF").result()).text == transcription.text


async def use_endpoints(client: AsyncFriendli) -> None:
    endpoint = client.dedicated.endpoint
    advanced = {"tokenizer_skip_special_tokens": True, "tokenizer_add_special_tokens": True}
    for number in range(3):
        await endpoint.create(project_id="p", name=f"e{number}", instance_option_id="i", advanced=advanced)
    created = await endpoint.wandb_artifact_create(wandb_artifact_version_name="a:v1")
    ids = [item.id async for item in endpoint.list(limit=2)]
    assert ids == ["endpoint-1", "endpoint-2", "endpoint-3", created.endpoint_id]
    name = ids[0]
    assert (await endpoint.wait(name, interval=0.001)).status == "RUNNING"
    assert (await endpoint.sleep(name)).status == "SLEEPING"
    await endpoint.wake(name)
    assert (await endpoint.wait(name, interval=0.001)).status == "RUNNING"
    assert (await endpoint.update(name, name="other")).name == "other"
    assert [version.name async for version in endpoint.get_version_history(name, limit=1)] == ["other", "e0"]
    assert (await endpoint.get_spec(name)).name == "other"
    assert (await endpoint.restart(name)).status == "INITIALIZING"
    assert (await endpoint.get_status(name)).phase == "DOWNLOADING_MODEL"
    assert (await endpoint.terminate(name)).status == "TERMINATING"
    await endpoint.delete(name)
    assert [item.id async for item in endpoint.list()] == ids[1:]


async def use_other_operations(client: AsyncFriendli, folder: Path) -> None:
    assert len([bucket async for bucket in client.cost.get(**JANUARY)]) == 10
    assert len([bucket async for bucket in client.usage.get(**JANUARY, bucket_width="12h")]) == 20
    assert [model.reasoning for model in (await client.serverless.model.list()).data] == [False, True]
    tools = [{"type": "math:calculator"}]
    tool_assisted = client.serverless.tool_assisted_chat
    assert "5" in (await tool_assisted.complete(model="m", messages=[user("2+3")], tools=tools)).text
    for deployment in (client.serverless, client.dedicated):
        assert "Hi" in (await deployment.chat_render.render(model="m", messages=[user("Hi")])).text
    vectors = (await client.dedicated.embeddings.create(model="m", input=["a", "b"])).data
    assert [math.hypot(*vector.embedding) for vector in vectors] == pytest.approx([1, 1], abs=1e-4)
    assert len((await client.dedicated.text_classification.classify(model="m", input=["a", "b"])).data) == 2
    assert len((await client.container.text_classification.classify(input="a")).data) == 1
    painted = await client.dedicated.image.generate(model="m", prompt="red", response_format="png")
    edited = await client.dedicated.image.edit(model="m", image=painted.data[0].content(), prompt="red", seed=1)
    assert edited.data[0].url
    contained = await client.container.image.generate(prompt="red")
    changed = await client.container.image.edit(image=contained.content(), prompt="red")
    assert changed.content() == contained.content() == painted.data[0].content()
    sent = await client.file.upload(b"content", project_id="p", name="a.txt")
    assert (await client.file.get_info(sent.id)).status == "UPLOADED"
    assert (await client.file.download(sent.id, folder / "a.txt")).read_bytes() == b"content"


async def test_client_can_call_every_operation(server: FriendliServer, client: AsyncFriendli, tmp_path: Path) -> None:
    for deployment in DEPLOYMENTS:
        await use_common_operations(getattr(client, deployment))
    await use_endpoints(client)
    await use_other_operations(client, tmp_path)
    assert {request.status for request in server.requests} <= {200, 204}
    used = {(request.method, path_template(request)) for request in server.requests}
    assert {served.key for served in served_operations()} - used == set()


def path_template(request: Any) -> str:
    path: str = request.path
    for name, value in request.path_parameters.items():
        path = path.replace(f"/{value}", f"/{{{name}}}", 1)
    return path
