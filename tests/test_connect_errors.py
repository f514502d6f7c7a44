"""Messages of connection errors name the target and the reason, and expose no internals of aiohttp."""

from __future__ import annotations

import asyncio
import codecs
import os
import pickle
import re
import socket
import ssl
from contextlib import AsyncExitStack
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import pytest
from aiohttp.client_exceptions import UnixClientConnectorError
from aiohttp.http_exceptions import TransferEncodingError
from support.sockets import (
    BAD_REQUEST,
    FAST_RETRY,
    IS_PURE_PARSER,
    STREAM_HEAD,
    Conversation,
    RawServer,
    chunked,
    client_of,
    complete,
    delta,
    open_stream,
    read,
    reply,
    serve_bytes,
    serve_handshake,
    slots_in_use,
    with_timeout,
)
from support.tls import Authority, TalkativeTLSServer

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    InternalServerError,
    PermissionDeniedError,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.net.failures import describe

NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def connect_error(url: str, **options: Any) -> str:
    async with client_of(url, **options) as client:
        with pytest.raises(APIConnectionError) as raised:
            await complete(client)
    assert raised.value.sent is False
    message = str(raised.value)
    assert "object at 0x" not in message
    assert "ssl:" not in message
    return message.removesuffix(" (server api.example:443)").removesuffix(" (server api.example:80)")


@pytest.mark.compatibility
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_refused_connection_names_host_and_port(refused_port: int, scheme: str) -> None:
    message = await connect_error(f"{scheme}://127.0.0.1:{refused_port}")
    assert message == f"could not connect: 127.0.0.1:{refused_port} [Connection refused]"


@pytest.mark.compatibility
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_unreachable_proxy_is_named(refused_port: int, scheme: str) -> None:
    message = await connect_error(f"{scheme}://api.example", proxy=f"http://127.0.0.1:{refused_port}")
    assert message == f"could not connect: the proxy 127.0.0.1:{refused_port} [Connection refused]"


@pytest.mark.compatibility
async def test_error_message_is_the_same_with_user_session(refused_port: int) -> None:
    async with aiohttp.ClientSession() as session:
        message = await connect_error(f"https://127.0.0.1:{refused_port}", session=session)
    assert message == f"could not connect: 127.0.0.1:{refused_port} [Connection refused]"


@pytest.mark.parametrize(
    ("url", "proxy", "peer"),
    [
        ("https://nowhere.example", None, "nowhere.example:443"),
        ("http://api.example", "http://u:secret@proxy.example:1", "the proxy proxy.example:1"),
        ("https://api.example", "http://u:secret@proxy.example:1", "the proxy proxy.example:1"),
    ],
)
async def test_unresolvable_host_is_reported_also_if_it_is_a_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None, peer: str
) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise NO_NAME

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    message = await connect_error(url, proxy=proxy)
    assert message == f"could not connect: {peer} [the name could not be resolved: Name or service not known]"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("number", [ECONNREFUSED, EHOSTUNREACH, ENETUNREACH])
async def test_os_error_is_reported_by_its_strerror_and_host(
    monkeypatch: pytest.MonkeyPatch, number: int, host: str
) -> None:
    async def sock_connect(sock: socket.socket, address: Any) -> None:
        raise OSError(number, f"Connect call failed {address}")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    assert await connect_error(f"http://{host}:7") == f"could not connect: {host}:7 [{os.strerror(number)}]"


