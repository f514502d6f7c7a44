"""Transcriptions: replies, streams and how they end, and rejected arguments."""

import io
import json
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sockets import FAST_RETRY, assert_no_leaks, with_timeout

from friendli_async import (
    ArgumentError,
    AsyncFriendli,
    Partial,
    RateLimitError,
    StreamInterruptedError,
    Usage,
)
from friendli_async.audio import (
    TranscriptDelta,
    TranscriptDone,
    Transcription,
    TranscriptionUsage,
    _TranscriptCollector,
)
from friendli_async.replies import UnknownEvent
from friendli_async.testing import FriendliServer, Step, cut, done, event, json_body, script, stall

USAGE: Final = {
    "input_tokens": 4,
    "output_tokens": 2,
    "total_tokens": 6,
    "input_audio_length_ms": 1500,
    "processed_audio_length_ms": 1400,
    "type": "tokens",
    "input_token_details": {"audio_tokens": 4, "text_tokens": 0},
}
AUDIO: Final = b"RIFF\0\0\0\0WAVEfmt "


def delta(text: str) -> Step:
    return event({"type": "transcript.text.delta", "delta": text})


def transcript_done(text: str | None = "Hello there", **more: object) -> Step:
    return event({"type": "transcript.text.done", "text": text, "usage": USAGE, **more})


@pytest.fixture
def client_options() -> dict[str, Any]:
    return {"retry": FAST_RETRY}


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_reply_has_text_usage_and_meta(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body({"text": "Hello", "usage": USAGE, "new": {"field": 1}}))
    reply = await client.serverless.audio.transcribe(model="m", file=AUDIO)
    assert reply.text == "Hello"
    assert reply.usage is not None
    assert reply.usage.input_token_details is not None
    assert reply.usage == TranscriptionUsage(4, 2, 6, 1500, 1400, "tokens", reply.usage.input_token_details)
    assert reply.usage.input_token_details.audio_tokens == 4
    assert reply.meta.request_id == "req-000001"


