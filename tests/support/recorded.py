"""Recorded requests of the official SDK, how to make the same calls with this library, and the deliberate differences.

Each line of `data/requests_*.jsonl` holds a call and the request that it sent. `make` makes the call with this
library, and `assert_sent` compares what arrives: method, path, query, four headers, and the body by value.
`DIFFERENCES` lists all deliberate differences. The tests are in `test_recorded_requests`.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from support.messages import SHORT, named

from friendli_async import AsyncFriendli
from friendli_async.testing import Answer, ReceivedRequest, Script, done, event, json_body, script, text

Recorded = dict[str, Any]

DATA: Final = Path(__file__).parents[1] / "data"
HEADERS: Final = ("accept", "content-type", "authorization", "x-friendli-team")
SEED: Final = "serverless.tool_assisted_chat_completion"
BODY: Final = "tool_assisted_completion_request_body"
METHODS: Final = {
    "embeddings": "create",
    "models": "list",
    "messages": "create",
    "responses": "create",
    "get_cost": "get",
    "get_usage": "get",
}
"""Official method names -> ours, where they differ."""
NAMES: Final = {"input_": "input", "additional_properties": "extra_body"}
"""Official parameter names -> ours, where they differ."""
WITHDRAWN: Final = ("min_tokens", "response_format", "timeout_microseconds")
"""Fields of tool-assisted chat before 0.14.0 without a parameter in its latest version."""
NOT_NULLABLE: Final = ("resume_generation",)
"""Fields of tool-assisted chat before 0.14.0 that are not nullable in its latest version."""


# --- recordings ------------------------------------------------------------------------------------------------------


def recorded(name: str) -> list[Recorded]:
    """Returns the lines of one recording, each with the recording's name."""
    lines = (DATA / f"requests_{name}.jsonl").read_text().splitlines()
    return [{**json.loads(line), "recording": name} for line in lines]


def label(line: Recorded) -> str:
    return f"{line['operation']}-{line['variant']}-{line['sdk_version'].split()[0]}"


def given(line: Recorded) -> dict[str, Any]:
    """Returns the caller's request parameters, which some of the SDK's methods take as a single argument."""
    kwargs = {name: value for name, value in line["call_kwargs"].items() if name not in _BESIDE}
    if line["operation"] == SEED:
        body: dict[str, Any] = kwargs.get(BODY, {})
        return body
    if ".completions." in line["operation"]:
        [kwargs] = kwargs.values()
    return kwargs


_BESIDE: Final = ("x_friendli_team", "accept_header_override")


def streams(line: Recorded) -> bool:
    """Whether this library streams the call: newer SDKs decide by the body, the seed operation streams by default."""
    if line["operation"] == SEED:
        return given(line).get("stream") is not False
    return line["operation"].endswith(".stream") or given(line).get("stream") is True


# --- our calls -------------------------------------------------------------------------------------------------------


def _value(argument: object) -> Any:
    match argument:
        case {"$datetime": str(text)}:
            return datetime.fromisoformat(text)
        case {"$bytes": str(text)}:
            return text
        case _:
            return argument


def arguments(line: Recorded) -> dict[str, Any]:
    """Returns the caller's parameters as arguments of our method."""
    kwargs = {NAMES.get(name, name): _value(value) for name, value in given(line).items() if name != "stream"}
    file = kwargs.pop("file", None)
    if file is not None:
        kwargs |= {"file": file["content"]["$bytes"].encode(), "filename": file["file_name"]}
        kwargs |= {"content_type": file["content_type"]} if "content_type" in file else {}
    if "tool_assisted" in line["operation"]:
        moved = {name: kwargs.pop(name) for name in WITHDRAWN if name in kwargs}
        kwargs = {name: value for name, value in kwargs.items() if name not in NOT_NULLABLE or value is not None}
        kwargs |= {"extra_body": moved} if moved else {}
    return kwargs


