"""What a client was told, checked: URLs, token, headers, limits and policies."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict, TypeVar, cast

import msgspec

from friendli_async._core.observers import METHODS, Observer, Observers
from friendli_async._core.secret import Secret, masked
from friendli_async._help import described
from friendli_async._hints import option_hint
from friendli_async.errors import ConfigurationError
from friendli_async.options import Limits, Pacing, RetryPolicy, Timeouts

__all__ = ["ClientOptions", "NoOptions", "Settings", "Token", "checked", "unknown"]
__all__ += ["base_url", "check_header", "check_proxy", "check_token"]

T = TypeVar("T")

API_URL: Final = "https://api.friendli.ai"
CONTAINER_URL: Final = "http://localhost:8000"

Token = str | Callable[[], str | Awaitable[str]]


@described
class ClientOptions(TypedDict, total=False):
    """What ``with_options`` can change; see ``AsyncFriendli``."""

    token: Token | None
    """Friendli token, or a callable (sync or async) that gives it, asked for every request."""
    team: str | None
    """Team to bill, sent as ``X-Friendli-Team``."""
    server_url: str
    """Base URL; a path prefix is kept."""
    container_url: str
    """Base URL of ``container``."""
    timeout: Timeouts | float | None
    """Time limits; a number is ``Timeouts(total=number)``, None is no limit at all."""
    retry: RetryPolicy | None
    """Retry policy; None is no retry."""
    pacing: Pacing | None
    """What calls learn from each other; None is nothing."""
    limits: Limits
    """Size limits."""
    headers: Mapping[str, str | None]
    """Headers for every request, merged with the client's; None removes one."""
    observers: Sequence[Observer]
    """Who is told what happens to the calls."""
    wake: bool
    """Whether calls of ``dedicated`` wake a sleeping endpoint, and wait for it as long as ``timeout`` allows."""


_HEADER_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Controls end or break a header (RFC 9110 5.5); beyond Latin-1 nothing can be sent.
_UNSENDABLE: Final = r"[^\t\x20-\x7e\x80-\xff]"
# Where the paths of operations begin: other clients take base URLs that end so.
_OURS: Final = ("/v1", "/serverless", "/dedicated")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection", "host"})


class NoOptions(TypedDict):
    """Nothing: what is unknown to a function that says so itself."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a client was told, checked. Its repr shows nothing of it: it holds the token."""

    token: Token | None = None
    team: str | None = None
    server_url: str = API_URL
    container_url: str = CONTAINER_URL
    timeouts: Timeouts = Timeouts()
    retry: RetryPolicy = RetryPolicy()
    pacing: Pacing = Pacing()
    limits: Limits = Limits()
    headers: Mapping[str, str] = {}
    wake: bool = False
    observers: Observers | None = None

    @classmethod
    def initial(cls, options: Mapping[str, object]) -> Settings:
        """The settings of a new client: what it was told, else what the environment says, else the defaults.

        Raises:
            ConfigurationError: A value that cannot be used.
        """
        given = {name: value for name, value in options.items() if value is not None or name not in _OF_ENVIRONMENT}
        for name in _OF_ENVIRONMENT - given.keys():
            if found := unquoted(os.environ.get(f"FRIENDLI_{name.upper()}", "")):
                given[name] = found
        return cls().changed(given)

    def changed(self, options: Mapping[str, object]) -> Settings:
        """The same with other values; headers are merged.

        Raises:
            TypeError: A name that is none of ``ClientOptions``.
            ConfigurationError: A value that cannot be used.
        """
        changes = checked(options)
        if "headers" in changes:
            changes["headers"] = _merged(self.headers, cast("Mapping[str, str | None]", changes["headers"]))
        return msgspec.structs.replace(self, **changes)

    def __repr__(self) -> str:
        return "Settings(...)"

    async def authorization(self) -> Secret | None:
        """The Authorization header's value, a callable token asked anew."""
        token: object = self.token
        if token is None:
            return None
        if callable(token):
            token = masked(token())
            if inspect.isawaitable(token):
                token = masked(await token)
        return check_token(token)


