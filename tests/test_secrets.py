"""Secrets never appear in errors, tracebacks, pickles, logs or reprs."""

import asyncio
import copy
import importlib
import io
import logging
import pickle
import sys
import tempfile
import traceback
from base64 import b64encode
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import msgspec
import pytest
from support.clock import Clock, run_loop_iterations
from support.memory import assert_peak_memory_below
from support.recorder import Recorder
from support.sockets import (
    FAST_RETRY,
    MESSAGES,
    STREAM_HEAD,
    Conversation,
    RawServer,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    read,
    reply,
    unresponsive_port,
    with_timeout,
)

import friendli_async
from friendli_async import (
    AsyncFriendli,
    ConfigurationError,
    FriendliError,
    RetryPolicy,
    Timeouts,
    UsageLimit,
)
from friendli_async._core.secret import Secret, mask_token, masked
from friendli_async.bulk import Adaptive, run_all
from friendli_async.testing import (
    FriendliServer,
    ReceivedRequest,
    Script,
    body,
    chunk,
    cut,
    done,
    event,
    json_body,
    raw,
    script,
    stall,
    status,
    text,
)
from friendli_async.tools import tool

pytestmark = pytest.mark.compatibility

SECRET = "flp_verysecrettoken0123456789"


def bearer(request: ReceivedRequest) -> str:
    """Returns the header with the token, which some servers quote in their errors."""
    return request.headers["Authorization"]


FAILURES: dict[str, Any] = {
    "401": status(401),
    "429": status(429),
    "500": status(500),
    "no reply": cut(),
    "no reply in time": stall(),
    "truncated": script(chunk("a"), cut()),
    "not a stream": body(b"<html>"),
    "bad event": script(chunk("a"), body(b"").steps[0], stall()),
    "redirect": status(307, headers={"Location": "http://elsewhere.invalid/"}),
    "token": lambda request: body(f"bad {request.headers['Authorization']}".encode(), status=401),
    "token in JSON": lambda request: json_body({"message": request.headers["Authorization"]}, status=400),
    "token in a 200": lambda request: json_body({"error": {"message": bearer(request), "code": bearer(request)}}),
    "token in text with a 200": lambda request: body(f"bad {bearer(request)}".encode(), content_type="text/plain"),
    "token in a page": lambda request: body(f"<h1>bad {bearer(request)}</h1>".encode(), content_type="text/html"),
    "token in the first event": lambda request: script(event({"error": {"message": bearer(request)}})),
    "token in an event": lambda request: script(chunk("a"), event({"detail": bearer(request)}, name="error")),
    "token in a bad event": lambda request: script(
        chunk("a"), event({"choices": [{"delta": {"content": 1}}], "x": bearer(request)})
    ),
    "token in stray lines": lambda request: script(chunk("a"), raw(f"bad {bearer(request)}\n\n".encode())),
    "token cut off": lambda request: script(chunk("a"), event("x" * 175 + bearer(request), name="error")),
    "token in a header": lambda request: status(400, headers={"X-Request": bearer(request)}),
    "token in a header of a stream": lambda request: script(chunk("a"), headers={"X-Request": bearer(request)}),
    "echo": lambda request: body(request.headers["X-Public"].encode(), status=400, content_type="text/plain"),
}


async def _failure(call: Awaitable[object]) -> FriendliError:
    """Returns the error of a call; its traceback begins here, in a frame without secrets."""
    try:
        await with_timeout(call, 60)
    except FriendliError as error:
        return error
    raise AssertionError("the call did not fail")


def slots_of(value: object) -> dict[str, object]:
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: getattr(value, name, None) for name in names}


def _texts_of(error: BaseException) -> str:
    """Returns everything that a log, a crash reporter or a debugger would print of an error."""
    detailed = io.StringIO()
    traceback.TracebackException.from_exception(error, capture_locals=True).print(file=detailed)
    return "".join(
        [
            str(error),
            repr(error),
            repr(vars(error)),
            "".join(traceback.format_exception(error)),
            detailed.getvalue(),
            repr(pickle.dumps(error)),
            repr(copy.deepcopy(error)),
        ]
    )


