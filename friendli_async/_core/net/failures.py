"""Translates what aiohttp, a user's connector or TLS raises: what failed, where, and whether to try again.

``translate`` is for errors of sending; ``AiohttpExchange`` raises those of reading a body. Errors do not quote the
request: its headers hold the token, and its URL may hold secrets.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from http.client import responses
from traceback import walk_tb
from typing import TYPE_CHECKING, Final, TypeVar

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError, TransferEncodingError

from friendli_async._core.net.clock import timeout_error
from friendli_async.errors import APIConnectionError, ConfigurationError

if TYPE_CHECKING:
    from friendli_async._core.net.dialing import DialContext

T = TypeVar("T", bound=BaseException)

BROKEN: Final = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)
"""What a broken connection raises. RuntimeError is aiohttp's "Connection closed."; HttpProcessingError comes unwrapped
from the pure-Python parser."""

# aiohttp's parser words broken framing as if a server had replied: "400, message='...'". aiohttp's connection errors
# quote the TLS context, its write errors the URL; a proxy's URL holds its password.
_NOISE: Final = (
    r"\b400, message[:=]\s*| ssl:(?:<[^>]*>|\w+)|\[Errno [^\]]*\] ?|\[SSL[^\]]*\] ?| ?\(_ssl\.c:\d+\)| for https?://\S+"
    r"|(?<=://)[^/\s@]*@"
)
# The message of the error that a payload error wraps.
_WRAPPED: Final = r"completed: <\w+: [\"'](.+)[\"']\)?>"
# The system's error that follows it, if the connection did not just end: "... ConnectionResetError(104, '...')".
_LOST: Final = r">\. \w+\((\d\d+), "
_TRUNCATED: Final = "Not enough data to satisfy "  # "... transfer length header.", "... content length header."
# The message of a request whose connection was closed while it was being written.
_NOT_WRITTEN: Final = "Can not write request body"
# Bytes of the reply at the end of a line: they may be the value of a header, such as a cookie.
_QUOTED: Final = r":? (?:bytearray\()?b['\"].*|(?<=Bad status line) ['\"].*"
# What the pure-Python parser says of chunked framing; otherwise, its message is the line that should be a chunk's size.
_OF_FRAMING: Final = rf"\A(?:Unexpected LF|Bad [\w-]+ line ending|Chunk size mismatch)|{_TRUNCATED}"
_MAX_LENGTH: Final = 300
# Statuses of a proxy that may differ on the next attempt.
_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429, *range(500, 600)} - {HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED})

_INTERNAL_ERROR: Final = "INTERNAL_ERROR"  # of the server, maybe after it accepted the request
_TLS_ERROR: Final = r"\[SSL: (\w+)\] ([^(]*)"
# Codes of an untrusted authority, X509_V_ERR_...: SELF_SIGNED_CERT, UNABLE_TO_GET_ISSUER, UNABLE_TO_VERIFY.
_UNTRUSTED_CODES: Final = frozenset({18, 19, 20, 21})


def translate(error: Exception, dial: DialContext, *, owned: bool, closed: bool) -> BaseException:
    """Returns the library's error for what a request raised.

    Args:
        error: What was raised.
        dial: How far the request got.
        owned: Whether the session is ours.
        closed: Whether the session is closed.
    """
    if dial.source_error is not None:
        return dial.source_error
    if isinstance(error, ConfigurationError):
        return error
    sent = dial.replaced  # over the pooled connection that turned out dead
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return timeout_error("connect", dial.clock.timeouts.connect or 0.0, sent=sent, detail=dial.progress)
    if isinstance(error, aiohttp.InvalidURL):
        reason = f": its host {error.description}" if error.description else ""  # e.g. is not a canonical IPv4 address
        return ConfigurationError(f"the URL is not valid{reason}")
    if isinstance(error, RuntimeError) and closed:
        reason = "the client is closed" if owned else "the session passed in is closed"
        return ConfigurationError(reason, draining=owned)
    if (refused := _certificate_reason(error, dial)) is not None:
        return _connect_error(f"could not connect: {refused}", sent, permanent=True)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _connect_error(_proxy_reason(error), sent, permanent=error.status not in _TRANSIENT_STATUSES)
    if isinstance(error, ValueError) and (owned or dial.connected):
        # An invalid host name, or the session's credentials besides the token; a foreign connector may raise anything.
        return ConfigurationError(f"the request cannot be made: {type(error).__name__}: {error}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return _connect_error(
            f"could not connect: {_dial_reason(error, dial)}", sent, permanent=_is_permanent(error.os_error)
        )
    if not dial.reused and (alert := _tls_alert(error, dial)) is not None:  # TLS 1.3: a client may send before it
        return _connect_error(f"could not connect: {alert}", sent, permanent=True)
    if not dial.connected:
        if (failed := _handshake_failure(error)) is not None:
            return _connect_error(
                f"could not connect: {dial.address} [{_system_reason(failed)}]", sent, permanent=_is_permanent(failed)
            )
        return _connect_error(
            f"could not connect: {_other_reason(error, dial)}",
            sent,
            permanent=not owned and _is_rejection(str(error)),
        )
    return APIConnectionError(f"no reply: {describe(error)}", sent=dial.clock.sent)


def failed_connecting(error: BaseException, connector: object) -> bool:
    """Whether an exception was raised while a connector opened a connection, or while the request waited for one.

    A foreign connector does not report how far it got, but the frames of the traceback show it.
    """
    for cause in _causes(error):
        for frame, _ in walk_tb(cause.__traceback__):
            if frame.f_code.co_name == "connect" and frame.f_locals.get("self") is connector:
                return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes: connectors wrap what the system raises."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        yield cause
        seen.append(cause)
        cause = cause.__cause__


def _connect_error(message: str, sent: bool, *, permanent: bool) -> APIConnectionError:
    """Returns the error for a connection that could not be made; ``permanent`` if a retry would only fail again."""
    error = APIConnectionError(message, sent=sent)
    error.permanent = permanent
    return error


def _cause_of_type(error: BaseException, kind: type[T]) -> T | None:
    return next((cause for cause in _causes(error) if isinstance(cause, kind)), None)


def _certificate_reason(error: Exception, dial: DialContext) -> str | None:
    """Returns whose certificate was rejected, and why, such as ``certificate has expired``; None if none was."""
    cause: Exception | None = getattr(error, "certificate_error", None) or _cause_of_type(error, ssl.CertificateError)
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        why = "its fingerprint does not match"
    elif cause is not None:
        why = why_untrusted(cause, "pass ssl= or set SSL_CERT_FILE")
    else:
        return None
    address = _address(error, dial)
    peer = f"the proxy {address} [its" if _is_proxy(address, dial) else f"{address} [the server's"
    return f"{peer} certificate was rejected: {why}]"


def why_untrusted(error: Exception, advice: str) -> str:
    """Returns why a certificate was rejected, with the advice for another authority only if that is the reason."""
    message = (getattr(error, "verify_message", "") or describe(error)).rstrip(".")
    more = f"; to trust another CA, {advice}" if getattr(error, "verify_code", 0) in _UNTRUSTED_CODES else ""
    return f"{message}{more}{_ca_path_hint()}"


def _ca_path_hint() -> str:
    """Returns a hint that OpenSSL lacks: the environment names an unreadable path, so no authority is trusted."""
    for variable, is_there in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        path = os.environ.get(variable)
        if path and not (is_there(path) and os.access(path, os.R_OK)):
            return f" ({variable} names {path}, which cannot be read)"
    return ""


def _address(error: Exception, dial: DialContext) -> str:
    host, port = getattr(error, "host", None), getattr(error, "port", None)
    return dial.address if host is None else f"{bracketed(str(host))}:{port}"


def _is_proxy(address: str, dial: DialContext) -> bool:
    """Whether an address is the proxy's, whose URL may lack the port."""
    return dial.proxy in {address, address.rpartition(":")[0]}


