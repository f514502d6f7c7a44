"""What a connection that could not be made is told in: where to, and why not, and nothing of aiohttp's insides."""

from __future__ import annotations

import asyncio
import os
import socket
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from typing import Any

import aiohttp
import pytest
from support.sockets import client_of, complete

from friendli_async import APIConnectionError
from friendli_async.testing import FriendliServer

NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def words_of(url: str, **options: Any) -> str:
    async with client_of(url, **options) as client:
        with pytest.raises(APIConnectionError) as raised:
            await complete(client)
    assert raised.value.sent is False
    words = str(raised.value)
    assert "object at 0x" not in words
    assert "ssl:" not in words
    return words


@pytest.mark.compatibility
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_port_where_nobody_listens_is_refused(unused_tcp_port: int, scheme: str) -> None:
    words = await words_of(f"{scheme}://127.0.0.1:{unused_tcp_port}")
    assert words == f"could not connect: 127.0.0.1:{unused_tcp_port} [Connection refused]"


@pytest.mark.compatibility
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there_is_named(unused_tcp_port: int, scheme: str) -> None:
    words = await words_of(f"{scheme}://api.example", proxy=f"http://127.0.0.1:{unused_tcp_port}")
    assert words == f"could not connect: the proxy 127.0.0.1:{unused_tcp_port} [Connection refused]"


@pytest.mark.compatibility
async def test_a_session_of_the_users_tells_it_in_the_same_words(unused_tcp_port: int) -> None:
    async with aiohttp.ClientSession() as session:
        words = await words_of(f"https://127.0.0.1:{unused_tcp_port}", session=session)
    assert words == f"could not connect: 127.0.0.1:{unused_tcp_port} [Connection refused]"


async def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise NO_NAME

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    words = await words_of("https://nowhere.example")
    assert words == (
        "could not connect: nowhere.example:443 [the name could not be resolved: Name or service not known]"
    )


@pytest.mark.parametrize("number", [ECONNREFUSED, EHOSTUNREACH, ENETUNREACH])
async def test_what_the_system_says_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    async def sock_connect(sock: socket.socket, address: Any) -> None:
        raise OSError(number, f"Connect call failed {address}")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    assert await words_of("http://127.0.0.1:7") == f"could not connect: 127.0.0.1:7 [{os.strerror(number)}]"


async def test_an_address_of_version_6_is_bracketed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sock_connect(sock: socket.socket, address: Any) -> None:
        raise OSError(ENETUNREACH, "Connect call failed")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    assert await words_of("http://[::1]:7") == "could not connect: [::1]:7 [Network is unreachable]"


@pytest.mark.compatibility
async def test_a_server_that_speaks_no_tls_is_told(server: FriendliServer) -> None:
    words = await words_of(server.url.replace("http:", "https:"))
    where = server.url.removeprefix("http://")
    assert words.lower() == f"could not connect: {where} [tls: wrong version number]"


@pytest.mark.compatibility
async def test_a_server_that_hangs_up_in_the_handshake_is_told() -> None:
    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as hanging_up:
        port = hanging_up.sockets[0].getsockname()[1]
        words = await words_of(f"https://127.0.0.1:{port}")
    assert words.startswith(f"could not connect: 127.0.0.1:{port} [")
