"""Client settings: token, team, URLs, headers, environment variables, and copies with changed settings."""

import asyncio
import inspect
import logging
import os
import pickle
import re
import ssl
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
from support.sockets import MESSAGES, client_of, completion, serve_bytes
from support.sockets import reply as http_reply

import friendli_async as f
from friendli_async._core.settings import ClientOptions, Settings
from friendli_async.testing import FriendliServer, status, text

CONTROLS: Final = ["\r\nX-Evil: 1", "\n", "\r", "\x00", "\x7f", "\x1b"]


@pytest.fixture
def server(server: FriendliServer) -> FriendliServer:
    server.always(text("ok"))
    return server


def make_client(server: FriendliServer, token: Any = "test-token", **settings: Any) -> f.AsyncFriendli:
    return f.AsyncFriendli(token, **{"server_url": server.url, "container_url": server.url, **settings})


async def send(client: f.AsyncFriendli) -> f.ChatCompletion:
    return await client.serverless.chat.complete(model="m", messages=MESSAGES)


def header(server: FriendliServer, name: str) -> str | None:
    return server.requests[-1].headers.get(name)


# --- token -----------------------------------------------------------------------------------------------------------


INVALID_TOKENS: Final = [
    *("", " ", "\t", "Bearer ", "bearer   ", 5, b"flp"),
    *(f"flp_{bad}x" for bad in CONTROLS),
    *("\r\n", "flp_\nx", "Bearer \r\nX: flp_", "flp_é", "flp_\u2028", "flp_\ud800", "flp_\udc80"),
]