async def make(client: AsyncFriendli, line: Recorded) -> None:
    """Makes the recorded call with this library, and reads the reply to the end."""
    if line["operation"] == SEED:
        assert streams(line)
        call = client.serverless.tool_assisted_chat_completion(**line["call_kwargs"])
        assert [event async for event in call]
        return
    if line["call_kwargs"].get("accept_header_override"):
        assert streams(line)  # our streams send the requested header anyway
    team = line["call_kwargs"].get("x_friendli_team")
    resource: Any = client if team is None else client.with_options(team=team)
    *groups, method = line["operation"].split(".")
    for group in groups:
        resource = getattr(resource, group)
    if streams(line):
        stream = resource.stream(**arguments(line))
        assert [event async for event in stream]
        result = await stream.result()
    else:
        result = await getattr(resource, METHODS.get(method, method))(**arguments(line))
    assert _ARRIVED[line["recording"]](result)


def _media_arrived(reply: Any) -> bool:
    if reply is None:  # completing an upload returns nothing
        return True
    return bool(reply.meta.status == 200) and getattr(reply, "text", "ok") == "ok"


_ARRIVED: Final[dict[str, Callable[[Any], bool]]] = {
    "chat": lambda reply: reply.text == "ok",
    "text": bool,
    "messages": lambda reply: reply.text in {"ok", "Hello"},
    "responses": lambda reply: reply.id == "r",
    "media": _media_arrived,
    "endpoints": lambda _: True,
    "billing": lambda _: True,
}
"""Checks, by recording, that a call returned the reply of `ANSWERS`."""


@dataclass(frozen=True)
class _Answer:
    """The reply to every call of a recording: one JSON document that all its operations can decode, or one stream."""

    whole: Recorded
    streamed: Script = field(default_factory=script)

    def __call__(self, request: ReceivedRequest) -> Script:
        return self.streamed if request.headers["Accept"] == "text/event-stream" else json_body(self.whole)


_RESPONSE: Final = {"id": "r", "created_at": 1, "output": [], "object": "response", "status": "completed"}
_COMPLETED: Final = {"type": "response.completed", "response": _RESPONSE, "sequence_number": 0}

ANSWERS: Final[dict[str, Answer]] = {
    "chat": text("ok"),
    "text": _Answer(
        {"choices": [{"text": "ok"}], "tokens": [], "text": "", "data": []},
        script(event({"choices": [{"text": "ok"}]}), done()),
    ),
    "messages": _Answer({"content": [{"type": "text", "text": "ok"}]}, script(*named(SHORT))),
    "responses": _Answer(_RESPONSE, script(event(_COMPLETED, name="response.completed"))),
    "media": _Answer(
        {
            "text": "ok",
            "data": [],
            "image": "QUJD",
            "fileId": "f",
            "id": "f",
            "status": "UPLOADED",
            "downloadUrl": "https://host/f",
        },
        script(event({"type": "transcript.text.done", "text": "ok"}), done()),
    ),
    "endpoints": _Answer({"status": "RUNNING", "name": "n", "data": {}, "endpointId": "ep_1"}),
    "billing": _Answer({"data": [], "has_more": False}),
}


# --- our requests ----------------------------------------------------------------------------------------------------


def assert_sent(received: ReceivedRequest, expected: Recorded) -> None:
    """Compares what arrived with a recorded request, its deliberate differences applied."""
    assert received.method == expected["method"]
    assert received.raw_path == expected["path"]
    assert {name: list(values) for name, values in received.query.items()} == expected["query"]
    headers = {name: received.headers[name] for name in HEADERS if name in received.headers}
    if "multipart" not in expected:
        assert headers == expected["headers"]
        assert_same_json(received.json, expected["json_body"])
        return
    headers["content-type"] = headers["content-type"].partition(";")[0]  # the boundary is another each time
    assert headers == expected["headers"]
    parts = [
        {"name": part.name, "filename": part.filename, "content_type": part.content_type, "text": part.text}
        for part in received.form
    ]
    assert [_parsed(part) for part in parts] == [_parsed(part) for part in expected["multipart"]]
    assert int(received.headers["content-length"]) == len(received.body)


def _parsed(part: Recorded) -> Recorded:
    return {**part, "text": json.loads(part["text"])} if part["content_type"] == "application/json" else part