@pytest.mark.parametrize("how", ["token", "callable", "header"])
@pytest.mark.parametrize("name", FAILURES)
async def test_token_never_appears_in_errors_logs_or_reprs(
    server: FriendliServer, clock: Clock, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server.always(FAILURES[name])
    options: dict[str, Any] = {
        "headers": {"X-Public": "public"},
        "retry": FAST_RETRY,
        "timeout": Timeouts(first_event=20, idle=10),
    }
    token: Any = SECRET
    if how == "callable":

        def token() -> str:
            return SECRET

    if how == "header":
        token = None
        options["headers"] = {**options["headers"], "Authorization": f"Bearer {SECRET}"}
    async with AsyncFriendli(token, server_url=server.url, **options) as client:
        stream = open_stream(client)
        failing = asyncio.create_task(_failure(stream.result()))
        if stall() in getattr(FAILURES[name], "steps", [FAILURES[name]]):
            await server.wait_for_requests(1)
            await run_loop_iterations(20)
            clock.advance(20)
        error = await failing
        assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
        shown = [_texts_of(error), repr(client), str(client), repr(vars(client)), repr(stream)]
        shown += [repr(slots_of(stream)), repr(client.serverless), repr(vars(client.serverless)), repr(stream._opening)]
        shown += [repr(client.with_options(token=SECRET + "2")), repr(vars(client.serverless.chat))]
        shown += [repr(vars(client.serverless.chat._engine)) if how != "header" else ""]
        shown += [f"{record.getMessage()} {record.__dict__}" for record in caplog.records if "friendli" in record.name]
    assert not [text for text in shown if SECRET in text]
    assert any(record.name == "friendli_async" for record in caplog.records)


def echo(request: ReceivedRequest) -> Script:
    """Succeeds, with a response header that quotes the token."""
    headers = {"X-Request-Id": f"id of {bearer(request)}"}
    if request.json.get("stream"):
        return script(chunk("a"), done(), headers=headers)
    return body(completion(), headers=headers, content_type="application/json")


async def test_response_headers_of_a_call_that_succeeds_do_not_reveal_the_token(
    server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "friendli_async")
    server.always(echo)
    async with AsyncFriendli(SECRET, server_url=server.url) as client:
        stream = open_stream(client)
        await read(stream)
        metas = [stream.meta, (await stream.result()).meta, (await complete(client)).meta]
    pickled = [pickle.dumps(meta) for meta in metas]
    for meta in [*metas, *map(pickle.loads, pickled)]:
        assert (meta.request_id, repr(meta).count("id of Bearer ***")) == ("id of Bearer ***", 1)
    assert SECRET.encode() not in b"".join(pickled)
    ids = [record.__dict__["friendli_request_id"] for record in caplog.records if record.name == "friendli_async"]
    assert ids == ["id of Bearer ***"] * 2


async def test_connect_timeout_does_not_reveal_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with unresponsive_port() as port:
        options: dict[str, Any] = {"timeout": Timeouts(connect=0.05), "retry": FAST_RETRY}
        async with AsyncFriendli(SECRET, server_url=f"http://127.0.0.1:{port}", **options) as client:
            error = await _failure(complete(client))
    assert SECRET not in _texts_of(error)
    assert SECRET not in caplog.text


async def test_log_covers_attempts_and_retries_without_private_data(
    server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "friendli_async")
    server.enqueue(status(503, message="private words"), text("ok"))
    async with client_of(server.url, retry=FAST_RETRY, headers={"X-Private": "h-private"}) as client:
        await client.serverless.chat.complete(
            model="m", messages=[{"role": "user", "content": "b-private"}], extra_query={"q": "q-private"}
        )
    records = [(record.levelname, record.getMessage()) for record in caplog.records if "friendli" in record.name]
    assert [level for level, _ in records] == ["DEBUG", "INFO", "DEBUG"]
    assert "503" in records[0][1]
    assert "/serverless/v1/chat/completions" in records[0][1]
    assert "private" not in str(records)


# --- local variables of traceback frames -----------------------------------------------------------------------------

HEADER = "s3cret-header-value"
PASSWORD = "s3cret-proxy-password"
ENVIRONMENT = "s3cret-of-the-environment"
SECRETS = (SECRET, HEADER, PASSWORD, ENVIRONMENT)


def _related_exceptions(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, its causes and contexts, and the exceptions of groups."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [current.__cause__, current.__context__]
        pending += current.exceptions if isinstance(current, BaseExceptionGroup) else []
        yield current


def secrets_in_frames(error: BaseException) -> list[str]:
    """Returns the secrets in the local variables of all frames, which Sentry and rich print."""
    printed = []
    for current in _related_exceptions(error):
        for frame, line in traceback.walk_tb(current.__traceback__):
            printed.append(f"{frame.f_code.co_name}:{line} {frame.f_locals!r}")
            printed += [repr(value) for value in frame.f_locals.values()]
        for summary in traceback.TracebackException.from_exception(current, capture_locals=True).stack:
            printed.append(f"{summary.name} {summary.locals}")
    return [f"{secret} in {text[:2000]}" for secret in SECRETS for text in printed if secret in text]


def _error_of(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("the call did not fail")


AS_BYTES: Any = SECRET.encode()
BYTES_OF_HEADERS: Any = {"X-Private": HEADER.encode()}
LISTED_HEADERS: Any = {"X-Private": [HEADER]}
PAIRS_OF_HEADERS: Any = [("X-Private", HEADER)]  # as httpx takes them
SET_OF_HEADERS: Any = {f"X-Private: {HEADER}"}
ITEMS_OF_HEADERS: Any = {"X-Private": HEADER}.items()
AS_TUPLE: Any = (SECRET,)  # after a stray comma
BAD_TOKEN, BAD_HEADERS = SECRET + "\n" + SECRET, {"X-Private": HEADER, "X-Bad": HEADER + "\r\n"}
INVALID_SETTINGS: dict[str, Callable[[], object]] = {
    "token": lambda: AsyncFriendli(BAD_TOKEN),
    "non-ASCII token": lambda: AsyncFriendli(SECRET + "\xe9"),
    "token as bytes": lambda: AsyncFriendli(AS_BYTES),
    "header": lambda: AsyncFriendli(SECRET, headers=BAD_HEADERS),
    "header as bytes": lambda: AsyncFriendli(SECRET, headers=BYTES_OF_HEADERS),
    "header as a list": lambda: AsyncFriendli(SECRET, headers=LISTED_HEADERS),
    "headers as pairs": lambda: AsyncFriendli(SECRET, headers=PAIRS_OF_HEADERS),
    "headers as items": lambda: AsyncFriendli(SECRET, headers=ITEMS_OF_HEADERS),
    "headers as a set": lambda: AsyncFriendli(SECRET, headers=SET_OF_HEADERS),
    "whole header as a name": lambda: AsyncFriendli(SECRET, headers={f"X-Private: {HEADER}": ""}),
    "option's whole header as a name": lambda: AsyncFriendli(SECRET).with_options(headers={f"X: {HEADER}": None}),
    "token as a tuple": lambda: AsyncFriendli(AS_TUPLE),
    "timeout": lambda: AsyncFriendli(SECRET, headers={"X-Private": HEADER}, timeout="x"),  # type: ignore[arg-type]  # invalid on purpose
    "proxy": lambda: AsyncFriendli(SECRET, proxy=f"socks5://me:{PASSWORD}@127.0.0.1:1"),
    "url": lambda: AsyncFriendli(SECRET, server_url="ftp://x"),
    "url with credentials": lambda: AsyncFriendli(SECRET, server_url=f"http://me:{PASSWORD}@127.0.0.1"),
    "foreign name": lambda: AsyncFriendli(api_key=SECRET),  # type: ignore[call-arg]  # invalid on purpose
    "foreign name of headers": lambda: AsyncFriendli(default_headers={"X-Private": HEADER}),  # type: ignore[call-arg]  # invalid on purpose
    "environment": AsyncFriendli,
    "option": lambda: AsyncFriendli("token").with_options(token=BAD_TOKEN),
    "option's header": lambda: AsyncFriendli("token").with_options(headers=BAD_HEADERS),
    "option's foreign name": lambda: AsyncFriendli("token").with_options(api_key=SECRET),  # type: ignore[call-arg]  # invalid on purpose
}


@pytest.mark.parametrize("name", INVALID_SETTINGS)
def test_frames_of_configuration_errors_hold_no_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("OTHER_SECRET", ENVIRONMENT)
    monkeypatch.setenv("https_proxy", f"http://me:{PASSWORD}@127.0.0.1:1")
    if name == "environment":
        monkeypatch.setenv("FRIENDLI_TOKEN", BAD_TOKEN)
    error = _error_of(INVALID_SETTINGS[name])
    assert isinstance(error, ConfigurationError | TypeError)
    assert [secret for secret in SECRETS if secret in str(error)] == []
    assert secrets_in_frames(error) == []


METHODS: dict[str, Callable[[AsyncFriendli, dict[str, Any]], Any]] = {
    "complete": lambda client, options: client.serverless.chat.complete(model="m", messages=MESSAGES, **options),
    "stream": lambda client, options: client.serverless.chat.stream(model="m", messages=MESSAGES, **options),
    "parse": lambda client, options: client.serverless.chat.parse(int, model="m", messages=MESSAGES, **options),
    "parse_stream": lambda client, options: client.serverless.responses.parse_stream(
        int, model="m", input="x", **options
    ),
    "run": lambda client, options: client.serverless.chat.run(model="m", messages=MESSAGES, tools=[], **options),
    "completions": lambda client, options: client.serverless.completions.complete(model="m", prompt="x", **options),
    "messages": lambda client, options: client.serverless.messages.create(
        model="m", max_tokens=1, messages=MESSAGES, **options
    ),
    "audio": lambda client, options: client.serverless.audio.transcribe(model="m", file=b"x", **options),
    "image": lambda client, options: client.dedicated.image.generate(model="m", prompt="x", **options),
    "endpoints": lambda client, options: client.dedicated.endpoint.list(**options),
    # Another argument is wrong, too, or has yet to be read:
    "parse without a type": lambda client, options: client.serverless.chat.parse(  # type: ignore[call-overload]  # as said
        model="m", messages=MESSAGES, **options
    ),
    "parse_run": lambda client, options: client.serverless.chat.parse_run(
        int, model="m", messages=MESSAGES, tools=[], **options
    ),
    "parse_run without a type": lambda client, options: client.serverless.chat.parse_run(  # type: ignore[call-overload]  # as said
        model="m", messages=MESSAGES, tools=[], **options
    ),
    "parse_stream with a format": lambda client, options: client.serverless.responses.parse_stream(  # type: ignore[call-overload]  # as said
        int, model="m", input="x", text={}, **options
    ),
    "completions without a prompt": lambda client, options: client.serverless.completions.stream(model="m", **options),
    "image with control images": lambda client, options: client.dedicated.image.generate(
        model="m", prompt="x", control_images=Path("missing.png"), **options
    ),
    "update of no endpoint": lambda client, options: client.dedicated.endpoint.update("", **options),
    "versions of no endpoint": lambda client, options: client.dedicated.endpoint.get_version_history("", **options),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"api_key": SECRET}, {"extra_headers": {"Authorization": HEADER}}, {"x": SECRET}])
async def test_frames_of_an_unknown_keyword_do_not_hold_its_value(method: str, options: dict[str, Any]) -> None:
    async with AsyncFriendli("token") as client:
        with pytest.raises(TypeError) as caught:
            await METHODS[method](client, dict(options))
    assert caught.traceback[-1].frame.code.name == "check_keywords"
    frames = [each.frame.f_locals for each in caught.traceback[1:] if "friendli_async" in str(each.path)]
    assert len(frames) > 1
    assert not [secret for secret in SECRETS if secret in repr(frames)]


def test_parts_and_copies_of_a_secret_are_masked() -> None:
    secret = Secret(SECRET)
    parts = [secret[:20], secret[-20:], secret[::2], secret[0]]  # rich and structlog print the beginning of long ones
    assert parts == [SECRET[:20], SECRET[-20:], SECRET[::2], SECRET[0]]
    copies = [copy.copy(secret), copy.deepcopy(secret), copy.deepcopy({"Authorization": [secret]})["Authorization"][0]]
    assert copies == [SECRET] * 3
    assert {repr(each) for each in [*parts, *copies]} == {"'***'"}
    assert masked(AS_BYTES) == bytes(len(SECRET))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret)