async def test_ipv6_address_is_bracketed_in_timeouts_and_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sock_connect(sock: socket.socket, address: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    for proxy, peer in ((None, "[::1]:7"), ("http://u:p@[::2]:8", "the proxy [::2]:8")):
        async with client_of("https://[::1]:7", proxy=proxy, retry=None, timeout=Timeouts(connect=0.05)) as client:
            with pytest.raises(APITimeoutError, match=re.escape(f"(connect: connecting to {peer})")) as caught:
                await complete(client)
        assert caught.value.meta is not None
        assert caught.value.meta.server == "[::1]:7"


@pytest.mark.compatibility
async def test_server_without_tls_is_reported() -> None:
    async with serve_handshake(BAD_REQUEST) as server:
        message = await connect_error(server.url.replace("http:", "https:"))
        where = server.url.removeprefix("http://")
    assert (
        message.lower()
        == f"could not connect: {where} [tls: wrong version number; does the server use tls on this port?]"
    )


@pytest.mark.compatibility
async def test_disconnect_during_handshake_is_reported() -> None:
    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        message = await connect_error(f"https://127.0.0.1:{port}")
    assert message.startswith(f"could not connect: 127.0.0.1:{port} [")


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs", "stranger")


EXPIRED: Final = {"begin": "20200101000000Z", "end": "20200201000000Z"}
NOT_YET_VALID: Final = {"begin": "20990101000000Z", "end": "20990201000000Z"}


def skip_if_the_alert_is_hidden(version: ssl.TLSVersion) -> None:
    """Skip on uvloop with TLS 1.3, in which a client certificate is rejected after the client's handshake.

    uvloop closes the transport before aiohttp's session writes to it, and only later says why.
    """
    if version == ssl.TLSVersion.TLSv1_3 and not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        pytest.skip("on uvloop, aiohttp's session raises that it cannot write, without the alert")


async def tls_error(context: ssl.SSLContext, client_tls: ssl.SSLContext, *, user_session: bool, streamed: bool) -> str:
    """Returns the reason of a TLS error, which must be permanent and not retried."""
    async with TalkativeTLSServer(context) as server, AsyncExitStack() as stack:
        options: dict[str, Any] = {"ssl": client_tls}
        if user_session:
            connector = aiohttp.TCPConnector(ssl=client_tls)
            options = {"session": await stack.enter_async_context(aiohttp.ClientSession(connector=connector))}
        async with client_of(server.url, retry=FAST_RETRY, **options) as client:
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(read(open_stream(client)) if streamed else complete(client))
            assert slots_in_use(client) == 0
        error = raised.value
        assert (error.sent, error.permanent) == (False, True)
        assert error.meta is not None
        assert len(error.meta.attempts) == server.connections == 1
        where = server.url.removeprefix("https://")
        assert str(error).startswith(f"could not connect: {where} [")
        return str(error).removeprefix(f"could not connect: {where} ")


@pytest.mark.compatibility
@pytest.mark.parametrize(("user_session", "streamed"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (EXPIRED, "certificate has expired"),
        (NOT_YET_VALID, "certificate is not yet valid"),
        ({"name": "elsewhere.example"}, "Hostname mismatch, certificate is not valid for 'localhost'"),
        ({"purpose": "clientAuth"}, "certificate purpose"),
    ],
)
async def test_rejection_of_server_certificate_is_explained(
    authority: Authority, certificate: dict[str, str], message: str, user_session: bool, streamed: bool
) -> None:
    server_tls = authority.server(*authority.issue(**certificate))
    reason = await tls_error(server_tls, authority.client(), user_session=user_session, streamed=streamed)
    assert reason.startswith("[the server's certificate was rejected: ")
    assert message in reason
    assert "trust" not in reason


@pytest.mark.parametrize("trusted", ["theirs", "the system's"])
async def test_error_of_untrusted_authority_says_how_to_trust_it(
    authority: Authority, stranger: Authority, trusted: str
) -> None:
    tls = stranger.client() if trusted == "theirs" else ssl.create_default_context()
    reason = await tls_error(authority.server(*authority.issue()), tls, user_session=False, streamed=False)
    assert "local issuer certificate; to trust another CA, pass ssl= or set SSL_CERT_FILE]" in reason


@pytest.mark.compatibility
@pytest.mark.parametrize("streamed", [False, True])
async def test_self_signed_certificate_is_explained(authority: Authority, streamed: bool) -> None:
    server_tls = authority.server(authority.certificate, authority.key)
    reason = await tls_error(server_tls, ssl.create_default_context(), user_session=False, streamed=streamed)
    assert reason.startswith("[the server's certificate was rejected: self-signed certificate; to trust another CA, ")


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("variable", "file_name"), [("SSL_CERT_FILE", "missing.pem"), ("SSL_CERT_FILE", "."), ("SSL_CERT_DIR", "missing")]
)
async def test_unreadable_ca_path_is_named_in_the_certificate_error(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, file_name: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / file_name))
    async with TalkativeTLSServer(authority.server(*authority.issue())) as server:
        message = await connect_error(server.url)
    assert f"({variable} names {tmp_path / file_name}, which cannot be read)" in message