def bracketed(host: str) -> str:
    """Returns a host with brackets if it is an IPv6 address, for a port to follow."""
    return f"[{host}]" if ":" in host else host


def _proxy_reason(error: aiohttp.ClientHttpProxyError) -> str:
    """Returns what a proxy answered to CONNECT, but not in its own words, which may quote the request."""
    url, message = error.request_info.real_url, responses.get(error.status, "")
    return f"the proxy {url.host}:{url.port} rejected the CONNECT request: {error.status} {message}".rstrip()


def _dial_reason(error: aiohttp.ClientConnectorError, dial: DialContext) -> str:
    """Returns the address and the reason. aiohttp's message quotes the TLS context and ends with the system's."""
    cause = error.os_error
    of_proxy = isinstance(error, aiohttp.ClientProxyConnectionError) or _is_proxy(_address(error, dial), dial)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        of_proxy = dial.proxy is not None  # which resolves the server's name itself
        why = f"the name could not be resolved: {cause.strerror or cause}"
    else:
        why = _system_reason(cause)
    if (path := getattr(error, "path", None)) is not None:  # a Unix socket
        return f"{path} [{why}]"
    return f"{'the proxy ' if of_proxy else ''}{bracketed(error.host)}:{error.port} [{why}]"


def _system_reason(cause: OSError) -> str:
    if isinstance(cause, ssl.SSLError):
        return _tls_message(_tls_reason(cause), re.sub(_NOISE, "", str(cause)))
    if cause.errno and "call failed" in str(cause):  # asyncio's message, which repeats the address
        return os.strerror(cause.errno)
    if _is_handshake_reset(cause):
        return "the connection was closed in the TLS handshake"
    return cause.strerror or f"{type(cause).__name__}: {cause}".removesuffix(": ")


