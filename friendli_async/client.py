"""AsyncFriendli: the client and its operation groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Self, Unpack, cast

from friendli_async._core.loops import running_loop
from friendli_async._core.observers import Observer
from friendli_async._core.protocol import Deployment
from friendli_async._core.secret import masked, masked_values
from friendli_async._core.settings import ClientOptions, NoOptions, Settings, Token, check_proxy, unknown_option
from friendli_async._hints import Hinted
from friendli_async._lazy import LazyModule
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
from friendli_async.options import Limits, Pacing, RetryPolicy, Timeouts, check_count, check_seconds
from friendli_async.replies import Gauges
from friendli_async.responses.resource import ContainerResponses, Responses
from friendli_async.tokens import ContainerTokens, Tokens
from friendli_async.usage_limit import UsageLimit

if TYPE_CHECKING:
    import ssl as ssl_module

    from friendli_async._core import engine as engine_module
    from friendli_async._core.net import transport as transport_module
    from friendli_async._core.runtime import Runtime
else:
    ssl_module, engine_module = LazyModule("ssl"), LazyModule("friendli_async._core.engine")
    transport_module = LazyModule("friendli_async._core.net.transport")

__all__ = ["AsyncFriendli", "ClientOptions", "Container", "Dedicated", "DeploymentName", "Serverless", "Token"]

DeploymentName = Literal["serverless", "dedicated", "container"]
"""The name of a deployment, which is that of its attribute of the client."""
_DEPLOYMENTS: Final = {
    "serverless": Deployment("/serverless"),
    "dedicated": Deployment("/dedicated"),
    "container": Deployment("", container=True),
}


class Serverless(Hinted):
    """Models of Friendli's catalogue: ``client.serverless``."""

    def __init__(self, engine: engine_module.Engine) -> None:
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

        The operation under its original name and signature, at its last path, /serverless/tools/v1/chat/completions.
        Friendli's SDK has since removed it (0.14.0 is the last release that has it). ``tool_assisted_chat.complete``
        and ``tool_assisted_chat.stream`` are the same operation as two plain methods.

        Args:
            tool_assisted_completion_request_body: The body: ``model``, ``messages``, ``tools`` and the other fields of
                ``ToolAssistedChatOptions``. The reply is streamed unless it contains ``stream: False``.
            x_friendli_team: Team to bill; None is the client's.
            retries: Retry policy; None is the client's.
            server_url: Base URL; None is the client's.

        Returns:
            A call. ``async for`` and ``async with`` yield ``ChatChunk`` and ``ToolStatus`` events; ``await`` returns
            the open stream, or the ``ChatCompletion`` if the body contains ``stream: False``.

        Raises:
            ValueError: An invalid value in the body, with its path.
            ConfigurationError: An invalid team or URL.
            FriendliError: When it is used: the call failed (``SDKError`` for 4XX and 5XX).
        """
        given = {"team": x_friendli_team, "retry": retries, "server_url": server_url}
        options = {name: value for name, value in given.items() if value is not None}
        engine = self._engine.with_options(options) if options else self._engine
        return ToolAssistedCall(engine, tool_assisted_completion_request_body)


class Dedicated(Hinted):
    """Your own endpoints on Friendli's hardware: ``client.dedicated``."""

    def __init__(self, engine: engine_module.Engine) -> None:
        self.endpoint: Final = Endpoints(engine)
        engine = engine.with_recovery(Waker(engine))
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


class Container(Hinted):
    """A self-hosted engine: ``client.container``. It needs no token, and has no teams."""

    def __init__(self, engine: engine_module.Engine) -> None:
        self.audio: Final = ContainerAudio(engine)
        self.chat: Final = ContainerChat(engine)
        self.completions: Final = ContainerCompletions(engine)
        self.image: Final = ContainerImages(engine)
        self.messages: Final = ContainerMessages(engine)
        self.responses: Final = ContainerResponses(engine)
        self.text_classification: Final = ContainerTextClassification(engine)
        self.token: Final = ContainerTokens(engine)