@pytest.mark.parametrize(("user_session", "streamed"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("presented", ["none", "a stranger's"])
async def test_rejection_of_client_certificate_is_reported(
    authority: Authority,
    stranger: Authority,
    presented: str,
    version: ssl.TLSVersion,
    user_session: bool,
    streamed: bool,
) -> None:
    if user_session:
        skip_if_the_alert_is_hidden(version)
    context = authority.server(*authority.issue(), clients=True)
    context.maximum_version = version
    client_tls = authority.client(*(stranger.issue("me") if presented != "none" else ()))
    reason = await tls_error(context, client_tls, user_session=user_session, streamed=streamed)
    assert re.search(r" alert .*; the peer rejected the handshake\]$", reason)


@pytest.mark.parametrize("streamed", [False, True])
async def test_tls_version_or_cipher_mismatch_is_reported(authority: Authority, streamed: bool) -> None:
    context, client_tls = authority.server(*authority.issue()), authority.client()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    client_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "alert protocol version;" in await tls_error(context, client_tls, user_session=False, streamed=streamed)
    context, client_tls = authority.server(*authority.issue()), authority.client()
    client_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    client_tls.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    assert "alert handshake failure;" in await tls_error(context, client_tls, user_session=False, streamed=streamed)


async def test_trusted_certificate_works_with_and_without_client_certificate(authority: Authority) -> None:
    for context, presented in (
        (authority.server(*authority.issue()), ()),
        (authority.server(*authority.issue(), clients=True), authority.issue("me")),
    ):
        async with (
            TalkativeTLSServer(context) as server,
            client_of(server.url, ssl=authority.client(*presented)) as client,
        ):
            assert (await with_timeout(complete(client))).text == "by tls"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_rejected_certificate_of_a_proxy_names_the_proxy(
    authority: Authority, stranger: Authority, scheme: str
) -> None:
    async with TalkativeTLSServer(stranger.server(*stranger.issue())) as proxy:
        options: Any = {"proxy": proxy.url, "ssl": authority.client(), "retry": FAST_RETRY}
        async with client_of(f"{scheme}://api.invalid", **options) as client:
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(complete(client))
        assert proxy.connections == 1
        where = proxy.url.removeprefix("https://")
    assert str(raised.value).startswith(
        f"could not connect: the proxy {where} [its certificate was rejected: unable to"
    )
    assert (raised.value.sent, raised.value.permanent) == (False, True)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_that_rejects_the_client_certificate_is_named(
    authority: Authority, stranger: Authority, scheme: str, version: ssl.TLSVersion
) -> None:
    skip_if_the_alert_is_hidden(version)
    context = authority.server(*authority.issue(), clients=True)
    context.maximum_version = version
    async with TalkativeTLSServer(context) as proxy:
        options: Any = {"proxy": proxy.url, "ssl": authority.client(*stranger.issue("me")), "retry": FAST_RETRY}
        async with client_of(f"{scheme}://api.invalid", **options) as client:
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(complete(client))
        assert proxy.connections == 1
        where = proxy.url.removeprefix("https://")
    assert str(raised.value).startswith(f"could not connect: the proxy {where} [TLS: ")
    assert "unknown ca; the peer rejected the handshake]" in str(raised.value)
    assert (raised.value.sent, raised.value.permanent) == (False, True)


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    finally:
        writer.close()


def serve_tunnel(server: TalkativeTLSServer) -> RawServer:
    """Returns a proxy that connects every tunnel to a server."""

    async def connect(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.url.rpartition(":")[2])
        await asyncio.gather(forward(conversation._reader, writer), forward(reader, conversation._writer))

    return RawServer(connect)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("rejected", ["neither", "server", "client"])
async def test_tls_error_of_a_server_behind_a_tunnel_names_the_server(
    authority: Authority, stranger: Authority, rejected: str, version: ssl.TLSVersion
) -> None:
    skip_if_the_alert_is_hidden(version)
    context = authority.server(*(stranger if rejected == "server" else authority).issue(), clients=True)
    context.maximum_version = version
    client_tls = authority.client(*(stranger if rejected == "client" else authority).issue("me"))
    async with TalkativeTLSServer(context) as server, serve_tunnel(server) as proxy:
        async with client_of(server.url, proxy=proxy.url, ssl=client_tls, retry=FAST_RETRY) as client:
            if rejected == "neither":
                assert (await with_timeout(complete(client))).text == "by tls"
                return
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(complete(client))
        assert server.connections == 1
        where = server.url.removeprefix("https://")
    assert str(raised.value).startswith(f"could not connect: {where} [")
    assert (raised.value.sent, raised.value.permanent) == (False, True)


NOT_A_RECORD: Final = "(?i:wrong version number|record layer failure)"  # depends on the version of OpenSSL


async def test_broken_tls_record_is_reported_as_such(authority: Authority) -> None:
    go_on = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/completions" in await reader.readuntil(b"\r\n"):
            writer.write(STREAM_HEAD + chunked(delta("begun")))
            await writer.drain()
            await go_on.wait()
        os.write(writer.get_extra_info("socket").fileno(), b"not a record of TLS\r\n")
        await reader.read()
        writer.close()

    context = authority.server(*authority.issue())
    async with await asyncio.start_server(talk, "localhost", 0, family=socket.AF_INET, ssl=context) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        async with client_of(url, ssl=authority.client()) as client:
            with pytest.raises(APIConnectionError, match=rf"^no reply: TLS: {NOT_A_RECORD} \(server localhost:\d+\)$"):
                await with_timeout(client.serverless.model.list())
            stream = await with_timeout(open_stream(client))
            go_on.set()
            with pytest.raises(
                StreamInterruptedError, match=rf"being read: TLS: {NOT_A_RECORD} \(server localhost:\d+\)$"
            ) as raised:
                await read(stream)
    assert raised.value.partial is not None
    assert raised.value.partial.text == "begun"


@pytest.mark.compatibility
async def test_tls_server_behind_http_url_is_reported() -> None:
    message = "the server closed the connection" if IS_PURE_PARSER else "the server replied with TLS; is the URL https"
    async with serve_bytes(bytes.fromhex("15030100020246")) as server, client_of(server.url) as client:
        with pytest.raises(APIConnectionError, match=f"no reply: {message}"):
            await with_timeout(complete(client))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "wrong version number; does the server use TLS on this port?"),
        (BAD_REQUEST, "wrong version number; does the server use TLS on this port?"),
        (bytes.fromhex("15030300020228"), "handshake failure; the peer rejected the handshake"),
        (bytes.fromhex("15030300020270"), "unrecognized name"),
        (bytes.fromhex("15030300020246"), "protocol version; the peer rejected the handshake"),
    ],
)
async def test_failed_handshake_is_explained_and_not_retried(data: bytes, message: str) -> None:
    async with serve_handshake(data) as server:
        async with client_of(server.url.replace("http:", "https:"), retry=FAST_RETRY) as client:
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(complete(client))
        assert message.lower() in str(raised.value).lower()
        assert server.connections == 1


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.compatibility
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "attempts", "message"),
    [
        ("407 Proxy Authentication Required", 1, "407 Proxy Authentication Required"),
        ("407", 1, "407 Proxy Authentication Required"),
        ("403 Forbidden", 1, "403 Forbidden"),
        ("405 Method Not Allowed", 1, "405 Method Not Allowed"),
        ("400 Bad Request", 1, "400 Bad Request"),
        ("302 Found", 1, "302 Found"),
        ("511 Network Authentication Required", 1, "511 Network Authentication Required"),
        ("408 Request Timeout", 3, "408 Request Timeout"),
        ("425 Too Early", 3, "425 Too Early"),
        ("429 Slow down", 3, "429 Too Many Requests"),
        ("502 Bad Gateway", 3, "502 Bad Gateway"),
        ("503 Service Unavailable", 3, "503 Service Unavailable"),
        ("504 Gateway Timeout", 3, "504 Gateway Timeout"),
    ],
)
async def test_rejected_tunnel_names_the_proxy_and_is_retried_if_transient(
    status: str, attempts: int, message: str, streamed: bool
) -> None:
    answer = reply(b"<html>", status=status, kind="text/html", headers="Proxy-Authenticate: Basic\r\n")
    async with serve_bytes(answer) as proxy:
        where = proxy.url.removeprefix("http://")
        options: Any = {"proxy": f"http://me:secret@{where}", "retry": FAST_RETRY}
        async with client_of("https://api.invalid", **options) as client:
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(read(open_stream(client)) if streamed else complete(client))
        expected = f"the proxy {where} rejected the CONNECT request: {message} (server api.invalid:443)"
        assert str(raised.value) == expected
        assert not raised.value.sent
        assert proxy.connections == attempts


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\x01\r\n\r\n", "invalid HTTP response: "),
        (b"HTTP/1.1 200 Conn", "it closed the connection"),
        (
            bytes.fromhex("15030100020246"),
            "it closed the connection" if IS_PURE_PARSER else "it replied with TLS; is the URL https?",
        ),
    ],
)
async def test_invalid_proxy_response_names_the_proxy(data: bytes, message: str) -> None:
    async with serve_bytes(data) as proxy, client_of("https://api.invalid", proxy=proxy.url) as client:
        where = proxy.url.removeprefix("http://")
        with pytest.raises(APIConnectionError) as raised:
            await with_timeout(complete(client))
    assert str(raised.value).startswith(f"could not connect: the proxy {where} [{message}")
    assert not raised.value.sent


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "kind"), [(407, APIStatusError), (403, PermissionDeniedError), (511, None)])
async def test_error_response_of_plain_http_proxy_is_not_retried(
    status: int, kind: type[APIStatusError] | None, streamed: bool
) -> None:
    page = b"<html><title>ERROR: access denied by policy</title></html>"
    async with serve_bytes(reply(page, status=f"{status} X", kind="text/html")) as proxy:
        async with client_of("http://api.invalid", proxy=proxy.url, retry=FAST_RETRY) as client:
            with pytest.raises(kind or InternalServerError, match=f"{status} ERROR: access denied by policy"):
                await with_timeout(read(open_stream(client)) if streamed else complete(client))
        assert proxy.connections == 1