async def test_extra_body_is_sent_as_form_fields_and_extra_query_in_the_url(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    extra = {"text": "a", "flag": True, "number": 2, "half": 0.5, "object": {"a": [1]}, "nothing": None}
    server.enqueue(json_body({"text": ""}))
    await client.container.audio.transcribe(file=AUDIO, extra_body=extra, extra_query={"q": "1"})
    [request] = server.requests
    parts = {part.name: (part.text, part.content_type) for part in request.form if part.filename is None}
    assert parts == {
        "text": ("a", None),
        "flag": ("true", None),
        "number": ("2", None),
        "half": ("0.5", None),
        "object": ('{"a":[1]}', "application/json"),
    }
    assert request.query == {"q": ["1"]}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"langauge": "en"}, TypeError, "did you mean 'language'"),
        ({"stream": True}, TypeError, "stream"),
        ({"timeout": 5}, TypeError, "with_options"),
        ({"model": 5}, ValueError, "model: Expected `str`"),
        ({"temperature": "hot"}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "nan"),
        ({"chunking_strategy": {"type": "silence"}}, ValueError, r"chunking_strategy\.type"),
        ({"chunking_strategy": {"type": "server_vad", "threshold": "x"}}, ValueError, r"chunking_strategy\.threshold"),
        ({"language": "\ud800"}, ValueError, "language: lone surrogates"),
        ({"extra_body": {"x": object()}}, ValueError, "x: object is not JSON serializable"),
        ({"extra_body": {"stream": True}}, ValueError, "extra_body.stream"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) and "extra_body" not in value else None,
)
async def test_invalid_argument_is_rejected_before_sending(
    server: FriendliServer, client: AsyncFriendli, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await client.container.audio.transcribe(file=AUDIO, **options)
    with pytest.raises(error, match=message):
        client.container.audio.stream(file=AUDIO, **options)
    assert server.connections == 0


class Upload:
    """An upload as web frameworks pass it."""

    file = io.BytesIO(AUDIO)

    async def read(self) -> bytes:
        return self.file.read()


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("a.wav", "; for a path pass pathlib.Path(...)"),
        (("a.wav", AUDIO), "; pass only the bytes or the file; audio takes filename=..."),
        (Upload(), "; pass its .file"),
        (5, ""),
    ],
)
async def test_file_in_another_form_suggests_the_right_one(client: AsyncFriendli, file: Any, hint: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        await client.serverless.audio.transcribe(model="m", file=file)
    wanted = "Expected bytes, a path, an open binary file or an async iterator"
    assert str(raised.value) == f"file: {wanted}, got `{type(file).__name__}`{hint}"


@pytest.mark.parametrize("deployment", ["serverless", "dedicated"])
async def test_model_may_be_omitted_only_for_containers(
    server: FriendliServer, client: AsyncFriendli, deployment: str
) -> None:
    audio = getattr(client, deployment).audio
    with pytest.raises(ValueError, match=r"^model: Expected `str`, got `null`"):
        await audio.transcribe(model=None, file=AUDIO)
    with pytest.raises(ValueError, match=r"^model: Expected `str`, got `null`"):
        audio.stream(model=None, file=AUDIO)
    assert server.connections == 0
    assert (await client.container.audio.transcribe(model=None, file=AUDIO)).text
    assert "model" not in {part.name for part in server.requests[0].form}


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_stream_yields_typed_events_and_a_result(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(delta("Hello "), delta("there"), transcript_done(), done()))
    async with client.serverless.audio.stream(model="m", file=AUDIO) as stream:
        events = [event async for event in stream]
    assert [type(event) for event in events] == [TranscriptDelta, TranscriptDelta, TranscriptDone]
    assert stream.outcome == "done"
    result = await stream.result()
    assert result.text == "Hello there"
    assert result.usage is not None
    assert result.usage == stream.usage
    assert result.meta.status == 200
    assert server.requests[0].form[1].text == "true"
    await assert_no_leaks(client, server, connections=1)


async def test_text_view_yields_deltas_or_full_text_without_deltas(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    audio = client.container.audio
    server.enqueue(script(delta("Hello "), delta(""), delta("there"), transcript_done()), script(transcript_done()))
    assert [text async for text in audio.stream(file=AUDIO).text()] == ["Hello ", "there"]
    assert [text async for text in audio.stream(file=AUDIO).text()] == ["Hello there"]


@pytest.mark.parametrize(
    "steps",
    [
        [delta("a"), transcript_done("a"), done()],
        [delta("a"), transcript_done("a")],
        [delta("a"), done()],
        [delta("a"), transcript_done(None), done()],
        [delta("a"), event({"type": "ping"}), transcript_done("a"), done()],
        [event({"delta": "a"}, name="transcript.text.delta"), transcript_done("a"), done()],
        [event({"type": "transcript.text.delta", "delta": "a"}, name="message"), done()],
    ],
    ids=["all", "no sentinel", "sentinel only", "done without text", "ping", "type by name", "named message"],
)
async def test_stream_completes_in_every_dialect(
    server: FriendliServer, client: AsyncFriendli, steps: list[Step]
) -> None:
    server.enqueue(script(*steps))
    stream = client.container.audio.stream(file=AUDIO)
    assert (await with_timeout(stream.result())).text == "a"
    assert stream.outcome == "done"


async def test_unknown_event_is_passed_through(server: FriendliServer, client: AsyncFriendli) -> None:
    new = {"type": "transcript.speaker", "speaker": {"id": 1}}
    named = event({"x": 1}, name="later")
    server.enqueue(script(event(new), named, delta("a"), transcript_done("a")))
    events = [event async for event in client.container.audio.stream(file=AUDIO)]
    assert events[:2] == [UnknownEvent("transcript.speaker", new), UnknownEvent("later", {"x": 1})]


async def test_every_event_has_its_wire_type(server: FriendliServer, client: AsyncFriendli) -> None:
    types = ["transcript.text.delta", "transcript.text.new", "transcript.text.done"]
    server.enqueue(script(*(event({"type": name}) for name in types), done()))
    assert [each.type async for each in client.container.audio.stream(file=AUDIO)] == types
    assert msgspec.json.encode(TranscriptDelta("a")) == b'{"type":"transcript.text.delta","delta":"a"}'


async def test_interrupted_stream_raises_with_partial_text(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(delta("Hello "), cut()), script(delta("Hello ")))
    for _ in range(2):
        stream = client.container.audio.stream(file=AUDIO)
        with pytest.raises(StreamInterruptedError) as caught:
            await with_timeout(stream.result())
        assert caught.value.partial is not None
        assert caught.value.partial.text == "Hello "
        assert stream.outcome == "truncated"


async def test_error_after_done_event_carries_usage_in_partial(server: FriendliServer, client: AsyncFriendli) -> None:
    end = transcript_done("Hello", usage={"input_tokens": 7, "output_tokens": 2})
    server.enqueue(script(delta("Hello"), end, event({"message": "slow down", "code": 429}, name="error"), stall()))
    with pytest.raises(RateLimitError) as caught:
        await with_timeout(client.container.audio.stream(file=AUDIO).result())
    billed = Usage(prompt_tokens=7, completion_tokens=2, total_tokens=9)
    assert caught.value.partial == Partial(text="Hello", usage=billed)


@pytest.mark.parametrize("again", [{"text": "", "usage": None}, {"text": None, "usage": {}}])
async def test_second_end_that_repeats_nothing_takes_nothing_back(
    server: FriendliServer, client: AsyncFriendli, again: dict[str, Any]
) -> None:
    server.enqueue(script(transcript_done("Hello"), transcript_done(**again), done()))
    result = await client.container.audio.stream(file=AUDIO).result()
    assert result.text == "Hello"
    assert result.usage is not None
    assert result.usage.total_tokens == 6


async def test_usage_by_duration_has_its_seconds(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(transcript_done("a", usage={"type": "duration", "seconds": "2.5"}), done()))
    result = await client.container.audio.stream(file=AUDIO).result()
    assert result.usage == TranscriptionUsage(type="duration", seconds=2.5)


@given(st.lists(st.text(max_size=5), max_size=6))
def test_deltas_are_concatenated(deltas: list[str]) -> None:
    collector = _TranscriptCollector()
    payloads = [json.dumps({"type": "transcript.text.delta", "delta": delta}).encode() for delta in deltas]
    for payload in payloads:
        collector.extend([collector.dialect.decode_payload(payload)])
    assert collector.result() == Transcription(text="".join(deltas))
    assert collector.partial().text == "".join(deltas)
    assert not collector.may_end


def test_last_event_without_any_text_completes_nothing() -> None:
    collector = _TranscriptCollector()
    collector.extend([TranscriptDone()])
    assert not collector.may_end


@pytest.mark.parametrize("kind", [TranscriptDelta, TranscriptDone])
def test_text_of_any_event_is_the_first_text(kind: Any) -> None:
    collector = _TranscriptCollector()
    for text in ("", "a"):
        collector.extend([kind(text)])
        assert collector.has_text == bool(text)


@pytest.mark.parametrize("final", ["", None])
async def test_empty_text_of_the_last_event_leaves_that_of_the_deltas(
    server: FriendliServer, client: AsyncFriendli, final: str | None
) -> None:
    server.enqueue(script(delta("a"), delta("b"), event({"type": "transcript.text.done", "text": final})))
    assert (await client.container.audio.stream(file=AUDIO).result()).text == "ab"
