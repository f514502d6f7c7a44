"""Operations and requests: declarations of operations, and the building of HTTP requests from them. No I/O."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from friendli_async._core.body.arguments import Arguments, ForeignArguments
from friendli_async._core.body.forms import Form
from friendli_async._core.secret import MIN_TOKEN, Secret, masked
from friendli_async._core.settings import Settings, check_token
from friendli_async._json import type_lock
from friendli_async._locks import cached_property
from friendli_async._version import __version__
from friendli_async.errors import APIStatusError, ConfigurationError
from friendli_async.replies import ReplyHead

T = TypeVar("T")

_USER_AGENT: Final = f"friendli_async/{__version__}"

Accept = Literal["json", "events", "bytes"]
_ACCEPT_HEADERS: Final[dict[Accept, dict[str, str]]] = {
    "json": {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"},
    # No compression: compressors buffer, so events would arrive late, often all at the end.
    "events": {"Accept": "text/event-stream", "Accept-Encoding": "identity"},
    "bytes": {"Accept": "*/*", "Accept-Encoding": "identity"},
}


class Operation(msgspec.Struct, Generic[T], frozen=True, kw_only=True, dict=True):
    """One operation of the API, independent of the deployment."""

    name: str
    """Group and method on the client, such as ``chat.complete``; names the operation in call events."""
    method: str
    path: str
    """Path below the deployment's prefix; ``{name}`` is a path parameter."""
    reply: Any
    """Type of a plain call's whole reply, T. ``X | None`` and Any also accept an empty body."""
    repeatable: bool = False
    """Whether an attempt may be retried after the server may have accepted it."""
    billed: bool = False
    """Whether an accepted attempt costs money: if so, it is not retried after a read timeout."""
    team: bool = True
    """Whether requests carry the X-Friendli-Team header (never sent to containers)."""
    failure_of: Callable[[T, ReplyHead], APIStatusError | None] | None = None
    """Returns the error that a reply, and its head, report, or None."""

    @cached_property
    def stream_name(self) -> str:
        """Names its streams in call events, such as ``chat.stream``."""
        return f"{self.name.rpartition('.')[0]}.stream"

    @cached_property
    def decoder(self) -> msgspec.json.Decoder[T]:
        """Decodes the reply. Created lazily: all decoders take a tenth of the import time, and a service uses few."""
        with type_lock:
            return msgspec.json.Decoder(self.reply)


class Deployment(msgspec.Struct, frozen=True, dict=True):
    """A deployment that serves operations."""

    prefix: str
    """Path prefix, such as ``/serverless``."""
    container: bool = False
    """A self-hosted engine: its own base URL, no token needed, no team header."""

    @cached_property
    def name(self) -> str:
        """Its name in call events."""
        return "container" if self.container else self.prefix.lstrip("/")


