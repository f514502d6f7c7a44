"""Client settings and their validation: URLs, token, headers, limits and policies."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict, cast

import msgspec

from friendli_async._core.observers import METHODS, Observer, Observers
from friendli_async._core.secret import Secret
from friendli_async._help import document_fields
from friendli_async._hints import option_hint
from friendli_async.errors import ConfigurationError
from friendli_async.options import Limits, Pacing, RetryPolicy, Timeouts
from friendli_async.usage_limit import UsageLimit

API_URL: Final = "https://api.friendli.ai"
CONTAINER_URL: Final = "http://localhost:8000"

Token = str | Callable[[], str | Awaitable[str]]
"""A token, or a function, plain or a coroutine function, that is called for each request."""


@document_fields
class ClientOptions(TypedDict, total=False):
    """The options of ``with_options``; see ``AsyncFriendli``."""

    token: Token | None
    """Friendli token, or a callable (sync or async) that returns it, called for every request."""
    team: str | None
    """Team to bill, sent as ``X-Friendli-Team``."""
    server_url: str
    """Base URL; a path prefix is kept."""
    container_url: str
    """Base URL of ``container``."""
    timeout: Timeouts | float | None
    """Timeouts; a number is ``Timeouts(total=number)``, None disables them all."""
    retry: RetryPolicy | None
    """Retry policy; None disables retries."""
    pacing: Pacing | None
    """Rate-limit holds and retry budget, shared by the client's calls; None disables both."""
    limits: Limits
    """Size limits."""
    headers: Mapping[str, str | None] | None
    """Headers for every request, merged with the client's: the value None removes one, and without a mapping all stay.
    ``Authorization`` overrides the token."""
    observers: Sequence[Observer]
    """Observers that receive the events of the calls."""
    usage_limit: UsageLimit | None
    """What the calls may use together; None is no limit."""
    wake: bool
    """Whether ``dedicated`` calls wake a sleeping endpoint, and wait for it as long as ``timeout`` allows."""


_HEADER_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Control characters end or corrupt a header (RFC 9110 5.5), and headers are limited to Latin-1.
_INVALID_IN_VALUE: Final = r"[^\t\x20-\x7e\x80-\xff]"
# Around a value: what is left of the lines of a .env file, or of a file that holds one secret.
_BLANKS: Final = " \t\r\n"
# Beginnings of the operations' paths, with which the base URLs of other clients end, and the path that documentation
# shows most.
_API_PATHS: Final = ("/v1", "/serverless", "/dedicated", "/chat/completions")
_FRAMING_HEADERS: Final = frozenset({"content-length", "transfer-encoding", "connection", "host"})


class NoOptions(TypedDict):
    """No options: the type of ``**others`` where a function reports unknown keywords itself."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Validated settings of a client. The repr omits all values, as they include the token."""

    token: Token | None = None
    team: str | None = None
    server_url: str = API_URL
    container_url: str = CONTAINER_URL
    timeout: Timeouts = Timeouts()
    retry: RetryPolicy = RetryPolicy()
    pacing: Pacing = Pacing()
    limits: Limits = Limits()
    headers: Mapping[str, str] = {}
    wake: bool = False
    observers: Observers | None = None
    usage_limit: UsageLimit | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Settings:
        """Returns the settings of a new client: options first, then environment variables, then defaults.

        Raises:
            ConfigurationError: An invalid value.
        """
        given = {name: value for name, value in options.items() if value is not None or name not in _FROM_ENVIRONMENT}
        settings = cls()
        for name in sorted(_FROM_ENVIRONMENT - given.keys()):
            variable = f"FRIENDLI_{name.upper()}"
            if found := strip_quotes(os.environ.get(variable, "")):
                try:
                    settings = settings.with_changes({name: found})
                except ConfigurationError as error:
                    raise ConfigurationError(f"{error} (it is set by {variable})") from None
        return settings.with_changes(given)

    def with_changes(self, options: Mapping[str, object]) -> Settings:
        """Returns a copy with these options; headers are merged.

        Raises:
            TypeError: A name that is not in ``ClientOptions``.
            ConfigurationError: An invalid value.
        """
        changes: dict[str, object] = {}
        for name, value in options.items():
            if name not in _CONVERTERS:
                raise unknown_option("with_options", name, _CONVERTERS)
            changes[name] = _CONVERTERS[name](value)
        if "headers" in changes:
            changes["headers"] = _merge_headers(self.headers, cast("Mapping[str, str | None]", changes["headers"]))
        return msgspec.structs.replace(self, **changes)

    def __repr__(self) -> str:
        return "Settings(...)"