@pytest.mark.parametrize("named", [True, False], ids=["proxy", "server"])
async def test_rejected_credentials_name_the_proxy_that_rejected_them(named: bool) -> None:
    async with serve_bytes(reply(b"", status="407 X")) as server:
        where = server.url.removeprefix("http://")
        options: Any = {"proxy": f"http://me:secret@{where}"} if named else {}
        async with client_of("http://api.invalid" if named else server.url, **options) as client:
            with pytest.raises(APIStatusError) as raised:
                await with_timeout(complete(client))
    expected = "HTTP 407 Proxy Authentication Required" + (f" (from the proxy {where})" if named else "")
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"<html><title>Filtered</title></html>", "text/html", "403 Filtered (through the proxy {})"),
        (b"", "text/plain", "HTTP 403 Forbidden (through the proxy {})"),
        (b'{"error": {"message": "no access"}}', "application/json", "403 no access"),
        (b'[{"error": {"message": "no access"}}]', "application/json", "403 no access"),  # Google's
        (codecs.BOM_UTF8 + b'{"error": {"message": "no access"}}', "application/json", "403 no access"),
    ],
    ids=["page", "empty", "api", "list", "byte order mark"],
)
async def test_error_that_is_not_the_api_s_names_the_proxy_it_came_through(
    body: bytes, kind: str, expected: str
) -> None:
    async with serve_bytes(reply(body, status="403 X", kind=kind)) as proxy:
        where = proxy.url.removeprefix("http://")
        async with client_of("http://api.invalid", proxy=proxy.url) as client:
            with pytest.raises(PermissionDeniedError) as raised:
                await with_timeout(complete(client))
    assert str(raised.value) == str(pickle.loads(pickle.dumps(raised.value))) == expected.format(where)


