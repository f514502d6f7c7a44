"""The client's settings: token, team, URLs, headers, the environment, and copies with other settings."""

import asyncio
import inspect
import os
import pickle
import re
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from support.sockets import client_of, completion, saying
from support.sockets import reply as http_reply

import friendli_async as f
from friendli_async.testing import FriendliServer, status, text

MESSAGES: Final = [{"role": "user", "content": "Hi"}]
CONTROLS: Final = ["\r\nX-Evil: 1", "\n", "\r", "\x00", "\x7f", "\x1b"]


@pytest.fixture
def server(server: FriendliServer) -> FriendliServer:
    server.always(text("ok"))
    return server


def made(server: FriendliServer, token: Any = "test-token", **settings: Any) -> f.AsyncFriendli:
    return f.AsyncFriendli(token, **{"server_url": server.url, "container_url": server.url, **settings})


async def send(client: f.AsyncFriendli) -> f.ChatCompletion:
    return await client.serverless.chat.complete(model="m", messages=MESSAGES)


def header(server: FriendliServer, name: str) -> str | None:
    return server.requests[-1].headers.get(name)


# --- token -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", ["", " ", "\t", *[f"flp_{bad}x" for bad in CONTROLS], "flp_é", "flp_\ud800", 5, b"flp"]
)
async def test_unusable_token_is_refused_before_any_io_and_not_repeated(server: FriendliServer, token: Any) -> None:
    with pytest.raises(f.ConfigurationError) as raised:
        made(server, token)
    assert "flp" not in str(raised.value)
    async with made(server) as client:
        with pytest.raises(f.ConfigurationError) as raised:
            client.with_options(token=token)
        assert "flp" not in str(raised.value)
        for gives in (lambda: token, _giving(token)):
            with pytest.raises(f.ConfigurationError) as raised:
                await send(client.with_options(token=gives))
            assert "flp" not in str(raised.value)
            assert raised.value.meta is None
    assert server.requests == []


def _giving(token: Any) -> Callable[[], Awaitable[str]]:
    async def give() -> str:
        await asyncio.sleep(0)
        return token  # type: ignore[no-any-return]  # rubbish on purpose

    return give


@pytest.mark.parametrize("streamed", [False, True], ids=["complete", "stream"])
@pytest.mark.parametrize("gives", [None, lambda: None], ids=["none", "callable that gives None"])
async def test_missing_token_is_refused_before_any_io(server: FriendliServer, gives: Any, streamed: bool) -> None:
    async with made(server, gives) as client:
        stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
        with pytest.raises(f.ConfigurationError, match="token"):
            await (stream if streamed else send(client))
        with pytest.raises(f.ConfigurationError, match="token"):
            await client.dedicated.chat.complete(model="m", messages=MESSAGES)
    assert server.requests == []


async def test_container_needs_no_token_but_sends_one(server: FriendliServer) -> None:
    async with made(server, None) as client:
        assert (await client.container.chat.complete(messages=MESSAGES)).text == "ok"
        assert header(server, "Authorization") is None
        await client.with_options(token="t").container.chat.complete(messages=MESSAGES)
        assert header(server, "Authorization") == "Bearer t"


@pytest.mark.parametrize(
    ("token", "value"), [("flp_x", "Bearer flp_x"), ("Bearer flp_x", "Bearer flp_x"), ("bearer flp_x", "bearer flp_x")]
)
async def test_token_that_is_a_bearer_already_is_sent_as_it_is(server: FriendliServer, token: str, value: str) -> None:
    async with made(server, token) as client:
        await send(client)
    assert header(server, "Authorization") == value


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_callable_token_is_asked_for_every_attempt(server: FriendliServer, kind: str) -> None:
    asked: list[str] = []

    def give() -> str:
        asked.append(f"token-{len(asked)}")
        return asked[-1]

    async def give_later() -> str:
        await asyncio.sleep(0)
        return give()

    async with made(server, give if kind == "sync" else give_later, retry=f.RetryPolicy(initial=0)) as client:
        assert asked == []
        server.enqueue(status(429, retry_after=0), text("ok"), text("ok"))
        await send(client)
        await client.serverless.chat.stream(model="m", messages=MESSAGES).result()
    sent = [request.headers["Authorization"] for request in server.requests]
    assert sent == [f"Bearer token-{number}" for number in range(len(asked))]
    assert len(sent) == 3


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_a_token_callable_raises_comes_out_as_it_is(server: FriendliServer, kind: str) -> None:
    class VaultError(Exception):
        pass

    def give() -> str:
        raise VaultError("sealed")

    async def give_later() -> str:
        return give()

    async with made(server, give if kind == "sync" else give_later) as client:
        with pytest.raises(VaultError, match="sealed"):
            await send(client)
        stream = client.serverless.chat.stream(model="m", messages=MESSAGES)
        with pytest.raises(VaultError, match="sealed"):
            await stream
        assert (await send(client.with_options(token="good"))).text == "ok"
    assert len(server.requests) == 1


