"""Operations and requests: what is written once for each operation, and how a request is made of it. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache, cached_property
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from friendli_async._core.body.arguments import Arguments, ForeignArguments
from friendli_async._core.body.forms import Form
from friendli_async._core.secret import Secret
from friendli_async._core.settings import Settings, check_token
from friendli_async._version import __version__
from friendli_async.errors import ConfigurationError

__all__ = ["Accept", "Deployment", "Operation", "Request", "RequestBuilder"]

T = TypeVar("T")

_USER_AGENT: Final = f"friendli_async/{__version__}"

Accept = Literal["json", "events", "bytes"]
_ACCEPTED: Final[dict[Accept, dict[str, str]]] = {
    "json": {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"},
    # Compressed events arrive when the compressor pleases: often all at the end.
    "events": {"Accept": "text/event-stream", "Accept-Encoding": "identity"},
    "bytes": {"Accept": "*/*", "Accept-Encoding": "identity"},
}


class Operation(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One operation of the API: what is written once, whatever deployment answers it."""

    name: str
    """Group and method as the client has them, as ``chat.complete``: what reports of a call name it by."""
    method: str
    path: str
    """Below the deployment's prefix; ``{name}`` stands for a path parameter."""
    reply: Any
    """The type of a plain call's whole reply, T; one of None, ``X | None`` or Any takes an empty body, too."""
    repeatable: bool = False
    """Whether an attempt that the server may have accepted may be repeated."""
    billed: bool = False
    """Whether an accepted attempt costs money: then it is not repeated after a read timeout."""
    team: bool = True
    """Whether it takes the X-Friendli-Team header (outside of containers)."""

    @property
    def decoder(self) -> msgspec.json.Decoder[T]:
        """Decodes the reply. Made on first use: all of them are a tenth of the import, and a service uses few."""
        return _decoder(self.reply)


@cache
def _decoder(reply: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(reply)


class Deployment(msgspec.Struct, frozen=True):
    """Where operations are served."""

    prefix: str
    """Path prefix, as ``/serverless``."""
    container: bool = False
    """A self-hosted engine: its own base URL, no token needed, no team header."""

    @property
    def name(self) -> str:
        """What reports of a call name it by."""
        return "container" if self.container else self.prefix.lstrip("/")


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, ready to be sent. Its repr shows neither headers, query nor body."""

    method: str
    url: str
    path: str
    headers: Mapping[str, str]
    body: bytes | Form | None = None
    repeatable: bool = False

    @property
    def sendable(self) -> bool:
        """Whether it can be sent, or sent again: of some bodies there is only one."""
        return not isinstance(self.body, Form) or self.body.sendable

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


class RequestBuilder:
    """What all requests of one deployment with one set of settings have in common, and how one is made.

    Args:
        settings: What the client was told.
        deployment: Where the requests go.

    Attributes:
        base: URL of what the operations' paths are below.
        authorization: The Authorization header, where it is the same for all requests.
        asks_for_token: Whether a token has to be got for each request.
    """

    def __init__(self, settings: Settings, deployment: Deployment) -> None:
        self.base: str = (settings.container_url if deployment.container else settings.server_url) + deployment.prefix
        self._prefix = deployment.prefix
        self._custom = {name: Secret(value) for name, value in settings.headers.items()}
        self._overridden = {name.lower() for name in self._custom}
        bare = "authorization" in self._overridden  # the user has set it by hand
        fixed = settings.token if isinstance(settings.token, str) and not bare else None
        self.authorization: Secret | None = None if fixed is None else check_token(fixed)
        self.asks_for_token: bool = self.authorization is None and not bare
        self._wants_token = not deployment.container and not bare
        self._token = settings.token
        self._team = None if deployment.container else settings.team
        self._templates: dict[tuple[Accept, bool, bool], dict[str, str]] = {}

    @cached_property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the base URL, for reports of a call."""
        from urllib.parse import urlsplit

        parts = urlsplit(self.base)
        return parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    @property
    def account(self) -> Hashable:
        """Whose limits the requests count against: the team, and who the token says it is. It keeps no token.

        A token that is asked for anew, which may be another each time, is told by who gives it.
        """
        custom = {name.lower(): value for name, value in self._custom.items()}
        team = hash(custom.get("x-friendli-team", self._team))
        token = custom.get("authorization", self.authorization) or self._token
        if isinstance(token, str):
            return team, hash(token)
        try:
            hash(token)
        except TypeError:
            return team, id(token)
        return team, token

    def build(
        self,
        operation: Operation[Any],
        arguments: Arguments,
        accept: Accept,
        authorization: Secret | None,
        framing: Mapping[str, str] | None = None,
    ) -> Request:
        """Makes one attempt's request.

        Args:
            operation: What is asked for.
            arguments: What is sent with it.
            accept: What the reply may be.
            authorization: The Authorization header's value, or None.
            framing: The headers that the body, a form, has of its own.

        Raises:
            ConfigurationError: There is no token, and the deployment wants one.
        """
        if authorization is None and self._wants_token:
            raise ConfigurationError("no token: pass token=, or set FRIENDLI_TOKEN")
        body = arguments.body
        if isinstance(arguments, ForeignArguments):  # somebody else's server: it gets nothing of ours
            headers = {**_ACCEPTED[accept], "User-Agent": _USER_AGENT, **(framing or {})}
            url = arguments.url
        else:
            headers = self._headers(accept, isinstance(body, bytes), operation.team)
            if authorization is not None:
                headers = {**headers, "Authorization": authorization}
            if framing is not None:
                headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
                headers.update(framing)
            path = operation.path.format_map(arguments.path) if arguments.path else operation.path
            query = f"?{arguments.query}" if arguments.query else ""
            url = f"{self.base}{path}{query}"
        return Request(operation.method, url, self._prefix + operation.path, headers, body, operation.repeatable)

    def _headers(self, accept: Accept, json: bool, team: bool) -> dict[str, str]:
        """The headers that all such requests have; the user's own win over ours, whatever the case of their names."""
        kind = (accept, json, team)
        template = self._templates.get(kind)
        if template is None:
            ours = {**_ACCEPTED[accept], "User-Agent": _USER_AGENT}
            if team and self._team is not None:
                ours["X-Friendli-Team"] = self._team
            if json:
                ours["Content-Type"] = "application/json"
            kept = {name: value for name, value in ours.items() if name.lower() not in self._overridden}
            template = self._templates[kind] = {**kept, **self._custom}
        return template