@pytest.mark.parametrize("streamed", [False, True])
async def test_connection_that_breaks_through_a_proxy_names_both(streamed: bool) -> None:
    pieces = [STREAM_HEAD, chunked(delta("a"))] if streamed else []
    async with serve_bytes(*pieces) as proxy:
        where = proxy.url.removeprefix("http://")
        async with client_of("http://api.invalid", proxy=proxy.url, retry=None) as client:
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(read(open_stream(client)) if streamed else complete(client))
    assert str(raised.value).endswith(f" (server api.invalid:80, through the proxy {where})")
    assert raised.value.meta is not None
    assert raised.value.meta.proxy == where


# --- user-supplied connectors ----------------------------------------------------------------------------------------


class SocksError(Exception):
    """Mimics the class of python-socks."""


class SocksTimeoutError(TimeoutError):
    """Mimics the class of python-socks."""


class SocksConnectionError(OSError):
    """Mimics the class of python-socks."""


class Failing(aiohttp.TCPConnector):
    """Raises its own error while connecting, as a SOCKS connector does after reaching its proxy."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        raise self._error


HERE: Final = "api.invalid:80"
DNSError: Final = aiohttp.ClientConnectorDNSError
ProxyError: Final = aiohttp.ClientProxyConnectionError


def refused(cause: OSError, kind: type[aiohttp.ClientConnectorError] = aiohttp.ClientConnectorError) -> Exception:
    """Returns aiohttp's error for what the system, or the TLS handshake, has raised."""
    key: Any = SimpleNamespace(host="api.invalid", port=80, ssl=True)
    if kind is UnixClientConnectorError:
        return UnixClientConnectorError("/run/model.sock", key, cause)
    return kind(key, cause)