@pytest.mark.compatibility
@pytest.mark.parametrize("token", INVALID_TOKENS)
async def test_invalid_token_is_rejected_before_any_io_and_not_revealed(
    server: FriendliServer, caplog: pytest.LogCaptureFixture, token: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(f.ConfigurationError) as raised:
        make_client(server, token)
    errors = [raised.value]
    async with make_client(server) as client:
        with pytest.raises(f.ConfigurationError) as raised:
            client.with_options(token=token)
        errors.append(raised.value)
        for token_callable in (lambda: token, _async_token(token)):
            with pytest.raises(f.ConfigurationError) as raised:
                await send(client.with_options(token=token_callable))
            errors.append(raised.value)
            assert raised.value.meta is None
    for error in errors:
        shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + repr(pickle.dumps(error))
        assert "flp" not in shown
    assert "flp" not in caplog.text
    assert server.connections == 0


def _async_token(token: Any) -> Callable[[], Awaitable[str]]:
    async def get_token() -> str:
        await asyncio.sleep(0)
        return token  # type: ignore[no-any-return]  # invalid on purpose

    return get_token


@pytest.mark.parametrize("streamed", [False, True], ids=["complete", "stream"])
@pytest.mark.parametrize("token_callable", [None, lambda: None], ids=["none", "callable returning None"])
async def test_missing_token_is_rejected_before_any_io(
    server: FriendliServer, token_callable: Any, streamed: bool
) -> None:
    async with make_client(server, token_callable) as client:
        stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
        with pytest.raises(f.ConfigurationError, match="token"):
            await (stream if streamed else send(client))
        with pytest.raises(f.ConfigurationError, match="token"):
            await client.dedicated.chat.complete(model="m", messages=MESSAGES)
    assert server.requests == []


async def test_container_token_is_optional(server: FriendliServer) -> None:
    async with make_client(server, None) as client:
        assert (await client.container.chat.complete(messages=MESSAGES)).text == "ok"
        assert header(server, "Authorization") is None
        await client.with_options(token="t").container.chat.complete(messages=MESSAGES)
        assert header(server, "Authorization") == "Bearer t"


@pytest.mark.parametrize(
    ("token", "value"), [("flp_x", "Bearer flp_x"), ("Bearer flp_x", "Bearer flp_x"), ("bEARER flp_x", "bEARER flp_x")]
)
async def test_token_with_bearer_prefix_is_sent_unchanged(server: FriendliServer, token: str, value: str) -> None:
    async with make_client(server, token) as client:
        await send(client)
    assert header(server, "Authorization") == value


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_token_callable_is_called_for_every_attempt(server: FriendliServer, kind: str) -> None:
    issued: list[str] = []

    def get_token() -> str:
        issued.append(f"token-{len(issued)}")
        return issued[-1]

    async def get_token_async() -> str:
        await asyncio.sleep(0)
        return get_token()

    async with make_client(
        server, get_token if kind == "sync" else get_token_async, retry=f.RetryPolicy(initial=0)
    ) as client:
        assert issued == []
        server.enqueue(status(429, retry_after=0), text("ok"), text("ok"))
        await send(client)
        await client.serverless.chat.stream(model="m", messages=MESSAGES).result()
    sent = [request.headers["Authorization"] for request in server.requests]
    assert sent == [f"Bearer token-{number}" for number in range(len(issued))]
    assert len(sent) == 3


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_exceptions_from_token_callables_propagate(server: FriendliServer, kind: str) -> None:
    class VaultError(Exception):
        pass

    def get_token() -> str:
        raise VaultError("sealed")

    async def get_token_async() -> str:
        return get_token()

    async with make_client(server, get_token if kind == "sync" else get_token_async) as client:
        with pytest.raises(VaultError, match="sealed"):
            await send(client)
        stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
        with pytest.raises(VaultError, match="sealed"):
            await stream
        assert (await send(client.with_options(token="good"))).text == "ok"
    assert len(server.requests) == 1


# --- invalid settings ------------------------------------------------------------------------------------------------

INVALID_NAMES: Final = [
    *("", "X A", "X-A:", "X:A", "X-Ä", "é", 5, b"X-A", None),
    *("Content-Length", "TRANSFER-ENCODING", "transfer-encoding", "connection", "Host"),
    *(f"X-A{bad}" for bad in CONTROLS),
]
INVALID_VALUES: Final = ["\u2028", "漢", "\ud800", 5, b"b", print, *(f"v{bad}" for bad in CONTROLS)]
INVALID_URLS: Final = [
    *("", "api.friendli.ai", "localhost:8000", "//h", "ftp://h", "file:///etc/passwd", "javascript:alert(1)"),
    *("http://", "http:///p", "https:///a", "http://h:x", "http://h:0", "http://h:99999", "http://[::1", "http://a..b"),
    *("http://h/?q=1", "http://h/?", "http://h?", "http://h/#f", "http://h#", "http://h\r\nX: y", "http://h/\r\nX: 1"),
    *("http://h/a b", "http://ho st", " http://h", "http://h\0", "http://h\t", "http://a\\b", "http://a<b"),
    *(
        "http://m\xfcller.de",
        "http://a/\ud800",
        "http://u:hunter2@h",
        "http://hunter2@h",
        "http://:hunter2@h",
        "http://u:hunter2@h\r\n?x",
    ),
    *(5, b"http://h", ["http://h"]),
]
INVALID_SETTINGS: Final[list[dict[str, Any]]] = [
    *({"team": value} for value in ("", " ", 5, *(f"t{bad}" for bad in CONTROLS))),
    *({"headers": {name: "v"}} for name in INVALID_NAMES),
    *({"headers": {"X-A": value}} for value in INVALID_VALUES),
    *({"headers": value} for value in ("X-A: hunter2", [("X-A", "hunter2")], print)),
    *({"server_url": value} for value in INVALID_URLS),
    *({"container_url": value} for value in ("", "localhost:8000", "http://h?x")),
    *({"timeout": value} for value in ("5", -1, 0, float("nan"), True)),
    *({"retry": value} for value in (3, False)),
    *({"limits": value} for value in (None, 5)),
]


@pytest.mark.parametrize("settings", INVALID_SETTINGS, ids=str)
async def test_invalid_setting_raises_configuration_error_that_names_it(settings: dict[str, Any]) -> None:
    client = f.AsyncFriendli("t")
    start = {"retry": "a retry policy ", "timeout": "[Tt]imeout"}.get(name := next(iter(settings)), name)
    for accept in (partial(f.AsyncFriendli, "t"), client.with_options):
        with pytest.raises(f.ConfigurationError, match=f"^{start}") as raised:
            accept(**settings)
        assert "hunter2" not in repr(raised.value)
        assert "\r" not in str(raised.value)
        assert isinstance(raised.value, ValueError)


def test_options_and_settings_have_the_same_names() -> None:
    assert {*ClientOptions.__annotations__} == {*Settings.__struct_fields__}


@pytest.mark.parametrize("name", ClientOptions.__annotations__)
def test_every_option_reaches_the_settings_of_a_client_and_its_copies(name: str) -> None:
    makers: list[Callable[..., object]] = [f.AsyncFriendli("t").with_options]
    if name != "wake":  # of copies only
        makers.append(f.AsyncFriendli)
    for make in makers:
        with pytest.raises(f.ConfigurationError):
            make(**{name: object()})


@pytest.mark.parametrize(("name", "value"), [("X-A", "b"), ("x.y", ""), ("X-Tab", "a\tb"), ("Accept", "é")])
def test_valid_header_is_accepted(name: str, value: str) -> None:
    assert f.AsyncFriendli("t", headers={name: value})._settings.headers == {name: value}


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_connections": 0}, {"max_connections": True}, {"max_connections": 1.5}),
        *({"proxy": "nowhere"}, {"proxy": 5}, {"proxy": ""}),
        *({"ssl": "no"}, {"ssl": 0}, {"ssl": ""}),
        *({"session": 3}, {"session": ""}, {"session": aiohttp.ClientSession}),
    ],
    ids=str,
)
async def test_invalid_constructor_setting_raises_configuration_error(settings: dict[str, Any]) -> None:
    with pytest.raises(f.ConfigurationError, match=next(iter(settings))):
        f.AsyncFriendli("t", **settings)