def strip_quotes(value: str) -> Secret:
    """Strips blanks, line ends and quotes around a variable's value, which tools that set variables leave in place."""
    value = Secret(value.strip(_BLANKS))
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = Secret(value[1:-1].strip(_BLANKS))
    return value


def base_url(value: object, name: str) -> str:
    """Validates and normalizes a base URL: keeps a path prefix, strips trailing slashes, encodes the path.

    Raises:
        ConfigurationError: It is not an absolute http(s) URL, or has a query, a fragment or credentials.
    """
    from urllib.parse import quote

    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a URL as a string, not {type(value).__name__}")
    if "@" in value or "?" in value or "#" in value:  # the value is omitted: it may hold a secret
        raise ConfigurationError(f"{name} must not contain credentials (pass token=), a query or a fragment")
    host = hostname(value)
    if not host or not host.isascii() or re.search(r"[\s\x00-\x1f\x7f\ud800-\udfff]|//[^/]*[\\\"<>^`{|}]", value):
        raise ConfigurationError(f"{name} must be an http or https URL with an ASCII host, not {str(value)!r}")
    value = re.sub(r"[^\x00-\x7f]+|[\\\"<>^`{|}]", lambda found: quote(found[0]), str(value)).rstrip("/")
    if value.endswith(_API_PATHS):
        raise ConfigurationError(f"{name} must not end with /{value.rpartition('/')[2]}: the client adds the paths")
    return value


def hostname(url: str) -> str:
    """Returns the host of an http or https URL; "" if it is invalid."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")  # rejects invalid labels
        return host if parts.scheme in {"http", "https"} and parts.port != 0 else ""
    except ValueError:  # including UnicodeError
        return ""


def check_token(token: object) -> Secret:
    """Returns the Authorization header's value for a token; one that starts with "bearer " is used unchanged.

    Surrounding blanks and line ends, as found in .env files and in files with a secret, are stripped.

    Raises:
        ConfigurationError: It is not a string, is empty, or is invalid in a header. The message omits the token.
    """
    if not isinstance(token, str):
        raise ConfigurationError(f"the token must be a string, not {type(token).__name__}")
    token = Secret(token.strip(_BLANKS))
    if not token:
        raise ConfigurationError("the token is empty")
    if not re.fullmatch(r"[\x20-\x7e]+", token):
        raise ConfigurationError("the token contains control or non-ASCII characters, so it cannot be sent")
    if token.lower() == "bearer":
        raise ConfigurationError('the token is empty after "Bearer"')
    return token if token[:7].lower() == "bearer " else Secret(f"Bearer {token}")


def check_header(name: object, value: object, what: str) -> None:
    """Validates a custom header.

    Raises:
        ConfigurationError: Name or value is invalid.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"{what}: a header name must be a string, not {type(name).__name__}")
    if not re.fullmatch(_HEADER_NAME, name):  # omitted: it may be a whole header, with a secret
        raise ConfigurationError(
            f"{what}: a header name is empty, or contains a blank, a colon or another such character"
        )
    if not isinstance(value, str):
        raise ConfigurationError(f"{what}: the value of {name} must be a string, not {type(value).__name__}")
    if re.search(_INVALID_IN_VALUE, value):
        raise ConfigurationError(f"{what}: the value of {name} contains characters that are not allowed in a header")


def check_proxy(proxy: object) -> Secret:
    """Validates a proxy URL.

    Raises:
        ConfigurationError: It is not an http(s) URL. The message omits it, as it may contain a password.
    """
    # Parsed without its credentials, or the result would show them in tracebacks.
    if isinstance(proxy, str) and not re.search(r"[\s\ud800-\udfff]", proxy) and hostname(re.sub("//.*@", "//", proxy)):
        return Secret(proxy)
    raise ConfigurationError("proxy must be an http or https URL")


