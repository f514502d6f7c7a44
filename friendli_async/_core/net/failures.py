"""What aiohttp, a connector of the user's, or TLS raises, in our terms: what failed, where, and whether to try again.

The request is not quoted: its headers hold the token, and its URL may hold secrets.
"""

from __future__ import annotations

import os
import re
import ssl
from http import HTTPStatus
from traceback import walk_tb
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from friendli_async._core.net.clock import expired
from friendli_async.errors import APIConnectionError, ConfigurationError

if TYPE_CHECKING:
    from friendli_async._core.net.dialing import DialContext

__all__ = ["BROKEN", "describe", "failed_connecting", "translated"]

BROKEN: Final = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)
"""What is raised where a connection breaks. RuntimeError is aiohttp's "Connection closed."; the parser's own errors
come through where it is not the C one."""

# What aiohttp's parser says of broken framing is worded as a server's reply: "400, message='...'". No server said that.
# Its words of a connection quote the TLS context, those of a write the URL; a URL of a proxy holds its password.
_NOISE: Final = (
    r"\b400, message[:=]\s*| ssl:(?:<[^>]*>|\w+)|\[Errno [^\]]*\] ?|\[SSL[^\]]*\] ?| ?\(_ssl\.c:\d+\)| for https?://\S+"
    r"|(?<=://)[^/\s@]*@"
)
# What the error says that is wrapped in one of a payload.
_INNER: Final = r"completed: <\w+: [\"'](.+)[\"']\)?>"
_LONGEST: Final = 300
# A proxy that says one of these may say another thing the next time.
_PASSING: Final = frozenset({408, 425, 429, *range(500, 600)} - {HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED})

# What TLS says, as a pattern of the end of OpenSSL's name for it, and what that means to who set up the two sides.
_TLS: Final = {
    "WRONG_VERSION_NUMBER": "does the server speak TLS there?",
    "HTTP_REQUEST": "the server speaks no TLS there",
    "ALERT_HANDSHAKE_FAILURE": "the server refuses: no cipher in common, or it wants a client certificate",
    "ALERT_PROTOCOL_VERSION": "the server refuses: no TLS version in common",
    "UNSUPPORTED_PROTOCOL": "no TLS version in common",
    "ALERT_CERTIFICATE_REQUIRED": "the server wants a client certificate",
    "ALERT_UNKNOWN_CA": "the server does not trust the client certificate",
    r"ALERT_(?:BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|CERTIFICATE_(?:EXPIRED|REVOKED|UNKNOWN)|ACCESS_DENIED)": (
        "the server refuses the client certificate"
    ),
    "UNRECOGNIZED_NAME": "the server does not know that name",
}
_ALERT: Final = r"\[SSL: (\w+)\] ([^(]*)"
# Of an authority that is not trusted: X509_V_ERR_... SELF_SIGNED_CERT, UNABLE_TO_GET_ISSUER, UNABLE_TO_VERIFY.
_UNTRUSTED: Final = frozenset({18, 19, 20, 21})


