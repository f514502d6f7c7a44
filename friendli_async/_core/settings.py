"""What a client was told, checked: URLs, token, headers, limits and policies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from friendli_async.errors import ConfigurationError
from friendli_async.options import Limits, RetryPolicy, Timeouts

__all__ = ["Settings", "Token", "base_url", "check_header", "check_team", "check_token"]

Token = str | Callable[[], str | Awaitable[str]]

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Controls end or break a header (RFC 9110 5.5); beyond Latin-1 nothing can be sent.
_UNSENDABLE: Final = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection", "host"})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a client was told, checked. Its repr shows nothing of it: it holds the token."""

    token: Token | None
    team: str | None
    server_url: str
    container_url: str
    timeouts: Timeouts
    retry: RetryPolicy
    limits: Limits
    headers: Mapping[str, str]
    wake: bool = False

    def __repr__(self) -> str:
        return "Settings(...)"

    async def authorization(self) -> str | None:
        """The Authorization header's value, a callable token asked anew."""
        token: object = self.token
        if token is None:
            return None
        if callable(token):
            token = token()
            if inspect.isawaitable(token):
                token = await token
        return check_token(token)


def base_url(value: object, name: str) -> str:
    """Checks a base URL and takes one trailing slash off. A path prefix is kept.

    Raises:
        ConfigurationError: It is not an absolute http(s) URL, or has a query, a fragment or credentials.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a URL, not {type(value).__name__}")
    if "@" in value or "?" in value or "#" in value:  # not repeated: it can hold a secret
        raise ConfigurationError(f"{name} must have neither credentials (pass token=) nor query nor fragment")
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
        usable = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
        if not host.isascii():  # as it goes on the wire
            value = value.replace(parts.netloc, parts.netloc.lower().replace(host, host.encode("idna").decode()), 1)
        elif ":" not in host:
            host.encode("idna")  # refuses labels that are none
    except ValueError:  # UnicodeError is one
        usable = False
    if not usable or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ConfigurationError(f"{name} must be an http or https URL, not {value!r}")
    return value.removesuffix("/")


def check_token(token: object) -> str:
    """Returns the value of the Authorization header for a token; what begins with "bearer " is taken as it is.

    Raises:
        ConfigurationError: It is not a string, is empty, or cannot go into a header. The token is not repeated.
    """
    if not isinstance(token, str):
        raise ConfigurationError(f"the token must be a string, not {type(token).__name__}")
    if not token.strip():
        raise ConfigurationError("the token is empty")
    if not re.fullmatch(r"[\x20-\x7e]+", token):
        raise ConfigurationError("the token contains control or non-ASCII characters, so it cannot be sent")
    if token[:7].lower() != "bearer ":
        return f"Bearer {token}"
    if not token[7:].strip():
        raise ConfigurationError('the token is empty behind its "Bearer"')
    return token


def check_team(team: str) -> str:
    """Returns a team that can be sent.

    Raises:
        ConfigurationError: It is empty, or cannot go into a header.
    """
    check_header("X-Friendli-Team", team, "team")
    if not team.strip():
        raise ConfigurationError("team is empty")
    return team


def check_header(name: object, value: object, what: str) -> None:
    """Checks one header that the user gave.

    Raises:
        ConfigurationError: Name or value would break out of the header, or it is one that frames the message.
    """
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise ConfigurationError(f"{what}: {name!r} is not a header name")
    if name.lower() in _FRAMING:
        raise ConfigurationError(f"{what}: {name} is set by the HTTP layer")
    if not isinstance(value, str):
        raise ConfigurationError(f"{what}: the value of {name} must be a string, not {type(value).__name__}")
    if _UNSENDABLE.search(value):
        raise ConfigurationError(f"{what}: the value of {name} contains characters that cannot go into a header")