def _handshake_failure(error: Exception) -> OSError | None:
    """Returns what the TLS handshake of a foreign connector failed with; None if it failed in another way."""
    reset = _cause_of_type(error, ConnectionResetError)
    return _cause_of_type(error, ssl.SSLError) or (reset if _is_handshake_reset(reset) else None)


def _is_handshake_reset(cause: OSError | None) -> bool:
    """Whether asyncio raised it as the peer closed the connection during the handshake: such an error is empty."""
    return isinstance(cause, ConnectionResetError) and not cause.args


def _other_reason(error: Exception, dial: DialContext) -> str:
    """Returns why there is no connection if aiohttp raised no connector error."""
    if dial.proxy is None:
        return describe(error)
    return f"the proxy {dial.proxy} [{describe(error, 'it')}]"


def _is_rejection(message: str) -> bool:
    """Whether a foreign connector's message says that its proxy rejects the request for good, not that it failed."""
    status = re.match(r"[1-5]\d\d(?!\S)", message)  # of an HTTP proxy: "403 Forbidden"
    is_permanent = status is not None and int(status[0]) not in _TRANSIENT_STATUSES
    return is_permanent or re.search("authenticat|not allowed", message, re.IGNORECASE) is not None


def _tls_message(reason: str, message: str) -> str:
    hint = ""
    if reason == "WRONG_VERSION_NUMBER":  # OpenSSL's name for data that is no TLS
        hint = "; does the server use TLS on this port?"
    elif "_ALERT_" in reason:  # or "unknown ca" would be taken for the server's
        hint = "; the peer rejected the handshake"
    return f"TLS: {message.strip()}{hint}"


def _tls_reason(cause: ssl.SSLError) -> str:
    return getattr(cause, "reason", None) or ""  # a user's connector may have created the error itself


def _is_permanent(cause: OSError) -> bool:
    """Whether a TLS handshake failed because of either side's configuration, not because the connection broke."""
    torn = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    return isinstance(cause, ssl.SSLError) and not torn and _INTERNAL_ERROR not in _tls_reason(cause)


def _tls_alert(error: Exception, dial: DialContext) -> str | None:
    """Returns the TLS alert that rejected a handshake which the client considered done, with whose it is, or None."""
    found = re.search(_TLS_ERROR, str(error))
    if found is None or "_ALERT_" not in found[1] or _INTERNAL_ERROR in found[1]:
        return None
    of_proxy = dial.proxy is not None and not (dial.tunnelled and dial.connected)
    peer = f"the proxy {dial.proxy}" if of_proxy else dial.address
    return f"{peer} [{_tls_message(found[1], found[2])}]"


def describe(error: BaseException, peer: str = "the server") -> str:
    """Describes an aiohttp error without its request (``ClientResponseError`` quotes it) and without noise."""
    if isinstance(error, aiohttp.ClientResponseError):  # from the parser: further lines quote the bytes, with a pointer
        if r"b'\x15\x03" in error.message:  # a TLS alert
            return f"{peer} replied with TLS; is the URL https?"
        lines = [line.strip().rstrip(":") for line in error.message.splitlines() if line.strip()]
        shown = [re.sub(_QUOTED, "", line) for line in lines if not line.startswith(("b'", 'b"', "^"))]
        return f"invalid HTTP response: {', '.join(shown)}"[:_MAX_LENGTH]
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return f"{peer} closed the connection"
    if (tls := re.search(_TLS_ERROR, str(error))) is not None:  # of the records of an open connection
        return f"TLS: {tls[2].strip()}"
    text = re.sub(_QUOTED, "", re.sub(_NOISE, "", str(error))).strip()
    if text == _NOT_WRITTEN:
        return f"{peer} closed the connection while the request was being sent"
    if isinstance(error.__cause__, TransferEncodingError) and re.search(_OF_FRAMING, text) is None:
        return "the size of a chunk is invalid"
    if isinstance(error, aiohttp.ClientPayloadError) and (inner := re.search(_WRAPPED, text)) is not None:
        if inner[1].startswith(_TRUNCATED):
            lost = re.search(_LOST, text)
            how = f"{peer} closed the connection" if lost is None else os.strerror(int(lost[1]))
            return f"{how} before the end of the body"
        return inner[1].rstrip(".")[:_MAX_LENGTH]
    if isinstance(error, aiohttp.ClientOSError | ConnectionError) and error.errno and error.errno > 1:
        return text[:_MAX_LENGTH] or os.strerror(error.errno)
    return f"{type(error).__name__}: {text}"[:_MAX_LENGTH] if text else type(error).__name__
