"""Proxies of the client and of the environment, and `no_proxy`."""

import base64
import traceback
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from support.sockets import (
    TOKEN,
    Conversation,
    RawServer,
    client_of,
    complete,
    completion,
    reply,
    with_timeout,
)

from friendli_async import (
    APIConnectionError,
    ConfigurationError,
    FriendliError,
)
from friendli_async._core.net.proxies import Proxy, environment_proxies, proxy_finder
from friendli_async._core.secret import Secret
from friendli_async.testing import (
    FriendliServer,
)


class ProxyServer(RawServer):
    """Answers plain requests itself, rejects CONNECT requests, and records both."""

    def __init__(self) -> None:
        super().__init__(self._talk_on)

    async def _talk_on(self, conversation: Conversation) -> None:
        while request := await conversation.request():
            self.requests.append(request)
            if request.startswith(b"CONNECT"):
                await conversation.send(reply(b"no", status="502 Bad Gateway", kind="text/plain"))
                return
            await conversation.send(reply(completion("by proxy")))


@pytest.fixture
async def proxy() -> AsyncIterator[ProxyServer]:
    async with ProxyServer() as running:
        yield running


async def test_reason_of_a_proxy_is_not_quoted(caplog: pytest.LogCaptureFixture) -> None:
    async def reject(conversation: Conversation) -> None:
        request = (await conversation.request()).decode()
        [credentials] = [line for line in request.splitlines() if line.lower().startswith("proxy-authorization")]
        await conversation.send(f"HTTP/1.1 502 {credentials}\r\nContent-Length: 0\r\n\r\n".encode())

    async with RawServer(reject) as proxy:
        url = proxy.url.replace("//", "//user:pass@")
        async with client_of("https://api.invalid", proxy=url, retry=None) as client:
            with caplog.at_level("DEBUG", "friendli_async"), pytest.raises(APIConnectionError) as caught:
                await with_timeout(complete(client))
    assert "rejected the CONNECT request: 502 Bad Gateway" in str(caught.value)
    assert base64.b64encode(b"user:pass").decode() not in f"{caught.value} {caplog.text}"


async def test_proxy_receives_the_absolute_url(proxy: ProxyServer) -> None:
    async with client_of("http://api.invalid/base", proxy=proxy.url) as client:
        assert (await with_timeout(complete(client))).text == "by proxy"
        assert (await with_timeout(complete(client))).text == "by proxy"
    assert proxy.requests[0].startswith(b"POST http://api.invalid/base/serverless/v1/chat/completions HTTP/1.1\r\n")
    assert proxy.connections == 1


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
async def test_environment_proxy_is_used(proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, proxy.url)
    async with client_of("http://api.invalid") as client:
        monkeypatch.delenv(name)  # it is read once, at construction
        assert (await with_timeout(complete(client))).text == "by proxy"


async def test_environment_proxy_is_not_used_for_a_session_of_the_user(
    server: FriendliServer, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    async with aiohttp.ClientSession() as session, client_of(server.url, session=session) as client:
        assert (await with_timeout(complete(client))).text != "by proxy"
    assert proxy.connections == 0


async def test_environment_proxy_may_omit_the_scheme(proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))
    async with client_of("http://api.invalid") as client:
        assert (await with_timeout(complete(client))).text == "by proxy"


async def test_https_proxy_receives_connect(proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy.url)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with client_of("https://api.invalid") as client:
        with pytest.raises(FriendliError) as caught:
            await with_timeout(complete(client))
    assert proxy.requests[0].startswith(b"CONNECT api.invalid:443 HTTP/1.1\r\n")
    assert TOKEN.encode() not in proxy.requests[0]
    assert isinstance(caught.value, APIConnectionError)
    assert not caught.value.sent, "the proxy rejected the tunnel, so nothing reached the API"


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        *(("127.0.0.1", True), ("*", True), ("x.example,127.0.0.1", True), ("127.0.0.0/8", True)),
        *(("no/network,10.0.0.0/8, 127.0.0.1/24", True), ("10.0.0.0/8,::1/128", False)),
    ],
)
async def test_no_proxy_excludes_the_hosts_and_networks_that_it_names(
    server: FriendliServer, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, rule: str, matches: bool
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", rule)
    async with client_of(server.url) as client:
        assert ((await with_timeout(complete(client))).text != "by proxy") is matches
    assert (proxy.connections == 0) is matches


async def test_client_proxy_takes_precedence_over_the_environment(
    proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "api.invalid")
    async with client_of("http://api.invalid", proxy=proxy.url) as client:
        assert (await with_timeout(complete(client))).text == "by proxy"


async def test_proxy_credentials_are_sent_only_to_the_proxy(proxy: ProxyServer) -> None:
    url = proxy.url.replace("http://", "http://user:s3cret@")
    async with client_of("http://api.invalid", proxy=url) as client:
        await with_timeout(complete(client))
        assert "s3cret" not in repr(client)
    head = proxy.requests[0].lower()
    assert b"proxy-authorization: basic " in head
    assert b"s3cret" not in head.replace(b"dxnlcjpzm2nyzxq=", b"")


async def test_dead_proxy_raises_connection_error_without_the_password(refused_port: int) -> None:
    url = f"http://user:s3cret@127.0.0.1:{refused_port}"
    async with client_of("http://api.invalid", proxy=url) as client:
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
    assert not caught.value.sent
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["socks5://127.0.0.1:1080", "socks5h://user:s3cret@127.0.0.1:1080", "ftp://x", "http://[bad"]
)
async def test_unusable_environment_proxy_raises_without_the_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("all_proxy", url)
    with pytest.raises((ConfigurationError, APIConnectionError)) as caught:
        async with client_of("http://api.invalid") as client:
            await with_timeout(complete(client))
    assert "s3cret" not in str(caught.value)