def unquoted(value: str) -> Secret:
    """A variable's value without the blanks and the quotes around it, which not everything that sets one takes off."""
    value = Secret(value.strip(" \t"))
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = Secret(value[1:-1].strip(" \t"))
    return value


def base_url(value: object, name: str) -> str:
    """Checks a base URL and takes slashes off its end. A path prefix is kept, and encoded where it has to be.

    Raises:
        ConfigurationError: It is not an absolute http(s) URL, or has a query, a fragment or credentials.
    """
    from urllib.parse import quote

    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a URL, not {type(value).__name__}")
    if "@" in value or "?" in value or "#" in value:  # not repeated: it can hold a secret
        raise ConfigurationError(f"{name} must have neither credentials (pass token=) nor query nor fragment")
    host = _host(value)
    if not host.isascii():  # as it goes on the wire
        punycode = host.encode("idna").decode()
        value = re.sub("//[^/]*", lambda netloc: netloc[0].lower().replace(host, punycode), value, count=1)
    if not host or re.search(r"[\s\x00-\x1f\x7f]|//[^/]*[\\\"<>^`{|}]", value):
        raise ConfigurationError(f"{name} must be an http or https URL, not {str(value)!r}")
    value = re.sub(r"[^\x00-\x7f]+|[\\\"<>^`{|}]", lambda found: quote(found[0]), str(value)).rstrip("/")
    if value.endswith(_OURS):
        raise ConfigurationError(
            f"{name} ends where paths begin that the client adds: leave /{value.rpartition('/')[2]} off"
        )
    return value


