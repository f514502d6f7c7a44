"""The FastAPI integration: responses, cancellation on disconnect, the client's lifespan, errors, return types."""

import asyncio
import dataclasses
import inspect
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal

import msgspec
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field, HttpUrl, TypeAdapter, ValidationError, computed_field
from starlette.background import BackgroundTask
from support.clock import run_loop_iterations
from support.sockets import MESSAGES

import friendli_async
from friendli_async import (
    APIConnectionError,
    APIStatusError,
    AsyncFriendli,
    Attempt,
    AuthenticationError,
    ChatCompletion,
    ConfigurationError,
    EventStream,
    FriendliError,
    Gauges,
    InternalServerError,
    OutputCutOffError,
    OutputInvalidError,
    Partial,
    PermissionDeniedError,
    RateLimit,
    RateLimitError,
    Timing,
    ToolError,
    TurnLimitError,
    UsageLimitError,
)
from friendli_async.asgi import SSEResponse
from friendli_async.bulk import Progress
from friendli_async.chat import ParsedCompletion
from friendli_async.integrations.fastapi import (
    ClientDisconnected,
    FriendliResponse,
    LifespanOptions,
    client_of,
    get_client,
    install_error_handlers,
    lifespan,
    while_connected,
)
from friendli_async.replies import Reply
from friendli_async.responses import OutputItemDone, Response, ResponseCompleted
from friendli_async.testing import FriendliServer, cut, head, json_body, raw, script, stall, status, text
from friendli_async.tools import ParsedRunResult, RunResult

Client = Annotated[AsyncFriendli, Depends(client_of)]


def make_app(server: FriendliServer) -> FastAPI:
    app = FastAPI(lifespan=lifespan(token="test-token", server_url=server.url, retry=None, drain=0.1))
    install_error_handlers(app)

    @app.get("/chat")
    async def chat(client: Client) -> ChatCompletion:
        return await client.serverless.chat.complete(model="m", messages=MESSAGES)

    @app.get("/chats")
    async def chats(client: Client) -> list[ChatCompletion] | None:
        return [await client.serverless.chat.complete(model="m", messages=MESSAGES)]

    @app.get("/bad")
    async def bad(client: Client, unknown: bool = False) -> ChatCompletion:
        options: dict[str, Any] = {"temprature": 1} if unknown else {"temperature": "hot"}
        return await client.serverless.chat.complete(model="m", messages=MESSAGES, **options)

    @app.get("/foreign")
    async def foreign() -> None:
        raise ValueError("raised by the app")

    return app


@pytest.fixture
def app(remote: FriendliServer) -> FastAPI:
    return make_app(remote)