def tls_failure(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] in words (_ssl.c:1)")
    error.reason = reason
    return error


CONNECTOR_ERRORS: Final = [
    (refused(OSError(99, "error while attempting to bind")), f"{HERE} [error while attempting to bind]", 3),
    (refused(OSError("call failed: two exceptions")), f"{HERE} [OSError: call failed: two exceptions]", 3),
    (refused(OSError()), f"{HERE} [OSError]", 3),
    (refused(ConnectionResetError(104, "Connection reset by peer")), f"{HERE} [Connection reset by peer]", 3),
    (refused(OSError("no answer"), DNSError), f"{HERE} [the name could not be resolved: no answer]", 3),
    (refused(OSError(111, "Connect call failed ()"), ProxyError), f"the proxy {HERE} [Connection refused]", 3),
    (refused(OSError(2, "No such file"), UnixClientConnectorError), "/run/model.sock [No such file]", 3),
    (
        refused(ssl.SSLEOFError(8, "EOF in violation of protocol (_ssl.c:1)")),
        f"{HERE} [TLS: EOF in violation of protocol]",
        3,
    ),
    (refused(ssl.SSLError(1, "[SSL] unknown error (_ssl.c:1)")), f"{HERE} [TLS: unknown error]", 1),
    (refused(tls_failure("TLSV1_ALERT_INTERNAL_ERROR")), f"{HERE} [TLS: in words; the peer rejected the handshake]", 3),
    (
        aiohttp.ClientOSError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert (_ssl.c:1)"),
        f"{HERE} [TLS: tlsv1 alert; the peer rejected the handshake]",
        1,
    ),
    (refused(tls_failure("UNSUPPORTED_PROTOCOL")), f"{HERE} [TLS: in words]", 1),
    (ssl.SSLError(1, "bad handshake"), f"{HERE} [TLS: bad handshake]", 1),
    (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer", 3),
    (
        ssl.CertificateError(1, "the pin does not match."),
        f"{HERE} [the server's certificate was rejected: SSLCertVerificationError: the pin does not match]",
        1,
    ),
    (SocksError("Connection refused by destination host"), "SocksError: Connection refused by destination host", 3),
    (
        SocksError("Username and password authentication failure"),
        "SocksError: Username and password authentication failure",
        1,
    ),
    (SocksError("No acceptable authentication methods"), "SocksError: No acceptable authentication methods", 1),
    (SocksError("Connection not allowed by ruleset"), "SocksError: Connection not allowed by ruleset", 1),
    (SocksError("407 Access denied"), "SocksError: 407 Access denied", 1),
    (SocksError("403 Forbidden"), "SocksError: 403 Forbidden", 1),
    (SocksError("503 Service Unavailable"), "SocksError: 503 Service Unavailable", 3),
    (SocksError("127.0.0.1:1080 is unreachable"), "SocksError: 127.0.0.1:1080 is unreachable", 3),
    (aiohttp.ClientOSError(1, "[SSL: TLSV1_ALERT_INTERNAL_ERROR] tlsv1 alert (_ssl.c:1)"), "TLS: tlsv1 alert", 3),
    (
        SocksTimeoutError("Proxy connection timed out: 60"),
        f"no connection within 5 s (connect: connecting to {HERE})",
        3,
    ),
    (SocksConnectionError(111, "Couldn't connect to proxy p:1080"), "Couldn't connect to proxy p:1080", 3),
    (asyncio.IncompleteReadError(b"", 2), "IncompleteReadError: 0 bytes read on a total of 2 expected bytes", 3),
    (ValueError("Invalid address"), "ValueError: Invalid address", 3),
    (KeyError("no such host"), "KeyError: 'no such host'", 3),
    (UnicodeError("label empty or too long"), "UnicodeError: label empty or too long", 3),
    (RuntimeError("the circuit is gone"), "RuntimeError: the circuit is gone", 3),
    (aiohttp.ClientConnectionError("the hop failed"), "ClientConnectionError: the hop failed", 3),
    (ExceptionGroup("both", [OSError("a"), OSError("b")]), "ExceptionGroup: both (2 sub-exceptions)", 3),
    (SocksError("socks5://me:secret@proxy:1080 is down"), "SocksError: socks5://proxy:1080 is down", 3),
    (SocksError(), "SocksError", 3),
]


@pytest.mark.compatibility
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("connector_error", "message", "attempts"), CONNECTOR_ERRORS, ids=[repr(row[0]) for row in CONNECTOR_ERRORS]
)
async def test_any_error_of_user_connector_is_marked_not_sent(
    connector_error: Exception, message: str, attempts: int, streamed: bool
) -> None:
    async with (
        aiohttp.ClientSession(connector=Failing(connector_error)) as session,
        client_of("http://api.invalid", session=session, retry=FAST_RETRY) as client,
    ):
        with pytest.raises(APIConnectionError) as raised:
            await with_timeout(read(open_stream(client)) if streamed else complete(client))
        assert slots_in_use(client) == 0
    error = raised.value
    assert error.sent is False
    assert error.args[0].removeprefix("could not connect: ") == message
    assert str(error).count("api.invalid:80") == 1
    assert error.meta is not None
    assert len(error.meta.attempts) == attempts
    assert error.__cause__ is None
    assert error.__context__ is None