@pytest.mark.parametrize("name", ["token", "team", "server_url", "container_url", "proxy"])
def test_empty_setting_does_not_mean_the_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in ("FRIENDLI_TOKEN", "FRIENDLI_TEAM", "FRIENDLI_SERVER_URL", "FRIENDLI_CONTAINER_URL", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    empty: dict[str, Any] = {name: ""}
    with pytest.raises(f.ConfigurationError, match=name):
        f.AsyncFriendli(**empty)


async def test_session_of_a_subclass_and_a_fingerprint_are_accepted(server: FriendliServer) -> None:
    with pytest.warns(DeprecationWarning, match="Inheritance"):

        class Session(aiohttp.ClientSession):
            pass

    async with Session() as session, make_client(server, session=session) as client:
        await send(client)
    assert len(server.requests) == 1
    f.AsyncFriendli("t", ssl=aiohttp.Fingerprint(bytes(32)))  # type: ignore[arg-type]  # aiohttp's type is not ours


async def test_authorization_header_overrides_the_token(server: FriendliServer) -> None:
    async with make_client(server, headers={"authorization": "Bearer other"}) as client:
        await send(client)
        await send(client.with_options(headers={"Authorization": None}))
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer other", "Bearer test-token"]


async def test_proxy_and_ssl_cannot_be_combined_with_a_session() -> None:
    async with aiohttp.ClientSession() as session:
        both: list[dict[str, Any]] = [{"proxy": "http://proxy:3128"}, {"ssl": False}]
        for settings in both:
            with pytest.raises(f.ConfigurationError, match="session"):
                f.AsyncFriendli("t", session=session, **settings)


# --- headers and team ------------------------------------------------------------------------------------------------


async def test_team_header_is_sent_except_to_containers(server: FriendliServer) -> None:
    async with make_client(server, team="team_1") as client:
        await send(client)
        assert header(server, "X-Friendli-Team") == "team_1"
        await client.dedicated.chat.stream(model="m", messages=MESSAGES).result()
        assert header(server, "X-Friendli-Team") == "team_1"
        await client.serverless.tool_assisted_chat.complete(model="m", messages=MESSAGES)
        assert header(server, "X-Friendli-Team") == "team_1"
        await client.container.chat.complete(messages=MESSAGES)
        assert header(server, "X-Friendli-Team") is None


async def test_user_headers_take_precedence_and_merge_case_insensitively(server: FriendliServer) -> None:
    async with make_client(server, headers={"X-One": "1", "user-agent": "mine", "ACCEPT": "application/x"}) as client:
        await send(client)
        first = server.requests[-1].headers
        assert (first["X-One"], first["User-Agent"], first["Accept"]) == ("1", "mine", "application/x")
        copy = client.with_options(headers={"x-one": "one", "X-Two": "2", "User-Agent": None})
        await send(copy)
        second = server.requests[-1].headers
        assert (second["X-One"], second["X-Two"]) == ("one", "2")
        assert second["User-Agent"].startswith("friendli_async/")
        await send(copy.with_options(headers=None))
        assert server.requests[-1].headers == second
        await send(copy.with_options(headers={"X-ONE": None}))
        assert header(server, "X-One") is None
        assert header(server, "X-Two") == "2"
        await send(client)
        assert server.requests[-1].headers["X-One"] == "1"
    for request in server.requests:
        names = [name.lower() for name in request.headers]
        assert len(names) == len(set(names))


async def test_user_agent_contains_name_and_version(server: FriendliServer) -> None:
    async with make_client(server) as client:
        await send(client)
    assert header(server, "User-Agent") == f"friendli_async/{f.__version__}"


# --- environment -----------------------------------------------------------------------------------------------------


async def test_environment_provides_defaults(server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRIENDLI_TOKEN", "of-env")
    monkeypatch.setenv("FRIENDLI_TEAM", "team-env")
    monkeypatch.setenv("FRIENDLI_SERVER_URL", f"{server.url}/s/")
    monkeypatch.setenv("FRIENDLI_CONTAINER_URL", f"{server.url}/c")
    async with f.AsyncFriendli() as client:
        monkeypatch.setenv("FRIENDLI_TOKEN", "too late")
        await send(client)
        assert header(server, "Authorization") == "Bearer of-env"
        assert header(server, "X-Friendli-Team") == "team-env"
        assert server.requests[-1].path == "/s/serverless/v1/chat/completions"
        await client.container.chat.complete(messages=MESSAGES)
        assert server.requests[-1].path == "/c/v1/chat/completions"
    async with make_client(server, "given", team="team-given") as client:
        await send(client)
    assert header(server, "Authorization") == "Bearer given"
    assert header(server, "X-Friendli-Team") == "team-given"
    assert server.requests[-1].path == "/serverless/v1/chat/completions"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("FRIENDLI_SERVER_URL", "http://localhost:8000/v1", "server_url must not end with /v1"),
        ("FRIENDLI_CONTAINER_URL", "localhost:8000", "container_url must be an http or https URL"),
        ("FRIENDLI_SERVER_URL", "https://m\u00fcller.de", "server_url must be an http or https URL with an ASCII host"),
        ("FRIENDLI_TOKEN", "flp_se\ncret", "the token contains control or non-ASCII characters"),
        ("FRIENDLI_TEAM", "te\nam", "X-Friendli-Team"),
    ],
)
def test_error_about_a_variable_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(f.ConfigurationError, match=re.escape(reason)) as raised:
        f.AsyncFriendli()
    assert str(raised.value).endswith(f"(it is set by {variable})")
    assert "cret" not in str(raised.value)