def assert_same_json(sent: object, expected: object) -> None:
    """Equal by value and by type: in Python True == 1 == 1.0."""
    assert sent == expected
    assert list(_types(sent)) == list(_types(expected))


def _types(value: object) -> Iterator[type]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _types(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _types(item)
    else:
        yield type(value)


# --- deliberate differences ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A deliberate difference: `adapt` changes a recorded request in place to the one we send.

    With `error`, we reject the call before anything is sent; `adapt` then only returns whether it applies.
    """

    name: str
    reason: str
    adapt: Callable[[Recorded], object]
    error: type[Exception] | None = None
    message: str = ""


def _no_false(line: Recorded) -> None:
    if line["operation"] == SEED or streams(line):
        return
    if "multipart" in line:
        line["multipart"] = [part for part in line["multipart"] if part["name"] != "stream"]
    elif line["json_body"] and not line["json_body"].get("stream"):
        line["json_body"].pop("stream", None)


def _asks_for_usage(line: Recorded) -> None:
    counts = line["recording"] == "chat" or ".completions." in line["operation"]
    if counts and streams(line) and "stream_options" not in given(line):
        line["json_body"]["stream_options"] = {"include_usage": True}


def _seed_streams(line: Recorded) -> None:
    if line["operation"] == SEED and streams(line):
        line["json_body"]["stream"] = True


def _accept(line: Recorded) -> None:
    line["headers"]["accept"] = "text/event-stream" if streams(line) else "application/json"


def _no_options_of_early_releases(line: Recorded) -> None:
    if line["sdk_version"].startswith(("0.1.2", "0.3.0")):
        for name in ("min_tokens", "n", "top_k", "temperature", "top_p"):
            if name not in given(line):
                line["json_body"].pop(name, None)


def _no_image_options(line: Recorded) -> None:
    for name in ("num_inference_steps", "guidance_scale"):
        if ".image." in line["operation"] and name not in given(line):
            line["json_body"].pop(name, None)


def _no_query_defaults(line: Recorded) -> None:
    for name in ("limit", "project_id"):
        if name not in given(line):
            line["query"].pop(name, None)


def _no_configuration_defaults(line: Recorded) -> None:
    if line["recording"] != "endpoints":
        return
    for ours, wire, defaults in (
        ("advanced", "advanced", ("max_token_count",)),
        ("autoscaling_policy", "autoscalingPolicy", ("minReplica", "maxReplica", "cooldownPeriod")),
    ):
        for name in defaults:
            if given(line).get(ours) is not None and name not in given(line)[ours]:
                del line["json_body"][wire][name]


def _no_null(line: Recorded) -> None:
    if "tool_assisted_chat." in line["operation"]:
        for name in NOT_NULLABLE:
            if line["json_body"].get(name, ...) is None:
                del line["json_body"][name]


def _no_null_model(line: Recorded) -> None:
    if line["operation"].startswith("container.") and line.get("json_body", {}).get("model", ...) is None:
        del line["json_body"]["model"]


def _last_path(line: Recorded) -> None:
    if line["operation"] == SEED:
        line["path"] = f"/serverless{line['path']}"


def _whole_blocks(line: Recorded) -> None:
    if line["recording"] == "messages" and "compat_blocks" in line["variant"]:
        line["json_body"]["messages"] = line["call_kwargs"]["messages"]


def _whole_id(line: Recorded) -> None:
    if line["operation"].startswith("file.") and "file_id" in given(line):
        suffix = "/download_url" if line["operation"].endswith("get_download_url") else ""
        line["path"] = f"/beta/file/{quote(given(line)['file_id'], safe='')}{suffix}"


def _whole_numbers(line: Recorded) -> None:
    if line.get("json_body"):
        line["json_body"] = _with_numbers_of(given(line), line["json_body"])


def _with_numbers_of(ours: Any, sent: Any) -> Any:
    """Returns the sent value with integers where the caller passed integers."""
    if isinstance(ours, dict) and isinstance(sent, dict):
        return {name: _with_numbers_of(ours.get(name), value) for name, value in sent.items()}
    if isinstance(ours, list) and isinstance(sent, list):
        return [_with_numbers_of(*pair) for pair in zip_longest(ours, sent)]
    return ours if type(ours) is int and type(sent) is float and ours == sent else sent


def _cursor_as_text(line: Recorded) -> None:
    if "cursor" in line["query"]:
        line["query"]["cursor"] = [text.removeprefix("b'").removesuffix("'") for text in line["query"]["cursor"]]


DIFFERENCES: Final = [
    Difference(
        "no body",
        "A chat without a conversation cannot be answered, so the body is a required argument; the first SDK sent an "
        "empty request.",
        lambda line: line["operation"] == SEED and not given(line),
        TypeError,
        BODY,
    ),
    Difference(
        "constants are the caller's",
        "What the caller passes is sent as it is, never completed: a tool_choice without its type is refused instead.",
        lambda line: "consts_left_out" in line["variant"],
        ValueError,
        "type",
    ),
    Difference(
        "numbers are the caller's",
        "A whole number is sent as it is; the SDK writes 1.0 for 1 where the schema says number.",
        _whole_numbers,
    ),
    Difference(
        "no stream: false",
        "complete() and create() leave out what is the server's default; stream is no parameter of its own.",
        _no_false,
    ),
    Difference(
        "streams ask for their usage",
        "A stream's reply has usage like a plain one's, unless the caller says otherwise by stream_options.",
        _asks_for_usage,
    ),
    Difference(
        "the seed operation streams",
        "It streams unless its body says false; its SDK left the choice to the server.",
        _seed_streams,
    ),
    Difference(
        "plain Accept",
        "We accept what we can read: an event stream for a stream, JSON for a plain call. The SDK's quality values ask "
        "for JSON even where it streams.",
        _accept,
    ),
    Difference(
        "no chat options by default",
        "Omitted options are left to the server. Releases 0.1.2 and 0.3.0 sent some defaults.",
        _no_options_of_early_releases,
    ),
    Difference(
        "no image options by default",
        "Omitted options are left to the server.",
        _no_image_options,
    ),
    Difference(
        "no query defaults",
        "Omitted parameters are left to the server: the page size, and the project (for which the SDK sends an empty "
        "string).",
        _no_query_defaults,
    ),
    Difference(
        "no configuration defaults",
        "Omitted fields of an endpoint's configuration are left to the server, whose defaults can change.",
        _no_configuration_defaults,
    ),
    Difference(
        "no null where the latest version has none",
        "In the body of 0.14.0 these fields cannot be null, so our parameters cannot be None either.",
        _no_null,
    ),
    Difference(
        "no null for a container's model",
        "An engine that serves one model takes no model for it: None is the parameter's default, and leaves it out.",
        _no_null_model,
    ),
    Difference(
        "last path of tool-assisted chat",
        "The path without /serverless belonged to a host that is gone; the last releases used the one we use.",
        _last_path,
    ),
    Difference(
        "blocks are sent whole",
        "What the caller passes is sent as it is; the SDK cuts documents, search results and the like down to their "
        "type.",
        _whole_blocks,
    ),
    Difference(
        "ids are encoded",
        "An id with a slash or a question mark addresses the same file.",
        _whole_id,
    ),
    Difference(
        "cursors are text",
        "The official SDK takes bytes and sends Python's notation of them; a cursor goes back as it came.",
        _cursor_as_text,
    ),
]


def rejection(line: Recorded) -> Difference | None:
    """Returns the difference by which we reject this call, if any."""
    return next((each for each in DIFFERENCES if each.error is not None and each.adapt(line)), None)


def adapted(line: Recorded) -> Recorded:
    """Returns the request that we should send."""
    expected = copy.deepcopy(line)
    for difference in DIFFERENCES:
        if difference.error is None:
            difference.adapt(expected)
    return expected


RECORDED: Final = {name: recorded(name) for name in ANSWERS}
"""The lines of every recording."""

LINES: Final = [line for lines in RECORDED.values() for line in lines]