class Tunnelling(aiohttp.TCPConnector):
    """Makes the TLS handshake itself, as a SOCKS connector does."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._tls = tls

    async def _create_connection(self, req: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.open_connection(req.url.host, req.url.port, ssl=self._tls)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["expired", "stranger", "no TLS"])
async def test_tls_error_of_user_connector_is_explained_and_not_retried(
    authority: Authority, stranger: Authority, kind: str, streamed: bool
) -> None:
    issued = stranger.issue() if kind == "stranger" else authority.issue(**EXPIRED)
    async with TalkativeTLSServer(authority.server(*issued)) as tls, serve_handshake(b"220 mail\r\n") as mail:
        url = mail.url.replace("http:", "https:") if kind == "no TLS" else tls.url
        async with (
            aiohttp.ClientSession(connector=Tunnelling(authority.client())) as session,
            client_of(url, session=session, retry=FAST_RETRY) as client,
        ):
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(read(open_stream(client)) if streamed else complete(client))
            assert slots_in_use(client) == 0
    reasons = {
        "expired": "the server's certificate was rejected: certificate has expired",
        "stranger": "the server's certificate was rejected: unable to get local issuer certificate; to trust another",
        "no TLS": "TLS: wrong version number; does the server use TLS on this port?",
    }
    where = url.removeprefix("https://")
    assert str(raised.value).lower().startswith(f"could not connect: {where} [{reasons[kind]}".lower())
    assert (raised.value.sent, raised.value.permanent) == (False, True)
    assert raised.value.meta is not None
    assert len(raised.value.meta.attempts) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two kinds of credentials"), "the request cannot be made: ValueError: two kinds of credentials"),
        (aiohttp.InvalidURL("http://me:secret@/"), "the URL is not valid"),
        (aiohttp.InvalidURL("127.1", "is not canonical"), "the URL is not valid: its host is not canonical"),
    ],
)
async def test_request_that_a_user_session_cannot_make_is_a_configuration_error_and_not_retried(
    refused_port: int, error: Exception, message: str
) -> None:
    async def reject(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        requests.append(request.url)
        raise error

    requests: list[object] = []
    url = f"http://127.0.0.1:{refused_port}"
    async with (
        aiohttp.ClientSession(middlewares=(reject,)) as session,
        client_of(url, session=session, retry=FAST_RETRY) as client,
    ):
        with pytest.raises(ConfigurationError) as raised:
            await complete(client)
    assert str(raised.value) == message
    assert len(requests) == 1


async def test_end_of_a_user_connectors_handshake_is_explained(authority: Authority) -> None:
    async def hang_up(conversation: Conversation) -> None:
        await conversation._reader.read(100)

    async with RawServer(hang_up) as server:
        url = server.url.replace("http:", "https:")
        async with (
            aiohttp.ClientSession(connector=Tunnelling(authority.client())) as session,
            client_of(url, session=session, retry=FAST_RETRY) as client,
        ):
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(complete(client))
    where = url.removeprefix("https://")
    assert str(raised.value).startswith(f"could not connect: {where} [the connection was closed in the TLS handshake]")
    assert (raised.value.sent, raised.value.permanent) == (False, False)


def test_unwritten_request_is_reported_without_its_url() -> None:
    error = aiohttp.ClientOSError(None, "Can not write request body for https://api.example/?key=secret")
    assert describe(error) == "the server closed the connection while the request was being sent"


@pytest.mark.parametrize("owned", [False, True])
async def test_reset_after_connecting_is_marked_sent(owned: bool) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        conversation.reset()

    async with RawServer(talk) as server, AsyncExitStack() as stack:
        session = None if owned else await stack.enter_async_context(aiohttp.ClientSession())
        async with client_of(server.url, session=session) as client:
            with pytest.raises(APIConnectionError) as raised:
                await with_timeout(complete(client, extra_query={"key": "secret"}))
    assert raised.value.sent
    assert raised.value.args[0] in {"no reply: Connection reset by peer", "no reply: the server closed the connection"}


@pytest.mark.parametrize("limit", ["connect", "total"])
async def test_timeout_in_user_connector_is_marked_not_sent(limit: str) -> None:
    class Hanging(aiohttp.TCPConnector):
        async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
            await asyncio.Event().wait()

    limits: Any = {limit: 0.05}
    async with (
        aiohttp.ClientSession(connector=Hanging()) as session,
        client_of("http://api.invalid", session=session, timeout=Timeouts(**limits)) as client,
    ):
        with pytest.raises(APITimeoutError) as raised:
            await with_timeout(complete(client))
    assert (raised.value.limit, raised.value.sent) == (limit, False)


def test_header_that_cannot_be_parsed_is_not_quoted() -> None:
    error = aiohttp.ClientPayloadError("Invalid HTTP header: b'Set-Cookie: secret'")  # of the pure-Python parser
    assert describe(error) == "ClientPayloadError: Invalid HTTP header"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("secret", "the size of a chunk is invalid"),
        ("Unexpected: not enough is expected of a secret", "the size of a chunk is invalid"),
        ("Unexpected LF in chunk-extension: b'secret'", "ClientPayloadError: Unexpected LF in chunk-extension"),
        ("Chunk size mismatch: expected CRLF", "ClientPayloadError: Chunk size mismatch: expected CRLF"),
    ],
)
def test_line_in_place_of_the_size_of_a_chunk_is_not_quoted(message: str, shown: str) -> None:
    error = aiohttp.ClientPayloadError(f"400, message:\n  {message}\r")  # of the pure-Python parser
    error.__cause__ = TransferEncodingError(message)
    assert describe(error) == shown


@pytest.mark.parametrize("quoted", [rb"b'Set-Cookie: secret\x00'", rb'''b"Set-Cookie: it's secret\x00"'''])
def test_line_that_the_parser_quotes_is_not_shown(quoted: bytes) -> None:
    request: Any = None
    message = f"Invalid header value char:\n\n  {quoted.decode()}\n    ^"
    error = aiohttp.ClientResponseError(request, (), status=400, message=message)
    assert describe(error) == "invalid HTTP response: Invalid header value char"