async def test_empty_variables_count_as_unset(server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FRIENDLI_TOKEN", "FRIENDLI_TEAM", "FRIENDLI_SERVER_URL", "FRIENDLI_CONTAINER_URL"):
        monkeypatch.setenv(name, "")
    async with f.AsyncFriendli() as client:
        assert "https://api.friendli.ai" in repr(client)
        with pytest.raises(f.ConfigurationError, match="FRIENDLI_TOKEN"):
            await send(client)
        await client.with_options(container_url=server.url).container.chat.complete(messages=MESSAGES)
    assert header(server, "X-Friendli-Team") is None


def test_invalid_environment_variable_is_rejected_by_the_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TOKEN", "a\nb"), ("TEAM", "a\r\nb"), ("SERVER_URL", "host"), ("CONTAINER_URL", "host")):
        with monkeypatch.context() as patch:
            patch.setenv(f"FRIENDLI_{name}", value)
            with pytest.raises(f.ConfigurationError):
                f.AsyncFriendli()


@pytest.mark.parametrize("prefix", ["", "/", "/a", "/a/", "/a/b"])
async def test_path_prefix_of_the_url_is_kept(server: FriendliServer, prefix: str) -> None:
    async with make_client(server, server_url=f"{server.url}{prefix}") as client:
        await send(client)
    assert server.requests[-1].path == f"{prefix.rstrip('/')}/serverless/v1/chat/completions"


# --- with_options ----------------------------------------------------------------------------------------------------


async def test_with_options_changes_only_the_copy(server: FriendliServer) -> None:
    async with make_client(server, team="team_1", timeout=f.Timeouts(first_event=30)) as client:
        copy = client.with_options(token="other", team="team_2", retry=None, server_url=f"{server.url}/p")
        await send(copy)
        assert header(server, "Authorization") == "Bearer other"
        assert header(server, "X-Friendli-Team") == "team_2"
        assert server.requests[-1].path == "/p/serverless/v1/chat/completions"
        await send(client)
        assert header(server, "Authorization") == "Bearer test-token"
        assert header(server, "X-Friendli-Team") == "team_1"
        assert server.requests[-1].path == "/serverless/v1/chat/completions"
        await send(copy.with_options(team=None))
        assert header(server, "Authorization") == "Bearer other"
        assert header(server, "X-Friendli-Team") is None
        await send(client.with_options())
        assert header(server, "X-Friendli-Team") == "team_1"


FOREIGN_SETTINGS: Final = {
    "api_key": "token=...",
    "base_url": "server_url=... or container_url=...",
    "max_retries": "retry=RetryPolicy(max_attempts=...)",
    "retry_config": "retry=RetryPolicy(...)",
    "retry_policy": "retry=RetryPolicy(...)",
    "timeout_ms": "timeout=seconds",
    "x_friendli_team": "team=...",
    "default_headers": "headers={...}",
    "access_token": "token=...",
    "auth_token": "token=...",
    "bearer_auth": "token=...",
    "api_base": "server_url=... or container_url=...",
    "num_retries": "retry=RetryPolicy(max_attempts=...)",
    "request_timeout": "timeout=...",
    "connect_timeout": "timeout=Timeouts(connect=...)",
    "read_timeout": "timeout=Timeouts(first_event=..., idle=...)",
    "user_agent": 'headers={"User-Agent": ...}',
    "idempotency_key": 'headers={"Idempotency-Key": ...}',
}
FOREIGN_POOL_SETTINGS: Final = {
    "http_client": "session=... (an aiohttp session)",
    "async_client": "session=... (an aiohttp session)",
    "transport": "session=... (an aiohttp session)",
    "middlewares": "session=... (an aiohttp session)",
    "verify": "ssl=...",
    "ssl_context": "ssl=...",
    "cert": "ssl=...",
    "proxies": "proxy=...",
    "trust_env": "proxy=...",
    "pool_size": "max_connections=...",
    "max_keepalive_connections": "max_connections=...",
}
CLIENT_HINTS: Final = {
    "key": "use token=...",
    "credentials": "use token=...",
    "token_provider": "use token=...",
    "security": "use token=...",
    "host": "use server_url=... or container_url=...",
    "server": "use server_url=... or container_url=...",
    "azure_endpoint": "use server_url=... or container_url=...",
    "default_query": "use extra_query={...} of a method",
    "event_hooks": "use observers=[...]",
    "debug_logger": 'use logging.getLogger("friendli_async")',
    "rate_limit": "use pacing=Pacing(...)",
    "teem": "did you mean 'team'?",
    "server_urll": "did you mean 'server_url'?",
}


@pytest.mark.parametrize(("name", "equivalent"), FOREIGN_SETTINGS.items())
async def test_setting_name_of_another_client_gets_a_hint(server: FriendliServer, name: str, equivalent: str) -> None:
    unknown: dict[str, Any] = {name: "x"}
    with pytest.raises(
        TypeError,
        match=re.escape(f"AsyncFriendli() got an unexpected keyword argument {name!r}; use {equivalent}"),
    ):
        f.AsyncFriendli("token", **unknown)
    async with make_client(server) as client:
        with pytest.raises(TypeError, match=re.escape(f"use {equivalent}")):
            client.with_options(**unknown)
        with pytest.raises(
            TypeError, match=re.escape(f"it is a client setting; use client.with_options({equivalent})")
        ):
            client.serverless.chat.stream(model="m", messages=[], **unknown)


@pytest.mark.parametrize(("name", "equivalent"), FOREIGN_POOL_SETTINGS.items())
async def test_pool_setting_of_another_client_gets_a_hint_for_the_constructor(
    server: FriendliServer, name: str, equivalent: str
) -> None:
    unknown: dict[str, Any] = {name: "x"}
    with pytest.raises(TypeError, match=re.escape(f"use {equivalent}")):
        f.AsyncFriendli("token", **unknown)
    hint = re.escape(f"it is a client setting; use AsyncFriendli({equivalent})")
    async with make_client(server) as client:
        with pytest.raises(TypeError, match=hint):
            client.with_options(**unknown)
        with pytest.raises(TypeError, match=hint):
            client.serverless.chat.stream(model="m", messages=[], **unknown)


@pytest.mark.parametrize(("name", "hint"), CLIENT_HINTS.items())
async def test_hint_for_a_client_setting_is_given_by_the_client_only(
    server: FriendliServer, name: str, hint: str
) -> None:
    unknown: dict[str, Any] = {name: "x"}
    with pytest.raises(TypeError, match=re.escape(hint)):
        f.AsyncFriendli("token", **unknown)
    async with make_client(server) as client:
        with pytest.raises(TypeError, match=re.escape(hint)):
            client.with_options(**unknown)
        with pytest.raises(TypeError) as raised:
            client.serverless.chat.stream(model="m", messages=[], **unknown)
    assert "with_options" not in str(raised.value)


def test_unknown_keyword_error_lists_the_valid_keywords() -> None:
    unknown: dict[str, Any] = {"temperature": 1}
    with pytest.raises(TypeError, match="'temperature'; it takes token, team, ") as raised:
        f.AsyncFriendli("token", **unknown)
    listed = str(raised.value).partition("it takes ")[2].split(", ")
    assert [*listed, "others"] == [*inspect.signature(f.AsyncFriendli).parameters]


def test_wake_hint_points_to_with_options() -> None:
    unknown: dict[str, Any] = {"wake": True}
    with pytest.raises(TypeError, match=re.escape("use client.with_options(wake=True)")):
        f.AsyncFriendli("token", **unknown)


@pytest.mark.parametrize("name", ["server_url", "container_url"])
@pytest.mark.parametrize("end", ["/v1", "/v1/", "/serverless/v1", "/serverless", "/dedicated", "/v1/chat/completions"])
def test_base_url_that_would_duplicate_the_path_is_rejected(name: str, end: str) -> None:
    url: dict[str, Any] = {name: f"http://localhost:8000{end}"}
    with pytest.raises(f.ConfigurationError, match=f"{name} must not end with"):
        f.AsyncFriendli("token", **url)


@pytest.mark.parametrize("keyword", ["timeouts", "max_connections", "session", "proxy", "model"])
async def test_unknown_option_raises_type_error(server: FriendliServer, keyword: str) -> None:
    unknown: dict[str, Any] = {keyword: 1}
    async with make_client(server) as client:
        with pytest.raises(TypeError, match=keyword):
            client.with_options(**unknown)


def test_part_of_the_timeouts_and_of_the_retry_policy_can_be_changed() -> None:
    client = f.AsyncFriendli("t", timeout=f.Timeouts(idle=7), retry=f.RetryPolicy(initial=3))
    changed = client.with_options(
        timeout=msgspec.structs.replace(client.timeout, total=20),
        retry=msgspec.structs.replace(client.retry, max_attempts=2),
    )
    assert changed.timeout == f.Timeouts(idle=7, total=20)
    assert changed.retry == f.RetryPolicy(initial=3, max_attempts=2)
    assert client.with_options(retry=None).retry.max_attempts == 1


async def test_with_options_preserves_the_subclass_and_its_attributes(server: FriendliServer) -> None:
    class Subclass(f.AsyncFriendli):
        def __init__(self, purpose: str) -> None:
            super().__init__("t", server_url=server.url, timeout=10)
            self.purpose = purpose

    async with Subclass("test") as client:
        copied = client.with_options(timeout=5)
        assert type(copied) is Subclass
        assert copied.purpose == "test"
        assert (client.timeout.total, copied.timeout.total) == (10, 5)
        await copied.aclose()
        assert (await send(client)).text


async def test_cached_property_of_a_subclass_is_computed_again_for_a_copy_with_options(server: FriendliServer) -> None:
    class Subclass(f.AsyncFriendli):
        @cached_property
        def chat(self) -> Any:
            return self.serverless.chat

    async with Subclass("first-token", server_url=server.url) as client:
        await client.chat.complete(model="m", messages=MESSAGES)
        await client.with_options(token="second-token").chat.complete(model="m", messages=MESSAGES)
    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer first-token", "Bearer second-token"]


def test_repr_hides_secrets() -> None:
    client = f.AsyncFriendli("secret", team="secret-team", headers={"X-A": "secret"})
    shown = [
        client,
        client.serverless,
        client.serverless.chat,
        client.container.chat,
        client.with_options(team="secret"),
    ]
    assert "secret" not in "".join(map(repr, shown))


# --- normalization of settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["argument", "environment", "callable"])
async def test_whitespace_around_the_token_is_stripped(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    given: Any = {"argument": " test-token\t\r\n", "environment": None, "callable": lambda: "  test-token \n"}[source]
    if source == "environment":
        monkeypatch.setenv("FRIENDLI_TOKEN", "  test-token \r\n")
    async with f.AsyncFriendli(given, server_url=server.url) as client:
        await send(client)
    assert server.requests[0].headers["Authorization"] == "Bearer test-token"


@pytest.mark.parametrize(
    ("prefix", "path"), [("//", ""), ("/a///", "/a"), ("/prüfung", "/pr%C3%BCfung"), ("/a%20b", "/a%20b")]
)
async def test_url_path_is_normalized_and_percent_encoded(prefix: str, path: str) -> None:
    async with serve_bytes(http_reply(completion())) as raw, client_of(raw.url + prefix) as client:
        await send(client)
    assert raw.requests[0].startswith(f"POST {path}/serverless/v1/chat/completions HTTP".encode())


def test_environment_certificates_are_loaded_by_the_constructor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    assert _tls_of(f.AsyncFriendli("token")) is True
    (tmp_path / "authorities.pem").write_text(ssl.DER_cert_to_PEM_cert(_own_certificate(tmp_path)))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
    context = _tls_of(f.AsyncFriendli("token"))
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1
    assert _tls_of(f.AsyncFriendli("token", ssl=False)) is False


_FIRST_CLIENT = """
import os, sys
{before}
from friendli_async import AsyncFriendli
own = AsyncFriendli("token")._runtime.transport._ssl
from aiohttp import connector
trusted = connector._SSL_CONTEXT_VERIFIED if own is True else own
print(own is True, len(trusted.get_ca_certs()))
"""


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "True 1"),  # aiohttp has loaded them; loading them again takes as long as its import
        ("import aiohttp", "False 1"),
        ("del os.environ['SSL_CERT_FILE']; import aiohttp; os.environ['SSL_CERT_FILE'] = sys.argv[1]", "False 1"),
    ],
)
def test_environment_certificates_are_loaded_once_if_the_client_imports_aiohttp(
    tmp_path: Path, before: str, expected: str
) -> None:
    authorities = tmp_path / "authorities.pem"
    authorities.write_text(ssl.DER_cert_to_PEM_cert(_own_certificate(tmp_path)))
    environment = {**os.environ, "SSL_CERT_FILE": str(authorities), "SSL_CERT_DIR": str(tmp_path / "none")}
    command = [sys.executable, "-c", _FIRST_CLIENT.format(before=before), str(authorities)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def _tls_of(client: f.AsyncFriendli) -> object:
    transport: Any = client._runtime.transport
    return transport._ssl


def _own_certificate(folder: Path) -> bytes:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=own", "-outform", "DER"]
    certificate = folder / "own.der"
    subprocess.run(
        [*command, "-keyout", str(folder / "key"), "-out", str(certificate)], check=True, capture_output=True
    )
    return certificate.read_bytes()


@pytest.mark.parametrize("value", ["test-token", " test-token\t", '"test-token"', "'test-token'", '" test-token "'])
def test_environment_variables_may_be_padded_and_quoted(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FRIENDLI_TOKEN", value)
    monkeypatch.setenv("FRIENDLI_TEAM", value.replace("test-token", "team"))
    monkeypatch.setenv("FRIENDLI_SERVER_URL", value.replace("test-token", "https://api.example/a/"))
    monkeypatch.setenv("FRIENDLI_CONTAINER_URL", " \t")
    settings = f.AsyncFriendli()._settings
    assert str.__str__(f.AsyncFriendli().serverless.chat._engine.request_builder.authorization) == "Bearer test-token"
    assert (settings.team, settings.server_url) == ("team", "https://api.example/a")
    assert settings.container_url == "http://localhost:8000"


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        ("https://api.friendli.ai", "https://api.friendli.ai"),
        ("https://api.friendli.ai/", "https://api.friendli.ai"),
        ("http://localhost:8000/prefix/v2/", "http://localhost:8000/prefix/v2"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("HTTP://127.0.0.1", "HTTP://127.0.0.1"),
        ("http://xn--mller-kva.de:80/\u00fc", "http://xn--mller-kva.de:80/%C3%BC"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ('http://a/{b}"<>|^`', "http://a/%7Bb%7D%22%3C%3E%7C%5E%60"),
        ("http://a/b//c///", "http://a/b//c"),
    ],
)
def test_base_url_is_normalized(url: str, normalized: str) -> None:
    assert f.AsyncFriendli("token", server_url=url)._settings.server_url == normalized