class AsyncFriendli(Hinted):
    """A client for Friendli's inference API.

    It has one connection pool per running event loop, created on first use, so a client can be shared by any number of
    tasks, loops and threads. Close it with ``async with`` or ``aclose()``; otherwise its pools are closed when their
    loops shut down. It keeps working in a forked child, with new connections.

    Args:
        token: Friendli token, or a callable (sync or async) that returns it, called for every request. Default:
            ``FRIENDLI_TOKEN``. Only ``container`` works without one.
        team: Team to bill, sent as ``X-Friendli-Team``. Default: ``FRIENDLI_TEAM``.
        server_url: Base URL; a path prefix is kept. Default: ``FRIENDLI_SERVER_URL``, or https://api.friendli.ai.
        container_url: Base URL of ``container``. Default: ``FRIENDLI_CONTAINER_URL``, or http://localhost:8000.
        timeout: Timeouts; a number is ``Timeouts(total=number)``, None disables them all.
        retry: Retry policy; None disables retries.
        pacing: Rate-limit holds and retry budget, shared by the client's calls; None disables both.
        limits: Size limits.
        max_connections: Maximum number of connections per event loop; further calls wait in a queue.
        headers: Headers for every request; they override the client's own, and ``Authorization`` the token.
        observers: Observers that receive the events of the calls; see ``Observer``.
        usage_limit: What the calls may use together; None is no limit.
        proxy: Proxy URL. Default: taken from the environment now (``HTTPS_PROXY``, ``NO_PROXY``...).
        ssl: TLS context; False disables verification.
        session: An ``aiohttp.ClientSession`` to use as it is (its pool, proxy and TLS); the client never closes it. It
            cannot be combined with ``proxy`` and ``ssl``.
        others: None exist; an unknown keyword raises a TypeError that suggests the right name.

    Raises:
        TypeError: An unknown keyword.
        ConfigurationError: An invalid value. "" is one: None is what stands for a default.
    """

    # In the class, and not only in its instances, so that a mock with this class as its spec has them.
    __slots__ = ("container", "cost", "dedicated", "file", "serverless", "usage")

    def __init__(
        self,
        token: Token | None = None,
        *,
        team: str | None = None,
        server_url: str | None = None,
        container_url: str | None = None,
        timeout: Timeouts | float | None = Timeouts(),
        retry: RetryPolicy | None = RetryPolicy(),
        pacing: Pacing | None = Pacing(),
        limits: Limits = Limits(),
        max_connections: int = 1000,
        headers: Mapping[str, str | None] | None = None,
        observers: Sequence[Observer] = (),
        usage_limit: UsageLimit | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | bool | None = None,
        session: transport_module.Session | None = None,
        **others: Unpack[NoOptions],
    ) -> None:
        token, proxy, headers = masked(token), masked(proxy), masked(headers)
        server_url, container_url = masked(server_url), masked(container_url)
        unknowns, others = list(others), NoOptions()  # the values may be secrets: keep them out of tracebacks
        if unknowns:
            known = ["token", *(AsyncFriendli.__init__.__kwdefaults__ or ())]
            raise unknown_option("AsyncFriendli", unknowns[0], known)
        given: dict[str, object] = {"token": token, "team": team}
        given |= {"server_url": server_url, "container_url": container_url}
        given |= {"timeout": timeout, "retry": retry, "pacing": pacing, "limits": limits}
        given |= {"headers": headers, "observers": observers, "usage_limit": usage_limit}
        settings = Settings.from_options(given)
        self._build(_create_runtime(max_connections, proxy, ssl, session), settings, owner=True)

    def _build(self, runtime: Runtime, settings: Settings, *, owner: bool) -> None:
        from friendli_async._core.engine import Engine

        self._runtime = runtime
        self._settings = settings
        self._owner = owner
        self._engines = {name: Engine(runtime, settings, each) for name, each in _DEPLOYMENTS.items()}
        self.serverless: Serverless = Serverless(self._engines["serverless"])
        self.dedicated: Dedicated = Dedicated(self._engines["dedicated"])
        self.container: Container = Container(self._engines["container"])
        root = Engine(runtime, settings, Deployment(""))
        self.cost: TeamCost = TeamCost(root)
        self.file: Files = Files(root)
        self.usage: TeamUsage = TeamUsage(root)

    def with_options(self, **options: Unpack[ClientOptions]) -> Self:
        """Returns a copy with other settings on the same pool; cheap enough to create per call.

        Args:
            options: ``token``, ``team``, ``server_url``, ``container_url``, ``timeout``, ``retry``, ``pacing``,
                ``limits``, ``observers`` and ``usage_limit`` replace the client's; ``headers`` are merged with its
                headers: the value None removes one, and None instead of a mapping changes nothing. ``wake`` makes
                ``dedicated`` calls wake a sleeping endpoint, and wait for it as long as ``timeout`` allows.

        Returns:
            The copy. Closing it does not close the pool; closing the original does, for both.

        Raises:
            TypeError: An unknown keyword.
            ConfigurationError: An invalid value.
        """
        options = cast("ClientOptions", masked_values(options))
        copy = type(self).__new__(type(self))
        if type(self) is not AsyncFriendli:  # a subclass may have attributes of its own
            for name, value in vars(self).items():
                if not isinstance(getattr(type(self), name, None), cached_property):  # computed from the settings
                    vars(copy)[name] = value
        copy._build(self._runtime, self._settings.with_changes(options), owner=False)
        return copy

    @property
    def timeout(self) -> Timeouts:
        """The timeouts of its calls: ``msgspec.structs.replace(client.timeout, total=20)`` keeps the others."""
        return self._settings.timeout

    @property
    def retry(self) -> RetryPolicy:
        """The retry policy of its calls; without retries, ``max_attempts`` is 1."""
        return self._settings.retry

    async def __aenter__(self) -> Self:
        running_loop()  # without one, it is said here, and not by the first call
        if self._runtime.transport.closed:
            raise ConfigurationError("the client is closed, and cannot be opened again: create another", draining=True)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the pool and interrupts calls, streams and runs. On a copy made by ``with_options``, does nothing."""
        if self._owner:
            await self._runtime.close()

    def gauges(self) -> Gauges:
        """Returns current counts of connections, calls, open streams and runs, per event loop and in total."""
        return self._runtime.gauges()

    async def drain(self, timeout: float | None = None) -> int:
        """Shuts down gracefully, with all copies: new calls raise ConfigurationError, those in flight may finish.

        A run of tools that has begun (``chat.run``) may finish, too: its next turns, and the calls that its tools make,
        are not new calls. A response of ``asgi`` is in flight until it was sent.

        Args:
            timeout: Seconds to wait; calls, streams and runs still open then are aborted, as by ``aclose()``, and may
                take up to a second more to raise their errors. None is no limit.

        Returns:
            The number of aborted calls and streams, and of runs between two calls, such as those whose tools were
            running.

        Raises:
            ConfigurationError: ``timeout`` is not a number of seconds.
        """
        return await self._runtime.drain(check_seconds("timeout", timeout))

    async def warm_up(self, n: int, deployment: DeploymentName = "serverless") -> None:
        """Opens connections, and leaves them in the pool of this event loop. Nothing is sent over them.

        Args:
            n: Number of connections, in addition to those that are idle in the pool; fewer if ``max_connections`` would
                be exceeded, counting those in use and idle ones to any server.
            deployment: The deployment to connect to.

        Raises:
            APIConnectionError: They could not be opened.
            ConfigurationError: The session is the user's own, or ``n`` exceeds ``max_connections``.
        """
        if deployment not in tuple(self._engines):
            raise ConfigurationError(f"unknown deployment {deployment!r}; expected one of {', '.join(self._engines)}")
        await self._engines[deployment].warm_up(n)

    def __repr__(self) -> str:
        if not hasattr(self, "_settings"):  # in the traceback of a failed constructor
            return f"<{type(self).__name__}>"
        state = "closed" if self._runtime.transport.closed else "open"
        return f"<{type(self).__name__} {self._settings.server_url} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncFriendli holds connections and a token, so it cannot be pickled or copied")


def _create_runtime(
    max_connections: int,
    proxy: str | None,
    ssl: ssl_module.SSLContext | bool | None,
    session: transport_module.Session | None,
) -> Runtime:
    """Creates the runtime. Imports the core, aiohttp and tenacity: not at import time, and never during a request."""
    from friendli_async._core.net.tls import default_tls  # first: see that module
    from friendli_async._core.net.transport import AiohttpTransport
    from friendli_async._core.runtime import Runtime

    check_count("max_connections", max_connections)
    if session is not None and (proxy is not None or ssl is not None):
        raise ConfigurationError("proxy= and ssl= cannot be combined with session=: configure them on the session")
    if ssl is None and session is None:
        ssl = default_tls()
    transport = AiohttpTransport(
        max_connections=max_connections,
        proxy=None if proxy is None else check_proxy(proxy),
        ssl=ssl,
        session=session,
    )
    return Runtime(transport, max_connections)
