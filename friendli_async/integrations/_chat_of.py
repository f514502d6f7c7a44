"""Chat resource lookup shared by the model adapters."""

from __future__ import annotations

from typing import Any

import msgspec

from friendli_async import AsyncFriendli
from friendli_async.chat import Chat
from friendli_async.client import DeploymentName

__all__ = ["chat_of"]


def chat_of(
    client: AsyncFriendli,
    deployment: DeploymentName,
    changes: dict[str, Any],
    *,
    timeout: float | None,
    max_retries: int | None,
) -> Chat:
    """Returns the chat resource of a deployment, with changed settings.

    Args:
        client: The client, which is copied if anything changes.
        deployment: The deployment.
        changes: Settings that replace the client's.
        timeout: Timeout of a whole call in seconds; None is the client's. Its other timeouts stay.
        max_retries: Attempts after the first; None is the client's. The rest of its retry policy stays.
    """
    settings = client._settings  # pyright: ignore[reportPrivateUsage]  # there is no public way to read them
    if timeout is not None:
        changes["timeout"] = msgspec.structs.replace(settings.timeout, total=timeout)
    if max_retries is not None:
        changes["retry"] = msgspec.structs.replace(settings.retry, max_attempts=max_retries + 1)
    client = client.with_options(**changes) if changes else client
    chat: Chat = getattr(client, deployment).chat
    return chat