# --- header injection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", CONTROLS)
async def test_nothing_can_be_injected_through_team_or_headers(server: FriendliServer, bad: str) -> None:
    async with made(server) as client:
        for settings in ({"team": f"t{bad}"}, {"headers": {"X-A": f"v{bad}"}}, {"headers": {f"X-A{bad}": "v"}}):
            with pytest.raises(f.ConfigurationError):
                made(server, **settings)
            with pytest.raises(f.ConfigurationError):
                client.with_options(**settings)  # type: ignore[arg-type]  # a table
    assert server.requests == []


@pytest.mark.parametrize(
    "settings",
    [
        {"team": ""},
        {"team": " "},
        {"team": 5},
        {"headers": {"": "v"}},
        {"headers": {"X A": "v"}},
        {"headers": {"X:A": "v"}},
        {"headers": {"X-Ä": "v"}},
        {"headers": {"X-A": 5}},
        {"headers": {5: "v"}},
        {"headers": {"X-A": "漢"}},
        {"headers": {"Content-Length": "5"}},
        {"headers": {"transfer-encoding": "chunked"}},
        {"headers": {"Host": "evil"}},
        {"headers": "X-A: hunter2"},
        {"headers": [("X-A", "hunter2")]},
        {"server_url": "api.friendli.ai"},
        {"server_url": "ftp://host"},
        {"server_url": "http://"},
        {"server_url": "http://user:hunter2@host"},
        {"server_url": "http://host/?q=1"},
        {"server_url": "http://host/#f"},
        {"server_url": "http://host:99999"},
        {"server_url": "http://host/\r\nX: 1"},
        {"server_url": "http://ho st"},
        {"server_url": 5},
        {"container_url": "localhost:8000"},
        {"timeout": "5"},
        {"timeout": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": True},
        {"retry": 3},
        {"retry": False},
        {"limits": None},
        {"limits": 5},
    ],
    ids=str,
)
async def test_bad_setting_is_a_configuration_error_at_once(server: FriendliServer, settings: dict[str, Any]) -> None:
    with pytest.raises(f.ConfigurationError) as raised:
        made(server, **settings)
    assert "hunter2" not in str(raised.value)
    assert isinstance(raised.value, ValueError)
    async with made(server) as client:
        with pytest.raises(f.ConfigurationError):
            client.with_options(**settings)
    assert server.requests == []


@pytest.mark.parametrize(
    "settings",
    [{"max_connections": 0}, {"max_connections": True}, {"max_connections": 1.5}, {"proxy": "nowhere"}, {"proxy": 5}],
    ids=str,
)
async def test_bad_setting_of_the_constructor_is_a_configuration_error(settings: dict[str, Any]) -> None:
    with pytest.raises(f.ConfigurationError):
        f.AsyncFriendli("t", **settings)


async def test_proxy_and_ssl_do_not_go_with_a_session() -> None:
    async with aiohttp.ClientSession() as session:
        for settings in ({"proxy": "http://proxy:3128"}, {"ssl": False}):
            with pytest.raises(f.ConfigurationError, match="session"):
                f.AsyncFriendli("t", session=session, **settings)  # type: ignore[arg-type]  # a table


# --- headers and team ------------------------------------------------------------------------------------------------


async def test_team_goes_out_everywhere_but_to_containers(server: FriendliServer) -> None:
    async with made(server, team="team_1") as client:
        await send(client)
        assert header(server, "X-Friendli-Team") == "team_1"
        await client.dedicated.chat.stream(model="m", messages=MESSAGES).result()
        assert header(server, "X-Friendli-Team") == "team_1"
        await client.serverless.tool_assisted_chat.complete(model="m", messages=MESSAGES)
        assert header(server, "X-Friendli-Team") == "team_1"
        await client.container.chat.complete(messages=MESSAGES)
        assert header(server, "X-Friendli-Team") is None


async def test_headers_of_the_user_win_and_merge_whatever_their_case(server: FriendliServer) -> None:
    async with made(server, headers={"X-One": "1", "user-agent": "mine", "ACCEPT": "application/x"}) as client:
        await send(client)
        first = server.requests[-1].headers
        assert (first["X-One"], first["User-Agent"], first["Accept"]) == ("1", "mine", "application/x")
        copy = client.with_options(headers={"x-one": "one", "X-Two": "2", "User-Agent": None})
        await send(copy)
        second = server.requests[-1].headers
        assert (second["X-One"], second["X-Two"]) == ("one", "2")
        assert second["User-Agent"].startswith("friendli_async/")
        await send(copy.with_options(headers={"X-ONE": None}))
        assert header(server, "X-One") is None
        assert header(server, "X-Two") == "2"
        await send(client)
        assert server.requests[-1].headers["X-One"] == "1"
    for request in server.requests:
        names = [name.lower() for name in request.headers]
        assert len(names) == len(set(names))


async def test_user_agent_names_this_library(server: FriendliServer) -> None:
    async with made(server) as client:
        await send(client)
    assert header(server, "User-Agent") == f"friendli_async/{f.__version__}"


# --- environment -----------------------------------------------------------------------------------------------------


async def test_environment_gives_what_was_not_passed(server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
    async with made(server, "given", team="team-given") as client:
        await send(client)
    assert header(server, "Authorization") == "Bearer given"
    assert header(server, "X-Friendli-Team") == "team-given"
    assert server.requests[-1].path == "/serverless/v1/chat/completions"


async def test_empty_variables_count_as_unset(server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FRIENDLI_TOKEN", "FRIENDLI_TEAM", "FRIENDLI_SERVER_URL", "FRIENDLI_CONTAINER_URL"):
        monkeypatch.setenv(name, "")
    async with f.AsyncFriendli() as client:
        assert "https://api.friendli.ai" in repr(client)
        with pytest.raises(f.ConfigurationError, match="FRIENDLI_TOKEN"):
            await send(client)
        await client.with_options(container_url=server.url).container.chat.complete(messages=MESSAGES)
    assert header(server, "X-Friendli-Team") is None


def test_bad_variable_is_refused_when_the_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TOKEN", "a\nb"), ("TEAM", "a\r\nb"), ("SERVER_URL", "host"), ("CONTAINER_URL", "host")):
        with monkeypatch.context() as patch:
            patch.setenv(f"FRIENDLI_{name}", value)
            with pytest.raises(f.ConfigurationError):
                f.AsyncFriendli()


@pytest.mark.parametrize("prefix", ["", "/", "/a", "/a/", "/a/b"])
async def test_path_prefix_of_a_url_is_kept(server: FriendliServer, prefix: str) -> None:
    async with made(server, server_url=f"{server.url}{prefix}") as client:
        await send(client)
    assert server.requests[-1].path == f"{prefix.rstrip('/')}/serverless/v1/chat/completions"


# --- with_options ----------------------------------------------------------------------------------------------------


async def test_with_options_changes_the_copy_alone(server: FriendliServer) -> None:
    async with made(server, team="team_1", timeout=f.Timeouts(first_event=30)) as client:
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


async def test_copies_share_the_pool_and_closing_one_leaves_it_open(server: FriendliServer) -> None:
    async with made(server) as client:
        await send(client)
        async with client.with_options(team="t") as copy:
            await send(copy)
        await copy.aclose()
        await send(copy)
        await send(client)
        assert server.connections == 1
        last = client.with_options(timeout=5)
    with pytest.raises(f.ConfigurationError, match="closed"):
        await send(last)
    assert len(server.requests) == 4


THEIRS: Final = {
    "api_key": "token=...",
    "base_url": "server_url=... or container_url=...",
    "max_retries": "retry=RetryPolicy(max_attempts=...)",
    "retry_config": "retry=RetryPolicy(...)",
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
OF_THE_POOL: Final = {
    "http_client": "session=... (an aiohttp session)",
    "async_client": "session=... (an aiohttp session)",
    "transport": "session=... (an aiohttp session)",
    "verify": "ssl=...",
    "ssl_context": "ssl=...",
    "cert": "ssl=...",
    "proxies": "proxy=...",
    "trust_env": "proxy=...",
    "pool_size": "max_connections=...",
    "max_keepalive_connections": "max_connections=...",
}
OF_A_CLIENT: Final = {
    "key": "here it is token=...",
    "credentials": "here it is token=...",
    "security": "here it is token=...",
    "host": "here it is server_url=... or container_url=...",
    "server": "here it is server_url=... or container_url=...",
    "azure_endpoint": "here it is server_url=... or container_url=...",
    "default_query": "here it is extra_query={...} of a method",
    "event_hooks": "here it is observers=[...]",
    "debug_logger": 'here it is logging.getLogger("friendli_async")',
    "rate_limit": "here it is pacing=Pacing(...)",
    "teem": "did you mean 'team'?",
    "server_urll": "did you mean 'server_url'?",
}


@pytest.mark.parametrize(("name", "ours"), THEIRS.items())
async def test_setting_of_another_client_is_told_by_our_name(server: FriendliServer, name: str, ours: str) -> None:
    unknown: dict[str, Any] = {name: "x"}
    with pytest.raises(
        TypeError, match=re.escape(f"AsyncFriendli() got an unexpected keyword argument {name!r}; here it is {ours}")
    ):
        f.AsyncFriendli("token", **unknown)
    async with made(server) as client:
        with pytest.raises(TypeError, match=re.escape(f"here it is {ours}")):
            client.with_options(**unknown)
        with pytest.raises(TypeError, match=re.escape(f"it is a setting, use client.with_options({ours})")):
            client.serverless.chat.stream(model="m", messages=[], **unknown)


@pytest.mark.parametrize(("name", "ours"), OF_THE_POOL.items())
async def test_setting_of_the_pool_belongs_to_the_client_itself(server: FriendliServer, name: str, ours: str) -> None:
    unknown: dict[str, Any] = {name: "x"}
    with pytest.raises(TypeError, match=re.escape(f"here it is {ours}")):
        f.AsyncFriendli("token", **unknown)
    of_the_client = re.escape(f"it is a setting of the client: AsyncFriendli({ours})")
    async with made(server) as client:
        with pytest.raises(TypeError, match=of_the_client):
            client.with_options(**unknown)
        with pytest.raises(TypeError, match=of_the_client):
            client.serverless.chat.stream(model="m", messages=[], **unknown)


@pytest.mark.parametrize(("name", "hint"), OF_A_CLIENT.items())
async def test_name_that_only_a_client_can_mean_is_told_by_ours(server: FriendliServer, name: str, hint: str) -> None:
    unknown: dict[str, Any] = {name: "x"}
    with pytest.raises(TypeError, match=re.escape(hint)):
        f.AsyncFriendli("token", **unknown)
    async with made(server) as client:
        with pytest.raises(TypeError, match=re.escape(hint)):
            client.with_options(**unknown)
        with pytest.raises(TypeError) as raised:
            client.serverless.chat.stream(model="m", messages=[], **unknown)
    assert "with_options" not in str(raised.value)


def test_unknown_keyword_of_the_client_names_those_there_are() -> None:
    unknown: dict[str, Any] = {"temperature": 1}
    with pytest.raises(TypeError, match="'temperature'; it takes token, team, ") as raised:
        f.AsyncFriendli("token", **unknown)
    listed = str(raised.value).partition("it takes ")[2].split(", ")
    assert [*listed, "others"] == [*inspect.signature(f.AsyncFriendli).parameters]


def test_waking_is_told_where_it_is_set() -> None:
    unknown: dict[str, Any] = {"wake": True}
    with pytest.raises(TypeError, match=re.escape("here it is client.with_options(wake=True)")):
        f.AsyncFriendli("token", **unknown)


@pytest.mark.parametrize("name", ["server_url", "container_url"])
@pytest.mark.parametrize("end", ["/v1", "/v1/", "/serverless/v1", "/serverless", "/dedicated"])
def test_base_url_of_other_clients_is_refused_where_it_would_double_the_path(name: str, end: str) -> None:
    url: dict[str, Any] = {name: f"http://localhost:8000{end}"}
    with pytest.raises(f.ConfigurationError, match=f"{name} must not end with"):
        f.AsyncFriendli("token", **url)


@pytest.mark.parametrize("keyword", ["timeouts", "max_connections", "session", "proxy", "model"])
async def test_unknown_option_is_a_type_error(server: FriendliServer, keyword: str) -> None:
    async with made(server) as client:
        with pytest.raises(TypeError, match=keyword):
            client.with_options(**{keyword: 1})  # type: ignore[misc]  # unknown on purpose


async def test_with_options_keeps_a_subclass(server: FriendliServer) -> None:
    class Mine(f.AsyncFriendli):
        pass

    async with Mine("t", server_url=server.url) as client:
        assert type(client.with_options(timeout=5)) is Mine


@pytest.mark.compatibility
def test_client_is_neither_pickled_nor_shown_with_its_token() -> None:
    client = f.AsyncFriendli("secret", team="secret-team", headers={"X-A": "secret"})
    with pytest.raises(TypeError):
        pickle.dumps(client)
    shown = [
        client,
        client.serverless,
        client.serverless.chat,
        client.container.chat,
        client.with_options(team="secret"),
    ]
    assert "secret" not in "".join(map(repr, shown))


# --- the environment's habits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["argument", "environment", "callable"])
async def test_blanks_around_a_token_are_not_part_of_it(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    given: Any = {"argument": " test-token\t", "environment": None, "callable": lambda: "  test-token "}[of]
    if of == "environment":
        monkeypatch.setenv("FRIENDLI_TOKEN", "  test-token ")
    async with f.AsyncFriendli(given, server_url=server.url) as client:
        await send(client)
    assert server.requests[0].headers["Authorization"] == "Bearer test-token"


@pytest.mark.parametrize(
    ("prefix", "path"), [("//", ""), ("/a///", "/a"), ("/prüfung", "/pr%C3%BCfung"), ("/a%20b", "/a%20b")]
)
async def test_slashes_at_the_end_and_letters_beyond_ascii_go_out_as_they_should(prefix: str, path: str) -> None:
    async with saying(http_reply(completion())) as raw, client_of(raw.url + prefix) as client:
        await send(client)
    assert raw.requests[0].startswith(f"POST {path}/serverless/v1/chat/completions HTTP".encode())


def test_certificates_of_the_environment_are_read_when_the_client_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    assert _tls_of(f.AsyncFriendli("token")) is True
    (tmp_path / "authorities.pem").write_text(ssl.DER_cert_to_PEM_cert(_own_certificate(tmp_path)))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
    made = _tls_of(f.AsyncFriendli("token"))
    assert isinstance(made, ssl.SSLContext)
    assert made.verify_mode == ssl.CERT_REQUIRED
    assert len(made.get_ca_certs()) == 1
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
    ("before", "told"),
    [
        ("", "True 1"),  # aiohttp has read them already: to read them once more would take as long as its import
        ("import aiohttp", "False 1"),
        ("del os.environ['SSL_CERT_FILE']; import aiohttp; os.environ['SSL_CERT_FILE'] = sys.argv[1]", "False 1"),
    ],
)
def test_certificates_of_the_environment_are_read_once_where_aiohttp_comes_with_the_client(
    tmp_path: Path, before: str, told: str
) -> None:
    authorities = tmp_path / "authorities.pem"
    authorities.write_text(ssl.DER_cert_to_PEM_cert(_own_certificate(tmp_path)))
    environment = {**os.environ, "SSL_CERT_FILE": str(authorities), "SSL_CERT_DIR": str(tmp_path / "none")}
    command = [sys.executable, "-c", _FIRST_CLIENT.format(before=before), str(authorities)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told


def _tls_of(client: f.AsyncFriendli) -> object:
    transport: Any = client._runtime.transport
    return transport._ssl


def _own_certificate(folder: Path) -> bytes:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=own", "-outform", "DER"]
    made = folder / "own.der"
    subprocess.run([*command, "-keyout", str(folder / "key"), "-out", str(made)], check=True, capture_output=True)
    return made.read_bytes()


@pytest.mark.parametrize("value", ["test-token", " test-token\t", '"test-token"', "'test-token'", '" test-token "'])
def test_variables_may_stand_in_blanks_and_quotes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FRIENDLI_TOKEN", value)
    monkeypatch.setenv("FRIENDLI_TEAM", value.replace("test-token", "team"))
    monkeypatch.setenv("FRIENDLI_SERVER_URL", value.replace("test-token", "https://api.example/a/"))
    monkeypatch.setenv("FRIENDLI_CONTAINER_URL", " \t")
    settings = f.AsyncFriendli()._settings
    assert str.__str__(f.AsyncFriendli().serverless.chat._engine.request_builder.authorization) == "Bearer test-token"
    assert (settings.team, settings.server_url) == ("team", "https://api.example/a")
    assert settings.container_url == "http://localhost:8000"


@pytest.mark.parametrize(
    "url",
    [
        "http://a\\b",
        "http://a<b",
        "https:///a",
        "localhost:8000",
        "//a",
        "http://a b",
        "http://[::1",
        "http://a:0",
        "http://a..b",
    ],
)
def test_what_is_no_base_url_is_named(url: str) -> None:
    with pytest.raises(f.ConfigurationError, match="server_url must be an http or https URL"):
        f.AsyncFriendli("token", server_url=url)


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("http://M\u00dcLLER.de:80/\u00fc", "http://xn--mller-kva.de:80/%C3%BC"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ('http://a/{b}"<>|^`', "http://a/%7Bb%7D%22%3C%3E%7C%5E%60"),
        ("http://a/b//c///", "http://a/b//c"),
    ],
)
def test_base_url_goes_out_as_it_can(url: str, taken: str) -> None:
    assert f.AsyncFriendli("token", server_url=url)._settings.server_url == taken
