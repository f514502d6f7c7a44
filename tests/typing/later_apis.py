# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Static types of responses, messages, audio, images and files. Checked in strict mode; never run.

A `type: ignore` marks a call that the checkers must reject; if they accept it, they report the comment as unused.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, assert_type

from friendli_async import (
    AsyncFriendli,
    Meta,
    ToolCall,
    media,
    replies,
)
from friendli_async import messages as messages_api
from friendli_async.audio import (
    Audio,
    ContainerAudio,
    TranscriptDelta,
    TranscriptDone,
    Transcription,
    TranscriptionOptions,
    TranscriptionStream,
    TranscriptionUsage,
)
from friendli_async.chat import (
    AudioContent,
    ImageContent,
    VideoContent,
)
from friendli_async.files import FileInfo, Files, FileUpload, UploadedFile
from friendli_async.images import ContainerImage, ContainerImages, GeneratedImage, GeneratedImages, Images
from friendli_async.replies import UnknownEvent
from friendli_async.responses import (
    ContainerResponses,
    FunctionToolCallOutput,
    InputItem,
    InputMessage,
    OutputItem,
    OutputTextDelta,
    Response,
    ResponseCompleted,
    ResponseEvent,
    Responses,
    ResponsesOptions,
    ResponseStream,
    ResponseUsage,
)

# --- responses -------------------------------------------------------------------------------------------------------


async def responds(client: AsyncFriendli) -> None:
    responses = client.serverless.responses
    assert_type(responses, Responses)
    assert_type(client.dedicated.responses, Responses)
    assert_type(client.container.responses, ContainerResponses)
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    options: ResponsesOptions = {"max_output_tokens": 5, "tool_choice": "auto", "tools": [tool]}
    reply = await responses.create(model="m", input="Hi", **options)
    assert_type(reply, Response)
    assert_type(reply.text, str)
    assert_type(reply.reasoning, str)
    assert_type(reply.output, tuple[OutputItem, ...])
    assert_type(reply.tool_calls, tuple[ToolCall, ...])
    assert_type(reply.usage, ResponseUsage | None)
    assert_type(reply.meta, Meta)
    outputs = [{"type": "function_call_output", "call_id": call.id, "output": "5"} for call in reply.tool_calls]
    await responses.create(model="m", input=[*reply.output, *outputs, InputMessage("user", "And now?")])
    async with client.container.responses.stream(input=[{"role": "user", "content": "Hi"}]) as stream:
        assert_type(stream, ResponseStream)
        async for event in stream:
            assert_type(event, ResponseEvent)
            assert_type(event.type, str)
            match event:
                case OutputTextDelta():
                    assert_type(event.delta, str)
                case ResponseCompleted():
                    assert_type(event.response, Response)
                case UnknownEvent():
                    assert_type(event.data["x"], Any)
                case _:
                    assert_type(event.sequence_number, int | None)
    assert_type(await stream.result(), Response)
    assert_type(stream.usage, ResponseUsage | None)
    async for text in responses.stream(model="m", input="Hi").text():
        assert_type(text, str)
    await client.container.responses.create(input="Hi")
    await responses.create(input="Hi")  # type: ignore[call-arg]  # no model
    await responses.create(model="m", input=5)  # type: ignore[arg-type]  # rejected
    responses.stream(model="m", input="Hi", max_tokens=5)  # type: ignore[call-arg]  # rejected


# --- messages --------------------------------------------------------------------------------------------------------


async def messages_calls(client: AsyncFriendli, dicts: list[dict[str, object]]) -> None:
    messages = client.serverless.messages
    assert_type(messages, messages_api.Messages)
    assert_type(client.dedicated.messages, messages_api.Messages)
    assert_type(client.container.messages, messages_api.ContainerMessages)
    reply = await messages.create(
        model="m",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=9,
        system="be brief",
        temperature=None,
        thinking={"type": "enabled", "budget_tokens": 1024},
        tools=[{"name": "time"}, messages_api.Tool("weather", input_schema={"type": "object"})],
        tool_choice={"type": "auto"},
        output_config={"effort": "low"},
        extra_body={"x": 1},
    )
    assert_type(reply, messages_api.Message)
    assert_type(reply.text, str)
    assert_type(reply.reasoning, str)
    assert_type(reply.stop_reason, messages_api.StopReason | None)
    assert_type(reply.usage, messages_api.MessageUsage | None)
    assert_type(reply.meta, Meta)
    for block in reply.content:
        match block:
            case messages_api.TextBlock(text=text):
                assert_type(text, str)
            case messages_api.ThinkingBlock():
                assert_type(block.signature, str | None)
            case messages_api.ToolUseBlock():
                assert_type(block.id, str)
            case _:
                assert_type(block, dict[str, Any])
    await messages.create(model="m", messages=dicts)
    await messages.create(
        model="m",
        messages=[
            reply,
            messages_api.InputMessage("user", [messages_api.ToolResultBlock("id", "5"), messages_api.TextBlock("Hi")]),
        ],
        system=[messages_api.TextBlock("be brief")],
    )
    stream = client.container.messages.stream(messages=[reply])
    assert_type(stream, messages_api.MessageStream)
    async with stream as opened:
        assert_type(opened, messages_api.MessageStream)
        async for event in opened:
            assert_type(event, messages_api.MessageEvent)
            assert_type(event.type, str)
            match event:
                case messages_api.ContentBlockDelta(delta=messages_api.TextDelta(text=text)):
                    assert_type(text, str)
                case messages_api.MessageDelta():
                    assert_type(event.delta.stop_reason, messages_api.StopReason | None)
                case UnknownEvent():
                    assert_type(event.data, dict[str, Any])
                case _:
                    pass
    assert_type(await stream.result(), messages_api.Message)
    assert_type(stream.usage, messages_api.MessageUsage | None)
    async for text in messages.stream(model="m", messages=dicts).text():
        assert_type(text, str)
    async for thought in messages.stream(model="m", messages=dicts).reasoning():
        assert_type(thought, str)
    await client.container.messages.create(messages=dicts)
    await messages.create(messages=dicts)  # type: ignore[call-arg]  # no model
    await messages.create(model="m", messages="Hi")  # type: ignore[arg-type]  # rejected
    await messages.create(model="m", messages=dicts, max_token=5)  # type: ignore[call-arg]  # rejected


