"""The client that a model makes for itself."""

from __future__ import annotations

import weakref

from friendli_async import AsyncFriendli

__all__ = ["own_client"]


def own_client(owner: object) -> AsyncFriendli:
    """A client by the environment, which closes its connections when its owner is dropped.

    Objects of LangChain and Pydantic AI often end in a circle, which the collector takes apart in any order. The
    client is kept out of it, and let go afterwards: else its connections could be finalized before it can close them.
    """
    client = AsyncFriendli()
    weakref.finalize(owner, _let_go, client).atexit = False
    return client


def _let_go(client: AsyncFriendli) -> None:
    """Nothing: the reference that leads here is the last one."""