def unknown_option(method: str, name: str, known: Collection[str]) -> TypeError:
    """Returns the error for an unknown keyword, which suggests the right name, or lists all."""
    return TypeError(f"{method}() got an unexpected keyword argument {name!r}{option_hint(name, known)}")


def _convert_token(token: object) -> object:
    if token is not None and not callable(token):
        check_token(token)
    return token


def _convert_team(team: str | None) -> str | None:
    if team is not None:
        check_header("X-Friendli-Team", team, "team")
        if not team.strip():
            raise ConfigurationError("team is empty")
        return str.__str__(team)  # unmasked: call events show it
    return None


def _convert_timeout(timeout: object) -> Timeouts:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Timeouts | int | float)):
        raise ConfigurationError(f"timeout must be Timeouts, a number of seconds, or None, not {timeout!r}")
    return Timeouts.of(timeout)


def _instance_of(kind: Any, requirement: str, default: object = None) -> Callable[[object], object]:
    """Returns a converter that requires an instance of a type, and replaces None by the default."""

    def convert(value: object) -> object:
        found = default if value is None else value
        if not isinstance(found, kind):
            raise ConfigurationError(f"{requirement}, not {value!r}")
        return found

    return convert


def _convert_headers(headers: object) -> Mapping[str, str | None]:
    if headers is not None and not isinstance(headers, Mapping):
        raise ConfigurationError("headers must be a mapping of names to values")  # omitted: it may hold a secret
    return cast("Mapping[str, str | None]", headers or {})


def _convert_observers(observers: Any) -> Observers | None:
    if isinstance(observers, str) or not isinstance(observers, Iterable):
        raise ConfigurationError(f"observers must be a list of observers, not {observers!r}")
    members: tuple[Any, ...] = tuple(cast("Any", observers))
    for member in members:
        if isinstance(member, type):
            raise ConfigurationError(f"observers must be instances, not classes: {member.__name__}")
        if inspect.isroutine(member):  # it would never be called
            raise ConfigurationError(f"observers must be objects with methods of Observer, not functions: {member!r}")
        for name in METHODS:
            if inspect.iscoroutinefunction(getattr(member, name, None)):
                raise ConfigurationError(
                    f"{type(member).__name__}.{name} must be a plain method, not a coroutine function"
                )
    return Observers(members) if members else None


def _merge_headers(present: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Merges headers by case-insensitive name; None removes one."""
    merged = {name.lower(): (name, value) for name, value in present.items()}
    for name, value in changes.items():
        check_header(name, "" if value is None else value, "headers")
        if name.lower() in _FRAMING_HEADERS:
            raise ConfigurationError(f"headers: {name} is set by the HTTP layer")
        merged.pop(name.lower(), None)
        if value is not None:
            merged[name.lower()] = (str.__str__(name), value)  # unmasked
    return dict(merged.values())


_FROM_ENVIRONMENT: Final = frozenset({"token", "team", "server_url", "container_url"})
"""Options that default to an environment variable, such as FRIENDLI_TOKEN."""
_CONVERTERS: Final[dict[str, Callable[[Any], object]]] = {
    "token": _convert_token,
    "team": _convert_team,
    "server_url": lambda url: base_url(url, "server_url"),
    "container_url": lambda url: base_url(url, "container_url"),
    "timeout": _convert_timeout,
    "retry": _instance_of(RetryPolicy, "a retry policy must be a RetryPolicy or None", RetryPolicy(max_attempts=1)),
    "pacing": _instance_of(Pacing, "pacing must be Pacing or None", Pacing(None)),
    "limits": _instance_of(Limits, "limits must be Limits"),
    "headers": _convert_headers,
    "observers": _convert_observers,
    "usage_limit": _instance_of(UsageLimit | None, "usage_limit must be a UsageLimit or None"),
    "wake": _instance_of(bool, "wake must be True or False"),
}
