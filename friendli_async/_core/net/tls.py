"""Which authorities are trusted by default. Imports no aiohttp: it has to see the variables before aiohttp does."""

from __future__ import annotations

import os
import ssl as ssl_module
import sys
from functools import lru_cache
from typing import Final

__all__ = ["default_tls"]


def _variables() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))


# aiohttp reads these variables once, when it is imported: by the transport, which ``client`` imports after this module.
# None where it was there before.
_seen_by_aiohttp: Final = None if "aiohttp.connector" in sys.modules else _variables()


def default_tls() -> ssl_module.SSLContext | bool:
    """The default verification: True is aiohttp's.

    Where the variables say something else than when aiohttp read them, by ``load_dotenv`` for instance, it is a context
    of our own. To make one takes as long as to import aiohttp.
    """
    variables = _variables()
    return _made(variables) if any(variables) and variables != _seen_by_aiohttp else True


@lru_cache(maxsize=4)
def _made(variables: tuple[str | None, ...]) -> ssl_module.SSLContext:
    context = ssl_module.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context
