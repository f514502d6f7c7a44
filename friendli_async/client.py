"""AsyncFriendli: the client, and a table of contents of what it can do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import msgspec

from friendli_async._core.protocol import Deployment
from friendli_async._core.settings import Settings, Token, base_url, check_header, check_team, check_token
from friendli_async.audio import Audio, ContainerAudio
from friendli_async.billing import TeamCost, TeamUsage
from friendli_async.chat.render import ChatRender
from friendli_async.chat.resource import Chat, ContainerChat
from friendli_async.chat.tool_assisted import ToolAssistedCall, ToolAssistedChat
from friendli_async.classification import ContainerTextClassification, TextClassification
from friendli_async.completions import Completions, ContainerCompletions
from friendli_async.embeddings import Embeddings
from friendli_async.endpoints.resource import Endpoints
from friendli_async.endpoints.waking import Waker
from friendli_async.errors import ConfigurationError
from friendli_async.files import Files
from friendli_async.images import ContainerImages, Images
from friendli_async.messages.resource import ContainerMessages, Messages
from friendli_async.models import Models
from friendli_async.options import Limits, RetryPolicy, Timeouts
from friendli_async.responses.resource import ContainerResponses, Responses
from friendli_async.tokens import ContainerTokens, Tokens

if TYPE_CHECKING:
    import ssl as ssl_module

    import aiohttp

    from friendli_async._core.call import Engine
    from friendli_async._core.net.transport import Transport

__all__ = ["AsyncFriendli", "Container", "Dedicated", "Serverless"]

API_URL: Final = "https://api.friendli.ai"
CONTAINER_URL: Final = "http://localhost:8000"


class Serverless:
    """Models of Friendli's catalogue: ``client.serverless``."""

    def __init__(self, engine: Engine) -> None:
        self.audio: Final = Audio(engine)
        self.chat: Final = Chat(engine)
        self.chat_render: Final = ChatRender(engine)
        self.completions: Final = Completions(engine)
        self.messages: Final = Messages(engine)
        self.model: Final = Models(engine)
        self.responses: Final = Responses(engine)
        self.token: Final = Tokens(engine)
        self.tool_assisted_chat: Final = ToolAssistedChat(engine)
        self._engine = engine

    def tool_assisted_chat_completion(
        self,
        *,
        tool_assisted_completion_request_body: Mapping[str, object],
        x_friendli_team: str | None = None,
        retries: RetryPolicy | None = None,
        server_url: str | None = None,
    ) -> ToolAssistedCall:
        """Answers a conversation with a model that may use built-in tools, streamed as events.

        The operation by its first name and form, at its last path, ``/serverless/tools/v1/chat/completions``.
        Friendli's SDK has since withdrawn it (0.14.0 is the last release that has it).
        ``tool_assisted_chat.complete`` and ``.stream`` are the same in two plain halves.

        Args:
            tool_assisted_completion_request_body: The body: ``model``, ``messages``, ``tools`` and what else
                ``ToolAssistedChatOptions`` lists. It streams unless the body says ``stream: False``.
            x_friendli_team: Team to bill; None is the client's.
            retries: Retry policy; None is the client's.
            server_url: Base URL; None is the client's.

        Returns:
            A call: ``async for`` and ``async with`` give ``ChatChunk`` and ``ToolStatus`` events; ``await`` gives the
            open stream, or the ``ChatCompletion`` where the body says ``stream: False``.

        Raises:
            ValueError: A bad value in the body, with its path.
            ConfigurationError: A team or URL that cannot be used.
            FriendliError: Once it is used: what went wrong with the call (``SDKError`` for 4XX and 5XX).
        """
        changes: dict[str, object] = {}
        if x_friendli_team is not None:
            changes["team"] = check_team(x_friendli_team)
        if retries is not None:
            changes["retry"] = _policy(retries)
        if server_url is not None:
            changes["server_url"] = base_url(server_url, "server_url")
        engine = self._engine.replace(**changes) if changes else self._engine
        return ToolAssistedCall(engine, tool_assisted_completion_request_body)


class Dedicated:
    """Your own endpoints on Friendli's hardware: ``client.dedicated``."""

    def __init__(self, engine: Engine) -> None:
        self.endpoint: Final = Endpoints(engine)
        engine = engine.recovering(Waker(self.endpoint, wake=engine.settings.wake))
        self.audio: Final = Audio(engine)
        self.chat: Final = Chat(engine)
        self.chat_render: Final = ChatRender(engine)
        self.completions: Final = Completions(engine)
        self.embeddings: Final = Embeddings(engine)
        self.image: Final = Images(engine)
        self.messages: Final = Messages(engine)
        self.responses: Final = Responses(engine)
        self.text_classification: Final = TextClassification(engine)
        self.token: Final = Tokens(engine)