# --- audio, images, files, media -------------------------------------------------------------------------------------


async def transcribes_and_generates_images(client: AsyncFriendli, path: Path, pieces: AsyncIterator[bytes]) -> None:
    assert_type(client.serverless.audio, Audio)
    assert_type(client.dedicated.audio, Audio)
    assert_type(client.container.audio, ContainerAudio)
    options: TranscriptionOptions = {"language": "en", "chunking_strategy": {"type": "server_vad"}, "temperature": 0}
    transcription = await client.serverless.audio.transcribe(model="m", file=path, **options)
    assert_type(transcription, Transcription)
    assert_type(transcription.text, str)
    assert_type(transcription.usage, TranscriptionUsage | None)
    await client.container.audio.transcribe(file=b"RIFF", filename="a.wav", content_type="audio/wav")
    async with client.container.audio.stream(file=pieces, chunking_strategy="auto") as heard:
        assert_type(heard, TranscriptionStream)
        async for event in heard:
            assert_type(event, TranscriptDelta | TranscriptDone | replies.UnknownEvent)
    assert_type(await heard.result(), Transcription)
    await client.serverless.audio.transcribe(file=path)  # type: ignore[call-arg]  # no model
    await client.container.audio.transcribe(file="a.wav")  # type: ignore[arg-type]  # must be a Path
    client.container.audio.stream(file=path, stream=True)  # type: ignore[call-arg]  # rejected
    assert_type(client.dedicated.image, Images)
    assert_type(client.container.image, ContainerImages)
    painted = await client.dedicated.image.generate(model="m", prompt="a cat", response_format="png", seed=None)
    assert_type(painted, GeneratedImages)
    assert_type(painted.data, tuple[GeneratedImage, ...])
    assert_type(painted.data[0].url, str | None)
    assert_type(painted.data[0].content(), bytes)
    edited = await client.container.image.edit(
        image=[path, b"PNG", "https://host/a.png", {"image": "QUJD"}], prompt="p"
    )
    assert_type(edited, ContainerImage)
    assert_type(edited.image, str)
    await client.container.image.edit(image=path, prompt="p", guidance_scale=None)  # type: ignore[arg-type]  # rejected
    assert_type(client.file, Files)
    with path.open("rb") as file:
        uploaded = await client.file.upload(file, project_id="p", progress=lambda sent, total: None)
    assert_type(uploaded, UploadedFile)
    assert_type(await client.file.download(uploaded.id, path), Path)
    assert_type(await client.file.get_info(uploaded.id), FileInfo)
    assert_type((await client.file.get_download_url(uploaded.id)).download_url, str)
    assert_type(await client.file.init_upload(name="n", size=1, digest="d", project_id="p"), FileUpload | None)
    assert_type(await client.file.complete_upload(uploaded.id), None)
    await client.file.upload(path)  # type: ignore[call-arg]  # no project

    part = await media.image(path)
    assert_type(part, ImageContent)
    assert_type(await media.audio(b"ID3", content_type="audio/mpeg"), AudioContent)
    assert_type(await media.video("https://host/a.mp4", max_bytes=1), VideoContent)
    text = {"type": "text", "text": "What is this?"}
    await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": [text, part]}])


async def continues_conversation(client: AsyncFriendli) -> None:
    """The output of a response can be part of the next input."""
    conversation: list[InputItem] = [InputMessage("user", "What time is it?")]
    response = await client.serverless.responses.create(model="m", input=conversation)
    conversation.extend(response.output)
    conversation.extend(FunctionToolCallOutput(call.id, "12:30") for call in response.tool_calls)
    await client.serverless.responses.create(model="m", input=conversation)