def _host(url: str) -> str:
    """The host of an http or https URL; "" where it is none."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")  # refuses labels that are none
        return host if parts.scheme in {"http", "https"} and parts.port != 0 else ""
    except ValueError:  # UnicodeError is one
        return ""


def check_token(token: object) -> Secret:
    """Returns the value of the Authorization header for a token; what begins with "bearer " is taken as it is.

    Blanks around it, as the lines of an .env file have them, are not part of it.

    Raises:
        ConfigurationError: It is not a string, is empty, or cannot go into a header. The token is not repeated.
    """
    if not isinstance(token, str):
        raise ConfigurationError(f"the token must be a string, not {type(token).__name__}")
    token = Secret(token.strip(" \t"))
    if not token.strip():
        raise ConfigurationError("the token is empty")
    if not re.fullmatch(r"[\x20-\x7e]+", token):
        raise ConfigurationError("the token contains control or non-ASCII characters, so it cannot be sent")
    if token.lower() == "bearer":
        raise ConfigurationError('the token is empty behind its "Bearer"')
    return token if token[:7].lower() == "bearer " else Secret(f"Bearer {token}")


def check_header(name: object, value: object, what: str) -> None:
    """Checks one header that the user gave.

    Raises:
        ConfigurationError: Name or value would break out of the header, or it is one that frames the message.
    """
    if not isinstance(name, str) or not re.fullmatch(_HEADER_NAME, name):
        raise ConfigurationError(f"{what}: {name!r} is not a header name")
    if name.lower() in _FRAMING:
        raise ConfigurationError(f"{what}: {name} is set by the HTTP layer")
    if not isinstance(value, str):
        raise ConfigurationError(f"{what}: the value of {name} must be a string, not {type(value).__name__}")
    if re.search(_UNSENDABLE, value):
        raise ConfigurationError(f"{what}: the value of {name} contains characters that cannot go into a header")


def check_proxy(proxy: object) -> str | None:
    """Checks the URL of a proxy.

    Raises:
        ConfigurationError: It is no http(s) URL. It is not repeated: it can hold a password.
    """
    if proxy is None:
        return None
    # Without its credentials, which the parts would show.
    if not isinstance(proxy, str) or re.search(r"\s", proxy) or not _host(re.sub(r"//.*@", "//", proxy)):
        raise ConfigurationError("proxy must be an http or https URL")
    return str(proxy)


def checked(options: Mapping[str, object]) -> dict[str, object]:
    """Checks values of ``ClientOptions``.

    Returns:
        The values, by the names of ``Settings``.

    Raises:
        TypeError: A name that is none of ``ClientOptions``.
        ConfigurationError: A value that cannot be used.
    """
    changes: dict[str, object] = {}
    for name, value in options.items():
        if name not in _CHECKS:
            raise unknown("with_options", name, _CHECKS)
        changes[_FIELDS.get(name, name)] = _CHECKS[name](value)
    return changes


def unknown(method: str, name: str, takes: Collection[str]) -> TypeError:
    """The error of a setting that there is not: what it is called here, or which there are."""
    return TypeError(f"{method}() got an unexpected keyword argument {name!r}{option_hint(name, takes)}")


def _token(token: object) -> object:
    if token is not None and not callable(token):
        check_token(token)
    return token


def _team(team: str | None) -> str | None:
    if team is not None:
        check_header("X-Friendli-Team", team, "team")
        if not team.strip():
            raise ConfigurationError("team is empty")
        return str.__str__(team)  # no secret: observers are told
    return None


def _timeouts(timeout: object) -> Timeouts:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Timeouts | int | float)):
        raise ConfigurationError(f"timeout must be Timeouts, a number of seconds, or None, not {timeout!r}")
    return Timeouts.of(timeout)


def _one_of(kind: type[T], words: str, of_none: T | None = None) -> Callable[[object], T]:
    """A check that a value is of a type; what None stands for, where it may be given."""

    def check(value: object) -> T:
        found = of_none if value is None else value
        if not isinstance(found, kind):
            raise ConfigurationError(f"{words}, not {value!r}")
        return found

    return check


def _headers(headers: object) -> Mapping[str, str | None]:
    if headers is not None and not isinstance(headers, Mapping):
        raise ConfigurationError("headers must be a mapping of names to values")  # not repeated: it can hold a secret
    return cast("Mapping[str, str | None]", headers or {})


def _observers(observers: Any) -> Observers | None:
    if isinstance(observers, str) or not isinstance(observers, Iterable):
        raise ConfigurationError(f"observers must be a list of observers, not {observers!r}")
    members: tuple[Any, ...] = tuple(cast("Any", observers))
    for member in members:
        if isinstance(member, type):
            raise ConfigurationError(f"observers must hold observers, not classes: {member.__name__}")
        for name in METHODS:
            if inspect.iscoroutinefunction(getattr(member, name, None)):
                raise ConfigurationError(f"{type(member).__name__}.{name} must be a plain method: nobody awaits it")
    return Observers(members) if members else None


def _merged(present: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Merges headers whatever the case of their names; None removes one."""
    merged = {name.lower(): (name, value) for name, value in present.items()}
    for name, value in changes.items():
        check_header(name, "" if value is None else value, "headers")
        merged.pop(name.lower(), None)
        if value is not None:
            merged[name.lower()] = (name, value)
    return dict(merged.values())


_OF_ENVIRONMENT: Final = frozenset({"token", "team", "server_url", "container_url"})
"""What stands in a variable, as FRIENDLI_TOKEN, where the client is not told it."""
_FIELDS: Final = {"timeout": "timeouts"}
"""Fields of Settings that are called otherwise than their option."""
_CHECKS: Final[dict[str, Callable[[Any], object]]] = {
    "token": _token,
    "team": _team,
    "server_url": lambda url: base_url(url, "server_url"),
    "container_url": lambda url: base_url(url, "container_url"),
    "timeout": _timeouts,
    "retry": _one_of(RetryPolicy, "a retry policy must be a RetryPolicy or None", RetryPolicy(max_attempts=1)),
    "pacing": _one_of(Pacing, "pacing must be Pacing or None", Pacing(None)),
    "limits": _one_of(Limits, "limits must be Limits"),
    "headers": _headers,
    "observers": _observers,
    "wake": _one_of(bool, "wake must be True or False"),
}