class RequestHeaders(dict[str, str]):
    """The headers of requests, which most requests of a client share. Those of a form also frame its message."""

    @cached_property
    def lines(self) -> Secret:
        """The lines of the headers (RFC 9112 5).

        Raises:
            ValueError: A header contains a line break or NUL.
        """
        if not {"\r", "\n", "\0"}.isdisjoint("".join(self.values())):
            raise ValueError("a header contains a line break")
        return Secret("".join([f"{name}: {value}\r\n" for name, value in self.items()]))

    @cached_property
    def token(self) -> Secret:
        """The token, which some servers quote; "" if there is none, or one that is too short to be told from words."""
        authorization = next((value for name, value in self.items() if name.lower() == "authorization"), "")
        token = Secret(authorization.rpartition(" ")[2])
        return token if len(token) >= MIN_TOKEN else Secret()


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, ready to send. Its repr omits URL, headers and body."""

    method: str
    url: str
    headers: RequestHeaders
    body: bytes | Form | None = None
    repeatable: bool = False

    def __repr__(self) -> str:
        return f"Request({self.method})"


class RequestBuilder:
    """Builds the requests of one deployment with one set of settings.

    Attributes:
        base: Base URL that the operations' paths are appended to.
        authorization: The Authorization header's value, if it is the same for all requests; else None.
    """

    def __init__(self, settings: Settings, deployment: Deployment) -> None:
        self.base: str = (settings.container_url if deployment.container else settings.server_url) + deployment.prefix
        self._custom = {name: Secret(value) for name, value in settings.headers.items()}
        self._overriding = {name.lower(): value for name, value in self._custom.items()}
        has_own_authorization = "authorization" in self._overriding  # set by the user
        token = None if has_own_authorization else settings.token
        self.authorization: Secret | None = check_token(token) if isinstance(token, str) else None
        self._requires_token = not deployment.container and not has_own_authorization
        self._token = token
        self._team = None if deployment.container else settings.team
        self._templates: dict[tuple[Accept, bool, bool], RequestHeaders] = {}

    @cached_property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the base URL, for call events."""
        from urllib.parse import urlsplit

        parts = urlsplit(self.base)
        return parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    @property
    def account(self) -> Hashable:
        """Whose rate limits the requests count against: the team, and the token's owner. Strings are kept as hashes.

        A token callable, which may return another token each time, is identified by itself.
        """
        team = hash(self._overriding.get("x-friendli-team", self._team))
        token = self._overriding.get("authorization", self.authorization) or self._token
        if isinstance(token, str):
            return team, hash(token)
        try:
            hash(token)
        except TypeError:
            return team, id(token)
        return team, token

    async def resolve_token(self) -> Secret | None:
        """Returns the Authorization header's value, or None; a token callable is called each time."""
        token: object = self._token
        if not callable(token):
            return self.authorization
        token = masked(token())
        if inspect.isawaitable(token):
            token = masked(await token)
        return check_token(token)

    def build(
        self,
        operation: Operation[Any],
        arguments: Arguments,
        accept: Accept,
        authorization: Secret | None,
        framing: Mapping[str, str] | None = None,
    ) -> Request:
        """Builds one attempt's request; ``framing`` are the headers of a form body.

        Raises:
            ConfigurationError: The token is missing, and the deployment requires one.
        """
        if authorization is None and self._requires_token:
            raise ConfigurationError("no token: pass token=, or set FRIENDLI_TOKEN")
        body = arguments.body
        if isinstance(arguments, ForeignArguments):  # a third-party server: it gets neither token nor custom headers
            headers = RequestHeaders({**_ACCEPT_HEADERS[accept], "User-Agent": _USER_AGENT, **(framing or {})})
            url = arguments.url
        else:
            headers = self._headers(accept, isinstance(body, bytes), operation.team)
            if authorization is not None and self.authorization is None:  # of a token callable
                headers = RequestHeaders({**headers, "Authorization": authorization})
            if framing is not None:
                headers = RequestHeaders({n: value for n, value in headers.items() if n.lower() != "content-type"})
                headers.update(framing)
            path = operation.path.format_map(arguments.path) if arguments.path else operation.path
            query = f"?{arguments.query}" if arguments.query else ""
            url = f"{self.base}{path}{query}"
        return Request(operation.method, url, headers, body, operation.repeatable)

    def _headers(self, accept: Accept, json: bool, team: bool) -> RequestHeaders:
        """Returns the headers that such requests share. User headers override ours, by case-insensitive name."""
        key = (accept, json, team)
        template = self._templates.get(key)
        if template is None:
            ours = {**_ACCEPT_HEADERS[accept], "User-Agent": _USER_AGENT}
            if team and self._team is not None:
                ours["X-Friendli-Team"] = self._team
            if json:
                ours["Content-Type"] = "application/json"
            defaults = {name: value for name, value in ours.items() if name.lower() not in self._overriding}
            template = RequestHeaders({**defaults, **self._custom})
            if self.authorization is not None:
                template["Authorization"] = self.authorization
            self._templates[key] = template  # last: from here on, other threads use it
        return template