class Container:
    """An engine that you host yourself: ``client.container``. It needs no token, and knows no teams."""

    def __init__(self, engine: Engine) -> None:
        self.audio: Final = ContainerAudio(engine)
        self.chat: Final = ContainerChat(engine)
        self.completions: Final = ContainerCompletions(engine)
        self.image: Final = ContainerImages(engine)
        self.messages: Final = ContainerMessages(engine)
        self.responses: Final = ContainerResponses(engine)
        self.text_classification: Final = ContainerTextClassification(engine)
        self.token: Final = ContainerTokens(engine)


class ClientOptions(TypedDict, total=False):
    """What ``with_options`` can change; see ``AsyncFriendli``."""

    token: Token | None
    team: str | None
    server_url: str
    container_url: str
    timeout: Timeouts | float | None
    retry: RetryPolicy | None
    limits: Limits
    headers: Mapping[str, str | None]
    wake: bool


class AsyncFriendli:
    """A client of Friendli's inference API.

    It owns one connection pool per running event loop, made on first use: one client serves any number of tasks, loops
    and threads. Close it with ``async with`` or ``aclose()``; one that is forgotten is closed when its loop shuts down.
    After a fork, make a new one.

    Args:
        token: Friendli token, or a callable (sync or async) that gives it, asked for every request. Default:
            ``FRIENDLI_TOKEN``. Only ``container`` does without.
        team: Team to bill, sent as ``X-Friendli-Team``. Default: ``FRIENDLI_TEAM``.
        server_url: Base URL; a path prefix is kept. Default: ``FRIENDLI_SERVER_URL``, or https://api.friendli.ai.
        container_url: Base URL of ``container``. Default: ``FRIENDLI_CONTAINER_URL``, or http://localhost:8000.
        timeout: Time limits; a number is ``Timeouts(total=number)``, None is no limit at all.
        retry: Retry policy; None is no retry.
        limits: Size limits.
        max_connections: Connections at the same time, per event loop; further calls wait in line.
        headers: Headers for every request; they win over the client's own.
        proxy: Proxy URL. Default: that of the environment (``HTTPS_PROXY``, ``NO_PROXY``...), read now.
        ssl: TLS context; False switches verification off.
        session: An aiohttp session to use as it is (its pool, proxy and TLS); it is never closed. ``proxy`` and ``ssl``
            do not go with it.

    Raises:
        ConfigurationError: A value that cannot be used.
    """

    serverless: Serverless
    dedicated: Dedicated
    container: Container
    cost: TeamCost
    file: Files
    usage: TeamUsage

    def __init__(
        self,
        token: Token | None = None,
        *,
        team: str | None = None,
        server_url: str | None = None,
        container_url: str | None = None,
        timeout: Timeouts | float | None = Timeouts(),
        retry: RetryPolicy | None = RetryPolicy(),
        limits: Limits = Limits(),
        max_connections: int = 1000,
        headers: Mapping[str, str | None] | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | bool | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        # The machine, aiohttp and tenacity with it, is loaded here: not by `import`, and never on the way of a request.
        from friendli_async._core.net.transport import Transport

        _check_max_connections(max_connections)
        if session is not None and (proxy is not None or ssl is not None):
            raise ConfigurationError("proxy= and ssl= do not go with session=: a session is used as it is")
        environment = os.environ
        settings = Settings(
            token=_token(token if token is not None else environment.get("FRIENDLI_TOKEN") or None),
            team=_team(team if team is not None else environment.get("FRIENDLI_TEAM") or None),
            server_url=base_url(server_url or environment.get("FRIENDLI_SERVER_URL") or API_URL, "server_url"),
            container_url=base_url(
                container_url or environment.get("FRIENDLI_CONTAINER_URL") or CONTAINER_URL, "container_url"
            ),
            timeouts=_timeouts(timeout),
            retry=_policy(retry),
            limits=_limits(limits),
            headers=_headers({}, headers or {}),
        )
        transport = Transport(max_connections=max_connections, proxy=_proxy(proxy), ssl=ssl, session=session)
        self._build(transport, settings, owner=True)

    def _build(self, transport: Transport, settings: Settings, *, owner: bool) -> None:
        from friendli_async._core.call import Engine

        self._transport = transport
        self._settings = settings
        self._owner = owner
        self.serverless = Serverless(Engine(transport, settings, Deployment("/serverless")))
        self.dedicated = Dedicated(Engine(transport, settings, Deployment("/dedicated")))
        self.container = Container(Engine(transport, settings, Deployment("", container=True)))
        root = Engine(transport, settings, Deployment(""))
        self.cost = TeamCost(root)
        self.file = Files(root)
        self.usage = TeamUsage(root)

    def with_options(self, **options: Unpack[ClientOptions]) -> Self:
        """A copy with other settings on the same pool; cheap enough to make per call.

        Args:
            options: ``token``, ``team``, ``server_url``, ``container_url``, ``timeout``, ``retry``, ``limits`` replace
                the client's; ``headers`` are merged with its headers, and None removes one. ``wake`` says whether
                calls of ``dedicated`` wake a sleeping endpoint, and wait for it as long as ``timeout`` allows.

        Returns:
            The copy. Closing it does not close the pool; closing the original does, for both.

        Raises:
            TypeError: An unknown keyword.
            ConfigurationError: A value that cannot be used.
        """
        changes: dict[str, object] = {}
        for name, value in options.items():
            if name not in _SETTERS:
                raise TypeError(
                    f"with_options() got an unexpected keyword argument {name!r}; it takes {', '.join(_SETTERS)}"
                )
            field, checked = _SETTERS[name]
            changes[field] = checked(value)
        if "headers" in changes:
            changes["headers"] = _headers(self._settings.headers, options.get("headers") or {})
        copy = type(self).__new__(type(self))
        copy._build(self._transport, msgspec.structs.replace(self._settings, **changes), owner=False)
        return copy

    async def __aenter__(self) -> Self:
        if self._transport.closed:
            raise ConfigurationError("the client is closed")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the pool and wakes every open stream. A copy of ``with_options`` leaves the pool to the original."""
        if self._owner:
            await self._transport.close()

    def __repr__(self) -> str:
        state = "closed" if self._transport.closed else "open"
        return f"<{type(self).__name__} {self._settings.server_url} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncFriendli holds connections and a token, so it cannot be pickled or copied")


def _check_max_connections(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"max_connections must be a whole number, at least 1, not {value!r}")


def _token(token: object) -> Any:
    if token is not None and not callable(token):
        check_token(token)
    return token


def _team(team: str | None) -> str | None:
    return None if team is None else check_team(team)


def _timeouts(timeout: object) -> Timeouts:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Timeouts | int | float)):
        raise ConfigurationError(f"timeout must be Timeouts, a number of seconds, or None, not {timeout!r}")
    return Timeouts.of(timeout)


def _policy(retry: object) -> RetryPolicy:
    if retry is None:
        return RetryPolicy(max_attempts=1)
    if not isinstance(retry, RetryPolicy):
        raise ConfigurationError(f"a retry policy must be a RetryPolicy or None, not {retry!r}")
    return retry


def _limits(limits: object) -> Limits:
    if not isinstance(limits, Limits):
        raise ConfigurationError(f"limits must be Limits, not {limits!r}")
    return limits


def _wake(wake: object) -> bool:
    if not isinstance(wake, bool):
        raise ConfigurationError(f"wake must be True or False, not {wake!r}")
    return wake


def _proxy(proxy: object) -> str | None:
    if proxy is None:
        return None
    try:
        parts = urlsplit(proxy) if isinstance(proxy, str) else None
        usable = parts is not None and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable = usable and not re.search(r"\s", str(proxy))
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError("proxy must be an http or https URL")  # not repeated: it can hold a password
    return str(proxy)


def _headers(present: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Merges headers whatever the case of their names; None removes one."""
    merged = {name.lower(): (name, value) for name, value in present.items()}
    for name, value in changes.items():
        check_header(name, "" if value is None else value, "headers")
        merged.pop(name.lower(), None)
        if value is not None:
            merged[name.lower()] = (name, value)
    return dict(merged.values())


# A setting of with_options: the field of Settings that it sets, and what checks it.
_SETTERS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "token": ("token", _token),
    "team": ("team", _team),
    "server_url": ("server_url", lambda url: base_url(url, "server_url")),
    "container_url": ("container_url", lambda url: base_url(url, "container_url")),
    "timeout": ("timeouts", _timeouts),
    "retry": ("retry", _policy),
    "limits": ("limits", _limits),
    "headers": ("headers", lambda headers: headers),
    "wake": ("wake", _wake),
}