async def test_netrc_is_not_read(
    server: FriendliServer, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with client_of(server.url) as client:
        await with_timeout(client.container.chat.complete(messages=[{"role": "user", "content": "Hi"}]))
        await with_timeout(complete(client))
    assert server.requests[1].headers["Authorization"] == f"Bearer {TOKEN}"


async def test_proxy_credentials_are_percent_decoded(proxy: ProxyServer) -> None:
    url = proxy.url.replace("http://", "http://us%40er:p%3As%2Fs@")
    async with client_of("http://api.invalid", proxy=url) as client:
        await with_timeout(complete(client))
    assert b"proxy-authorization: basic " + base64.b64encode(b"us@er:p:s/s").lower() in proxy.requests[0].lower()


HOST = "api.friendli.ai"


@pytest.mark.parametrize(
    ("rule", "host", "port"),
    [
        *((rule, HOST, 443) for rule in (HOST, "friendli.ai", ".friendli.ai", "*.friendli.ai", "API.FRIENDLI.AI")),
        *((rule, HOST, 443) for rule in ("*", "x, *", " * ", "friendli.ai.", f"{HOST}:443", ".friendli.ai:443")),
        *((rule, HOST, 443) for rule in ("a, friendli.ai ,b", "a friendli.ai b", "a\tfriendli.ai")),
        (HOST, f"{HOST}.", 443),
        *((rule, "::1", 80) for rule in ("::1", "[::1]", "[::1]:80", "0:0:0:0:0:0:0:1", "::/64")),
        *((rule, "fd12::1", 80) for rule in ("fd00::/8", "[fd00::/8]", "FD12::1")),
        *((rule, "10.1.2.3", 80) for rule in ("10.1.2.3", "10.1.2.3:80", "10.0.0.0/8", "10.9.9.9/8", "0.0.0.0/0")),
    ],
)
def test_no_proxy_rule_matches(rule: str, host: str, port: int) -> None:
    find = proxy_finder(None, {"http": Secret("http://p:1"), "https": Secret("http://p:1"), "no": Secret(rule)})
    assert find("https", host, port) == Proxy()


@pytest.mark.parametrize(
    ("rule", "host", "port"),
    [
        *((rule, HOST, 443) for rule in ("endli.ai", f"{HOST}:80", "x.friendli.ai", ".", ",,", "", f"https://{HOST}")),
        ("friendli.ai", "evilfriendli.ai", 443),
        *((rule, "10.1.2.3", 80) for rule in ("11.0.0.0/8", "10.1.2.3/33", "10.", "10.1.2.3:81", ".2.3")),
        *((rule, "::1", 80) for rule in ("[::1]:81", "::2", "fd00::/8", "1")),
    ],
)
def test_no_proxy_rule_does_not_match(rule: str, host: str, port: int) -> None:
    find = proxy_finder(None, {"https": Secret("http://p:1"), "no": Secret(rule)})
    assert find("https", host, port) == Proxy("http://p:1")


@pytest.mark.parametrize("value", [" http://p:1\t", "http://p:1\r\n", '"http://p:1"', "'p:1'", "p:1"])
def test_environment_proxy_may_have_whitespace_and_quotes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("https_proxy", value)
    assert proxy_finder(None, environment_proxies())("https", HOST, 443) == Proxy("http://p:1")


@pytest.mark.parametrize("rule", [f'"{HOST}"', f" 'localhost,{HOST}' ", f'"localhost {HOST}"'])
def test_no_proxy_may_have_whitespace_and_quotes(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    monkeypatch.setenv("https_proxy", "http://p:1")
    monkeypatch.setenv("no_proxy", rule)
    find = proxy_finder(None, environment_proxies())
    assert find("https", HOST, 443) == Proxy()
    assert find("https", "other.example", 443) == Proxy("http://p:1")


@pytest.mark.parametrize(
    "value",
    [
        *("http://", "//p:1", "http://p:0", "http://p\n:1", "http://u:s3cret@p:99999", "u:s3cret@p:x", "http:p"),
        "http://u\udcff:s3cret@p:1",  # a byte that is not UTF-8
    ],
)
def test_invalid_environment_proxy_is_rejected_without_the_password(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(ConfigurationError, match=r"the proxy from the environment .* unset HTTPS_PROXY") as caught:
        proxy_finder(None, environment_proxies())("https", HOST, 443)
    error = caught.value.with_traceback(caught.tb.tb_next)  # without this test's own frame
    shown = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    assert "s3cret" not in "".join(shown)
