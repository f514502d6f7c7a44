"""Default TLS verification. Imports no aiohttp: it has to see the environment variables before aiohttp does."""

from __future__ import annotations

import os
import ssl as ssl_module
import sys
from functools import lru_cache
from typing import Final


def _ca_variables() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))


# aiohttp reads these variables once, on import: by the transport, which ``client`` imports after this module. None if
# aiohttp was imported before.
_seen_by_aiohttp: Final = None if "aiohttp.connector" in sys.modules else _ca_variables()


def default_tls() -> ssl_module.SSLContext | bool:
    """Returns the default verification; True is aiohttp's own.

    If the variables have changed since aiohttp read them, for instance by ``load_dotenv``, this is a context of our
    own. Creating one takes as long as importing aiohttp.
    """
    variables = _ca_variables()
    return _make_context(variables) if any(variables) and variables != _seen_by_aiohttp else True


@lru_cache(maxsize=4)
def _make_context(variables: tuple[str | None, ...]) -> ssl_module.SSLContext:
    context = ssl_module.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context