INVALID_ARGUMENTS: dict[str, Callable[[], object]] = {
    "client": lambda: AsyncFriendli(SECRET, max_connections=0),
    "adaptive": lambda: Adaptive(start=0),
    "usage limit": lambda: UsageLimit(max_calls=-1),
    "parent of a usage limit": lambda: UsageLimit(within=3),  # type: ignore[arg-type]  # invalid on purpose
    "telemetry": lambda: importlib.import_module("friendli_async.integrations.opentelemetry").Telemetry(names="x"),
}


@pytest.mark.parametrize("name", INVALID_ARGUMENTS)
def test_objects_whose_constructor_failed_can_be_shown(name: str) -> None:
    if name == "telemetry":
        pytest.importorskip("opentelemetry")
    error = _error_of(INVALID_ARGUMENTS[name])
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "__init__"]
    assert [repr(frame.f_locals["self"]) for frame in frames]


@contextmanager
def _local_variables_at_each_line(shown: dict[str, list[str]]) -> Iterator[None]:
    """Collects what a debugger may show: the local variables of our frames, at each line that runs."""
    package = str(Path(friendli_async.__file__).parent)

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(package) or Path(path).parent.name == "testing":  # the server has received the token
            return None
        for name, value in frame.f_locals.items():
            # aiohttp's response is broken by its own repr before its head has arrived.
            if name != "self" and not isinstance(value, aiohttp.ClientResponse):
                shown.setdefault(f"{frame.f_code.co_qualname}: {name}", []).append(repr(value))
        return trace

    previous = sys.gettrace()  # of the coverage measurement
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)