def translated(error: Exception, dial: DialContext, *, owned: bool, closed: bool) -> Exception:
    """Says what happened to a request in our terms.

    Args:
        error: What was raised.
        dial: How far the request got.
        owned: Whether the session is ours.
        closed: Whether it is closed.
    """
    if dial.source_error is not None:
        return dial.source_error
    if isinstance(error, ConfigurationError):
        return error
    sent = dial.fresh and not dial.warming  # to the connection that proved dead
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return expired("connect", dial.clock.timeouts.connect or 0.0, sent=sent)
    if isinstance(error, aiohttp.InvalidURL):
        return ConfigurationError("the URL is not valid")
    if isinstance(error, RuntimeError) and closed:
        return ConfigurationError("the client is closed" if owned else "the session passed in is closed")
    if (refused := _refused_certificate(error)) is not None:
        return _unsent(f"could not connect: {_address(error, dial)} [{refused}]", sent, hopeless=True)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _unsent(_refusal(error), sent, hopeless=error.status not in _PASSING)
    if isinstance(error, ValueError) and (owned or dial.connected):
        # A host name that is none, credentials of the session beside the token; a foreign connector may raise anything.
        return ConfigurationError(f"the request cannot be made: {type(error).__name__}: {error}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return _unsent(f"could not connect: {_reason(error)}", sent, hopeless=_is_settled(error.os_error))
    if not dial.reused and (alert := _alert(error)) is not None:  # TLS 1.3 lets the client talk before it is known
        return _unsent(f"could not connect: {dial.address} [{alert}]", sent, hopeless=True)
    if not dial.connected:
        hopeless = not owned and "authenticat" in str(error).lower()
        return _unsent(f"could not connect: {_obstacle(error, dial, owned=owned)}", sent, hopeless=hopeless)
    return APIConnectionError(f"no reply: {describe(error)}", sent=dial.clock.sent)


def failed_connecting(error: BaseException, connector: object) -> bool:
    """Whether something was raised by a connector while it made a connection, or while that was waited for.

    A foreign connector tells nothing of how far it got, but the frames do that the error has come through.
    """
    behind: BaseException | None = error
    seen: list[BaseException] = []
    while behind is not None and behind not in seen:
        for frame, _ in walk_tb(behind.__traceback__):
            if frame.f_code.co_name == "connect" and frame.f_locals.get("self") is connector:
                return True
        seen.append(behind)
        behind = behind.__cause__
    return False


def _unsent(words: str, sent: bool, *, hopeless: bool) -> APIConnectionError:
    """The error of a connection that there was none of; hopeless where another try would only bring it again."""
    error = APIConnectionError(words, sent=sent)
    error.hopeless = hopeless
    return error


def _refused_certificate(error: Exception) -> str | None:
    """Why a certificate was refused, in words: ``certificate has expired``; None where none was."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "the server's certificate is refused: its fingerprint is another"
    if not isinstance(error, ssl.CertificateError | aiohttp.ClientConnectorCertificateError):
        return None
    cause: object = getattr(error, "certificate_error", error)
    words = str(getattr(cause, "verify_message", "") or describe(error)).rstrip(".")
    trust = getattr(cause, "verify_code", 0) in _UNTRUSTED
    more = "; ssl= or SSL_CERT_FILE name further authorities to trust" if trust else ""
    return f"the server's certificate is refused: {words}{more}{_unreadable_authorities()}"


def _unreadable_authorities() -> str:
    """What OpenSSL does not tell: that it knows no authorities, since the environment names none that can be read."""
    for variable, is_there in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        path = os.environ.get(variable)
        if path and not (is_there(path) and os.access(path, os.R_OK)):
            return f" ({variable} names {path}, which cannot be read)"
    return ""


def _address(error: Exception, dial: DialContext) -> str:
    host, port = getattr(error, "host", None), getattr(error, "port", None)
    return dial.address if host is None else f"{_bracketed(str(host))}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refusal(error: aiohttp.ClientHttpProxyError) -> str:
    """What a proxy said to a request for a tunnel."""
    url, words = error.request_info.real_url, error.message
    if not words and error.status in HTTPStatus._value2member_map_:
        words = HTTPStatus(error.status).phrase
    return f"the proxy {url.host}:{url.port} refused: {error.status} {words}".rstrip()


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """Where to, and why not. Aiohttp's own words quote the TLS context, and end with the system's, if it has any."""
    cause = error.os_error
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        why = f"the name could not be resolved: {cause.strerror or cause}"
    elif isinstance(cause, ssl.SSLError):
        why = _tls(cause.reason or "", re.sub(_NOISE, "", cause.strerror or str(cause)))
    elif cause.errno and "call failed" in str(cause):  # asyncio's words, which tell the address once more
        why = os.strerror(cause.errno)
    else:
        why = cause.strerror or f"{type(cause).__name__}: {cause}".removesuffix(": ")
    if (path := getattr(error, "path", None)) is not None:  # of a Unix socket
        return f"{path} [{why}]"
    if isinstance(cause, ConnectionResetError) and not cause.errno:  # asyncio's, of a handshake
        why += "] in the TLS handshake [does the server want a client certificate, or another version of TLS?"
    proxy = "the proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
    return f"{proxy}{_bracketed(error.host)}:{error.port} [{why}]"


def _obstacle(error: Exception, dial: DialContext, *, owned: bool) -> str:
    """Why there is no connection, where aiohttp's connector has not said so."""
    if not owned or dial.proxy is None:
        return describe(error)
    return f"the proxy {dial.proxy} [{describe(error).replace('the server closed', 'it closed')}]"


def _tls(name: str, words: str) -> str:
    meaning = next((meaning for end, meaning in _TLS.items() if re.search(f"{end}$", name)), "")
    return f"TLS: {words.strip()}; {meaning}" if meaning else f"TLS: {words.strip()}"


def _is_settled(cause: OSError) -> bool:
    """Whether a handshake failed for what either side is, and not for what has happened to the connection."""
    torn = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    return isinstance(cause, ssl.SSLError) and not torn and "INTERNAL_ERROR" not in (cause.reason or "")


def _alert(error: Exception) -> str | None:
    """What the server said against the handshake after the client took it for done; None where it said nothing."""
    found = re.search(_ALERT, str(error))
    return _tls(found[1], found[2]) if found is not None and "_ALERT_" in found[1] else None


def describe(error: BaseException) -> str:
    """Names an error of aiohttp without its request (``ClientResponseError`` quotes it) and without our types."""
    if isinstance(error, aiohttp.ClientResponseError):  # of the parser: the lines below are the bytes, with a pointer
        lines = [line.strip().rstrip(":") for line in error.message.splitlines() if line.strip()]
        words = [line for line in lines if not line.startswith(("b'", 'b"', "^"))]
        speaks_tls = r"b'\x15\x03" in error.message
        return "it speaks TLS: https?" if speaks_tls else f"what came is no HTTP: {', '.join(words)}"[:_LONGEST]
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    text = re.sub(_NOISE, "", str(error)).strip()
    if isinstance(error, aiohttp.ClientPayloadError) and (inner := re.search(_INNER, text)) is not None:
        return inner[1].rstrip(".")[:_LONGEST]
    if isinstance(error, aiohttp.ClientOSError | ConnectionError) and error.errno and error.errno > 1:
        return text[:_LONGEST] or os.strerror(error.errno)
    return f"{type(error).__name__}: {text}"[:_LONGEST] if text else type(error).__name__