@pytest.fixture
def browser(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


# --- return types ----------------------------------------------------------------------------------------------------


def test_reply_as_return_type_omits_meta(browser: TestClient) -> None:
    one, many = browser.get("/chat"), browser.get("/chats")
    assert one.status_code == many.status_code == 200
    assert one.json()["choices"][0]["message"]["content"] == "You said: Hi"
    assert "meta" not in one.json()
    assert msgspec.convert(many.json()[0], ChatCompletion).text == "You said: Hi"


@pytest.mark.parametrize("annotation", [None, Any, dict[str, Any]], ids=["none", "Any", "dict"])
def test_reply_is_serialized_without_its_type_as_with_it(app: FastAPI, browser: TestClient, annotation: Any) -> None:
    async def nested(client: Client) -> Any:
        reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
        return {"reply": reply, "messages": [reply.message]}

    app.add_api_route("/nested", nested, response_model=annotation)
    reply = browser.get("/nested").json()
    typed = browser.get("/chat").json()
    assert [reply["reply"]["choices"], reply["messages"][0]] == [typed["choices"], typed["choices"][0]["message"]]
    assert reply["reply"].keys() == typed.keys()


def test_lone_surrogates_of_a_return_type_are_replaced(remote: FriendliServer, browser: TestClient) -> None:
    remote.enqueue(text("half \ud83d"))
    reply = browser.get("/chat")
    assert (reply.status_code, reply.json()["choices"][0]["message"]["content"]) == (200, "half �")


def test_lone_surrogates_of_a_rejected_keyword_are_escaped(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @app.post("/options")
    async def options(client: Client, given: dict[str, Any]) -> ChatCompletion:
        return await client.serverless.chat.complete(model="m", messages=MESSAGES, **given)

    content, headers = rb'{"half \ud83d": 1}', {"content-type": "application/json"}
    with TestClient(app, raise_server_exceptions=False) as browser, caplog.at_level(logging.INFO, "friendli_async"):
        reply = browser.post("/options", content=content, headers=headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "half \ud83d")
    assert "/options: 422, UnknownArgumentError" in caplog.text
    assert caplog.text.encode()  # a handler can write it


def test_message_of_upstream_forges_no_line_of_the_log(
    browser: TestClient, remote: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    remote.enqueue(status(404, message="no such model: m\nWARNING forged"))
    with caplog.at_level(logging.INFO, "friendli_async"):
        assert browser.get("/chat").status_code == 404
    [line] = [record.getMessage() for record in caplog.records if "NotFoundError" in record.getMessage()]
    assert line.startswith("/chat: 404, NotFoundError: 404 no such model: m WARNING forged (")


def test_path_is_quoted_in_the_log(app: FastAPI, browser: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    @app.get("/at/{place}")
    async def at(place: str) -> None:
        raise friendli_async.ConfigurationError(f"{place} \ud83d")

    with caplog.at_level(logging.INFO, "friendli_async"):
        assert browser.get("/at/a%0Ab%20c").status_code == 500
    assert "/at/a%0Ab%20c: 500, ConfigurationError: a b c \ufffd" in [record.getMessage() for record in caplog.records]


def test_return_type_has_openapi_schema(browser: TestClient) -> None:
    paths = browser.get("/openapi.json").json()["paths"]
    schema = paths["/chat"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["description"].startswith(str(ChatCompletion.__doc__).partition("\n")[0])
    assert set(schema["properties"]) == {field.encode_name for field in msgspec.structs.fields(ChatCompletion)}
    assert "$ref" not in json.dumps(schema)


def reply_classes() -> list[type[Reply]]:
    def descendants(cls: type[Any]) -> Iterator[type[Any]]:
        for each in cls.__subclasses__():
            yield each
            yield from descendants(each)

    package = friendli_async.__name__
    return sorted(
        {each for each in descendants(Reply) if each.__module__.startswith(package)}, key=lambda each: each.__name__
    )


def test_schema_of_a_response_says_what_its_items_are() -> None:
    items = TypeAdapter(Response).json_schema()["properties"]["output"]["items"]
    assert items["properties"].keys() >= {"type", "content", "arguments"}
    assert TypeAdapter(OutputItemDone).json_schema()["properties"]["item"] == items
    completed = TypeAdapter(ResponseCompleted).json_schema()["properties"]["response"]  # also inside of a struct
    assert completed["properties"]["output"]["items"] == items


@pytest.mark.parametrize("reply", reply_classes(), ids=lambda reply: f"{reply.__module__}.{reply.__name__}")
def test_every_reply_has_a_pydantic_schema(reply: type[Reply]) -> None:
    kind: Any = reply
    schema = TypeAdapter(list[kind] | None).json_schema()
    assert "properties" in schema["anyOf"][0]["items"]
    assert "$ref" not in json.dumps(schema)
    fields = [field for each in objects_in(schema) for field in each.get("properties", {}).items()]
    assert [name for name, field in fields if field.get("type") == "null"] == []  # it would serve to decode only


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yields the objects in a JSON value, itself included."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects_in(each)


RECORDS: Final[dict[type[Any], dict[str, Any]]] = {
    Attempt: {"number": 1},
    Gauges: {"in_use": 1, "loops": ({"in_use": 1},)},
    Partial: {"text": "Hel"},
    Progress: {"done": 1},
    RateLimit: {"limit_requests": 1},
    RunResult: {"reply": {"choices": []}, "messages": [{"role": "user"}], "usage": None, "turns": 1},
    Timing: {"total": 0.5},
}


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: str(kind.__name__))
def test_records_of_the_client_are_return_types(kind: type[Any]) -> None:  # such as the gauges, of a health check
    record = msgspec.convert(RECORDS[kind], kind)
    app = FastAPI()
    app.get("/plain")(lambda: {"record": record})
    app.get("/typed", response_model=kind)(lambda: record)
    with TestClient(app) as browser:
        expected = json.loads(msgspec.json.encode(record))
        assert browser.get("/plain").json() == {"record": expected}
        assert browser.get("/typed").json() == expected
        assert "/typed" in browser.get("/openapi.json").json()["paths"]


class City(BaseModel):
    name: str = Field(alias="cityName")


class Tour(BaseModel):
    stops: list[City]


class Place(msgspec.Struct):
    name: str


class Usage(BaseModel):  # as a type of the library is called
    kwh: str


class Meter(BaseModel):
    usage: Usage
    discriminator: str = "m"

    @computed_field
    def label(self) -> str:
        return f"{self.usage.kwh} kWh"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Node(BaseModel):
    name: str
    discriminator: str = "n"
    next: "Node | None" = Field(None, examples=[{"discriminator": "n"}])


@dataclasses.dataclass
class Link:
    url: HttpUrl


ONE_METER: Final = (
    Meter,
    Meter(usage=Usage(kwh="3")),
    {"usage": {"kwh": "3"}, "discriminator": "m", "label": "3 kWh"},
)


@pytest.mark.parametrize(
    ("kind", "value", "encoded", "schema"),
    [
        (City, City(cityName="Oslo"), {"cityName": "Oslo"}, ["properties", "cityName"]),
        (list[City], [City(cityName="Oslo")], [{"cityName": "Oslo"}], ["items", "properties", "cityName"]),
        (
            Tour,
            Tour(stops=[City(cityName="Oslo")]),
            {"stops": [{"cityName": "Oslo"}]},
            ["properties", "stops", "items", "properties", "cityName"],
        ),
        (Place, Place("Oslo"), {"name": "Oslo"}, ["properties", "name"]),
        (City | Usage, Usage(kwh="3"), {"kwh": "3"}, ["anyOf", 1, "properties", "kwh"]),
        (
            Annotated[Cat | Dog, Field(discriminator="kind")],
            Dog(kind="dog"),
            {"kind": "dog"},
            ["oneOf", 1, "properties", "kind"],
        ),
        (
            dict[int, City],
            {1: City(cityName="Oslo")},
            {"1": {"cityName": "Oslo"}},
            ["additionalProperties", "properties", "cityName"],
        ),
        (*ONE_METER, ["properties", "usage", "properties", "kwh"]),
        (*ONE_METER, ["properties", "discriminator"]),
        (*ONE_METER, ["properties", "label"]),
        (Node, Node(name="a", next=None), {"name": "a", "discriminator": "n", "next": None}, ["properties", "name"]),
        (Link, Link(HttpUrl("http://a/")), {"url": "http://a/"}, ["properties", "url"]),
    ],
    ids=[
        *("model", "list", "nested", "struct", "union", "discriminated union", "dict"),
        *(
            "model of a name of ours",
            "field called discriminator",
            "computed field",
            "model in itself",
            "type of pydantic",
        ),
    ],
)
@pytest.mark.parametrize(("holder", "field"), [(ParsedCompletion, "value"), (ParsedRunResult, "answer")])
def test_replies_with_values_of_a_type_are_return_types(
    kind: Any, value: Any, encoded: Any, schema: list[str | int], holder: Any, field: str
) -> None:
    empty: dict[str, Any] = {
        "choices": [],
        "reply": {"choices": []},
        "messages": [],
        "usage": None,
        "turns": 1,
        "value": None,
    }
    reply = msgspec.structs.replace(msgspec.convert(empty, holder), **{field: value})
    app = FastAPI()
    app.get("/plain")(lambda: {"reply": reply})
    app.get("/typed", response_model=holder[kind])(lambda: reply)
    with TestClient(app) as browser:
        answer = browser.get("/typed").json()
        assert answer["value"] == encoded
        assert browser.get("/plain").json() == {"reply": answer}
        paths = browser.get("/openapi.json").json()["paths"]
    assert "mapping" not in str(paths)  # of discriminated unions: it refers to definitions
    found = paths["/typed"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["value"]
    for name in schema:
        found = found[name]
    assert found["type"] == "string"
    assert TypeAdapter(holder[kind]).validate_python(answer) == reply


def test_constraints_of_a_value_hold() -> None:
    adapter = TypeAdapter(ParsedCompletion[Annotated[int, Field(ge=1)]])
    assert adapter.json_schema()["properties"]["value"] == {"minimum": 1, "type": "integer"}
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        adapter.validate_python({"choices": [], "value": 0})


def test_reply_as_pydantic_field() -> None:
    class Stored(BaseModel):
        reply: ChatCompletion

    data = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}]}
    stored = Stored.model_validate({"reply": data})
    assert stored.reply.text == "Hi"
    assert Stored.model_validate_json(stored.model_dump_json()) == stored
    with pytest.raises(ValidationError, match="choices"):
        Stored.model_validate({"reply": {"choices": 7}})


def test_library_does_not_import_pydantic_or_fastapi() -> None:
    code = "import sys, friendli_async, friendli_async.asgi; print({'pydantic', 'starlette'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['starlette'] = None; import friendli_async.integrations.fastapi"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'friendli_async[fastapi]'" in done.stderr


# --- responses -------------------------------------------------------------------------------------------------------


def test_response_has_cookies_headers_and_background(app: FastAPI, remote: FriendliServer) -> None:
    ran: list[str] = []

    @app.get("/relay")
    async def relay(client: Client) -> FriendliResponse:
        stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
        answer = FriendliResponse(stream, headers={"X-Mine": "1"}, background=BackgroundTask(ran.append, "task"))
        answer.set_cookie("a", "b")
        return answer

    @app.get("/plain")
    async def plain(client: Client) -> FriendliResponse:
        stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
        return FriendliResponse(stream, background=lambda: ran.append("plain"))

    @app.get("/tasks")
    async def tasks(client: Client, background: BackgroundTasks) -> FriendliResponse:
        background.add_task(ran.append, "tasks")
        return FriendliResponse(client.serverless.chat.stream(model="m", messages=MESSAGES))

    with TestClient(app) as browser:
        answer = browser.get("/relay")
        assert answer.headers["x-mine"] == "1"
        assert answer.cookies["a"] == "b"
        assert answer.headers["content-type"] == "text/event-stream"
        assert b"[DONE]" in answer.content
        assert browser.get("/tasks").status_code == 200
        assert browser.get("/plain").status_code == 200
        remote.enqueue(status(404))
        assert browser.get("/relay").status_code == 404
        schema = browser.get("/openapi.json").json()
    assert ran == ["task", "tasks", "plain"]
    assert "/relay" in schema["paths"]


# --- the client's lifespan -------------------------------------------------------------------------------------------


def test_lifespan_accepts_all_client_options() -> None:
    accepted = set(inspect.signature(AsyncFriendli).parameters) - {"others"}
    assert set(LifespanOptions.__annotations__) == accepted


def test_lifespan_composes_and_closes_its_client(remote: FriendliServer) -> None:
    seen: list[AsyncFriendli] = []
    order: list[str] = []

    @asynccontextmanager
    async def app_lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with lifespan(token="t", server_url=remote.url)(app) as state:
            yield {**state, "database": "db"}
        order.append("closed")

    app, mounted = FastAPI(lifespan=app_lifespan), FastAPI()
    app.mount("/below", mounted)

    @mounted.get("/who")
    @app.get("/who")
    async def who(request: Request, client: Client) -> str:
        seen.append(client)
        return str(request.state.database)

    with TestClient(app) as browser:
        assert browser.get("/who").json() == browser.get("/below/who").json() == "db"
    assert seen[0] is seen[1]
    assert "closed" in repr(seen[0])
    assert order == ["closed"]


def test_lifespan_may_be_passed_uncalled(remote: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRIENDLI_SERVER_URL", remote.url)
    monkeypatch.setenv("FRIENDLI_TOKEN", "test-token")
    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def route(client: Client) -> str:
        return (await client.serverless.chat.complete(model="m", messages=MESSAGES)).text

    with TestClient(app) as browser:
        assert "Hi" in browser.get("/").json()


def test_lifespan_takes_nothing_else_by_position() -> None:
    make: Any = lifespan
    with pytest.raises(TypeError, match="lifespan takes keywords, as AsyncFriendli does, or the app, not AsyncFrien"):
        make(AsyncFriendli("t"))


def test_unknown_keyword_of_the_lifespan_is_named_when_the_app_is_made() -> None:
    make: Any = lifespan
    with pytest.raises(TypeError, match=r"^lifespan\(\) got .*'drian'; did you mean 'drain'\?"):
        make(drian=3)
    with pytest.raises(TypeError, match=r"'api_key'; use token=") as caught:
        make(api_key="secret")
    assert "secret" not in repr([entry.frame.f_locals for entry in caught.traceback[1:]])


async def test_client_is_found_if_the_server_passes_no_state_of_the_lifespan() -> None:
    app = FastAPI()
    async with lifespan(token="t")(app) as state:
        assert client_of(Request({"type": "http", "app": app})) is state["friendli"]


def test_client_is_got_in_the_event_loop_and_not_in_a_thread_that_others_may_block(remote: FriendliServer) -> None:
    class State(dict[str, Any]):
        """Records the threads in which the client is looked up."""

        def get(self, key: str, default: Any = None) -> Any:
            threads.append(threading.get_ident())
            return super().get(key, default)

    threads: list[int] = []
    app = FastAPI(lifespan=lifespan(token="t", server_url=remote.url))

    @app.get("/")
    async def thread(client: Annotated[AsyncFriendli, Depends(get_client)], request: Request) -> list[int]:
        assert client_of(request) is client
        return [threading.get_ident()]

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        if "state" in scope and scope["type"] == "http":
            scope = {**scope, "state": State(scope["state"])}
        await app(scope, receive, send)

    with TestClient(recorded) as browser:
        [of_loop] = browser.get("/").json()
    assert threads == [of_loop, of_loop]


@pytest.mark.parametrize("app", [FastAPI(), FastAPI(lifespan=lifespan())], ids=["none", "not run"])
def test_app_without_lifespan_or_whose_lifespan_has_not_run_is_an_error(app: FastAPI) -> None:
    @app.get("/")
    async def route(client: Client) -> None: ...

    with pytest.raises(RuntimeError, match=r"no client: .* lifespan=.*, and let .* run: in a test, use `with"):
        TestClient(app).get("/")


@pytest.mark.parametrize("drain", ["5", -1])
def test_invalid_drain_is_rejected_when_the_app_is_made_not_at_its_shutdown(drain: Any) -> None:
    with pytest.raises(friendli_async.ConfigurationError, match="drain must be a number of seconds"):
        lifespan(drain=drain)


async def test_signal_starts_the_drain_and_reaches_the_server_handler(server: FriendliServer) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        server_handler = signal.getsignal(signal.SIGTERM)
        app = FastAPI()
        async with lifespan(token="t", server_url=server.url)(app):
            client: AsyncFriendli = app.state.friendli
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(friendli_async.ConfigurationError, match="draining"):
                await client.serverless.chat.complete(model="m", messages=MESSAGES)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is server_handler
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_signals_without_server_handler_are_not_handled(server: FriendliServer) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        async with lifespan(token="t", server_url=server.url)(FastAPI()):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upstream", "code", "retry_after"),
    [
        (status(429, retry_after=1.5), 429, "2"),
        (status(503, retry_after=7), 503, "7"),
        (status(401, message="bad token test-token"), 502, None),
        (status(502, retry_after=7), 502, None),
        (status(403), 502, None),
        (status(400), 400, None),
        (status(500), 502, None),
        (json_body([1]), 502, None),
    ],
    ids=["429", "503", "401", "502", "403", "400", "500", "invalid reply"],
)
def test_errors_map_to_http_statuses(
    browser: TestClient, remote: FriendliServer, upstream: Any, code: int, retry_after: str | None
) -> None:
    remote.enqueue(upstream)
    response = browser.get("/chat")
    assert response.status_code == code
    assert response.headers.get("retry-after") == retry_after
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "test-token" not in response.text
    assert "x-request-id" not in response.headers


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (ToolError("t"), "false"),
        (TurnLimitError("t"), "false"),
        (UsageLimitError("t"), "false"),
        (OutputInvalidError("t"), "false"),
        (OutputCutOffError("t"), "false"),
        (ConfigurationError("no token"), "false"),
        (AuthenticationError("t", status_code=401), "false"),
        (PermissionDeniedError("t", status_code=403), "false"),
        (APIStatusError("unpaid", status_code=402), "false"),
        (APIStatusError("t", status_code=408), None),
        (APIStatusError("in an event", status_code=200), None),
        (ConfigurationError("t", draining=True), None),
        (RateLimitError("t", status_code=429), None),
        (InternalServerError("t", status_code=500), None),
        (APIConnectionError("t"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FriendliError) else str(value),
)
def test_javascript_client_is_told_not_to_repeat_what_would_fail_or_be_billed_again(
    app: FastAPI, browser: TestClient, error: FriendliError, header: str | None
) -> None:
    async def fail() -> None:
        raise error

    app.add_api_route("/fail", fail)
    assert browser.get("/fail").headers.get("x-should-retry") == header


def test_upstream_errors_are_logged_without_traceback(
    browser: TestClient, remote: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    remote.enqueue(status(500, message="broken"))
    with caplog.at_level(logging.WARNING, "friendli_async"):
        browser.get("/chat")
    [record] = [record for record in caplog.records if record.name == "friendli_async"]
    assert "/chat: 502, InternalServerError: 500 broken" in record.getMessage()
    assert record.exc_info is None


@pytest.mark.parametrize(
    ("path", "upstream", "logged"),
    [
        ("/chat", status(404, message="no such model"), "/chat: 404, NotFoundError: 404 no such model"),
        ("/chat", status(429, message="slow down"), "/chat: 429, RateLimitError: 429 slow down"),
        ("/bad", None, "/bad: 422, ArgumentError: temperature: Expected"),
        ("/bad?unknown=1", None, "/bad: 422, UnknownArgumentError: complete() got an unexpected keyword"),
    ],
    ids=["404", "429", "argument", "keyword"],
)
def test_errors_that_may_be_the_browsers_fault_are_logged_at_info(
    browser: TestClient, remote: FriendliServer, caplog: pytest.LogCaptureFixture, path: str, upstream: Any, logged: str
) -> None:
    if upstream is not None:
        remote.enqueue(upstream)
    with caplog.at_level(logging.INFO, "friendli_async"):
        browser.get(path)
    [record] = [record for record in caplog.records if record.name == "friendli_async"]
    assert record.levelname == "INFO"
    assert record.getMessage().startswith(logged)
    assert record.exc_info is None


@pytest.mark.parametrize(("query", "param"), [("", "temperature"), ("?unknown=1", "temprature")])
def test_invalid_argument_is_422_and_nothing_is_sent(
    browser: TestClient, remote: FriendliServer, query: str, param: str
) -> None:
    response = browser.get("/bad" + query)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (422, param, "invalid_request_error")
    assert "temperature" in error["message"]
    assert remote.requests == []


def test_param_of_a_422_is_the_path_of_the_value(app: FastAPI, remote: FriendliServer) -> None:
    @app.post("/ask")
    async def ask(client: Client, body: dict[str, Any]) -> ChatCompletion:
        return await client.serverless.chat.complete(**body)

    with TestClient(app) as browser:
        response = browser.post("/ask", json={"model": "m", "messages": [{"role": "user", "content": 7}]})
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith("messages[0].content")
    assert remote.requests == []


def test_broken_off_reply_is_not_reported_as_unreachable(browser: TestClient, remote: FriendliServer) -> None:
    remote.enqueue(script(head(), raw(b'{"choices": ['), cut()))
    error = browser.get("/chat").json()["error"]
    assert (error["message"], error["code"]) == ("the reply broke off before it was complete", "reply_interrupted")


# --- what a route can return -----------------------------------------------------------------------------------------


def test_returning_an_sse_response_is_an_error_that_names_friendli_response(
    app: FastAPI, remote: FriendliServer
) -> None:
    @app.get("/wrong", response_model=None)
    async def wrong(client: Client) -> SSEResponse:
        return SSEResponse(client.serverless.chat.stream(model="m", messages=MESSAGES))

    with TestClient(app) as browser, pytest.raises(ValueError, match=r"integrations\.fastapi\.FriendliResponse"):
        browser.get("/wrong")
    assert remote.requests == []


@pytest.mark.parametrize("method", ["stream", "parse_stream", "run", "text"])
def test_returning_a_stream_or_run_is_an_error_that_names_friendli_response(app: FastAPI, method: str) -> None:
    @app.get("/wrong", response_model=None)
    async def wrong(client: Client) -> object:
        chat = client.serverless.chat
        given: dict[str, Any] = {"model": "m", "messages": MESSAGES}
        if method == "parse_stream":
            return chat.parse_stream(dict[str, int], **given)
        if method == "run":
            return chat.run(tools=[], **given)
        return chat.stream(**given).text() if method == "text" else chat.stream(**given)

    with TestClient(app) as browser, pytest.raises(TypeError, match="return FriendliResponse"):
        browser.get("/wrong")


def test_response_passes_encode_and_end_on(app: FastAPI, remote: FriendliServer) -> None:
    @app.get("/encoded")
    async def encoded(client: Client) -> FriendliResponse:
        stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
        return FriendliResponse(stream, encode=lambda chunk: {"text": chunk.text} if chunk.text else None, end="[DONE]")

    remote.enqueue(text("Hel", "lo"))
    with TestClient(app) as browser:
        response = browser.get("/encoded")
    assert response.text == 'data: {"text":"Hel"}\n\ndata: {"text":"lo"}\n\ndata: [DONE]\n\n'


# --- errors of the app -----------------------------------------------------------------------------------------------


def test_value_errors_of_the_app_are_not_handled(app: FastAPI, browser: TestClient) -> None:
    assert browser.get("/foreign").status_code == 500
    with TestClient(app) as strict, pytest.raises(ValueError, match="raised by the app"):
        strict.get("/foreign")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [({}, "too long"), ({"\ud800": object()}, "\N{REPLACEMENT CHARACTER}: object is not JSON serializable")],
)
def test_websocket_is_closed_with_the_reason(app: FastAPI, remote: FriendliServer, extra: Any, reason: str) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket, client: Client) -> None:
        await websocket.accept()
        await client.serverless.chat.complete(model="m", messages=MESSAGES, extra_body=extra)

    remote.enqueue(status(400, message="too long"))
    with (
        TestClient(app) as browser,
        browser.websocket_connect("/socket") as opened,
        pytest.raises(WebSocketDisconnect) as caught,
    ):
        opened.receive_text()
    assert (caught.value.code, caught.value.reason) == (1011, reason)


def test_disconnect_of_a_websocket_ends_its_handler_without_an_error(app: FastAPI) -> None:
    raised: list[type[BaseException]] = []

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive_text()
        except WebSocketDisconnect as error:
            raised.append(type(error))
            raise

    with TestClient(app) as browser, browser.websocket_connect("/socket"):
        pass  # the test client raises what the handler raises
    assert raised == [WebSocketDisconnect]


# --- while_connected -------------------------------------------------------------------------------------------------


class Connection:
    """An ASGI connection that receives the given messages and then waits for the disconnect."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.disconnected = asyncio.Event()

    async def receive(self) -> MutableMapping[str, Any]:
        if self.messages:
            return self.messages.pop(0)
        await self.disconnected.wait()
        kind = "websocket" if self.is_websocket else "http"
        return {"type": f"{kind}.disconnect", "code": 1001, "reason": "bye"}

    is_websocket = False

    async def send(self, message: Any) -> None: ...

    def request(self) -> Request:
        return Request({"type": "http", "method": "POST", "headers": []}, self.receive)

    async def websocket(self, *, accept: bool = True) -> WebSocket:
        self.is_websocket = True
        self.messages.insert(0, {"type": "websocket.connect"})
        websocket = WebSocket({"type": "websocket", "headers": []}, self.receive, self.send)
        if accept:
            await websocket.accept()
        return websocket


async def test_while_connected_returns_result_and_raises_error() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    request = Connection({"type": "http.request", "body": b'{"a": 1}'}).request()
    assert await while_connected(request, asyncio.sleep(0, "result")) == "result"
    assert await request.json() == {"a": 1}  # the request body is still readable
    with pytest.raises(ZeroDivisionError):
        await while_connected(request, fails())


async def test_coroutine_function_that_was_not_called_is_named() -> None:
    async def answer() -> str:
        return ""

    request = Connection({"type": "http.request", "body": b""}).request()
    not_called: Any = answer
    with pytest.raises(TypeError, match=r"any other awaitable, not <function .*answer"):
        await while_connected(request, not_called)
    assert await request.body() == b""  # nothing else receives


async def test_disconnect_cancels_the_call_and_waits_for_it() -> None:
    steps: list[str] = []

    async def call() -> None:
        try:
            steps.append("started")
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            steps.append("ended")

    connection = Connection({"type": "http.request", "body": b""})
    asyncio.get_running_loop().call_soon(connection.disconnected.set)
    with pytest.raises(ClientDisconnected) as caught:
        await while_connected(connection.request(), call())
    assert steps == ["started", "ended"]
    assert caught.value.status_code == 499


async def test_cancelling_while_connected_cancels_the_call(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(stall()))
    call = client.serverless.chat.complete(model="m", messages=MESSAGES)
    task = asyncio.create_task(while_connected(Connection({"type": "http.request"}).request(), call))
    upstream = await server.wait_for_requests(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await upstream.disconnected()


async def test_request_body_that_arrives_during_and_after_a_call_is_kept() -> None:
    connection = Connection(*({"type": "http.request", "body": body, "more_body": True} for body in (b"[1,", b"2,")))
    rest = asyncio.Event()

    async def receive_rest() -> dict[str, Any]:
        if connection.messages:
            return connection.messages.pop(0)
        await rest.wait()
        return {"type": "http.request", "body": b"3]"}

    connection.receive = receive_rest  # type: ignore[method-assign] # the same, and then the rest
    request = connection.request()
    await while_connected(request, run_loop_iterations(10))
    assert connection.messages == []
    rest.set()
    assert await request.json() == [1, 2, 3]


async def test_request_body_is_kept_by_a_check_for_a_disconnect_after_a_call() -> None:
    request = Connection({"type": "http.request", "body": b"[1]"}).request()
    await while_connected(request, run_loop_iterations(10))
    assert await request.is_disconnected() is False
    assert await request.json() == [1]


async def test_disconnect_in_the_middle_of_the_request_body_is_raised() -> None:
    connection = Connection({"type": "http.request", "body": b"[1", "more_body": True})
    connection.disconnected.set()
    with pytest.raises(ClientDisconnected):
        await while_connected(connection.request(), asyncio.Event().wait())


async def test_while_connected_can_open_a_stream(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(text("Hi"))
    stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
    opened = await while_connected(Connection({"type": "http.request"}).request(), stream)
    assert isinstance(opened, EventStream)
    assert (await opened.result()).text == "Hi"


async def test_websocket_messages_are_buffered_for_the_next_receive() -> None:
    messages = [{"type": "websocket.receive", "text": str(number)} for number in range(100)]
    connection = Connection(*messages)
    websocket = await connection.websocket()
    await while_connected(websocket, run_loop_iterations(100))
    assert len(connection.messages) == 36  # 64 are buffered: memory is bounded
    assert await while_connected(websocket, asyncio.sleep(0, "second")) == "second"
    assert [await websocket.receive_text() for _ in range(100)] == [str(number) for number in range(100)]


async def test_websocket_disconnect_is_raised() -> None:
    connection = Connection({"type": "websocket.receive", "text": "never answered"})
    websocket = await connection.websocket()
    asyncio.get_running_loop().call_later(0.01, connection.disconnected.set)
    with pytest.raises(WebSocketDisconnect) as caught:
        await while_connected(websocket, asyncio.Event().wait())
    assert (caught.value.code, caught.value.reason) == (1001, "bye")


async def test_disconnect_of_a_websocket_that_is_not_accepted_yet_is_raised() -> None:
    connection = Connection()
    websocket = await connection.websocket(accept=False)
    connection.disconnected.set()
    with pytest.raises(WebSocketDisconnect) as caught:
        await while_connected(websocket, asyncio.Event().wait())
    assert (caught.value.code, websocket.client_state.name) == (1001, "DISCONNECTED")


async def test_websocket_can_be_accepted_after_a_call() -> None:
    websocket = await Connection({"type": "websocket.receive", "text": "first"}).websocket(accept=False)
    await while_connected(websocket, run_loop_iterations(10))
    await websocket.accept()
    assert await websocket.receive_text() == "first"