@pytest.mark.parametrize("how", ["token", "callable", "proxy"])
async def test_no_line_of_a_call_has_a_secret_in_its_local_variables(server: FriendliServer, how: str) -> None:
    proxy = server.url.replace("//", f"//me:{PASSWORD}@") if how == "proxy" else None
    token: Any = SECRET if how != "callable" else lambda: SECRET
    shown: dict[str, list[str]] = {}
    server.enqueue(status(503), text("Hi"), script(chunk("a"), cut()), status(401))
    server.enqueue(json_body({"data": []}), json_body({"text": "Hi"}))
    options: dict[str, Any] = {"headers": {"X-Private": HEADER}, "retry": FAST_RETRY, "proxy": proxy}
    async with AsyncFriendli(token, server_url=server.url, **options) as client:
        with _local_variables_at_each_line(shown):
            await complete(client)
            await _failure(_drain(open_stream(client)))
            await _failure(complete(client))  # 401
            await client.serverless.model.list()
            await client.serverless.audio.transcribe(model="m", file=b"RIFF")
    assert len(shown) > 200
    shown.pop("masked: value", None)  # what it is given to mask
    assert {name for name, texts in shown.items() for each in SECRETS if each in "".join(texts)} == set()


class StallingHandlers:
    """Server handlers that block a call at a given stage, and set `reached` when it is there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def no_head(self, conversation: Conversation) -> None:
        await conversation.request()
        self.reached.set()
        await conversation.wait_disconnected()

    async def mid_body(self, conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD + chunked(delta("a")))
        self.reached.set()
        await conversation.wait_disconnected()

    async def mid_reply(self, conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
        self.reached.set()
        await conversation.wait_disconnected()

    async def unavailable(self, conversation: Conversation) -> None:
        while await conversation.request():
            await conversation.send(reply(b"", status="503 no"))


async def _interrupt(call: Awaitable[object], how: str, reached: asyncio.Event) -> BaseException:
    """Cancels or times out a call once it is blocked, and returns what it raised."""
    task = asyncio.ensure_future(call)
    await with_timeout(reached.wait())
    await run_loop_iterations(20)

    async def limited() -> object:
        async with asyncio.timeout(0.001):
            return await task

    try:
        if how == "timeout":
            await limited()
        elif how == "wait_for":
            await asyncio.wait_for(task, 0.001)
        else:
            task.cancel()
            await task
    except BaseException as error:
        return error
    raise AssertionError("the call did not fail")


@pytest.mark.parametrize("how", ["timeout", "wait_for", "cancel"])
@pytest.mark.parametrize("kind", ["token", "callable"])
@pytest.mark.parametrize("stage", ["no_head", "mid_body", "mid_reply", "unavailable", "connecting", "no_head by proxy"])
async def test_frames_of_caller_timeouts_and_cancellation_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch, stage: str, kind: str, how: str
) -> None:
    monkeypatch.setenv("OTHER_SECRET", ENVIRONMENT)
    handlers = StallingHandlers()
    token: Any = SECRET if kind == "token" else lambda: SECRET
    handler = getattr(handlers, stage.partition(" ")[0], handlers.no_head)
    policy = RetryPolicy(initial=1000, max_wait=1000, on_retry=lambda _: handlers.reached.set())
    with unresponsive_port() as deaf:
        async with RawServer(handler) as server:
            url = f"http://127.0.0.1:{deaf}" if stage == "connecting" else server.url
            options: dict[str, Any] = {"headers": {"X-Private": HEADER}, "retry": policy}
            if stage.endswith("proxy"):
                options["proxy"] = url.replace("//", f"//me:{PASSWORD}@")
            if stage == "connecting":
                handlers.reached.set()
            async with AsyncFriendli(token, server_url=url, **options) as client:
                call = complete(client) if stage in {"mid_reply", "unavailable"} else read(open_stream(client))
                error = await _interrupt(call, how, handlers.reached)
    assert secrets_in_frames(error) == []


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("of", ["client", "environment"])
async def test_frames_of_proxy_failures_hold_no_password_but_the_proxy_receives_it(
    monkeypatch: pytest.MonkeyPatch, scheme: str, of: str
) -> None:
    heads: list[bytes] = []

    async def reject(conversation: Conversation) -> None:
        heads.append(await conversation.request())
        await conversation.send(reply(b"", status="502 no"))

    async with RawServer(reject) as proxy:
        url = proxy.url.replace("//", f"//me:{PASSWORD}@")
        if of == "environment":
            monkeypatch.setenv(f"{scheme}_proxy", url)
        chosen = url if of == "client" else None
        async with AsyncFriendli(SECRET, server_url=f"{scheme}://api.invalid", proxy=chosen, retry=None) as client:
            error = await _failure(complete(client))
    encoded = b64encode(f"me:{PASSWORD}".encode())
    assert b"Proxy-Authorization: Basic " + encoded in heads[0]
    assert (SECRET.encode() in heads[0]) == (scheme == "http")
    assert secrets_in_frames(error) == []


@pytest.mark.parametrize("name", FAILURES)
async def test_frames_of_request_failures_hold_no_secret(server: FriendliServer, clock: Clock, name: str) -> None:
    server.always(FAILURES[name])
    options: dict[str, Any] = {"timeout": Timeouts(first_event=20, idle=10), "retry": FAST_RETRY}
    async with AsyncFriendli(
        SECRET, server_url=server.url, headers={"X-Private": HEADER, "X-Public": "public"}, **options
    ) as client:
        failing = asyncio.create_task(_failure(open_stream(client).result()))
        if stall() in getattr(FAILURES[name], "steps", [FAILURES[name]]):
            await server.wait_for_requests(1)
            await run_loop_iterations(20)
            clock.advance(20)
        error = await failing
    assert secrets_in_frames(error) == []


# --- every kind of call ----------------------------------------------------------------------------------------------


class Number(msgspec.Struct):
    number: int


@tool
async def idle() -> str:
    """Does nothing."""
    return ""


async def _drain(stream: AsyncIterable[object]) -> None:
    async for _ in stream:
        pass


async def _tee(client: AsyncFriendli) -> None:
    await asyncio.gather(*map(_drain, open_stream(client).tee(2)))


async def _task_group(client: AsyncFriendli) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(complete(client))
        tasks.create_task(_drain(open_stream(client)))


async def _download(client: AsyncFriendli) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await client.file.download("id", Path(folder) / "file")


async def _langchain(client: AsyncFriendli) -> None:
    langchain = importlib.import_module("friendli_async.integrations.langchain")
    async for _ in langchain.ChatFriendli(model="m", client=client).astream("Hi"):
        pass


async def _pydantic_ai(client: AsyncFriendli) -> None:
    friendli = importlib.import_module("friendli_async.integrations.pydantic_ai")
    direct, messages = importlib.import_module("pydantic_ai.direct"), importlib.import_module("pydantic_ai.messages")
    model = friendli.FriendliModel("m", client=client)
    await direct.model_request(model, [messages.ModelRequest.user_text_prompt("Hi")])


async def _bulk(client: AsyncFriendli) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "done"
        try:
            async with run_all([1, 2], lambda _: complete(client), checkpoint=checkpoint) as outcomes:
                async for outcome in outcomes:
                    if outcome.error is not None:
                        raise outcome.error
        finally:
            kept = b"".join(path.read_bytes() for path in Path(folder).iterdir())
            assert not [secret for secret in SECRETS if secret.encode() in kept]


CALLS: dict[str, Callable[[AsyncFriendli], Awaitable[object]]] = {
    "complete": complete,
    "text": lambda client: _drain(open_stream(client).text()),
    "tool calls": lambda client: _drain(open_stream(client).tool_calls()),
    "raw": lambda client: _drain(open_stream(client).raw()),
    "stop_when": lambda client: _drain(open_stream(client).stop_when(lambda text: False)),
    "tee": _tee,
    "task group": _task_group,
    "run": lambda client: client.serverless.chat.run(model="m", messages=MESSAGES, tools=[idle]).result(),
    "parse": lambda client: client.serverless.chat.parse(Number, model="m", messages=MESSAGES),
    "snapshots": lambda client: _drain(
        client.serverless.chat.parse_stream(Number, model="m", messages=MESSAGES).snapshots()
    ),
    "responses": lambda client: _drain(client.serverless.responses.stream(model="m", input="Hi")),
    "messages": lambda client: _drain(client.serverless.messages.stream(model="m", messages=MESSAGES)),
    "completions": lambda client: _drain(client.serverless.completions.stream(model="m", prompt="Hi")),
    "transcription": lambda client: _drain(client.serverless.audio.stream(model="m", file=b"RIFF")),
    "upload": lambda client: client.file.upload(b"content", name="a", project_id="p"),
    "download": _download,
    "bulk": _bulk,
    "pages": lambda client: _drain(client.dedicated.endpoint.list()),
    "langchain": _langchain,
    "pydantic-ai": _pydantic_ai,
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("how", ["rejected", "truncated", "timeout", "cancelled"])
async def test_no_kind_of_call_reveals_a_secret(
    server: FriendliServer, caplog: pytest.LogCaptureFixture, kind: str, how: str
) -> None:
    if kind in {"langchain", "pydantic-ai"}:
        pytest.importorskip({"langchain": "langchain_core"}.get(kind, "pydantic_ai"))
    caplog.set_level(logging.DEBUG)
    server.always({"rejected": status(401), "truncated": script(chunk("a"), cut())}.get(how, stall()))
    recorder = Recorder()
    options: dict[str, Any] = {"headers": {"X-Private": HEADER}, "retry": None, "observers": [recorder]}
    async with AsyncFriendli(SECRET, server_url=server.url, **options) as client:
        calling = asyncio.ensure_future(CALLS[kind](client))
        if how == "timeout":
            calling = asyncio.ensure_future(asyncio.wait_for(calling, 0.05))
        elif how == "cancelled":
            await server.wait_for_requests(1)
            calling.cancel()
        await asyncio.wait([calling], timeout=60)
        if calling.cancelled():
            error: BaseException | None = _error_of(calling.result)
        else:
            error = calling.exception()
    assert error is not None
    assert secrets_in_frames(error) == []
    printed = [repr(error), str(error), repr(vars(error)), caplog.text, repr(recorder.events)]
    assert not [secret for secret in SECRETS for text in printed if secret in text]


@pytest.mark.parametrize(
    "reply",
    [
        {"error": {"message": f"Bearer {SECRET} is no token", "code": SECRET}},
        {"choices": [], "detail": f"Bearer {SECRET}"},
        {"status": "failed", "output": [], "error": {"message": f"{SECRET} is no token", "code": SECRET}},
        {"output": 1, "choices": 1, "x": SECRET},
    ],
)
async def test_token_quoted_in_a_plain_reply_is_masked(server: FriendliServer, reply: dict[str, Any]) -> None:
    server.always(json_body(reply))
    async with AsyncFriendli(SECRET, server_url=server.url, retry=None) as client:
        for call in (complete(client), client.serverless.responses.create(model="m", input="Hi")):
            error = await _failure(call)
            assert SECRET not in _texts_of(error)
            assert "***" in repr(vars(error))


@pytest.mark.parametrize("token", [SECRET, "abcdefgh" * 3, "a" * 20], ids=["", "of equal parts", "of one letter"])
@pytest.mark.parametrize("end", ["", "...", "'", '"', "...'"])
def test_token_that_the_end_of_an_excerpt_cuts_off_is_masked(token: str, end: str) -> None:
    for length in range(8, len(token) + 1):
        error = FriendliError(f"{token}, {token[:9]}x {token[:length]}{end}")
        mask_token(error, token)
        assert str(error) == f"***, {token[:9]}x ***{end}"


def test_search_for_the_token_takes_little_memory_for_a_long_text_without_it() -> None:
    error = FriendliError("The server is busy, and accepts no further requests.\\n" * 20_000)
    with assert_peak_memory_below(4 * len(str(error))):
        mask_token(error, SECRET)


async def test_token_in_an_answer_is_not_masked(server: FriendliServer) -> None:
    server.enqueue(text(SECRET), script(chunk(SECRET), cut()))
    async with AsyncFriendli(SECRET, server_url=server.url, retry=None) as client:
        assert (await complete(client)).text == SECRET
        with pytest.raises(FriendliError) as caught:
            await open_stream(client).result()
    assert caught.value.partial is not None
    assert caught.value.partial.text == SECRET
